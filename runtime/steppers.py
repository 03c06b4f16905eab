"""How a config's gradients are accumulated and its weights stepped: by autograd and torch alone, or in types of their own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Callable, Dict, Mapping, Optional

import torch
from torch import Tensor, nn

from optim.accumulation import AutogradAccumulator, Fold, GradientAccumulator
from optim.combined import CombinedSGD
from optim.plain import PlainOptimizer
from optim.rounded import FIRST_ORDER, SECOND_ORDER, RoundedOptimizer
from optim.rounded_adam import RoundedAdam
from optim.stepper import Stepper
from optim.stochastic_rounding import Rounding, has_kernels
from optimization import build_optimizer, learning_rate_scale, weight_decay_of
from runtime.peers import Peers
from runtime.precision import Precision

if TYPE_CHECKING:
    from config import Config


@dataclass(frozen=True)
class Accumulation:
    """Where gradients go, and what they are still to be divided by, for reduction `mean`, beside the loss scale.

    The division comes first (in the loss, before the backward pass) in float32; last where 16-bit gradients would underflow.
    """

    take: Callable[[], Dict[str, Tensor]]
    fold: Optional[Fold]  # for a micro-batch's gradients; None: autograd adds them up
    seed_divisor: float = 1.0
    replica_divisor: float = 1.0  # when replicas are added up
    total_divisor: float = 1.0
    combined: Optional[CombinedSGD] = None  # where the accumulator is also the optimiser


def accumulation_of(
    config: Config, precision: Precision, parameters: Mapping[str, nn.Parameter], peers: Peers, rounding: Rounding
) -> Accumulation:
    """For one of the processes that work on replicas of the same parameters."""
    is_mean = config.reduction_type == "mean"
    micro_batches = float(config.gradient_accumulation * config.replication_factor) if is_mean else 1.0
    if config.combines_accumulators:
        combined = _combined_sgd(config, precision.accumulators, parameters, peers, 1.0 / micro_batches, rounding)
        return Accumulation(combined.take, combined.fold, combined=combined)
    if precision.is_plain:
        take = AutogradAccumulator(parameters).take
        if precision.compute == torch.float16:
            return Accumulation(take, None, total_divisor=micro_batches)
        return Accumulation(take, None, seed_divisor=micro_batches)
    running_mean = is_mean and precision.accumulators != torch.float32
    accumulator = GradientAccumulator(precision.accumulators, running_mean, rounding, peers.replica_group)
    if running_mean:
        return Accumulation(accumulator.take, accumulator.fold, replica_divisor=float(peers.num_replica_groups))
    return Accumulation(accumulator.take, accumulator.fold, total_divisor=micro_batches)


def stepper_of(
    config: Config,
    precision: Precision,
    parameters: Mapping[str, nn.Parameter],
    accumulation: Accumulation,
    rounding: Rounding,
    device: torch.device,
) -> Stepper:
    """Steps `parameters` by the config's optimiser, of a kind that all processes choose: also one without parameters."""
    if accumulation.combined is not None:
        return accumulation.combined
    build = partial(build_optimizer, config)
    if precision.is_plain:
        return PlainOptimizer(build(parameters), parameters)
    types = {**dict.fromkeys(FIRST_ORDER, precision.first_order), **dict.fromkeys(SECOND_ORDER, precision.second_order)}
    if config.optimizer in ("Adam", "AdamW") and has_kernels(device):
        return _rounded_adam(config, parameters, types, rounding)
    return RoundedOptimizer(build, parameters, types, rounding)


def _rounded_adam(
    config: Config, parameters: Mapping[str, nn.Parameter], types: Mapping[str, torch.dtype], rounding: Rounding
) -> RoundedAdam:
    settings = {
        name: {"lr_scale": learning_rate_scale(name, config), "weight_decay": weight_decay_of(name, parameter, config)}
        for name, parameter in parameters.items()
    }
    return RoundedAdam(
        parameters,
        settings,
        decoupled=config.optimizer == "AdamW",
        betas=config.adam_betas,
        eps=config.adam_eps,
        state_types=types,
        rounding=rounding,
    )


def _combined_sgd(
    config: Config,
    dtype: torch.dtype,
    parameters: Mapping[str, nn.Parameter],
    peers: Peers,
    gradient_factor: float,
    rounding: Rounding,
) -> CombinedSGD:
    return CombinedSGD(
        parameters,
        weight_decay={name: weight_decay_of(name, parameter, config) for name, parameter in parameters.items()},
        lr_scale={name: learning_rate_scale(name, config) for name in parameters},
        momentum=config.momentum,
        loss_scale=config.loss_scaling,
        gradient_factor=gradient_factor,
        share=1.0 / peers.num_replica_groups,
        dtype=dtype,
        rounding=rounding,
        replica_group=peers.replica_group,
    )
