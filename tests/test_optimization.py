"""Optimisers and the weight update against float64 formulations written down here, and against one big batch."""

from __future__ import annotations

import math
from typing import Any, Callable, Dict

import numpy as np
import pytest
import torch
from torch import nn

from optim.plain import PlainOptimizer
from optim.schedules import learning_rate_at
from optimization import build_optimizer, learning_rate_of, parameter_groups
from placement import place_single
from runtime.peers import Peers
from runtime.single import SingleRuntime
from runtime.weight_update import WeightUpdate
from tests.small import host_batch, small_config

STEPS = 10
BETA1, BETA2, EPS, DECAY, RATE = 0.9, 0.95, 1e-6, 0.1, 0.01
State = Dict[str, np.ndarray]


def sgd(w: np.ndarray, g: np.ndarray, state: State, decay: float, step: int) -> np.ndarray:
    state["v"] = 0.9 * state.get("v", np.zeros_like(w)) + g + decay * w
    return w - RATE * state["v"]


def moments(w: np.ndarray, g: np.ndarray, state: State, step: int) -> np.ndarray:
    """Adam's direction (arXiv 1412.6980, algorithm 1)."""
    state["m"] = BETA1 * state.get("m", np.zeros_like(w)) + (1 - BETA1) * g
    state["s"] = BETA2 * state.get("s", np.zeros_like(w)) + (1 - BETA2) * g * g
    return state["m"] / (1 - BETA1**step) / (np.sqrt(state["s"] / (1 - BETA2**step)) + EPS)


def adam_l2(w: np.ndarray, g: np.ndarray, state: State, decay: float, step: int) -> np.ndarray:
    return w - RATE * moments(w, g + decay * w, state, step)


def adamw(w: np.ndarray, g: np.ndarray, state: State, decay: float, step: int) -> np.ndarray:
    return w - RATE * (moments(w, g, state, step) + decay * w)


def lamb(w: np.ndarray, g: np.ndarray, state: State, decay: float, step: int) -> np.ndarray:
    """arXiv 1904.00962, algorithm 2, with PopTorch's cap of the weight norm: none for 2-D, 0 for 1-D weights."""
    update = moments(w, g, state, step) + decay * w
    cap = 0.5 if w.ndim > 1 else 0.0
    weight_norm, update_norm = min(np.linalg.norm(w), cap), np.linalg.norm(update)
    trust = weight_norm / update_norm if weight_norm and update_norm else 1.0
    return w - RATE * trust * update


@pytest.mark.parametrize(("name", "rule"), [("SGD", sgd), ("Adam", adam_l2), ("AdamW", adamw), ("LAMB", lamb)])
def test_ten_steps_follow_the_formula(tmp_path: Any, name: str, rule: Callable[..., np.ndarray]) -> None:
    keys = {
        "adam_betas": [BETA1, BETA2],
        "adam_eps": EPS,
        "weight_decay": DECAY,
        "learning_rate": RATE,
        "max_norm": 0.5,
    }
    config = small_config(tmp_path, optimizer=name, **keys)
    generator = np.random.default_rng(0)
    weights = {"matrix": generator.normal(size=(4, 3)), "vector": generator.normal(size=5)}
    parameters = {key: nn.Parameter(torch.tensor(value, dtype=torch.float64)) for key, value in weights.items()}
    optimizer = build_optimizer(config, parameters)
    states: Dict[str, State] = {key: {} for key in weights}
    for step in range(1, STEPS + 1):
        for key, value in weights.items():
            gradient = generator.normal(size=value.shape)
            parameters[key].grad = torch.tensor(gradient, dtype=torch.float64)
            weights[key] = rule(value, gradient, states[key], DECAY if value.ndim > 1 else 0.0, step)
        optimizer.step()
    for key, value in weights.items():
        np.testing.assert_allclose(parameters[key].detach().numpy(), value, rtol=1e-12)


def test_one_dimensional_weights_do_not_decay(tmp_path: Any) -> None:
    parameters = {"cls_token": nn.Parameter(torch.ones(1, 1, 4)), "bias": nn.Parameter(torch.ones(4))}
    groups = parameter_groups(parameters, small_config(tmp_path, weight_decay=0.1))
    assert [(group["params"][0].dim(), group["weight_decay"]) for group in groups] == [(3, 0.1), (1, 0.0)]


