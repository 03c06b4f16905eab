"""Writes one step into the run folder, in a thread of each process that has a part of it.

All parts go into a hidden folder, each followed by a file with its SHA-256. The main process waits until all of these are there,
adds indexes and run.json, and renames the folder: a step is there whole or not at all, and no process waits for another while
it trains.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Callable, List, Mapping, Optional, Sequence

from torch import Tensor

from checkpoint import Progress, write_run_details
from reporting.records import SaveRecord
from run_folder import point
from weights.tensor_files import digest_of, index_of, part_name, sync_path, write_index, write_part

if TYPE_CHECKING:
    from weights.card import ModelCard

POLL_SECONDS = 0.02  # between two looks for other processes' parts
FAILED = "failed"  # names the file that says why a process could not write its parts
NICENESS = 10  # of the thread that writes, as of `nice`
DIGEST = ".sha256"  # ends the name of the file that says that a part is on the disk


@dataclass(frozen=True)
class StepParts:
    """A step as one process sees it: what it has to write (file name -> tensors), and of how many parts each kind has."""

    progress: Progress
    files: Mapping[str, Mapping[str, Tensor]]
    num_parts: Mapping[str, int]  # "model", "optimizer", "ema" -> parts of all processes

    @property
    def names(self) -> List[str]:
        """The files of all processes."""
        return [part_name(stem, part, count) for stem, count in self.num_parts.items() for part in range(count)]


def hidden_folder(step_folder: Path) -> Path:
    """A new folder for a step's parts; those of steps that were never completed go. Raises OSError.

    Its name is used once: a process of a run that was killed may write on for a moment into the one that it had.
    """
    for left in step_folder.parent.glob(".step_*.partial"):
        shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f".{step_folder.name}.", suffix=".partial", dir=step_folder.parent))


class StepWriter:
    """Writes this process's parts in a thread, from the moment that it is made.

    With `completes`, as in the main process, it also lets the step appear, gives it these `links`, and calls `afterwards`.
    `begun` is when training came to the save, by `time.perf_counter`. `only_best`: saved for being the best alone.
    """

    def __init__(
        self,
        step_folder: Path,
        hidden: Path,
        parts: StepParts,
        card: ModelCard,
        *,
        completes: bool,
        links: Sequence[str],
        only_best: bool,
        afterwards: Callable[[], None],
        begun: float,
    ) -> None:
        self.step = parts.progress.step
        self.own_parts_are_over = threading.Event()  # written, or failed
        self.abandoned = threading.Event()  # another process has failed: its parts will not come
        self.error: Optional[str] = None
        self.record: Optional[SaveRecord] = None
        self.remark: Optional[str] = None  # what did not work once the step was there
        self._folder, self._hidden, self._parts, self._card = step_folder, hidden, parts, card
        self._completes, self._links, self._begun = completes, links, begun
        self._only_best, self._afterwards = only_best, afterwards
        self._stall = time.perf_counter() - begun
        self._thread = threading.Thread(target=self._run, name=f"save {step_folder.name}", daemon=True)
        self._thread.start()

    @property
    def has_all_parts(self) -> bool:
        """Whether no other process has a part of the step."""
        return set(self._parts.files) == set(self._parts.names)

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def join(self, seconds: Optional[float] = None) -> None:
        self._thread.join(seconds)

    def _run(self) -> None:
        _yield_to_training()
        try:
            self._write_own_parts()
            self.own_parts_are_over.set()
            if self._completes:
                num_bytes = self._complete()
                self._tidy_up()
                self.record = SaveRecord(self.step, self._stall, time.perf_counter() - self._begun, num_bytes)
        except OSError as error:
            self._fail(reason(error))
        except Exception as error:  # of whatever kind: the run must hear of it
            self._fail(f"{type(error).__name__}: {error}")
        finally:
            self.own_parts_are_over.set()

    def _fail(self, why: str) -> None:
        self.error = why
        if self.has_all_parts:  # else others may still be writing: see `hidden_folder`
            shutil.rmtree(self._hidden, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                (self._hidden / FAILED).write_text(why, encoding="utf-8")

    def _write_own_parts(self) -> None:
        for name, tensors in self._parts.files.items():
            path = self._hidden / name
            write_part(path, tensors)
            new = path.with_name(name + ".new")
            new.write_text(digest_of(path))
            os.replace(new, path.with_name(name + DIGEST))

    def _complete(self) -> int:
        """Lets the step appear once all parts are there. Returns its size in bytes."""
        digests = {name: self._digest_from_its_writer(name) for name in self._parts.names}
        for stem, count in self._parts.num_parts.items():
            write_index(self._hidden, stem, count)
            index = index_of(self._hidden, stem)
            digests[index.name] = digest_of(index)
        num_bytes = sum((self._hidden / name).stat().st_size for name in digests)
        write_run_details(self._hidden, self._parts.progress, self._card, digests, self._only_best)
        self._hidden.chmod(self._folder.parent.stat().st_mode & 0o777)  # so far for the owner's eyes alone
        sync_path(self._hidden)
        os.replace(self._hidden, self._folder)
        return num_bytes

    def _tidy_up(self) -> None:
        """What may fail without harm to the step, on a file system without links, say."""
        try:
            sync_path(self._folder.parent)
            for link in self._links:
                point(self._folder.with_name(link), self._folder)
            self._afterwards()
        except OSError as error:
            self.remark = f"step {self.step} is saved, but what comes after it failed: {error}"

    def _digest_from_its_writer(self, name: str) -> str:
        path, failed = self._hidden / (name + DIGEST), self._hidden / FAILED
        while not path.exists():
            if failed.exists():
                raise OSError(None, failed.read_text(encoding="utf-8") or "another process failed")
            if self.abandoned.wait(POLL_SECONDS):
                raise OSError(None, f"another process did not write {name}")
        digest = path.read_text()
        path.unlink()
        return digest


def _yield_to_training() -> None:
    """Gives this thread's share of a busy core to the threads that compute; a core that idles is as fast as before."""
    with contextlib.suppress(OSError, AttributeError):  # a system where threads have no priority of their own
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def reason(error: OSError) -> str:
    """What the system said, without the number and the path."""
    return (error.strerror or str(error)).rstrip(".")
