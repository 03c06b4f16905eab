"""Foreign checkpoints under timm's parameter names: what is made of which foreign tensors, every one of them accounted for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Collection, Dict, Iterable, Mapping, NamedTuple, Tuple

import torch
from torch import Tensor

from errors import UserError, nearest
from weights.saved_model import NamedTensors


def stacked(*parts: Tensor) -> Tensor:
    """Tensors under each other, as query, key and value are in one; a single one as it is."""
    return torch.cat(parts) if len(parts) > 1 else parts[0]


class Recipe(NamedTuple):
    """The foreign tensors that one parameter is made of, and how."""

    names: Tuple[str, ...]
    make: Callable[..., Tensor] = stacked


@dataclass(frozen=True)
class Translated:
    """`NamedTensors` made of foreign ones when they are asked for."""

    foreign: NamedTensors
    recipes: Mapping[str, Recipe]
    shapes: Mapping[str, Tuple[int, ...]]

    def read(self, names: Iterable[str]) -> Dict[str, Tensor]:
        recipes = {name: self.recipes[name] for name in names}
        tensors = self.foreign.read({part for recipe in recipes.values() for part in recipe.names})
        return {name: recipe.make(*(tensors[part] for part in recipe.names)) for name, recipe in recipes.items()}


def translate(
    source: str, foreign: NamedTensors, recipes: Mapping[str, Recipe], ignored: Collection[str] = ()
) -> Translated:
    """Raises UserError for a tensor that a recipe needs and the checkpoint lacks, and for one that no recipe uses.

    `ignored`: foreign names that the model does without, as the format's reader knows.
    """
    used = {part for recipe in recipes.values() for part in recipe.names}
    missing = sorted(used.difference(foreign.shapes))
    if missing:
        hint = nearest(missing[0], foreign.shapes)
        raise UserError(
            f"{source} lacks {missing[0]}.{hint}\n       Its format asks for it: use a complete checkpoint."
        )
    surplus = sorted(set(foreign.shapes).difference(used, ignored))
    if surplus:
        raise UserError(
            f"{source} holds {surplus[0]}, which this ViT has no place for.\n"
            "       Its logits would not be those of the checkpoint: use one without it."
        )
    return Translated(foreign, recipes, {name: _shape(source, recipe, foreign) for name, recipe in recipes.items()})


def _shape(source: str, recipe: Recipe, foreign: NamedTensors) -> Tuple[int, ...]:
    """The shape of what a recipe makes; found by making it of nothing."""
    parts = [torch.empty(foreign.shapes[part], device="meta") for part in recipe.names]
    try:
        return tuple(recipe.make(*parts).shape)
    except (RuntimeError, IndexError, ValueError) as error:
        shapes = ", ".join(f"{part} {list(foreign.shapes[part])}" for part in recipe.names)
        raise UserError(
            f"{source} has tensors of shapes that no ViT has: {shapes}.\n       Use another one."
        ) from error
