"""Text on drawn pictures: Pillow's own font, and lines that are never wider than their place."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Any, List

from PIL import ImageFont

LEADING = 1.4  # of lines, in heights
NO_LETTER = "\U0010fffd"  # what a font shows for it, it shows for all that it lacks


@lru_cache(maxsize=None)
def font(size: int) -> Any:
    """`size` is the height of letters, in pixels."""
    return ImageFont.load_default(size=size)


def line_height(size: int) -> int:
    return round(size * LEADING)


def wrapped(text: str, size: int, width: int) -> List[str]:
    """The text in lines no wider than `width`, broken between words; a longer word is shortened."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font(size).getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(shortened(word, size, width))
    return [line for line in lines if line]


def shortened(text: str, size: int, width: int) -> str:
    """The text, with dots for its middle where it is wider: the ends of file names tell them apart."""
    kept, short = len(text), text
    while font(size).getlength(short) > width and kept > 0:
        kept -= 1
        short = f"{text[: kept // 2]}...{text[len(text) - (kept + 1) // 2 :]}"
    return short


def drawable(text: str) -> str:
    """The text in the font's letters, which are those of English: without accents, and with ? for all others."""
    missing = bytes(font(14).getmask(NO_LETTER))
    plain = [letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter)]
    return "".join("?" if bytes(font(14).getmask(letter)) == missing else letter for letter in plain)
