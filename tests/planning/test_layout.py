"""Where stages go on a machine, what is sent, and what is expected of it."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import Any, List, Optional, Sequence

import pytest

from config import Config, load_config
from dataset.order import TrainOrder
from dataset.registry import open_source
from errors import UserError
from ipu_plan import num_reserved
from placement import place_ipu
from planning.balance import balance, compositions, smallest_slowest
from planning.layout import Layout, layout_on
from planning.length import updates_of
from planning.machines import MACHINES, named_machine, this_machine
from planning.published import FIGURES, figures_for
from planning.report import make_plan, report, summary
from planning.throughput import predict
from planning.traffic import traffic_of
from planning.units import duration_text, rounded, size_text


def config_of(name: str, *flags: str, command: str = "plan") -> Config:
    return load_config(command, ["--config", name, *flags])


def layout_of(config: Config, machine: str, hosts: Optional[int] = None) -> Layout:
    return layout_on(config, named_machine(machine, hosts), hosts)


def test_a_pod64_uses_the_ipus_that_the_config_has_replicas_for_and_says_so() -> None:
    layout = layout_of(config_of("b16_imagenet1k"), "pod64")
    assert (layout.num_used, layout.hosts) == (16, 4)
    assert [layout.host(layout.device(group, 0)) for group in range(4)] == [0, 1, 2, 3]
    assert "16 of the 64 IPUs" in layout.notes[0]
    assert "--replication-factor 16" not in layout.notes[0]  # 120 micro-batches are no multiple of 16
    assert "--gradient-accumulation 32" in layout_of(config_of("b16_in1k_pretrain"), "pod64").notes[0]


def test_too_many_replicas_fold_and_keep_the_global_batch() -> None:
    config = config_of("b16_imagenet1k", "--replication-factor", "8")
    layout = layout_of(config, "pod16")
    assert layout.placement.replica_groups == 4
    assert "8 replicas of 4 IPUs need 32" in layout.notes[0]
    assert "--replication-factor 4 --gradient-accumulation 60" in layout.notes[0]
    assert predict(config, layout).micro_batches == 60


def test_ipus_are_taken_by_powers_of_two() -> None:
    assert [num_reserved(count) for count in (1, 2, 3, 4, 5, 12, 16)] == [1, 2, 4, 4, 8, 16, 16]
    config = config_of("b16_imagenet1k", "--replication-factor", "3")
    assert any("12 IPUs are computed with, 16 are taken" in note for note in layout_of(config, "pod16").notes)


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("b16_imagenet1k", ["--gradient-accumulation", "6"]),
        ("digits", ["--runtime", "ipu"]),
        ("b16_imagenet1k", ["--optimizer", "Lion"]),
        ("b16_imagenet1k", ["--precision", "bf16.16"]),
        ("b16_imagenet1k", []),
    ],
)
def test_what_a_run_on_ipus_would_refuse_the_plan_says(name: str, flags: List[str]) -> None:
    config = config_of(name, *flags)
    plan = make_plan(config, layout_of(config, "pod16"))
    try:
        place_ipu(config)
    except UserError as error:
        assert f"PopTorch would refuse this plan: {error}" in report(plan)
        assert f"; PopTorch would refuse it: {str(error).splitlines()[0].rstrip('.')}" in summary(plan)
    else:
        assert "PopTorch would refuse" not in report(plan) + summary(plan)
    assert "\n" not in summary(plan)


@pytest.mark.parametrize("machine", ["pod16", "pod64"])
@pytest.mark.parametrize("accumulation", [1, 4, 7, 16, 28, 30, 56, 112])
@pytest.mark.parametrize("replicas", [1, 2])
def test_flags_that_use_all_ipus_do_so_and_poptorch_takes_them(machine: str, accumulation: int, replicas: int) -> None:
    config = config_of("b16_imagenet1k", *_sized(replicas, accumulation))
    note = layout_of(config, machine).notes[0]
    same = re.search(r"--replication-factor (\d+) --gradient-accumulation (\d+) would use (\d+) with the same", note)
    other = re.search(r"(\d+) replicas.*; gradient accumulation (\d+) would make global batch ([\d,]+)", note)
    found = same or other
    assert found is not None
    fuller = config_of("b16_imagenet1k", *_sized(int(found.group(1)), int(found.group(2))))
    layout = layout_of(fuller, machine)
    assert layout.num_used == layout.machine.num_devices
    assert not layout.refusals
    assert (fuller.global_batch_size == config.global_batch_size) == (same is not None)
    if other is not None:
        assert f"{fuller.global_batch_size:,}" == other.group(3)


def _sized(replicas: int, accumulation: int) -> List[str]:
    return ["--replication-factor", str(replicas), "--gradient-accumulation", str(accumulation)]


@pytest.mark.parametrize(
    ("name", "flags", "machine", "words"),
    [
        ("digits", [], "pod16", "--runtime ipu"),
        ("digits_single", [], "pod64", "--runtime ipu"),
        ("b16_imagenet1k", ["--runtime", "ipu"], "h200x8", "--machine pod16"),
        ("b16_imagenet1k", ["--runtime", "ipu"], "cpu", "--machine pod16"),
    ],
)
def test_a_runtime_that_the_machine_is_not_for_is_refused(
    name: str, flags: List[str], machine: str, words: str
) -> None:
    with pytest.raises(UserError, match=f"runtime = .*\n.*{words}"):
        layout_of(config_of(name, *flags), machine)


@pytest.mark.parametrize(
    ("name", "machine", "hosts", "words"),
    [
        ("b16_imagenet1k", "pod16", 3, "--hosts 3"),
        ("b16_imagenet1k", "pod64", 8, "pod64 has 4 hosts"),
        ("b16_imagenet1k", "pod16", 2, "pod16 has 1 host"),
        ("digits", "cpu", 3, "--hosts 3: 4 processes .*\n.*Give 1, 2 or 4"),
        ("digits_single", "cpu", 2, "1 process cannot .*\n.*--runtime pipeline"),
    ],
)
def test_hosts_that_cannot_share_evenly_are_refused(name: str, machine: str, hosts: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        layout_of(config_of(name, "--device", "cpu"), machine, hosts)


def test_more_stages_than_ipus_are_refused(tmp_path: Any) -> None:
    flags = ["--layers-per-ipu", *["1"] * 17, "--ipus-per-replica", "17", "--num-hidden-layers", "17"]
    config = config_of("b16_imagenet1k", *flags, "--matmul-proportion", "0.3")
    with pytest.raises(UserError, match="17 stages, but pod16 has 16"):
        layout_of(config, "pod16")


def test_traffic_is_tokens_there_and_gradients_back() -> None:
    config = config_of("b16_imagenet1k")
    traffic = traffic_of(config, layout_of(config, "pod16"))
    tokens = 17 * 197 * 768 * 2
    assert traffic.boundaries == [tokens] * 3
    assert traffic.per_update == 30 * 2 * 3 * tokens
    # 21,263,616 weights of three blocks in fp16: each IPU sends three quarters to the other three, and its new weights.
    assert traffic.reduction[1] == traffic.sharing[1] == 3 * 2 * 21_263_616 // 4


def test_replicas_on_torch_add_up_in_float32() -> None:
    config = config_of("b16_imagenet1k", "--enable-rts", "false")
    traffic = traffic_of(config, layout_of(config, "h200x8"))
    assert traffic.reduction[1] == 2 * 4 * 21_263_616 // 2
    assert traffic.sharing == [0, 0, 0, 0]


def test_a_head_alone_gets_the_class_token_alone() -> None:
    config = config_of("b16_imagenet1k", "--layers-per-ipu", "4", "4", "4", "0")
    assert traffic_of(config, layout_of(config, "pod16")).boundaries[-1] == 17 * 768 * 2


PAGE = Path(__file__).resolve().parents[2] / "docs" / "planning.md"
PUBLISHED = {  # what the config has to be for a figure: name, flags
    ("pod16", 65_536): ("b16_in1k_pretrain_lamb", []),
    ("pod64", 65_536): ("b16_in1k_pretrain_lamb", ["--replication-factor", "16", "--gradient-accumulation", "512"]),
    ("pod16", 2_040): ("b16_imagenet1k", []),
    ("pod16-gc200", 2_176): ("b16_imagenet1k", ["--gradient-accumulation", "32"]),
}


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.what)
def test_predictions_beside_published_figures(figure: Any) -> None:
    name, flags = PUBLISHED[figure.machine, figure.global_batch_size]
    config = config_of(name, *flags)
    layout = layout_of(config, figure.machine)
    assert figure in figures_for(config, layout)
    ratio = (predict(config, layout).images_per_second or 0) / figure.images_per_second
    assert ratio == pytest.approx(1.0, abs=0.001 if figure.sets_efficiency else 0.1)
    assert f"{ratio:.3f}" in PAGE.read_text(encoding="utf-8")  # that the page tells of


def test_one_figure_alone_sets_the_efficiency() -> None:
    assert [figure.sets_efficiency for figure in FIGURES].count(True) == 1


@pytest.mark.parametrize(
    ("name", "updates"),
    [
        ("b16_cifar10", 2_000),
        ("cifar10_small", 8_700),  # 87 of 45,000 images an epoch: 5,000 are held out
        ("b16_imagenet1k", 5_000),
        ("b16_in1k_pretrain", 93_600),
        ("b16_in1k_pretrain_lamb", 11_400),
        ("digits", 880),
        ("folder", None),
    ],
)
def test_weight_updates_are_those_of_the_recipe(name: str, updates: Optional[int]) -> None:
    assert updates_of(config_of(name)) == updates


@pytest.mark.parametrize("share", ["0", "0.1", "0.2", "0.333", "0.5", "0.9"])
def test_updates_of_the_digits_are_those_that_the_loader_makes(share: str) -> None:
    config = config_of("digits", "--validation-split", share, "--epochs", "3", "--device-iterations", "2")
    source = open_source(config, "train")
    assert source is not None
    assert updates_of(config) == 3 * 2 * TrainOrder(len(source), config, (0,)).steps_per_epoch


def test_a_figure_is_of_its_own_split_and_micro_batches() -> None:
    """All of these have the published global batch."""
    for flags in (
        ["--layers-per-ipu", "2", "4", "4", "2"],
        ["--micro-batch-size", "34", "--gradient-accumulation", "15"],
        ["--micro-batch-size", "10", "--gradient-accumulation", "51"],
    ):
        config = config_of("b16_imagenet1k", *flags)
        assert config.global_batch_size == 2_040
        assert figures_for(config, layout_of(config, "pod16")) == []


@pytest.mark.parametrize(
    ("micro_batch", "is_tight", "fits"), [(17, False, True), (24, False, True), (30, True, True), (45, False, False)]
)
def test_a_full_ipu_is_told(micro_batch: int, is_tight: bool, fits: bool) -> None:
    config = config_of("b16_imagenet1k", "--micro-batch-size", str(micro_batch))
    plan = make_plan(config, layout_of(config, "pod16"))
    share = 100 * max(memory.total for memory in plan.memories) / 900e6
    assert (67 <= share <= 100) == is_tight
    assert ("\ntight: stage 0" in report(plan)) == is_tight
    assert (f"DOES NOT FIT ({share:.1f} % of an IPU)" in summary(plan)) == (not fits) == (share > 100)


@pytest.mark.parametrize(
    ("flags", "others"), [([], "1, 2, 3"), (["--gradient-accumulation", "2"], "1"), (["--layers-per-ipu", "4"], "none")]
)
def test_the_plan_names_the_processes_that_it_folds_onto(flags: List[str], others: str) -> None:
    if "--layers-per-ipu" in flags:
        flags = [*flags, "--ipus-per-replica", "1"]
    config = config_of("digits", "--device", "cpu", *flags)
    plan = make_plan(config, layout_on(config, this_machine(0), None))
    assert f"also folds onto, with the same result: {others}\n" in report(plan)


def test_the_summary_is_one_line() -> None:
    config = config_of("b16_imagenet1k")
    line = summary(make_plan(config, layout_of(config, "pod16")))
    assert line.startswith(
        "b16_imagenet1k: 16 IPUs, global batch 2,040, 5,000 updates, bubble 9.1 %, fullest stage 0: 428 MiB, "
    )
    assert "\n" not in line
    assert [rounded(number) for number in (7_003.2, 27_868, 6.54, 0.4321, 0)] == [
        "7,000",
        "27,900",
        "6.54",
        "0.432",
        "0",
    ]


@pytest.mark.parametrize("number", [10.0**n * first for n in range(-6, 9) for first in (1.0, 1.2345, 9.994, 9.996)])
def test_three_figures_are_those_of_scientific_notation(number: float) -> None:
    assert float(rounded(number).replace(",", "")) == float(f"{number:.2e}")
    assert "e" not in rounded(number)


def test_sizes_and_durations_have_the_unit_that_suits_them() -> None:
    sizes = [0, 512, 2_000, 69_632, 2**20, 5_888_888, 428 * 2**20, 5 * 2**30]
    assert [size_text(number) for number in sizes] == [
        *("0 B", "512 B", "1.95 KiB", "68.0 KiB", "1.00 MiB", "5.62 MiB", "428 MiB", "5,120 MiB")
    ]
    assert [duration_text(seconds) for seconds in (5.25e-5, 0.00207, 0.2893, 12.0)] == [
        *("52.5 µs", "2.07 ms", "289 ms", "12.0 s")
    ]


def test_bfloat16_on_ipus_is_no_speed() -> None:
    config = config_of("b16_imagenet1k", "--precision", "bf16.16")
    assert predict(config, layout_of(config, "pod16")).images_per_second is None


@pytest.mark.parametrize(("stages", "depth"), [(1, 5), (2, 5), (3, 7), (4, 6), (5, 5), (4, 7)])
@pytest.mark.parametrize("weights", [(3.0, 1.0, 4.0, 1.5, 5.0, 9.0, 2.0), (20.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)])
def test_the_splits_with_the_smallest_slowest_stage_are_found_among_all(stages: int, depth: int, weights: Any) -> None:
    def costs(stage: int, first: int, count: int) -> float:
        return sum(weights[first : first + count]) + (2.5 if stage == 0 else 0) + (1.0 if stage == stages - 1 else 0)

    def slowest(layers: Sequence[int]) -> float:
        return max(costs(stage, sum(layers[:stage]), count) for stage, count in enumerate(layers))

    possible = [
        layers for layers in product(range(depth + 1), repeat=stages) if sum(layers) == depth and 0 not in layers[1:-1]
    ]
    least = smallest_slowest(costs, stages, depth)
    assert least == min(map(slowest, possible))
    assert sorted(compositions(costs, stages, depth, least)) == [split for split in possible if slowest(split) == least]


def test_balance_moves_blocks_from_the_slowest_stage() -> None:
    config = config_of("b16_imagenet1k", "--layers-per-ipu", "2", "4", "4", "2")
    before, after = balance(config, MACHINES["pod16"], None)
    assert after.slowest < 0.8 * before.slowest
    assert max(after.layers) == 3
    assert (after.prediction.images_per_second or 0) > 1.2 * (before.prediction.images_per_second or 0)
    assert config.layers_per_ipu == (2, 4, 4, 2)


def test_a_machine_of_cpus_is_this_one() -> None:
    machine = this_machine(0, 2)
    assert (machine.device.kind, machine.hosts) == ("cpu", 2)
