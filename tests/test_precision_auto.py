"""`precision: auto` is the faster one here, decided once: by the main process for all, and for the run's whole life."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, Tuple

import pytest
import torch
import yaml

import compile_only
import launch
import machine
import plan
import pretrain
from config import load_config
from errors import UserError
from models.native import build
from models.native.kernels import library
from placement import place_pipeline, place_single
from runtime import block_speed
from runtime.build import build_runtime
from runtime.precision_choice import choose
from runtime.single import SingleRuntime
from tests.processes import run_processes
from tests.small import TINY_CONFIGS, small_config


def pretend(patch: Any, fp32: float, bf16: float) -> None:
    """A CPU that has bf16 instructions, and these speeds."""
    patch.setattr(machine, "cpu_multiplies", lambda kind: True)
    patch.setattr(block_speed, "measured_block_rates", lambda *_: {"32.32": fp32, "bf16.32": bf16})


def must_not_measure(*_: Any) -> Dict[str, float]:
    raise AssertionError("nothing is to be measured")


@pytest.mark.parametrize(
    ("fp32", "bf16", "precision"),
    [(78e9, 196e9, "bf16.32"), (78e9, 94e9, "bf16.32"), (78e9, 80e9, "32.32"), (176e9, 44e9, "32.32")],
)
def test_the_faster_one_is_chosen_and_both_rates_are_told(
    tmp_path: Any, monkeypatch: Any, fp32, bf16, precision
) -> None:
    pretend(monkeypatch, fp32, bf16)
    choice = choose(small_config(tmp_path, precision="auto"), "single")
    assert choice.precision == precision
    assert choice.note.startswith(f"precision auto: {precision}, as ")
    assert f"{bf16 / 1e9:.0f} GFLOP/s in bf16 and {fp32 / 1e9:.0f} in fp32" in choice.note


def test_a_cpu_without_instructions_is_not_measured(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(machine, "cpu_multiplies", lambda kind: False)
    monkeypatch.setattr(block_speed, "measured_block_rates", must_not_measure)
    runtime = build_runtime(config := small_config(tmp_path, precision="auto"), place_single(config))
    assert runtime.config.precision == "32.32"
    assert "precision auto: 32.32, as this CPU has no bf16 instructions" in runtime.notes


@pytest.mark.parametrize(("capability", "precision"), [((9, 0), "bf16.32"), ((8, 0), "bf16.32"), ((7, 5), "32.32")])
def test_a_gpu_is_judged_by_its_generation(tmp_path: Any, monkeypatch: Any, capability, precision) -> None:
    monkeypatch.setattr(machine, "num_gpus", lambda device: int(device != "cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    choice = choose(small_config(tmp_path, precision="auto", device="auto"), "single")
    assert choice.precision == precision
    assert "Some GPU" in choice.note


def test_ipus_get_what_needs_no_loss_scale(tmp_path: Any, monkeypatch: Any) -> None:
    pretend(monkeypatch, 1e9, 2e9)
    choice = choose(small_config(tmp_path, precision="auto"), "ipu")
    assert choice.precision == "32.32"
    assert "IPUs have no bf16" in choice.note


def test_the_model_computes_in_the_precision_that_was_chosen(tmp_path: Any, monkeypatch: Any) -> None:
    pretend(monkeypatch, 1e9, 2e9)
    runtime = build_runtime(config := small_config(tmp_path, precision="auto"), place_single(config))
    assert isinstance(runtime, SingleRuntime)
    assert (runtime.config.precision, runtime.precision.compute) == ("bf16.32", torch.bfloat16)
    assert "precision: bf16.32" in runtime.config.to_yaml()


def test_a_precision_that_is_named_is_not_measured(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(machine, "cpu_multiplies", lambda kind: True)
    monkeypatch.setattr(block_speed, "measured_block_rates", must_not_measure)
    runtime = build_runtime(config := small_config(tmp_path), place_single(config))
    assert not any("precision auto" in note for note in runtime.notes)


def chosen_by_rank(rank: int, folder: Path) -> Tuple[str, bool]:
    """Each rank finds something else to be faster."""
    with pytest.MonkeyPatch.context() as patch:
        pretend(patch, 1e9, 2e9 if rank == 0 else 0.5e9)
        config = small_config(folder, precision="auto", runtime="pipeline", layers_per_ipu=[2, 2])
        runtime = build_runtime(config, place_pipeline(config, 2, 0, 2))
        told = any(note.startswith("precision auto: bf16.32") for note in runtime.notes)
        runtime.close()
        return runtime.config.precision, told


@pytest.mark.slow
@pytest.mark.pipeline
def test_processes_take_what_the_main_one_found(tmp_path: Path) -> None:
    for rank in (0, 1):
        (tmp_path / str(rank)).mkdir()
    assert run_processes(2, _in_own_folder, tmp_path) == [("bf16.32", True), ("bf16.32", True)]


def _in_own_folder(rank: int, folder: Path) -> Tuple[str, bool]:
    return chosen_by_rank(rank, folder / str(rank))


def test_a_resumed_run_keeps_the_numbers_that_it_began_with(tmp_path: Path, monkeypatch: Any, capfd: Any) -> None:
    tiny = {**yaml.safe_load(TINY_CONFIGS)["tiny"], "precision": "auto", "checkpoint_output_dir": "run"}
    (tmp_path / "configs.yaml").write_text(yaml.safe_dump({"tiny": tiny}))
    monkeypatch.chdir(tmp_path)
    pretend(monkeypatch, 1e9, 2e9)
    assert launch.run("pretrain", pretrain.main, ["--config", "tiny"]) == 0
    assert "precision auto: bf16.32, as " in capfd.readouterr().out
    assert "precision: bf16.32\n" in Path("run/config.yaml").read_text()

    monkeypatch.setattr(block_speed, "measured_block_rates", must_not_measure)
    assert launch.run("pretrain", pretrain.main, ["--config", "tiny", "--resume", "--training-steps", "4"]) == 0
    printed = capfd.readouterr().out
    assert "resumed with other keys: training_steps 3 -> 4\n" in printed
    assert "precision auto" not in printed
    assert "precision: bf16.32\n" in Path("run/config.yaml").read_text()


def test_plans_show_what_was_chosen(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    pretend(monkeypatch, 1e9, 2e9)
    flags = ["--config", "digits_single", "--device", "cpu"]
    assert plan.main(flags) == 0
    assert re.search(r"precision: bf16\.32\n(.|\n)*precision auto: bf16\.32, as ", capsys.readouterr().out)
    config = load_config("pretrain", flags)
    assert compile_only.compile_only(config, place_single(config)) == 0
    assert re.search(r"precision: bf16\.32\n(.|\n)*precision auto: bf16\.32, as ", capsys.readouterr().out)


@pytest.mark.parametrize(("name", "precision"), [("h200x8", "bf16.32"), ("pod16", "32.32")])
def test_plans_for_other_machines_do_not_measure_this_one(monkeypatch: Any, capsys: Any, name, precision) -> None:
    monkeypatch.setattr(machine, "cpu_multiplies", lambda kind: True)
    monkeypatch.setattr(block_speed, "measured_block_rates", must_not_measure)
    runtime = "ipu" if name == "pod16" else "auto"
    assert plan.main(["--config", "digits", "--machine", name, "--runtime", runtime]) == 0
    assert f"precision auto: {precision}, as " in capsys.readouterr().out


@pytest.mark.parametrize("precisions", [("32.32", "bf16.32"), ("16.16",), ("16.32",), ("bf16.16",)])
def test_blocks_are_measured_in_every_precision(tmp_path: Any, precisions: Tuple[str, ...]) -> None:
    config = small_config(tmp_path, hidden_size=64, mlp_dim=128, recompute_checkpoint_every_layer=True)
    rates = block_speed.measured_block_rates(config, precisions, 0.1, runtime="single")
    assert set(rates) == set(precisions)
    assert all(1e6 < rate < 1e15 for rate in rates.values())


@pytest.mark.parametrize(
    "keys", [{"native_kernels": "on"}, {"native_kernels": "on", "compile": "on"}, {"hidden_dropout_prob": 0.3}]
)
def test_a_measurement_neither_fails_for_what_the_run_tells_nor_draws_its_numbers(
    tmp_path: Any, monkeypatch: Any, keys: Dict[str, Any]
) -> None:
    monkeypatch.setattr(build, "COMPILERS", ())
    monkeypatch.delenv("CXX", raising=False)
    library.cache_clear()
    state = torch.get_rng_state()
    assert block_speed.measured_block_rates(small_config(tmp_path, **keys), ("32.32",), 0.01, runtime="single")
    assert torch.equal(torch.get_rng_state(), state)


def test_an_unknown_precision_is_told_of_auto(tmp_path: Path) -> None:
    (tmp_path / "configs.yaml").write_text(TINY_CONFIGS)
    with pytest.raises(UserError, match=r"precision = fast: it must be .*\bauto\b"):
        load_config(
            "plan", ["--config", "tiny", "--config-file", str(tmp_path / "configs.yaml"), "--precision", "fast"]
        )
