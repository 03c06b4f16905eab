"""Labels from probabilities, and their forms as text."""

from __future__ import annotations

import csv
import io
import json
import os
from typing import Any, Dict, List, Optional

import pytest
import torch

from errors import UserError
from prediction.answers import Answer, Chooser, Label
from prediction.forms import Csv, JsonLines, Table, bad_pictures
from prediction.predictor import Seen
from tests.prediction.models import NAMES, TINY
from weights.card import ModelCard

PROBABILITIES = torch.tensor([0.2, 0.6, 0.05, 0.55])
ANSWERS = [
    Answer("in/a.png", (Label(1, "dog, wild", 0.98765), Label(0, "cat", 0.01))),
    Answer("b\udcff.png", reason="the file is empty"),
    Answer("c.png"),
]


def names_of(top_k: Optional[int] = None, thresholds: Any = None, **card: Any) -> List[str]:
    chooser = Chooser(ModelCard(TINY, **{"class_names": NAMES, **card}), top_k, thresholds)
    return [one.name for one in chooser.answer(Seen("x", probabilities=PROBABILITIES)).labels]


def test_the_most_probable_come_first() -> None:
    assert names_of() == ["dog", "cow", "cat", "hen"]
    assert names_of(top_k=2) == ["dog", "cow"]
    assert names_of(top_k=1, class_names=()) == ["1"]


@pytest.mark.parametrize(
    ("top_k", "thresholds", "names"),
    [
        (None, {}, ["dog", "cow"]),
        (1, {}, ["dog"]),
        (None, {None: 0.6}, ["dog"]),
        (None, {"cat": 0.2}, ["dog", "cow", "cat"]),
        (None, {None: 0.0, "dog": 0.7}, ["cow", "cat", "hen"]),
        (None, {None: 0.9}, []),
    ],
)
def test_of_several_labels_those_that_reach_their_threshold_are_given(
    top_k: Optional[int], thresholds: Dict[Optional[str], float], names: List[str]
) -> None:
    # The thresholds as float32 has them: 0.6 is a little more there, as is the probability.
    exact = {name: float(torch.tensor(value)) for name, value in thresholds.items()}
    assert names_of(top_k, exact, multi_label=True) == names


def test_a_threshold_needs_a_model_of_several_labels_and_a_class_that_is_there() -> None:
    with pytest.raises(UserError, match="--top-k"):
        names_of(thresholds={None: 0.5})
    with pytest.raises(UserError, match="Did you mean 'cow'"):
        names_of(thresholds={"cowe": 0.5}, multi_label=True)


def test_the_table_names_a_picture_once_and_has_one_width() -> None:
    form = Table([one.path for one in ANSWERS], NAMES)
    assert (form.head + "".join(map(form.lines, ANSWERS))).splitlines() == [
        "picture   label  probability",
        "--------  -----  -----------",
        "in/a.png  dog, wild       98.8 %",
        "          cat          1.0 %",
        "c.png     (none reaches its threshold)",
    ]


def test_json_is_an_object_a_line_and_loses_no_name() -> None:
    lines = "".join(map(JsonLines().lines, ANSWERS))
    records = [json.loads(line) for line in lines.splitlines()]
    assert records[0] == {
        "picture": "in/a.png",
        "labels": [
            {"label": 1, "name": "dog, wild", "probability": 0.98765},
            {"label": 0, "name": "cat", "probability": 0.01},
        ],
    }
    assert os.fsencode(records[1]["picture"]) == b"b\xff.png"
    assert records[1]["error"] == "the file is empty"
    assert records[2]["labels"] == []


def test_csv_has_a_line_for_every_picture() -> None:
    form = Csv()
    rows = list(csv.DictReader(io.StringIO(form.head + "".join(map(form.lines, ANSWERS)))))
    assert [(row["picture"], row["rank"], row["label"], row["name"], row["probability"]) for row in rows] == [
        ("in/a.png", "1", "1", "dog, wild", "0.98765"),
        ("in/a.png", "2", "0", "cat", "0.01"),
        ("b\udcff.png", "", "", "", ""),
        ("c.png", "", "", "", ""),
    ]
    assert [row["error"] for row in rows] == ["", "", "the file is empty", ""]


def test_bad_pictures_are_listed_with_their_reasons() -> None:
    assert bad_pictures([ANSWERS[1]]).splitlines() == [
        "pictures that cannot be read: 1",
        "picture  reason",
        "-------  -----------------",
        "b\ufffd.png   the file is empty",
    ]
