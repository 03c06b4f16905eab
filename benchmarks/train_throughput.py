"""Train images a second of `single` beside timm in a plain loop, timm as its train.py trains, and Hugging Face's `Trainer`.

    python benchmarks/train_throughput.py [--models ti16 s16 b16 cifar] [--batches 8 64 512] [--json FILE] [--markdown FILE]

A row is a model and a batch. Its contenders take turns within one process, with the same threads, and the machine's matrix
products at the row's shapes are measured in every round. Each row has a process of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks import throughput_tables as tables  # noqa: E402
from benchmarks.facts import (  # noqa: E402
    MatmulTurn,
    available_bytes,
    cpu_name,
    matmul_shapes,
    random_batch,
    write_json,
)
from benchmarks.peers import peers  # noqa: E402
from benchmarks.turns import Contender, Turn, as_json, share_one_heap, take_turns  # noqa: E402
from config import load_config  # noqa: E402
from machine import cpu_multiplies, num_cores  # noqa: E402
from models.architecture import Architecture, architecture_of, count_forward_flops  # noqa: E402
from models.stages import plan_stages  # noqa: E402
from placement import place  # noqa: E402
from reporting.tables import table  # noqa: E402
from runtime.build import build_runtime  # noqa: E402


class Model(NamedTuple):
    """A row's model: its config of ours, and what tables call it."""

    config: str
    title: str


MODELS = {
    "ti16": Model("generated_ti16", "ViT-Ti/16, 224 px"),
    "s16": Model("generated_s16", "ViT-S/16, 224 px"),
    "b16": Model("generated_b16", "ViT-B/16, 224 px"),
    "cifar": Model("cifar10_small", "cifar10_small"),
}
COMPILED_MODELS = ("ti16", "cifar")  # where operations are smallest, and compilation has most to merge
PRECISIONS = {"fp32": "32.32", "bf16": "bf16.32"}
# Numbers that autograd keeps for each token of a block, in widths: about 60, 120 and 240 MB an image for Ti, S and B.
WIDTHS_KEPT = 34
COPIES_OF_WEIGHTS = 4  # with gradients and AdamW's two moments
SHARE_OF_MEMORY = 0.8
SECTIONS = (
    ("Images a second", tables.RATES, tables.rate_rows),
    ("The best setting of each", tables.VERDICTS, tables.verdict_rows),
    ("Matrix products of these shapes", tables.PRODUCTS, tables.product_rows),
    ("torch.compile", tables.COMPILED, tables.compiled_rows),
)


def main(argv: Optional[Sequence[str]] = None) -> int:
    options = parse_options(argv)
    rows, left_out = [], []
    for name, batch in wanted_rows(options):
        row = in_a_process(options, name, batch)
        (left_out if "why" in row else rows).append(row)
        print(_progress(row), file=sys.stderr, flush=True)
    heading = f"{cpu_name()}, {options.threads or num_cores()} threads, torch {torch.__version__}; AdamW, all from random weights"
    print(heading)
    texts = [f"{title}\n{table(headers, cells(rows))}" for title, headers, cells in SECTIONS if cells(rows)]
    print("", *texts, sep="\n\n")
    print("", *(f"left out: {row['model']}, batch {row['batch']}: {row['why']}" for row in left_out), sep="\n")
    write_json(
        options.json, {"cpu": cpu_name(), "threads": options.threads or num_cores(), "rows": rows, "left_out": left_out}
    )
    if options.markdown:
        Path(options.markdown).write_text(_document(heading, rows, left_out), encoding="utf-8")
    return 0


