"""The native kernels against torch in float64, also at sizes that are no multiple of a vector's or a tile's."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Dict, Iterator, Sequence, Tuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from errors import UserError
from models.architecture import Architecture
from models.native import build
from models.native.build import BuildError, built_library
from models.native.functions import FewQueries, NormedAttention, NormedMlp, SkipAndNorm
from models.native.kernels import attention_backward, attention_forward, gelu_backward_, gelu_forward, library
from models.products import autocast
from models.vit import VisionTransformer, build_model
from runtime.devices import use_native_kernels
from tests.small import small_config

# Of a tensor's norm: what torch's own kernels differ from float64 by, and a little more.
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
TYPES = list(ROUNDING)
EPS = 1e-6

SIZES = [(1, 1, 1, 4), (2, 5, 3, 8), (3, 17, 4, 16), (2, 65, 3, 64), (1, 197, 2, 64), (2, 73, 2, 24), (1, 150, 1, 7)]


def error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.detach().double() - expected.detach()).norm() / expected.detach().norm())


def torch_attention(x: Tensor, weight: Tensor, bias: Tensor, heads: int, queries: int) -> Tensor:
    """Of the first tokens as queries, over all."""
    batch, tokens, _ = x.shape
    query, key, value = F.linear(x, weight, bias).view(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(query[:, :, :queries], key, value).transpose(1, 2).flatten(2)


def torch_branch(branch: Callable[..., Tensor]) -> Callable[..., Tuple[Tensor, Tensor]]:
    """x, and the branch of its norm."""

    def function(x: Tensor, weight: Tensor, bias: Tensor, *rest: Tensor) -> Tuple[Tensor, Tensor]:
        return x + 0.0, branch(F.layer_norm(x, x.shape[-1:], weight, bias, EPS), *rest)

    return function


def outcome(
    function: Callable[..., Tuple[Tensor, ...]], tensors: Sequence[Tensor], gradients: Sequence[Tensor]
) -> Tuple[Tensor, ...]:
    """What a function gives, and then the gradients of the tensors."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    out = function(*leaves)
    given = [gradient.to(each.dtype) for gradient, each in zip(gradients, out)]
    return *(each.detach() for each in out), *torch.autograd.grad(out, leaves, given)


def check_branch(
    actual: Callable[..., Tuple[Tensor, Tensor]],
    expected: Callable[..., Tensor],
    shape: Tuple[int, ...],
    sizes: Sequence[Tuple[int, ...]],
    dtype: torch.dtype,
) -> None:
    """Both outputs and all gradients of a branch with weights of these sizes, beside those of the formula in float64.

    In bfloat16 roundings add up: torch's own, of what autocast does, are the measure, over a few draws.
    """
    ours, torchs = [], []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        x, *gradients = torch.randn(3, *shape, generator=generator).unbind()
        weights = [torch.randn(size, generator=generator) / size[-1] ** (0.5 * (len(size) - 1)) for size in sizes]
        leaves = [x, *torch.randn(2, shape[-1], generator=generator).unbind(), *weights]
        found = outcome(actual, leaves, gradients)
        exact = outcome(torch_branch(expected), [each.double() for each in leaves], gradients)
        with autocast(torch.device("cpu"), None if dtype == torch.float32 else dtype):
            peer = outcome(torch_branch(expected), leaves, gradients)
        assert [each.dtype for each in found] == [torch.float32, dtype, *[torch.float32] * len(leaves)]
        assert torch.equal(found[0], x)
        ours.append([error(one, other) for one, other in zip(found, exact)])
        torchs.append([error(one, other) for one, other in zip(peer, exact)])
    limits = (1.2 * torch.tensor(torchs).mean(0)).clamp(min=ROUNDING[dtype])
    assert (torch.tensor(ours).mean(0) < limits).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("images", "tokens", "heads", "channels"), SIZES)
