"""Samples as pictures: the most confident mistakes, and where the model looked."""

from __future__ import annotations

import io
from typing import Tuple, Union

import numpy as np

from reporting.markup import data_uri, escaped, name, percent
from reporting.records import AttentionView, Mistake
from reporting.story import Story

MOST_MISTAKES, MOST_VIEWS = 24, 8
LARGEST_SIDE = 192  # pixels of a picture in the page; larger ones are reduced
SMALL_SIDE = 64  # up to here every pixel is shown as a square, exactly
LONGEST_NAME = 60


def mistakes(story: Story) -> str:
    found = story.findings.mistakes[:MOST_MISTAKES] if story.findings is not None else ()
    if not found:
        return ""
    entries = "".join(map(_mistake, found))
    return (
        '<p class="hint">Validation samples that were answered wrongly, the most certain answers first. Some may be labels that '
        f'are wrong.</p><ol class="pictures">{entries}</ol>'
    )


def attentions(story: Story) -> str:
    views = story.views.attentions[:MOST_VIEWS] if story.views is not None else ()
    if not views:
        return ""
    entries = "".join(map(_attention, views))
    return (
        '<p class="hint">How much each patch contributes to the answer, from the least (dark) to the most (light), over the '
        f'picture as the model sees it.</p><ol class="pictures pairs">{entries}</ol>'
    )


def _mistake(one: Mistake) -> str:
    shown = picture(one.picture, f"the validation sample {one.index}") if one.picture is not None else ""
    return f"<li>{shown}{_answer(one, percent(one.probability))}</li>"


def _attention(view: AttentionView) -> str:
    shown = picture(view.picture, f"{view.name} as the model sees it")
    shown += picture(view.overlay, f"{view.name} under the model's attention")
    said = f"{percent(view.probability)}, {_verdict(view)}"
    return f'<li><div class="pair">{shown}</div>{_answer(view, said)}</li>'


def _verdict(one: Union[Mistake, AttentionView]) -> str:
    return "right" if one.wanted == one.answered else "wrong"


def _answer(one: Union[Mistake, AttentionView], said: str) -> str:
    """Name, label and answer in words."""
    return (
        f'<p class="name">{name(one.name, LONGEST_NAME)}</p><dl class="{_verdict(one)}">'
        f"<dt>is</dt><dd>{name(one.wanted, LONGEST_NAME)}</dd>"
        f"<dt>answer</dt><dd>{name(one.answered, LONGEST_NAME)} <small>{said}</small></dd></dl>"
    )


def picture(pixels: np.ndarray, words: str) -> str:
    """uint8 [H, W, 3] as an image that stands in the page itself."""
    content, kind, size = encoded(pixels)
    sharp = ' class="sharp"' if max(size) <= SMALL_SIDE else ""
    width, height = (side * max(1, SMALL_SIDE * 2 // max(size)) for side in size)
    return f'<img{sharp} src="{data_uri(content, kind)}" alt="{escaped(words)}" width="{width}" height="{height}">'


def encoded(pixels: np.ndarray) -> Tuple[bytes, str, Tuple[int, int]]:
    """The file, its type, and width and height: small pictures as PNG, larger ones reduced and as JPEG."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    is_small = max(image.size) <= SMALL_SIDE
    file = io.BytesIO()
    image.save(file, "PNG" if is_small else "JPEG", **({} if is_small else {"quality": 80}))
    return file.getvalue(), "image/png" if is_small else "image/jpeg", image.size
