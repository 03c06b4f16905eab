"""Every key of a run, once: name, type, default, meaning, who uses it; and YAML + flags -> one frozen, checked object.

Names and defaults are those of a public PopTorch ViT application where it has the key. How files are found and read is
in `config_files.py`, how flags are made in `flags.py`, what must hold between keys in `config_checks.py`.
"""

from __future__ import annotations

import argparse
from typing import Any, Callable, Dict, FrozenSet, List, Literal, Optional, Sequence, Tuple, Union

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from config_checks import mismatches
from config_files import choose_entry, config_text, find_config_file, parse_scalar, read_configs, shown_path
from config_keys import KeyInfo
from errors import UserError, nearest, user_path
from flags import flag_of, parse_flags

RUN, MODEL, DATA, AUGMENT, BATCH, OPTIMISER, TRAINING, PLACES, IPU, OUTPUT = (
    "what to run",
    "model",
    "data",
    "augmentation",
    "batch arithmetic",
    "optimiser",
    "training",
    "devices and stages",
    "IPU only",
    "checkpoints and reports",
)
TORCH_RUNTIMES = ("single", "pipeline")
TRAINING_GROUPS = (AUGMENT, OPTIMISER, TRAINING)
ALSO_VALIDATION = {
    "compile",
    "eval_crop",
    "loss",
    "native_kernels",
    "precision",
    "pretrained_checkpoint",
    "random_seed",
    "use_ema",
}
COMMANDS = {
    "pretrain": "Trains a ViT from scratch.",
    "finetune": "Fine-tunes a ViT from a checkpoint, or trains it from scratch where none is named.",
    "validation": "Evaluates a checkpoint on every sample of the validation set.",
    "plan": "Shows what a config resolves to, where its stages run, and what they need and give, here or on another machine.",
    "verify": "Goes over a data set and shows what the model will see of it.",
}
Half = Literal["fp16", "fp32"]


def key(
    default: Any, group: str, meaning: str, when: Optional[Callable[[Any, str], bool]] = None, **limits: Any
) -> Any:
    """A field. `when(config, runtime)` tells whether its value has an effect; without it, it always has."""
    about: Any = {"group": group, "when": when}
    return Field(default, description=meaning, json_schema_extra=about, **limits)


def ipu(default: Any, meaning: str, when: Callable[[Any], bool] = lambda config: True, **limits: Any) -> Any:
    """A key of the IPU's compiler and memory, without effect on torch runtimes."""
    return key(default, IPU, meaning, when=lambda config, runtime: runtime == "ipu" and when(config), **limits)


def _reads_files(config: Any, runtime: str) -> bool:
    return config.dataset not in ("digits", "generated") and not config.synthetic_data


def _is_any_of(*names: str) -> Callable[[Any, str], bool]:
    return lambda config, runtime: config.dataset in names and not config.synthetic_data


def _augments(config: Any, runtime: str) -> bool:
    """Generated images come as the model takes them."""
    return config.dataset != "generated" and not config.synthetic_data


def _stores_16_bits(config: Any, runtime: str) -> bool:
    return config.stores_16_bits


def _is_adaptive(config: Any, runtime: str) -> bool:
    return config.optimizer in ("Adam", "AdamW", "LAMB", "Lion", "Muon")


def _has_scale(config: Any, runtime: str) -> bool:
    """Whether the loss scale adapts itself."""
    return config.auto_loss_scaling


def _has_weights(config: Any, runtime: str) -> bool:
    return bool(config.pretrained_checkpoint)


def _averages(config: Any, runtime: str) -> bool:
    """Whether the head reads the mean of the patches."""
    return config.global_pool == "avg"


def _saves(config: Any, runtime: str) -> bool:
    return config.checkpoint_output_dir != ""


def _keeps_best(config: Any, runtime: str) -> bool:
    return _saves(config, runtime) and config.validation_epochs > 0 and config.keep_best