def parse_options(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", nargs="+", default=list(MODELS), choices=list(MODELS), help="default: all four")
    add("--batches", nargs="+", type=int, default=[8, 64, 512], help="images a step (default: 8 64 512)")
    add("--rows", nargs="+", default=[], metavar="MODEL:BATCH", help="these instead, such as s16:8 cifar:512")
    for kind in ("bf16", "compile"):
        add(f"--{kind}", default="auto", choices=("auto", "all", "first", "none"), help=_HELP[kind])
    add("--rounds", type=int, default=7, help="turns of each, as far as the budget goes (default: 7)")
    add("--least-rounds", type=int, default=3, help="whatever they take (default: 3)")
    add("--budget-seconds", type=float, default=40.0, help="of measured steps a row, warm-up not counted (default: 40)")
    add("--threads", type=int, default=0, help="threads of each contender (default: all cores)")
    add("--json", default="", metavar="FILE", help="write the figures there, too")
    add("--markdown", default="", metavar="FILE", help="write the tables there as Markdown, too")
    return parser.parse_args(argv)


_HELP = {
    "bf16": "rows with bf16 contenders (default: all on a CPU with bf16 instructions, else the first)",
    "compile": "rows with compiled contenders (default: the first of ti16 and the first of cifar)",
}


def wanted_rows(options: argparse.Namespace) -> List[Any]:
    """Models and batches, in order."""
    if not options.rows:
        return [(name, batch) for name in options.models for batch in options.batches]
    pairs = [text.partition(":") for text in options.rows]
    for name, _, batch in pairs:
        if name not in MODELS or not batch.isdigit():
            raise SystemExit(f"error: --rows {name}:{batch}: give MODEL:BATCH, with a model of {', '.join(MODELS)}.")
    return [(name, int(batch)) for name, _, batch in pairs]


def has_kind(options: argparse.Namespace, kind: str, name: str, batch: int) -> bool:
    """Whether a row has the contenders in bf16, or the compiled ones."""
    choice, rows = getattr(options, kind), wanted_rows(options)
    if choice in ("all", "none"):
        return bool(choice == "all")
    if kind == "bf16":
        return (choice == "auto" and cpu_multiplies("bfloat16")) or (name, batch) == rows[0]
    is_small = name in COMPILED_MODELS or choice == "first"
    return is_small and batch == next(size for model, size in rows if model == name)


def in_a_process(options: argparse.Namespace, name: str, batch: int) -> Dict[str, Any]:
    """The row, measured by a fork of this process, which has imported everything and computed nothing. A row that runs out of
    memory is lost alone.
    """
    config = load_config("pretrain", config_arguments(options, name, batch, "fp32"))
    arch = architecture_of(config)
    about = {"model": MODELS[name].title, "batch": batch}
    needed, there = bytes_needed(arch, batch), available_bytes()
    if there and needed > SHARE_OF_MEMORY * there:
        return {**about, "why": f"needs about {needed / 2**30:.0f} GiB of the {there / 2**30:.0f} that are free"}
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send_row, args=(sender, options, name, batch))
    begun = time.perf_counter()
    child.start()
    sender.close()
    try:
        row = json.loads(receiver.recv())
    except EOFError:
        row = {"why": "its process has ended before its time (too little memory?), or failed: see above"}
    child.join()
    return {**about, **row, "seconds": time.perf_counter() - begun}


def _send_row(sender: Any, options: argparse.Namespace, name: str, batch: int) -> None:
    share_one_heap()
    tempfile.tempdir = tempfile.mkdtemp()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.tempdir  # compile times are those of a first run
    try:
        sender.send(json.dumps(measured_row(options, name, batch)))
    finally:
        shutil.rmtree(tempfile.tempdir, ignore_errors=True)
    sender.close()
    sys.stdout.flush()
    os._exit(0)  # Trainers still wait in their threads


def bytes_needed(arch: Architecture, batch: int) -> int:
    """Of a step in float32, and of all contenders' weights and optimiser state."""
    width = arch.embed_dim
    weights = arch.depth * (4 * width * width + 2 * width * arch.mlp_dim)
    kept = WIDTHS_KEPT * width * arch.num_tokens * arch.depth * batch
    return 4 * (kept + 4 * COPIES_OF_WEIGHTS * weights)


