"""What a plan needs of Graphcore's IPUs, and whether PopTorch would take it: in the user's words, before anything compiles.

No torch, no PopTorch: the rules are those of PopTorch 3.4's documentation and sources.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Iterator, List

from errors import UserError, counted

if TYPE_CHECKING:
    from config import Config

MOST_IPUS = 64  # that one process may use
OPTIMIZERS = ("SGD", "Adam", "AdamW", "LAMB")


def num_stages(config: Config) -> int:
    """Forward stages of the pipeline: IPUs of one replica."""
    return len(config.stage_layers)


def fewest_micro_batches(config: Config) -> int:
    """Micro-batches that a weight update needs: each has a forward and, but for the last stage, a backward place."""
    return 2 * num_stages(config) - 1


def num_ipus(config: Config, local_replicas: int) -> int:
    """IPUs that one process uses."""
    return num_stages(config) * local_replicas


def num_reserved(used: int) -> int:
    """IPUs that PopTorch reserves for so many: the next power of two."""
    return 1 << (used - 1).bit_length()


def eval_device_iterations(config: Config) -> int:
    """Micro-batches of an evaluation batch: at least one for each stage."""
    return max(config.device_iterations, num_stages(config))


def check_plan(config: Config, local_replicas: int) -> None:
    """Raises UserError for the first thing that IPUs or PopTorch would refuse, or do otherwise than asked."""
    for problem in refusals(config, local_replicas):
        raise UserError(problem)


def refusals(config: Config, local_replicas: int) -> List[str]:
    """All that IPUs or PopTorch would refuse, or do otherwise than asked: what is wrong and, on further lines, what to do."""
    return list(_problems(config, local_replicas))


def plan_notes(config: Config, local_replicas: int) -> List[str]:
    """What a user should know of how the plan is run on IPUs."""
    used = num_ipus(config, local_replicas)
    notes = []
    if num_reserved(used) != used:
        notes.append(
            f"{counted(num_stages(config), 'stage')} x {counted(local_replicas, 'replica')} use {used} IPUs; PopTorch reserves "
            f"{num_reserved(used)}, the next power of two"
        )
    if eval_device_iterations(config) != config.device_iterations:
        notes.append(
            f"evaluation makes {eval_device_iterations(config)} device iterations a call: a pipeline needs one for each stage"
        )
    return notes


def _problems(config: Config, local_replicas: int) -> Iterator[str]:
    used = num_ipus(config, local_replicas)
    if num_reserved(used) > MOST_IPUS:
        yield (
            f"{counted(num_stages(config), 'stage')} x {counted(local_replicas, 'replica')} need {num_reserved(used)} IPUs, and "
            f"one process may use {MOST_IPUS}.\n       Lower replication_factor, or start several instances with poprun."
        )
    if config.precision.startswith("bf16"):
        yield f"precision = {config.precision}: IPUs have no bfloat16.\n       Give precision = 16.16, 16.32 or 32.32."
    if config.ipu_target == "model" and config.executable_cache_dir:
        yield (
            f"executable_cache_dir = {config.executable_cache_dir}: executables for the IPU Model cannot be cached.\n"
            '       Give --executable-cache-dir "", or another ipu_target.'
        )
    if config.trains:
        yield from _training_problems(config)


def _training_problems(config: Config) -> Iterator[str]:
    stages, needed = num_stages(config), fewest_micro_batches(config)
    if config.gradient_accumulation < needed:
        yield (
            f"gradient_accumulation = {config.gradient_accumulation} is too little for {stages} stages on IPUs: forward and "
            f"backward need {needed} micro-batches.\n       Give gradient_accumulation = {needed} or more, or fewer stages."
        )
    if config.auto_loss_scaling and stages > 1 and config.gradient_accumulation == 1:
        yield "auto_loss_scaling in a pipeline on IPUs needs gradient_accumulation above 1."
    if config.optimizer not in OPTIMIZERS:
        yield (
            f"optimizer = {config.optimizer}: PopTorch has none of that name.\n       Give one of {', '.join(OPTIMIZERS)}, or "
            "another --runtime."
        )
    if config.max_grad_norm and config.optimizer == "LAMB":
        yield "max_grad_norm: PopTorch's LAMB does not clip gradients.\n       Give max_grad_norm = 0, or another optimizer."
    if config.ema_decay:
        yield (
            "ema_decay: weights change on the IPU, several times in a host step, and are averaged nowhere there.\n"
            "       Give ema_decay = 0, or another --runtime."
        )
    if config.on_nonfinite == "skip":
        yield (
            "on_nonfinite = skip: an IPU makes every weight update, whatever is in the gradient.\n"
            "       Give on_nonfinite = stop (the run ends at a loss that is not finite)."
        )
