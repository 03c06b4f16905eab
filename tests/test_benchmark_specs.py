"""benchmarks.yml as the public runner reads it: every command parses and compiles here, and its figures are found."""

from __future__ import annotations

import functools
import importlib
import os
import re
import socket
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest
import yaml

import launch
from config import Config, load_config
from config_files import ConfigLoader
from tests import benchmark_runner as runner
from tests import warm

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "benchmarks.yml").read_text(encoding="utf-8")
SPEC = yaml.load(TEXT, Loader=yaml.FullLoader)
ENTRIES = runner.entries(SPEC)
ENVIRONMENT = {
    "HOSTS": "host1,host2",
    "VIPU_CLI_API_HOST": "10.1.3.101",
    "IPUOF_VIPU_API_PARTITION_ID": "p64",
    "VIPU_ALLOCATION_ID": "c64",
    "TCP_IF_INCLUDE": "10.1.3.0/24",
    "DATASETS_DIR": "/datasets",
    "PATH": "/bin",
}
VARIANTS = {
    variant: (ENTRIES[name], parameters)
    for name in ENTRIES
    for variant, parameters in runner.variants(name, ENTRIES[name]).items()
}
# The names of the public PopTorch ViT app's spec, and what each of them runs.
APP = {
    "pytorch_vit_finetune_gen_pod16": ("finetune", "b16_imagenet1k", "generated"),
    "pytorch_vit_pretrain_gen_pod16": ("pretrain", "b16_in1k_pretrain", "generated"),
    "pytorch_vit_lamb_pretrain_gen_pod16": ("pretrain", "b16_in1k_pretrain_lamb", "generated"),
    "pytorch_vit_lamb_pretrain_gen_pod64": ("pretrain", "b16_in1k_pretrain_lamb", "generated"),
    "pytorch_vit_lamb_pretrain_real_pod64_conv": ("pretrain", "b16_in1k_pretrain_lamb", "imagenet1k"),
    "pytorch_vit_pretrain_validation_real_pod4": ("validation", "b16_in1k_pretrain_valid", "imagenet1k"),
    "pytorch_vit_finetune_real_pod16_conv": ("finetune", "b16_imagenet1k", "imagenet1k"),
    "pytorch_vit_finetune_validation_real_pod4": ("validation", "b16_imagenet1k_valid", "imagenet1k"),
}
# Smaller than any config: what a run prints does not depend on the model's size.
TINY = [
    *(
        "--runtime",
        "single",
        "--image-size",
        "32",
        "--hidden-size",
        "24",
        "--mlp-dim",
        "48",
        "--num-attention-heads",
        "2",
    ),
    *(
        "--num-hidden-layers",
        "2",
        "--layers-per-ipu",
        "1",
        "1",
        "--ipus-per-replica",
        "2",
        "--matmul-proportion",
        "0.3",
    ),
    *("--recompute-mid-layers", "1", "--micro-batch-size", "2", "--gradient-accumulation", "1"),
    *("--replication-factor", "1", "--device-iterations", "1", "--iterations", "10"),
]


def command_of(variant: str, **options: Any) -> Tuple[str, List[str]]:
    """(pretrain, finetune or validation; its flags) of a variant, as the runner starts it, poprun left out."""
    entry, parameters = VARIANTS[variant]
    words = runner.words_of(entry, parameters, ENVIRONMENT, ROOT, **options)
    script, *flags = words[words.index("python3") + 1 :]
    return Path(script).stem, flags


