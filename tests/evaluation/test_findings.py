"""What a validation pass finds, through the real loader and loop: against scikit-learn, on every runtime, with bad images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix, roc_auc_score
from torch import Tensor

import machine
from config import Config
from dataset.registry import open_source
from evaluation.evaluate import evaluate
from evaluation.findings import MOST_CONFUSED, MOST_MISTAKES, class_names, findings_of, gather_for
from evaluation.metrics import EvalResult
from placement import place_pipeline, place_single
from run_setup import evaluation_loader
from runtime.single import SingleRuntime
from tests.processes import run_processes
from tests.small import small_config

NUM_IMAGES, NUM_LABELS = 45, 4
SEVERAL = {"loss": "SigmoidCELoss", "num_labels": NUM_LABELS}
SINGLE = {"num_labels": NUM_LABELS, "image_column": "image", "label_columns": ["label"]}


def write_table(root: Path, damaged: int = 0) -> Path:
    """Random films with one label and with several, of which the last is on none; the first `damaged` are no images."""
    generator = np.random.default_rng(3)
    root.mkdir(parents=True)
    rows = ["image,label,a,b,c,d"]
    for number in range(NUM_IMAGES):
        pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
        if number < damaged:
            (root / f"{number}.png").write_bytes(b"")
        bits = [*(generator.random(3) < 0.4).astype(int).tolist(), 0]
        rows.append(",".join(map(str, [f"{number}.png", generator.choice(["p", "q", "r", "s"]), *bits])))
    for name in ("train.csv", "validation.csv"):
        (root / name).write_text("\n".join(rows) + "\n")
    return root


def config_of(tmp_path: Path, damaged: int = 0, **keys: Any) -> Config:
    folder = tmp_path / f"data-{damaged}"
    path = folder if folder.exists() else write_table(folder, damaged)
    several = {"image_column": "image", "label_columns": ["a", "b", "c", "d"]} if "loss" in keys else {}
    return small_config(
        tmp_path, dataset="csv", dataset_path=str(path), eval_crop=1.0, threads_per_process=1, **several, **keys
    )


def result_of(runtime: Any, config: Config) -> EvalResult:
    source = open_source(config, "validation")
    assert source is not None
    return evaluate(runtime, evaluation_loader(config, source, runtime), config.loss)


def single_result(config: Config) -> EvalResult:
    return result_of(SingleRuntime(config, place_single(config), num_cores=1), config)


def pipeline_results(rank: int, configs: List[Config]) -> List[EvalResult]:
    """Of configs that differ in their labels alone."""
    from runtime.pipeline import PipelineRuntime

    runtime = PipelineRuntime(configs[0], place_pipeline(configs[0], machine.world_size(), 0, 1), rank, rank)
    results = [result_of(runtime, config) for config in configs]
    runtime.close()
    return results


def logits_of(config: Config) -> Tensor:
    """Of all validation images, without loader or evaluation loop."""
    runtime = SingleRuntime(config, place_single(config), num_cores=1)
    paths = [Path(str(config.dataset_path)) / f"{number}.png" for number in range(NUM_IMAGES)]
    images = torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in paths])
    logits = runtime.predict(images)
    assert logits is not None
    return logits


def labels_of(config: Config) -> np.ndarray:
    source = open_source(config, "validation")
    assert source is not None
    return source.labels


def test_the_confusion_matrix_and_the_most_confident_mistakes_are_scikit_learns_and_the_softmaxs(tmp_path: Any) -> None:
    config = config_of(tmp_path, **SINGLE)
    logits, labels = logits_of(config), labels_of(config)
    result = single_result(config)
    answers = logits.argmax(1).numpy()
    assert result.outcome.confusion is not None
    assert result.outcome.confusion.dtype == np.int64
    assert result.outcome.confusion.tolist() == confusion_matrix(labels, answers, labels=range(NUM_LABELS)).tolist()
    probabilities = logits.double().softmax(1).numpy()
    mistakes = sorted(np.flatnonzero(answers != labels), key=lambda sample: -probabilities[sample].max())
    assert len(mistakes) > MOST_MISTAKES
    assert [one.sample for one in result.outcome.wrong] == mistakes[:MOST_MISTAKES]
    for one in result.outcome.wrong:
        assert (one.label, one.answer) == (labels[one.sample], answers[one.sample])
        assert one.probability == pytest.approx(probabilities[one.sample].max(), rel=1e-6)
    assert result.auc is None


def test_areas_of_several_labels_are_scikit_learns_and_mistakes_the_wrong_labels(tmp_path: Any) -> None:
    config = config_of(tmp_path, **SEVERAL)
    logits, labels = logits_of(config).numpy(), labels_of(config)
    result = single_result(config)
    assert [one.name for one in result.outcome.classes] == ["a", "b", "c", "d"]
    areas = [one.auc for one in result.outcome.classes]
    assert areas[:3] == pytest.approx(roc_auc_score(labels[:, :3], logits[:, :3], average=None), abs=1e-12)
    assert areas[3] is None
    assert result.auc == pytest.approx(roc_auc_score(labels[:, :3], logits[:, :3]), abs=1e-12)
    assert [one.num_positive for one in result.outcome.classes] == labels.sum(axis=0).tolist()
    confidence = np.abs(logits) * ((logits > 0) != labels)
    best = np.argsort(-confidence.max(axis=1), kind="stable")[:MOST_MISTAKES]
    assert [one.sample for one in result.outcome.wrong] == best.tolist()
    for one in result.outcome.wrong:
        assert one.label == confidence[one.sample].argmax()
        assert one.answer == 1 - labels[one.sample, one.label]
        assert one.probability == pytest.approx(1 / (1 + np.exp(-confidence[one.sample].max())), rel=1e-6)


@pytest.mark.slow
@pytest.mark.pipeline
def test_stages_and_replicas_find_what_a_single_device_finds(tmp_path: Any) -> None:
    """Two stages of two replicas: 45 images are no whole number of batches, and two of them cannot be read."""
    keys = {"layers_per_ipu": [2, 2], "replication_factor": 2, "bad_images": "skip", "damaged": 2}
    configs = [config_of(tmp_path, **keys, **labels) for labels in (SINGLE, SEVERAL)]
    expected = [single_result(config) for config in configs]
    assert [result.num_samples for result in expected] == [NUM_IMAGES - 2] * 2
    for results in run_processes(4, pipeline_results, configs):
        for actual, wanted in zip(results, expected):
            assert_same(actual, wanted)


def assert_same(actual: EvalResult, expected: EvalResult) -> None:
    assert (actual.num_samples, actual.top1) == (expected.num_samples, expected.top1)
    assert actual.auc == expected.auc
    ours, theirs = actual.outcome, expected.outcome
    assert (ours.confusion is None) == (theirs.confusion is None)
    assert theirs.confusion is None or np.array_equal(ours.confusion, theirs.confusion)
    for one, other in zip(ours.classes, theirs.classes):
        assert (one.name, one.auc, one.curve) == (other.name, other.auc, other.curve)
        assert one.threshold == (None if other.threshold is None else pytest.approx(other.threshold, rel=1e-6))
    assert [one[1:] for one in ours.wrong] == [one[1:] for one in theirs.wrong]
    assert [one.probability for one in ours.wrong] == pytest.approx([one.probability for one in theirs.wrong], rel=1e-6)


@pytest.mark.parametrize("keys", [SINGLE, SEVERAL], ids=["one label", "several"])
def test_images_that_cannot_be_read_and_padding_never_count(tmp_path: Any, keys: Dict[str, Any]) -> None:
    config = config_of(tmp_path, damaged=5, bad_images="skip", **keys)
    outcome = single_result(config).outcome
    whole = config_of(tmp_path, **keys)
    logits, labels = logits_of(whole)[5:].numpy(), labels_of(whole)[5:]
    assert not {one.sample for one in outcome.wrong}.intersection(range(5))
    if outcome.confusion is not None:
        assert np.array_equal(outcome.confusion, confusion_matrix(labels, logits.argmax(1), labels=range(NUM_LABELS)))
        assert all(one.answer == logits[one.sample - 5].argmax() != one.label for one in outcome.wrong)
    else:
        assert [one.num_positive for one in outcome.classes] == labels.sum(axis=0).tolist()
        areas = roc_auc_score(labels[:, :3], logits[:, :3], average=None)
        assert [one.auc for one in outcome.classes[:3]] == pytest.approx(areas, abs=1e-12)


def test_mistakes_come_with_their_files_names_and_pictures(tmp_path: Any) -> None:
    for keys in (SINGLE, SEVERAL):
        config = config_of(tmp_path, **keys)
        source = open_source(config, "validation")
        assert source is not None
        runtime = SingleRuntime(config, place_single(config), num_cores=1)
        loader = evaluation_loader(config, source, runtime)
        result = evaluate(runtime, loader, config.loss)
        findings = findings_of(result.outcome, loader, step=7)
        assert findings.step == 7
        names = class_names(loader)
        for mistake, wrong in zip(findings.mistakes, result.outcome.wrong):
            assert mistake.name.endswith(f"/{wrong.sample}.png")
            assert np.array_equal(mistake.picture, np.array(Image.open(mistake.name)))
            if keys is SEVERAL:
                pair = [f"no {names[wrong.label]}", names[wrong.label]]
                assert [mistake.wanted, mistake.answered] == (pair if wrong.answer == 0 else pair[::-1])[::-1]
            else:
                assert (mistake.wanted, mistake.answered) == (names[wrong.label], names[wrong.answer])


def test_a_confusion_matrix_of_very_many_classes_is_left_out(tmp_path: Any) -> None:
    many = config_of(tmp_path, **{**SINGLE, "num_labels": MOST_CONFUSED + 1})
    outcome = single_result(many).outcome
    assert outcome.confusion is None
    assert len(outcome.wrong) == MOST_MISTAKES


def test_scores_too_many_for_memory_are_not_kept(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tmp_path, **SEVERAL)
    monkeypatch.setattr("evaluation.findings.MOST_SCORES", NUM_IMAGES * NUM_LABELS - 1)
    result = single_result(config)
    assert result.auc is None
    assert result.outcome.wrong == ()


def test_classes_without_a_name_have_a_number(tmp_path: Any) -> None:
    config = small_config(tmp_path)
    source = open_source(config, "train")
    assert source is not None
    loader = evaluation_loader(config, source, SingleRuntime(config, place_single(config), num_cores=1))
    names: List[str] = list(class_names(loader))
    assert names == [f"class {label}" for label in range(5)]
    assert gather_for(loader, config.loss) is not None
