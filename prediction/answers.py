"""From probabilities to answers: the most probable classes, or the labels that reach their thresholds."""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional, Tuple

from torch import Tensor

from errors import UserError, nearest
from prediction.predictor import Seen
from weights.card import ModelCard

DEFAULT_TOP_K, DEFAULT_THRESHOLD = 5, 0.5


class Label(NamedTuple):
    label: int
    name: str  # the number where the class has no name
    probability: float


class Answer(NamedTuple):
    """What is said of one picture: labels, most probable first, or why it cannot be read."""

    path: str
    labels: Tuple[Label, ...] = ()
    reason: str = ""


class Chooser:
    """Which labels are given. Raises UserError for what does not suit the model."""

    def __init__(
        self, card: ModelCard, top_k: Optional[int] = None, thresholds: Optional[Dict[Optional[str], float]] = None
    ) -> None:
        """`thresholds` by name or number of a class, under None for all others; for a model that gives several labels."""
        self.names = card.class_names or tuple(str(label) for label in range(card.arch.num_labels))
        self.multi_label = card.multi_label
        if thresholds and not card.multi_label:
            raise UserError(
                "--threshold is for models that may give a picture several labels; this one chooses one class among all.\n"
                "       Say with --top-k how many of the most probable are shown."
            )
        self._top_k = top_k or (len(self.names) if card.multi_label else DEFAULT_TOP_K)
        self._thresholds = self._of_labels(thresholds or {}) if card.multi_label else None

    def answer(self, seen: Seen) -> Answer:
        if seen.probabilities is None:
            return Answer(seen.path, reason=seen.reason)
        return Answer(seen.path, self.labels(seen.probabilities))

    def labels(self, probabilities: Tensor) -> Tuple[Label, ...]:
        """Probabilities [K] to labels, most probable first."""
        values: List[float] = probabilities.tolist()
        order = sorted(range(len(values)), key=lambda label: -values[label])
        if self._thresholds is not None:
            order = [label for label in order if values[label] >= self._thresholds[label]]
        return tuple(Label(label, self.names[label], values[label]) for label in order[: self._top_k])

    def _of_labels(self, thresholds: Dict[Optional[str], float]) -> List[float]:
        of_labels = [thresholds.get(None, DEFAULT_THRESHOLD)] * len(self.names)
        for name, threshold in thresholds.items():
            if name is not None:
                of_labels[self._number_of(name)] = threshold
        return of_labels

    def _number_of(self, name: str) -> int:
        if name in self.names:
            return self.names.index(name)
        raise UserError(f"--threshold {name}=...: the model has no class '{name}'.{nearest(name, self.names)}")
