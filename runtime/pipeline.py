"""Pipeline stages and replicas over processes, with the schedules of `torch.distributed.pipelining`.

Every process holds only its own stages' parameters and optimiser state. Schedules: gpipe (arXiv 1811.06965), 1f1b
(arXiv 1806.03377) and interleaved 1F1B (arXiv 2104.04473); all drain the pipeline before the weight update, so the maths is
that of sequential gradient accumulation. Gradients of replicas are reduced here, once a weight update.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any, Callable, ContextManager, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B

from batch import DataShare, HostBatch, HostBatches
from machine import local_world_size, spans_hosts, world_size
from models.architecture import Architecture, architecture_of
from models.freezing import freeze, is_trained
from models.losses import classification_loss, count_correct, loss_weights, pack_targets
from models.vit import build_model
from runtime.base import StepResult, Trace
from runtime.devices import (
    keep_freed_memory,
    multiply_as_on_cpus,
    peak_memory,
    pick_device,
    set_threads,
    use_native_kernels,
    wire_of,
    yield_the_core_rarely,
)
from runtime.handover import Boundary, Handover, open_handovers, slots_needed
from runtime.heartbeat import watch_hosts
from runtime.interfaces import choose_interface
from runtime.peers import Peers
from runtime.precision import precision_notes, precision_of
from runtime.precision_choice import decided
from runtime.report import nonfinite_text
from runtime.same_config import check_same_config
from runtime.stage import StageModule, TrainingStage, example_input, example_output
from runtime.tracing import Tracer
from runtime.weight_update import WeightUpdate

if TYPE_CHECKING:
    from config import Config
    from placement import Placement

EVAL_ROUNDS = 4  # micro-batches of an evaluation batch, for each process: 16 % bubble at four stages
# A peer that hangs ends the run after this long; a peer that dies ends it at once, a lost host soon (`heartbeat`).
TIMEOUT = datetime.timedelta(minutes=30)


class PipelinePeers(Peers):
    """The processes beside one of a pipeline. See `peers.Peers`. What they exchange travels by way of `wire`."""

    def __init__(
        self, placement: Placement, rank: int, pipeline_group: Any, replica_group: Any, wire: torch.device
    ) -> None:
        self._wire = wire
        self.replica_group, self.num_replica_groups = placement.replica_group(rank), placement.replica_groups
        self._placement, self._rank = placement, rank
        self._pipeline, self._replicas = pipeline_group, replica_group

    def sum_over_stages(self, value: Tensor) -> Tensor:
        if self._placement.pipeline_size > 1:
            self._sum(value, self._pipeline)
        return value

    def sum_over_replicas(self, value: Tensor) -> None:
        if self.num_replica_groups > 1:
            self._sum(value, self._replicas)

    def _sum(self, value: Tensor, group: Any) -> None:
        """In place."""
        sent = value.to(self._wire)
        dist.all_reduce(sent, group=group)
        if sent is not value:
            value.copy_(sent)

    def share_over_replicas(self, value: Tensor, owner: int) -> None:
        size = self._placement.pipeline_size
        sent = value.to(self._wire)
        dist.broadcast(sent, src=owner * size + self._placement.pipeline_rank(self._rank), group=self._replicas)
        if sent is not value:
            value.copy_(sent)

    def gather(self, value: Any) -> list[Any]:
        return _gather(value)


class PipelineRuntime:
    """One process of a pipeline. See `base.Runtime`."""

    backend = "torch"
    makes_every_update = False

    def __init__(self, config: Config, placement: Placement, rank: int, local_rank: int) -> None:
        self.config, self.placement, self.rank = config, placement, rank
        self.device = pick_device(config, local_rank)
        self._wire = wire_of(config, self.device)
        multiply_as_on_cpus(self.device)
        set_threads(config, default=1)
        keep_freed_memory(self.device)
        yield_the_core_rarely(self.device)
        self._peers = self._connect()
        self._watch = watch_hosts(rank, placement.describe(rank), self._peers.gather)
        self.is_main = rank == 0
        config, chosen = decided(config, placement.runtime, self.from_main, self.is_main)
        self.config, self.precision = config, precision_of(config)
        parts = [placement.parts[index] for index in placement.parts_of(rank)]
        self.has_head, self.has_embed = parts[-1].has_head, parts[0].has_embed
        self._first_part = parts[0].index
        self.share = DataShare(placement.replicas_of(rank), images=self.has_embed, targets=self.has_head)
        self.num_parts = len(placement.parts)
        self.micro_batches = (
            config.gradient_accumulation * placement.folded_replicas
        )  # that this process sees an update
        shared = _sharing_note(self.device, self._wire)
        notes = placement.folding(), _network_note(placement), shared, *chosen, *precision_notes(config, self.device)
        self.notes = [note for note in notes if note]
        if config.enable_rts and placement.replication_factor > 1 == placement.replica_groups:
            self.notes.append("enable_rts: all replicas run on one group of processes, so there is no state to share")
        arch = architecture_of(config)
        self.models = {
            part.index: freeze(build_model(arch, config.random_seed, part), config).to(
                self.device, self.precision.weights
            )
            for part in parts
        }
        self.notes += use_native_kernels(self.models.values(), config, self.device)
        trained = self._peers.gather([part for part, model in self.models.items() if is_trained(model)])
        self._first_trained = min((part for parts in trained for part in parts), default=self.num_parts)
        self._tracer = Tracer(self.device)
        self._stages = self._build_stages(arch)
        self._schedule = self._build_schedule(self._stages, self.micro_batches, self._loss) if config.trains else None
        self._build_evaluation(arch)
        self.update = WeightUpdate(config, list(self.models.values()), self._peers)
        self.num_optimizer_parts = self.num_parts * self.update.num_shards
        self._loss_and_correct = torch.zeros(2, device=self.device)
        self._positive_weights = loss_weights(config, self.device)

    def _connect(self) -> Peers:
        """Joins the world, and the two groups that this process is in: its replica's pipeline, its stage's replicas."""
        backend = "nccl" if self._wire.type == "cuda" else "gloo"
        # Without a launcher or workers beside it, a process is a world of its own.
        alone: dict[str, Any] = {"store": dist.HashStore(), "rank": 0, "world_size": 1} if world_size() is None else {}
        if spans_hosts():
            choose_interface()
        dist.init_process_group(backend, timeout=TIMEOUT, **alone)
        check_same_config(self.config, _gather)  # before groups are made by it
        size, groups = self.placement.pipeline_size, self.placement.replica_groups
        pipelines = _groups([range(g * size, (g + 1) * size) for g in range(groups)])
        self._pipeline_group = pipelines[self.placement.replica_group(self.rank)]
        stages = _groups([range(p, groups * size, size) for p in range(size)]) if groups > 1 else None
        replicas = stages[self.placement.pipeline_rank(self.rank)] if stages else None
        return PipelinePeers(self.placement, self.rank, self._pipeline_group, replicas, self._wire)

    def _build_stages(self, arch: Architecture) -> list[TrainingStage]:
        numbers = self._micro_batch_numbers()
        self._modules = [
            StageModule(model, self.config, self.device, self._wire, numbers) for model in self.models.values()
        ]
        batch_size, mix = self.config.micro_batch_size, _mix_columns(self.config)
        examples = {
            # Gradients go back as far as something is trained, and no further.
            index: (
                example_input(
                    arch, model, batch_size, self._wire, self.precision, mix, trains=index > self._first_trained
                ),
                example_output(
                    arch, model, batch_size, self._wire, self.precision, trains=index >= self._first_trained
                ),
            )
            for index, model in self.models.items()
        }
        self._handovers = self._open_handovers(examples)
        return [
            TrainingStage(
                module,
                index,
                self.num_parts,
                self._wire,
                input_args=examples[index][0],
                output_args=examples[index][1],
                group=self._pipeline_group,
                before=self._handovers.get(index - 1),
                after=self._handovers.get(index),
                tracer=self._tracer,
            )
            for module, index in zip(self._modules, self.models)
        ]

    def _open_handovers(self, examples: Mapping[int, tuple[tuple[Tensor, ...], Tensor]]) -> dict[int, Handover]:
        """This process's ends of the boundaries between stages on one host, where they compute on CPUs; by the part before."""
        if self.device.type != "cpu" or not self.config.trains:
            return {}
        first = self.placement.replica_group(self.rank) * self.placement.pipeline_size
        tokens = {index - 1: given[0] for index, (given, _) in examples.items()}
        tokens.update((index, made) for index, (_, made) in examples.items())
        boundaries = [
            Boundary(
                part,
                ranks=(first + part % self.placement.pipeline_size, first + (part + 1) % self.placement.pipeline_size),
                tokens=value,
                sends_back=part >= self._first_trained,
                num_slots=slots_needed(
                    self.config.schedule, self.num_parts, part, self.micro_batches, part >= self._first_trained
                ),
            )
            for part, value in tokens.items()
            if 0 <= part < self.num_parts - 1
        ]
        return open_handovers(boundaries, self.rank, self._peers.gather, TIMEOUT.total_seconds())

    def _micro_batch_numbers(self) -> list[int]:
        """Which micro-batches of a weight update, counted over all replicas, this process sees, in order."""
        replicas = self.config.replication_factor
        return [a * replicas + r for a in range(self.config.gradient_accumulation) for r in self.share.replicas]

    def _build_schedule(
        self, stages: Sequence[PipelineStage], micro_batches: int, loss: Callable[..., Tensor] | None
    ) -> Any:
        # Reduction over micro-batches is ours (`WeightUpdate.seed`): torch would divide once more.
        if self.config.schedule == "interleaved":
            return ScheduleInterleaved1F1B(list(stages), micro_batches, loss_fn=loss, scale_grads=False)
        kind = ScheduleGPipe if self.config.schedule == "gpipe" or loss is None else Schedule1F1B
        return kind(stages[0], micro_batches, loss_fn=loss, scale_grads=False)

    def _build_evaluation(self, arch: Architecture) -> None:
        """A forward-only schedule over the same modules, with micro-batches enough to keep every stage busy."""
        micro_batch = self.config.micro_batch_size
        micro_batches = EVAL_ROUNDS * self.placement.pipeline_size
        self.eval_batch_size = micro_batch * micro_batches
        self.eval_share_index = self.placement.replica_group(self.rank)
        self.eval_num_shares = self.placement.replica_groups
        self._eval_stages = [
            PipelineStage(
                module,
                index,
                self.num_parts,
                self._wire,
                input_args=example_input(arch, self.models[index], micro_batch, self._wire, self.precision),
                output_args=example_output(arch, self.models[index], micro_batch, self._wire, self.precision),
                group=self._pipeline_group,
            )
            for index, module in zip(self.models, self._modules)
        ]
        self._eval_schedule = self._build_schedule(self._eval_stages, micro_batches, None)

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Called by the schedule, in the last stage, for each micro-batch."""
        smoothing, weights = self.config.label_smoothing, self._positive_weights
        logits, targets = logits.to(self.device), targets.to(self.device)
        loss = classification_loss(logits, targets, self.config.loss, smoothing, weights)
        self._loss_and_correct += torch.stack([loss.detach(), count_correct(logits.detach(), targets)])
        scaled = loss * self.update.seed
        self._tracer.extend()  # the loss belongs to the forward pass before it
        return scaled

    def prepare(self, evaluates: bool, multi_label: bool = False) -> list[str]:
        return []

    def feed(self, batches: HostBatches) -> HostBatches:
        return batches

    def train_step(self, batch: HostBatch, learning_rate: float, first_update: int) -> StepResult:
        config = self.config
        for module in self._modules:
            module.train()
        self.update.skipped = 0
        self._loss_and_correct.zero_()
        for iteration in range(config.device_iterations):
            for module in self._modules:
                module.start_update(first_update + iteration)
            self.update.begin(first_update + iteration)
            self._run_schedule(batch, iteration)
            with self._tracer.piece("update", part=self._first_part):
                self.update.apply(learning_rate)
            self._tracer.stop()
            if self.update.must_stop:
                break
        totals = self.sum_totals(self._loss_and_correct.double().cpu())
        updates = iteration + 1
        return StepResult(
            loss=float(totals[0]) / (config.gradient_accumulation * config.replication_factor * updates),
            accuracy=float(totals[1]) / (config.global_batch_size * updates),
            grad_norm=self.update.grad_norm,
            skipped_updates=self.update.skipped,
            loss_scale=self.update.used_scale,
            must_stop=self.update.must_stop,
            nonfinite=nonfinite_text(self.update.nonfinite, config) if self.update.skipped else "",
        )

    def _run_schedule(self, batch: HostBatch, iteration: int) -> None:
        """Forward and backward of all micro-batches of one weight update."""
        size = self.micro_batches * self.config.micro_batch_size
        rows = slice(iteration * size, (iteration + 1) * size)
        with self._tracer.piece("data", part=self._first_part):
            arguments, targets = self._own_inputs(batch, rows)
        assert self._schedule is not None, "a runtime built to validate cannot train"
        self._schedule.step(*arguments, target=targets, return_outputs=False)

    def _own_inputs(self, batch: HostBatch, rows: slice) -> tuple[list[Tensor], Tensor | None]:
        """What the schedule needs of a host batch here: images (and how to mix them), packed targets."""
        arguments, targets = [], None
        if batch.images is not None:
            images = batch.images[rows].to(self._wire, non_blocking=True)
            arguments.append(images)
            if batch.mix is not None:
                arguments.append(batch.mix[rows].to(self._wire, non_blocking=True))
        if batch.targets is not None:
            weights = None if batch.label_weights is None else batch.label_weights[rows]
            targets = pack_targets(batch.targets[rows], self.config.micro_batch_size, weights).to(self._wire)
        return arguments, targets

    def trace_next_step(self) -> None:
        if spans_hosts():
            dist.barrier()
        self._tracer.start()

    def trace(self) -> Trace | None:
        return self._tracer.trace()

    def peak_memory(self) -> tuple[int, str]:
        return peak_memory(self.device)

    @torch.no_grad()
    def predict(self, images: Tensor | None) -> Tensor | None:
        for module in self._modules:
            module.eval()
        arguments = [] if images is None else [images.to(self._wire, non_blocking=True)]
        logits = self._eval_schedule.eval(*arguments)
        return None if logits is None else logits.cpu()

    def averaged(self) -> ContextManager[None]:
        return self.update.averaged()

    def weights(self, averaged: bool = False) -> dict[int, dict[str, Tensor]]:
        if self.placement.replica_group(self.rank) != 0:
            return {}
        weights = self.update.weights(averaged)
        if not weights:
            return {}
        return {
            index: {name: weights[name].detach() for name in names} for index, names in self._names_of_parts().items()
        }

    def parameter_names(self) -> dict[str, Any]:
        return {name: tuple(parameter.shape) for name, parameter in self.update.parameters.items()}

    def load_weights(self, weights: Mapping[str, Tensor], averages: Mapping[str, Tensor] | None = None) -> None:
        self.update.load_weights(weights, averages)

    @property
    def loss_scale_factor(self) -> float:
        return self.update.loss_scale.factor

    @loss_scale_factor.setter
    def loss_scale_factor(self, factor: float) -> None:
        self.update.loss_scale.restore(factor)

    def optimizer_state(self) -> dict[int, dict[str, Tensor]]:
        shards, shard = self.update.num_shards, self.update.shard
        if self.placement.replica_group(self.rank) != shard:
            return {}
        state = self.update.state()
        return {
            index * shards + shard: {
                full_name: value for full_name, value in state.items() if full_name.rsplit(".", 1)[0] in names
            }
            for index, names in self._names_of_parts().items()
        }

    def _names_of_parts(self) -> dict[int, set[str]]:
        return {index: {name for name, _ in model.named_parameters()} for index, model in self.models.items()}

    def load_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        self.update.load_state(dict(state))

    def sum_totals(self, totals: Tensor) -> Tensor:
        totals = totals.to(self._wire)
        dist.all_reduce(totals)
        return totals.cpu()

    def from_first_stage(self, values: Tensor | None, size: int) -> Tensor:
        tensor = (torch.empty(size, dtype=torch.int64) if values is None else values).to(self._wire)
        if self.placement.pipeline_size > 1:
            first = self.placement.replica_group(self.rank) * self.placement.pipeline_size
            dist.broadcast(tensor, src=first, group=self._pipeline_group)
        return tensor.cpu()

    def maximum(self, value: int) -> int:
        tensor = torch.tensor(value, device=self._wire)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor)

    def from_main(self, value: Any) -> Any:
        holder = [value]
        dist.broadcast_object_list(holder, src=0, device=self._wire)
        return holder[0]

    def gather(self, value: Any) -> list[Any]:
        return self._peers.gather(value)

    def close(self) -> None:
        # All leave together: a process that goes first makes the others' connections fail.
        dist.barrier()
        if self._watch is not None:
            self._watch.leave()
        for handover in self._handovers.values():
            handover.close()
        dist.destroy_process_group()


def _gather(value: Any) -> list[Any]:
    """Every process's value, in every process."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _network_note(placement: Placement) -> str | None:
    """Where stages of a replica have to lie on several hosts."""
    here = local_world_size() or placement.num_processes
    if placement.pipeline_size <= here:
        return None
    stages = f"a replica's {placement.pipeline_size} stages lie on several hosts"
    return f"{stages} ({here} process{'es' * (here > 1)} here): what they exchange goes over the network"


def _sharing_note(device: torch.device, wire: torch.device) -> str | None:
    if device == wire:
        return None
    return (
        f"processes share {torch.cuda.device_count()} GPUs: what they exchange goes through host memory (gloo), slowly"
    )


def _groups(members: list[range]) -> list[Any]:
    """A process group for each of these sets of ranks; every process calls this. One set is the world, whose group is there.

    No more groups than are needed: each gloo group has a thread that wakes a hundred times a second.
    """
    return [dist.group.WORLD] if len(members) == 1 else [dist.new_group(list(ranks)) for ranks in members]


def _mix_columns(config: Config) -> int:
    """Width of `HostBatch.mix`."""
    return 5 if config.cutmix else 1 if config.mixup else 0
