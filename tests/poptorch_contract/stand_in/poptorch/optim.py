"""PopTorch's optimisers: torch's, with the attributes of an IPU, and a state that lives on the device."""

from __future__ import annotations

import numbers
from typing import Any, Dict, List, Optional

import torch

from poptorch._api import API, SYMBOLS, enforced

_CPU_STATE = "Only IPU optimizer states can be loaded onto the IPU."
_TYPES = (torch.float16, torch.float32)
_TYPE_NAMES = {"torch.float32": torch.float32, "True": True, "False": False, "inf": float("inf")}
# Accepted by the constructors, without effect on an IPU.
_IGNORED = {"foreach", "maximize", "capturable", "differentiable", "fused"}


class VariableAttributes:
    """Which attributes may change after compilation: those that the constructor was given."""

    def __init__(self, variable_attributes: List[str], allowed_attributes: List[str]) -> None:
        self._variable = list(variable_attributes)
        self._allowed = list(allowed_attributes)

    def isConstant(self, attr: str) -> bool:  # noqa: N802
        return attr not in self._variable

    def markAsConstant(self, attr: str) -> None:  # noqa: N802
        self._variable.remove(attr)

    def markAsVariable(self, attr: str) -> None:  # noqa: N802
        assert attr in self._allowed, f"{attr} can not be variable"
        self._variable.append(attr)


class Optimizer:
    """What all of them share: the device's state among the optimiser's own."""

    variable_attrs: VariableAttributes
    _device: Any = None  # the state on the device, once compiled
    _pending: Optional[Dict[str, Any]] = None  # a state to upload when it is compiled

    def state_dict(self) -> Dict[str, Any]:
        state = dict(super().state_dict())  # type: ignore[misc]
        state.update(self.get_state_dict())
        return state

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        if "ipu_state" not in state or "ipu_param" not in state:
            raise RuntimeError(_CPU_STATE)
        own = {key: value for key, value in state.items() if key not in ("ipu_state", "ipu_param")}
        super().load_state_dict(own)  # type: ignore[misc]
        self.set_state_dict(state)

    def get_state_dict(self) -> Dict[str, Any]:
        if self._device is not None:
            return {"ipu_state": self._device.state_copy(), "ipu_param": self._device.parameters_copy()}
        return self._pending or {"ipu_state": None, "ipu_param": None}

    def set_state_dict(self, state: Dict[str, Any]) -> None:
        if state["ipu_state"] is None:
            return
        if self._device is not None:
            self._device.load(state["ipu_state"])
        else:
            self._pending = {key: state[key] for key in ("ipu_state", "ipu_param")}

    def has_state(self) -> bool:
        return self.get_state_dict()["ipu_state"] is not None

    def _split(self, given: Dict[str, Any], torch_names: List[str]) -> Dict[str, Any]:
        """Sets the IPU's own attributes; returns those for torch's constructor. `given`: what is not None."""
        given = {name: value for name, value in given.items() if value is not None and name not in _IGNORED}
        facts = SYMBOLS[f"poptorch.optim.{type(self).__name__}"]
        for name, value in given.items():
            check_value(name, value)
        for name in facts["optimizer_attributes"]:
            setattr(self, name, given.get(name, default_of(type(self).__name__, name)))
        allowed = [*facts["group_attributes"], "loss_scaling"]
        self.variable_attrs = VariableAttributes([name for name in given if name in allowed], allowed)
        return {name: given[name] for name in torch_names if name in given}

    def _fill_groups(self, name: str, given: Any) -> None:
        """A per-group attribute that torch does not know."""
        for group in self.param_groups:  # type: ignore[attr-defined]
            value = default_of(type(self).__name__, name) if given is None else given
            group.setdefault(name, value)


def check_value(name: str, value: Any) -> None:
    """Refuses what the device cannot take."""
    if name == "amsgrad" and value:
        raise ValueError("amsgrad is not supported on an IPU")
    if name.endswith("accum_type"):
        if value not in _TYPES:
            raise ValueError(f"{name} must be one of {_TYPES}, not {value}")
    elif name == "betas":
        assert isinstance(value, tuple) and len(value) == 2, f"betas must be a tuple of two numbers, not {value!r}"
    else:
        assert isinstance(value, numbers.Number), f"{name} must be a number, not {type(value)}"


