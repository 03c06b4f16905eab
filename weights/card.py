"""What a model is besides its weights: sizes, how pictures are prepared for it, and what its classes are called."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Dict, Mapping, Tuple

from models.architecture import Architecture, architecture_of

if TYPE_CHECKING:
    from config import Config

# Of an architecture, what the trained weights depend on: not how they were trained, nor how they are computed.
ARCHITECTURE_FIELDS = (
    *("image_size", "patch_size", "num_channels", "pixel_mean", "pixel_std", "embed_dim", "depth", "num_heads"),
    *("mlp_dim", "num_labels", "representation_size", "distillation", "layer_norm_eps"),
)
# The same; cards of the time before these were there leave them out, for their defaults.
NEWER_FIELDS = (
    *("global_pool", "fc_norm", "class_token", "num_register_tokens", "pos_embed", "prefix_positions", "layer_scale"),
)


@dataclass(frozen=True)
class ModelCard:
    """All that must be known to use saved weights. 0 of `arch.num_heads` means unknown, of `arch.num_labels` no head."""

    arch: Architecture
    eval_crop: float = 0.875  # share of the short side (with `squash`: of both) that the centre crop keeps
    squash: bool = False  # pictures are resized to a square whatever their shape, as Hugging Face does
    interpolation: str = "bilinear"  # or bicubic, antialiased
    multi_label: bool = False  # probabilities are sigmoids, a picture may have several labels
    class_names: Tuple[str, ...] = ()  # by label; empty where they are not known

    def to_json(self) -> Dict[str, Any]:
        """A dictionary that `from_json` takes back."""
        details = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "arch"}
        sizes = asdict(self.arch)
        return {**{name: sizes[name] for name in (*ARCHITECTURE_FIELDS, *NEWER_FIELDS)}, **details}

    @classmethod
    def from_json(cls, details: Mapping[str, Any]) -> ModelCard:
        """Raises KeyError for what is missing, TypeError or ValueError for what is no card."""
        values: Dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in details.items()
        }
        sizes = {name: values[name] for name in ARCHITECTURE_FIELDS}
        arch = Architecture(**sizes, **{name: values[name] for name in NEWER_FIELDS if name in values})
        return cls(arch, **{field.name: values[field.name] for field in fields(cls) if field.name != "arch"})


def card_of(config: Config, class_names: Tuple[str, ...] = (), multi_label: bool = False) -> ModelCard:
    """The card of the model that a config trains, on data with these classes."""
    return ModelCard(
        architecture_of(config),
        config.eval_crop,
        interpolation=config.interpolation,
        multi_label=multi_label,
        class_names=class_names,
    )
