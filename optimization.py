"""The optimiser of a config: parameter groups, torch's fastest equal implementation or ours, and the learning rate."""

from __future__ import annotations

import inspect
import math
import re
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Tuple, Type

import torch
from torch import nn
from torch.optim import Optimizer

from models.stages import unit_of
from optim.eager import eager
from optim.lamb import LAMB
from optim.lion import Lion
from optim.muon import Muon
from optim.schedules import learning_rate_at

if TYPE_CHECKING:
    from config import Config

EMBEDDINGS = ("cls_token", "dist_token", "reg_token", "pos_embed")
_MATRIX = re.compile(r"blocks\.\d+\.(attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.weight")


def learning_rate_of(config: Config, step: int, num_steps: int) -> float:
    """Learning rate of host step `step` (from 0)."""
    return learning_rate_at(
        step,
        base=config.learning_rate or 0.0,
        schedule=config.lr_schedule,
        warmup_steps=warmup_steps_of(config, num_steps),
        num_steps=num_steps,
        least=config.min_learning_rate,
    )


def warmup_steps_of(config: Config, num_steps: int) -> int:
    """Of a run of `num_steps`; a share of them is rounded up, as Hugging Face's Trainer does."""
    return math.ceil(config.warmup_ratio * num_steps) if config.warmup_ratio else config.warmup_steps


def weight_decay_of(name: str, parameter: nn.Parameter, config: Config) -> float:
    """Biases and norms do not decay."""
    return config.weight_decay if is_matrix(name, parameter, config) else 0.0


def is_matrix(name: str, parameter: nn.Parameter, config: Config) -> bool:
    """Whether it is treated as weights are, not as biases and norms: two dimensions or more, tokens and positions by key."""
    return parameter.dim() > 1 and (config.decay_embeddings or name not in EMBEDDINGS)


def learning_rate_scale(name: str, config: Config) -> float:
    """Layer-wise learning-rate decay (arXiv 2106.08254): the head has the run's rate, each layer before it less by a factor.

    Layer 0 is the embedding, layer i + 1 block i.
    """
    units = ["embed", *(f"block {index}" for index in range(config.num_hidden_layers)), "head"]
    return config.layer_decay ** (len(units) - 1 - units.index(unit_of(name)))


def parameter_groups(parameters: Mapping[str, nn.Parameter], config: Config) -> List[Dict[str, Any]]:
    """Groups of parameters that are stepped alike, in the order of `parameters`."""
    groups: Dict[Tuple[Any, ...], Dict[str, Any]] = {}
    for name, parameter in parameters.items():
        settings = {
            "weight_decay": weight_decay_of(name, parameter, config),
            "lr_scale": learning_rate_scale(name, config),
            **_own_settings(name, parameter, config),
        }
        group = groups.setdefault(tuple(settings.values()), {"params": [], **settings})
        group["params"].append(parameter)
    return list(groups.values())


def _own_settings(name: str, parameter: nn.Parameter, config: Config) -> Dict[str, Any]:
    """What one kind of optimiser alone has."""
    if config.optimizer == "LAMB":
        return {"max_weight_norm": config.max_norm if is_matrix(name, parameter, config) else config.max_norm_bias}
    if config.optimizer == "Muon":
        matrix = _MATRIX.fullmatch(name)
        return {"num_matrices": 0 if matrix is None else 3 if matrix.group(1) == "attn.qkv" else 1}
    return {}


def build_optimizer(config: Config, parameters: Mapping[str, nn.Parameter]) -> Optimizer:
    """The config's optimiser over named float32 parameters on one device.

    SGD (momentum), Adam (decay as L2), AdamW (decoupled decay), LAMB, Lion or Muon. The rate of a group is its `lr_scale` times
    the one set before each step.
    """
    # torch wants a group, where nothing of a stage is trained, too.
    groups = parameter_groups(parameters, config) or [{"params": [], "lr_scale": 1.0}]
    assert config.learning_rate is not None, "checked where the config is read"
    lr, betas, eps = config.learning_rate, config.adam_betas, config.adam_eps
    if config.optimizer == "SGD":
        return eager(torch.optim.SGD)(groups, lr=lr, momentum=config.momentum, **_fastest(torch.optim.SGD))
    if config.optimizer == "LAMB":
        return LAMB(groups, lr=lr, betas=betas, eps=eps, bias_correction=config.bias_correction)
    if config.optimizer == "Lion":
        return Lion(groups, lr=lr, betas=betas)
    if config.optimizer == "Muon":
        return Muon(groups, lr=lr, momentum=config.momentum, betas=betas, eps=eps)
    kind = torch.optim.Adam if config.optimizer == "Adam" else torch.optim.AdamW
    return eager(kind)(groups, lr=lr, betas=betas, eps=eps, **_fastest(kind))


def _fastest(kind: Type[Optimizer]) -> Dict[str, bool]:
    """One pass over memory instead of one per operation, where this torch has it (on CPUs from 2.4 on)."""
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    has_fused = "fused" in inspect.signature(kind).parameters and version >= (2, 4)
    return {"fused": True} if has_fused else {"foreach": True}
