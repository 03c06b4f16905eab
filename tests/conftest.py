"""One thread for every test: tiny models gain nothing from more, and threads that wait for a core spin."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

import machine

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Leaves out what runs in pipeline stages where torch has none: beside PopTorch, which needs torch 2.0.1."""
    if not machine.has_pipelining():
        skip = pytest.mark.skip(reason=f"torch {torch.__version__} has no torch.distributed.pipelining")
        for item in items:
            if item.get_closest_marker("pipeline"):
                item.add_marker(skip)


@pytest.fixture(autouse=True, scope="session")
def _cache_of_our_own(tmp_path_factory):
    """Indexes of test data stay out of the user's cache, in the commands that tests start, too."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("XDG_CACHE_HOME")
    if before is not None:
        os.environ["XDG_CACHE_HOME"] = before