class Config(BaseModel):
    """One run's settings. Frozen; made by `load_config`."""

    # The schema is built when a config is checked: `--help` needs the fields alone.
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=(), defer_build=True
    )
    _given: FrozenSet[str] = PrivateAttr(default=frozenset())
    _flags: FrozenSet[str] = PrivateAttr(default=frozenset())  # those of them that a flag sets
    _command: str = PrivateAttr(default="")

    config: str = key("", RUN, "name of the config to use, from the config file")
    config_file: Optional[str] = key(None, RUN, "config file (else configs.yaml here, else beside the scripts)")
    compile_only: bool = key(False, RUN, "print the resolved config and the plan, compile it for IPUs, and stop")
    debug: bool = key(False, RUN, "show tracebacks of user errors too")

    knn: Optional[int] = key(
        None,
        RUN,
        "validation.py judges the features by so many nearest training images, 20 say, instead of the head",
        when=lambda c, r: c.command == "validation",
        gt=0,
    )
    knn_temperature: float = key(
        0.07,
        RUN,
        "a neighbour's vote is exp(cosine / this)",
        when=lambda c, r: c.command == "validation" and c.knn is not None,
        gt=0,
    )

    random_seed: int = key(42, TRAINING, "seed of weights, sample order, augmentation, mixup and dropout", ge=0)
    epochs: int = key(0, TRAINING, "passes over the training set; above 0 it wins over training_steps", ge=0)
    training_steps: int = key(0, TRAINING, "host steps", when=lambda c, r: c.epochs == 0, ge=0)
    pretrain: bool = key(
        False,
        TRAINING,
        "from-scratch recipe: the head's bias starts at -10",
        when=lambda c, r: c.head_bias_init is None,
    )
    pretrained_checkpoint: str = key(
        "",
        TRAINING,
        "weights to start from: run or step folder, other libraries' (docs/checkpoints.md), or a hub's name",
    )
    resume_training_from_checkpoint: bool = key(False, TRAINING, "go on with the newest saved step of a run")
    validation_epochs: int = key(1, TRAINING, "validate every so many epochs, and at the end; 0 never", ge=0)
    early_stopping: Optional[int] = key(
        None,
        TRAINING,
        "end after so many validations in a row that were no better than the best; null: never",
        when=lambda c, r: c.validation_epochs > 0,
        gt=0,
    )
    balanced_sampling: bool = key(
        False, TRAINING, "each class is drawn equally often in an epoch: rare images repeat, others wait"
    )
    restore_best: bool = key(
        False,
        TRAINING,
        "end with the weights of the best validated step, read back and validated once more",
        when=_keeps_best,
    )
    on_nonfinite: Literal["stop", "skip"] = key("stop", TRAINING, "what a gradient that is not finite does to the run")
    precision: Literal["16.16", "16.32", "32.32", "bf16.16", "bf16.32", "auto"] = key(
        "16.16", TRAINING, "compute.weights; auto: the faster one here of 32.32 and bf16.32"
    )
    compile: Literal["auto", "on", "off"] = key(
        "auto", TRAINING, "compile encoder blocks; auto does so on a GPU", when=lambda c, r: r == "single"
    )
    native_kernels: Literal["auto", "on", "off"] = key(
        "auto",
        TRAINING,
        "on a CPU, in 32.32 and bf16.32: encoder blocks on kernels of our own, compiled once; auto: where a C++ compiler is",
        when=lambda c, r: r != "ipu",
    )

    hidden_size: int = key(768, MODEL, "width D of the tokens", gt=0)
    num_hidden_layers: int = key(12, MODEL, "encoder blocks", gt=0)
    num_attention_heads: int = key(12, MODEL, "attention heads", gt=0)
    mlp_dim: int = key(3072, MODEL, "hidden width of the MLPs", gt=0)
    patches_size: Union[int, Tuple[int, int]] = key(16, MODEL, "patch side in pixels, or height and width")
    image_size: int = key(224, MODEL, "side of the square images, in pixels", gt=0)
    num_channels: int = key(3, MODEL, "colour channels: 1 grey, 3 RGB", ge=1, le=3)
    num_labels: int = key(1000, MODEL, "classes", gt=0, lt=2**24)
    representation_size: Optional[int] = key(None, MODEL, "width of a tanh layer before the head, or null", gt=0)
    distillation: Literal["none", "token", "heads"] = key(
        "none", MODEL, "DeiT's second token: beside the class token, or with a head of its own"
    )
    global_pool: Literal["token", "avg"] = key(
        "token", MODEL, "what the head reads: the class token, or the mean of the patches"
    )
    fc_norm: bool = key(
        False, MODEL, "the final norm comes after that mean (as timm's default), not before", when=_averages
    )
    class_token: bool = key(True, MODEL, "a class token before the patches; false goes with global_pool avg")
    num_register_tokens: int = key(0, MODEL, "trained tokens that no head reads (arXiv 2309.16588)", ge=0)
    pos_embed: Literal["learned", "sincos2d"] = key(
        "learned", MODEL, "position embeddings: trained, or fixed sines and cosines of row and column"
    )
    prefix_positions: bool = key(
        True, MODEL, "class and other tokens before the patches have positions, too; false as DeiT III"
    )
    layer_scale: Optional[float] = key(
        None, MODEL, "initial value of a trained factor for each channel of every branch; null: none", gt=0
    )
    pos_embed_resize: Literal["bicubic", "linear"] = key(
        "bicubic",
        MODEL,
        "how a checkpoint's position embeddings are brought to another grid of patches",
        when=_has_weights,
    )
    hidden_dropout_prob: float = key(0.0, MODEL, "dropout after embedding, attention and in MLPs", ge=0, lt=1)
    attention_probs_dropout_prob: float = key(0.0, MODEL, "dropout of attention weights", ge=0, lt=1)
    drop_path_rate: float = key(0.1, MODEL, "stochastic depth of the last block", ge=0, lt=1)
    drop_path_mode: Literal["linear", "constant"] = key(
        "linear", MODEL, "of the blocks before it: rising from 0, or the same", when=lambda c, r: c.drop_path_rate > 0
    )
    layer_norm_eps: float = key(1e-6, MODEL, "LayerNorm epsilon", gt=0)
    head_bias_init: Optional[float] = key(None, MODEL, "initial bias of the head (null: -10 with pretrain, else 0)")
    attention: Literal["fused", "explicit"] = key(
        "fused", MODEL, "attention kernel; same result", when=lambda c, r: r != "ipu"
    )

    dataset: Literal[
        "chest_xray", "cifar10", "cifar100", "csv", "digits", "folder", "generated", "hub", "imagenet1k", "webdataset"
    ] = key("cifar10", DATA, "what to read")
    dataset_path: Optional[str] = key(
        None, DATA, "folder or file of the data set, or its name on the hub", when=_reads_files
    )
    hub_subset: Optional[str] = key(None, DATA, "configuration of a data set on the hub", when=_is_any_of("hub"))
    image_column: Optional[str] = key(
        None, DATA, "column of the images or their paths; null: found by name", when=_is_any_of("csv", "hub")
    )
    label_columns: Optional[Tuple[str, ...]] = key(
        None,
        DATA,
        "column of the label, or several columns of 0 and 1; null: found by name",
        when=_is_any_of("csv", "hub"),
    )
    image_folder: Optional[str] = key(
        None, DATA, "folder of the images that a CSV names; null: the CSV's own", when=_is_any_of("csv")
    )
    no_finding: bool = key(
        True, DATA, "No Finding is a label of its own, the 15th of chest_xray", when=_is_any_of("chest_xray")
    )
    bad_images: Literal["stop", "skip"] = key(
        "stop", DATA, "what an image that cannot be read does to the run; skip takes the next one", when=_reads_files
    )
    max_image_pixels: int = key(
        89_478_485, DATA, "an image with more is bad (a small file can fill the memory)", when=_reads_files, gt=0
    )
    synthetic_data: bool = key(False, DATA, "random images instead of the data set")
    iterations: int = key(
        1,
        DATA,
        "size of generated data, in host steps",
        when=lambda c, r: c.dataset == "generated" or c.synthetic_data,
        gt=0,
    )
    validation_split: float = key(
        0.0,
        DATA,
        "share of the training set held out, where there is no validation set; of CIFAR, instead of its test set",
        when=lambda c, r: c.dataset != "generated" and not c.synthetic_data,
        ge=0,
        lt=1,
    )
    dataloader_workers: int = key(0, DATA, "loader processes (no more than cores are started)", when=_reads_files, ge=0)
    prefetch_batches: int = key(
        2,
        DATA,
        "host batches that the loader processes together prepare ahead",
        when=lambda c, r: c.dataloader_workers > 0 and _reads_files(c, r),
        gt=0,
    )
    pin_memory: bool = key(True, DATA, "page-locked host batches, on GPUs", when=lambda c, r: r != "ipu")
    image_mean: Tuple[float, ...] = key(
        (0.5,), DATA, "subtracted from pixels in [0, 1], one or one a channel; ImageNet: 0.485 0.456 0.406"
    )
    image_std: Tuple[float, ...] = key((0.5,), DATA, "divides them then; ImageNet: 0.229 0.224 0.225")

    repeated_augmentation: int = key(
        1, AUGMENT, "how often a weight update has each of its images, each time changed anew (arXiv 1901.09335)", gt=0
    )
    interpolation: Literal["bilinear", "bicubic"] = key(
        "bilinear", AUGMENT, "how pictures are resized, antialiased, in training and evaluation", when=_augments
    )
    train_crop_scale: Optional[Tuple[float, float]] = key(
        (0.05, 1.0), AUGMENT, "range of the share of the area that a random crop keeps; null: no crop", when=_augments
    )
    eval_crop: float = key(
        0.875, AUGMENT, "share of the short side that the centre crop keeps in evaluation", when=_augments, gt=0, le=1
    )
    horizontal_flip: bool = key(False, AUGMENT, "mirror half of the training images", when=_augments)
    rotation: float = key(0.0, AUGMENT, "random rotation up to this many degrees", when=_augments, ge=0, le=180)
    translate: float = key(0.0, AUGMENT, "random shift up to this share of the side", when=_augments, ge=0, le=1)
    shear: float = key(0.0, AUGMENT, "random shear up to this many degrees", when=_augments, ge=0, lt=90)
    zoom: float = key(0.0, AUGMENT, "random scale from 1 - zoom to 1 + zoom", when=_augments, ge=0, lt=1)
    crop_padding: int = key(
        0, AUGMENT, "random shift by up to this many pixels, with a black border", when=_augments, ge=0
    )
    extra_aug: Optional[
        Literal["imagenet_policy", "cifar_policy", "randaugment", "trivialaugment", "three_augment"]
    ] = key(None, AUGMENT, "AutoAugment's policies, or another's", when=_augments)
    randaugment_n: int = key(
        2, AUGMENT, "changes an image", when=lambda c, r: _augments(c, r) and c.extra_aug == "randaugment", gt=0
    )
    randaugment_m: int = key(
        9,
        AUGMENT,
        "strength of each, up to 30",
        when=lambda c, r: _augments(c, r) and c.extra_aug == "randaugment",
        ge=0,
        le=30,
    )
    color_jitter: float = key(
        0.0, AUGMENT, "brightness, contrast and saturation change by up to this share", when=_augments, ge=0
    )
    contrast: float = key(0.0, AUGMENT, "contrast alone, where larger", when=_augments, ge=0)
    hue: float = key(0.0, AUGMENT, "hue turns by up to this share of the circle", when=_augments, ge=0, le=0.5)
    random_erasing: float = key(
        0.0, AUGMENT, "share of the images in which a rectangle is blanked", when=_augments, ge=0, le=1
    )
    mixup: bool = key(False, AUGMENT, "mix each image with its neighbour in the micro-batch")
    alpha: Optional[float] = key(
        None, AUGMENT, "mixup weights are drawn from Beta(alpha, alpha)", when=lambda c, r: c.mixup, gt=0
    )
    cutmix: bool = key(False, AUGMENT, "paste a rectangle of each image's neighbour; with mixup, one of the two")
    cutmix_alpha: float = key(
        1.0, AUGMENT, "its share of the area is drawn from Beta(x, x)", when=lambda c, r: c.cutmix, gt=0
    )
    mix_mode: Literal["update", "sample"] = key(
        "update",
        AUGMENT,
        "draw how to mix once a weight update, or for each image",
        when=lambda c, r: c.mixup or c.cutmix,
    )
    mix_probability: float = key(1.0, AUGMENT, "of mixing at all", when=lambda c, r: c.mixup or c.cutmix, ge=0, le=1)
    mix_switch_probability: float = key(
        0.5, AUGMENT, "of CutMix rather than mixup", when=lambda c, r: c.mixup and c.cutmix, ge=0, le=1
    )

    micro_batch_size: int = key(1, BATCH, "images in one forward pass of one replica", gt=0)
    device_iterations: int = key(1, BATCH, "weight updates in one host step", gt=0)
    gradient_accumulation: int = key(1, BATCH, "micro-batches of a replica in one weight update", gt=0)
    replication_factor: int = key(1, BATCH, "replicas of the model", gt=0)
    rebatched_worker_size: Optional[int] = ipu(
        None, "of PopTorch's loader; this one gives whole host batches", when=lambda c: False, gt=0
    )

    optimizer: Literal["SGD", "Adam", "AdamW", "LAMB", "Lion", "Muon"] = key(
        "SGD", OPTIMISER, "weight decay is L2 in SGD and Adam, decoupled in the others"
    )
    learning_rate: Optional[float] = key(None, OPTIMISER, "peak learning rate", gt=0)
    lr_schedule: Literal["constant", "linear", "cosine"] = key(
        "constant", OPTIMISER, "after the warm-up, over host steps"
    )
    warmup_steps: int = key(0, OPTIMISER, "host steps of linear rise", when=lambda c, r: not c.warmup_ratio, ge=0)
    warmup_ratio: float = key(
        0.0, OPTIMISER, "the same as a share of the run's host steps; above 0 it wins over warmup_steps", ge=0, lt=1
    )
    min_learning_rate: float = key(
        0.0, OPTIMISER, "what linear and cosine schedules fall to", when=lambda c, r: c.lr_schedule != "constant", ge=0
    )
    weight_decay: float = key(0.0, OPTIMISER, "of weights with two dimensions or more", ge=0)
    decay_embeddings: bool = key(
        True,
        OPTIMISER,
        "positions, class and register tokens decay as matrices do; false: they are treated as biases (timm, DeiT)",
        when=lambda c, r: c.weight_decay > 0 or c.optimizer == "LAMB",
    )
    layer_decay: float = key(
        1.0, OPTIMISER, "each layer's learning rate is the next one's times this, from the head down", gt=0, le=1
    )
    momentum: float = key(
        0.9, OPTIMISER, "of SGD and Muon (0.95 suits it)", when=lambda c, r: c.optimizer in ("SGD", "Muon"), ge=0, lt=1
    )
    adam_betas: Tuple[float, float] = key(
        (0.9, 0.999), OPTIMISER, "of Adam, AdamW, LAMB, Lion (0.9 0.99 suits it) and Muon", when=_is_adaptive
    )
    adam_eps: float = key(
        1e-8, OPTIMISER, "of Adam, AdamW, LAMB, Muon", when=lambda c, r: c.optimizer not in ("SGD", "Lion"), gt=0
    )
    bias_correction: bool = key(True, OPTIMISER, "of LAMB's moments", when=lambda c, r: c.optimizer == "LAMB")
    max_norm: float = key(
        65535.0, OPTIMISER, "LAMB's cap of a weight norm", when=lambda c, r: c.optimizer == "LAMB", ge=0
    )
    max_norm_bias: float = key(
        0.0, OPTIMISER, "the same for 1-D weights; 0: no trust ratio", when=lambda c, r: c.optimizer == "LAMB", ge=0
    )
    reduction_type: Literal["mean", "sum"] = key("mean", OPTIMISER, "of gradients over micro-batches and replicas")
    loss_scaling: float = key(1.0, OPTIMISER, "factor of the loss in the backward pass", gt=0)
    auto_loss_scaling: bool = key(False, OPTIMISER, "the factor adapts itself to the gradients, as PopART's does")
    als_period: int = key(
        1, OPTIMISER, "weight updates from one change of the factor to the next", when=_has_scale, gt=0
    )
    als_threshold: float = key(
        1e-7, OPTIMISER, "share of large gradients above which the factor halves", when=_has_scale, ge=0, le=1
    )
    als_bin_edge: float = key(
        0.125, OPTIMISER, "what is large, as a share of fp16's largest number", when=_has_scale, gt=0, le=1
    )
    als_cap: float = key(
        0.0,
        OPTIMISER,
        "largest factor; 0: none, as PopART",
        when=lambda c, r: c.auto_loss_scaling and r != "ipu",
        ge=0,
    )
    max_grad_norm: float = key(0.0, OPTIMISER, "clip the gradient's global norm; 0 off", ge=0)
    use_combined_accum: bool = key(
        False,
        OPTIMISER,
        "one tensor for SGD's gradient accumulator and velocity",
        when=lambda c, r: c.optimizer == "SGD",
    )
    enable_rts: bool = key(
        False,
        OPTIMISER,
        "each replica keeps its share of the optimiser's state alone",
        when=lambda c, r: r != "single" and c.replication_factor > 1 and not c.combines_accumulators,
    )
    ema_decay: float = key(
        0.0, OPTIMISER, "of an average of the weights, validated and saved beside them; 0 off", ge=0, lt=1
    )
    freeze_layers: Optional[int] = key(
        None,
        TRAINING,
        "the embedding and the first so many blocks keep their weights; 0: the embedding alone; null: all are trained",
        when=lambda c, r: not c.linear_probe,
        ge=0,
    )
    linear_probe: bool = key(False, TRAINING, "only the classifier is trained, on features that stay as they are")
    use_ema: bool = key(True, TRAINING, "start from a checkpoint's averaged weights, where it has them")
    stochastic_rounding: bool = key(True, OPTIMISER, "of numbers stored in 16 bits", when=_stores_16_bits)
    accum_type: Half = key(
        "fp16", OPTIMISER, "of gradient accumulators (fp16: the precision's 16 bits)", when=_stores_16_bits
    )
    first_order_type: Half = key(
        "fp32", OPTIMISER, "of momentum", when=lambda c, r: c.stores_16_bits and not c.combines_accumulators
    )
    second_order_type: Half = key(
        "fp32",
        OPTIMISER,
        "of second moments",
        when=lambda c, r: c.stores_16_bits and c.optimizer not in ("SGD", "Lion"),
    )
    loss: Literal["CELoss", "SigmoidCELoss", "HardSigmoidCELoss"] = key(
        "CELoss", OPTIMISER, "softmax or sigmoid cross entropy; hard: a mixed image has both its labels in full"
    )
    positive_weights: Optional[Union[float, Literal["balanced"], Tuple[float, ...]]] = key(
        None,
        OPTIMISER,
        "factor of the loss of labels that are there, one or one a label; balanced: negatives / positives of the training set",
    )
    label_smoothing: float = key(0.0, OPTIMISER, "share of the target spread over all classes", ge=0, lt=1)

    runtime: Literal["auto", "single", "pipeline", "ipu"] = key("auto", PLACES, "how stages run (auto: see README)")
    device: Literal["auto", "cpu", "cuda"] = key("auto", PLACES, "kind of device", when=lambda c, r: r != "ipu")
    layers_per_ipu: Optional[Tuple[int, ...]] = key(None, PLACES, "encoder blocks of each stage; null: one stage")
    ipus_per_replica: Optional[int] = key(None, PLACES, "stages of a replica", gt=0)
    schedule: Literal["gpipe", "1f1b", "interleaved"] = key(
        "1f1b", PLACES, "order of micro-batches", when=lambda c, r: r == "pipeline"
    )
    num_processes: int = key(0, PLACES, "local processes; 0: as planned", when=lambda c, r: r == "pipeline", ge=0)
    share_gpus: bool = key(
        False,
        PLACES,
        "let several processes of a host share a GPU: to try a plan that wants more than there are, not for speed",
        when=lambda c, r: r == "pipeline" and c.device != "cpu",
    )
    threads_per_process: int = key(0, PLACES, "CPU threads; 0: one in a pipeline, all on a single device", ge=0)

    recompute_checkpoint_every_layer: bool = key(
        False, PLACES, "keep every block's input alone and compute the rest again in the backward pass: less memory"
    )
    recompute_mid_layers: Optional[Tuple[int, ...]] = key(
        None,
        PLACES,
        "blocks that then keep what is between attention and MLP, too",
        when=lambda c, r: c.recompute_checkpoint_every_layer,
    )

    byteio: bool = ipu(False, "ship pixels as bytes (they always are)", when=lambda c: False)
    matmul_proportion: Optional[Tuple[float, ...]] = ipu(None, "available memory proportion, one or one a stage")
    half_partials: bool = ipu(True, "fp16 partial sums", when=lambda c: not c.precision.startswith("32"))
    prefetch_depth: int = ipu(2, "host to IPU buffers", ge=0)
    optimizer_state_offchip: bool = ipu(True, "optimiser state in streaming memory")
    executable_cache_dir: str = ipu("", "folder of compiled executables")
    profile_dir: Optional[str] = ipu(None, "folder of PopVision reports")
    ipu_target: Literal["hardware", "model", "offline"] = ipu(
        "hardware", "what to compile for: IPUs, PopART's IPU Model, or IPUs that are not here (with --compile-only)"
    )
    ipu_version: int = ipu(2, "version of the IPUs that are not here", when=lambda c: c.ipu_target == "offline", gt=0)

    checkpoint_output_dir: Optional[str] = key(
        None, OUTPUT, 'run folder; default runs/<config>-<date>; "" writes nothing'
    )
    checkpoint_save_steps: int = key(100, OUTPUT, "save every so many host steps, and at the end", when=_saves, gt=0)
    keep_best: bool = key(
        True, OUTPUT, "also save the best validated step", when=lambda c, r: _saves(c, r) and c.validation_epochs > 0
    )
    keep_last: Optional[int] = key(
        None, OUTPUT, "how many of the steps saved on schedule are kept; null: all", when=_saves, gt=0
    )
    keep_every: Optional[int] = key(
        None, OUTPUT, "steps that are a multiple of it are kept in any case", when=_saves, gt=0
    )
    background_save: bool = key(
        True, OUTPUT, "write checkpoints while training goes on, from a copy in memory", when=_saves
    )
    on_save_error: Literal["stop", "warn"] = key(
        "stop", OUTPUT, "what a checkpoint that cannot be written does to the run; warn goes on", when=_saves
    )
    resume_step: Optional[int] = key(
        None,
        OUTPUT,
        "with --resume: the step to go on from; null: the newest",
        when=lambda c, r: c.resume_training_from_checkpoint,
        gt=0,
    )
    save_huggingface: bool = key(
        False,
        OUTPUT,
        "write the best weights as <run folder>/huggingface at the end, as transformers reads them",
        when=_saves,
    )
    push_to_hub: Optional[str] = key(
        None, OUTPUT, "upload that folder to this model of the Hugging Face hub, OWNER/NAME or NAME", when=_saves
    )
    run_name: Optional[str] = key(None, OUTPUT, "name of the run in its folder's name and in W&B; default the config's")
    quiet: bool = key(
        False,
        OUTPUT,
        "print the result and what is noted on the way, but no plan, no line for each step and no progress bar",
    )
    report: bool = key(
        True, OUTPUT, "write report.html, a page that shows how the run goes, into its folder", when=_saves
    )
    wandb: bool = key(False, OUTPUT, "report to Weights & Biases")
    wandb_project_name: str = key("torch-vit", OUTPUT, "its project", when=lambda c, r: c.wandb)
    wandb_run_name: Optional[str] = key(None, OUTPUT, "its run name; default run_name", when=lambda c, r: c.wandb)

    @property
    def name(self) -> str:
        """The named config's name."""
        return self.config

    @property
    def command(self) -> str:
        return self._command

    @property
    def trains(self) -> bool:
        """Whether the command trains (or shows how it would), rather than only evaluates or looks at data."""
        return self._command not in ("validation", "verify")

    @property
    def given(self) -> FrozenSet[str]:
        """Keys that the config file or a flag sets."""
        return self._given

    @property
    def flags(self) -> FrozenSet[str]:
        """Keys that a flag sets."""
        return self._flags

    @property
    def global_batch_size(self) -> int:
        """Images of one weight update."""
        return self.micro_batch_size * self.gradient_accumulation * self.replication_factor

    @property
    def samples_per_step(self) -> int:
        """Images of one host step."""
        return self.global_batch_size * self.device_iterations

    @property
    def stores_16_bits(self) -> bool:
        """Whether weights, gradient accumulators or optimiser state may have 16 bits."""
        return self.precision in ("16.16", "16.32", "bf16.16")

    @property
    def combines_accumulators(self) -> bool:
        """Whether the gradient accumulator and the velocity are one tensor."""
        return self.optimizer == "SGD" and self.use_combined_accum

    @property
    def patch_size(self) -> Tuple[int, int]:
        """Height and width of a patch in pixels."""
        size = self.patches_size
        return (size, size) if isinstance(size, int) else size

    @property
    def grid(self) -> Tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size // self.patch_size[0], self.image_size // self.patch_size[1]

    @property
    def stage_layers(self) -> Tuple[int, ...]:
        """Encoder blocks of each stage."""
        return self.layers_per_ipu or (self.num_hidden_layers,)

    def unused(self, runtime: str) -> List[str]:
        """Given keys without effect on this runtime ("single", "pipeline" or "ipu"), or beside the config's other keys.

        Those that say the default and switch something off (`byteio: false`) ask for nothing and are left out.
        """
        asking = [name for name in KEYS if name in self._given and not self._asks_for_nothing(name)]
        unused = [name for name in asking if not self._has_effect(name, runtime)]
        if self.trains:
            return unused
        # Configs for validation share their training keys with others; a flag is meant.
        idle = {name for name in self._flags if KEYS[name].group in TRAINING_GROUPS and name not in ALSO_VALIDATION}
        return [name for name in asking if name in idle.union(unused)]

    def to_yaml(self) -> str:
        """A file for --config-file with this config alone: all keys but the defaults that its runtimes do not use."""
        values = self.model_dump(mode="json", exclude={*FLAG_ONLY, "resume_training_from_checkpoint", "resume_step"})
        runtimes = ("ipu",) if self.runtime == "ipu" else TORCH_RUNTIMES
        used = {name for name in values for runtime in runtimes if self._has_effect(name, runtime)}
        return config_text(self.config, {name: values[name] for name in values if name in used | self._given})

    def with_full_paths(self) -> Config:
        """The same, with the data set's paths as they are seen from anywhere; names of the hub are not paths."""
        paths = {"dataset_path": self.dataset_path, "image_folder": self.image_folder}
        if self.dataset == "hub" and not (self.dataset_path and user_path(self.dataset_path).exists()):
            del paths["dataset_path"]
        full = {name: str(user_path(path).absolute()) for name, path in paths.items() if path}
        return self.model_copy(update=full)

    def _has_effect(self, name: str, runtime: str) -> bool:
        when = KEYS[name].when
        return when is None or when(self, runtime)

    def _asks_for_nothing(self, name: str) -> bool:
        value = getattr(self, name)
        return (value is None or value is False or value == "") and value == KEYS[name].default


