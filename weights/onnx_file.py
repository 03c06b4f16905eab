"""Writes a model as ONNX: float pixels in, logits out, any batch size."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, Dict, Mapping

import torch
from torch import Tensor

from errors import UserError
from weights.card import ModelCard
from weights.whole_model import build_whole

OPSET = 18
CHECKED_BATCHES = (1, 3, 17)  # 17: the model computes fewer rows than 16 in another way in training
MOST_BYTES = 2_000_000_000  # of protobuf, less what the graph takes


def write_onnx(path: Path, card: ModelCard, tensors: Mapping[str, Tensor]) -> float:
    """Returns the largest difference of logits between onnxruntime and torch, on random pixels.

    Input "pixels" [B, C, H, W], float32, (pixel / 255 - mean) / std; output "logits" [B, K]. The file's metadata hold mean,
    std, size and class names. Weights keep their type, and are widened to float32 where they are used. Raises UserError where
    packages are missing, torch is too old, or the model is too large.
    """
    check_exporter()
    onnx, runtime = _packages()
    if sum(tensor.nbytes for tensor in tensors.values()) > MOST_BYTES:
        raise UserError(
            "an ONNX file holds 2 GB at most, and the model is larger.\n       Give --dtype fp16, or --to torch-export."
        )
    model = build_whole(card.arch, tensors)
    proto = _exported(model, example_pixels(card, 2))
    for name, value in metadata(card).items():
        proto.metadata_props.add(key=name, value=value)
    onnx.save(proto, str(path))
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return max(_difference(session, model, example_pixels(card, batch)) for batch in CHECKED_BATCHES)


def check_exporter() -> None:
    """Raises UserError where torch cannot export the model. (Its older exporter to ONNX does not know the attention of 2.0.1.)"""
    if not hasattr(torch, "export"):
        raise UserError(
            f"torch {torch.__version__} has no torch.export, which this format needs.\n"
            "       Convert it elsewhere, with torch 2.6 or later, or to another format."
        )


def _exported(model: torch.nn.Module, pixels: Tensor) -> Any:
    with warnings.catch_warnings(), torch.no_grad():  # with gradients, few rows are computed in another way
        warnings.simplefilter("ignore")  # of the exporter about its own parts
        program = torch.onnx.export(
            model,
            (pixels,),
            input_names=["pixels"],
            output_names=["logits"],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes={"x": {0: torch.export.Dim("batch", min=1, max=65536)}},
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _packages() -> Any:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError as error:
        raise UserError(f"ONNX needs the package {error.name}: pip install onnx onnxscript onnxruntime") from error
    return onnx, onnxruntime


def _difference(session: Any, model: torch.nn.Module, pixels: Tensor) -> float:
    (logits,) = session.run(["logits"], {"pixels": pixels.numpy()})
    with torch.no_grad():
        return float((torch.from_numpy(logits) - model(pixels)).abs().max())


def example_pixels(card: ModelCard, batch_size: int) -> Tensor:
    """Random pixels as the model takes them."""
    generator = torch.Generator().manual_seed(batch_size)
    return torch.randn(batch_size, card.arch.num_channels, *card.arch.image_size, generator=generator)


def metadata(card: ModelCard) -> Dict[str, str]:
    """What a program needs besides the file to use the model, as JSON texts by name."""
    details = {
        "image_size": card.arch.image_size,
        "pixel_mean": card.arch.pixel_mean,
        "pixel_std": card.arch.pixel_std,
        "class_names": card.class_names,
        "multi_label": card.multi_label,
        "eval_crop": card.eval_crop,
        "squash": card.squash,
        "interpolation": card.interpolation,
    }
    return {name: json.dumps(value) for name, value in details.items()}
