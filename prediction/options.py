"""The flags of predict.py. Imports no torch, so that `--help` and a mistyped flag answer at once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Dict, Optional, Sequence

from arguments import Parser, with_hyphens
from config import Config
from errors import UserError, nearest, user_path

MOST_DRAWN = 16  # pictures in the figure of --attention
BATCH_SIZE, PORT = 64, 8000  # defaults
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("fp32", "bf16")
FORMS = {".csv": "csv", ".json": "json", ".jsonl": "json"}
DESCRIPTION = """\
Says what is on pictures, with a saved model. A picture is named as a file, a folder (with all below it), a pattern such as
'shots/**/*.jpg', or - for a list on standard input, a name a line. Answers come in that order. Ends with 0 where all pictures
could be read, 1 where some could not: they are listed at the end on standard error.
"""


def parse_options(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, checked as far as that needs no model. Raises UserError."""
    parser = _build_parser()
    words = list(argv)
    end = words.index("--") if "--" in words else len(words)
    flags = [flag for action in parser._actions for flag in action.option_strings]
    underscored = ["--" + flag[2:].replace("-", "_") for flag in flags]
    given, unknown = parser.parse_known_intermixed_args([with_hyphens(word, underscored) for word in words[:end]])
    given.pictures += words[end + 1 :]  # whatever they begin with
    if unknown:
        raise UserError(f"unknown flag {unknown[0]}.{nearest(unknown[0].split('=')[0], flags)} See --help.")
    _check(given)
    given.batch_size, given.port = given.batch_size or BATCH_SIZE, PORT if given.port is None else given.port
    return given


def form_of(given: argparse.Namespace) -> str:
    """table, json or csv: the flag's, else by the ending of --output."""
    if given.json or given.csv:
        return "json" if given.json else "csv"
    return FORMS.get(Path(given.output or "").suffix.lower(), "table")


def parse_thresholds(words: Sequence[str]) -> Dict[Optional[str], float]:
    """["0.4", "edema=0.2"] -> {None: 0.4, "edema": 0.2}. Raises UserError for what is no probability."""
    thresholds: Dict[Optional[str], float] = {}
    for word in words:
        name, equals, value = word.rpartition("=")
        try:
            threshold = float(value)
        except ValueError:
            threshold = -1.0
        if not 0.0 <= threshold <= 1.0:
            raise UserError(f"--threshold {word}: give a probability from 0 to 1, or NAME=PROBABILITY for one class.")
        thresholds[name if equals else None] = threshold
    return thresholds


def _build_parser() -> Parser:
    parser = Parser(
        prog="predict.py",
        usage="%(prog)s [--checkpoint MODEL] PICTURES...   or   %(prog)s [--checkpoint MODEL] --serve",
        description=DESCRIPTION,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28),
    )
    parser.add_argument(
        "pictures", nargs="*", metavar="PICTURES", help="files, folders, patterns, - for standard input"
    )
    _add_model(parser.add_argument_group("model"))
    _add_answers(parser.add_argument_group("answers"))
    _add_work(parser.add_argument_group("work"))
    _add_page(parser.add_argument_group("web page"))
    return parser


def _add_model(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--checkpoint",
        metavar="MODEL",
        help="run folder (its best step, else its latest), step folder, or what else --pretrained-checkpoint takes (default: "
        "the newest run in runs/)",
    )
    group.add_argument(
        "--use-ema", choices=("true", "false"), default="true", help="averaged weights, if it has any (default: true)"
    )
    group.add_argument(
        "--num-heads", metavar="N", type=int, help="attention heads, for a checkpoint that does not tell"
    )
    group.add_argument("--class-names", metavar="FILE", help="a name a line, by label, where the checkpoint has none")


def _add_answers(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--top-k",
        metavar="K",
        type=int,
        help="how many classes to name (default: 5; with several labels a picture: all that reach their threshold)",
    )
    group.add_argument(
        "--threshold",
        metavar="P",
        action="append",
        default=[],
        help="with several labels a picture: the probability from which a label is given (default: 0.5); NAME=P sets it for "
        "one class; may be repeated",
    )
    forms = group.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="one JSON object a line and picture, bad ones included")
    forms.add_argument("--csv", action="store_true", help="comma-separated values with a header, a line an answer")
    group.add_argument(
        "--output", metavar="FILE", help="write the answers there; .csv, .json and .jsonl say in what form"
    )
    group.add_argument(
        "--attention",
        metavar="FILE.png",
        help=f"draw where the model looked: one figure of the first {MOST_DRAWN} pictures that can be read",
    )


def _add_work(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--batch-size", metavar="N", type=int, help=f"pictures at once (default: {BATCH_SIZE})")
    group.add_argument("--device", choices=DEVICES, default="auto", help="(default: %(default)s)")
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=PRECISIONS[0],
        help="of matrix products: bf16 is faster on GPUs from Ampere on and on CPUs with instructions for it; probabilities are "
        "then right to about two digits (default: %(default)s)",
    )
    group.add_argument(
        "--max-image-pixels",
        metavar="N",
        type=int,
        default=Config.model_fields["max_image_pixels"].default,
        help="a picture with more is bad: a small file can fill the memory (default: %(default)s)",
    )
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _add_page(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--serve", action="store_true", help="a web page for this computer alone, to drop pictures on")
    group.add_argument("--port", metavar="N", type=int, help=f"(default: {PORT}; 0 takes a free one)")


def _check(given: argparse.Namespace) -> None:
    for flag, value in (("top-k", given.top_k), ("batch-size", given.batch_size), ("num-heads", given.num_heads)):
        if value is not None and value < 1:
            raise UserError(f"--{flag} {value}: give 1 or more.")
    if given.max_image_pixels < 1:
        raise UserError(f"--max-image-pixels {given.max_image_pixels}: give 1 or more.")
    if given.port is not None and not 0 <= given.port <= 65535:
        raise UserError(f"--port {given.port}: give 0 to 65535.")
    _check_page(given)
    if given.attention and user_path(given.attention).suffix.lower() != ".png":
        raise UserError(f"--attention {given.attention}: give a name that ends in .png, then the pictures.")


def _check_page(given: argparse.Namespace) -> None:
    """The page gets its pictures in the browser, and answers there."""
    if given.serve:
        names = ("pictures", "json", "csv", "output", "attention", "batch_size")
        useless = next((name for name in names if getattr(given, name)), None)
        if useless is not None:
            what = "pictures" if useless == "pictures" else "--" + useless.replace("_", "-")
            raise UserError(f"--serve takes no {what}: pictures are dropped on the page, which shows the answers.")
    elif given.port is not None:
        raise UserError("--port is of the web page: give --serve, too, or leave it out.")
    elif not given.pictures:
        raise UserError("no pictures are named. Give files, folders, patterns, or - for a list on standard input.")
