"""The pipeline's timeline: a row a stage of a process, and who computed which micro-batch when."""

from __future__ import annotations

from typing import Dict, Iterator, List, NamedTuple, Sequence, Tuple

from reporting.charts import round_values
from reporting.markup import NONE, escaped, name, number, percent, scrolling, table
from reporting.records import Span, Timeline
from reporting.story import Story

WIDTH, SIDE, TOP, ROW, BAR = 1120, 10, 8, 48, 26  # of the drawing, in its own units
GAP = 44  # for what is left out
MOST_DRAWN = 24  # micro-batches; of more, the beginning and the end are drawn
ENDS = 10  # micro-batches' time at each end, where the middle is left out
MOST_ROWS, MOST_SPANS = 32, 6000
THIN = 5  # height of a sending beside the work that goes on
THINNEST = 1.5  # a span is there, however short
KINDS = {
    "forward": "forward",
    "backward": "backward (hatched)",
    "update": "weight update (dotted)",
    "data": "waiting for data (striped)",
    "send": "sending and receiving (thin)",
}


class Window(NamedTuple):
    """A stretch of time and where it is drawn."""

    start: float
    end: float
    left: float
    scale: float  # units a second

    def x(self, time: float) -> float:
        return self.left + (min(max(time, self.start), self.end) - self.start) * self.scale


def section(story: Story) -> str:
    timeline = story.timeline
    if timeline is None or not timeline.spans or not timeline.rows:
        return ""
    windows = windows_of(timeline)
    kinds = [kind for kind in KINDS if any(span.kind == kind for span in timeline.spans)]
    legend = "".join(f"<li>{_sample(kind)}{KINDS[kind]}</li>" for kind in kinds)
    return (
        f'<p class="hint">{_hint(timeline)}</p><figure class="card timeline">'
        f"<figcaption><h3>{_title(timeline)}</h3></figcaption>"
        f"{scrolling('Timeline', drawing(timeline, windows))}"
        f'<ul class="legend">{legend}<li>{_sample("idle")}idle</li></ul>{_notes(timeline, windows)}'
        f"{table('What each row did, between the first and the last moment of the step', *_shares(timeline, kinds), 'figures')}"
        "</figure>"
    )


def _title(timeline: Timeline) -> str:
    what = "Measured" if timeline.is_measured else "Planned, not measured"
    if _has_one_row(timeline):
        return f"{what}: step {timeline.step:,}, {escaped(timeline.schedule)}"
    return f"{what}: step {timeline.step:,}, schedule {escaped(timeline.schedule)}, {len(timeline.rows)} rows"


def _has_one_row(timeline: Timeline) -> bool:
    """Then nothing waits for another stage, and there is no bubble to speak of."""
    return len(timeline.rows) == 1


def _hint(timeline: Timeline) -> str:
    """The bubble beside its formula."""
    if _has_one_row(timeline):
        return (
            "Forward and backward passes of the micro-batches, whose numbers stand in the bars, and the weight update."
        )
    words = "Micro-batches go through the stages from the first row to the last, and back; their numbers stand in the bars. "
    if timeline.bubble is not None:
        words += (
            f"Bubble {'measured' if timeline.is_measured else 'planned'}: <strong>{percent(timeline.bubble)}</strong>"
        )
        if timeline.expected_bubble is not None:
            words += f", by the schedule's formula {percent(timeline.expected_bubble)}"
        words += "; it is the share of idle time between the first forward and the last backward pass."
    elif timeline.expected_bubble is not None:
        words += f"Bubble by the schedule's formula: {percent(timeline.expected_bubble)}."
    return words


def windows_of(timeline: Timeline) -> List[Window]:
    """All of the time, or its beginning and end."""
    total = max(span.end for span in timeline.spans) or 1e-9
    count = 1 + max(span.micro_batch for span in timeline.spans)
    room = WIDTH - 2 * SIDE
    if count <= MOST_DRAWN:
        return [Window(0.0, total, SIDE, room / total)]
    part = total * ENDS / count
    scale = (room - GAP) / (2 * part)
    return [Window(0.0, part, SIDE, scale), Window(total - part, total, SIDE + part * scale + GAP, scale)]


def drawing(timeline: Timeline, windows: Sequence[Window]) -> str:
    """The SVG alone."""
    rows = timeline.rows[:MOST_ROWS]
    height = TOP + len(rows) * ROW + 30
    parts = [*_patterns(), *_rows(rows, windows), *_bars(timeline, windows), *_axis(windows, TOP + len(rows) * ROW)]
    words = escaped(_words(timeline), None)
    return f'<svg class="time" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{words}">{"".join(parts)}</svg>'


def _words(timeline: Timeline) -> str:
    seconds = max(span.end for span in timeline.spans)
    count = 1 + max(span.micro_batch for span in timeline.spans)
    many = "" if count == 1 else "es"
    table_below = "The table below has each row's shares."
    if _has_one_row(timeline):
        what = f"{count} micro-batch{many}, {timeline.schedule}"
        return f"Timeline of step {timeline.step}: {what}, {_time(seconds)}. {table_below}"
    bubble = f"Bubble {percent(timeline.bubble)}" if timeline.bubble is not None else "No bubble measured"
    return (
        f"Timeline of step {timeline.step}: {len(timeline.rows)} rows, {count} micro-batch{many}, schedule {timeline.schedule}, "
        f"{_time(seconds)}. {bubble}, by the formula {percent(timeline.expected_bubble)}. {table_below}"
    )


