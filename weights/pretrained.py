"""Starts a run from saved weights: what `--pretrained-checkpoint` names, checked against the config and loaded."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Sequence, Tuple

from torch import Tensor

from errors import UserError, nearest
from models.architecture import Architecture, architecture_of
from models.initialization import sincos_positions
from weights.opening import open_model
from weights.resize import resize_positions
from weights.saved_model import NamedTensors, SavedModel
from weights.whole_model import parameter_shapes

if TYPE_CHECKING:
    from config import Config
    from runtime.base import Runtime

ROUNDING = 2**-7  # of a number up to 1 that was stored in 16 bits
HEADS = ("head.", "head_dist.")
TOKEN_KEYS = ("class_token", "num_register_tokens", "prefix_positions")  # which shapes show


def open_pretrained(config: Config) -> SavedModel:
    """Opens the config's `pretrained_checkpoint`; raises UserError for what is no checkpoint, or is of another model."""
    try:
        saved = open_model(config.pretrained_checkpoint, config.use_ema)
    except UserError as error:
        scratch = '\n       Or train from scratch with --pretrained-checkpoint "".' if config.trains else ""
        raise UserError(f"pretrained_checkpoint = {error}{scratch}") from error
    _check_unseen(saved, config)
    return saved


def _says_all(saved: SavedModel) -> bool:
    """Whether the checkpoint says more of its model than shapes do."""
    return saved.card.arch.num_heads > 0


def _one_side(value: Any) -> Any:
    """A square's side alone, as configs give it."""
    return value[0] if isinstance(value, tuple) and value[0] == value[1] else value


def _check_unseen(saved: SavedModel, config: Config) -> None:
    """Raises UserError for what differs and would load all the same, or not be understood from shapes."""
    theirs, ours = saved.card.arch, architecture_of(config)
    pairs: Dict[str, Tuple[Any, Any, Any]] = {
        "patches_size": (theirs.patch_size, ours.patch_size, config.patches_size),
        "distillation": (theirs.distillation, ours.distillation, config.distillation),
        **{key: (getattr(theirs, key), getattr(ours, key), getattr(config, key)) for key in TOKEN_KEYS},
    }
    if (theirs.layer_scale is None) != (ours.layer_scale is None):
        pairs["layer_scale"] = (theirs.layer_scale, ours.layer_scale, config.layer_scale)
    if theirs.num_prefix_tokens == 0 == ours.num_prefix_tokens:  # nothing to have or not to have one
        del pairs["prefix_positions"]
    if _says_all(saved):
        pairs["fc_norm"] = (theirs.fc_norm, ours.fc_norm, config.fc_norm)
        pairs["global_pool"] = (theirs.global_pool, ours.global_pool, config.global_pool)
    if _says_all(saved) and theirs.embed_dim == ours.embed_dim:
        pairs["num_attention_heads"] = (theirs.num_heads, ours.num_heads, config.num_attention_heads)
    if config.trains and not (theirs.fc_norm or ours.fc_norm):  # a head can learn to read otherwise
        pairs.pop("global_pool", None)
    differ = {key: (there, shown) for key, (there, here, shown) in pairs.items() if there != here}
    if differ:
        told = ", ".join(f"{key} = {_one_side(there)}, the config {shown}" for key, (there, shown) in differ.items())
        raise UserError(
            f"pretrained_checkpoint = {saved.source} has {told}.\n"
            f"       Set {' and '.join(differ)} as in the checkpoint; a run's own are in its config.yaml, for --config-file."
        )


def follow_checkpoint(saved: SavedModel, config: Config) -> Tuple[Config, List[str]]:
    """The config with the checkpoint's `layer_norm_eps`, which no shape shows, and notes on what differs in numbers.

    A flag keeps the config's. What a config file says gives way: it mostly comes from defaults that many configs share.
    """
    if not _says_all(saved):
        return config, []
    notes = []
    if saved.card.arch.global_pool != config.global_pool:
        notes.append(f"global_pool = {config.global_pool}, the checkpoint's head read by {saved.card.arch.global_pool}")
    eps = saved.card.arch.layer_norm_eps
    if eps != config.layer_norm_eps and "layer_norm_eps" in config.flags:
        notes.append(
            f"layer_norm_eps = {config.layer_norm_eps:g}, as the flag says; the checkpoint was trained with {eps:g}"
        )
    elif eps != config.layer_norm_eps:
        notes.append(
            f"layer_norm_eps = {eps:g}, as in the checkpoint (not {config.layer_norm_eps:g}; the flag keeps a value)"
        )
        config = config.model_copy(update={"layer_norm_eps": eps})
    for key, theirs, ours in (
        ("image_mean", saved.card.arch.pixel_mean, config.image_mean),
        ("image_std", saved.card.arch.pixel_std, config.image_std),
    ):
        if _for_channels(theirs, config.num_channels) != _for_channels(ours, config.num_channels):
            shown = " ".join(f"{value:g}" for value in theirs)
            notes.append(f"{key} is {' '.join(map(str, ours))}, the checkpoint was trained with {shown}")
    return config, notes


def _for_channels(values: Tuple[float, ...], channels: int) -> List[float]:
    return [round(values[channel % len(values)], 6) for channel in range(channels)]


def class_notes(saved: SavedModel, data_names: Sequence[str]) -> List[str]:
    """What a user should know where the checkpoint's classes, by label, are not the data's; nothing if either has no names."""
    known = saved.card.class_names
    if not known or not data_names:
        return []
    pairs = itertools.zip_longest(known, data_names)
    differing = [(label, *pair) for label, pair in enumerate(pairs) if pair[0] != pair[1]]
    if not differing:
        return []
    label, theirs, ours = differing[0]
    first = f"first label {label}, {theirs or 'none'} there, {ours or 'none'} in the data"
    return [f"the checkpoint was trained on other classes: {len(differing)} differ, {first}"]


