"""What a run reports (four records) and who listens to it (a reporter)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Optional


@dataclass(frozen=True)
class StepRecord:
    """One host step. `loss` and `accuracy` (0 to 1) are means over all of the step's samples; any figure may be NaN."""

    step: int  # host steps completed, this one included: the first is 1
    num_steps: int
    epoch: float
    num_epochs: float
    learning_rate: float  # the one that this step used
    loss: float
    accuracy: float
    images_per_second: float
    step_seconds: float  # waiting for data included
    data_wait_seconds: float
    grad_norm: Optional[float] = None  # before clipping; None where it was not computed
    loss_scale: float = 1.0  # what the loss was multiplied by in the backward pass
    warming_up: bool = False  # one of the first steps, which mean throughput leaves out


@dataclass(frozen=True)
class ValidationRecord:
    """One pass over the whole validation set. `top1` and `top5` are shares from 0 to 1.

    Where images have several labels (`multi_label`), these are the shares of labels and of whole images that are right.
    """

    step: int
    epoch: float
    loss: float
    top1: float
    top5: float
    num_samples: int
    seconds: float
    is_best: bool = False
    multi_label: bool = False
    averaged: bool = False  # of the averaged weights (ema_decay), rather than of those that are trained

    def scores(self) -> Dict[str, float]:
        """The two shares by their names."""
        names = ("labels_right", "images_right") if self.multi_label else ("top1", "top5")
        return dict(zip(names, (self.top1, self.top5)))


@dataclass(frozen=True)
class SaveRecord:
    """A step that is on the disk. `stall_seconds` is what training waited for it, `seconds` what it took in all."""

    step: int
    stall_seconds: float
    seconds: float
    num_bytes: int


@dataclass(frozen=True)
class Summary:
    """How a run ended. What is not known is None; `interrupted` names what stopped the run early, e.g. "Ctrl-C"."""

    steps: int
    seconds: float
    images_per_second: Optional[float] = None  # mean after the first steps
    data_wait_share: Optional[float] = None  # of their time
    best_top1: Optional[float] = None
    best_step: Optional[int] = None
    multi_label: bool = False
    run_folder: Optional[str] = None
    next_command: Optional[str] = None
    interrupted: Optional[str] = None


class Reporter:
    """Hears what happens in a run. A subclass overrides what it wants to hear; the rest passes unheard.

    Only the main process of a run has reporters. `close` may be called more than once, also after an exception.
    """

    def note(self, text: str) -> None:
        """Something that the user should read once."""

    def step(self, record: StepRecord) -> None:
        """A host step has ended."""

    def validated(self, record: ValidationRecord) -> None:
        """A validation pass has ended."""

    def saved(self, record: SaveRecord) -> None:
        """A step has come onto the disk, perhaps some steps after it was made."""

    def finished(self, summary: Summary) -> None:
        """The run has ended in order: all steps done, or stopped early on request."""

    def close(self) -> None:
        """Nothing more will come: write out what is pending."""
