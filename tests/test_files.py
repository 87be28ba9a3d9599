"""Image files: what folders, lists and CSV files say, and how broken, hostile and contradictory ones end."""

from __future__ import annotations

import csv
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from longtail.api import run_config
from longtail.data import files as files_module
from longtail.data.files import list_files, load_files
from longtail.data.open import open_data
from longtail.data.reading.decoding import MAX_PIXELS, read_square
from longtail.data.reading.image_files import ImageFiles
from longtail.data.reading.listing import as_text, shown
from longtail.data.settings import check_complete
from longtail.errors import ConfigError, DataError
from longtail.recipes import load_config
from pictures import SIZE, folder, lines, picture, pictures, settings, table
from tiny import Recorder, settings_of


@pytest.fixture(autouse=True)
def _own_cache_for_each_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGTAIL_CACHE", str(tmp_path / "cache"))


def refusal(name: str, path: Path, **more: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_files(settings(name, path, **more))
    assert caught.value.exit_code == 3
    return str(caught.value)


# Folders --------------------------------------------------------------------------------------------------------------


def test_a_folder_has_its_splits_and_its_classes_by_sorted_name(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", train=[3, 2], val=[1, 1], test=[1, 2])
    picture(root / "train" / "B" / "deep" / "er" / "x.png", 77)
    source = load_files(settings("folder", root))
    assert list(source.class_names) == ["B", "a", "b"]
    assert source.name == "set"
    assert source.val is not None
    assert source.test is not None
    assert source.train.labels.tolist() == [0, 1, 1, 1, 2, 2]
    assert source.test.labels.tolist() == [1, 2, 2]
    assert list(source.train.ids or []) == ["train/B/deep/er/x.png", *(f"train/{n}.png" for n in ("a/0", "a/1", "a/2")),
                                            "train/b/0.png", "train/b/1.png"]  # fmt: skip
    for part in (source.train, source.val, source.test):
        for image, name in zip(part.images, part.ids or [], strict=True):
            assert torch.equal(image, read_square(root / name, SIZE))


def test_class_folders_without_splits_are_training_images_and_a_fifth_is_held_out(tmp_path: Path) -> None:
    folder(tmp_path, train=[10, 5])
    data = open_data(settings("folder", tmp_path / "train"))
    assert (data.evaluated_on, data.stats.counts) == ("held-out", [8, 4])
    assert data.evaluation.counts(2) == [2, 1]
    assert any("held out" in note for note in data.notes)
    assert set(data.train.ids or []).isdisjoint(data.evaluation.ids or [])


def test_with_val_alone_results_are_reported_as_val_and_with_test_val_selects(tmp_path: Path) -> None:
    only = open_data(settings("folder", folder(tmp_path / "one", train=[3, 2], val=[1, 1])))
    assert (only.evaluated_on, only.val) == ("val", None)
    both = open_data(settings("folder", folder(tmp_path / "two", train=[3, 2], val=[1, 1], test=[2, 2])))
    assert (both.evaluated_on, both.selected_on) == ("test", "val")


def test_the_distribution_stays_unless_an_imbalance_is_asked_for(tmp_path: Path) -> None:
    root = folder(tmp_path, train=[6, 5, 6], test=[1, 1, 1])
    assert open_data(settings("folder", root)).stats.counts == [6, 5, 6]
    assert open_data(settings("folder", root, imbalance=6.0)).stats.counts == [6, 2, 1]


def test_what_is_no_image_of_a_class_is_left_out_and_said(tmp_path: Path) -> None:
    root = folder(tmp_path, train=[2, 2])
    for name in ("readme.txt", "a/notes.md", "a/.hidden.png", ".git/x.png", "__MACOSX/x.png"):
        (root / "train" / name).parent.mkdir(exist_ok=True)
        (root / "train" / name).write_text("x")
    (root / "spare").mkdir()
    source = load_files(settings("folder", root))
    assert len(source.train) == 4
    assert list(source.class_names) == ["a", "b"]
    assert "left out, not named as an image of a class (2): train/a/notes.md, train/readme.txt" in source.notes
    assert any("not: spare" in note for note in source.notes)


def test_links_in_a_circle_are_entered_once_and_said(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", train=[2, 2])
    (root / "train" / "a" / "around").symlink_to(root / "train", target_is_directory=True)
    (root / "train" / "a" / "self").symlink_to(root / "train" / "a", target_is_directory=True)
    elsewhere = folder(tmp_path / "elsewhere", train=[3])
    (root / "train" / "c").symlink_to(elsewhere / "train" / "a", target_is_directory=True)
    source = load_files(settings("folder", root))
    assert source.train.counts(3) == [2, 2, 3], "a link that leads elsewhere is followed"
    assert any("being read already (2): train/a/around, train/a/self" in note for note in source.notes)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (["Train/a/0.png", "Test/a/0.png"], "none named 'train'"),
        (["test/a/0.png"], "none named 'train'"),
        (["validation/a/0.png", "a/0.png"], "none named 'train'"),
        ([], "holds no class folders"),
        (["0.png"], "holds no class folders"),
        (["train/0.png"], "the train split has no images"),
        (["train/a/0.png", "train/b/0.png", "test/0.txt"], "the test split has no images"),
        (["train/a/0.png", "train/b/0.txt"], "classes without training images|class without training images: 'b'"),
        (["train/a/0.png", "train/b/1.png", "test/c/2.png"], "without training images: 'c'"),
        (["train/a/0.png", "train/a/1.png"], "only one class"),
    ],
)
def test_a_folder_of_another_layout_is_refused_with_words(tmp_path: Path, made: list[str], words: str) -> None:
    root = tmp_path / "set"
    root.mkdir()
    for n, name in enumerate(made):
        picture(root / name, n) if name.endswith(".png") else lines(root / name, ["x"])
    said = refusal("folder", root)
    assert any(word in said for word in words.split("|"))


def test_a_class_without_training_images_is_taken_where_that_is_allowed(tmp_path: Path) -> None:
    root = folder(tmp_path, train=[3, 2, 0], test=[1, 1, 1])
    assert "without training images: 'c'" in refusal("folder", root)
    assert open_data(settings("folder", root, allow_empty=True)).stats.counts == [3, 2, 0]


def test_an_archive_or_nothing_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    assert "Unpack an archive first" in refusal("folder", lines(tmp_path / "set.zip", ["PK"]))
    assert "There is nothing at" in refusal("folder", tmp_path / "absent")
    assert "is a folder" in refusal("csv", tmp_path)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path, train=[2, 2])
    scan = os.scandir

    def scandir(place: Path) -> Any:
        if place.name == "b":
            raise PermissionError(13, "Permission denied")
        return scan(place)

    monkeypatch.setattr(os, "scandir", scandir)
    assert "train/b cannot be read: Permission denied" in refusal("folder", root)


