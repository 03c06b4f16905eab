"""Two processes as poprun would start them, on the stand-ins for PopDist and Horovod."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Callable, List

from tests import warm

ROOT = Path(__file__).resolve().parents[2]
NUM_INSTANCES, NUM_REPLICAS, NUM_STAGES = 2, 4, 2


def run_two(command: Callable[[int], List[str]], folder: Path, stand_in_path: str) -> List[str]:
    """What `command(instance)` prints, of each; both end with 0. `folder` is where they find each other."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((stand_in_path, str(ROOT))),
        "OMP_NUM_THREADS": "1",
        "POPDIST_STAND_IN_NUM_INSTANCES": str(NUM_INSTANCES),
        "POPDIST_STAND_IN_NUM_REPLICAS": str(NUM_REPLICAS),
        "POPDIST_STAND_IN_IPUS_PER_REPLICA": str(NUM_STAGES),
        "POPDIST_STAND_IN_RENDEZVOUS": str(folder / f"rendezvous{len(list(folder.iterdir()))}"),
    }
    processes = [
        warm.Popen(
            command(instance),
            env={**environment, "POPDIST_STAND_IN_INSTANCE": str(instance)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for instance in range(NUM_INSTANCES)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * NUM_INSTANCES, "\n".join(outputs)
    return outputs
