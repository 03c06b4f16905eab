"""Line charts over a run's steps as HTML with SVG: every chart says in words what it shows, and has its values in a table.

Lines differ in colour, in dashes and in markers. Colours are those of the page's style sheet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, Iterator, List, Optional, Sequence, Tuple

from reporting.curve import Point
from reporting.markup import escaped, fold, number, table

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 480, 250, 66, 14, 14, 40  # of a drawing, in its own units
NUM_STYLES = 8  # that the style sheet tells apart; further lines begin again
FEW = 40  # points or fewer are marked one by one
ROWS = 25  # of the table, about
MOST_MARKS = 40  # of places without a finite value
MARKERS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0",
    "M-3.5 -3.5h7v7h-7z",
    "M0 -4.6l4.4 8h-8.8z",
    "M0 -4.8l4.8 4.8l-4.8 4.8l-4.8 -4.8z",
)


@dataclass(frozen=True)
class Line:
    """A named series. `style` 0 to 7 is its colour, dashes and markers."""

    name: str
    points: Sequence[Point]
    style: int = 0


@dataclass(frozen=True)
class Axes:
    """The stretch of figures that is drawn, and how they are written."""

    first: float
    last: float
    low: float  # their logarithms, where `is_log`
    high: float
    is_log: bool
    form: Callable[[float], str]

    def x(self, step: float) -> float:
        return LEFT + (step - self.first) / (self.last - self.first) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Pixels, for a value that `can_draw`."""
        place = math.log10(value) if self.is_log else value
        share = (place - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - min(max(share, 0.0), 1.0) * (HEIGHT - TOP - BOTTOM)

    def can_draw(self, value: float) -> bool:
        return math.isfinite(value) and (value > 0 or not self.is_log)


def line_chart(
    identity: str,
    title: str,
    lines: Sequence[Line],
    form: Callable[[float], str] = number,
    is_log: bool = False,
    from_zero: bool = False,
    most: float = math.inf,
    steps: Optional[Tuple[float, float]] = None,
    x_name: str = "step",
    heading: str = "h3",
) -> str:
    """A figure with the id `identity`; empty where no line has a point. `title` and names may hold any character.

    `form` writes a value; `is_log` draws on a logarithmic scale, on which what is not positive has no place;
    `from_zero` keeps a positive figure's small changes small; `most` is what no value can exceed (1 for a share); `steps` are
    the first and last of the axis, where other charts beside this one have more than its lines.
    """
    lines = [line for line in lines if line.points]
    if not any(point.high > 0 or not is_log or point.broken for line in lines for point in line.points):
        return ""
    axes = _axes(lines, form, is_log, from_zero, most, steps)
    words = escaped(f"{title} by {x_name}. {' '.join(described(line, form, x_name) for line in lines)}", None)
    drawing = "".join([*_grid(axes, x_name), *(part for line in lines for part in _drawn(line, axes))])
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}"'
    return (
        f'<figure class="chart" id="{identity}"><figcaption><{heading}>{escaped(title)}</{heading}>{_scale(is_log)}</figcaption>'
        f'<svg class="scales" {size} role="img" aria-label="{words}">{drawing}</svg>{_legend(lines)}{_notes(lines, axes, x_name)}'
        f"{fold(f'{identity}-values', 'Values', values_table(title, lines, form, x_name))}</figure>"
    )


def described(line: Line, form: Callable[[float], str], x_name: str = "step") -> str:
    """A line in words: where it begins and ends, and its lowest and highest value."""
    finite = [point for point in line.points if point.finite]
    broken = sum(point.broken for point in line.points)
    parts = []
    if finite:
        lowest, highest = min(finite, key=lambda point: point.low), max(finite, key=lambda point: point.high)
        parts.append(f"{form(finite[0].mean)} at {x_name} {finite[0].start:g}")
        if len(finite) > 1:
            parts += [f"{form(finite[-1].mean)} at {x_name} {finite[-1].end:g}", f"lowest {form(lowest.low)}"]
            parts.append(f"highest {form(highest.high)}")
    if broken:
        parts.append(f"{broken:,} not finite")
    return f"{line.name}: {', '.join(parts)}."