def load_pretrained(saved: SavedModel, config: Config, runtime: Runtime) -> List[str]:
    """Loads saved weights into a model with its initial weights; gives notes on what was left out or changed.

    Position embeddings of another grid are resized; a head for another number of classes stays as drawn. Raises UserError for
    any other parameter that does not fit.
    """
    fit = _fit(saved, architecture_of(config))
    if fit.new and not config.trains:
        raise UserError(
            f"pretrained_checkpoint = {saved.source} has no head for num_labels = {config.num_labels} classes to validate with.\n"
            "       Set num_labels and representation_size as in the checkpoint, or train a head with finetune.py."
        )
    _check_fixed_positions(saved, config)
    fixed = ("pos_embed",) if config.pos_embed == "sincos2d" else ()  # which this grid has already
    names = [name for name in runtime.parameter_names() if name not in (*fit.new, *fixed)]
    tensors = saved.weights.read(names)
    if fit.resizes and "pos_embed" in tensors:
        tensors["pos_embed"] = _resized(tensors["pos_embed"], saved, config)
    runtime.load_weights(tensors)
    return [*saved.notes, *fit.notes(config.pos_embed_resize)]


def _resized(positions: Tensor, saved: SavedModel, config: Config) -> Tensor:
    theirs = saved.card.arch
    return resize_positions(positions, theirs.grid, config.grid, theirs.num_prefix_positions, config.pos_embed_resize)


def _check_fixed_positions(saved: SavedModel, config: Config) -> None:
    """Raises UserError where a model of fixed positions would get weights that were trained with others."""
    if config.pos_embed != "sincos2d" or saved.card.arch.embed_dim != config.hidden_size:
        return
    found, wanted = saved.weights.read(["pos_embed"])["pos_embed"].float(), sincos_positions(saved.card.arch)
    if found.shape != wanted.shape or float((found - wanted).abs().max()) > ROUNDING:
        raise UserError(
            f"pretrained_checkpoint = {saved.source} has learned positions, the config pos_embed = sincos2d.\n"
            "       Set pos_embed = learned."
        )


@dataclass(frozen=True)
class Fit:
    """How a checkpoint's parameters go into a model: those that keep their initial weights, and what to say about the rest."""

    new: Sequence[str]
    resizes: bool
    about: Sequence[str]

    def notes(self, method: str) -> List[str]:
        return [note.format(method=method) for note in self.about]


def _fit(saved: SavedModel, arch: Architecture) -> Fit:
    wanted, found = parameter_shapes(arch), saved.weights.shapes
    differing = [name for name, shape in wanted.items() if found.get(name) != shape]
    surplus = [name for name in found if name not in wanted]
    dropped = [name for name in surplus if name.startswith("pre_logits.")]
    # A bias alone is worth nothing, nor is a head that has learned to read what is left out here.
    has_new_head = bool(dropped) or any(name.startswith(HEADS) for name in differing)
    new_head = [name for name in wanted if name.startswith(HEADS) and has_new_head]
    grids = saved.card.arch.grid, arch.grid
    resizes = grids[0] != grids[1] and found.get("pos_embed", ())[2:] == (arch.embed_dim,)
    others = [name for name in differing if name not in new_head and not (resizes and name == "pos_embed")]
    if others:
        raise UserError(_misfit(saved.source, others[0], saved.weights, wanted))
    if len(surplus) > len(dropped):
        extra = next(name for name in surplus if name not in dropped)
        raise UserError(
            f"pretrained_checkpoint = {saved.source} holds {extra}, which this model has no place for."
            f"{nearest(extra, wanted)}\n       Names must be timm's; num_hidden_layers must be that of the checkpoint."
        )
    notes = _notes(new_head, dropped, wanted, found)
    if resizes:
        shown = [f"{rows}x{columns}" for rows, columns in grids]
        change = f"from {shown[0]} to {shown[1]} patches"
        is_fixed = arch.pos_embed == "sincos2d"
        notes.append(
            f"fixed positions made anew, {change}" if is_fixed else f"position embeddings resized {change} ({{method}})"
        )
    return Fit(new_head, resizes, notes)


def _notes(
    new_head: Sequence[str],
    dropped: Sequence[str],
    wanted: Mapping[str, Tuple[int, ...]],
    found: Mapping[str, Tuple[int, ...]],
) -> List[str]:
    notes = []
    if new_head:
        classes = wanted["head.bias"][0]
        before = found.get("head.bias")
        theirs = f"the checkpoint has {before[0] if before else 'no head'}"
        if before == wanted["head.bias"]:
            theirs = "the checkpoint's reads its representation layer"
        notes.append(f"new head for {classes} classes ({theirs})")
    if dropped:
        notes.append("representation layer of the checkpoint left out (representation_size is not set)")
    return notes


def _misfit(source: str, name: str, found: NamedTensors, wanted: Dict[str, Tuple[int, ...]]) -> str:
    shape = found.shapes.get(name)
    if shape is None:
        return (
            f"pretrained_checkpoint = {source} lacks {name}.{nearest(name, found.shapes)}\n"
            "       Names must be timm's; num_hidden_layers must be that of the checkpoint."
        )
    return (
        f"pretrained_checkpoint = {source} has {name} of shape {list(shape)}, the config makes it {list(wanted[name])}.\n"
        "       Set hidden_size, mlp_dim, patches_size and image_size as in the checkpoint; a run's are in its config.yaml."
    )
