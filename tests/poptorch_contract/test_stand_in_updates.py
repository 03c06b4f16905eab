"""Weight updates against plain torch loops, or against formulas written out here where torch has no such rule."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from tests.poptorch_contract.models import Classifier, batch, options_for, sgd, trainer

ITERATIONS, ACCUMULATION, REPLICAS, MICRO = 2, 3, 2, 2
UPDATE_ROWS = ACCUMULATION * REPLICAS * MICRO
# fp32 sums in another order.
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def train_on_stand_in(poptorch, optimizer_of, reduction="Mean", calls=10, **options_kwargs):
    """Parameters after calls * ITERATIONS updates."""
    model = Classifier()
    options = options_for(poptorch, ITERATIONS, ACCUMULATION, REPLICAS)
    options.Training.accumulationAndReplicationReductionType(getattr(poptorch.ReductionType, reduction))
    if options_kwargs.get("running"):
        options.Training.setMeanAccumulationAndReplicationReductionStrategy(poptorch.MeanReductionStrategy.Running)
    executor = poptorch.trainingModel(model, options, optimizer_of(model.parameters()))
    for call in range(calls):
        executor(*batch(ITERATIONS * UPDATE_ROWS, seed=call))
    executor.copyWeightsToHost()
    return [param.detach() for param in model.parameters()]


def train_plainly(step, factor=1.0, calls=10):
    """The same with `step(params, grads, number)`; `factor` on the gradient of the mean over an update's rows."""
    model = Classifier()
    params = list(model.parameters())
    for call in range(calls):
        x, y = batch(ITERATIONS * UPDATE_ROWS, seed=call)
        for number, (rows, labels) in enumerate(zip(x.split(UPDATE_ROWS), y.split(UPDATE_ROWS))):
            grads = torch.autograd.grad(model(rows, labels)[1], params)
            with torch.no_grad():
                step(params, [factor * grad for grad in grads], call * ITERATIONS + number + 1)
    return [param.detach() for param in params]


def by_torch(kind, **kwargs):
    made = []

    def step(params, grads, number):
        if not made:
            made.append(kind(params, **kwargs))
        for param, grad in zip(params, grads):
            param.grad = grad
        made[0].step()

    return step


def assert_equal(ours, expected):
    for one, other in zip(ours, expected):
        assert torch.allclose(one, other, **CLOSE), (one - other).abs().max()


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("SGD", {"lr": 0.1}),
        ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
        ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        ("Adam", {"lr": 0.01, "weight_decay": 0.05, "betas": (0.8, 0.95)}),
        ("AdamW", {"lr": 0.01, "weight_decay": 0.1}),
        ("RMSprop", {"lr": 0.01, "momentum": 0.5, "centered": True}),
    ],
)
@pytest.mark.parametrize("reduction", ["Mean", "Sum"])
def test_updates_are_those_of_torch(poptorch, name, kwargs, reduction):
    ours = train_on_stand_in(poptorch, lambda params: getattr(poptorch.optim, name)(params, **kwargs), reduction)
    factor = ACCUMULATION * REPLICAS if reduction == "Sum" else 1
    assert_equal(ours, train_plainly(by_torch(getattr(torch.optim, name), **kwargs), factor))


def test_torchs_own_optimizers_will_do(poptorch):
    kwargs = {"lr": 0.1, "momentum": 0.9}
    ours = train_on_stand_in(poptorch, lambda params: torch.optim.SGD(params, **kwargs))
    assert_equal(ours, train_plainly(by_torch(torch.optim.SGD, **kwargs)))


@pytest.mark.parametrize("bias_correction", [True, False])
@pytest.mark.parametrize("max_weight_norm", [65500.0, 0.5])
def test_lamb_trusts_by_the_norm_of_weight_and_update(poptorch, bias_correction, max_weight_norm):
    rate, decay, eps, first, second = 0.01, 0.1, 1e-6, 0.9, 0.99
    means, squares = {}, {}

    def step(params, grads, number):
        for index, (weight, grad) in enumerate(zip(params, grads)):
            means[index] = first * means.get(index, 0) + (1 - first) * grad
            squares[index] = second * squares.get(index, 0) + (1 - second) * grad**2
            mean, square = means[index], squares[index]
            if bias_correction:
                mean, square = mean / (1 - first**number), square / (1 - second**number)
            update = mean / (square.sqrt() + eps) + decay * weight
            trust = min(weight.norm().item(), max_weight_norm) / update.norm().item()
            weight -= rate * trust * update

    def lamb(params):
        return poptorch.optim.LAMB(
            params,
            lr=rate,
            weight_decay=decay,
            eps=eps,
            betas=(first, second),
            bias_correction=bias_correction,
            max_weight_norm=max_weight_norm,
        )

    assert_equal(train_on_stand_in(poptorch, lamb), train_plainly(step))


def test_dampening_holds_from_the_first_step_unlike_torch(poptorch):
    velocities = {}

    def step(params, grads, number):
        for index, (weight, grad) in enumerate(zip(params, grads)):
            velocities[index] = 0.9 * velocities.get(index, 0) + 0.5 * grad
            weight -= 0.1 * velocities[index]

    ours = train_on_stand_in(poptorch, lambda p: poptorch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5), calls=2)
    assert_equal(ours, train_plainly(step, calls=2))


def test_the_gradient_norm_is_that_of_all_parameters(poptorch):
    limit = 0.05

    def step(params, grads, number):
        norm = math.sqrt(sum((grad**2).sum().item() for grad in grads))
        for weight, grad in zip(params, grads):
            weight -= 0.1 * grad * limit / max(limit, norm)

    ours = train_on_stand_in(poptorch, lambda p: poptorch.optim.SGD(p, lr=0.1, max_grad_norm=limit), calls=3)
    assert_equal(ours, train_plainly(step, calls=3))


