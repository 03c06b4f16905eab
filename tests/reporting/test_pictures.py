from __future__ import annotations

import numpy as np
import pytest

from reporting import pictures
from reporting.records import Mistake
from tests.reporting.findings import HOSTILE, PICTURE, findings, views


def test_colours_grow_lighter_from_zero_to_one():
    shades = pictures.colours(np.array([-1.0, 0.0, 0.3, 0.6, 1.0, 2.0, np.nan])).astype(float) @ [0.299, 0.587, 0.114]
    assert shades[0] == shades[1] == shades[6]
    assert shades[1] < shades[2] < shades[3] < shades[4] == shades[5]


def test_rows_of_a_confusion_are_shares_of_their_label():
    confusion = np.zeros((40, 40), dtype=np.int64)
    confusion[1, 1], confusion[2, 2], confusion[2, 3] = 7, 1, 1
    picture = pictures.confusion_picture(confusion)  # too many classes for names: cells of 12 pixels alone
    assert picture.shape == (480, 480, 3)
    cells = picture[6::12, 6::12]
    np.testing.assert_array_equal(cells[1, 1], pictures.colours(np.float64(1.0)))
    np.testing.assert_array_equal(cells[2, 3], pictures.colours(np.float64(0.5)))
    np.testing.assert_array_equal(cells[0, 0], pictures.colours(np.float64(0.0)))


@pytest.mark.parametrize("num_classes", [1, 2, 15, 30, 31, 1000])
def test_confusions_of_any_number_of_classes_are_drawn(num_classes):
    picture = pictures.confusion_picture(np.eye(num_classes, dtype=np.int64), [HOSTILE] * num_classes)
    assert picture.dtype == np.uint8
    assert 400 <= picture.shape[1] <= 1000


def test_each_position_has_its_map_at_its_place():
    similarity = np.full((2, 3, 2, 3), -1.0, dtype=np.float32)
    similarity[1, 2, 0, 1] = 1.0
    picture = pictures.similarity_picture(similarity)
    times = picture.shape[1] // 12  # three maps of three positions and a line each
    found = np.argwhere((picture[::times, ::times] == pictures.colours(np.float64(1.0))).all(axis=-1))
    np.testing.assert_array_equal(found, [[3 * 1 + 0, 4 * 2 + 1]])


def test_a_sheet_shows_the_pictures_that_there_are():
    sheet = pictures.mistakes_sheet(findings().mistakes)  # two of three have a picture
    assert sheet.shape[1] == 2 * 168
    np.testing.assert_array_equal(sheet[:160:20, :160:20], PICTURE)  # small pixels keep their edges
    assert pictures.mistakes_sheet([Mistake(0, "a", "b", "c", 1.0)]) is None
    assert pictures.attention_sheet(views().attentions) is not None
    assert pictures.attention_sheet(()) is None


def test_text_of_any_kind_becomes_one_short_line():
    assert pictures.shortened(HOSTILE, 60) == "<img src=x onerror=alert(1)>?%s ?.png"
    assert pictures.shortened("a" * 50) == "a" * 18 + ".."
