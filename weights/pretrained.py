"""Starts a run from saved weights: what `--pretrained-checkpoint` names, checked against the config and loaded."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Dict, List, Sequence, Tuple

import torch

from errors import UserError, nearest
from models.architecture import architecture_of
from models.vit import VisionTransformer
from weights.opening import open_model
from weights.saved_model import NamedTensors, SavedModel

if TYPE_CHECKING:
    from config import Config
    from runtime.base import Runtime


def open_pretrained(config: Config) -> SavedModel:
    """Opens the config's `pretrained_checkpoint`; raises UserError for what is no checkpoint."""
    try:
        return open_model(config.pretrained_checkpoint, config.use_ema)
    except UserError as error:
        scratch = '\n       Or train from scratch with --pretrained-checkpoint "".' if config.trains else ""
        raise UserError(f"pretrained_checkpoint = {error}{scratch}") from error


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
    """Loads saved weights into a model with its initial weights; gives notes on what was left out.

    A head for another number of classes stays as drawn. Raises UserError for any other parameter that does not fit.
    """
    wanted = model_shapes(config)
    skipped, notes = _reconcile(saved.source, saved.weights, wanted)
    names = [name for name in runtime.parameter_names() if name not in skipped]
    runtime.load_weights(saved.weights.read(names))
    return [*saved.notes, *notes]


def model_shapes(config: Config) -> Dict[str, Tuple[int, ...]]:
    """Every parameter of the whole model, by name."""
    with torch.device("meta"):
        model = VisionTransformer(architecture_of(config))
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _reconcile(source: str, found: NamedTensors, wanted: Dict[str, Tuple[int, ...]]) -> Tuple[List[str], List[str]]:
    """Names that keep their initial weights, and what to say about it."""
    differing = [name for name, shape in wanted.items() if found.shapes.get(name) != shape]
    new_head = [name for name in differing if name.startswith("head.")]
    others = [name for name in differing if name not in new_head]
    surplus = [name for name in found.shapes if name not in wanted]
    dropped = [name for name in surplus if name.startswith("pre_logits.")]
    if others:
        raise UserError(_misfit(source, others[0], found, wanted))
    if len(surplus) > len(dropped):
        extra = next(name for name in surplus if name not in dropped)
        raise UserError(
            f"pretrained_checkpoint = {source} holds {extra}, which this model has no place for."
            f"{nearest(extra, wanted)}\n       Names must be timm's; num_hidden_layers must be that of the checkpoint."
        )
    notes = []
    if new_head:
        classes = wanted["head.bias"][0]
        before = found.shapes.get("head.bias")
        notes.append(f"new head for {classes} classes (the checkpoint has {before[0] if before else 'no head'})")
    if dropped:
        notes.append("representation layer of the checkpoint left out (representation_size is not set)")
    return new_head, notes


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
