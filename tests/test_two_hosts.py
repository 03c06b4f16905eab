"""Two hosts with a network between them, two stages x two replicas over both: the same numbers, and an end when it is cut."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any, Dict, List

import pytest
import yaml
from PIL import Image

from checkpoint import check_whole
from run_folder import number_of, saved_steps
from tests.namespaces import Hosts, log, two_hosts, wait_for
from tests.test_resume import CONFIG, ROOT, assert_bitwise_equal, finish, logged_steps, tensors, train

__all__ = ["two_hosts"]  # pytest finds the fixture here
pytestmark = [pytest.mark.slow, pytest.mark.pipeline]

STEPS = 40
# SGD, because it does not magnify rounding, as Adam does where gradients are near 0.
KEYS: Dict[str, Any] = {
    "runtime": "pipeline", "layers_per_ipu": [1, 1], "replication_factor": 2, "micro_batch_size": 18, "optimizer": "SGD",
    "learning_rate": 0.05, "momentum": 0.9, "epochs": 0, "training_steps": STEPS, "checkpoint_save_steps": 5,
}  # fmt: skip


def start(hosts: Hosts, folder: Path, output: str, *flags: str, private: str = "") -> List[subprocess.Popen[str]]:
    (folder / "configs.yaml").write_text(yaml.safe_dump({"tiny": {**CONFIG, **KEYS}}))
    command = [str(ROOT / "pretrain.py"), "--config", "tiny", "--checkpoint-output-dir", output, *flags]
    return hosts.torchrun(folder, command, private)


def run(hosts: Hosts, folder: Path, output: str, *flags: str, code: int = 0, private: str = "") -> None:
    for process in start(hosts, folder, output, *flags, private=private):
        assert process.wait(timeout=180) == code, log(folder, 0) + log(folder, 1)


@pytest.fixture(scope="module")
def whole(two_hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    run(two_hosts, folder, "run")
    return folder / "run"


def test_two_hosts_train_what_one_process_trains(whole: Path, tmp_path: Path) -> None:
    finish(train(tmp_path, "single", {**KEYS, "runtime": "single"}))
    expected, found = tensors(tmp_path / "single", STEPS), tensors(whole, STEPS)
    assert expected.keys() == found.keys()
    # Sums of float32 in another order.
    different = {n: (found[n] - expected[n]).abs().max() for n in found if not found[n].allclose(expected[n], 0, 1e-6)}
    assert not different
    assert len(list((whole / f"step_{STEPS}").glob("model-*.safetensors"))) == 2


def test_hosts_that_lose_each_other_say_so_and_a_resumed_run_ends_with_the_same_bytes(
    two_hosts: Hosts, whole: Path, tmp_path: Path
) -> None:
    processes = start(two_hosts, tmp_path, "run")
    wait_for(tmp_path, "Step: 12/", processes)
    two_hosts.cut(1)
    begun = time.monotonic()
    try:
        assert [process.wait(timeout=60) for process in processes] == [1, 1]
        print(f"both hosts had ended {time.monotonic() - begun:.1f} s after the cut")
        for here, there in ((0, 1), (1, 0)):
            text = log(tmp_path, here)
            assert text.count("\nerror: ") == 1, text
            assert f"error: host host-{there} ({two_hosts.address(there)}) is lost" in text
            for stage, units in ((0, "embed, block 0"), (1, "block 1, head")):
                assert f"rank {2 * there + stage}, replica group {there}, stage {stage} ({units})" in text
            assert "Traceback" not in text.partition("torch/distributed/elastic")[0]  # but for torchrun's own
    finally:
        two_hosts.end_processes()
        two_hosts.mend(1)
    steps = saved_steps(tmp_path / "run")
    assert number_of(steps[-1]) >= 5
    for step in steps:
        check_whole(step)
    assert logged_steps(tmp_path / "run")[-1] < STEPS
    run(two_hosts, tmp_path, "run", "--resume")
    assert "resumed after step" in log(tmp_path, 0)
    assert_bitwise_equal(tensors(whole, STEPS), tensors(tmp_path / "run", STEPS))
    assert logged_steps(tmp_path / "run") == list(range(1, STEPS + 1))


def test_a_run_folder_that_the_hosts_do_not_share_is_refused(two_hosts: Hosts, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    run(two_hosts, tmp_path, "runs/one", code=1, private=str(tmp_path / "runs"))
    for host in (0, 1):
        text = log(tmp_path, host)
        assert text.count("\nerror: ") == 1, text
        assert (
            "the run folder runs/one is not on a disk that all hosts of the run share: on host host-1, rank 2" in text
        )
        assert "exitcode  : 2" in text  # of each process; torchrun's own is 1
    assert not list((tmp_path / "runs").iterdir())


def test_data_that_one_host_lacks_is_an_error_of_all(two_hosts: Hosts, tmp_path: Path) -> None:
    for number in range(160):
        (tmp_path / "data" / "train" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(tmp_path / "data" / "train" / str(number % 2) / f"{number}.png")
    flags = ["--dataset", "folder", "--dataset-path", "data", "--num-labels", "2", "--validation-split", "0"]
    run(two_hosts, tmp_path, "", *flags, code=1, private=str(tmp_path / "data"))
    for host, where in ((0, "on host host-1: "), (1, "")):
        text = log(tmp_path, host)
        assert text.count("\nerror: ") == 1, text
        assert f"error: {where}dataset_path" in text