def measured_row(options: argparse.Namespace, name: str, batch: int) -> Dict[str, Any]:
    """Everyone's images a second in each round, the matmul rates, and FLOPs an image."""
    threads = options.threads or num_cores()
    torch.set_num_threads(threads)
    arch = architecture_of(load_config("pretrain", config_arguments(options, name, batch, "fp32")))
    shapes = matmul_shapes(batch * arch.num_tokens, arch.embed_dim, arch.mlp_dim)
    products = {"fp32": MatmulTurn(shapes, torch.float32), "bf16": MatmulTurn(shapes, torch.bfloat16)}
    everyone = contenders(options, name, batch, arch)
    rates = take_turns(everyone, products, options.rounds, options.least_rounds, options.budget_seconds)  # type: ignore[arg-type]
    assert torch.get_num_threads() == threads, "a contender changed the number of threads"
    return {
        "contenders": [as_json(each, batch) for each in everyone],
        "matmul": rates,
        "matmul_rows": {kind: product.shapes[0][0] for kind, product in products.items()},
        "flops_of_model": train_flops(arch, whole_last_block=True),
        "flops_of_ours": train_flops(arch, whole_last_block=False),
        "load": os.getloadavg()[0],
    }


def contenders(options: argparse.Namespace, name: str, batch: int, arch: Architecture) -> List[Contender]:
    """Ours and the peers', in fp32, and in bf16 and compiled where the row has these."""
    kinds = [("fp32", False)]
    kinds += [("fp32", True)] * has_kind(options, "compile", name, batch)
    if has_kind(options, "bf16", name, batch):
        kinds += [("bf16", False)]
        kinds += [("bf16", True)] * (cpu_multiplies("bfloat16") and has_kind(options, "compile", name, batch))
    found = []
    for precision, compiled in kinds:
        arguments = config_arguments(options, name, batch, precision, compiled)
        setting = f"precision {PRECISIONS[precision]}" + ", compile on" * compiled
        ours = Contender(tables.OURS, precision, setting, _builder(arguments), compiled)
        found += [ours, *peers(arch, batch, precision, compiled)]
    slower = "fp32" if cpu_multiplies("bfloat16") and has_kind(options, "bf16", name, batch) else "bf16"
    return [dataclasses.replace(each, is_trial=each.precision == slower or each.is_compiled) for each in found]


def _builder(arguments: List[str]) -> Any:
    return lambda: our_turn(load_config("pretrain", arguments))


def config_arguments(
    options: argparse.Namespace, name: str, batch: int, precision: str, compiled: bool = False
) -> List[str]:
    flags = {
        "config-file": ROOT / "configs.yaml",
        "config": MODELS[name].config,
        "runtime": "single",
        "device": "cpu",
        "threads-per-process": options.threads,
        "precision": PRECISIONS[precision],
        "compile": "on" if compiled else "off",
        "optimizer": "AdamW",
        "learning-rate": 1e-3,
        "micro-batch-size": batch,
        "gradient-accumulation": 1,
    }
    return [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]


def our_turn(config: Any) -> Turn:
    """Host steps of the product's own runtime, from uint8 pixels to the updated weights."""
    runtime = build_runtime(config, place(config))
    batch = random_batch(config, runtime.share)
    count = 0

    def turn(steps: int) -> float:
        nonlocal count
        start = time.perf_counter()
        for _ in range(steps):
            runtime.train_step(batch, 1e-3, count)
            count += 1
        return time.perf_counter() - start

    return turn


def train_flops(arch: Architecture, whole_last_block: bool) -> int:
    """Floating-point operations of training on one image by formula: three forward passes' worth of matrix products.

    The class token is all that the head reads. We leave the rest of the last block out, the peers compute it.
    """
    units = list(plan_stages([arch.depth])[0].units)
    if whole_last_block and arch.depth > 1:
        units[units.index(f"block {arch.depth - 1}")] = "block 0"
    return 3 * sum(count_forward_flops(arch, unit) for unit in units)


def _progress(row: Dict[str, Any]) -> str:
    what = row["why"] if "why" in row else f"measured in {row['seconds']:.0f} s, load {row['load']:.1f}"
    return f"{row['model']}, batch {row['batch']}: {what}"


def _document(heading: str, rows: List[Any], left_out: List[Any]) -> str:
    parts = [heading]
    parts += [
        f"**{title}**\n\n{tables.markdown(headers, cells(rows))}" for title, headers, cells in SECTIONS if cells(rows)
    ]
    parts += [f"Left out: {row['model']}, batch {row['batch']}: {row['why']}." for row in left_out]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
