"""Converts a trained model from one format into another. Reads every format that `--pretrained-checkpoint` takes.

    python convert.py runs/digits-20260101-120000 digits_hf --to huggingface
    python convert.py google/vit-base-patch16-224 vit.onnx
    python convert.py vit_tiny.safetensors tiny_384 --to timm --num-heads 3 --image-size 384

Formats, and how each was checked: docs/checkpoints.md. `--help` lists the flags.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, List, Optional, Sequence

import launch
from arguments import Parser, with_hyphens
from errors import printable, user_path

if TYPE_CHECKING:
    from models.architecture import Architecture
    from weights.saved_model import SavedModel

FORMATS = ("huggingface", "timm", "app", "app-hf", "onnx", "torch-export", "pipevit")
FLAGS = ("num_heads", "image_size", "num_labels", "use_ema", "pos_embed_resize")


def main(argv: Optional[Sequence[str]] = None) -> int:
    given = _parse(sys.argv[1:] if argv is None else argv)

    from weights.opening import open_model
    from weights.whole_model import with_heads
    from weights.writing import format_of, write_model

    target = user_path(given.target)
    name = format_of(given.to or "", target)
    saved = with_heads(open_model(given.source, given.use_ema == "true"), given.num_heads)
    for line in map(printable, _summary(saved)):
        print(line)
    saved = _changed(saved, given)
    notes = write_model(saved, target, name, given.overwrite)
    print(f"written: {target} ({name}, {given.dtype or 'types as they were'})")
    for note in notes:
        print(f"  {note}")
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="convert.py", description="Converts a trained model from one format into another.")
    parser.add_argument("source", metavar="FROM", help="run, step, Hugging Face or timm folder or hub name, or file")
    parser.add_argument("target", metavar="TO", help="file or folder to write")
    parser.add_argument("--to", choices=FORMATS, help="format (default: from TO's .onnx, .pt2 or .safetensors)")
    parser.add_argument("--dtype", choices=("fp32", "fp16", "bf16"), help="type of the weights (default: as they are)")
    parser.add_argument("--num-heads", metavar="N", type=int, default=0, help="where FROM does not say it")
    parser.add_argument("--image-size", metavar="N", type=int, help="resize the position embeddings to this size")
    parser.add_argument("--pos-embed-resize", choices=("bicubic", "linear"), default="bicubic", help="and how")
    parser.add_argument("--num-labels", metavar="0", type=int, choices=(0,), help="0: write the model without its head")
    parser.add_argument(
        "--use-ema", choices=("true", "false"), default="true", help="averaged weights, if there are any"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace TO")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of user errors too")
    return parser.parse_args([with_hyphens(word, [f"--{flag}" for flag in FLAGS]) for word in argv])


def _changed(saved: SavedModel, given: argparse.Namespace) -> SavedModel:
    """The model as the flags ask for it."""
    from weights.writing import DTYPES, stored_as, with_image_size, without_head

    if given.num_labels == 0:
        saved = without_head(saved)
    if given.image_size is not None:
        saved = with_image_size(saved, given.image_size, given.pos_embed_resize)
    return stored_as(saved, DTYPES[given.dtype]) if given.dtype else saved


def _summary(saved: SavedModel) -> List[str]:
    card, arch = saved.card, saved.card.arch
    num_parameters = sum(_product(shape) for shape in saved.weights.shapes.values())
    sides = [f"{height}x{width}" for height, width in (arch.image_size, arch.patch_size)]
    extra = f", representation layer {arch.representation_size}" if arch.representation_size else ""
    extra += f", distillation {arch.distillation}" if arch.distillation != "none" else ""
    extra += "".join(f", {word}" for word in _features(arch))
    names = f" ({', '.join(card.class_names[:3])}{', …' * (len(card.class_names) > 3)})" if card.class_names else ""
    sizes = f"{num_parameters:,} parameters: {arch.depth} blocks of width {arch.embed_dim}, {arch.num_heads} heads"
    classes = f"{arch.num_labels:,} classes{names}" if arch.num_labels else "no head"
    return [
        f"read: {saved.source} ({saved.kind})",
        f"  {sizes}, epsilon {arch.layer_norm_eps:g}{extra}",
        f"  images {sides[0]} in patches {sides[1]}; {classes}",
        *(f"  {note}" for note in saved.notes),
    ]


def _features(arch: Architecture) -> List[str]:
    """What the ViT paper's models have not, in words."""
    words = {
        "no class token": not arch.class_token,
        "norm after the mean of the patches": arch.fc_norm,
        "mean of the patches": arch.global_pool == "avg" and not arch.fc_norm,
        f"{arch.num_register_tokens} registers": arch.num_register_tokens > 0,
        "layer scale": arch.layer_scale is not None,
        "positions of patches alone": arch.num_prefix_tokens > 0 and not arch.prefix_positions,
        "fixed positions": arch.pos_embed == "sincos2d",
    }
    return [word for word, is_so in words.items() if is_so]


def _product(shape: Sequence[int]) -> int:
    result = 1
    for side in shape:
        result *= side
    return result


if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(launch.guarded(lambda: main(arguments), debug="--debug" in arguments))
