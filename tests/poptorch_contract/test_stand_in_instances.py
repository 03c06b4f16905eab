"""Several instances: PopDist tells them apart, gradients are added up between them, Horovod serves the host."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import warm
from tests.poptorch_contract.models import Classifier, batch, options_for, trainer

REPOSITORY = Path(__file__).resolve().parents[2]

BEGIN = """
import torch
torch.set_num_threads(1)
import horovod.torch as hvd, popdist, popdist.poptorch, poptorch
from tests.poptorch_contract.models import Classifier, batch
hvd.init()
popdist.init()
rank = hvd.rank()
"""

TRAIN = """
model = Classifier(seed=rank)
hvd.broadcast_parameters(model.state_dict(), 0)
options = popdist.poptorch.Options()
options.Training.gradientAccumulation(2)
executor = poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
for step in range(3):
    x, y = batch(16, seed=step)
    # [accumulation][replica][micro], the replicas of this instance.
    x, y = (part.view(2, 4, 2, -1)[:, 2 * rank : 2 * rank + 2].flatten(0, 2) for part in (x, y))
    executor(x, y.squeeze(-1))
torch.save(executor.state_dict(), f"{folder}/weights{rank}.pt")
"""

EXCHANGE = """
one = torch.tensor([float(rank)])
assert hvd.size() == 2 and hvd.local_rank() == rank
assert hvd.allreduce(one).item() == 0.5 and one.item() == rank
assert hvd.allreduce(one, op=hvd.Sum).item() == 1.0
assert hvd.broadcast(one, 1).item() == 1.0 and one.item() == rank
assert hvd.allgather(torch.full((rank + 1,), rank)).tolist() == [0, 1, 1]
assert hvd.broadcast_object({"rank": rank}, 1) == {"rank": 1}
assert hvd.allgather_object("ab"[rank]) == ["a", "b"]
assert [part.item() for part in hvd.grouped_allreduce([one, one + 1])] == [0.5, 1.5]
hvd.broadcast_(one, 1)
assert one.item() == 1.0
assert popdist.getNumTotalReplicas() == 4 and popdist.getNumLocalReplicas() == 2
assert popdist.getInstanceIndex() == rank and popdist.getReplicaIndexOffset() == 2 * rank
assert popdist.execute_on_instances({0}, lambda value: value, 7) == (7 if rank == 0 else None)
popdist.synchronize()
hvd.barrier()
"""


def run_instances(tmp_path, stand_in_path, script):
    """Runs the script as two instances with two replicas each."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((stand_in_path, str(REPOSITORY))),
        "OMP_NUM_THREADS": "1",
        "POPDIST_STAND_IN_NUM_INSTANCES": "2",
        "POPDIST_STAND_IN_NUM_REPLICAS": "4",
        "POPDIST_STAND_IN_RENDEZVOUS": str(tmp_path / "rendezvous"),
    }
    command = [sys.executable, "-c", f"folder = {str(tmp_path)!r}\n{BEGIN}{script}"]
    workers = [
        warm.Popen(
            command,
            env={**environment, "POPDIST_STAND_IN_INSTANCE": str(instance)},
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        for instance in range(2)
    ]
    try:
        for worker in workers:
            _, errors = worker.communicate(timeout=240)
            assert worker.returncode == 0, errors
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


@pytest.mark.slow
def test_two_instances_train_as_one_with_all_replicas(poptorch, tmp_path, stand_in_path):
    run_instances(tmp_path, stand_in_path, TRAIN)
    first, second = (torch.load(tmp_path / f"weights{rank}.pt") for rank in range(2))
    model = Classifier(seed=0)
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    executor = trainer(poptorch, model, options_for(poptorch, 1, 2, 4), optimizer)
    for step in range(3):
        executor(*batch(16, seed=step))
    for name, tensor in executor.state_dict().items():
        assert torch.equal(first[name], second[name])
        # Replicas are added up in another order.
        assert torch.allclose(first[name], tensor, atol=1e-6)


@pytest.mark.slow
def test_horovod_and_popdist_exchange_between_instances(tmp_path, stand_in_path):
    run_instances(tmp_path, stand_in_path, EXCHANGE)


@pytest.fixture
def popdist(poptorch, monkeypatch):
    """PopDist in a run of one instance."""
    import popdist as package
    import popdist.poptorch

    monkeypatch.setenv("POPDIST_STAND_IN_NUM_INSTANCES", "1")
    monkeypatch.setenv("POPDIST_STAND_IN_NUM_REPLICAS", "2")
    monkeypatch.setenv("POPDIST_STAND_IN_IPUS_PER_REPLICA", "4")
    package.init()
    yield package
    package.finalizeBackend()


def test_popdist_decides_what_it_alone_can_know(popdist, poptorch):
    options = popdist.poptorch.Options(ipus_per_replica=4)
    assert isinstance(options, poptorch.Options)
    assert (options.replication_factor, options.Distributed.numProcesses) == (2, 1)
    for call in (
        lambda: options.replicationFactor(2),
        lambda: options.useIpuId(0),
        lambda: options.Distributed.disable(),
        lambda: options.Distributed.configureProcessId(0, 1),
        lambda: options.Distributed.setEnvVarNames("A", "B"),
    ):
        with pytest.raises(RuntimeError, match=r"Cannot call `\w+` with popdist.poptorch.Options"):
            call()
    options.deviceIterations(2)
    options.Training.gradientAccumulation(2)
    trainer(poptorch, options=options)(*batch(8))
    assert options.toDict()["replication_factor"] == 2


def test_a_model_fits_the_ipus_of_a_replica(popdist, poptorch):
    model = Classifier()
    poptorch.BeginBlock(model.second, ipu_id=4)
    options = popdist.poptorch.Options().autoRoundNumIPUs()
    options.Training.gradientAccumulation(3)
    with pytest.raises(poptorch.Error, match="needs 5 IPUs"):
        trainer(poptorch, model, options).compile(*batch(6))


def test_popdist_has_to_be_started_and_initialised(poptorch, monkeypatch):
    import popdist

    assert not popdist.isPopdistEnvSet()
    with pytest.raises(RuntimeError, match="poprun"):
        popdist.init()
    monkeypatch.setenv("POPDIST_STAND_IN_NUM_INSTANCES", "1")
    assert popdist.isPopdistEnvSet()
    with pytest.raises(RuntimeError, match=r"popdist.init\(\)"):
        popdist.getInstanceIndex()


def test_horovod_has_to_be_initialised_and_has_what_its_pinned_version_has(poptorch):
    import horovod.torch as hvd

    hvd.shutdown()
    for use in (hvd.rank, hvd.size, lambda: hvd.allreduce(torch.ones(1)), hvd.barrier):
        with pytest.raises(ValueError, match="has not been initialized"):
            use()
    assert not hasattr(hvd, "Max")
    hvd.init()
    assert (hvd.rank(), hvd.size()) == (0, 1)
    with pytest.raises(DeprecationWarning):
        hvd.allreduce(torch.ones(1), average=True)
