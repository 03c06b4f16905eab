"""Which pictures a command line means."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, List

import pytest

from errors import UserError
from prediction.pictures import find_pictures


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def found(*words: str, stdin: bytes = b"") -> List[str]:
    return find_pictures(words, io.BytesIO(stdin))


@pytest.fixture(autouse=True)
def _in_a_folder_of_pictures(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    touch("one.jpg", "in/b.png", "in/a.JPEG", "in/deep/c.webp", "in/notes.txt", "in/.hidden.png", "in/.cache/d.png")


def test_words_keep_their_order_and_a_folder_is_sorted() -> None:
    assert found("one.jpg", "in") == ["one.jpg", "in/a.JPEG", "in/b.png", "in/deep/c.webp"]
    assert found("in", "one.jpg", "one.jpg")[-2:] == ["one.jpg", "one.jpg"]


def test_a_named_file_is_taken_whatever_it_is_called() -> None:
    assert found("in/notes.txt") == ["in/notes.txt"]


def test_a_pattern_that_no_shell_expanded_is() -> None:
    assert found("in/*.png") == ["in/b.png"]
    assert found("**/*.webp") == ["in/deep/c.webp"]
    assert found("in/d*") == ["in/deep/c.webp"]


def test_a_pattern_over_folders_names_each_picture_once() -> None:
    paths = found("i*/**")
    assert len(paths) == len(set(paths))
    assert {"in/a.JPEG", "in/b.png", "in/deep/c.webp"} <= set(paths)


def test_a_file_whose_name_looks_like_a_pattern_is_that_file() -> None:
    touch("[1].png", "1.png")
    assert found("[1].png") == ["[1].png"]


def test_standard_input_lists_names_folders_and_what_is_missing() -> None:
    assert found("-", "one.jpg", stdin=b"in/b.png\r\n\ngone.png\nin/deep") == [
        *("in/b.png", "gone.png", "in/deep/c.webp", "one.jpg"),
    ]


def test_names_that_end_in_null_bytes_may_hold_new_lines() -> None:
    assert found("-", stdin=b"a\nb.png\0c d.png\0") == ["a\nb.png", "c d.png"]


def test_names_that_are_no_utf8_stay_as_they_are() -> None:
    assert found("-", stdin=b"\xff.png\n") == [os.fsdecode(b"\xff.png")]


def test_a_link_to_a_folder_above_is_met_once() -> None:
    os.symlink("..", "in/deep/up")
    assert found("in").count("in/b.png") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gone.jpg"], "gone.jpg does not exist"),
        (["in/*.gif"], "matches no pictures"),
        (["empty"], "holds no pictures"),
        (["-"], "names no pictures"),
        (["-", "-"], "stands twice"),
    ],
)
def test_what_means_nothing_is_told_before_any_work(words: List[str], message: str) -> None:
    os.mkdir("empty")
    with pytest.raises(UserError, match=message):
        found(*words)
