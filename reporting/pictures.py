"""Findings as pictures, for listeners that take pictures: TensorBoard and W&B. All are uint8 [H, W, 3]."""

from __future__ import annotations

import io
from typing import Any, List, Optional, Sequence, Tuple

import numpy as np

from reporting.records import AttentionView, Mistake

# From low to high: dark to light, so that it also reads in grey. Each is red, green, blue.
_COLOURS = np.array([(38, 20, 72), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], dtype=np.float64)
_PAPER, _INK = (255, 255, 255), (0, 0, 0)
_TEXT = 12  # height of letters in pixels
_SIDE = 480  # about how wide and high a matrix is drawn, in pixels
NAMED_CLASSES = 30  # with more, names are too small to be read, and left out


def png(picture: np.ndarray) -> bytes:
    """The picture as a file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG")
    return file.getvalue()


def colours(values: np.ndarray) -> np.ndarray:
    """Values from 0 to 1, of any shape, as colours: one axis of three more."""
    places = np.clip(np.nan_to_num(values), 0.0, 1.0) * (len(_COLOURS) - 1)
    steps = np.arange(len(_COLOURS))
    channels = [np.interp(places, steps, _COLOURS[:, channel]) for channel in range(3)]
    return np.round(np.stack(channels, axis=-1)).astype(np.uint8)


def confusion_picture(confusion: np.ndarray, names: Sequence[str] = ()) -> np.ndarray:
    """A matrix [K, K] of counts (rows: labels, columns: answers), each row as shares of its label's samples.

    The counts stand in the cells, and the names beside the rows, where there is room.
    """
    num_classes = len(confusion)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    cell = max(1, _SIDE // num_classes)
    matrix = _enlarged(colours(shares), cell)
    if num_classes > NAMED_CLASSES:
        return matrix
    labels = [shortened(names[index]) if index < len(names) else str(index) for index in range(num_classes)]
    margin = 8 + max(_width(label) for label in labels)
    canvas, draw = _blank(margin + matrix.shape[1], matrix.shape[0] + _TEXT + 8)
    canvas.paste(_image(matrix), (margin, 0))
    for row, label in enumerate(labels):
        _write(draw, (4, row * cell + (cell - _TEXT) // 2), label)
        for column in range(num_classes) if cell >= 28 else ():
            ink = _INK if shares[row, column] > 0.6 else _PAPER
            corner = (margin + column * cell + 4, row * cell + (cell - _TEXT) // 2)
            _write(draw, corner, str(confusion[row, column]), ink)
    _write(draw, (margin, matrix.shape[0] + 2), "answers, in the same order")
    return np.asarray(canvas)


def similarity_picture(similarity: np.ndarray) -> np.ndarray:
    """Cosine similarities [rows, columns, rows, columns] from -1 to 1: a small map for each position, at its place."""
    rows, columns = similarity.shape[:2]
    tiles = colours((similarity + 1) / 2)
    framed = np.full((rows, columns, rows + 1, columns + 1, 3), 255, dtype=np.uint8)
    framed[:, :, :rows, :columns] = tiles
    sheet = framed.swapaxes(1, 2).reshape(rows * (rows + 1), columns * (columns + 1), 3)
    return _enlarged(sheet, max(1, _SIDE // max(sheet.shape[:2])))


def sheet(cells: Sequence[Tuple[np.ndarray, str]], columns: int = 4, side: int = 160) -> np.ndarray:
    """Pictures of one height beside each other, each with its lines of text below. No cell: an empty picture."""
    lines = max((text.count("\n") + 1 for _, text in cells), default=0)
    fitted = [(_fitted(picture, side), text) for picture, text in cells]
    width = max([side, *(image.width for image, _ in fitted)]) + 8
    height = side + lines * (_TEXT + 4) + 8
    rows = -(-len(cells) // columns)
    canvas, draw = _blank(max(1, min(columns, len(cells)) * width), max(1, rows * height))
    for index, (image, text) in enumerate(fitted):
        left, top = (index % columns) * width, (index // columns) * height
        canvas.paste(image, (left, top))
        for number, line in enumerate(text.split("\n")):
            _write(draw, (left, top + side + 2 + number * (_TEXT + 4)), shortened(line, width // 7))
    return np.asarray(canvas)


def mistakes_sheet(mistakes: Sequence[Mistake]) -> Optional[np.ndarray]:
    """The mistakes that have a picture; None where none has."""
    cells = [(mistake.picture, mistake_caption(mistake)) for mistake in mistakes if mistake.picture is not None]
    return sheet(cells) if cells else None


def attention_sheet(views: Sequence[AttentionView]) -> Optional[np.ndarray]:
    """Each picture beside what the model looked at in it; None where there is none."""
    cells = [(attention_pair(view), attention_caption(view)) for view in views]
    return sheet(cells, columns=2) if cells else None


def attention_pair(view: AttentionView) -> np.ndarray:
    return np.concatenate([view.picture, view.overlay], axis=1)


def mistake_caption(mistake: Mistake) -> str:
    return f"{mistake.wanted} taken for\n{mistake.answered} ({100 * mistake.probability:.0f} %)\n{shortened(mistake.name, 60)}"


def attention_caption(view: AttentionView) -> str:
    return f"{view.answered} ({100 * view.probability:.0f} %), is {view.wanted}\n{shortened(view.name, 60)}"


def shortened(text: str, length: int = 20) -> str:
    """On one line, its end left out where it is long; letters that the font does not have become question marks."""
    plain = "".join(letter if " " <= letter <= "~" else "?" for letter in text)
    return plain if len(plain) <= length else plain[: length - 2] + ".."


def _enlarged(picture: np.ndarray, times: int) -> np.ndarray:
    return picture.repeat(times, axis=0).repeat(times, axis=1)


def _fitted(picture: np.ndarray, height: int) -> Any:
    """Small pictures keep their pixels' edges; large ones are made smaller."""
    from PIL import Image

    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    kinds = Image.Resampling
    kind = kinds.NEAREST if picture.shape[0] <= height else kinds.BILINEAR
    return _image(picture).resize((width, height), kind)


def _image(picture: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(picture))


def _blank(width: int, height: int) -> List[Any]:
    from PIL import Image, ImageDraw

    canvas = Image.new("RGB", (width, height), _PAPER)
    return [canvas, ImageDraw.Draw(canvas)]


def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(_TEXT)


def _width(text: str) -> int:
    return int(_font().getlength(text)) + 1


def _write(draw: Any, corner: Tuple[int, int], text: str, ink: Tuple[int, int, int] = _INK) -> None:
    draw.text(corner, text, fill=ink, font=_font())
