"""Evaluates a checkpoint on the whole validation set: every sample once, whatever the batch size.

    python validation.py --config b16_cifar10_valid --pretrained-checkpoint output/b16_cifar10/step_1000
    python validation.py --config-file runs/digits-20260101-120000/config.yaml --pretrained-checkpoint runs/…/best
    python validation.py --config-file … --pretrained-checkpoint … --knn 20        the features, without the head

Starts a local process for every pipeline stage that the config plans. `--help` lists all keys.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, List, Optional, Sequence

import launch

if TYPE_CHECKING:
    from config import Config
    from dataset.base import Source
    from placement import Placement
    from weights.saved_model import SavedModel


def main(argv: Optional[Sequence[str]] = None) -> int:
    from allocation import allocation_table
    from compile_only import compile_only
    from config import load_config
    from dataset.class_balance import undefined_auc_notes
    from errors import UserError
    from evaluation.findings import findings_of
    from placement import follow_launcher, place

    config = follow_launcher(load_config("validation", argv))
    placement = place(config)
    if config.compile_only:
        return compile_only(config, placement)
    if not config.pretrained_checkpoint:
        raise UserError("validation.py needs weights: name a run or step folder with --pretrained-checkpoint.")

    from dataset.bad_images import BadImageLog
    from dataset.registry import open_source
    from evaluation.evaluate import evaluate
    from reporting.build import build_wandb
    from reporting.evaluation import EvaluationProgress
    from reporting.records import ValidationRecord
    from run_setup import evaluation_loader, opening_notes
    from runtime.build import build_runtime
    from weights.pretrained import class_notes, follow_checkpoint, load_pretrained, open_pretrained

    saved = open_pretrained(config)  # before data is looked for and workers join
    config, followed = follow_checkpoint(saved, config)
    source = open_source(config, "validation")
    if source is None:
        raise UserError(f"dataset = {config.dataset} has no validation images at dataset_path = {config.dataset_path}.")
    if config.knn is not None:
        return _judge_features(config, placement, saved, source, followed)
    runtime = build_runtime(config, placement)
    config = runtime.config
    bad_images = BadImageLog()
    loader = evaluation_loader(config, source, runtime, bad_images)
    notes = [allocation_table(config, placement), *opening_notes(config, placement, runtime)]
    notes += followed + load_pretrained(saved, config, runtime) + class_notes(saved, source.class_names)
    notes += undefined_auc_notes(source) + runtime.prepare(evaluates=True)
    with EvaluationProgress(
        len(source) // runtime.eval_num_shares, shown=runtime.is_main, quiet=config.quiet
    ) as progress:
        progress.opening(*notes)
        begun = time.perf_counter()
        result = evaluate(runtime, loader, config.loss, progress.advance)
        record = ValidationRecord(
            step=0,
            epoch=0.0,
            loss=result.loss,
            top1=result.top1,
            top5=result.top5,
            num_samples=result.num_samples,
            seconds=time.perf_counter() - begun,
            multi_label=result.multi_label,
            auc=result.auc,
        )
        progress.finish(record, result.outcome.classes)
        if result.num_samples < len(source):
            example = f", such as {bad_images.last}" if bad_images.last else ""
            progress.note(f"left out because they cannot be read: {len(source) - result.num_samples}{example}")
        for reporter in build_wandb(config, None, progress.note) if runtime.is_main else []:
            reporter.validated(record)
            reporter.found(findings_of(result.outcome, loader, record.step))
            reporter.close()
    runtime.close()
    return 0


def _judge_features(
    config: Config, placement: Placement, saved: SavedModel, validation: Source, notes: List[str]
) -> int:
    """k-NN accuracy of what the head reads."""
    import torch

    from allocation import allocation_table
    from dataset.registry import open_source
    from errors import UserError
    from evaluation.knn import check_enough, evaluate_knn
    from machine import local_rank
    from reporting.evaluation import EvaluationProgress
    from run_setup import evaluation_loader, opening_notes
    from runtime.build import build_runtime
    from runtime.devices import pick_device
    from weights.pretrained import load_pretrained
    from weights.writing import without_head

    assert config.knn is not None
    train = open_source(config, "train")
    if train is None:
        raise UserError(f"knn needs training images to be near to, and dataset = {config.dataset} has none.")
    if train.labels.ndim == 2:
        raise UserError("knn is for images of one class each, and these may have several labels. Leave --knn out.")
    check_enough(config.knn, len(train))
    features = config.model_copy(update={"num_labels": 0})
    runtime = build_runtime(features, placement)
    features = runtime.config
    loaders = [evaluation_loader(features, source, runtime) for source in (train, validation)]
    notes = [allocation_table(features, placement), *opening_notes(config, placement, runtime), *notes]
    notes += [*load_pretrained(without_head(saved), features, runtime), *runtime.prepare(evaluates=True)]
    on_ipu = placement.runtime == "ipu"
    with EvaluationProgress(
        (len(train) + len(validation)) // runtime.eval_num_shares, runtime.is_main, config.quiet
    ) as progress:
        progress.opening(*notes)
        top1, top5, count = evaluate_knn(
            runtime,
            *loaders,
            k=config.knn,
            temperature=config.knn_temperature,
            num_classes=max(train.num_classes, validation.num_classes),
            device=torch.device("cpu") if on_ipu else pick_device(config, local_rank()),
            progressed=progress.advance,
        )
        progress.finish_knn(config.knn, config.knn_temperature, top1, top5, count, len(train))
    runtime.close()
    return 0


if __name__ == "__main__":
    sys.exit(launch.run("validation", main))
