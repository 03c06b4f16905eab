"""The loss scale: PopART's traces, overflows, what is counted, and when a run must stop."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models import products
from optim.loss_scaling import GradientCounter, LossScale
from optimization import learning_rate_of
from placement import place_single
from runtime.single import SingleRuntime
from runtime.weight_update import WeightUpdate
from tests.optim.toy import SHAPES, drawn, micro_batch, toy_model, weight_update, weights_of
from tests.small import host_batch, small_config

EDGE = 8188.0  # an eighth of fp16's largest number
SMALL, LARGE = (10, 0), (10, 1)  # counts below and above the edge
TRACES = [  # of PopART, from 10, while all gradients are small
    (1, [10, 20, 40, 80]),
    (2, [10, 20, 20, 40, 40, 80, 80]),
]
quick = settings(deadline=None, max_examples=60)
counts = st.tuples(st.integers(0, 10**9), st.integers(0, 10**9))


def half_update(tmp_path, **keys):
    keys = {"precision": "16.16", "auto_loss_scaling": True, "gradient_accumulation": 1, **keys}
    config = small_config(tmp_path, **keys)
    return WeightUpdate(config, [toy_model(drawn(0), torch.float16)])


def constant(value):
    return {name: np.full(shape, value) for name, shape in SHAPES.items()}


@pytest.mark.parametrize(("period", "trace"), TRACES)
def test_the_scale_doubles_while_gradients_are_small(period, trace):
    scale, seen = LossScale(base=10.0, automatic=True, period=period), []
    for number in range(len(trace)):
        seen.append(scale.scale)
        if scale.counts_in(number):
            scale.adjust(*SMALL)
    assert seen == trace


@pytest.mark.parametrize(("period", "trace"), TRACES)
def test_all_micro_batches_of_an_update_see_one_scale(tmp_path, period, trace):
    update = half_update(tmp_path, loss_scaling=10.0, als_period=period, gradient_accumulation=3)
    seen, used = [], []
    for number in range(len(trace)):
        update.begin(number)
        for _ in range(3):
            seen.append(update.seed)
            micro_batch(update, constant(0.01))
        update.apply(0.01)
        used.append(update.used_scale)
    assert seen == [scale for scale in trace for _ in range(3)]
    assert used == trace
    assert update.skipped == 0


def test_a_static_scale_stays(tmp_path):
    update = half_update(tmp_path, loss_scaling=16.0, auto_loss_scaling=False)
    for number in range(3):
        weight_update(update, number, 0.01, [constant(3000.0)])  # 48,000 when scaled
        assert update.seed == 16.0
    assert update.skipped == 0


def test_scaled_gradients_at_the_edge_halve_the_scale_and_still_count(tmp_path):
    update = half_update(tmp_path, loss_scaling=4.0, layer_decay=1.0, momentum=0.0)
    before = weights_of(update)
    weight_update(update, 0, 2.0**-11, [constant(EDGE / 4)])
    assert update.seed == 2.0
    assert update.skipped == 0
    for name, weight in weights_of(update).items():
        assert (before[name].double() - weight.double()).mean().item() == pytest.approx(1.0, rel=0.01)  # 2047 * 2^-11


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_an_update_that_overflows_is_left_out_and_the_next_goes_through(tmp_path, on_nonfinite):
    update = half_update(tmp_path, loss_scaling=16.0, on_nonfinite=on_nonfinite, ema_decay=0.5)
    before, average = weights_of(update), copy.deepcopy(update.average.values)
    weight_update(update, 0, 1e-4, [constant(5000.0)])  # 80,000 when scaled
    assert (update.skipped, update.must_stop, update.used_scale, update.seed) == (1, False, 16.0, 8.0)
    assert sorted(update.nonfinite) == sorted(SHAPES)
    assert not math.isfinite(update.grad_norm)
    assert all(torch.equal(value, before[name]) for name, value in weights_of(update).items())
    assert all(torch.equal(value, average[name]) for name, value in update.average.values.items())
    assert update.state() == {}
    weight_update(update, 1, 1e-4, [constant(5000.0)])
    assert (update.skipped, update.must_stop, update.used_scale, update.seed) == (1, False, 8.0, 4.0)
    assert not any(torch.equal(value, before[name]) for name, value in weights_of(update).items())
    assert update.grad_norm == pytest.approx(5000.0 * math.sqrt(sum(p.numel() for p in update.parameters.values())))


def test_one_overflow_among_the_micro_batches_is_enough(tmp_path):
    update = half_update(tmp_path, loss_scaling=16.0, gradient_accumulation=4)
    before = weights_of(update)
    one = constant(0.01)
    one["head.bias"][1] = 5000.0
    weight_update(update, 0, 0.1, [constant(0.01), one, constant(0.01), constant(0.01)])
    assert (update.skipped, update.seed, update.nonfinite) == (1, 8.0, ["head.bias"])
    assert all(torch.equal(value, before[name]) for name, value in weights_of(update).items())


@pytest.mark.parametrize(
    ("keys", "must_stop"),
    [
        ({"loss_scaling": 2.0}, False),  # the scale may be why, and halves
        ({"loss_scaling": 2.0**-13}, False),
        ({"loss_scaling": 2.0**-14}, True),
        ({"loss_scaling": 2.0**-15}, True),
        ({"loss_scaling": 1.0, "on_nonfinite": "skip"}, False),
        ({"loss_scaling": 16.0, "auto_loss_scaling": False}, True),
        ({"loss_scaling": 16.0, "auto_loss_scaling": False, "on_nonfinite": "skip"}, False),
    ],
)
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_run_stops_for_what_no_smaller_scale_can_help(tmp_path, keys, must_stop, value):
    update = half_update(tmp_path, **keys)
    before = weights_of(update)
    weight_update(update, 0, 0.1, [constant(value)])
    assert (update.skipped, update.must_stop) == (1, must_stop)
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(update).items())


def test_a_nan_in_the_weights_stops_the_run_after_the_scale_has_come_down(tmp_path):
    update = half_update(tmp_path, loss_scaling=2.0**-11)
    stops = []
    for number in range(4):
        weight_update(update, number, 0.1, [constant(math.nan)])
        stops.append((update.used_scale, update.must_stop))
    assert stops == [(2.0**-11, False), (2.0**-12, False), (2.0**-13, False), (2.0**-14, True)]


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_with_float32_weights_an_accumulator_that_overflows_halves_the_scale_too(tmp_path, name):
    config = small_config(tmp_path, precision="16.32", auto_loss_scaling=True, loss_scaling=16.0)
    update = WeightUpdate(config, [toy_model(drawn(0), torch.float32)])
    gradients = constant(0.01)
    gradients[name][...] = 5000.0
    weight_update(update, 0, 0.1, [gradients])
    assert (update.skipped, update.nonfinite) == (1, [name])
    assert update.seed == 8.0


@quick
@given(st.lists(counts, max_size=60), st.sampled_from([0.0, 1e-7, 0.1, 1.0]), st.sampled_from([1.0, 10.0, 0.25]))
def test_the_factor_stays_a_power_of_two(many, threshold, base):
    scale = LossScale(base=base, automatic=True, threshold=threshold)
    for below, above in many:
        before = scale.factor
        scale.adjust(below, above)
        assert scale.factor in (before / 2, before * 2)
        assert math.frexp(scale.factor)[0] == 0.5
        assert scale.scale == base * scale.factor


@quick
@given(counts, st.floats(1e-9, 0.999))
def test_the_factor_halves_where_the_share_of_large_numbers_is_above_the_threshold(pair, threshold):
    below, above = pair
    scale = LossScale(base=1.0, automatic=True, threshold=threshold)
    scale.adjust(below, above)
    share = above / (below + above) if above else 0.0
    if abs(share - threshold) > 1e-12:
        assert scale.factor == (0.5 if share > threshold else 2.0)


@quick
@given(counts)
def test_with_threshold_0_one_large_number_is_too_many(pair):
    scale = LossScale(base=1.0, automatic=True, threshold=0.0)
    scale.adjust(*pair)
    assert scale.factor == (0.5 if pair[1] else 2.0)


@quick
@given(st.integers(1, 10**9), st.integers(0, 10**9))
def test_with_threshold_1_a_small_number_is_enough_to_double(below, above):
    scale = LossScale(base=1.0, automatic=True, threshold=1.0)
    scale.adjust(below, above)
    assert scale.factor == 2.0


@quick
@given(st.lists(counts, max_size=40), st.floats(1.0, 100.0), st.floats(1.0, 1000.0))
def test_the_scale_never_exceeds_its_cap(many, base, times):
    scale = LossScale(base=base, automatic=True, cap=base * times)
    for below, above in many:
        before = scale.scale
        scale.adjust(below, above)
        assert scale.scale <= base * times * (1 + 1e-12)
        assert scale.scale == pytest.approx(min(2 * before, base * times) if above <= 1e-7 * below else before / 2)


def test_without_a_cap_the_factor_has_float32_s_bounds_alone():
    scale = LossScale(base=1.0, automatic=True)
    for _ in range(100):
        scale.adjust(*SMALL)
    assert scale.scale == 2.0**100
    for _ in range(200):
        scale.adjust(*LARGE)
    assert scale.scale == 2.0**-100
    for _ in range(300):
        scale.adjust(*SMALL)
    assert scale.scale == 2.0**127
    for _ in range(300):
        scale.adjust(*LARGE)
    assert scale.scale == 2.0**-126
    scale.adjust(*SMALL)
    assert scale.scale == 2.0**-125


def counted(tensor, edge=EDGE):
    counter = GradientCounter(edge, torch.device("cpu"))
    counter.active = True
    counter.count(tensor)
    return tuple(counter.take().tolist())


@quick
@given(st.lists(st.floats(width=16), max_size=40))
def test_infinities_and_nans_count_as_large(values):
    below = sum(abs(value) < EDGE for value in values)  # no comparison holds for a NaN
    assert counted(torch.tensor(values, dtype=torch.float16)) == (below, len(values) - below)


def test_the_edge_itself_is_large():
    numbers = torch.tensor([EDGE - 4, EDGE, -EDGE, -EDGE + 4, math.nan, -math.inf], dtype=torch.float16)
    assert counted(numbers) == (2, 4)


def test_a_counter_begins_anew_and_rests_when_it_is_not_active():
    counter = GradientCounter(EDGE, torch.device("cpu"))
    counter.count(torch.ones(3))
    assert counter.take().tolist() == [0, 0]
    counter.active = True
    counter.count(torch.ones(3))
    counter.count(torch.full((2,), 1e4))
    assert counter.take().tolist() == [3, 2]
    assert counter.take().tolist() == [0, 0]


def counts_of(update):
    """A list that the counts of each later update are put in."""
    seen, adjust = [], update.loss_scale.adjust

    def record(below, above):
        seen.append((below, above))
        adjust(below, above)

    update.loss_scale.adjust = record
    return seen


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 3)
        self.double()

    def forward(self, x):
        return self.fc2(torch.tanh(self.fc1(x)))


@pytest.mark.skipif(
    not products._COMPUTES_HALF, reason=f"torch {torch.__version__} has no linear layers of fp16 on CPUs"
)
def test_weight_gradients_and_outputs_gradients_of_linear_layers_are_counted(tmp_path):
    """Against autograd's own in float64."""
    config = small_config(tmp_path, precision="16.16", auto_loss_scaling=True, loss_scaling=2048.0)
    plain = TwoLayers()
    model = copy.deepcopy(plain).half()
    update = WeightUpdate(config, [model])
    seen = counts_of(update)
    inputs = 3 * torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(9)).half()
    expected = []
    update.begin(0)
    for x in inputs:
        (model(x).double().square().sum() * update.seed).backward()
        update.collect()
        hidden = plain.fc1(x.double())
        output = plain.fc2(torch.tanh(hidden))
        sources = [hidden, output, *plain.parameters()]
        expected += torch.autograd.grad(output.square().sum() * 2048.0, sources)
    update.apply(0.01)
    numbers = torch.cat([gradient.abs().flatten() for gradient in expected])
    assert not ((numbers > 0.98 * EDGE) & (numbers < 1.02 * EDGE)).any()  # where fp16's errors would decide
    below = int((numbers < EDGE).sum())
    assert len(numbers) - below > 10
    assert seen == [(below, len(numbers) - below)]


@pytest.mark.parametrize("keys", [{}, {"recompute_checkpoint_every_layer": True, "recompute_mid_layers": [1]}])
def test_a_vits_gradients_are_counted_once_each_in_the_updates_that_count(tmp_path, keys):
    keys = {"precision": "16.16", "auto_loss_scaling": True, "als_period": 2, "device_iterations": 3, **keys}
    config = small_config(tmp_path, **keys)
    runtime = SingleRuntime(config, place_single(config), num_cores=1)
    seen = counts_of(runtime.update)
    runtime.train_step(host_batch(config, runtime.share), learning_rate_of(config, 0, 10), 0)
    weights = sum(parameter.numel() for parameter in runtime.model.parameters())
    # A token of a whole block has 48 numbers of query, key and value, 16 of attention, 32 and 16 of the MLP. The last block
    # computes the class token alone, with query, key and value apart from their layer; the head's output is float32.
    outputs = 2 * (3 * 5 * (48 + 16 + 32 + 16) + 16 + 32 + 16)
    assert [below + above for below, above in seen] == [4 * (weights + outputs)] * 2
    assert runtime.loss_scale_factor == 4.0
