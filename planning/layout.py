"""Which device and host of a machine computes which stage of which replica. A config that does not fit is told, never changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, List, Optional, Tuple

from errors import UserError, counted
from ipu_plan import fewest_micro_batches, num_reserved, refusals
from placement import Placement, ipus_for, place_pipeline, place_single
from planning.machines import Machine
from planning.units import one_of

if TYPE_CHECKING:
    from config import Config


@dataclass(frozen=True)
class Layout:
    """A placement on a machine."""

    machine: Machine
    placement: Placement
    hosts: int  # that are used
    notes: Tuple[str, ...] = ()
    refusals: Tuple[str, ...] = ()  # why PopTorch would not take the plan

    @property
    def on_ipu(self) -> bool:
        return self.machine.device.kind == "ipu"

    @property
    def num_used(self) -> int:
        """Devices that compute something."""
        return self.placement.num_devices

    def device(self, group: int, process: int) -> int:
        """Number of the device that a replica group's process is on."""
        return group * self.placement.pipeline_size + process

    def host(self, device: int) -> int:
        return device * self.hosts // self.num_used

    @property
    def crosses_hosts(self) -> bool:
        """Whether a replica's stages are on several hosts."""
        size, groups = self.placement.pipeline_size, self.placement.replica_groups
        return any(self.host(self.device(g, 0)) != self.host(self.device(g, size - 1)) for g in range(groups))


def layout_on(config: Config, machine: Machine, hosts: Optional[int], placement: Optional[Placement] = None) -> Layout:
    """The config on a machine; `placement` where it is known already. `hosts`: the number that was asked for, if any."""
    check_runtime(config, machine)
    if machine.device.kind == "ipu":
        return _on_ipus(config, machine, hosts)
    if placement is None:
        placement = _on_torch(config, machine)
    used = hosts or 1
    if placement.num_processes % used:
        raise _uneven(config, placement, used)
    notes = []
    if machine.device.kind == "gpu" and placement.num_processes < machine.num_devices:
        notes.append(
            f"{placement.num_processes} of {counted(machine.num_devices, 'GPU')} are used: the config has "
            f"{counted(len(config.stage_layers), 'stage')} x {counted(config.replication_factor, 'replica')}"
        )
    return Layout(machine, placement, used, tuple(notes))


def check_runtime(config: Config, machine: Machine) -> None:
    """Raises UserError where the config names a runtime that the machine has no devices for."""
    has_ipus = machine.device.kind == "ipu"
    if config.runtime == "auto" or has_ipus == (config.runtime == "ipu"):
        return
    devices = {"ipu": "IPUs, which runtime = ipu is for", "gpu": "GPUs, and no IPUs", "cpu": "no IPUs"}
    others = "h200x8 or cpu" if has_ipus else "pod16 or pod64"
    raise UserError(
        f"runtime = {config.runtime}, but {machine.name} has {devices[machine.device.kind]}.\n"
        f"       Give --runtime {'ipu' if has_ipus else 'auto'}, or --machine {others}."
    )


def _uneven(config: Config, placement: Placement, hosts: int) -> UserError:
    """Processes that hosts cannot share, and what would give other numbers."""
    count = placement.num_processes
    remedy = f"Give {one_of(n for n in range(1, count + 1) if count % n == 0)}."
    if placement.runtime == "single":
        other = ", or --machine h200x8" if config.runtime == "auto" else ""
        remedy = f"Give --runtime pipeline, which has a process for each stage{other}."
    elif count == 1:
        remedy = "Give layers_per_ipu more stages, or a larger replication_factor."
    return UserError(
        f"--hosts {hosts}: {counted(count, 'process')} cannot be shared evenly by {hosts} hosts.\n       {remedy}"
    )


def _on_torch(config: Config, machine: Machine) -> Placement:
    """The runtime that the config would take there."""
    num_gpus = machine.num_devices if machine.device.kind == "gpu" else 0
    if config.runtime == "single" or (config.runtime == "auto" and num_gpus < 2):
        return place_single(config)
    placement = place_pipeline(config, config.num_processes or None, num_gpus, machine.num_devices)
    if 0 < num_gpus < placement.num_processes:
        raise UserError(
            f"num_processes = {placement.num_processes}, but {machine.name} has {counted(num_gpus, 'GPU')}: each process "
            "needs one.\n       Give fewer, or --num-processes 0 for as many as the plan can use."
        )
    return placement


