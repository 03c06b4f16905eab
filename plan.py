"""Shows what a config resolves to, where its stages run, and what they need and give, without running anything.

python plan.py --config b16_imagenet1k
python plan.py --config b16_imagenet1k --machine pod16 --balance --timeline timeline.svg
python plan.py --config b16_imagenet1k --runtime pipeline --num-processes 4

`--help` lists the flags. What each figure means: docs/planning.md.
"""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Optional, Sequence

import launch

SECONDS = 1.0  # that this CPU is measured for

if TYPE_CHECKING:
    import argparse

    from config import Config
    from planning.layout import Layout
    from runtime.precision_choice import Choice


def main(argv: Optional[Sequence[str]] = None) -> int:
    from planning.options import own_parser, parse_own_flags, timeline_path

    own, rest = parse_own_flags(sys.argv[1:] if argv is None else argv)
    from allocation import plan_text
    from config import load_config
    from placement import follow_launcher

    config = shown = follow_launcher(load_config("plan", rest, own_parser()))
    timeline = timeline_path(own.timeline)
    if not config.epochs and not config.training_steps:  # a recipe for validation
        config = follow_launcher(load_config("validation", rest))
    choice = _choice(config, own)
    if choice is not None:
        config, shown = (each.model_copy(update={"precision": choice.precision}) for each in (config, shown))
    layout = _layout(config, own)

    from planning.balance_text import balance_line, balance_text
    from planning.drawing import draw_timeline
    from planning.report import make_plan, report, summary

    plan = make_plan(config, layout)
    if not own.summary:
        notes = [choice.note] if choice is not None else []
        print("\n".join([plan_text(shown, layout.placement), *notes]), report(plan), sep="\n\n", end="\n\n")
        if own.balance:
            print(balance_text(config, layout, own.hosts), end="\n\n")
    elif own.balance:
        print(balance_line(config, layout, own.hosts))
    if timeline is not None:
        print(draw_timeline(plan, timeline))
    print(summary(plan))
    return 0


def _choice(config: Config, own: argparse.Namespace) -> Optional[Choice]:
    """What `precision: auto` is on the machine that the plan is for; None where the config names a precision."""
    if config.precision != "auto":
        return None
    from placement import place
    from planning.machines import named_machine
    from runtime.precision_choice import choose, on_gpu, on_ipu

    if own.machine in (None, "cpu"):
        here = config if own.machine is None else config.model_copy(update={"device": "cpu"})
        return choose(here, place(here).runtime if own.hosts in (None, 1) else "single")
    device = named_machine(own.machine, own.hosts).device
    return on_ipu() if device.kind == "ipu" else on_gpu(f"an {device.name}", "bf16" in device.peaks)


def _layout(config: Config, own: argparse.Namespace) -> Layout:
    """Where the config would run: on the machine that is named, else on this one."""
    from machine import num_gpus
    from placement import place
    from planning.layout import check_runtime, layout_on
    from planning.machines import named_machine, this_machine

    if own.machine not in (None, "cpu"):
        return layout_on(config, named_machine(own.machine, own.hosts), own.hosts)
    measured = None
    if own.machine == "cpu":
        from planning.throughput import KINDS
        from runtime.block_speed import measured_block_rates

        check_runtime(config, this_machine(0))
        config = config.model_copy(update={"device": "cpu"})
        (rate,) = measured_block_rates(config, (config.precision,), SECONDS, place(config).runtime).values()
        measured = {KINDS[config.precision.split(".")[0]]: rate}
    placement = place(config) if own.hosts in (None, 1) else None
    if placement is not None and placement.runtime == "ipu":
        return layout_on(
            config, named_machine("pod16" if placement.num_devices <= 16 else "pod64", own.hosts), own.hosts
        )
    machine = this_machine(num_gpus(config.device), own.hosts, measured)
    return layout_on(config, machine, own.hosts, placement)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # terminals that know no µ
    sys.exit(launch.guarded(lambda: main(arguments), debug="--debug" in arguments))
