"""Processes that were started with different flags are told so, all of them, before anything is trained."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import pytest

from errors import SharedError
from launch import free_port
from runtime.same_config import check_same_config
from tests import warm
from tests.small import TINY_CONFIGS, small_config

ROOT = Path(__file__).resolve().parents[1]


def gathered(tmp_path: Any, changes: Dict[str, Any]) -> List[Any]:
    configs = [small_config(tmp_path), small_config(tmp_path, **changes)]
    from runtime.same_config import OF_A_HOST

    return [config.model_dump(mode="json", exclude=OF_A_HOST) for config in configs]


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"learning_rate": 0.5}, "learning_rate = 0.1 in rank 0, learning_rate = 0.5 in rank 1"),
        ({"layers_per_ipu": [1, 3]}, "layers_per_ipu = null in rank 0, layers_per_ipu = [1, 3] in rank 1"),
        ({"mixup": True, "alpha": 0.1}, "mixup = false, alpha = null in rank 0, mixup = true, alpha = 0.1 in rank 1"),
        ({"random_seed": 7}, "random_seed = 42 in rank 0, random_seed = 7 in rank 1"),
    ],
)
def test_a_key_that_differs_is_named(tmp_path: Any, changes: Dict[str, Any], shown: str) -> None:
    values = gathered(tmp_path, changes)
    for changed in ({}, changes):  # all processes say the same
        with pytest.raises(SharedError) as error:
            check_same_config(small_config(tmp_path, **changed), lambda value: values)
        assert shown in str(error.value)


def test_what_a_host_has_may_differ(tmp_path: Any) -> None:
    values = gathered(tmp_path, {"dataloader_workers": 3, "dataset_path": "/elsewhere", "threads_per_process": 2})
    check_same_config(small_config(tmp_path), lambda value: values)


@pytest.mark.slow
@pytest.mark.pipeline
def test_two_hosts_with_different_flags_both_end_with_2(tmp_path: Any) -> None:
    (tmp_path / "configs.yaml").write_text(TINY_CONFIGS)
    port = free_port()
    flags = [str(ROOT / "pretrain.py"), "--config", "tiny", "--config-file", str(tmp_path / "configs.yaml")]
    flags += ["--runtime", "pipeline", "--ipus-per-replica", "2"]
    nodes = [
        warm.Popen(
            [sys.executable, str(ROOT / flags[0]), *flags[1:], "--layers-per-ipu", *split],
            env={
                "WORLD_SIZE": "2",
                "LOCAL_WORLD_SIZE": "1",
                "LOCAL_RANK": "0",
                "RANK": str(rank),
                "OMP_NUM_THREADS": "1",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "PATH": "/usr/bin:/bin",
                "HOME": str(tmp_path),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
        )
        for rank, split in enumerate((["2", "2"], ["1", "3"]))
    ]
    outputs = [node.communicate(timeout=120)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [2, 2], outputs
    assert all("layers_per_ipu = [2, 2] in rank 0, layers_per_ipu = [1, 3] in rank 1" in text for text in outputs)
