"""Average pooling, registers, layer scale, fixed positions and the rest: logits, gradients and files are timm's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Dict

import numpy as np
import pytest
import torch

import dataset.transforms.torchvision_operators  # noqa: F401  # isort: skip  (timm imports torchvision)
import timm
import transformers
from safetensors.torch import save_file

from errors import UserError
from models.architecture import Architecture, count_forward_flops, count_parameters
from models.initialization import sincos_positions
from models.stages import plan_stages
from models.vit import VisionTransformer, build_model
from tests.weights import peers
from tests.weights.cells import run
from weights.opening import open_model

TOY = peers.TOY
ARCH = Architecture(
    image_size=(32, 32), patch_size=(8, 8), embed_dim=24, depth=2, num_heads=3, mlp_dim=96, num_labels=10
)
MEAN = {"global_pool": "avg", "class_token": False}
TIMM_MEAN = {"global_pool": "avg", "class_token": False, "fc_norm": False}
# What it is -> our architecture, timm's arguments.
VARIANTS: Dict[str, Any] = {
    "mean of the patches": (MEAN, TIMM_MEAN),
    "mean, then norm": ({**MEAN, "fc_norm": True}, {"global_pool": "avg", "class_token": False}),
    "mean beside a class token": ({"global_pool": "avg"}, {"global_pool": "avg", "fc_norm": False}),
    "mean and registers": ({**MEAN, "num_register_tokens": 3}, {**TIMM_MEAN, "reg_tokens": 3}),
    "registers": ({"num_register_tokens": 3}, {"reg_tokens": 3}),
    "layer scale": ({"layer_scale": 0.1}, {"init_values": 0.1}),
    "no positions before the patches": ({"prefix_positions": False}, {"no_embed_class": True}),
    "registers without positions": (
        {"num_register_tokens": 3, "prefix_positions": False},
        {"reg_tokens": 3, "no_embed_class": True},
    ),
    "DeiT III": ({"layer_scale": 1e-4, "prefix_positions": False}, {"init_values": 1e-4, "no_embed_class": True}),
}
each_variant = pytest.mark.parametrize("variant", VARIANTS)


def pair(variant: str) -> Any:
    """Our model and timm's with the same weights, which can tell computations apart."""
    ours, theirs = VARIANTS[variant]
    peer = peers.timm_model(TOY, **theirs)
    model = build_model(replace(ARCH, **ours), seed=0)
    model.load_state_dict(peer.state_dict())
    return model.eval(), peer


@each_variant
def test_logits_and_gradients_are_timms(variant: str) -> None:
    model, peer = pair(variant)
    images, labels = peers.pixels(TOY), torch.tensor([3, 7])
    logits, expected = model(images), peer(images)
    assert expected.std() > 0.01
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    for answers in (logits, expected):
        torch.nn.functional.cross_entropy(answers, labels).backward()
    gradients = {name: parameter.grad for name, parameter in peer.named_parameters()}
    for name, parameter in model.named_parameters():
        error = (parameter.grad - gradients[name]).norm() / gradients[name].norm().clamp(min=1e-4)
        assert error < 1e-4, name  # fp32 sums in another order


@each_variant
def test_stages_in_sequence_are_the_whole_and_their_costs_are_counted(variant: str) -> None:
    arch = replace(ARCH, depth=3, fused_attention=False, **VARIANTS[variant][0])
    whole = build_model(arch, seed=1).eval()
    for layers in ([1, 2], [0, 3, 0]):
        x = peers.pixels(TOY)
        for stage in plan_stages(layers):
            model = build_model(arch, seed=1, stage=stage).eval()
            assert sum(count_parameters(arch, unit) for unit in stage.units) == sum(
                p.numel() for p in model.parameters()
            )
            x = model(x)
        assert torch.equal(x, whole(peers.pixels(TOY)))
    counting = pytest.importorskip("torch.utils.flop_counter", reason="torch 2.0 does not count operations")
    with torch.no_grad(), counting.FlopCounterMode(display=False) as counter:
        whole(peers.pixels(TOY, 1))
    units = [unit for stage in plan_stages([3]) for unit in stage.units]
    assert counter.get_total_flops() == sum(count_forward_flops(arch, unit) for unit in units)


@each_variant
def test_timms_folders_and_files_are_read(tmp_path: Path, variant: str) -> None:
    model, peer = pair(variant)
    peers.save_timm(peer, tmp_path / "folder")
    read = peers.ours(tmp_path / "folder")
    assert peers.difference(read, peer, TOY) <= 1e-5
    assert read.arch == replace(model.arch, pixel_mean=read.arch.pixel_mean, pixel_std=read.arch.pixel_std)
    if variant in ("mean beside a class token",):
        return  # which no weight shows: without a config it is read as a model with a class token
    save_file(peer.state_dict(), str(tmp_path / "model.safetensors"))
    assert peers.difference(peers.ours(tmp_path / "model.safetensors", num_heads=TOY.heads), peer, TOY) <= 1e-5


@each_variant
def test_what_is_written_for_timm_opens_there_and_comes_back(tmp_path: Path, variant: str) -> None:
    _, peer = pair(variant)
    peers.save_timm(peer, tmp_path / "in")
    run(tmp_path / "in", tmp_path / "step", "--to", "pipevit")
    run(tmp_path / "step", tmp_path / "out", "--to", "timm")
    written = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert peers.difference(written, peer, TOY) <= 1e-5
    for name in ("step", "out"):
        assert open_model(str(tmp_path / name)).card.arch == open_model(str(tmp_path / "in")).card.arch