def test_a_name_that_is_no_unicode_is_written_as_text(tmp_path: Path) -> None:
    root = folder(tmp_path, train=[2, 2])
    try:
        os.rename(root / "train" / "b", os.fsencode(root / "train") + b"/b\xff\n")
    except OSError:
        pytest.skip("this file system takes Unicode alone")
    source = load_files(settings("folder", root))
    assert list(source.class_names) == ["a", "b\\xff\n"]
    assert (source.train.ids or [])[2] == "train/b\\xff\n/0.png"
    json.dumps(list(source.class_names)).encode()


# Lists ----------------------------------------------------------------------------------------------------------------


def test_a_list_has_paths_with_spaces_and_numbers_as_given(tmp_path: Path) -> None:
    for n, name in enumerate(["a b.png", "c  d .png", " e.png", "f.png", "sub/g.png"]):
        picture(tmp_path / name, n)
    text = "\ufeffa b.png 2\r\n\r\nc  d .png\t0\n e.png   1\n   \nsub/../f.png 2\n./sub/g.png 0"
    (tmp_path / "all.txt").write_bytes(text.encode())
    source = load_files(settings("list", tmp_path / "all.txt"))
    assert list(source.train.ids or []) == ["a b.png", "c  d .png", " e.png", "f.png", "sub/g.png"]
    assert source.train.labels.tolist() == [2, 0, 1, 2, 0]
    assert list(source.class_names) == ["0", "1", "2"]
    assert torch.equal(source.train.images[3], read_square(tmp_path / "f.png", SIZE))


