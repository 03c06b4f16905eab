"""Weights, accumulators and optimiser state in 16 bits: what is stored, in which type, by which random bits."""

from __future__ import annotations

import gc
import itertools

import numpy as np
import pytest
import torch

from optim import rounded
from runtime.weight_update import WeightUpdate
from tests.optim import formulas
from tests.optim.toy import SHAPES, drawn, micro_batch, neighbours, toy_model, weight_update, weights_of
from tests.small import small_config

FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32
WEIGHTS = {"16.16": FP16, "16.32": FP32, "bf16.16": BF16}
HALVES = {"16.16": FP16, "16.32": FP16, "bf16.16": BF16}
ADAM = {"adam_betas": [0.9, 0.95], "adam_eps": 1e-4}
OPTIMISERS = {
    "SGD": {"optimizer": "SGD"},
    "Adam": {"optimizer": "Adam", **ADAM},
    "AdamW": {"optimizer": "AdamW", **ADAM},
    "LAMB": {"optimizer": "LAMB", "max_norm": 0.5, **ADAM},
    "Lion": {"optimizer": "Lion", "adam_betas": [0.9, 0.99]},
    "Muon": {"optimizer": "Muon", "momentum": 0.95, **ADAM},
}
ALL_HALF = {"accum_type": "fp16", "first_order_type": "fp16", "second_order_type": "fp16"}
SETTINGS = {"gradient_accumulation": 1, "loss_scaling": 16.0, "weight_decay": 0.1, "layer_decay": 0.9}


def half_update(tmp_path, precision, weights=None, **keys):
    config = small_config(tmp_path, precision=precision, **{**SETTINGS, **keys})
    return WeightUpdate(config, [toy_model(drawn(0) if weights is None else weights, WEIGHTS[precision])])


def assert_same_bits(some, others):
    assert {name: value.dtype for name, value in some.items()} == {name: v.dtype for name, v in others.items()}
    assert [name for name, value in some.items() if not torch.equal(value, others[name])] == []


def float64(tensors):
    return {name: value.detach().double().numpy() for name, value in tensors.items()}


def assert_rounded_from(actual, value, slack, dtype):
    """Each number is one of the two neighbours of the value, or of what lies within `slack`, the error of float32."""
    assert actual.dtype == dtype
    actual = actual.double().numpy()
    if dtype == FP32:
        assert (np.abs(actual - value) <= slack).all()
    else:
        assert (actual >= neighbours(value - slack, dtype)[0]).all()
        assert (actual <= neighbours(value + slack, dtype)[1]).all()


def slack_of(weight, moved):
    """Of float32: for Muon's products of matrices the most."""
    return 3e-7 * np.abs(weight) + 1e-5 * np.abs(moved).max()


STATES = [
    *itertools.product(OPTIMISERS, WEIGHTS, [{}, ALL_HALF]),
    ("AdamW", "16.16", {"first_order_type": "fp16"}),
    ("LAMB", "bf16.16", {"second_order_type": "fp16"}),
]


@pytest.mark.parametrize(("name", "precision", "types"), STATES)
def test_weights_and_states_are_neighbours_of_the_formulas_numbers(tmp_path, name, precision, types):
    update = half_update(tmp_path, precision, **OPTIMISERS[name], **types)
    stored = {"momentum_buffer": "first_order_type", "exp_avg": "first_order_type", "exp_avg_sq": "second_order_type"}
    for number in range(4):
        weights, states = float64(update.parameters), float64(update.state())
        gradients = drawn(number + 1, dtype=HALVES[precision])
        weight_update(update, number, 0.02, [gradients])
        after = update.state()
        for key, weight in weights.items():
            # From what was stored before, so that roundings do not add up.
            state = {k.rsplit(".", 1)[1]: v for k, v in states.items() if k.rsplit(".", 1)[0] == key}
            expected = formulas.step(update.config, key, weight, gradients[key], state, 0.02)
            slack = slack_of(expected, expected - weight)
            assert_rounded_from(update.parameters[key].detach(), expected, slack, WEIGHTS[precision])
            assert after.keys() >= {f"{key}.{kind}" for kind in state}
            for kind in state.keys() - {"step"}:
                dtype = HALVES[precision] if types.get(stored[kind]) == "fp16" else FP32
                assert_rounded_from(after[f"{key}.{kind}"], state[kind], 1e-6 * np.abs(state[kind]).max(), dtype)


