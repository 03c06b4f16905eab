"""Goes over a split: reads and decodes every image fully, on all cores, and counts what is there and what is wrong.

Memory does not grow with the images: sizes are counted in buckets, and bad images are handed on as they are found.
"""

from __future__ import annotations

import signal
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Callable, Iterable, List, NamedTuple, Optional, Tuple

import numpy as np
from torch.utils.data import DataLoader, Dataset

import machine
from dataset.base import BadImageError, Encoded, Item, Source
from dataset.decode import open_picture
from errors import UserError

if TYPE_CHECKING:
    from config import Config

AT_ONCE = 8  # images a worker reports on together: few, so that progress shows and Ctrl-C is obeyed at once
CHUNKS_AHEAD = 16  # of each worker, so that the rest go on while one has a chunk of large images
BUCKETS = (32, 64, 128, 224, 448, 896)  # where the next bucket of short sides begins, in pixels


class BadImage(NamedTuple):
    """An image of a split that cannot be used: its number, its file, and why in a few words."""

    number: int
    where: str
    reason: str


class SizedImage(NamedTuple):
    width: int
    height: int
    where: str

    @property
    def num_pixels(self) -> int:
        return self.width * self.height


@dataclass
class Sizes:
    """Sizes of images. `short_sides[k]` images have a short side from BUCKETS[k - 1] to below BUCKETS[k]."""

    short_sides: List[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    num_small: int = 0  # with a short side below the config's image_size
    smallest: Optional[SizedImage] = None  # by area; the first of those alike
    largest: Optional[SizedImage] = None

    def add(self, image: SizedImage, image_size: int) -> None:
        short_side = min(image.width, image.height)
        self.short_sides[bisect_right(BUCKETS, short_side)] += 1
        self.num_small += short_side < image_size
        self._compare(image, image)

    def merge(self, other: Sizes) -> None:
        self.short_sides = [mine + theirs for mine, theirs in zip(self.short_sides, other.short_sides)]
        self.num_small += other.num_small
        self._compare(other.smallest, other.largest)

    def _compare(self, small: Optional[SizedImage], large: Optional[SizedImage]) -> None:
        if small is not None and (self.smallest is None or small.num_pixels < self.smallest.num_pixels):
            self.smallest = small
        if large is not None and (self.largest is None or large.num_pixels > self.largest.num_pixels):
            self.largest = large


@dataclass
class Report:
    """What is in a split. Counts by label are int64 [num_labels]; where an image may have several labels, it counts for each."""

    num_images: int
    images_of_label: np.ndarray
    num_without_label: int  # above 0 only where an image may have several
    sizes: Sizes
    bad_of_label: np.ndarray
    num_bad: int = 0


def inspect(
    source: Source, config: Config, progressed: Callable[[int], None], found: Callable[[BadImage], None]
) -> Report:
    """Reads and decodes all images of a split.

    `progressed` is told of every few images how many they were, `found` of each bad image, in the order of the split.
    """
    counts, num_without = count_labels(source.labels, config.num_labels)
    report = Report(len(source), counts, num_without, Sizes(), np.zeros_like(counts))
    for chunk in _inspected(source, config):
        report.sizes.merge(chunk.sizes)
        for bad in chunk.bad:
            label = source.labels[bad.number]
            report.bad_of_label[np.flatnonzero(label) if np.ndim(label) else label] += 1
            report.num_bad += 1
            found(bad)
        progressed(chunk.num_images)
    return report


def count_labels(labels: np.ndarray, num_labels: int) -> Tuple[np.ndarray, int]:
    """Images of each label, int64 [num_labels, or more if there are more], and how many images have none.

    `labels` as a `Source` has them.
    """
    if labels.ndim == 1:
        return np.bincount(labels, minlength=num_labels), 0
    return labels.sum(axis=0, dtype=np.int64), int(len(labels) - np.count_nonzero(labels.any(axis=1)))


def name_of(item: Item, index: int) -> str:
    """The file of a source's item; its number where it comes from no file."""
    return item.where if isinstance(item, Encoded) else f"image {index}"


class _Chunk(NamedTuple):
    """What was found in some consecutive images."""

    num_images: int
    sizes: Sizes
    bad: List[BadImage]


class _Chunks(Dataset):
    """Chunks by the index of their first image."""

    def __init__(self, source: Source, config: Config) -> None:
        self._source, self._config = source, config

    def __getitem__(self, begin: int) -> _Chunk:
        sizes, bad = Sizes(), []
        end = min(begin + AT_ONCE, len(self._source))
        for index in range(begin, end):
            try:
                sizes.add(self._read(index), self._config.image_size)
            except BadImageError as error:
                bad.append(BadImage(index, error.where, error.reason))
        return _Chunk(end - begin, sizes, bad)

    def _read(self, index: int) -> SizedImage:
        """Decodes an image at its full size, which is what finds the faults. Raises BadImageError."""
        item = self._source.item(index)
        picture = open_picture(item, self._config.num_channels, self._config.max_image_pixels)
        picture.pixels(least=1.0)
        height, width = picture.size
        return SizedImage(width, height, name_of(item, index))


def _inspected(source: Source, config: Config) -> Iterable[_Chunk]:
    """All chunks in order, from a process on every core where they are many and reading costs more than handing over."""
    chunks, begins = _Chunks(source, config), range(0, len(source), AT_ONCE)
    if source.is_cheap or len(begins) <= 1:
        yield from map(chunks.__getitem__, begins)
        return
    # torch's loader, not a pool: it notices workers that are killed, and they notice when this process is.
    loader: Iterable[_Chunk] = DataLoader(
        chunks,
        batch_size=None,
        sampler=begins,
        num_workers=min(machine.num_cores(), len(begins)),
        collate_fn=_unchanged,  # type: ignore[arg-type]  # declared for lists
        worker_init_fn=_leave_interrupts_to_the_main_process,
        multiprocessing_context="fork",
        prefetch_factor=CHUNKS_AHEAD,
    )
    try:
        yield from loader
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise UserError(
            f"a process that decoded images was ended from outside, most often for want of memory.\n       {error}\n"
            f"       Large images need much: max_image_pixels = {config.max_image_pixels:,} may be lowered."
        ) from error


def _unchanged(chunk: _Chunk) -> _Chunk:
    return chunk


def _leave_interrupts_to_the_main_process(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole process group
