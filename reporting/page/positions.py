"""How alike the learned position embeddings are: a map for each patch's place, as figure 7 of arXiv 2010.11929."""

from __future__ import annotations

import io
from typing import List, Tuple

import numpy as np

from reporting.markup import data_uri, fold, table
from reporting.story import Story

MOST_MAPS = 16  # a side
MOST_CELLS = 28  # of a map's side
# From least to most alike; it grows lighter all the way, for eyes that do not tell the hues apart.
COLOURS = ((24, 16, 60), (98, 28, 108), (188, 54, 84), (240, 132, 44), (252, 232, 128))
SHEET = 480  # pixels, about, of all maps
RULE = 128  # grey of the lines between maps


def section(story: Story) -> str:
    similarity = story.views.position_similarity if story.views is not None else None
    if similarity is None or not np.isfinite(similarity).all():
        return ""
    low, high = float(similarity.min()), float(similarity.max())
    content, (width, height) = sheet(similarity)
    rows, columns = similarity.shape[:2]
    words = f"{rows} by {columns} maps of the position embeddings' cosine similarity, {_alike(similarity)}"
    return (
        '<p class="hint">Each small map belongs to one patch of the picture, at its place, and shows how alike its position '
        "embedding is to those of all patches. A light spot that wanders with the map, or light rows and columns, mean that the "
        "model has learned how patches lie; maps that all look like noise mean that it has not.</p>"
        f'<figure class="card positions"><img class="sharp" src="{data_uri(content, "image/png")}" alt="{words}" '
        f'width="{width}" height="{height}"><figcaption><p>cosine similarity from {low:.2f} (dark) to {high:.2f} (light)'
        f'<span class="ramp" aria-hidden="true"></span></p></figcaption>'
        f"{fold('position-values', 'Values', _table(similarity))}</figure>"
    )


def sheet(similarity: np.ndarray) -> Tuple[bytes, Tuple[int, int]]:
    """[rows, columns, rows, columns] as a PNG of maps with lines between them, and its width and height in pixels."""
    from PIL import Image

    chosen = [
        np.unique(np.linspace(0, side - 1, min(side, MOST_MAPS)).round().astype(int)) for side in similarity.shape[:2]
    ]
    cells = [
        np.unique(np.linspace(0, side - 1, min(side, MOST_CELLS)).round().astype(int)) for side in similarity.shape[2:]
    ]
    maps = similarity[np.ix_(*chosen, *cells)].astype(np.float64)
    span = float(similarity.max() - similarity.min()) or 1.0
    colours = coloured((maps - float(similarity.min())) / span)  # [rows, columns, r, c, 3]
    times = max(1, SHEET // (maps.shape[0] * maps.shape[2]))
    colours = colours.repeat(times, axis=2).repeat(times, axis=3)
    maps = maps.repeat(times, axis=2).repeat(times, axis=3)
    rule = 2 if times > 2 else 1
    framed = np.full((*maps.shape[:2], maps.shape[2] + rule, maps.shape[3] + rule, 3), RULE, np.uint8)
    framed[:, :, :-rule, :-rule] = colours
    pixels = framed.transpose(0, 2, 1, 3, 4).reshape(
        maps.shape[0] * framed.shape[2], maps.shape[1] * framed.shape[3], 3
    )
    image = Image.fromarray(np.ascontiguousarray(pixels[:-rule, :-rule]))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue(), image.size


def coloured(heat: np.ndarray) -> np.ndarray:
    """0 to 1 as colours uint8 [..., 3]."""
    stops = np.linspace(0.0, 1.0, len(COLOURS))
    return np.stack([np.interp(heat, stops, channel) for channel in zip(*COLOURS)], axis=-1).round().astype(np.uint8)


def by_distance(similarity: np.ndarray) -> List[Tuple[int, float]]:
    """Mean similarity of two places by their distance in patches, rounded."""
    rows, columns = similarity.shape[:2]
    row, column = np.arange(rows), np.arange(columns)
    distance = (
        np.hypot((row[:, None] - row)[:, None, :, None], (column[:, None] - column)[None, :, None, :])
        .round()
        .astype(int)
    )
    counts = np.bincount(distance.ravel())
    sums = np.bincount(distance.ravel(), weights=similarity.astype(np.float64).ravel())
    return [(index, float(sums[index] / count)) for index, count in enumerate(counts) if count]


def _alike(similarity: np.ndarray) -> str:
    far = by_distance(similarity)
    near = dict(far).get(1)
    return f"neighbours {near:.2f}, the farthest {far[-1][1]:.2f} on average" if near is not None else "one place"


def _table(similarity: np.ndarray) -> str:
    rows = ([f"{distance}", f"{mean:.3f}"] for distance, mean in by_distance(similarity))
    return table("Mean similarity by distance", ["distance in patches", "cosine similarity"], rows, "figures")
