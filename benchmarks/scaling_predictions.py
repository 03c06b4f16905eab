"""What plan.py predicts for one recipe over machines and numbers of devices: images/s, bubble, update, efficiency, hours.

    python benchmarks/scaling_predictions.py [--chart docs/scaling.svg] [--page docs/scaling.md] [--price 2.5] [--json FILE]

Arithmetic alone: nothing runs, and nothing of it was measured on these machines. The recipe is ViT-B/16 on ImageNet-1k for 300
epochs (`b16_in1k_pretrain`, 4,096 images a weight update) and its variant of 65,536; the global batch stays, replicas divide it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.facts import write_json  # noqa: E402
from benchmarks.markdown import markdown, write_section  # noqa: E402
from config import load_config  # noqa: E402
from planning.cost import device_hours  # noqa: E402
from planning.layout import layout_on  # noqa: E402
from planning.machines import MACHINES, Machine, named_machine  # noqa: E402
from planning.schedule import makespan  # noqa: E402
from planning.stage_memory import share_of_device, stage_memories  # noqa: E402
from planning.throughput import predict  # noqa: E402
from planning.units import rounded  # noqa: E402
from reporting.tables import table  # noqa: E402

EPOCHS = 300
SMALL, LARGE = 4_096, 65_536  # images a weight update
GPU_HOSTS = (1, 2, 4, 8, 16, 32, 64)
LARGEST_MICRO_BATCH = {"ipu": 32, "gpu": 128}  # over the stages of a replica: on IPUs 8 images for each of four

HEADERS = (
    *("machine", "devices", "stages", "batch", "micro-batches", "images/s", "bubble", "idle", "update", "scaling"),
    *("memory", "cores/host", "hours", "device-hours"),
)


class Case(NamedTuple):
    """A machine, how many of its devices share a replica and how many images an update has."""

    machine: str
    hosts: Optional[int]
    devices: int
    stages: int
    batch: int

    @property
    def name(self) -> str:
        return f"{self.machine} x {self.hosts} hosts" if self.hosts and self.hosts > 1 else self.machine


class Row(NamedTuple):
    """What is predicted."""

    case: Case
    micro_batch: int
    micro_batches: int
    images_per_second: float
    bubble: float
    idle: float
    update_share: float  # of the time of a weight update that is not passes
    scaling: float  # images/s of a device, beside that of the smallest machine of its kind at the same batch and split
    device_hours: float
    loading_cores: float  # of each host
    memory: float  # share of the fullest device's


def cases() -> List[Case]:
    ipus = [Case("pod16", None, 16, 4, batch) for batch in (SMALL, LARGE)]
    ipus += [Case("pod64", None, 64, 4, batch) for batch in (SMALL, LARGE)]
    gpus = [
        Case("h100x8", hosts, 8 * hosts, stages, batch)
        for stages in (1, 4)
        for batch in (SMALL, LARGE)
        for hosts in GPU_HOSTS
    ]
    return ipus + gpus


def main(argv: Optional[Sequence[str]] = None) -> int:
    options = parse_options(argv)
    rows = predictions(cases())
    shown = [row for row in rows if options.all or is_in_page(row.case)]
    headers, cells = columns(options.price), [cells_of(row, options.price) for row in shown]
    print(table(headers, cells))
    if options.page:
        write_section(Path(options.page), "predictions", markdown(headers, cells))
    if options.chart:
        draw(rows, Path(options.chart))
    write_json(options.json, {"rows": [{**row._asdict(), "case": row.case._asdict()} for row in rows]})
    return 0


def is_in_page(case: Case) -> bool:
    return case.machine != "h100x8" or case.hosts in (1, 8, 64)


def parse_options(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--all", action="store_true", help="all numbers of hosts (default: 1, 8 and 64)")
    add("--price", type=float, metavar="P", help="of a device for an hour: adds what the recipe costs")
    add("--page", default="", metavar="FILE.md", help="write the table into this page, too")
    add("--chart", default="", metavar="FILE.svg", help="draw images/s over devices")
    add("--json", default="", metavar="FILE", help="write the figures there too")
    return parser.parse_args(argv)


def predictions(chosen: Sequence[Case]) -> List[Row]:
    rows: List[Row] = []
    for case in chosen:
        base = next((r for r in rows if _kind(r.case) == _kind(case)), None)
        rows.append(predicted(case, base))
    return rows


def _kind(case: Case) -> Any:
    """Cases that differ in the number of devices alone."""
    return MACHINES[case.machine].device.kind, case.stages, case.batch


def predicted(case: Case, base: Optional[Row]) -> Row:
    machine: Machine = named_machine(case.machine, case.hosts)
    config = load_config("plan", flags_of(case, machine.device.kind))
    layout = layout_on(config, machine, case.hosts)
    assert layout.num_used == case.devices, (case, layout.num_used)
    found = predict(config, layout)
    images, hours = found.images_per_second, device_hours(config, layout, found)
    assert images is not None and hours is not None
    return Row(
        case=case,
        micro_batch=config.micro_batch_size,
        micro_batches=found.micro_batches,
        images_per_second=images,
        bubble=found.bubble,
        idle=found.idle,
        update_share=found.update.total / (makespan(found.events) + found.update.total),
        scaling=1.0 if base is None else images / case.devices / (base.images_per_second / base.case.devices),
        device_hours=hours,
        memory=max(share_of_device(memory, layout) or 0.0 for memory in stage_memories(config, layout)),
        loading_cores=0.0 if found.loading is None else images / found.loading * (machine.cores or 0),
    )


def flags_of(case: Case, kind: str) -> List[str]:
    """The recipe with the case's split, and the largest micro-batches of which a replica has enough."""
    replicas = case.devices // case.stages
    images = case.batch // replicas
    fewest = 1 if case.stages == 1 else case.stages  # micro-batches: the pipeline has to be full
    micro_batch = max(1, min(LARGEST_MICRO_BATCH[kind] // case.stages, images // fewest))
    flags: Dict[str, Any] = {
        "config-file": ROOT / "configs.yaml",
        "config": "b16_in1k_pretrain" if case.batch == SMALL else "b16_in1k_pretrain_lamb",
        "epochs": EPOCHS,
        "runtime": "ipu" if kind == "ipu" else "pipeline",
        "micro-batch-size": micro_batch,
        "gradient-accumulation": images // micro_batch,
        "replication-factor": replicas,
        "ipus-per-replica": case.stages,
        "matmul-proportion": 0.3,
    }
    if kind == "gpu":
        flags.update({"precision": "bf16.32", "recompute-checkpoint-every-layer": "false", "enable-rts": "false"})
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return [*words, "--layers-per-ipu", *[str(12 // case.stages)] * case.stages]


def columns(price: Optional[float]) -> List[str]:
    return [*HEADERS, *["cost"] * (price is not None)]


def cells_of(row: Row, price: Optional[float] = None) -> List[str]:
    case = row.case
    shares = (row.bubble, row.idle, row.update_share)
    amounts = (row.loading_cores, row.device_hours / case.devices, row.device_hours)
    cells = [case.name, str(case.devices), str(case.stages), f"{case.batch:,}"]
    cells += [f"{row.micro_batches:,} x {row.micro_batch}", rounded(row.images_per_second)]
    cells += [f"{100 * share:.1f} %" for share in shares]
    cells += [f"{100 * share:.0f} %" for share in (row.scaling, row.memory)]
    return [*cells, *map(rounded, amounts), *([] if price is None else [rounded(price * row.device_hours)])]


def draw(rows: Sequence[Row], path: Path) -> None:
    """Images/s of H100 hosts over their devices, beside the straight line from the first host; of IPU Pods, as points."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "scaling"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.6))
    gpus = [row for row in rows if row.case.machine == "h100x8"]
    for stages, style in ((1, "-"), (4, "--")):
        for batch, colour in ((SMALL, "#4C78A8"), (LARGE, "#F58518")):
            line = [row for row in gpus if (row.case.stages, row.case.batch) == (stages, batch)]
            label = f"H100, {stages} stage{'s' * (stages > 1)}, {batch:,} images an update"
            x, y = [row.case.devices for row in line], [row.images_per_second for row in line]
            axes.plot(x, y, style, marker="o", color=colour, label=label)
    first = gpus[0].images_per_second / gpus[0].case.devices
    ends = [8, 512]
    axes.plot(
        ends, [first * end for end in ends], color="#999999", linewidth=1, label="ideal: the first host's, times hosts"
    )
    for batch, colour in ((SMALL, "#54A24B"), (LARGE, "#B279A2")):
        line = [row for row in rows if row.case.machine != "h100x8" and row.case.batch == batch]
        x, y = [row.case.devices for row in line], [row.images_per_second for row in line]
        axes.plot(x, y, marker="s", color=colour, label=f"Bow IPU, 4 stages, {batch:,} images an update")
    axes.set(xscale="log", yscale="log", xlabel="devices", ylabel="predicted images/s, ViT-B/16, training")
    axes.set_xticks([8, 16, 32, 64, 128, 256, 512], ["8", "16", "32", "64", "128", "256", "512"])
    axes.minorticks_off()
    axes.grid(color="#dddddd")
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, facecolor="white", metadata={"Date": None})


if __name__ == "__main__":
    raise SystemExit(main())