def test_lists_of_val_and_test_lie_by_themselves_or_below_a_root(tmp_path: Path) -> None:
    for part in ("one", "two", "images"):
        pictures(tmp_path / part, 4)
    train = lines(tmp_path / "one" / "train.txt", ["0.png 0", "1.png 1"])
    test = lines(tmp_path / "two" / "test.txt", ["0.png 1"])
    source = load_files(settings("list", train, test_path=str(test)))
    assert source.test is not None
    assert torch.equal(source.test.images[0], read_square(tmp_path / "two" / "0.png", SIZE))
    lines(test, ["2.png 1"])
    source = load_files(settings("list", train, test_path=str(test), root=str(tmp_path / "images")))
    assert source.test is not None
    assert list(source.test.ids or []) == ["2.png"]


@given(st.text(st.characters(exclude_characters="\n\r\0/", exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_any_file_name_without_a_line_break_survives_a_list(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    place = tmp_path_factory.mktemp("names", numbered=True) / "all.txt"
    place.write_bytes(f"{name} 0\nother.png 1\n".encode())
    listing = list_files(settings("list", place))
    kept = name.rstrip() if name.strip() else ""
    if not kept or kept in (".", ".."):
        assert listing.problems
    else:
        assert listing.splits["train"][0].path == str(place.parent / kept.removeprefix("\ufeff"))


@pytest.mark.parametrize(
    "line", ["/etc/hostname 0", "../outside.png 0", "a/../../outside.png 0", "a\0.png 0", ".. 1", "../in2/x.png 0"]
)
def test_a_path_that_leaves_the_root_is_refused_though_broken_files_are_skipped(tmp_path: Path, line: str) -> None:
    picture(tmp_path / "outside.png")
    pictures(tmp_path / "in", 2)
    place = lines(tmp_path / "in" / "all.txt", ["0.png 0", "1.png 1", line])
    said = refusal("list", place, on_error="skip")
    assert "all.txt, line 3" in said
    assert "lies outside" in said or "names no image" in said


def test_absolute_paths_below_the_root_are_taken(tmp_path: Path) -> None:
    names = pictures(tmp_path / "in", 2)
    place = lines(tmp_path / "lists" / "all.txt", [f"{tmp_path / 'in' / name} {k}" for k, name in enumerate(names)])
    assert "lies outside" in refusal("list", place)
    assert len(load_files(settings("list", place, root=str(tmp_path))).train) == 2
    assert len(load_files(settings("list", place, root="/")).train) == 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("2.png", "is not 'path label'"),
        ("2.png cat", "is not 'path label'"),
        ("2.png 1.5", "is not 'path label'"),
        ("2.png nan", "is not 'path label'"),
        ("2.png,1", "is not 'path label'"),
        (" 1", "is not 'path label'"),
        ("2.png -1", "is not a class number"),
        ("2.png 99999999999999999999999", "is not a class number"),
        ("2.png 4294967296", "is not a class number"),
        ("2.png 1000", "label 1000 among only 3 images"),
        ("2.png 2\n0.png 1", "is of class 1 here and of class 0 at all.txt, line 1"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, line: str, words: str) -> None:
    pictures(tmp_path, 3)
    said = refusal("list", lines(tmp_path / "all.txt", ["0.png 0", "1.png 1", line]))
    assert words in said
    assert "all.txt, line " in said


def test_many_bad_lines_are_counted_and_the_first_shown(tmp_path: Path) -> None:
    pictures(tmp_path, 2)
    said = refusal("list", lines(tmp_path / "all.txt", ["0.png 0", "1.png 1", *["x"] * 20]))
    assert "line 3" in said
    assert "... and 15 more." in said
    assert "line 9" not in said
    assert "longtail data check" in said


def test_a_gap_in_the_labels_is_a_class_without_images(tmp_path: Path) -> None:
    pictures(tmp_path, 4)
    place = lines(tmp_path / "all.txt", ["0.png 0", "1.png 0", "2.png 2", "3.png 2"])
    assert "without training images: '1'" in refusal("list", place)
    assert load_files(settings("list", place, allow_empty=True)).train.counts(3) == [2, 0, 2]


def test_a_label_that_only_test_has_is_a_class_without_training_images(tmp_path: Path) -> None:
    pictures(tmp_path, 4)
    train, test = lines(tmp_path / "a.txt", ["0.png 0", "1.png 1"]), lines(tmp_path / "b.txt", ["2.png 0", "3.png 2"])
    assert "without training images: '2'" in refusal("list", train, test_path=str(test))


def test_a_repeated_line_counts_once_and_is_noted(tmp_path: Path) -> None:
    pictures(tmp_path, 2)
    source = load_files(settings("list", lines(tmp_path / "all.txt", ["0.png 0", "1.png 1", "./0.png 0"])))
    assert source.train.labels.tolist() == [0, 1]
    assert "1 repeated line of the train split count once" in source.notes


def test_a_file_in_two_splits_is_refused(tmp_path: Path) -> None:
    pictures(tmp_path, 3)
    train, test = lines(tmp_path / "a.txt", ["0.png 0", "1.png 1"]), lines(tmp_path / "b.txt", ["2.png 0", "1.png 1"])
    assert "b.txt, line 2: 1.png is in test and, at a.txt, line 2, in train" in refusal(
        "list", train, test_path=str(test)
    )


@pytest.mark.parametrize("name", ["list", "csv"])
def test_a_table_that_is_no_text_or_empty_is_refused(tmp_path: Path, name: str) -> None:
    place = tmp_path / "table"
    place.write_bytes(b"\xff\xfe\x00\x01")
    assert "is no UTF-8 text" in refusal(name, place)
    place.write_bytes(b"" if name == "list" else b"image,label\n")
    assert "the train split has no images" in refusal(name, place)


# CSV ------------------------------------------------------------------------------------------------------------------

HOSTILE = ['<script>alert("x")</script>', 'two\nlines, and "quotes"', "=1+1", "x" * 300, "[red]x[/red]", "日本\u202e"]


def test_csv_labels_are_any_text_and_are_quoted_as_csv_does(tmp_path: Path) -> None:
    names = [picture(tmp_path / f"{n}, a.png", n).name for n in range(6)]
    source = load_files(settings("csv", table(tmp_path / "all.csv", zip(names, HOSTILE, strict=True))))
    assert list(source.class_names) == sorted(HOSTILE)
    assert [source.class_names[k] for k in source.train.labels.tolist()] == HOSTILE


def test_hostile_class_names_stay_text_in_everything_a_run_writes(tmp_path: Path) -> None:
    names = pictures(tmp_path / "in", 18)
    rows = list(zip(names, HOSTILE * 3, strict=True))
    place = table(tmp_path / "in" / "all.csv", rows)
    values = settings_of("ce", data={"path": str(place), "size": SIZE}, out=str(tmp_path / "run"), optim={"epochs": 1})
    run = run_config(load_config("csv/ce", values))
    described = json.loads((run.path / "run.json").read_text())
    assert described["data"]["class_names"] == sorted(HOSTILE)
    with (run.path / "per_class.csv").open(newline="") as file:
        assert [row["class"] for row in csv.DictReader(file)] == [
            "'=1+1" if name == "=1+1" else name for name in sorted(HOSTILE)
        ]
    assert run.results["evaluated_on"] == "held-out"
    page = run.report.read_text()
    assert "<script>alert" not in page
    with (run.path / "predictions.csv").open(newline="") as file:
        assert {row["id"] for row in csv.DictReader(file)} <= set(names)


def test_columns_and_splits_of_a_csv_file_have_names_of_ones_own(tmp_path: Path) -> None:
    names = pictures(tmp_path, 5)
    splits, labels = ["train", "Training", "val", "test", "TEST"], ["ant", "bee", "bee", "ant", "bee"]
    rows = [("x", *row) for row in zip(names, splits, labels, strict=True)]
    place = table(tmp_path / "all.csv", rows, header=("n", "file", " part", "species"))
    source = load_files(
        settings("csv", place, image_column="file", label_column="species", split_column="part", root=str(tmp_path))
    )
    assert list(source.class_names) == ["ant", "bee"]
    assert source.val is not None
    assert source.test is not None
    assert (source.train.labels.tolist(), source.val.labels.tolist(), source.test.labels.tolist()) == (
        [0, 1],
        [1],
        [0, 1],
    )


def test_csv_files_of_val_and_test_share_their_classes(tmp_path: Path) -> None:
    names = pictures(tmp_path, 4)
    train = table(tmp_path / "a.csv", [(names[0], "ant"), (names[1], "bee")])
    val, test = (table(tmp_path / f"{n}.csv", [(names[n], "bee")]) for n in (2, 3))
    source = load_files(settings("csv", train, val_path=str(val), test_path=str(test)))
    assert source.val is not None
    assert source.test is not None
    assert (source.val.labels.tolist(), source.test.labels.tolist()) == ([1], [1])


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (["1", " 0", "1"], ["0", "1"], [1, 0, 1]),
        (["10", "9", "9"], None, None),
        (["01", "1", "01"], ["01", "1"], [0, 1, 0]),
        (["b", "1", "b"], ["1", "b"], [1, 0, 1]),
        (["b", "a ", "a"], ["a", "a ", "b"], [2, 1, 0]),
    ],
)
def test_csv_labels_are_numbers_if_all_are_and_else_text(
    tmp_path: Path, labels: list[str], classes: list[str] | None, numbers: list[int] | None
) -> None:
    place = table(tmp_path / "all.csv", zip(pictures(tmp_path, 3), labels, strict=True))
    if classes is None:
        assert "label 10 among only 3 images" in refusal("csv", place)
        return
    source = load_files(settings("csv", place))
    assert (list(source.class_names), source.train.labels.tolist()) == (classes, numbers)
    assert any("'b' is not" in note for note in source.notes) == (labels[1] == "1" and labels[0] == "b")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image,label\n0.png,0\n1.png,nan\n", "line 3: label nan is not a class number"),
        ("image,label\n0.png,0\n1.png,1.5\n", "line 3: label 1.5 is not a class number"),
        ("image,label\n0.png,0\n1.png,-1\n", "line 3: label -1 is not a class number"),
        ("image,label\n0.png,0\n1.png,\n", "line 3 has no label"),
        ("image,label\n0.png,a\n,b\n", "line 3 names no image"),
        ("image,label\n0.png,a\n1.png\n", "line 3 has 1 of 2 columns"),
        ("image,label\n0.png,a\n../1.png,b\n", "lies outside"),
        ("image;label\n0.png;0\n", "no column 'image'"),
        ("file,label\n0.png,0\n", "no column 'image'"),
        ("image,labels\n0.png,0\n", "Did you mean data.label_column=labels?"),
        ("Image File,label\n0.png,0\n", "Did you mean data.image_column='Image File'?"),
        ("image,label,label\n0.png,0,1\n", "several columns 'label'"),
        ('image,label\n"0.png,0\n1.png,1\n', "is no CSV"),
        ("image,label\n0.png," + "x" * 200_000 + "\n", "is no CSV"),
        ("", "no column 'image'"),
    ],
)
def test_a_csv_file_that_cannot_be_used_is_refused_with_the_place(tmp_path: Path, text: str, words: str) -> None:
    pictures(tmp_path, 2)
    place = tmp_path / "all.csv"
    place.write_text(text)
    assert words in refusal("csv", place)


