"""Contenders that train in turns within one process, so that what else the machine does hits each of them."""

from __future__ import annotations

import contextlib
import ctypes
import statistics
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Sequence

Turn = Callable[[int], float]  # trains so many steps and gives the seconds that they took

_M_ARENA_MAX = -8  # of mallopt(3)
WARM_UP_IF_COMPILED = 2  # steps: the Trainer's model is compiled again in its second
LONGEST_TRIAL = 0.2  # of the budget: a trial with a longer step is measured once


@dataclass
class Contender:
    """Who trains, how it is set, and how it is made: `build` gives its turn."""

    name: str
    precision: str  # "fp32" or "bf16"
    setting: str
    build: Callable[[], Turn]
    is_compiled: bool = False
    is_trial: bool = False  # of a setting that may be far slower: one slow step of it is enough
    seconds: List[float] = field(default_factory=list)  # a step, one figure a round
    warm_up: List[float] = field(default_factory=list)  # the first steps

    @property
    def step(self) -> float:
        return statistics.median(self.seconds)

    @property
    def compile_seconds(self) -> float:
        """What the first steps took longer than the others."""
        return max(0.0, sum(self.warm_up) - len(self.warm_up) * self.step) if self.is_compiled else 0.0


def share_one_heap() -> None:
    """Lets threads take memory as the main thread does: Hugging Face's `Trainer` has a thread of its own here, and a heap of its
    own would hand large tensors back to the system after each step.
    """
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def take_turns(
    contenders: Sequence[Contender],
    probes: Dict[str, Callable[[], float]],
    rounds: int,
    least_rounds: int,
    budget_seconds: float,
) -> Dict[str, List[float]]:
    """Fills in the contenders' `seconds`; gives one figure a round of each of the `probes`.

    The first step of each is a warm-up, of compiled ones the first two; another one says how long a step takes. A trial whose
    step takes more than a fifth of the budget is measured by that step alone. The others share the budget: at most `rounds`
    turns each, at least `least_rounds`, whatever they take.
    """
    turns = [contender.build() for contender in contenders]
    steady = []
    for contender, turn in zip(contenders, turns):
        contender.warm_up = [turn(1) for _ in range(WARM_UP_IF_COMPILED if contender.is_compiled else 1)]
        longest = LONGEST_TRIAL * budget_seconds if contender.is_trial else float("inf")
        is_slow = contender.warm_up[0] > longest and not contender.is_compiled
        contender.seconds = [contender.warm_up[0] if is_slow else turn(1)]
        if contender.step <= longest:
            steady.append((contender, turn))
    if not steady:
        return {name: [probe()] for name, probe in probes.items()}
    each = sum(contender.step for contender, _ in steady)
    rounds = max(least_rounds, min(rounds, int(budget_seconds / each)))
    steps = [_steps(contender.step, budget_seconds / rounds / len(steady)) for contender, _ in steady]
    for contender, _ in steady:
        contender.seconds.clear()
    measured: Dict[str, List[float]] = {name: [] for name in probes}
    for number in range(rounds):
        for index in _rotated(len(steady), number):
            contender, turn = steady[index]
            contender.seconds.append(turn(steps[index]) / steps[index])
        for name, probe in probes.items():
            measured[name].append(probe())
    return measured


def _steps(seconds: float, share: float) -> int:
    return max(1, round(share / seconds))


def _rotated(count: int, by: int) -> List[int]:
    """Everyone is first once: who comes after whom may matter."""
    return [(index + by) % count for index in range(count)]


def as_json(contender: Contender, batch: int) -> Dict[str, Any]:
    return {
        "name": contender.name,
        "precision": contender.precision,
        "setting": contender.setting,
        "compiled": contender.is_compiled,
        "compile_seconds": contender.compile_seconds,
        "images_per_second": [batch / seconds for seconds in contender.seconds],
    }
