"""Which parameters a run trains. Those that it does not keep their weights; `requires_grad` says so to everything else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Tuple

from models.stages import unit_of

if TYPE_CHECKING:
    from torch.nn import Module

    from config import Config
    from models.vit import VisionTransformer

HEADS = ("head.", "head_dist.")


def is_frozen(name: str, config: Config) -> bool:
    """Whether a parameter is not trained: fixed positions; all but the classifier's with `linear_probe`; the first units' with
    `freeze_layers`.
    """
    if name == "pos_embed" and config.pos_embed == "sincos2d":
        return True
    if config.linear_probe:
        return not name.startswith(HEADS)
    return unit_of(name) in frozen_units(config)


def frozen_units(config: Config) -> Tuple[str, ...]:
    """The units, in order, through which no gradient goes."""
    count = config.num_hidden_layers if config.linear_probe else config.freeze_layers
    if count is None:
        return ()
    return ("embed", *(f"block {index}" for index in range(count)))


def freeze(model: VisionTransformer, config: Config) -> VisionTransformer:
    """The same model (or stage), with `requires_grad` False for what the config freezes."""
    for name, parameter in model.named_parameters():
        if is_frozen(name, config):
            parameter.requires_grad_(False)
    return model


def is_trained(module: Module) -> bool:
    """Whether any parameter of a module, or of a stage, changes in the run."""
    return any(parameter.requires_grad for parameter in module.parameters())
