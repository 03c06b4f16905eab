"""What this process runs on: cores, GPUs, and its place in a launcher's world. Imports torch only where there is a GPU."""

from __future__ import annotations

import ctypes
import glob
import os
import platform
import re
import signal
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import List, Optional

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_PR_SET_PDEATHSIG = 1  # of prctl(2)
CPU_FILE = "/proc/cpuinfo"
# Its names of instructions, on x86 and Arm.
_MULTIPLYING_FLAGS = {
    "float16": {"avx512_fp16", "amx_fp16", "asimdhp"},
    "bfloat16": {"avx512_bf16", "amx_bf16", "bf16"},
}
_NEVER, _MOST = 2**31 - 1, 2**25  # bytes


def num_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> str:
    """The machine in a line: host, CPU, cores and GPUs."""
    parts = [socket.gethostname(), f"{_cpu_name()}, {num_cores()} cores"]
    gpus = num_gpus("auto")
    if gpus:
        import torch

        parts.append(f"{gpus} x {torch.cuda.get_device_name(0)}")
    return " · ".join(parts)


def _cpu_name() -> str:
    try:
        with open(CPU_FILE, encoding="utf-8", errors="replace") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def cpu_flags() -> List[str]:
    """The processor's features by the system's names, in order; none where it does not tell."""
    try:
        with open(CPU_FILE, encoding="utf-8", errors="replace") as file:
            return re.findall(r"\w+", next(line for line in file if line.lower().startswith(("flags", "features"))))
    except (OSError, StopIteration):
        return []


def cpu_multiplies(kind: str) -> bool:
    """Whether the CPU has instructions that multiply `float16` or `bfloat16`. True where the system does not tell."""
    flags = cpu_flags()
    return not flags or not _MULTIPLYING_FLAGS[kind].isdisjoint(flags)


def peak_resident_bytes() -> int:
    """The most memory that this process has had in use so far; 0 where the system does not tell."""
    try:  # not `getrusage`, which counts what the process was forked from, too
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def num_gpus(device: str) -> int:
    """GPUs that torch can use for the config's `device` setting (auto, cpu or cuda)."""
    if device == "cpu" or not glob.glob("/dev/nvidia[0-9]*"):
        return 0
    import torch

    return int(torch.cuda.device_count())


def has_pipelining() -> bool:
    """Whether this torch has the schedules that `runtime/pipeline.py` runs: 2.0.1, which PopTorch needs, has not."""
    torch = find_spec("torch")  # looked for, as importing it takes seconds
    folders = torch.submodule_search_locations if torch is not None else None
    return any(Path(folder, "distributed", "pipelining").is_dir() for folder in folders or ())


def world_size() -> Optional[int]:
    """Number of processes that a launcher has started (`torchrun` sets WORLD_SIZE), or None without one."""
    value = os.environ.get("WORLD_SIZE")
    return int(value) if value else None


def local_world_size() -> Optional[int]:
    """Number of those processes on this host, or None without a launcher."""
    value = os.environ.get("LOCAL_WORLD_SIZE")
    return int(value) if value else None


def spans_hosts() -> bool:
    """Whether the launcher's world has processes on other hosts, too. (poprun starts its by MPI.)"""
    here, everywhere = local_world_size() or _of_mpi("LOCAL_SIZE"), world_size() or _of_mpi("SIZE")
    return 0 < here < everywhere


def _of_mpi(name: str) -> int:
    return int(os.environ.get(f"OMPI_COMM_WORLD_{name}") or 0)


def is_first_of_host() -> bool:
    """Whether this is the first, or the only process of a launcher on its host."""
    return not (local_rank() or _of_mpi("LOCAL_RANK"))


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process's number on its host."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def host_number() -> int:
    """The same for all processes of a host, another on another host. (`torchrun` sets GROUP_RANK.)"""
    mpi = _of_mpi("RANK") - _of_mpi("LOCAL_RANK")
    return int(os.environ.get("GROUP_RANK") or mpi or rank() - local_rank())


def end_with_parent() -> None:
    """Lets the system end this process when the one that started it is gone, even by SIGKILL. On Linux alone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def keep_freed_memory() -> None:
    """Lets the allocator of glibc keep what this process frees, for its next allocation. Elsewhere without effect.

    As it is set, it hands large blocks back at once, and every batch or image pays for getting them zeroed anew, page by page.
    The process's memory stays at its peak.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # macOS, musl, Windows
        return
    # Older versions refuse blocks above 32 MB, which then stay as they were.
    if set_option(_M_MMAP_THRESHOLD, _NEVER) or set_option(_M_MMAP_THRESHOLD, _MOST):
        set_option(_M_TRIM_THRESHOLD, _NEVER)
