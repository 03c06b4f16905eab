"""What a checkpoint must tell before it can be asked, and what the user may add."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Dict

import pytest
import torch
from safetensors.torch import save_file

from errors import UserError
from models.vit import build_model
from prediction.loading import complete, read_class_names
from tests.prediction.models import NAMES, TINY
from weights.card import ModelCard
from weights.opening import open_model
from weights.saved_model import SavedModel, TensorsInMemory
from weights.whole_model import load_whole


def saved_model(**card: Any) -> SavedModel:
    tensors = {name: value.detach() for name, value in build_model(TINY, seed=0).named_parameters()}
    return SavedModel("my_model", "test", ModelCard(**{"arch": TINY, **card}), TensorsInMemory(tensors))


@pytest.mark.parametrize(
    ("card", "flags", "words"),
    [
        ({"arch": replace(TINY, num_labels=0)}, {}, ["no classification head", "finetune.py"]),
        ({"arch": replace(TINY, num_heads=0)}, {}, ["--num-heads"]),
        ({"arch": replace(TINY, num_heads=0)}, {"num_heads": 5}, ["5 heads", "32"]),
        ({}, {"num_heads": 2}, ["has 4 attention heads, not 2"]),
        ({}, {"class_names": ("a", "b")}, ["--class-names names 2", "has 4"]),
        ({"class_names": ("a",)}, {}, ["my_model names 1"]),
        ({"arch": replace(TINY, num_channels=4)}, {}, ["4 channels"]),
    ],
)
def test_a_card_that_does_not_suffice_is_told(card: Dict[str, Any], flags: Dict[str, Any], words: Any) -> None:
    with pytest.raises(UserError) as error:
        complete(saved_model(**card), **flags)
    assert all(word in str(error.value) for word in words), error.value


def test_heads_and_names_can_be_added() -> None:
    card = complete(saved_model(arch=replace(TINY, num_heads=0)), num_heads=4, class_names=NAMES).card
    assert (card.arch.num_heads, card.class_names) == (4, NAMES)


def test_weights_of_16_bits_become_float32(tmp_path: Path) -> None:
    model = build_model(TINY, seed=0)
    path = tmp_path / "half.safetensors"
    save_file({name: value.detach().to(torch.bfloat16) for name, value in model.named_parameters()}, str(path))
    saved = open_model(str(path))
    loaded = load_whole(complete(saved, num_heads=4), torch.device("cpu"))
    for name, value in loaded.named_parameters():
        assert torch.equal(value, model.get_parameter(name).to(torch.bfloat16).float())
    assert not loaded.training


def test_class_names_are_lines(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("\ufeffgreat white\r\nCôte\n\n", encoding="utf-8")
    assert read_class_names(str(path)) == ("great white", "Côte")
    with pytest.raises(UserError, match="cannot be read"):
        read_class_names(str(tmp_path / "none.txt"))
