"""What `train_throughput.py` has measured, as tables: rates, ratios, shares of the machine's matrix products, verdicts."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

from benchmarks.facts import spread

OURS = "single"
TIMES_PEER, SHARE_OF_RATE = 1.2, 0.9  # the target: the lower of the two
Row = Dict[str, Any]  # a model and a batch, as `train_throughput.measured_row` makes it
Cells = List[List[str]]

RATES = ("model", "batch", "contender", "precision", "setting", "rounds", "images/s", "min", "max", "model's", "done")
VERDICTS = ("model", "batch", "ours", "best peer", "ours / it", "min", "max", "1.2 x peer", "90 % of rate", "target")
PRODUCTS = ("model", "batch", "fp32 GFLOP/s", "min", "max", "bf16 GFLOP/s", "min", "max", "rows in bf16")
COMPILED = (
    "model",
    "batch",
    "contender",
    "precision",
    "as it is, images/s",
    "compiled",
    "ratio",
    "compile",
    "pays after",
)


def rate_rows(rows: Sequence[Row]) -> Cells:
    """Everyone's images a second, and share of the better matmul rate by the model's operations and by those it does."""
    return [_rate_cells(row, each) for row in rows for each in row["contenders"]]


def _rate_cells(row: Row, each: Dict[str, Any]) -> List[str]:
    speeds = spread(each["images_per_second"])
    shares = [f"{100 * speeds['median'] * flops / best_rate(row):.0f} %" for flops in flops_of(row, each)]
    who = [row["model"], str(row["batch"]), each["name"], each["precision"], each["setting"]]
    return [*who, str(len(each["images_per_second"])), *map(_rate, speeds.values()), *shares]


def flops_of(row: Row, each: Dict[str, Any]) -> Tuple[int, int]:
    """Training on one image: of the model, and done. We compute the last block for the class token alone."""
    return row["flops_of_model"], row["flops_of_ours"] if each["name"] == OURS else row["flops_of_model"]


def best_rate(row: Row) -> float:
    """FLOP/s of matrix products in the faster of the two kinds of numbers."""
    return max(spread(rates)["median"] for rates in row["matmul"].values())


def best(row: Row, ours: bool) -> Dict[str, Any]:
    """Our setting, or the peers', with the highest median."""
    those = [each for each in row["contenders"] if (each["name"] == OURS) == ours]
    return max(those, key=lambda each: spread(each["images_per_second"])["median"])


def ratios(first: Dict[str, Any], second: Dict[str, Any]) -> List[float]:
    """Round by round; of the medians, where one was measured once only."""
    pair = first["images_per_second"], second["images_per_second"]
    if len(pair[0]) != len(pair[1]):
        return [spread(pair[0])["median"] / spread(pair[1])["median"]]
    return [a / b for a, b in zip(*pair)]


def verdict_rows(rows: Sequence[Row]) -> Cells:
    """Our best setting against the best peer at its best, and the target of the row."""
    return [_verdict_cells(row) for row in rows]


def _verdict_cells(row: Row) -> List[str]:
    ours, peer = best(row, True), best(row, False)
    speed, limits = spread(ours["images_per_second"])["median"], targets(row)
    ratio = spread(ratios(ours, peer))
    is_met = ratio["median"] >= TIMES_PEER or speed >= limits[1]
    verdict = "met" if is_met else f"missed: {speed / min(limits):.2f} of it"
    shown = [f"{value:.2f}" for value in ratio.values()]
    return [row["model"], str(row["batch"]), _named(ours), _named(peer), *shown, *map(_rate, limits), verdict]


def targets(row: Row) -> Tuple[float, float]:
    """Images a second: 1.2 times the best peer's, and at 90 % of the better matmul rate with the operations that we do."""
    peer, ours = best(row, False), best(row, True)
    times_peer = spread(ours["images_per_second"])["median"] / spread(ratios(ours, peer))["median"] * TIMES_PEER
    return times_peer, SHARE_OF_RATE * best_rate(row) / row["flops_of_ours"]


def _named(each: Dict[str, Any]) -> str:
    return f"{each['name']}, {each['precision']}" + ", compiled" * each["compiled"]


def product_rows(rows: Sequence[Row]) -> Cells:
    """The machine's speed in the products of a block, measured in every round."""
    return [_product_cells(row) for row in rows]


def _product_cells(row: Row) -> List[str]:
    rates = [f"{value / 1e9:.0f}" for kind in ("fp32", "bf16") for value in spread(row["matmul"][kind]).values()]
    return [row["model"], str(row["batch"]), *rates, f"{row['matmul_rows']['bf16']:,}"]


def compiled_rows(rows: Sequence[Row]) -> Cells:
    """Whoever was measured compiled and not: what it gives, what it costs, and after how many steps it has paid."""
    pairs = [(row, each, _uncompiled(row, each)) for row in rows for each in row["contenders"] if each["compiled"]]
    return [_compiled_cells(row, each, plain) for row, each, plain in pairs if plain is not None]


def _uncompiled(row: Row, compiled: Dict[str, Any]) -> Optional[Dict[str, Any]]:
    alike = ("name", "precision")
    those = [each for each in row["contenders"] if all(each[key] == compiled[key] for key in alike)]
    return next((each for each in those if not each["compiled"]), None)


def _compiled_cells(row: Row, compiled: Dict[str, Any], plain: Dict[str, Any]) -> List[str]:
    before, after = (spread(each["images_per_second"])["median"] for each in (plain, compiled))
    steps = steps_until_paid(compiled["compile_seconds"], row["batch"] / before, row["batch"] / after)
    who = [row["model"], str(row["batch"]), compiled["name"], compiled["precision"]]
    ratio = f"{spread(ratios(compiled, plain))['median']:.2f}"
    return [*who, _rate(before), _rate(after), ratio, f"{compiled['compile_seconds']:.0f} s", steps]


def steps_until_paid(compile_seconds: float, before: float, after: float) -> str:
    """`before` and `after`: seconds a step."""
    return f"{compile_seconds / (before - after):,.0f} steps" if after < before else "never"


def _rate(images_per_second: float) -> str:
    return f"{images_per_second:.2f}" if images_per_second < 100 else f"{images_per_second:,.0f}"


def markdown(headers: Sequence[str], rows: Cells) -> str:
    """A table for the docs."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
