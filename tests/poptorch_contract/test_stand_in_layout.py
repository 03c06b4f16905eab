"""Rows are dealt out as [device iteration][accumulation][replica][micro], and come back by output mode."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch

from tests.poptorch_contract.models import Calls, options_for, trainer

ITERATIONS, ACCUMULATION, REPLICAS, MICRO = 4, 3, 2, 2
ROWS = ITERATIONS * ACCUMULATION * REPLICAS * MICRO


def run(poptorch, mode=None, period=None, reduced=False):
    """The rows that come back of a training call whose output is its input (or, reduced, its mean)."""

    def forward(module, x):
        poptorch.identity_loss(module.weight * x, reduction="mean")
        return x.mean() if reduced else x.clone()

    options = options_for(poptorch, ITERATIONS, ACCUMULATION, REPLICAS)
    if mode is not None:
        options.outputMode(getattr(poptorch.OutputMode, mode), *([period] if period else []))
    return trainer(poptorch, Calls(forward), options)(torch.arange(float(ROWS)))


def numbered():
    return torch.arange(float(ROWS)).view(ITERATIONS, ACCUMULATION, REPLICAS, MICRO)


def test_all_gives_every_row_in_its_place(poptorch):
    assert torch.equal(run(poptorch, "All"), torch.arange(float(ROWS)))


@pytest.mark.parametrize("mode", [None, "Final"])
def test_final_is_the_default_of_training_and_gives_one_micro_batch_a_replica(poptorch, mode):
    assert torch.equal(run(poptorch, mode), numbered()[-1, -1].flatten())


def test_sum_adds_up_the_micro_batches_of_a_replica(poptorch):
    assert torch.equal(run(poptorch, "Sum"), numbered().sum((0, 1)).flatten())


def test_every_n_gives_whole_device_iterations(poptorch):
    assert torch.equal(run(poptorch, "EveryN", 2), numbered()[[1, 3]].flatten())


def test_a_period_has_to_divide_the_device_iterations(poptorch):
    with pytest.raises(poptorch.Error, match="divide"):
        run(poptorch, "EveryN", 3)


@pytest.mark.parametrize(("mode", "length"), [("All", 24), ("Final", 2), ("Sum", 2)])
def test_an_output_without_dimensions_gets_one(poptorch, mode, length):
    assert run(poptorch, mode, reduced=True).shape == (length,)


def test_one_output_without_dimensions_stays_without(poptorch):
    executor = poptorch.inferenceModel(Calls(lambda module, x: x.sum()))
    assert executor(torch.ones(3)).shape == ()


def test_all_is_the_default_of_inference(poptorch):
    executor = poptorch.inferenceModel(Calls(lambda module, x: x.sum()), options_for(poptorch, 4))
    assert torch.equal(executor(torch.arange(8.0)), torch.tensor([1.0, 5.0, 9.0, 13.0]))


def test_numbers_of_64_bits_come_back_with_32(poptorch):
    executor = poptorch.inferenceModel(Calls(lambda module, x, y: (x + 1, y * 2.5)))
    x, y = executor(torch.arange(3), torch.ones(3, dtype=torch.float64))
    assert (x.dtype, y.dtype) == (torch.int32, torch.float32)


def test_the_structure_of_outputs_is_kept(poptorch):
    pair = namedtuple("pair", "left right")
    executor = poptorch.inferenceModel(Calls(lambda module, x: {"a": [x + 1, (x + 2,)], "b": pair(x + 3, x + 4)}))
    result = executor(torch.zeros(1))
    assert result["a"][1][0] == 2
    assert result["b"].right == 4


def test_input_groups_share_their_rows(poptorch):
    options = options_for(poptorch, 1, 1, 4).inputReplicaGrouping(2, poptorch.CommGroupType.Consecutive)
    executor = poptorch.inferenceModel(Calls(lambda module, x: x + 0), options)
    assert executor(torch.arange(2.0)).tolist() == [0.0, 0.0, 1.0, 1.0]


def test_labels_of_32_bits_are_labels(poptorch):
    executor = trainer(poptorch)
    labels = torch.tensor([0, 1, 2])
    _, loss = executor(torch.ones(3, 4), labels.int())
    _, again = executor.model(torch.ones(3, 4), labels)
    assert torch.allclose(loss, again)
