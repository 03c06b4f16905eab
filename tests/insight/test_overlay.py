"""The drawn attention: where it lies, and that small pictures are enlarged without blur."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from insight.overlay import COLOURS, OPACITY, overlay, shown_view


def test_each_pixel_of_a_small_picture_becomes_a_square() -> None:
    view = torch.randint(0, 256, (1, 8, 8), dtype=torch.uint8)
    shown = np.asarray(shown_view(view))
    assert shown.shape == (192, 192, 3)
    squares = view[0].numpy().repeat(24, 0).repeat(24, 1)
    assert all(np.array_equal(shown[:, :, channel], squares) for channel in range(3))


@pytest.mark.parametrize(("side", "drawn"), [(224, 224), (384, 256), (100, 200)])
def test_pictures_are_drawn_at_a_size_to_look_at(side: int, drawn: int) -> None:
    assert shown_view(torch.zeros((3, side, side), dtype=torch.uint8)).size == (drawn, drawn)


def test_the_most_attended_patch_is_the_brightest_wherever_it_is() -> None:
    view = torch.full((3, 16, 16), 100, dtype=torch.uint8)
    for row in range(4):
        for column in range(4):
            attention = torch.full((4, 4), 0.01)
            attention[row, column] = 0.2
            drawn = np.asarray(overlay(view, attention)).astype(int)
            middle = drawn[row * 48 + 24, column * 48 + 24]
            wanted = OPACITY * np.array(COLOURS[-1]) + (1 - OPACITY) * 100
            assert np.abs(middle - wanted).max() < 12  # colours are blended between patches
            away = drawn[((row + 2) % 4) * 48 + 24, ((column + 2) % 4) * 48 + 24]
            assert np.abs(away - (OPACITY * np.array(COLOURS[0]) + (1 - OPACITY) * 100)).max() <= 1


def test_attention_that_is_even_is_no_error() -> None:
    assert overlay(torch.zeros((3, 16, 16), dtype=torch.uint8), torch.full((4, 4), 0.05)).size == (192, 192)