def test_schedule_rises_without_a_zero_rate_and_follows_the_published_curve() -> None:
    from transformers import get_cosine_schedule_with_warmup

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    peer = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=10, num_training_steps=50)
    rates = [learning_rate_at(s, base=0.5, schedule="cosine", warmup_steps=10, num_steps=50) for s in range(50)]
    assert rates[0] == pytest.approx(0.05)
    assert rates[9] == 0.5
    assert min(rates) > 0
    for step in range(50):
        if step >= 10:
            assert rates[step] == pytest.approx(peer.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        peer.step()


@pytest.mark.parametrize(("schedule", "middle"), [("constant", 1.0), ("linear", 0.5), ("cosine", 0.5)])
def test_schedule_is_half_way_down_in_the_middle(schedule: str, middle: float) -> None:
    assert learning_rate_at(60, base=1.0, schedule=schedule, warmup_steps=20, num_steps=100) == pytest.approx(middle)


def outcome(config: Any, dtype: torch.dtype = torch.float32) -> Dict[str, torch.Tensor]:
    """Weights after two host steps of the same 16 images."""
    runtime = SingleRuntime(config, place_single(config), num_cores=1)
    runtime.model.to(dtype)
    for step in range(2):
        runtime.train_step(host_batch(config, runtime.share), learning_rate_of(config, step, 10), step)
    return runtime.weights()[0]


@pytest.mark.parametrize(
    "split",
    [
        {"micro_batch_size": 4, "gradient_accumulation": 4},
        {"micro_batch_size": 2, "gradient_accumulation": 2, "replication_factor": 4},
        {"micro_batch_size": 1, "gradient_accumulation": 16},
        {"micro_batch_size": 4, "gradient_accumulation": 4, "loss_scaling": 1024.0},
        {"micro_batch_size": 4, "gradient_accumulation": 4, "reduction_type": "sum", "learning_rate": 0.1 / 4},
    ],
)
def test_any_split_of_a_weight_update_equals_one_big_batch(tmp_path: Any, split: Dict[str, Any]) -> None:
    whole = outcome(small_config(tmp_path, micro_batch_size=16, gradient_accumulation=1))
    for name, weight in outcome(small_config(tmp_path, **split)).items():
        error = (weight - whole[name]).norm() / whole[name].norm().clamp(min=1e-2)
        assert error < 1e-6, name  # fp32 sums in another order


@pytest.mark.parametrize("micro_batch_size", [16, 4, 1])
def test_native_kernels_err_no_more_than_torch(tmp_path: Any, micro_batch_size: int) -> None:
    """Both against the same updates in float64, over four seeds: float32 leaves 1e-6 of some weights in this small model."""

    def errors(native_kernels: str) -> float:
        total = 0.0
        for seed in range(4):
            keys = {"random_seed": seed, "native_kernels": "off"}
            exact = outcome(small_config(tmp_path, micro_batch_size=16, gradient_accumulation=1, **keys), torch.float64)
            keys["native_kernels"] = native_kernels
            split = {"micro_batch_size": micro_batch_size, "gradient_accumulation": 16 // micro_batch_size}
            for name, weight in outcome(small_config(tmp_path, **keys, **split)).items():
                total += float((weight - exact[name]).norm() / exact[name].norm().clamp(min=1e-2)) ** 2
        return total**0.5

    assert errors("on") < 1.5 * errors("off")


def test_clipping_bounds_the_update_to_the_norm(tmp_path: Any) -> None:
    config = small_config(tmp_path, max_grad_norm=0.25, momentum=0.0, learning_rate=1.0)
    runtime = SingleRuntime(config, place_single(config), num_cores=1)
    before = {name: value.clone() for name, value in runtime.weights()[0].items()}
    result = runtime.train_step(host_batch(config, runtime.share), 1.0, 0)
    moved = math.sqrt(sum(float((value - before[name]).square().sum()) for name, value in runtime.weights()[0].items()))
    assert result.grad_norm > 0.25
    assert moved == pytest.approx(0.25, rel=1e-4)


class Twins(Peers):
    """Two replica groups whose gradients are the same."""

    num_replica_groups = 2

    def sum_over_replicas(self, value: torch.Tensor) -> None:
        value.mul_(2)


def test_means_of_replicas_do_not_leave_the_range_of_16_bits(tmp_path: Any) -> None:
    """Added up in fp16 before they are divided, these would overflow."""
    config = small_config(tmp_path, precision="16.16", gradient_accumulation=1, replication_factor=2)
    model = nn.Linear(4, 4).half()
    update = WeightUpdate(config, [model], Twins())
    update.begin(0)
    (sum(p.sum() for p in model.parameters()).float() * 40000.0).backward()
    update.collect()
    update.apply(1e-6)
    assert update.skipped == 0
    assert update.grad_norm == pytest.approx(40000.0 * math.sqrt(20))


def test_float32_accumulation_of_fp16_products_divides_after_the_backward_pass(tmp_path: Any) -> None:
    """Divided before, small gradients would be lost in fp16."""
    for precision, seed in (("16.32", 1.0), ("32.32", 0.25), ("bf16.32", 0.25)):
        config = small_config(tmp_path, precision=precision, accum_type="fp32")
        assert WeightUpdate(config, [nn.Linear(4, 4)]).seed == seed


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path: Any) -> None:
    config = small_config(tmp_path)
    runtime = SingleRuntime(config, place_single(config), num_cores=1)
    with torch.no_grad():
        runtime.model.head.bias[0] = math.nan
    before = {name: value.clone() for name, value in runtime.weights()[0].items()}
    result = runtime.train_step(host_batch(config, runtime.share), 1.0, 0)
    assert result.skipped_updates == 1
    after = runtime.weights()[0]
    assert all(torch.equal(after[name], value) for name, value in before.items() if name != "head.bias")


@pytest.mark.parametrize(("name", "where"), [("AdamW", "meta"), ("LAMB", "cpu")])
def test_a_loaded_step_counter_lies_where_the_optimiser_wants_it(tmp_path: Any, name: str, where: str) -> None:
    parameters = {"w": nn.Parameter(torch.zeros(2, 2, device="meta"))}
    optimizer = build_optimizer(small_config(tmp_path, optimizer=name, learning_rate=1e-3), parameters)
    PlainOptimizer(optimizer, parameters).load_state({"w.step": torch.tensor(3.0), "w.exp_avg": torch.zeros(2, 2)})
    state = optimizer.state[parameters["w"]]
    assert state["step"].device.type == (where if optimizer.defaults.get("fused") else "cpu")
    assert state["exp_avg"].device.type == "meta"
