"""What is damaged, foreign or malicious ends with one message that names the file, and runs nothing."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from errors import UserError
from tests.newer_torch import reads_pickles
from tests.weights import peers
from tests.weights.peers import TOY
from weights import pickled
from weights.opening import open_model


class Malice:
    """What a pickle can do: run a command when it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.trace}",)


@reads_pickles
@pytest.mark.parametrize("in_zip", [True, False], ids=["torch's archive", "bare pickle"])
@pytest.mark.parametrize("beside_config", [True, False])
def test_a_malicious_bin_does_not_run(tmp_path: Path, in_zip: bool, beside_config: bool) -> None:
    trace, path = tmp_path / "trace", tmp_path / "pytorch_model.bin"
    content = {"model.head.bias": torch.zeros(2), "x": Malice(trace)}
    if in_zip:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    if beside_config:
        peers.hugging_face_config(TOY).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"pytorch_model\.bin asks for .*; no code in it was run"):
        open_model(str(tmp_path))
    assert not trace.exists()
    with open(path, "rb") as file:  # that the malice is real
        torch.load(file, weights_only=False) if in_zip else pickle.load(file)
    assert trace.exists()


@pytest.mark.parametrize(
    ("version", "is_safe"), [("2.0.1", False), ("2.5.1+cu121", False), ("2.6.0", True), ("2.13", True)]
)
def test_pickles_are_read_where_torch_can_do_so_safely(version: str, is_safe: bool) -> None:
    if is_safe:
        pickled._check_torch(Path("x.bin"), version)
    else:
        with pytest.raises(UserError, match="CVE-2025-32434"):
            pickled._check_torch(Path("x.bin"), version)


def hugging_face(folder: Path) -> Path:
    peers.hugging_face(TOY).save_pretrained(folder)
    return folder


def shards(folder: Path) -> Path:
    peers.hugging_face(TOY).save_pretrained(folder, max_shard_size="15KB")
    return folder


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_tensors(folder: Path, change: Callable[[dict], Any]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    truncate(hugging_face(tmp_path) / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read as safetensors"):
        open_model(str(tmp_path))


def test_a_truncated_bin_is_named(tmp_path: Path) -> None:
    peers.hugging_face_config(TOY).save_pretrained(tmp_path)
    torch.save({"x": torch.zeros(1000)}, tmp_path / "pytorch_model.bin")
    truncate(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin"):
        open_model(str(tmp_path))


def test_a_truncated_npz_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", **peers.google_arrays(TOY))
    truncate(tmp_path / "m.npz")
    with pytest.raises(UserError, match=r"m\.npz cannot be read as npz"):
        open_model(str(tmp_path / "m.npz"))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    first = sorted(shards(tmp_path).glob("model-*.safetensors"))[0]
    first.unlink()
    with pytest.raises(UserError, match=first.name):
        open_model(str(tmp_path))


def test_an_index_that_names_what_no_shard_holds_is_refused(tmp_path: Path) -> None:
    path = shards(tmp_path) / "model.safetensors.index.json"
    weight_map = json.loads(path.read_text())["weight_map"]
    change_json(path, weight_map={**weight_map, "vit.more": next(iter(weight_map.values()))})
    with pytest.raises(UserError, match=r"names vit\.more, which no shard holds"):
        open_model(str(tmp_path))


@pytest.mark.parametrize("weight_map", [{"a": "../../etc/passwd"}, {"a": "/etc/passwd"}, {"a": 3}, ["a"], None])
def test_an_index_that_points_elsewhere_is_refused(tmp_path: Path, weight_map: Any) -> None:
    path = shards(tmp_path) / "model.safetensors.index.json"
    change_json(path, weight_map=weight_map)
    with pytest.raises(UserError, match="its weight_map names no files"):
        open_model(str(tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00\xff"])
def test_a_damaged_config_is_named(tmp_path: Path, text: str) -> None:
    (hugging_face(tmp_path) / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json is"):
        open_model(str(tmp_path))


def test_a_key_too_few_or_too_many_or_of_another_shape_is_named(tmp_path: Path) -> None:
    changes = {
        "lacks encoder.layer.1.output.dense.bias": lambda t: t.pop("vit.encoder.layer.1.output.dense.bias"),
        "holds encoder.layer.0.lambda_1": lambda t: t.update({"vit.encoder.layer.0.lambda_1": torch.ones(3)}),
        "has blocks.1.norm1.bias of shape": lambda t: t.update(
            {"vit.encoder.layer.1.layernorm_before.bias": torch.ones(3)}
        ),
    }
    for number, (words, change) in enumerate(changes.items()):
        folder = tmp_path / str(number)
        change_tensors(hugging_face(folder), change)
        with pytest.raises(UserError, match=words):
            open_model(str(folder))


@pytest.mark.parametrize("where", ["alone", "hugging face", "timm"])
def test_another_models_weights_are_refused(tmp_path: Path, where: str) -> None:
    import timm

    resnet = timm.create_model("resnet18")
    save_file(resnet.state_dict(), tmp_path / "model.safetensors")
    if where == "hugging face":
        peers.hugging_face_config(TOY).save_pretrained(tmp_path)
    elif where == "timm":
        (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "pretrained_cfg": {}}))
    source = tmp_path / "model.safetensors" if where == "alone" else tmp_path
    with pytest.raises(UserError, match="is not a ViT"):
        open_model(str(source))


def test_object_arrays_in_npz_are_not_read(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    arrays = {**peers.google_arrays(TOY), "cls": np.array([Malice(trace)], dtype=object)}
    np.savez(tmp_path / "m.npz", **arrays)
    with pytest.raises(UserError, match=r"m\.npz cannot be read as npz at cls: it holds pickled objects"):
        open_model(str(tmp_path / "m.npz"))
    assert not trace.exists()


def test_an_npz_of_something_else_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", a=np.zeros(3))
    with pytest.raises(UserError, match="is not a ViT in Google's layout: it lacks embedding/kernel"):
        open_model(str(tmp_path / "m.npz"))
    np.savez(tmp_path / "n.npz", **peers.google_arrays(TOY), extra=np.zeros(3))
    with pytest.raises(UserError, match="holds extra"):
        open_model(str(tmp_path / "n.npz"))


@reads_pickles
def test_a_bin_of_something_else_is_refused(tmp_path: Path) -> None:
    for content, words in (
        ({"a": torch.zeros(1)}, "it lacks embeddings.patch"),
        ([1], "holds a list"),
        ({"a": 1}, "'a' is a int"),
    ):
        torch.save(content, tmp_path / "pytorch_model.bin")
        with pytest.raises(UserError, match=words):
            open_model(str(tmp_path))


def test_links_in_a_circle_and_empty_folders_are_no_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    for name in ("a", "empty"):
        with pytest.raises(UserError, match=f"{name} (is no file or folder here|holds no checkpoint)"):
            open_model(str(tmp_path / name))


def test_a_config_without_weights_is_refused(tmp_path: Path) -> None:
    peers.hugging_face_config(TOY).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no weights: none of "):
        open_model(str(tmp_path))
