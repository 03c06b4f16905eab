"""A saved model, opened: the same whatever format it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Iterable, Mapping, Protocol, Tuple

from torch import Tensor

from weights.card import ModelCard


class NamedTensors(Protocol):
    """Tensors under timm's parameter names; what lies in files is read only when asked for."""

    @property
    def shapes(self) -> Mapping[str, Tuple[int, ...]]: ...

    def read(self, names: Iterable[str]) -> Dict[str, Tensor]:
        """The named tensors. Raises KeyError for a name that is not there, UserError for a file that cannot be read."""
        ...


@dataclass(frozen=True)
class SavedModel:
    """Weights and what is known of the model. `source` is what the user named, `kind` the format in words."""

    source: str
    kind: str
    card: ModelCard
    weights: NamedTensors
    notes: Tuple[str, ...] = ()  # what a user should know of how it was read


@dataclass(frozen=True)
class TensorsInMemory:
    """`NamedTensors` that are at hand."""

    tensors: Mapping[str, Tensor]

    @property
    def shapes(self) -> Mapping[str, Tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def read(self, names: Iterable[str]) -> Dict[str, Tensor]:
        return {name: self.tensors[name] for name in names}
