"""Rounding to 16 bits at random: to one of the two neighbours, right on average, by random bits that a key alone decides."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optim import stochastic_rounding
from optim.stochastic_rounding import Rounding, has_kernels, round_stochastically
from tests.optim.toy import neighbours

HALVES = [torch.float16, torch.bfloat16]
half_types = pytest.mark.parametrize("dtype", HALVES, ids=["fp16", "bf16"])
MILLION = 10**6
quick = settings(deadline=None, max_examples=60)
# From fp16's subnormals, which end at 6e-5, to its largest numbers.
SIZES = [1e-8, 1e-7, 1e-6, 3e-5, 6e-5, 1e-3, 1.0, 300.0, 3e4]
BIT_PATTERNS = st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=50)
FLOATS = st.lists(st.floats(width=32), min_size=1, max_size=50)
SMALL_FLOATS = st.lists(st.floats(-(2.0**-13), 2.0**-13, width=32), min_size=1, max_size=50)


def rounded(values, dtype, *key):
    target = torch.full_like(values, math.nan, dtype=dtype)
    round_stochastically(target, values, key or (1, "test"))
    return target


def assert_neighbours(values, dtype):
    """What is rounded from them; NaNs stay NaNs."""
    result, numbers = rounded(values, dtype).double().numpy(), values.double().numpy()
    is_nan = np.isnan(numbers)
    assert np.isnan(result[is_nan]).all()
    below, above = neighbours(numbers[~is_nan], dtype)
    assert ((result[~is_nan] == below) | (result[~is_nan] == above)).all()


@half_types
@pytest.mark.parametrize("size", SIZES)
def test_the_mean_of_a_million_roundings_is_the_values(dtype, size):
    generator = torch.Generator().manual_seed(1)
    signs = torch.rand(MILLION, generator=generator).sub_(0.3).sign_()  # a bias towards 0 would show, too
    values = size * (1 + torch.rand(MILLION, generator=generator)) * signs
    errors = rounded(values, dtype).double() - values.double()
    assert abs(errors.mean()) < 4 * errors.std() / math.sqrt(MILLION)


@half_types
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_one_value_becomes_each_neighbour_as_often_as_it_is_near(dtype, size, share):
    below, above = (float(part) for part in neighbours(np.float64(1.1003 * size), dtype))
    value, count = np.float32(below + share * (above - below)), 2 * 10**5
    result = rounded(torch.full((count,), value), dtype)
    assert set(result.float().unique().tolist()) == {below, above}  # torch 2.0 has no `unique` of fp16
    chance = (float(value) - below) / (above - below)  # as float32 has it
    frequency = (result == above).double().mean().item()
    assert abs(frequency - chance) < 4 * math.sqrt(chance * (1 - chance) / count)


@half_types
@quick
@given(FLOATS)
def test_floats_become_one_of_their_neighbours(dtype, values):
    assert_neighbours(torch.tensor(values, dtype=torch.float32), dtype)


@half_types
@quick
@given(SMALL_FLOATS)
def test_numbers_about_the_smallest_normal_one_become_one_of_their_neighbours(dtype, values):
    assert_neighbours(torch.tensor(values, dtype=torch.float32), dtype)


@half_types
@quick
@given(BIT_PATTERNS)
def test_any_bits_of_float32_become_one_of_their_neighbours(dtype, patterns):
    """Subnormals and the largest numbers among them."""
    values = torch.tensor(patterns, dtype=torch.int32).view(torch.float32)
    assert_neighbours(values[~values.isnan()], dtype)


# GPUs make the first of all NaNs; adding random bits to it gives -0, and masking the third gives infinity.
@half_types
def test_any_nan_stays_a_nan(dtype):
    patterns = torch.tensor([0x7FFFFFFF, -1, 0x7F800001, 0x7FC00000], dtype=torch.int32)
    assert rounded(patterns.view(torch.float32), dtype).isnan().all()


@half_types
def test_infinities_zeros_and_the_largest_numbers(dtype):
    largest = torch.finfo(dtype).max
    values = torch.tensor([math.inf, -math.inf, 0.0, -0.0, largest, -largest, math.nan])
    for key in range(20):
        torch.testing.assert_close(rounded(values, dtype, key).float(), values, rtol=0, atol=0, equal_nan=True)


@half_types
def test_what_16_bits_can_hold_stays(dtype):
    """All of their numbers."""
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    torch.testing.assert_close(rounded(numbers.float(), dtype), numbers, rtol=0, atol=0, equal_nan=True)


@half_types
def test_above_the_largest_number_fp16_overflows_as_often_as_it_is_near(dtype):
    """Infinity stands where the next number would be."""
    largest = torch.finfo(dtype).max
    unit = largest * torch.finfo(dtype).eps / (2 - torch.finfo(dtype).eps)  # from there to the number below
    frequency = rounded(torch.full((10**5,), largest + unit / 4), dtype).isinf().double().mean().item()
    assert frequency == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 10**5))


@half_types
def test_a_key_decides_the_random_bits(dtype):
    values = torch.linspace(-3, 3, 1001)
    first = rounded(values, dtype, 1, "rounding", 2, "weight")
    assert torch.equal(first, rounded(values, dtype, 1, "rounding", 2, "weight"))
    for other in [(2, "rounding", 2, "weight"), (1, "rounding", 3, "weight"), (1, "rounding", 2, "weights")]:
        assert 0.1 < (rounded(values, dtype, *other) != first).double().mean() < 0.9


@half_types
def test_the_global_generator_has_no_part_in_it(dtype):
    values = torch.linspace(-3, 3, 1001)
    torch.manual_seed(1)
    first, after = rounded(values, dtype), torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)
    assert torch.equal(rounded(values, dtype), first)


@half_types
def test_shapes_and_strides_do_not_matter(dtype):
    values = torch.linspace(-3, 3, 6 * 35)
    flat = rounded(values, dtype)
    assert torch.equal(rounded(values.view(6, 5, 7), dtype).flatten(), flat)
    turned = values.view(35, 6).t().contiguous().t()
    target = torch.empty(35, 6, dtype=dtype)
    round_stochastically(target, turned, (1, "test"))
    assert torch.equal(target.flatten(), flat)


@half_types
@pytest.mark.parametrize("size", [1, 2, 3, 5, 2**17 - 1, 2**17, 2**17 + 1, 2**18 + 3, 3 * 2**17 + 5])
def test_every_number_of_any_size_is_rounded(dtype, size):
    values = torch.linspace(1.0, 2.0, size)
    result, (below, above) = rounded(values, dtype).double().numpy(), neighbours(values.double().numpy(), dtype)
    assert ((result == below) | (result == above)).all()


@half_types
@pytest.mark.parametrize("distance", [1, 2, 3, 4, 5, 8, 2**10, 2**16, 2**17 - 1, 2**17, 2**17 + 1, 2**18, 2**20])
def test_no_two_parts_of_a_tensor_have_the_same_random_bits(dtype, distance):
    """Half way between two numbers, two elements go the same way half of the time, whatever their distance."""
    size = max(3 * 2**17 + 5, distance + 2**17 + 3)
    below, above = neighbours(np.float64(1.1), dtype)
    is_above = rounded(torch.full((size,), (below + above) / 2), dtype) == above
    agreement = (is_above[distance:] == is_above[:-distance]).double()
    assert abs(agreement.mean().item() - 0.5) < 4 * 0.5 / math.sqrt(len(agreement))


@half_types
def test_the_random_bits_of_an_element_are_uniform(dtype):
    """All of them, the lowest too: a value just above a number goes up a few times in ten thousand."""
    below, above = neighbours(np.float64(1.1), dtype)
    chance = 2.0 ** (-13 if dtype == torch.float16 else -16)
    count = (rounded(torch.full((2**22,), below + chance * (above - below)), dtype) == above).sum().item()
    assert abs(count - 2**22 * chance) < 4 * math.sqrt(2**22 * chance)


def test_float32_targets_and_rounding_to_the_nearest_take_no_random_bits():
    values = torch.linspace(-3, 3, 1001)
    for is_stochastic, dtype in [(True, torch.float32), (False, torch.float16), (False, torch.bfloat16)]:
        target = torch.empty(1001, dtype=dtype)
        Rounding(is_stochastic, seed=1).write(target, values, "name")
        assert torch.equal(target, values.to(dtype))


@pytest.mark.parametrize(("there", "expected"), [({"gcc"}, True), ({"clang"}, True), (set(), False)])
def test_kernels_need_the_compiler_that_triton_calls(there, expected, monkeypatch):
    """Else the first step on a GPU would end in Triton's own error."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(stochastic_rounding, "find_spec", lambda name: "triton")
    monkeypatch.setattr(stochastic_rounding.shutil, "which", lambda name: name if name in there else None)
    stochastic_rounding._has_triton.cache_clear()
    assert has_kernels(torch.device("cuda")) == expected
    stochastic_rounding._has_triton.cache_clear()
