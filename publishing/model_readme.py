"""The model card of a trained model, README.md of its Hugging Face folder: what it is, what it was trained with, its figures."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any, Dict, List

import yaml

from errors import user_path
from weights.hub import is_hub_name

if TYPE_CHECKING:
    from checkpoint import Progress
    from config import Config
    from weights.card import ModelCard

MARK = "<!-- Written by PipeViT: it may be replaced when the run goes on. -->"
MOST_NAMES = 100
SHOWN = (  # of the recipe
    *("optimizer", "learning_rate", "lr_schedule", "warmup_steps", "weight_decay", "layer_decay", "max_grad_norm"),
    *("epochs", "training_steps", "global_batch_size", "loss", "label_smoothing", "mixup", "cutmix", "extra_aug"),
    *("freeze_layers", "linear_probe", "ema_decay", "precision", "random_seed"),
)
OFF = (None, False, 0)


def model_readme(config: Config, card: ModelCard, progress: Progress) -> str:
    """Front matter as the hub reads it, then text. What a user named is escaped."""
    front = yaml.safe_dump(_front_matter(config, progress), sort_keys=False, allow_unicode=True)
    arch = card.arch
    start = f"Fine-tuned from {_escaped(_weights_name(config))}" if config.pretrained_checkpoint else "Trained"
    sizes = (
        f"{arch.depth} blocks of width {arch.embed_dim} and {arch.num_heads} heads, images of {arch.image_size[0]} x "
        f"{arch.image_size[1]} pixels in patches of {arch.patch_size[0]} x {arch.patch_size[1]}"
    )
    lines = [
        f"---\n{front}---\n{MARK}\n\n# {_escaped(_title(config))}\n",
        f"A Vision Transformer: {sizes}. {start} on {_escaped(_data_name(config))}.\n",
        "## Result\n",
        *_result(card, progress),
        "\n## Use\n",
        "```python",
        "from transformers import pipeline",
        f'pipeline("image-classification", "{config.push_to_hub or "this folder"}")("picture.jpg")',
        "```\n",
        f"## Classes\n\n{_classes(card)}\n",
        "## Training\n",
        "| key | value |\n|---|---|",
        *(f"| {name} | {_escaped(getattr(config, name))} |" for name in SHOWN if getattr(config, name) not in OFF),
        "",
    ]
    return "\n".join(lines)


def _front_matter(config: Config, progress: Progress) -> Dict[str, Any]:
    front: Dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "image-classification", "tags": ["vit"]}
    if config.pretrained_checkpoint and is_hub_name(config.pretrained_checkpoint):
        front["base_model"] = config.pretrained_checkpoint
    if _is_hub_set(config):
        front["datasets"] = [config.dataset_path]
    if progress.best_top1 is not None:
        front["metrics"] = ["accuracy"]
    return front


def _is_hub_set(config: Config) -> bool:
    return config.dataset == "hub" and bool(config.dataset_path) and not user_path(config.dataset_path or "").exists()


def _title(config: Config) -> str:
    return (config.push_to_hub or config.run_name or config.name).split("/")[-1]


def _weights_name(config: Config) -> str:
    name = config.pretrained_checkpoint
    return name if is_hub_name(name) else user_path(name).name


def _data_name(config: Config) -> str:
    """A local path is nobody else's business, its last part tells enough."""
    if config.dataset_path is None or _is_hub_set(config):
        return config.dataset_path or config.dataset
    return user_path(config.dataset_path).name or config.dataset


def _result(card: ModelCard, progress: Progress) -> List[str]:
    if progress.best_top1 is None:
        return [f"Weights after {progress.step:,} steps. The run was not validated."]
    what = "Share of labels that are right" if card.multi_label else "Accuracy"
    at = f"at step {progress.best_step:,} of {progress.step:,}"
    figure = f"{what} on the validation set: {100 * progress.best_top1:.2f} %, {at}"
    return [
        f"{figure}: the best of the run, and measured by the run itself. The weights are that step's where it was kept."
    ]


def _classes(card: ModelCard) -> str:
    names = [_escaped(name) for name in card.class_names[:MOST_NAMES]]
    more = len(card.class_names) - len(names)
    return (
        ", ".join(names) + (f", and {more:,} more (config.json)" if more else "")
        if names
        else (f"{card.arch.num_labels:,} classes without names.")
    )


def _escaped(value: object) -> str:
    """As Markdown and its tables show it, whatever it holds."""
    return html.escape(" ".join(str(value).split()), quote=False).replace("|", "\\|")
