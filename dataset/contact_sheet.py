"""A picture of training images as the model will see them: a row an image, its evaluation view and then epoch after epoch."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Any, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from PIL import Image, ImageDraw

from dataset.base import Source
from dataset.decode import open_picture
from dataset.inspection import name_of
from dataset.lettering import drawable, font, line_height, shortened, wrapped
from dataset.order import Order
from dataset.samples import Samples
from seeding import derive_seed

if TYPE_CHECKING:
    from config import Config

NUM_EPOCHS = 7
TRIES = 4  # images drawn for each row, in case that some are bad
POOL = 4096  # samples that rows are chosen from, so that each is of another class where there are enough
SMALLEST_CELL, LARGEST_CELL = 96, 256  # pixels
MARGIN, GAP, WIDE_GAP = 20, 8, 20  # around the sheet; between cells; before epoch 0
MOST_OF_LABELS = 200  # pixels of width
TITLE, TEXT, SMALL = 20, 14, 12  # heights of letters
PAPER, INK, FAINT_INK, FRAME = "white", "#1a1a1a", "#555555", "#b0b0b0"


class Row(NamedTuple):
    """One image: what is said of it, line by line, and its cells, uint8 [1 + NUM_EPOCHS, C, image_size, image_size]."""

    label: str
    name: str
    size: str
    cells: np.ndarray


def contact_sheet(source: Source, config: Config, num_rows: int) -> Optional[Image.Image]:
    """The sheet of up to `num_rows` images of the training split, drawn by `random_seed`; None where none can be read."""
    rows = choose_rows(source, config, num_rows)
    return draw_sheet(rows, title(config), remarks(source, config)) if rows else None


def choose_rows(source: Source, config: Config, num_rows: int) -> List[Row]:
    """Images by chance, in the order of the split, without the bad ones. Epochs are those that training begins with."""
    drawn = _drawn(source, config)[: num_rows * TRIES]
    if not len(drawn):
        return []
    views, bad = Samples(source, config, augmented=False).read(Order(None, drawn))
    unreadable = {one.row for one in bad}
    kept = [row for row in range(len(drawn)) if row not in unreadable][:num_rows]
    kept.sort(key=lambda row: int(drawn[row]))
    if not kept:
        return []
    indices = drawn[kept]
    training = Samples(source, config, augmented=True)
    columns = [views[kept]] + [training.read(Order(epoch, indices))[0] for epoch in range(NUM_EPOCHS)]
    return [
        Row(*_sayings(source, config, index), np.stack([column[row].numpy() for column in columns]))
        for row, index in enumerate(indices.tolist())
    ]


def _drawn(source: Source, config: Config) -> np.ndarray:
    """Random samples, the first of each class before the second of any."""
    generator = np.random.default_rng(derive_seed(config.random_seed, "contact sheet"))
    drawn = generator.choice(len(source), min(POOL, len(source)), replace=False)
    if source.labels.ndim == 2:
        return drawn
    met: Counter[int] = Counter()
    rounds = []
    for label in source.labels[drawn].tolist():
        rounds.append(met[label])
        met[label] += 1
    return drawn[np.argsort(rounds, kind="stable")]


def title(config: Config) -> str:
    side = config.image_size
    colours = "grey" if config.num_channels == 1 else "RGB"
    return f"{config.name}: training images as the model sees them, {side} x {side} pixels, {colours}"


def remarks(source: Source, config: Config) -> List[str]:
    """What happens to the images, in words."""
    if source.is_ready:
        lines = ["These images come as they are shown: they are not augmented."]
    else:
        lines = ["Augmentation: " + (", ".join(augmentations(config)) or "none") + "."]
    if config.mixup or config.cutmix:
        names = " and ".join(name for name in ("mixup", "cutmix") if getattr(config, name))
        lines.append(f"Mixing ({names}) is on, but not shown.")
    return lines


def augmentations(config: Config) -> List[str]:
    """The random changes that are on, in the order in which they are made."""
    crop, policy = config.train_crop_scale, config.extra_aug
    strength = f" (n {config.randaugment_n}, m {config.randaugment_m})" if policy == "randaugment" else ""
    all_of_them = (
        (crop, f"random crop of {crop[0]:g} to {crop[1]:g} of the area" if crop else ""),
        (config.crop_padding, f"shift of up to {config.crop_padding} pixels"),
        (config.horizontal_flip, "horizontal flip"),
        (policy, f"{policy}{strength}"),
        (config.color_jitter, f"colour jitter {config.color_jitter:g}"),
        (config.contrast, f"contrast {config.contrast:g}"),
        (config.hue, f"hue {config.hue:g}"),
        (config.rotation, f"rotation {config.rotation:g}°"),
        (config.translate, f"translation {config.translate:g}"),
        (config.shear, f"shear {config.shear:g}°"),
        (config.zoom, f"zoom {config.zoom:g}"),
        (config.random_erasing, f"random erasing {config.random_erasing:g}"),
    )
    return [words for is_on, words in all_of_them if is_on]


def draw_sheet(rows: Sequence[Row], heading: str, lines: Sequence[str]) -> Image.Image:
    cells = [[_as_cell(cell) for cell in row.cells] for row in rows]
    side = cells[0][0].width
    labels = min(MOST_OF_LABELS, max(_width_of_labels(row) for row in rows))
    begin = MARGIN + labels + WIDE_GAP
    lefts = [begin] + [begin + side + WIDE_GAP + column * (side + GAP) for column in range(NUM_EPOCHS)]
    width = lefts[-1] + side + MARGIN
    head = [(part, TITLE, INK) for part in wrapped(heading, TITLE, width - 2 * MARGIN)]
    head += [(part, TEXT, FAINT_INK) for line in lines for part in wrapped(line, TEXT, width - 2 * MARGIN)]
    captions = MARGIN + sum(line_height(size) for _, size, _ in head) + WIDE_GAP
    top = captions + line_height(SMALL) + 2
    sheet = Image.new("RGB", (width, top + len(rows) * (side + GAP) - GAP + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, MARGIN, MARGIN, head)
    for column, left in enumerate(lefts):
        text = "evaluation" if column == 0 else f"epoch {column - 1}"
        draw.text((left + side / 2, captions), text, fill=FAINT_INK, font=font(SMALL), anchor="ma")
    for number, row in enumerate(rows):
        upper = top + number * (side + GAP)
        _write(draw, MARGIN, upper, _label_lines(row, labels, side))
        for left, cell in zip(lefts, cells[number]):
            draw.rectangle((left - 1, upper - 1, left + side, upper + side), outline=FRAME)
            sheet.paste(cell, (left, upper))
    return sheet


def _sayings(source: Source, config: Config, index: int) -> Tuple[str, str, str]:
    """Label, file name and original size of an image."""
    item = source.item(index)
    height, width = open_picture(item, config.num_channels, config.max_image_pixels).size
    label = source.labels[index]
    labels = np.flatnonzero(label).tolist() if np.ndim(label) else [int(label)]
    names = [_label_name(source, one) for one in labels]
    name = os.path.basename(name_of(item, index))
    return ", ".join(names) or "no label", drawable(name), f"{width} x {height}"


def _label_name(source: Source, label: int) -> str:
    """Its name; with its number where it has none, or one that the font lacks letters for."""
    name = source.class_names[label] if label < len(source.class_names) else ""
    shown = drawable(name)
    if not name:
        return f"class {label}"
    return shown if shown.count("?") == name.count("?") else f"class {label}: {shown}"


def _as_cell(image: Any) -> Image.Image:
    """[C, S, S] as a picture: small ones with each pixel as a square, large ones scaled down."""
    pixels = np.asarray(image).transpose(1, 2, 0)
    cell = Image.fromarray(np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3))))
    if cell.width > LARGEST_CELL:
        return cell.resize((LARGEST_CELL, LARGEST_CELL), Image.Resampling.LANCZOS)
    side = cell.width * -(-SMALLEST_CELL // cell.width)
    return cell.resize((side, side), Image.Resampling.NEAREST)


# Text: never wider than its place.


def _write(draw: ImageDraw.ImageDraw, left: int, top: int, lines: Sequence[Any]) -> None:
    for text, size, colour in lines:
        draw.text((left, top), text, fill=colour, font=font(size))
        top += line_height(size)


def _width_of_labels(row: Row) -> int:
    texts = ((row.label, TEXT), (row.name, SMALL), (row.size, SMALL))
    return max(int(font(size).getlength(text)) + 1 for text, size in texts)


def _label_lines(row: Row, width: int, height: int) -> List[Any]:
    """A row's label in as many lines as there is room for, its file name and size below."""
    room = (height - 2 * line_height(SMALL)) // line_height(TEXT)
    lines = wrapped(row.label, TEXT, width)
    if len(lines) > room:
        lines = [*lines[: room - 1], "..."]
    below = [shortened(text, SMALL, width) for text in (row.name, row.size)]
    return [(line, TEXT, INK) for line in lines] + [(line, SMALL, FAINT_INK) for line in below]