@pytest.mark.parametrize("precision", WEIGHTS)
def test_combined_sgd_rounds_the_velocity_and_then_the_weights(tmp_path, precision):
    update = half_update(tmp_path, precision, use_combined_accum=True, loss_scaling=1.0)
    for number in range(4):
        weights, states = float64(update.parameters), float64(update.state())
        gradients = drawn(number + 1, dtype=HALVES[precision])
        weight_update(update, number, 0.02, [gradients])
        for key, weight in weights.items():
            state = {"momentum_buffer": states.get(f"{key}.momentum_buffer", 0.0)}
            formulas.step(update.config, key, weight, gradients[key], state, 0.02)
            velocity, expected = update.state()[f"{key}.momentum_buffer"], state["momentum_buffer"]
            stored = velocity.to(HALVES[precision])
            assert torch.equal(stored.to(velocity.dtype), velocity)
            assert_rounded_from(stored, expected, 3e-7 * np.abs(expected).max(), HALVES[precision])
            layer = next(count for unit, count in formulas.LAYERS_FROM_HEAD.items() if key.startswith(unit))
            moved = 0.02 * 0.9**layer * velocity.double().numpy()
            slack = slack_of(weight, moved)
            assert_rounded_from(update.parameters[key].detach(), weight - moved, slack, WEIGHTS[precision])


@pytest.mark.parametrize("precision", ["16.16", "bf16.16"])
@pytest.mark.parametrize("name", OPTIMISERS)
def test_without_stochastic_rounding_weights_are_the_nearest_numbers(tmp_path, name, precision):
    update = half_update(tmp_path, precision, stochastic_rounding=False, **OPTIMISERS[name])
    weights, gradients = float64(update.parameters), drawn(1, dtype=HALVES[precision])
    weight_update(update, 0, 0.02, [gradients])
    for key, weight in weights.items():
        expected = formulas.step(update.config, key, weight, gradients[key], {}, 0.02)
        below, above = neighbours(expected, HALVES[precision])
        nearest = np.minimum(above - expected, expected - below) + slack_of(expected, expected - weight)
        assert (np.abs(float64(update.parameters)[key] - expected) <= nearest).all(), key


@pytest.mark.parametrize("precision", ["16.16", "bf16.16"])
def test_updates_below_a_weights_precision_count_only_if_rounded_stochastically(tmp_path, precision):
    spacing = {FP16: 2.0**-10, BF16: 2.0**-7}[WEIGHTS[precision]]  # of the numbers above 1
    ones = {name: np.ones(shape) for name, shape in SHAPES.items()}
    moved = {}
    for is_stochastic in (True, False):
        keys = {"momentum": 0.0, "weight_decay": 0.0, "layer_decay": 1.0, "stochastic_rounding": is_stochastic}
        update = half_update(tmp_path, precision, ones, **keys)
        for number in range(60):
            weight_update(update, number, spacing / 100, [ones])
        moved[is_stochastic] = 1 - np.mean(np.concatenate([v.flatten() for v in float64(update.parameters).values()]))
    assert moved[True] == pytest.approx(0.6 * spacing, rel=0.25)  # a standard error is 0.09
    assert moved[False] == 0.0


def means_of(tmp_path, precision, micro_batches, **keys):
    """What is left of micro-batches' gradients after accumulation: the weight after a step of rate 1 from 0, turned."""
    zeros = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    settings = {"momentum": 0.0, "loss_scaling": 1.0, "layer_decay": 1.0, "gradient_accumulation": len(micro_batches)}
    update = half_update(tmp_path, precision, zeros, **{**settings, **keys})
    weight_update(update, 0, 1.0, micro_batches)
    return {name: -value for name, value in float64(update.parameters).items()}, update


@pytest.mark.parametrize(
    "keys", [{}, {"gradient_accumulation": 2, "replication_factor": 2}], ids=["one", "two replicas"]
)
@pytest.mark.parametrize("precision", WEIGHTS)
def test_the_running_mean_is_within_a_few_units_of_the_last_place(tmp_path, precision, keys):
    half = HALVES[precision]
    micro_batches = [drawn(number, dtype=half) for number in range(1, 5)]
    means, _ = means_of(tmp_path, precision, micro_batches, **keys)
    for name, mean in means.items():
        numbers = np.stack([part[name] for part in micro_batches])
        largest = np.abs(numbers).max(axis=0)  # no partial mean is larger
        unit = neighbours(1.0001 * largest, half)[1] - neighbours(largest, half)[0]
        # Three roundings by less than a unit each; the first two count for 2/4 and 3/4.
        assert (np.abs(mean - numbers.mean(axis=0)) <= 2.25 * unit).all()


