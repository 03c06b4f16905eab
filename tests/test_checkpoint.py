"""Steps are saved whole or not at all, found again, and restored bit for bit; what is damaged is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from safetensors.torch import save_file

import checkpoint
from checkpoint import Progress
from config import load_config
from errors import UserError
from placement import place_single
from run_folder import find_step_to_resume, new_run_folder, saved_steps
from runtime.single import SingleRuntime
from saving import Saver
from tests.small import host_batch, small_config
from weights.card import card_of
from weights.pretrained import load_pretrained, open_pretrained


def trained(tmp_path: Path, **keys: Any) -> SingleRuntime:
    """A runtime after one step, so that there is optimiser state."""
    config = small_config(tmp_path, **keys)
    runtime = SingleRuntime(config, place_single(config), num_cores=1)
    runtime.train_step(host_batch(config, runtime.share), 0.1, 0)
    return runtime


def saved(tmp_path: Path, step: int = 5, **keys: Any) -> Path:
    (tmp_path / "run").mkdir(exist_ok=True)
    return save(
        tmp_path / "run", trained(tmp_path, **keys), Progress(step, 10, 8, best_top1=0.5, best_step=3), is_best=True
    )


def save(run_folder: Path, runtime: SingleRuntime, progress: Progress, is_best: bool = False) -> Path:
    saver = Saver(run_folder, runtime, runtime.config, card_of(runtime.config), note=print)
    saver.save(progress, is_best)
    saver.wait()
    return run_folder / f"step_{progress.step}"


def fresh(tmp_path: Path, **keys: Any) -> SingleRuntime:
    config = small_config(tmp_path, random_seed=9, **keys)
    return SingleRuntime(config, place_single(config), num_cores=1)


HALF = {"precision": "16.16", "auto_loss_scaling": True, "ema_decay": 0.9}
STATES: List[Dict[str, Any]] = [
    *({"optimizer": name} for name in ("SGD", "AdamW", "LAMB", "Lion", "Muon")),
    {"use_combined_accum": True, "loss_scaling": 8.0},
    {**HALF, "first_order_type": "fp16"},
    {**HALF, "optimizer": "AdamW", "learning_rate": 1e-3},
    {"precision": "bf16.16", "optimizer": "LAMB", "first_order_type": "fp16", "second_order_type": "fp16"},
    {"precision": "16.32", "accum_type": "fp32", "first_order_type": "fp16"},
]


@pytest.mark.parametrize("keys", STATES, ids=lambda keys: " ".join(map(str, keys.values())))
def test_restored_step_is_the_saved_one_bit_for_bit_and_goes_on_so(tmp_path: Path, keys: Dict[str, Any]) -> None:
    runtime = trained(tmp_path, **keys)
    (tmp_path / "run").mkdir()
    folder = save(
        tmp_path / "run", runtime, Progress(5, 10, 8, best_top1=0.5, best_step=3, optimizer=runtime.config.optimizer)
    )
    restored = fresh(tmp_path, **keys)
    factor = 2.0 if keys.get("auto_loss_scaling") else 1.0
    assert checkpoint.restore(folder, restored) == Progress(
        5, 10, 8, best_top1=0.5, best_step=3, loss_scale_factor=factor, optimizer=runtime.config.optimizer
    )
    assert_same_state(runtime, restored)
    # The seed of the stochastic rounding is the run's.
    restored.update._rounding.seed = runtime.config.random_seed
    for one in (runtime, restored):
        one.train_step(host_batch(one.config, one.share, step=1), 0.1, 1)
    assert_same_state(runtime, restored)


def assert_same_state(first: SingleRuntime, second: SingleRuntime) -> None:
    for ours, theirs in (
        (first.weights(), second.weights()),
        (first.weights(averaged=True), second.weights(averaged=True)),
        (first.optimizer_state(), second.optimizer_state()),
    ):
        assert ours.keys() == theirs.keys()
        for part, tensors in ours.items():
            assert tensors.keys() == theirs[part].keys()
            assert all(torch.equal(value, theirs[part][name]) for name, value in tensors.items())
            assert all(value.dtype == theirs[part][name].dtype for name, value in tensors.items())


def test_a_checkpoint_s_averages_are_what_it_is_judged_by(tmp_path: Path) -> None:
    folder = saved(tmp_path, ema_decay=0.5)
    averages = trained(tmp_path, ema_decay=0.5).weights(averaged=True)[0]
    weights = trained(tmp_path, ema_decay=0.5).weights()[0]
    for use_ema, expected in ((True, averages), (False, weights)):
        runtime = fresh(tmp_path, pretrained_checkpoint=str(folder), use_ema=use_ema)
        notes = load_pretrained(open_pretrained(runtime.config), runtime.config, runtime)
        assert ["averaged weights" in " ".join(notes)] == [use_ema]
        assert all(torch.equal(value, expected[name]) for name, value in runtime.weights()[0].items())


def test_links_point_at_the_latest_and_the_best_step(tmp_path: Path) -> None:
    saved(tmp_path, step=5)
    save(tmp_path / "run", trained(tmp_path), Progress(7, 10, 8))
    assert (tmp_path / "run" / "latest").resolve().name == "step_7"
    assert (tmp_path / "run" / "best").resolve().name == "step_5"
    assert [path.name for path in saved_steps(tmp_path / "run")] == ["step_5", "step_7"]


class DiskFullError(Exception):
    pass


def test_a_save_that_breaks_off_leaves_no_step_and_the_next_one_works(tmp_path: Path) -> None:
    class Breaking(SingleRuntime):
        def optimizer_state(self) -> Dict[int, Dict[str, torch.Tensor]]:
            raise DiskFullError

    config = small_config(tmp_path)
    saved(tmp_path, step=5)
    run = tmp_path / "run"
    with pytest.raises(DiskFullError):
        save(run, Breaking(config, place_single(config), num_cores=1), Progress(6, 10, 8))
    assert [path.name for path in saved_steps(run)] == ["step_5"]
    assert (run / "latest").resolve().name == "step_5"
    save(run, trained(tmp_path), Progress(6, 10, 8))
    assert (run / "latest").resolve().name == "step_6"
    assert not list(run.glob(".*partial"))


def test_a_run_folder_in_use_is_refused(tmp_path: Path) -> None:
    config = small_config(tmp_path, checkpoint_output_dir=str(tmp_path / "run"))
    assert new_run_folder(config) == tmp_path / "run"
    with pytest.raises(UserError, match="already holds a run"):
        new_run_folder(config)


def test_resume_finds_the_newest_step(tmp_path: Path) -> None:
    config = small_config(tmp_path, checkpoint_output_dir=str(tmp_path / "run"))
    with pytest.raises(UserError, match="--resume finds no saved step"):
        find_step_to_resume(config)
    saved(tmp_path, step=9)
    saved(tmp_path, step=10)
    assert find_step_to_resume(config).name == "step_10"


def truncate(folder: Path) -> None:
    path = next(folder.glob("model-*.safetensors"))
    path.write_bytes(path.read_bytes()[:100])


def remove_part(folder: Path) -> None:
    next(folder.glob("model-*.safetensors")).unlink()


def break_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{")


def name_a_missing_tensor(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["blocks.99.norm1.weight"] = next(iter(index["weight_map"].values()))
    path.write_text(json.dumps(index))


def flip_a_byte(folder: Path, pattern: str) -> None:
    path = next(folder.glob(pattern))
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))


def flip_a_weight(folder: Path) -> None:
    flip_a_byte(folder, "model-*.safetensors")


def flip_a_state(folder: Path) -> None:
    flip_a_byte(folder, "optimizer-*.safetensors")


def change_a_figure(folder: Path) -> None:
    path = folder / "run.json"
    path.write_text(path.read_text().replace('"step": 5', '"step": 6'))


def remove_progress(folder: Path) -> None:
    (folder / "run.json").unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, "cannot be read as safetensors"),
        (remove_part, "cannot be read as safetensors"),
        (break_index, "index.json is missing or damaged"),
        (name_a_missing_tensor, "index.json is damaged"),
        (remove_progress, "run.json is missing or damaged"),
        (change_a_figure, "run.json is missing or damaged .it is not what was saved"),
        (flip_a_weight, "model-00001-of-00001.safetensors is damaged"),
        (flip_a_state, "optimizer-00001-of-00001.safetensors is damaged"),
    ],
)
def test_a_damaged_step_is_named(tmp_path: Path, damage: Any, words: str) -> None:
    folder = saved(tmp_path)
    damage(folder)
    with pytest.raises(UserError, match=words):
        checkpoint.restore(folder, fresh(tmp_path))


def test_another_width_cannot_be_resumed(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    with pytest.raises(UserError, match="the config makes it"):
        checkpoint.restore(folder, fresh(tmp_path, hidden_size=32))


def pretrained(tmp_path: Path, name: str, **keys: Any) -> tuple[SingleRuntime, list[str]]:
    runtime = fresh(tmp_path, pretrained_checkpoint=name, **keys)
    return runtime, load_pretrained(open_pretrained(runtime.config), runtime.config, runtime)


def test_every_form_of_a_checkpoint_loads_the_same_weights(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    expected = trained(tmp_path).weights()[0]
    save_file(expected, str(tmp_path / "model.safetensors"))
    for name in (folder, tmp_path / "run", tmp_path / "model.safetensors"):
        runtime, notes = pretrained(tmp_path, str(name))
        assert notes == []
        assert all(torch.equal(value, expected[key]) for key, value in runtime.weights()[0].items())


def test_a_head_for_other_classes_is_new_and_said_so(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    runtime, notes = pretrained(tmp_path, str(folder), num_labels=7)
    assert notes == ["new head for 7 classes (the checkpoint has 5)"]
    drawn = fresh(tmp_path, num_labels=7).weights()[0]
    assert torch.equal(runtime.weights()[0]["head.weight"], drawn["head.weight"])
    assert not torch.equal(runtime.weights()[0]["norm.weight"], drawn["norm.weight"])


def test_nothing_is_validated_with_a_head_that_nobody_has_trained(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    config = small_config(tmp_path, "validation", pretrained_checkpoint=str(folder), num_labels=7)
    runtime = SingleRuntime(config, place_single(config), num_cores=1)
    with pytest.raises(UserError, match="has no head for num_labels = 7 classes to validate with"):
        load_pretrained(open_pretrained(config), config, runtime)


def test_the_representation_layer_is_left_out_where_the_model_has_none(tmp_path: Path) -> None:
    folder = saved(tmp_path, representation_size=16)
    runtime, notes = pretrained(tmp_path, str(folder))
    assert notes == [
        "new head for 5 classes (the checkpoint's reads its representation layer)",
        "representation layer of the checkpoint left out (representation_size is not set)",
    ]
    assert torch.equal(runtime.weights()[0]["head.weight"], fresh(tmp_path).weights()[0]["head.weight"])


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"hidden_size": 32}, "of shape .* the config makes it"),
        ({"num_hidden_layers": 5}, "lacks blocks.4"),
        ({"num_hidden_layers": 3}, "holds blocks.3"),
        ({"num_attention_heads": 4}, "has num_attention_heads = 2, the config 4"),
        ({"patches_size": 2}, "has patches_size = 4, the config 2"),
        ({"distillation": "heads"}, "has distillation = none, the config heads"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path, keys: Dict[str, Any], words: str) -> None:
    folder = saved(tmp_path)
    with pytest.raises(UserError, match=words):
        pretrained(tmp_path, str(folder), **keys)


@pytest.mark.parametrize("name", ["missing", "empty", "picture.png"])
def test_what_is_no_checkpoint_gets_a_message_that_says_what_is(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if "." in name:
        path.write_bytes(b"no checkpoint")
    elif name == "empty":
        path.mkdir()
    with pytest.raises(UserError, match=r"Name a run or step folder, a Hugging Face or timm folder"):
        pretrained(tmp_path, str(path))


def test_one_module_alone_reads_pickles_and_runs_no_code_of_theirs() -> None:
    root = Path(checkpoint.__file__).parent
    for path in [root / "checkpoint.py", *(root / "weights").glob("*.py")]:
        text = path.read_text()
        assert "pickle.load" not in text
        assert text.count("torch.load(") == text.count("weights_only=True") == (path.name == "pickled.py")


def test_saving_a_step_twice_keeps_the_first(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    shutil.copytree(folder, tmp_path / "copy")
    saved(tmp_path, random_seed=3)
    assert (folder / "run.json").read_text() == (tmp_path / "copy" / "run.json").read_text()


def test_resume_does_not_take_a_run_whose_name_only_begins_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = small_config(tmp_path, checkpoint_output_dir=None)
    for run in ("tiny-20260101-000000", "tiny-20260102-000000", "tiny-other-20260103-000000", "tinyish"):
        (Path("runs") / run / "step_3").mkdir(parents=True)
        (Path("runs") / run / "step_3" / "run.json").touch()
    assert find_step_to_resume(config) == Path("runs/tiny-20260102-000000/step_3")


def test_a_step_counted_from_0_is_the_next_one(tmp_path: Path) -> None:
    folder = saved(tmp_path, step=5)
    runtime, _ = pretrained(tmp_path, str(folder.with_name("step_4")))
    expected = trained(tmp_path).weights()[0]
    assert all(torch.equal(value, expected[key]) for key, value in runtime.weights()[0].items())
    with pytest.raises(UserError, match="step_3"):
        pretrained(tmp_path, str(folder.with_name("step_3")))


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert new_run_folder(small_config(tmp_path, checkpoint_output_dir="~/mine")) == tmp_path / "mine"


def test_the_saved_config_works_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = small_config(tmp_path, checkpoint_output_dir="run", dataset="folder", dataset_path="images")
    folder = new_run_folder(config)
    assert folder is not None
    again = load_config("finetune", ["--config-file", str(folder / "config.yaml")])
    assert again.dataset_path == str(tmp_path / "images")
