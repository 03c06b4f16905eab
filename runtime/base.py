"""The one seam: what training, checkpoints and reports know of where and how the model runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ContextManager, Dict, List, Mapping, NamedTuple, Optional, Protocol, Tuple

from torch import Tensor

from batch import DataShare, HostBatch, HostBatches

if TYPE_CHECKING:
    from config import Config


@dataclass(frozen=True)
class StepResult:
    """What one host step gave, the same in every process.

    `loss` and `accuracy` are means over the host step's samples. `grad_norm` is the global L2 norm of the last weight
    update's reduced gradient, before clipping and without the loss scale; None where no gradient is kept. `loss_scale` is the
    factor that the last weight update's loss was multiplied by. `skipped_updates` counts updates left out for a gradient that
    was not finite, `nonfinite` says in words whose it was, and `must_stop` that the run's policy is to end there.
    """

    loss: float
    accuracy: float
    grad_norm: Optional[float]
    skipped_updates: int
    loss_scale: float = 1.0
    nonfinite: str = ""
    must_stop: bool = False


class Piece(NamedTuple):
    """A piece of a process's work in a weight update; seconds by the clock of its host."""

    part: int  # of the model: see `placement.Placement`
    kind: str  # "forward", "backward", "update" or "data"
    micro_batch: int  # of the update, counted over all replicas; -1 where it belongs to none
    begin: float
    end: float


class Trace(NamedTuple):
    """What a process did in a weight update. `origin` is when it began, by its host's clock: together with all others."""

    host: int
    where: str  # the device, in words
    origin: float
    pieces: List[Piece]


class Runtime(Protocol):
    """A model, its optimiser and the device or processes that they live on.

    All processes of a run call the same methods in the same order. Tensors are given and taken on the CPU, but for weights and
    optimiser state.
    """

    config: Config  # as it is run: with a precision, where it had `auto`
    is_main: bool  # the one process that prints and writes reports
    share: DataShare  # the part of each host batch that this process needs
    eval_share_index: int  # which share of the validation set this process evaluates…
    eval_num_shares: int  # …of how many
    eval_batch_size: int
    notes: List[str]  # what a user should know of how the model is run here
    backend: str  # "torch" or "ipu": whose optimiser state it reads
    makes_every_update: bool  # whatever is in the gradient: weights may stop being finite
    num_parts: int  # pieces that the model's weights are stored in
    num_optimizer_parts: int  # pieces that the optimiser's state is stored in
    loss_scale_factor: float  # of automatic loss scaling: saved with a step and put back

    def prepare(self, evaluates: bool, multi_label: bool = False) -> List[str]:
        """Does what takes long before the first step, such as compiling; gives notes for the user.

        `evaluates`: `predict` will be called, too; `multi_label`: images may have several labels.
        """
        ...

    def feed(self, batches: HostBatches) -> HostBatches:
        """The batches, in order, as `train_step` is to have them; some runtimes read ahead of the steps, in another thread."""
        ...

    def train_step(self, batch: HostBatch, learning_rate: float, first_update: int) -> StepResult:
        """One host step: `device_iterations` weight updates at one learning rate; `first_update` is the first one's number."""
        ...

    def trace_next_step(self) -> None:
        """Lets the first weight update of the next host step be measured piece by piece. Its numbers are the same."""
        ...

    def trace(self) -> Optional[Trace]:
        """What this process did in that update; None where the device does not tell."""
        ...

    def peak_memory(self) -> Tuple[int, str]:
        """The most bytes that this process has held so far, and of what."""
        ...

    def predict(self, images: Optional[Tensor]) -> Optional[Tensor]:
        """Logits [eval_batch_size, K] in evaluation mode, in the processes that own the head; None in the others."""
        ...

    def averaged(self) -> ContextManager[None]:
        """Context in which `predict` uses the averaged weights (`ema_decay`)."""
        ...

    def weights(self, averaged: bool = False) -> Dict[int, Dict[str, Tensor]]:
        """This process's parts (part number -> parameter name -> tensor) that it is the one to save; or their averages.

        On the device, and the next step changes them.
        """
        ...

    def load_weights(self, weights: Mapping[str, Tensor], averages: Optional[Mapping[str, Tensor]] = None) -> None:
        """Loads those of this process's parameters that `weights` names; the rest keep their values.

        Averages go on from `averages`, else they begin anew with the weights.
        """
        ...

    def parameter_names(self) -> Dict[str, Any]:
        """Names and shapes of the parameters that this process owns."""
        ...

    def optimizer_state(self) -> Dict[int, Dict[str, Tensor]]:
        """As `weights`, for the optimiser: `<parameter name>.<state name>` -> tensor."""
        ...

    def load_optimizer_state(self, state: Mapping[str, Tensor]) -> None: ...

    def sum_totals(self, totals: Tensor) -> Tensor:
        """Sum of a small float64 tensor over all processes."""
        ...

    def from_first_stage(self, values: Optional[Tensor], size: int) -> Tensor:
        """int64 [size] that the process with the first stage of this replica gives, in all processes of the replica."""
        ...

    def maximum(self, value: int) -> int:
        """The largest of the processes' values."""
        ...

    def from_main(self, value: Any) -> Any:
        """The main process's value, in every process."""
        ...

    def gather(self, value: Any) -> List[Any]:
        """Every process's value, in every process."""
        ...

    def close(self) -> None:
        """Shuts down in order; nothing may be called afterwards."""
        ...
