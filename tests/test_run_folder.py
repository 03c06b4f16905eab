"""Which steps a run keeps, and what deleting, linking and setting aside leave behind when they break off."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, List, Optional, Set

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errors import UserError
from run_folder import (
    find_step_to_resume,
    is_complete,
    linked_step,
    number_of,
    point,
    remove_steps,
    saved_steps,
    set_incomplete_aside,
    set_later_steps_aside,
    step_folders,
    superfluous_steps,
)
from tests.small import small_config


def make_steps(run: Path, *numbers: int) -> List[Path]:
    folders = [run / f"step_{number}" for number in numbers]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "run.json").touch()
    return folders


# Saved for being the best alone: 13, 27.
STEPS = [10, 13, 20, 27, 30, 35, 40, 44]
ONLY_BEST = {13, 27}


@pytest.mark.parametrize(
    ("keys", "best", "kept"),
    [
        ({}, 27, {10, 20, 27, 30, 35, 40, 44}),
        ({}, None, {10, 20, 30, 35, 40, 44}),
        ({"keep_last": 1}, 13, {13, 44}),
        ({"keep_last": 2}, 10, {10, 40, 44}),
        ({"keep_last": 9}, 44, {10, 20, 30, 35, 40, 44}),
        ({"keep_last": 1, "keep_every": 20}, 27, {20, 27, 40, 44}),
        ({"keep_every": 13}, 27, {10, 13, 20, 27, 30, 35, 40, 44}),
    ],
)
def test_steps_are_kept_by_number_rank_and_multiple(
    tmp_path: Path, keys: Any, best: Optional[int], kept: Set[int]
) -> None:
    config = small_config(tmp_path, **keys)
    assert set(STEPS) - set(superfluous_steps(STEPS, best, ONLY_BEST, config)) == kept


@pytest.fixture(scope="module")
def config(tmp_path_factory: Any) -> Any:
    return small_config(tmp_path_factory.mktemp("config"))


@given(st.sets(st.integers(1, 200), min_size=1), st.integers(1, 5), st.data())
def test_the_newest_and_the_best_are_always_kept(config: Any, steps: Set[int], keep_last: int, data: Any) -> None:
    best = data.draw(st.sampled_from(sorted(steps)))
    config = config.model_copy(update={"keep_last": keep_last})
    gone = superfluous_steps(steps, best, data.draw(st.sets(st.sampled_from(sorted(steps)))), config)
    assert not {best, max(steps)} & set(gone)
    assert len(steps) - len(gone) <= keep_last + 2


def test_a_deleted_step_and_what_an_earlier_deletion_left_are_gone(tmp_path: Path) -> None:
    _, second = make_steps(tmp_path, 5, 6)
    for number in (4, 5):  # one of the same name, too
        (tmp_path / f".removed-step_{number}" / "x").mkdir(parents=True)
    remove_steps(tmp_path, [5])
    assert [path.name for path in tmp_path.iterdir()] == [second.name]


def test_only_complete_steps_count(tmp_path: Path) -> None:
    make_steps(tmp_path, 9, 10, 2)
    (tmp_path / "step_11").mkdir()  # without its run.json
    (tmp_path / ".step_12.x.partial").mkdir()
    (tmp_path / "step_x").mkdir()
    assert [number_of(step) for step in saved_steps(tmp_path)] == [2, 9, 10]


def test_a_link_left_half_made_is_no_obstacle(tmp_path: Path) -> None:
    first, second = make_steps(tmp_path, 1, 2)
    (tmp_path / ".latest.new").symlink_to("step_1")
    for folder in (first, second):
        point(tmp_path / "latest", folder)
        assert (tmp_path / "latest").resolve() == folder


def test_a_folder_in_a_link_s_place_gets_another_name(tmp_path: Path) -> None:
    (step,) = make_steps(tmp_path, 1)
    for _ in range(2):
        (tmp_path / "latest").unlink(missing_ok=True)
        shutil.copytree(step, tmp_path / "latest")
        assert linked_step(tmp_path / "latest") is None
        point(tmp_path / "latest", step)
        assert linked_step(tmp_path / "latest") == 1
    assert is_complete(tmp_path / "copy_of_latest")
    assert is_complete(tmp_path / "copy_of_latest-2")


def test_what_is_no_whole_step_makes_room_for_one(tmp_path: Path) -> None:
    (whole,) = make_steps(tmp_path, 3)
    (tmp_path / "step_4").mkdir()
    for number in (3, 4):
        set_incomplete_aside(tmp_path / f"step_{number}")
    assert whole.is_dir()
    assert not (tmp_path / "step_4").exists()
    assert [path.name for path in tmp_path.glob("set_aside-*/*")] == ["step_4"]


def test_later_steps_are_moved_not_deleted(tmp_path: Path) -> None:
    steps = make_steps(tmp_path, 3, 5, 7)
    (tmp_path / "step_9").mkdir()  # without its run.json
    aside = set_later_steps_aside(steps[0])
    assert aside is not None
    assert [step.name for step in saved_steps(aside)] == ["step_5", "step_7"]
    assert step_folders(tmp_path) == steps[:1]
    assert set_later_steps_aside(steps[0]) is None


def test_a_step_to_resume_that_is_not_there_is_named_beside_those_that_are(tmp_path: Path) -> None:
    make_steps(tmp_path / "run", 3, 5)
    keys = {"resume_training_from_checkpoint": True, "resume_step": 4}
    config = small_config(tmp_path, checkpoint_output_dir=str(tmp_path / "run"), **keys)
    with pytest.raises(UserError, match=r"resume_step = 4: .* has no such step.\n.*Saved are: 3, 5"):
        find_step_to_resume(config)
    (tmp_path / "run/set_aside-20260101-000000/step_4").mkdir(parents=True)
    with pytest.raises(UserError, match=r"Move .*set_aside-20260101-000000/step_4 into .*run to have it back"):
        find_step_to_resume(config)
    assert find_step_to_resume(config.model_copy(update={"resume_step": 3})).name == "step_3"
