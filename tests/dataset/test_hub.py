"""Sets that `datasets` writes: which files, splits and columns are taken, and every way in which they can be wrong."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from PIL import Image

from dataset.base import BadImageError
from dataset.sources.hub import open_hub
from errors import UserError
from tests.small import small_config

CAT_OR_DOG = ClassLabel(names=["cat", "dog"])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def png(number):
    """An image file, another one for each number."""
    file = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), number % 256, dtype=np.uint8)).save(file, "png")
    return file.getvalue()


def rows(*labels, first=0, feature=CAT_OR_DOG, image="image", label="label", **more):
    """A `datasets` set of images `first` + 0, + 1, ... with labels; `more` columns are (values, feature)."""
    columns = {
        image: ([{"bytes": png(first + number), "path": None} for number in range(len(labels))], datasets.Image()),
        label: (list(labels), feature),
        **more,
    }
    features = Features({column: feature for column, (_, feature) in columns.items()})
    return Dataset.from_dict({column: values for column, (values, _) in columns.items()}, features=features)


def source(tmp_path, path, split="train", **keys):
    return open_hub(small_config(tmp_path, dataset="hub", dataset_path=str(path), **keys), split)


def saved(tmp_path, table, split="train", **keys):
    """The source of a set that was saved to disk."""
    table.save_to_disk(tmp_path / "saved")
    return source(tmp_path, tmp_path / "saved", split, **keys)


def contents(opened):
    return [opened.item(index).content for index in range(len(opened))]


def parquet(table, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path)
    return path


def arrow(table, path, new=pyarrow.ipc.new_stream):
    """A pyarrow.Table as a file of Arrow's stream format, or its other one."""
    with pyarrow.OSFile(str(path), "wb") as file, new(file, table.schema) as writer:
        writer.write_table(table)
    return path


def test_a_saved_set_is_read(tmp_path):
    opened = saved(tmp_path, rows(1, 0, 1))
    assert len(opened) == 3
    assert opened.labels.tolist() == [1, 0, 1]
    assert opened.labels.dtype == np.int64
    assert opened.class_names == ("cat", "dog")
    assert opened.num_classes == 2
    assert contents(opened) == [png(0), png(1), png(2)]
    assert opened.item(2).where == f"{tmp_path}/saved[train][2]"
    assert not (opened.is_cheap or opened.is_ready)
    assert source(tmp_path, tmp_path / "saved", "validation") is None


def test_a_saved_selection_has_its_own_rows(tmp_path):
    opened = saved(tmp_path, rows(1, 0, 1, 0).select([3, 0]))
    assert opened.labels.tolist() == [0, 1]
    assert contents(opened) == [png(3), png(0)]


def test_all_splits_of_a_saved_set_are_there(tmp_path):
    splits = DatasetDict({"train": rows(0, 1), "test": rows(0, first=5), "valid": rows(1, first=7)})
    assert contents(saved(tmp_path, splits)) == [png(0), png(1)]
    held = source(tmp_path, tmp_path / "saved", "validation")
    assert (held.labels.tolist(), contents(held)) == ([1], [png(7)])
    assert held.item(0).where == f"{tmp_path}/saved[valid][0]"


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["train", "test"], "test"),
        (["train", "dev", "test"], "dev"),
        (["train", "val", "dev"], "val"),
        (["train", "valid", "validation"], "validation"),
        (["train", "other"], None),
    ],
)
def test_validation_goes_by_several_names(tmp_path, names, chosen):
    splits = DatasetDict({name: rows(0, first=number) for number, name in enumerate(names)})
    held = saved(tmp_path, splits, "validation")
    assert (held and contents(held)) == (chosen and [png(names.index(chosen))])


def test_an_only_split_is_the_training_set(tmp_path):
    assert contents(saved(tmp_path, DatasetDict({"test": rows(0, 1)}))) == [png(0), png(1)]
    assert source(tmp_path, tmp_path / "saved", "validation") is None


@pytest.mark.parametrize("place", ["", "data"])
@pytest.mark.parametrize("folder", ["set", "a [1] set"])
def test_parquet_files_are_read_as_the_hub_stores_them(tmp_path, place, folder):
    parquet(rows(1, first=1), tmp_path / folder / place / "train-00001-of-00002.parquet")
    parquet(rows(0), tmp_path / folder / place / "train-00000-of-00002-0123456789abcdef.parquet")
    parquet(rows(1, first=9), tmp_path / folder / place / "validation-00000-of-00001.parquet")
    train, held = (source(tmp_path, tmp_path / folder, split) for split in ("train", "validation"))
    assert (train.labels.tolist(), contents(train), train.class_names) == ([0, 1], [png(0), png(1)], ("cat", "dog"))
    assert (held.labels.tolist(), contents(held)) == ([1], [png(9)])


