"""The base of all options: a typed dictionary read as attributes, that can be frozen; and the log of calls."""

from __future__ import annotations

import contextlib
import copy
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

FROZEN = "Can't modify frozen Options"


class OptionCall(NamedTuple):
    """A call of a setter: `name` as in "Training.gradientAccumulation"."""

    name: str
    args: Tuple[Any, ...]
    kwargs: Dict[str, Any]


CALLS: List[OptionCall] = []
_depth = [0]
_READERS = {"toDict", "clone", "defaultOutputMode", "exists", "checkIsFrozen"}


class Frozen:
    """Something that can be frozen, and whose methods are logged when a user (not the package itself) calls them."""

    _path = ""
    _is_frozen = False

    def checkIsFrozen(self, option: Any = None) -> None:  # noqa: N802
        if self._is_frozen:
            raise AttributeError(FROZEN)

    @contextlib.contextmanager
    def _about_to_call(self, name: str, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Iterator[None]:
        if name not in _READERS and not name.startswith("_"):
            self.checkIsFrozen()
            if not _depth[0]:
                CALLS.append(OptionCall(self._path + name, args, kwargs))
        _depth[0] += 1
        try:
            yield
        finally:
            _depth[0] -= 1

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            raise AttributeError(
                FROZEN if self._is_frozen else f"'{type(self).__name__}' has no attribute '{name}' to set"
            )
        object.__setattr__(self, name, value)


class OptionsDict(Frozen):
    """Options by name; `set` refuses a value of another type than the present one."""

    def __init__(self, **default_values: Any) -> None:
        self._values: Dict[str, Any] = dict(default_values)

    def set(self, **kwargs: Any) -> None:
        self.checkIsFrozen()
        for option, value in kwargs.items():
            assert option in self._values, f"Invalid option {option}, must be one of {sorted(self._values)}"
            now = self._values[option]
            assert type(value) is type(now), f"Unexpected type {type(value)} for option {option}, expected {type(now)}"
            self._values[option] = value

    def createOrSet(self, **kwargs: Any) -> None:  # noqa: N802
        self.checkIsFrozen()
        for option, value in kwargs.items():
            if option in self._values:
                self.set(**{option: value})
            self._values[option] = value

    def exists(self, option: str) -> bool:
        return option in self._values

    def deleteIfExists(self, option: str) -> None:  # noqa: N802
        self.checkIsFrozen()
        self._values.pop(option, None)

    def toDict(self) -> Dict[str, Any]:  # noqa: N802
        return copy.deepcopy(self._values)

    def update(self, other: Dict[str, Any]) -> Dict[str, Any]:
        assert not set(self._values) & set(other), "options of the same name"
        other.update(self.toDict())
        return other

    def __getattr__(self, option: str) -> Any:
        if not option.startswith("__") and option in self.__dict__.get("_values", {}):
            return self._values[option]
        raise AttributeError(f"'{type(self).__name__}' has no attribute '{option}'")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._values})"