def test_attention_and_its_gradients_are_those_of_the_formula(
    images: int,
    tokens: int,
    heads: int,
    channels: int,
    threads: int,
    dtype: torch.dtype,
    torch_threads: Callable[[int], None],
) -> None:
    torch_threads(threads)
    width = heads * channels
    check_branch(
        lambda *args: NormedAttention.apply(*args, EPS, heads, dtype),
        lambda x, weight, bias, *proj: F.linear(torch_attention(x, weight, bias, heads, tokens), *proj),
        (images, tokens, width),
        [(3 * width, width), (3 * width,), (width, width), (width,)],
        dtype,
    )


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("queries", [1, 2])
@pytest.mark.parametrize(("images", "tokens", "heads", "channels"), SIZES)
def test_a_few_queries_have_the_attention_and_the_gradients_of_the_formula(
    images: int, tokens: int, heads: int, channels: int, queries: int, dtype: torch.dtype
) -> None:
    queries, width = min(queries, tokens), heads * channels
    generator = torch.Generator().manual_seed(tokens)
    qkv = torch.randn(images, tokens, 3 * width, generator=generator).to(dtype)
    gradient = torch.randn(images, queries, width, generator=generator).to(dtype)
    no_change = (torch.eye(3 * width), torch.zeros(3 * width))

    def ours(qkv: Tensor) -> Tuple[Tensor]:
        few, rest = qkv[:, :queries, :width], qkv[..., width:].contiguous()
        return (FewQueries.apply(few, rest, heads),)

    def formula(qkv: Tensor) -> Tuple[Tensor]:
        weight, bias = (tensor.double() for tensor in no_change)
        return (torch_attention(qkv, weight, bias, heads, queries),)

    for one, other in zip(outcome(ours, [qkv], [gradient]), outcome(formula, [qkv.double()], [gradient])):
        assert one.dtype == dtype
        assert error(one, other) < ROUNDING[dtype]


@pytest.mark.parametrize("dtype", TYPES)
def test_scores_far_apart_neither_overflow_nor_vanish(dtype: torch.dtype) -> None:
    qkv = torch.zeros(1, 3, 3, dtype=dtype)  # a head of one channel: the scores are products of two numbers
    qkv[0, :, 0], qkv[0, :, 1], qkv[0, :, 2] = torch.tensor([300.0, -300.0, 0.0]), torch.tensor([1.0, 0.0, -1.0]), 1.0
    qkv[0, 1, 2] = 5.0
    out, _ = attention_forward(qkv, torch.zeros(3), 1)
    torch.testing.assert_close(out[0, :, 0], torch.tensor([1.0, 1.0, 7.0 / 3.0], dtype=dtype))


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e8])
@pytest.mark.parametrize("channels", [24, 64])
def test_of_large_scores_attention_is_that_of_torch(channels: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 9, 3 * channels, generator=generator)
    qkv[..., : 2 * channels] *= scale**0.5
    gradient = torch.randn(2, 9, channels, generator=generator)
    plain = qkv.clone().requires_grad_()
    expected = F.scaled_dot_product_attention(*plain.split(channels, dim=2))
    (of_plain,) = torch.autograd.grad(expected, plain, gradient)
    out, log_sums = attention_forward(qkv, torch.zeros(3 * channels), 1)
    of_qkv, _ = attention_backward(gradient, qkv, torch.zeros(3 * channels), out, log_sums)
    assert error(out, expected.double()) < 1e-4  # scores of 1e4 are themselves known to 1e-3
    assert error(of_qkv[..., 2 * channels :], of_plain[..., 2 * channels :].double()) < 1e-3


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, -1])
def test_no_kind_of_nan_becomes_a_number(bits: int) -> None:
    qkv = torch.randn(1, 5, 24, generator=torch.Generator().manual_seed(0))
    qkv[0, 2, 9] = torch.tensor([bits], dtype=torch.int32).view(torch.float32)  # of a key: all queries meet it
    assert attention_forward(qkv, torch.zeros(24), 1)[0].isnan().all()


