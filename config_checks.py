"""What must hold between the keys of a config."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Iterator, NamedTuple, Sequence

if TYPE_CHECKING:
    from config import Config

HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")
TRAINING_COMMANDS = ("pretrain", "finetune")


class Mismatch(NamedTuple):
    """Keys that do not fit together: which, what is wrong, and what to do."""

    keys: Sequence[str]
    problem: str
    remedy: str


def mismatches(config: Config) -> Iterator[Mismatch]:
    """Everything that is wrong between keys which are each possible on their own."""
    yield from _in_the_model(config)
    yield from _in_the_stages(config)
    yield from _in_the_ranges(config)
    if config.trains:
        yield from _in_the_precision(config)
        yield from _in_the_freezing(config)
    if config.command in TRAINING_COMMANDS:
        yield from _in_the_training(config)


def _in_the_model(config: Config) -> Iterator[Mismatch]:
    heads = config.num_attention_heads
    for key in ("hidden_size", "mlp_dim"):
        size = getattr(config, key)
        if size % heads:
            near = max(1, round(size / heads)) * heads
            yield Mismatch(
                (key, "num_attention_heads"),
                f"{key} = {size} is not a multiple of num_attention_heads = {heads}.",
                f"Give heads that divide it, or e.g. {key} = {near}.",
            )
    for side in config.patch_size:
        if side < 1:
            yield Mismatch(
                ("patches_size",), f"patches_size = {config.patches_size} is not possible.", "Give 1 or more."
            )
        elif config.image_size % side:
            near = max(1, round(config.image_size / side)) * side
            yield Mismatch(
                ("image_size", "patches_size"),
                f"image_size = {config.image_size} is not a multiple of patches_size = {config.patches_size}.",
                f"Give a patch that divides the image, or e.g. image_size = {near}.",
            )
    if config.num_channels not in (1, 3):
        yield Mismatch(
            ("num_channels",), f"num_channels = {config.num_channels} is not possible.", "Give 3, or 1 for grey."
        )
    yield from _in_the_tokens(config)
    wrong = [block for block in config.recompute_mid_layers or () if not 0 <= block < config.num_hidden_layers]
    if wrong:
        yield Mismatch(
            ("recompute_mid_layers", "num_hidden_layers"),
            f"recompute_mid_layers = {list(config.recompute_mid_layers or ())} names block {wrong[0]}, "
            f"but num_hidden_layers = {config.num_hidden_layers} makes blocks 0 to {config.num_hidden_layers - 1}.",
            "Name blocks that exist, or give null.",
        )


def _in_the_tokens(config: Config) -> Iterator[Mismatch]:
    if config.global_pool == "token" and not config.class_token:
        yield Mismatch(
            ("global_pool", "class_token"),
            "global_pool = token reads the class token, but class_token = false leaves it out.",
            "Give global_pool = avg, or class_token = true.",
        )
    if config.distillation != "none" and config.global_pool == "avg":
        yield Mismatch(
            ("distillation", "global_pool"),
            f"distillation = {config.distillation} goes with heads that read tokens, not with global_pool = avg.",
            "Give distillation = none, or global_pool = token.",
        )
    if config.pos_embed == "sincos2d" and (config.hidden_size % 4 or config.hidden_size < 8):
        yield Mismatch(
            ("pos_embed", "hidden_size"),
            f"pos_embed = sincos2d needs a hidden_size that is a multiple of 4, from 8 on; it is {config.hidden_size}.",
            "Give pos_embed = learned, or such a width.",
        )


def _in_the_stages(config: Config) -> Iterator[Mismatch]:
    layers, depth = config.stage_layers, config.num_hidden_layers
    stages = config.ipus_per_replica or len(layers)
    even = [depth * (stage + 1) // stages - depth * stage // stages for stage in range(stages)]
    if sum(layers) != depth or min(layers) < 0:
        yield Mismatch(
            ("layers_per_ipu", "num_hidden_layers"),
            f"layers_per_ipu = {list(layers)} places {sum(layers)} blocks, but num_hidden_layers = {depth}.",
            f"Give one count per IPU, summing to {depth}, e.g. {even}.",
        )
    if len(layers) != stages:
        found = "none" if config.layers_per_ipu is None else f"{list(layers)} (of length {len(layers)})"
        yield Mismatch(
            ("layers_per_ipu", "ipus_per_replica"),
            f"layers_per_ipu = {found} does not match ipus_per_replica = {stages}.",
            f"Give layers_per_ipu one count per IPU, e.g. {even}, or ipus_per_replica = {len(layers)}.",
        )
    if 0 in layers[1:-1]:
        yield Mismatch(
            ("layers_per_ipu",),
            f"layers_per_ipu = {list(layers)} leaves a stage in the middle empty.",
            f"Only the ends may be 0: the first embeds, the last classifies. E.g. {even}.",
        )
    proportions = config.matmul_proportion
    if proportions is not None and len(proportions) not in (1, stages):
        yield Mismatch(
            ("matmul_proportion", "ipus_per_replica", "layers_per_ipu"),
            f"matmul_proportion = {list(proportions)} has {len(proportions)} values for {stages} IPUs a replica.",
            f"Give one value for all, or {stages}.",
        )


def _in_the_ranges(config: Config) -> Iterator[Mismatch]:
    scale = config.train_crop_scale
    if scale is not None and not 0 < scale[0] <= scale[1] <= 1:
        yield Mismatch(
            ("train_crop_scale",),
            f"train_crop_scale = {list(scale)} is not a range of areas.",
            "Give the smaller share first, above 0, e.g. [0.05, 1.0], or null for no random crop.",
        )
    if not all(0 <= beta < 1 for beta in config.adam_betas):
        yield Mismatch(
            ("adam_betas",),
            f"adam_betas = {list(config.adam_betas)} is not possible.",
            "Give two numbers from 0 to below 1.",
        )
    if not all(0 <= proportion <= 1 for proportion in config.matmul_proportion or ()):
        yield Mismatch(
            ("matmul_proportion",),
            f"matmul_proportion = {list(config.matmul_proportion or ())} is not possible.",
            "Give shares of an IPU's memory, from 0 to 1.",
        )
    if config.mixup and config.alpha is None:
        yield Mismatch(
            ("mixup", "alpha"), "mixup is on, but alpha is not set.", "Give alpha, e.g. 0.5, or mixup = false."
        )
    for name in ("image_mean", "image_std"):
        values = getattr(config, name)
        if len(values) not in (1, config.num_channels) or (name == "image_std" and min(values) <= 0):
            yield Mismatch(
                (name, "num_channels"),
                f"{name} = {list(values)} does not fit num_channels = {config.num_channels}.",
                "Give one number for all channels or one each; a deviation above 0.",
            )


def _in_the_precision(config: Config) -> Iterator[Mismatch]:
    if config.auto_loss_scaling:
        yield from _in_the_loss_scaling(config)
    if config.combines_accumulators:
        for key, wanted in (("max_grad_norm", 0.0), ("on_nonfinite", "stop"), ("auto_loss_scaling", False)):
            if getattr(config, key) != wanted:
                yield Mismatch(
                    ("use_combined_accum", key),
                    f"use_combined_accum keeps no gradient of its own, which {key} = {_shown(getattr(config, key))} needs.",
                    f"Give use_combined_accum = false, or {key} = {_shown(wanted)}.",
                )


def _in_the_freezing(config: Config) -> Iterator[Mismatch]:
    if config.freeze_layers is not None and config.freeze_layers > config.num_hidden_layers:
        yield Mismatch(
            ("freeze_layers", "num_hidden_layers"),
            f"freeze_layers = {config.freeze_layers}, but the model has num_hidden_layers = {config.num_hidden_layers}.",
            f"Give {config.num_hidden_layers} or less, or linear_probe = true to train the classifier alone.",
        )


def _in_the_loss_scaling(config: Config) -> Iterator[Mismatch]:
    """The public app asks for these: gradients of other kinds tell nothing of fp16's range, or are changed by the scale."""
    if config.precision not in ("16.16", "16.32"):
        yield Mismatch(
            ("auto_loss_scaling", "precision"),
            f"auto_loss_scaling counts fp16 gradients, and precision = {config.precision} has none.",
            "Give precision = 16.16 or 16.32, or auto_loss_scaling = false.",
        )
    elif config.reduction_type != "mean":
        yield Mismatch(
            ("auto_loss_scaling", "reduction_type"),
            f"auto_loss_scaling needs reduction_type = mean, not {config.reduction_type}: a sum in fp16 would overflow.",
            "Give reduction_type = mean, or auto_loss_scaling = false.",
        )
    elif config.accum_type != "fp16":
        yield Mismatch(
            ("auto_loss_scaling", "accum_type"),
            f"auto_loss_scaling needs accum_type = fp16, not {config.accum_type}: it is for gradients kept in 16 bits.",
            "Give accum_type = fp16, or auto_loss_scaling = false.",
        )
    if config.als_cap and config.als_cap < config.loss_scaling:
        yield Mismatch(
            ("als_cap", "loss_scaling"),
            f"als_cap = {config.als_cap:g} is below loss_scaling = {config.loss_scaling:g}, where the factor starts.",
            "Give a larger cap, or 0 for none.",
        )


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _in_the_loss_weights(config: Config) -> Iterator[Mismatch]:
    weights = config.positive_weights
    if weights is None:
        return
    if config.loss != "SigmoidCELoss":
        yield Mismatch(
            ("positive_weights", "loss"),
            f"positive_weights are factors of binary cross entropies, and loss = {config.loss} has none.",
            "Give loss = SigmoidCELoss, or positive_weights = null (balanced_sampling serves any loss).",
        )
    numbers = weights if isinstance(weights, tuple) else (weights,)
    if weights != "balanced" and not all(isinstance(number, (int, float)) and number > 0 for number in numbers):
        yield Mismatch(
            ("positive_weights",),
            f"positive_weights = {list(numbers)} is not possible.",
            "Give numbers above 0; 1 changes nothing.",
        )
    if isinstance(weights, tuple) and len(weights) != config.num_labels:
        yield Mismatch(
            ("positive_weights", "num_labels"),
            f"positive_weights has {len(weights)} numbers for num_labels = {config.num_labels}.",
            f"Give one for all labels, {config.num_labels} in the order of the labels, or balanced.",
        )


