"""A plan in words and tables: devices, memory, traffic, bubble, and what is expected of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, List

from errors import counted
from placement import process_counts
from planning.cost import device_hours
from planning.layout import Layout
from planning.length import updates_of
from planning.loading import IMAGES_PER_CORE
from planning.published import figures_for
from planning.schedule import makespan
from planning.stage_memory import StageMemory, fullest, share_of_device, stage_memories
from planning.throughput import KINDS, Prediction, micro_batches_of, predict, schedule_of
from planning.traffic import Traffic, traffic_of
from planning.units import duration_text, rounded, size_text, time_unit
from planning.update import UpdateTime
from reporting.tables import table

if TYPE_CHECKING:
    from config import Config

GB = 1e9
MOST_REPLICAS = 16  # rows of the device table; of more, the first and the last
WORDS = {"ipu": "IPU", "gpu": "GPU", "cpu": "process"}
TIGHT = 0.67  # of an IPU's memory: its program often needs a third and more


@dataclass(frozen=True)
class Plan:
    """Everything that is known of a config on a machine."""

    config: Config
    layout: Layout
    memories: List[StageMemory]
    traffic: Traffic
    prediction: Prediction


def make_plan(config: Config, layout: Layout) -> Plan:
    return Plan(config, layout, stage_memories(config, layout), traffic_of(config, layout), predict(config, layout))


def report(plan: Plan) -> str:
    """All sections but the summary."""
    sections = [_devices(plan), _memory(plan), _traffic(plan), _time(plan)]
    return "\n\n".join(sections)


def summary(plan: Plan) -> str:
    """One line."""
    config, layout = plan.config, plan.layout
    index = fullest(plan.memories)
    where = f"fullest {_stages_of(layout, index)}" if len(plan.memories) > 1 else "all stages on one device"
    images = plan.prediction.images_per_second
    batch = (
        f"global batch {config.global_batch_size:,}" if config.trains else f"micro batch {config.micro_batch_size:,}"
    )
    share = share_of_device(plan.memories[index], layout) or 0
    return (
        f"{config.name}: {counted(layout.num_used, WORDS[layout.machine.device.kind])}, {batch}, {_updates(config)}, "
        f"bubble {100 * plan.prediction.bubble:.1f} %, {where}: {size_text(plan.memories[index].total)}, "
        + (f"DOES NOT FIT ({100 * share:.1f} % of {_device(layout)}), " if share > 1 else "")
        + f"predicted {'-' if images is None else rounded(images)} images/s{_refusal(layout)}"
    )


def _updates(config: Config) -> str:
    if not config.trains:
        return "no updates"
    updates = updates_of(config)
    return "updates not known (the number of images is not)" if updates is None else f"{updates:,} updates"


def _device(layout: Layout) -> str:
    """Whose memory a process has."""
    return {"ipu": "an IPU", "gpu": "a GPU", "cpu": "its share of the host's memory"}[layout.machine.device.kind]


def _refusal(layout: Layout) -> str:
    """The first of PopTorch's, in short."""
    if not layout.refusals:
        return ""
    first, more = layout.refusals[0].splitlines()[0].rstrip("."), len(layout.refusals) - 1
    return f"; PopTorch would refuse it: {first}{f' (and {more} more)' if more else ''}"


def _devices(plan: Plan) -> str:
    layout, placement = plan.layout, plan.layout.placement
    machine = layout.machine
    used = f" on {counted(layout.hosts, 'host')}"
    title = f"Devices: {machine.name}, {counted(layout.num_used, 'process')}{used}"
    if machine.device.kind != "cpu":
        title = f"Devices: {machine.name} ({machine.num_devices} x {machine.device.name}), "
        title += f"{layout.num_used} used{used}"
    word = WORDS[machine.device.kind]
    groups = list(range(placement.replica_groups))
    if len(groups) > MOST_REPLICAS:
        groups = groups[: MOST_REPLICAS - 1] + groups[-1:]
    rows = []
    for group in groups:
        numbers = [layout.device(group, process) for process in range(placement.pipeline_size)]
        hosts = sorted({layout.host(number) for number in numbers})
        replicas = range(group, placement.replication_factor, placement.replica_groups)
        named = (
            [str(r) for r in replicas] if len(replicas) <= 4 else [f"{replicas[0]}, {replicas[1]} .. {replicas[-1]}"]
        )
        rows.append([", ".join(named), ", ".join(map(str, hosts)), *(f"{word} {n}" for n in numbers)])
    if len(groups) < placement.replica_groups:
        rows.insert(-1, ["..."] * (placement.pipeline_size + 2))
    columns = [_stages_of(layout, process) for process in range(placement.pipeline_size)]
    lines = [title, table(["replica", "host", *columns], rows), *layout.notes, *_other_counts(plan)]
    return "\n".join([*lines, *(f"PopTorch would refuse this plan: {problem}" for problem in layout.refusals)])


