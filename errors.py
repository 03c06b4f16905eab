"""What a user can get wrong, as one exception with one message: what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Iterable


class UserError(Exception):
    """A mistake in a config, flag, path, image or checkpoint. Commands print its message and exit with code 2."""


class SharedError(UserError):
    """One that every process of a run raises alike. Under a launcher, the first process of each host alone prints it."""


def nearest(name: str, names: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the closest of `names`, or an empty string where none is close."""
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f" Did you mean '{matches[0]}'?" if matches else ""


def counted(number: int, word: str) -> str:
    """`"1 process"`, `"2 processes"`, `"4 IPUs"`."""
    ending = "es" if word.endswith("s") else "s"
    return f"{number} {word}{ending if number != 1 else ''}"


def user_path(path: str) -> Path:
    """A path as a user gives it, with `~` for a home folder (one that does not exist stays as it is)."""
    return Path(os.path.expanduser(path))


def printable(text: str) -> str:
    """A file's name as every terminal takes it, on one line: what is no UTF-8 becomes a question mark."""
    plain = os.fsencode(text).decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "?" for letter in plain)
