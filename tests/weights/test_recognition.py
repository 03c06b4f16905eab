"""What logits depend on beyond shapes is recognised in every format, or asked for, never assumed."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, Dict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from config import load_config
from errors import UserError
from placement import place_single
from runtime.single import SingleRuntime
from tests.small import small_config
from tests.weights import cells, peers
from tests.weights.peers import TOY
from weights import hub, pickled
from weights.hugging_face_pictures import preparation_json, read_preparation
from weights.opening import open_model
from weights.pretrained import follow_checkpoint, load_pretrained, open_pretrained
from weights.timm_names import SIZES, heads_of
from weights.whole_model import with_heads


def saved_hugging_face(folder: Path, sizes: peers.Sizes = TOY, **changes: Any) -> Any:
    model = peers.hugging_face(sizes, **changes)
    model.save_pretrained(folder)
    return model


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("eps", [1e-12, 1e-6, 1e-3])
@pytest.mark.parametrize("patch", [4, 8])
@pytest.mark.parametrize("heads", [2, 6])
def test_sizes_and_epsilon_of_hugging_face_are_recognised(tmp_path: Path, eps: float, patch: int, heads: int) -> None:
    sizes = TOY._replace(patch=patch, heads=heads, image=16)
    model = saved_hugging_face(tmp_path, sizes, layer_norm_eps=eps, intermediate_size=40)
    arch = open_model(str(tmp_path)).card.arch
    assert (arch.layer_norm_eps, arch.patch_size, arch.num_heads, arch.image_size) == (
        eps,
        (patch, patch),
        heads,
        (16, 16),
    )
    assert peers.difference(peers.ours(tmp_path), model, sizes) <= 1e-5


def test_oblong_images_and_patches_of_hugging_face_are_recognised(tmp_path: Path) -> None:
    model = peers.shaken(
        peers.transformers.ViTForImageClassification(
            peers.hugging_face_config(TOY, image_size=[16, 24], patch_size=[4, 8], num_channels=1)
        )
    )
    model.save_pretrained(tmp_path)
    images = torch.randn(2, 1, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(peers.ours(tmp_path)(images), model(images).logits, rtol=0, atol=1e-5)


def test_what_hugging_faces_config_leaves_out_is_what_transformers_takes(tmp_path: Path) -> None:
    model = saved_hugging_face(tmp_path, TOY._replace(heads=12))
    config = json.loads((tmp_path / "config.json").read_text())
    del config["num_attention_heads"], config["layer_norm_eps"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert peers.difference(peers.ours(tmp_path), model, TOY) <= 1e-5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "relu"}, "has hidden_act = relu"),
        ({"hidden_act": "gelu_new"}, "has hidden_act = gelu_new"),
        ({"qkv_bias": False}, "has qkv_bias = False"),
        ({"model_type": "swin"}, "is of model_type swin"),
        ({"num_attention_heads": 5}, "has num_attention_heads = 5, which do not divide 24"),
        ({"patch_size": 4}, "patch_size"),
        ({"image_size": 64}, "image_size"),
        ({"hidden_size": 48}, "hidden_size"),
        ({"layer_norm_eps": "small"}, "does not describe the ViT beside it"),
    ],
)
def test_what_the_model_cannot_compute_is_refused(tmp_path: Path, changes: Dict[str, Any], words: str) -> None:
    saved_hugging_face(tmp_path)
    rewrite(tmp_path / "config.json", **changes)
    with pytest.raises(UserError, match=words):
        open_model(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("vit_base_patch16_224", {"global_pool": "map"}, r"global_pool = map"),
        ("vit_base_patch16_224", {"pre_norm": True}, r"pre_norm|norm_pre"),
        ("vit_base_patch16_224", {"qk_norm": True}, r"qk_norm|q_norm"),
        ("vit_base_patch16_224", {"qkv_bias": False}, r"qkv_bias|qkv\.bias"),
    ],
)
@pytest.mark.parametrize("as_file", [True, False])
def test_what_timm_has_and_the_model_here_lacks_is_refused(tmp_path, name, arguments, words, as_file) -> None:
    model = peers.timm_model(TOY, name, **arguments)
    if as_file:
        save_file(model.state_dict(), tmp_path / "model.safetensors")
        words = r"lacks|holds|which is no square|of shape"
    else:
        peers.save_timm(model, tmp_path)
    with pytest.raises(UserError, match=words):
        open_model(str(tmp_path / "model.safetensors" if as_file else tmp_path))


def test_heads_of_a_bare_timm_file_are_asked_for(tmp_path: Path) -> None:
    save_file(peers.timm_model(TOY).state_dict(), tmp_path / "m.safetensors")
    saved = open_model(str(tmp_path / "m.safetensors"))
    with pytest.raises(UserError, match=r"does not say how many attention heads .*\n.*Give --num-heads N"):
        with_heads(saved, 0)
    with pytest.raises(UserError, match="has the width 24, which 5 heads do not divide"):
        with_heads(saved, 5)
    assert with_heads(saved, 3).card.arch.num_heads == 3


def test_timms_names_tell_what_weights_do_not_show() -> None:
    import timm

    names = [
        name for kind in ("vit_*", "deit_*", "deit3_*") for name in timm.list_models(kind) if "_distilled" not in name
    ]
    told = 0
    with torch.device("meta"):
        for name in [name for name in names if any(heads_of(name, width) for width, _ in SIZES.values())]:
            try:
                model = timm.create_model(name)
                width, heads = model.embed_dim, model.blocks[0].attn.num_heads
            except (AttributeError, TypeError, RuntimeError, NotImplementedError):
                continue
            if heads_of(name, width):
                told += 1
                assert heads_of(name, width) == heads, name
                # All else that the name stands for and weights do not show.
                assert isinstance(model.blocks[0].mlp.act, torch.nn.GELU), name
                assert model.blocks[0].norm1.eps == 1e-6, name
                assert model.global_pool == "token", name
    assert told >= 12
    assert heads_of("vit_base_patch16_224.augreg_in21k", 768) == 12
    assert heads_of("vit_base_patch16_plus_240", 896) == 0
    assert heads_of("vit_base_patch16_224", 512) == 0


def test_what_the_unknown_name_of_a_timm_folder_does_not_say_is_asked_for(tmp_path: Path) -> None:
    peers.save_timm(peers.timm_model(TOY), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.update(architecture="vit_odd_patch8_32", model_args={})
    config["pretrained_cfg"]["input_size"] = [3, 32, 32]  # as it stands there from timm 1.0.31 on
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert open_model(str(tmp_path)).card.arch.num_heads == 0


def test_pictures_of_a_timm_folder_are_recognised(tmp_path: Path) -> None:
    peers.save_timm(peers.timm_model(TOY), tmp_path, {"label_names": [f"c{label}" for label in range(10)]})
    config = json.loads((tmp_path / "config.json").read_text())
    config["pretrained_cfg"].update(
        mean=[0.1, 0.2, 0.3], std=[1, 2, 3], crop_pct=0.95, interpolation="bilinear", crop_mode="squash"
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    card = open_model(str(tmp_path)).card
    assert (card.arch.pixel_mean, card.arch.pixel_std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert (card.eval_crop, card.interpolation, card.squash, card.class_names[9]) == (0.95, "bilinear", True, "c9")


def test_pictures_of_a_hugging_face_folder_are_recognised_and_come_back(tmp_path: Path) -> None:
    names = {label: f"kind {label}" for label in range(10)}
    saved_hugging_face(tmp_path, id2label=names, problem_type="multi_label_classification")
    details = {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
    pixels = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5], "resample": 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**details, **pixels}))
    card = open_model(str(tmp_path)).card
    assert (card.arch.pixel_mean, card.arch.pixel_std) == ((0.1, 0.2, 0.3), (0.5,))
    assert (card.eval_crop, card.squash, card.interpolation, card.multi_label) == (0.8, False, "bicubic", True)
    assert card.class_names == tuple(names.values())
    cells.run(tmp_path, tmp_path / "out", "--to", "huggingface")
    assert open_model(str(tmp_path / "out")).card == card


@pytest.mark.parametrize(
    ("details", "crop", "squash", "mean"),
    [
        ({"size": 32}, 1.0, True, 0.5),
        ({"size": {"height": 32, "width": 32}, "do_normalize": False}, 1.0, True, 0.0),
        ({"size": 40, "do_center_crop": True, "crop_size": 32}, 0.8, True, 0.5),
        ({"size": {"height": 32, "width": 32}, "rescale_factor": 1 / 127.5, "image_mean": [1.0]}, 1.0, True, 0.5),
    ],
)
def test_ways_to_write_how_pictures_are_prepared(tmp_path: Path, details: Dict[str, Any], crop, squash, mean) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(details))
    prepared = read_preparation(tmp_path, (32, 32))
    assert (prepared.eval_crop, prepared.squash) == (crop, squash)
    assert prepared.mean == pytest.approx((mean,))


@pytest.mark.parametrize(
    "details", [{"resample": 0}, {"size": "big"}, {"image_mean": ["x"]}, {"size": {"longest_edge": 3}}]
)
def test_pictures_prepared_in_other_ways_are_refused(tmp_path: Path, details: Dict[str, Any]) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(details))
    with pytest.raises(UserError, match=r"preprocessor_config\.json"):
        read_preparation(tmp_path, (32, 32))


@pytest.mark.parametrize("pre_logits", [0, 20])
@pytest.mark.parametrize("training_state", [True, False])
def test_heads_and_pre_logits_of_google_are_recognised(tmp_path: Path, pre_logits: int, training_state: bool) -> None:
    arrays = peers.google_arrays(TOY, pre_logits)
    named = {f"opt/target/{name}": value for name, value in arrays.items()} if training_state else arrays
    extra = {"opt/state/step": np.zeros(1)} if training_state else {}
    np.savez(tmp_path / "m.npz", **named, **extra)
    arch = open_model(str(tmp_path / "m.npz")).card.arch
    assert (arch.num_heads, arch.representation_size, arch.layer_norm_eps) == (TOY.heads, pre_logits or None, 1e-6)
    assert peers.difference(peers.ours(tmp_path / "m.npz"), peers.FlaxViT(arrays), TOY) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_files_of_16_bits_are_read_as_they_are(tmp_path: Path, dtype: torch.dtype) -> None:
    model = saved_hugging_face(tmp_path).to(dtype)
    model.save_pretrained(tmp_path)
    saved = open_model(str(tmp_path))
    assert {tensor.dtype for tensor in saved.weights.read(saved.weights.shapes).values()} == {dtype}
    assert peers.difference(peers.ours(tmp_path), model.float(), TOY) <= 1e-5


# On the hub.


def test_a_name_on_the_hub_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []

    def download(name: str, allow_patterns: list) -> str:
        asked.append((name, allow_patterns))
        return str(tmp_path)

    saved_hugging_face(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    assert open_model("google/vit-base-patch16-224").card.arch.num_heads == TOY.heads
    assert [name for name, _ in asked] == ["google/vit-base-patch16-224"]
    assert not any("bin" in pattern for pattern in asked[0][1])  # no pickle where there is something better
    save = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(save, tmp_path / "pytorch_model.bin")
    with contextlib.nullcontext() if pickled.is_safe(torch.__version__) else pytest.raises(UserError, match="CVE"):
        open_model("google/vit-base-patch16-224")
    assert "pytorch_model.bin" in asked[-1][1]


def test_what_the_hub_does_not_give_is_said_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def download(name: str, allow_patterns: list) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"timm/vit_tiny is no file or folder here, and .*\n.*the hub is not reached"):
        open_model("timm/vit_tiny")


def test_a_mistyped_path_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert hub.is_hub_name("google/vit-base-patch16-224")
    for path in ("runs/mistyped", "./google/vit", "/google/vit", "a/b/c", "name", "~/vit"):
        assert not hub.is_hub_name(path), path


# In fine-tuning.


def fine_tuned(tmp_path: Path, *flags: str, **keys: Any) -> Any:
    """The config as it is followed, all notes, and the runtime, of a run that starts from a Hugging Face folder."""
    sizes = {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2, "mlp_dim": 96}
    small_config(tmp_path, **{**sizes, "image_size": 32, "patches_size": 8, "num_labels": 10, **keys})
    source = ["--pretrained-checkpoint", str(tmp_path / "hf")]
    config = load_config(
        "finetune", ["--config", "tiny", "--config-file", str(tmp_path / "configs.yaml"), *source, *flags]
    )
    saved = open_pretrained(config)
    config, notes = follow_checkpoint(saved, config)
    runtime = SingleRuntime(config, place_single(config), num_cores=1)
    return config, [*notes, *load_pretrained(saved, config, runtime)], runtime


def test_epsilon_follows_the_checkpoint_and_the_logits_are_its_own(tmp_path: Path) -> None:
    model = saved_hugging_face(tmp_path / "hf", layer_norm_eps=1e-3)
    config, notes, runtime = fine_tuned(tmp_path, layer_norm_eps=1e-6)  # as the shared defaults of configs.yaml say
    assert config.layer_norm_eps == 1e-3
    assert "layer_norm_eps = 0.001, as in the checkpoint (not 1e-06; the flag keeps a value)" in notes
    images = peers.pixels(TOY, runtime.eval_batch_size)
    with torch.no_grad():
        torch.testing.assert_close(runtime.predict(images), model(images).logits, rtol=0, atol=1e-5)


def test_a_flag_keeps_its_epsilon_and_says_so(tmp_path: Path) -> None:
    saved_hugging_face(tmp_path / "hf", layer_norm_eps=1e-3)
    config, notes, _ = fine_tuned(tmp_path, "--layer-norm-eps", "1e-6")
    assert config.layer_norm_eps == 1e-6
    assert "layer_norm_eps = 1e-06, as the flag says; the checkpoint was trained with 0.001" in notes


def test_a_run_that_followed_a_checkpoint_is_not_resumed_with_another_epsilon(tmp_path: Path) -> None:
    from resuming import _check_fits
    from tests.test_checkpoint import saved

    step_folder = saved(tmp_path, layer_norm_eps=1e-3)
    with pytest.raises(UserError, match=r"was trained with layer_norm_eps = 0\.001.*; now layer_norm_eps = 1e-06"):
        _check_fits(step_folder, small_config(tmp_path), "")


def test_other_pixels_than_the_checkpoints_are_said(tmp_path: Path) -> None:
    saved_hugging_face(tmp_path / "hf")
    _, notes, _ = fine_tuned(tmp_path, "--image-mean", "0.485", "0.456", "0.406")
    assert "image_mean is 0.485 0.456 0.406, the checkpoint was trained with 0.5" in notes
    assert not any(note.startswith("image_std") for note in notes)


def test_other_heads_than_the_checkpoints_are_refused(tmp_path: Path) -> None:
    saved_hugging_face(tmp_path / "hf")
    with pytest.raises(UserError, match="has num_attention_heads = 3, the config 6"):
        fine_tuned(tmp_path, num_attention_heads=6)


def test_preparation_is_written_as_transformers_reads_it(tmp_path: Path) -> None:
    from PIL import Image
    from transformers import AutoImageProcessor

    saved_hugging_face(tmp_path)
    card = open_model(str(tmp_path)).card
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preparation_json(card)))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8))
    prepared = processor(picture, return_tensors="pt")["pixel_values"]
    assert prepared.shape == (1, 3, 32, 32)
    assert -1 <= prepared.min() < -0.3 < 0.3 < prepared.max() <= 1
