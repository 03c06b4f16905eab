"""How Hugging Face prepares pictures for a model (`preprocessor_config.json`), against a model's card."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Tuple

from errors import UserError
from weights.card import ModelCard
from weights.json_file import read_json

FILE = "preprocessor_config.json"
RESAMPLING = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
BY_NAME = {name: number for number, name in RESAMPLING.items()}


class Preparation(NamedTuple):
    """What a card says of pictures, and what a user should know of how it was found out."""

    mean: Tuple[float, ...]
    std: Tuple[float, ...]
    eval_crop: float
    squash: bool
    interpolation: str
    notes: Tuple[str, ...]


def read_preparation(folder: Path, image_size: Tuple[int, int]) -> Preparation:
    """Raises UserError for a file that is damaged, or prepares pictures in a way that there is none for here."""
    path = folder / FILE
    if not path.exists():
        note = f"no {FILE}: pictures are taken to be squashed, with mean and deviation 0.5, as transformers does then"
        return Preparation((0.5,), (0.5,), 1.0, True, "bilinear", (note,))
    details = read_json(path)
    try:
        mean, std = _normalization(details)
        eval_crop, squash, notes = _crop(details, image_size)
        resample = int(details.get("resample", 2))
        return Preparation(mean, std, eval_crop, squash, RESAMPLING[resample], tuple(notes))
    except KeyError as error:
        raise UserError(
            f"{path} has {error}, which is unknown here.\n       Use bilinear (2) or bicubic (3)."
        ) from error
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise UserError(f"{path} is damaged ({error}).\n       Use another checkpoint.") from error


def _normalization(details: Dict[str, Any]) -> Tuple[Tuple[float, ...], Tuple[float, ...]]:
    """Mean and deviation of pixels in [0, 1], whatever range the file has them for."""
    mean, std = details.get("image_mean", [0.5]), details.get("image_std", [0.5])
    if not details.get("do_normalize", True):
        mean, std = [0.0], [1.0]
    scale = float(details.get("rescale_factor", 1 / 255)) if details.get("do_rescale", True) else 1.0
    if abs(scale * 255 - 1) < 1e-6:
        scale = 1 / 255
    mean, std = (values if isinstance(values, list) else [values] for values in (mean, std))
    mean, std = (tuple(float(value) / (scale * 255) for value in values) for values in (mean, std))
    return _shortest(mean), _shortest(std)


def _shortest(values: Tuple[float, ...]) -> Tuple[float, ...]:
    return values[:1] if len(set(values)) == 1 else values


def _crop(details: Dict[str, Any], image_size: Tuple[int, int]) -> Tuple[float, bool, List[str]]:
    """Share of the side that the centre crop keeps, whether the picture is squashed before, and notes."""
    size = details.get("size", image_size[0])
    if isinstance(size, int):
        size = {"height": size, "width": size}
    squash = "height" in size
    side = int(size["height"] if squash else size["shortest_edge"])
    notes = []
    kept = side
    if details.get("do_center_crop", False):
        crop = details.get("crop_size", side)
        kept = int(crop if isinstance(crop, int) else crop["height"])
    if kept != image_size[0]:
        notes.append(f"{FILE} makes pictures of {kept} pixels, the model takes {image_size[0]}")
    return min(1.0, kept / side), squash, notes


def preparation_json(card: ModelCard) -> Dict[str, Any]:
    """The file's content for a card, as `ViTImageProcessor` (squash) or `DeiTImageProcessor` (crop) takes it."""
    channels, (height, width) = card.arch.num_channels, card.arch.image_size
    size: Dict[str, int] = {"height": height, "width": width}
    details: Dict[str, Any] = {"image_processor_type": "ViTImageProcessor"}
    if card.eval_crop < 1 or not card.squash:
        sides = [int(side / card.eval_crop) for side in (height, width)]
        before = {"height": sides[0], "width": sides[1]} if card.squash else {"shortest_edge": min(sides)}
        details = {"image_processor_type": "DeiTImageProcessor", "do_center_crop": True, "crop_size": size}
        size = before
    return {
        **details,
        "do_resize": True,
        "size": size,
        "resample": BY_NAME[card.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": _for_channels(card.arch.pixel_mean, channels),
        "image_std": _for_channels(card.arch.pixel_std, channels),
    }


def _for_channels(values: Tuple[float, ...], channels: int) -> List[float]:
    return [values[channel % len(values)] for channel in range(channels)]
