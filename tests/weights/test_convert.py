"""convert.py as a user calls it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import convert
import launch
from errors import UserError
from tests.newer_torch import exports
from tests.weights import cells, peers
from tests.weights.peers import TOY
from weights import writing
from weights.opening import open_model


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model of this project whose classes have names."""
    names = {label: f"kind {label}" for label in range(TOY.classes)}
    return cells.start(tmp_path, id2label=names, layer_norm_eps=1e-6)


def test_the_summary_says_what_was_read_and_how_the_target_opens(source: Path, tmp_path: Path) -> None:
    text = cells.run(source, tmp_path / "out", "--to", "huggingface")
    saved = open_model(str(source))
    parameters = sum(int(np.prod(shape)) for shape in saved.weights.shapes.values())
    assert f"{parameters:,} parameters: 2 blocks of width 24, 3 heads, epsilon 1e-06" in text
    assert "images 32x32 in patches 8x8; 10 classes (kind 0, kind 1, kind 2, …)" in text
    assert f'pipeline("image-classification", "{tmp_path / "out"}")' in text


def test_transformers_pipeline_opens_what_is_written(source: Path, tmp_path: Path) -> None:
    from transformers import pipeline

    cells.run(source, tmp_path / "out", "--to", "huggingface")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8))
    answers = pipeline("image-classification", str(tmp_path / "out"), device="cpu")(picture)
    assert {answer["label"] for answer in answers} <= {f"kind {label}" for label in range(10)}


@pytest.mark.parametrize(
    "target",
    ["out", pytest.param("out.onnx", marks=exports), pytest.param("out.pt2", marks=exports), "out.safetensors"],
)
def test_a_target_that_is_there_is_kept_unless_told_otherwise(source: Path, tmp_path: Path, target: str) -> None:
    path = tmp_path / target
    flags = ["--to", "timm"] if target == "out" else []
    if target == "out":
        path.mkdir()
        (path / "config.json").write_text("mine")
    else:
        path.write_text("mine")
    with pytest.raises(UserError, match=r"is there already\.\n.*--overwrite"):
        cells.run(source, path, *flags)
    assert ((path / "config.json") if target == "out" else path).read_text() == "mine"
    cells.run(source, path, *flags, "--overwrite")
    assert not (path / "mine.txt").exists()
    assert leftovers(tmp_path) == []


def test_a_conversion_that_fails_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(path: Path, card: object, tensors: object) -> None:
        (path / "part").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(writing.FORMATS, "timm", writing.Format(failing, "", True))
    with pytest.raises(UserError, match=r"out cannot be written \(No space left on device\)"):
        cells.run(source, tmp_path / "out", "--to", "timm")
    assert not (tmp_path / "out").exists()
    assert leftovers(tmp_path) == []


def leftovers(folder: Path) -> list:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_errors_end_with_code_2_and_one_message(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert launch.guarded(lambda: convert.main([str(tmp_path / "none"), str(tmp_path / "out"), "--to", "timm"])) == 2
    assert launch.guarded(lambda: convert.main(["a"])) == 2
    errors = capsys.readouterr().err
    assert errors.count("error:") == 2
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("target", "flags", "words"),
    [
        ("out", [], "does not tell the format"),
        ("out.onnx", ["--to", "timm"], "is a name for onnx, not for --to timm"),
        ("out", ["--to", "onnx"], "ends in .onnx"),
        ("out", ["--to", "pytorch"], "invalid choice"),
        ("out", ["--to", "timm", "--num-heads", "5"], "has 3 attention heads, not 5"),
    ],
)
def test_what_does_not_go_together_is_refused(
    source: Path, tmp_path: Path, target: str, flags: list, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        cells.run(source, tmp_path / target, *flags)


@pytest.mark.parametrize(
    ("name", "words"), [("huggingface", "pre_logits"), ("timm", "representation layer"), ("app-hf", "pre_logits")]
)
def test_a_representation_layer_is_not_dropped_silently(tmp_path: Path, name: str, words: str) -> None:
    np.savez(tmp_path / "m.npz", **peers.google_arrays(TOY, pre_logits=20))
    with pytest.raises(UserError, match=words):
        cells.run(tmp_path / "m.npz", tmp_path / "out", "--to", name)
    assert not (tmp_path / "out").exists()


def test_without_its_head_a_model_gives_what_the_head_reads(tmp_path: Path) -> None:
    import transformers

    if not hasattr(transformers.ViTConfig(), "pooler_output_size"):
        pytest.skip(f"transformers {transformers.__version__} has poolers of the model's width only")
    np.savez(tmp_path / "m.npz", **peers.google_arrays(TOY, pre_logits=20))
    text = cells.run(tmp_path / "m.npz", tmp_path / "out", "--to", "huggingface", "--num-labels", "0")
    assert f'opens with: transformers.AutoModel.from_pretrained("{tmp_path / "out"}")' in text
    encoder = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    whole = peers.ours(tmp_path / "m.npz")
    whole.head = torch.nn.Identity()
    assert peers.difference(encoder, whole, TOY) <= 1e-5


def test_another_epsilon_is_said_where_timm_has_no_place_for_it(tmp_path: Path) -> None:
    from functools import partial

    import timm

    source = cells.start(tmp_path, layer_norm_eps=1e-3)
    text = cells.run(source, tmp_path / "out", "--to", "timm")
    assert "timm computes LayerNorm with epsilon 1e-06, this model with 0.001" in text
    norm = partial(torch.nn.LayerNorm, eps=1e-3)
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, norm_layer=norm).eval()
    assert peers.difference(peers.ours(source), model, TOY) <= 1e-5


