"""One call of a training executor: for each device iteration, all its micro-batches, then one weight update."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional

import torch

from poptorch import _instances, _loss_scaling
from poptorch._capture import Program, run
from poptorch._errors import Error
from poptorch._layout import Layout, Position
from poptorch._loss import find_loss
from poptorch._update import DeviceOptimizer
from poptorch._weights import DeviceWeights
from poptorch.enums import MeanReductionStrategy, ReductionType  # type: ignore[attr-defined]

Values = List[Any]


class Training:
    """The compiled backward pass and update."""

    def __init__(self, program: Program, options: Any, weights: DeviceWeights, model: Any, optimizer: Any) -> None:
        self._program, self._options, self._weights = program, options, weights
        self._loss_slot = find_loss(program)
        self._trained = [name for name in weights.trained if _is_used(program, name)]
        has_als = _loss_scaling.is_on(options)
        is_pipeline = options._execution_strategy.is_pipelined and program.walk.num_ipus > 1
        if has_als and is_pipeline and options.Training.gradient_accumulation == 1:
            raise Error("automatic loss scaling with pipelining needs gradient accumulation")
        self.optimizer = DeviceOptimizer(optimizer, model, self._trained, has_als=has_als)
        trained = {name: weights.params[name] for name in self._trained}
        self._scaling = _loss_scaling.LossScaling(options, program, trained) if has_als else None
        self.num_updates = 0
        self.loss_scales: List[float] = []  # one a micro-batch

    def call(
        self, layout: Layout, inputs_of: Callable[[Position], Any], keep: Callable[[Position, Values], None]
    ) -> None:
        for iteration in range(layout.device_iterations):
            sums = [_Accumulator(self) for _ in range(layout.replicas)]
            for position in layout.positions:
                if position[0] == iteration:
                    values = run(self._program, self._weights.of_replica(position[2]), inputs_of(position))
                    sums[position[2]].add(self._gradients(values))
                    keep(position, values)
            self._update(sums)

    def _gradients(self, values: Values) -> Dict[str, Optional[torch.Tensor]]:
        loss, scale = values[self._loss_slot], self.optimizer.scale
        self.loss_scales.append(scale)
        weights = [self._weights.params[name] for name in self._trained]
        tracked = [values[slot] for slot in self._scaling.slots if values[slot].requires_grad] if self._scaling else []
        seed = torch.full_like(loss, scale, dtype=torch.float32).to(loss.dtype)  # in fp16, it may be inf
        grads = torch.autograd.grad(loss, weights + tracked, seed, allow_unused=True)
        if self._scaling:
            self._scaling.count(self.optimizer, list(grads))
        return dict(zip(self._trained, grads))

    def _update(self, sums: List[_Accumulator]) -> None:
        scale = self.optimizer.scale
        reduced = {}
        for name in self._trained:
            parts = [part.sums[name].float() for part in sums if name in part.sums]
            if parts:
                reduced[name] = torch.stack(parts).sum(0)
        _instances.add_up(self._options, list(reduced.values()))
        divisor = scale * sums[0].divisor * (self.num_replicas if self.is_mean else 1)
        self.optimizer.step(self._weights.params, {name: grad / divisor for name, grad in reduced.items()})
        self._weights.are_newer = True
        self.num_updates += 1
        if self._scaling:
            self._scaling.update(self.optimizer)

    @property
    def num_replicas(self) -> int:
        return self._options.replication_factor * _instances.count(self._options)

    @property
    def is_mean(self) -> bool:
        return self._options.Training.accumulation_and_replication_reduction_type == ReductionType.Mean

    @property
    def is_running_mean(self) -> bool:
        strategy = self._options.Training.meanAccumulationAndReplicationReductionStrategy
        whole = self.optimizer.values.whole
        by_itself = whole["accum_type"] == torch.float16 and not whole.get("use_combined_accum", False)
        return self.is_mean and (strategy == MeanReductionStrategy.Running or by_itself)


class _Accumulator:
    """Gradients of one replica over the micro-batches of one update, in the optimiser's accumulation type."""

    def __init__(self, training: Training) -> None:
        self._type = training.optimizer.values.whole["accum_type"]
        self._is_running = training.is_running_mean
        self._is_mean = training.is_mean
        self._count = 0
        self.sums: Dict[str, torch.Tensor] = {}

    def add(self, grads: Dict[str, Optional[torch.Tensor]]) -> None:
        k = self._count
        for name, grad in grads.items():
            if grad is None:
                continue
            before = self.sums.get(name, torch.zeros_like(grad, dtype=self._type)).float()
            after = before * (k / (k + 1)) + grad.float() / (k + 1) if self._is_running else before + grad.float()
            self.sums[name] = after.to(self._type)
        self._count += 1

    @property
    def divisor(self) -> int:
        """By what a mean still has to divide, apart from the replicas."""
        return 1 if self._is_running or not self._is_mean else self._count


def _is_used(program: Program, name: str) -> bool:
    slot = program.model_slots[name]
    return any(slot in op.inputs for op in program.ops)
