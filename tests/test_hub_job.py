"""A Hugging Face user's fine-tune from start to end: a set and a ViT in their real formats, and back to transformers."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any, Dict, List
from unittest.mock import create_autospec

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import dataset.transforms.torchvision_operators  # noqa: F401  # isort: skip  (both import torchvision)
import huggingface_hub
import transformers
import yaml

import finetune
import launch
import predict
from errors import UserError
from publishing.hugging_face import push
from publishing.model_readme import MARK
from tests.small import small_config

NAMES = ["ca|t", "<b>dog</b>"]
SIZES = {"hidden-size": 16, "num-hidden-layers": 2, "num-attention-heads": 2, "mlp-dim": 32, "patches-size": 4}
KEYS = {"image-size": 8, "num-labels": 2, "epochs": 2, "dataloader-workers": 0, "device": "cpu", "learning-rate": 0.01}


def png(label: int, number: int) -> bytes:
    """Cats are bright above, dogs below."""
    pixels = np.random.default_rng(number).integers(0, 100, (10, 12, 3), dtype=np.uint8)
    pixels[:5] += 150 * (label == 0)
    pixels[5:] += 150 * (label == 1)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def write_set(folder: Path) -> None:
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})

    def rows(numbers: range) -> Any:
        images = [{"bytes": png(number % 2, number), "path": None} for number in numbers]
        return datasets.Dataset.from_dict({"img": images, "label": [n % 2 for n in numbers]}, features=features)

    datasets.DatasetDict(train=rows(range(48)), test=rows(range(48, 64))).save_to_disk(folder)


def write_vit(folder: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    config = transformers.ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=7, initializer_range=0.1)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Path:
    """A folder with a set, a model and a picture, as the hub's are."""
    folder = tmp_path_factory.mktemp("user")
    write_set(folder / "pets")
    write_vit(folder / "tiny_vit")
    (folder / "cat.png").write_bytes(png(0, 1000))
    return folder


@pytest.fixture(autouse=True)
def there(place: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def train(*words: str) -> int:
    flags = [word for name, value in {**SIZES, **KEYS}.items() for word in (f"--{name}", str(value))]
    data = ["--dataset", "hub", "--dataset-path", "pets", "--pretrained-checkpoint", "tiny_vit"]
    return launch.run("finetune", finetune.main, ["--config", "b16_cifar10_hub", *data, *flags, *words])


def newest() -> Path:
    return max(Path("runs").iterdir(), key=lambda run: run.stat().st_mtime)


@pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) < 5,
    reason=f"transformers {transformers.__version__} crops no pictures by their short side with PIL",
)
def test_a_hub_set_and_a_hub_vit_become_a_model_that_transformers_opens_with_the_same_answers(capsys: Any) -> None:
    assert train() == 0
    folder = newest() / "huggingface"
    assert f"Hugging Face form: {folder}" in capsys.readouterr().out
    model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    assert model.config.id2label == dict(enumerate(NAMES))
    with torch.no_grad():
        inputs = processor(Image.open("cat.png"), return_tensors="pt")
        theirs = model(**inputs).logits.softmax(-1)[0]
    assert predict.main(["cat.png", "--json"]) == 0  # the newest run, without naming it
    told = capsys.readouterr()
    assert f"model: {newest()}, the newest run here" in told.err
    ours = {one["name"]: one["probability"] for one in json.loads(told.out)["labels"]}
    assert [ours[name] for name in NAMES] == pytest.approx(theirs.tolist(), abs=5e-3)  # resized by two libraries
    assert theirs.argmax() == 0
    text = (folder / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert (front["pipeline_tag"], front["library_name"]) == ("image-classification", "transformers")
    assert MARK in text
    assert "Fine-tuned from tiny_vit on pets" in text
    assert "ca\\|t, &lt;b&gt;dog&lt;/b&gt;" in text
    assert str(Path.cwd()) not in text


def hub(monkeypatch: Any, error: Any = None) -> Any:
    """huggingface_hub's own signatures, without a network."""
    api = create_autospec(huggingface_hub.HfApi, instance=True)
    api.create_repo.return_value = huggingface_hub.RepoUrl("https://huggingface.co/ann/pets", endpoint=None)
    api.upload_folder.side_effect = error
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    return api


def test_a_push_uploads_what_was_saved(monkeypatch: Any, tmp_path: Path) -> None:
    api = hub(monkeypatch)
    assert push(tmp_path, "pets") == "https://huggingface.co/ann/pets"
    assert api.create_repo.call_args.kwargs == {"repo_type": "model", "exist_ok": True}
    sent = api.upload_folder.call_args.kwargs
    assert (sent["repo_id"], sent["folder_path"]) == ("ann/pets", str(tmp_path))


def test_a_push_that_fails_loses_nothing_and_says_how_to_repeat_it(monkeypatch: Any, capsys: Any) -> None:
    hub(monkeypatch, ConnectionError("no route to host\nmore"))
    assert train("--push-to-hub", "ann/pets", "--checkpoint-output-dir", "out") == 2
    told = capsys.readouterr().err
    assert told == (
        "error: ann/pets is not uploaded: no route to host\n"
        "       The run is whole, and so is out/huggingface. Once the hub can be reached and lets you write there:\n"
        "       hf upload ann/pets out/huggingface\n"
    )
    assert {"best", "latest", "huggingface"} <= set(os.listdir("out"))
    assert "hf_secret" not in (Path("out") / "config.yaml").read_text()


WRONG: List[Any] = [
    ({"push_to_hub": "a b/c", "checkpoint_output_dir": "x"}, "push_to_hub = 'a b/c' is no name"),
    ({"push_to_hub": "ann/pets"}, 'checkpoint_output_dir = "" makes none'),
    ({"save_huggingface": True, "checkpoint_output_dir": "x", "representation_size": 8}, "have no place for a layer"),
]


@pytest.mark.parametrize(("keys", "message"), WRONG)
def test_what_cannot_be_published_is_refused_before_training(tmp_path: Any, keys: Dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small_config(tmp_path, **keys)


def test_without_a_login_a_push_is_refused_before_training(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert train("--push-to-hub", "ann/pets", "--checkpoint-output-dir", "never") == 2
    assert "nobody is logged in" in capsys.readouterr().err
    assert not Path("never").exists()


def test_predict_without_a_run_says_so(tmp_path: Any, monkeypatch: Any, place: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no --checkpoint is given"):
        predict.main([str(place / "cat.png")])
