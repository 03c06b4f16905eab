"""Forward runs in Python once, when it is compiled; what PopTorch cannot compile is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn import functional as F

from tests.poptorch_contract.models import Calls, Classifier, batch, options_for, trainer

X = torch.rand(4, 4)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x


def inference(poptorch, forward, **modules):
    return poptorch.inferenceModel(Calls(forward, **modules))


def test_python_values_are_those_of_the_compilation(poptorch):
    def forward(module, x):
        module.calls = getattr(module, "calls", 0) + 1
        return x * module.factor + module.calls

    model = Calls(forward)
    model.factor = 2.0
    executor = poptorch.inferenceModel(model)
    assert torch.allclose(executor(X), X * 2 + 1)
    model.factor = 3.0
    assert torch.allclose(executor(X), X * 2 + 1)
    assert model.calls == 1


def test_train_and_eval_are_those_of_the_compilation(poptorch):
    executor = poptorch.inferenceModel(nn.Dropout(0.5).eval())
    executor.compile(X)
    executor.train()
    assert torch.equal(executor(X), X)


def test_random_ops_draw_anew_and_leave_the_hosts_generator_alone(poptorch):
    executor = poptorch.inferenceModel(nn.Dropout(0.5).train(), poptorch.Options().randomSeed(1))
    before = torch.get_rng_state()
    x = torch.ones(64, 8)
    first = executor(x)
    assert torch.equal(torch.get_rng_state(), before)
    state = executor.rng_state
    second = executor(x)
    assert not torch.equal(first, second)
    executor.rng_state = state
    assert torch.equal(executor(x), second)


def test_a_seed_set_in_forward_is_set_once(poptorch):
    def forward(module, x):
        torch.manual_seed(3)
        return x + torch.rand(x.shape)

    executor = inference(poptorch, forward)
    assert not torch.equal(executor(X), executor(X))


def test_parts_without_gradient_stay_without(poptorch):
    def forward(module, x):
        with torch.no_grad():
            target = module.weight * x
        return poptorch.identity_loss((module.weight * x - target + x) ** 2, "mean")

    model = Calls(forward)
    executor = trainer(poptorch, model)
    executor(torch.ones(2))
    executor.copyWeightsToHost()
    assert torch.allclose(model.weight, torch.tensor([0.8]))  # 1 - 0.1 * 2


def test_indexing_assignment_and_loops_over_tensors_are_captured(poptorch):
    def forward(module, x):
        y = x.clone()
        y[:, 1:] = 0
        first, *_ = y
        return torch.stack([part.sum() for part in y]) + first[0] * 0

    assert torch.allclose(inference(poptorch, forward)(X), X[:, 0])


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: F.scaled_dot_product_attention(x[None], x[None], x[None]),
        lambda m, x: nn.MultiheadAttention(4, 1)(x, x, x)[0],
        lambda m, x: torch.nan_to_num(x),
        lambda m, x: x.nan_to_num(),
        lambda m, x: x * x.sum().item(),
        lambda m, x: x * float(x.sum()),
        lambda m, x: x[x > 0],
        lambda m, x: x.nonzero(),
        lambda m, x: x if x.sum() > 0 else -x,
        lambda m, x: x * len([value for value in x.tolist() if value]),
        lambda m, x: x.cpu(),
        lambda m, x: x.to("cpu"),
        lambda m, x: x.to(torch.device("cpu")),
        lambda m, x: Doubled.apply(x),
        lambda m, x: torch.from_numpy(x.numpy()),
        lambda m, x: torch.from_numpy(np.asarray(x)),
        lambda m, x: F.layer_norm(x, (4,)),
        lambda m, x: torch.utils.checkpoint.checkpoint(torch.sin, x, use_reentrant=True),
        lambda m, x: torch.utils.checkpoint.checkpoint(torch.sin, x, use_reentrant=False),
        lambda m, x: (m.weight * x).sum().backward() or x,
        lambda m, x: (x, None),
        lambda m, x: (x, 3),
    ],
)
def test_what_poptorch_lacks_is_refused(poptorch, forward):
    executor = inference(poptorch, forward)
    with pytest.raises(poptorch.Error):
        executor(X)
    assert not executor.isCompiled()


def test_forward_sees_its_tensors_on_an_ipu(poptorch):
    def forward(module, x):
        assert (x.device.type, x.is_cpu) == ("ipu", False)
        return x.to(x.device) + torch.ones(4, device=x.device) + torch.zeros_like(x, device="ipu")

    executor = inference(poptorch, forward)
    assert torch.equal(executor(X), X + 1)
    assert executor(X).device.type == "cpu"


def test_checkpoint_by_name_is_refused_and_whole_again_after(poptorch):
    from torch.utils.checkpoint import checkpoint

    for reentrant in (True, False):
        with pytest.raises(poptorch.Error, match="checkpoint"):
            inference(poptorch, lambda m, x, r=reentrant: checkpoint(torch.sin, x, use_reentrant=r))(X)
        x = X.clone().requires_grad_()
        assert torch.equal(checkpoint(torch.sin, x, use_reentrant=reentrant), X.sin())


def test_a_module_compiled_by_torch_is_refused(poptorch):
    class OptimizedModule(nn.Module):  # by this name, so that the test needs no compiler
        def __init__(self, module):
            super().__init__()
            self._orig_mod = module

    with pytest.raises(poptorch.Error, match=r"torch\.compile"):
        poptorch.inferenceModel(nn.Sequential(OptimizedModule(nn.Linear(2, 2))))


def test_class_weights_are_refused(poptorch):
    def forward(module, x, y):
        return F.cross_entropy(module.weight * x, y, weight=torch.ones(4))

    with pytest.raises(poptorch.Error, match="weight="):
        trainer(poptorch, Calls(forward))(X, torch.zeros(4, dtype=torch.long))


def test_buffers_are_updated_on_the_device_and_come_home_with_the_weights(poptorch):
    model = nn.BatchNorm1d(4)
    wrapped = Calls(lambda module, x: poptorch.identity_loss(module.norm(x), "mean"), norm=model)
    executor = trainer(poptorch, wrapped, options_for(poptorch, 1, 2))
    reference = nn.BatchNorm1d(4)
    executor(X)
    for rows in X.split(2):
        reference(rows)
    assert torch.equal(model.running_mean, torch.zeros(4))
    executor.copyWeightsToHost()
    assert torch.allclose(model.running_mean, reference.running_mean)
    assert model.num_batches_tracked == 2


def test_a_new_tensor_for_a_buffer_is_refused(poptorch):
    def forward(module, x):
        module.norm.running_mean = module.norm.running_mean * 0.5
        return x + 0

    with pytest.raises(poptorch.Error, match="in place"):
        inference(poptorch, forward, norm=nn.BatchNorm1d(4))(X)


def test_half_activations_and_single_weights_give_half(poptorch):
    executor = poptorch.inferenceModel(nn.Linear(4, 2))
    assert executor(X.half()).dtype == torch.float16


def test_the_program_computes_what_the_model_does(poptorch):
    model = Classifier()
    x, y = batch(6)
    logits, loss = trainer(poptorch, model)(x, y)
    expected_logits, expected_loss = model(x, y)
    assert torch.equal(logits, expected_logits)
    assert torch.equal(loss, expected_loss)
