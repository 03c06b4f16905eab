"""HTML from text that may hold anything: names escaped and shortened, figures, tables, and the page around them."""

from __future__ import annotations

import base64
import hashlib
import html
import math
from pathlib import Path
from typing import Iterable, Optional, Sequence

LONGEST = 80  # letters shown of a name
CSS_FILE, SCRIPT_FILE = (Path(__file__).parent / "page" / name for name in ("report.css", "report.js"))
NONE = "–"  # noqa: RUF001 - stands in tables where there is no figure


def plain(text: object, longest: Optional[int] = LONGEST) -> str:
    """On one line, as a page can hold it: what is no letter becomes a question mark, the middle of long names goes.

    Marks that turn the direction of writing around are no letters here: in an attribute nothing would end them.
    """
    whole = str(text).encode("utf-8", "replace").decode("utf-8")
    whole = "".join(letter if letter.isprintable() else "?" for letter in whole)
    if longest is None or len(whole) <= longest:
        return whole
    tail = longest // 3
    return f"{whole[: longest - tail - 1]}…{whole[-tail:]}"


def escaped(text: object, longest: Optional[int] = LONGEST) -> str:
    """For text between tags and for attributes in double quotes."""
    return html.escape(plain(text, longest), quote=True)


def name(text: object, longest: int = LONGEST) -> str:
    """A class's, image's or file's name between tags: its direction of writing does not reach its neighbours."""
    return f"<bdi>{escaped(text, longest)}</bdi>"


def block(text: str) -> str:
    """Text of several lines, as it is laid out."""
    return "\n".join(escaped(line, None) for line in text.split("\n"))


def number(value: Optional[float]) -> str:
    """Four significant digits: number(0.012345) -> "0.01235", number(1234567) -> "1.235e6"."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "not finite"
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-3:
        digits, exponent = f"{value:.3e}".split("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
    if size >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.4g}"


def percent(share: Optional[float]) -> str:
    """percent(0.98611) -> "98.61 %"."""
    if share is None:
        return NONE
    return f"{100 * share:.2f} %" if math.isfinite(share) else "not finite"


def table(caption: str, headers: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """Cells are HTML; the first of a row is its heading. It scrolls by itself where it is wider than the page."""
    top = "".join(f'<th scope="col">{header}</th>' for header in headers)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows
    )
    return scrolling(
        caption,
        f'<table class="{kind}"><caption>{caption}</caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>',
    )


def scrolling(label: str, content: str) -> str:
    """A region that scrolls sideways, by keys too. `label` is HTML-safe text."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">{content}</div>'


def fold(identity: str, summary: str, content: str) -> str:
    """Content that opens on request. The script finds it again by its id after a reload."""
    return f'<details id="{identity}"><summary>{summary}</summary>{content}</details>'


def bar(share: float, kind: str = "") -> str:
    """A horizontal bar for a table's cell, beside the figure that says the same: `share` of its width, 0 to 1."""
    width = 100 * min(max(share, 0.0), 1.0) if math.isfinite(share) else 0.0
    return (
        f'<svg class="bar {kind}" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="ground" width="100" height="8"/><rect class="value" width="{width:.1f}" height="8"/></svg>'
    )


def data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def document(title: str, body: str, reload_seconds: int = 0) -> str:
    """A whole page. Nothing in it can be fetched from anywhere, and no script or style runs but the project's own.

    With `reload_seconds` it reloads itself, unless its reader has paused that.
    """
    css = CSS_FILE.read_text(encoding="utf-8")
    script = SCRIPT_FILE.read_text(encoding="utf-8") if reload_seconds else ""
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(css)}'; "
        f"script-src {chr(39) + _digest(script) + chr(39) if script else chr(39) + 'none' + chr(39)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f'<title>{escaped(title)}</title>\n<link rel="icon" href="data:,">\n<style>{css}</style>\n</head>\n'
        f'<body data-reload-seconds="{reload_seconds}">\n{body}\n'
        + (f"<script>{script}</script>\n" if script else "")
        + "</body>\n</html>\n"
    )


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}"
