"""Each error that is known of PopTorch, in the order of the list in poptorch_api.json, is an error of the stand-in."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.poptorch_contract.models import Calls, Classifier, batch, options_for, sgd, trainer

X = torch.ones(2, 2)


def three_stages(poptorch):
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))
    poptorch.BeginBlock(model[1], ipu_id=1)
    poptorch.BeginBlock(model[2], ipu_id=2)
    return model


def with_loss(poptorch, model):
    return Calls(lambda module, x: poptorch.identity_loss(module.layers(x), "mean"), layers=model)


def test_options_dict_refuses_another_type(poptorch):
    with pytest.raises(AssertionError, match="Unexpected type"):
        poptorch.Options().set(device_iterations="2")


def test_a_reduction_type_is_mean_or_sum(poptorch):
    for value in (poptorch.ReductionType.NoReduction, 1, "Mean"):
        with pytest.raises(ValueError, match=r"ReductionType.Mean or poptorch.ReductionType.Sum"):
            poptorch.Options().Training.accumulationAndReplicationReductionType(value)


def test_partials_are_half_or_float(poptorch):
    for value in (torch.float64, "half"):
        with pytest.raises(ValueError):
            poptorch.Options().Precision.setPartialsType(value)


def test_inference_has_no_gradient_accumulation(poptorch):
    with pytest.raises(poptorch.Error, match="gradientAccumulation"):
        poptorch.inferenceModel(nn.Linear(2, 2), options_for(poptorch, 1, 2))


def test_a_wrapped_model_has_to_be_destroyed_first(poptorch):
    model = Classifier()
    executor = trainer(poptorch, model)
    for again in (model, executor):
        with pytest.raises(RuntimeError, match=r"Call model.destroy\(\)"):
            poptorch.trainingModel(again, optimizer=sgd(poptorch, model))
    executor.destroy()
    trainer(poptorch, model)


def test_options_are_options(poptorch):
    with pytest.raises(poptorch.Error, match=r"poptorch\.Options"):
        poptorch.inferenceModel(nn.Linear(2, 2), {"deviceIterations": 2})


@pytest.mark.parametrize("rows", [10, 5])
def test_rows_are_a_multiple_of_the_batches_of_a_call(poptorch, rows):
    with pytest.raises(AssertionError, match="Invalid batch dimension"):
        trainer(poptorch, options=options_for(poptorch, 2, 3, 2))(*batch(rows))


def test_later_inputs_look_like_the_compiled_ones(poptorch):
    executor = trainer(poptorch)
    x, y = batch(4)
    executor(x, y)
    executor(x.double(), y)  # 32 bits on the device, as before
    for other in ((x[:2], y[:2]), (x.half(), y), (x, y, y), ((x, y),), (x,)):
        with pytest.raises(poptorch.Error, match="inputs passed at runtime don't match"):
            executor(*other)
    with pytest.raises(poptorch.Error, match="don't match"):
        executor(x, labels=y)


def test_inputs_want_no_gradient(poptorch):
    x, y = batch(2)
    with pytest.raises(poptorch.Error, match="requires a gradient"):
        trainer(poptorch)(x.requires_grad_(), y)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda p, m, x: m.weight * x, "Couldn't find a loss"),
        (lambda p, m, x: (m.weight * x).mean(), "Couldn't find a loss"),
        (lambda p, m, x: (F.mse_loss(m.weight * x, x), F.l1_loss(m.weight * x, x)), "Multiple independent losses"),
        (lambda p, m, x: 2 * F.mse_loss(m.weight * x, x), "ignored in the backward pass"),
        (lambda p, m, x: F.mse_loss(m.weight * x, x, reduction="none"), "not reduced"),
        (lambda p, m, x: F.cross_entropy(m.weight * x, x), "Couldn't find a loss"),  # soft targets
    ],
)
def test_there_is_exactly_one_loss(poptorch, forward, message):
    model = Calls(lambda module, x: forward(poptorch, module, x))
    with pytest.raises(poptorch.Error, match=message):
        trainer(poptorch, model).compile(X)


def test_identity_loss_makes_one_loss_of_several(poptorch):
    def forward(module, x):
        first, second = F.mse_loss(module.weight * x, 2 * x), F.l1_loss(module.weight * x, x)
        return poptorch.identity_loss(first * 0.5 + second * 0.5, reduction="none")

    assert trainer(poptorch, Calls(forward))(X) == 0.5


def test_training_fills_its_pipeline(poptorch):
    model = with_loss(poptorch, three_stages(poptorch))
    optimizer = poptorch.optim.SGD(model.layers.parameters(), lr=0.1)
    options = options_for(poptorch, 1, 4).autoRoundNumIPUs()
    with pytest.raises(poptorch.Error, match=r"gradientAccumulation must be greater than or equal .* \(5\)"):
        poptorch.trainingModel(model, options, optimizer).compile(torch.ones(4, 2))


def test_inference_fills_its_pipeline(poptorch):
    options = options_for(poptorch, 2).autoRoundNumIPUs()
    with pytest.raises(poptorch.Error, match=r"deviceIterations must be greater than or equal .* \(3\)"):
        poptorch.inferenceModel(three_stages(poptorch), options).compile(X)


def test_ipus_are_reserved_in_powers_of_two(poptorch):
    with pytest.raises(poptorch.Error, match=r"the use of 3 IPUs, however PopTorch must reserve a minimum of 4"):
        poptorch.inferenceModel(three_stages(poptorch), options_for(poptorch, 3)).compile(torch.ones(3, 2))


def test_a_process_has_64_ipus_at_most(poptorch):
    with pytest.raises(poptorch.Error, match="64"):
        poptorch.inferenceModel(nn.Linear(2, 2), options_for(poptorch, 1, 1, 128)).compile(torch.ones(128, 2))


def test_nothing_is_copied_before_it_is_compiled_or_after_it_is_destroyed(poptorch):
    executor = trainer(poptorch)
    uses = [
        executor.copyWeightsToHost,
        executor.copyWeightsToDevice,
        executor.attachToDevice,
        executor.detachFromDevice,
        executor.compilationTime,
        lambda: executor.rng_state,
        lambda: executor.save("nowhere"),
    ]
    for _ in range(2):
        for use in uses:
            with pytest.raises(poptorch.Error, match="has not been compiled or has been destroyed"):
                use()
        if not executor._is_destroyed:
            executor(*batch(2))
            executor.destroy()


def test_attaching_and_detaching_alternate(poptorch):
    executor = trainer(poptorch)
    executor.compile(*batch(2))
    with pytest.raises(poptorch.Error, match="Device is already attached"):
        executor.attachToDevice()
    executor.detachFromDevice()
    with pytest.raises(poptorch.Error, match="Device is not attached"):
        executor.detachFromDevice()


@pytest.mark.parametrize(
    "offline", [lambda p, o: o.useOfflineIpuTarget(), lambda p, o: o.connectionType(p.ConnectionType.Never)]
)
def test_an_offline_target_compiles_and_does_not_run(poptorch, offline):
    executor = trainer(poptorch, options=offline(poptorch, poptorch.Options()))
    executor.compile(*batch(2))
    assert executor.isCompiled()
    assert not executor.isAttachedToDevice()
    with pytest.raises(AssertionError, match="offline device"):
        executor(*batch(2))


def test_an_ipu_optimizer_takes_no_cpu_state(poptorch):
    model = Classifier()
    with pytest.raises(RuntimeError, match="Only IPU optimizer states"):
        sgd(poptorch, model).load_state_dict(torch.optim.SGD(model.parameters(), lr=0.1).state_dict())


def test_accumulators_do_not_become_half_after_compilation(poptorch):
    model = Classifier()
    executor = trainer(poptorch, model)
    executor.compile(*batch(2))
    with pytest.raises(ValueError, match="half"):
        executor.setOptimizer(sgd(poptorch, model, accum_type=torch.float16))


def test_amsgrad_is_refused(poptorch):
    with pytest.raises(ValueError, match="amsgrad"):
        poptorch.optim.Adam(Classifier().parameters(), lr=0.1, amsgrad=True)


def test_nobody_calls_backward(poptorch):
    _, loss = trainer(poptorch)(*batch(2))
    with pytest.raises(poptorch.Error, match="backward"):
        loss.backward()


def test_buffers_that_change_are_not_broadcast(poptorch):
    model = nn.BatchNorm1d(2)
    wrapped = Calls(lambda module, x: poptorch.identity_loss(module.norm(x), "mean"), norm=model)
    options = options_for(poptorch, 1, 1, 2)
    with pytest.raises(poptorch.Error, match="broadcastBuffers"):
        trainer(poptorch, wrapped, options.clone()).compile(torch.rand(4, 2))
    poptorch.stand_in.reset()
    trainer(poptorch, wrapped, options.broadcastBuffers(False))(torch.rand(4, 2))


def test_the_loader_refuses_what_contradicts_itself(poptorch):
    samples = torch.utils.data.TensorDataset(torch.arange(10))
    sampler = torch.utils.data.BatchSampler(range(10), 2, True)
    for keywords in ({"batch_size": 2}, {"shuffle": True}):
        with pytest.raises(poptorch.Error):
            poptorch.DataLoader(poptorch.Options(), samples, batch_sampler=sampler, **keywords)
    options = poptorch.Options()
    options.Distributed.configureProcessId(0, 2)
    with pytest.raises(AssertionError, match="randomSeed"):
        poptorch.DataLoader(options, samples, shuffle=True)


def test_the_cache_and_the_ipu_model_exclude_each_other(poptorch, tmp_path):
    options = poptorch.Options().useIpuModel(True).enableExecutableCaching(str(tmp_path))
    with pytest.raises(poptorch.Error, match="IPU Model"):
        trainer(poptorch, options=options).compile(*batch(2))


def test_loss_scaling_finds_half_gradients(poptorch):
    options = poptorch.Options()
    options.Training.setAutomaticLossScaling(True)
    with pytest.raises(poptorch.Error, match="No tracked gradient tensors of type fp16"):
        trainer(poptorch, options=options).compile(*batch(2))


def test_loss_scaling_in_a_pipeline_needs_accumulation(poptorch):
    # Reached only where the pipeline's own bound is not: two IPUs that start on the second one.
    model = nn.Linear(2, 2).half()
    wrapped = Calls(lambda module, x: poptorch.identity_loss(module.layer(x).float(), "mean"), layer=model)
    options = options_for(poptorch, 1, 1)
    options.Training.setAutomaticLossScaling(True)
    poptorch.BeginBlock(model, ipu_id=1)
    with pytest.raises(poptorch.Error, match=r"accumulation|Accumulation"):
        trainer(poptorch, wrapped, options).compile(X.half())
