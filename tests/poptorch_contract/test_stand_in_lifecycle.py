"""Weights and optimiser state live on the device; they move when somebody moves them."""

from __future__ import annotations

import json
import os
import sys

import pytest
import torch

from tests import warm
from tests.poptorch_contract.models import Classifier, batch, options_for, sgd, trainer

X, Y = batch(4)


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def is_same(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_the_hosts_weights_are_old_until_they_are_copied(poptorch):
    model = Classifier()
    before = snapshot(model)
    executor = trainer(poptorch, model)
    executor(X, Y)
    assert is_same(before, model.state_dict())
    assert executor.copyWeightsToHostIfNeeded()
    assert not is_same(before, model.state_dict())
    assert not executor.copyWeightsToHostIfNeeded()


def test_the_executors_state_dict_is_new(poptorch):
    model = Classifier()
    before = snapshot(model)
    executor = trainer(poptorch, model)
    executor(X, Y)
    assert not is_same(before, executor.state_dict())


def test_changes_on_the_host_reach_the_device_when_they_are_copied(poptorch):
    model = Classifier()
    executor = poptorch.inferenceModel(model)
    before = executor(X)
    with torch.no_grad():
        model.second.bias.add_(1)
    assert torch.equal(executor(X), before)
    executor.copyWeightsToDevice()
    assert torch.allclose(executor(X), before + 1)


def test_a_loaded_state_is_on_both_sides(poptorch):
    model, other = Classifier(), Classifier(seed=1)
    executor = poptorch.inferenceModel(model)
    executor(X)
    executor.load_state_dict(other.state_dict())
    assert torch.equal(executor(X), other(X))
    with pytest.raises(RuntimeError):
        executor.load_state_dict({"x": torch.ones(1)})


def test_two_executors_take_turns(poptorch):
    model = Classifier()
    training = trainer(poptorch, model)
    inference = poptorch.inferenceModel(model)
    training(X, Y)
    with pytest.raises(poptorch.Error, match="another executor is attached"):
        inference(X)
    training.detachFromDevice()
    inference(X)
    with pytest.raises(poptorch.Error, match="another executor"):
        training.attachToDevice()
    with pytest.raises(poptorch.Error, match="not attached"):
        training(X, Y)
    inference.detachFromDevice()
    training.attachToDevice()
    training(X, Y)
    assert poptorch.stand_in.report(training).attached


def test_inference_sees_training_when_the_weights_went_by_the_host(poptorch):
    model = Classifier()
    training, inference = trainer(poptorch, model), poptorch.inferenceModel(model)
    inference(X)
    inference.detachFromDevice()
    training(X, Y)
    training.copyWeightsToHost()
    training.detachFromDevice()
    inference.attachToDevice()
    assert torch.equal(inference(X), model(X))


def test_training_goes_on_after_a_turn_of_another(poptorch):
    def train(interrupted):
        poptorch.stand_in.reset()
        model = Classifier()
        training = trainer(poptorch, model, optimizer=sgd(poptorch, model, momentum=0.9))
        training(X, Y)
        if interrupted:
            training.detachFromDevice()
            training.attachToDevice()
        training(X, Y)
        return snapshot(training)

    assert is_same(train(interrupted=True), train(interrupted=False))


def test_an_executor_forwards_what_it_does_not_have(poptorch):
    model = Classifier()
    model.anything = 5
    executor = poptorch.inferenceModel(model)
    assert executor.anything == 5
    assert executor.model is model
    assert next(executor.parameters()) is model.first.weight
    with pytest.raises(AttributeError):
        executor.nothing  # noqa: B018


def test_the_optimizers_state_is_the_devices(poptorch):
    model = Classifier()
    optimizer = poptorch.optim.Adam(model.parameters(), lr=0.1)
    state = optimizer.state_dict()
    assert (state["ipu_state"], state["ipu_param"]) == (None, None)
    assert {"state", "param_groups"} < set(state)
    executor = trainer(poptorch, model, optimizer=optimizer)
    executor(X, Y)
    state = optimizer.state_dict()
    assert state["ipu_state"]["Step___first.weight"] == 1
    assert state["ipu_state"]["Accl1___first.weight"].shape == (8, 4)
    assert "Accl2___second.bias" in state["ipu_state"]
    assert "learningRate___specific___first.weight" in state["ipu_param"]


@pytest.mark.parametrize("compiled_first", [False, True])
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "LAMB", "RMSprop"])
def test_a_restored_run_is_the_uninterrupted_one(poptorch, name, compiled_first):
    def new():
        poptorch.stand_in.reset()
        model = Classifier()
        extra = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
        optimizer = getattr(poptorch.optim, name)(model.parameters(), lr=0.1, **extra)
        return poptorch.trainingModel(model, options_for(poptorch, 1, 2), optimizer), optimizer

    executor, optimizer = new()
    executor(X, Y)
    weights, state = snapshot(executor), optimizer.state_dict()
    executor(X, Y)
    expected = snapshot(executor)

    executor, optimizer = new()
    if compiled_first:
        executor(X, Y)
    executor.load_state_dict(weights)
    optimizer.load_state_dict(state)
    executor(X, Y)
    assert is_same(expected, snapshot(executor))