@pytest.mark.parametrize(
    ("files", "train", "validation"),
    [
        (["train", "test"], [0], [1]),
        (["0000", "0001"], [0, 1], None),
        (["cifar10-test-0", "cifar10-train-0"], [1], [0]),
        (["part-0", "part-1"], [0, 1], None),
    ],
)
def test_names_of_parquet_files_tell_the_split(tmp_path, files, train, validation):
    for number, file in enumerate(files):
        parquet(rows(0, first=number), tmp_path / "set" / f"{file}.parquet")
    assert contents(source(tmp_path, tmp_path / "set")) == [png(number) for number in train]
    held = source(tmp_path, tmp_path / "set", "validation")
    assert (held and contents(held)) == (validation and [png(number) for number in validation])


def test_a_subset_is_a_folder_of_parquet_files(tmp_path):
    parquet(rows(0), tmp_path / "set" / "small" / "train-0.parquet")
    assert len(source(tmp_path, tmp_path / "set", hub_subset="small")) == 1
    with pytest.raises(UserError, match=r"set has no data set in smal/ \(hub_subset\)\.\n.*save_to_disk"):
        source(tmp_path, tmp_path / "set", hub_subset="smal")


def test_a_parquet_file_that_has_changed_is_read_anew(tmp_path):
    path = parquet(rows(0), tmp_path / "x.parquet")
    os.utime(path, (1e9, 1e9))
    assert source(tmp_path, path).labels.tolist() == [0]
    parquet(rows(1, 1), path)
    assert source(tmp_path, path).labels.tolist() == [1, 1]


def test_single_files_are_training_sets(tmp_path):
    arrow = tmp_path / "saved" / "data-00000-of-00001.arrow"
    rows(1, 0).save_to_disk(tmp_path / "saved")
    for path in (arrow, parquet(rows(1, 0), tmp_path / "x.parquet")):
        opened = source(tmp_path, path)
        assert (opened.labels.tolist(), contents(opened)) == ([1, 0], [png(0), png(1)])
        assert source(tmp_path, path, "validation") is None


def test_sets_on_the_hub_are_asked_for_by_name_and_subset(tmp_path, monkeypatch):
    asked = []
    splits = DatasetDict({"train": rows(0), "test": rows(1, first=4)})
    monkeypatch.setattr(datasets, "load_dataset", lambda *args: asked.append(args) or splits)
    held = source(tmp_path, "someone/set", "validation", hub_subset="small")
    assert contents(held) == [png(4)]
    assert held.item(0).where == "someone/set[test][0]"
    assert asked == [("someone/set", "small")]


@pytest.mark.parametrize(
    ("values", "feature"),
    [
        ([{"bytes": png(0), "path": None}, {"bytes": png(1), "path": "x"}], datasets.Image(decode=False)),
        ([png(0), png(1)], Value("binary")),
        ([png(0), png(1)], Value("large_binary")),
        (
            [{"bytes": png(0), "path": "x"}, {"bytes": png(1), "path": "x"}],
            {"bytes": Value("binary"), "path": Value("string")},
        ),
    ],
)
def test_images_are_found_by_type(tmp_path, values, feature):
    table = rows(0, 1).remove_columns("image")
    table = Dataset.from_dict(
        {"text": ["a", "b"], "photo": values, "label": table["label"]},
        features=Features({"text": Value("string"), "photo": feature, "label": CAT_OR_DOG}),
    )
    assert contents(saved(tmp_path, table)) == [png(0), png(1)]


