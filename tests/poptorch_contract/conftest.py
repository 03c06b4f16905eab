"""Puts the stand-in for PopTorch on the path, for the tests of this folder alone."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

import ipu_options

STAND_IN = str(Path(__file__).parent / "stand_in")
_PACKAGES = ("poptorch", "popdist", "horovod")
_THEIR_USERS = ("runtime.ipu", "runtime.ipu_model", "runtime.ipu_optimizer", "runtime.ipu_instances")


def _forget() -> None:
    for name in list(sys.modules):
        if name.split(".")[0] in _PACKAGES or name in _THEIR_USERS:
            del sys.modules[name]
    ipu_options.poprun.cache_clear()


@pytest.fixture(autouse=True, scope="module")
def _stand_in_on_path():
    # For one test file, not the whole run: tests elsewhere must find no PopTorch.
    _forget()
    sys.path.insert(0, STAND_IN)
    yield
    sys.path.remove(STAND_IN)
    _forget()


@pytest.fixture
def poptorch(_stand_in_on_path):
    """The package, with nothing attached and no executor made yet."""
    module = importlib.import_module("poptorch")
    module.stand_in.reset()
    yield module
    module.stand_in.reset()


@pytest.fixture
def stand_in_path() -> str:
    """For PYTHONPATH of processes that a test starts."""
    return STAND_IN
