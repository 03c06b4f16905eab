"""One saved step: what it says of the run, whether it is whole, and back into any number of stages and replicas.

step_<N>/model-0000k-of-0000n.safetensors, optimizer-…, ema-…, their indexes, and run.json with the SHA-256 of each.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional

import torch

from errors import UserError
from weights.json_file import seal, without_seal
from weights.tensor_files import check_digest, index_of, open_indexed, write_text

if TYPE_CHECKING:
    from runtime.base import Runtime
    from weights.card import ModelCard

WHERE = {"torch": "CPUs or GPUs", "ipu": "IPUs"}


@dataclass
class Progress:
    """How far a run is; all that a resumed run needs besides weights and optimiser state."""

    step: int = 0  # host steps completed
    updates: int = 0  # weight updates made: what dropout and stochastic rounding are numbered by
    steps_per_epoch: int = 0
    samples_per_step: int = 0
    shift: int = 0  # host steps more than the data's position says, since the batch size has changed on resuming
    best_top1: Optional[float] = None
    best_auc: Optional[float] = None  # of that step, where images have several labels
    best_step: Optional[int] = None
    validated_step: Optional[int] = None  # the newest step that was validated
    validations_since_best: int = 0
    loss_scale_factor: float = 1.0  # of automatic loss scaling
    optimizer: str = ""  # whose state is saved
    backend: str = "torch"  # of the runtime that saved it: PopTorch's state and torch's are of different kinds
    data: str = ""  # fingerprint of the training set

    @property
    def position(self) -> int:
        """Host steps of today's size that the run is into its data: `position // steps_per_epoch` whole epochs."""
        return self.step - self.shift


def write_run_details(
    folder: Path, progress: Progress, card: ModelCard, digests: Mapping[str, str], only_best: bool
) -> None:
    """Writes run.json, the last file of a step. `digests`: SHA-256 of the others, by name; `only_best`: saved for that alone."""
    about = {"model": card.to_json(), "only_best": only_best, "torch": torch.__version__, "files": dict(digests)}
    details = {**asdict(progress), **about}
    write_text(folder / "run.json", json.dumps({**details, "digest": seal(details)}, indent=1) + "\n")


def read_run_details(step_folder: Path) -> Dict[str, Any]:
    """What run.json holds. Raises UserError where it is missing, damaged, or not what was written."""
    path = step_folder / "run.json"
    try:
        return without_seal(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} is missing or damaged ({reason}).\n       Use another step.") from error


def read_progress(step_folder: Path) -> Progress:
    """Raises UserError where run.json is missing or damaged."""
    details = {"backend": "torch", "best_auc": None, **read_run_details(step_folder)}  # which older steps do not say
    try:
        return Progress(**{field.name: details[field.name] for field in fields(Progress)})
    except KeyError as error:
        raise UserError(f"{step_folder / 'run.json'} has no {error.args[0]}.\n       Use another step.") from error


def is_only_best(step_folder: Path) -> bool:
    """Whether a step was saved for being the best alone; False where that cannot be read."""
    try:
        return bool(read_run_details(step_folder).get("only_best"))
    except UserError:
        return False


def files_of(step_folder: Path) -> Dict[str, str]:
    """SHA-256 of a step's files, by name. Raises UserError where run.json does not tell: it is a model's alone, say."""
    files = read_run_details(step_folder).get("files")
    if not isinstance(files, dict):
        raise UserError(f"{step_folder} is no step of a run: its run.json names no files.\n       Use another step.")
    return files


def check_whole(step_folder: Path) -> None:
    """Reads every file of a step. Raises UserError, naming the file, for one that is missing or not what was saved."""
    digests = files_of(step_folder)
    for name in digests:
        check_digest(step_folder / name, digests)


def newest_whole(step_folders: List[Path]) -> Optional[Path]:
    """The last of some steps, oldest first, that is not damaged."""
    for folder in reversed(step_folders):
        try:
            check_whole(folder)
            return folder
        except UserError:
            pass
    return None


def restore(step_folder: Path, runtime: Runtime) -> Progress:
    """Weights, optimiser state and progress of a saved step, into whatever split this run has."""
    progress, digests = read_progress(step_folder), files_of(step_folder)
    if progress.backend != runtime.backend:
        raise UserError(
            f"{step_folder} was saved by a run on {WHERE[progress.backend]}, and this one is on {WHERE[runtime.backend]}: "
            "neither can read\n       the other's optimiser state. Resume where it began, or start a new run from its weights:\n"
            f"       finetune.py --pretrained-checkpoint {step_folder.parent}."
        )
    restore_weights(step_folder, runtime, digests)
    names = runtime.parameter_names()
    state = open_indexed(step_folder, "optimizer", digests)
    runtime.load_optimizer_state(state.read(name for name in state.files if name.rsplit(".", 1)[0] in names))
    runtime.loss_scale_factor = progress.loss_scale_factor
    return progress


def restore_weights(step_folder: Path, runtime: Runtime, digests: Mapping[str, str]) -> None:
    """The weights of a saved step alone, with their averages where it has them. Raises UserError for files that are damaged
    or another model's. `digests`: SHA-256 of its files, by name.
    """
    weights = open_indexed(step_folder, "model", digests)
    names = runtime.parameter_names()
    for name, shape in names.items():
        if weights.shapes.get(name) != shape:
            raise UserError(
                f"{step_folder} has {name} of shape {weights.shapes.get(name)}, the config makes it {shape}.\n"
                "       Resume with the config that the run was started with (config.yaml in its folder)."
            )
    has_averages = index_of(step_folder, "ema").is_file()
    averages = open_indexed(step_folder, "ema", digests).read(names) if has_averages else None
    runtime.load_weights(weights.read(names), averages)
