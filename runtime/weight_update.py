"""One weight update, the same in every runtime: accumulation, loss scale, reduction, clipping, the optimiser, the average."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, ContextManager, Dict, List, Mapping, Optional, Sequence

import torch
from torch import Tensor, nn

from optim.accumulation import GradientCatcher
from optim.ema import WeightAverage
from optim.loss_scaling import GradientCounter, LossScale
from optim.stepper import Number
from optim.stochastic_rounding import Rounding
from runtime.peers import Peers
from runtime.precision import precision_of
from runtime.replicas import reduce_over_replicas, share_weights, split_over_replicas
from runtime.steppers import accumulation_of, stepper_of

if TYPE_CHECKING:
    from config import Config


SMALLEST_SCALE = 2.0**-14  # below, what has overflowed is no matter of the scale


class WeightUpdate:
    """Turns the gradients of some named parameters into optimiser steps. Those that require none keep their weights, to the bit.

    Call `begin` before the micro-batches of a weight update, multiply each micro-batch's mean loss by `seed` before its backward
    pass, `collect` after it, and `apply` in the end.
    """

    def __init__(self, config: Config, models: Sequence[nn.Module], peers: Optional[Peers] = None) -> None:
        """For the parameters of the whole model, or of all stages that this process holds. None may be trained."""
        self.config, self._peers = config, peers or Peers()
        self.parameters = {name: value for model in models for name, value in model.named_parameters()}
        self.trained = {name: value for name, value in self.parameters.items() if value.requires_grad}
        self._device = next(iter(self.parameters.values())).device
        self.loss_scale = LossScale(
            base=config.loss_scaling,
            automatic=config.auto_loss_scaling,
            period=config.als_period,
            threshold=config.als_threshold,
            bin_edge=config.als_bin_edge,
            cap=config.als_cap,
        )
        self.number = 0  # of the weight update
        self.skipped = 0  # updates left out since the runtime set it to 0
        self.must_stop = False  # whether the run must not make another update
        self.grad_norm: Optional[float] = None  # of the last update's gradient, before clipping; None: not known
        self.used_scale = config.loss_scaling  # in the last update
        self.nonfinite: List[str] = []  # parameters of all processes whose gradients were not finite, the last time
        self.average: Optional[WeightAverage] = None
        self._counter: Optional[GradientCounter] = None
        self._owners: Optional[Dict[str, int]] = None  # which replica group keeps the state of each parameter
        if config.trains:
            self._build(models)

    def _build(self, models: Sequence[nn.Module]) -> None:
        config, precision, groups = self.config, precision_of(self.config), self._peers.num_replica_groups
        self._rounding = Rounding(config.stochastic_rounding, config.random_seed)
        self._accumulation = accumulation_of(config, precision, self.trained, self._peers, self._rounding)
        self._catcher: Optional[GradientCatcher] = None
        if self._accumulation.fold is not None:
            self._catcher = GradientCatcher(self.trained, self._fold)
        if config.auto_loss_scaling:
            self._counter = GradientCounter(self.loss_scale.edge, self._device)
            self._counter.watch_outputs(module for model in models for module in model.modules())
        is_sharded = config.enable_rts and groups > 1 and not config.combines_accumulators
        self._owners = split_over_replicas(self.trained, groups) if is_sharded else None
        own = self.trained
        if self._owners is not None:
            own = {name: p for name, p in own.items() if self._owners[name] == self._peers.replica_group}
        self._stepper = stepper_of(config, precision, own, self._accumulation, self._rounding, self._device)
        # Whether a gradient that is not finite is left out by the device, or by this process after it has waited for the norm.
        self.decides_late = self._device.type == "cuda" and self._stepper.can_skip
        if config.ema_decay:
            self.average = WeightAverage(self.parameters, config.ema_decay)

    @property
    def seed(self) -> float:
        """What a micro-batch's mean loss is multiplied by before the backward pass."""
        return self.loss_scale.scale / self._accumulation.seed_divisor

    def begin(self, number: int) -> None:
        """Starts weight update `number` of the run."""
        self.number = self._rounding.update = number
        if self._counter is not None:
            self._counter.active = self.loss_scale.counts_in(number)

    def collect(self) -> None:
        """Takes in a micro-batch's gradients, where no hook has."""
        if self._catcher is not None:
            self._catcher.collect()

    def _fold(self, name: str, gradient: Tensor) -> None:
        if self._counter is not None:  # all of them: each goes into an accumulator of 16 bits
            self._counter.count(gradient)
        assert self._accumulation.fold is not None
        self._accumulation.fold(name, gradient)

    @torch.no_grad()
    def apply(self, learning_rate: float, *sums: Tensor) -> List[float]:
        """One update from the gradients, which are used up. What is not finite is left out and counted in `skipped`.

        Gives the `sums`, scalars on the device, as numbers. The device is waited for once: where the stepper can leave an update
        out by itself, after everything has been launched; else before the weights are stepped.
        """
        taken = self._accumulation.take()
        # In the same order in all replicas, whichever gradient came first.
        gradients = {name: taken[name] for name in self.trained if name in taken}
        reduce_over_replicas(gradients, self._peers, self._rounding, self._accumulation.replica_divisor)
        self.used_scale = self.loss_scale.scale
        factor = 1.0 / (self.used_scale * self._accumulation.total_divisor)
        norm_on_device = self._norm(gradients) * factor
        counts = self._counts()
        if self.decides_late:
            is_skipped = norm_on_device.isfinite().logical_not().float()
            self._step(dict(gradients), factor * self._clipping(norm_on_device), learning_rate, is_skipped)
        norm, below, above, *numbers = torch.stack(
            [norm_on_device, *counts, *(s.double() for s in sums)]
        ).tolist()  # waits
        self.grad_norm = None if self.config.combines_accumulators else norm
        if self._counter is not None and self._counter.active:
            self.loss_scale.adjust(below, above)
        if not math.isfinite(norm):
            # Never written into the weights: the run stops with the last good ones, or goes on from them.
            self.skipped += 1
            self.must_stop = self._stops_for(self.used_scale)
            self._name_nonfinite(gradients)
            if self.decides_late:
                self._stepper.was_skipped()
        elif not self.decides_late:
            self._step(gradients, factor * self._clipping(norm), learning_rate)
        return numbers

    def _step(
        self,
        gradients: Dict[str, Tensor],
        factor: Number,
        learning_rate: float,
        is_skipped: Optional[Tensor] = None,
    ) -> None:
        """Steps weights and their averages. Where `is_skipped`, a float on the device, is there and 1, nothing changes."""
        self._stepper.step(gradients, factor, learning_rate, is_skipped)
        if self._owners is not None:
            share_weights(self.trained, self._owners, self._peers)
        if self.average is not None:
            self.average.update(self.number, is_skipped)

    def _norm(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Global L2 norm of the reduced gradient, as it is scaled: a float64 scalar on the device."""
        tensors = list(gradients.values())
        if not tensors:  # of a stage in which nothing is trained
            norms = [torch.zeros((), device=self._device)]
        elif all(tensor.dtype == torch.float32 for tensor in tensors):
            norms = list(torch._foreach_norm(tensors))
        else:  # a norm may be too large for the type of its numbers
            norms = [torch.linalg.vector_norm(t, dtype=torch.promote_types(t.dtype, torch.float32)) for t in tensors]
        return self._peers.sum_over_stages(torch.stack(norms).double().square().sum()).sqrt()

    def _clipping(self, norm: Number) -> Number:
        """PopTorch's rule: factor max_norm / max(max_norm, norm)."""
        limit = self.config.max_grad_norm
        if limit <= 0:
            return 1.0
        return limit / norm.clamp(min=limit) if isinstance(norm, Tensor) else limit / max(limit, norm)

    def _counts(self) -> Sequence[Tensor]:
        """How many numbers lay below the edge of the automatic loss scale, and how many not: float64 scalars on the device."""
        if self._counter is None or not self._counter.active:
            return torch.zeros(2, dtype=torch.float64, device=self._device).unbind()
        counts = self._peers.sum_over_stages(self._counter.take())
        self._peers.sum_over_replicas(counts)
        return counts.unbind()

    def _stops_for(self, scale: float) -> bool:
        """Whether a gradient that is not finite ends the run. Not while an automatic scale may be why: it will halve."""
        if self.config.on_nonfinite != "stop":
            return False
        return not (self.loss_scale.automatic and SMALLEST_SCALE < scale < math.inf)

    def _name_nonfinite(self, gradients: Mapping[str, Tensor]) -> None:
        own = [name for name, gradient in gradients.items() if not bool(gradient.isfinite().all())]
        self.nonfinite = list(dict.fromkeys(name for names in self._peers.gather(own) for name in names))

    @property
    def shard(self) -> int:
        """Which part of the optimiser state of its parameters this process keeps…"""
        return self._peers.replica_group if self._owners is not None else 0

    @property
    def num_shards(self) -> int:
        """…of how many."""
        return self._peers.num_replica_groups if self._owners is not None else 1

    def averaged(self) -> ContextManager[None]:
        """Context in which the averaged weights are in the weights' place."""
        return self.average.in_place() if self.average is not None else contextlib.nullcontext()

    def weights(self, averaged: bool = False) -> Mapping[str, Tensor]:
        """The weights by parameter name, or their averages: none without ema_decay."""
        if averaged:
            return self.average.values if self.average is not None else {}
        return self.parameters

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor], averages: Optional[Mapping[str, Tensor]] = None) -> None:
        """Loads those of the parameters that `weights` names. Their averages begin anew with them, or as given."""
        for name, parameter in self.parameters.items():
            if name in weights:
                parameter.copy_(weights[name])
        if self.average is not None:
            self.average.restart()
            self.average.load(averages or {})

    def state(self) -> Dict[str, Tensor]:
        """`<parameter name>.<state name>` -> tensor, for the parameters whose state this process keeps."""
        return self._stepper.state() if self.config.trains else {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Puts back what concerns this process."""
        self._stepper.load_state(state)
