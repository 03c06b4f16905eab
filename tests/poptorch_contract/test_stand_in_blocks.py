"""Blocks place ops on IPUs, in the order in which forward comes across them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.poptorch_contract.models import Calls, options_for

X = torch.ones(12, 2)


def layers(count):
    return nn.Sequential(*(nn.Linear(2, 2) for _ in range(count)))


def compiled(poptorch, model, strategy=None, iterations=6, **kwargs):
    options = options_for(poptorch, iterations).autoRoundNumIPUs(True)
    if strategy is not None:
        options.setExecutionStrategy(strategy)
    executor = poptorch.inferenceModel(model, options)
    executor.compile(X)
    return poptorch.stand_in.report(executor)


def test_later_ops_stay_in_a_block_that_has_begun(poptorch):
    model = layers(4)
    assert poptorch.BeginBlock(model[1], ipu_id=1) is model[1]
    poptorch.BeginBlock(layer_to_call=model[3], ipu_id=2)
    report = compiled(poptorch, model)
    assert [report.ipu_of_parameter[f"{layer}.weight"] for layer in range(4)] == [0, 1, 1, 2]
    assert (report.num_stages, report.num_ipus) == (3, 4)


def test_going_back_to_an_ipu_is_another_stage(poptorch):
    model = layers(3)
    for layer, ipu in enumerate((0, 1, 0)):
        poptorch.BeginBlock(model[layer], ipu_id=ipu)
    report = compiled(poptorch, model)
    assert (report.num_stages, report.num_ipus) == (3, 2)


def test_training_has_backward_stages_too(poptorch):
    model = layers(2)
    poptorch.BeginBlock(model[1], ipu_id=1)
    wrapped = Calls(lambda module, x: poptorch.identity_loss(module.layers(x), "mean"), layers=model)
    executor = poptorch.trainingModel(
        wrapped, options_for(poptorch, 1, 3), poptorch.optim.SGD(wrapped.layers.parameters(), lr=0.1)
    )
    executor.compile(X)
    assert poptorch.stand_in.report(executor).num_stages == 3


def test_ops_between_blocks_with_an_end_are_refused(poptorch):
    def forward(module, x):
        with poptorch.Block("a", ipu_id=0):
            x = x * 2
        return x + 1

    with pytest.raises(poptorch.Error, match="No active Block, all the ops must belong to a Block"):
        compiled(poptorch, Calls(forward))


def test_same_as_ipu_needs_an_ipu(poptorch):
    model = layers(2)
    poptorch.BeginBlock(model[1], "b")
    with pytest.raises(AssertionError, match="ipu_id"):
        compiled(poptorch, model, poptorch.PipelinedExecution())


def test_automatic_stages_count_from_one(poptorch):
    model = layers(3)
    poptorch.BeginBlock(model[1], "b", 0)
    poptorch.BeginBlock(model[2], "c", 1)
    strategy = poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement)
    report = compiled(poptorch, model, strategy)
    assert [report.stage_of_parameter[f"{layer}.bias"] for layer in range(3)] == [0, 1, 2]
    assert [report.ipu_of_parameter[f"{layer}.bias"] for layer in range(3)] == [0, 0, 1]


def test_explicit_stages_name_their_blocks(poptorch):
    model = layers(3)
    for layer, name in enumerate("abc"):
        poptorch.BeginBlock(model[layer], name)
    strategy = poptorch.PipelinedExecution("a", poptorch.Stage("b").ipu(3), ["c"])
    report = compiled(poptorch, model, strategy)
    assert [report.ipu_of_parameter[f"{layer}.bias"] for layer in range(3)] == [0, 3, 2]
    with pytest.raises(AssertionError, match="already been assigned"):
        poptorch.PipelinedExecution("a", ["b", "a"])
    poptorch.stand_in.reset()
    with pytest.raises(AssertionError, match="Unknown block"):
        compiled(poptorch, model, poptorch.PipelinedExecution("a", "b"))


def test_a_block_used_again_keeps_its_stage(poptorch):
    def forward(module, x):
        poptorch.Block.start("a", 0)
        x = module.one(x)
        poptorch.Block.start("b", 1)
        x = module.two(x)
        poptorch.Block.start("a", 5)
        return x + 1

    report = compiled(poptorch, Calls(forward, one=nn.Linear(2, 2), two=nn.Linear(2, 2)))
    assert report.num_ipus == 2


def test_a_module_is_in_one_block_until_blocks_are_removed(poptorch):
    model = layers(2)
    poptorch.BeginBlock(model[0], ipu_id=0)
    with pytest.raises(poptorch.Error, match="already been assigned to a block"):
        poptorch.BeginBlock(model[0], ipu_id=1)
    poptorch.removeBlocks(model)
    poptorch.BeginBlock(model[0], ipu_id=1)
    assert compiled(poptorch, model).ipu_of_parameter["0.weight"] == 1


def test_functions_can_begin_blocks(poptorch):
    @poptorch.BlockFunction("b", ipu_id=1)
    def double(x):
        return x * 2

    assert compiled(poptorch, Calls(lambda module, x: double(module.weight * x))).num_ipus == 2


def test_checkpoints_are_counted_where_they_lie(poptorch):
    def forward(module, x):
        x = poptorch.recomputationCheckpoint(x * module.weight)
        poptorch.Block.start("b", 1)
        first, second = poptorch.recomputationCheckpoint(x + 1, x + 2)
        return first + second

    assert compiled(poptorch, Calls(forward)).checkpoints == {0: 1, 1: 2}


def test_a_parameter_is_seen_wherever_it_is_used(poptorch):
    def forward(module, x):
        x = x * module.weight.to(x.dtype)
        poptorch.Block.start("b", 1)
        return x + module.weight.to(x.dtype)

    assert compiled(poptorch, Calls(forward)).ipus_of_parameter["weight"] == {0, 1}


def test_sharded_execution_has_no_pipeline_to_fill(poptorch):
    model = layers(2)
    poptorch.BeginBlock(model[1], ipu_id=1)
    assert compiled(poptorch, model, poptorch.ShardedExecution(), iterations=1).num_ipus == 2


def test_memory_proportions_name_ipus_of_the_model(poptorch):
    options = options_for(poptorch, 6).setAvailableMemoryProportion({"IPU0": 0.3, "IPU1": 0.3})
    with pytest.raises(poptorch.Error, match="IPU1"):
        poptorch.inferenceModel(layers(1), options).compile(X)


def test_blocks_mean_nothing_outside_a_compilation(poptorch):
    model = layers(2)
    poptorch.BeginBlock(model[1], ipu_id=1)
    with poptorch.Block("x", ipu_id=3):
        assert model(X).shape == (12, 2)
    assert not poptorch.isRunningOnIpu()