@pytest.mark.parametrize("precision", ["16.16", "16.32"])
def test_the_running_mean_does_not_overflow_where_a_sum_would(tmp_path, precision):
    large = {name: np.full(shape, 30000.0) for name, shape in SHAPES.items()}
    means, update = means_of(tmp_path, precision, [large] * 4)
    assert update.skipped == 0
    assert all((mean == 30000.0).all() for mean in means.values())
    _, update = means_of(tmp_path, precision, [large] * 4, reduction_type="sum")
    assert update.skipped == 1


@pytest.fixture
def new_tensors():
    """Gives a function that finds all tensors made in this test that Python still holds, one for each storage."""

    def found():
        gc.collect()
        tensors = [known for known in gc.get_objects() if type(known) in (torch.Tensor, torch.nn.Parameter)]
        return list({tensor.untyped_storage().data_ptr(): tensor for tensor in tensors}.values())

    gc.freeze()  # what is there already is not looked through again
    yield found
    gc.unfreeze()


@pytest.mark.parametrize("accum_type", ["fp16", "fp32"])
@pytest.mark.parametrize("precision", WEIGHTS)
def test_gradients_are_accumulated_in_the_accumulators_type(tmp_path, new_tensors, precision, accum_type):
    # Momentum in 16 bits, so that 16.32 with a float32 accumulator does not leave all to autograd.
    update = half_update(tmp_path, precision, accum_type=accum_type, first_order_type="fp16")
    before = new_tensors()
    update.begin(0)
    for number in (1, 2):
        micro_batch(update, drawn(number))
    new = [tensor for tensor in new_tensors() if not any(tensor is known for known in before)]
    assert all(parameter.grad is None for parameter in update.parameters.values())
    expected = HALVES[precision] if accum_type == "fp16" else FP32
    assert {(tuple(tensor.shape), tensor.dtype) for tensor in new} == {(shape, expected) for shape in SHAPES.values()}


BYTES = [  # of a weight, with all that is kept between updates
    ("16.16", {"optimizer": "SGD", **ALL_HALF}, 4),
    ("16.16", {"optimizer": "SGD", "use_combined_accum": True}, 4),
    ("16.16", {"optimizer": "AdamW"}, 10),
    ("16.16", {"optimizer": "AdamW", **ALL_HALF}, 6),
    ("bf16.16", {"optimizer": "LAMB", **ALL_HALF}, 6),
    ("bf16.16", {"optimizer": "Lion", **ALL_HALF}, 4),
    ("bf16.16", {"optimizer": "Muon", **ALL_HALF}, 4),  # one moment of matrices
    ("16.32", {"optimizer": "AdamW", **ALL_HALF}, 8),
]


@pytest.mark.parametrize(("precision", "keys", "bytes_a_weight"), BYTES)
def test_nothing_wider_than_what_is_stored_is_kept_between_updates(
    tmp_path, new_tensors, precision, keys, bytes_a_weight
):
    shapes = {"blocks.0.mlp.fc1.weight": (200, 100), "blocks.1.mlp.fc1.weight": (100, 200)}
    weights = {name: np.ones(shape) for name, shape in shapes.items()}
    update = half_update(tmp_path, precision, weights, **keys)
    for number in range(2):
        weight_update(update, number, 0.01, [weights] * 2)
    kept = sum(tensor.untyped_storage().nbytes() for tensor in new_tensors())
    assert kept == pytest.approx(40_000 * bytes_a_weight, rel=1e-3)  # and some counters


BITWISE = [
    ("16.16", {"optimizer": "SGD", **ALL_HALF}),
    ("16.16", {"optimizer": "SGD", "use_combined_accum": True}),
    ("16.16", {"optimizer": "AdamW", **ADAM, **ALL_HALF}),
    ("16.32", {"optimizer": "Adam", **ADAM, **ALL_HALF}),
    ("bf16.16", {"optimizer": "LAMB", **ADAM}),
    ("bf16.16", {"optimizer": "Lion", **ALL_HALF}),
    ("bf16.16", {"optimizer": "Muon", **ADAM, **ALL_HALF}),
]
bitwise = pytest.mark.parametrize(("precision", "keys"), BITWISE)


