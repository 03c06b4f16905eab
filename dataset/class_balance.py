"""What a run makes of how common the classes of its training set are."""

from __future__ import annotations

from typing import TYPE_CHECKING, List, Optional, Sequence

import numpy as np

from errors import UserError, printable

if TYPE_CHECKING:
    from config import Config
    from dataset.base import Source


MOST_NAMES = 20  # of labels in a note


def positives_of(labels: np.ndarray, num_labels: int) -> np.ndarray:
    """int64 [num_labels]: how many samples have each label. `labels` as `dataset.base.Source` has them."""
    if labels.ndim == 2:
        return labels.astype(bool).sum(axis=0, dtype=np.int64)
    return np.bincount(labels, minlength=num_labels)


def with_positive_weights(config: Config, source: Source) -> Config:
    """The config with numbers where `positive_weights` says balanced: negatives / positives of each label in the training set,
    1 for a label that no sample or every one has.
    """
    if config.positive_weights != "balanced":
        return config
    positives = positives_of(source.labels, config.num_labels)
    negatives = len(source.labels) - positives
    is_known = (positives > 0) & (negatives > 0)
    weights = np.where(is_known, negatives / np.maximum(positives, 1), 1.0)
    return config.model_copy(update={"positive_weights": tuple(weights.tolist())})


def balance_notes(config: Config, source: Source, held_out: Optional[Source]) -> List[str]:
    """What a user should know of it. Raises UserError where there is nothing to balance."""
    names = source.class_names
    positives = positives_of(source.labels, config.num_labels)
    notes = []
    if isinstance(config.positive_weights, tuple):
        factors = [f"{name_of(names, label)} {weight:.3g}" for label, weight in enumerate(config.positive_weights)]
        notes.append(f"positive_weights: {', '.join(factors)}")
    if config.balanced_sampling:
        num_classes = int((positives > 0).sum()) + (
            source.labels.ndim == 2 and bool((~source.labels.any(axis=1)).any())
        )
        if num_classes < 2:
            raise UserError(
                "balanced_sampling has nothing to balance: all training images are of one class.\n"
                "       Leave it out, or check the labels with verify.py."
            )
        notes.append(
            f"balanced_sampling: an epoch makes {len(source.labels):,} draws, of each of {num_classes:,} classes equally many"
        )
        if config.positive_weights is not None:
            notes.append(
                "balanced_sampling and positive_weights both make up for rare classes, one on top of the other"
            )
    if source.labels.ndim == 2 and not positives.all():
        notes.append(f"labels that no training image has, and that cannot be learned: {_listed(names, positives == 0)}")
    return notes + (undefined_auc_notes(held_out) if held_out is not None else [])


def undefined_auc_notes(held_out: Source) -> List[str]:
    """Which labels of a validation set have no ROC curve."""
    labels = held_out.labels
    if labels.ndim != 2:
        return []
    positives = positives_of(labels, labels.shape[1])
    notes = []
    for who, missing in (("no", positives == 0), ("every", positives == len(labels))):
        if missing.any():
            found = _listed(held_out.class_names, missing)
            notes.append(f"the mean AUC leaves out labels that {who} validation image has: {found}")
    return notes


def name_of(names: Sequence[str], label: int) -> str:
    return printable(names[label]) if label < len(names) else f"class {label}"


def _listed(names: Sequence[str], chosen: np.ndarray) -> str:
    labels = np.flatnonzero(chosen).tolist()
    shown = ", ".join(name_of(names, label) for label in labels[:MOST_NAMES])
    return shown if len(labels) <= MOST_NAMES else f"{shown} and {len(labels) - MOST_NAMES:,} more"
