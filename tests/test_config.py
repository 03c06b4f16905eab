"""Configs: the reference table, what wins over what, the form of flags, and the message for each mistake."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import pytest
import yaml
from pydantic import ValidationError

from config import KEYS, load_config
from config_files import config_names, read_configs
from errors import UserError

ROOT = Path(__file__).resolve().parents[1]
APPLICATION_FILE = Path(__file__).parent / "data" / "application_configs.yml"

# The resolved configs of the PopTorch ViT application (graphcore/examples, vision/vit/pytorch, v3.1 to v3.4.1).
SHARED: Dict[str, Any] = {
    "byteio": False,
    "random_seed": 42,
    "dataloader_workers": 64,
    "ipus_per_replica": 4,
    "synthetic_data": False,
    "optimizer": "SGD",
    "auto_loss_scaling": False,
    "weight_decay": 0.0,
    "recompute_checkpoint_every_layer": True,
    "attention_probs_dropout_prob": 0.0,
    "hidden_dropout_prob": 0.1,
    "layer_norm_eps": 1e-6,
    "resume_training_from_checkpoint": False,
    "enable_rts": True,
    "optimizer_state_offchip": False,
    "prefetch_depth": 2,
    "precision": "16.16",
    "stochastic_rounding": True,
    "wandb": False,
    "representation_size": None,
    "pretrain": False,
    "mixup": False,
    "loss": "CELoss",
    "extra_aug": None,
    "reduction_type": "mean",
    "recompute_mid_layers": (1, 4, 7, 10),
}
VIT_B16: Dict[str, Any] = {
    "layers_per_ipu": (3, 3, 3, 3),
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "matmul_proportion": (0.3, 0.3, 0.3, 0.3),
    "mlp_dim": 3072,
    "patches_size": 16,
    "num_labels": 1000,
}
# What a key that a config leaves out has, by the application's flags; where those leave it open, by ours.
LEFT_OUT: Dict[str, Any] = {
    "micro_batch_size": 1,
    "rebatched_worker_size": None,
    "training_steps": 0,
    "device_iterations": 1,
    "replication_factor": 1,
    "gradient_accumulation": 1,
    "layers_per_ipu": None,
    "wandb_project_name": "torch-vit",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "matmul_proportion": None,
    "mlp_dim": 3072,
    "patches_size": 16,
    "num_labels": 1000,
    "warmup_steps": 0,
    "lr_schedule": "constant",
    "learning_rate": None,
    "loss_scaling": 1.0,
    "momentum": 0.9,
    "first_order_type": "fp32",
    "dataset": "cifar10",
    "dataset_path": None,
    "pretrained_checkpoint": "",
    "checkpoint_output_dir": None,
    "checkpoint_save_steps": 100,
    "epochs": 0,
    "drop_path_rate": 0.1,
    "alpha": None,
    "adam_betas": (0.9, 0.999),
    "adam_eps": 1e-8,
    "bias_correction": True,
    "accum_type": "fp16",
    "second_order_type": "fp32",
    "max_norm": 65535.0,
    "max_norm_bias": 0.0,
    "half_partials": True,
    "use_combined_accum": False,
    "iterations": 1,
    "wandb_run_name": None,
    "executable_cache_dir": "",
    "profile_dir": None,
}
IMAGENET = {"dataset": "imagenet1k", "dataset_path": "./data/imagenet1k/"}
ONE_REPLICA = {"device_iterations": 1, "replication_factor": 1, "gradient_accumulation": 1}
FINETUNED_ON_IMAGENET: Dict[str, Any] = {
    **VIT_B16,
    **IMAGENET,
    "weight_decay": 1e-5,
    "micro_batch_size": 17,
    "rebatched_worker_size": 256,
    "training_steps": 625,
    "device_iterations": 8,
    "replication_factor": 4,
    "gradient_accumulation": 30,
    "wandb_project_name": "torch-vit-in1k",
    "warmup_steps": 100,
    "lr_schedule": "cosine",
    "learning_rate": 0.08,
    "loss_scaling": 0.25,
    "momentum": 0.9,
    "first_order_type": "fp16",
    "pretrained_checkpoint": "google/vit-base-patch16-224-in21k",
    "checkpoint_output_dir": "./output/b16_imagenet1k",
    "checkpoint_save_steps": 100,
}
PRETRAINED: Dict[str, Any] = {
    **VIT_B16,
    **IMAGENET,
    "attention_probs_dropout_prob": 0.1,
    "representation_size": 768,
    "pretrain": True,
    "mixup": True,
    "extra_aug": "imagenet_policy",
    "reduction_type": "sum",
    "micro_batch_size": 8,
    "device_iterations": 1,
    "replication_factor": 4,
    "wandb_project_name": "torch-vit-pretrain",
    "lr_schedule": "cosine",
    "momentum": 0.9,
    "pretrained_checkpoint": "",
    "checkpoint_output_dir": "./output/ckpt-in1k-pretrain",
    "drop_path_rate": 0.0,
    "alpha": 0.5,
}
TABLE: Dict[str, Dict[str, Any]] = {
    "defaults": {},
    "b16_cifar10": {
        **VIT_B16,
        "micro_batch_size": 17,
        "rebatched_worker_size": 128,
        "training_steps": 2000,
        "device_iterations": 1,
        "replication_factor": 4,
        "gradient_accumulation": 128,
        "wandb_project_name": "torch-vit-cifar10",
        "num_labels": 10,
        "warmup_steps": 500,
        "lr_schedule": "cosine",
        "learning_rate": 0.03,
        "loss_scaling": 1.0,
        "momentum": 0.9,
        "first_order_type": "fp16",
        "dataset": "cifar10",
        "dataset_path": "./data/cifar10",
        "pretrained_checkpoint": "google/vit-base-patch16-224-in21k",
        "checkpoint_output_dir": "./output/b16_cifar10",
        "checkpoint_save_steps": 500,
    },
    "b16_cifar10_valid": {
        **VIT_B16,
        **ONE_REPLICA,
        "micro_batch_size": 1,
        "gradient_accumulation": 8,
        "num_labels": 10,
        "dataset": "cifar10",
        "dataset_path": "./data/cifar10",
        "pretrained_checkpoint": "./output/b16_cifar10/step_1000",
    },
    "b16_imagenet1k": FINETUNED_ON_IMAGENET,
    "b16_imagenet1k_ALS": {**FINETUNED_ON_IMAGENET, "auto_loss_scaling": True, "loss_scaling": 1.0},
    "b16_imagenet1k_valid": {
        **VIT_B16,
        **IMAGENET,
        **ONE_REPLICA,
        "micro_batch_size": 8,
        "pretrained_checkpoint": "./output/b16_imagenet1k/step_625",
    },
    "b16_in1k_pretrain": {
        **PRETRAINED,
        "optimizer": "Adam",
        "weight_decay": 0.004,
        "rebatched_worker_size": 256,
        "gradient_accumulation": 128,
        "warmup_steps": 10000,
        "learning_rate": 0.001,
        "loss_scaling": 128.0,
        "checkpoint_save_steps": 500,
        "epochs": 300,
    },
    "b16_in1k_pretrain_lamb": {
        **PRETRAINED,
        "optimizer": "LAMB",
        "weight_decay": 0.01,
        "rebatched_worker_size": 2048,
        "training_steps": 11730,
        "gradient_accumulation": 2048,
        "warmup_steps": 1200,
        "learning_rate": 0.006,
        "loss_scaling": 1024.0,
        "first_order_type": "fp32",
        "checkpoint_save_steps": 40,
        "epochs": 600,
        "adam_betas": (0.9, 0.999),
        "adam_eps": 1e-6,
        "bias_correction": True,
        "accum_type": "fp32",
        "second_order_type": "fp32",
        "max_norm": 65535.0,
        "max_norm_bias": 0.0,
    },
    "b16_in1k_pretrain_valid": {
        **VIT_B16,
        **IMAGENET,
        **ONE_REPLICA,
        "representation_size": 768,
        "pretrain": True,
        "micro_batch_size": 8,
        "pretrained_checkpoint": "./output/ckpt-in1k-pretrain/step_93599",
    },
}
DERIVED = {"b16_cifar10": (8704, 8704), "b16_imagenet1k": (2040, 16320), "b16_in1k_pretrain_lamb": (65536, 65536)}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a config file in the working directory, the project's own is used."""
    monkeypatch.chdir(tmp_path)


