"""Graphcore IPUs through PopTorch: one compiled program makes a host step's updates, another one evaluates.

A stage of the plan is a block on its own IPU; replicas, accumulation and device iterations are PopTorch's. Under poprun this
process is one of several instances with some of the replicas each. Checked against the contract of PopTorch 3.4, not run on
an IPU yet: docs/ipu.md says how.
"""

from __future__ import annotations

import contextlib
import math
import time
from typing import TYPE_CHECKING, Any, ContextManager, Dict, Iterator, List, Mapping, Optional, Tuple

import numpy as np
import poptorch
import torch
from torch import Tensor

import machine
from batch import DataShare, HostBatch, HostBatches
from errors import UserError
from ipu_options import LOSS_SCALE, evaluation_options, poprun, training_options
from ipu_plan import eval_device_iterations, plan_notes
from models.losses import pack_targets
from runtime.base import StepResult, Trace
from runtime.devices import set_threads
from runtime.ipu_instances import OneInstance, PoprunInstances
from runtime.ipu_model import EvaluationModel, TrainingModel, build_ipu_vit
from runtime.ipu_optimizer import (
    build_ipu_optimizer,
    is_ipu_state,
    load_named_state,
    loss_scale_factor,
    named_state,
    set_learning_rate,
    state_types,
)
from runtime.precision_choice import decided
from runtime.same_config import check_same_config

if TYPE_CHECKING:
    from config import Config
    from placement import Placement

# Of what is saved beside PopTorch's own state.
RNG_STATE, TYPES, IPUS = "ipu_rng_state", "ipu_types", "ipu_ipus"


