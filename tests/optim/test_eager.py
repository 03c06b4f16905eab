"""torch's optimisers without its compiler against torch's own."""

from __future__ import annotations

import pytest
import torch

from optim.eager import eager

CASES = [
    (torch.optim.SGD, {"momentum": 0.9}),
    (torch.optim.Adam, {"betas": (0.8, 0.9)}),
    (torch.optim.AdamW, {"betas": (0.8, 0.9)}),
]


@pytest.mark.parametrize(("kind", "settings"), CASES, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("implementation", ["fused", "foreach"])
def test_steps_are_torchs_to_the_last_bit(kind, settings, implementation):
    generator = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.ones(4, 3)) for _ in range(2)]
    settings = {**settings, "lr": 0.1, "weight_decay": 0.3, implementation: True}
    try:
        optimizers = [make([weight], **settings) for make, weight in zip((kind, eager(kind)), weights)]
    except (RuntimeError, TypeError) as error:
        pytest.skip(f"torch {torch.__version__} has no {implementation} {kind.__name__} on CPUs: {error}")
    for _ in range(3):
        gradient = torch.randn(4, 3, generator=generator)
        for weight, optimizer in zip(weights, optimizers):
            weight.grad = gradient.clone()
            optimizer.step()  # outside of no_grad: weights that require gradients change in place all the same
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], torch.ones(4, 3))
    assert optimizers[0].state_dict()["state"].keys() == optimizers[1].state_dict()["state"].keys()