def test_half_states_have_their_types(poptorch):
    model = Classifier()
    optimizer = poptorch.optim.AdamW(
        model.parameters(), lr=0.1, accum_type=torch.float16, first_order_momentum_accum_type=torch.float16
    )
    trainer(poptorch, model, optimizer=optimizer)(X, Y)
    state = optimizer.state_dict()["ipu_state"]
    kinds = {kind: state[f"{kind}___first.weight"].dtype for kind in ("Accum", "Accl1", "Accl2")}
    assert kinds == {"Accum": torch.float16, "Accl1": torch.float16, "Accl2": torch.float32}


def test_an_executable_is_written_to_the_cache(poptorch, tmp_path):
    options = poptorch.Options().enableExecutableCaching(str(tmp_path / "cache"))
    trainer(poptorch, options=options).compile(X, Y)
    assert len(list((tmp_path / "cache").glob("*.popef"))) == 1


def test_compiling_again_only_warns(poptorch):
    executor = trainer(poptorch)
    executor.compile(X, Y)
    with pytest.warns(UserWarning, match="already been compiled"):
        executor.compile(X, Y)
    assert executor.compilationTime().total_seconds() >= 0


def test_a_device_on_demand_is_attached_by_the_first_call(poptorch):
    first, second = Classifier(), Classifier()
    options = poptorch.Options().connectionType(poptorch.ConnectionType.OnDemand)
    executor, other = poptorch.inferenceModel(first, options), poptorch.inferenceModel(second)
    executor.compile(X)
    assert not executor.isAttachedToDevice()
    other.compile(X)
    other.detachFromDevice()
    executor(X)
    assert executor.isAttachedToDevice()


def test_hardware_is_there_when_a_test_says_so(poptorch, monkeypatch):
    assert not poptorch.ipuHardwareIsAvailable()
    monkeypatch.setenv("POPTORCH_STAND_IN_HARDWARE", "1")
    assert poptorch.ipuHardwareIsAvailable(4)


def test_executors_are_remembered_until_reset(poptorch):
    executor = trainer(poptorch)
    assert poptorch.stand_in.executors() == [executor]
    poptorch.stand_in.reset()
    assert poptorch.stand_in.executors() == []


def test_a_process_can_leave_its_reports_behind(tmp_path, stand_in_path):
    script = (
        "import poptorch, torch; o = poptorch.Options().deviceIterations(2);"
        "poptorch.inferenceModel(torch.nn.Linear(2, 2), o)(torch.ones(2, 2))"
    )
    path = tmp_path / "report.json"
    environment = {**os.environ, "PYTHONPATH": stand_in_path, "POPTORCH_STAND_IN_REPORT": str(path)}
    warm.run([sys.executable, "-c", script], check=True, env=environment)
    found = json.loads(path.read_text())
    assert found["executors"][0]["ipu_of_parameter"] == {"weight": 0, "bias": 0}
    assert [call["name"] for call in found["option_calls"]] == ["Options", "deviceIterations"]


def test_loaders_give_the_rows_of_a_call_and_each_process_its_part(poptorch):
    samples = torch.utils.data.TensorDataset(torch.arange(26))

    def rows(process, shuffle):
        options = options_for(poptorch, 1, 3).randomSeed(1)
        options.Distributed.configureProcessId(process, 2)
        loader = poptorch.DataLoader(options, samples, batch_size=2, shuffle=shuffle)
        assert (loader.combinedBatchSize, len(loader)) == (6, 2)
        return torch.cat([part for (part,) in loader]).tolist()

    assert rows(0, False) + rows(1, False) == list(range(24))
    assert len(set(rows(0, True) + rows(1, True))) == 24


def test_batches_read_ahead_are_overwritten(poptorch):
    samples = torch.utils.data.TensorDataset(torch.arange(1, 5))
    loader = poptorch.DataLoader(poptorch.Options(), samples, batch_size=2)
    kept = [rows for (rows,) in poptorch.AsynchronousDataAccessor(loader)]
    assert kept[0].tolist() == [0, 0]
