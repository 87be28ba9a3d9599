"""``longtail data check``, ``stats`` and ``show``: what they print, find and write, and with which codes they end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from longtail.cli import main
from longtail.data.checking import check_data
from longtail.data.open import open_data
from longtail.data.reading.decoding import read_square
from longtail.data.sheet import PER_CLASS, count_data, sheet
from pictures import SIZE, folder, lines, picture, pictures, settings, table
from tiny import write_npz


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture
def data_command(capsys: pytest.CaptureFixture[str]) -> Command:
    """``longtail data ...`` in this process."""

    def command(*words: str) -> Ended:
        with pytest.raises(SystemExit) as stop:
            main(["data", *words])
        printed = capsys.readouterr()
        return Ended(stop.value.code if isinstance(stop.value.code, int) else 0, printed.out, printed.err)

    return command


def kinds(checked: Any) -> dict[str, list[str]]:
    return {finding.kind: finding.where for finding in checked.findings}


# What SPEC means ------------------------------------------------------------------------------------------------------


def test_a_spec_is_a_folder_a_file_by_its_ending_or_a_name(data_command: Command, tmp_path: Path) -> None:
    root = folder(tmp_path / "set", train=[2, 2])
    names = pictures(tmp_path, 4)
    rows = [(name, n % 2) for n, name in enumerate(names)]
    specs = [root, table(tmp_path / "all.csv", rows), lines(tmp_path / "all.txt", [f"{a} {b}" for a, b in rows])]
    for spec in [*map(str, specs), str(write_npz(tmp_path / "all.npz"))]:
        ended = data_command("check", spec, "data.size=8")
        assert (ended.code, ended.err) == (0, ""), ended
    assert data_command("check", "scenes").out.startswith("scenes: 694 train, 320 val, 800 test images, 10 classes")


def test_words_are_laid_over_the_preset_and_name_another_kind(data_command: Command, tmp_path: Path) -> None:
    names = pictures(tmp_path, 2)
    place = table(tmp_path / "all.data", [(name, name) for name in names], header=("file", "label"))
    ended = data_command("stats", str(place), "data.name=csv", "data.image_column=file", "data.allow_empty=true")
    assert ended.code == 3, "one image a class is too few to hold one out"
    assert "no class has two images" in ended.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["cifar1000"], 2, "Unknown data set 'cifar1000'"),
        (["arrays"], 2, "Unknown data set 'arrays'"),
        (["absent/set"], 3, "There is nothing at absent/set"),
        (["absent.csv"], 3, "There is nothing at absent.csv"),
        (["cifar10"], 2, "needs data.path"),
        (["scenes", "optim.epochs=3"], 2, "'optim' is no setting of the data"),
        (["scenes", "data=3"], 2, "'data' is no setting of the data"),
        (["scenes", "data.sice=3"], 2, "Did you mean 'data.size'?"),
        (["scenes", "size"], 2, "not of the form key=value"),
        (["x" * 5000 + "/c"], 3, "Cannot look at"),
        (["a\0b/c"], 3, "There is nothing at"),
    ],
)
def test_a_spec_that_is_none_is_refused_with_words(
    data_command: Command, words: list[str], code: int, said: str
) -> None:
    for command in ("check", "stats", "show"):
        ended = data_command(command, *words)
        assert (ended.code, ended.out) == (code, "")
        assert said in ended.err
        assert "bug" not in ended.err


def test_a_file_of_unknown_kind_asks_for_its_kind(data_command: Command, tmp_path: Path) -> None:
    ended = data_command("check", str(lines(tmp_path / "all.xyz", ["x"])))
    assert ended.code == 2
    assert "data.name=list" in ended.err
    ended = data_command("check", str(tmp_path / "all.xyz"), "data.name=lst")
    assert (ended.code, "Did you mean 'list'?" in ended.err) == (2, True)


# check ----------------------------------------------------------------------------------------------------------------


def spoiled(root: Path) -> Path:
    """A folder with one of everything that is to be found."""
    folder(root, train=[4, 3, 2], val=[1, 1, 1], test=[1, 2, 1])
    (root / "train" / "a" / "0.png").write_bytes(b"")
    (root / "train" / "b" / "2.png").write_bytes((root / "train" / "a" / "1.png").read_bytes())  # another class
    picture(root / "train" / "c" / "1.bmp", 201)  # the pixels of c/0.png in another format
    Image.open(root / "train" / "a" / "2.png").save(root / "test" / "b" / "1.png", optimize=True)
    picture(root / "train" / "A" / "0.png", 5000, height=6, width=40)
    Image.new("CMYK", (9, 9), (1, 2, 3, 4)).save(root / "val" / "c" / "0.jpg")
    (root / "train" / "d").mkdir()
    (root / "train" / "c" / "notes.txt").touch()
    return root


def test_a_check_finds_each_kind_by_name(tmp_path: Path) -> None:
    checked = check_data(settings("folder", spoiled(tmp_path)))
    found = kinds(checked)
    assert found.pop("unreadable") == ["train/a/0.png: an empty file"]
    assert found.pop("empty-class") is not None
    assert found.pop("two-labels") == ["train/a/1.png (train, a) = train/b/2.png (train, b)"]
    assert found.pop("repeated") == ["train/c/0.png (train, c) = train/c/1.bmp (train, c)"]
    assert found.pop("in-two-splits") == ["train/a/2.png (train, a) = test/b/1.png (test, b)"]
    assert found.pop("small") == ["train/A/0.png: 40 x 6"]
    assert found.pop("elongated") == ["train/A/0.png: 40 x 6"]
    assert found.pop("mode") == ["val/c/0.jpg"]
    assert set(found) == {"alike", "note"}
    (noted,) = (finding.what for finding in checked.findings if finding.kind == "note")
    assert "train/c/notes.txt" in noted
    (alike,) = (finding.what for finding in checked.findings if finding.kind == "alike")
    assert "'A', 'a'" in alike
    empty = [(f.what, f.mend, f.where) for f in checked.findings if f.kind == "empty-class"]
    assert empty == [
        ("classes without training images", True, ["d"]),
        ("classes without val images", False, ["A", "d"]),
        ("classes without test images", False, ["A", "d"]),
    ]
    assert {finding.kind for finding in checked.to_mend} == {"unreadable", "in-two-splits", "empty-class"}
    assert checked.images == {"train": 11, "val": 4, "test": 4}
    assert checked.classes == 5


def test_a_set_in_which_nothing_is_wrong_is_said_to_be_so(data_command: Command, tmp_path: Path) -> None:
    ended = data_command("check", str(folder(tmp_path, train=[2, 2], test=[1, 1])), "data.size=8")
    assert (ended.code, ended.err) == (0, "")
    assert "4 train, 2 test images, 2 classes" in ended.out
    assert "nothing to mend" in ended.out


def test_what_must_be_mended_ends_with_code_3_and_is_in_the_table(data_command: Command, tmp_path: Path) -> None:
    ended = data_command("check", str(spoiled(tmp_path)), "data.size=8")
    assert ended.code == 3
    for words in ("mend", "look", "train/a/0.png: an empty file", "images that cannot be read", "of mode CMYK"):
        assert words in ended.out
    mended = ended.err.partition("must be mended: ")[2]
    assert [words in mended for words in ("images that cannot be read; ", "more than one split.")] == [True, True]
    assert "--json names all" in ended.err
    assert "Traceback" not in ended.err


def test_the_json_has_every_finding_whole(data_command: Command, tmp_path: Path) -> None:
    root = folder(tmp_path, train=[9, 9], test=[1, 1])
    for n in range(8):
        (root / "train" / "a" / f"{n}.png").write_bytes(b"x")
    ended = data_command("check", str(root), "data.size=8", "--json")
    assert ended.code == 3
    said = json.loads(ended.out)
    assert (said["ok"], said["images"], said["classes"]) == (False, {"train": 18, "test": 2}, 2)
    (finding,) = said["findings"]
    assert (finding["kind"], finding["mend"], finding["count"], len(finding["where"])) == ("unreadable", True, 8, 8)
    good = json.loads(data_command("check", "scenes", "--json").out)
    assert (good["ok"], good["findings"]) == (True, [])


def test_every_line_that_cannot_be_used_is_listed(tmp_path: Path) -> None:
    pictures(tmp_path, 3)
    rows = ["0.png 0", "1.png 1", *[f"2.png {k}" for k in ("x", "-1", "y", "1.5", "z", "w", "v")], "/etc/hostname 0"]
    found = kinds(check_data(settings("list", lines(tmp_path / "all.txt", rows))))
    assert len(found["listing"]) == 8
    assert "unreadable" not in found


def test_labels_out_of_range_and_a_file_that_cannot_be_used_are_findings(data_command: Command, tmp_path: Path) -> None:
    train, test = lines(tmp_path / "a.txt", ["0.png 0", "1.png 1"]), lines(tmp_path / "b.txt", ["2.png 7", "3.png 1"])
    pictures(tmp_path, 4)
    found = kinds(check_data(settings("list", train, test_path=str(test))))
    assert "label 7 among only 4 images" in found["listing"][0]
    ended = data_command("check", str(table(tmp_path / "x.csv", [], header=("a", "b"))), "--json")
    assert ended.code == 3
    (finding,) = json.loads(ended.out)["findings"]
    assert (finding["kind"], "no column 'image'" in finding["what"]) == ("unusable", True)


def test_arrays_in_a_file_are_checked_alike(tmp_path: Path) -> None:
    train = np.arange(5, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)
    train[3] = train[0]
    given = {"train_images": train, "train_labels": [0, 1, 3, 0, 3], "test_images": train[1:2], "test_labels": [3]}
    names = np.array(["ant", "bee", "cow", "Ant"])
    np.savez(tmp_path / "x.npz", class_names=names, **{key: np.asarray(array) for key, array in given.items()})
    checked = check_data(settings("npz", tmp_path / "x.npz"))
    found = kinds(checked)
    assert found["repeated"] == ["train 0 (train, ant) = train 3 (train, ant)"]
    assert found["in-two-splits"] == ["train 1 (train, bee) = test 0 (test, Ant)"]
    assert any(f.kind == "empty-class" and f.mend and f.where == ["cow"] for f in checked.findings)
    assert "'ant', 'Ant'" in next(f.what for f in checked.findings if f.kind == "alike")
    allowed = check_data(settings("npz", tmp_path / "x.npz", allow_empty=True))
    assert {f.kind for f in allowed.to_mend} == {"in-two-splits"}
    (tmp_path / "x.npz").write_bytes(b"no")
    assert kinds(check_data(settings("npz", tmp_path / "x.npz"))).keys() == {"unusable"}


def test_hostile_names_are_printed_as_they_are_and_in_one_line(data_command: Command, tmp_path: Path) -> None:
    names = pictures(tmp_path, 4)
    labels = ["[bold]x[/bold]", "a\nb\x1b[31m", "[bold]x[/bold]", "a\nb\x1b[31m"]
    place = table(tmp_path / "all.csv", zip(names, labels, strict=True))
    ended = data_command("stats", str(place))
    assert ended.code == 0
    assert "[bold]x[/bold]" in ended.out
    assert "a\\nb\\x1b[31m" in ended.out
    assert "\x1b" not in ended.out


@pytest.mark.slow
def test_ten_thousand_small_images_are_checked_within_a_minute(tmp_path: Path) -> None:
    for n in range(10_000):
        picture(tmp_path / "train" / str(n % 20) / f"{n}.jpg", n, height=64, width=64)
    began, computed = time.monotonic(), time.process_time()
    assert check_data(settings("folder", tmp_path)).findings == []
    seconds, computed = time.monotonic() - began, time.process_time() - computed
    print(f"10,000 images in {seconds:.1f} s, {computed:.1f} s of them of this process's own")
    assert computed < 60, "all threads together: others may share the machine"


# stats ----------------------------------------------------------------------------------------------------------------


def test_the_counts_are_those_of_training(tmp_path: Path) -> None:
    root = folder(tmp_path / "one", train=[9, 6, 5], val=[1, 1, 1], test=[2, 2, 2])
    for asked in (
        settings("folder", root),
        settings("folder", folder(tmp_path / "two", train=[9, 6, 5])),
        settings("folder", folder(tmp_path / "three", train=[9, 9, 9], test=[1, 1, 1]), imbalance=3.0, val=1),
    ):
        counted, run = count_data(asked), open_data(asked)
        assert counted.stats.counts == run.stats.counts
        assert (counted.evaluated_on, counted.notes) == (run.evaluated_on, run.notes)
        assert torch.equal(counted.train.labels, run.train.labels)
        assert torch.equal(counted.evaluation.labels, run.evaluation.labels)
        assert (counted.val is None) == (run.val is None)


def test_stats_show_counts_groups_and_imbalance_without_opening_an_image(data_command: Command, tmp_path: Path) -> None:
    rows = [(f"{n}.png", "ant" if n < 30 else "bee" if n < 35 else "cow", "train") for n in range(38)]
    rows += [(f"{n}.png", "bee", "test") for n in range(40, 42)]
    place = table(tmp_path / "all.csv", rows, header=("image", "label", "split"))
    ended = data_command("stats", str(place), "data.split_column=split", "data.groups=[20,4]")
    assert (ended.code, ended.err) == (0, "")
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in ended.out.splitlines() if "│" in line]
    assert cells == [["ant", "30", "0", "many"], ["bee", "5", "2", "medium"], ["cow", "3", "0", "few"]]
    assert "38 training images in 3 classes, 30 to 3 a class: imbalance 10.0" in ended.out
    assert "groups (data.groups=[20, 4]): 1 many, 1 medium, 1 few" in ended.out
    assert "reported on 2 test images" in ended.out


def test_stats_of_a_class_without_images_have_no_imbalance(data_command: Command, tmp_path: Path) -> None:
    place = lines(tmp_path / "all.txt", ["a 0", "b 0", "c 2", "d 2"])
    assert "imbalance -" in data_command("stats", str(place), "data.allow_empty=true").out


# show -----------------------------------------------------------------------------------------------------------------


def test_a_sheet_shows_the_images_of_each_class_largest_first(tmp_path: Path) -> None:
    root = folder(tmp_path, train=[3, 20])
    page, rows, classes = sheet(settings("folder", root, size=64))
    assert (rows, classes) == (2, 2)
    pixels = np.asarray(page)
    for row, (name, count) in enumerate((("b", 20), ("a", 3))):
        places = [round(i * 19 / 7) for i in range(PER_CLASS)] if count > PER_CLASS else range(count)
        for column, n in enumerate(places):
            top, left = row * 68, 220 + column * 68
            wanted = read_square(sorted((root / "train" / name).iterdir())[n], 64).permute(1, 2, 0).numpy()
            assert np.array_equal(pixels[top : top + 64, left : left + 64], wanted)
    assert pixels[68:132, 220 + 3 * 68 :].min() == 255, "a class of three has three"


def test_a_sheet_of_many_classes_goes_from_the_largest_to_the_smallest(tmp_path: Path) -> None:
    counts = tuple(range(60, 0, -1))
    asked = settings("npz", write_npz(tmp_path / "x.npz", counts, test=1))
    page, rows, classes = sheet(asked)
    assert (rows, classes) == (40, 60)
    assert page.height == 40 * 52


def test_the_picture_is_written_where_it_is_asked_for_and_never_over_another(
    data_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = folder(tmp_path / "set", train=[2, 2])
    (root / "train" / "a" / "0.png").write_bytes(b"")
    ended = data_command("show", str(root), "data.size=8")
    assert (ended.code, ended.out) == (0, "images.png: 2 classes, largest first\n")
    with Image.open("images.png") as page:
        assert page.width == 220 + 8 * 52
    before = Path("images.png").read_bytes()
    assert data_command("show", str(root)).code == 2
    assert Path("images.png").read_bytes() == before
    assert data_command("show", str(root), f"data.size={SIZE}", "--out", "other.png").code == 0
    assert Path("other.png").is_file()
    assert data_command("show", str(root), "--out", "other.txt").code == 2
    assert data_command("show", str(root), "--out", "absent/other.png").code == 6


def test_a_sheet_of_names_in_other_scripts_and_of_an_empty_class_is_drawn(tmp_path: Path) -> None:
    names = pictures(tmp_path, 3)
    place = table(tmp_path / "all.csv", zip(names, ["日本\n", "é" * 90, "\u202e"], strict=True))
    page, rows, _ = sheet(settings("csv", place))
    assert (rows, page.height) == (3, 3 * 52)


# pack -----------------------------------------------------------------------------------------------------------------


def test_a_set_is_packed_and_the_shards_are_a_spec(data_command: Command, tmp_path: Path) -> None:
    place = folder(tmp_path / "set", train=[4, 3], test=[1, 1])
    ended = data_command("pack", str(place), "--out", str(tmp_path / "packed"))
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"{tmp_path / 'packed'}: 7 train, 2 test images in 2 shards, 0.0 MB")
    counted = [data_command("stats", str(where)).out for where in (place, tmp_path / "packed")]
    assert counted[0] == counted[1]
    again = data_command("pack", str(place), "--out", str(tmp_path / "packed"))
    assert (again.code, again.out) == (2, "")
    assert "is there already" in again.err
    assert data_command("pack", str(place)).code == 2
    assert data_command("pack", "scenes", "--out", str(tmp_path / "other")).code == 2
    assert not (tmp_path / "other").exists()


def test_packing_says_how_many_images_it_shrank(data_command: Command, tmp_path: Path) -> None:
    place = folder(tmp_path / "set", train=[4, 3])  # of 12 x 10 pixels
    ended = data_command("pack", str(place), "--out", str(tmp_path / "packed"), "--shorter-side", "8")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"{tmp_path / 'packed'}: 7 train images, 7 shrunk in 1 shard, 0.0 MB")
    assert data_command("pack", str(place), "--out", str(tmp_path / "other"), "--shorter-side", "0").code == 2