def own_configs() -> List[str]:
    return config_names(read_configs(ROOT / "configs.yaml"))


def write(keys: Dict[str, Any], name: str = "small", path: str = "configs.yaml") -> None:
    Path(path).write_text(yaml.safe_dump({name: keys}))


def error_of(command: str, *flags: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(command, list(flags))
    return str(caught.value)


@pytest.mark.parametrize("name", TABLE)
def test_a_named_config_resolves_to_the_applications_table(name):
    if name == "defaults":  # not a config by itself: four IPUs, and no plan for them
        flags = ["--layers-per-ipu", "3", "3", "3", "3"]
        expected = {**LEFT_OUT, **SHARED, "layers_per_ipu": (3, 3, 3, 3)}
    else:
        flags, expected = [], {**LEFT_OUT, **SHARED, **TABLE[name]}
    config = load_config("plan", ["--config", name, *flags])
    assert {key: getattr(config, key) for key in expected} == expected


@pytest.mark.parametrize(("name", "sizes"), DERIVED.items())
def test_batch_arithmetic_is_the_applications(name, sizes):
    config = load_config("plan", ["--config", name])
    assert (config.global_batch_size, config.samples_per_step) == sizes


@pytest.mark.parametrize("name", own_configs())
def test_every_named_config_loads_for_its_command(name):
    command = "validation" if name.endswith("_valid") else "finetune"
    config = load_config(command, ["--config", name])
    assert (config.name, config.command) == (name, command)


@pytest.mark.parametrize(
    ("name", "width", "depth", "heads", "mlp"),
    [("ti16", 192, 12, 3, 768), ("s16", 384, 12, 6, 1536), ("b16", 768, 12, 12, 3072), ("l16", 1024, 24, 16, 4096)],
)
def test_generated_configs_have_the_published_sizes(name, width, depth, heads, mlp):
    config = load_config("pretrain", ["--config", f"generated_{name}"])
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (width, depth, heads)
    assert (config.mlp_dim, len(config.stage_layers), config.checkpoint_output_dir) == (mlp, 4, "")


def test_a_file_of_the_applications_form_loads_unchanged():
    config = load_config("finetune", ["--config", "wider", "--config-file", str(APPLICATION_FILE)])
    assert (config.micro_batch_size, config.layers_per_ipu, config.optimizer) == (16, (3, 3, 3, 3), "LAMB")
    assert (config.layer_norm_eps, config.adam_eps, config.weight_decay, config.learning_rate) == (
        1e-6,
        1e-6,
        1e-5,
        6e-3,
    )
    assert config.precision == "16.16"


def test_flags_win_over_the_file_and_the_file_over_defaults():
    write({"micro_batch_size": 3, "num_labels": 7})
    config = load_config("plan", ["--config", "small", "--num-labels", "9"])
    assert (config.image_size, config.micro_batch_size, config.num_labels) == (224, 3, 9)
    assert config.given == {"micro_batch_size", "num_labels"}


def test_config_may_be_left_out_where_the_file_holds_one():
    Path("configs.yaml").write_text("defaults: &defaults {num_labels: 7}\nsmall: {<<: *defaults, epochs: 1}\n")
    config = load_config("plan", [])
    assert (config.name, config.num_labels) == ("small", 7)


def test_the_working_directorys_file_hides_the_projects():
    write({"num_labels": 3}, path="configs.yml")
    assert load_config("plan", ["--config", "small"]).num_labels == 3
    write({"num_labels": 4}, path="configs.yaml")
    assert load_config("plan", ["--config", "small"]).num_labels == 4
    write({"num_labels": 5}, path="mine.yaml")
    assert load_config("plan", ["--config", "small", "--config-file", "mine.yaml"]).num_labels == 5
    assert str(ROOT / "configs.yaml") in error_of("plan", "--config", "digits")  # says where it would have been


@pytest.mark.parametrize(
    "flag", ["--drop_path_rate 0.2", "--drop-path-rate 0.2", "--drop_path_rate=0.2", "--drop-path-rate=2e-1"]
)
def test_hyphens_and_underscores_are_the_same_in_flags(flag):
    assert load_config("plan", ["--config", "digits", *flag.split()]).drop_path_rate == 0.2


@pytest.mark.parametrize("key", ["byteio", "bias_correction"])
@pytest.mark.parametrize(
    ("words", "value"),
    [([], True)]
    + [([word], True) for word in ("true", "True", "t", "1", "yes", "y")]
    + [([word], False) for word in ("false", "F", "0", "no", "n")],
)
def test_booleans_are_real_booleans(key, words, value):
    assert getattr(load_config("plan", ["--config", "digits", f"--{key}", *words]), key) is value


@pytest.mark.parametrize(
    ("flag", "key", "value"),
    [
        ("--layers-per-ipu 0 2 1 1", "layers_per_ipu", (0, 2, 1, 1)),
        ("--patches-size 4", "patches_size", 4),
        ("--patches-size 4 2", "patches_size", (4, 2)),
        ("--matmul-proportion 0.2", "matmul_proportion", (0.2,)),
        ("--train-crop-scale 0.5 1", "train_crop_scale", (0.5, 1.0)),
        ("--train-crop-scale null", "train_crop_scale", None),
        ("--adam-betas 0.9 0.99", "adam_betas", (0.9, 0.99)),
        ("--head-bias-init -10", "head_bias_init", -10.0),
        ("--compile on", "compile", "on"),
        ("--precision 16.16", "precision", "16.16"),
        ("--optimizer LAMB", "optimizer", "LAMB"),
        ("--loss SigmoidCELoss", "loss", "SigmoidCELoss"),
        ("--wandb-run-name 12", "wandb_run_name", "12"),
        ("--resume", "resume_training_from_checkpoint", True),
        ("--checkpoint-output-dir a --checkpoint-output-dir b", "checkpoint_output_dir", "b"),
    ],
)
def test_a_flag_is_read_as_its_key_needs_it(flag, key, value):
    assert getattr(load_config("plan", ["--config", "digits", *flag.split()]), key) == value


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("compile: off", "compile", "off"),
        ("precision: 32.32", "precision", "32.32"),
        ("patches_size: [16]", "patches_size", 16),
        ("patches_size: [16, 8]", "patches_size", (16, 8)),
        ("learning_rate: 1e3", "learning_rate", 1000.0),
        ("learning_rate: '1e-6'", "learning_rate", 1e-6),
        ("momentum: 0", "momentum", 0.0),
        ("checkpoint_output_dir: ''", "checkpoint_output_dir", ""),
    ],
)
def test_a_value_of_the_file_is_read_as_its_key_needs_it(text, key, value):
    Path("configs.yaml").write_text(f"small:\n  {text}\n")
    assert getattr(load_config("plan", []), key) == value