def _other_counts(plan: Plan) -> List[str]:
    """Which other numbers of processes the plan folds onto."""
    if plan.layout.placement.runtime != "pipeline":
        return []
    others = [str(count) for count in process_counts(plan.config) if count != plan.layout.placement.num_processes]
    return [f"numbers of processes that the plan also folds onto, with the same result: {', '.join(others) or 'none'}"]


def _memory(plan: Plan) -> str:
    layout, memories = plan.layout, plan.memories
    whole = layout.machine.device.memory
    offchip = any(memory.weights.offchip for memory in memories)
    average = any(memory.weights.average for memory in memories)
    headers = ["on", "weights", "gradients", "optimiser", *["average"] * average, "waiting", "in flight", "working"]
    headers += ["all", *["of it"] * bool(whole), *["off the chip"] * offchip, ""]
    rows = []
    for process, memory in enumerate(memories):
        kept, share = memory.weights, share_of_device(memory, layout)
        row = [_stages_of(layout, process), size_text(kept.weights), size_text(kept.gradients), size_text(kept.state)]
        row += [size_text(kept.average)] * average
        row += [size_text(memory.waiting), str(memory.in_flight), size_text(memory.working), size_text(memory.total)]
        row += [f"{100 * share:.1f} %" if share is not None else ""] * bool(whole)
        row += [size_text(kept.offchip)] * offchip
        row.append("<- fullest" if process == fullest(memories) and len(memories) > 1 else "")
        rows.append(row)
    has = "" if not whole else f"of {whole / 1e6:,.0f} MB" if whole < GB else f"of {whole / GB:,.0f} GB"
    place = (
        f"Memory of a process; each host has {has[3:]}"
        if layout.machine.device.kind == "cpu"
        else f"Memory of a device {has}"
    )
    title = f"{place.rstrip()}. Waiting: kept for the backward pass, of all micro-batches in flight"
    lines = [title, table(headers, rows)]
    if layout.on_ipu:
        lines.append("not counted: the program and its buffers, often a third of an IPU's memory and more")
    index = fullest(memories)
    share = share_of_device(memories[index], layout) or 0
    if layout.on_ipu and TIGHT <= share <= 1:
        lines.append(f"tight: {_stages_of(layout, index)} would leave the program {100 * (1 - share):.1f} % of an IPU")
    if share > 1:
        lines.append("this does not fit: smaller micro-batches, recompute_checkpoint_every_layer, or more stages")
    return "\n".join(lines)


def _traffic(plan: Plan) -> str:
    config, traffic, placement = plan.config, plan.traffic, plan.layout.placement
    per = "a weight update" if config.trains else "an evaluation batch"
    lines = ["Traffic"]
    if traffic.boundaries:
        amounts = ", ".join(size_text(amount) for amount in traffic.boundaries)
        back = ", as much back" if config.trains else ""
        if config.trains and traffic.returned != traffic.boundaries:
            back = f", {', '.join(size_text(amount) for amount in traffic.returned)} back"
        lines.append(
            f"between stages, a micro-batch: {amounts} forward{back}; {per} of a replica: {size_text(traffic.per_update)}"
        )
    else:
        lines.append("between stages: none, one device holds all")
    if max(traffic.reduction):
        groups = placement.replica_groups
        lines.append(
            f"between {counted(groups, 'replica')}, a weight update: up to {size_text(max(traffic.reduction))} of gradients"
            + (f" and {size_text(max(traffic.sharing))} of weights" if max(traffic.sharing) else "")
            + " sent by each device"
        )
    return "\n".join(lines)


