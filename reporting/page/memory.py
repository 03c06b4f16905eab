"""How much memory processes have held."""

from __future__ import annotations

from reporting.lines import size
from reporting.markup import bar, escaped, name, table
from reporting.story import Story

MOST_SHOWN = 128


def section(story: Story) -> str:
    if story.memory is None or not story.memory.processes:
        return ""
    processes = story.memory.processes
    largest = max(process.num_bytes for process in processes) or 1
    rows = [
        [
            name(process.name),
            f"{size(process.num_bytes)} {bar(process.num_bytes / largest)}",
            escaped(process.kind),
        ]
        for process in processes[:MOST_SHOWN]
    ]
    left = f" The first {MOST_SHOWN} of {len(processes):,} processes." if len(processes) > MOST_SHOWN else ""
    caption = f"The most that each process has held up to step {story.memory.step:,}.{left}"
    shown = table(caption, ["process", "at most", "of what"], rows, "figures")
    return f'<div class="grid-of-charts"><div class="card">{shown}</div></div>'
