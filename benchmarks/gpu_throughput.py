"""Train images a second on one GPU, beside timm's model and Hugging Face's `Trainer`, both compiled, in bf16: ViT-S/16 and B/16.

    python benchmarks/gpu_throughput.py [--sizes s16 b16] [--batches 256 512 1024] [--rounds 5] [--json FILE]
    python benchmarks/gpu_throughput.py --device cpu --tiny --batches 4 --rounds 1 --steps 1 --no-compile     # tries the script

Each contender is tried at every batch size and measured at its best one, in turns within one process; compiling takes most of
the time, and `--batches 512` compiles everything once. Ours starts from bytes in host memory at every step; the peers' pixels are
floats that lie on the GPU before the clock starts.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch._dynamo  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import dataset.transforms.torchvision_operators  # noqa: E402, F401  (first: the peers import torchvision)
from benchmarks.facts import shown, spread, write_json  # noqa: E402
from benchmarks.gpu_facts import (  # noqa: E402
    Turn,
    add_device_options,
    check_device,
    clock,
    device_name,
    facts,
    free_memory,
    our_config,
    our_runtime,
    our_turn,
    square_matmul_rate,
)
from models.architecture import Architecture, architecture_of, count_forward_flops  # noqa: E402
from models.stages import plan_stages  # noqa: E402
from reporting.tables import table  # noqa: E402

TARGETS = {"s16": 9000.0, "b16": 3750.0}  # images a second on one H200
ROUNDED_SHARE = 0.9  # of bf16.32's speed, that 16.16 is to reach
FULL, ROUNDED = "PipeViT bf16.32", "PipeViT 16.16"
HEADERS = ("model", "contender", "batch", "images/s", "min", "max", "GFLOP/image", "of matmul rate", "warm-up s")


def main(argv: Optional[Sequence[str]] = None) -> int:
    options = parse_options(argv)
    check_device(options)
    rate = square_matmul_rate(options.device, torch.bfloat16, options.tiny)
    figures: Dict[str, Any] = {size: measure(options, size) for size in options.sizes}
    print(f"{device_name(options.device)}, torch {torch.__version__}; a large bf16 product: {rate / 1e12:.4g} TFLOP/s")
    print(table(HEADERS, [row for size in figures for row in rows(size, figures[size], rate)]))
    for size, measured in figures.items():
        print("a toy's figures say nothing" if options.tiny else verdict(size, measured))
    write_json(options.json, {**facts(options), "matmul_flops_per_second": rate, "sizes": figures})
    return 0


def parse_options(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_device_options(parser)
    add = parser.add_argument
    add("--batches", type=int, nargs="+", default=[256, 512, 1024], help="tried by each (default: 256 512 1024)")
    add("--rounds", type=int, default=5, help="turns of each (default: 5)")
    add("--steps", type=int, default=20, help="training steps a turn (default: 20)")
    add("--no-compile", action="store_true", help="nobody compiles")
    add("--no-peers", action="store_true", help="ours alone")
    return parser.parse_args(argv)


def measure(options: argparse.Namespace, size: str) -> Dict[str, Any]:
    """Images a second of each contender in each round, at its best batch size."""
    arch = architecture_of(our_config(options, size, "bf16.32", 1))
    makers: Dict[str, Callable[[int], Turn]] = {
        FULL: partial(ours, options, size, "bf16.32"),
        ROUNDED: partial(ours, options, size, "16.16"),
    }
    if not options.no_peers:
        makers.update({"timm": partial(timm_turn, options, arch), "Hugging Face": partial(trainer_turn, options, arch)})
    batches = {name: best_batch(options, make) for name, make in makers.items()}
    warm_up, turns = {}, {}
    for name, make in makers.items():
        begun = time.perf_counter()
        turns[name] = make(batches[name])
        turns[name](3)
        warm_up[name] = time.perf_counter() - begun
    rates: Dict[str, List[float]] = {name: [] for name in turns}
    for number in range(options.rounds):
        for name in list(turns)[:: 1 if number % 2 == 0 else -1]:
            rates[name].append(options.steps * batches[name] / turns[name](options.steps))
    turns.clear()
    torch._dynamo.reset()
    free_memory(options.device)
    flops = {name: train_flops(arch, whole_last_block=name not in (FULL, ROUNDED)) for name in rates}
    return {"images_per_second": rates, "batches": batches, "flops_per_image": flops, "warm_up_seconds": warm_up}


def best_batch(options: argparse.Namespace, make: Callable[[int], Turn]) -> int:
    """The quickest of the batch sizes that fit."""
    if len(options.batches) == 1:
        return int(options.batches[0])
    speeds = {}
    for batch in options.batches:
        try:
            turn = make(batch)
            turn(3)
            speeds[batch] = batch * options.steps / turn(options.steps)
        except torch.cuda.OutOfMemoryError:
            break
        finally:
            turn = None  # type: ignore[assignment]
            torch._dynamo.reset()  # a second batch size would be compiled for any, which is slower
            free_memory(options.device)
    return max(speeds, key=lambda batch: speeds[batch])


def ours(options: argparse.Namespace, size: str, precision: str, batch: int) -> Turn:
    compiled = "off" if options.no_compile else "auto"
    runtime = our_runtime(our_config(options, size, precision, batch, compile=compiled))
    runtime.prepare(evaluates=False)
    return our_turn(runtime)


def timm_turn(options: argparse.Namespace, arch: Architecture, batch: int) -> Turn:
    """A plain loop around timm's model: cross entropy, fused AdamW, autocast to bf16, no read-back of the loss."""
    from timm.models.vision_transformer import VisionTransformer

    device = options.device
    model = VisionTransformer(
        img_size=arch.image_size, patch_size=arch.patch_size, embed_dim=arch.embed_dim, depth=arch.depth,
        num_heads=arch.num_heads, mlp_ratio=arch.mlp_dim / arch.embed_dim, num_classes=arch.num_labels,
    ).to(device).train()  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    called = model if options.no_compile else torch.compile(model, dynamic=False)
    pixels, labels = _pixels(arch, batch, device)

    def turn(steps: int) -> float:
        begun = clock(device)
        for _ in range(steps):
            with torch.autocast(device, torch.bfloat16):
                loss = F.cross_entropy(called(pixels), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return clock(device) - begun

    return turn


def trainer_turn(options: argparse.Namespace, arch: Architecture, batch: int) -> Turn:
    """Hugging Face's `Trainer` around its own model; the collator hands out a batch that is on the device."""
    from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

    pixels, labels = _pixels(arch, batch, options.device)
    model = ViTForImageClassification(
        ViTConfig(
            hidden_size=arch.embed_dim, num_hidden_layers=arch.depth, num_attention_heads=arch.num_heads,
            intermediate_size=arch.mlp_dim, image_size=arch.image_size[0], patch_size=arch.patch_size[0],
            num_labels=arch.num_labels,
        )
    )  # fmt: skip

    def turn(steps: int) -> float:
        watch = _stopwatch(options.device)
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
            arguments = TrainingArguments(
                output_dir=folder, max_steps=steps + 1, per_device_train_batch_size=batch, bf16=True,
                use_cpu=options.device == "cpu", optim="adamw_torch_fused", learning_rate=1e-3, max_grad_norm=0.0,
                lr_scheduler_type="constant", logging_strategy="no", logging_nan_inf_filter=False, save_strategy="no",
                report_to="none", disable_tqdm=True, dataloader_pin_memory=False, remove_unused_columns=False,
                torch_compile=not options.no_compile,
            )  # fmt: skip
            Trainer(
                model=model, args=arguments, train_dataset=range((steps + 1) * batch), callbacks=[watch],
                data_collator=lambda rows: {"pixel_values": pixels, "labels": labels},
            ).train()  # fmt: skip
        return float(watch.seconds)

    return turn


def _stopwatch(device: str) -> Any:
    """A callback that measures a Trainer's steps but the first, in which it sets itself up."""
    from transformers import TrainerCallback

    class Stopwatch(TrainerCallback):
        seconds = begun = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.global_step == 1:
                self.begun = clock(device)

        def on_train_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            self.seconds = clock(device) - self.begun

    return Stopwatch()


def _pixels(arch: Architecture, batch: int, device: str) -> Any:
    return (
        torch.randn(batch, 3, *arch.image_size, device=device),
        torch.randint(0, arch.num_labels, (batch,), device=device),
    )


def train_flops(arch: Architecture, whole_last_block: bool) -> int:
    """Floating-point operations of training on one image by formula: three forward passes' worth of matrix products.

    The class token is all that the head reads. We leave the rest of the last block out, the peers compute it.
    """
    units = list(plan_stages([arch.depth])[0].units)
    if whole_last_block and arch.depth > 1:
        units[units.index(f"block {arch.depth - 1}")] = "block 0"
    return 3 * sum(count_forward_flops(arch, unit) for unit in units)


def rows(size: str, measured: Dict[str, Any], rate: float) -> List[List[object]]:
    lines = []
    for name, speeds in measured["images_per_second"].items():
        flops = measured["flops_per_image"][name]
        share = spread(speeds)["median"] * flops / rate
        cells = [size, name, measured["batches"][name], *shown(speeds, "{:.1f}".format)]
        lines.append([*cells, f"{flops / 1e9:.4g}", f"{share:.1%}", f"{measured['warm_up_seconds'][name]:.1f}"])
    return lines


def verdict(size: str, measured: Dict[str, Any]) -> str:
    medians = {name: spread(speeds)["median"] for name, speeds in measured["images_per_second"].items()}
    share, target = medians[ROUNDED] / medians[FULL], TARGETS[size]
    peers = [speed for name, speed in medians.items() if name not in (FULL, ROUNDED)]
    against = f", {medians[FULL] / max(peers):.2f} x the better peer" if peers else ""
    return (
        f"{size}: {medians[FULL]:.0f} images/s{against}; target on an H200, {target:.0f}: "
        f"{'met' if medians[FULL] >= target else 'missed'}; 16.16 at {share:.0%} of that; target, {ROUNDED_SHARE:.0%}: "
        f"{'met' if share >= ROUNDED_SHARE else 'missed'}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
