"""The optimiser of a config: parameter groups, torch's fastest equal implementation, and its state under parameter names."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Type

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optim.lamb import LAMB
from optim.schedules import learning_rate_at

if TYPE_CHECKING:
    from config import Config


def learning_rate_of(config: Config, step: int, num_steps: int) -> float:
    """Learning rate of host step `step` (from 0)."""
    return learning_rate_at(
        step,
        base=config.learning_rate or 0.0,
        schedule=config.lr_schedule,
        warmup_steps=config.warmup_steps,
        num_steps=num_steps,
    )


def parameter_groups(parameters: Mapping[str, nn.Parameter], weight_decay: float) -> List[Dict[str, Any]]:
    """Two groups, in the order of `parameters`: those that decay, and the 1-D ones (biases, norms), which do not."""
    decaying = [parameter for parameter in parameters.values() if parameter.dim() > 1]
    others = [parameter for parameter in parameters.values() if parameter.dim() <= 1]
    groups = [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(config: Config, parameters: Mapping[str, nn.Parameter]) -> Optimizer:
    """SGD (momentum), Adam (decay as L2), AdamW (decoupled decay) or LAMB, over named parameters on one device."""
    groups = parameter_groups(parameters, config.weight_decay)
    assert config.learning_rate is not None, "checked where the config is read"
    lr = config.learning_rate
    if config.optimizer == "SGD":
        return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, **_fastest(torch.optim.SGD))
    if config.optimizer == "LAMB":
        for group in groups:
            group["max_weight_norm"] = config.max_norm if group["params"][0].dim() > 1 else config.max_norm_bias
        return LAMB(groups, lr=lr, betas=config.adam_betas, eps=config.adam_eps, bias_correction=config.bias_correction)
    kind = torch.optim.Adam if config.optimizer == "Adam" else torch.optim.AdamW
    return kind(groups, lr=lr, betas=config.adam_betas, eps=config.adam_eps, **_fastest(kind))


def _fastest(kind: Type[Optimizer]) -> Dict[str, bool]:
    """One pass over memory instead of one per operation, where this torch has it (on CPUs from 2.4 on)."""
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    has_fused = "fused" in inspect.signature(kind).parameters and version >= (2, 4)
    return {"fused": True} if has_fused else {"foreach": True}


def optimizer_state(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> Dict[str, Tensor]:
    """The optimiser's state as `<parameter name>.<state name>` -> tensor; empty before the first update."""
    return {
        f"{name}.{key}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer_state(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]
) -> None:
    """Puts a state of `optimizer_state` back, for those of its parameters that are here."""
    by_parameter: Dict[str, Dict[str, Tensor]] = {}
    for full_name, value in state.items():
        name, key = full_name.rsplit(".", 1)
        by_parameter.setdefault(name, {})[key] = value
    # Step counters stay on the CPU, except under torch's fused optimisers, which want them beside the weights.
    is_fused = any(group.get("fused") for group in optimizer.param_groups)
    for name, parameter in parameters.items():
        device = parameter.device
        optimizer.state[parameter] = {
            key: value.to(device if is_fused or value.dim() else "cpu", copy=True)
            for key, value in by_parameter.get(name, {}).items()
        }
