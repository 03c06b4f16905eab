"""Small models and executors for the tests of the stand-in."""

from __future__ import annotations

from typing import Any, Optional, Tuple

import torch
from torch import nn
from torch.nn import functional as F

FEATURES, CLASSES = 4, 3


class Classifier(nn.Module):
    """Two layers and, given labels, a cross-entropy: (logits, loss)."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(FEATURES, 8)
        self.second = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor, labels: Optional[torch.Tensor] = None) -> Any:
        logits = self.second(torch.tanh(self.first(x)))
        return logits if labels is None else (logits, F.cross_entropy(logits, labels))


class Calls(nn.Module):
    """Does what a function says, with a parameter to train."""

    def __init__(self, function: Any, **modules: nn.Module) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        for name, module in modules.items():
            setattr(self, name, module)
        self.function = function

    def forward(self, *args: torch.Tensor) -> Any:
        return self.function(self, *args)


def batch(rows: int, seed: int = 0) -> Tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, FEATURES, generator=generator), torch.randint(CLASSES, (rows,), generator=generator)


def options_for(poptorch: Any, iterations: int = 1, accumulation: int = 1, replicas: int = 1) -> Any:
    options = poptorch.Options()
    options.deviceIterations(iterations).replicationFactor(replicas)
    options.Training.gradientAccumulation(accumulation)
    return options


def sgd(poptorch: Any, model: nn.Module, **kwargs: Any) -> Any:
    return poptorch.optim.SGD(model.parameters(), **{"lr": 0.1, **kwargs})


def trainer(poptorch: Any, model: Any = None, options: Any = None, optimizer: Any = None) -> Any:
    model = model or Classifier()
    return poptorch.trainingModel(model, options or poptorch.Options(), optimizer or sgd(poptorch, model))
