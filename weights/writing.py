"""Writes a saved model in any format that there is a writer for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping

import torch
from torch import Tensor

from errors import UserError
from models.initialization import sincos_positions
from weights.card import ModelCard
from weights.exported_program import write_exported_program
from weights.hugging_face_folder import write_hugging_face
from weights.onnx_file import write_onnx
from weights.own import write_step_folder
from weights.reference_app import write_app
from weights.resize import resize_positions
from weights.saved_model import SavedModel, TensorsInMemory
from weights.target import appearing
from weights.timm_file import write_timm_file
from weights.timm_folder import write_timm_folder

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
OF_SUFFIX = {".onnx": "onnx", ".pt2": "torch-export", ".safetensors": "timm"}


@dataclass(frozen=True)
class Format:
    """`write(path, card, tensors)` gives notes, or how far the file's logits are from the model's. `opens`: how to use it."""

    write: Callable[[Path, ModelCard, Mapping[str, Tensor]], Any]
    opens: str
    is_folder: bool = True


FORMATS: Dict[str, Format] = {
    "huggingface": Format(write_hugging_face, 'pipeline("image-classification", "{target}")'),
    "timm": Format(write_timm_folder, 'timm.create_model("local-dir:{target}", pretrained=True)'),
    "app": Format(
        write_app, "the PopTorch app's validation.py --pretrained-checkpoint {target}, with its pretraining model"
    ),
    "app-hf": Format(partial(write_hugging_face, as_bin=True), "the PopTorch app's --pretrained-checkpoint {target}"),
    "onnx": Format(write_onnx, 'onnxruntime.InferenceSession("{target}")', is_folder=False),
    "torch-export": Format(write_exported_program, 'torch.export.load("{target}").module()', is_folder=False),
    "pipevit": Format(write_step_folder, "python finetune.py --pretrained-checkpoint {target}"),
}
ENCODER_OPENS = 'transformers.AutoModel.from_pretrained("{target}")'
TIMM_FILE = Format(write_timm_file, 'timm.create_model(NAME, checkpoint_path="{target}")', is_folder=False)


def format_of(name: str, target: Path) -> str:
    """The format's name, from the target's suffix where `name` is empty. Raises UserError where neither tells, or both differ."""
    by_suffix = OF_SUFFIX.get(target.suffix, "")
    if not (name or by_suffix):
        raise UserError(f"{target} does not tell the format.\n       Give --to {'|'.join(FORMATS)}.")
    if by_suffix and name and name != by_suffix:
        raise UserError(
            f"{target} is a name for {by_suffix}, not for --to {name}.\n       Give another name, or leave --to out."
        )
    if name and not FORMATS[name].is_folder and not by_suffix:
        suffix = next(suffix for suffix, known in OF_SUFFIX.items() if known == name)
        raise UserError(f"{target}: --to {name} writes a file.\n       Give a name that ends in {suffix}.")
    return name or by_suffix


MOST_DIFFERENCE = 1e-3  # of logits, between a file's program and the model


def write_model(saved: SavedModel, target: Path, name: str, overwrite: bool = False) -> List[str]:
    """Writes it in the format `name` (`format_of`), whole or not at all; gives what a user should know of it."""
    chosen = TIMM_FILE if target.suffix == ".safetensors" else FORMATS[name]
    with appearing(target, overwrite, chosen.is_folder) as path:
        result = chosen.write(path, saved.card, saved.weights.read(saved.weights.shapes))
        if isinstance(result, float) and not result < MOST_DIFFERENCE:
            raise UserError(f"{target} is not written: its logits, run again, differ from the model's by {result:.1e}.")
    notes = result if isinstance(result, list) else []
    if isinstance(result, float):
        notes = [f"logits of the file, run again, differ from the model's by {result:.1e} at most"]
    opens = chosen.opens if saved.card.arch.num_labels or name != "huggingface" else ENCODER_OPENS
    return [*notes, f"opens with: {opens.format(target=target)}"]


def stored_as(saved: SavedModel, dtype: torch.dtype) -> SavedModel:
    """The same with its weights of another type, in memory."""
    tensors = saved.weights.read(saved.weights.shapes)
    return replace(saved, weights=TensorsInMemory({name: value.to(dtype) for name, value in tensors.items()}))


def without_head(saved: SavedModel) -> SavedModel:
    """The encoder alone, with its representation layer if it has one."""
    tensors = saved.weights.read(name for name in saved.weights.shapes if not name.startswith(("head.", "head_dist.")))
    card = replace(saved.card, arch=replace(saved.card.arch, num_labels=0), class_names=())
    return replace(saved, card=card, weights=TensorsInMemory(tensors))


def with_image_size(saved: SavedModel, size: int, method: str) -> SavedModel:
    """The same for pictures of another size: learned positions are resized (`resize.py`), sines and cosines made anew.

    Raises UserError where patches do not fill such a picture.
    """
    arch = saved.card.arch
    if size < 1 or any(size % side for side in arch.patch_size):
        raise UserError(
            f"--image-size {size} is not a multiple of the patch size, {'x'.join(map(str, arch.patch_size))}."
        )
    new = replace(arch, image_size=(size, size))
    tensors = saved.weights.read(saved.weights.shapes)
    if arch.pos_embed == "sincos2d":
        positions = sincos_positions(new).to(tensors["pos_embed"].dtype)
    else:
        positions = resize_positions(tensors["pos_embed"], arch.grid, new.grid, arch.num_prefix_positions, method)
    weights = TensorsInMemory({**tensors, "pos_embed": positions})
    return replace(saved, card=replace(saved.card, arch=new), weights=weights)
