"""The index of a data set's files: names as they are, kept while it is right, made anew as soon as it is not."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import random
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dataset.sources import folder as folder_source
from dataset.sources.folder import index_of
from dataset.sources.index import PREFIX, cached_index, temporary_index, write_index
from errors import UserError
from tests.dataset.files import write_images

NAMES = [
    "a/0.png",
    "große Käfer/蝶 .jpg",
    "with\nnewline\t",
    "",
    os.fsdecode(b"\xff\xfe/\x80.png"),
    "x" * 3000,
    "a/0.png",
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pipevit" / "indexes"


@pytest.fixture
def root(tmp_path):
    """Class folders with nested and linked ones, none changed lately."""
    folder = tmp_path / "images"
    write_images(folder, {"a": 2, "a/deep/er": 2, "b": 3})
    write_images(tmp_path / "elsewhere", {"first": 1, "second": 2})
    (folder / "b" / "linked").symlink_to(tmp_path / "elsewhere" / "first")
    settle(tmp_path)
    return folder


def settle(folder, seconds_ago=3600.0):
    """As if nothing had changed below a folder for an hour."""
    for path, _, _ in os.walk(folder):
        os.utime(path, (time.time() - seconds_ago,) * 2)


def names(index):
    return [index.name(number) for number in range(len(index))]


def listed(root):
    """Independently of the source: the classes, and the paths and class numbers of all files below them."""
    classes = sorted(path.name for path in root.iterdir() if path.is_dir())
    found = []
    for label, name in enumerate(classes):
        walk = os.walk(root / name, followlinks=True)
        paths = [
            os.path.relpath(os.path.join(path, file), root) for path, _, files in walk for file in files if "." in file
        ]
        found += [(path, label) for path in sorted(paths)]
    return classes, found


def assert_right(index, root):
    classes, files = listed(root)
    assert index.about["classes"] == classes
    assert list(zip(names(index), index["labels"].tolist())) == files


@pytest.fixture
def forbid_listing(monkeypatch):
    def forbid():
        def fail(*arguments):
            raise AssertionError("lists a folder again")

        monkeypatch.setattr(folder_source, "_scan", fail)

    return forbid


def test_names_of_any_kind_come_back():
    index = temporary_index(NAMES, {"sizes": np.arange(7, dtype=np.int16)}, {"note": ["any", 1, None]})
    assert len(index) == 7
    assert names(index) == NAMES
    assert [index.name(number) for number in (6, 0, 4)] == [NAMES[number] for number in (6, 0, 4)]
    assert index["sizes"].tolist() == list(range(7))
    assert index["sizes"].dtype == np.int16
    assert index.about == {"note": ["any", 1, None]}
    assert len(temporary_index([], {}, {})) == 0


def test_an_index_goes_to_other_processes_as_its_place_alone():
    index = temporary_index(NAMES * 1000, {"labels": np.arange(7000)}, {"classes": ["a"] * 1000})
    parcel = pickle.dumps(index)
    assert len(parcel) < 500
    received = pickle.loads(parcel)
    assert names(received) == NAMES * 1000
    assert received["labels"].tolist() == list(range(7000))
    assert received.about == index.about
    del received
    assert index.name(6999) == NAMES[-1]


def test_a_folders_index_holds_what_is_below_it(root):
    os.mkdir(os.fsencode(root / "c") + b"\xff")
    Path(os.fsdecode(os.fsencode(root / "c") + b"\xff"), os.fsdecode(b"\xfe.JPG")).write_bytes(b"x")
    assert_right(index_of(root), root)


def test_a_second_look_does_not_list_the_folders_again(root, forbid_listing):
    first = index_of(root)
    forbid_listing()
    second = index_of(root)
    assert_right(second, root)
    assert names(first) == names(second)
    with pytest.raises(AssertionError, match="again"):
        index_of(root.parent)  # another folder


def test_the_folder_is_the_same_through_a_link(root, tmp_path, forbid_listing):
    (tmp_path / "link").symlink_to(root)
    index_of(root)
    forbid_listing()
    assert_right(index_of(tmp_path / "link"), root)


def retarget(link, target):
    link.unlink()
    link.symlink_to(target)


def remove_folder(folder):
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def add_class(root):
    (root / "aa").mkdir()
    (root / "aa" / "0.png").write_bytes(b"x")


def unpack(root):
    """As tar and rsync do it: folders get the times that they had elsewhere."""
    (root / "a" / "new.png").write_bytes(b"x")
    os.utime(root / "a", (time.time() - 7200,) * 2)


CHANGES = {
    "a file is unpacked": unpack,
    "a file is added": lambda root: (root / "a" / "new.png").write_bytes(b"x"),
    "a file is removed": lambda root: (root / "a" / "0.png").unlink(),
    "a file is renamed": lambda root: (root / "a" / "0.png").rename(root / "a" / "7.png"),
    "a file goes to another class": lambda root: (root / "a" / "0.png").rename(root / "b" / "9.png"),
    "a class is added": add_class,
    "a class is added by renaming": lambda root: (root / "a" / "deep" / "er").rename(root / "c"),
    "a class is removed": lambda root: remove_folder(root / "a" / "deep" / "er") or (root / "a" / "deep").rmdir(),
    "a class is renamed": lambda root: (root / "a").rename(root / "z"),
    "classes are swapped": lambda root: [
        (root / old).rename(root / new) for old, new in (("a", "x"), ("b", "a"), ("x", "b"))],
    "a file is added in a nested folder": lambda root: (root / "a" / "deep" / "er" / "new.png").write_bytes(b"x"),
    "a nested folder is renamed": lambda root: (root / "a" / "deep" / "er").rename(root / "a" / "deep" / "est"),
    "a file is added behind a link": lambda root: (root / "b" / "linked" / "new.png").write_bytes(b"x"),
    "a link to a folder goes elsewhere": lambda root: retarget(
        root / "b" / "linked", root.parent / "elsewhere" / "second"),
    "a link to a folder goes nowhere": lambda root: retarget(root / "b" / "linked", root.parent / "nowhere"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_is_seen_by_the_next_look(root, change):
    assert_right(index_of(root), root)
    before = listed(root)
    CHANGES[change](root)
    assert listed(root) != before
    assert_right(index_of(root), root)
    settle(root.parent)
    assert_right(index_of(root), root)
    assert_right(index_of(root), root)


def test_a_change_is_seen_where_the_old_index_is_still_in_use(root):
    old = index_of(root)
    expected = names(old)
    (root / "a" / "new.png").write_bytes(b"x")
    settle(root.parent, 60)
    assert_right(index_of(root), root)
    assert names(old) == expected
    assert len(old["labels"]) == len(expected)


def test_an_index_of_a_folder_changed_just_now_is_not_kept(root, monkeypatch, cache):
    counted = []
    scan = folder_source._scan
    monkeypatch.setattr(folder_source, "_scan", lambda *arguments: counted.append(1) or scan(*arguments))
    now = time.time()
    os.utime(root / "a" / "deep", (now, now))
    for looks in (1, 2):
        assert_right(index_of(root), root)
        assert len(counted) == 2 * looks  # classes
    assert entries(cache) == []
    settle(root)
    index_of(root)
    index_of(root)
    assert len(counted) == 6
    assert len(entries(cache)) == 1


def entries(cache):
    """Folders of kept indexes."""
    return [path for path in cache.iterdir() if path.is_dir() and not path.name.startswith(PREFIX)]


DAMAGES = {
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "cut by a byte": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 3),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["names.bin", "ends.npy", "labels.npy", "about.json"])
def test_a_damaged_entry_is_made_anew(root, cache, file, damage):
    index_of(root)
    (entry,) = entries(cache)
    DAMAGES[damage](entry / file)
    assert_right(index_of(root), root)
    assert_right(index_of(root), root)


@pytest.mark.parametrize("place", ["/proc/nowhere", "a file", "read-only"])
def test_without_a_place_for_a_cache_there_is_still_an_index(root, tmp_path, monkeypatch, place):
    if place == "a file":
        (tmp_path / "taken").write_text("")
        place = str(tmp_path / "taken")
    if place == "read-only":  # root may write anywhere
        monkeypatch.setattr(os, "access", lambda *arguments: False)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", place)
    assert_right(index_of(root), root)
    (root / "a" / "new.png").write_bytes(b"x")
    assert_right(index_of(root), root)


def test_a_data_set_in_a_folder_with_any_name_is_indexed(root):
    place = os.fsencode(root) + b"\xff"
    os.rename(root, place)
    assert_right(index_of(Path(os.fsdecode(place))), Path(os.fsdecode(place)))


def look(root, start, answers):
    start.wait(60)
    index = index_of(root)
    answers.put((names(index), index["labels"].tolist()))


@pytest.mark.parametrize("kept", [True, False])
def test_processes_that_look_at_once_all_get_the_index(root, tmp_path, monkeypatch, cache, kept):
    if not kept:
        settle(root, seconds_ago=-3600)  # by a file server's clock
    scan, log = folder_source._scan, os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def slowly(*arguments):
        os.write(log, b"lists\n")
        time.sleep(0.3)
        return scan(*arguments)

    monkeypatch.setattr(folder_source, "_scan", slowly)
    fork = multiprocessing.get_context("fork")
    start, answers = fork.Barrier(3), fork.Queue()
    children = [fork.Process(target=look, args=(root, start, answers)) for _ in range(3)]
    for child in children:
        child.start()
    expected = tuple(zip(*listed(root)[1]))
    for _ in children:
        assert tuple(map(tuple, answers.get(timeout=60))) == expected
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    os.close(log)
    assert (tmp_path / "log").read_text().count("lists") == (2 if kept else 6)  # two classes
    assert list(cache.glob(f"{PREFIX}*")) == []
    assert len(entries(cache)) == kept


def always(index):
    return True


def make_one(target):
    write_index(target, ["one"], {}, {})
    return True


def make_half(target):
    (target / "names.bin").write_bytes(b"on")
    raise KeyboardInterrupt


def test_an_interrupted_maker_leaves_no_entry(cache):
    with pytest.raises(KeyboardInterrupt):
        cached_index("key", always, make_half)
    assert entries(cache) == []
    assert names(cached_index("key", always, make_one)) == ["one"]
    assert names(cached_index("key", always, make_half)) == ["one"]  # kept: not made again


def test_a_killed_maker_leaves_no_entry_and_no_lock(cache):
    def make_and_die(target):
        (target / "names.bin").write_bytes(b"on")
        os._exit(9)

    child = os.fork()
    if not child:
        try:
            cached_index("key", always, make_and_die)
        finally:
            os._exit(1)
    assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 9
    (left,) = cache.glob(f"{PREFIX}*")
    assert names(cached_index("key", always, make_one)) == ["one"]
    assert left.exists()  # it might be another's work in progress
    os.utime(left, (time.time() - 25 * 3600,) * 2)
    cached_index("another key", always, make_one)
    assert not left.exists()
    assert len(entries(cache)) == 2


@pytest.mark.parametrize(("hours", "stays"), [(1, True), (23, True), (25, False)])
def test_leftovers_are_removed_after_a_day(cache, hours, stays):
    left = cache / f"{PREFIX}left"
    (left / "old").mkdir(parents=True)
    (left / "old" / "names.bin").write_bytes(b"x")
    os.utime(left, (time.time() - hours * 3600,) * 2)
    cached_index("key", always, make_one)
    assert left.exists() == stays
    assert names(cached_index("key", always, make_half)) == ["one"]


def test_what_is_asked_for_by_other_keys_is_kept_apart(cache):
    def make(target):
        write_index(target, ["two", "three"], {}, {})
        return True

    cached_index("key", always, make_one)
    assert names(cached_index("kez", always, make)) == ["two", "three"]
    assert names(cached_index("key", always, make)) == ["one"]
    assert names(cached_index("key", lambda index: len(index) == 2, make)) == ["two", "three"]
    assert names(cached_index("key", always, make_one)) == ["two", "three"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads its memory from /proc")
def test_a_loader_process_reads_names_without_keeping_them_in_memory():
    count, chosen = 100_000, random.Random(0).sample(range(100_000), 1000)
    index = temporary_index(
        (f"{'class':>80}/{number}.png" for number in range(count)), {"labels": np.arange(count)}, {}
    )
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            index.name(0), index["labels"][0]  # touches what any read does
            before = resident_bytes()
            right = all(
                index.name(number).endswith(f"/{number}.png") and index["labels"][number] == number for number in chosen
            )
            os.write(writer, json.dumps([right, resident_bytes() - before]).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as answer:
        right, grown = json.load(answer)
    assert right
    # The numbers' pages are 1.6 MB, the names 9 MB, and a list of them 13 MB. Measured: 1.7 MB.
    assert grown < 4 << 20


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_without_room_in_the_cache_there_is_still_an_index(root, cache):
    calls = []

    def make(target):
        calls.append(target)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        return make_one(target)

    index = cached_index("full", always, make)
    assert index.name(0) == "one"
    assert calls[1].parent != calls[0].parent
    assert list(entries(cache)) == []


def test_without_room_anywhere_the_user_is_told(cache):
    def make(target):
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"no room for an index of the data set in .*: No space left on device"):
        cached_index("full", always, make)