def _patterns() -> Iterator[str]:
    """Fills that can be told apart without colours."""
    yield '<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    yield '<rect class="backward" width="6" height="6"/><rect class="stroke" width="1.6" height="6"/></pattern>'
    yield '<pattern id="dots" width="5" height="5" patternUnits="userSpaceOnUse"><rect class="update" width="5" height="5"/>'
    yield '<circle class="stroke" cx="2.5" cy="2.5" r="1.1"/></pattern>'
    yield '<pattern id="stripes" width="4" height="4" patternUnits="userSpaceOnUse"><rect class="data" width="4" height="4"/>'
    yield '<rect class="stroke" width="4" height="1.5"/></pattern></defs>'


def _fill(kind: str) -> str:
    pattern = {"backward": "hatch", "update": "dots", "data": "stripes"}.get(kind)
    return f'fill="url(#{pattern})"' if pattern else f'class="{kind if kind in (*KINDS, "idle") else "data"}"'


def _rows(rows: Sequence[str], windows: Sequence[Window]) -> Iterator[str]:
    for index, row in enumerate(rows):
        top = TOP + index * ROW
        yield f'<text x="{SIDE}" y="{top + 12}">{escaped(row, 120)}</text>'
        for window in windows:
            width = (window.end - window.start) * window.scale
            yield f'<rect class="idle" x="{window.left:.1f}" y="{top + 17}" width="{width:.1f}" height="{BAR}"/>'
        if len(windows) > 1:
            yield f'<text x="{windows[1].left - GAP / 2:.0f}" y="{top + 34}" text-anchor="middle">…</text>'


def _bars(timeline: Timeline, windows: Sequence[Window]) -> Iterator[str]:
    drawn = 0
    for span in timeline.spans:
        if span.row >= MOST_ROWS or drawn >= MOST_SPANS:
            continue
        for window in windows:
            if span.end >= window.start and span.begin <= window.end:
                drawn += 1
                yield _bar(span, window.x(span.begin), window.x(span.end))


def _bar(span: Span, left: float, right: float) -> str:
    top = TOP + span.row * ROW + 17
    height = BAR
    if span.kind == "send":
        top, height = top + BAR - THIN, THIN
    width = max(right - left, THINNEST)
    bar = f'<rect {_fill(span.kind)} x="{left:.1f}" y="{top}" width="{width:.1f}" height="{height}"/>'
    label = str(span.micro_batch + 1)
    if span.kind not in ("forward", "backward") or span.micro_batch < 0 or width < 7 * len(label) + 3:
        return bar
    middle = (left + right) / 2
    return f'{bar}<text class="on-{span.kind}" x="{middle:.1f}" y="{top + 17}" text-anchor="middle">{label}</text>'


def _axis(windows: Sequence[Window], y: float) -> Iterator[str]:
    for window in windows:
        yield f'<path class="axis" d="M{window.left:.1f} {y + 2}H{window.x(window.end):.1f}"/>'
        for tick in round_values(window.start, window.end, 10 // len(windows)):
            x = window.x(tick)
            yield f'<path class="axis" d="M{x:.1f} {y + 2}v5"/>'
            anchor = "start" if x < SIDE + 20 else "end" if x > WIDTH - SIDE - 20 else "middle"
            yield f'<text class="tick" x="{x:.1f}" y="{y + 20}" text-anchor="{anchor}">{_time(tick)}</text>'


def _time(seconds: float) -> str:
    return f"{number(1000 * seconds)} ms" if seconds < 1 else f"{number(seconds)} s"


def _sample(kind: str) -> str:
    height = THIN if kind == "send" else 12
    return (
        f'<svg class="sample" viewBox="0 0 36 12" aria-hidden="true"><rect {_fill(kind)} y="{12 - height}" width="36" '
        f'height="{height}"/></svg>'
    )


def _notes(timeline: Timeline, windows: Sequence[Window]) -> str:
    notes = []
    if len(windows) > 1:
        notes.append(f"Drawn is the time of {ENDS} micro-batches at the beginning and at the end.")
    if timeline.num_left_out:
        notes.append(f"{timeline.num_left_out:,} later pieces of this weight update were not kept.")
    if len(timeline.rows) > MOST_ROWS:
        notes.append(f"Drawn are the first {MOST_ROWS} of {len(timeline.rows):,} rows.")
    return "".join(f'<p class="note">{note}</p>' for note in notes)


def _shares(timeline: Timeline, kinds: Sequence[str]) -> Tuple[List[str], Iterator[List[str]]]:
    """Headers and rows of the table: the share of the step's time by kind. Sends may go on beside computing."""
    total = max(span.end for span in timeline.spans) or 1e-9
    spent: Dict[Tuple[int, str], float] = {}
    for span in timeline.spans:
        spent[span.row, span.kind] = spent.get((span.row, span.kind), 0.0) + span.end - span.begin
    headers = ["row", *kinds, "idle"]

    def cells(index: int) -> List[str]:
        shares = [spent.get((index, kind), 0.0) / total for kind in kinds]
        busy = sum(share for share, kind in zip(shares, kinds) if kind not in ("send", "data"))
        shown = [percent(share) if share else NONE for share in shares]
        return [name(timeline.rows[index]), *shown, percent(max(0.0, 1 - busy))]

    return headers, (cells(index) for index in range(min(len(timeline.rows), 256)))
