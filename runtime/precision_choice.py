"""What `precision: auto` comes to on this machine: `bf16.32` where that is the faster one, else `32.32`.

Both keep weights, gradients and optimiser state in float32, so that a recipe needs no other keys. Which CPU gains is measured.
torch is imported where something is measured alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Dict, List, NamedTuple, Tuple

import machine

if TYPE_CHECKING:
    from config import Config

FP32, BF16 = "32.32", "bf16.32"
SECONDS = 0.3
LEAST_GAIN = 1.1  # times float32's speed, which is worth its digits


class Choice(NamedTuple):
    """A precision, and why."""

    precision: str
    reason: str

    @property
    def note(self) -> str:
        return f"precision auto: {self.precision}, as {self.reason}"


def decided(
    config: Config, runtime: str, from_main: Callable[[Any], Any] = lambda value: value, is_main: bool = True
) -> Tuple[Config, List[str]]:
    """The config with a precision in `auto`'s place, the same in all processes; and a note, where there was one to find."""
    if config.precision != "auto":
        return config, []
    choice = Choice(*from_main(tuple(choose(config, runtime)) if is_main else None))
    return config.model_copy(update={"precision": choice.precision}), [choice.note]


def choose(config: Config, runtime: str) -> Choice:
    """What this machine is faster at. On a CPU with bf16 instructions, measured for a second or two."""
    if runtime == "ipu":
        return on_ipu()
    if machine.num_gpus(config.device):
        return _on_gpu_here()
    if not machine.cpu_multiplies("bfloat16"):
        return Choice(FP32, "this CPU has no bf16 instructions")
    from runtime.block_speed import measured_block_rates

    return _faster(measured_block_rates(config, (FP32, BF16), SECONDS, runtime))


def on_ipu() -> Choice:
    return Choice(
        FP32,
        "IPUs have no bf16, and fp16 needs a loss scale that suits the recipe (16.16 or 16.32, with loss_scaling, is the fast "
        "choice there)",
    )


def on_gpu(name: str, computes_bf16: bool) -> Choice:
    return Choice(BF16, f"{name} multiplies bf16") if computes_bf16 else Choice(FP32, f"{name} has no bf16")


def _on_gpu_here() -> Choice:
    import torch

    from models.products import gpu_computes_bf16

    return on_gpu(torch.cuda.get_device_name(), gpu_computes_bf16())


def _faster(rates: Dict[str, float]) -> Choice:
    fp32, bf16 = rates[FP32], rates[BF16]
    precision = BF16 if bf16 >= LEAST_GAIN * fp32 else FP32
    return Choice(
        precision,
        f"an encoder block trains at {bf16 / 1e9:,.0f} GFLOP/s in bf16 and {fp32 / 1e9:,.0f} in fp32 here "
        f"(measured; bf16 has to be {LEAST_GAIN} times as fast)",
    )