def _time(plan: Plan) -> str:
    config, layout, prediction = plan.config, plan.layout, plan.prediction
    placement = layout.placement
    size, count = placement.pipeline_size, len(placement.parts)
    schedule, micro_batches = schedule_of(config, layout), prediction.micro_batches
    known = prediction.images_per_second is not None
    most = max(a + b for a, b in zip(prediction.forward, prediction.backward))
    unit, factor = time_unit([most]) if known else ("relative", 1 / max(prediction.forward))
    rows = [
        [part.describe(), rounded(a * factor), rounded(b * factor), f"{100 * (a + b) / most:.1f} %"]
        for part, a, b in zip(placement.parts, prediction.forward, prediction.backward)
    ]
    lines = [f"Time of a micro-batch ({unit})", table(["stage", "forward", "backward", "of the slowest"], rows)]
    formula = f"({size} - 1) / ({'' if count == size else f'{count // size} x '}{micro_batches:,} + {size} - 1)"
    lines.append(
        f"bubble, schedule {schedule}: {formula} = {100 * prediction.bubble:.1f} % of equal stages; "
        f"{100 * prediction.idle:.1f} % idle with these"
    )
    return "\n".join([*lines, *_expectation(plan)])


def _expectation(plan: Plan) -> List[str]:
    config, layout, prediction = plan.config, plan.layout, plan.prediction
    device, kind = layout.machine.device, KINDS[plan.config.precision.split(".")[0]]
    images = prediction.images_per_second
    if images is None:
        if device.kind == "ipu":
            return [f"predicted images/s: -, as {device.name}s have no {kind}"]
        return [
            "predicted images/s: -, as this machine's speed is not known: --machine cpu measures it, others are named by --help"
        ]
    seconds = makespan(prediction.events)
    what = "a weight update" if config.trains else "an evaluation batch"
    count = micro_batches_of(config, layout)
    micro_batches, after = f"{count:,} micro-batch{'es' * (count > 1)}", _after_passes(prediction.update)
    lines = [
        f"predicted: {rounded(images)} images/s; {what} of {micro_batches} takes {duration_text(seconds)}{after}",
        f"assumed: {device.peaks[kind] / 1e12:,.4g} TFLOP/s in {kind} x {device.efficiency:.4g} ({device.efficiency_from})",
    ]
    if device.link is not None and layout.num_used > 1:
        lines[-1] += f"; links of {device.link / GB:,.0f} GB/s one way"
        lines[-1] += (
            f", {(device.host_link or 0) / GB:,.0f} between hosts" if layout.hosts > 1 and device.kind == "gpu" else ""
        )
    network = ", the network between hosts" if layout.crosses_hosts and device.kind == "cpu" else ""
    optimizer = "" if device.memory_rate else ", the optimiser's step"
    lines += [*_loading(layout, prediction), *_cost(plan)]
    lines.append(f"left out: evaluation, start-up{optimizer}{network}")
    for figure in figures_for(config, layout):
        note = "; the efficiency is set by it" if figure.sets_efficiency else ""
        lines.append(
            f"published: {figure.images_per_second:,.0f} images/s ({figure.what}); "
            f"predicted / published = {images / figure.images_per_second:.3f}{note}"
        )
    return lines


def _after_passes(update: UpdateTime) -> str:
    """What a weight update takes beside its passes."""
    shares = [(update.between_replicas, "between replicas"), (update.optimizer, "for the optimiser's step")]
    return "".join(f", {duration_text(seconds)} {what}" for seconds, what in shares if seconds)


def _loading(layout: Layout, prediction: Prediction) -> List[str]:
    """What the hosts have to decode."""
    rate, images = prediction.loading, prediction.images_per_second
    if rate is None or images is None:
        return []
    if images >= rate:
        return [f"limited by loading: {layout.machine.cores} cores a host decode {IMAGES_PER_CORE} images/s each"]
    needed = math.ceil(images / layout.hosts / IMAGES_PER_CORE)
    return [f"loading: {counted(needed, 'core')} of each host, at {IMAGES_PER_CORE} JPEG files/s a core (docs/data.md)"]


def _cost(plan: Plan) -> List[str]:
    """Of the whole run."""
    hours = device_hours(plan.config, plan.layout, plan.prediction)
    if hours is None:
        return []
    word = WORDS[plan.layout.machine.device.kind]
    return [f"the whole run: {rounded(hours / plan.layout.num_used)} hours, {rounded(hours)} {word}-hours"]


def _stages_of(layout: Layout, process: int) -> str:
    """What a process holds, short."""
    placement = layout.placement
    if len(placement.parts) == 1:
        return "all stages"
    indices = placement.parts_of(process)
    word = "stage" if len(indices) == 1 else "stages"
    return f"{word} {', '.join(map(str, indices))}"
