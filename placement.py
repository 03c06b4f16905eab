"""Where a plan's stages and replicas run: how they fold onto the processes or devices that there are. No torch.

Replicas that have no process of their own become further gradient accumulation, neighbouring stages merge; neither changes
the maths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, List, Optional, Tuple

from errors import SharedError, UserError, counted
from ipu_options import hardware_is_there, is_installed, poprun
from ipu_plan import check_plan, num_stages
from machine import has_pipelining, local_rank, local_world_size, num_cores, num_gpus, rank, world_size
from models.stages import Stage, fold_stages, plan_stages

if TYPE_CHECKING:
    from config import Config


@dataclass(frozen=True)
class Placement:
    """Which process computes what. Rank = replica group * pipeline size + pipeline rank: a replica's stages are neighbours.

    On IPUs one process drives all devices, which are numbered as ranks are. `parts` are the pieces that the model is cut into,
    in order: a plan's stages, or neighbours of them merged. Part i belongs to pipeline rank i mod `pipeline_size`; there are
    more parts than ranks in the interleaved schedule only.
    """

    runtime: str  # "single", "pipeline" or "ipu"
    parts: Tuple[Stage, ...]
    pipeline_size: int  # processes, or IPUs, that share one replica of the model
    replica_groups: int  # replicas that have processes, or IPUs, of their own
    replication_factor: int
    planned_stages: int
    too_few_micro_batches: str = ""  # why fewer stages run than are planned, where that is the reason

    @property
    def num_devices(self) -> int:
        return self.pipeline_size * self.replica_groups

    @property
    def num_processes(self) -> int:
        return 1 if self.runtime == "ipu" else self.num_devices

    @property
    def folded_replicas(self) -> int:
        """Replicas that one group of processes works through, one after the other."""
        return self.replication_factor // self.replica_groups

    def pipeline_rank(self, rank: int) -> int:
        return rank % self.pipeline_size

    def replica_group(self, rank: int) -> int:
        return rank // self.pipeline_size

    def parts_of(self, rank: int) -> List[int]:
        """Indices of the parts that a process owns."""
        return list(range(self.pipeline_rank(rank), len(self.parts), self.pipeline_size))

    def replicas_of(self, rank: int) -> Tuple[int, ...]:
        """The replicas (of `replication_factor`) whose samples a process works on."""
        return tuple(range(self.replica_group(rank), self.replication_factor, self.replica_groups))

    def describe(self, rank: int) -> str:
        """What a process computes, in words."""
        names = "; ".join(f"stage {part} ({self.parts[part].describe()})" for part in self.parts_of(rank))
        return f"replica group {self.replica_group(rank)}, {names}" if self.replica_groups > 1 else names

    def folding(self) -> Optional[str]:
        """One line on what was folded, or None where every stage of every replica has a device of its own."""
        if self.runtime == "ipu":
            return None
        changes = []
        if len(self.parts) < self.planned_stages:
            changes.append(f"{self.planned_stages} stages run as {len(self.parts)}{self.too_few_micro_batches}")
        if len(self.parts) > self.pipeline_size:
            changes.append(f"each process holds {len(self.parts) // self.pipeline_size} stages, interleaved")
        if self.folded_replicas > 1:
            groups = f"{self.replica_groups} group{'s' * (self.replica_groups > 1)} of processes"
            changes.append(
                f"{self.replication_factor} replicas run on {groups}, gradient accumulation x {self.folded_replicas}"
            )
        return "; ".join(changes) + " (same global batch, same result)" if changes else None


def follow_launcher(config: Config) -> Config:
    """The config with the number of replicas that poprun has started, as in the public app; without poprun as it is."""
    launched = poprun()
    if launched is None:
        return config
    if launched.ipus_per_replica != num_stages(config):
        raise UserError(
            f"poprun gives a replica {launched.ipus_per_replica} IPUs, but layers_per_ipu = {list(config.stage_layers)} needs "
            f"{num_stages(config)}.\n       Start poprun with --ipus-per-replica {num_stages(config)}, or change layers_per_ipu."
        )
    return config.model_copy(update={"replication_factor": launched.total_replicas})


def place(config: Config) -> Placement:
    """The placement for this machine and launcher. Raises UserError where the config asks for what is not there."""
    if _runs_on_ipus(config):
        return place_ipu(config)
    gpus = num_gpus(config.device)
    if config.device == "cuda" and gpus == 0:
        raise UserError("device = cuda, but torch finds no CUDA device here. Use --device cpu or --device auto.")
    world = world_size()
    if resolve_runtime(config.runtime, gpus, world) == "single":
        if world is not None and world > 1:
            raise UserError(f"runtime = single is one process, but {world} were started. Use --runtime pipeline.")
        return place_single(config)
    limit = 0 if config.share_gpus else gpus
    placement = place_pipeline(config, world or config.num_processes or None, limit, num_cores())
    here = local_world_size() or placement.num_processes
    _check_hosts(placement.pipeline_size, rank() - local_rank(), here)
    if 0 < limit < here:
        raise UserError(
            f"{here} processes on a machine with {counted(gpus, 'GPU')}: each needs one of its own.\n"
            f"       Start {gpus} or fewer, use --device cpu, or let them share with --share-gpus true, which is slow."
        )
    return place_single(config) if config.runtime == "auto" and placement.num_processes == 1 else placement


def _check_hosts(pipeline_size: int, first_rank: int, num_here: int) -> None:
    """Raises SharedError where a replica that one host could hold lies on two: its stages exchange every micro-batch."""
    if pipeline_size <= num_here and (first_rank % pipeline_size or num_here % pipeline_size):
        fewer = num_here - num_here % pipeline_size
        here = counted(num_here, "process")
        raise SharedError(
            f"{here} on this host, from rank {first_rank} on, for replicas of {pipeline_size} stages each: one of\n"
            f"       them would lie on two hosts. Start {fewer} or {fewer + pipeline_size} on every host (--nproc-per-node), or "
            "change layers_per_ipu."
        )


def _runs_on_ipus(config: Config) -> bool:
    """`auto` does where PopTorch finds as many IPUs as a replica needs; a runtime that is named is taken."""
    launched = poprun()
    if config.runtime == "ipu":
        if not is_installed():
            raise UserError(
                "runtime = ipu needs PopTorch, from Graphcore's Poplar SDK 3.4, and this Python has none.\n"
                "       Activate the SDK's environment (docs/ipu.md), or use --runtime auto."
            )
        return True
    if config.runtime == "auto" and hardware_is_there(num_stages(config)):
        return True
    if launched is not None:
        raise UserError(
            f"poprun started {counted(launched.num_instances, 'instance')}, but runtime = {config.runtime} finds no IPUs for "
            "them.\n       Check the partition, or start without poprun (torchrun starts processes for GPUs and CPUs)."
        )
    return False


def place_ipu(config: Config) -> Placement:
    """Every stage of every replica on an IPU of its own, all in this process. Raises UserError for what PopTorch would refuse."""
    launched = poprun()
    check_plan(config, launched.local_replicas if launched is not None else config.replication_factor)
    if (
        config.ipu_target == "offline"
        and not config.compile_only
        and config.command in ("pretrain", "finetune", "validation")
    ):
        raise UserError(
            "ipu_target = offline compiles for IPUs that are not here, and cannot run.\n       Add --compile-only."
        )
    return ipus_for(config, config.replication_factor)


def ipus_for(config: Config, replicas: int) -> Placement:
    """So many replicas on IPUs of their own, an IPU a stage."""
    stages = tuple(plan_stages(config.stage_layers))
    return Placement("ipu", stages, len(stages), replicas, config.replication_factor, len(stages))


def resolve_runtime(runtime: str, gpus: int, world: Optional[int]) -> str:
    """`auto` is pipeline where there are two GPUs (and torch can) or a launcher's world, else single."""
    if runtime != "auto":
        return runtime
    return "pipeline" if (gpus >= 2 and has_pipelining()) or (world or 1) > 1 else "single"


