"""What `--pretrained-checkpoint` names: this project's run and step folders, and `.safetensors` files with timm's names."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Dict, List, Sequence, Tuple

import torch

from errors import UserError, nearest, user_path
from models.architecture import architecture_of
from models.vit import VisionTransformer
from weights.tensor_files import TensorFiles, open_indexed, open_tensor_files

if TYPE_CHECKING:
    from config import Config
    from runtime.base import Runtime


def find_pretrained(config: Config) -> TensorFiles:
    """Opens the config's `pretrained_checkpoint`; raises UserError saying what this version reads."""
    name = config.pretrained_checkpoint
    path = _one_later(user_path(name))
    if path.is_dir():
        folder = _step_folder(path)
        if folder is not None:
            return open_indexed(folder, "ema" if _takes_average(config, folder) else "model")
    elif path.suffix == ".safetensors" and path.is_file():
        return open_tensor_files([path])
    what = (
        "holds no checkpoint of this project" if path.is_dir() else "is not a step folder, a run folder or a file here"
    )
    if path.exists() and not path.is_dir():
        what = "is a file of another kind"
    raise UserError(
        f"pretrained_checkpoint = {name} {what}.\n"
        "       Name a run folder, a step folder or a .safetensors file with timm's parameter names (this version reads\n"
        "       no other format and no hub)"
        + (', or train from scratch with --pretrained-checkpoint "".' if config.trains else ".")
    )


def _one_later(path: Path) -> Path:
    """step_<N + 1> where step_<N> is not there: the public app counts from 0, and configs name its last step so."""
    match = re.fullmatch(r"step_(\d+)", path.name)
    if match is None or path.exists():
        return path
    later = path.with_name(f"step_{int(match.group(1)) + 1}")
    return later if later.is_dir() else path


def _step_folder(path: Path) -> Path | None:
    for candidate in (path, path / "best", path / "latest"):
        if (candidate / "model.safetensors.index.json").is_file():
            return candidate
    return None


def _takes_average(config: Config, folder: Path | None) -> bool:
    """Whether a step folder's averaged weights are meant: those that its run was judged by."""
    return config.use_ema and folder is not None and (folder / "ema.safetensors.index.json").is_file()


def class_notes(config: Config, data_names: Sequence[str]) -> List[str]:
    """What a user should know where the checkpoint's classes, by label, are not the data's; nothing if either has no names."""
    known = _class_names(config)
    if not known or not data_names:
        return []
    pairs = itertools.zip_longest(known, data_names)
    differing = [(label, *pair) for label, pair in enumerate(pairs) if pair[0] != pair[1]]
    if not differing:
        return []
    label, theirs, ours = differing[0]
    first = f"first label {label}, {theirs or 'none'} there, {ours or 'none'} in the data"
    return [f"the checkpoint was trained on other classes: {len(differing)} differ, {first}"]


def _class_names(config: Config) -> Tuple[str, ...]:
    folder = _step_folder(_one_later(user_path(config.pretrained_checkpoint)))
    if folder is None:
        return ()
    try:
        return tuple(json.loads((folder / "run.json").read_text())["class_names"])
    except (OSError, ValueError, KeyError, TypeError):  # older, or weights alone
        return ()


def load_pretrained(config: Config, runtime: Runtime) -> List[str]:
    """Loads `config.pretrained_checkpoint` into a model with its initial weights; gives notes on what was left out.

    A head for another number of classes stays as drawn. Raises UserError for any other parameter that does not fit.
    """
    found = find_pretrained(config)
    wanted = model_shapes(config)
    skipped, notes = _reconcile(config.pretrained_checkpoint, found, wanted)
    if _takes_average(config, _step_folder(_one_later(user_path(config.pretrained_checkpoint)))):
        notes.append("the checkpoint's averaged weights are used (--use-ema false takes the others)")
    names = [name for name in runtime.parameter_names() if name not in skipped]
    runtime.load_weights(found.read(names))
    return notes


def model_shapes(config: Config) -> Dict[str, Tuple[int, ...]]:
    """Every parameter of the whole model, by name."""
    with torch.device("meta"):
        model = VisionTransformer(architecture_of(config))
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _reconcile(source: str, found: TensorFiles, wanted: Dict[str, Tuple[int, ...]]) -> Tuple[List[str], List[str]]:
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


def _misfit(source: str, name: str, found: TensorFiles, wanted: Dict[str, Tuple[int, ...]]) -> str:
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