class IpuRuntime:
    """One instance: a process with the IPUs of its replicas. See `base.Runtime`."""

    backend = "ipu"
    makes_every_update = True
    num_parts = 1
    num_optimizer_parts = 1

    def __init__(self, config: Config, placement: Placement, num_cores: int) -> None:
        set_threads(config, default=num_cores)
        launched = poprun()
        self._instances = OneInstance() if launched is None else PoprunInstances(launched)
        check_same_config(config, self._instances.gather)
        config, chosen = decided(config, placement.runtime)
        self.config = config
        first = 0 if launched is None else launched.first_replica
        self._local_replicas = config.replication_factor if launched is None else launched.local_replicas
        self.share = DataShare(replicas=tuple(range(first, first + self._local_replicas)))
        self.is_main = self._instances.index == 0
        self.eval_share_index, self.eval_num_shares = self._instances.index, self._instances.count
        self.eval_batch_size = config.micro_batch_size * eval_device_iterations(config) * self._local_replicas
        # PopTorch shards the state over all replicas and gives each instance its own part alone.
        self._state_is_whole = self._instances.count == 1 or not config.enable_rts
        self.notes = [*chosen, *plan_notes(config, self._local_replicas)]
        if config.trains and not self._state_is_whole:
            self.notes.append(
                "enable_rts over several instances: the optimiser's state lies on several hosts and is not saved; a resumed run "
                "begins with a new one"
            )
        if config.synthetic_data:
            self.notes.append("synthetic_data: IPUs make up their inputs; losses, and what is saved, mean nothing")
        self._vit = build_ipu_vit(config)
        self._parameters = dict(self._vit.named_parameters())
        self._trainer: Any = None
        self._evaluator: Any = None
        self._rng_state: Optional[List[int]] = None  # to begin with, when a run is resumed
        self._later_notes: List[str] = []
        if config.trains:
            assert config.learning_rate is not None, "checked where the config is read"
            # No schedule reaches this rate, so that the first step's is another one and gets uploaded: what a checkpoint puts
            # back on compiling includes the rate of the step before it.
            trained = {name: value for name, value in self._parameters.items() if value.requires_grad}
            self._optimizer = build_ipu_optimizer(config, trained, 2 * config.learning_rate)

    # Compiling.

    def prepare(self, evaluates: bool, multi_label: bool = False) -> List[str]:
        """Compiles what will be needed. Raises UserError with PopTorch's own words where it refuses."""
        self._instances.broadcast({name: value.data for name, value in self._parameters.items()})
        if self.config.trains and self._trainer is None:
            seconds = self._compile_trainer(multi_label)
            self._later_notes.append(f"compiled for training in {seconds:.1f} s")
        if evaluates and self._evaluator is None:
            seconds = self._compile_evaluator()
            self._later_notes.append(f"compiled for evaluation in {seconds:.1f} s")
        notes, self._later_notes = self._later_notes, []
        return notes

    def _compile_trainer(self, multi_label: bool) -> float:
        self._release(self._evaluator)
        model = TrainingModel(self._vit, self.config).train()
        with _told_of_refusals():
            options = training_options(self.config)
            self._trainer = poptorch.trainingModel(model, options=options, optimizer=self._optimizer)
            begun = time.perf_counter()
            self._trainer.compile(*self._example_step(multi_label))
            seconds = time.perf_counter() - begun
        self._put_back_random_numbers()
        return seconds

    def _put_back_random_numbers(self) -> None:
        state, self._rng_state = self._rng_state, None
        if state is None:
            return
        try:
            self._trainer.rng_state = state
        except (poptorch.Error, RuntimeError) as error:
            first = str(error).strip().splitlines()[0]
            self._later_notes.append(f"PopTorch does not take the saved random numbers back ({first}): they begin anew")

    def _compile_evaluator(self) -> float:
        self._release(self._trainer)
        model = EvaluationModel(self._vit, self.config).eval()
        with _told_of_refusals():
            options = evaluation_options(self.config)
            self._evaluator = poptorch.inferenceModel(model, options=options)
            begun = time.perf_counter()
            self._evaluator.compile(self._pixels(self.eval_batch_size))
            return time.perf_counter() - begun

    def _pixels(self, num_images: int) -> Tensor:
        shape = (num_images, self.config.num_channels, self.config.image_size, self.config.image_size)
        return torch.zeros(shape, dtype=torch.uint8)

    def _example_step(self, multi_label: bool) -> List[Tensor]:
        """Inputs of a host step, of the shapes and types that every later one has."""
        config = self.config
        num_images = config.samples_per_step // config.replication_factor * self._local_replicas
        is_mixed = config.mixup or config.cutmix
        labels = torch.zeros((num_images, config.num_labels) if multi_label else num_images, dtype=torch.int64)
        batch = HostBatch(
            epoch=0,
            step=0,
            images=self._pixels(num_images),
            targets=labels,
            mix=torch.ones(num_images, 5 if config.cutmix else 1) if is_mixed else None,
            label_weights=torch.ones(num_images) if is_mixed else None,
        )
        return self._inputs(batch)

    def _inputs(self, batch: HostBatch) -> List[Tensor]:
        """A host batch as the model takes it; dim 0 is [device iteration][accumulation][replica][micro], PopTorch's layout."""
        assert batch.images is not None and batch.targets is not None
        size = self.config.micro_batch_size
        inputs = [batch.images, pack_targets(batch.targets, size, batch.label_weights)]
        if batch.mix is not None:
            # Drawn once a weight update: one row a micro-batch says it all.
            inputs.append(batch.mix[::size].contiguous() if self.config.mix_mode == "update" else batch.mix)
        return inputs

    # Which of the two programs has the IPUs.

    def _attach(self, executor: Any) -> None:
        """Gives the IPUs to one program; the other's weights and state go to the host."""
        other = self._evaluator if executor is self._trainer else self._trainer
        self._release(other)
        if not executor.isAttachedToDevice():
            executor.attachToDevice()  # uploads the host's weights

    def _release(self, executor: Any) -> None:
        if executor is None or not executor.isAttachedToDevice():
            return
        if executor is self._trainer:
            executor.copyWeightsToHost()
        executor.detachFromDevice()

    def _weights_to_host(self) -> None:
        """In every instance, whoever writes them: the copy is a program on all IPUs."""
        if self._trainer is not None and self._trainer.isAttachedToDevice():
            self._trainer.copyWeightsToHost()

    # The protocol.

    def feed(self, batches: HostBatches) -> HostBatches:
        return batches

    def train_step(self, batch: HostBatch, learning_rate: float, first_update: int) -> StepResult:
        if self._trainer is None:
            self.prepare(evaluates=False, multi_label=batch.targets is not None and batch.targets.dim() == 2)
        self._attach(self._trainer)
        set_learning_rate(self._optimizer, learning_rate)
        self._trainer.setOptimizer(self._optimizer)
        losses, correct = self._trainer(*self._inputs(batch))
        sums = torch.stack([losses.double().sum(), correct.double().sum()])
        totals = self._instances.sum(sums).tolist()
        if self.config.synthetic_data:  # outputs may never be written
            totals = [total if math.isfinite(total) else 0.0 for total in totals]
        config = self.config
        micro_batches = config.device_iterations * config.gradient_accumulation * config.replication_factor
        return StepResult(
            loss=totals[0] / micro_batches,
            accuracy=totals[1] / config.samples_per_step,
            grad_norm=None,
            skipped_updates=0,
            loss_scale=self._loss_scale(),
        )

    def _loss_scale(self) -> float:
        if not self.config.auto_loss_scaling:
            return self.config.loss_scaling
        return float(self._trainer.getAnchoredTensor(LOSS_SCALE).flatten()[-1])

    def trace_next_step(self) -> None:
        """Nothing: a host step is one call. PopVision's system analyser shows what IPUs do in it."""

    def trace(self) -> Optional[Trace]:
        return None

    def peak_memory(self) -> Tuple[int, str]:
        return machine.peak_resident_bytes(), "resident memory of the host process"

    def predict(self, images: Optional[Tensor]) -> Optional[Tensor]:
        assert images is not None
        if self._evaluator is None:
            self._compile_evaluator()
        self._attach(self._evaluator)
        return self._evaluator(images).float()

    def averaged(self) -> ContextManager[None]:
        return contextlib.nullcontext()

    def weights(self, averaged: bool = False) -> Dict[int, Dict[str, Tensor]]:
        if averaged:
            return {}
        self._weights_to_host()
        return {0: {name: value.detach() for name, value in self._parameters.items()}} if self.is_main else {}

    def parameter_names(self) -> Dict[str, Any]:
        return {name: tuple(parameter.shape) for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor], averages: Optional[Mapping[str, Tensor]] = None) -> None:
        self._weights_to_host()  # what `weights` does not name keeps its values
        for name, parameter in self._parameters.items():
            if name in weights:
                parameter.copy_(weights[name])
        for executor in (self._trainer, self._evaluator):
            if executor is not None and executor.isAttachedToDevice():  # else they go there with the program
                executor.copyWeightsToDevice()

    @property
    def loss_scale_factor(self) -> float:
        return loss_scale_factor(self._optimizer) if self.config.auto_loss_scaling else 1.0

    @loss_scale_factor.setter
    def loss_scale_factor(self, factor: float) -> None:
        """It comes back with the optimiser's state."""

    def optimizer_state(self) -> Dict[int, Dict[str, Tensor]]:
        """The same in all replicas, so the first instance's; with it, where the random numbers of each instance are."""
        if not self.config.trains:
            return {}
        state = named_state(
            self._optimizer, self._parameters
        )  # in every instance: a program on all IPUs, as for weights
        state = state if self._state_is_whole else {}
        states = self._instances.gather(None if self._trainer is None else list(self._trainer.rng_state))
        for instance, rng_state in enumerate(states):
            if rng_state is not None:  # 64 bits without a sign, which torch cannot hold as such
                bits = np.array(rng_state, dtype=np.uint64).view(np.int64)
                state[self._rng_name(instance)] = torch.from_numpy(bits)
        if self._trainer is not None:
            state[self._own_name(TYPES)] = torch.tensor(state_types(self.config))
            state[self._own_name(IPUS)] = torch.tensor(self._ipus())
        return {0: state} if self.is_main else {}

    def _own_name(self, key: str) -> str:
        return f"{next(iter(self._parameters))}.{key}"

    def _rng_name(self, instance: int) -> str:
        return self._own_name(f"{RNG_STATE}_{instance}")

    def _ipus(self) -> List[int]:
        return [self._instances.count, self._local_replicas, len(self.config.stage_layers)]

    def load_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        """Raises UserError for a state of other types: PopTorch copies its bytes, whatever they mean."""
        types = state.get(self._own_name(TYPES))
        if types is not None and types.tolist() != state_types(self.config):
            raise UserError(
                "the optimiser's state was saved with another precision, accum_type, first_order_type, second_order_type or\n"
                "       use_combined_accum, and IPUs cannot convert it. Resume with what the run began with (config.yaml in its\n"
                "       folder), or start a new run from its weights."
            )
        ipus = state.get(self._own_name(IPUS))
        rng_state = state.get(self._rng_name(self._instances.index))
        if rng_state is not None and ipus is not None and ipus.tolist() == self._ipus():
            self._rng_state = rng_state.numpy().view(np.uint64).tolist()
        elif rng_state is not None or ipus is not None:
            self._later_notes.append(
                "the run goes on with other replicas, instances or stages: random numbers begin anew"
            )
        own = {name: value for name, value in state.items() if is_ipu_state(name)}
        if own:
            load_named_state(self._optimizer, own)
        elif types is not None:
            self._later_notes.append(
                "the step has no optimiser state (enable_rts over several instances): it begins anew"
            )

    def sum_totals(self, totals: Tensor) -> Tensor:
        return self._instances.sum(totals)

    def from_first_stage(self, values: Optional[Tensor], size: int) -> Tensor:
        assert values is not None, "an instance has all stages"
        return values

    def maximum(self, value: int) -> int:
        return self._instances.maximum(value)

    def from_main(self, value: Any) -> Any:
        return self._instances.from_first(value)

    def gather(self, value: Any) -> List[Any]:
        return self._instances.gather(value)

    def close(self) -> None:
        for executor in (self._trainer, self._evaluator):
            if executor is not None:
                executor.destroy()


@contextlib.contextmanager
def _told_of_refusals() -> Iterator[None]:
    """PopTorch's refusals as a user's mistake, with its first line: what it refuses is in the config or the machine."""
    try:
        yield
    except (poptorch.Error, AssertionError, ValueError, RuntimeError) as error:  # it has no one type for them
        first: Tuple[str, ...] = tuple(str(error).strip().splitlines()[:1])
        raise UserError(
            f"PopTorch cannot compile this plan: {''.join(first)}\n"
            '       See docs/ipu.md, "when something differs"; --debug shows the whole message.'
        ) from error
