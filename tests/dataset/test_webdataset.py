"""Tar shards: which belong to a split, what is in them, and every way in which they can be wrong."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import subprocess
import tarfile
import time
from multiprocessing import get_context

import numpy as np
import pytest
from PIL import Image

from dataset.base import BadImageError
from dataset.sources import webdataset
from dataset.sources.webdataset import open_webdataset
from errors import UserError
from tests.small import small_config

HOUR = 3600


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def png(number):
    """An image file, another one for each number."""
    file = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), number, dtype=np.uint8)).save(file, "png")
    return file.getvalue()


def write_shard(path, members):
    """A tar of (name, bytes or text), an hour old so that its index is kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            content = content.encode() if isinstance(content, str) else content
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    os.utime(path, (time.time() - HOUR,) * 2)
    return path


def samples(*labels, first=0):
    """Members of samples s0, s1, ... with labels as given, and image `first` + 0, + 1, ..."""
    return [
        member
        for number, label in enumerate(labels)
        for member in ((f"s{number}.png", png(first + number)), (f"s{number}.cls", str(label)))
    ]


def source(tmp_path, path, split="train"):
    return open_webdataset(small_config(tmp_path, dataset="webdataset", dataset_path=str(path)), split)


def names(opened):
    return [opened.item(index).where.rpartition("/")[2] for index in range(len(opened))]


def test_samples_are_read_from_where_they_lie(tmp_path):
    shards = tmp_path / "shards"
    write_shard(shards / "a-1.tar", samples(2, 0, first=10))
    write_shard(shards / "a-0.tar", samples(1, first=20))
    opened = source(tmp_path, shards)
    assert len(opened) == 3
    assert opened.labels.tolist() == [1, 2, 0]
    assert opened.labels.dtype == np.int32
    assert opened.num_classes == 3
    assert opened.class_names == ()
    assert [opened.item(index).content for index in range(3)] == [png(20), png(10), png(11)]
    assert opened.item(1).where == f"{shards}/a-1.tar:s0.png"
    assert not (opened.is_cheap or opened.is_ready)


def test_offsets_and_sizes_are_those_of_the_tar_format(tmp_path):
    path = write_shard(tmp_path / "shards" / "a.tar", samples(0, 0))
    opened, content = source(tmp_path, path), path.read_bytes()
    index = opened._index
    assert [content.index(png(number)) for number in range(2)] == index["offsets"].tolist()
    assert [len(png(number)) for number in range(2)] == index["sizes"].tolist()
    assert (index["offsets"].dtype, index["shards"].dtype, index["labels"].dtype) == (np.int64, np.int32, np.int32)


@pytest.mark.parametrize("form", ["gnu", "pax", "ustar"])
def test_shards_of_another_program_are_read(tmp_path, form):
    folder = tmp_path / "images" / ("n" * 90) / ("größe" if form == "pax" else "m" * 60)
    folder.mkdir(parents=True)
    for name, content in samples(3, 1):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    path = tmp_path / "a.tar"
    subprocess.run(["tar", f"--format={form}", "--sort=name", "-cf", path, "./"], cwd=tmp_path / "images", check=True)
    opened = source(tmp_path, path)
    assert opened.labels.tolist() == [3, 1]
    assert [opened.item(index).content for index in range(2)] == [png(0), png(1)]
    assert opened.item(1).where == f"{path}:./{folder.relative_to(tmp_path / 'images')}/s1.png"


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "png", "webp", "bmp", "tif", "tiff", "gif", "ppm"])
def test_images_are_known_by_their_suffix(tmp_path, suffix):
    path = write_shard(tmp_path / "shards" / "a.tar", [(f"x.{suffix}", b"content"), ("x.cls", "4\n"), ("x.txt", "")])
    assert source(tmp_path, path).item(0).content == b"content"


@pytest.mark.parametrize(
    ("file", "label"),
    [
        (("x.cls", " 007\n"), 7),
        (("x.json", json.dumps({"label": 3, "caption": "a cat"})), 3),
        (("x.json", json.dumps({"cls": 4})), 4),
        (("x.json", json.dumps({"class_id": 5, "label_name": "cat"})), 5),
    ],
)
def test_labels_are_texts_or_json(tmp_path, file, label):
    path = write_shard(tmp_path / "shards" / "a.tar", [("x.png", png(0)), file])
    assert source(tmp_path, path).labels.tolist() == [label]


def test_a_cls_file_wins_over_metadata_beside_it(tmp_path):
    members = [("x.png", png(0)), ("x.json", json.dumps({"width": 6})), ("x.cls", "2")]
    assert source(tmp_path, write_shard(tmp_path / "shards" / "a.tar", members)).labels.tolist() == [2]