@pytest.mark.parametrize(
    ("flags", "epochs", "steps"),
    [
        ([], 600, 11730),
        (["--training-steps", "5"], 0, 5),
        (["--training-steps", "5", "--epochs", "0"], 0, 5),
        (["--epochs", "2"], 2, 0),
        (["--epochs", "0"], 0, 11730),
    ],
)
def test_the_flag_of_one_length_replaces_the_files_other(flags, epochs, steps):
    config = load_config("pretrain", ["--config", "b16_in1k_pretrain_lamb", *flags])
    assert (config.epochs, config.training_steps) == (epochs, steps)


@pytest.mark.parametrize("name", ["digits", "b16_in1k_pretrain_lamb"])
def test_the_resolved_config_loads_again_as_the_same(name):
    config = load_config("pretrain", ["--config", name, "--patches-size", "2", "1", "--compile", "on"])
    Path("resolved.yaml").write_text(config.to_yaml())
    again = load_config("pretrain", ["--config-file", "resolved.yaml"])
    assert again.model_dump(exclude={"config_file"}) == config.model_dump(exclude={"config_file"})
    assert set(again.unused("pipeline")) == set(config.unused("pipeline"))


def test_a_config_is_frozen():
    with pytest.raises(ValidationError):
        load_config("plan", ["--config", "digits"]).epochs = 3


