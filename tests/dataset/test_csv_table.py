"""CSV files that name images and their labels: the kinds that people have, and what can be wrong with them."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest

from dataset.base import BadImageError
from dataset.sources.csv_table import open_csv
from errors import UserError
from tests.dataset.files import write_images
from tests.small import small_config

ANIMALS = "image,label\na.png,dog\nb.png,cat\nc.png,dog\n"


def opened(tmp_path, content, split="train", name="train.csv", **keys):
    """The source of a CSV file with this content (text or bytes) in a folder of its own."""
    folder = tmp_path / "data"
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return open_csv(small_config(tmp_path, dataset="csv", **{"dataset_path": str(folder), **keys}), split)


def names(source):
    return [os.path.basename(source.path(index)) for index in range(len(source))]


def test_text_labels_are_sorted_and_numbered_and_images_are_read(tmp_path):
    write_images(tmp_path / "data", {"pictures": 2})
    source = opened(tmp_path, "image,label\npictures/1.png,dog\npictures/0.png,Cat\npictures/0.png,ant\n")
    assert (source.class_names, source.num_classes) == (("Cat", "ant", "dog"), 3)
    assert source.labels.tolist() == [2, 0, 1]
    assert source.labels.dtype == np.int32
    assert len(source) == 3
    path = tmp_path / "data" / "pictures" / "1.png"
    assert source.path(0) == str(path)
    assert source.item(0) == (path.read_bytes(), str(path))
    assert not source.is_cheap
    assert not source.is_ready


def test_a_source_reads_the_same_in_another_process(tmp_path):
    source = opened(tmp_path, ANIMALS)
    copy = pickle.loads(pickle.dumps(source))
    assert (names(copy), copy.labels.tolist()) == (names(source), [1, 0, 1])


@pytest.mark.parametrize(
    ("values", "labels", "num_classes", "class_names"),
    [
        (["0", "2", "1"], [0, 2, 1], 3, ()),
        (["3", "0", "3"], [3, 0, 3], 4, ()),
        (["007", "7", "1.0"], [7, 7, 1], 8, ()),
        (["1", "10", "x"], [0, 1, 2], 3, ("1", "10", "x")),
        (["1", "-1", "1"], [1, 0, 1], 2, ("-1", "1")),
        (["0.5", "1", "0.5"], [0, 1, 0], 2, ("0.5", "1")),
        (["99999999999", "5", "5"], [1, 0, 0], 2, ("5", "99999999999")),
    ],
)
def test_whole_numbers_are_class_numbers_and_all_else_is_names(tmp_path, values, labels, num_classes, class_names):
    source = opened(tmp_path, "path,class\n" + "".join(f"x.png,{value}\n" for value in values))
    assert source.labels.tolist() == labels
    assert (source.num_classes, source.class_names) == (num_classes, class_names)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.csv", ANIMALS),
        ("train.csv", b"\xef\xbb\xbf" + ANIMALS.encode()),
        ("train.csv", ANIMALS.replace("\n", "\r\n")),
        ("train.csv", ANIMALS.rstrip("\n")),
        ("train.csv", "\n" + ANIMALS.replace("\n", "\n\n") + "  \n"),
        ("train.csv", ANIMALS.replace(",", ";")),
        ("train.csv", ANIMALS.replace(",", "\t")),
        ("train.csv", ANIMALS.replace(",", " , ")),
        ("train.csv", ANIMALS.replace("\n", ",\n")),
        ("train.csv", 'image;"label, of five";label\na.png;1,2,3;dog\nb.png;,;cat\nc.png;;dog\n'),
        ("train.csv", ",image,label\n0,a.png,dog\n1,b.png,cat\n2,c.png,dog\n"),
        ("train.csv", '"label","image"\n"dog","a.png"\n"cat","b.png"\n"dog","c.png"\n'),
        ("train.tsv", ANIMALS.replace(",", "\t")),
        ("train.tsv", "image\tlabel,of,what\tlabel\na.png\t1\tdog\nb.png\t2\tcat\nc.png\t3\tdog\n"),
    ],
)
def test_tables_as_programs_write_them_are_read_alike(tmp_path, name, content):
    source = opened(tmp_path, content, name=name)
    assert names(source) == ["a.png", "b.png", "c.png"]
    assert source.labels.tolist() == [1, 0, 1]
    assert source.class_names == ("cat", "dog")


def test_names_in_any_script_are_kept(tmp_path):
    source = opened(tmp_path, 'image,label\n"Käfer, große/蝶.png",蝶\n')
    assert source.path(0) == str(tmp_path / "data" / "Käfer, große" / "蝶.png")
    assert source.class_names == ("蝶",)


@pytest.mark.parametrize(
    "name", ["image", "Image Index", "image_path", "FilePath", "file-path", "filename", "File_Name", "path", "img"]
)
@pytest.mark.parametrize("label", ["label", "CLASS", "Target", "category"])
def test_columns_are_found_by_their_usual_names(tmp_path, name, label):
    source = opened(tmp_path, f"age,{label},{name}\n37,dog,a.png\n")
    assert (names(source), source.class_names) == (["a.png"], ("dog",))


def test_columns_that_are_named_win_over_usual_names(tmp_path):
    content = "image,label,thumb,breed\na.png,0,b.png,pug\n"
    source = opened(tmp_path, content, image_column="thumb", label_columns=["breed"])
    assert (names(source), source.class_names) == (["b.png"], ("pug",))


BITS = "image,cat,dog\na.png,1,0\nb.png,1.0,1\nc.png,0,0.0\n"


def test_all_other_columns_of_0_and_1_are_labels(tmp_path):
    source = opened(tmp_path, BITS)
    assert source.labels.tolist() == [[1, 0], [1, 1], [0, 0]]
    assert source.labels.dtype == np.uint8
    assert (source.class_names, source.num_classes) == (("cat", "dog"), 2)
    assert names(source) == ["a.png", "b.png", "c.png"]


def test_several_named_columns_are_labels_in_the_order_given(tmp_path):
    source = opened(tmp_path, "age,cat,image,dog\n37,1,a.png,0\n", label_columns=["dog", "cat"])
    assert source.labels.tolist() == [[0, 1]]
    assert source.class_names == ("dog", "cat")


def test_paths_start_from_the_table_or_from_the_image_folder(tmp_path):
    write_images(tmp_path, {"elsewhere": 1})
    absolute = str(tmp_path / "elsewhere" / "0.png")
    content = f"image,label\n0.png,a\n{absolute},b\n"
    source = opened(tmp_path, content, image_folder=str(tmp_path / "elsewhere"))
    assert [source.path(0), source.path(1)] == [absolute, absolute]
    assert opened(tmp_path, content).path(0) == str(tmp_path / "data" / "0.png")


def test_a_missing_image_shows_when_it_is_read(tmp_path):
    with pytest.raises(BadImageError) as error:
        opened(tmp_path, ANIMALS).item(1)
    assert (error.value.where, error.value.reason) == (str(tmp_path / "data" / "b.png"), "No such file or directory")


def test_a_file_alone_is_a_training_set(tmp_path):
    opened(tmp_path, ANIMALS)
    path = str(tmp_path / "data" / "animals.csv")
    assert len(opened(tmp_path, ANIMALS, name="animals.csv", dataset_path=path)) == 3
    assert opened(tmp_path, ANIMALS, "validation", name="animals.csv", dataset_path=path) is None


@pytest.mark.parametrize("name", ["validation.csv", "val.csv", "val.tsv"])
def test_validation_has_the_columns_and_class_numbers_of_training(tmp_path, name):
    assert opened(tmp_path, "image,label\na.png,dog\nb.png,cat\n") is not None
    assert opened(tmp_path, "image,label\na.png,dog\nb.png,cat\n", "validation") is None
    content = "label,class,image\ndog,1,v.png\n"
    source = opened(tmp_path, content.replace(",", "\t") if name.endswith("tsv") else content, "validation", name=name)
    assert (names(source), source.labels.tolist()) == (["v.png"], [1])
    assert (source.class_names, source.num_classes) == (("cat", "dog"), 2)


def test_validation_numbers_are_those_of_training(tmp_path):
    opened(tmp_path, "image,label\na.png,0\nb.png,4\n")
    source = opened(tmp_path, "image,label\na.png,2\n", "validation", name="val.csv")
    assert (source.labels.tolist(), source.num_classes, source.class_names) == ([2], 5, ())


def test_validation_has_the_label_columns_of_training(tmp_path):
    opened(tmp_path, BITS)
    source = opened(tmp_path, "age,dog,cat,image\n37,1,0,v.png\n", "validation", name="val.csv")
    assert source.labels.tolist() == [[0, 1]]
    assert source.class_names == ("cat", "dog")


def test_a_validation_file_alone_can_be_evaluated(tmp_path):
    assert opened(tmp_path, ANIMALS, "validation", name="val.csv").labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("content", "keys", "words"),
    [
        ("", {}, ["train.csv is empty", "line of column names"]),
        ("\n,,\n", {}, ["train.csv is empty"]),
        ("image,label\n", {}, ["train.csv has column names, but no row"]),
        ("image,label,label\na,b,c\n", {}, ["two columns named 'label'"]),
        ("image,label\na.png,b\xe4r\n".encode("latin-1"), {}, ["train.csv is not text in UTF-8: see line 2"]),
        (ANIMALS.encode("utf-16"), {}, ["not text in UTF-8: see line 1"]),
        (ANIMALS.encode("utf-16-le"), {}, ["not text in UTF-8: see line 1"]),
        (b"\x89PNG\r\n\x1a\n\0\0", {}, ["not text in UTF-8: see line 1"]),
        (ANIMALS + 'd.png,"dog\ne.png,cat\n', {}, ["row 6 of", "cannot be read: unexpected end of data", "partner"]),
        ("a.png,dog\nb.png,cat\n", {}, ["no column with a usual name", "--image-column", "a.png, dog"]),
        ("image,path,label\na,b,c\n", {}, ["several columns", "image, path", "--image-column"]),
        (ANIMALS, {"image_column": "imge"}, ["no column 'imge'. Did you mean 'image'?", "image, label"]),
        (ANIMALS, {"label_columns": ["lable"]}, ["no column 'lable'. Did you mean 'label'?"]),
        (ANIMALS, {"label_columns": ["label", "label"]}, ["names a column twice"]),
        (ANIMALS, {"image_column": "label", "label_columns": ["label"]}, ["or the column of the images, 'label'"]),
        ("image,label,Class\na,b,c\n", {}, ["it could be label or Class", "--label-columns"]),
        ("image,breed\na,b\n", {}, ["none is named label, class", "Its columns: image, breed", "--label-columns"]),
        (
            "image,age,cat\na,1,0\nb,37,1\n",
            {},
            ["row 3 has '37' in column 'age'", "image, age, cat", "--label-columns"],
        ),
        ("image,label\na.png,dog\n\nb.png\n", {}, ["row 4 of", "train.csv has 1 field, but there are 2 columns"]),
        ("image,label\na, b.png,dog\n", {}, ["row 2 of", "has 3 fields", '"quotes"']),
        ("image,label\na.png,dog\n ,cat\n", {}, ["row 3 of", "has '' in column 'image'", "names no image"]),
        ("image,label\na.png,dog\nb.png, \nc.png,\n", {}, ["row 3 of", "has no label"]),
        (
            "image,cat,dog\na.png,0,1\nb.png,2,1\n",
            {"label_columns": ["dog", "cat"]},
            ["row 3 of", "has '2' in column 'cat', where 0 or 1"],
        ),
        ("image,cat,dog\na.png,0,\n", {"label_columns": ["dog", "cat"]}, ["row 2 of", "has '' in column 'dog'"]),
        (ANIMALS, {"image_folder": "nowhere"}, ["image_folder = nowhere is not a folder"]),
    ],
)
def test_what_is_wrong_in_a_table_is_named_with_its_place(tmp_path, content, keys, words):
    with pytest.raises(UserError) as error:
        opened(tmp_path, content, **keys)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("train", "validation", "match"),
    [
        (
            ANIMALS,
            "image,label\na,cat\nb,dogs\n",
            r"row 3 of .*val.csv has the label 'dogs', which train.csv .*\n.*'dog'",
        ),
        (
            "image,label\na,4\n",
            "image,label\na,0\nb,5\n",
            r"row 3 of .*val.csv has the label '5', .* classes are 0 to 4",
        ),
        ("image,label\na,4\n", "image,label\na,dog\n", r"row 2 of .*val.csv has the label 'dog'"),
        (ANIMALS, "image,label\na,\n", r"row 2 of .*val.csv has no label"),
        (ANIMALS, "image,Label\na,cat\n", r"val.csv has no column 'label'. Did you mean 'Label'"),
        (BITS, "image,cat\na,1\n", r"val.csv has no column 'dog'"),
        (BITS, "image,cat,dog\na,1,x\n", r"row 2 of .*val.csv has 'x' in column 'dog', where 0 or 1"),
    ],
)
def test_validation_that_does_not_fit_training_is_refused(tmp_path, train, validation, match):
    opened(tmp_path, train)
    with pytest.raises(UserError, match=match):
        opened(tmp_path, validation, "validation", name="val.csv")


@pytest.mark.parametrize(
    ("path", "match"),
    [
        (None, r"needs dataset_path, a CSV file.* --dataset-path FILE"),
        ("nowhere.csv", r"nowhere.csv is neither a file nor a folder"),
        ("empty", r"empty has no train.csv; it holds no CSV file"),
        ("data", r"data has no train.csv; it holds animals.csv"),
    ],
)
def test_a_missing_file_is_explained(tmp_path, path, match):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=match):
        opened(tmp_path, ANIMALS, name="animals.csv", dataset_path=path and str(tmp_path / path))


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def refuse(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("dataset.sources.table_file.open", refuse, raising=False)  # root may read any file
    with pytest.raises(UserError, match=r"cannot read .*train.csv: Permission denied"):
        opened(tmp_path, ANIMALS)


def test_what_is_kept_of_a_row_is_no_python_object(tmp_path):
    source = opened(tmp_path, "image,label\n" + "".join(f"{number:08}.png,{number % 7}\n" for number in range(60_000)))
    assert source.labels.tolist() == [number % 7 for number in range(60_000)]
    assert source.path(59_999).endswith("/00059999.png")
    # The index is a folder's name; beside it and the labels, nothing grows with the rows.
    assert sum(len(pickle.dumps(value)) for key, value in vars(source).items() if key != "labels") < 1000