def test_a_file_written_here_says_all_of_its_model(source: Path, tmp_path: Path) -> None:
    cells.run(source, tmp_path / "out.safetensors")
    assert open_model(str(tmp_path / "out.safetensors")).card == open_model(str(source)).card


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_weights_are_stored_in_the_type_asked_for(source: Path, tmp_path: Path, dtype: str) -> None:
    cells.run(source, tmp_path / "hf", "--to", "huggingface", "--dtype", dtype)
    wanted = writing.DTYPES[dtype]
    assert {tensor.dtype for tensor in load_file(tmp_path / "hf" / "model.safetensors").values()} == {wanted}
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == str(wanted).split(".")[-1]


@exports
def test_onnx_of_16_bits_is_half_as_large_and_says_how_to_use_it(tmp_path: Path) -> None:
    import onnx

    wide = TOY._replace(width=192)  # the exporter widens small tensors itself
    source = cells.start(tmp_path, sizes=wide, id2label={label: f"kind {label}" for label in range(10)})
    text = cells.run(source, tmp_path / "small.onnx", "--dtype", "fp16")
    cells.run(source, tmp_path / "large.onnx", "--dtype", "fp32")
    weights = sum(int(np.prod(shape)) for shape in open_model(str(source)).weights.shapes.values())
    saved = (tmp_path / "large.onnx").stat().st_size - (tmp_path / "small.onnx").stat().st_size
    assert saved > 0.9 * 2 * weights
    model = onnx.load(tmp_path / "small.onnx")
    onnx.checker.check_model(model)
    assert model.opset_import[0].version >= 17
    details = {entry.key: json.loads(entry.value) for entry in model.metadata_props if not entry.key.startswith("pkg")}
    assert details["image_size"] == [32, 32]
    assert details["pixel_mean"] == [0.5]
    assert details["class_names"][3] == "kind 3"
    assert "logits of the file, run again, differ from the model's by" in text


@exports
def test_packages_that_are_missing_are_named(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match="ONNX needs the package onnxscript: pip install"):
        cells.run(source, tmp_path / "out.onnx")


@pytest.mark.parametrize("target", ["out.onnx", "out.pt2"])
def test_a_torch_that_cannot_export_is_named(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.delattr(torch, "export", raising=False)
    with pytest.raises(UserError, match=r"has no torch\.export, which this format needs"):
        cells.run(source, tmp_path / target)
    assert not (tmp_path / target).exists()


def test_a_run_folder_is_converted_with_its_averaged_weights_or_without(tmp_path: Path) -> None:
    from tests.test_checkpoint import saved

    saved(tmp_path, ema_decay=0.9)
    averaged, plain = tmp_path / "averaged.safetensors", tmp_path / "plain.safetensors"
    assert "averaged weights are used" in cells.run(tmp_path / "run", averaged)
    cells.run(tmp_path / "run", plain, "--use-ema", "false")
    assert not torch.equal(load_file(averaged)["head.weight"], load_file(plain)["head.weight"])


def test_every_writer_is_offered() -> None:
    assert tuple(writing.FORMATS) == convert.FORMATS


def test_what_timms_config_has_no_room_for_comes_back(source: Path, tmp_path: Path) -> None:
    saved = open_model(str(source))
    card = replace(saved.card, multi_label=True, arch=replace(saved.card.arch, layer_norm_eps=1e-12))
    writing.write_model(replace(saved, card=card), tmp_path / "out", "timm")
    assert open_model(str(tmp_path / "out")).card == card


def test_a_negative_number_of_heads_is_none(source: Path, tmp_path: Path) -> None:
    save_file(
        dict(open_model(str(source)).weights.read(open_model(str(source)).weights.shapes)),
        str(tmp_path / "bare.safetensors"),
    )
    with pytest.raises(UserError, match="-3 attention heads are none"):
        cells.run(tmp_path / "bare.safetensors", tmp_path / "out", "--to", "timm", "--num-heads", "-3")


def test_a_program_that_differs_is_not_written(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = replace(writing.FORMATS["torch-export"], write=lambda path, *_: path.write_text("x") and float("nan"))
    monkeypatch.setitem(writing.FORMATS, "torch-export", wrong)
    with pytest.raises(UserError, match="is not written: its logits, run again, differ"):
        cells.run(source, tmp_path / "out.pt2")
    assert not (tmp_path / "out.pt2").exists()


@pytest.mark.parametrize("strange", ["thesis.txt", "step_100", "optimizer-00001-of-00001.safetensors"])
def test_a_folder_that_holds_more_than_a_model_is_not_replaced(source: Path, tmp_path: Path, strange: str) -> None:
    target = tmp_path / "mine"
    (target / strange).mkdir(parents=True)
    (target / "config.json").write_text("{}")
    with pytest.raises(UserError, match=f"holds more than a model, such as {strange}"):
        cells.run(source, target, "--to", "huggingface", "--overwrite")
    assert sorted(path.name for path in target.iterdir()) == sorted(["config.json", strange])