def test_plan_properties():
    config = load_config("plan", ["--config", "digits", "--patches-size", "4", "2"])
    assert (config.patch_size, config.grid, config.stage_layers) == ((4, 2), (2, 4), (1, 1, 1, 1))
    write({"num_hidden_layers": 5})
    assert load_config("plan", []).stage_layers == (5,)


IPU_KEYS = [
    *("matmul_proportion", "half_partials", "optimizer_state_offchip", "prefetch_depth"),
    *("executable_cache_dir", "profile_dir", "rebatched_worker_size", "byteio"),
]
VALUES = {"matmul_proportion": "0.2", "prefetch_depth": "3", "rebatched_worker_size": "3", "recompute_mid_layers": "1"}


@pytest.mark.parametrize("key", IPU_KEYS)
@pytest.mark.parametrize("runtime", ["single", "pipeline"])
def test_a_given_ipu_key_is_listed_as_unused(key, runtime):
    value = VALUES.get(key, "fp32" if key.endswith("type") else "folder" if "dir" in key else "true")
    assert key in load_config("plan", ["--config", "digits", f"--{key}", value]).unused(runtime)
    assert key not in load_config("plan", ["--config", "digits"]).unused(runtime)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--auto-loss-scaling true --precision 32.32", "precision = 32.32 has none"),
        ("--auto-loss-scaling true", "precision = auto has none"),
        ("--auto-loss-scaling true --precision bf16.16", "precision = bf16.16 has none"),
        ("--auto-loss-scaling true --precision 16.16 --reduction-type sum", "needs reduction_type = mean, not sum"),
        ("--auto-loss-scaling true --precision 16.32 --accum-type fp32", "needs accum_type = fp16, not fp32"),
        ("--auto-loss-scaling true --precision 16.16 --loss-scaling 8 --als-cap 4", "als_cap = 4 is below"),
        ("--use-combined-accum true --optimizer SGD --max-grad-norm 1", "which max_grad_norm = 1.0 needs"),
        ("--use-combined-accum true --optimizer SGD --on-nonfinite skip", "which on_nonfinite = skip needs"),
        (
            "--use-combined-accum true --optimizer SGD --precision 16.16 --auto-loss-scaling true",
            "which auto_loss_scaling = true needs",
        ),
    ],
)
@pytest.mark.parametrize("command", ["pretrain", "plan"])
def test_half_precision_settings_that_contradict_each_other_are_refused(flags, message, command):
    with pytest.raises(UserError, match=re.escape(message)):
        load_config(command, ["--config", "digits", *flags.split()])


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        ("--precision 32.32 --accum-type fp32", "accum_type"),
        ("--precision bf16.32 --stochastic-rounding true", "stochastic_rounding"),
        ("--precision 16.16 --optimizer SGD --second-order-type fp16", "second_order_type"),
        ("--als-period 2", "als_period"),
        ("--optimizer AdamW --use-combined-accum true", "use_combined_accum"),
        ("--enable-rts true", "enable_rts"),
        ("--recompute-mid-layers 1", "recompute_mid_layers"),
        ("--optimizer AdamW --momentum 0.9", "momentum"),
        ("--optimizer SGD --adam-betas 0.9 0.99", "adam_betas"),
        ("--optimizer SGD --adam-eps 1e-6", "adam_eps"),
        ("--optimizer AdamW --max-norm 3", "max_norm"),
        ("--optimizer AdamW --max-norm-bias 3", "max_norm_bias"),
        ("--optimizer AdamW --bias-correction", "bias_correction"),
        ("--alpha 0.5", "alpha"),
        ("--warmup-ratio 0.1 --warmup-steps 3", "warmup_steps"),
        ("--iterations 3", "iterations"),
        ("--dataset-path here", "dataset_path"),
        ("--wandb-project-name mine", "wandb_project_name"),
        ("--checkpoint-output-dir= --checkpoint-save-steps 3", "checkpoint_save_steps"),
        ("--epochs 3 --training-steps 0", "training_steps"),
        ("--half-partials false", "half_partials"),
        ("--prefetch-batches 3", "prefetch_batches"),
        ("--dataset generated --validation-split 0.1", "validation_split"),
    ],
)
def test_a_key_that_others_leave_without_effect_is_listed(flags, key):
    assert key in load_config("plan", ["--config", "digits", *flags.split()]).unused("pipeline")


