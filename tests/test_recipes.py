"""ImageNet recipes: what their translation claims, and their configs end to end on small class folders of JPEGs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, List

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import dataset.transforms.torchvision_operators  # noqa: F401  # isort: skip  (timm imports torchvision)
import timm
import timm.optim

import finetune
import pretrain
import validation
from config import load_config
from dataset.transforms.crop import resize
from errors import UserError
from models.architecture import architecture_of
from models.losses import classification_loss, pack_targets
from models.vit import build_model
from optim.schedules import learning_rate_at
from optimization import build_optimizer, learning_rate_of, parameter_groups
from tests.small import small_config

RECIPES = ["s16_imagenet1k_90ep", "b16_deit3", "b16_deit3_224"]


def recipe(name: str, *flags: str) -> Any:
    return load_config("pretrain", ["--config", name, *flags])


def test_weight_decay_of_the_plain_vit_is_big_visions() -> None:
    """There w -= s (lr a + wd w), with the schedule s from 0 to 1, Adam's direction a, lr 1e-3 and wd 1e-4."""
    config = recipe("s16_imagenet1k_90ep")
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(4, 3, generator=generator))
    expected = weight.detach().double()
    optimizer = build_optimizer(config, {"blocks.0.mlp.fc1.weight": weight})
    first, second = torch.zeros(4, 3).double(), torch.zeros(4, 3).double()
    for step, share in enumerate([0.25, 0.5, 1.0, 0.3], start=1):
        weight.grad = torch.randn(4, 3, generator=generator)
        gradient = weight.grad.double()
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        direction = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        expected = expected - share * (1e-3 * direction + 1e-4 * expected)
        for group in optimizer.param_groups:
            group["lr"] = share * config.learning_rate
        optimizer.step()
    torch.testing.assert_close(weight.detach().double(), expected, rtol=0, atol=1e-6)


def test_what_decays_in_deit_iii_is_what_timm_lets_decay() -> None:
    peer = timm.create_model("deit3_small_patch16_224", depth=1)
    groups = timm.optim.param_groups_weight_decay(peer, 0.05, no_weight_decay_list=peer.no_weight_decay())
    decaying = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    expected = {name for name, parameter in peer.named_parameters() if id(parameter) in decaying}
    config = recipe(
        "b16_deit3",
        *["--hidden-size", "384", "--num-attention-heads", "6", "--mlp-dim", "1536", "--num-hidden-layers", "1"],
    )
    parameters = dict(build_model(architecture_of(config), 0).named_parameters())
    assert parameters.keys() == dict(peer.named_parameters()).keys()
    names = {id(parameter): name for name, parameter in parameters.items()}
    found = {}
    for group in parameter_groups(parameters, config):
        found.update(
            {names[id(parameter)]: (group["weight_decay"], group["max_weight_norm"]) for parameter in group["params"]}
        )
    assert {name for name, (decay, _) in found.items() if decay} == expected
    assert all(
        (norm > 0) == (name in expected) for name, (_, norm) in found.items()
    )  # apex: no trust ratio without decay


def test_a_loss_a_thousand_times_as_large_needs_clipping_and_epsilon_as_much() -> None:
    config = recipe("b16_deit3")
    weights = []
    for factor in (1.0, 1000.0):
        changed = config.model_copy(update={"adam_eps": config.adam_eps / 1000 * factor})
        weight = torch.nn.Parameter(torch.arange(6.0).view(2, 3) / 7)
        optimizer = build_optimizer(changed, {"head.weight": weight})
        for step in range(3):
            gradient = factor * 1e-7 * torch.tensor([[1.0, -2.0, 3.0], [0.5, step, 0.0]])
            limit = config.max_grad_norm / 1000 * factor
            weight.grad = gradient * (limit / max(limit, float(gradient.norm())))
            optimizer.step()
        weights.append(weight.detach())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-5, atol=1e-7)


