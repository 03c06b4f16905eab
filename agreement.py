"""What the processes of a run agree on before it starts, on several hosts, too: an error of one becomes the error of all."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Optional, Tuple, TypeVar, cast

from errors import SharedError, UserError
from machine import host_number, rank, spans_hosts

if TYPE_CHECKING:
    from runtime.base import Runtime

T = TypeVar("T")

# A network file system may show a new folder late to those that did not make it (NFS: within acdirmin, a few seconds, mostly).
PATIENCE_SECONDS = 15.0


def raise_together(runtime: Runtime, problem: str) -> None:
    """Raises the first process's problem in all processes ("" is none), so that none waits for one that has ended."""
    reports = runtime.gather((problem, host_number(), socket.gethostname()))
    first = next((report for report in reports if report[0]), None)
    if first is not None:
        text, host, name = first
        raise SharedError(text if host == host_number() else f"on host {name}: {text}")


def decided_by_main(runtime: Runtime, decide: Callable[[], T]) -> T:
    """What `decide()` gives in the main process, in every process; so is a UserError of it."""
    value, problem = None, ""
    if runtime.is_main:
        try:
            value = decide()
        except UserError as error:
            problem = str(error)
    value, problem = runtime.from_main((value, problem))
    if problem:
        raise SharedError(problem)
    return cast(T, value)


def check_folder_is_shared(run_folder: Path, runtime: Runtime, is_new: bool = False) -> None:
    """Raises SharedError where a process cannot write where the main one does. A folder that is new goes again then."""
    if not spans_hosts():
        return
    probe, problem = runtime.from_main(_make_probe(run_folder) if runtime.is_main else None)
    if probe is not None:
        problem = _write_into(Path(probe)) or ""
    problems = [text for text in runtime.gather(problem) if text]
    if runtime.is_main and probe is not None:
        shutil.rmtree(probe, ignore_errors=True)
    if problems and is_new and runtime.is_main:
        (run_folder / "config.yaml").unlink()
        with contextlib.suppress(OSError):  # something else is in it
            run_folder.rmdir()
    if problems:
        raise SharedError(
            f"the run folder {run_folder} is not on a disk that all hosts of the run share: {problems[0]}.\n"
            "       Every process writes its part of a checkpoint there. Name a folder on a shared file system with\n"
            '       --checkpoint-output-dir, or "" to save nothing.'
        )


def _make_probe(run_folder: Path) -> Tuple[Optional[str], str]:
    """In the main process: a new folder, made as those of steps are; or what went wrong."""
    try:
        return tempfile.mkdtemp(prefix=".hosts-", dir=run_folder), ""
    except OSError as error:
        return None, f"{run_folder} cannot be written ({error.strerror})"


def _write_into(probe: Path) -> Optional[str]:
    """Leaves a file there; gives what went wrong."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            (probe / f"rank-{rank()}").touch()
            return None
        except OSError as error:
            if not isinstance(error, FileNotFoundError) or time.monotonic() > deadline:
                what = (
                    "is not there" if isinstance(error, FileNotFoundError) else f"cannot be written ({error.strerror})"
                )
                return f"on host {socket.gethostname()}, rank {rank()}, it {what}"
            time.sleep(0.2)
