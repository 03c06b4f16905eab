"""The moving average of the weights against its formula, and how it takes the weights' place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from optim.ema import WeightAverage
from runtime.weight_update import WeightUpdate
from tests.optim.toy import drawn, toy_model, weight_update, weights_of
from tests.small import small_config

TYPES = {"32.32": torch.float32, "16.16": torch.float16, "bf16.16": torch.bfloat16}


def averaged_update(tmp_path, precision="32.32", decay=0.6, **keys):
    config = small_config(tmp_path, precision=precision, gradient_accumulation=1, ema_decay=decay, **keys)
    return WeightUpdate(config, [toy_model(drawn(0), TYPES[precision])])


def in_float64(tensors):
    return {name: value.detach().double().numpy() for name, value in tensors.items()}


@pytest.mark.parametrize("decay", [0.15, 0.6, 0.9999])
@pytest.mark.parametrize("precision", TYPES)
def test_twenty_updates_follow_the_formula(tmp_path, precision, decay):
    update = averaged_update(tmp_path, precision, decay)
    expected = in_float64(update.parameters)
    for number in range(20):
        weight_update(update, number, 0.1, [drawn(number + 1)])
        own = min(decay, (1 + number) / (10 + number))
        for name, weight in in_float64(update.parameters).items():
            expected[name] = own * expected[name] + (1 - own) * weight
    for name, average in update.weights(averaged=True).items():
        assert average.dtype == torch.float32
        np.testing.assert_allclose(average.numpy(), expected[name], rtol=1e-5, atol=1e-6)  # float32


def test_a_run_that_goes_on_later_in_its_count_of_updates_averages_as_long():
    """The rise of the decay is by the run's own count of updates, not the process's."""
    parameters = dict(toy_model({"head.bias": torch.zeros(2)}, torch.float32).named_parameters())
    average = WeightAverage(parameters, decay=0.9)
    with torch.no_grad():
        parameters["head.bias"].fill_(1.0)
    average.update(0)
    torch.testing.assert_close(average.values["head.bias"], torch.full((2,), 0.9))
    average.restart()
    with torch.no_grad():
        parameters["head.bias"].zero_()
    average.update(1000)
    torch.testing.assert_close(average.values["head.bias"], torch.full((2,), 0.9))


@pytest.mark.parametrize("precision", TYPES)
def test_the_average_stands_in_the_weights_place_and_leaves_it(tmp_path, precision):
    update = averaged_update(tmp_path, precision)
    for number in range(3):
        weight_update(update, number, 0.1, [drawn(number + 1)])
    before, average = weights_of(update), update.average.values
    addresses = [parameter.data_ptr() for parameter in update.parameters.values()]
    with update.averaged():
        for name, value in weights_of(update).items():
            assert torch.equal(value, average[name].to(TYPES[precision]))
            assert not torch.equal(value, before[name])
    assert all(torch.equal(value, before[name]) for name, value in weights_of(update).items())
    assert [parameter.data_ptr() for parameter in update.parameters.values()] == addresses


def test_the_weights_come_back_after_an_exception(tmp_path):
    update = averaged_update(tmp_path)
    weight_update(update, 0, 0.1, [drawn(1)])
    before, average = weights_of(update), {name: value.clone() for name, value in update.average.values.items()}
    with pytest.raises(KeyError, match="in the middle"), update.averaged():
        raise KeyError("in the middle")
    assert all(torch.equal(value, before[name]) for name, value in weights_of(update).items())
    assert all(torch.equal(value, average[name]) for name, value in update.average.values.items())
    weight_update(update, 1, 0.1, [drawn(2)])  # and training goes on with them
    assert not any(torch.equal(value, before[name]) for name, value in weights_of(update).items())


def test_an_average_does_not_follow_the_weights_by_itself(tmp_path):
    """It is a copy, of float32 weights too."""
    update = averaged_update(tmp_path)
    with torch.no_grad():
        for parameter in update.parameters.values():
            parameter.zero_()
    for name, value in in_float64(update.average.values).items():
        np.testing.assert_allclose(value, drawn(0)[name], rtol=1e-6)


def test_loaded_weights_begin_an_average_anew_or_go_on_with_a_given_one(tmp_path):
    update = averaged_update(tmp_path)
    weights = {name: torch.tensor(value).float() for name, value in drawn(5).items()}
    update.load_weights(weights)
    assert all(torch.equal(value, weights[name]) for name, value in update.weights(averaged=True).items())
    averages = {"head.bias": torch.full((3,), 7.0)}
    update.load_weights(weights, averages)
    for name, value in update.weights(averaged=True).items():
        assert torch.equal(value, averages.get(name, weights[name]))
    assert all(torch.equal(value, weights[name]) for name, value in update.weights().items())


def test_without_a_decay_there_is_no_average(tmp_path):
    update = averaged_update(tmp_path, decay=0.0)
    weight_update(update, 0, 0.1, [drawn(1)])
    before = weights_of(update)
    assert update.weights(averaged=True) == {}
    with update.averaged():
        assert all(torch.equal(value, before[name]) for name, value in weights_of(update).items())