def test_labels_of_mixed_images_count_in_full_as_in_deit_iii() -> None:
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    labels, shares = torch.tensor([0, 5, 2, 2]), torch.tensor([0.3, 1.0, 0.0, 0.6])
    one_hot = F.one_hot(labels, 6).float()
    mixed = shares.view(-1, 1) * one_hot + (1 - shares.view(-1, 1)) * one_hot.roll(1, 0)
    expected = 6 * F.binary_cross_entropy_with_logits(
        logits, mixed.gt(0.0).float()
    )  # engine.py; a mean over labels there
    found = classification_loss(logits, pack_targets(labels, 4, shares), "HardSigmoidCELoss")
    torch.testing.assert_close(found, expected)
    alone = classification_loss(logits, pack_targets(labels, 4), "HardSigmoidCELoss")
    torch.testing.assert_close(alone, classification_loss(logits, pack_targets(labels, 4), "SigmoidCELoss"))


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_rates_fall_to_the_least_rate_as_torchs_schedulers_have_it(schedule: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    if schedule == "cosine":
        scheduler: Any = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20, eta_min=0.01)
    else:
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01 / 0.3, 20)
    for step in range(25, 45):
        found = learning_rate_at(step, base=0.3, schedule=schedule, warmup_steps=25, num_steps=45, least=0.01)
        assert found == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_the_second_part_of_deit_iii_keeps_one_rate_after_its_warm_up() -> None:
    config = recipe("b16_deit3_224")
    rates = {learning_rate_of(config, step, 50_040) for step in range(12_510, 50_040, 1000)}
    assert all(math.isclose(rate, 1e-5) for rate in rates)


