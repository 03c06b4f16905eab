"""What steps weights from gradients: the interface that the weight update calls, whatever the weights are stored in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Dict, Mapping, Optional, Union

from torch import Tensor

Number = Union[float, Tensor]  # or a scalar on the device, which nobody waits for


class Stepper(ABC):
    """An optimiser over named parameters."""

    can_skip = False  # whether `step` takes a factor and `is_skipped` on the device

    @abstractmethod
    def step(
        self, gradients: Dict[str, Tensor], factor: Number, learning_rate: float, is_skipped: Optional[Tensor] = None
    ) -> None:
        """One update from `factor` times the gradients, by parameter name; these are used up.

        With `is_skipped`, a float32 scalar on the device, no update is made where it is 1; then `was_skipped` is to be called.
        """

    def was_skipped(self) -> None:  # noqa: B027 (most have nothing to put right)
        """Puts right what the host could not know when it launched an update that the device then left out."""

    @abstractmethod
    def state(self) -> Dict[str, Tensor]:
        """`<parameter name>.<state name>` -> tensor."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Puts back a state, for those of its parameters that are here."""
