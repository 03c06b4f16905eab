"""k-NN evaluation of features: how well a model's features tell classes apart, without training anything.

An image gets the classes of its k most similar training images, each weighted by exp(similarity / temperature), where the
similarity is the cosine (arXiv 1805.01978, section 3.4; as in DINO, arXiv 2104.14294, section 4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Iterator, List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from errors import UserError
from metrics import TOP_K

if TYPE_CHECKING:
    from dataset.loader import EvalLoader
    from runtime.base import Runtime

Progressed = Callable[[int], None]
QUERIES, REFERENCES = 2048, 4096  # compared at once: 32 MB of similarities


class Neighbours:
    """The k nearest of any number of references to each query, without keeping the references."""

    def __init__(self, queries: Tensor, k: int) -> None:
        """`queries` [Q, D], of length 1."""
        self._queries, self._k, self.count = queries, k, 0
        self.similarities = torch.full((len(queries), k), -torch.inf, device=queries.device)
        self.labels = torch.zeros((len(queries), k), dtype=torch.int64, device=queries.device)

    def add(self, references: Tensor, labels: Tensor) -> None:
        """[R, D], of length 1, and [R]."""
        self.count += len(references)
        for start in range(0, len(self._queries), QUERIES):
            rows = slice(start, start + QUERIES)
            similarities = self._queries[rows] @ references.t()
            self._keep(rows, similarities, labels.expand(len(similarities), -1))

    def merge(self, similarities: Tensor, labels: Tensor) -> None:
        """Takes in what was found among other references, both [Q, k]."""
        self._keep(slice(None), similarities, labels)

    def _keep(self, rows: slice, similarities: Tensor, labels: Tensor) -> None:
        all_similarities = torch.cat([self.similarities[rows], similarities], dim=1)
        all_labels = torch.cat([self.labels[rows], labels], dim=1)
        self.similarities[rows], chosen = all_similarities.topk(self._k, dim=1)
        self.labels[rows] = all_labels.gather(1, chosen)

    def votes(self, num_classes: int, temperature: float) -> Tensor:
        """Weights of the classes [Q, num_classes], of which the nearest neighbour's is scaled to 1: none overflows."""
        nearest = self.similarities[:, :1]
        weights = ((self.similarities - nearest) / temperature).exp()
        zeros = torch.zeros(len(weights), num_classes, device=weights.device)
        return zeros.scatter_add_(1, self.labels, weights)


def evaluate_knn(
    runtime: Runtime,
    train: EvalLoader,
    validation: EvalLoader,
    *,
    k: int,
    temperature: float,
    num_classes: int,
    device: torch.device,
    progressed: Progressed,
) -> Tuple[float, float, int]:
    """Top-1, top-5 and the number of validation images, the same in every process.

    `runtime.predict` gives features. All validation features are kept in every process, of the training set's one chunk: each
    process compares its own share of it. `progressed` is told of images done.
    """
    own = list(_features(runtime, validation, progressed))
    parts = [part for parts in runtime.gather(own) for part in parts]
    if not parts:
        raise UserError("none of the validation images could be read.\n       Look at them with verify.py.")
    queries, labels = (torch.cat(tensors).to(device) for tensors in zip(*parts))
    found = Neighbours(queries, k)
    for features, classes in _chunks(_features(runtime, train, progressed)):
        found.add(features.to(device), classes.to(device))
    shares = runtime.gather((found.count, found.similarities.cpu(), found.labels.cpu()))
    total = sum(count for count, _, _ in shares)
    check_enough(k, total)
    everywhere = Neighbours(queries, k)
    for _, similarities, classes in shares:
        everywhere.merge(similarities.to(device), classes.to(device))
    ranking = everywhere.votes(num_classes, temperature).topk(min(TOP_K, num_classes), dim=1).indices
    hits = ranking == labels.unsqueeze(1)
    return float(hits[:, 0].double().mean()), float(hits.any(dim=1).double().mean()), len(labels)


def check_enough(k: int, num_images: int) -> None:
    """Raises UserError where there are fewer images than neighbours to take."""
    if num_images < k:
        raise UserError(f"knn = {k}, but there are {num_images} training images. Give --knn {num_images} or less.")


def _features(runtime: Runtime, loader: EvalLoader, progressed: Progressed) -> Iterator[Tuple[Tensor, Tensor]]:
    """Features of length 1 and labels of this process's share, batch by batch; nothing where other processes have the head."""
    for batch in loader:
        features = runtime.predict(batch.images)
        if features is not None and batch.targets is not None and len(batch.rows):
            yield F.normalize(features[batch.rows].float(), dim=1), batch.targets[batch.rows]
        progressed(batch.num_valid)


def _chunks(batches: Iterator[Tuple[Tensor, Tensor]]) -> Iterator[Tuple[Tensor, Tensor]]:
    """The same, some thousand images at once."""
    waiting: List[Tuple[Tensor, Tensor]] = []
    for batch in batches:
        waiting.append(batch)
        if sum(len(labels) for _, labels in waiting) >= REFERENCES:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(batches: List[Tuple[Tensor, Tensor]]) -> Tuple[Tensor, Tensor]:
    return torch.cat([features for features, _ in batches]), torch.cat([labels for _, labels in batches])
