"""Signatures and value types, read from poptorch_api.json and enforced on whatever is decorated with them."""

from __future__ import annotations

import ast
import functools
import inspect
import json
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import torch

API: Dict[str, Any] = json.loads((Path(__file__).resolve().parents[2] / "poptorch_api.json").read_text())
SYMBOLS: Dict[str, Any] = API["symbols"]
_KINDS = {kind.name.lower(): kind for kind in inspect._ParameterKind}
# Names in defaults and annotations ("SharingStrategy.ForkServer", "poptorch.OutputMode") -> classes, once they exist.
CLASSES: Dict[str, type] = {}


def signature(params: List[Dict[str, Any]], *, has_self: bool = False) -> inspect.Signature:
    """The signature that the JSON lists as `params`."""
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)] if has_self else []
    for param in params:
        default = _value(param["default"]) if "default" in param else inspect.Parameter.empty
        parameters.append(inspect.Parameter(param["name"], _KINDS[param["kind"]], default=default))
    return inspect.Signature(parameters)


def checked(symbol: str) -> Callable[[Any], Any]:
    """Decorates the function `symbol`: a call has to bind to its signature, and its values to have the types."""

    def decorate(function: Any) -> Any:
        return _guarded(function, SYMBOLS[symbol]["params"], symbol)

    return decorate


def enforced(symbol: str, *, untyped: tuple = ()) -> Callable[[type], type]:
    """Decorates a class: so does every method that the JSON lists; one that the class lacks says that it is missing.

    Values of the methods `untyped` are not compared with their annotations: they have an error of their own.
    """
    facts = SYMBOLS[symbol]

    def decorate(cls: type) -> type:
        for name, method in facts.get("methods", {}).items():
            if method["kind"] == "property" or (name.startswith("__") and name != "__call__"):
                continue
            own = inspect.getattr_static(cls, name, None)
            is_static = isinstance(own, staticmethod)
            own = own.__func__ if is_static else own or _missing(f"{symbol}.{name}")
            guarded = _guarded(own, method["params"], f"{symbol}.{name}", not is_static, name not in untyped)
            setattr(cls, name, staticmethod(guarded) if is_static else guarded)
        if "init" in facts:
            cls.__init__ = _guarded(cls.__init__, facts["init"], symbol, True)  # type: ignore[misc]
        return cls

    return decorate


def _guarded(function: Any, params: List[Dict[str, Any]], what: str, has_self: bool = False, typed: bool = True) -> Any:
    annotations = {param["name"]: param["annotation"] for param in params if "annotation" in param}
    name = what.rpartition(".")[2]
    cached: List[inspect.Signature] = []  # made late: a default may name an enum that is not there yet

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not cached:
            cached.append(signature(params, has_self=has_self))
        try:
            bound = cached[0].bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{what}{cached[0]}: {error}") from None
        if typed:
            for argument, value in bound.arguments.items():
                check_type(value, annotations.get(argument), f"{what}({argument})")
        told = getattr(args[0], "_about_to_call", None) if has_self else None
        if told is None:
            return function(*args, **kwargs)
        with told(name, args[1:], kwargs):
            return function(*args, **kwargs)

    return call


def check_type(value: Any, annotation: Optional[str], what: str) -> None:
    """AssertionError for a value of another type. Exact: neither a bool nor a numpy integer passes for an int."""
    if annotation is None:
        return
    if annotation.startswith("Optional["):
        if value is None:
            return
        annotation = annotation[len("Optional[") : -1]
    fits = _FITS.get(annotation)
    if fits is None and annotation.startswith("poptorch."):
        expected = CLASSES.get(annotation[len("poptorch.") :])
        if expected is not None and annotation != "poptorch.Options":
            assert isinstance(value, expected), (
                f"Unexpected type {type(value)} for option {what}, expected {annotation}"
            )
    assert fits is None or fits(value), f"Unexpected type {type(value)} for option {what}, expected {annotation}"


def _all_are(*types: type) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, dict)
        and all(type(part) is expected for item in value.items() for part, expected in zip(item, types))
    )


_FITS: Dict[str, Callable[[Any], bool]] = {
    "int": lambda value: type(value) is int,
    "bool": lambda value: type(value) is bool,
    "str": lambda value: type(value) is str,
    "float": lambda value: type(value) is float,
    "torch.dtype": lambda value: isinstance(value, torch.dtype),
    "List[str]": lambda value: isinstance(value, list) and all(type(part) is str for part in value),
    "Dict[str, float]": _all_are(str, float),
    "Dict[str, bool]": _all_are(str, bool),
    "Dict[str, str]": _all_are(str, str),
}


def _missing(what: str) -> Callable[..., Any]:
    def method(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{what} exists in PopTorch, but the stand-in does not emulate it")

    return method


def _value(source: str) -> Any:
    try:
        return ast.literal_eval(source)
    except ValueError:
        owner, _, member = source.rpartition(".")
        return getattr(CLASSES[owner], member)