def values_table(title: str, lines: Sequence[Line], form: Callable[[float], str], x_name: str = "step") -> str:
    """The lines' values at some of their steps, the first and last among them."""
    steps = sorted({step for line in lines for step in _chosen(line.points, max(2, ROWS // len(lines)))})
    headers = [escaped(x_name), *(escaped(line.name) for line in lines)]
    rows = ([f"{step:,g}", *(_value_at(line.points, step, form) for line in lines)] for step in steps)
    return table(escaped(title), headers, rows, "figures")


def _chosen(points: Sequence[Point], most: int) -> List[float]:
    """Steps of at most `most` points, spread evenly."""
    count = min(len(points), most)
    return [points[round(index * (len(points) - 1) / max(count - 1, 1))].end for index in range(count)]


def _value_at(points: Sequence[Point], step: float, form: Callable[[float], str]) -> str:
    for point in points:
        if point.start <= step <= point.end:
            return form(point.mean)
    return ""


def _axes(
    lines: Sequence[Line],
    form: Callable[[float], str],
    is_log: bool,
    from_zero: bool,
    most: float,
    steps: Optional[Tuple[float, float]],
) -> Axes:
    points = [point for line in lines for point in line.points]
    first, last = min(point.start for point in points), max(point.end for point in points)
    if steps is not None:
        first, last = min(first, steps[0]), max(last, steps[1])
    if first == last:
        first, last = first - 1, last + 1
    values = [value for point in points for value in (point.low, point.high) if math.isfinite(value)]
    if is_log:
        values = [math.log10(value) for value in values if value > 0]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = (high - low) * 0.05 or abs(high) * 0.05 or 0.5
    if not is_log and low >= 0 and (from_zero or low <= 0.35 * high):
        return Axes(first, last, 0.0, min(high + room, max(most, high)), is_log, form)
    return Axes(first, last, low - room, min(high + room, max(most, high)), is_log, form)


def _grid(axes: Axes, x_name: str) -> Iterator[str]:
    """Horizontal lines with their values, and steps below."""
    for value in _levels(axes):
        y = axes.y(value)
        yield f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        yield f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_level(value, axes)}</text>'
    yield f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>'
    for step in round_values(axes.first, axes.last, 5):
        if step == int(step):
            x = axes.x(step)
            yield f'<path class="axis" d="M{x:.1f} {HEIGHT - BOTTOM}v5"/>'
            yield f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 19}" text-anchor="middle">{_steps(step)}</text>'
    yield f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{escaped(x_name)}</text>'


def _level(value: float, axes: Axes) -> str:
    """ "97.50 %" is written "97.5 %"; there is room for few letters."""
    digits, unit, rest = axes.form(value).partition(" %")
    return escaped((digits.rstrip("0").rstrip(".") if unit and "." in digits else digits) + unit + rest)


def _levels(axes: Axes) -> List[float]:
    if not axes.is_log:
        return round_values(axes.low, axes.high, 5)
    if axes.high - axes.low < 1.2:  # hardly more than a power of ten
        levels = round_values(10**axes.low, 10**axes.high, 4)
        return [level for level in levels if level > 0]
    return [10.0**power for power in round_values(axes.low, axes.high, 5) if power == int(power)]


def round_values(low: float, high: float, most: int) -> List[float]:
    """Round numbers from `low` to `high`, `most` of them or one more."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low] if math.isfinite(low) else []
    step = 10.0 ** math.floor(math.log10(span / most))
    step *= next(factor for factor in (1, 2, 5, 10, 20) if span / (step * factor) <= most)
    start = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) if step > 1e-9 else index * step for index in range(start, int(high / step) + 1)]


def _steps(step: float) -> str:
    """_steps(1200) -> "1,200", _steps(250000) -> "250k"."""
    for unit, scale in (("M", 1e6), ("k", 1e3)):
        if abs(step) >= 10 * scale:
            return f"{step / scale:g}{unit}"
    return f"{step:,.0f}"


def _drawn(line: Line, axes: Axes) -> Iterator[str]:
    style = f"s{line.style % NUM_STYLES}"
    pieces = _pieces(line.points, axes)
    for piece in pieces:
        if any(point.high > point.low for point in piece):
            yield f'<path class="band {style}" d="{_band(piece, axes)}"/>'
    path = "".join(_path([(axes.x(point.x), axes.y(point.mean)) for point in piece]) for piece in pieces)
    yield f'<path class="line {style}" d="{path}"/>'
    if len(line.points) <= FEW:
        marker = MARKERS[line.style % len(MARKERS)]
        for point in (point for piece in pieces for point in piece):
            place = f"translate({axes.x(point.x):.1f} {axes.y(point.mean):.1f})"
            yield f'<path class="mark {style}" transform="{place}" d="{marker}"/>'
    broken = [point for point in line.points if point.broken]
    for point in broken[:: -(-len(broken) // MOST_MARKS) or 1]:
        yield f'<path class="broken" d="M{axes.x(point.x) - 4:.1f} {TOP - 8}l8 8m-8 0l8 -8"/>'


def _pieces(points: Sequence[Point], axes: Axes) -> List[List[Point]]:
    """Points that can be joined by a line: a gap is where there is no value to draw."""
    pieces: List[List[Point]] = [[]]
    for point in points:
        if axes.can_draw(point.mean):
            pieces[-1].append(point)
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _path(places: Sequence[Tuple[float, float]]) -> str:
    """A point alone is a line without length, which round ends make a dot."""
    start = f"M{places[0][0]:.1f} {places[0][1]:.1f}"
    return start + ("".join(f"L{x:.1f} {y:.1f}" for x, y in places[1:]) or "h0")


def _band(piece: Sequence[Point], axes: Axes) -> str:
    """From the lowest to the highest value. Where that is not positive, a logarithmic band ends at the drawing's edge."""

    def y(value: float) -> float:
        return axes.y(value) if axes.can_draw(value) else float(HEIGHT - BOTTOM)

    above = [(axes.x(point.x), y(point.high)) for point in piece]
    below = [(axes.x(point.x), y(point.low)) for point in reversed(piece)]
    return _path([*above, *below]) + "Z"


def _scale(is_log: bool) -> str:
    return '<p class="scale">logarithmic scale</p>' if is_log else ""


def _legend(lines: Sequence[Line]) -> str:
    """Which line is which; a line alone is named by the title."""
    if len(lines) == 1:
        return ""
    entries = (f"<li>{sample(line.style)}<bdi>{escaped(line.name)}</bdi></li>" for line in lines)
    return f'<ul class="legend">{"".join(entries)}</ul>'


def sample(style: int) -> str:
    """A piece of a line, for legends and tables."""
    own = f"s{style % NUM_STYLES}"
    return (
        f'<svg class="sample" viewBox="0 0 36 12" aria-hidden="true"><path class="line {own}" d="M2 6H34"/>'
        f'<path class="mark {own}" transform="translate(18 6)" d="{MARKERS[style % len(MARKERS)]}"/></svg>'
    )


def _notes(lines: Sequence[Line], axes: Axes, x_name: str) -> str:
    """What a reader could take wrongly: means of several steps, and what is missing."""
    notes = []
    together = max(point.finite + point.broken for line in lines for point in line.points)
    if together > 1:
        notes.append(
            f"The line is the mean of up to {together:,} {escaped(x_name)}s, the band goes from lowest to highest."
        )
    broken = sum(point.broken for line in lines for point in line.points)
    if broken:
        verb = "values were" if broken > 1 else "value was"
        notes.append(f"{broken:,} {verb} not finite: gaps, with crosses above.")
    if axes.is_log and any(point.low <= 0 for line in lines for point in line.points if point.finite):
        notes.append("What is not above zero has no place on this scale.")
    return "".join(f'<p class="note">{note}</p>' for note in notes)
