"""Ten weight updates of every optimiser against formulations in numpy and float64, and against torch's own optimisers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from runtime.weight_update import WeightUpdate
from tests.optim import formulas
from tests.optim.toy import SHAPES, drawn, toy_model, weight_update
from tests.small import small_config

ADAM = {"adam_betas": [0.9, 0.95], "adam_eps": 1e-6}
OPTIMISERS = {
    "SGD": {"optimizer": "SGD"},
    "combined SGD": {"optimizer": "SGD", "use_combined_accum": True},
    "Adam": {"optimizer": "Adam", **ADAM},
    "AdamW": {"optimizer": "AdamW", **ADAM},
    "LAMB": {"optimizer": "LAMB", "max_norm": 0.5, **ADAM},  # the weights' norms are 4 to 7
    "raw LAMB": {"optimizer": "LAMB", "max_norm": 5.0, "max_norm_bias": 1.0, "bias_correction": False, **ADAM},
    "Lion": {"optimizer": "Lion", "adam_betas": [0.9, 0.99]},
    "Muon": {"optimizer": "Muon", "momentum": 0.95, **ADAM},
}
BATCHES = {
    "one micro-batch": {},
    "4 micro-batches": {"gradient_accumulation": 4, "loss_scaling": 128.0, "weight_decay": 0.1},
    "2 replicas": {"replication_factor": 2, "weight_decay": 0.1, "layer_decay": 0.7},
    "a sum": {"gradient_accumulation": 4, "replication_factor": 2, "reduction_type": "sum", "loss_scaling": 128.0},
    "clipped": {"gradient_accumulation": 4, "replication_factor": 2, "max_grad_norm": 2.0, "weight_decay": 0.05},
    "clipped sum": {"replication_factor": 2, "max_grad_norm": 5.0, "reduction_type": "sum", "layer_decay": 0.7},
    "within the limit": {"gradient_accumulation": 4, "max_grad_norm": 100.0},
}
RATES = [0.02 * (1 + math.cos(number / 3)) + 0.001 for number in range(10)]
CASES = [
    pytest.param({**optimiser, **batch}, id=f"{name}, {batch_name}")
    for name, optimiser in OPTIMISERS.items()
    for batch_name, batch in BATCHES.items()
    if not (name == "combined SGD" and "max_grad_norm" in batch)  # it has no gradient of its own to clip
]


def config_of(tmp_path, keys):
    return small_config(tmp_path, **{"gradient_accumulation": 1, **keys})


def micro_batches_of(config, number):
    count = config.gradient_accumulation * config.replication_factor
    return [drawn(1000 * number + index) for index in range(1, count + 1)]


def reduced(config, micro_batches):
    """The gradient of a weight update: reduced, then clipped."""
    divisor = len(micro_batches) if config.reduction_type == "mean" else 1
    gradient = {name: sum(part[name] for part in micro_batches) / divisor for name in SHAPES}
    norm, limit = math.sqrt(sum((part**2).sum() for part in gradient.values())), config.max_grad_norm
    factor = limit / max(limit, norm) if limit else 1.0
    return {name: part * factor for name, part in gradient.items()}, norm


@pytest.mark.parametrize("keys", CASES)
def test_ten_updates_follow_the_formula(tmp_path, keys):
    config = config_of(tmp_path, keys)
    weights, states = drawn(0), {name: {} for name in SHAPES}
    update = WeightUpdate(config, [toy_model(weights)])
    for number, rate in enumerate(RATES):
        micro_batches = micro_batches_of(config, number)
        weight_update(update, number, rate, micro_batches)
        gradient, norm = reduced(config, micro_batches)
        for name, weight in weights.items():
            weights[name] = formulas.step(config, name, weight, gradient[name], states[name], rate)
        if not config.combines_accumulators:
            assert update.grad_norm == pytest.approx(norm, rel=1e-6)
        assert (norm > config.max_grad_norm) == (config.max_grad_norm < 100)
    # The norm that clips is float32, and so is the velocity that is also the accumulator; all else is float64 here.
    tolerance = 1e-6 if config.max_grad_norm or config.combines_accumulators else 1e-10
    for name, weight in weights.items():
        error = np.abs(update.parameters[name].detach().numpy() - weight).max()
        assert error < tolerance * np.abs(weight).max(), name


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_ten_updates_are_those_of_torch_on_the_mean_gradient(tmp_path, name, decay):
    kind = getattr(torch.optim, name)
    own = {"momentum": 0.9} if name == "SGD" else {"betas": (0.9, 0.95), "eps": 1e-6}
    keys = {"optimizer": name, "gradient_accumulation": 4, "weight_decay": decay, **ADAM}
    config = config_of(tmp_path, keys)
    update = WeightUpdate(config, [toy_model(drawn(0))])
    peer = dict(toy_model(drawn(0)).named_parameters())
    groups = [
        {"params": [p for p in peer.values() if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in peer.values() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = kind(groups, lr=1.0, foreach=False, **own)
    for number, rate in enumerate(RATES):
        micro_batches = micro_batches_of(config, number)
        weight_update(update, number, rate, micro_batches)
        for key, parameter in peer.items():
            parameter.grad = torch.tensor(np.mean([part[key] for part in micro_batches], axis=0))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    for key, parameter in peer.items():
        torch.testing.assert_close(update.parameters[key], parameter, rtol=1e-10, atol=1e-12)


def one_update(config, weights, gradient, rate=0.1):
    """How far one update moves the weights."""
    update = WeightUpdate(config, [toy_model(weights)])
    weight_update(update, 0, rate, [gradient])
    return {name: update.parameters[name].detach().numpy() - weight for name, weight in weights.items()}


def zeros():
    return {name: np.zeros(shape) for name, shape in SHAPES.items()}


def test_lamb_trusts_adams_step_where_weights_are_zero(tmp_path):
    config = config_of(tmp_path, {**OPTIMISERS["raw LAMB"], "bias_correction": True})
    gradient = drawn(1)
    for name, moved in one_update(config, zeros(), gradient).items():
        # Adam's first direction is the gradient's sign, up to eps.
        np.testing.assert_allclose(moved, -0.1 * np.sign(gradient[name]), rtol=1e-3, err_msg=name)


def test_lamb_moves_nothing_where_the_update_is_zero(tmp_path):
    for moved in one_update(config_of(tmp_path, OPTIMISERS["LAMB"]), drawn(0), zeros()).values():
        assert (moved == 0).all()


def test_lamb_without_a_cap_moves_by_the_rate_times_the_weights_norm(tmp_path):
    config, weights = config_of(tmp_path, {"optimizer": "LAMB", "weight_decay": 0.1}), drawn(0)
    for name, moved in one_update(config, weights, drawn(1)).items():
        length = np.linalg.norm(weights[name]) if weights[name].ndim > 1 else math.sqrt(moved.size)
        assert np.linalg.norm(moved) == pytest.approx(0.1 * length, rel=1e-5), name


def test_muon_makes_query_key_and_value_orthogonal_one_by_one(tmp_path):
    config, name = config_of(tmp_path, OPTIMISERS["Muon"]), "blocks.0.attn.qkv.weight"
    gradient, weights = drawn(1), drawn(0)
    moved = one_update(config, weights, gradient)[name]
    for part in np.split(moved, 3):
        singular_values = np.linalg.svd(part / (0.1 * 0.2 * math.sqrt(4)), compute_uv=False)
        assert singular_values.min() > 0.65
        assert singular_values.max() < 1.25
    gradient[name][:4] *= 1000  # the query's: the others must not notice
    np.testing.assert_array_equal(one_update(config, weights, gradient)[name][4:], moved[4:])


def test_muons_formula_is_the_published_iteration():
    """The test's own: on matrices as the authors write it, against on singular values."""
    matrix = drawn(3)["blocks.3.mlp.fc2.weight"]
    x = matrix / (np.linalg.norm(matrix) + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    np.testing.assert_allclose(formulas.newton_schulz(matrix), x, rtol=1e-9, atol=1e-12)
