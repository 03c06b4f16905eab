"""Hugging Face's ViT and DeiT folders: config.json beside safetensors or `.bin` files, whole or in shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

from errors import UserError
from models.architecture import Architecture
from weights.card import ModelCard
from weights.hugging_face_names import foreign_names, plain_name
from weights.hugging_face_pictures import read_preparation
from weights.json_file import read_json
from weights.pickled import read_bins
from weights.saved_model import NamedTensors, SavedModel
from weights.tensor_files import open_tensor_files
from weights.translation import Recipe, translate

FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
MODEL_TYPES = ("vit", "deit")
# Keys of config.json that change the numbers, and the one value of each that this model computes.
FIXED = {"hidden_act": "gelu", "qkv_bias": True, "pooler_act": "tanh"}
# transformers' own values, for what a config.json leaves out.
DEFAULTS = {"num_attention_heads": 12, "layer_norm_eps": 1e-12, "image_size": 224, "patch_size": 16}
UNUSED = ("embeddings.mask_token",)  # of pretraining by masking alone


def open_hugging_face(source: str, folder: Path) -> SavedModel:
    """Raises UserError for what is missing, damaged, or no ViT that this model can compute, naming it."""
    config = read_json(folder / "config.json")
    _check(folder / "config.json", config)
    foreign = rename(source, open_weights(folder))
    arch = _architecture(folder / "config.json", config, foreign.shapes)
    recipes = {name: Recipe(parts) for name, parts in foreign_names(arch).items()}
    ignored = (*UNUSED, *_unused_pooler(foreign))
    weights = translate(source, foreign, recipes, ignored)
    prepared = read_preparation(folder, arch.image_size)
    arch = Architecture(**{**vars(arch), "pixel_mean": prepared.mean, "pixel_std": prepared.std})
    names = _class_names(config, arch.num_labels)
    multi_label = config.get("problem_type") == "multi_label_classification"
    card = ModelCard(arch, prepared.eval_crop, prepared.squash, prepared.interpolation, multi_label, names)
    return SavedModel(source, f"Hugging Face {config['model_type']}", card, weights, prepared.notes)


def _check(path: Path, config: Dict[str, Any]) -> None:
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise UserError(f"{path} is of model_type {model_type}, not one of {', '.join(MODEL_TYPES)}.")
    for key, wanted in FIXED.items():
        if config.get(key, wanted) != wanted:
            raise UserError(
                f"{path} has {key} = {config[key]}; the model here knows {wanted} alone.\n"
                "       Its logits would not be those of the checkpoint: use another one."
            )


def open_weights(folder: Path) -> NamedTensors:
    """All tensors of a folder under their own names. Raises UserError where there are none, or a shard is missing."""
    found = next((name for name in FILES if (folder / name).is_file()), None)
    if found is None:
        raise UserError(f"{folder} has no weights: none of {', '.join(FILES)}.")
    path = folder / found
    names = [found]
    weight_map = None
    if found.endswith(".index.json"):
        weight_map = read_json(path).get("weight_map")
        if not isinstance(weight_map, dict) or not all(_is_plain(name) for name in weight_map.values()):
            raise UserError(f"{path} is damaged: its weight_map names no files.\n       Use another checkpoint.")
        names = sorted(set(weight_map.values()))
    paths = [folder / name for name in names]
    tensors = read_bins(paths) if ".bin" in found else open_tensor_files(paths)
    missing = sorted(set(weight_map or ()).difference(tensors.shapes))
    if missing:
        raise UserError(f"{path} names {missing[0]}, which no shard holds.\n       Use another checkpoint.")
    return tensors


def _is_plain(name: object) -> bool:
    """A file beside the index, not somewhere else on this machine."""
    return isinstance(name, str) and Path(name).name == name


def rename(source: str, tensors: NamedTensors) -> NamedTensors:
    """The same under the names of transformers 4, without the model's own."""
    recipes: Dict[str, Recipe] = {}
    for name in tensors.shapes:
        plain = plain_name(name)
        if plain in recipes:
            raise UserError(f"{source} holds both {recipes[plain].names[0]} and {name}, which are the same parameter.")
        recipes[plain] = Recipe((name,))
    return translate(source, tensors, recipes)