def test_a_split_that_is_none_is_refused_with_the_place(tmp_path: Path) -> None:
    rows = [(name, "a", "tain") for name in pictures(tmp_path, 1)]
    place = table(tmp_path / "all.csv", rows, header=("image", "label", "split"))
    assert "line 2: the split is 'tain', not train, val or test" in refusal("csv", place, split_column="split")


def test_labels_that_look_alike_are_noted_and_kept_apart(tmp_path: Path) -> None:
    labels = ["Cat", "cat ", "dog", "caf\u00e9", "cafe\u0301", "a b", "a  b", "d\u200bog"]
    place = table(tmp_path / "all.csv", zip(pictures(tmp_path, 8), labels, strict=True))
    source = load_files(settings("csv", place))
    assert list(source.class_names) == sorted(labels)
    noted = [note for note in source.notes if "look alike" in note]
    assert len(noted) == 4
    assert any("'Cat', 'cat '" in note for note in noted)
    assert any("'dog', 'd\\u200bog'" in note for note in noted)


# Broken files ---------------------------------------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims to be large and holds nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def spoil(path: Path, how: str) -> None:
    """Make ``path`` an image that cannot be read."""
    content = path.read_bytes()
    path.unlink()
    if how == "empty":
        path.touch()
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "text":
        path.write_text("<html>not found</html>")
    elif how == "bomb":
        path.write_bytes(png_header(60_000, 60_000))
    elif how == "large":
        path.write_bytes(png_header(MAX_PIXELS // 1000 + 1, 1000))
    elif how == "float":
        Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(path, format="TIFF")
    elif how == "deep":
        Image.fromarray(np.full((4, 4), 70_000, dtype=np.int32)).save(path, format="TIFF")
    elif how == "program":
        path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "folder":
        path.mkdir()
    elif how == "circle":
        path.symlink_to(path)


BROKEN = {
    "empty": "an empty file",
    "truncated": "",
    "text": "no image of a kind that is read",
    "bomb": "more than",
    "large": "89479 x 1000 pixels are more than",
    "float": "floating-point",
    "deep": "gray values beyond 16 bits",
    "program": "no image of a kind that is read",
    "pipe": "not a regular file",
    "folder": "a folder",
    "circle": "",
    "missing": "there is no such file",
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_file_stops_the_start_by_name_or_is_left_out_and_said(tmp_path: Path, how: str) -> None:
    names = pictures(tmp_path, 6)
    place = lines(tmp_path / "all.txt", [f"{name} {n % 2}" for n, name in enumerate(names)])
    whole = load_files(settings("list", place))
    spoil(tmp_path / "2.png", how)
    said = refusal("list", place)
    assert "1 of 6 images cannot be read" in said
    assert f"2.png: {BROKEN[how]}" in said
    assert "data.on_error=skip" in said
    left = load_files(settings("list", place, on_error="skip"))
    assert list(left.train.ids or []) == [name for name in names if name != "2.png"]
    assert torch.equal(left.train.images, whole.train.images[[0, 1, 3, 4, 5]])
    assert left.train.labels.tolist() == [0, 1, 1, 0, 1]
    assert "left out, because they cannot be read (1): 2.png" in left.notes


def test_a_file_that_may_not_be_read_is_a_broken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path, train=[2, 2])
    access = Path.open

    def open_(path: Path, *given: Any) -> Any:
        if path.name == "1.png":
            raise PermissionError(13, "Permission denied")
        return access(path, *given)

    monkeypatch.setattr(Path, "open", open_)
    assert "train/a/1.png: Permission denied" in refusal("folder", root)


def test_a_skipped_file_is_noted_in_the_run(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", train=[4, 4], test=[2, 2])
    spoil(root / "train" / "a" / "1.png", "text")
    values = settings_of("ce", data={"path": str(root), "size": SIZE}, out=str(tmp_path / "run"), optim={"epochs": 1})
    with pytest.raises(DataError):
        run_config(load_config("folder/ce", values))
    assert not (tmp_path / "run").exists()
    values["data"]["on_error"] = "skip"
    run = run_config(load_config("folder/ce", values))
    described = json.loads((run.path / "run.json").read_text())
    assert any("(1): train/a/1.png" in note for note in described["data"]["notes"])
    assert run.results["class_counts"] == [3, 4]


def test_a_split_or_a_class_of_which_no_image_is_left_is_refused(tmp_path: Path) -> None:
    root = folder(tmp_path, train=[2, 2], test=[1, 1])
    for k in "ab":
        spoil(root / "test" / k / "0.png", "text")
    assert "Of the 2 test images none can be read" in refusal("folder", root, on_error="skip")
    root = folder(tmp_path / "other", train=[2, 1], test=[1, 1])
    spoil(root / "train" / "b" / "0.png", "text")
    with pytest.raises(DataError, match="without training images: 'b'"):
        open_data(settings("folder", root, on_error="skip"))


def test_nothing_of_pillow_is_changed_for_others(tmp_path: Path) -> None:
    before = Image.MAX_IMAGE_PIXELS
    load_files(settings("folder", folder(tmp_path, train=[2, 2])))
    assert before == Image.MAX_IMAGE_PIXELS


# Memory, threads and the cache ----------------------------------------------------------------------------------------


def test_a_set_that_would_not_fit_stays_in_its_files_or_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(tmp_path, train=[3, 2])

    def read(*given: Any) -> Tensor:
        raise AssertionError("an image was read")

    monkeypatch.setattr(files_module, "read_square", read)
    monkeypatch.setattr(files_module, "MAX_BYTES", 5 * 3 * 100 * 100 - 1)
    assert isinstance(load_files(settings("folder", root, size=100)).train.images, ImageFiles)
    said = refusal("folder", root, size=100, stream=False)
    assert "5 images of 100 x 100 pixels" in said
    assert "data.size=99 would fit" in said


def test_the_number_of_threads_changes_nothing(tmp_path: Path) -> None:
    root = folder(tmp_path, train=[9, 9, 9])
    spoil(root / "train" / "b" / "4.png", "text")
    asked = settings("folder", root, on_error="skip")
    one = load_files(asked)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(5)
        many = load_files(asked)
    finally:
        torch.set_num_threads(before)
    assert one.train.fingerprint() == many.train.fingerprint()
    assert one.train.ids == many.train.ids


def test_a_second_run_reads_no_image_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path / "set", train=[3, 2], test=[1, 1])
    read: list[Path] = []

    def counted(path: Path, size: int) -> Tensor:
        read.append(path)
        return read_square(path, size)

    monkeypatch.setattr(files_module, "read_square", counted)
    asked = settings("folder", root)
    first = load_files(asked)
    assert len(read) == 7
    again = load_files(asked)
    assert len(read) == 7
    assert again.test is not None
    assert first.test is not None
    assert again.train.fingerprint() == first.train.fingerprint()
    assert again.test.fingerprint() == first.test.fingerprint()
    assert again.train.ids == first.train.ids
    picture(root / "train" / "a" / "0.png", 999)
    os.utime(root / "train" / "a" / "0.png", ns=(1, 1))
    assert load_files(asked).train.fingerprint() != first.train.fingerprint()
    assert len(read) == 14
    load_files(settings("folder", root, size=9))
    assert len(read) == 21


@pytest.mark.parametrize("how", ["cut", "flipped", "empty", "other"])
def test_what_the_cache_holds_is_not_believed_if_it_is_damaged(tmp_path: Path, how: str) -> None:
    asked = settings("folder", folder(tmp_path / "set", train=[3, 2]))
    first = load_files(asked)
    (kept,) = (tmp_path / "cache" / "images").iterdir()
    content = bytearray(kept.read_bytes())
    if how == "flipped":
        content[-5] ^= 1
    damaged = {"cut": content[:-9], "flipped": content, "empty": b"", "other": b"{}"}[how]
    kept.write_bytes(damaged)
    assert load_files(asked).train.fingerprint() == first.train.fingerprint()
    assert kept.read_bytes() != damaged, "and it is made anew"


def test_a_set_with_broken_files_is_read_anew_so_that_a_mended_one_counts(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", train=[3, 2])
    spoil(root / "train" / "a" / "0.png", "text")
    asked = settings("folder", root, on_error="skip")
    load_files(asked)
    assert not (tmp_path / "cache" / "images").exists()


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LONGTAIL_CACHE", str(tmp_path / "file"))
    assert len(load_files(settings("folder", folder(tmp_path / "set", train=[3, 2]))).train) == 5


def test_the_cache_drops_the_sets_that_were_not_used_for_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [settings("folder", folder(tmp_path / name, train=[3, 2])) for name in "abc"]
    load_files(asked[0])
    place = tmp_path / "cache" / "images"
    (first,) = place.iterdir()
    os.utime(first, (1, 1))
    load_files(asked[1])
    (second,) = (kept for kept in place.iterdir() if kept != first)
    os.utime(second, (2, 2))
    load_files(asked[0])  # used again
    monkeypatch.setattr(files_module, "KEPT_BYTES", int(2.5 * first.stat().st_size))
    load_files(asked[2])
    assert first.exists()
    assert not second.exists()
    assert len(list(place.iterdir())) == 2


def test_it_is_said_how_far_the_reading_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr("longtail.data.files.time.monotonic", lambda: next(clock))
    heard = Recorder()
    load_files(settings("folder", folder(tmp_path, train=[3, 2], test=[1, 1])), heard.said)
    assert heard.messages == ["reading images: 5 of 7", "reading images: 7 of 7"]


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "words", "said"),
    [
        ("folder/ce", [], "needs data.path"),
        ("folder/ce", ["data.path=x", "data.size="], "data.size is needed"),
        ("folder/ce", ["data.path=x", "data.root=y"], "data.root is for data.name=list or csv"),
        ("list/ce", ["data.path=x", "data.label_column=y"], "data.label_column is for data.name=csv"),
        ("npz/ce", ["data.path=x", "data.on_error=skip"], "data.on_error is for"),
        ("csv/ce", ["data.path=x", "data.download=true"], "no place to be downloaded from"),
        ("csv/ce", ["data.path=x", "data.split_column=a", "data.test_path=y"], "exclude each other"),
    ],
)
def test_keys_that_the_data_set_has_no_use_for_are_refused(target: str, words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_complete(load_config(target, words).data)


def test_a_name_of_a_file_is_shown_in_one_line() -> None:
    assert shown("a\nb\x1b[31m\u202ec\udcff") == "a\\nb\\x1b[31m\\u202ec\\udcff"
    assert shown("x" * 100) == "x" * 77 + "..."
    assert as_text("b\udcff") == "b\\xff"


def test_a_folder_that_holds_no_images_where_they_should_be_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "loose").mkdir()
    pictures(tmp_path / "loose", 2)
    assert "no class folders, but 2 images" in refusal("folder", tmp_path / "loose")
    (tmp_path / "none" / "cat").mkdir(parents=True)
    (tmp_path / "none" / "cat" / "notes.txt").write_text("x")
    said = refusal("folder", tmp_path / "none")
    assert "as cat, and no image in them. It holds cat/notes.txt." in said
    assert ".png" in said