def test_samples_are_told_by_folder_and_name_up_to_the_first_dot(tmp_path):
    members = [("n01/1.png", png(1)), ("n02/1.png", png(2)), ("n02/1.cls", "1"), ("n01/1.cls", "0")]
    members += [
        ("n01/1.seg.png", png(3)),
        ("n01/._1.png", b"a Mac's"),
        ("README.txt", "no sample"),
        ("größe.png", png(4)),
    ]
    members += [("größe.cls", "1")]
    opened = source(tmp_path, write_shard(tmp_path / "shards" / "a.tar", members))
    assert opened.labels.tolist() == [0, 1, 1]
    assert [opened.item(index).content for index in range(3)] == [png(1), png(2), png(4)]
    assert opened.item(2).where.endswith("a.tar:größe.png")


def test_the_same_name_may_be_in_two_shards(tmp_path):
    for shard in "ab":
        write_shard(tmp_path / "shards" / f"{shard}.tar", samples(0))
    assert names(source(tmp_path, tmp_path / "shards")) == ["a.tar:s0.png", "b.tar:s0.png"]


@pytest.mark.parametrize("validation", ["validation", "val"])
def test_splits_may_be_folders(tmp_path, validation):
    write_shard(tmp_path / "set" / "train" / "0.tar", samples(0, 1))
    write_shard(tmp_path / "set" / validation / "0.tar", samples(1))
    assert len(source(tmp_path, tmp_path / "set")) == 2
    assert source(tmp_path, tmp_path / "set", "validation").labels.tolist() == [1]


@pytest.mark.parametrize(
    ("shards", "train", "validation"),
    [
        (["a-train-0", "a-val-0", "a-val-1"], ["a-train-0"], ["a-val-0", "a-val-1"]),
        (["x_0", "x_Validation_0"], ["x_0"], ["x_Validation_0"]),
        (["x.0", "x.test.0"], ["x.0"], ["x.test.0"]),
        (["x-train", "x-val", "x-test"], ["x-train"], ["x-val"]),
        (["carnival-0", "testament"], ["carnival-0", "testament"], None),
    ],
)
def test_in_one_folder_names_tell_the_split(tmp_path, shards, train, validation):
    for shard in shards:
        write_shard(tmp_path / "set" / f"{shard}.tar", samples(0))
    assert names(source(tmp_path, tmp_path / "set")) == [f"{shard}.tar:s0.png" for shard in train]
    held = source(tmp_path, tmp_path / "set", "validation")
    assert (held and names(held)) == (validation and [f"{shard}.tar:s0.png" for shard in validation])


@pytest.mark.parametrize(
    ("pattern", "train", "validation"),
    [
        (
            "set/i-train-{08..11}.tar",
            ["i-train-08", "i-train-09", "i-train-10", "i-train-11"],
            ["i-val-00", "i-val-01"],
        ),
        ("set/i-train-{08,11}.tar", ["i-train-08", "i-train-11"], None),
        ("set/i-train-*.tar", ["i-train-08", "i-train-09", "i-train-10", "i-train-11"], ["i-val-00", "i-val-01"]),
        ("set/i-train-{0[89],1?}.tar", ["i-train-08", "i-train-09", "i-train-10", "i-train-11"], None),
        ("set/i-{train,val}-{8..11}.tar", None, None),
        ("set/i-train-08.tar", ["i-train-08"], None),
        ("set/i-val-{00..01}.tar", ["i-val-00", "i-val-01"], None),
    ],
)
def test_patterns_name_the_training_set(tmp_path, pattern, train, validation):
    for shard in ["train-08", "train-09", "train-10", "train-11", "val-00", "val-01"]:
        write_shard(tmp_path / "set" / f"i-{shard}.tar", samples(0))
    if train is None:
        with pytest.raises(UserError, match=r"i-train-8\.tar is missing, 6 files in all"):
            source(tmp_path, tmp_path / pattern)
        return
    assert names(source(tmp_path, tmp_path / pattern)) == [f"{shard}.tar:s0.png" for shard in train]
    held = source(tmp_path, tmp_path / pattern, "validation")
    assert (held and names(held)) == (validation and [f"{shard}.tar:s0.png" for shard in validation])


def test_a_pattern_finds_validation_in_a_folder_of_that_name(tmp_path):
    write_shard(tmp_path / "set" / "train" / "i-0.tar", samples(0))
    write_shard(tmp_path / "set" / "validation" / "i-7.tar", samples(0))
    held = source(tmp_path, tmp_path / "set" / "train" / "i-{0..0}.tar", "validation")
    assert names(held) == ["i-7.tar:s0.png"]


