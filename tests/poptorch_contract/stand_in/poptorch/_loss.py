"""Finds the one loss of a program, from which PopTorch derives the backward pass."""

from __future__ import annotations

from typing import Any, List, Set

from poptorch._capture import Op, Program
from poptorch._errors import Error

_BUILT_IN = {
    *("l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss", "nll_loss", "cross_entropy", "kl_div", "poisson_nll_loss"),
    *("binary_cross_entropy", "binary_cross_entropy_with_logits", "hinge_embedding_loss", "cosine_embedding_loss"),
    *("margin_ranking_loss", "multi_margin_loss", "multilabel_margin_loss", "multilabel_soft_margin_loss"),
    *("soft_margin_loss", "triplet_margin_loss", "ctc_loss"),
}
_NO_LOSS = "Couldn't find a loss in graph!"
_SEVERAL = "Multiple independent losses found in graph. Combine them and mark the result with poptorch.identity_loss."


def find_loss(program: Program) -> int:
    """The slot of the only loss that no other loss is computed from. poptorch.Error if there is none, or several."""
    losses = [op for op in program.ops if op.name == "identity_loss" or _is_built_in(op, program)]
    if not losses:
        raise Error(_NO_LOSS)
    used_by_others: Set[int] = set()
    for loss in losses:
        used_by_others |= _ancestors(loss, program)
    last = [loss for loss in losses if loss.outputs[0] not in used_by_others]
    if len(last) != 1:
        raise Error(_SEVERAL)
    _check_nothing_follows(last[0], program)
    return last[0].outputs[0]


def _is_built_in(op: Op, program: Program) -> bool:
    # Smoothed and soft targets are decomposed into ordinary ops, which nobody marks.
    if op.name not in _BUILT_IN or float(op.kwargs.get("label_smoothing", 0.0)) != 0.0:
        return False
    return not (op.name == "cross_entropy" and program.dtypes[op.inputs[1]].is_floating_point)


def _ancestors(op: Op, program: Program) -> Set[int]:
    """Slots that `op` is computed from."""
    needed = set(op.inputs)
    for other in reversed(program.ops):
        if needed.intersection(other.outputs) and other is not op:
            needed.update(other.inputs)
    return needed


def _check_nothing_follows(loss: Op, program: Program) -> None:
    # PopTorch leaves such ops out of the backward pass without a word: training would follow another loss than printed.
    if loss.name == "identity_loss":
        return
    if program.num_dims[loss.outputs[0]]:
        raise Error(f"{_NO_LOSS} The built-in loss {loss.name} is not reduced: end it in poptorch.identity_loss.")
    followers: List[Any] = [op.name for op in program.ops if loss.outputs[0] in op.inputs and op.name != "detach"]
    if followers:
        raise Error(
            f"{_NO_LOSS} {followers[0]} follows the built-in loss {loss.name}: end the arithmetic in "
            "poptorch.identity_loss, or it is ignored in the backward pass."
        )
