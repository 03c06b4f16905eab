"""One thread for every test: tiny models gain nothing from more, and threads that wait for a core spin."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
