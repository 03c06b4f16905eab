"""What reports hear of machine and model in a real run, and what it may cost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, List, Tuple

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from insight import observing
from insight.observing import SHARE_FOR_VIEWS, ViewMaker
from insight.overlay import overlay, shown_view
from insight.positions import MOST_ROWS, position_similarity
from models.architecture import Architecture
from placement import place
from reporting.base import Reporter
from reporting.records import MemoryRecord, ModelViews, Timeline
from run_setup import prepare_run
from runtime.single import SingleRuntime
from tests.small import small_config
from training import Run, fit


class Listener(Reporter):
    def __init__(self) -> None:
        self.timelines: List[Timeline] = []
        self.memory: List[MemoryRecord] = []
        self.views: List[ModelViews] = []
        self.notes: List[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def traced(self, timeline: Timeline) -> None:
        self.timelines.append(timeline)

    def held(self, record: MemoryRecord) -> None:
        self.memory.append(record)

    def viewed(self, views: ModelViews) -> None:
        self.views.append(views)


def tiny_run(tmp_path: Path, **keys: Any) -> Tuple[Run, Listener]:
    keys.setdefault("checkpoint_output_dir", str(tmp_path / "run"))
    config = small_config(tmp_path, threads_per_process=1, **keys)
    run, listener = prepare_run(config, place(config)), Listener()
    run.reporters[:] = [listener]
    return run, listener


@pytest.mark.parametrize(("steps", "traced"), [(1, 1), (2, 2), (5, 3)])
def test_the_first_step_after_the_slow_ones_is_traced_or_the_last(tmp_path: Path, steps: int, traced: int) -> None:
    run, listener = tiny_run(tmp_path, training_steps=steps, checkpoint_output_dir="")
    assert fit(run) == 0
    assert [timeline.step for timeline in listener.timelines] == [traced]
    assert not run.runtime._tracer.is_on


def test_views_at_the_end_are_what_the_trained_model_says(tmp_path: Path) -> None:
    run, listener = tiny_run(tmp_path, image_size=12, distillation="token")
    assert fit(run) == 0
    views, validation = listener.views[-1], run.validation
    assert views.step == run.progress.step and validation is not None
    runtime = run.runtime
    assert isinstance(runtime, SingleRuntime)
    batch = next(iter(validation))
    shown = {view.name: view for view in views.attentions}
    assert len(shown) == 6
    numbers = [int(name.split()[1]) for name in shown]
    assert numbers[0] == 0 and numbers[-1] == len(validation._labels) - 1  # from the first to the last
    for number, view in zip(numbers, views.attentions):
        if number >= batch.num_valid:
            continue
        assert batch.images is not None and batch.targets is not None
        image = batch.images[number]
        logits = runtime.predict(image[None])
        assert logits is not None
        shares = logits.softmax(-1)[0]
        assert view.wanted == str(int(batch.targets[number]))
        assert (view.answered, view.probability) == (str(int(shares.argmax())), pytest.approx(float(shares.max())))
        assert np.array_equal(view.picture, np.asarray(shown_view(image)))
        assert view.overlay.shape == view.picture.shape and view.overlay.dtype == np.uint8
        assert not np.array_equal(view.overlay, np.asarray(overlay(image, torch.ones(3, 3))))  # attention is not even
    embeddings = runtime.weights()[0]["pos_embed"][0, 2:]
    wanted = [[float(cosine_similarity(one, other, dim=0)) for other in embeddings] for one in embeddings]
    assert views.position_similarity is not None and views.position_similarity.shape == (3, 3, 3, 3)
    np.testing.assert_allclose(views.position_similarity.reshape(9, 9), wanted, atol=1e-6)


def test_a_large_grid_is_thinned_out() -> None:
    arch = Architecture(image_size=(160, 320), patch_size=(16, 16), embed_dim=8)
    embeddings = torch.randn(1, arch.num_tokens, 8, generator=torch.Generator().manual_seed(0))
    found = position_similarity(arch, embeddings)
    assert found.shape == (10, MOST_ROWS, 10, MOST_ROWS)
    corners = embeddings[0, 1 + 0], embeddings[0, 1 + 9 * 20 + 19]  # first and last patch
    assert found[0, 0, -1, -1] == pytest.approx(float(cosine_similarity(*corners, dim=0)), abs=1e-6)


def test_memory_is_told_ever_more_rarely_and_at_the_end_and_counts_what_was_in_use(tmp_path: Path) -> None:
    run, listener = tiny_run(tmp_path, checkpoint_output_dir="", training_steps=6)
    assert fit(run) == 0
    assert [record.step for record in listener.memory] == [1, 2, 4, 6]
    (process,) = listener.memory[-1].processes
    assert process.name == "rank 0: stage 0 (embed, blocks 0-3, head)"
    program = "from machine import peak_resident_bytes as peak; a = peak(); b = b'x' * 2**26; del b; print(peak() - a)"
    grown = int(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)
    assert grown + 2**20 >= 2**26 and grown < 2**27


@pytest.mark.parametrize("broken", ["measured_timeline", "model_views", "MemoryRecord"])
def test_a_failure_becomes_one_note_and_the_rest_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("the moon is full")

    monkeypatch.setattr(observing, broken, fail)
    run, listener = tiny_run(tmp_path)
    assert fit(run) == 0
    told = {"measured_timeline": listener.timelines, "model_views": listener.views, "MemoryRecord": listener.memory}
    assert [name for name, records in told.items() if not records] == [broken]
    assert sum("RuntimeError: the moon is full" in note for note in listener.notes) == 1


def test_views_take_their_share_of_the_time_and_no_more_until_the_end(tmp_path: Path) -> None:
    config, folder, now = small_config(tmp_path), tmp_path / "run", [0.0]

    class SlowViews(ViewMaker):
        def _views_of(self, step_folder: Path) -> ModelViews:
            now[0] += 2.0
            return super()._views_of(step_folder)

    maker = SlowViews(config, folder, None, clock=lambda: now[0])
    run, _ = tiny_run(tmp_path, checkpoint_save_steps=1)
    assert maker.make(at_any_cost=False) is None  # nothing is saved yet
    assert fit(run) == 0
    newest = folder / "step_3"
    made = []
    for number in range(4, 404):  # a new step every ten seconds
        now[0] += 10.0
        newest = newest.rename(folder / f"step_{number}")
        if maker.make(at_any_cost=False) is not None:
            made.append(now[0])
        assert 2.0 * len(made) <= max(2.0, SHARE_FOR_VIEWS * now[0])
    assert len(made) == 5  # 800 s each; the first before its cost is known
    views = maker.make(at_any_cost=True)
    assert views is None or views.step == 403
    assert maker.make(at_any_cost=True) is None  # of a step that has been shown
    assert all(view.attentions == () for view in [views] if view is not None)  # without a validation set
