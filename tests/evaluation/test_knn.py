"""k-NN evaluation against scikit-learn's classifier over the same features."""

from __future__ import annotations

from typing import Any, List

import numpy as np
import pytest
import torch
from torch import Tensor

from config import Config
from dataset.loader import EvalLoader
from dataset.registry import open_source
from errors import UserError
from evaluation import knn
from evaluation.knn import Neighbours, evaluate_knn
from placement import place_single
from runtime.single import SingleRuntime
from tests.small import small_config

K, TEMPERATURE = 20, 0.07


def digits(tmp_path: Any) -> Config:
    keys = {"dataset": "digits", "num_channels": 1, "num_labels": 10, "validation_split": 0.2}
    config = small_config(tmp_path, command="validation", patches_size=2, **keys)
    return config.model_copy(update={"num_labels": 0})


def loaders(config: Config, runtime: Any) -> List[EvalLoader]:
    def loader(split: str) -> EvalLoader:
        source = open_source(config.model_copy(update={"num_labels": 10}), split)
        size = runtime.eval_batch_size
        return EvalLoader(source, config, batch_size=size, share_index=0, num_shares=1, images=True, targets=True)

    return [loader("train"), loader("validation")]


def collected(runtime: Any, loader: EvalLoader) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(runtime.predict(batch.images)[batch.rows], batch.targets[batch.rows]) for batch in loader]
    features, labels = (torch.cat(tensors).numpy() for tensors in zip(*pairs))
    return features, labels


def test_accuracy_is_scikit_learns_whatever_the_chunks(tmp_path: Any, monkeypatch: Any) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    config = digits(tmp_path)
    runtime = SingleRuntime(config, place_single(config), num_cores=1)
    (near, near_labels), (asked, labels) = (collected(runtime, loader) for loader in loaders(config, runtime))
    assert near.shape == (1437, 16)
    judge = KNeighborsClassifier(K, weights=lambda d: np.exp((1 - d) / TEMPERATURE), metric="cosine", algorithm="brute")
    probabilities = judge.fit(near.astype(np.float64), near_labels).predict_proba(asked.astype(np.float64))
    top1 = (probabilities.argmax(1) == labels).mean()
    top5 = np.mean([label in row.argsort()[-5:] and row[label] > 0 for row, label in zip(probabilities, labels)])
    for queries, references in ((2048, 4096), (100, 300)):
        monkeypatch.setattr(knn, "QUERIES", queries)
        monkeypatch.setattr(knn, "REFERENCES", references)
        train, validation = loaders(config, runtime)
        done: List[int] = []
        keys = {"k": K, "temperature": TEMPERATURE, "num_classes": 10, "device": torch.device("cpu")}
        found = evaluate_knn(runtime, train, validation, progressed=done.append, **keys)
        assert found == pytest.approx((top1, top5, 360), abs=1e-12)
        assert sum(done) == 1797
    assert 0.3 < top1 < 0.95 < top5 + 0.2  # features of random weights: a test of all or nothing would show less


def unit(count: int, seed: int) -> Tensor:
    rows = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


def test_shares_of_the_references_merge_into_the_same_neighbours() -> None:
    queries, references, labels = unit(50, 0), unit(300, 1), torch.arange(300) % 7
    whole, merged = Neighbours(queries, 10), Neighbours(queries, 10)
    whole.add(references, labels)
    for share in range(3):
        part = Neighbours(queries, 10)
        part.add(references[share::3], labels[share::3])
        merged.merge(part.similarities, part.labels)
    assert torch.equal(whole.similarities, merged.similarities)
    assert torch.equal(whole.labels, merged.labels)
    assert torch.isfinite(whole.votes(7, 1e-3)).all()  # exp(1 / 0.001) alone would be infinite


def test_more_neighbours_than_images_are_refused() -> None:
    with pytest.raises(UserError, match="knn = 20, but there are 5 training images"):
        knn.check_enough(20, 5)


def test_features_of_a_run_whose_config_weights_its_labels_can_be_judged(tmp_path: Any) -> None:
    weighted = {"loss": "SigmoidCELoss", "positive_weights": tuple(float(label + 1) for label in range(10))}
    config = digits(tmp_path).model_copy(update=weighted)
    runtime = SingleRuntime(config, place_single(config), num_cores=1)
    batch = next(iter(loaders(config, runtime)[1]))
    assert runtime.predict(batch.images).shape[1] == config.hidden_size