@pytest.mark.parametrize("file", ["set/classes.txt", "set/train/classnames.txt"])
def test_class_names_lie_beside_the_shards(tmp_path, file):
    write_shard(tmp_path / "set" / "train" / "0.tar", samples(0, 1))
    (tmp_path / file).write_text("cat\ngroßer Hund\n\nfish\n", encoding="utf-8")
    opened = source(tmp_path, tmp_path / "set")
    assert opened.class_names == ("cat", "großer Hund", "fish")
    assert opened.num_classes == 3


def test_an_index_is_kept_while_no_shard_has_changed(tmp_path, monkeypatch):
    path = write_shard(tmp_path / "shards" / "a.tar", samples(0))
    scans = []
    scan = webdataset._scan
    monkeypatch.setattr(webdataset, "_scan", lambda shard: scans.append(shard) or scan(shard))
    assert len(source(tmp_path, path)) == len(source(tmp_path, path)) == 1
    assert len(scans) == 1
    write_shard(path, samples(3, 4))
    assert source(tmp_path, path).labels.tolist() == [3, 4]
    assert len(scans) == 2


@pytest.mark.parametrize("change", ["size", "time"])
def test_either_size_or_time_tells_a_change(tmp_path, change):
    path = write_shard(tmp_path / "shards" / "a.tar", samples(0))
    old = path.stat().st_mtime_ns
    source(tmp_path, path)
    write_shard(path, samples(1) + ([("more.txt", b"x" * 20_000)] if change == "size" else []))
    os.utime(path, ns=(old + (change == "time"),) * 2)
    assert source(tmp_path, path).labels.tolist() == [1]


def test_the_index_of_a_shard_written_just_now_is_not_kept(tmp_path):
    path = write_shard(tmp_path / "shards" / "a.tar", samples(0))
    os.utime(path)
    now = path.stat().st_mtime_ns
    source(tmp_path, path)
    write_shard(path, samples(1))
    os.utime(path, ns=(now, now))
    assert source(tmp_path, path).labels.tolist() == [1]


def test_no_more_shards_than_allowed_are_open(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "MOST_OPEN", 3)
    for number in range(8):
        write_shard(tmp_path / "shards" / f"{number}.tar", samples(0, first=number))
    opened = source(tmp_path, tmp_path / "shards")
    assert [opened.item(index).content for index in [*range(8), 0, 7]] == [png(index) for index in [*range(8), 0, 7]]
    links = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    assert sum(link.endswith(".tar") for link in links) == 3


def _contents(opened, sender):
    sender.send([opened.item(index).content for index in range(len(opened))])


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_another_process_reads_the_same(tmp_path, method):
    for number in range(2):
        write_shard(tmp_path / "shards" / f"{number}.tar", samples(0, 0, first=2 * number))
    opened = source(tmp_path, tmp_path / "shards")
    opened.item(0)  # a descriptor is open here already
    context = get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_contents, args=(opened, sender))
    process.start()
    assert receiver.poll(60)
    assert receiver.recv() == [png(number) for number in range(4)] == [opened.item(i).content for i in range(4)]
    process.join(60)


def test_samples_take_no_python_objects(tmp_path):
    few = source(tmp_path, write_shard(tmp_path / "shards" / "few.tar", samples(0)))
    many = source(tmp_path, write_shard(tmp_path / "shards" / "more.tar", samples(*[0] * 200)))
    assert len(pickle.dumps(many)) - len(pickle.dumps(few)) < 10


@pytest.mark.parametrize(("fault", "reason"), [("cut", "ends 10 bytes before"), ("gone", "No such file")])
def test_a_shard_that_breaks_later_gives_a_bad_image(tmp_path, fault, reason):
    path = write_shard(tmp_path / "shards" / "a.tar", samples(0, 0))
    opened = source(tmp_path, path)
    if fault == "gone":
        path.unlink()
    else:
        os.truncate(path, int(opened._index["offsets"][1]) + len(png(1)) - 10)
        assert opened.item(0).content == png(0)
    with pytest.raises(BadImageError) as error:
        opened.item(1)
    assert error.value.where == f"{path}:s1.png"
    assert reason in error.value.reason