@pytest.mark.parametrize("dtype", TYPES)
def test_a_number_that_is_none_stays_one(dtype: torch.dtype) -> None:
    qkv = torch.zeros(2, 4, 6, dtype=dtype)
    qkv[1, 2, 5] = float("nan")
    out, _ = attention_forward(qkv, torch.zeros(6), 1)
    assert out[0].isfinite().all() and out[1, :, 1].isnan().all()
    assert gelu_forward(torch.full((1, 9), float("nan"), dtype=dtype), torch.zeros(9)).isnan().all()


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 8), (50, 77), (7, 256)])
def test_gelu_is_exact_from_the_far_left_to_the_far_right(rows: int, columns: int) -> None:
    x = torch.linspace(-12.0, 12.0, rows * columns).view(rows, columns)
    bias = torch.linspace(-0.5, 0.5, columns)
    gradient = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    wide, of_wide = (x.double() + bias.double()).requires_grad_(), gradient.double()
    expected = F.gelu(wide)
    (of_x,) = torch.autograd.grad(expected, wide, of_wide)
    actual, actual_of_x = gelu_forward(x, bias), gradient.clone()
    _, of_bias, again = gelu_backward_(actual_of_x, x, bias)
    assert torch.equal(actual, again)
    torch.testing.assert_close(actual.double(), expected.detach(), rtol=4e-7, atol=3e-7)
    torch.testing.assert_close(actual_of_x.double(), of_x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(of_bias.double(), of_x.sum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 8), (50, 77), (7, 256)])
def test_gelu_in_bfloat16_is_that_of_float32_rounded(rows: int, columns: int) -> None:
    x = torch.linspace(-12.0, 12.0, rows * columns).view(rows, columns).bfloat16()
    bias = torch.linspace(-0.5, 0.5, columns)
    gradient = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).bfloat16()
    of_x, of_bias, out = gelu_backward_(gradient.float(), x.float(), bias)
    actual_of_x, actual_of_bias, again = gelu_backward_(gradient.clone(), x, bias)
    assert torch.equal(again, out.bfloat16()) and torch.equal(actual_of_x, of_x.bfloat16())
    assert torch.equal(actual_of_bias, of_bias) and torch.equal(gelu_forward(x, bias), again)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(2, 5, 8), (3, 8)])
def test_the_mlp_and_its_gradients_are_those_of_torch(shape: Tuple[int, ...], dtype: torch.dtype) -> None:
    sizes = [(20, 8), (20,), (8, 20), (8,)]

    def torch_mlp(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
        return F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2)

    check_branch(lambda *args: NormedMlp.apply(*args, EPS, dtype), torch_mlp, shape, sizes, dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(1, 3), (2, 5, 8), (30, 77), (3, 2, 256)])
