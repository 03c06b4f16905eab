"""What a weight update takes after the last pass, against hand-computed values and a ring that goes step by step."""

from __future__ import annotations

from dataclasses import replace
from typing import List, Tuple

import pytest
import torch

from config import Config, load_config
from models.architecture import architecture_of
from models.vit import VisionTransformer
from planning.cost import device_hours
from planning.layout import Layout, layout_on
from planning.loading import IMAGES_PER_CORE
from planning.machines import GB, MACHINES, Machine, named_machine
from planning.report import make_plan, report
from planning.throughput import predict
from planning.traffic import traffic_of
from planning.update import ring_rate, update_time

BLOCKS = 21_263_616  # weights of three blocks of ViT-B
LARGEST = BLOCKS + 2 * 768 + 769 * 1000  # of the last stage: norm and classifier, too


def planned(machine: Machine, *flags: str, name: str = "b16_imagenet1k") -> Tuple[Config, Layout]:
    config = load_config("plan", ["--config", name, *flags])
    return config, layout_on(config, machine, machine.hosts if machine.hosts > 1 else None)


def one_stage(replicas: int, *flags: str) -> List[str]:
    """ViT-B/16 whole on every device."""
    whole = ["--layers-per-ipu", "12", "--ipus-per-replica", "1", "--matmul-proportion", "0.3", "--enable-rts", "false"]
    return [*whole, "--replication-factor", str(replicas), *flags]


def ring_seconds(layout: Layout, numbers: int) -> float:
    """An all-reduce over all devices, step by step: every host's devices carry one ring each over their own adapters.

    In each of 2 (n - 1) steps a device hands an n-th of each ring's numbers to its neighbour; the next host's is one of them.
    """
    devices, hosts, device = layout.num_used, layout.hosts, layout.machine.device
    rings = devices // hosts if hosts > 1 else 1
    assert device.link is not None and device.host_link is not None
    seconds = 0.0
    for _ in range(2 * (devices - 1)):
        chunk = 4 * numbers / devices / rings
        within = rings * chunk / device.link  # all rings share the links inside a host
        between = chunk / device.host_link if hosts > 1 else 0.0
        seconds += max(within, between)
    return seconds


@pytest.mark.parametrize("hosts", [1, 2, 8, 64])
def test_an_all_reduce_takes_what_a_ring_takes_step_by_step(hosts: int) -> None:
    machine = named_machine("h100x8", hosts)
    machine = replace(machine, device=replace(machine.device, latency=0.0))
    config, layout = planned(machine, *one_stage(8 * hosts))
    assert layout.num_used == 8 * hosts
    found = update_time(config, layout, traffic_of(config, layout)).reduction
    assert found == pytest.approx(ring_seconds(layout, num_parameters(config)), rel=1e-6)


def test_a_ring_is_as_fast_as_its_slowest_link() -> None:
    _, one_host = planned(named_machine("h100x8", None), *one_stage(8))
    _, two_hosts = planned(named_machine("h100x8", 2), *one_stage(16))
    assert (ring_rate(one_host), ring_rate(two_hosts)) == (450 * GB, 400 * GB)  # eight adapters of 50 side by side
    _, stages = planned(named_machine("h100x8", 2), "--replication-factor", "4")  # two replicas of four stages a host
    assert ring_rate(stages) == 100 * GB


def test_each_message_has_its_latency_there_and_back_through_a_tree() -> None:
    machine = named_machine("h100x8", 64)
    config, layout = planned(machine, *one_stage(512))
    near = replace(layout, machine=replace(machine, device=replace(machine.device, latency=0.0)))
    traffic = traffic_of(config, layout)
    extra = update_time(config, layout, traffic).reduction - update_time(config, near, traffic).reduction
    # 86.6 million gradients are 6 messages of 2^24; 512 = 2^9 devices.
    assert extra == pytest.approx(6 * 2 * 9 * 10e-6)


def test_the_optimizers_step_moves_weights_gradients_and_state() -> None:
    flags = ["--precision", "32.32", "--optimizer", "AdamW", "--replication-factor", "1"]
    config, layout = planned(named_machine("h100x8", None), *flags, "--first-order-type", "fp32")
    # Gradient read twice and cleared, weight and two moments read and written; a step counter of 4 bytes a parameter.
    moved = LARGEST * (3 * 4 + 2 * (4 + 4 + 4)) + 2 * 4 * (3 * 12 + 4)
    found = update_time(config, layout, traffic_of(config, layout))
    assert found.optimizer == pytest.approx(moved / 3.35e12, rel=1e-9)
    assert found.between_replicas == 0


def test_state_off_the_chip_is_streamed_both_ways() -> None:
    flags = ["--replication-factor", "1", "--enable-rts", "false", "--optimizer-state-offchip"]
    on, layout = planned(MACHINES["pod16"], *flags, "false")
    off, _ = planned(MACHINES["pod16"], *flags, "true")
    extra = [update_time(config, layout, traffic_of(config, layout)).optimizer for config in (on, off)]
    # Momentum in fp16; what is streamed is not moved in the chip's memory, which is nothing beside it.
    assert extra[1] - extra[0] == pytest.approx(2 * 2 * LARGEST / 5e9, rel=1e-3)


def test_few_cores_limit_the_images_a_second() -> None:
    machine = replace(MACHINES["h100x8"], cores=2)
    config, layout = planned(machine, *one_stage(8))
    assert predict(config, layout).images_per_second == 2 * IMAGES_PER_CORE
    assert "limited by loading: 2 cores a host" in report(make_plan(config, layout))
    generated = config.model_copy(update={"dataset": "generated"})
    assert (predict(generated, layout).images_per_second or 0) > 10 * IMAGES_PER_CORE


def test_a_recipe_costs_its_images_over_the_rate_on_every_device() -> None:
    config, layout = planned(MACHINES["pod16"], name="b16_in1k_pretrain_lamb")
    prediction = predict(config, layout)
    # 600 epochs of 19 updates of 65,536 images, at 7,614.5 a second on 16 IPUs.
    assert device_hours(config, layout, prediction) == pytest.approx(600 * 19 * 65_536 / 7_614.5 * 16 / 3_600, rel=1e-3)
    folder, _ = planned(MACHINES["pod16"], "--num-labels", "2", "--runtime", "auto", name="folder")
    assert device_hours(folder, layout, prediction) is None


def num_parameters(config: Config) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in VisionTransformer(architecture_of(config), None).parameters())
