"""The optimisers once more, in numpy and float64, as their papers and PopTorch's documentation write them.

Each takes a weight, its mean gradient, its state by torch's names (changed in place), the learning rate, the weight decay and
`keys`, the config's keys of the optimiser; it gives the new weight.
"""

from __future__ import annotations

from typing import Any, Callable, Dict

import numpy as np

State = Dict[str, Any]
LAYERS_FROM_HEAD = {"pos_embed": 5, "blocks.0": 4, "blocks.3": 1, "head": 0}  # of four blocks
MATRICES = {"blocks.0.attn.qkv.weight": 3, "blocks.0.mlp.fc1.weight": 1, "blocks.3.mlp.fc2.weight": 1}


def sgd(w: np.ndarray, g: np.ndarray, state: State, rate: float, decay: float, keys: Any) -> np.ndarray:
    state["momentum_buffer"] = keys["momentum"] * state.get("momentum_buffer", 0.0) + decay * w + g
    return w - rate * state["momentum_buffer"]


def adam_direction(g: np.ndarray, state: State, keys: Any, bias_correction: bool = True) -> np.ndarray:
    """arXiv 1412.6980, algorithm 1."""
    (beta1, beta2), step = keys["adam_betas"], state.get("step", 0) + 1
    state["step"] = step
    state["exp_avg"] = beta1 * state.get("exp_avg", 0.0) + (1 - beta1) * g
    state["exp_avg_sq"] = beta2 * state.get("exp_avg_sq", 0.0) + (1 - beta2) * g**2
    unbias1, unbias2 = (1 - beta1**step, 1 - beta2**step) if bias_correction else (1.0, 1.0)
    return state["exp_avg"] / unbias1 / (np.sqrt(state["exp_avg_sq"] / unbias2) + keys["adam_eps"])


def adam(w: np.ndarray, g: np.ndarray, state: State, rate: float, decay: float, keys: Any) -> np.ndarray:
    return w - rate * adam_direction(g + decay * w, state, keys)


def adamw(w: np.ndarray, g: np.ndarray, state: State, rate: float, decay: float, keys: Any) -> np.ndarray:
    return w - rate * (adam_direction(g, state, keys) + decay * w)


def lamb(w: np.ndarray, g: np.ndarray, state: State, rate: float, decay: float, keys: Any) -> np.ndarray:
    """arXiv 1904.00962, algorithm 2; the norm of the weight has a cap, and no norm is trusted where one is 0."""
    direction = adam_direction(g, state, keys, keys["bias_correction"]) + decay * w
    cap = keys["max_norm_bias"] if w.ndim == 1 else keys["max_norm"]
    of_weight, of_direction = min(np.sqrt((w**2).sum()), cap), np.sqrt((direction**2).sum())
    trust = of_weight / of_direction if of_weight > 0 and of_direction > 0 else 1.0
    return w - rate * trust * direction


def lion(w: np.ndarray, g: np.ndarray, state: State, rate: float, decay: float, keys: Any) -> np.ndarray:
    """arXiv 2302.06675, program 1."""
    (beta1, beta2), average = keys["adam_betas"], state.get("exp_avg", 0.0)
    state["exp_avg"] = beta2 * average + (1 - beta2) * g
    return w - rate * (np.sign(beta1 * average + (1 - beta1) * g) + decay * w)


def muon(w: np.ndarray, g: np.ndarray, state: State, rate: float, decay: float, keys: Any) -> np.ndarray:
    """arXiv 2502.16982, equation 4, for matrices one above the other, `keys["matrices"]` of them; AdamW where it is 0."""
    if not keys["matrices"]:
        return adamw(w, g, state, rate, decay, keys)
    momentum = keys["momentum"]
    state["momentum_buffer"] = momentum * state.get("momentum_buffer", 0.0) + g
    parts = np.split(g + momentum * state["momentum_buffer"], keys["matrices"])  # Nesterov's
    moves = [0.2 * np.sqrt(max(part.shape)) * newton_schulz(part) for part in parts]
    return w - rate * (np.concatenate(moves) + decay * w)


def newton_schulz(matrix: np.ndarray) -> np.ndarray:
    """The authors' five steps of a X + b (X X') X + c (X X')^2 X, of which the singular values alone are changed."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / (np.sqrt((values**2).sum()) + 1e-7)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ np.diag(values) @ right


RULES: Dict[str, Callable[..., np.ndarray]] = {
    "SGD": sgd,
    "Adam": adam,
    "AdamW": adamw,
    "LAMB": lamb,
    "Lion": lion,
    "Muon": muon,
}


def step(config: Any, name: str, w: np.ndarray, g: np.ndarray, state: State, rate: float) -> np.ndarray:
    """The weight `name` after an update with gradient g: 1-D weights do not decay, and layers have rates of their own."""
    layer = next(count for unit, count in LAYERS_FROM_HEAD.items() if name.startswith(unit))
    decay = config.weight_decay if w.ndim > 1 else 0.0
    keys = {**config.model_dump(), "matrices": MATRICES.get(name, 0)}
    return RULES[config.optimizer](w, g, state, rate * config.layer_decay**layer, decay, keys)
