"""Images a second from JPEG files to answers: what predict.py and validation.py do beside transformers' pipeline, on the CPU.

    python benchmarks/evaluation.py [--models Ti S] [--images 64] [--rounds 3] [--json FILE]

The same random weights (a Hugging Face folder) and the same photographs for all, in fp32, and in bf16 where the CPU has
instructions for it. The pipeline is tried with each image processor, batch size and number of loader processes first; the best of
these in each precision then take turns with ours, within one process.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()  # the user's cache of indexes stays as it is

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import dataset.transforms.torchvision_operators  # noqa: E402, F401  (first: transformers imports torchvision)

# isort: split
import transformers  # noqa: E402

import machine  # noqa: E402
from benchmarks.facts import cpu_name, shown, spread, write_json  # noqa: E402
from benchmarks.photos import write_photos  # noqa: E402
from config import load_config  # noqa: E402
from dataset.registry import open_source  # noqa: E402
from evaluation.evaluate import evaluate  # noqa: E402
from models.architecture import Architecture, count_forward_flops  # noqa: E402
from models.stages import plan_stages  # noqa: E402
from placement import place  # noqa: E402
from prediction.loading import complete  # noqa: E402
from prediction.predictor import Predictor, pick_type  # noqa: E402
from reporting.tables import table  # noqa: E402
from run_setup import evaluation_loader  # noqa: E402
from runtime.build import build_runtime  # noqa: E402
from weights.opening import open_model  # noqa: E402
from weights.pretrained import load_pretrained, open_pretrained  # noqa: E402
from weights.whole_model import load_whole  # noqa: E402

SIZES = {"Ti": (192, 3), "S": (384, 6), "B": (768, 12)}  # width and heads; 12 blocks, patches of 16, 224 px
PREDICT, VALIDATE, THEIRS = "predict.py", "validation.py", "transformers pipeline"
PRECISIONS = {"fp32": "32.32", "bf16": "bf16.32"}  # by the names of predict.py, of configs
TARGET, NUM_LABELS = 1.5, 1000
TOLERANCE = 1e-3  # of probabilities of so many images: what resizing rounds differently
COMPARED = 64
HEADERS = (
    "model", "path", "precision", "images/s", "min", "max", "to the best pipeline", "min", "max", "CPU ms/image", "of matmul rate"
)  # fmt: skip
_TYPE_KEY = "dtype" if "dtype" in inspect.signature(transformers.pipeline).parameters else "torch_dtype"
Turn = Callable[[], Any]  # goes through all files once
Setting = Tuple[str, int, int]  # image processor, batch size, loader processes


def main(argv: Optional[Sequence[str]] = None) -> int:
    options = parse_options(argv)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    machine.keep_freed_memory()
    torch.set_num_threads(machine.num_cores())
    figures: Dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder) / "photos" / "validation", options.images)
        for name in options.models:
            figures[name] = measure(name, Path(folder), options)
    print(
        f"{cpu_name()}, {machine.num_cores()} cores; {options.images} JPEG files of 500 x 375; {options.rounds} rounds"
    )
    print(table(HEADERS, [row for name, measured in figures.items() for row in rows(name, measured)]))
    for name, measured in figures.items():
        best = ", ".join(f"in {precision}: {setting}" for precision, setting in measured["settings"].items())
        print(f"{name}/16: the pipeline's best settings are {best}; in fp32 {measured['agreement']}")
    write_json(options.json, {"cpu": cpu_name(), "cores": machine.num_cores(), "models": figures})
    return 0


def parse_options(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", nargs="+", default=["Ti", "S"], choices=tuple(SIZES), help="default: Ti S")
    add("--images", type=int, default=64, help="files (default: 64)")
    add("--rounds", type=int, default=3, help="measurements of each (default: 3)")
    add("--tried", type=int, default=16, help="files with which the pipeline's settings are tried (default: 16)")
    add("--json", default="", metavar="FILE", help="write the figures there too")
    return parser.parse_args(argv)


def measure(name: str, folder: Path, options: argparse.Namespace) -> Dict[str, Any]:
    """Images a second of every path in every round, and of the matrix products beside them."""
    model = write_model(folder / name, *SIZES[name])
    paths = sorted(map(str, (folder / "photos").rglob("*.jpg")))
    arch = complete(open_model(str(model), True)).card.arch
    turns: Dict[Tuple[str, str], Turn] = {}
    best: Dict[str, Setting] = {}
    for precision in PRECISIONS if machine.cpu_multiplies("bfloat16") else ("fp32",):
        tried = {
            setting: rate(their_turn(model, paths[: options.tried], precision, *setting), options.tried)
            for setting in settings()
        }
        best[precision] = max(tried, key=lambda key: tried[key])
        turns[PREDICT, precision] = our_prediction(model, paths, precision)
        turns[VALIDATE, precision] = our_validation(model, folder / "photos", arch, precision)
        turns[THEIRS, precision] = their_turn(model, paths, precision, *best[precision])
    agreement = compare(turns[PREDICT, "fp32"]()[:COMPARED], turns[THEIRS, "fp32"]()[:COMPARED])
    for turn in turns.values():
        turn()
    rates: Dict[Tuple[str, str], List[float]] = {path: [] for path in turns}
    costs: Dict[Tuple[str, str], List[float]] = {path: [] for path in turns}
    products: List[Dict[str, float]] = []
    for number in range(options.rounds):
        for path in list(turns)[:: 1 if number % 2 == 0 else -1]:
            begun = sum(os.times()[:4])  # of this process, and of loader processes that have ended
            rates[path].append(rate(turns[path], len(paths)))
            costs[path].append((sum(os.times()[:4]) - begun) / len(paths))
        products.append({precision: forward_products(arch, precision) for precision in best})
    units = plan_stages([arch.depth])[0].units
    return {
        "images_per_second": {" ".join(path): values for path, values in rates.items()},
        "cpu_seconds_per_image": {" ".join(path): values for path, values in costs.items()},
        "forward_flops_per_image": sum(count_forward_flops(arch, unit) for unit in units),
        "matmul_flops_per_second": products,
        "settings": {key: "{} processor, batches of {}, {} loader processes".format(*best[key]) for key in best},
        "agreement": agreement,
    }


def rate(turn: Turn, images: int) -> float:
    begun = time.perf_counter()
    turn()
    return images / (time.perf_counter() - begun)


def write_model(folder: Path, width: int, heads: int) -> Path:
    """A Hugging Face folder of a ViT with random weights, made large enough that answers differ."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=width,
        num_hidden_layers=12,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        num_labels=NUM_LABELS,
    )
    model = transformers.ViTForImageClassification(config)
    with torch.no_grad():
        model.classifier.weight.mul_(20.0)
    model.save_pretrained(folder)
    transformers.ViTImageProcessor().save_pretrained(folder)
    return folder