def check_can_run(placement: Placement) -> None:
    """Raises UserError where this torch is too old for the runtime. A plan can be looked at all the same."""
    if placement.runtime == "pipeline" and not has_pipelining():
        from importlib.metadata import version

        raise UserError(
            f"runtime = pipeline needs torch 2.5 or later, but this is torch {version('torch')}.\n"
            "       Use --runtime single: the same numbers, from one process."
        )


def place_single(config: Config) -> Placement:
    """The whole model on one device."""
    stages = plan_stages(config.stage_layers)
    return Placement("single", tuple(fold_stages(stages, 1)), 1, 1, config.replication_factor, len(stages))


def place_pipeline(config: Config, num_processes: Optional[int], num_devices: int, cores: int) -> Placement:
    """Stages and replicas over processes.

    `num_processes` is a number that must be met (a launcher's world, or the config's), or None: then one process a stage,
    on GPUs no more than `num_devices` processes, and on the CPU as many replicas as leave a core for each process.
    Raises UserError where the number cannot be met.
    """
    stages = plan_stages(config.stage_layers)
    if num_processes is not None:
        pipeline_size, groups = _split_exactly(config, len(stages), num_processes)
    else:
        pipeline_size, groups = _split_as_planned(config, len(stages), num_devices or len(stages), num_devices or cores)
    num_parts = len(stages) if config.schedule == "interleaved" else pipeline_size
    parts = tuple(fold_stages(stages, num_parts))
    why = ""
    if not _has_enough_micro_batches(config, len(stages), groups):
        why = f", as a weight update needs a micro-batch for each: --gradient-accumulation {len(stages)} or more"
    placement = Placement("pipeline", parts, pipeline_size, groups, config.replication_factor, len(stages), why)
    _check_interleaved(config, placement)
    return placement


