"""The weight update: rules of the optimisers, in fp32, on state that lives on the device."""

from __future__ import annotations

import math
from typing import Any, Dict, List

import torch

from poptorch._errors import Error
from poptorch._optimizer_values import Values, check_change, convert

_RATE = "learningRate___specific___"
_FACTOR = "lossScaleUpdateFactor"
_NUM_UPDATES = "lossScaleUpdateCount"  # PopART keeps one, too, under a name that is not known here


class DeviceOptimizer:
    """State of the optimiser on the device: `Accl1___<parameter>` and so on, as PopTorch names it."""

    def __init__(self, optimizer: Any, model: torch.nn.Module, trained: List[str], *, has_als: bool) -> None:
        self._has_als = has_als
        self.values = convert(optimizer, is_loss_scaling_variable=has_als)
        params = dict(model.named_parameters())
        missing = [name for name in trained if id(params[name]) not in self.values.group_of]
        if missing:
            raise Error(f"the optimizer has no parameter {missing[0]!r}, which the model trains")
        self._group = {name: self.values.group_of[id(params[name])] for name in trained}
        self._restored_rates: Dict[str, float] = {}  # of a loaded state, until other values are uploaded
        self.state: Dict[str, torch.Tensor] = {}
        if has_als:
            self.state.update({_FACTOR: torch.tensor(1.0), _NUM_UPDATES: torch.tensor(0.0)})
        for name in trained:
            self._create_state(name, params[name])
        self.link(optimizer)

    def _create_state(self, name: str, param: torch.Tensor) -> None:
        kind, whole, group = self.values.kind, self.values.whole, self._of(name)
        first = whole.get("first_order_momentum_accum_type", whole.get("velocity_accum_type", torch.float32))
        second = whole.get("second_order_momentum_accum_type", torch.float32)
        self.state[f"Accum___{name}"] = torch.zeros(param.shape, dtype=whole["accum_type"])
        if kind == "RMSprop":
            self.state[f"Accl1___{name}"] = torch.zeros(param.shape, dtype=first)
            self.state[f"Accl2___{name}"] = torch.zeros(param.shape, dtype=second)
            self.state[f"Accl3___{name}"] = torch.zeros(param.shape, dtype=second)
        elif kind == "SGD":
            if group["momentum"] or "momentum" in self.values.variable:
                self.state[f"Accl1___{name}"] = torch.zeros(param.shape, dtype=first)
        else:
            self.state[f"Accl1___{name}"] = torch.zeros(param.shape, dtype=first)
            self.state[f"Accl2___{name}"] = torch.zeros(param.shape, dtype=second)
            self.state[f"Step___{name}"] = torch.zeros(())

    def link(self, optimizer: Any) -> None:
        """From now on the optimiser's state_dict shows the device's state; one that it was given before is loaded."""
        pending = getattr(optimizer, "_pending", None)
        if pending:
            self.load(pending["ipu_state"])
            rates = {name: pending["ipu_param"].get(f"{_RATE}{name}") for name in self._group}
            self._restored_rates = {name: float(rate) for name, rate in rates.items() if rate is not None}
        if hasattr(optimizer, "variable_attrs"):
            optimizer._pending, optimizer._device = None, self

    def change(self, optimizer: Any) -> None:
        after = convert(optimizer, is_loss_scaling_variable=self._has_als)
        check_change(self.values, after)
        if (after.groups, after.whole) != (self.values.groups, self.values.whole):  # else nothing is uploaded
            self._restored_rates = {}
        self.values = after
        self.link(optimizer)

    def load(self, state: Dict[str, torch.Tensor]) -> None:
        if set(state) != set(self.state):
            raise Error(f"a state of another optimizer: {sorted(set(state) ^ set(self.state))[:3]}")
        for name, tensor in state.items():
            if (tensor.dtype, tensor.shape) != (self.state[name].dtype, self.state[name].shape):
                # PopTorch would read the memory as what it is not.
                raise Error(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, on the device {self.state[name].dtype}")
            self.state[name].copy_(tensor)

    def state_copy(self) -> Dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.state.items()}

    def parameters_copy(self) -> Dict[str, torch.Tensor]:
        params = {"lossScaling_FLOAT": torch.tensor(float(self.values.whole["loss_scaling"]))}
        for name in self._group:
            params[f"{_RATE}{name}"] = torch.tensor(float(self._of(name)["lr"]))
            params[f"weightDecay___specific___{name}"] = torch.tensor(float(self._of(name)["weight_decay"]))
        return params

    @property
    def scale(self) -> float:
        """What the backward pass is seeded with."""
        factor = float(self.state[_FACTOR]) if self._has_als else 1.0
        return float(self.values.whole["loss_scaling"]) * factor

    def multiply_factor(self, by: float) -> None:
        self.state[_FACTOR].mul_(by)

    @property
    def num_scaled_updates(self) -> int:
        """Updates under automatic loss scaling, counted on over a restored state."""
        return int(self.state[_NUM_UPDATES])

    def count_scaled_update(self) -> None:
        self.state[_NUM_UPDATES].add_(1)

    def _of(self, name: str) -> Dict[str, Any]:
        group = self.values.groups[self._group[name]]
        return {**group, "lr": self._restored_rates[name]} if name in self._restored_rates else group

    @torch.no_grad()
    def step(self, weights: Dict[str, torch.Tensor], grads: Dict[str, torch.Tensor]) -> None:
        """`grads` in fp32, reduced and without the loss scale."""
        limit = self.values.whole.get("max_grad_norm", math.inf)
        if limit != math.inf:
            norm = math.sqrt(sum(float(grad.double().square().sum()) for grad in grads.values()))
            grads = {name: grad * (limit / max(limit, norm)) for name, grad in grads.items()}
        rule = getattr(self, f"_{self.values.kind.lower()}")
        for name, grad in grads.items():
            weight = weights[name].float()
            weights[name].copy_(weight - rule(name, weight, grad, self._of(name)))

    def _sgd(self, name: str, weight: torch.Tensor, grad: torch.Tensor, group: Dict[str, Any]) -> torch.Tensor:
        grad = grad + group["weight_decay"] * weight
        if f"Accl1___{name}" not in self.state:
            return group["lr"] * grad
        momentum = group["momentum"]
        # From zero, unlike torch, whose first step takes the whole gradient: it shows where dampening is not 0.
        velocity = self._put("Accl1", name, momentum * self._get("Accl1", name) + (1 - group["dampening"]) * grad)
        return group["lr"] * (grad + momentum * velocity if group["nesterov"] else velocity)

    def _adam(self, name: str, weight: torch.Tensor, grad: torch.Tensor, group: Dict[str, Any]) -> torch.Tensor:
        return group["lr"] * self._direction(name, grad + group["weight_decay"] * weight, group)

    def _adamw(self, name: str, weight: torch.Tensor, grad: torch.Tensor, group: Dict[str, Any]) -> torch.Tensor:
        # bias_correction=False does not reach the compiler in 3.4.
        return group["lr"] * (self._direction(name, grad, group) + group["weight_decay"] * weight)

    def _lamb(self, name: str, weight: torch.Tensor, grad: torch.Tensor, group: Dict[str, Any]) -> torch.Tensor:
        update = self._direction(name, grad, group, corrected=self.values.whole["bias_correction"])
        update = update + group["weight_decay"] * weight
        size, length = min(float(weight.norm()), group["max_weight_norm"]), float(update.norm())
        return group["lr"] * (size / length if size and length else 1.0) * update

    def _direction(self, name: str, grad: torch.Tensor, group: Dict[str, Any], corrected: bool = True) -> torch.Tensor:
        """m_hat / (sqrt(v_hat) + eps)."""
        first_beta, second_beta = group["betas"]
        step = float(self.state[f"Step___{name}"].add_(1))
        mean = self._put("Accl1", name, first_beta * self._get("Accl1", name) + (1 - first_beta) * grad)
        square = self._put("Accl2", name, second_beta * self._get("Accl2", name) + (1 - second_beta) * grad * grad)
        if corrected:
            mean, square = mean / (1 - first_beta**step), square / (1 - second_beta**step)
        return mean / (square.sqrt() + group["eps"])

    def _rmsprop(self, name: str, weight: torch.Tensor, grad: torch.Tensor, group: Dict[str, Any]) -> torch.Tensor:
        alpha, eps, tensorflow = group["alpha"], group["eps"], self.values.whole["use_tf_variant"]
        grad = grad + group["weight_decay"] * weight
        spread = self._put("Accl1", name, alpha * self._get("Accl1", name) + (1 - alpha) * grad * grad)
        if group["centered"]:
            spread = spread - self._put("Accl2", name, alpha * self._get("Accl2", name) + (1 - alpha) * grad) ** 2
        update = grad / ((spread + eps).sqrt() if tensorflow else spread.sqrt() + eps)
        if not group["momentum"]:
            return group["lr"] * update
        # TensorFlow's variant has the learning rate inside the momentum.
        update = group["lr"] * update if tensorflow else update
        momentum = self._put("Accl3", name, group["momentum"] * self._get("Accl3", name) + update)
        return momentum if tensorflow else group["lr"] * momentum

    def _get(self, kind: str, name: str) -> torch.Tensor:
        return self.state[f"{kind}___{name}"].float()

    def _put(self, kind: str, name: str, value: torch.Tensor) -> torch.Tensor:
        """Stores it in the type of the state; what is computed goes on with what was stored."""
        self.state[f"{kind}___{name}"].copy_(value)
        return self._get(kind, name)


__all__ = ["DeviceOptimizer", "Values"]
