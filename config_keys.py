"""What is known of a key of the config, as flags and messages need it. The keys themselves are in `config.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Literal, Optional, Tuple, Union, get_args, get_origin


@dataclass(frozen=True)
class KeyInfo:
    """A key as flags and messages need it."""

    group: str
    meaning: str
    default: Any
    annotation: Any
    when: Optional[Callable[[Any, str], bool]]

    @property
    def _options(self) -> Tuple[Any, ...]:
        """The types that a value may have, null left out."""
        is_union = get_origin(self.annotation) is Union
        return tuple(t for t in (get_args(self.annotation) if is_union else (self.annotation,)) if t is not type(None))

    @property
    def may_be_null(self) -> bool:
        return type(None) in get_args(self.annotation)

    @property
    def is_bool(self) -> bool:
        return self._options == (bool,)

    @property
    def is_text(self) -> bool:
        return self._options == (str,)

    @property
    def is_number(self) -> bool:
        return bool({int, float}.intersection(self._options))

    @property
    def is_list(self) -> bool:
        return any(get_origin(t) is tuple for t in self._options)

    @property
    def is_only_list(self) -> bool:
        return all(get_origin(t) is tuple for t in self._options)

    @property
    def is_names(self) -> bool:
        return self._options == (Tuple[str, ...],)

    @property
    def choices(self) -> Tuple[str, ...]:
        return get_args(self._options[0]) if get_origin(self._options[0]) is Literal else ()

    @property
    def metavar(self) -> str:
        if self.choices:
            return "{" + ",".join(self.choices) + "}"
        kind = get_args(self._options[-1])[0] if self.is_list else self._options[0]
        return {int: "N", float: "X", str: "TEXT"}.get(kind, "VALUE")

    @property
    def wanted(self) -> str:
        """What a value must be, in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
        many = {int: "whole numbers", float: "numbers", str: "names"}
        words = []
        for option in self._options:
            if get_origin(option) is Literal:
                words.append(" or ".join(get_args(option)))
            else:
                words.append(f"a list of {many[get_args(option)[0]]}" if get_origin(option) is tuple else names[option])
        return " or ".join(words)

    def help_text(self) -> str:
        shown = " ".join(map(str, self.default)) if isinstance(self.default, tuple) else self.default
        default = "" if shown in (None, "") else f" (default: {str(shown).lower() if self.is_bool else shown})"
        return (self.meaning + default).replace("%", "%%")
