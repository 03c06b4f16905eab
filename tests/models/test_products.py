"""Products of 16-bit numbers by widening: the numbers that a processor with instructions for them gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import machine
from models import products
from models.architecture import Architecture
from models.products import LayerNorm, Linear, autocast, linear
from models.vit import build_model
from tests.small import num_bytes

HALF = [torch.float16, torch.bfloat16]


@pytest.fixture(params=[False, True], ids=["widened", "native"])
def multiplies(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(products, "multiplies", lambda dtype, device: request.param)
    return bool(request.param)


def exact(x: Tensor, layer: Linear, dtype: torch.dtype) -> Any:
    """Output and gradients in float64 from operands rounded to 16 bits."""
    x = x.to(dtype).double().requires_grad_()
    weight, bias = (p.detach().to(dtype).double().requires_grad_() for p in (layer.weight, layer.bias))
    output = x @ weight.t() + bias
    output.to(dtype).double().sin().sum().backward()
    return output, x.grad, weight.grad, bias.grad


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("stored", ["half weights", "float32 weights under autocast"])
def test_products_and_gradients_are_rounded_once(dtype: torch.dtype, stored: str, multiplies: bool) -> None:
    if multiplies and dtype == torch.float16 and not products._COMPUTES_HALF:
        pytest.skip(f"torch {torch.__version__} has no products of fp16 on CPUs")
    torch.manual_seed(0)
    layer, x = Linear(24, 8), torch.randn(2, 5, 24)
    expected = exact(x, layer, dtype)
    is_half = stored == "half weights"
    layer = layer.to(dtype) if is_half else layer
    x = (x.to(dtype) if is_half else x).requires_grad_()
    with autocast(torch.device("cpu"), None if is_half else dtype):
        output = layer(x)
    assert output.dtype == dtype
    output.double().sin().sum().backward()
    for actual, wanted in zip((output, x.grad, layer.weight.grad, layer.bias.grad), expected):
        assert actual.dtype == (dtype if is_half or actual is output else torch.float32)
        # One rounding of the result, and one of the gradient that comes in.
        error = (actual.double() - wanted).abs() / wanted.abs().mean()
        assert error.mean() < torch.finfo(dtype).eps


def test_what_is_kept_for_the_backward_pass_has_16_bits() -> None:
    layer, x = Linear(64, 64).half(), torch.randn(32, 64).half().requires_grad_()
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(num_bytes(t)) or t, lambda t: t):
        products._WidenedLinear.apply(x, layer.weight, layer.bias)
    assert sum(sizes) == num_bytes(x) + num_bytes(layer.weight)


def test_weights_of_16_bits_serve_inputs_of_32() -> None:
    """The head computes in float32 in any precision."""
    x = torch.randn(3, 8)
    for layer in (Linear(8, 4).half(), LayerNorm(8).half()):
        assert layer(x).dtype == torch.float32
        torch.testing.assert_close(layer(x), layer.float()(x))


def test_float32_products_are_torch_s_own() -> None:
    layer, x = torch.nn.Linear(8, 4), torch.randn(3, 8)
    assert torch.equal(linear(x, layer.weight, layer.bias), layer(x))


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("native", [False, True])
def test_few_rows_come_out_as_they_do_among_many(count: int, native: bool) -> None:
    """The class token of an image alone, in the last block and the head: matrix libraries sum few rows in another order."""
    model = build_model(Architecture((16, 16), (8, 8), embed_dim=64, depth=1, num_heads=2, mlp_dim=256), seed=0)
    if native:
        model.use_native_kernels()
    x, block = torch.randn(16, 1, 64), model.blocks["0"]
    for function in (model.head, lambda rows: block.mlp.after(block.norm2, rows)[1]):
        assert torch.equal(function(x[:count]), function(x)[:count])


@pytest.mark.parametrize(
    ("line", "float16", "bfloat16"),
    [
        ("flags\t\t: fpu avx2 f16c avx512f avx512_bf16 amx_tile", False, True),
        ("flags\t\t: fpu avx512_fp16 amx_bf16", True, True),
        ("flags\t\t: fpu avx2 f16c", False, False),
        ("Features\t: fp asimd asimdhp", True, False),
        ("Features\t: fp asimd asimdhp i8mm bf16", True, True),
        ("processor\t: 0", True, True),  # not told: as torch has it
    ],
)
def test_a_cpu_s_instructions_are_read_from_its_flags(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, line: str, float16: bool, bfloat16: bool
) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor : 0\n{line}\n")
    monkeypatch.setattr(machine, "CPU_FILE", str(path))
    assert (machine.cpu_multiplies("float16"), machine.cpu_multiplies("bfloat16")) == (float16, bfloat16)


@pytest.mark.parametrize("dtype", HALF)
def test_layer_norm_adds_its_weights_gradients_up_over_many_rows(dtype: torch.dtype) -> None:
    """Summed in 16 bits most of them would be lost."""
    layer, x = LayerNorm(8).to(dtype), torch.randn(20_000, 8).to(dtype)
    layer(x).backward(torch.ones(20_000, 8, dtype=dtype))
    assert layer.bias.grad is not None
    torch.testing.assert_close(layer.bias.grad.float(), torch.full((8,), 20_000.0), rtol=0.005, atol=0.0)
