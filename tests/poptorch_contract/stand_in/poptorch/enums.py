"""The enums, generated from poptorch_api.json."""

from __future__ import annotations

import enum

from poptorch._api import CLASSES, SYMBOLS

for _symbol, _facts in SYMBOLS.items():
    if _facts["kind"] == "enum":
        _name = _symbol[len("poptorch.") :]
        _base = enum.IntEnum if _facts["base"] == "enum.IntEnum" else enum.Enum
        CLASSES[_name] = globals()[_name] = _base(_name, _facts["members"], module=__name__)

__all__ = [name for name in CLASSES if name in globals()]
