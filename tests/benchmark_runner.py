"""The rules of the public examples_utils benchmark runner (v3.2 to v3.4), as far as a spec of ours needs them: which commands
it makes of a spec, and which figures it takes from what they print. Written from its documented behaviour; the runner
itself needs a Graphcore SDK's environment.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import shlex
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional
from unittest import mock

KEYS = {
    *("cmd", "data", "derived", "env", "parameters", "timeout", "location", "reference_directory", "allow_wandb"),
    *("requirements_file", "requirements_path", "pre_run_commands", "repository", "required_apt_packages"),
    *("generated", "synthetic", "output", "description", "notebook"),
}
METRIC_KEYS = {"regexp", "skip", "reduction_type"}
REDUCTIONS = ("mean", "final", "min", "value")


def entries(spec: Mapping[str, Any]) -> Dict[str, Any]:
    """The entries that are benchmarks."""
    return {name: entry for name, entry in spec.items() if "options" not in name}


def runs_unnamed(name: str) -> bool:
    """Whether a benchmark runs where none is named; those that train to the end do not."""
    return "_conv" not in name


def needs_datasets_dir(name: str, entry: Mapping[str, Any]) -> bool:
    return not ("gen" in name or "synth" in name or entry.get("generated") or entry.get("synthetic"))


def variants(name: str, entry: Mapping[str, Any]) -> Dict[str, Dict[str, str]]:
    """{variant's name: its parameters}: the product of "a,b" strings, or the rows of a list."""
    parameters = entry.get("parameters", {})
    if isinstance(parameters, list):
        found = [dict(zip(parameters[0], map(str, row))) for row in parameters[1:]]
    else:
        choices = [[(key, value) for value in str(values).split(",")] for key, values in parameters.items()]
        found = [dict(chosen) for chosen in itertools.product(*choices)]
    return {"_".join([name, *(f"{key}_{one[key]}" for key in sorted(one))]): one for one in found}


def words_of(
    entry: Mapping[str, Any],
    parameters: Mapping[str, str],
    environment: Mapping[str, str],
    folder: Path,
    allow_wandb: bool = False,
    compile_only: bool = False,
) -> List[str]:
    """The command of one variant as it is started. `folder` is the spec's."""
    command = " ".join(entry["cmd"].format(**parameters).split())
    words = command.split(" ")
    script = words[words.index("python3" if "python3" in words else "python") + 1]
    command = command.replace(script, str(folder / script))
    if not (allow_wandb or entry.get("allow_wandb")):
        command = " ".join(word for word in command.split(" ") if "--wandb" not in word)
    if compile_only:
        command += " --compile-only"
        command = re.sub(r"--vipu-(partition|server-host)=\S*", "", command)
    with mock.patch.dict(os.environ, {**environment, **entry.get("env", {})}, clear=True):
        return shlex.split(os.path.expandvars(command))


def figures(data: Mapping[str, Any], stdout: str, stderr: str, exit_code: int) -> Dict[str, Optional[float]]:
    """{metric: value}; None is a failure of the benchmark."""
    lines = [*stdout.splitlines(), *stderr.splitlines()]
    return {name: None if exit_code else _reduced(name, metric, lines) for name, metric in data.items()}


def _reduced(name: str, metric: Mapping[str, Any], lines: List[str]) -> Optional[float]:
    values = [float(found) for line in lines for found in re.findall(metric["regexp"], line)]
    skip = metric.get("skip", 0)
    if any(math.isnan(value) for value in values) or len(values) <= skip:
        return None
    kind = metric.get("reduction_type", "mean")
    if kind != "mean":
        return {"final": values[-1], "min": min(values), "value": values[0]}[kind]
    counted = sorted(values, reverse=name == "latency")[skip:]  # the worst are left out, not the first
    return sum(counted) / len(counted)


def problems(spec: Mapping[str, Any], folder: Path) -> List[str]:
    """What is wrong with a spec, one sentence each. `folder` is the spec's, where its scripts are looked for."""
    return [problem for name, entry in entries(spec).items() for problem in _of_entry(name, entry, folder)]


def _of_entry(name: str, entry: Mapping[str, Any], folder: Path) -> Iterator[str]:
    yield from (f"{name}: the runner knows no key {key}" for key in sorted(set(entry) - KEYS))
    for variable, value in entry.get("env", {}).items():
        if not isinstance(value, str):
            yield f"{name}: env {variable} is not a string"
    if "timeout" in entry and not isinstance(entry["timeout"], int):
        yield f"{name}: timeout is not a number of seconds"
    kinds = {metric.get("reduction_type", "mean") for metric in entry.get("data", {}).values()}
    if entry.get("derived") and kinds - {"mean"}:
        yield f"{name}: the runner crashes over derived figures beside any that is no mean"
    for metric, about in entry.get("data", {}).items():
        yield from (f"{name}: {problem}" for problem in _of_metric(metric, about))
    yield from _of_parameters(name, entry.get("parameters", {}))
    yield from _of_command(name, entry, folder)


def _of_metric(name: str, about: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{name} has the unknown key {key}" for key in sorted(set(about) - METRIC_KEYS))
    if re.compile(about.get("regexp", "")).groups != 1:
        yield f"the regexp of {name} does not have one group"
    if about.get("reduction_type", "mean") not in REDUCTIONS:
        yield f"{name} has the unknown reduction {about['reduction_type']}"
    if not isinstance(about.get("skip", 0), int) or about.get("skip", 0) < 0:
        yield f"{name} skips {about['skip']}"


def _of_parameters(name: str, parameters: Any) -> Iterator[str]:
    if isinstance(parameters, dict):
        wrong = [key for key, values in parameters.items() if not isinstance(values, (str, int, float))]
        yield from (f'{name}: the values of parameter {key} are not "a,b"' for key in wrong)
    elif not isinstance(parameters, list) or any(len(row) != len(parameters[0]) for row in parameters):
        yield f"{name}: parameters are neither a mapping nor a list of names and rows"


def _of_command(name: str, entry: Mapping[str, Any], folder: Path) -> Iterator[str]:
    if "notebook" in entry or not isinstance(entry.get("cmd"), str):
        yield f"{name}: has no cmd, or a notebook"
        return
    for variant, parameters in variants(name, entry).items():
        try:
            words = shlex.split(" ".join(entry["cmd"].format(**parameters).split()))
        except (KeyError, IndexError, ValueError) as error:
            yield f"{variant}: cmd has braces that are no parameter, or an open quote ({error!r})"
            continue
        python = next((word for word in ("python3", "python") if word in words), None)
        script = words[words.index(python) + 1] if python and words[-1] != python else "no script"
        if not (folder / script).is_file():
            yield f"{variant}: the word after python3 is {script}, which is no file"
