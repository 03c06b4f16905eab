"""Flags of plan.py alone."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

from arguments import Parser
from errors import UserError, nearest, user_path
from planning.machines import NAMES

USAGE = "[--machine NAME] [--hosts N] [--balance] [--timeline FILE.svg] [--summary]"


def own_parser() -> Parser:
    """This command's own flags."""
    parser = Parser(prog="plan.py", usage=USAGE, add_help=False, allow_abbrev=False)
    own = parser.add_argument_group("what to plan for (flags of plan.py alone)")
    own.add_argument(
        "--machine",
        metavar="NAME",
        help=f"{', '.join(NAMES)}: plan for it, whatever this machine is; cpu is this one, measured for a second",
    )
    own.add_argument("--hosts", metavar="N", type=int, help="hosts that share the work (default: the machine's)")
    own.add_argument(
        "--balance", action="store_true", help="look for the layers_per_ipu with the smallest slowest stage"
    )
    own.add_argument("--timeline", metavar="FILE.svg", help="draw who computes which micro-batch when")
    own.add_argument(
        "--summary", action="store_true", help="print the last line alone (with --balance, its result before it)"
    )
    return parser


def parse_own_flags(argv: Sequence[str]) -> Tuple[argparse.Namespace, List[str]]:
    """The own flags' values, and all other words."""
    given, rest = own_parser().parse_known_args(list(argv))
    if "--help" in rest or "-h" in rest:
        return given, rest
    if given.hosts is not None and given.hosts < 1:
        raise UserError(f"--hosts {given.hosts}: give 1 or more.")
    if given.machine is not None and given.machine.lower() not in NAMES:
        raise UserError(
            f"--machine {_shown(given.machine)} is not known.{nearest(given.machine.lower(), NAMES)}\n"
            f"       Give {', '.join(NAMES)}."
        )
    given.machine = given.machine and given.machine.lower()
    return given, rest


def _shown(value: str) -> str:
    """A value as a message names it: in quotes where nothing would be seen."""
    return value if value.strip() else repr(value)


def timeline_path(name: Optional[str]) -> Optional[Path]:
    """Where the timeline goes; None for none. Raises UserError where it cannot be written."""
    if name is None:
        return None
    path = user_path(name)
    if path.suffix.lower() != ".svg":
        raise UserError(f"--timeline {_shown(name)}: give a name that ends in .svg.")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UserError(f"--timeline {name}: there is no folder {folder}.\n       Make it, or give another name.")
    if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise UserError(f"--timeline {name} cannot be written in {folder}.\n       Give another name.")
    return path
