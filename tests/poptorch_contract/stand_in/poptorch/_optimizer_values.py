"""What the device is told of an optimiser: values by group, and which of them may change after compilation."""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Set

import torch

from poptorch import optim
from poptorch._api import API, SYMBOLS
from poptorch._errors import Error

_KINDS = ("AdamW", "Adam", "SGD", "RMSprop", "LAMB")  # in newer torch, AdamW is a subclass of Adam
_VARIABLE_UNLESS_DEFAULT = ("weight_decay", "momentum", "dampening", "eps")


class Values(NamedTuple):
    """Converted from an optimiser: `groups` has one dictionary each, `whole` what all groups share."""

    kind: str
    groups: List[Dict[str, Any]]
    whole: Dict[str, Any]
    variable: Set[str]
    group_of: Dict[int, int]  # id of a parameter -> its group


def convert(optimizer: Any, *, is_loss_scaling_variable: bool = False) -> Values:
    kind = _kind(optimizer)
    facts = SYMBOLS[f"poptorch.optim.{kind}"]
    names = [name for name in facts["group_attributes"] if name != "amsgrad"]
    groups = []
    for group in optimizer.param_groups:
        values = {name: group.get(name, optim.default_of(kind, name)) for name in names}
        for name, value in {**values, "amsgrad": group.get("amsgrad", False)}.items():
            optim.check_value(name, value)
        groups.append(values)
    whole_names = [name for name in facts["optimizer_attributes"] if name not in names]
    whole = {name: getattr(optimizer, name, optim.default_of(kind, name)) for name in whole_names}
    variable = _variable(optimizer, kind, [*names, "loss_scaling"], groups[0])
    if is_loss_scaling_variable:
        variable.add("loss_scaling")
    group_of = {id(param): number for number, group in enumerate(optimizer.param_groups) for param in group["params"]}
    return Values(kind, groups, whole, variable, group_of)


def _kind(optimizer: Any) -> str:
    for kind in _KINDS:
        if isinstance(optimizer, getattr(optim, kind)) or type(optimizer) is getattr(torch.optim, kind, None):
            return kind
    raise Error(f"Unsupported optimizer type {type(optimizer)}")


def _variable(optimizer: Any, kind: str, names: List[str], group: Dict[str, Any]) -> Set[str]:
    if isinstance(optimizer, optim.Optimizer):
        return {name for name in names if not optimizer.variable_attrs.isConstant(name)}
    defaults = API["optimizer_defaults"][kind]
    return {"lr"} | {name for name in _VARIABLE_UNLESS_DEFAULT if name in group and group[name] != defaults[name]}


def check_change(before: Values, after: Values) -> None:
    """Raises where `after` differs from the compiled `before` in more than its variable values."""
    if before.kind != after.kind:
        raise Error(f"the model was compiled for {before.kind}, not for {after.kind}")
    if len(before.groups) != len(after.groups):
        raise Error(f"the model was compiled for {len(before.groups)} parameter groups, not for {len(after.groups)}")
    if before.group_of != after.group_of:
        raise Error("the parameters are in other groups than when the model was compiled")
    for name, value in after.whole.items():
        if name.endswith("accum_type") and value == torch.float16 != before.whole[name]:
            raise ValueError(f"{name} can not be set to half after the model was compiled")
    if before.variable != after.variable:
        raise Error(f"attributes can not become variable or constant: {sorted(before.variable ^ after.variable)}")
    pairs = zip((before.whole, *before.groups), (after.whole, *after.groups))
    for old, new in pairs:
        for name, value in new.items():
            if value != old[name] and name not in before.variable:
                raise Error(f"{name} was compiled as the constant {old[name]}: it can not become {value}")
