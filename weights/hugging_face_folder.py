"""Writes a folder that transformers opens: `AutoModelForImageClassification`, `pipeline("image-classification")`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Mapping

from torch import Tensor

from errors import UserError
from models.architecture import Architecture
from weights.card import ModelCard
from weights.hugging_face_names import foreign_names, split_up
from weights.hugging_face_pictures import FILE, preparation_json
from weights.json_file import write_json
from weights.pickled import write_bin
from weights.plain import plain_form
from weights.tensor_files import write_part


def write_hugging_face(folder: Path, card: ModelCard, tensors: Mapping[str, Tensor], as_bin: bool = False) -> List[str]:
    """Gives notes on what is not the same there. `as_bin`: weights as `pytorch_model.bin`, as the public PopTorch app has them.

    Raises UserError for a model that transformers has no class for.
    """
    _check(card.arch)
    arch, tensors, notes = plain_form("Hugging Face's ViT", card.arch, tensors)
    card = replace(card, arch=arch)
    encoder = "" if not card.arch.num_labels else "vit." if card.arch.distillation == "none" else "deit."
    theirs = split_up(tensors, foreign_names(card.arch, encoder))
    write_json(folder / "config.json", _config(card, tensors))
    write_json(folder / FILE, preparation_json(card))
    if as_bin:
        write_bin(folder / "pytorch_model.bin", theirs)
    else:
        write_part(folder / "model.safetensors", theirs)
    return notes


def _check(arch: Architecture) -> None:
    if arch.num_labels and arch.representation_size:
        raise UserError(
            "Hugging Face's classifiers read the encoder itself: a representation layer (pre_logits) in between has no place.\n"
            "       Write another format, or without the head: --num-labels 0."
        )


def _class_of(arch: Architecture) -> str:
    if arch.distillation == "none":
        return "ViTForImageClassification" if arch.num_labels else "ViTModel"
    if not arch.num_labels:
        return "DeiTModel"
    return f"DeiTForImageClassification{'WithTeacher' if arch.distillation == 'heads' else ''}"


def _config(card: ModelCard, tensors: Mapping[str, Tensor]) -> Dict[str, Any]:
    arch = card.arch
    names = card.class_names or tuple(f"LABEL_{label}" for label in range(arch.num_labels))
    details = {
        "architectures": [_class_of(arch)],
        "model_type": "vit" if arch.distillation == "none" else "deit",
        "dtype": str(tensors["cls_token"].dtype).split(".")[-1],
        "hidden_size": arch.embed_dim,
        "num_hidden_layers": arch.depth,
        "num_attention_heads": arch.num_heads,
        "intermediate_size": arch.mlp_dim,
        "image_size": _size(arch.image_size),
        "patch_size": _size(arch.patch_size),
        "num_channels": arch.num_channels,
        "layer_norm_eps": arch.layer_norm_eps,
        "hidden_act": "gelu",
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    if arch.representation_size:
        details.update(pooler_output_size=arch.representation_size, pooler_act="tanh")
    if arch.num_labels:
        details["id2label"] = {str(label): name for label, name in enumerate(names)}
        details["label2id"] = {name: label for label, name in enumerate(names)}
    if arch.num_labels and card.multi_label:
        details["problem_type"] = "multi_label_classification"
    return details


def _size(pair: Any) -> Any:
    return pair[0] if pair[0] == pair[1] else list(pair)