def test_only_the_pipeline_uses_schedule_and_processes():
    config = load_config("plan", ["--config", "digits", "--schedule", "gpipe", "--num-processes", "2"])
    assert config.unused("pipeline") == []
    assert config.unused("single") == ["schedule", "num_processes"]


# flags, and what the message must say
WRONG_FLAGS = [
    ("--config digit", ["no config 'digit'", "Did you mean 'digits'?", "b16_cifar10"]),
    ("", ["no config is named", "--config", "digits"]),
    ("--config digits --lerning-rate 1", ["unknown flag --lerning-rate", "Did you mean '--learning-rate'?"]),
    ("--config digits 3", ["unknown argument 3"]),
    ("--config digits --epochs", ["--epochs", "expected one argument"]),
    ("--config digits --epochs many", ["epochs = many", "a whole number", "flag --epochs"]),
    ("--config digits --epochs 1.5", ["epochs = 1.5", "a whole number", "flag --epochs"]),
    ("--config digits --epochs -1", ["epochs = -1", "0 or more", "flag --epochs"]),
    ("--config digits --learning-rate 0", ["learning_rate = 0", "above 0", "flag --learning-rate"]),
    ("--config digits --learning-rate .nan", ["learning_rate = nan", "flag --learning-rate"]),
    ("--config digits --learning-rate .inf", ["learning_rate = inf", "flag --learning-rate"]),
    ("--config digits --label-smoothing 1", ["label_smoothing = 1", "below 1"]),
    ("--config digits --schedule 1f2b", ["schedule = 1f2b", "gpipe, 1f1b, interleaved", "Did you mean '1f1b'?"]),
    ("--config digits --optimizer adam", ["optimizer = adam", "SGD, Adam, AdamW, LAMB", "Did you mean 'Adam'?"]),
    ("--config digits --byteio maybe", ["--byteio", "true or false", "maybe"]),
    (
        "--config digits --layers-per-ipu 1 1 1",
        ["[1, 1, 1]", "places 3 blocks", "num_hidden_layers = 4", "[1, 1, 1, 1]"],
    ),
    ("--config digits --layers-per-ipu 2 2", ["[2, 2]", "ipus_per_replica = 4", "flag --layers-per-ipu", '"digits"']),
    ("--config digits --layers-per-ipu 2 0 1 1", ["[2, 0, 1, 1]", "in the middle empty"]),
    ("--config digits --layers-per-ipu 5 -1 0 0", ["[5, -1, 0, 0]"]),
    ("--config digits --ipus-per-replica 2", ["[1, 1, 1, 1]", "ipus_per_replica = 2", "flag --ipus-per-replica"]),
    ("--config digits --layers-per-ipu null", ["layers_per_ipu", "ipus_per_replica = 4"]),
    ("--config digits --num-attention-heads 5", ["hidden_size = 64", "num_attention_heads = 5", "hidden_size = 65"]),
    ("--config digits --mlp-dim 30", ["mlp_dim = 30", "num_attention_heads = 4"]),
    ("--config digits --patches-size 3", ["image_size = 8", "patches_size = 3", "image_size = 9"]),
    ("--config digits --patches-size 0", ["patches_size = 0"]),
    ("--config digits --num-channels 2", ["num_channels = 2", "3, or 1"]),
    ("--config digits --matmul-proportion 0.1 0.2", ["matmul_proportion", "2 values", "4 IPUs", "one value"]),
    ("--config digits --matmul-proportion 1.5", ["matmul_proportion = [1.5]", "from 0 to 1"]),
    ("--config digits --adam-betas 0.9", ["adam_betas", "a list of numbers"]),
    ("--config digits --adam-betas 0.9 1.5", ["adam_betas = [0.9, 1.5]", "below 1"]),
    ("--config digits --recompute-mid-layers 1 4", ["recompute_mid_layers", "4", "0 to 3"]),
    ("--config digits --train-crop-scale 0.8 0.2", ["train_crop_scale = [0.8, 0.2]", "smaller"]),
    ("--config digits --mixup", ["mixup", "alpha"]),
    ("--config digits --image-mean 0.4 0.5", ["image_mean = [0.4, 0.5]", "num_channels = 1", "one each"]),
    ("--config digits --image-std 0", ["image_std = [0.0]", "above 0"]),
    ("--config digits --extra-aug randagument", ["extra_aug", "Did you mean 'randaugment'?"]),
    ("--config digits --bad-images ignore", ["bad_images", "stop, skip"]),
    ("--config digits --epochs 0", ["epochs", "training_steps", "--epochs 10"]),
    ("--config digits --epochs 2 --training-steps 2", ["--epochs", "--training-steps", "both"]),
    ("--config digits --config-file nowhere.yaml", ["nowhere.yaml", "No such file", "--config-file"]),
    ("--config digits --config-file .", ["cannot be read"]),
    ("--config digits --positive-weights 2", ["binary cross entropies", "loss = CELoss", "flag --positive-weights"]),
    (
        "--config chest_xray --positive-weights 2 3",
        ["positive_weights has 2 numbers for num_labels = 15", "Give one for all"],
    ),
    ("--config chest_xray --positive-weights 0", ["positive_weights = [0", "above 0"]),
    ("--config chest_xray --positive-weights 1 -2", ["positive_weights = [1.0, -2.0]", "above 0"]),
    ("--config chest_xray --positive-weights even", ["positive_weights = even", "a number or balanced or a list of"]),
    ("--config chest_xray --balanced-sampling 3", ["--balanced-sampling", "true or false"]),
    ("--config chest_xray --warmup-ratio 1", ["warmup_ratio = 1", "below 1"]),
    ("--config b16_cifar10_valid", ["learning_rate", 'config "b16_cifar10_valid"', "--learning-rate"]),
]


