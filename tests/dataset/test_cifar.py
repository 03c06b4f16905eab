"""CIFAR from small archives in the published form: Python 2 pickles, extracted or as .tar.gz."""

from __future__ import annotations

import hashlib
import http.server
import os
import pickle
import socket
import threading
from functools import partial

import numpy as np
import pytest
import torch

from dataset.registry import open_source
from dataset.sources.safe_pickle import load_pickle
from errors import UserError
from tests.dataset.cifar_files import ARCHIVES, FOLDERS, archive_of, python2_pickle
from tests.small import small_config


def pixels_of(number, rows):
    return np.random.default_rng(number).integers(0, 256, (rows, 3072), dtype=np.uint8)


def published_files(kind):
    """Name -> content, three images a file."""
    if kind == "cifar10":
        names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
        files = {
            name: {
                b"batch_label": b"x",
                b"labels": [number, 9, 0],
                b"data": pixels_of(number, 3),
                b"filenames": [b"a.png"],
            }
            for number, name in enumerate(names)
        }
        files["batches.meta"] = {b"num_cases_per_batch": 3, b"label_names": [b"class%d" % n for n in range(10)]}
    else:
        files = {
            name: {b"fine_labels": [number, 99, 0], b"coarse_labels": [1, 2, 3], b"data": pixels_of(number, 3)}
            for number, name in enumerate(["train", "test"])
        }
        files["meta"] = {b"fine_label_names": [b"class%d" % n for n in range(100)]}
    return {name: python2_pickle(fields) for name, fields in files.items()}


def write_folder(root, kind, **changes):
    folder = root / FOLDERS[kind]
    folder.mkdir(parents=True)
    for name, content in {**published_files(kind), **changes}.items():
        (folder / name).write_bytes(content)


def cifar(tmp_path, kind, path, split="train"):
    classes = {"cifar10": 10, "cifar100": 100}[kind]
    return open_source(small_config(tmp_path, dataset=kind, dataset_path=str(path), num_labels=classes), split)


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
@pytest.mark.parametrize("form", ["folder", "inside the folder", "archive"])
def test_published_archives_are_read(tmp_path, kind, form):
    path = tmp_path / "data"
    path.mkdir()
    if form == "archive":
        archive_of(published_files(kind), kind, path / ARCHIVES[kind])
    else:
        write_folder(path, kind)
    train = cifar(tmp_path, kind, path / FOLDERS[kind] if form == "inside the folder" else path)
    parts = 5 if kind == "cifar10" else 1
    assert len(train) == 3 * parts
    assert train.labels.tolist() == [n for part in range(parts) for n in (part, 9 if kind == "cifar10" else 99, 0)]
    assert train.class_names[3] == "class3"
    assert train.num_classes == len(train.class_names)
    last_image = torch.from_numpy(pixels_of(parts - 1, 3)[2].reshape(3, 32, 32))
    assert torch.equal(train.item(3 * parts - 1), last_image)
    validation = cifar(tmp_path, kind, path, "validation")
    assert validation.labels.tolist()[0] == parts
    assert torch.equal(validation.item(0), torch.from_numpy(pixels_of(parts, 3)[0].reshape(3, 32, 32)))


def test_pickles_of_python_3_are_read_too(tmp_path):
    fields = {b"data": pixels_of(1, 2), b"labels": [1, 2], "name": "x"}
    for protocol in (2, 4):
        content = load_pickle(pickle.dumps(fields, protocol), "there")
        np.testing.assert_array_equal(content[b"data"], fields[b"data"])


