"""The timeline of a weight update as an SVG: a row a process, blue for forward, orange for backward, green for the update."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator, List, NamedTuple, Sequence, Tuple
from xml.sax.saxutils import escape

from errors import UserError
from planning.report import Plan
from planning.schedule import FORWARD, Event, makespan
from planning.throughput import schedule_of

WIDTH, LEFT, RIGHT, TOP, ROW = 1160, 190, 24, 74, 38  # pixels
GAP = 46  # pixels of what is left out
MOST_DRAWN = 24  # micro-batches; of more, the beginning and the end are drawn
ENDS = 10  # micro-batches' time at each end, where the middle is left out
SMALLEST_UPDATE = 5  # pixels: it is there, however short
FORWARDS = ("#4C78A8", "#2F5D8A", "#7FA3C7", "#1D4468")  # one a part that a process holds
BACKWARDS = ("#F58518", "#C96A0E", "#F8AC61", "#9C5108")
UPDATE, IDLE, INK = "#54A24B", "#F0F0F0", "#222222"


class Window(NamedTuple):
    """A stretch of time and where it is drawn."""

    start: float
    end: float
    left: float  # pixels
    scale: float  # pixels a second

    def x(self, time: float) -> float:
        return self.left + (min(max(time, self.start), self.end) - self.start) * self.scale


def draw_timeline(plan: Plan, path: Path) -> str:
    """Writes the picture; returns what to say of it."""
    try:
        path.write_text(timeline(plan), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--timeline {path} cannot be written ({error.strerror or error}).") from error
    return f"timeline: {path}"


def timeline(plan: Plan) -> str:
    """The picture as text."""
    prediction, placement = plan.prediction, plan.layout.placement
    rows = placement.pipeline_size
    windows = _windows(prediction.events, prediction.micro_batches)
    bottom = TOP + rows * ROW
    height = bottom + 78
    size = f'width="{WIDTH}" height="{height}"'
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12" fill="{INK}">',
        f'<rect {size} fill="white"/>',
        *_titles(plan, len(windows) > 1),
        *_rows(plan, windows),
    ]
    for event in prediction.events:
        body += _bar(event, windows, placement.pipeline_size)
    if plan.config.trains:
        body += _update(rows, windows[-1])
    body += [*_axis(plan, windows, bottom), *_legend(plan, bottom + 58), "</svg>"]
    return "\n".join(body) + "\n"


def _windows(events: Sequence[Event], micro_batches: int) -> List[Window]:
    """All of the time, or its beginning and end."""
    total, room = makespan(events), WIDTH - LEFT - RIGHT - SMALLEST_UPDATE
    if micro_batches <= MOST_DRAWN:
        return [Window(0.0, total, LEFT, room / total)]
    part = total * ENDS / micro_batches
    scale = (room - GAP) / (2 * part)
    return [Window(0.0, part, LEFT, scale), Window(total - part, total, LEFT + part * scale + GAP, scale)]


def _titles(plan: Plan, is_cut: bool) -> Iterator[str]:
    config, layout, prediction = plan.config, plan.layout, plan.prediction
    stages = len(layout.placement.parts)
    title = (
        f"{config.name}: {stages} stage{'s' * (stages > 1)} x {prediction.micro_batches:,} micro-batches, schedule "
        f"{schedule_of(config, layout)}, bubble {100 * prediction.bubble:.1f} %"
    )
    yield f'<text x="{LEFT}" y="24" font-size="16" font-weight="bold">{escape(title)}</text>'
    second = f"one replica on {layout.machine.name}; {100 * prediction.idle:.1f} % of the time idle with these stages"
    if is_cut:
        second += (
            f"; drawn: the time of {ENDS} micro-batches at the beginning and at the end, between them all goes on alike"
        )
    yield f'<text x="{LEFT}" y="46">{escape(second)}</text>'


def _rows(plan: Plan, windows: Sequence[Window]) -> Iterator[str]:
    placement = plan.layout.placement
    for process in range(placement.pipeline_size):
        top = TOP + process * ROW
        indices = placement.parts_of(process)
        name = f"stage {', '.join(map(str, indices))}"
        units = placement.parts[indices[0]].describe() if len(indices) == 1 else f"{len(indices)} stages"
        yield f'<text x="{LEFT - 10}" y="{top + 15}" text-anchor="end" font-weight="bold">{name}</text>'
        yield f'<text x="{LEFT - 10}" y="{top + 29}" text-anchor="end" font-size="11">{escape(units)}</text>'
        for window in windows:
            width = (window.end - window.start) * window.scale
            yield f'<rect x="{window.left:.2f}" y="{top}" width="{width:.2f}" height="{ROW - 4}" fill="{IDLE}"/>'
        if len(windows) > 1:
            middle = windows[1].left - GAP / 2
            yield f'<text x="{middle:.0f}" y="{top + 21}" text-anchor="middle" font-size="16">...</text>'


def _bar(event: Event, windows: Sequence[Window], num_processes: int) -> Iterator[str]:
    chunk = event.action.part // num_processes
    colours = FORWARDS if event.action.kind == FORWARD else BACKWARDS
    top = TOP + event.process * ROW
    for window in windows:
        left, right = window.x(event.start), window.x(event.end)
        if right - left < 0.05:
            continue
        colour = colours[chunk % len(colours)]
        yield (
            f'<rect x="{left:.2f}" y="{top}" width="{right - left:.2f}" height="{ROW - 4}" fill="{colour}" '
            f'stroke="white" stroke-width="0.6"/>'
        )
        number = str(event.action.micro_batch + 1)
        if right - left > 7 * len(number) + 3:
            middle = (left + right) / 2
            yield f'<text x="{middle:.2f}" y="{top + 21}" text-anchor="middle" font-size="11" fill="white">{number}</text>'


def _update(rows: int, window: Window) -> Iterator[str]:
    """All stages step their weights when the pipeline has drained."""
    left = window.x(window.end)
    yield f'<rect x="{left:.2f}" y="{TOP}" width="{SMALLEST_UPDATE}" height="{rows * ROW - 4}" fill="{UPDATE}"/>'


def _axis(plan: Plan, windows: Sequence[Window], y: float) -> Iterator[str]:
    known = plan.prediction.images_per_second is not None
    factor = 1e3 if known else 1 / max(plan.prediction.forward)
    for window in windows:
        right = window.x(window.end)
        yield f'<line x1="{window.left:.2f}" y1="{y + 4}" x2="{right:.2f}" y2="{y + 4}" stroke="{INK}"/>'
        for tick, label in _ticks(window.start * factor, window.end * factor, (right - window.left) / 90):
            x = window.x(tick / factor)
            yield f'<line x1="{x:.2f}" y1="{y + 4}" x2="{x:.2f}" y2="{y + 9}" stroke="{INK}"/>'
            yield f'<text x="{x:.2f}" y="{y + 22}" text-anchor="middle" font-size="11">{label}</text>'
    words = "time in ms" if known else "time (1 is the longest forward pass)"
    yield f'<text x="{LEFT - 10}" y="{y + 22}" text-anchor="end" font-size="11">{words}</text>'


def _ticks(start: float, end: float, most: float) -> List[Tuple[float, str]]:
    """Round numbers, `most` of them or fewer."""
    step = 10.0**-6
    while (end - start) / step > max(1.0, most):
        for factor in (2.0, 2.5, 2.0):
            step *= factor
            if (end - start) / step <= max(1.0, most):
                break
    first = int(start / step) + (start > 0)
    return [(n * step, f"{n * step:,.6g}") for n in range(first, int(end / step + 1e-9) + 1)]


def _legend(plan: Plan, y: float) -> Iterator[str]:
    trains = plan.config.trains
    several = len(plan.layout.placement.parts) > plan.layout.placement.pipeline_size
    shades = " (a shade for each stage)" if several else ""
    entries = [(FORWARDS[0], f"forward{shades}")]
    if trains:
        again = ", with what is recomputed" if plan.config.recompute_checkpoint_every_layer else ""
        entries += [(BACKWARDS[0], f"backward{again}"), (UPDATE, "weight update (not to scale)")]
    entries.append((IDLE, "idle"))
    x = float(LEFT)
    for colour, words in [*entries, ("", "numbers: micro-batches")]:
        if colour:
            yield f'<rect x="{x}" y="{y - 11}" width="14" height="14" fill="{colour}" stroke="#999999" stroke-width="0.5"/>'
        yield f'<text x="{x + 20 if colour else x}" y="{y}">{words}</text>'
        x += 20 + 6.6 * len(words) + 24
