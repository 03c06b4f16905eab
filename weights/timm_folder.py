"""timm's folders, as its models are on the hub: config.json with `architecture` and `pretrained_cfg`, and model.safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from torch import Tensor

from errors import UserError
from models.architecture import Architecture
from weights.card import ModelCard
from weights.hugging_face import open_weights
from weights.json_file import read_json, write_json
from weights.saved_model import SavedModel
from weights.timm_file import architecture_of_shapes, card_in_header, write_timm_file
from weights.timm_names import heads_of, name_of

LAYER_NORM_EPS = 1e-6  # of timm's ViTs; a folder has no place for another
# Arguments that say a model's size, or change nothing in evaluation.
SIZE_ARGUMENTS = (
    *("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "num_classes", "in_chans"),
    *("class_token", "reg_tokens", "no_embed_class", "init_values", "fc_norm"),
)
IDLE_ARGUMENTS = ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")
NEUTRAL = {"dynamic_img_size": False, "strict_img_size": True, "qkv_bias": True}
POOLS = ("token", "avg")


def open_timm_folder(source: str, folder: Path) -> SavedModel:
    """Heads come from the architecture's name or arguments: 0 where neither says them.

    Raises UserError for what is damaged, and for features that the model here lacks, naming them.
    """
    path, own_card = folder / "config.json", _own_card(folder)
    config = read_json(path)
    if own_card is not None:  # what was written here says more than timm's config has room for
        return SavedModel(source, f"timm {config.get('architecture')}", own_card, open_weights(folder))
    try:
        name, pictures = str(config["architecture"]), dict(config.get("pretrained_cfg", config))
        arguments = dict(config.get("model_args") or {})
        _check(path, config, arguments)
        weights = open_weights(folder)
        shown = architecture_of_shapes(source, weights.shapes, _image_size(arguments, pictures))
        heads = int(arguments.get("num_heads") or heads_of(name, shown.embed_dim))
        preparation = _preparation(pictures)
        said = {"num_heads": heads, "layer_norm_eps": LAYER_NORM_EPS, **_tokens(path, config, arguments, shown)}
        arch = Architecture(**{**vars(shown), **preparation[0], **said})
        names = _class_names(config, pictures)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{path} is damaged ({error!r}).\n       Use another checkpoint.") from error
    card = ModelCard(arch, class_names=names if len(names) == arch.num_labels else (), **preparation[1])
    return SavedModel(source, f"timm {name}", card, weights, tuple(_notes(pictures)))


def _own_card(folder: Path) -> Optional[ModelCard]:
    path = folder / "model.safetensors"
    return card_in_header(path) if path.is_file() else None


def _check(path: Path, config: Dict[str, Any], arguments: Dict[str, Any]) -> None:
    """Raises UserError for whatever else changes the numbers. Weights show most features themselves."""
    pool = config.get("global_pool") or arguments.get("global_pool", "token")
    for name, value in {**arguments, "global_pool": pool}.items():
        if name in SIZE_ARGUMENTS or name in IDLE_ARGUMENTS or value == NEUTRAL.get(name) or value in (None, False):
            continue
        if name == "global_pool" and value in POOLS:
            continue
        if name == "dynamic_img_size" or (name == "strict_img_size" and not value):
            continue
        raise UserError(
            f"{path} has {name} = {value}, which the model here does not know.\n"
            "       Its logits would not be those of the checkpoint: use another one."
        )


def _tokens(path: Path, config: Dict[str, Any], arguments: Dict[str, Any], shown: Architecture) -> Dict[str, Any]:
    """What shapes leave open of how the head reads the tokens. Raises UserError where the weights contradict the config."""
    pool = str(config.get("global_pool") or arguments.get("global_pool") or "token")
    if pool == "token" and shown.global_pool == "avg":
        what = "a norm after pooling (fc_norm)" if shown.class_token else "no class token"
        raise UserError(
            f"{path} has global_pool = token, but the weights beside it have {what}.\n"
            "       The model here pools so by avg alone: use another one."
        )
    scale = arguments.get("init_values")
    found: Dict[str, Any] = {"global_pool": pool}
    if shown.layer_scale is not None and scale:
        found["layer_scale"] = float(scale)
    return found


def _image_size(arguments: Dict[str, Any], pictures: Dict[str, Any]) -> Optional[Tuple[int, int]]:
    size = arguments.get("img_size")
    if size is None and "input_size" in pictures:
        size = pictures["input_size"][1:]
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _preparation(pictures: Dict[str, Any]) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """What the architecture and the card say of pictures."""
    pixels = {
        "pixel_mean": tuple(map(float, pictures.get("mean", (0.5,)))),
        "pixel_std": tuple(map(float, pictures.get("std", (0.5,)))),
    }
    interpolation = pictures.get("interpolation", "bicubic")
    details = {
        "eval_crop": float(pictures.get("crop_pct", 0.875)),
        "squash": pictures.get("crop_mode", "center") == "squash",
        "interpolation": interpolation if interpolation in ("bilinear", "bicubic") else "bicubic",
    }
    return pixels, details


def _notes(pictures: Dict[str, Any]) -> List[str]:
    notes = []
    if pictures.get("interpolation", "bicubic") not in ("bilinear", "bicubic"):
        notes.append(f"pictures are resized by {pictures['interpolation']} there, by bicubic here")
    if pictures.get("crop_mode", "center") not in ("center", "squash"):
        notes.append(f"pictures are cropped by {pictures['crop_mode']} there, in the centre here")
    return notes


def _class_names(config: Dict[str, Any], pictures: Dict[str, Any]) -> Tuple[str, ...]:
    names = config.get("label_names") or pictures.get("label_names") or ()
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names, key=int)]
    return tuple(map(str, names))


def write_timm_folder(folder: Path, card: ModelCard, tensors: Mapping[str, Tensor]) -> List[str]:
    """A folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` opens; gives notes on what differs there.

    Raises UserError for a model that timm does not have.
    """
    arch = card.arch
    if arch.representation_size:
        raise UserError("timm has no representation layer (pre_logits) any more.\n       Write another format.")
    if arch.distillation != "none" and arch.num_register_tokens:
        raise UserError("timm has no model with a distillation token and registers.\n       Write another format.")
    if arch.distillation == "token":
        raise UserError("timm has a distillation token with a head of its own only.\n       Write another format.")
    write_json(folder / "config.json", _config(card))
    write_timm_file(folder / "model.safetensors", card, tensors)
    if arch.layer_norm_eps == LAYER_NORM_EPS:
        return []
    eps = f"{arch.layer_norm_eps:g}"
    remedy = f"give create_model norm_layer=partial(torch.nn.LayerNorm, eps={eps}) for the same logits"
    return [f"timm computes LayerNorm with epsilon 1e-06, this model with {eps}: {remedy}"]


def _ratio(mlp_dim: int, embed_dim: int) -> float:
    """What timm makes `mlp_dim` of again: it rounds the product down."""
    ratio = mlp_dim / embed_dim
    return ratio if int(embed_dim * ratio) == mlp_dim else (mlp_dim + 0.5) / embed_dim


def _config(card: ModelCard) -> Dict[str, Any]:
    arch = card.arch
    channels = range(arch.num_channels)
    arguments = {
        "img_size": list(arch.image_size),
        "patch_size": list(arch.patch_size),
        "embed_dim": arch.embed_dim,
        "depth": arch.depth,
        "num_heads": arch.num_heads,
        "mlp_ratio": _ratio(arch.mlp_dim, arch.embed_dim),
        **_token_arguments(arch),
    }
    pictures = {
        "input_size": [arch.num_channels, *arch.image_size],
        "num_classes": arch.num_labels,
        "mean": [arch.pixel_mean[channel % len(arch.pixel_mean)] for channel in channels],
        "std": [arch.pixel_std[channel % len(arch.pixel_std)] for channel in channels],
        "interpolation": card.interpolation,
        "crop_pct": card.eval_crop,
        "fixed_input_size": True,
        "crop_mode": "squash" if card.squash else "center",
        "pool_size": None,
        "first_conv": "patch_embed.proj",
        "classifier": ["head", "head_dist"] if arch.distillation == "heads" else "head",
    }
    details = {"architecture": name_of(arch), "num_classes": arch.num_labels, "num_features": arch.embed_dim}
    if card.class_names:
        details["label_names"] = list(card.class_names)
    return {**details, "global_pool": arch.global_pool, "model_args": arguments, "pretrained_cfg": pictures}


def _token_arguments(arch: Architecture) -> Dict[str, Any]:
    """What differs from timm's plain ViT. Sines and cosines are weights like others there."""
    arguments: Dict[str, Any] = {}
    if arch.global_pool != "token":
        arguments.update(global_pool=arch.global_pool, fc_norm=arch.fc_norm)
    if not arch.class_token:
        arguments["class_token"] = False
    if arch.num_register_tokens:
        arguments["reg_tokens"] = arch.num_register_tokens
    if arch.num_prefix_tokens and not arch.prefix_positions:
        arguments["no_embed_class"] = True
    if arch.layer_scale is not None:
        arguments["init_values"] = arch.layer_scale
    return arguments
