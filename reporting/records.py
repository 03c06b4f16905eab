"""What a run reports: records, and nothing that computes them or draws them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional, Tuple

import numpy as np


@dataclass(frozen=True)
class RunRecord:
    """What is going to run; told once, before the first step of a fresh or resumed run."""

    name: str  # of the config
    command: str  # "pretrain" or "finetune"
    settings: Mapping[str, Any]  # every key of the resolved config
    plan: str  # the device-allocation table
    runtime: str
    versions: Mapping[str, str]  # of Python, torch, this project's file formats …
    machine: str  # one line
    class_names: Tuple[str, ...]  # by label; empty where they are not known
    class_counts: Tuple[int, ...]  # training samples of each class
    num_train: int
    num_validation: int  # 0 without a validation set
    num_parameters: int
    num_steps: int
    multi_label: bool = False
    resumed_step: int = 0
    given: Tuple[str, ...] = ()  # keys of `settings` that the config file or a flag sets


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
    seconds: float  # pictures and figures for reports left out
    is_best: bool = False
    multi_label: bool = False
    averaged: bool = False  # of the averaged weights (ema_decay), rather than of those that are trained

    def scores(self) -> Dict[str, float]:
        """The two shares by their names."""
        names = ("labels_right", "images_right") if self.multi_label else ("top1", "top5")
        return dict(zip(names, (self.top1, self.top5)))


@dataclass(frozen=True)
class ClassResult:
    """How well one label of a multi-label set is told from the rest, over a whole validation pass.

    Where it has no positive or no negative sample there is no curve, and `auc` and `threshold` are None.
    """

    name: str
    num_positive: int
    num_negative: int
    auc: Optional[float] = None  # area under the ROC curve
    threshold: Optional[float] = None  # probability with the largest sensitivity + specificity - 1 (Youden's J)
    sensitivity: Optional[float] = None  # there
    specificity: Optional[float] = None
    curve: Tuple[Tuple[float, float], ...] = ()  # (1 - specificity, sensitivity), rising, at most 200 points


@dataclass(frozen=True)
class Mistake:
    """A validation sample that was answered wrongly."""

    index: int  # in the validation set
    name: str  # of its file, or what else tells it apart; may hold any character
    wanted: str
    answered: str
    probability: float  # of the answer
    picture: Optional[np.ndarray] = None  # uint8 [H, W, 3], as the model sees it


@dataclass(frozen=True)
class Findings:
    """What a validation pass shows beyond its scores; told after its record."""

    step: int
    averaged: bool = False
    confusion: Optional[np.ndarray] = None  # int64 [K, K], rows: labels, columns: answers; None with several labels
    classes: Tuple[ClassResult, ...] = ()  # where images have several labels
    mistakes: Tuple[Mistake, ...] = ()  # the most confident first


@dataclass(frozen=True)
class Span:
    """One piece of a process's work in a measured step."""

    row: int  # of `Timeline.rows`
    kind: str  # "forward", "backward", "update", "data" or "send"
    micro_batch: int  # -1 where it belongs to none
    begin: float  # seconds since the step began anywhere
    end: float


@dataclass(frozen=True)
class Timeline:
    """Who computed which micro-batch when, in one weight update."""

    step: int
    rows: Tuple[str, ...]  # a stage of a process each: what it is and where it runs
    spans: Tuple[Span, ...]
    schedule: str
    bubble: Optional[float] = (
        None  # measured: idle share of all rows between the first forward and the last backward pass
    )
    expected_bubble: Optional[float] = None  # by the schedule's formula
    is_measured: bool = True  # False: as planned, where a runtime does not tell
    num_left_out: int = 0  # spans of the same update that begin later than those that are here


@dataclass(frozen=True)
class ProcessMemory:
    """The most memory that a process has held so far."""

    name: str  # rank, stage and device
    num_bytes: int
    kind: str  # "GPU memory in tensors" or "resident memory of the process", in words


@dataclass(frozen=True)
class MemoryRecord:
    step: int
    processes: Tuple[ProcessMemory, ...]


@dataclass(frozen=True)
class AttentionView:
    """Where the model looked in one picture, as it sees it; both uint8 [H, W, 3]."""

    name: str
    wanted: str
    answered: str
    probability: float
    picture: np.ndarray
    overlay: np.ndarray


@dataclass(frozen=True)
class ModelViews:
    """Pictures of what the weights of a step have learned."""

    step: int
    attentions: Tuple[AttentionView, ...] = ()
    # Cosine similarity of the position embeddings, float32 [rows, columns, rows, columns]
    position_similarity: Optional[np.ndarray] = None


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