def _on_ipus(config: Config, machine: Machine, hosts: Optional[int]) -> Layout:
    stages, replicas = len(config.stage_layers), config.replication_factor
    if stages > machine.num_devices:
        raise UserError(
            f"layers_per_ipu has {counted(stages, 'stage')}, but {machine.name} has {machine.num_devices} IPUs.\n"
            "       Give fewer stages, or another machine."
        )
    groups = max(n for n in range(1, replicas + 1) if replicas % n == 0 and n * stages <= machine.num_devices)
    placement = ipus_for(config, groups)
    used = _ipu_hosts(machine, groups, hosts)
    folded = {
        "replication_factor": groups,
        "gradient_accumulation": config.gradient_accumulation * placement.folded_replicas,
    }
    refused = tuple(refusals(config.model_copy(update=folded), groups // used))
    return Layout(machine, placement, used, tuple(_ipu_notes(config, machine, placement)), refused)


def _ipu_hosts(machine: Machine, groups: int, hosts: Optional[int]) -> int:
    """Hosts own whole replicas."""
    if hosts is None:
        return max(n for n in range(1, machine.hosts + 1) if groups % n == 0)
    if groups % hosts:
        possible = one_of(n for n in range(1, machine.hosts + 1) if groups % n == 0)
        raise UserError(
            f"--hosts {hosts}: {counted(groups, 'replica')} cannot be shared evenly by {hosts} hosts, each of which "
            f"feeds whole ones.\n       Give {possible}, or another replication_factor."
        )
    return hosts


def _ipu_notes(config: Config, machine: Machine, placement: Placement) -> List[str]:
    stages, groups = placement.pipeline_size, placement.replica_groups
    used, all_of_them = placement.num_devices, machine.num_devices
    rounded = num_reserved(used)
    notes = []
    if groups < placement.replication_factor:
        notes.append(
            f"{placement.replication_factor} replicas of {counted(stages, 'IPU')} need {placement.replication_factor * stages}, "
            f"{machine.name} has {all_of_them}: the plan is for {groups}, gradient accumulation x {placement.folded_replicas} "
            f"(same global batch). PopTorch does not fold by itself: --replication-factor {groups} "
            f"--gradient-accumulation {config.gradient_accumulation * placement.folded_replicas}"
        )
    if rounded != used:
        notes.append(
            f"{counted(used, 'IPU')} are computed with, {rounded} are taken: PopTorch rounds up to a power of two"
        )
    if rounded < all_of_them:
        are_used = f"of the {all_of_them} IPUs of {machine.name} {'is' if used == 1 else 'are'} used"
        notes.append(f"{used} {are_used}{_fuller(config, all_of_them // stages)}")
    if config.schedule != "1f1b":
        notes.append(f"schedule = {config.schedule} is for torch runtimes: IPUs have their own, drained as all are")
    return notes


def _fuller(config: Config, replicas: int) -> str:
    """How to use the whole machine with the same global batch; or why that does not work out, and what the batch would be."""
    if not config.trains:
        return ""
    micro_batches, needed = config.gradient_accumulation * config.replication_factor, fewest_micro_batches(config)
    each = max(-(-micro_batches // replicas), needed)
    if each * replicas == micro_batches:
        return (
            f"; --replication-factor {replicas} --gradient-accumulation {each} would use "
            f"{replicas * len(config.stage_layers)} with the same global batch"
        )
    factors = f"{config.gradient_accumulation} x {config.replication_factor} micro-batches"
    why = f"{factors} do not divide by {replicas} replicas"
    if micro_batches < needed * replicas:
        why = f"{factors} are too few for {counted(replicas, 'replica')}, each of which needs {needed}"
    batch = each * replicas * config.micro_batch_size
    return f": {why}; gradient accumulation {each} would make global batch {batch:,}"