@pytest.mark.parametrize(("flags", "words"), WRONG_FLAGS, ids=[flags or "nothing" for flags, _ in WRONG_FLAGS])
def test_a_wrong_flag_has_a_message_of_what_where_and_what_to_do(flags, words):
    message = error_of("finetune", *flags.split())
    for word in words:
        assert word in message


# a config file's text, and what the message must say
WRONG_FILES = [
    (
        "small: {hiden_size: 3}",
        ["unknown key hiden_size", "Did you mean 'hidden_size'?", 'in configs.yaml, config "small"'],
    ),
    ("small: {microbatch_size: 3}", ["unknown key microbatch_size", "Did you mean 'micro_batch_size'?"]),
    ("small: {debug: true}", ["debug is a flag"]),
    ("small: {epochs: [3]}", ["epochs", "a whole number"]),
    ("small: {epochs: true}", ["epochs", "a whole number", 'in configs.yaml, config "small"']),
    ("small: {learning_rate: fast}", ["learning_rate = fast", "a number", 'in configs.yaml, config "small"']),
    ("small: {byteio: 3}", ["byteio = 3", "true or false"]),
    ("small: {epochs: null}", ["epochs", "a whole number"]),
    ("small: {ipus_per_replica: 4}", ["layers_per_ipu", "ipus_per_replica = 4", "[3, 3, 3, 3]"]),
    ("small: {epochs: 1, epochs: 2}", ["epochs", "twice", "line 1"]),
    ("small: {epochs: 1}\nsmall: {epochs: 2}", ["small", "twice"]),
    ("small: {epochs: 1", ["configs.yaml", "not valid YAML", "line"]),
    ("small: {<<: *missing}", ["configs.yaml", "missing", "line 1"]),
    ("small: !!python/object/apply:os.getcwd []", ["configs.yaml", "not valid YAML"]),
    ("small: 3", ["small", "configs.yaml", "not a config"]),
    ("- small", ["configs.yaml", "holds no configs"]),
    ("", ["configs.yaml", "holds no configs"]),
    ("small: {epochs: 1}\nlarge: {epochs: 2}", ["no config is named", "small, large"]),
]


