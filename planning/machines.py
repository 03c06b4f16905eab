"""The machines that a plan can be made for: devices, memory, peak rates and links. Figures of their makers, unless they say else.

Every number here is an assumption of the prediction; `docs/planning.md` says where it comes from.
"""

from __future__ import annotations

import glob
import os
import re
from dataclasses import dataclass, field, replace
from typing import Mapping, Optional

from errors import UserError, counted
from machine import num_cores
from planning.units import one_of

GB, TERA = 10**9, 10**12


@dataclass(frozen=True)
class Device:
    """One processor that computes a stage."""

    kind: str  # "ipu", "gpu" or "cpu"
    name: str
    memory: Optional[int]  # bytes; None: not known
    peaks: Mapping[str, float] = field(default_factory=dict)  # FLOP/s of matrix products in fp16, bf16 and fp32
    efficiency: float = 1.0  # share of the peak that training a ViT reaches, all else than waiting included
    efficiency_from: str = ""
    link: Optional[float] = None  # bytes/s to another device, one way
    host_link: Optional[float] = None  # the same to a device of another host
    streaming: Optional[float] = None  # bytes/s to memory off the chip
    memory_rate: Optional[float] = None  # bytes/s to the device's own memory: what an optimiser's step takes
    latency: float = 0.0  # seconds from one device to the next, however short the message is

    def rate(self, kind: str) -> Optional[float]:
        """FLOP/s that a stage is computed with, or None where it is not known or not possible."""
        peak = self.peaks.get(kind)
        return peak * self.efficiency if peak else None


@dataclass(frozen=True)
class Machine:
    """Hosts with devices of one kind."""

    name: str
    device: Device
    num_devices: int  # of all hosts
    hosts: int = 1
    cores: Optional[int] = None  # of a host, free to load images; None: not known, or busy with the model itself
    is_here: bool = False  # whether it is the machine that the plan is made on


# One published figure sets the IPU's efficiency, the others check it (docs/planning.md).
IPU_EFFICIENCY = 0.1972
IPU_CALIBRATION = "set by one published figure, ViT pre-training on a Bow Pod16, 7,615 images/s"

BOW = Device(
    kind="ipu",
    name="Bow IPU",
    memory=900 * 10**6,
    peaks={"fp16": 350 * TERA, "fp32": 87.5 * TERA},
    efficiency=IPU_EFFICIENCY,
    efficiency_from=IPU_CALIBRATION,
    link=32 * GB,  # IPU-Link: 512 Gbit/s, both ways together
    host_link=32 * GB,  # hosts are no part of it: IPUs of a Pod are linked all the same
    streaming=5 * GB,  # a quarter of an IPU-Machine's 20 GB/s
    memory_rate=65.4 * TERA,
)
GC200 = replace(BOW, name="GC200 IPU", peaks={"fp16": 250 * TERA, "fp32": 62.5 * TERA}, memory_rate=47.5 * TERA)
GPU_LATENCY = 10e-6  # assumed, with the start of a collective; never measured here
H200 = Device(
    kind="gpu",
    name="H200 GPU",
    memory=141 * GB,
    peaks={"fp16": 989 * TERA, "bf16": 989 * TERA, "fp32": 67 * TERA},  # dense; fp32 without TF32
    efficiency=0.35,
    efficiency_from="assumed: never run; small micro-batches reach less, large matrix products alone 0.8",
    link=450 * GB,  # NVLink 4, one way
    host_link=50 * GB,  # a 400 Gbit/s adapter a GPU
    memory_rate=4.8 * TERA,
    latency=GPU_LATENCY,
)
H100 = replace(H200, name="H100 GPU", memory=80 * GB, memory_rate=3.35 * TERA)  # the SXM one: the same processor
POD_CORES = 64  # the loaders that the public PopTorch ViT application starts on each host
DGX_CORES = 112  # of a DGX H100 or H200
CPU_EFFICIENCY = 0.75
CPU_EFFICIENCY_FROM = (
    "all cores at once, beside the quickest of an encoder block's passes, which are measured before each plan"
)

MACHINES = {
    "pod16": Machine("pod16", BOW, 16, cores=POD_CORES),
    "pod16-gc200": Machine("pod16-gc200", GC200, 16, cores=POD_CORES),
    "pod64": Machine("pod64", BOW, 64, hosts=4, cores=POD_CORES),
    "h100x8": Machine("h100x8", H100, 8, cores=DGX_CORES),
    "h200x8": Machine("h200x8", H200, 8, cores=DGX_CORES),
}
NAMES = (*MACHINES, "cpu")


def named_machine(name: str, hosts: Optional[int], measured: Optional[Mapping[str, float]] = None) -> Machine:
    """The machine of `--machine NAME --hosts N`. `measured`: FLOP/s of this CPU in a block's training, by kind of number."""
    if name == "cpu":
        return this_machine(0, hosts, measured)
    machine = MACHINES[name]
    if hosts is None:
        return machine
    if machine.device.kind == "ipu":
        possible = [n for n in range(1, machine.hosts + 1) if machine.num_devices % n == 0]
        if hosts not in possible:
            why = f"has {counted(machine.hosts, 'host')}"
            if hosts <= machine.hosts:
                why = f"has {machine.num_devices} IPUs, which {hosts} hosts cannot share evenly"
            raise UserError(f"--hosts {hosts}: {name} {why}.\n       Give {one_of(possible)}, or another --machine.")
        return replace(machine, hosts=hosts)
    return replace(machine, hosts=hosts, num_devices=machine.num_devices * hosts)


def this_machine(num_gpus: int, hosts: Optional[int] = None, measured: Optional[Mapping[str, float]] = None) -> Machine:
    """The machine that this process runs on, or several like it."""
    count = hosts or 1
    if num_gpus:
        return Machine("this machine", _gpu_here(), num_gpus * count, count, is_here=True)
    efficiency_from = CPU_EFFICIENCY_FROM if measured else ""
    cpu = Device("cpu", "CPU", _memory_here(), measured or {}, CPU_EFFICIENCY, efficiency_from)
    return Machine("cpu" if measured else "this machine", cpu, num_cores() * count, count, is_here=True)


def _gpu_here() -> Device:
    """By the driver's name for it; one that is not known has no figures."""
    for path in sorted(glob.glob("/proc/driver/nvidia/gpus/*/information")):
        with open(path, encoding="utf-8", errors="replace") as file:
            found = re.search(r"Model:\s*(.+)", file.read())
        if found:
            return H200 if "H200" in found.group(1) else Device("gpu", found.group(1).strip(), None)
    return Device("gpu", "GPU", None)


def _memory_here() -> Optional[int]:
    try:
        return int(os.sysconf("SC_PHYS_PAGES")) * int(os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return None