def test_a_loss_scale_cancels_out(poptorch):
    plain = train_on_stand_in(poptorch, lambda params: poptorch.optim.SGD(params, lr=0.1), calls=2)
    poptorch.stand_in.reset()
    scaled = train_on_stand_in(poptorch, lambda p: poptorch.optim.SGD(p, lr=0.1, loss_scaling=128.0), calls=2)
    assert_equal(scaled, plain)


def test_a_running_mean_is_a_mean(poptorch):
    ours = train_on_stand_in(poptorch, lambda params: poptorch.optim.SGD(params, lr=0.1), calls=3, running=True)
    assert_equal(ours, train_plainly(by_torch(torch.optim.SGD, lr=0.1), calls=3))


def test_half_accumulators_run_a_mean_and_round(poptorch):
    def train(dtype):
        poptorch.stand_in.reset()
        return train_on_stand_in(poptorch, lambda p: poptorch.optim.SGD(p, lr=0.1, accum_type=dtype), calls=2)

    single, half = train(torch.float32), train(torch.float16)
    assert not all(torch.equal(one, other) for one, other in zip(single, half))
    # Gradients below 1, rounded to 11 bits.
    assert all(torch.allclose(one, other, atol=1e-3) for one, other in zip(single, half))


def test_groups_have_their_own_values(poptorch):
    model = Classifier()
    reference = copy.deepcopy(model)

    def groups(some):
        return [
            {"params": some.first.parameters(), "lr": 0.5, "weight_decay": 0.1},
            {"params": some.second.parameters()},
        ]

    executor = poptorch.trainingModel(model, optimizer=poptorch.optim.SGD(groups(model), lr=0.1, weight_decay=0.0))
    x, y = batch(4)
    executor(x, y)
    executor.copyWeightsToHost()
    optimizer = torch.optim.SGD(groups(reference), lr=0.1)
    reference(x, y)[1].backward()
    optimizer.step()
    assert_equal(list(model.parameters()), list(reference.parameters()))


def test_one_call_makes_one_update_for_each_device_iteration(poptorch):
    executor = trainer(poptorch, options=options_for(poptorch, 5, 2))
    for _ in range(2):
        executor(*batch(10))
    report = poptorch.stand_in.report(executor)
    assert (report.weight_updates, report.calls) == (10, 2)


def test_a_changed_learning_rate_counts_once_it_is_set(poptorch):
    model = Classifier()
    optimizer = sgd(poptorch, model)
    executor = poptorch.trainingModel(model, optimizer=optimizer)
    x, y = batch(4)
    executor(x, y)

    def moved():
        executor.copyWeightsToHost()
        before = model.first.weight.detach().clone()
        executor(x, y)
        executor.copyWeightsToHost()
        return not torch.equal(before, model.first.weight)

    optimizer.param_groups[0]["lr"] = 0.0
    assert moved()
    executor.setOptimizer(optimizer)
    assert not moved()


def test_only_what_the_constructor_was_given_may_change(poptorch):
    model = Classifier()
    executor = trainer(poptorch, model, optimizer=sgd(poptorch, model, momentum=0.9))
    executor.compile(*batch(2))
    executor.setOptimizer(sgd(poptorch, model, lr=0.5, momentum=0.5))
    for other, message in [
        (sgd(poptorch, model, momentum=0.9, weight_decay=0.1), "become variable or constant"),
        (sgd(poptorch, model), "become variable or constant"),
        (poptorch.optim.Adam(model.parameters(), lr=0.1), "compiled for SGD"),
        (poptorch.optim.SGD([{"params": [param]} for param in model.parameters()], lr=0.1, momentum=0.9), "groups"),
        (poptorch.optim.SGD(reversed(list(model.first.parameters())), lr=0.1, momentum=0.9), "other groups"),
    ]:
        with pytest.raises(poptorch.Error, match=message):
            executor.setOptimizer(other)
    constant = sgd(poptorch, model, momentum=0.9)
    constant.param_groups[0]["weight_decay"] = 0.1
    with pytest.raises(poptorch.Error, match="weight_decay was compiled as the constant"):
        executor.setOptimizer(constant)


def test_an_adam_without_a_rate_keeps_it(poptorch):
    model = Classifier()
    optimizer = poptorch.optim.Adam(model.parameters())
    executor = poptorch.trainingModel(model, optimizer=optimizer)
    executor.compile(*batch(2))
    optimizer.param_groups[0]["lr"] = 0.5
    with pytest.raises(poptorch.Error, match="lr was compiled as the constant"):
        executor.setOptimizer(optimizer)


def test_values_of_optimizers_are_numbers_and_tuples(poptorch):
    params = list(Classifier().parameters())
    for kwargs in ({"lr": "0.1"}, {"lr": torch.tensor(0.1)}, {"lr": 0.1, "betas": [0.9, 0.99]}):
        with pytest.raises(AssertionError):
            poptorch.optim.AdamW(params, **kwargs)
    with pytest.raises(ValueError):
        poptorch.optim.AdamW(params, lr=0.1, accum_type=torch.bfloat16)


def test_a_parameter_that_no_group_has_is_an_error(poptorch):
    model = Classifier()
    executor = poptorch.trainingModel(model, optimizer=poptorch.optim.SGD(model.first.parameters(), lr=0.1))
    with pytest.raises(poptorch.Error, match=r"second\.weight"):
        executor.compile(*batch(2))
