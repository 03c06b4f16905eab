"""A run saved in one split goes on in any other, optimiser state included, as if nothing had happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, NamedTuple

import pytest
import torch

from checkpoint import Progress, restore
from config import Config
from placement import place_pipeline, place_single
from runtime.single import SingleRuntime
from saving import Saver
from tests.processes import run_processes
from tests.small import host_batch, small_config
from weights.card import card_of

pytestmark = [pytest.mark.slow, pytest.mark.pipeline]

TOLERANCE = 1e-6  # fp32 sums in another order: a few roundings of 6e-8


class Split(NamedTuple):
    stages: List[int]
    replicas: int = 1
    sharded: bool = False

    @property
    def processes(self) -> int:
        return len(self.stages) * self.replicas


ONE, TWO, THREE, FOUR = Split([4]), Split([2, 2]), Split([1, 1, 2]), Split([1, 1, 1, 1])
REPLICAS, SHARDED = Split([2, 2], 2), Split([2, 2], 2, sharded=True)
MOVES = [(FOUR, ONE), (FOUR, TWO), (FOUR, THREE), (FOUR, SHARDED), (ONE, FOUR), (REPLICAS, THREE), (SHARDED, ONE)]
# eps above the rounding noise of gradients that are almost 0, which Adam would blow up to whole updates.
KEYS = {"optimizer": "AdamW", "learning_rate": 0.001, "adam_eps": 1e-3, "ema_decay": 0.9, "max_grad_norm": 0.5}


@pytest.mark.parametrize(("before", "after"), MOVES, ids=str)
def test_two_steps_here_and_two_there_are_four_steps_on_one_device(tmp_path: Path, before: Split, after: Split) -> None:
    expected = tensors_after(tmp_path, ONE, "whole", 0, 4)
    tensors_after(tmp_path, before, "moved", 0, 2)
    actual = tensors_after(tmp_path, after, "moved", 2, 4)
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=TOLERANCE, msg=name)


def test_a_model_with_fixed_positions_moves_between_splits_with_its_recipe(tmp_path: Path) -> None:
    """Whose parameters lie elsewhere: no class token, a norm after the mean, positions without optimiser state."""
    newer = {"global_pool": "avg", "class_token": False, "fc_norm": True, "pos_embed": "sincos2d", "layer_scale": 0.1}
    expected = tensors_after(tmp_path, ONE, "whole", 0, 4, **newer)
    tensors_after(tmp_path, SHARDED, "moved", 0, 2, **newer)
    actual = tensors_after(tmp_path, THREE, "moved", 2, 4, **newer)
    assert actual.keys() == expected.keys()
    assert not [name for name in expected if name.startswith("optimizer") and "pos_embed" in name]
    for name, value in actual.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=TOLERANCE, msg=name)


def tensors_after(
    tmp_path: Path, split: Split, run: str, first: int, last: int, **keys: Any
) -> Dict[str, torch.Tensor]:
    """Everything that is saved after the host steps from `first` to `last`."""
    from weights.tensor_files import open_indexed

    (tmp_path / run).mkdir(exist_ok=True)
    config = config_of(tmp_path, split, **keys)
    arguments = (config, split.processes, str(tmp_path / run), first, last)
    if split.processes == 1:
        go_on(0, *arguments)
    else:
        run_processes(split.processes, go_on, *arguments)
    found = {stem: open_indexed(tmp_path / run / f"step_{last}", stem) for stem in ("model", "optimizer", "ema")}
    return {f"{stem} {name}": value for stem, files in found.items() for name, value in files.read(files.files).items()}


def config_of(tmp_path: Path, split: Split, **keys: Any) -> Config:
    places = {"runtime": "pipeline", "layers_per_ipu": split.stages} if split.processes > 1 else {}
    batch = {"replication_factor": split.replicas, "gradient_accumulation": 4 // split.replicas}
    return small_config(tmp_path, **KEYS, **places, **batch, **keys, enable_rts=split.sharded)


def go_on(rank: int, config: Config, processes: int, folder: str, first: int, last: int) -> None:
    """Steps `first` to `last`, from what is saved in `folder` if it is not the first, and saves."""
    torch.set_num_threads(1)
    runtime: Any
    if processes == 1:
        runtime = SingleRuntime(config, place_single(config), num_cores=1)
    else:
        from runtime.pipeline import PipelineRuntime

        runtime = PipelineRuntime(config, place_pipeline(config, processes, 0, 1), rank, rank)
    if first:
        assert restore(Path(folder) / f"step_{first}", runtime).step == first
    for step in range(first, last):
        runtime.train_step(host_batch(config, runtime.share, step), 0.001, step)
    saver = Saver(Path(folder), runtime, config, card_of(config), print)
    saver.save(Progress(last, 10, 8))
    saver.wait()
    runtime.close()