@pytest.mark.parametrize(("text", "words"), WRONG_FILES, ids=[text or "nothing" for text, _ in WRONG_FILES])
def test_a_wrong_file_has_a_message_of_what_where_and_what_to_do(text, words):
    Path("configs.yaml").write_text(text)
    message = error_of("plan")
    for word in words:
        assert word in message


def test_a_file_that_is_no_text_has_a_message():
    Path("configs.yaml").write_bytes(b"\xff\xfe\x00")
    assert "configs.yaml" in error_of("plan")


def test_a_merge_base_is_checked_only_where_it_is_named():
    Path("configs.yaml").write_text("defaults: &defaults {ipus_per_replica: 1, colour: red}\nsmall: {epochs: 1}\n")
    assert load_config("plan", []).name == "small"
    assert "unknown key colour" in error_of("plan", "--config", "defaults")


def test_help_lists_every_key_and_loads_no_torch():
    program = (
        "import sys, config\ntry: config.load_config('plan', ['--help'])\nfinally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    for key in KEYS:
        assert f"--{key.replace('_', '-')} " in done.stdout


@pytest.mark.parametrize("text", ["2024-31-12", "0b_", "9" * 5000])
def test_what_yaml_cannot_construct_is_a_users_mistake(text):
    assert "random_seed = " in error_of("plan", "--config", "digits", "--random-seed", text)
    Path("configs.yaml").write_text(f"small: {{random_seed: {text}}}")
    assert "configs.yaml" in error_of("plan")


def test_text_that_looks_like_a_number_survives_the_run_folder(tmp_path):
    config = load_config("plan", ["--config", "digits", "--run-name", "1e5"])
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert load_config("plan", ["--config-file", str(tmp_path / "again.yaml")]).run_name == "1e5"


def test_a_negative_number_with_an_exponent_is_a_value():
    assert load_config("plan", ["--config", "digits", "--head-bias-init", "-1e-3"]).head_bias_init == -1e-3


def test_validation_lists_training_flags_as_unused():
    flags = [
        "--config",
        "digits",
        "--learning-rate",
        "1",
        "--mixup",
        "--alpha",
        "1",
        "--eval-crop",
        "1",
        "--loss",
        "CELoss",
    ]
    config = load_config("validation", flags)
    assert config.unused("pipeline") == ["mixup", "alpha", "learning_rate"]


def test_generated_data_is_not_augmented():
    flags = ["--config", "generated_s16", "--rotation", "5", "--horizontal-flip", "--dataloader-workers", "2"]
    unused = load_config("plan", flags).unused("single")
    assert {"rotation", "horizontal_flip", "dataloader_workers"} <= set(unused)


def test_a_step_to_resume_is_nothing_without_resume():
    with pytest.raises(UserError, match="resume_step = 5, but nothing is resumed"):
        load_config("pretrain", ["--config", "digits", "--resume-step", "5"])


@pytest.mark.parametrize(
    ("words", "value"), [("balanced", "balanced"), ("3", 3.0), ("1 2.5 4", (1.0, 2.5, 4.0)), ("null", None)]
)
def test_weights_of_positives_are_a_word_a_number_or_one_a_label(words, value):
    flags = ["--config", "chest_xray", "--num-labels", "3", "--positive-weights", *words.split()]
    config = load_config("finetune", flags)
    assert config.positive_weights == value
    Path("saved.yaml").write_text(config.to_yaml())
    assert load_config("finetune", ["--config-file", "saved.yaml"]).positive_weights == value