@pytest.mark.parametrize("variant", ["layer scale", "no positions before the patches", "DeiT III"])
def test_hugging_face_gets_an_equal_model_where_it_can_hold_one(tmp_path: Path, variant: str) -> None:
    _, peer = pair(variant)
    peers.save_timm(peer, tmp_path / "in")
    told = run(tmp_path / "in", tmp_path / "out", "--to", "huggingface")
    assert ("layer scale" in told) == ("init_values" in VARIANTS[variant][1])
    written = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    assert peers.difference(written, peer, TOY) <= 1e-5


@pytest.mark.parametrize(
    ("variant", "reason"),
    [
        ("mean of the patches", "the head reads the mean of the patches"),
        ("mean beside a class token", "the head reads the mean of the patches"),
        ("registers", "there are 3 register tokens"),
    ],
)
@pytest.mark.parametrize("target", ["huggingface", "app", "app-hf"])
def test_formats_without_a_place_for_a_model_refuse_it(tmp_path: Path, variant: str, reason: str, target: str) -> None:
    peers.save_timm(pair(variant)[1], tmp_path / "in")
    with pytest.raises(UserError, match=f"has no place for this model: {reason}"):
        run(tmp_path / "in", tmp_path / "out", "--to", target)


def test_fixed_positions_are_those_of_the_formula() -> None:
    arch = replace(ARCH, image_size=(24, 40), pos_embed="sincos2d")
    found = sincos_positions(arch).numpy()
    assert found.shape == (1, 1 + 15, 24)
    assert not found[0, 0].any()  # the class token's
    for row in range(3):
        for column in range(5):
            wave = np.array([10_000.0 ** (-k / 5) for k in range(6)])
            parts = [np.sin(column * wave), np.cos(column * wave), np.sin(row * wave), np.cos(row * wave)]
            np.testing.assert_allclose(found[0, 1 + row * 5 + column], np.concatenate(parts), atol=1e-6)


def test_fixed_positions_go_to_timm_as_weights_and_are_made_anew_for_another_grid(tmp_path: Path) -> None:
    arch = replace(ARCH, pos_embed="sincos2d", **MEAN)
    assert not build_model(arch, seed=0).pos_embed.requires_grad
    peer = peers.timm_model(TOY, **TIMM_MEAN)
    with torch.no_grad():
        peer.pos_embed.copy_(sincos_positions(arch))
    model = VisionTransformer(arch)
    model.load_state_dict(peer.state_dict())
    assert peers.difference(model.eval(), peer, TOY) <= 1e-5
    from weights.card import ModelCard
    from weights.own import write_step_folder

    (tmp_path / "own").mkdir()
    write_step_folder(tmp_path / "own", ModelCard(arch), {name: p.detach() for name, p in model.named_parameters()})
    run(tmp_path / "own", tmp_path / "out", "--to", "timm")
    assert (
        peers.difference(timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval(), peer, TOY) <= 1e-5
    )
    run(tmp_path / "own", tmp_path / "larger", "--to", "pipevit", "--image-size", "48")
    larger = open_model(str(tmp_path / "larger"))
    expected = sincos_positions(replace(arch, image_size=(48, 48)))
    assert torch.equal(larger.weights.read(["pos_embed"])["pos_embed"], expected)


@pytest.mark.parametrize("variant", ["registers without positions", "mean and registers"])
def test_another_size_gives_timms_model_at_that_size(tmp_path: Path, variant: str) -> None:
    _, peer = pair(variant)
    peers.save_timm(peer, tmp_path / "in")
    run(tmp_path / "in", tmp_path / "out", "--to", "pipevit", "--image-size", "48")
    peer.set_input_size(img_size=48)
    assert peers.difference(peers.ours(tmp_path / "out"), peer, TOY._replace(image=48)) <= 1e-5


def test_stochastic_depth_rises_or_is_the_same_in_every_block() -> None:
    for mode, rates in (("linear", [0.0, 0.1, 0.2]), ("constant", [0.2, 0.2, 0.2])):
        model = build_model(replace(ARCH, depth=3, drop_path_rate=0.2, drop_path_mode=mode), seed=0)
        assert [block.drop_path.rate for block in model.blocks.values()] == pytest.approx(rates)


def test_timms_own_deit_iii_says_its_heads_by_name_and_is_read(tmp_path: Path) -> None:
    sizes = TOY._replace(width=384, heads=6, depth=1)
    peer = peers.timm_model(sizes, "deit3_small_patch16_224", embed_dim=384, num_heads=6)
    from timm.models import save_for_hf

    save_for_hf(peer, tmp_path / "in", None, {"img_size": 32, "patch_size": 8, "depth": 1}, safe_serialization=True)
    told = run(tmp_path / "in", tmp_path / "out", "--to", "pipevit")
    assert "layer scale, positions of patches alone" in told
    assert peers.difference(peers.ours(tmp_path / "out"), peer, sizes) <= 1e-5


def test_pooling_that_the_weights_contradict_is_refused(tmp_path: Path) -> None:
    import json

    peers.save_timm(pair("mean of the patches")[1], tmp_path / "in")
    path = tmp_path / "in" / "config.json"
    details = json.loads(path.read_text())
    details["global_pool"] = "token"
    path.write_text(json.dumps(details))
    with pytest.raises(UserError, match="global_pool = token, but the weights beside it have no class token"):
        open_model(str(tmp_path / "in"))
    details["global_pool"] = "map"
    path.write_text(json.dumps(details))
    with pytest.raises(UserError, match="global_pool = map, which the model here does not know"):
        open_model(str(tmp_path / "in"))
