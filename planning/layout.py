"""Which device and host of a machine computes which stage of which replica. A config that does not fit is told, never changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, List, Optional, Tuple

from errors import UserError
from ipu_plan import fewest_micro_batches, num_reserved
from placement import Placement, ipus_for, place_pipeline, place_single
from planning.machines import Machine

if TYPE_CHECKING:
    from config import Config


@dataclass(frozen=True)
class Layout:
    """A placement on a machine."""

    machine: Machine
    placement: Placement
    hosts: int  # that are used
    notes: Tuple[str, ...] = ()

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
    if machine.device.kind == "ipu":
        return _on_ipus(config, machine, hosts)
    if placement is None:
        placement = _on_torch(config, machine)
    used = hosts or 1
    if placement.num_processes % used:
        raise UserError(
            f"--hosts {used}: {placement.num_processes} processes cannot be shared evenly by {used} hosts.\n"
            f"       Give a divisor of {placement.num_processes}."
        )
    notes = []
    if machine.device.kind == "gpu" and placement.num_processes < machine.num_devices:
        notes.append(
            f"{placement.num_processes} of {machine.num_devices} GPUs are used: the config has "
            f"{len(config.stage_layers)} stages x {config.replication_factor} replicas"
        )
    return Layout(machine, placement, used, tuple(notes))


def _on_torch(config: Config, machine: Machine) -> Placement:
    """The runtime that the config would take there."""
    num_gpus = machine.num_devices if machine.device.kind == "gpu" else 0
    if config.runtime == "single" or (config.runtime == "auto" and num_gpus < 2):
        return place_single(config)
    placement = place_pipeline(config, config.num_processes or None, num_gpus, machine.num_devices)
    if 0 < num_gpus < placement.num_processes:
        raise UserError(
            f"num_processes = {placement.num_processes}, but {machine.name} has {num_gpus} GPUs: each process needs one."
        )
    return placement


def _on_ipus(config: Config, machine: Machine, hosts: Optional[int]) -> Layout:
    stages, replicas = len(config.stage_layers), config.replication_factor
    if stages > machine.num_devices:
        raise UserError(
            f"layers_per_ipu has {stages} stages, but {machine.name} has {machine.num_devices} IPUs.\n"
            "       Give fewer stages, or another machine."
        )
    groups = max(n for n in range(1, replicas + 1) if replicas % n == 0 and n * stages <= machine.num_devices)
    placement = ipus_for(config, groups)
    notes = list(_ipu_notes(config, machine, placement))
    return Layout(machine, placement, _ipu_hosts(machine, groups, hosts), tuple(notes))


def _ipu_hosts(machine: Machine, groups: int, hosts: Optional[int]) -> int:
    """Hosts own whole replicas."""
    if hosts is None:
        return max(n for n in range(1, machine.hosts + 1) if groups % n == 0)
    if groups % hosts:
        divisors = [str(n) for n in range(1, groups + 1) if groups % n == 0]
        raise UserError(
            f"--hosts {hosts}: {groups} replica{'s' * (groups > 1)} cannot be shared evenly by {hosts} hosts, each of which "
            f"feeds whole ones.\n       Give {' or '.join(divisors)}, or another replication_factor."
        )
    return hosts


def _ipu_notes(config: Config, machine: Machine, placement: Placement) -> List[str]:
    stages, groups = placement.pipeline_size, placement.replica_groups
    used, all_of_them = placement.num_devices, machine.num_devices
    rounded = num_reserved(used)
    notes = []
    if groups < placement.replication_factor:
        notes.append(
            f"{placement.replication_factor} replicas of {stages} IPUs need {placement.replication_factor * stages}, "
            f"{machine.name} has {all_of_them}: the plan is for {groups}, gradient accumulation x {placement.folded_replicas} "
            f"(same global batch). PopTorch does not fold by itself: --replication-factor {groups} "
            f"--gradient-accumulation {config.gradient_accumulation * placement.folded_replicas}"
        )
    if rounded != used:
        notes.append(f"{used} IPUs are computed with, {rounded} are taken: PopTorch rounds up to a power of two")
    if rounded < all_of_them:
        notes.append(
            f"{used} of the {all_of_them} IPUs of {machine.name} are used{_fuller(config, all_of_them // stages)}"
        )
    needed = fewest_micro_batches(config)
    if config.trains and config.gradient_accumulation * placement.folded_replicas < needed:
        notes.append(
            f"PopTorch asks for gradient_accumulation = {needed} or more with {stages} stages (2 x {stages} - 1); "
            f"the config has {config.gradient_accumulation}"
        )
    if config.schedule != "1f1b":
        notes.append(f"schedule = {config.schedule} is for torch runtimes: IPUs have their own, drained as all are")
    return notes


def _fuller(config: Config, replicas: int) -> str:
    """How to use the whole machine with the same global batch, where that works out."""
    micro_batches = config.gradient_accumulation * config.replication_factor
    if not config.trains or micro_batches % replicas:
        return ""
    return (
        f"; --replication-factor {replicas} --gradient-accumulation {micro_batches // replicas} would use "
        f"{replicas * len(config.stage_layers)} with the same global batch"
    )
