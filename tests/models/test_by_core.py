"""Images shared out over threads that compute alone, against the model called once."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import pytest
import torch

from models import by_core
from models.architecture import Architecture
from models.by_core import predict_by_core
from models.vit import build_model
from placement import place
from runtime.build import build_runtime
from tests.small import small_config

ARCH = Architecture(
    image_size=(16, 16),
    patch_size=(4, 4),
    num_channels=3,
    embed_dim=32,
    depth=2,
    num_heads=2,
    mlp_dim=64,
    num_labels=5,
)


@pytest.fixture
def three_threads(monkeypatch):
    monkeypatch.setattr(by_core, "LEAST_FLOPS", 0.0)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 7, 50])
def test_answers_are_those_of_one_pass_in_order(three_threads, count):
    model = build_model(ARCH, seed=0).eval()
    images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    answers = predict_by_core(model, images)
    with torch.no_grad():
        wanted = model(images)
    assert not answers.requires_grad
    assert (answers - wanted).abs().max() < 1e-6  # other products of float32 add in another order
    assert count == 1 or not torch.allclose(answers[:1], answers[1:])


def test_each_thread_computes_alone_in_a_context_of_its_own_and_all_settings_stay(three_threads):
    seen = []

    @contextmanager
    def context():
        seen.append((threading.get_ident(), torch.get_num_threads()))
        yield

    predict_by_core(build_model(ARCH, seed=0).eval(), torch.zeros(9, 3, 16, 16), context)
    assert [threads for _, threads in seen] == [1, 1, 1]
    assert threading.get_ident() not in dict(seen)
    assert torch.get_num_threads() == 3
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [3]


@pytest.mark.parametrize("precision", ["32.32", "bf16.32", "bf16.16", "16.16"])
def test_single_predicts_the_same_in_each_precision(three_threads, tmp_path, precision):
    config = small_config(tmp_path, precision=precision, threads_per_process=3)
    runtime = build_runtime(config, place(config))
    images = torch.randint(0, 256, (9, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    answers = runtime.predict(images)
    with torch.no_grad(), runtime.precision.forward(runtime.device):
        wanted = runtime.model(images)
    assert answers.dtype == wanted.dtype == torch.float32
    assert (answers - wanted).abs().max() < 1e-6


def test_a_small_model_is_computed_at_once(monkeypatch):
    monkeypatch.setattr(by_core, "ThreadPoolExecutor", None)
    answers = predict_by_core(build_model(ARCH, seed=0).eval(), torch.zeros(9, 3, 16, 16))
    assert answers.shape == (9, 5)
