"""Finds the source that a config names, and cuts a validation set where the data has none of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Dict, Optional

from dataset.base import Source, check_labels
from dataset.held_out import Subset, held_out_split
from dataset.sources import chest_xray, cifar, csv_table, digits, folder, generated, hub, webdataset

if TYPE_CHECKING:
    from config import Config

# Their validation set is a test set: where a share of the training images is held out, it is left for the end.
WITH_TEST_SET = ("cifar10", "cifar100")
# Each opens the "train" or the "validation" set that its data comes with; None where it comes without.
SOURCES: Dict[str, Callable[[Config, str], Optional[Source]]] = {
    "chest_xray": chest_xray.open_chest_xray,
    "cifar10": cifar.open_cifar,
    "cifar100": cifar.open_cifar,
    "csv": csv_table.open_csv,
    "digits": digits.open_digits,
    "folder": folder.open_folder,
    "generated": generated.open_generated,
    "hub": hub.open_hub,
    "imagenet1k": folder.open_folder,
    "webdataset": webdataset.open_webdataset,
}


def open_source(config: Config, split: str) -> Optional[Source]:
    """The images of `split` ("train" or "validation"), or None where there is no validation set.

    A validation set of the data's own is used as it is; `validation_split` cuts one from the training images otherwise, and
    always where the own one is a test set. Raises UserError where the data is not found or does not fit the config.
    """
    open_split = SOURCES["generated" if config.synthetic_data else config.dataset]
    if leaves_test_set(config):
        source = _cut(open_split(config, "train"), config, split)
    else:
        source = open_split(config, split)
        if config.validation_split:
            own = source if split == "validation" else open_split(config, "validation")
            if own is None:
                source = _cut(open_split(config, "train"), config, split)
    if source is not None and config.command != "verify":  # which is to tell how many labels there are
        check_labels(source, config)
    return source


def leaves_test_set(config: Config) -> bool:
    """Whether the run is validated on a share of the training images, while a test set waits."""
    return config.validation_split > 0 and config.dataset in WITH_TEST_SET and not config.synthetic_data


def is_test_set(config: Config) -> bool:
    """Whether what the run is validated on is the data's test set."""
    return config.validation_split == 0 and config.dataset in WITH_TEST_SET and not config.synthetic_data


def _cut(source: Optional[Source], config: Config, split: str) -> Optional[Source]:
    if source is None:
        return None
    train, validation = held_out_split(source.labels, config.validation_split, config.random_seed)
    return Subset(source, train if split == "train" else validation)
