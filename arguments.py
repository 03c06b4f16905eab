"""Command lines: the parser that every command's flags go through."""

from __future__ import annotations

import argparse
from typing import NoReturn, Sequence

from errors import UserError


class Parser(argparse.ArgumentParser):
    """Raises UserError instead of printing the usage and leaving."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[:1].lower()}{message[1:]}. See --help.")


def with_hyphens(word: str, names: Sequence[str]) -> str:
    """--num_heads=3 -> --num-heads=3, where `names` has --num_heads; other words as they are."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name in names else word
