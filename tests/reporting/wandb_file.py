"""Reads the file in which W&B keeps a run, without W&B's reader, which is part of its service.

It is a log as LevelDB writes it, after a header of seven bytes (":W&B", a magic number and a version): blocks of 32 KiB, in
them pieces with a checksum (4 bytes), a length (2), a kind (1: whole, 2: first, 3: middle, 4: last) and that many bytes.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, Dict, Iterator, List

BLOCK, HEADER = 32768, 7


def records(path: Path) -> List[Any]:
    """All records, as W&B's own messages."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for data in _payloads(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        found.append(record)
    return found


def _payloads(content: bytes) -> Iterator[bytes]:
    assert content[:4] == b":W&B", content[:HEADER]
    position, parts = HEADER, b""
    while position + HEADER <= len(content):
        if BLOCK - position % BLOCK < HEADER:
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        position += HEADER
        parts += content[position : position + length]
        position += length
        if kind in (1, 4):
            yield parts
            parts = b""


def history(found: List[Any]) -> List[Dict[str, Any]]:
    """The figures of each step that was logged."""
    return [_values(record.history.item) for record in found if record.WhichOneof("record_type") == "history"]


def settings(found: List[Any]) -> Dict[str, Any]:
    """What the run was started with."""
    return {
        name: value
        for record in found
        if record.WhichOneof("record_type") == "run"
        for name, value in _values(record.run.config.update).items()
    }


def summary(found: List[Any]) -> Dict[str, Any]:
    """The figures that stand for the run."""
    updates = [record.summary.update for record in found if record.WhichOneof("record_type") == "summary"]
    return {name: value for update in updates for name, value in _values(update).items()}


def _values(items: Any) -> Dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
