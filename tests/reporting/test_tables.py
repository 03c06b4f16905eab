from __future__ import annotations

import pytest

from reporting.tables import table


def test_text_stands_left_and_figures_right():
    assert table(["stage", "units", "share"], [[0, "embed", "9 %"], [1, "block 0, head", "91 %"]]).splitlines() == [
        "stage  units          share",
        "-----  -------------  -----",
        "    0  embed            9 %",
        "    1  block 0, head   91 %",
    ]


def test_table_without_rows_is_its_headers():
    assert table(["name", "value"], []).splitlines() == ["name  value", "----  -----"]


def test_row_of_another_length_is_refused():
    with pytest.raises(AssertionError, match="1 cells under 2 headers"):
        table(["name", "value"], [["x"]])