def test_images_may_be_files(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    table = Dataset.from_dict({"img": ["0.png", str(tmp_path / "1.png"), "9.png"], "label": [0, 1, 0]})
    opened = source(tmp_path, parquet(table, tmp_path / "x.parquet"))
    assert [opened.item(index).content for index in range(2)] == [png(0), png(1)]
    with pytest.raises(BadImageError, match=r"No such file") as error:
        opened.item(2)
    assert error.value.where == str(tmp_path / "9.png")


def test_a_named_image_column_wins(tmp_path):
    more = ([{"bytes": png(7), "path": None}], datasets.Image())
    assert contents(saved(tmp_path, rows(0, mask=more))) == [png(0)]  # of two, the one named image
    assert contents(source(tmp_path, tmp_path / "saved", image_column="mask")) == [png(7)]


def test_a_row_without_image_is_a_bad_image(tmp_path):
    table = Dataset.from_dict(
        {"image": [None, {"bytes": None, "path": None}], "label": [0, 1]},
        features=Features({"image": {"bytes": Value("binary"), "path": Value("string")}, "label": CAT_OR_DOG}),
    )
    opened = saved(tmp_path, table)
    for index in range(2):
        with pytest.raises(BadImageError) as error:
            opened.item(index)
        assert error.value.args == (f"{tmp_path}/saved[train][{index}]", "the row has no image")


def test_reading_a_row_leaves_other_columns_alone(tmp_path):
    big = (["x" * 2**20] * 2, Value("string"))
    opened = saved(tmp_path, rows(0, 1, caption=big))
    before = pyarrow.total_allocated_bytes()
    assert opened.item(1).content == png(1)
    assert pyarrow.total_allocated_bytes() - before < 2**16
    assert opened._images.column_names == ["image"]


def test_other_processes_map_the_same_file(tmp_path):
    opened = saved(tmp_path, rows(*[0, 1] * 500))
    pickled = pickle.dumps(opened)
    assert len(pickled) < 1000 * 8 + 4000  # labels, and where the file is
    assert pickle.loads(pickled).item(200).content == png(200)


@pytest.mark.parametrize(
    ("values", "feature", "labels", "num_classes", "names"),
    [
        ([4, 0, 2], Value("int64"), [4, 0, 2], 5, ()),
        ([4, 0, 2], Value("uint8"), [4, 0, 2], 5, ()),
        ([True, False, True], Value("bool"), [1, 0, 1], 2, ()),
        (["dog", "cat", "ant"], Value("string"), [2, 1, 0], 3, ("ant", "cat", "dog")),
        ([0, 1, 0], ClassLabel(names=["a", "b", "c"]), [0, 1, 0], 3, ("a", "b", "c")),
        ([[1, 0], [], [2]], [ClassLabel(names=["a", "b", "c"])], [[1, 1, 0], [0, 0, 0], [0, 0, 1]], 3, ("a", "b", "c")),
    ],
)
def test_labels_of_each_kind(tmp_path, values, feature, labels, num_classes, names):
    opened = saved(tmp_path, rows(*values, feature=feature))
    assert opened.labels.tolist() == labels
    assert opened.labels.dtype == (np.uint8 if isinstance(feature, list) else np.int64)
    assert (opened.num_classes, opened.class_names) == (num_classes, names)


def test_texts_are_numbered_as_in_the_training_set(tmp_path):
    text = {"feature": Value("string"), "label": "class"}
    splits = DatasetDict({"train": rows("dog", "ant", "cat", **text), "test": rows("dog", "cat", **text)})
    held = saved(tmp_path, splits, "validation")
    assert (held.labels.tolist(), held.class_names) == ([2, 1], ("ant", "cat", "dog"))
    splits["test"] = rows("cat", "dogs", **text)
    splits.save_to_disk(tmp_path / "other")
    with pytest.raises(UserError, match=r"column class of .*\[test\] has 'dogs' in row 1, .* Did you mean 'dog'\?"):
        source(tmp_path, tmp_path / "other", "validation")


@pytest.mark.parametrize("feature", [Value("int8"), Value("bool"), Value("float32"), ClassLabel(names=["no", "yes"])])
def test_several_columns_of_0_and_1_are_labels_of_one_image(tmp_path, feature):
    opened = saved(tmp_path, rows(1, 0, feature=feature, wet=([1, 1], feature)), label_columns=["wet", "label"])
    assert opened.labels.tolist() == [[1, 1], [1, 0]]
    assert opened.labels.dtype == np.uint8
    assert (opened.num_classes, opened.class_names) == (2, ("wet", "label"))


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        ({"kind": CAT_OR_DOG, "number": Value("int64")}, "kind"),
        ({"coarse_label": CAT_OR_DOG, "fine_label": CAT_OR_DOG}, "fine_label"),
        ({"class": CAT_OR_DOG, "label": Value("int64")}, "label"),
        ({"target": Value("int64"), "number": Value("int64")}, "target"),
        ({"class": Value("int64"), "target": Value("int64")}, None),
        ({"species": CAT_OR_DOG, "genus": CAT_OR_DOG}, None),
        ({"number": Value("int64")}, None),
    ],
)
def test_the_label_column_is_found_by_type_and_name(tmp_path, columns, chosen):
    image = [{"bytes": png(0), "path": None}] * 2
    values = {column: [1, 1] if column == chosen else [0, 0] for column in columns}
    table = Dataset.from_dict({"image": image, **values}, features=Features({"image": datasets.Image(), **columns}))
    if chosen is not None:
        assert saved(tmp_path, table).labels.tolist() == [1, 1]
        return
    found = rf"several columns that may be the label: {', '.join(columns)}" if len(columns) > 1 else "no label column"
    listed = rf"Set label_columns to one of its columns: image, {', '.join(columns)}\."
    with pytest.raises(UserError, match=rf"saved\[train\] has {found}\.\n +{listed}"):
        saved(tmp_path, table)


