"""Data sets by name. A new one is a file with a `Source` and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

from dataset.base import Source, Subset, held_out_indices
from errors import UserError

if TYPE_CHECKING:
    from config import Config


def open_source(config: Config, split: str) -> Optional[Source]:
    """The samples of `split` ("train" or "validation"); None where there is no validation set.

    Sources without a validation set of their own have `validation_split` of their training set held out.
    Raises UserError where data is missing or has more classes than the model.
    """
    name = "generated" if config.synthetic_data else config.dataset
    source: Optional[Source]
    if name == "generated":
        source = _generated(config, split)
    elif name in ("cifar10", "cifar100"):
        from dataset.cifar import Cifar

        source = Cifar(name, config.dataset_path, split)
    elif name == "digits":
        from dataset.digits import Digits

        source = _cut(Digits(), config, split)
    else:
        source = _folder(config, split)
    if source is not None and source.num_classes > config.num_labels:
        raise UserError(
            f"dataset = {name} has {source.num_classes} classes, but num_labels = {config.num_labels}.\n"
            f"       Use --num-labels {source.num_classes}."
        )
    return source


def _generated(config: Config, split: str) -> Source:
    from dataset.generated import Generated

    steps = config.iterations if split == "train" else 1
    length = config.samples_per_step * steps
    seed = config.random_seed + (split != "train")
    return Generated(length, config.image_size, config.num_channels, config.num_labels, seed)


def _folder(config: Config, split: str) -> Optional[Source]:
    from dataset.folder import open_folder

    source = open_folder(config.dataset_path, split)
    if open_folder(config.dataset_path, "validation") is None and config.validation_split:
        return _cut(open_folder(config.dataset_path, "train"), config, split)
    return source


def _cut(source: Optional[Source], config: Config, split: str) -> Optional[Source]:
    """The training or the held-out part of a set that has no split of its own."""
    assert source is not None
    if not config.validation_split:
        return source if split == "train" else None
    train, validation = held_out_indices(source.labels, config.validation_split, config.random_seed)
    return Subset(source, train if split == "train" else validation)