def default_of(kind: str, name: str) -> Any:
    """The effective value of an attribute that was not given."""
    facts = API["optimizer_defaults"]
    common = {"velocity_accum_type": "torch.float32", **facts["common"]}
    value = facts[kind].get(name, common.get(name))
    if isinstance(value, list):
        return tuple(value)
    return _TYPE_NAMES.get(value, value) if isinstance(value, str) else value


_BASIC = ["lr", "weight_decay"]


def _given(values: Dict[str, Any]) -> Dict[str, Any]:
    return {name: value for name, value in values.items() if name not in ("self", "params", "__class__")}


@enforced("poptorch.optim.SGD")
class SGD(Optimizer, torch.optim.SGD):
    def __init__(
        self,
        params,
        lr,
        momentum=None,
        dampening=None,
        weight_decay=None,
        nesterov=None,
        maximize=None,
        foreach=None,
        differentiable=None,
        loss_scaling=None,
        velocity_scaling=None,
        use_combined_accum=None,
        accum_type=None,
        velocity_accum_type=None,
        max_grad_norm=None,
    ):
        known = self._split(_given(locals()), [*_BASIC, "momentum", "dampening", "nesterov"])
        torch.optim.SGD.__init__(self, params, **known)
        self._fill_groups("velocity_scaling", velocity_scaling)


@enforced("poptorch.optim.Adam")
class Adam(Optimizer, torch.optim.Adam):
    def __init__(
        self,
        params,
        lr=None,
        betas=None,
        eps=None,
        weight_decay=None,
        amsgrad=None,
        foreach=None,
        maximize=None,
        capturable=None,
        differentiable=None,
        fused=None,
        loss_scaling=None,
        accum_type=None,
        first_order_momentum_accum_type=None,
        second_order_momentum_accum_type=None,
        max_grad_norm=None,
    ):
        known = self._split(_given(locals()), [*_BASIC, "betas", "eps"])
        torch.optim.Adam.__init__(self, params, **known)


@enforced("poptorch.optim.AdamW")
class AdamW(Optimizer, torch.optim.AdamW):
    def __init__(
        self,
        params,
        lr=None,
        betas=None,
        eps=None,
        weight_decay=None,
        amsgrad=None,
        maximize=None,
        foreach=None,
        capturable=None,
        differentiable=None,
        fused=None,
        loss_scaling=None,
        bias_correction=None,
        accum_type=None,
        first_order_momentum_accum_type=None,
        second_order_momentum_accum_type=None,
        max_grad_norm=None,
    ):
        known = self._split(_given(locals()), [*_BASIC, "betas", "eps"])
        torch.optim.AdamW.__init__(self, params, **known)


@enforced("poptorch.optim.RMSprop")
class RMSprop(Optimizer, torch.optim.RMSprop):
    def __init__(
        self,
        params,
        lr=None,
        alpha=None,
        eps=None,
        weight_decay=None,
        momentum=None,
        centered=None,
        foreach=None,
        maximize=None,
        differentiable=None,
        loss_scaling=None,
        accum_type=None,
        first_order_momentum_accum_type=None,
        second_order_momentum_accum_type=None,
        use_tf_variant=None,
    ):
        known = self._split(_given(locals()), [*_BASIC, "alpha", "eps", "momentum", "centered"])
        torch.optim.RMSprop.__init__(self, params, **known)


@enforced("poptorch.optim.LAMB")
class LAMB(Optimizer, torch.optim.Optimizer):
    def __init__(
        self,
        params,
        lr=None,
        betas=None,
        eps=None,
        weight_decay=None,
        bias_correction=None,
        loss_scaling=None,
        max_weight_norm=None,
        accum_type=None,
        first_order_momentum_accum_type=None,
        second_order_momentum_accum_type=None,
    ):
        given = _given(locals())
        names = SYMBOLS["poptorch.optim.LAMB"]["group_attributes"]
        defaults = {name: default_of("LAMB", name) for name in names}
        defaults.update(self._split(given, names))
        torch.optim.Optimizer.__init__(self, params, defaults)
