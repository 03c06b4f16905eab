"""Scalars, pictures and settings for TensorBoard, written with its own event writer.

`torch.utils.tensorboard` writes the same files, but takes ten times as long to import (3 s).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

import numpy as np

from reporting import hparams, pictures
from reporting.base import Reporter
from reporting.records import Findings, ModelViews, RunRecord, StepRecord, Summary, ValidationRecord

MOST_OF_THE_TIME = 0.0025  # that drawing confusions and mistakes may take of the run's
FIRST_GUESS_SECONDS = 0.2


class TensorBoardReporter(Reporter):
    """Writes an event file into `folder`. TensorBoard hides what earlier files there hold after `resumed_step`.

    Raises ImportError where the package is missing.
    """

    def __init__(self, folder: Path, resumed_step: int = 0) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._undrawn: Dict[str, Findings] = {}  # the newest of trained and of averaged weights
        self._begun, self._drawing_seconds, self._seconds_of_last = time.perf_counter(), 0.0, FIRST_GUESS_SECONDS
        self._event_pb2 = event_pb2
        self._summary_pb2 = summary_pb2
        self._writer = EventFileWriter(str(folder), flush_secs=10)
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.add_event(event_pb2.Event(wall_time=time.time(), step=resumed_step + 1, session_log=start))
        self._class_names: Tuple[str, ...] = ()

    def began(self, record: RunRecord) -> None:
        self._class_names = record.class_names
        self._add(0, [hparams.session_start(record.settings)])

    def step(self, record: StepRecord) -> None:
        scalars = {
            "train/loss": record.loss,
            "train/accuracy": record.accuracy,
            "train/learning_rate": record.learning_rate,
            "train/grad_norm": record.grad_norm,
            "train/loss_scale": record.loss_scale,
            "speed/images_per_second": record.images_per_second,
            "speed/step_seconds": record.step_seconds,
            "speed/data_wait_seconds": record.data_wait_seconds,
        }
        self._write(record.step, scalars)

    def validated(self, record: ValidationRecord) -> None:
        group = _group(record.averaged)
        scores = {f"{group}/{name}": share for name, share in record.scores().items()}
        self._write(record.step, {f"{group}/loss": record.loss, **scores})
        self._writer.flush()

    def found(self, findings: Findings) -> None:
        group = _group(findings.averaged)
        self._write(findings.step, {f"{group}_auc/{result.name}": result.auc for result in findings.classes})
        self._undrawn[group] = findings
        if self._drawing_seconds + self._seconds_of_last <= MOST_OF_THE_TIME * (time.perf_counter() - self._begun):
            self._draw_findings()

    def _draw_findings(self) -> None:
        """The newest ones; those of other validations go undrawn where they come too fast."""
        begun = time.perf_counter()
        for group, findings in self._undrawn.items():
            if findings.confusion is not None:
                matrix = pictures.confusion_picture(findings.confusion, self._class_names)
                self._picture(findings.step, f"{group}/confusion", matrix)
            mistakes = pictures.mistakes_sheet(findings.mistakes)
            if mistakes is not None:
                self._picture(findings.step, f"{group}/mistakes", mistakes)
        self._undrawn.clear()
        self._writer.flush()
        self._seconds_of_last = time.perf_counter() - begun
        self._drawing_seconds += self._seconds_of_last

    def viewed(self, views: ModelViews) -> None:
        attention = pictures.attention_sheet(views.attentions)
        if attention is not None:
            self._picture(views.step, "model/attention", attention)
        if views.position_similarity is not None:
            similarity = pictures.similarity_picture(views.position_similarity)
            self._picture(views.step, "model/position_similarity", similarity)
        self._writer.flush()

    def finished(self, summary: Summary) -> None:
        if not summary.interrupted:
            self._add(0, [hparams.session_end()])
        self._writer.flush()

    def close(self) -> None:
        self._draw_findings()
        self._writer.close()

    def _write(self, step: int, scalars: Mapping[str, Optional[float]]) -> None:
        known = {tag: value for tag, value in scalars.items() if value is not None}
        self._add(step, [self._summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in known.items()])

    def _picture(self, step: int, tag: str, picture: np.ndarray) -> None:
        height, width = picture.shape[:2]
        image = self._summary_pb2.Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=pictures.png(picture)
        )
        self._add(step, [self._summary_pb2.Summary.Value(tag=tag, image=image)])

    def _add(self, step: int, values: List[Any]) -> None:
        summary = self._summary_pb2.Summary(value=values)
        self._writer.add_event(self._event_pb2.Event(wall_time=time.time(), step=step, summary=summary))


def _group(averaged: bool) -> str:
    return "validation_averaged" if averaged else "validation"
