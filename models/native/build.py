"""Compiles `kernels.cpp` for this processor, once: the library stays in the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import List, TextIO

import machine

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SOURCE = Path(__file__).with_name("kernels.cpp")  # and the headers beside it
FLAGS = ["-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-fno-strict-aliasing"]
COMPILERS = ("c++", "g++", "clang++")
SECONDS = 120


class BuildError(Exception):
    """There is no compiler, or it does not compile this. The text says why in a line."""


def built_library() -> Path:
    """The compiled library, compiled now if it has not been. Raises BuildError."""
    compiler = _compiler()
    path = _cache_folder() / f"kernels-{_digest(compiler)}.so"
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".lock"), "w") as lock:
            _wait_for(lock)
            return path if path.exists() else _compile(compiler, path)
    except OSError as error:
        raise BuildError(f"{path.parent} cannot be written to ({error.strerror})") from error


def _compiler() -> str:
    for name in [os.environ.get("CXX", ""), *COMPILERS]:
        found = shutil.which(name) if name else None
        if found:
            return found
    raise BuildError("there is no C++ compiler (g++ or clang++)")


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pipevit")


def _digest(compiler: str) -> str:
    """Of all that the library depends on: machines that share a home folder may have other processors."""
    sources = [path.read_text(encoding="utf-8") for path in [SOURCE, *sorted(SOURCE.parent.glob("*.h"))]]
    parts: List[str] = [*sources, *FLAGS, compiler, *platform.libc_ver(), platform.machine(), *machine.cpu_flags()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _wait_for(lock: TextIO) -> None:
    """The processes of a run all come here at once: one compiles, the others find it done."""
    if fcntl is not None:
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the file is closed


def _compile(compiler: str, path: Path) -> Path:
    """Under another name first: a library is there whole or not at all."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        part = Path(folder, path.name)
        command = [compiler, *FLAGS, str(SOURCE), "-o", str(part)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.CalledProcessError as error:
            lines = [line for line in error.stderr.splitlines() if "error" in line] or ["no message"]
            raise BuildError(f"{compiler} does not compile it ({lines[0].strip()})") from error
        except subprocess.TimeoutExpired as error:
            raise BuildError(f"{compiler} takes more than {SECONDS} s") from error
        os.replace(part, path)
    return path