def _in_the_training(config: Config) -> Iterator[Mismatch]:
    yield from _in_the_loss_weights(config)
    if config.resume_step is not None and not config.resume_training_from_checkpoint:
        yield Mismatch(
            ("resume_step",),
            f"resume_step = {config.resume_step}, but nothing is resumed.",
            "Give --resume, too, or leave it out.",
        )
    if config.min_learning_rate > (config.learning_rate or config.min_learning_rate):
        yield Mismatch(
            ("min_learning_rate", "learning_rate"),
            f"min_learning_rate = {config.min_learning_rate:g} is above learning_rate = {config.learning_rate:g}.",
            "Give one that is no larger.",
        )
    yield from _in_the_publishing(config)
    if config.learning_rate is None:
        yield Mismatch(
            ("learning_rate",),
            f"{config.command} needs a learning_rate, and none is set.",
            "Add it to the config, or --learning-rate 0.001.",
        )
    if config.epochs == 0 and config.training_steps == 0:
        yield Mismatch(
            ("epochs", "training_steps"),
            f"{config.command} needs a length, but epochs and training_steps are both 0.",
            "Give one of them, e.g. --epochs 10.",
        )


def _in_the_publishing(config: Config) -> Iterator[Mismatch]:
    asked = "push_to_hub" if config.push_to_hub else "save_huggingface" if config.save_huggingface else ""
    if asked and config.representation_size:
        yield Mismatch(
            (asked, "representation_size"),
            f"{asked}: Hugging Face's classifiers have no place for a layer before the head, and representation_size = "
            f"{config.representation_size}.",
            "Give representation_size = null, or leave it out (convert.py writes other forms).",
        )
    if asked and config.checkpoint_output_dir == "":
        yield Mismatch(
            (asked, "checkpoint_output_dir"),
            f'{asked} writes into the run folder, and checkpoint_output_dir = "" makes none.',
            "Name a folder, or leave checkpoint_output_dir out.",
        )
    if config.push_to_hub is not None and not HUB_NAME.fullmatch(config.push_to_hub):
        yield Mismatch(
            ("push_to_hub",),
            f"push_to_hub = {config.push_to_hub!r} is no name of a model on the hub.",
            "Give OWNER/NAME or NAME: letters, digits, '-', '_' and '.'.",
        )
