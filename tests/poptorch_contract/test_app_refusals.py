"""What PopTorch would refuse is refused before it compiles, in the user's words; and what only PopTorch knows is passed on."""

from __future__ import annotations

import re
from typing import Any, Dict

import pytest

import ipu_options
import placement
from errors import UserError
from placement import place
from tests.poptorch_contract.outcomes import ipu_runtime
from tests.small import small_config

FOUR: Dict[str, Any] = {"runtime": "ipu", "layers_per_ipu": [1, 1, 1, 1], "gradient_accumulation": 7}

REFUSED = [
    (
        {"gradient_accumulation": 4},
        "gradient_accumulation = 4 is too little for 4 stages on IPUs",
        "gradient_accumulation = 7",
    ),
    ({"gradient_accumulation": 6}, "gradient_accumulation = 6 is too little", "fewer stages"),
    ({"replication_factor": 17}, "4 stages x 17 replicas need 128 IPUs, and one process may use 64", "poprun"),
    ({"precision": "bf16.32"}, "precision = bf16.32: IPUs have no bfloat16", "16.16, 16.32 or 32.32"),
    ({"precision": "bf16.16"}, "precision = bf16.16: IPUs have no bfloat16", "16.16, 16.32 or 32.32"),
    ({"optimizer": "Lion"}, "optimizer = Lion: PopTorch has none", "SGD, Adam, AdamW, LAMB"),
    ({"optimizer": "Muon"}, "optimizer = Muon: PopTorch has none", "another --runtime"),
    ({"optimizer": "LAMB", "max_grad_norm": 1.0}, "PopTorch's LAMB does not clip", "max_grad_norm = 0"),
    ({"ema_decay": 0.99}, "ema_decay: weights change on the IPU", "ema_decay = 0"),
    ({"on_nonfinite": "skip"}, "an IPU makes every weight update", "on_nonfinite = stop"),
    (
        {"ipu_target": "model", "executable_cache_dir": "cache"},
        "executables for the IPU Model cannot be cached",
        "another ipu_target",
    ),
    ({"ipu_target": "offline"}, "compiles for IPUs that are not here, and cannot run", "--compile-only"),
]


@pytest.mark.parametrize(
    ("keys", "problem", "remedy"), REFUSED, ids=[" ".join(map(str, keys)) for keys, _, _ in REFUSED]
)
def test_a_plan_that_cannot_run_is_refused(
    poptorch: Any, tmp_path: Any, keys: Dict[str, Any], problem: str, remedy: str
) -> None:
    with pytest.raises(UserError, match=re.escape(problem)) as refusal:
        place(small_config(tmp_path, **{**FOUR, **keys}))
    assert remedy in str(refusal.value)
    assert poptorch.stand_in.executors() == []


@pytest.mark.parametrize(
    "keys", [{"replication_factor": 16}, {"gradient_accumulation": 7}, {"layers_per_ipu": [4]}], ids=str
)
def test_what_just_fits_is_taken(poptorch: Any, tmp_path: Any, keys: Dict[str, Any]) -> None:
    assert place(small_config(tmp_path, **{**FOUR, **keys})).runtime == "ipu"


def test_validation_needs_no_gradient_accumulation(poptorch: Any, tmp_path: Any) -> None:
    config = small_config(tmp_path, command="validation", **{**FOUR, "gradient_accumulation": 1})
    assert place(config).runtime == "ipu"


@pytest.mark.parametrize("accumulation", [1, 4, 6])
def test_poptorch_would_refuse_it_too(poptorch: Any, tmp_path: Any, monkeypatch: Any, accumulation: int) -> None:
    """Our bound is PopTorch's: without ours its own message ends the run, as a user's mistake."""
    monkeypatch.setattr(placement, "check_plan", lambda *arguments: None)
    config = small_config(tmp_path, **{**FOUR, "gradient_accumulation": accumulation})
    with pytest.raises(UserError, match=r"PopTorch cannot compile this plan: .*pipeline stages"):
        ipu_runtime(config).prepare(evaluates=False)


def test_three_stages_reserve_four_ipus_and_it_is_said(poptorch: Any, tmp_path: Any) -> None:
    runtime = ipu_runtime(small_config(tmp_path, **{**FOUR, "layers_per_ipu": [1, 2, 1]}))
    assert runtime.notes[0] == "3 stages x 1 replica use 3 IPUs; PopTorch reserves 4, the next power of two"
    runtime.prepare(evaluates=False)
    assert poptorch.stand_in.report(runtime._trainer).num_ipus == 4


def test_without_poptorch_the_message_says_what_is_missing(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(placement, "is_installed", lambda: False)
    with pytest.raises(UserError, match="runtime = ipu needs PopTorch, from Graphcore's Poplar SDK"):
        place(small_config(tmp_path, **FOUR))


@pytest.mark.parametrize(("hardware", "runtime"), [("0", "single"), ("1", "ipu")])
def test_auto_takes_ipus_only_where_there_are_some(
    poptorch: Any, tmp_path: Any, monkeypatch: Any, hardware: str, runtime: str
) -> None:
    monkeypatch.setenv("POPTORCH_STAND_IN_HARDWARE", hardware)
    assert place(small_config(tmp_path, **{**FOUR, "runtime": "auto"})).runtime == runtime


def test_a_named_runtime_is_taken_though_there_are_ipus(poptorch: Any, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("POPTORCH_STAND_IN_HARDWARE", "1")
    assert place(small_config(tmp_path, **{**FOUR, "runtime": "single"})).runtime == "single"


@pytest.mark.parametrize("target", ["offline", "hardware"])
def test_compile_only_compiles_and_never_runs(poptorch: Any, tmp_path: Any, target: str, capsys: Any) -> None:
    from compile_only import compile_only

    cache = tmp_path / "cache"
    config = small_config(tmp_path, **{**FOUR, "ipu_target": target, "executable_cache_dir": str(cache)})
    config = config.model_copy(update={"compile_only": True})
    assert compile_only(config, place(config)) == 0
    assert "compiled for training in" in capsys.readouterr().out
    assert [executor.stand_in_calls for executor in poptorch.stand_in.executors()] == [0, 0]
    assert any(cache.iterdir())


def test_poprun_with_other_stages_is_refused(poptorch: Any, tmp_path: Any, monkeypatch: Any) -> None:
    launched = ipu_options.Poprun(0, 2, 2, 4, 0, ipus_per_replica=2)
    monkeypatch.setattr(placement, "poprun", lambda: launched)
    with pytest.raises(UserError, match=r"poprun gives a replica 2 IPUs, but .* needs 4"):
        placement.follow_launcher(small_config(tmp_path, **FOUR))


def test_poprun_without_ipus_is_refused_rather_than_run_twice(poptorch: Any, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(placement, "poprun", lambda: ipu_options.Poprun(0, 2, 2, 4, 0, 4))
    with pytest.raises(UserError, match="poprun started 2 instances, but runtime = auto finds no IPUs"):
        place(small_config(tmp_path, **{**FOUR, "runtime": "auto"}))


def test_poprun_sets_the_number_of_replicas(poptorch: Any, tmp_path: Any, monkeypatch: Any) -> None:
    """16 replicas of micro batch 8 and accumulation 512 are the app's 65,536 images, whatever its config says of replicas."""
    monkeypatch.setattr(placement, "poprun", lambda: ipu_options.Poprun(1, 8, 2, 16, 2, 4))
    keys = {**FOUR, "micro_batch_size": 8, "gradient_accumulation": 512, "replication_factor": 4}
    config = placement.follow_launcher(small_config(tmp_path, **keys))
    assert config.global_batch_size == 65_536
