"""The simulator beside the formulas of the papers, and its orders beside torch's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from planning.schedule import (
    Action,
    bubble,
    idle_share,
    makespan,
    most_in_flight,
    orders_of,
    simulate,
    simulate_lockstep,
    simulate_shared,
)

SHAPES = [(1, 4), (2, 2), (4, 4), (4, 8), (4, 30), (3, 128), (8, 8)]


@pytest.mark.parametrize(("stages", "micro_batches"), SHAPES)
@pytest.mark.parametrize("backward", [2.0, 3.0])
def test_equal_stages_have_the_bubble_of_the_formula(stages: int, micro_batches: int, backward: float) -> None:
    times = [1.0] * stages, [backward] * stages
    runs = [simulate(orders_of(name, stages, stages, micro_batches), *times) for name in ("gpipe", "1f1b")]
    runs.append(simulate_lockstep(*times, micro_batches))
    for events in runs:
        assert makespan(events) == pytest.approx((micro_batches + stages - 1) * (1 + backward))
        assert idle_share(events, stages) == pytest.approx((stages - 1) / (micro_batches + stages - 1))
        assert idle_share(events, stages) == pytest.approx(bubble(stages, micro_batches))


@pytest.mark.parametrize(("processes", "chunks", "micro_batches"), [(2, 2, 4), (4, 2, 8), (4, 3, 8), (2, 4, 16)])
def test_interleaving_divides_the_bubble_by_the_parts_a_process(
    processes: int, chunks: int, micro_batches: int
) -> None:
    parts = processes * chunks
    events = simulate(orders_of("interleaved", processes, parts, micro_batches), [1.0] * parts, [2.0] * parts)
    expected = (processes - 1) / (chunks * micro_batches + processes - 1)
    assert idle_share(events, processes) == pytest.approx(expected)
    assert bubble(processes, micro_batches, chunks) == pytest.approx(expected)


@pytest.mark.parametrize(("processes", "chunks", "micro_batches"), [(2, 2, 4), (4, 2, 8), (2, 3, 6)])
def test_interleaved_orders_are_torchs(processes: int, chunks: int, micro_batches: int) -> None:
    schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    stub = SimpleNamespace(
        n_local_stages=chunks,
        pp_group_size=processes,
        _n_microbatches=micro_batches,
        number_of_rounds=max(1, micro_batches // processes),
        microbatches_per_round=micro_batches // max(1, micro_batches // processes),
    )
    for rank, order in enumerate(orders_of("interleaved", processes, processes * chunks, micro_batches)):
        theirs = schedules.ScheduleInterleaved1F1B._calculate_single_rank_operations(stub, rank)
        found = [
            ("F" if step.computation_type.name == "FORWARD" else "B", step.stage_index, step.microbatch_index)
            for step in theirs
            if step is not None  # it waits
        ]
        assert [tuple(action) for action in order] == found


@pytest.mark.parametrize(("schedule", "theirs"), [("gpipe", "ScheduleGPipe"), ("1f1b", "Schedule1F1B")])
def test_orders_are_torchs(schedule: str, theirs: str) -> None:
    schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    kind = getattr(schedules, theirs)
    if not hasattr(kind, "_get_pipeline_order"):
        pytest.skip("this torch does not tell the order")
    order = kind._get_pipeline_order(SimpleNamespace(_num_stages=4, _n_microbatches=8))
    names = {"FORWARD": "F", "FULL_BACKWARD": "B"}
    for stage, ours in enumerate(orders_of(schedule, 4, 4, 8)):
        steps = [step for step in order[stage] if step is not None and step.computation_type.name in names]
        found = [(names[step.computation_type.name], step.microbatch_index) for step in steps]
        if (
            stage == 3 and schedule == "1f1b"
        ):  # torch 2.13 numbers the last stage's forwards from 1; it runs them from 0
            assert [kind for kind, _ in found] == [action.kind for action in ours]
        else:
            assert found == [(action.kind, action.micro_batch) for action in ours]


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved"])
def test_no_action_begins_before_what_it_needs_and_no_process_does_two_at_once(schedule: str) -> None:
    parts = 8 if schedule == "interleaved" else 4
    forward, backward = [1.0 + part / 7 for part in range(parts)], [2.0 + part / 3 for part in range(parts)]
    events = simulate(orders_of(schedule, 4, parts, 8), forward, backward)
    ends = {event.action: event.end for event in events}
    assert len(ends) == len(events) == 2 * 8 * parts
    for event in events:
        kind, part, number = event.action
        before = Action(kind, part - 1 if kind == "F" else part + 1, number)
        if kind == "B" and part == parts - 1:
            before = Action("F", part, number)
        assert event.start >= ends.get(before, 0.0)
    for process in range(4):
        own = sorted((event.start, event.end) for event in events if event.process == process)
        assert all(first[1] <= second[0] for first, second in zip(own, own[1:]))
    assert simulate(orders_of(schedule, 4, parts, 8), forward, backward) == events


def test_in_lockstep_all_wait_for_the_slowest_stage() -> None:
    events = simulate_lockstep([1.0, 2.0, 1.0], [2.0, 4.0, 2.0], 10)
    # Cycle by cycle: F of stage 0; F of 1; F and B of 2; eight times F and B of 1; B of 1 twice; B of 0.
    assert makespan(events) == pytest.approx(1.0 + 2.0 + 3.0 + 8 * 6.0 + 2 * 4.0 + 2.0)


def test_what_waits_is_counted_from_the_order() -> None:
    order = [Action("F", 0, 0), Action("F", 2, 0), Action("B", 2, 0), Action("F", 0, 1), Action("B", 0, 0)]
    assert most_in_flight(order, [10, 0, 1]) == (2, 20)


UNEQUAL = [1.0, 1.5, 0.5, 2.0], [2.0, 2.5, 1.5, 3.0]


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_with_a_core_for_each_process_nothing_is_shared(schedule: str) -> None:
    orders = orders_of(schedule, 4, 4, 6)
    alone, shared = simulate(orders, *UNEQUAL), simulate_shared(orders, *UNEQUAL, cores=4)
    assert {event.action: (event.start, event.end) for event in shared} == {
        event.action: pytest.approx((event.start, event.end)) for event in alone
    }


@pytest.mark.parametrize("cores", [0.5, 1.0])
def test_processes_that_share_one_core_take_the_time_of_all_their_work(cores: float) -> None:
    """Someone is always at work."""
    events = simulate_shared(orders_of("1f1b", 4, 4, 6), *UNEQUAL, cores=cores)
    assert makespan(events) == pytest.approx(6 * sum(map(sum, UNEQUAL)) / cores)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize("cores", [1.5, 2.0, 3.0])
def test_processes_that_share_cores_end_when_small_steps_of_time_say(schedule: str, cores: float) -> None:
    orders = orders_of(schedule, 4, 4, 5)
    assert makespan(simulate_shared(orders, *UNEQUAL, cores=cores)) == pytest.approx(
        _end_by_small_steps(orders, cores), rel=0.01
    )


def _end_by_small_steps(orders: Any, cores: float, step: float = 0.002) -> float:
    """Every process that can work does cores / n of a step's work, step by step."""
    forward, backward = UNEQUAL
    done, position, worked, now = set(), [0] * len(orders), [0.0] * len(orders), 0.0
    while any(position[p] < len(order) for p, order in enumerate(orders)):
        ready = []
        for process, order in enumerate(orders):
            if position[process] < len(order):
                kind, part, number = order[position[process]]
                before = ("F", part - 1, number) if kind == "F" else ("B", part + 1, number)
                if kind == "B" and part == 3:
                    before = ("F", 3, number)
                if (kind == "F" and part == 0) or before in done:
                    ready.append(process)
        now += step
        for process in ready:
            action = orders[process][position[process]]
            worked[process] += step * min(1.0, cores / len(ready))
            if worked[process] >= (forward if action.kind == "F" else backward)[action.part] - 1e-9:
                worked[process] = 0.0
                position[process] += 1
                done.add(tuple(action))
    return now