def settings() -> List[Setting]:
    return list(itertools.product(("fast", "slow"), (1, 8, 32), (0, machine.num_cores())))


def their_turn(model: Path, paths: Sequence[str], precision: str, kind: str, batch_size: int, workers: int) -> Turn:
    slow = getattr(transformers, "ViTImageProcessorPil", transformers.ViTImageProcessor)
    fast = getattr(transformers, "ViTImageProcessorFast", None) if slow is transformers.ViTImageProcessor else None
    processor = slow if kind == "slow" else fast or transformers.ViTImageProcessor
    classify = transformers.pipeline(
        "image-classification",
        model=str(model),
        image_processor=processor.from_pretrained(model),
        device="cpu",
        **{_TYPE_KEY: torch.bfloat16 if precision == "bf16" else torch.float32},
        batch_size=batch_size,
        num_workers=workers,
    )

    def turn() -> List[Any]:
        with torch.inference_mode():
            return classify(list(paths))

    return turn


def our_prediction(model: Path, paths: Sequence[str], precision: str) -> Turn:
    saved, device = complete(open_model(str(model), True)), torch.device("cpu")
    dtype, _ = pick_type(precision, device)
    predictor = Predictor(load_whole(saved, device), saved.card, max_image_pixels=10**9, dtype=dtype)

    def turn() -> Tensor:
        seen = itertools.chain.from_iterable(predictor.predict_files(paths))
        return torch.stack([one.probabilities for one in seen])

    return turn