@bitwise
def test_the_order_of_the_parameters_and_their_neighbours_do_not_matter(tmp_path, monkeypatch, precision, keys):
    settings = {**SETTINGS, **keys, "gradient_accumulation": 3}
    config = small_config(tmp_path, precision=precision, **settings)
    weights, dtype = drawn(0), WEIGHTS[precision]

    def outcome(*groups):
        """Three updates of the parameters, those of each group in a model of its own."""
        updates = [
            WeightUpdate(config, [toy_model({name: weights[name] for name in group}, dtype)]) for group in groups
        ]
        for number in range(3):
            for update in updates:
                weight_update(update, number, 0.02, [drawn(10 * number + index) for index in range(3)])
        return weights_of(*updates)

    names = list(SHAPES)
    whole = outcome(names)
    assert_same_bits(outcome(names[::-1]), whole)
    assert_same_bits(outcome(names[:2], names[2:]), whole)
    assert_same_bits(outcome(names[::2], names[5::-2]), whole)
    monkeypatch.setattr(rounded, "BUCKET", 50)  # weights that are widened at once
    assert_same_bits(outcome(names), whole)


@pytest.mark.parametrize("keys", [{}, {"use_combined_accum": True}], ids=["SGD", "combined SGD"])
@pytest.mark.parametrize("precision", WEIGHTS)
def test_random_bits_are_a_function_of_seed_update_and_parameter(tmp_path, precision, keys):
    name, other, shape = "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight", (64, 9)
    generator = np.random.default_rng(0)
    weight, gradients = generator.normal(size=shape), generator.normal(size=(2, *shape))

    def outcome(seed=0, number=0, name=name):
        update = half_update(tmp_path, precision, {name: weight}, random_seed=seed, **keys)
        weight_update(update, number, 0.02, [{name: gradient} for gradient in gradients])
        return update.parameters[name].detach().clone()

    first = outcome()
    assert torch.equal(first, outcome())
    for different in (outcome(seed=1), outcome(number=1), outcome(name=other)):
        assert 0.01 < (different != first).double().mean() < 0.99


def go_on(update, numbers, scale=1.0):
    """The weights after the weight updates with these numbers, of two micro-batches each."""
    for number in numbers:
        weight_update(update, number, 0.02, [drawn(100 * number + index, scale) for index in (1, 2)])
    return weights_of(update)


@bitwise
def test_a_loaded_state_continues_bit_for_bit(tmp_path, precision, keys):
    settings = {**keys, "loss_scaling": 128.0, "gradient_accumulation": 2}
    uninterrupted = half_update(tmp_path, precision, **settings)
    resumed = half_update(tmp_path, precision, go_on(uninterrupted, range(3)), **settings)
    resumed.load_state({name: value.clone() for name, value in uninterrupted.state().items()})
    assert_same_bits(go_on(resumed, range(3, 6)), go_on(uninterrupted, range(3, 6)))
    assert_same_bits(resumed.state(), uninterrupted.state())


VELOCITIES = [
    *(("16.16", 128.0, 1.0), ("16.32", 128.0, 1.0), ("bf16.16", 128.0, 1.0), ("bf16.16", 128.0, 1e-5)),
    *((precision, 128.0, 1e-5) for precision in ("16.16", "16.32")),
    *((precision, 100.0, 1.0) for precision in WEIGHTS),
]


@pytest.mark.parametrize(("precision", "loss_scale", "size"), VELOCITIES)
def test_a_loaded_velocity_that_is_also_the_accumulator_continues_bit_for_bit(tmp_path, precision, loss_scale, size):
    """Also where 16 bits hold it only times the loss scale, and where the scale is no power of two."""
    settings = {"use_combined_accum": True, "loss_scaling": loss_scale, "gradient_accumulation": 2, "weight_decay": 0.0}
    uninterrupted = half_update(tmp_path, precision, **settings)
    go_on(uninterrupted, range(3), size)
    zeros = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    resumed = half_update(tmp_path, precision, zeros, **settings)
    resumed.load_weights(weights_of(uninterrupted))
    resumed.load_state({name: value.clone() for name, value in uninterrupted.state().items()})
    assert_same_bits(go_on(resumed, range(3, 6), size), go_on(uninterrupted, range(3, 6), size))
    assert_same_bits(resumed.state(), uninterrupted.state())
