"""Tables as Markdown, and their place in a page: between two comments that bear their name."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence, Tuple


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def section(page: str, name: str) -> str:
    """What stands between the comments."""
    return _cut(page, name)[1].strip()


def write_section(path: Path, name: str, text: str) -> None:
    """Puts a text between the comments, in place of what is there."""
    before, _, after = _cut(path.read_text(encoding="utf-8"), name)
    path.write_text(f"{before}\n{text}\n{after}", encoding="utf-8")


def _cut(page: str, name: str) -> Tuple[str, str, str]:
    """What is before, between and after; the comments belong to their sides."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    before, between = page.split(begin)
    between, after = between.split(end)
    return before + begin, between, end + after
