"""The ViT against torch's own layers, and its stages against the whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Dict, List, Tuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.architecture import Architecture, count_forward_flops, count_parameters
from models.stages import plan_stages
from models.vit import Attention, Block, DropPath, PatchEmbed, build_model, mix_images, normalize_pixels
from tests.small import num_bytes

ARCH = Architecture(
    image_size=(16, 24),
    patch_size=(4, 8),
    num_channels=2,
    embed_dim=32,
    depth=4,
    num_heads=4,
    mlp_dim=48,
    num_labels=5,
    representation_size=12,
)
RANDOM = replace(ARCH, dropout=0.2, attention_dropout=0.1, drop_path_rate=0.3, fused_attention=False)
PLANS = [[4], [1, 3], [2, 2], [0, 3, 1], [1, 1, 2], [4, 0], [1, 1, 1, 1]]


def images(count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 2, 16, 24), dtype=torch.uint8, generator=generator)


def randomize(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return module


def through_stages(arch: Architecture, layers: List[int], training: bool = False) -> Tensor:
    x = images()
    for stage in plan_stages(layers):
        model = build_model(arch, seed=1, stage=stage).train(training)
        model.dropout_key = (1, 2, 3)
        x = model(x)
    return x


@pytest.mark.parametrize("layers_per_ipu", PLANS)
def test_stages_in_sequence_match_the_whole_model(layers_per_ipu: List[int]) -> None:
    whole = build_model(ARCH, seed=1).eval()
    assert torch.equal(through_stages(ARCH, layers_per_ipu), whole(images()))


@pytest.mark.parametrize("layers_per_ipu", PLANS)
def test_dropout_masks_do_not_depend_on_the_split(layers_per_ipu: List[int]) -> None:
    whole = build_model(RANDOM, seed=1).train()
    whole.dropout_key = (1, 2, 3)
    expected = whole(images())
    assert torch.equal(through_stages(RANDOM, layers_per_ipu, training=True), expected)
    whole.dropout_key = (1, 2, 4)
    assert not torch.equal(whole(images()), expected)


@pytest.mark.parametrize("layers_per_ipu", PLANS)
def test_initial_weights_are_the_same_in_every_split(layers_per_ipu: List[int]) -> None:
    whole = build_model(ARCH, seed=1).state_dict()
    split = {}
    for stage in plan_stages(layers_per_ipu):
        split.update(build_model(ARCH, seed=1, stage=stage).state_dict())
    assert split.keys() == whole.keys()
    assert all(torch.equal(split[name], value) for name, value in whole.items())


def test_another_seed_gives_other_weights_and_parameters_do_not_share_draws() -> None:
    first, second = build_model(ARCH, seed=1).state_dict(), build_model(ARCH, seed=2).state_dict()
    assert not torch.equal(first["head.weight"], second["head.weight"])
    assert not torch.equal(first["blocks.0.mlp.fc1.weight"], first["blocks.1.mlp.fc1.weight"])


def test_initial_weights_follow_their_rules() -> None:
    arch = Architecture(head_bias_init=-10.0, depth=1, num_labels=100)
    state = build_model(arch, seed=0).state_dict()
    rules = {
        "patch_embed.proj.weight": (2 / (768 * 256)) ** 0.5,
        "pos_embed": 0.02,
        "blocks.0.attn.qkv.weight": (2 / (768 + 768)) ** 0.5,
        "blocks.0.mlp.fc1.weight": (2 / (768 + 3072)) ** 0.5,
        "head.weight": (2 / (768 + 100)) ** 0.5,
    }
    for name, deviation in rules.items():
        assert float(state[name].std()) == pytest.approx(deviation, rel=0.02), name
        assert abs(float(state[name].mean())) < deviation / 30, name
    assert torch.all(state["head.bias"] == -10)
    assert torch.all(state["norm.weight"] == 1)
    for name in ("cls_token", "norm.bias", "blocks.0.attn.qkv.bias", "patch_embed.proj.bias"):
        assert torch.all(state[name] == 0), name


def test_block_equals_torch_encoder_layer() -> None:
    block = randomize(Block(ARCH, index=0)).eval()
    peer = nn.TransformerEncoderLayer(32, 4, 48, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True).eval()
    names = {
        "self_attn.in_proj_weight": "attn.qkv.weight",
        "self_attn.in_proj_bias": "attn.qkv.bias",
        "self_attn.out_proj.weight": "attn.proj.weight",
        "self_attn.out_proj.bias": "attn.proj.bias",
        "linear1.weight": "mlp.fc1.weight",
        "linear1.bias": "mlp.fc1.bias",
        "linear2.weight": "mlp.fc2.weight",
        "linear2.bias": "mlp.fc2.bias",
    }
    state = block.state_dict()
    peer.load_state_dict({name: state[names.get(name, name)] for name in peer.state_dict()})
    tokens = torch.randn(2, 7, 32)
    torch.testing.assert_close(block(tokens), peer(tokens), rtol=1e-5, atol=1e-6)


def test_last_block_gives_the_first_token_of_the_whole_block() -> None:
    last, whole = randomize(Block(ARCH, index=3).double()), randomize(Block(ARCH, index=0).double())
    ours, theirs = (torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(1)).double() for _ in range(2))
    ours.requires_grad_()
    theirs.requires_grad_()
    output, expected = last(ours), whole(theirs)[:, :1]
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    output.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12)
    for parameter, peer in zip(last.parameters(), whole.parameters()):
        torch.testing.assert_close(parameter.grad, peer.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("num_queries", [None, 1])
def test_explicit_attention_equals_fused(num_queries: int) -> None:
    fused = randomize(Attention(ARCH))
    explicit = randomize(Attention(replace(ARCH, fused_attention=False)))
    tokens = torch.randn(2, 7, 32)
    torch.testing.assert_close(explicit(tokens, num_queries), fused(tokens, num_queries), rtol=1e-5, atol=1e-6)


def test_patch_embedding_equals_a_convolution() -> None:
    embed = PatchEmbed(ARCH)
    pixels = torch.randn(2, 2, 16, 24)
    expected = F.conv2d(pixels, embed.proj.weight, embed.proj.bias, stride=(4, 8)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(pixels), expected, rtol=1e-5, atol=1e-6)


def test_patch_embedding_refuses_another_image_size() -> None:
    with pytest.raises(ValueError, match="images are 16x16, the model takes 16x24"):
        PatchEmbed(ARCH)(torch.zeros(1, 2, 16, 16))


def test_bytes_and_normalised_floats_give_the_same_logits() -> None:
    model = build_model(ARCH, seed=1).eval()
    floats = (images().double() / 255 - 0.5) / 0.5
    torch.testing.assert_close(normalize_pixels(images()).double(), floats, rtol=0, atol=1e-6)
    torch.testing.assert_close(model(images()), model(floats.float()), rtol=1e-5, atol=1e-5)


def test_mixup_mixes_each_image_with_its_predecessor() -> None:
    model = build_model(ARCH, seed=1).eval()
    floats = normalize_pixels(images())
    mixed = torch.stack([0.3 * floats[i] + 0.7 * floats[i - 1] for i in range(3)])
    torch.testing.assert_close(model(images(), torch.full((3, 1), 0.3)), model(mixed), rtol=1e-5, atol=1e-6)


def test_cutmix_pastes_a_rectangle_of_the_predecessor() -> None:
    floats = normalize_pixels(images())
    mix = torch.tensor([[1.0, 0, 0, 0, 0], [1.0, 2, 5, 3, 9], [0.25, 0, 0, 0, 0]])
    expected = floats.clone()
    expected[1, :, 2:5, 3:9] = floats[0, :, 2:5, 3:9]
    expected[2] = 0.25 * floats[2] + 0.75 * floats[1]
    torch.testing.assert_close(mix_images(floats, mix), expected)


def test_each_channel_has_its_own_mean_and_deviation() -> None:
    mean, std = (0.1, 0.4), (0.2, 0.3)
    expected = (images().double() / 255 - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    found = normalize_pixels(images().contiguous(memory_format=torch.channels_last), mean, std)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    one_mean = normalize_pixels(images(), (0.1,), std).double()
    torch.testing.assert_close(one_mean[:, 1], expected[:, 1] + 1.0, rtol=0, atol=1e-5)  # (0.4 - 0.1) / 0.3


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    dropped = DropPath(0.25).train()(torch.ones(20000, 2, 3))
    assert dropped.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert torch.equal(dropped, dropped[:, :1, :1].expand(-1, 2, 3))
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.02)  # four standard errors are 0.016
    assert [block.drop_path.rate for block in build_model(RANDOM, 0).blocks.values()] == pytest.approx(
        [0, 0.1, 0.2, 0.3]
    )


def test_counted_parameters_are_those_of_the_model() -> None:
    for stage in plan_stages([1, 2, 1]):
        model = build_model(ARCH, seed=0, stage=stage)
        counted = sum(count_parameters(ARCH, unit) for unit in stage.units)
        assert counted == sum(parameter.numel() for parameter in model.parameters())


def test_counted_flops_are_those_that_torch_counts() -> None:
    flop_counter = pytest.importorskip("torch.utils.flop_counter", reason="torch 2.0 does not count operations")
    arch = replace(ARCH, fused_attention=False)
    model = build_model(arch, seed=0).eval()
    with torch.no_grad(), flop_counter.FlopCounterMode(display=False) as counter:
        model(images(1))
    units = [unit for stage in plan_stages([4]) for unit in stage.units]
    assert counter.get_total_flops() == sum(count_forward_flops(arch, unit) for unit in units)


def gradients_and_kept_bytes(arch: Architecture) -> Tuple[Dict[str, Tensor], int]:
    """Gradients of a model with dropout, and what autograd keeps for the backward pass."""
    model = build_model(arch, seed=1).train()
    model.dropout_key = (1, 2, 3)
    images = torch.randn(2, 3, *arch.image_size, generator=torch.Generator().manual_seed(0))
    sizes: List[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(num_bytes(t)) or t, lambda t: t):  # type: ignore[func-returns-value]
        loss = model(images).square().sum()
    model.dropout_key = (4, 5, 6)  # another micro-batch's forward pass may come before this one's backward
    torch.manual_seed(7)
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, sum(sizes)


@pytest.mark.parametrize("mid_layers", [(), (0, 2)])
def test_recomputation_keeps_less_and_gives_the_same_gradients(mid_layers: Tuple[int, ...]) -> None:
    arch = Architecture(
        image_size=(32, 32),
        patch_size=(4, 4),
        embed_dim=32,
        depth=3,
        num_heads=2,
        mlp_dim=64,
        num_labels=5,
        dropout=0.2,
    )
    arch = replace(arch, drop_path_rate=0.1, attention_dropout=0.1, fused_attention=False)
    expected, all_bytes = gradients_and_kept_bytes(arch)
    gradients, kept_bytes = gradients_and_kept_bytes(replace(arch, recompute=True, recompute_mid_layers=mid_layers))
    assert gradients.keys() == expected.keys()
    for name, value in expected.items():
        assert (gradients[name] - value).norm() <= 1e-6 * value.norm(), name
    assert kept_bytes < all_bytes / 4


def test_a_block_recomputed_in_halves_runs_twice_half_by_half(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: List[str] = []
    for name in ("_attend", "_feed_forward"):
        method = getattr(Block, name)
        monkeypatch.setattr(
            Block, name, lambda self, x, name=name, method=method: calls.append(name) or method(self, x)
        )
    arch = Architecture(
        image_size=(8, 8),
        patch_size=(4, 4),
        embed_dim=16,
        depth=2,
        num_heads=2,
        mlp_dim=16,
        num_labels=5,
        recompute=True,
    )
    for mid_layers, backward in (((1,), ["_feed_forward", "_attend"]), ((), ["_attend", "_feed_forward"])):
        model = build_model(replace(arch, recompute_mid_layers=mid_layers), seed=1).train()
        loss = model(torch.randn(1, 3, 8, 8)).sum()
        calls.clear()
        loss.backward()
        assert calls == [*backward, "_attend", "_feed_forward"]
        model.eval()
        calls.clear()
        model(torch.randn(1, 3, 8, 8)).sum().backward()
        assert calls == ["_attend", "_feed_forward"] * 2
