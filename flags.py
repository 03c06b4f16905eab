"""Command-line flags, one for each key of the config, made from the keys themselves."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any, Dict, List, Optional, Sequence

from arguments import Parser
from config_files import parse_scalar
from errors import UserError, nearest

TRUE_WORDS = ("true", "t", "1", "yes", "y")
FALSE_WORDS = ("false", "f", "0", "no", "n")
NEGATIVE_EXPONENT = re.compile(r"-[0-9.]+[eE][-+]?[0-9]+")
NO_VALUE = ("null", "none")
ALIASES = {"resume": "resume_training_from_checkpoint"}


def flag_of(key: str) -> str:
    """drop_path_rate -> --drop-path-rate"""
    return "--" + key.replace("_", "-")


def parse_flags(
    command: str,
    description: str,
    keys: Dict[str, Any],
    argv: Optional[Sequence[str]],
    own: Optional[argparse.ArgumentParser] = None,
) -> Dict[str, Any]:
    """The keys that a command line gives, with values as YAML would read them. `keys`: name -> `config_keys.KeyInfo`.

    `own` has the command's own flags, for --help: they are parsed already.
    """
    parser = _build_parser(command, description, keys, own)
    arguments = [_with_hyphens(word) for word in (sys.argv[1:] if argv is None else argv)]
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        names = [flag_of(name) for name in [*keys, *ALIASES]]
        what = "flag" if unknown[0].startswith("-") else "argument"
        raise UserError(f"unknown {what} {unknown[0]}.{nearest(unknown[0].split('=')[0], names)} See --help.")
    return {name: _convert(name, keys[name], value) for name, value in vars(given).items() if name in keys}


def _build_parser(
    command: str, description: str, keys: Dict[str, Any], own: Optional[argparse.ArgumentParser]
) -> argparse.ArgumentParser:
    parser = Parser(
        prog=f"{command}.py",
        usage=f"%(prog)s [--config NAME] {f'{own.usage} ' if own else ''}[--KEY VALUE ...]",
        parents=[own] if own else [],
        description=f"{description} Every key of a config is a flag, too; the flag wins.",
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=36),
    )
    groups: Dict[str, Any] = {}
    for name, info in keys.items():
        if info.group not in groups:
            groups[info.group] = parser.add_argument_group(info.group)
        flags = [flag_of(name)] + [f"--{alias}" for alias, key in ALIASES.items() if key == name]
        options: Dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": info.help_text()}
        if info.is_bool:
            options.update(nargs="?", const="true", metavar="true|false")
        elif info.is_list:
            options.update(nargs="+", metavar=info.metavar)
        else:
            options.update(metavar=info.metavar)
        groups[info.group].add_argument(*flags, **options)
    return parser


def _with_hyphens(word: str) -> str:
    """--drop_path_rate=0.1 -> --drop-path-rate=0.1; and a blank before -1e-3, which argparse would take for a flag."""
    if not word.startswith("--"):
        return f" {word}" if NEGATIVE_EXPONENT.fullmatch(word) else word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _convert(name: str, info: Any, value: Any) -> Any:
    if info.is_bool:
        return _to_bool(name, value)
    words: List[Any] = value if isinstance(value, list) else [value]
    if len(words) == 1 and words[0].lower() in NO_VALUE and info.may_be_null:
        return None
    if isinstance(value, list):
        return [parse_scalar(word) for word in words]
    return value if info.is_text or info.choices else parse_scalar(value)


def _to_bool(name: str, word: str) -> bool:
    if word.lower() in TRUE_WORDS:
        return True
    if word.lower() in FALSE_WORDS:
        return False
    raise UserError(f"{flag_of(name)} takes true or false, not '{word}'.")
