"""Finds, reads and writes YAML files of named configs: merge keys, and numbers such as `1e-6`, strings in YAML 1.1."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

import yaml

from errors import UserError, nearest, user_path

FILE_NAMES = ("configs.yaml", "configs.yml")
SCRIPTS_FOLDER = Path(__file__).resolve().parent
FORM = "Write a name, a colon, and below it indented `key: value` lines."
MERGE_BASE = "defaults"  # an entry for others to merge; a config of its own only where it is named


class ConfigLoader(yaml.SafeLoader):
    """The safe loader, with YAML 1.2's floats (an exponent needs no dot) and without silently repeated keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Dict[Any, Any]:
        names = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None and not getattr(node, "is_merged", False):
            raise yaml.constructor.ConstructorError(None, None, f"'{repeated}' stands twice", node.start_mark)
        node.is_merged = True  # merge keys are unfolded in place: what stands twice from now on is an override
        return super().construct_mapping(node, deep)


_FLOAT = (
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)
ConfigLoader.add_implicit_resolver(*_FLOAT)


def parse_scalar(text: str) -> Any:
    """A flag's value as YAML reads it: "3" is an int, "1e-6" a float, "null" None; what is no YAML stays text."""
    try:
        value = yaml.load(text, Loader=ConfigLoader)
    except (yaml.YAMLError, ValueError):  # ValueError: no such date, a number without digits or with too many
        return text
    return value if isinstance(value, (int, float, bool)) or value is None else text


def find_config_file(named: Optional[str]) -> Path:
    """--config-file, else configs.yaml or configs.yml of the working directory, else the one beside the scripts."""
    if named is not None:
        return user_path(named)
    for folder in (Path.cwd(), SCRIPTS_FOLDER):
        for name in FILE_NAMES:
            if (folder / name).is_file():
                return folder / name
    raise UserError(f"no {' or '.join(FILE_NAMES)} here or beside the scripts. Name a file with --config-file.")


def read_configs(path: Path) -> Dict[str, Dict[str, Any]]:
    """All entries of a config file. Raises UserError for one that cannot be read or is not a mapping of mappings."""
    shown = shown_path(path)
    try:
        entries = yaml.load(path.read_text(encoding="utf-8"), Loader=ConfigLoader)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"config file {shown} cannot be read ({reason}). Name one with --config-file.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"config file {shown} is not valid YAML: {_one_line(error)}") from error
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"config file {shown} holds no configs. {FORM}")
    for name, entry in entries.items():
        if not isinstance(entry, dict):
            raise UserError(f"the entry {name} of {shown} is not a config: it holds {entry!r}. {FORM}")
    return {str(name): entry for name, entry in entries.items()}


def config_names(entries: Mapping[str, Any]) -> List[str]:
    """The entries that are meant to be run: all but the merge base, and but those that start with a dot."""
    return [name for name in entries if name != MERGE_BASE and not name.startswith(".")]


def choose_entry(entries: Mapping[str, Any], name: Optional[str], path: Path) -> str:
    """The name of the config to use; may be left out where the file holds only one."""
    names, shown = config_names(entries), shown_path(path)
    listed = ", ".join(names) or "none"
    if name is None and len(names) == 1:
        return names[0]
    if name is None:
        raise UserError(f"no config is named.\n       Name one with --config; {shown} has {listed}.")
    if name not in entries:
        hint = nearest(name, names) or _elsewhere(name, path)
        raise UserError(f"{shown} has no config '{name}'.{hint}\n       It has {listed}.")
    return name


def config_text(name: str, values: Mapping[str, Any]) -> str:
    """A config file that holds one config, its keys in the given order, lists on one line."""
    return yaml.dump({name: dict(values)}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def shown_path(path: Path) -> str:
    """A path as a user would write it: relative where it lies in the working directory."""
    return str(path.relative_to(Path.cwd())) if path.is_absolute() and Path.cwd() in path.parents else str(path)


def _elsewhere(name: str, path: Path) -> str:
    """Says so where the file beside the scripts, which another one hides, has the config."""
    own = SCRIPTS_FOLDER / FILE_NAMES[0]
    if not own.is_file() or own == path.resolve() or name not in read_configs(own):
        return ""
    return f" {own} has it: name that file with --config-file."


class _Dumper(yaml.SafeDumper):
    """The safe dumper, with lists on one line, and quotes around text that the loader would take for a number."""


_Dumper.add_implicit_resolver(*_FLOAT)
_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)


def _one_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
    return f"{getattr(error, 'problem', None) or error}{where}. Correct it there."