@pytest.mark.parametrize("size", [(24, 24), (90, 70)])
def test_bicubic_pictures_are_pillows(size: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC)).astype(int)
    found = resize(pixels, size, "bicubic").permute(1, 2, 0).numpy()
    assert np.abs(found - expected).max() <= 2  # both round between the two directions
    assert np.abs(resize(pixels, size).permute(1, 2, 0).numpy() - expected).max() > 10


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"class_token": False}, "global_pool = token reads the class token, but class_token = false"),
        ({"global_pool": "avg", "distillation": "heads"}, "distillation = heads goes with heads that read tokens"),
        (
            {"pos_embed": "sincos2d", "hidden_size": 18, "num_attention_heads": 2},
            "a multiple of 4, from 8 on; it is 18",
        ),
        ({"min_learning_rate": 0.2}, "min_learning_rate = 0.2 is above learning_rate = 0.1"),
    ],
)
def test_keys_that_do_not_fit_are_refused(tmp_path: Path, keys: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        small_config(tmp_path, **keys)


@pytest.fixture
def image_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """JPEGs of three synsets, each of a colour of its own, where the configs look for them."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 6)):
        for label, synset in enumerate(["n01440764", "n01443537", "n01484850"]):
            folder = tmp_path / "data" / "imagenet1k" / split / synset
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 90, (50 + number, 60, 3))
                pixels[..., label] += 150
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{synset}_{number}.JPEG")
    return tmp_path


SMALL = [
    "--hidden-size",
    "16",
    "--num-hidden-layers",
    "2",
    "--num-attention-heads",
    "2",
    "--mlp-dim",
    "32",
    "--num-labels",
    "3",
    "--micro-batch-size",
    "4",
    "--gradient-accumulation",
    "2",
    "--replication-factor",
    "2",
    "--dataloader-workers",
    "0",
    "--precision",
    "32.32",
    "--runtime",
    "single",
    "--device",
    "cpu",
    "--threads-per-process",
    "1",
    "--warmup-steps",
    "2",
    "--checkpoint-save-steps",
    "100",
]


def top1(run: Path) -> float:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record["top1"] for record in records if "top1" in record][-1]


def run_command(main: Any, name: str, *flags: str) -> None:
    assert main(["--config", name, *SMALL, *flags]) == 0


def test_the_plain_vit_trains_on_class_folders_goes_on_and_is_validated(image_net: Path, capfd: Any) -> None:
    size = ["--image-size", "32", "--patches-size", "8", "--representation-size", "16", "--learning-rate", "0.01"]
    run_command(pretrain.main, "s16_imagenet1k_90ep", *size, "--epochs", "6", "--validation-epochs", "6")
    folder = image_net / "output" / "s16_imagenet1k_90ep"
    assert top1(folder) > 0.6
    run_command(validation.main, "s16_imagenet1k_90ep", *size, "--pretrained-checkpoint", str(folder))
    assert "Valid Accuracy" in capfd.readouterr().out
    # The same weights read the class token's way are no model of theirs.
    with pytest.raises(UserError, match="class_token = False, the config True"):
        from weights.pretrained import open_pretrained

        other = ["--class-token", "true", "--global-pool", "token", "--pretrained-checkpoint", str(folder)]
        open_pretrained(load_config("validation", ["--config", "s16_imagenet1k_90ep", *SMALL, *size, *other]))


def test_deit_iii_trains_in_its_two_parts_on_class_folders(image_net: Path, capfd: Any) -> None:
    parts: List[Any] = [
        ("b16_deit3", pretrain.main, "32", "0.01", "4"),
        ("b16_deit3_224", finetune.main, "48", "0.001", "1"),
    ]
    for name, main, image_size, rate, epochs in parts:
        size = ["--image-size", image_size, "--patches-size", "8", "--learning-rate", rate, "--epochs", epochs]
        run_command(main, name, *size, "--validation-epochs", "4")
    printed = capfd.readouterr().out
    assert "position embeddings resized from 4x4 to 6x6 patches" in printed
    assert 0.0 <= top1(image_net / "output" / "b16_deit3_224") <= 1.0


@pytest.mark.parametrize("name", RECIPES)
def test_plans_of_the_recipes_have_the_published_sizes(name: str) -> None:
    from models.architecture import count_parameters
    from models.stages import plan_stages

    config = recipe(name)
    arch = architecture_of(config)
    total = sum(count_parameters(arch, unit) for unit in plan_stages([12])[0].units)
    published = {"s16_imagenet1k_90ep": 22.0e6, "b16_deit3": 86.6e6, "b16_deit3_224": 86.6e6}
    assert total == pytest.approx(published[name], rel=0.01)
    assert config.global_batch_size == {"s16_imagenet1k_90ep": 1024, "b16_deit3": 2048, "b16_deit3_224": 512}[name]


def test_a_model_with_fixed_positions_takes_no_learned_ones_and_its_own_at_any_size(tmp_path: Path) -> None:
    from placement import place_single
    from runtime.single import SingleRuntime
    from weights.card import card_of
    from weights.own import write_step_folder
    from weights.pretrained import load_pretrained, open_pretrained

    def started(name: str, **keys: Any) -> Any:
        config = small_config(tmp_path, **keys)
        runtime = SingleRuntime(config, place_single(config), num_cores=1)
        notes = load_pretrained(open_pretrained(config), config, runtime) if config.pretrained_checkpoint else []
        (tmp_path / name).mkdir()
        write_step_folder(tmp_path / name, card_of(config), {k: v.detach() for k, v in runtime.weights()[0].items()})
        return runtime.weights()[0], notes

    started("learned")
    first, _ = started("fixed", pos_embed="sincos2d")
    with pytest.raises(UserError, match="has learned positions, the config pos_embed = sincos2d"):
        started("wrong", pos_embed="sincos2d", pretrained_checkpoint=str(tmp_path / "learned"))
    larger = {"pos_embed": "sincos2d", "image_size": 16, "random_seed": 7}
    fresh, _ = started("fresh", **larger)
    second, notes = started("larger", **larger, pretrained_checkpoint=str(tmp_path / "fixed"))
    assert notes == ["fixed positions made anew, from 2x2 to 4x4 patches"]
    assert torch.equal(second["pos_embed"], fresh["pos_embed"])
    assert torch.equal(second["blocks.0.attn.qkv.weight"], first["blocks.0.attn.qkv.weight"])
