"""The measured timeline: schedules on real processes obey their order, and tracing changes no number."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Dict, List, Tuple

import pytest
import torch

import machine
from config import Config
from insight.timeline import MOST_SPANS, measured_bubble, measured_timeline, planned_timeline
from placement import Placement, ipus_for, place_pipeline, place_single
from planning.schedule import bubble, orders_of
from reporting.records import Span, Timeline
from runtime.base import Piece, Trace
from runtime.single import SingleRuntime
from tests.processes import run_processes
from tests.small import host_batch, small_config

PLANS = [
    ([1, 1, 1, 1], "1f1b", 1),
    ([1, 1, 1, 1], "gpipe", 1),
    ([1, 1, 1, 1], "interleaved", 2),
]


@pytest.mark.slow
@pytest.mark.pipeline
@pytest.mark.parametrize(("layers", "schedule", "replicas"), PLANS, ids=[plan[1] for plan in PLANS])
def test_spans_of_a_traced_step_obey_the_schedule(
    tmp_path: Any, layers: List[int], schedule: str, replicas: int
) -> None:
    config = small_config(
        tmp_path,
        layers_per_ipu=layers,
        schedule=schedule,
        replication_factor=replicas,
        runtime="pipeline",
        hidden_dropout_prob=0.1,
        device_iterations=2,
        gradient_accumulation=6,
    )
    placement = place_pipeline(config, 4, 0, 1)
    traces = run_processes(4, trace_a_step, config)
    timeline = measured_timeline(config, placement, 2, traces)
    assert len(timeline.rows) == len(set(timeline.rows)) == replicas * len(layers)
    assert timeline.expected_bubble == bubble(placement.pipeline_size, 6, len(layers) // placement.pipeline_size)
    for group in range(replicas):
        parts = timeline.rows[group * len(layers) :]
        assert all(f"stage {part} (" in name for part, name in zip(range(len(layers)), parts))
        assert_obeys(timeline, config, placement, group)
    assert timeline.bubble == pytest.approx(idle_share(timeline, placement), abs=1e-9)
    assert 0 < idle_share(timeline, placement) < 1


def trace_a_step(rank: int, config: Config) -> Trace:
    """In each process: from the same state a step that is measured, and one that is not, to the last bit the same."""
    from runtime.pipeline import PipelineRuntime

    runtime = PipelineRuntime(config, place_pipeline(config, machine.world_size(), 0, 1), rank, rank)
    runtime.train_step(host_batch(config, runtime.share, 0), config.learning_rate, 0)
    weights, state = parts_of(runtime.weights()), parts_of(runtime.optimizer_state())
    batch, after, traces = host_batch(config, runtime.share, 1), [], []
    for is_traced in (True, False):
        if weights:  # of replica groups but the first, the update's state is not what a checkpoint holds
            runtime.load_weights(weights)
            runtime.load_optimizer_state(state)
        if is_traced:
            runtime.trace_next_step()
        result = runtime.train_step(batch, config.learning_rate, 2)
        after.append((parts_of(runtime.weights()), result))
        traces.append(runtime.trace())
        assert not any(
            name in vars(stage) for stage in runtime._stages for name in ("forward_one_chunk", "backward_one_chunk")
        )
    assert traces[0] is traces[1] is not None  # nothing is measured unasked
    if config.replication_factor == 1:
        assert after[0][1] == after[1][1]
        assert after[0][0].keys() == after[1][0].keys()
        assert all(torch.equal(value, after[1][0][name]) for name, value in after[0][0].items())
    runtime.close()
    return traces[0]


def parts_of(parts: Any) -> Dict[str, torch.Tensor]:
    return {name: value.clone() for tensors in parts.values() for name, value in tensors.items()}


def assert_obeys(timeline: Timeline, config: Config, placement: Placement, group: int) -> None:
    """Each process does what its schedule says, one thing at a time; micro-batches go forward and back through the stages."""
    num_parts = len(placement.parts)
    passes = {
        (span.kind, span.row - group * num_parts, span.micro_batch // config.replication_factor): span
        for span in timeline.spans
        if span.kind in ("forward", "backward") and span.row // num_parts == group
    }
    orders = orders_of(config.schedule, placement.pipeline_size, num_parts, config.gradient_accumulation)
    assert len(passes) == sum(map(len, orders))
    for order in orders:
        spans = [passes[{"F": "forward", "B": "backward"}[kind], part, number] for kind, part, number in order]
        assert all(before.end <= after.begin for before, after in zip(spans, spans[1:]))
        rows = {span.row for span in spans}
        (update,) = [span for span in timeline.spans if span.kind == "update" and span.row in rows]
        assert update.begin >= spans[-1].end
    for number in range(config.gradient_accumulation):
        way = [passes["forward", part, number] for part in range(num_parts)]
        way += [passes["backward", part, number] for part in reversed(range(num_parts))]
        assert all(before.end <= after.begin for before, after in zip(way, way[1:]))


def idle_share(timeline: Timeline, placement: Placement) -> float:
    """By walking along the moments at which something begins or ends, process by process."""
    passes = [span for span in timeline.spans if span.kind in ("forward", "backward")]
    moments = sorted({moment for span in passes for moment in (span.begin, span.end)})
    rows = [(rank, part) for rank in range(placement.num_devices) for part in placement.parts_of(rank)]
    rows.sort(key=lambda row: (placement.replica_group(row[0]), row[1]))
    of_rank: Dict[int, List[Span]] = defaultdict(list)
    for span in passes:
        of_rank[rows[span.row][0]].append(span)
    idle = 0.0
    for before, after in zip(moments, moments[1:]):
        working = sum(any(one.begin <= before and after <= one.end for one in own) for own in of_rank.values())
        idle += (placement.num_devices - working) * (after - before)
    return idle / (placement.num_devices * (moments[-1] - moments[0]))


@pytest.mark.parametrize("precision", ["32.32", "16.16"])
def test_one_device_is_one_row_and_a_traced_step_gives_the_same_weights(tmp_path: Any, precision: str) -> None:
    keys = {"device_iterations": 2, "hidden_dropout_prob": 0.1, "replication_factor": 2, "precision": precision}
    config = small_config(tmp_path, **keys)
    runtimes = [SingleRuntime(config, place_single(config), num_cores=1) for _ in range(2)]
    runtimes[0].trace_next_step()
    batch = host_batch(config, runtimes[0].share)
    results = [runtime.train_step(batch, config.learning_rate, 0) for runtime in runtimes]
    assert results[0] == results[1]
    first, second = (parts_of(runtime.weights()) for runtime in runtimes)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert runtimes[1].trace() is None
    timeline = measured_timeline(config, place_single(config), 1, [runtimes[0].trace()])
    assert timeline.rows == ("stage 0 (embed, blocks 0-3, head) on cpu",)
    both = [("forward", number) for number in range(8)], [("backward", number) for number in range(8)]
    in_turn = [one for pair in zip(*both) for one in pair]
    assert [(span.kind, span.micro_batch) for span in timeline.spans] == [("data", -1), *in_turn, ("update", -1)]
    assert (timeline.schedule, timeline.expected_bubble) == ("one device", 0.0)
    assert timeline.bubble is not None and 0 <= timeline.bubble < 1


def even_trace(rank: int, host: int = 0, origin: float = 5.0, micro_batches: int = 3) -> Trace:
    """Of two stages under gpipe, where every pass takes a second."""
    forward = [Piece(rank, "forward", n, origin + n + rank, origin + n + rank + 1.0) for n in range(micro_batches)]
    begun = origin + micro_batches + 1 + (1 - rank)
    backward = [Piece(rank, "backward", n, begun + n, begun + n + 1.0) for n in range(micro_batches)]
    return Trace(host, "cpu", origin, forward + backward)


def two_stages(tmp_path: Any) -> Tuple[Config, Placement]:
    config = small_config(tmp_path, layers_per_ipu=[2, 2], runtime="pipeline", gradient_accumulation=3)
    return config, place_pipeline(config, 2, 0, 1)


def test_of_even_stages_the_measured_bubble_is_the_formula(tmp_path: Any) -> None:
    timeline = measured_timeline(*two_stages(tmp_path), 7, [even_trace(0), even_trace(1)])
    assert timeline.bubble == pytest.approx(1 / 4)
    assert timeline.bubble == pytest.approx(timeline.expected_bubble)
    assert measured_bubble([[]]) is None


def test_clocks_of_two_hosts_are_set_by_the_moment_that_they_share(tmp_path: Any) -> None:
    one_host = measured_timeline(*two_stages(tmp_path), 7, [even_trace(0), even_trace(1)])
    two_hosts = measured_timeline(*two_stages(tmp_path), 7, [even_trace(0), even_trace(1, host=1, origin=1e6)])
    assert two_hosts == one_host
    late = even_trace(1)._replace(origin=5.5)  # on the same host: its clock is the same, whenever it was told to begin
    assert measured_timeline(*two_stages(tmp_path), 7, [even_trace(0), late]) == one_host


def test_of_a_long_update_the_beginning_is_shown_and_the_bubble_is_of_all(tmp_path: Any) -> None:
    traces = [even_trace(rank, micro_batches=MOST_SPANS) for rank in range(2)]
    timeline = measured_timeline(*two_stages(tmp_path), 7, traces)
    assert len(timeline.spans) == MOST_SPANS
    assert timeline.num_left_out == 3 * MOST_SPANS
    assert max(span.begin for span in timeline.spans) == MOST_SPANS // 2
    assert timeline.bubble == pytest.approx(1 / (MOST_SPANS + 1))


def test_ipus_do_not_tell_so_their_plan_is_shown_as_such(tmp_path: Any) -> None:
    config = small_config(tmp_path, layers_per_ipu=[2, 2], replication_factor=2)
    timeline = planned_timeline(config, ipus_for(config, 2), 3, seconds=0.5)
    assert not timeline.is_measured and timeline.bubble is None
    assert timeline.rows[3] == "replica group 1, stage 1 (blocks 2-3, head) on IPU 3"
    assert max(span.end for span in timeline.spans) == pytest.approx(0.5)
    assert {span.micro_batch for span in timeline.spans} == set(range(8))
    assert timeline.expected_bubble is not None and timeline.expected_bubble > bubble(2, 4)  # the stages are not even
