"""`restore_best`: a run ends with its best step's weights, and can still be resumed where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest
import torch
from safetensors.torch import load_file

from errors import UserError
from placement import follow_launcher, place
from reporting.base import Reporter
from run_setup import prepare_run
from tests.evaluation.test_findings import write_table
from tests.processes import run_processes
from tests.small import small_config
from training import Run, fit

# Steps so large that the labels are never learned: the best validation comes first, and the run ends early.
KEYS: Dict[str, Any] = {
    "restore_best": True,
    "early_stopping": 2,
    "epochs": 20,
    "learning_rate": 0.5,
    "max_grad_norm": 1.0,
    "threads_per_process": 1,
}


class Notes(Reporter):
    def __init__(self) -> None:
        self.texts: List[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def trained(tmp_path: Any, folder: Path, **keys: Any) -> Tuple[Run, List[str]]:
    """A run that has ended, and its notes after it was put together."""
    config = follow_launcher(small_config(tmp_path, checkpoint_output_dir=str(folder), **{**KEYS, **keys}))
    run, notes = prepare_run(config, place(config)), Notes()
    if run.reporters:
        run.reporters[:] = [notes]
    assert fit(run) == 0
    return run, notes.texts


def saved(step_folder: Path, stem: str = "model") -> Dict[str, torch.Tensor]:
    files = sorted(step_folder.glob(f"{stem}-*.safetensors"))
    return {name: value for file in files for name, value in load_file(file).items()}


def assert_has_best(run: Run, folder: Path) -> None:
    """The weights in memory are those of `best`, and another step is the last."""
    assert (folder / "best").resolve() != (folder / "latest").resolve()
    best, last = saved(folder / "best"), saved(folder / "latest")
    held = {name: value for part in run.runtime.weights().values() for name, value in part.items()}
    assert held
    for name, value in held.items():
        assert torch.equal(value.cpu(), best[name]), name
    assert any(not torch.equal(best[name], last[name]) for name in held)


def test_a_run_ends_with_the_best_steps_weights_and_says_their_accuracy(tmp_path: Any) -> None:
    run, notes = trained(tmp_path, tmp_path / "run")
    assert_has_best(run, tmp_path / "run")
    best = run.progress.best_top1
    assert best is not None
    wanted = f"restored the weights of the best step, {run.progress.best_step}: {100 * best:.3f} % of 8 samples, "
    assert any(note.startswith(wanted) and note.endswith(f"{100 * best:.3f} % when it was saved") for note in notes)


def test_without_it_the_last_weights_stay(tmp_path: Any) -> None:
    run, _ = trained(tmp_path, tmp_path / "run", restore_best=False)
    last = saved(tmp_path / "run" / "latest")
    held = run.runtime.weights()[0]
    assert all(torch.equal(value, last[name]) for name, value in held.items())


def test_averaged_weights_come_back_with_the_others(tmp_path: Any) -> None:
    run, _ = trained(tmp_path, tmp_path / "run", ema_decay=0.5)
    assert_has_best(run, tmp_path / "run")
    averages = saved(tmp_path / "run" / "best", "ema")
    assert all(torch.equal(value, averages[name]) for name, value in run.runtime.weights(averaged=True)[0].items())


def test_resuming_goes_on_from_the_last_step_as_if_nothing_had_come_back(tmp_path: Any) -> None:
    for name, restore in (("with", True), ("without", False)):
        trained(tmp_path, tmp_path / name, restore_best=restore)
        resumed = {"resume_training_from_checkpoint": True, "early_stopping": 4, "restore_best": restore}
        trained(tmp_path, tmp_path / name, **resumed)
    ends = [(tmp_path / name / "latest").resolve() for name in ("with", "without")]
    assert ends[0].name == ends[1].name
    first, second = (saved(end) for end in ends)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("keys", [{"keep_best": False}, {"checkpoint_output_dir": ""}, {"validation_epochs": 0}])
def test_where_no_best_step_is_kept_the_key_is_named_as_not_used(tmp_path: Any, keys: Dict[str, Any]) -> None:
    config = small_config(tmp_path, **{"checkpoint_output_dir": str(tmp_path / "run"), **KEYS, **keys})
    assert "restore_best" in config.unused("single")
    run = prepare_run(config, place(config))
    assert fit(run) == 0


def test_a_damaged_best_step_is_named(tmp_path: Any) -> None:
    run, _ = trained(tmp_path, tmp_path / "run")
    file = next((tmp_path / "run" / "best").glob("model-*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(UserError, match=file.name):
        fit(run)  # which has ended: the best weights come back once more


@pytest.mark.pipeline
@pytest.mark.slow
def test_every_stage_gets_its_part_back(tmp_path: Any) -> None:
    best_steps = run_processes(2, _stage_has_best, str(tmp_path))
    assert best_steps[0] == best_steps[1]


def _stage_has_best(rank: int, path: str) -> Any:
    torch.set_num_threads(1)
    keys: Dict[str, Any] = {"runtime": "pipeline", "layers_per_ipu": [2, 2]}
    (Path(path) / str(rank)).mkdir()
    run, _ = trained(Path(path) / str(rank), Path(path) / "run", **keys)
    assert_has_best(run, Path(path) / "run")
    step = run.progress.best_step
    run.runtime.close()
    return step


def test_where_images_have_several_labels_the_area_that_chose_the_step_is_said(tmp_path: Any) -> None:
    table = write_table(tmp_path / "data")
    keys = {
        "dataset": "csv",
        "dataset_path": str(table),
        "image_column": "image",
        "label_columns": ["a", "b", "c", "d"],
    }
    run, notes = trained(tmp_path, tmp_path / "run", **keys, loss="SigmoidCELoss", num_labels=4, eval_crop=1.0)
    area = run.progress.best_auc
    assert area is not None
    wanted = f"the best step, {run.progress.best_step}: AUC {area:.5f} of 45 samples, {area:.5f} when it was saved"
    assert [note for note in notes if note.startswith("restored")] == [f"restored the weights of {wanted}"]