KEYS: Dict[str, KeyInfo] = {
    name: KeyInfo(
        group=field.json_schema_extra["group"],  # type: ignore[index, arg-type]
        meaning=field.description or "",
        default=field.default,
        annotation=field.annotation,
        when=field.json_schema_extra["when"],  # type: ignore[index, arg-type]
    )
    for name, field in Config.model_fields.items()
}
FLAG_ONLY = frozenset({"config", "config_file", "compile_only", "debug"})


def load_config(
    command: str, argv: Optional[Sequence[str]] = None, own: Optional[argparse.ArgumentParser] = None
) -> Config:
    """The config of a command line: defaults < config file < flags. Raises UserError for anything wrong in either.

    `own`: the command's own flags, for its --help.
    """
    flags = parse_flags(command, COMMANDS[command], KEYS, argv, own)
    path = find_config_file(flags.get("config_file"))
    entries = read_configs(path)
    name = choose_entry(entries, flags.get("config"), path)
    place = f'in {shown_path(path)}, config "{name}"'
    _check_names(entries[name], place)
    entry = _without_replaced_length(entries[name], flags)
    origins = {**dict.fromkeys(entry, place), **{key_name: f"flag {flag_of(key_name)}" for key_name in flags}}
    values = {key_name: _tidy(key_name, value) for key_name, value in {**entry, **flags}.items()}
    try:
        config = Config(**{**values, "config": name})
    except ValidationError as error:
        raise _explained(error, origins) from None
    config._given = frozenset(values) - FLAG_ONLY
    config._flags = frozenset(flags) - FLAG_ONLY
    config._command = command
    for mismatch in mismatches(config):
        places = sorted({origins[key_name] for key_name in mismatch.keys if key_name in origins}, reverse=True)
        raise UserError(f"{mismatch.problem}\n       {' and '.join(places) or place}. {mismatch.remedy}")
    return config


