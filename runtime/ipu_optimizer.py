"""The config's optimiser as PopTorch's, and its state under our names.

PopTorch keeps the state on the IPU, in two flat dictionaries (`ipu_state`: moments, steps, the loss scale's factor; `ipu_param`:
rates and factors) with keys such as `Accl1___<prefix><parameter>`. Other runtimes' states are of other kinds: neither
loads into the other.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Tuple

import poptorch
import torch
from torch import Tensor, nn

from optimization import parameter_groups
from runtime.precision import precision_of

if TYPE_CHECKING:
    from config import Config

SECTIONS = ("ipu_state", "ipu_param")
FACTOR = "lossScaleUpdateFactor"
_ESCAPES = {".": "%2E", "%": "%25"}


def build_ipu_optimizer(config: Config, parameters: Mapping[str, nn.Parameter], learning_rate: float) -> Any:
    """Every attribute is given: PopTorch makes constants of those that are not, and a constant cannot follow a schedule."""
    groups, scales = [], []
    for group in parameter_groups(parameters, config):
        scales.append(group.pop("lr_scale"))
        groups.append({**group, "lr": learning_rate * scales[-1]})
    precision = precision_of(config)
    keys: Dict[str, Any] = {
        "lr": learning_rate,
        "weight_decay": float(config.weight_decay),
        "loss_scaling": float(config.loss_scaling),
        "accum_type": precision.accumulators,
    }
    if config.max_grad_norm:
        keys["max_grad_norm"] = float(config.max_grad_norm)
    if config.optimizer == "SGD":
        keys.update(momentum=float(config.momentum), velocity_accum_type=precision.first_order)
        keys["use_combined_accum"] = config.combines_accumulators
        return _with_scales(poptorch.optim.SGD(groups, **keys), scales)
    keys.update(
        betas=tuple(config.adam_betas),
        eps=float(config.adam_eps),
        first_order_momentum_accum_type=precision.first_order,
        second_order_momentum_accum_type=precision.second_order,
    )
    if config.optimizer == "LAMB":
        keys.update(bias_correction=config.bias_correction, max_weight_norm=float(config.max_norm))
    kinds = {"Adam": poptorch.optim.Adam, "AdamW": poptorch.optim.AdamW, "LAMB": poptorch.optim.LAMB}
    return _with_scales(kinds[config.optimizer](groups, **keys), scales)


def _with_scales(optimizer: Any, scales: List[float]) -> Any:
    optimizer.lr_scales = scales
    return optimizer


def set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    """Sets every group's rate: its scale (layer-wise decay) times the run's. Takes effect with `executor.setOptimizer`."""
    for group, scale in zip(optimizer.param_groups, optimizer.lr_scales):
        group["lr"] = learning_rate * scale


def named_state(optimizer: Any, parameters: Mapping[str, Any]) -> Dict[str, Tensor]:
    """PopTorch's state as `<parameter name>.<section>:<key>` -> tensor; {} before the model is compiled.

    A key that names no parameter is kept under the first one's name.
    """
    state = optimizer.state_dict()
    first = next(iter(parameters))
    return {
        f"{_owner(key, parameters) or first}.{section}:{_escaped(key)}": torch.as_tensor(value).clone()
        for section in SECTIONS
        for key, value in (state.get(section) or {}).items()
    }


def load_named_state(optimizer: Any, state: Mapping[str, Tensor]) -> None:
    """Puts back what `named_state` gave, before the model is compiled."""
    sections: Dict[str, Dict[str, Tensor]] = {section: {} for section in SECTIONS}
    for name, value in state.items():
        section, key = _parsed(name)
        if section in sections:
            sections[section][key] = value.clone()
    optimizer.load_state_dict({**optimizer.state_dict(), **sections})


def state_types(config: Config) -> List[int]:
    """Bits of weights, accumulators, first and second moments, and whether SGD's are one: what a state's bytes mean."""
    precision = precision_of(config)
    types = precision.weights, precision.accumulators, precision.first_order, precision.second_order
    return [8 * torch.empty((), dtype=dtype).element_size() for dtype in types] + [int(config.combines_accumulators)]


def is_ipu_state(name: str) -> bool:
    """Whether a saved tensor of this name comes from PopTorch."""
    return _parsed(name)[0] in SECTIONS


def loss_scale_factor(optimizer: Any) -> float:
    """Of automatic loss scaling, as it stands on the IPU; 1 where there is none."""
    return float((optimizer.state_dict().get("ipu_state") or {}).get(FACTOR, 1.0))


def _owner(key: str, parameters: Mapping[str, Any]) -> str:
    """The parameter whose name a key ends with; PopTorch may have put something before it."""
    tail = key.rsplit("___", 1)[-1]
    names = [name for name in parameters if tail == name or tail.endswith(f".{name}")]
    return max(names, key=len, default="")


def _escaped(key: str) -> str:
    return re.sub(r"[.%]", lambda match: _ESCAPES[match.group()], key)


def _parsed(name: str) -> Tuple[str, str]:
    section, _, key = name.rsplit(".", 1)[-1].partition(":")
    return section, key.replace("%2E", ".").replace("%25", "%")
