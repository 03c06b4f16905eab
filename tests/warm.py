"""Starts the project's commands in a process of their own, but without the seconds of CPU time in which Python imports torch.

`Popen` and `run` are those of subprocess. The new process is a fork of the tests' that does what `python FILE ...` or
`python -c PROGRAM ...` would: its streams, folder, session, signals and environment are those that it is given, and every
module of the project is imported anew. Only other packages are there already. How a bare interpreter starts, and how it
ends, is what tests hold that use subprocess.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import gc
import importlib
import logging
import multiprocessing.util
import os
import runpy
import signal
import subprocess
import sys
import threading
import types
import warnings
from multiprocessing import forkserver, process, resource_tracker
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NoReturn, Optional, Sequence

import torch

ROOT = Path(__file__).resolve().parent.parent
# What commands import late, besides torch.
LATE = ("torch._dynamo", "torch.fx.experimental.symbolic_shapes", "torch.distributed.pipelining", "torch.utils.data")

_kept: List[Any] = []  # whose end would close descriptors that are others' by then


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """subprocess.Popen of a command line that begins with sys.executable."""

    def __init__(
        self,
        args: Sequence[str],
        *,
        env: Optional[Mapping[str, str]] = None,
        preexec_fn: Optional[Callable[[], Any]] = None,
        **options: Any,
    ) -> None:
        assert args[0] == sys.executable, args
        if torch.cuda.is_initialized():  # which no fork can use
            super().__init__(args, env=env, preexec_fn=preexec_fn, **options)
            return
        for name in LATE:
            with contextlib.suppress(ImportError):  # torch 2.0.1 has no pipelining
                importlib.import_module(name)
        environment = dict(os.environ if env is None else env)

        def begin() -> NoReturn:  # in the child, whose streams, folder and session are set
            if preexec_fn is not None:
                preexec_fn()
            _ending(lambda: _python(list(args[1:]), environment))

        super().__init__(args, env=env, preexec_fn=begin, **options)


def run(
    args: Sequence[str],
    *,
    input: Any = None,  # noqa: A002  # subprocess.run's name
    timeout: Optional[float] = None,
    capture_output: bool = False,
    check: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """subprocess.run of a command line that begins with sys.executable."""
    if capture_output:
        options.update(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if input is not None:
        options["stdin"] = subprocess.PIPE
    with Popen(args, **options) as child:
        try:
            output, errors = child.communicate(input, timeout=timeout)
        except BaseException:
            child.kill()
            raise
    done = subprocess.CompletedProcess(args, child.returncode, output, errors)
    if check:
        done.check_returncode()
    return done


def _ending(action: Callable[[], None]) -> NoReturn:
    """Does it, and ends this process as Python ends: never returns into the tests."""
    code = 1
    try:
        try:
            action()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1 if end.code else 0
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except BaseException:
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _python(words: List[str], environment: Dict[str, str]) -> None:
    """What `python words...` does."""
    _forget_the_tests(keep=(0, 1, 2))
    os.environ.clear()
    os.environ.update(environment)
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stdout.reconfigure(line_buffering=os.isatty(1), write_through=bool(environment.get("PYTHONUNBUFFERED")))
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
    for reference in logging._handlerList:  # type: ignore[attr-defined]
        handler = reference()
        if type(handler) is logging.StreamHandler:
            handler.stream = sys.stderr
    paths = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [*paths, *(path for path in sys.path if path and not _is_ours(path))]
    if words[0] == "-c":
        sys.argv[:] = ["-c", *words[2:]]
        sys.path.insert(0, "")
        _execute(words[1])
    else:
        sys.argv[:] = words
        sys.path.insert(0, os.path.dirname(os.path.abspath(words[0])))
        runpy.run_path(words[0], run_name="__main__")


def _is_ours(path: str) -> bool:
    """Whether a file or folder belongs to the project: not to its environment."""
    return path == str(ROOT) or (path.startswith(f"{ROOT}{os.sep}") and ".venv" not in path)


def _is_our_module(module: Any) -> bool:
    known = getattr(module, "__dict__", {})  # `torch.classes` would make up what it does not have
    return any(map(_is_ours, [known.get("__file__") or "", *known.get("__path__", ())]))


def _forget_the_tests(keep: Sequence[int]) -> None:
    """What pytest and the tests have put into this process, back to how Python starts."""
    faulthandler.disable()
    _kept.extend([sys.stdin, sys.stdout, sys.stderr])
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            with contextlib.suppress(OSError):
                os.close(int(name))
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # as Python does when it starts
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook, sys.unraisablehook = sys.__excepthook__, sys.__unraisablehook__
    threading.excepthook = getattr(threading, "__excepthook__", threading.excepthook)
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)
    warnings.resetwarnings()
    warnings._showwarnmsg_impl = lambda m: sys.stderr.write(warnings._formatwarnmsg(m))  # type: ignore[attr-defined]
    for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", kind)
    sys.meta_path[:] = [finder for finder in sys.meta_path if "pytest" not in type(finder).__module__]
    ours = [name for name, module in sys.modules.items() if name != "__main__" and _is_our_module(module)]
    _kept.extend(map(sys.modules.pop, ours))
    _forget_processes()
    gc.freeze()


def _forget_processes() -> None:
    """multiprocessing's own processes are the tests'; those that it starts for this one are forked, too."""
    atexit._clear()
    multiprocessing.util._finalizer_registry.clear()  # type: ignore[attr-defined]
    atexit.register(multiprocessing.util._exit_function)  # type: ignore[attr-defined]
    process._children.clear()  # type: ignore[attr-defined]
    resource_tracker._resource_tracker.__init__()  # type: ignore[misc]
    forkserver._forkserver.__init__()  # type: ignore[attr-defined, misc]
    multiprocessing.util.spawnv_passfds = _fork  # type: ignore[attr-defined]


def _fork(path: Any, args: Sequence[Any], passfds: Sequence[int]) -> int:
    """multiprocessing.util.spawnv_passfds for a `python -c PROGRAM`."""
    program = args[-1]
    pid = os.fork()
    if pid == 0:
        _ending(lambda: _serve(program, passfds))
    return pid


def _serve(program: str, descriptors: Sequence[int]) -> None:
    _forget_the_tests(keep=(0, 1, 2, *descriptors))
    _execute(program)


def _execute(program: str) -> None:
    sys.modules["__main__"] = module = types.ModuleType("__main__")
    exec(program, module.__dict__)
