"""Bad labels, folders, tables and pictures: each ends with the exit code that is documented, and with words."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import longtail.cli as cli
from longtail.rng import numpy_generator
from pictures import folder, lines, picture, pictures, table
from tiny import COUNTS, assignments, settings_of, write_npz

GOOD, DATA = 0, 3
"""Exit codes: trained and reported, and refused for what the data are."""


@dataclass(frozen=True)
class Case:
    """What is made in an empty folder, the words it is trained by, and how that ends."""

    name: str
    kind: str
    make: Callable[[Path], object]
    code: int
    said: str = ""
    words: tuple[str, ...] = ()


# npz ------------------------------------------------------------------------------------------------------------------

LABELS = np.repeat(np.arange(len(COUNTS)), COUNTS)
TESTED = np.repeat(np.arange(len(COUNTS)), 3)


def npz(**changed: Any) -> Callable[[Path], object]:
    """An archive of four classes in which some arrays are others; None takes one away."""

    def make(place: Path) -> None:
        with np.load(write_npz(place / "good.npz")) as good:
            arrays = dict(good) | changed
        np.savez(place / "set.npz", **{name: array for name, array in arrays.items() if array is not None})

    return make


def labels(value: float, dtype: str = "float64") -> Any:
    """The good labels with one that is ``value``."""
    changed = LABELS.astype(dtype)
    changed[5] = value
    return changed


def noise(*shape: int) -> Any:
    return numpy_generator(0, "noise").integers(0, 256, shape, dtype=np.uint8)


N = len(LABELS)

NPZ = [
    Case(
        "a negative label",
        "npz",
        npz(train_labels=labels(-1, "int64")),
        DATA,
        "train_labels[5] is -1: classes are numbered from 0",
    ),
    Case(
        "a label that is not a number",
        "npz",
        npz(train_labels=labels(np.nan)),
        DATA,
        "train_labels[5] is nan, not a class number",
    ),
    Case(
        "an infinite label", "npz", npz(train_labels=labels(np.inf)), DATA, "train_labels[5] is inf, not a class number"
    ),
    Case("half a label", "npz", npz(train_labels=labels(1.5)), DATA, "train_labels[5] is 1.5, not a class number"),
    Case(
        "a label beyond the names",
        "npz",
        npz(class_names=np.array(list("abc"))),
        DATA,
        "train_labels[19] is 3, but class_names has 3 names",
    ),
    Case(
        "a label of a million million",
        "npz",
        npz(train_labels=labels(10**12, "int64")),
        DATA,
        "train_labels[5] is 1000000000000, not a class number",
    ),
    Case(
        "a label of a thousand million in test",
        "npz",
        npz(test_labels=np.r_[TESTED[:-1], 10**9]),
        DATA,
        "test_labels[11] is 1000000000, but the training labels end at 3",
    ),
    Case("labels of text", "npz", npz(train_labels=LABELS.astype(str)), DATA, "not integers"),
    Case("fewer labels than images", "npz", npz(train_labels=LABELS[:-1]), DATA, "train has 21 images but 20 labels"),
    Case(
        "labels in two columns",
        "npz",
        npz(train_labels=np.stack([LABELS, LABELS], 1)),
        DATA,
        "train_labels has 2 columns",
    ),
    Case(
        "no labels",
        "npz",
        npz(train_labels=None),
        DATA,
        "has no array 'train_labels'. It has test_images, test_labels, train_images",
    ),
    Case("no training images", "npz", npz(train_images=None, train_labels=None), DATA, "has no array 'train_images'"),
    Case(
        "a class without training images",
        "npz",
        npz(train_labels=np.where(LABELS == 2, 3, LABELS)),
        DATA,
        "1 class without training images: '2'",
    ),
    Case(
        "that class allowed",
        "npz",
        npz(train_labels=np.where(LABELS == 2, 3, LABELS)),
        GOOD,
        words=("data.allow_empty=true",),
    ),
    Case("a class of one image", "npz", npz(train_images=noise(N - 1, 8, 8, 3), train_labels=LABELS[:-1]), GOOD),
    Case(
        "a class that only test has",
        "npz",
        npz(test_labels=np.where(TESTED == 3, 4, TESTED)),
        DATA,
        "test_labels[9] is 4, but the training labels end at 3",
    ),
    Case(
        "an empty training split",
        "npz",
        npz(train_images=noise(0, 8, 8, 3), train_labels=LABELS[:0]),
        DATA,
        "train_labels is empty",
    ),
    Case(
        "an empty test split",
        "npz",
        npz(test_images=noise(0, 8, 8, 3), test_labels=LABELS[:0]),
        DATA,
        "test_labels is empty",
    ),
    Case(
        "one class only",
        "npz",
        npz(train_labels=LABELS * 0, test_labels=TESTED * 0),
        DATA,
        "There is only one class, '0': nothing to classify",
    ),
    Case(
        "images of floats",
        "npz",
        npz(train_images=noise(N, 8, 8, 3) / 255),
        DATA,
        "train_images has type float64, not uint8",
    ),
    Case(
        "images of two channels",
        "npz",
        npz(train_images=noise(N, 8, 8, 2)),
        DATA,
        "train_images has shape (21, 8, 8, 2)",
    ),
    Case("images in a row", "npz", npz(train_images=noise(N, 192)), DATA, "train_images has shape (21, 192)"),
    Case(
        "images of no height",
        "npz",
        npz(train_images=noise(N, 0, 8, 3)),
        DATA,
        "train_images is empty: shape (21, 0, 8, 3)",
    ),
    Case(
        "wide images",
        "npz",
        npz(train_images=noise(N, 8, 12, 3), test_images=noise(12, 8, 12, 3)),
        DATA,
        "8 x 12 pixels; only square ones can be trained on",
    ),
    Case(
        "test images of another size",
        "npz",
        npz(test_images=noise(12, 9, 9, 3)),
        DATA,
        "the splits differ in size: train 8x8, test 9x9",
    ),
    Case("one name for two classes", "npz", npz(class_names=np.array(list("abca"))), DATA, "class_names has 'a' twice"),
    Case("images of one pixel", "npz", npz(train_images=noise(N, 1, 1, 3), test_images=noise(12, 1, 1, 3)), GOOD),
]


# Folders --------------------------------------------------------------------------------------------------------------


def folders(*more: Callable[[Path], object]) -> Callable[[Path], object]:
    """Three classes in ``train`` and ``test``, and what is done to them."""

    def make(place: Path) -> None:
        folder(place / "set", train=[6, 4, 3], test=[2, 2, 2])
        for act in more:
            act(place / "set")

    return make


def saved(name: str, mode: str = "RGB", **more: Any) -> Callable[[Path], object]:
    """One further training image of a mode."""

    def make(root: Path) -> None:
        image = Image.fromarray(noise(12, 10, 3)).convert(mode)
        image.save(root / "train" / "a" / name, **more)

    return make


def written(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda root: (root / name).write_bytes(content)


def without(name: str) -> Callable[[Path], object]:
    """A folder that is there and has no image any more."""

    def make(root: Path) -> None:
        for path in [path for path in (root / name).rglob("*") if path.is_file()]:
            path.unlink()

    return make


def turned(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(12, 10, 3)).save(root / "train" / "a" / "turned.jpg", exif=exif)


def frames(root: Path) -> None:
    moving = [Image.fromarray(noise(12, 10, 3)), Image.fromarray(255 - noise(12, 10, 3))]
    moving[0].save(root / "train" / "a" / "moving.gif", save_all=True, append_images=moving[1:])


def deep(root: Path) -> None:
    Image.fromarray(numpy_generator(1, "deep").integers(0, 2**16, (12, 10), dtype=np.uint16)).save(
        root / "train" / "a" / "deep.png"
    )


def cut(root: Path) -> None:
    path = root / "train" / "a" / "0.png"
    path.write_bytes(path.read_bytes()[:-100])


def named(*names: str | bytes) -> Callable[[Path], object]:
    """Training images of these names."""

    def make(root: Path) -> None:
        for number, name in enumerate(names):
            made = picture(root / "made.png", 500 + number)
            os.rename(made, os.path.join(os.fsencode(root / "train" / "a"), os.fsencode(name)))

    return make


FOLDERS = [
    Case("CMYK", "folder", folders(saved("x.jpg", "CMYK")), GOOD),
    Case("16 bits", "folder", folders(deep), GOOD),
    Case("a palette", "folder", folders(saved("x.png", "P")), GOOD),
    Case("transparent", "folder", folders(saved("x.png", "RGBA")), GOOD),
    Case("gray with transparency", "folder", folders(saved("x.png", "LA")), GOOD),
    Case("black and white", "folder", folders(saved("x.png", "1")), GOOD),
    Case("one pixel", "folder", folders(lambda root: picture(root / "train/a/x.png", 1, height=1, width=1)), GOOD),
    Case(
        "long and thin", "folder", folders(lambda root: picture(root / "train/a/x.png", 1, height=400, width=1)), GOOD
    ),
    Case("turned by EXIF", "folder", folders(turned), GOOD),
    Case("a moving picture", "folder", folders(frames), GOOD),
    Case("another format than its name says", "folder", folders(saved("x.png", format="JPEG")), GOOD),
    Case("endings in capitals", "folder", folders(named("A.PNG", "B.JPeG")), GOOD),
    Case("odd names", "folder", folders(named(" ", "a b.png", "-n.png", "a\nb.png", "日本.png", "'\"$(x).png")), GOOD),
    Case("a name that is no Unicode", "folder", folders(named(b"\xff\xfe.png")), GOOD),
    Case(
        "floating-point pixels", "folder", folders(saved("x.tiff", "F")), DATA, "train/a/x.tiff: floating-point pixels"
    ),
    Case("an empty file", "folder", folders(written("train/a/x.png", b"")), DATA, "train/a/x.png: an empty file"),
    Case(
        "text in place of a picture",
        "folder",
        folders(written("train/a/x.jpg", b"not found")),
        DATA,
        "train/a/x.jpg: no image of a kind that is read",
    ),
    Case("a picture that is cut", "folder", folders(cut), DATA, "1 of 19 images cannot be read:\n  train/a/0.png"),
    Case(
        "a link to nothing",
        "folder",
        folders(lambda root: (root / "train/a/x.png").symlink_to("nothing")),
        DATA,
        "train/a/x.png: there is no such file",
    ),
    Case(
        "a pipe",
        "folder",
        folders(lambda root: os.mkfifo(root / "train/a/x.png")),
        DATA,
        "train/a/x.png: not a regular file",
    ),
    Case("a folder called as a picture", "folder", folders(lambda root: (root / "train/a/x.png").mkdir()), GOOD),
    Case(
        "a broken one in test",
        "folder",
        folders(written("test/b/x.png", b"x")),
        DATA,
        "test/b/x.png: no image of a kind that is read",
    ),
    Case(
        "broken ones left out",
        "folder",
        folders(cut, written("train/a/x.png", b"")),
        GOOD,
        words=("data.on_error=skip",),
    ),
    Case(
        "a class of broken ones left out",
        "folder",
        folders(*(written(f"train/c/{n}.png", b"") for n in range(3))),
        DATA,
        "1 class without training images: 'c'",
        ("data.on_error=skip",),
    ),
    Case(
        "a class folder without images",
        "folder",
        folders(without("train/c")),
        DATA,
        "1 class without training images: 'c'",
    ),
    Case(
        "a training folder without images", "folder", folders(without("train")), DATA, "the train split has no images"
    ),
    Case("a test folder without images", "folder", folders(without("test")), DATA, "the test split has no images"),
    Case(
        "a class that only test has",
        "folder",
        folders(lambda root: picture(root / "test/d/x.png", 1)),
        DATA,
        "1 class without training images: 'd'",
    ),
    Case("no class folders", "folder", lambda root: picture(root / "set" / "x.png", 1), DATA, "holds no class folders"),
    Case("nothing", "folder", lambda root: root, DATA, "There is nothing at"),
]


# Lists and tables -----------------------------------------------------------------------------------------------------


def listed(*rows: str, test: Iterable[str] = ()) -> Callable[[Path], object]:
    """Eight pictures, half of each of two classes, and further lines."""

    def make(place: Path) -> None:
        own = [f"{name} {n % 2}" for n, name in enumerate(pictures(place, 8))]
        lines(place / "set.txt", [*own, *rows])
        if test:
            lines(place / "test.txt", test)

    return make


def raw(name: str, content: bytes) -> Callable[[Path], object]:
    """A table of these bytes, beside eight pictures."""

    def make(place: Path) -> None:
        pictures(place, 8)
        (place / name).write_bytes(content)

    return make


def tabled(*rows: tuple[str, ...], header: tuple[str, ...] = ("image", "label")) -> Callable[[Path], object]:
    def make(place: Path) -> None:
        rest = ("train",) * (len(header) - 2)
        own = [(name, "ab"[n % 2], *rest) for n, name in enumerate(pictures(place, 8))]
        table(place / "set.csv", [*own, *rows], header)

    return make


TEN = "\n".join(f"{n}.png {n % 2}" for n in range(8))

TABLES = [
    Case(
        "a line without a label",
        "list",
        listed("x.png"),
        DATA,
        "set.txt, line 9 is not 'path label' with an integer label: x.png",
    ),
    Case(
        "a label of text",
        "list",
        listed("7.png cat"),
        DATA,
        "set.txt, line 9 is not 'path label' with an integer label: 7.png cat",
    ),
    Case(
        "a negative label in a list",
        "list",
        listed("7.png -1"),
        DATA,
        "set.txt, line 9: label -1 is not a class number",
    ),
    Case(
        "half a label in a list",
        "list",
        listed("7.png 0.5"),
        DATA,
        "line 9 is not 'path label' with an integer label: 7.png 0.5",
    ),
    Case(
        "not a number in a list",
        "list",
        listed("7.png nan"),
        DATA,
        "line 9 is not 'path label' with an integer label: 7.png nan",
    ),
    Case("a gap in the labels", "list", listed("x.png 3"), DATA, "1 class without training images: '2'"),
    Case("a file that is not there", "list", listed("absent.png 1"), DATA, "absent.png: there is no such file"),
    Case("that file left out", "list", listed("absent.png 1"), GOOD, words=("data.on_error=skip",)),
    Case("a path that leads out", "list", listed("../x.png 1"), DATA, "set.txt, line 9: ../x.png lies outside"),
    Case("an absolute path", "list", listed("/etc/hostname 1"), DATA, "set.txt, line 9: /etc/hostname lies outside"),
    Case("a line twice", "list", listed("7.png 1"), GOOD),
    Case(
        "a file of two classes",
        "list",
        listed("7.png 0"),
        DATA,
        "line 9: 7.png is of class 0 here and of class 1 at set.txt, line 8",
    ),
    Case(
        "a file in train and test",
        "list",
        listed(test=["0.png 0"]),
        DATA,
        "test.txt, line 1: 0.png is in test and, at set.txt, line 1, in train",
        ("data.test_path=TEST",),
    ),
    Case("an empty list", "list", raw("set.txt", b""), DATA, "the train split has no images"),
    Case("a list of spaces", "list", raw("set.txt", b"  \n\n \n"), DATA, "the train split has no images"),
    Case(
        "a list that is no text",
        "list",
        raw("set.txt", b"\xff\xfe\x00\x01" * 50),
        DATA,
        "set.txt is no UTF-8 text: byte 0",
    ),
    Case(
        "a list with a zero byte",
        "list",
        raw("set.txt", f"{TEN}\n0\0.png 1\n".encode()),
        DATA,
        "set.txt, line 9 names no image",
    ),
    Case("a list from Windows", "list", raw("set.txt", b"\xef\xbb\xbf" + TEN.replace("\n", "\r\n").encode()), GOOD),
    Case(
        "no column of labels",
        "csv",
        tabled(header=("image", "class")),
        DATA,
        "has no column 'label'. Its columns: 'image', 'class'",
    ),
    Case(
        "two columns of labels", "csv", tabled(header=("image", "label", "label")), DATA, "has several columns 'label'"
    ),
    Case("a row without a label", "csv", tabled(("7.png", "")), DATA, "set.csv, line 10 has no label"),
    Case("a row without a picture", "csv", tabled(("", "a")), DATA, "set.csv, line 10 names no image"),
    Case("a row that is too long", "csv", tabled(("7.png", "b", "c")), GOOD),
    Case("a row that is too short", "csv", tabled(("7.png",)), DATA, "set.csv, line 10 has 1 of 2 columns"),
    Case(
        "a split that is none",
        "csv",
        tabled(("7.png", "b", "holdout"), header=("image", "label", "split")),
        DATA,
        "set.csv, line 10: the split is 'holdout', not train, val or test",
        ("data.split_column=split",),
    ),
    Case(
        "a column of splits that is not there",
        "csv",
        tabled(),
        DATA,
        "has no column 'split'. Its columns: 'image', 'label'",
        ("data.split_column=split",),
    ),
    Case(
        "a quotation without an end",
        "csv",
        raw("set.csv", b'image,label\n0.png,a\n"1.png,b\n'),
        DATA,
        "set.csv, line 3 is no CSV: unexpected end of data",
    ),
    Case("a header alone", "csv", raw("set.csv", b"image,label\n"), DATA, "the train split has no images"),
    Case("an empty table", "csv", raw("set.csv", b""), DATA, "has no column 'image'. Its columns: none"),
    Case(
        "names with markup and formulas",
        "csv",
        raw(
            "set.csv",
            b"image,label\n"
            + b"".join(f'{n}.png,"{name}"\n'.encode() for n, name in enumerate(["=1+1", "<b>x</b>"] * 4)),
        ),
        GOOD,
    ),
]

CASES = [*NPZ, *FOLDERS, *TABLES]


@pytest.mark.parametrize("case", CASES, ids=[f"{case.kind}: {case.name}" for case in CASES])
def test_bad_data_end_with_their_code_and_words(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "given"
    place.mkdir()
    case.make(place)
    path = place / {"npz": "set.npz", "folder": "set", "list": "set.txt", "csv": "set.csv"}[case.kind]
    small = settings_of("ce", optim={"epochs": 1})
    small["data"] = {"groups": [8, 3], "path": str(path)} | ({} if case.kind == "npz" else {"size": 8})
    words = [*assignments(small), *(word.replace("TEST", str(place / "test.txt")) for word in case.words)]
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", f"{case.kind}/ce", *words, f"out={tmp_path / 'run'}"])
    said = capsys.readouterr().err
    assert ended.value.code == case.code, said
    assert case.said in said
    assert "Traceback" not in said
    assert "bug" not in said
    assert said.startswith("error: ") == bool(case.code)
    assert (tmp_path / "run" / "results.json").is_file() == (case.code == GOOD)
    assert (tmp_path / "run").exists() == (case.code == GOOD), "a start that is refused leaves nothing behind"


def test_there_are_as_many_cases_as_were_promised() -> None:
    assert len(CASES) >= 60
    assert all(case.said for case in CASES if case.code)