def test_a_test_set_whose_labels_are_kept_back_is_no_validation_set(tmp_path):
    kept_back = DatasetDict({"train": rows(0, 1), "test": rows(-1, -1)})
    assert saved(tmp_path, kept_back, "validation") is None
    assert source(tmp_path, tmp_path / "saved").labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("table", "keys", "message"),
    [
        (rows(0, None, None), {}, r"column label of .*saved\[train\] has no label in row 1 \(2 such rows\)"),
        (rows(0, -1), {}, r"column label of .* is -1 in row 1: these images have no labels \(1 of 2\)"),
        (rows(0, -1, feature=Value("int32")), {}, r"is -1 in row 1: these images have no labels"),
        (rows(0, -5, feature=Value("int32")), {}, r"is -5 in row 1, which is no class number"),
        (rows(0, 2**40, feature=Value("int64")), {}, r"is 1099511627776 in row 1, which is no class number"),
        (rows([0], [1, -1], feature=[CAT_OR_DOG]), {}, r"is -1 in row 1: these images have no labels"),
        (rows(0.5, feature=Value("float32")), {}, r"column label of .* holds float, which is no label"),
        (rows([1], feature=[Value("int64")]), {}, r"holds list<.*>, which is no label"),
        (rows(0, wet=([2], Value("int8"))), {"label_columns": ["wet", "label"]}, r"column wet of .* has 2 in row 0\."),
        (rows(0), {"label_columns": ["lable"]}, r"label_columns = lable: .*Did you mean 'label'\?\n.*: image, label\."),
        (rows(0), {"image_column": "imag"}, r"image_column = imag: .*no such column. Did you mean 'image'\?"),
        (rows(0), {"image_column": "label"}, r"image_column = label of .* holds int64, not images"),
        (
            rows(0).remove_columns("image"),
            {},
            r"has no image column\.\n +Set image_column to one of its columns: label\.",
        ),
        (
            rows(0, image="a", b=([png(0)], datasets.Image())),
            {},
            r"has several columns that may be the image: a, b\.\n +Set image_column",
        ),
        (DatasetDict({"a": rows(0), "test": rows(0)}), {}, r"has no split named train, but a, test"),
    ],
)
def test_columns_that_are_not_understood_are_named(tmp_path, table, keys, message):
    with pytest.raises(UserError, match=message):
        saved(tmp_path, table, **keys)


def damage_pages(content):
    return content[:4] + b"\xff" * (len(content) // 2) + content[4 + len(content) // 2 :]


@pytest.mark.parametrize(
    "damage", [lambda content: b"", lambda content: b"<html>", lambda content: content[:-9], damage_pages]
)
@pytest.mark.parametrize("name", ["x.parquet", "set/train-1.parquet"])
def test_damaged_parquet_files_are_named(tmp_path, name, damage):
    parquet(rows(0), tmp_path / "set" / "train-0.parquet")
    path = parquet(rows(0), tmp_path / name)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=rf"cannot read {path}: .+\n +It .*copy it again"):
        source(tmp_path, path if name == "x.parquet" else path.parent)


def test_a_set_without_rows_is_refused(tmp_path):
    path = parquet(rows(), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"x\.parquet has no rows\."):
        source(tmp_path, path)
    with pytest.raises(UserError, match=r"x\.arrow\[train\] has no rows\."):
        source(tmp_path, arrow(rows(0).data.table[:0], tmp_path / "x.arrow"))


@pytest.mark.skipif(datasets.__version__.startswith("3."), reason="datasets 3 cannot save images without rows")
def test_a_saved_set_without_rows_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*saved: .*\n.*a split without rows cannot be loaded"):
        saved(tmp_path, rows())