@functools.lru_cache(None)
def config_of(variant: str) -> Config:
    return load_config(*command_of(variant))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> Callable[..., Tuple[str, str, int]]:
    """Runs a command in an empty folder and without a network; gives its two streams and its exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)

    def refuse(*_: Any) -> None:
        raise AssertionError("the network is asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)

    def here(command: str, flags: List[str]) -> Tuple[str, str, int]:
        capfd.readouterr()
        code = launch.run(command, importlib.import_module(command).main, flags)
        printed = capfd.readouterr()
        return printed.out, printed.err, code

    return here


def test_the_spec_keeps_the_runners_rules() -> None:
    assert runner.problems(SPEC, ROOT) == []


def test_no_key_stands_twice() -> None:
    assert yaml.load(TEXT, Loader=ConfigLoader) == SPEC


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"comand": "x"}, "knows no key comand"),
        ({"cmd": "python3 pretrain.py --config ${NAME}"}, "braces that are no parameter"),
        ({"cmd": "python3 pretrain.py --config {size}"}, "braces that are no parameter"),
        ({"cmd": "python3 pretrain.py --config 'a"}, "open quote"),
        ({"cmd": "python3 -c pass"}, "which is no file"),
        ({"cmd": "pretrain.py"}, "no script"),
        ({"notebook": "a.ipynb"}, "or a notebook"),
        ({"env": {"THREADS": 1}}, "env THREADS is not a string"),
        ({"timeout": "1 min"}, "timeout"),
        ({"parameters": {"size": ["s16"]}}, "parameter size"),
        ({"data": {"loss": {"regexp": "loss"}}}, "one group"),
        ({"data": {"loss": {"regexp": "(a)", "reduction": "final"}}}, "unknown key reduction"),
        ({"data": {"loss": {"regexp": "(a)", "reduction_type": "median"}}}, "unknown reduction median"),
        ({"data": {"loss": {"regexp": "(a)", "skip": -1}}}, "skips -1"),
        ({"data": {"a": {"regexp": "(a)", "reduction_type": "min"}}, "derived": {"b": {"expr": "1"}}}, "crashes"),
    ],
)
def test_a_broken_rule_is_found(change: Dict[str, Any], problem: str) -> None:
    broken = {"one": {"cmd": "python3 pretrain.py --config digits", **change}}
    assert any(problem in found for found in runner.problems(broken, ROOT))


def test_the_apps_names_are_all_there_and_run_what_they_ran() -> None:
    configs = {name: config_of(name) for name in APP}
    assert {name: (config.command, config.config, config.dataset) for name, config in configs.items()} == APP


@pytest.mark.parametrize("name", ENTRIES)
def test_only_real_data_asks_for_a_folder_of_data_sets(name: str) -> None:
    entry = ENTRIES[name]
    configs = [config_of(variant) for variant in runner.variants(name, entry)]
    assert runner.needs_datasets_dir(name, entry) == any(c.dataset == "imagenet1k" for c in configs)
    assert ("gen" in name) == all(c.dataset == "generated" for c in configs)


def test_runs_to_the_end_are_those_that_must_be_named() -> None:
    assert [name for name in ENTRIES if not runner.runs_unnamed(name)] == [name for name in APP if "conv" in name]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_command_parses_and_no_flag_stands_twice(variant: str) -> None:
    assert not config_of(variant).wandb
    _, flags = command_of(variant, allow_wandb=True)
    names = [flag.split("=")[0] for flag in flags if flag.startswith("--")]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", [name for name in APP if "real" in name])
def test_runs_on_real_data_report_to_wandb_where_the_runner_lets_them(name: str) -> None:
    config = load_config(*command_of(name, allow_wandb=True))
    assert (config.wandb, config.wandb_project_name, config.wandb_run_name) == (True, "torch-vit", name)


@pytest.mark.parametrize("name", [name for name in APP if "real" in name])
def test_an_entry_may_allow_wandb_for_itself_and_ours_leave_that_to_who_runs_them(name: str) -> None:
    allowed = runner.words_of({**ENTRIES[name], "allow_wandb": True}, {}, ENVIRONMENT, ROOT)
    assert allowed == runner.words_of(ENTRIES[name], {}, ENVIRONMENT, ROOT, allow_wandb=True)
    assert "--wandb=true" in allowed
    assert "allow_wandb" not in ENTRIES[name]


def test_flags_for_wandb_are_one_word_each_so_that_nothing_of_them_is_left_where_they_are_taken_out() -> None:
    words = [word for entry in ENTRIES.values() for word in entry["cmd"].split()]
    found = [word for word in words if "wandb" in word]
    assert found
    assert [word for word in found if "=" not in word] == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variable_of_a_command_is_set(variant: str) -> None:
    entry, parameters = VARIANTS[variant]
    words = runner.words_of(entry, parameters, ENVIRONMENT, ROOT, allow_wandb=True)
    assert not [word for word in words if "$" in word or "{" in word]
    assert "PYTORCH_EXE_DIR" not in " ".join(words)  # a name without its $ would be a folder of that name


def test_a_cache_of_programs_goes_to_the_folder_that_the_environment_names() -> None:
    assert config_of("pytorch_vit_finetune_gen_pod16").executable_cache_dir == "./pt_cache/"


def test_poprun_gets_its_own_arguments() -> None:
    words = runner.words_of(ENTRIES["pytorch_vit_lamb_pretrain_gen_pod64"], {}, ENVIRONMENT, ROOT)
    ours = words[: words.index("python3")]
    assert ours[:4] == ["poprun", "--vv", "--host", "host1,host2"]
    assert "--vipu-partition=p64" in ours
    assert "--mpi-global-args= --mca oob_tcp_if_include 10.1.3.0/24 --mca btl_tcp_if_include 10.1.3.0/24" in ours
    assert ours[ours.index("--executable-cache-path") + 1] == "./pt_cache/"


@pytest.mark.parametrize("variant", VARIANTS)
def test_compile_only_shows_the_plan_without_data_weights_or_network(
    run: Callable[..., Any], tmp_path: Path, variant: str
) -> None:
    command, flags = command_of(variant, allow_wandb=True, compile_only=True)
    assert flags[-1] == "--compile-only"
    out, err, code = run(command, flags)
    assert (code, err) == (0, "")
    assert "Device allocation" in out
    assert out.isascii()  # the runner reads blocks of 80 bytes, and some versions drop one that ends within a letter
    assert not list(tmp_path.iterdir())
    assert not set(runner.figures(VARIANTS[variant][0]["data"], out, err, code).values()) - {None}


@pytest.mark.parametrize("name", [name for name in APP if "gen" in name])
def test_the_apps_runs_on_generated_data_give_their_figures(run: Callable[..., Any], name: str) -> None:
    command, flags = command_of(name)
    out, err, code = run(command, [*flags, *TINY, *(["--pretrained-checkpoint", ""] if command == "finetune" else [])])
    assert code == 0, err
    found = runner.figures(ENTRIES[name]["data"], out, err, code)
    steps = [line for line in out.splitlines() if "Step: " in line]
    assert len(steps) == 10
    assert out.isascii()
    rates = sorted(float(re.findall("throughput: ([0-9.]+)", line)[0]) for line in steps)
    assert found["throughput"] == pytest.approx(sum(rates[2:]) / len(rates[2:]))
    assert f" loss: {found['loss']:.3f} " in steps[-1]
    assert not Path("output").exists()


def test_digits_give_an_accuracy_and_validation_of_the_last_step_by_the_apps_name_the_same(
    run: Callable[..., Any],
) -> None:
    command, flags = command_of("pipevit_digits_small")
    saved = ["--runtime", "single", "--epochs", "1", "--checkpoint-output-dir", "run"]
    out, err, code = run(command, [*flags, *saved])
    assert code == 0, err
    found = runner.figures(ENTRIES["pipevit_digits_small"]["data"], out, err, code)
    assert None not in found.values()
    assert f"Valid Accuracy: {found['accuracy']:.5f} " in out
    assert Path("run/step_22").is_dir()
    # The app counts steps from 0.
    weights = ["--pretrained-checkpoint", "run/step_21", "--device-iterations", "4"]
    out, err, code = run("validation", ["--config", "digits_single", *weights])
    assert code == 0, err
    data = ENTRIES["pytorch_vit_pretrain_validation_real_pod4"]["data"]
    assert runner.figures(data, out, err, code) == {"accuracy": found["accuracy"]}


@pytest.mark.parametrize("name", [name for name in APP if "real" in name])
def test_a_run_without_its_data_or_weights_fails_and_has_no_figures(run: Callable[..., Any], name: str) -> None:
    command, flags = command_of(name)
    out, err, code = run(command, [*flags, "--runtime", "single", "--device", "cpu", "--pretrained-checkpoint", "none"])
    assert code == 2
    assert err.startswith("error: ")
    assert set(runner.figures(ENTRIES[name]["data"], out, err, code).values()) == {None}


def test_the_runner_leaves_out_the_worst_and_reads_both_streams() -> None:
    data = {
        "throughput": {"regexp": "rate: (.*?) s", "skip": 1},
        "latency": {"regexp": "took: (.*?) s", "skip": 1},
        "last": {"regexp": "rate: (.*?) s", "reduction_type": "final"},
        "least": {"regexp": "rate: (.*?) s", "reduction_type": "min"},
        "first": {"regexp": "rate: (.*?) s", "reduction_type": "value"},
        "absent": {"regexp": "nothing: (.*)"},
        "skipped": {"regexp": "rate: (.*?) s", "skip": 3},
    }
    out, err = "rate: 5 s took: 1 s\nrate: 1 s took: 9 s\n", "rate: 3 s took: 2 s\n"
    expected = {"throughput": 4, "latency": 1.5, "last": 3, "least": 1, "first": 5, "absent": None, "skipped": None}
    assert runner.figures(data, out, err, 0) == expected
    assert set(runner.figures(data, out, err, 1).values()) == {None}
    assert runner.figures(data, f"{out}rate: nan s", err, 0)["throughput"] is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant",
    [
        "pipevit_gen_small_single_size_ti16",
        pytest.param("pipevit_digits_small", marks=pytest.mark.pipeline),
        pytest.param("pipevit_gen_small_pipeline_size_ti16", marks=pytest.mark.pipeline),
    ],
)
def test_a_scaled_down_benchmark_gives_its_figures_as_the_runner_starts_it(tmp_path: Path, variant: str) -> None:
    entry, parameters = VARIANTS[variant]
    words = runner.words_of(entry, parameters, ENVIRONMENT, ROOT)
    assert words[0] == "python3"
    done = warm.run(
        [sys.executable, *words[1:]],
        cwd=tmp_path,
        env={**os.environ, **entry["env"]},
        capture_output=True,
        text=True,
        timeout=300,
    )
    found = runner.figures(entry["data"], done.stdout, done.stderr, done.returncode)
    assert None not in found.values(), done.stderr
    assert done.stdout.isascii()
    assert not list(tmp_path.iterdir())
