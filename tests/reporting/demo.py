"""Runs as their records alone, for tests of the page and for looking at it:  python -m tests.reporting.demo FOLDER

Writes a page for each kind of run into FOLDER.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Tuple

import numpy as np

from planning.schedule import FORWARD, bubble, idle_share, makespan, orders_of, simulate
from reporting.base import Reporter
from reporting.records import (
    AttentionView,
    ClassResult,
    Findings,
    MemoryRecord,
    Mistake,
    ModelViews,
    ProcessMemory,
    RunRecord,
    SaveRecord,
    Span,
    StepRecord,
    Summary,
    Timeline,
    ValidationRecord,
)
from reporting.report import ReportReporter

NASTY = (
    "<img src=x onerror=alert(1)>",
    "\"'><script>alert(1)</script>&amp;",
    "صورة الصدر \u202e gnp.exe",
    "lone \ud800 and \udcff surrogates",
    "long " + "x" * 300,
    "new\nline\ttab\x00null",
    "&lt;b&gt;</style></title></svg>",
)


def run_record(**fields: Any) -> RunRecord:
    usual: Dict[str, Any] = {
        "name": "digits",
        "command": "pretrain",
        "settings": {
            "learning_rate": 0.001,
            "layers_per_ipu": [1, 1, 1, 1],
            "dataset_path": "data",
            "micro_batch_size": 4,
        },
        "plan": "stage  units           device\n-----  --------------  ------\n    0  embed, block 0  cpu:0",
        "runtime": "pipeline",
        "versions": {"Python": "3.11.7", "torch": "2.13.0"},
        "machine": "a machine with 2 cores",
        "class_names": tuple("0123456789"),
        "class_counts": (143, 146, 142, 146, 144, 145, 144, 143, 139, 145),
        "num_train": 1437,
        "num_validation": 360,
        "num_parameters": 202_890,
        "num_steps": 440,
        "given": ("learning_rate", "layers_per_ipu"),
    }
    return RunRecord(**{**usual, **fields})


def step_record(step: int, num_steps: int = 440, **fields: Any) -> StepRecord:
    noise = math.sin(step * 12.9898) * 0.5
    usual: Dict[str, Any] = {
        "learning_rate": 0.001 * min(step / 40, 1) * (1 + math.cos(math.pi * step / num_steps)) / 2,
        "loss": 2.3 * math.exp(-4 * step / num_steps) + 0.08 + 0.1 * noise,
        "accuracy": min(1.0, 1 - 0.9 * math.exp(-6 * step / num_steps) + 0.02 * noise),
        "images_per_second": 820 + 60 * noise,
        "step_seconds": 0.16,
        "data_wait_seconds": 0.003 + 0.002 * noise,
        "grad_norm": 3 * math.exp(-3 * step / num_steps) * (1 + noise),
        "warming_up": step <= 2,
    }
    return StepRecord(step, num_steps, step / 11, num_steps / 11, **{**usual, **fields})


def validation_record(step: int, num_steps: int = 440, **fields: Any) -> ValidationRecord:
    share = 1 - 0.9 * math.exp(-5 * step / num_steps)
    usual: Dict[str, Any] = {
        "loss": 2.3 * math.exp(-4 * step / num_steps) + 0.12,
        "top1": share * 0.985,
        "top5": min(1.0, share + 0.05),
        "num_samples": 360,
        "seconds": 0.2,
        "is_best": True,
    }
    return ValidationRecord(step, step / 11, **{**usual, **fields})


def timeline(stages: int = 4, micro_batches: int = 8, schedule: str = "1f1b", is_measured: bool = True) -> Timeline:
    """A planned one with an update at its end; times vary a little where it counts as measured."""
    orders = orders_of(schedule, stages, stages, micro_batches)
    events = simulate(orders, [0.01 + 0.001 * stage for stage in range(stages)], [0.02] * stages)
    end = makespan(events)
    spans = [
        Span(
            event.process,
            "forward" if event.action.kind == FORWARD else "backward",
            event.action.micro_batch,
            event.start,
            event.end,
        )
        for event in events
    ]
    spans += [Span(row, "update", -1, end, end + 0.006) for row in range(stages)]
    spans += [Span(row, "send", 0, 0.004 + 0.02 * row, 0.009 + 0.02 * row) for row in range(stages - 1)]
    rows = tuple(f"stage {row}: block {row} on cpu:{row}" for row in range(stages))
    measured = idle_share(events, stages)
    return Timeline(3, rows, tuple(spans), schedule, measured, bubble(stages, micro_batches), is_measured)


def pictures(size: int, count: int) -> np.ndarray:
    """Smooth blobs, uint8 [count, size, size, 3]."""
    y, x = np.mgrid[0:size, 0:size] / size
    grey = [np.exp(-8 * ((x - 0.3 - 0.05 * k) ** 2 + (y - 0.6 + 0.04 * k) ** 2)) * 220 + 20 for k in range(count)]
    return np.repeat(np.stack(grey)[..., None], 3, axis=3).astype(np.uint8)


def confusion(classes: int) -> np.ndarray:
    draw = np.random.default_rng(0)
    matrix = np.diag(draw.integers(25, 40, classes))
    for row, column in draw.integers(0, classes, (classes * 2, 2)):
        matrix[row, column] += 1
    return matrix


def mistakes(names: Tuple[str, ...], size: int) -> Tuple[Mistake, ...]:
    shown = pictures(size, 12)
    return tuple(
        Mistake(k, names[k % len(names)], names[k % len(names)], names[(k + 3) % len(names)], 0.99 - 0.03 * k, shown[k])
        for k in range(12)
    )


def views(size: int, grid: int) -> ModelViews:
    shown = pictures(size, 6)
    attentions = tuple(
        AttentionView(f"image {k}.png", str(k), str(k if k else 7), 0.9, shown[k], shown[k][:, ::-1]) for k in range(6)
    )
    places = np.stack(np.meshgrid(np.arange(grid), np.arange(grid), indexing="ij"), -1)
    apart = np.linalg.norm(places[:, :, None, None] - places[None, None], axis=-1)
    rows = (places[:, :, None, None, 0] == places[None, None, :, :, 0]) * 0.3
    return ModelViews(440, attentions, (np.exp(-apart / 3) * 0.7 + rows).astype(np.float32))


def classes(names: Tuple[str, ...]) -> Tuple[ClassResult, ...]:
    rate = np.linspace(0, 1, 60)
    results = []
    for k, label in enumerate(names):
        power = 0.1 + 0.04 * k
        curve = tuple((float(x), float(x**power)) for x in rate)
        at = int(np.argmax(rate**power - rate))
        threshold = {"threshold": 0.1 + 0.02 * k, "sensitivity": curve[at][1], "specificity": 1 - curve[at][0]}
        results.append(ClassResult(label, 20 + 7 * k, 900 - k, 1 / (1 + power), curve=curve, **threshold))
    return (*results, ClassResult("Hernia", 0, 920))


def tell_single_label(reporter: Reporter, num_steps: int = 440, until: int = 440) -> None:
    reporter.began(run_record(num_steps=num_steps))
    reporter.note("keys of the config that this run does not use: matmul_proportion")
    for step in range(1, until + 1):
        reporter.step(step_record(step, num_steps))
        if step == 3:
            reporter.traced(timeline())
        if step % 22 == 0:
            reporter.validated(validation_record(step, num_steps))
            reporter.validated(
                validation_record(step + 0, num_steps, averaged=True, loss=0.1, top1=0.9 * step / num_steps)
            )
    reporter.found(Findings(until, confusion=confusion(10), mistakes=mistakes(tuple("0123456789"), 8)))
    processes = tuple(
        ProcessMemory(f"rank {k}, stage {k}, cpu", 400_000_000 + k * 9_000_000, "resident memory") for k in range(4)
    )
    reporter.held(MemoryRecord(until, processes))
    reporter.viewed(views(8, 4))
    reporter.saved(SaveRecord(until, 0.01, 0.2, 2_400_000))
    if until == num_steps:
        reporter.finished(
            Summary(
                num_steps, 71.5, 811.0, 0.021, 0.9861, 418, False, "runs/digits", "python validation.py --config-file x"
            )
        )


def tell_multi_label(reporter: Reporter) -> None:
    names = (
        "No Finding",
        "Atelectasis",
        "Consolidation",
        "Infiltration",
        "Pneumothorax",
        "Edema",
        "Emphysema",
        "Effusion",
    )
    reporter.began(
        run_record(name="chest_xray", command="finetune", runtime="single", multi_label=True, num_train=5000,
                   class_names=(*names, "Hernia"), class_counts=(3000, 600, 300, 900, 200, 100, 90, 700, 3), num_steps=90)
    )  # fmt: skip
    for step in range(1, 91):
        reporter.step(step_record(step, 90, loss_scale=2.0 ** (10 + step // 30)))
        if step % 30 == 0:
            record = validation_record(step, 90, multi_label=True, top1=0.91, top5=0.4)
            reporter.validated(record)
            found = Findings(step, classes=classes(names), mistakes=mistakes(names, 224))
            reporter.found(found)
    reporter.viewed(views(224, 14))
    reporter.finished(Summary(90, 3754.0, 34.0, 0.31, 0.91, 90, True, "runs/chest", "python validation.py"))


def tell_hostile(reporter: Reporter) -> None:
    """Names that would break out of a page, figures that are not finite, and a run that ends by an error."""
    settings = {"run_name": NASTY[3], NASTY[0]: list(NASTY)}
    about = {"settings": settings, "versions": {NASTY[2]: NASTY[0]}, "plan": "\n".join(NASTY), "machine": NASTY[1]}
    counts = tuple(range(len(NASTY)))
    reporter.began(run_record(name=NASTY[0], class_names=NASTY, class_counts=counts, given=("run_name",), **about))
    for name in NASTY:
        reporter.note(name)
    for step in range(1, 61):
        reporter.step(
            step_record(
                step, loss=math.nan if 20 < step < 30 else math.inf if step == 31 else 1e290 * step, grad_norm=0.0
            )
        )
    reporter.validated(validation_record(60, loss=math.nan))
    reporter.found(Findings(60, confusion=confusion(len(NASTY)), mistakes=mistakes(NASTY, 30)))
    reporter.found(Findings(60, confusion=confusion(len(NASTY)), mistakes=mistakes(NASTY, 30), classes=classes(NASTY)))
    reporter.traced(Timeline(1, NASTY, tuple(Span(row, "forward", 0, row, row + 1.0) for row in range(7)), NASTY[0]))
    reporter.held(MemoryRecord(60, tuple(ProcessMemory(name, 10**12, name) for name in NASTY)))
    picture = pictures(8, 1)[0]
    reporter.viewed(ModelViews(60, tuple(AttentionView(name, name, name, 1.0, picture, picture) for name in NASTY)))
    reporter.close()


def tell_one_step(reporter: Reporter) -> None:
    reporter.began(run_record(num_steps=1, class_names=(), class_counts=(), num_validation=0))
    reporter.step(step_record(1, 1))
    reporter.finished(Summary(1, 0.4, interrupted="Ctrl-C", next_command="python pretrain.py --resume"))


def tell_huge(reporter: Reporter) -> None:
    """A thousand classes, 64 stages, thousands of steps, and as many pictures as anyone may send."""
    names = tuple(f"class number {label} with a name of some length" for label in range(1000))
    reporter.began(run_record(name="huge", class_names=names, class_counts=tuple(range(1, 1001)), num_steps=5_000))
    for step in range(1, 5_001):
        reporter.step(step_record(step, 5_000, loss_scale=2.0 ** (step // 500)))
        if step % 50 == 0:
            reporter.validated(validation_record(step, 5_000))
    draw = np.random.default_rng(1)
    noise = draw.integers(0, 256, (40, 400, 400, 3), np.uint8)
    wrong = tuple(
        Mistake(k, f"images/{k}.jpg", names[k], names[k + 1], 0.9, picture) for k, picture in enumerate(noise)
    )
    reporter.found(Findings(5_000, confusion=confusion(1000), classes=classes(names), mistakes=wrong))
    shown = tuple(AttentionView(f"{k}", "a", "b", 0.9, picture, picture) for k, picture in enumerate(noise))
    reporter.viewed(ModelViews(5_000, shown, draw.random((32, 32, 32, 32), np.float32)))
    reporter.traced(timeline(64, 128))
    reporter.held(
        MemoryRecord(1, tuple(ProcessMemory(f"rank {k}", k * 10**9, "GPU memory in tensors") for k in range(2000)))
    )
    reporter.finished(Summary(5_000, 90_000.0))


KINDS: Dict[str, Callable[[Reporter], None]] = {
    "running": lambda reporter: tell_single_label(reporter, until=222),
    "single": tell_single_label,
    "multi": tell_multi_label,
    "hostile": tell_hostile,
    "one": tell_one_step,
    "huge": tell_huge,
}


def write(folder: Path, kind: str) -> Path:
    """A demo's page; its clock goes so fast that nothing is left out for its cost."""
    seconds = iter(range(0, 10**9, 1000))
    reporter = ReportReporter(folder, clock=lambda: 1e-4 * next(seconds))
    reporter._write_if_cheap = lambda: None  # type: ignore[method-assign]
    KINDS[kind](reporter)
    if kind == "running":
        reporter._write("running")
    return folder / "report.html"


if __name__ == "__main__":
    for kind in KINDS:
        print(write(Path(sys.argv[1]) / kind, kind))