def _divisors(number: int) -> List[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _pipeline_sizes(config: Config, num_stages: int) -> List[int]:
    """Numbers of processes that can share the stages, smallest first."""
    if config.schedule == "interleaved":
        return [n for n in _divisors(num_stages) if 2 <= n < num_stages]
    return list(range(1, num_stages + 1))


def _has_enough_micro_batches(config: Config, size: int, groups: int) -> bool:
    """Whether every one of `size` stages can have a micro-batch of a weight update in it, as the schedules demand.

    Evaluation brings micro-batches of its own; interleaved schedules have a rule of their own.
    """
    if config.schedule == "interleaved" or not config.trains:
        return True
    return config.gradient_accumulation * config.replication_factor // groups >= size


def _split_as_planned(config: Config, num_stages: int, max_size: int, max_processes: int) -> Tuple[int, int]:
    """(processes a replica, replica groups): as long a pipeline as can be, then as many replicas side by side."""
    for size in reversed([n for n in _pipeline_sizes(config, num_stages) if n <= max_size]):
        room = max(1, max_processes // size)
        for groups in reversed([n for n in _divisors(config.replication_factor) if n <= room]):
            if _has_enough_micro_batches(config, size, groups):
                return size, groups
    raise _interleaved_error(num_stages)


def _split_exactly(config: Config, num_stages: int, num_processes: int) -> Tuple[int, int]:
    """(processes a replica, replica groups) whose product is `num_processes`, with as long a pipeline as can be."""
    sizes = _pipeline_sizes(config, num_stages)
    if not sizes:
        raise _interleaved_error(num_stages)
    for size in reversed(sizes):
        groups, rest = divmod(num_processes, size)
        fits = groups and not rest and config.replication_factor % groups == 0
        if fits and _has_enough_micro_batches(config, size, groups):
            return size, groups
    usable = _usable(config, num_stages)
    raise UserError(
        f"{counted(num_processes, 'process')} cannot share {counted(num_stages, 'stage')} x "
        f"replication_factor = {config.replication_factor} with gradient_accumulation = {config.gradient_accumulation}.\n"
        f"       Start {' or '.join(map(str, usable))}, or change layers_per_ipu, replication_factor or gradient_accumulation\n"
        "       (a replica's weight update needs at least as many micro-batches as the replica has processes)."
    )


def _usable(config: Config, num_stages: int) -> List[int]:
    """Numbers of processes that stages and replicas can share, smallest first."""
    return sorted(
        {
            size * groups
            for size in _pipeline_sizes(config, num_stages)
            for groups in _divisors(config.replication_factor)
            if _has_enough_micro_batches(config, size, groups)
        }
    )


def process_counts(config: Config) -> List[int]:
    """The numbers of processes that the pipeline runtime takes for this plan, smallest first."""

    def is_taken(number: int) -> bool:
        try:
            return place_pipeline(config, number, 0, 1).num_processes == number
        except UserError:  # the interleaved schedule's rounds
            return False

    return [number for number in _usable(config, len(config.stage_layers)) if is_taken(number)]


def _interleaved_error(num_stages: int) -> UserError:
    return UserError(
        f"schedule = interleaved needs several stages on each of at least two processes; the plan has {num_stages}.\n"
        "       Give layers_per_ipu at least 4 entries, an even number, or use --schedule 1f1b."
    )


def _check_interleaved(config: Config, placement: Placement) -> None:
    """Interleaved 1F1B works in rounds of equal size (arXiv 2104.04473); torch refuses others."""
    if config.schedule != "interleaved":
        return
    micro_batches = config.gradient_accumulation * placement.folded_replicas
    rounds = max(1, micro_batches // placement.pipeline_size)
    if micro_batches % rounds:
        raise UserError(
            f"schedule = interleaved cannot divide {micro_batches} micro-batches into {rounds} equal rounds.\n"
            f"       Make gradient_accumulation a multiple of {placement.pipeline_size}."
        )