TWO = samples(0, 1)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (TWO[:3], r"a\.tar: sample s1 has no label, only s1\.png\.\n.*s1\.cls \(a whole number\) or s1\.json"),
        ([*TWO[:2], TWO[3]], r"a\.tar: sample s1 has no image, only s1\.cls"),
        ([*TWO, ("s1.jpg", b"")], r"a\.tar has two samples named s1: s1\.png and s1\.jpg"),
        ([*TWO, *samples(5)], r"a\.tar has two samples named s0: s0\.png and s0\.png"),
        (samples(0, "cat"), r"a\.tar: s1\.cls holds 'cat'.\n.*a whole number, the class, counted from 0"),
        (samples(-1), r"s0\.cls holds '-1'"),
        (samples("1.0"), r"s0\.cls holds '1\.0'"),
        (samples(""), r"s0\.cls holds ''"),
        (samples(2**31), r"s0\.cls holds '2147483648'"),
        ([("x.png", b""), ("x.json", '{"name": 1}')], r"x\.json holds .*\n.*whole number as label or cls or class_id"),
        ([("x.png", b""), ("x.json", '{"label": "3"}')], r"x\.json holds"),
        ([("x.png", b""), ("x.json", '{"label": true}')], r"x\.json holds"),
        ([("x.png", b""), ("x.json", '{"label": -3}')], r"x\.json holds"),
        ([("x.png", b""), ("x.json", "[3]")], r"x\.json holds"),
        ([("x.png", b""), ("x.json", "{")], r"x\.json holds '\{'"),
        ([("README.txt", "")], r"a\.tar: no samples\.\n.*\.jpg"),
        ([], r"a\.tar: no samples"),
    ],
)
def test_what_a_sample_lacks_is_said(tmp_path, members, message):
    path = write_shard(tmp_path / "shards" / "a.tar", members)
    with pytest.raises(UserError, match=message):
        source(tmp_path, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tar: b"<html>404</html>" * 99, r"b\.tar is not a tar file"),
        (lambda tar: b"", r"b\.tar is not a tar file"),
        (lambda tar: tar[:700], r"b\.tar is cut short or damaged at byte .*\n.*again"),
        (lambda tar: tar[: 512 * 4], r"b\.tar is cut short or damaged at byte 2,048"),  # between two members
        (lambda tar: tar[: 512 * 4 + 100], r"b\.tar is cut short or damaged at byte 2,048"),  # in a header
        (lambda tar: tar[: 512 * 4] + b"x" * 512 + tar[512 * 5 :], r"b\.tar is cut short or damaged at byte 2,048"),
        (gzip.compress, r"b\.tar is compressed"),
    ],
)
@pytest.mark.parametrize("others", [0, 2])
def test_damaged_shards_are_named(tmp_path, damage, message, others):
    for number in range(others):
        write_shard(tmp_path / "shards" / f"a{number}.tar", samples(0))
    path = write_shard(tmp_path / "shards" / "b.tar", [("0.png", b"x"), ("0.cls", "0"), ("1.png", b""), ("1.cls", "1")])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message):
        source(tmp_path, tmp_path / "shards")


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.TAR.BZ2"])
def test_compressed_shards_are_refused_by_name(tmp_path, name):
    write_shard(tmp_path / "shards" / "b.tar", samples(0))
    (tmp_path / "shards" / name).write_bytes(b"")
    with pytest.raises(UserError, match=rf"{name} is compressed, and cannot be read at random\.\n +Decompress it"):
        source(tmp_path, tmp_path / "shards")
    write_shard(tmp_path / "shards" / "a.tar", samples(0))  # now it is decompressed
    assert len(source(tmp_path, tmp_path / "shards")) == 2


@pytest.mark.parametrize(
    ("path", "split", "message"),
    [
        (None, "train", r"dataset = webdataset needs dataset_path.*--dataset-path FOLDER"),
        ("nowhere", "train", r"nowhere is neither a folder nor the name or pattern of files"),
        ("set/x-*.tar", "train", r"set/x-\*\.tar is neither a folder nor"),
        ("set/i-{0..3}.tar", "train", r"i-2\.tar is missing, 2 files in all"),
        ("empty", "train", r"empty has no shards \(\.tar files\); it is empty"),
        ("images", "train", r"images has no shards \(\.tar files\); it holds a\.txt, n01\."),
        ("half", "validation", r"half/val has no shards \(\.tar files\); it is empty"),
        ("validation-only", "train", r"has shards of a validation or test set only, such as i-val\.tar"),
        ("named", "train", r"0\.tar:s1\.png has label 2, but .*classes\.txt names 2 classes, 0 to 1\."),
    ],
)
def test_missing_shards_are_explained(tmp_path, path, split, message):
    for folder in ("empty", "images/n01", "half/val"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "images" / "a.txt").write_text("")
    for shard in ("set/i-0", "set/i-1", "half/train/0", "validation-only/i-val"):
        write_shard(tmp_path / f"{shard}.tar", samples(0))
    write_shard(tmp_path / "named" / "0.tar", samples(0, 2))
    (tmp_path / "named" / "classes.txt").write_text("cat\ndog\n")
    keys = {} if path is None else {"dataset_path": str(tmp_path / path)}
    with pytest.raises(UserError, match=message):
        open_webdataset(small_config(tmp_path, dataset="webdataset", **keys), split)


def test_without_validation_folder_there_is_none(tmp_path):
    write_shard(tmp_path / "set" / "train" / "0.tar", samples(0))
    assert source(tmp_path, tmp_path / "set", "validation") is None
