"""Plants faults in the IPU path, one after the other in a copy of the project, and says which the contract tests catch.

    python tests/poptorch_contract/plant_faults.py            # all, some twenty minutes on two cores
    python tests/poptorch_contract/plant_faults.py 3 7        # some

Ends with 1 where one is not caught.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import List, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TESTS = Path("tests/poptorch_contract")


class Fault(NamedTuple):
    what: str
    file: str
    right: str
    wrong: str
    caught_by: str  # part of the name of the test file that is to catch it


FAULTS = [
    Fault(
        "labels of mixed images from the neighbour in the host batch, not in the micro-batch (wrong layout)",
        "runtime/ipu.py",
        "pack_targets(batch.targets, size, batch.label_weights)",
        "pack_targets(batch.targets, 2 * size, batch.label_weights)",
        "matches_single",
    ),
    Fault(
        "every instance works on the first replicas' samples",
        "runtime/ipu.py",
        "range(first, first + self._local_replicas)",
        "range(self._local_replicas)",
        "commands",
    ),
    Fault(
        "missing identity_loss",
        "runtime/ipu_model.py",
        'poptorch.identity_loss(loss, reduction="none")',
        "loss",
        "matches_single",
    ),
    Fault(
        "stages off by one", "runtime/ipu_model.py", "ipu_id=stage.index)", "ipu_id=max(0, stage.index - 1))", "model"
    ),
    Fault(
        "the head on IPU 3, whatever the plan",
        "runtime/ipu_model.py",
        "ipu_id=stage.index)",
        "ipu_id=3 if stage.has_head else stage.index)",
        "model",
    ),
    Fault(
        "an option is set after the executor has frozen it",
        "runtime/ipu.py",
        "            begun = time.perf_counter()\n            self._trainer.compile",
        "            begun = time.perf_counter()\n            options.deviceIterations(1)\n            self._trainer.compile",
        "runtime",
    ),
    Fault(
        "losses of the last micro-batch alone",
        "ipu_options.py",
        "options.outputMode(poptorch.OutputMode.All)",
        "options.outputMode(poptorch.OutputMode.Final)",
        "matches_single",
    ),
    Fault(
        "a sum of gradients where the config says mean",
        "ipu_options.py",
        "poptorch.ReductionType.Mean if is_mean",
        "poptorch.ReductionType.Sum if is_mean",
        "matches_single",
    ),
    Fault(
        "the schedule's rate never reaches the IPU",
        "runtime/ipu.py",
        "        self._trainer.setOptimizer(self._optimizer)\n",
        "",
        "runtime",
    ),
    Fault(
        "after a resume the first step has the rate of the step before",
        "runtime/ipu.py",
        "build_ipu_optimizer(config, trained, 2 * config.learning_rate)",
        "build_ipu_optimizer(config, trained, config.learning_rate)",
        "runtime",
    ),
    Fault(
        "weights are read without having been copied to the host",
        "runtime/ipu.py",
        "            self._trainer.copyWeightsToHost()\n\n    # The protocol.",
        "            pass\n\n    # The protocol.",
        "matches_single",
    ),
    Fault(
        "validation sees the weights of before training",
        "runtime/ipu.py",
        "        if executor is self._trainer:\n            executor.copyWeightsToHost()\n",
        "",
        "runtime",
    ),
    Fault(
        "the IPUs are not given up",
        "runtime/ipu.py",
        "        executor.detachFromDevice()\n",
        "        pass\n",
        "runtime",
    ),
    Fault(
        "dropout in evaluation",
        "runtime/ipu.py",
        "EvaluationModel(self._vit, self.config).eval()",
        "EvaluationModel(self._vit, self.config).train()",
        "runtime",
    ),
    Fault(
        "too few device iterations in evaluation",
        "ipu_plan.py",
        "return max(config.device_iterations, num_stages(config))",
        "return config.device_iterations",
        "options",
    ),
    Fault(
        "gradient accumulation is not set",
        "ipu_options.py",
        "    training.gradientAccumulation(config.gradient_accumulation)\n",
        "",
        "options",
    ),
    Fault(
        "stochastic rounding in evaluation",
        "ipu_options.py",
        "enableStochasticRounding(False)",
        "enableStochasticRounding(True)",
        "options",
    ),
    Fault(
        "weight decay is lost",
        "runtime/ipu_optimizer.py",
        '{**group, "lr":',
        '{**group, "weight_decay": 0.0, "lr":',
        "matches_single",
    ),
    Fault(
        "the accumulator's type is left to PopTorch",
        "runtime/ipu_optimizer.py",
        '        "accum_type": precision.accumulators,\n',
        "",
        "traps",
    ),
    Fault(
        "no checkpoint between attention and MLP",
        "runtime/ipu_model.py",
        "register_forward_pre_hook(_keep_inputs)",
        "register_forward_pre_hook(lambda *_: None)",
        "model",
    ),
    Fault(
        "one memory proportion for the first IPU alone",
        "ipu_options.py",
        "values = values * stages",
        "values = values",
        "options",
    ),
    Fault(
        "the mean loss of a host step is over one device iteration",
        "runtime/ipu.py",
        "micro_batches = config.device_iterations * config.gradient_accumulation",
        "micro_batches = config.gradient_accumulation",
        "matches_single",
    ),
    Fault(
        "random numbers begin anew after a resume",
        "runtime/ipu.py",
        "            self._trainer.rng_state = state\n",
        "            pass\n",
        "runtime",
    ),
    Fault(
        "every instance evaluates the same share",
        "runtime/ipu.py",
        "self.eval_share_index, self.eval_num_shares = self._instances.index, self._instances.count",
        "self.eval_share_index, self.eval_num_shares = 0, self._instances.count",
        "commands",
    ),
    Fault(
        "only the first instance copies weights to the host",
        "runtime/ipu.py",
        "        self._weights_to_host()\n        return {0:",
        "        if self.is_main:\n            self._weights_to_host()\n        return {0:",
        "instances",
    ),
    Fault(
        "Horovod takes names from the types of values",
        "runtime/ipu_instances.py",
        ', name="from_first")',
        ")",
        "instances",
    ),
    Fault(
        "every instance takes the first one's random numbers",
        "runtime/ipu.py",
        "state.get(self._rng_name(self._instances.index))",
        "state.get(self._rng_name(0))",
        "instances",
    ),
    Fault(
        "a signal to one instance stops that one alone",
        "runtime/ipu_instances.py",
        'return int(self._hvd.allgather(torch.tensor([value]), name="maximum").max())',
        "return value",
        "instances",
    ),
    Fault(
        "micro-batches fewer than PopTorch's bound pass",
        "ipu_plan.py",
        "return 2 * num_stages(config) - 1",
        "return num_stages(config)",
        "refusals",
    ),
]


def is_caught(fault: Fault) -> bool:
    """Whether a test of the file fails with the fault in a copy of the project."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "runs", "output", "data", "__pycache__"))
        file = copy / fault.file
        text = file.read_text(encoding="utf-8")
        assert text.count(fault.right) == 1, f"{fault.file} has {text.count(fault.right)} times: {fault.right}"
        file.write_text(text.replace(fault.right, fault.wrong), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, str(TESTS / f"test_app_{fault.caught_by}.py")],
            cwd=copy,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode in (0, 1), done.stdout[-2000:] + done.stderr[-2000:]
    return done.returncode == 1


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("numbers", nargs="*", type=int, metavar="N", help="of the faults to plant (default: all)")
    numbers: List[int] = parser.parse_args().numbers
    missed = 0
    for number, fault in enumerate(FAULTS, start=1):
        if numbers and number not in numbers:
            continue
        caught = is_caught(fault)
        missed += not caught
        where = f"{fault.file}, test_app_{fault.caught_by}.py"
        print(f"{number:2d}  {'caught' if caught else 'MISSED'}  {fault.what} ({where})", flush=True)
    print(f"missed: {missed}")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