def our_validation(model: Path, photos: Path, arch: Architecture, precision: str) -> Turn:
    """Loss, accuracy and findings over the folder, decoded by as many loader processes as there are cores."""
    flags = {
        "config-file": ROOT / "configs.yaml",
        "config": "generated_s16",
        "runtime": "single",
        "device": "cpu",
        "dataset": "folder",
        "dataset-path": photos,
        "num-labels": NUM_LABELS,
        "precision": PRECISIONS[precision],
        "hidden-size": arch.embed_dim,
        "num-attention-heads": arch.num_heads,
        "mlp-dim": arch.mlp_dim,
        "pretrained-checkpoint": model,
        "dataloader-workers": machine.num_cores(),
    }
    config = load_config("validation", [word for key, value in flags.items() for word in (f"--{key}", str(value))])
    runtime = build_runtime(config, place(config))
    load_pretrained(open_pretrained(config), config, runtime)
    loader = evaluation_loader(config, open_source(config, "validation"), runtime)
    return lambda: evaluate(runtime, loader, config.loss)


def compare(ours: Tensor, theirs: Sequence[Any]) -> str:
    """Says how far probabilities are apart. Raises SystemExit where these are other answers."""
    best = ours.max(dim=1)
    gaps = [
        abs(float(ours[row, int(answer["label"].rsplit("_", 1)[1])]) - answer["score"])
        for row, answers in enumerate(theirs)
        for answer in answers
    ]
    same = sum(
        int(answers[0]["label"].rsplit("_", 1)[1]) == int(best.indices[row]) for row, answers in enumerate(theirs)
    )
    found = f"probabilities differ by {max(gaps):.1e} at most, {same} of {len(theirs)} first answers are the same"
    if max(gaps) > TOLERANCE:
        raise SystemExit(f"error: these are other answers: {found}")
    return found


def forward_products(arch: Architecture, precision: str, seconds: float = 1.0) -> float:
    """Operations a second in the weight products of a block's forward pass over 32 images, with all threads."""
    rows, width = 32 * arch.num_tokens, arch.embed_dim
    shapes = [(width, 3 * width), (width, width), (width, arch.mlp_dim), (arch.mlp_dim, width)]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    operands = [
        (torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)) for inner, columns in shapes
    ]
    durations: List[float] = []
    while len(durations) < 3 or sum(durations) < seconds:
        begun = time.perf_counter()
        for x, weight in operands:
            x @ weight.t()
        durations.append(time.perf_counter() - begun)
    return sum(2 * rows * inner * columns for inner, columns in shapes) / min(durations)


def rows(name: str, measured: Dict[str, Any]) -> List[List[str]]:
    rates, flops = measured["images_per_second"], measured["forward_flops_per_image"]
    theirs = max((path for path in rates if path.startswith(THEIRS)), key=lambda path: spread(rates[path])["median"])
    shown_rows = []
    for path, values in rates.items():
        what, _, precision = path.rpartition(" ")
        ratios = [one / other for one, other in zip(values, rates[theirs])]
        products = spread([each[precision] for each in measured["matmul_flops_per_second"]])["median"]
        share = spread(values)["median"] * flops / products
        shown_rows.append(
            [
                f"{name}/16",
                what,
                precision,
                *shown(values, lambda value: f"{value:.1f}"),
                *shown(ratios, lambda value: f"{value:.2f}"),
                f"{1000 * spread(measured['cpu_seconds_per_image'][path])['median']:.0f}",
                f"{100 * share:.0f} %",
            ]
        )
    return shown_rows


if __name__ == "__main__":
    sys.exit(main())
