"""Reads pickles of plain data: numbers, text, bytes, lists, dicts and arrays of numbers.

A pickle is a program that calls what it names. Here every name stands for a function of ours, numpy's own among them: its
array and type constructors take raw pointers from whoever knows how to ask.
"""

from __future__ import annotations

import io
import pickle
import re
from typing import Any, Tuple

import numpy as np

from errors import UserError

NUMBERS = re.compile(r"[<>|=]?[biuf][1248]")


class _Type:
    """Stands for numpy's dtype: its text, and the byte order that follows as state."""

    def __init__(self, text: Any, *flags: Any) -> None:
        self.text = _text(text)
        if not NUMBERS.fullmatch(self.text):
            raise pickle.UnpicklingError(f"it holds an array of {self.text!r}, which is no plain number")

    def __setstate__(self, state: Tuple[Any, ...]) -> None:
        order = _text(state[1])
        if order in ("<", ">"):
            self.text = order + self.text.lstrip("<>|=")


class _Array:
    """Stands for numpy's ndarray while a pickle is read."""

    value: np.ndarray

    def __setstate__(self, state: Tuple[Any, ...]) -> None:
        _, shape, kind, is_fortran, content = state
        if not isinstance(kind, _Type) or not isinstance(content, bytes):
            raise pickle.UnpicklingError("it holds an array that is not made of numbers")
        flat = np.frombuffer(content, dtype=np.dtype(kind.text))
        self.value = flat.reshape(shape, order="F" if is_fortran else "C")


def _text(text: Any) -> str:
    return text.decode("latin1") if isinstance(text, bytes) else str(text)


def _reconstruct(kind: Any, shape: Any, typecode: Any) -> _Array:
    return _Array()


def _encode(text: str, codec: Any) -> bytes:
    """Byte strings as Python 3 writes them for Python 2."""
    if _text(codec) != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {codec}, which plain data does not need")
    return text.encode("latin1")


# What arrays and byte strings of the published archives (written by Python 2) and of newer writers are made with.
STAND_INS = {
    ("numpy", "ndarray"): "ndarray",  # an argument of _reconstruct, never called
    ("numpy", "dtype"): _Type,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("_codecs", "encode"): _encode,
}


class _PlainData(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which plain data does not need")
        return STAND_INS[module, name]


def load_pickle(content: bytes, where: str) -> Any:
    """What a pickle of plain data holds; Python 2's strings as bytes.

    Raises UserError, naming `where`, for a pickle that is broken or asks for more.
    """
    try:
        return _with_arrays(_PlainData(io.BytesIO(content), encoding="bytes").load())
    except Exception as error:  # a broken pickle raises nearly anything
        raise UserError(f"cannot read {where}: {error}\n       Fetch it again from where it is published.") from error


def _with_arrays(value: Any) -> Any:
    """The same, with numpy's arrays in place of what stood for them."""
    if isinstance(value, dict):
        return {name: _with_arrays(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_arrays(item) for item in value]
    return value.value if isinstance(value, _Array) else value
