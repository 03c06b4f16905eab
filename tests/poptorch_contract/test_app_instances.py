"""What instances of poprun tell each other, where they differ: two processes with PopDist's and Horovod's stand-ins."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.poptorch_contract.instances import run_two

SCRIPT = """
import torch
torch.set_num_threads(1)
from ipu_options import poprun
from runtime.ipu_instances import PoprunInstances
launched = poprun()
assert poprun() is launched
instances = PoprunInstances(launched)
index = instances.index
assert (launched.num_instances, launched.local_replicas, launched.total_replicas) == (2, 2, 4)
assert launched.first_replica == 2 * index
weights = {"b": torch.full((2,), float(index + 1)), "a": torch.full((3,), index + 1.0, dtype=torch.float16)}
instances.broadcast(weights)
assert all(bool((value == 1).all()) for value in weights.values())
assert instances.sum(torch.tensor([1.5, index], dtype=torch.float64)).tolist() == [3.0, 1.0]
assert instances.maximum(130 * index) == 130
assert instances.from_first((1, "a") if index == 0 else None) == (1, "a")
assert instances.gather("an error" if index else None) == [None, "an error"]
assert instances.gather([index] * (index + 1)) == [[0], [1, 1]]
"""

RESUME = """
import sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from tests.small import small_config, host_batch
from placement import follow_launcher, place_ipu
from runtime.ipu import IpuRuntime
import poptorch
import json
keys = {"runtime": "ipu", "num_hidden_layers": 2, "layers_per_ipu": [1, 1], "gradient_accumulation": 3, "learning_rate": 0.02}
keys["hidden_dropout_prob"] = 0.3
folder = Path(sys.argv[1])
config = follow_launcher(small_config(folder, **keys))
def build():
    poptorch.stand_in.reset()
    return IpuRuntime(config, place_ipu(config), 1)
def step(runtime, number):
    return runtime.train_step(host_batch(config, runtime.share, number), 0.02, number).loss
whole = build()
losses = [step(whole, number) for number in range(3)]
whole.weights()
expected = {name: value.clone() for name, value in whole._vit.state_dict().items()}
whole.close()
first = build()
for number in range(2):
    step(first, number)
parts = first.gather((first.weights(), first.optimizer_state()))
(weights, state), other = parts
assert other == ({}, {})
first.close()
second = build()
second.load_weights(weights[0])
second.load_optimizer_state(state[0])
assert step(second, 2) == losses[2]
second.weights()
for name, value in second._vit.state_dict().items():
    assert torch.equal(value, expected[name]), name
assert second.eval_share_index == second._instances.index and second.eval_num_shares == 2
assert second.maximum(143 if not second.is_main else 0) == 143
"""


@pytest.mark.slow
@pytest.mark.parametrize("script", [SCRIPT, RESUME], ids=["what they exchange", "dropout goes on after a resume"])
def test_two_instances(tmp_path: Path, stand_in_path: str, script: str) -> None:
    for instance in range(2):
        (tmp_path / str(instance)).mkdir()
    run_two(lambda instance: [sys.executable, "-c", script, str(tmp_path / str(instance))], tmp_path, stand_in_path)