def test_parquet_files_of_other_columns_are_refused(tmp_path):
    parquet(rows(0), tmp_path / "set" / "train-0.parquet")
    parquet(rows(0, label="class"), tmp_path / "set" / "train-1.parquet")
    with pytest.raises(
        UserError, match=r"train-1\.parquet has the columns class, image, but train-0\.parquet has image, label\."
    ):
        source(tmp_path, tmp_path / "set")


def test_parquet_files_of_other_kinds_of_columns_are_refused(tmp_path):
    parquet(rows(0), tmp_path / "set" / "train-0.parquet")
    parquet(rows([0], feature=[Value("int64")]), tmp_path / "set" / "train-1.parquet")
    with pytest.raises(UserError, match=r"cannot read .*set: .+\n +All files of a split must have the same kinds"):
        source(tmp_path, tmp_path / "set")


def test_missing_parquet_files_are_counted(tmp_path):
    parquet(rows(0), tmp_path / "set" / "train-00001-of-00003.parquet")
    with pytest.raises(UserError, match=r"set holds 1 of the 3 files of split train\."):
        source(tmp_path, tmp_path / "set")


@pytest.mark.parametrize("kind", ["file format", "cut", "other", "empty"])
def test_arrow_files_that_cannot_be_read_are_named(tmp_path, kind):
    rows(0, 1).save_to_disk(tmp_path / "saved")
    whole = (tmp_path / "saved" / "data-00000-of-00001.arrow").read_bytes()
    path = tmp_path / "x.arrow"
    path.write_bytes({"cut": whole[: len(whole) // 2], "other": b"hello world", "empty": b""}.get(kind, b""))
    if kind == "file format":
        arrow(pyarrow.table({"image": [b"x"], "label": [0]}), path, pyarrow.ipc.new_file)
    with pytest.raises(UserError, match=rf"cannot read {path}: .+\n.*stream format, which `datasets` writes"):
        source(tmp_path, path)


@pytest.mark.parametrize("file", ["data-00000-of-00001.arrow", "dataset_info.json", "state.json"])
@pytest.mark.parametrize("splits", [False, True])
def test_damaged_saved_sets_are_named(tmp_path, file, splits):
    (DatasetDict({"train": rows(0)}) if splits else rows(0)).save_to_disk(tmp_path / "saved")
    folder = tmp_path / "saved" / "train" if splits else tmp_path / "saved"
    (folder / file).write_bytes((folder / file).read_bytes()[:40])
    with pytest.raises(UserError, match=rf"cannot read {folder}: .+\n +Save or copy it again; "):
        source(tmp_path, tmp_path / "saved")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (None, r"dataset = hub needs dataset_path, a set's name on the hub or its files: --dataset-path NAME"),
        ("/no/where", r"dataset_path = /no/where is neither a file nor a folder"),
        ("./nowhere", r"dataset_path = \./nowhere is neither a file nor a folder \(/"),
        ("x.parquet", r"dataset_path = x\.parquet is neither a file nor a folder"),
        ("{}/empty", r"empty has no data set\.\n +Expected: what `save_to_disk` writes, or files like train-00000-of-"),
        ("{}/x.csv", r"x\.csv is neither a \.parquet nor an \.arrow file"),
    ],
)
def test_missing_files_are_explained(tmp_path, path, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.csv").write_text("")
    keys = {} if path is None else {"dataset_path": path.format(tmp_path)}
    with pytest.raises(UserError, match=message):
        open_hub(small_config(tmp_path, dataset="hub", **keys), "train")


@pytest.mark.parametrize("name", ["nobody/nothing", "no such set?"])
def test_names_that_the_hub_does_not_give_are_explained(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError) as error:
        source(tmp_path, name, hub_subset="small")
    assert f"dataset_path = {name} is no file or folder here" in str(error.value)
    assert "with hub_subset = small" in str(error.value)
    assert "Couldn't reach" in str(error.value)


def test_without_the_package_its_installation_is_advised(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"^dataset = hub needs the package `datasets`: pip install datasets$"):
        source(tmp_path, "x.parquet")


def test_it_is_quiet_and_imported_only_on_use(tmp_path):
    path = parquet(rows(0), tmp_path / "x.parquet")
    small_config(tmp_path, dataset="hub", dataset_path=str(path))
    script = f"""
import sys
from dataset.sources.hub import open_hub
assert not {{"datasets", "pyarrow"}} & set(sys.modules)
from config import load_config
config = load_config("finetune", ["--config", "tiny", "--config-file", {str(tmp_path / "configs.yaml")!r}])
assert len(open_hub(config, "train")) == 1
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
