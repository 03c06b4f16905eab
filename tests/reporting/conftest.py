from __future__ import annotations

from typing import Any, Callable

import pytest

from reporting.records import StepRecord, ValidationRecord


@pytest.fixture
def step_record() -> Callable[..., StepRecord]:
    """Makes a StepRecord, with the given fields in place of the usual ones."""

    def make(**fields: Any) -> StepRecord:
        usual = {
            "step": 55,
            "num_steps": 440,
            "epoch": 1.25,
            "num_epochs": 40.0,
            "learning_rate": 0.001234,
            "loss": 1.234,
            "accuracy": 0.912,
            "images_per_second": 123.4,
            "step_seconds": 0.123,
            "data_wait_seconds": 0.0015,
        }
        return StepRecord(**{**usual, **fields})

    return make


@pytest.fixture
def validation_record() -> Callable[..., ValidationRecord]:
    """Makes a ValidationRecord, with the given fields in place of the usual ones."""

    def make(**fields: Any) -> ValidationRecord:
        usual = {
            "step": 55,
            "epoch": 1.25,
            "loss": 0.123,
            "top1": 0.990123,
            "top5": 0.999,
            "num_samples": 360,
            "seconds": 0.4,
        }
        return ValidationRecord(**{**usual, **fields})

    return make
