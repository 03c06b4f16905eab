"""The figure of --attention: what it takes, and what it does not overwrite."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from errors import UserError
from prediction.answers import Label
from prediction.figure import Drawn, check_target, figure, save


def test_a_figure_takes_long_names_letters_it_lacks_and_no_labels() -> None:
    view, attention = torch.zeros((3, 16, 16), dtype=torch.uint8), torch.rand(4, 4)
    labels = tuple(Label(number, f"class {number} " * 9, 0.3) for number in range(20))
    entries = [Drawn("名" * 90, view, attention, labels), Drawn("b.png", view, attention, ())]
    assert figure(entries, "a model " * 40).width == figure(entries * 2, "m").width


def test_only_our_own_figures_are_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    check_target(path)
    save(Image.new("RGB", (2, 2)), path)
    check_target(path)
    for content in (b"", b"text"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="Give another name"):
            check_target(path)
    Image.new("RGB", (2, 2)).save(path)
    with pytest.raises(UserError, match="Give another name"):
        check_target(path)
