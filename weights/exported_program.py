"""Writes a model as an exported program of `torch.export` (`.pt2`), which needs no code of this project to run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Mapping

import torch
from torch import Tensor

from weights.card import ModelCard
from weights.onnx_file import CHECKED_BATCHES, check_exporter, example_pixels, metadata
from weights.whole_model import build_whole


def write_exported_program(path: Path, card: ModelCard, tensors: Mapping[str, Tensor]) -> float:
    """Returns the largest difference of logits between the file's program and the model, on random pixels.

    Input and metadata (files of the archive) as of `write_onnx`: `torch.export.load(path).module()(pixels)` gives logits.
    """
    check_exporter()
    model = build_whole(card.arch, tensors)
    batch = torch.export.Dim("batch", min=1, max=65536)
    with torch.no_grad():  # with gradients, few rows are computed in another way
        program = torch.export.export(model, (example_pixels(card, 2),), dynamic_shapes={"x": {0: batch}})
    content = io.BytesIO()  # torch itself would end the process on a full disk
    torch.export.save(program, content, extra_files=metadata(card))
    path.write_bytes(content.getbuffer())
    loaded = torch.export.load(str(path)).module()
    with torch.no_grad():
        pixels = [example_pixels(card, size) for size in CHECKED_BATCHES]
        return max(float((loaded(batch) - model(batch)).abs().max()) for batch in pixels)