def test_the_norm_beside_a_skip_connection_has_the_gradients_of_both(
    shape: Tuple[int, ...], dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(shape, generator=generator) + 3.0
    weight, bias = torch.randn(2, shape[-1], generator=generator).unbind()
    of_skip, of_normed = torch.randn(2, *shape, generator=generator).unbind()
    leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
    skip, normed = SkipAndNorm.apply(*leaves, 1e-6, dtype)
    assert normed.dtype == dtype and torch.equal(skip, x)
    actual = torch.autograd.grad((skip, normed), leaves, (of_skip, of_normed.to(dtype)))
    wide = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
    expected_normed = F.layer_norm(wide[0], shape[-1:], wide[1], wide[2], 1e-6)
    expected = torch.autograd.grad(
        (wide[0] + 0.0, expected_normed), wide, (of_skip.double(), of_normed.to(dtype).double())
    )
    for one, other in ((normed, expected_normed), *zip(actual, expected)):
        assert error(one, other) < ROUNDING[one.dtype]


def trained_once(model: VisionTransformer) -> Dict[str, Tensor]:
    images = torch.rand(3, 3, *model.arch.image_size, generator=torch.Generator().manual_seed(2))
    images = images.to(model.pos_embed.dtype)
    model.zero_grad()
    model(images).square().sum().backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("frozen", [(), ("blocks.0.mlp.fc1.weight", "blocks.0.attn.qkv.bias", "blocks.1.mlp.fc2.bias")])
def test_a_model_on_the_kernels_has_the_gradients_of_one_without(frozen: Sequence[str]) -> None:
    arch = Architecture((16, 24), (8, 8), embed_dim=16, depth=3, num_heads=2, mlp_dim=40, num_labels=5)
    plain, native = build_model(arch, seed=3), build_model(arch, seed=3)
    native.use_native_kernels()
    for model in (plain, native):
        for name in frozen:
            model.get_parameter(name).requires_grad = False
    expected, actual = trained_once(plain), trained_once(native)
    assert actual.keys() == expected.keys()
    whole = torch.stack([value.norm() for value in expected.values()]).norm()
    for name, value in expected.items():
        assert (actual[name] - value).norm() < ROUNDING[torch.float32] * max(value.norm(), 1e-3 * whole), name


def test_in_bfloat16_a_model_on_the_kernels_errs_no_more_than_one_without() -> None:
    arch = Architecture((64, 64), (8, 8), embed_dim=64, depth=4, num_heads=2, mlp_dim=256, num_labels=10)
    seeds = range(6)
    exact = [flat(trained_once(build_model(arch, seed=seed).double())) for seed in seeds]

    def errors(native: bool) -> Tensor:
        found = []
        for seed in seeds:
            model = build_model(arch, seed=seed)
            if native:
                model.use_native_kernels()
            with autocast(torch.device("cpu"), torch.bfloat16):
                found.append(error(flat(trained_once(model)), exact[seed]))
        return torch.tensor(found)

    assert errors(native=True).mean() < 1.1 * errors(native=False).mean()


def test_what_the_kernels_do_not_take_goes_through_torch_s_layers() -> None:
    """Tokens of 16 bits, under no autocast."""
    model = build_model(
        Architecture((16, 16), (8, 8), embed_dim=16, depth=2, num_heads=2, mlp_dim=32, num_labels=5), seed=3
    )
    tokens = torch.randn(2, 5, 16).to(torch.bfloat16)
    expected = model.blocks["0"](tokens)
    model.use_native_kernels()
    assert torch.equal(model.blocks["0"](tokens), expected)


def flat(gradients: Dict[str, Tensor]) -> Tensor:
    return torch.cat([gradients[name].double().flatten() for name in sorted(gradients)])


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "COMPILERS", ("no-such-compiler",))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(BuildError, match=r"no C\+\+ compiler"):
        built_library()


def test_a_run_without_a_compiler_says_so_or_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "COMPILERS", ())
    monkeypatch.delenv("CXX", raising=False)
    library.cache_clear()
    model = build_model(
        Architecture((16, 16), (8, 8), embed_dim=8, depth=1, num_heads=2, mlp_dim=16, num_labels=2), seed=0
    )
    config, cpu = small_config(tmp_path), torch.device("cpu")
    (note,) = use_native_kernels([model], config, cpu)
    assert "torch's kernels" in note and "no C++ compiler" in note
    with pytest.raises(UserError, match=r"native_kernels = on, but there is no C\+\+ compiler"):
        use_native_kernels([model], small_config(tmp_path, native_kernels="on"), cpu)
    assert use_native_kernels([model], small_config(tmp_path, native_kernels="off"), cpu) == []
    assert use_native_kernels([model], small_config(tmp_path, precision="bf16.16"), cpu) == []


@pytest.mark.parametrize("has_instructions", [False, True])
def test_bfloat16_runs_on_the_kernels_where_the_cpu_multiplies_it(
    has_instructions: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("runtime.devices.multiplies", lambda dtype, device: has_instructions)
    model = build_model(
        Architecture((16, 16), (8, 8), embed_dim=8, depth=1, num_heads=2, mlp_dim=16, num_labels=2), seed=0
    )
    assert use_native_kernels([model], small_config(tmp_path, precision="bf16.32"), torch.device("cpu")) == []
    assert model.blocks["0"].attn.native == has_instructions


def test_what_does_not_compile_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "kernels.cpp"
    source.write_text("this is not C++\n")
    monkeypatch.setattr(build, "SOURCE", source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(BuildError, match=r"does not compile it .*error"):
        built_library()
    assert not list(tmp_path.rglob("*.so"))


def test_the_library_is_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "FLAGS", ["-O0", "-std=c++17", "-fPIC", "-shared"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = built_library()
    changed = first.stat().st_mtime_ns
    assert built_library() == first and first.stat().st_mtime_ns == changed


@pytest.fixture
def torch_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def compiled() -> None:
    library()
