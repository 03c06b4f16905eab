"""A report's timeline of a weight update, out of what the processes have measured, or out of the plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, List, Optional, Sequence, Tuple

from models.architecture import architecture_of, count_forward_flops
from planning.schedule import BACKWARD, bubble, idle_share, makespan, simulate_lockstep
from reporting.records import Span, Timeline
from runtime.base import Piece, Trace

if TYPE_CHECKING:
    from config import Config
    from placement import Placement

MOST_SPANS = 4000  # that are shown; of a longer update those that begin first
PASSES = ("forward", "backward")


def measured_timeline(config: Config, placement: Placement, step: int, traces: Sequence[Trace]) -> Timeline:
    """From the traces of all processes, by rank."""
    rows = _rows(placement)
    pieces = {rank: _on_one_clock(trace, traces) for rank, trace in enumerate(traces)}
    size = placement.pipeline_size
    micro_batches = config.gradient_accumulation * placement.folded_replicas
    return Timeline(
        step=step,
        rows=tuple(_row_name(placement, rank, part, traces[rank].where) for rank, part in rows),
        spans=_spans(pieces, rows),
        num_left_out=_num_left_out(pieces),
        schedule=config.schedule if size > 1 else "one device",
        bubble=measured_bubble(list(pieces.values())),
        expected_bubble=bubble(size, micro_batches, len(placement.parts) // size),
    )


def planned_timeline(config: Config, placement: Placement, step: int, seconds: float) -> Timeline:
    """What IPUs should do in a weight update that took so many seconds: they do not tell.

    As `planning` has it: parts take as long as their matrix products, backward passes twice that, and all stages wait for the
    slowest in every cycle. The update itself is left out.
    """
    arch = architecture_of(config)
    forward = [float(sum(count_forward_flops(arch, unit) for unit in part.units)) for part in placement.parts]
    events = simulate_lockstep(forward, [2 * flops for flops in forward], config.gradient_accumulation)
    scale = seconds / makespan(events)
    rows = _rows(placement)
    pieces = {
        rank: [
            Piece(
                part=event.action.part,
                kind="backward" if event.action.kind == BACKWARD else "forward",
                micro_batch=event.action.micro_batch * placement.replica_groups + placement.replica_group(rank),
                begin=event.start * scale,
                end=event.end * scale,
            )
            for event in events
            if event.process == placement.pipeline_rank(rank)
        ]
        for rank, _ in rows
    }
    return Timeline(
        step=step,
        rows=tuple(_row_name(placement, rank, part, "IPU") for rank, part in rows),
        spans=_spans(pieces, rows),
        num_left_out=_num_left_out(pieces),
        schedule="IPU",
        expected_bubble=idle_share(events, placement.pipeline_size),
        is_measured=False,
    )


def measured_bubble(processes: Sequence[Sequence[Piece]]) -> Optional[float]:
    """Idle share of all processes' time from the first forward to the last backward pass anywhere."""
    passes = [piece for pieces in processes for piece in pieces if piece.kind in PASSES]
    if not passes:
        return None
    length = max(piece.end for piece in passes) - min(piece.begin for piece in passes)
    busy = sum(piece.end - piece.begin for piece in passes)
    return max(0.0, 1.0 - busy / (len(processes) * length)) if length > 0 else None


def _on_one_clock(trace: Trace, traces: Sequence[Trace]) -> List[Piece]:
    """A process's pieces, in seconds since all began: the first that did so on a host sets its clock."""
    begun = min(other.origin for other in traces if other.host == trace.host)
    return [piece._replace(begin=piece.begin - begun, end=piece.end - begun) for piece in trace.pieces]


def _rows(placement: Placement) -> List[Tuple[int, int]]:
    """(rank, part) of each row: a replica group's parts in the model's order, then the next group's."""
    rows = [(rank, part) for rank in range(placement.num_devices) for part in placement.parts_of(rank)]
    return sorted(rows, key=lambda row: (placement.replica_group(row[0]), row[1]))


def _row_name(placement: Placement, rank: int, part: int, where: str) -> str:
    group = f"replica group {placement.replica_group(rank)}, " if placement.replica_groups > 1 else ""
    number = f" {rank}" if placement.num_processes == 1 < placement.num_devices else ""
    process = f"rank {rank}, " if placement.num_processes > 1 else ""
    return f"{group}stage {part} ({placement.parts[part].describe()}) on {process}{where}{number}"


def _spans(processes: Dict[int, List[Piece]], rows: Sequence[Tuple[int, int]]) -> Tuple[Span, ...]:
    """In the order in which they begin, the first of them at 0."""
    row_of = {row: number for number, row in enumerate(rows)}
    pieces = [(row_of[rank, piece.part], piece) for rank, own in processes.items() for piece in own]
    pieces.sort(key=lambda pair: (pair[1].begin, pair[0]))
    begun = pieces[0][1].begin if pieces else 0.0
    return tuple(
        Span(row, piece.kind, piece.micro_batch, piece.begin - begun, piece.end - begun)
        for row, piece in pieces[:MOST_SPANS]
    )


def _num_left_out(processes: Dict[int, List[Piece]]) -> int:
    return max(0, sum(map(len, processes.values())) - MOST_SPANS)
