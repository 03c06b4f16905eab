"""What `verify.py` says of a data set, in lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, List, Sequence, Tuple

import numpy as np

from dataset.inspection import BUCKETS
from errors import printable
from reporting.tables import table

if TYPE_CHECKING:
    from config import Config
    from dataset.base import Source
    from dataset.inspection import Report, SizedImage, Sizes

MOST_COMMON, LEAST_COMMON = 10, 5  # classes that are printed where there are more
MOST_EMPTY = 10  # names of classes without images that are printed
BAR = 40  # characters


def report_lines(split: str, report: Report, source: Source, config: Config) -> List[str]:
    """Everything about a split, in lines."""
    counts = report.images_of_label
    filled, empty = counts[counts > 0], [int(label) for label in (counts == 0).nonzero()[0]]
    several = source.labels.ndim == 2
    what, all_of_them = ("label", "labels") if several else ("class", "classes")
    found = f"{len(filled):,} {what if len(filled) == 1 else all_of_them}"
    lines = [f"{split}: {report.num_images:,} images, {report.num_bad:,} bad, {found}"]
    if not report.num_images:
        return lines
    lines += [table(*class_table(report, source.class_names)), ""]
    if len(filled):
        spread = f"min {filled.min():,}, median {_median(filled):g}, max {filled.max():,}"
        lines.append(f"images per {what}: {spread}")
    if several:
        lines.append(f"images without a label: {report.num_without_label:,}")
    if empty:
        names = [class_name(label, source.class_names) for label in empty[:MOST_EMPTY]]
        more = f" and {len(empty) - MOST_EMPTY:,} more" if len(empty) > MOST_EMPTY else ""
        lines.append(f"{all_of_them} of num_labels = {config.num_labels} without images: {', '.join(names)}{more}")
    return [*lines, "", *size_lines(report.sizes, config.image_size)]


def class_table(report: Report, names: Sequence[str]) -> Tuple[List[str], List[List[object]]]:
    """Headers and rows: the classes that have images, most common first; only the ends where they are many."""
    counts = report.images_of_label
    order = [int(label) for label in (-counts).argsort(kind="stable") if counts[label]]
    headers = ["class", "images", "share", "bad"][: 4 if report.num_bad else 3]
    rows: Dict[int, List[object]] = {}
    many = len(order) > MOST_COMMON + LEAST_COMMON
    for label in order[:MOST_COMMON] + order[-LEAST_COMMON:] if many else order:
        share = f"{100 * counts[label] / report.num_images:.1f} %"
        row = [class_name(label, names), f"{counts[label]:,}", share, f"{report.bad_of_label[label]:,}"]
        rows[label] = list(row[: len(headers)])
    listed = list(rows.values())
    if many:
        between = f"({len(order) - len(listed):,} more)"
        listed.insert(MOST_COMMON, [between, *[""] * (len(headers) - 1)])
    return headers, listed


def class_name(label: int, names: Sequence[str]) -> str:
    return printable(names[label]) if label < len(names) else str(label)


def size_lines(sizes: Sizes, image_size: int) -> List[str]:
    """A histogram of short sides, the extremes, and how many images have to be enlarged."""
    total = sum(sizes.short_sides)
    if sizes.smallest is None or sizes.largest is None:
        return ["sizes: no image could be read"]
    ranges = [f"{low}-{high - 1}" for low, high in zip(BUCKETS, BUCKETS[1:])]
    names = [f"<{BUCKETS[0]}", *ranges, f">={BUCKETS[-1]}"]
    most = max(sizes.short_sides)
    rows = [[name, f"{count:,}", "#" * -(-BAR * count // most)] for name, count in zip(names, sizes.short_sides)]
    return [
        table(["short side", "images", ""], rows),
        "",
        f"smallest: {_sized(sizes.smallest)}",
        f"largest: {_sized(sizes.largest)}",
        f"smaller than image_size = {image_size}: {sizes.num_small:,} ({100 * sizes.num_small / total:.1f} %)",
    ]


def closing_line(num_bad: int, total: int) -> str:
    if not num_bad:
        return f"no bad image among {total:,}"
    return (
        f"{num_bad:,} of {total:,} images are bad: replace the files, take them out, or train without them: "
        "--bad-images skip"
    )


def _sized(image: SizedImage) -> str:
    return f"{image.width} x {image.height}, {printable(image.where)}"


def _median(counts: np.ndarray) -> float:
    return float(np.median(counts))