def _unused_pooler(foreign: NamedTensors) -> List[str]:
    """A classifier reads past the pooler, which some files hold all the same."""
    heads = ("classifier.weight", "cls_classifier.weight")
    return [name for name in foreign.shapes if name.startswith("pooler.") and any(h in foreign.shapes for h in heads)]


def _architecture(path: Path, config: Dict[str, Any], shapes: Any) -> Architecture:
    """Sizes from the weights, what weights do not show from the config."""
    has_two_heads = "cls_classifier.weight" in shapes
    head = shapes.get("cls_classifier.weight" if has_two_heads else "classifier.weight")
    details = {**DEFAULTS, **config}
    try:
        width, channels, rows, columns = shapes["embeddings.patch_embeddings.projection.weight"]
        arch = Architecture(
            image_size=_pair(details["image_size"]),
            patch_size=(rows, columns),
            num_channels=channels,
            embed_dim=width,
            depth=len({name.split(".")[2] for name in shapes if name.startswith("encoder.layer.")}),
            num_heads=int(details["num_attention_heads"]),
            mlp_dim=shapes["encoder.layer.0.intermediate.dense.weight"][0],
            num_labels=head[0] if head else 0,
            representation_size=None if head else _first(shapes.get("pooler.dense.bias")),
            distillation=_distillation(config, has_two_heads),
            layer_norm_eps=float(details["layer_norm_eps"]),
        )
        tokens = shapes["embeddings.position_embeddings"][1]
    except (KeyError, IndexError) as error:
        raise UserError(f"{path.parent} is not a ViT with Hugging Face's names: it lacks {error.args[0]}.") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} does not describe the ViT beside it ({error}).\n       Use another one.") from error
    _check_sizes(path, details, arch, tokens)
    return arch


def _check_sizes(path: Path, details: Dict[str, Any], arch: Architecture, tokens: int) -> None:
    sizes = {
        "patch_size": (_pair(details["patch_size"]), arch.patch_size),
        "hidden_size": (details.get("hidden_size", arch.embed_dim), arch.embed_dim),
        "num_hidden_layers": (details.get("num_hidden_layers", arch.depth), arch.depth),
        "intermediate_size": (details.get("intermediate_size", arch.mlp_dim), arch.mlp_dim),
        "image_size": (arch.num_tokens, tokens),
    }
    for key, (said, found) in sizes.items():
        if said != found:
            what = f"makes {said} tokens" if key == "image_size" else f"= {said}"
            raise UserError(f"{path} has a {key} that {what}, the weights beside it {found}.\n       Use another one.")
    if arch.num_heads < 1 or arch.embed_dim % arch.num_heads:
        raise UserError(f"{path} has num_attention_heads = {arch.num_heads}, which do not divide {arch.embed_dim}.")


def _distillation(config: Dict[str, Any], has_two_heads: bool) -> str:
    if config["model_type"] == "vit":
        return "none"
    return "heads" if has_two_heads else "token"


def _pair(size: Union[int, List[int]]) -> Tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _first(shape: Optional[Tuple[int, ...]]) -> Optional[int]:
    return shape[0] if shape else None


def _class_names(config: Dict[str, Any], num_labels: int) -> Tuple[str, ...]:
    """By label; nothing where transformers made them up (LABEL_0, …)."""
    id2label = config.get("id2label")
    if not isinstance(id2label, dict):
        return ()
    names = tuple(str(id2label.get(str(label), f"LABEL_{label}")) for label in range(num_labels))
    return () if all(name == f"LABEL_{label}" for label, name in enumerate(names)) else names