def _check_names(entry: Dict[str, Any], place: str) -> None:
    for name in entry:
        if name in FLAG_ONLY:
            raise UserError(f"{name} is a flag, not a key of a config.\n       {place}. Give {flag_of(name)} instead.")
        if name not in KEYS:
            hint = nearest(str(name), KEYS)
            raise UserError(f"unknown key {name}.{hint}\n       {place}. --help lists all keys.")


def _without_replaced_length(entry: Dict[str, Any], flags: Dict[str, Any]) -> Dict[str, Any]:
    """The file's keys; a flag for one of epochs and training_steps also replaces the file's other one."""
    if flags.get("epochs") and flags.get("training_steps"):
        raise UserError(
            "--epochs and --training-steps are both given.\n       Give the length of the run in one of them."
        )
    replaced = None
    if flags.get("training_steps") and "epochs" not in flags:
        replaced = "epochs"
    elif flags.get("epochs"):
        replaced = "training_steps"
    return {name: value for name, value in entry.items() if name != replaced}


def _tidy(name: str, value: Any) -> Any:
    """YAML's values as the fields have them: lists are tuples, quoted numbers numbers, unquoted names names."""
    info = KEYS[name]
    if info.is_names:
        return tuple(map(str, value)) if isinstance(value, (list, tuple)) else value and (str(value),)
    if isinstance(value, (list, tuple)):
        return value[0] if len(value) == 1 and info.is_list and not info.is_only_list else tuple(value)
    if name == "precision" and isinstance(value, float):
        return f"{value:.2f}"
    if info.choices and isinstance(value, bool):
        return "on" if value else "off"  # YAML 1.1 takes these two words for booleans
    return parse_scalar(value) if isinstance(value, str) and info.is_number else value


def _explained(error: ValidationError, origins: Dict[str, str]) -> UserError:
    """pydantic's first complaint in our words."""
    first = error.errors()[0]
    name, value = str(first["loc"][0]), first["input"]
    info = KEYS[name]
    limits = {
        "greater_than": "above {gt}",
        "greater_than_equal": "{ge} or more",
        "less_than": "below {lt}",
        "less_than_equal": "{le} or less",
    }
    wanted = limits[first["type"]].format(**first["ctx"]) if first["type"] in limits else info.wanted
    hint = nearest(str(value), info.choices)
    shown = value if isinstance(value, str) and value else repr(list(value) if isinstance(value, tuple) else value)
    return UserError(
        f"{name} = {shown}: it must be {wanted}.{hint}\n"
        f"       {origins.get(name, 'by default')}. What it is: {info.meaning}."
    )
