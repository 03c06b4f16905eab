"""Findings and views of a toy run, for the listeners' tests."""

from __future__ import annotations

import numpy as np

from reporting.records import AttentionView, ClassResult, Findings, Mistake, ModelViews, RunRecord

PICTURE = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
CONFUSION = np.array([[5, 1, 0], [0, 6, 0], [2, 0, 4]])
HOSTILE = "<img src=x onerror=alert(1)>\n%s \u202e.png"
SIMILARITY = np.eye(4, dtype=np.float32).reshape(2, 2, 2, 2)


def findings(step: int = 2) -> Findings:
    return Findings(
        step=step,
        confusion=CONFUSION,
        mistakes=(
            Mistake(3, HOSTILE, "two", "zero", 0.91, PICTURE),
            Mistake(4, "b.png", "two", "zero", 0.9, PICTURE),
            Mistake(5, "no picture", "zero", "one", 0.8),
        ),
    )


def multi_label_findings(step: int = 2) -> Findings:
    return Findings(
        step=step,
        classes=(
            ClassResult(
                "Hernia", 4, 16, auc=0.75, threshold=0.3, sensitivity=0.8, specificity=0.7, curve=((0.0, 0.0),)
            ),
            ClassResult("Mass", 0, 20),
        ),
    )


def views(step: int = 2) -> ModelViews:
    return ModelViews(
        step=step,
        attentions=(AttentionView("a.png", "one", "two", 0.6, PICTURE, PICTURE[::-1]),),
        position_similarity=SIMILARITY,
    )


def run_record(**settings: object) -> RunRecord:
    return RunRecord(
        name="toy",
        command="pretrain",
        settings={"config": "toy", "learning_rate": 0.001, "mixup": False, "layers_per_ipu": [1, 2], **settings},
        plan="",
        runtime="single",
        versions={"Python": "3.11"},
        machine="",
        class_names=("zero", "one", "two"),
        class_counts=(10, 10, 10),
        num_train=30,
        num_validation=18,
        num_parameters=99,
        num_steps=2,
    )
