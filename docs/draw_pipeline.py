"""Draws docs/pipeline.svg, the 1F1B schedule of four stages and eight micro-batches:  python docs/draw_pipeline.py"""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List, Tuple

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

NUM_STAGES, NUM_MICRO_BATCHES = 4, 8
FORWARD_TIME, BACKWARD_TIME = 1, 2
COLOURS = {"F": "#4C78A8", "B": "#F58518"}

Action = Tuple[str, int]


def stage_order(stage: int) -> List[Action]:
    """What a stage does in 1F1B: some forwards first, then one forward and one backward in turn, then the backwards left."""
    warm_up = min(NUM_STAGES - stage, NUM_MICRO_BATCHES)
    order: List[Action] = [("F", number) for number in range(warm_up)]
    for number in range(NUM_MICRO_BATCHES):
        order.append(("B", number))
        if number + warm_up < NUM_MICRO_BATCHES:
            order.append(("F", number + warm_up))
    return order


def schedule() -> Dict[Tuple[int, Action], Tuple[int, int]]:
    """Start and length of every action: as soon as the stage is free and what it needs has come from its neighbour."""
    orders = {stage: stage_order(stage) for stage in range(NUM_STAGES)}
    free = dict.fromkeys(orders, 0)
    done: Dict[Tuple[int, Action], Tuple[int, int]] = {}
    while any(orders.values()):
        for stage, order in orders.items():
            while order and (need := needed(stage, order[0])) in (None, *done):
                action = order.pop(0)
                length = FORWARD_TIME if action[0] == "F" else BACKWARD_TIME
                start = max(free[stage], sum(done[need]) if need else 0)
                done[stage, action] = (start, length)
                free[stage] = start + length
    return done


def needed(stage: int, action: Action) -> Tuple[int, Action] | None:
    kind, number = action
    if kind == "F":
        return (stage - 1, action) if stage else None
    return (stage + 1, action) if stage < NUM_STAGES - 1 else (stage, ("F", number))


def main() -> None:
    figure, axes = plt.subplots(figsize=(9, 2.6))
    for (stage, (kind, number)), (start, length) in schedule().items():
        axes.barh(stage, length, left=start, height=0.86, color=COLOURS[kind], edgecolor="white", linewidth=1)
        axes.text(start + length / 2, stage, str(number + 1), ha="center", va="center", color="white", fontsize=8)
    units = ["embed, block 0", "block 1", "block 2", "block 3, head"]
    axes.set_yticks(range(NUM_STAGES), [f"stage {stage}: {units[stage]}" for stage in range(NUM_STAGES)])
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.set_xlabel("time: eight micro-batches, forward (blue) and backward (orange); white is the bubble")
    axes.spines[:].set_visible(False)
    figure.tight_layout()
    figure.savefig(Path(__file__).with_name("pipeline.svg"), facecolor="white")


if __name__ == "__main__":
    main()
