"""A figure of several pictures as the model sees them: each with the attention over it, and the answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Sequence, Tuple

import numpy as np
from PIL import Image, ImageDraw, PngImagePlugin
from torch import Tensor

from dataset.lettering import drawable, font, line_height, shortened, wrapped
from errors import UserError
from insight.overlay import coloured, overlay, shown_view
from prediction.answers import Label
from prediction.forms import NO_LABEL, percent

MARGIN, GAP, TEXT_WIDTH = 20, 10, 230  # pixels
MOST_IN_ONE_COLUMN, MOST_LABELS = 4, 6
TITLE, TEXT, SMALL = 20, 15, 12  # heights of letters
PAPER, INK, FAINT_INK, FRAME, BAR, BAR_GROUND = "white", "#1a1a1a", "#555555", "#b0b0b0", "#3563b8", "#e6e9ef"
SOFTWARE = "PipeViT predict.py"  # a mark in our figures: only what bears it is overwritten


class Drawn(NamedTuple):
    """One picture of the figure: its view uint8 [C, H, W] and the patches' shares float32 [rows, columns]."""

    name: str
    view: Tensor
    attention: Tensor
    labels: Tuple[Label, ...]


def figure(entries: Sequence[Drawn], heading: str) -> Image.Image:
    """All entries below each other, in two columns where they are many, under a heading and the scale of colours."""
    drawings = [(shown_view(one.view), overlay(one.view, one.attention)) for one in entries]
    width, height = drawings[0][0].size
    columns = 1 if len(entries) <= MOST_IN_ONE_COLUMN else 2
    rows = -(-len(entries) // columns)
    entry = 2 * width + 2 * GAP + TEXT_WIDTH
    total = 2 * MARGIN + columns * entry + (columns - 1) * 3 * GAP
    titles = wrapped(drawable(heading), TITLE, total - 2 * MARGIN)
    top = MARGIN + len(titles) * line_height(TITLE) + line_height(SMALL) + 2 * GAP
    sheet = Image.new("RGB", (total, top + rows * (height + 2 * GAP) - 2 * GAP + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(titles):
        draw.text((MARGIN, MARGIN + number * line_height(TITLE)), line, fill=INK, font=font(TITLE))
    _draw_scale(sheet, draw, top - line_height(SMALL) - GAP)
    for number, (one, pair) in enumerate(zip(entries, drawings)):
        column, row = divmod(number, rows)
        _draw_entry(sheet, draw, (MARGIN + column * (entry + 3 * GAP), top + row * (height + 2 * GAP)), one, pair)
    return sheet


def _draw_scale(sheet: Image.Image, draw: ImageDraw.ImageDraw, top: int) -> None:
    """What the colours mean."""
    height, width = line_height(SMALL), 120
    ramp = np.broadcast_to(np.linspace(0.0, 1.0, width), (height - 4, width))
    left = MARGIN
    for words in ("attention of the class token, by patch:  least", None, "most"):
        if words is None:
            sheet.paste(Image.fromarray(coloured(ramp).astype(np.uint8)), (left, top + 2))
            left += width + GAP
        else:
            draw.text((left, top), words, fill=FAINT_INK, font=font(SMALL))
            left += int(font(SMALL).getlength(words)) + GAP


def _draw_entry(sheet: Image.Image, draw: Any, place: Tuple[int, int], one: Drawn, pair: Sequence[Image.Image]) -> None:
    left, top = place
    for image in pair:
        draw.rectangle((left - 1, top - 1, left + image.width, top + image.height), outline=FRAME)
        sheet.paste(image, (left, top))
        left += image.width + GAP
    draw.text((left, top), shortened(drawable(one.name), TEXT, TEXT_WIDTH), fill=INK, font=font(TEXT))
    top += line_height(TEXT) + 4
    for label in one.labels[:MOST_LABELS]:
        _draw_label(draw, left, top, label)
        top += line_height(SMALL) + 10
    if not one.labels:
        draw.text((left, top), NO_LABEL, fill=FAINT_INK, font=font(SMALL))


def _draw_label(draw: Any, left: int, top: int, label: Label) -> None:
    """Name and percentage, and a bar below them."""
    value = percent(label.probability)
    room = TEXT_WIDTH - int(font(SMALL).getlength(value)) - GAP
    draw.text((left, top), shortened(drawable(label.name), SMALL, room), fill=INK, font=font(SMALL))
    draw.text((left + TEXT_WIDTH, top), value, fill=INK, font=font(SMALL), anchor="ra")
    below = top + line_height(SMALL)
    draw.rectangle((left, below, left + TEXT_WIDTH, below + 3), fill=BAR_GROUND)
    if label.probability * TEXT_WIDTH >= 1:
        draw.rectangle((left, below, left + label.probability * TEXT_WIDTH, below + 3), fill=BAR)


def check_target(path: Path) -> None:
    """Raises UserError where a figure cannot be written, or where something else would be lost: a user's own picture."""
    if not path.absolute().parent.is_dir():
        raise UserError(f"--attention {path} cannot be written: there is no folder {path.absolute().parent}.")
    if not path.exists():
        return
    try:
        with Image.open(path) as image:
            ours = image.info.get("Software") == SOFTWARE
    except (OSError, SyntaxError):
        ours = False
    if not ours:
        raise UserError(
            f"--attention {path} is there already, and is no figure of this command.\n"
            "       The flag names the figure to write, before the pictures. Give another name."
        )


def save(image: Image.Image, path: Path) -> None:
    """Raises UserError where it cannot be written."""
    mark = PngImagePlugin.PngInfo()
    mark.add_text("Software", SOFTWARE)
    try:
        image.save(path, pnginfo=mark)
    except OSError as error:
        raise UserError(f"--attention {path} cannot be written ({error.strerror or error}).") from error
