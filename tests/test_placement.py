"""How plans fold onto processes: every replica is worked on once, every part owned once."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, List, Optional, Tuple

import pytest

from errors import UserError
from machine import has_pipelining
from models.stages import Stage, fold_stages, plan_stages
from placement import check_can_run, place, place_pipeline, place_single, process_counts, resolve_runtime
from tests.small import small_config

# layers, replicas, schedule, processes asked for, GPUs, cores -> (pipeline size, replica groups, parts)
FOLDINGS: List[Tuple[List[int], int, str, Optional[int], int, int, Tuple[int, int, int]]] = [
    ([1, 1, 1, 1], 1, "1f1b", None, 0, 2, (4, 1, 4)),
    ([1, 1, 1, 1], 4, "1f1b", None, 0, 2, (4, 1, 4)),
    ([1, 1, 1, 1], 4, "1f1b", None, 0, 8, (4, 2, 4)),
    ([2, 2], 3, "1f1b", None, 0, 64, (2, 3, 2)),
    ([1, 1, 1, 1], 4, "1f1b", None, 8, 2, (4, 2, 4)),
    ([1, 1, 1, 1], 4, "1f1b", None, 3, 2, (3, 1, 3)),
    ([1, 1, 1, 1], 4, "1f1b", 8, 0, 2, (4, 2, 4)),
    ([1, 1, 1, 1], 4, "1f1b", 2, 0, 2, (2, 1, 2)),
    ([1, 1, 1, 1], 2, "interleaved", None, 0, 2, (2, 1, 4)),
    ([1, 1, 1, 1], 2, "interleaved", 4, 0, 2, (2, 2, 4)),
    ([4], 4, "1f1b", 4, 0, 2, (1, 4, 1)),
]


@pytest.mark.parametrize(("layers", "replicas", "schedule", "asked", "gpus", "cores", "expected"), FOLDINGS)
def test_plans_fold(tmp_path: Any, layers, replicas, schedule, asked, gpus, cores, expected) -> None:
    config = small_config(tmp_path, layers_per_ipu=layers, replication_factor=replicas, schedule=schedule)
    placement = place_pipeline(config, asked, gpus, cores)
    assert (placement.pipeline_size, placement.replica_groups, len(placement.parts)) == expected
    for part in range(len(placement.parts)):
        owners = [rank for rank in range(placement.num_processes) if part in placement.parts_of(rank)]
        assert len(owners) == placement.replica_groups
    for first in range(placement.pipeline_size):
        ranks = range(first, placement.num_processes, placement.pipeline_size)
        assert sorted(replica for rank in ranks for replica in placement.replicas_of(rank)) == list(range(replicas))
    units = [unit for part in placement.parts for unit in part.units]
    assert units == [unit for stage in plan_stages(layers) for unit in stage.units]


def test_plan_puts_embedding_first_and_head_last() -> None:
    assert plan_stages([1, 2]) == [Stage(0, ("embed", "block 0")), Stage(1, ("block 1", "block 2", "head"))]
    assert plan_stages([2]) == [Stage(0, ("embed", "block 0", "block 1", "head"))]


def test_folding_merges_neighbours_evenly() -> None:
    assert [part.blocks for part in fold_stages(plan_stages([1] * 6), 4)] == [(0, 1), (2,), (3,), (4, 5)]


def test_single_holds_everything_and_says_what_was_folded(tmp_path: Any) -> None:
    placement = place_single(small_config(tmp_path, layers_per_ipu=[2, 2], replication_factor=4))
    assert placement.folding() == (
        "2 stages run as 1; 4 replicas run on 1 group of processes, gradient accumulation x 4 (same global batch, same result)"
    )


def test_nothing_is_said_where_nothing_is_folded(tmp_path: Any) -> None:
    assert place_pipeline(small_config(tmp_path, layers_per_ipu=[2, 2]), None, 0, 2).folding() is None


def test_processes_that_cannot_share_the_plan_are_refused_with_the_numbers_that_can(tmp_path: Any) -> None:
    config = small_config(tmp_path, layers_per_ipu=[2, 2], replication_factor=2)
    with pytest.raises(
        UserError, match=r"3 processes cannot share 2 stages.*\n.*Start 1 or 2 or 4, or change layers_per_ipu"
    ):
        place_pipeline(config, 3, 0, 2)


def test_stages_without_a_micro_batch_each_are_merged_and_told_why(tmp_path: Any) -> None:
    placement = place_pipeline(small_config(tmp_path, layers_per_ipu=[2, 2], gradient_accumulation=1), None, 0, 2)
    assert placement.num_processes == 1
    assert placement.folding() == (
        "2 stages run as 1, as a weight update needs a micro-batch for each: --gradient-accumulation 2 or more "
        "(same global batch, same result)"
    )


def test_interleaved_needs_several_stages_a_process_and_equal_rounds(tmp_path: Any) -> None:
    two_stages = small_config(tmp_path, layers_per_ipu=[2, 2], schedule="interleaved")
    with pytest.raises(UserError, match="interleaved needs several stages"):
        place_pipeline(two_stages, None, 0, 2)
    uneven = small_config(tmp_path, layers_per_ipu=[1, 1, 1, 1], schedule="interleaved", gradient_accumulation=7)
    with pytest.raises(UserError, match="cannot divide 7 micro-batches into 3 equal rounds"):
        place_pipeline(uneven, None, 0, 2)


@pytest.mark.parametrize(
    ("asked", "gpus", "world", "expected"),
    [
        ("auto", 0, None, "single"),
        ("auto", 1, None, "single"),
        ("auto", 2, None, "pipeline"),
        ("auto", 0, 4, "pipeline"),
        ("auto", 0, 1, "single"),
        ("single", 8, None, "single"),
        ("pipeline", 0, None, "pipeline"),
    ],
)
def test_auto_picks_the_pipeline_for_several_gpus_or_a_launchers_world(
    monkeypatch: pytest.MonkeyPatch, asked, gpus, world, expected
) -> None:
    monkeypatch.setattr("placement.has_pipelining", lambda: True)
    assert resolve_runtime(asked, gpus, world) == expected


def test_a_torch_without_schedules_runs_all_on_one_device(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("placement.has_pipelining", lambda: False)
    assert resolve_runtime("auto", 8, None) == "single"
    config = small_config(tmp_path, layers_per_ipu=[1] * 4)
    check_can_run(place_single(config))
    with pytest.raises(UserError, match=r"(?s)runtime = pipeline needs torch 2.5 or later.* --runtime single"):
        check_can_run(place_pipeline(config, None, 0, 2))


def test_pipelining_is_found_without_importing_torch() -> None:
    assert has_pipelining() == (find_spec("torch.distributed.pipelining") is not None)


@pytest.mark.parametrize(
    ("accumulation", "replicas", "stages"), [(1, 1, 1), (2, 1, 2), (1, 2, 2), (4, 1, 4), (9, 1, 4)]
)
def test_a_weight_update_has_a_micro_batch_for_every_stage(tmp_path: Any, accumulation, replicas, stages) -> None:
    keys = {"layers_per_ipu": [1] * 4, "gradient_accumulation": accumulation, "replication_factor": replicas}
    placement = place_pipeline(small_config(tmp_path, **keys), None, 0, 2)
    assert placement.pipeline_size == stages
    evaluating = small_config(tmp_path, command="validation", **keys)
    assert place_pipeline(evaluating, None, 0, 2).pipeline_size == 4


def test_a_gpu_serves_one_process(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("placement.has_pipelining", lambda: True)
    monkeypatch.setattr("placement.num_gpus", lambda device: 2)
    keys = {"runtime": "auto", "layers_per_ipu": [1] * 4, "device": "auto"}
    assert place(small_config(tmp_path, **keys)).num_processes == 2
    with pytest.raises(UserError, match="3 processes on a machine with 2 GPUs"):
        place(small_config(tmp_path, **keys, num_processes=3))


def test_processes_share_a_gpu_where_that_is_asked_for(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("placement.has_pipelining", lambda: True)
    monkeypatch.setattr("placement.num_gpus", lambda device: 1)
    keys = {"runtime": "pipeline", "layers_per_ipu": [1] * 4, "device": "auto"}
    assert place(small_config(tmp_path, **keys)).num_processes == 1
    assert place(small_config(tmp_path, **keys, share_gpus=True)).num_processes == 4
    assert place(small_config(tmp_path, **keys, share_gpus=True, num_processes=2)).num_processes == 2


def launched(monkeypatch: pytest.MonkeyPatch, world: int, here: int, rank: int) -> None:
    names = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": here, "RANK": rank, "LOCAL_RANK": rank % here}
    for name, value in names.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(
    ("stages", "replicas", "world", "here"),
    [(2, 2, 4, 2), (2, 4, 8, 4), (4, 1, 4, 2), (4, 3, 12, 2), (3, 2, 6, 2), (4, 4, 16, 8)],
)
def test_replicas_lie_on_one_host_or_on_several_where_they_must(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, stages, replicas, world, here
) -> None:
    config = small_config(
        tmp_path,
        num_hidden_layers=stages,
        layers_per_ipu=[1] * stages,
        replication_factor=replicas,
        runtime="pipeline",
    )
    for rank in range(0, world, here):
        launched(monkeypatch, world, here, rank)
        placement = place(config)
        assert (placement.pipeline_size, placement.replica_groups) == (stages, replicas)


@pytest.mark.parametrize("rank", [0, 2, 3, 5])
def test_a_replica_that_would_lie_on_two_hosts_for_nothing_is_refused(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    launched(monkeypatch, 6, 3, rank)
    config = small_config(tmp_path, layers_per_ipu=[2, 2], replication_factor=3, runtime="pipeline")
    with pytest.raises(
        UserError, match=r"3 processes on this host, from rank [03] on(.|\n)*Start 2 or 4 on every host"
    ):
        place(config)


def test_auto_runs_one_process_on_the_plain_path(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("placement.num_gpus", lambda device: 2)
    assert place(small_config(tmp_path, runtime="auto", device="auto")).runtime == "single"


@pytest.mark.parametrize("layers", [[4], [2, 2], [1, 1, 1, 1], [1] * 6])
@pytest.mark.parametrize("schedule", ["1f1b", "interleaved"])
@pytest.mark.parametrize(("replicas", "accumulation"), [(1, 1), (1, 4), (4, 2), (6, 5)])
def test_the_numbers_of_processes_that_are_named_are_those_that_are_taken(
    tmp_path: Any, layers: List[int], schedule: str, replicas: int, accumulation: int
) -> None:
    config = small_config(
        tmp_path,
        layers_per_ipu=layers,
        num_hidden_layers=sum(layers),
        replication_factor=replicas,
        gradient_accumulation=accumulation,
        schedule=schedule,
    )

    def is_taken(number: int) -> bool:
        try:
            place_pipeline(config, number, 0, 2)
        except UserError:
            return False
        return True

    assert process_counts(config) == [n for n in range(1, 2 * len(layers) * replicas) if is_taken(n)]