class Malicious:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_pickle_does_not_run(tmp_path, protocol):
    trace = tmp_path / "was here"
    for attack in [Malicious(os.mkdir, str(trace)), Malicious(eval, f"open({str(trace)!r}, 'w')")]:
        content = pickle.dumps({b"data": attack, b"labels": [1]}, protocol)
        root = tmp_path / f"{protocol}{len(content)}"
        write_folder(root, "cifar100", train=content)
        with pytest.raises(UserError, match=r"cannot read .*train: it asks for") as error:
            cifar(tmp_path, "cifar100", root)
        assert "plain data does not need" in str(error.value)
        assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["cannot read", "train"]),
        (b"not a pickle", ["cannot read", "train"]),
        (published_files("cifar100")["train"][:2000], ["cannot read", "train"]),
        (python2_pickle({b"labels": [1]}), ["b'data'", "b'fine_labels'"]),
        (python2_pickle([1, 2]), ["b'data'"]),
        (python2_pickle({b"data": pixels_of(0, 2), b"fine_labels": [1]}), ["[1, 3072]", "[2, 3072]"]),
        (python2_pickle({b"data": pixels_of(0, 2), b"fine_labels": [1, 100]}), ["below 100", "from 1 to 100"]),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, words):
    write_folder(tmp_path / "data", "cifar100", train=content)
    with pytest.raises(UserError) as error:
        cifar(tmp_path, "cifar100", tmp_path / "data")
    for word in words:
        assert word in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    write_folder(tmp_path / "data", "cifar10")
    (tmp_path / "data" / FOLDERS["cifar10"] / "data_batch_4").unlink()
    with pytest.raises(UserError, match="data_batch_4 is missing"):
        cifar(tmp_path, "cifar10", tmp_path / "data")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_an_archive_cut_short_is_named(tmp_path, share):
    archive = tmp_path / ARCHIVES["cifar10"]
    archive_of(published_files("cifar10"), "cifar10", archive)
    archive.write_bytes(archive.read_bytes()[: int(archive.stat().st_size * share)])
    with pytest.raises(UserError, match=r"cannot read .*tar.gz(.|\n)*fetch it again"):
        cifar(tmp_path, "cifar10", tmp_path)


def test_no_path_says_what_is_looked_for(tmp_path):
    with pytest.raises(UserError, match=r"needs dataset_path.*cifar-10-batches-py/ or cifar-10-python.tar.gz"):
        open_source(small_config(tmp_path, dataset="cifar10", num_labels=10), "train")


def test_missing_and_not_to_be_downloaded_says_where_it_was_looked_for(tmp_path, monkeypatch):
    published = torchvision_class("cifar10")
    with socket.socket() as closed:  # bound, but nobody listens
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(published, "url", f"http://127.0.0.1:{closed.getsockname()[1]}/x.tar.gz")
        with pytest.raises(UserError) as error:
            cifar(tmp_path, "cifar10", tmp_path / "nothing")
    for words in (
        "nothing",
        "cifar-10-batches-py/",
        "cifar-10-python.tar.gz",
        "downloading it failed",
        "--dataset-path",
    ):
        assert words in str(error.value)


@pytest.mark.parametrize("digest", ["right", "wrong"])
def test_a_missing_archive_is_downloaded_whole_or_not_at_all(tmp_path, monkeypatch, digest):
    (tmp_path / "web").mkdir()
    archive_of(published_files("cifar100"), "cifar100", tmp_path / "web" / "c.tar.gz")
    md5 = hashlib.md5((tmp_path / "web" / "c.tar.gz").read_bytes()).hexdigest() if digest == "right" else "0" * 32
    published = torchvision_class("cifar100")
    monkeypatch.setattr(published, "tgz_md5", md5)
    with serving(tmp_path / "web") as address:
        monkeypatch.setattr(published, "url", f"{address}/c.tar.gz")
        if digest == "right":
            assert len(cifar(tmp_path, "cifar100", tmp_path / "new")) == 3
            assert [path.name for path in (tmp_path / "new").iterdir()] == [ARCHIVES["cifar100"]]
        else:
            with pytest.raises(UserError, match="downloading it failed"):
                cifar(tmp_path, "cifar100", tmp_path / "new")
            assert list((tmp_path / "new").iterdir()) == []


def torchvision_class(kind):
    import dataset.transforms.torchvision_operators  # noqa: F401

    # isort: split
    from torchvision.datasets import CIFAR10, CIFAR100

    return {"cifar10": CIFAR10, "cifar100": CIFAR100}[kind]


class serving:  # noqa: N801  (reads as a verb)
    def __init__(self, folder):
        handler = partial(QuietHandler, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize("kind", [np.dtype("O"), np.dtype([("a", "O")]), np.dtype("V8")])
def test_a_pickle_cannot_make_arrays_of_pointers(tmp_path, kind):
    for attack in [Malicious(np.ndarray, (4,), kind, b"A" * 32), np.zeros(4, kind)]:
        root = tmp_path / type(attack).__name__
        write_folder(root, "cifar100", train=pickle.dumps({b"data": attack, b"fine_labels": attack}, 2))
        with pytest.raises(UserError, match=r"cannot read .*train: "):
            cifar(tmp_path, "cifar100", root)


def test_a_linked_folder_is_found(tmp_path):
    write_folder(tmp_path / "real", "cifar10")
    (tmp_path / "data").mkdir()
    (tmp_path / "real" / FOLDERS["cifar10"]).rename(tmp_path / "elsewhere")
    (tmp_path / "data" / FOLDERS["cifar10"]).symlink_to(tmp_path / "elsewhere")
    assert len(cifar(tmp_path, "cifar10", tmp_path / "data")) == 15
