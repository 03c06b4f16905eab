"""Reads pickles of plain data; whatever else a pickle asks for is refused before it runs."""

from __future__ import annotations

import io
import pickle
from typing import Any

from errors import UserError

# What arrays and byte strings of the published archives (written by Python 2) and of newer writers are made with.
ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
}


class _PlainData(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which plain data does not need")
        if name == "_reconstruct":
            module = _module_of_arrays()
        return super().find_class(module, name)


def load_pickle(content: bytes, where: str) -> Any:
    """Numbers, strings, bytes, lists, dicts and numpy arrays of a pickle; Python 2's strings as bytes.

    Raises UserError, naming `where`, for a pickle that is broken or asks for more.
    """
    try:
        return _PlainData(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a broken pickle raises nearly anything
        raise UserError(f"cannot read {where}: {error}\n       Fetch it again from where it is published.") from error


def _module_of_arrays() -> str:
    import numpy as np

    return "numpy._core.multiarray" if int(np.__version__.split(".")[0]) >= 2 else "numpy.core.multiarray"
