"""ImageNet-LT, Places-LT and iNaturalist 2018 on miniatures of their lists, through to finished runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from longtail.api import run_config
from longtail.data.checking import check_data
from longtail.data.files import list_files, load_files
from longtail.data.open import open_data
from longtail.data.reading.big_lists import BIG_LISTS, missing_files
from longtail.data.reading.image_files import ImageFiles
from longtail.data.settings import BIG
from longtail.data.sheet import count_data, sheet
from longtail.errors import DataError
from longtail.files import read_json
from longtail.layers import merge
from longtail.prediction.predict import load
from longtail.recipes import load_config
from longtail.training.state import build_method
from miniatures import CLASSES, list_name, miniature, names
from pictures import lines, settings
from tiny import Recorder

SMALL = 5
"""Classes of a quick miniature."""


@pytest.fixture(scope="module", params=BIG)
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    data: str = request.param
    return data, miniature(tmp_path_factory.mktemp(data), data, classes=SMALL)


# Lists ----------------------------------------------------------------------------------------------------------------


def test_the_splits_of_a_public_layout_are_kept_apart(small: tuple[str, Path]) -> None:
    name, root = small
    data = open_data(settings(name, root))
    assert data.stats.counts == [6, 5, 4, 3, 2]
    assert data.name == BIG_LISTS[name].title
    assert data.evaluated_on == ("val" if name == "inat18" else "test")
    assert data.selected_on == "val"
    assert (data.val is None) == (name == "inat18")
    assert (data.mean, data.std) == (BIG_LISTS[name].mean, BIG_LISTS[name].std)
    assert isinstance(data.train.images, ImageFiles)
    folder_of_class = names(name, 3)["train"].rpartition("/")[0].rpartition("/")[2]
    assert data.class_names[3] == folder_of_class
    assert next(iter(data.train.ids or [])) == names(name, 0)["train"].format(n=0)


def test_a_list_that_is_not_the_published_one_says_so(small: tuple[str, Path]) -> None:
    name, root = small
    known = BIG_LISTS[name]
    [note] = [line for line in list_files(settings(name, root)).notes if "as it is published" in line]
    assert f"this is not {known.title}" in note
    assert f"5 classes, not {known.classes:,}" in note
    assert f"20 train images, not {known.images['train']:,}" in note
    assert note in open_data(settings(name, root)).notes


def test_a_list_with_the_published_numbers_is_not_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniature(tmp_path, "places-lt", classes=SMALL)
    known = BIG_LISTS["places-lt"]
    agreeing = {"classes": SMALL, "images": {"train": 20, "val": 5, "test": 5}, "largest": 6, "smallest": 2}
    for key, value in agreeing.items():
        monkeypatch.setitem(BIG_LISTS, "places-lt", known.__class__(**{**vars(known), **agreeing}))
        assert not list_files(settings("places-lt", root)).notes
        other = {"classes": 6, "images": {"train": 20, "val": 5}, "largest": 7, "smallest": 1}[key]
        monkeypatch.setitem(BIG_LISTS, "places-lt", known.__class__(**{**vars(known), **agreeing, key: other}))
        assert list_files(settings("places-lt", root)).notes, (key, value)


def test_lists_may_lie_apart_from_the_images_under_any_case(tmp_path: Path) -> None:
    root = miniature(tmp_path / "images", "imagenet-lt", classes=SMALL)
    whole = list_files(settings("imagenet-lt", root))
    for split in ("train", "val", "test"):
        place = tmp_path / "meta" / "ImageNet_LT" / f"imagenet_LT_{split}.txt"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(root / list_name("imagenet-lt", split), place)
    below = list_files(settings("imagenet-lt", tmp_path / "meta", root=str(root)))
    train = tmp_path / "meta" / "ImageNet_LT" / "imagenet_LT_train.txt"
    given = list_files(settings("imagenet-lt", train, root=str(root)))
    assert whole.splits == below.splits == given.splits
    shutil.move(train.with_name("imagenet_LT_test.txt"), tmp_path / "other.txt")
    other = list_files(settings("imagenet-lt", train, root=str(root), test_path=str(tmp_path / "other.txt")))
    assert other.splits == whole.splits


def test_the_json_files_of_inaturalist_are_its_lists(tmp_path: Path) -> None:
    as_text = list_files(settings("inat18", miniature(tmp_path / "a", "inat18", classes=SMALL)))
    root = miniature(tmp_path / "b", "inat18", classes=SMALL, as_json=True)
    as_json = list_files(settings("inat18", root))
    assert [(e.id, e.label) for e in as_json.splits["train"]] == [(e.id, e.label) for e in as_text.splits["train"]]
    assert as_json.class_names == [f"species {k}" for k in range(SMALL)]
    (root / "val2018.json").write_text('{"images": [{"id": 1, "file_name": "../../etc/passwd"}], "annotations": []}')
    assert "image 1 has no class number" in "".join(list_files(settings("inat18", root)).problems)
    (root / "val2018.json").write_text('{"annotations": []}')
    with pytest.raises(DataError, match="not as iNaturalist's files are"):
        list_files(settings("inat18", root))
    (root / "val2018.json").write_text("{")
    with pytest.raises(DataError, match="no JSON"):
        list_files(settings("inat18", root))


def test_a_path_in_json_that_leads_out_is_a_problem(tmp_path: Path) -> None:
    content = '{"images": [{"id": 1, "file_name": "../x.jpg"}], "annotations": [{"image_id": 1, "category_id": 0}]}'
    (tmp_path / "train2018.json").write_text(content)
    assert "lies outside" in "".join(list_files(settings("inat18", tmp_path)).problems)


def test_a_folder_without_the_lists_says_what_they_are_called(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"imagenet_lt_train\.txt") as caught:
        list_files(settings("imagenet-lt", tmp_path))
    assert "data.root" in str(caught.value)


def test_images_below_another_root_are_named_as_missing(small: tuple[str, Path], tmp_path: Path) -> None:
    name, root = small
    asked = settings(name, root, root=str(tmp_path))
    assert len(missing_files(list_files(asked))) == 20 + 5 * (len(list_files(asked).splits) - 1)
    with pytest.raises(DataError, match="listed images are not there") as caught:
        load_files(asked)
    assert str(caught.value).count("\n") == 12, "a line that says what, ten names, how many more, a hint"


def test_check_and_stats_and_show_take_these_lists(small: tuple[str, Path]) -> None:
    name, root = small
    asked = settings(name, root)
    checked = check_data(asked)
    assert not checked.to_mend
    assert any("as it is published" in finding.what for finding in checked.findings)
    assert count_data(asked).stats.counts == [6, 5, 4, 3, 2]
    assert sheet(asked)[1:] == (SMALL, SMALL)


@pytest.mark.parametrize(
    ("train", "val", "seconds"),
    [(30_000, 2_000, 2), pytest.param(437_513, 24_426, 10, marks=[pytest.mark.slow, pytest.mark.alone])],
)
def test_half_a_million_lines_are_read_without_a_look_at_each_file(
    tmp_path: Path, train: int, val: int, seconds: float
) -> None:
    """CPU time, because the machine may be busy; the folders that the lists name are not there."""
    made = {"train": train, "val": val}
    first = 0
    for split, count in made.items():
        rows = [f"train_val2018/Plantae/{i % 8142}/{i:032x}.jpg {i % 8142}" for i in range(first, first + count)]
        lines(tmp_path / list_name("inat18", split), rows)
        first += count
    began = time.process_time()
    listing = list_files(settings("inat18", tmp_path))
    assert not listing.problems
    assert {split: len(entries) for split, entries in listing.splits.items()} == made
    assert len(missing_files(listing)) == train + val
    assert time.process_time() - began < seconds


# Runs -----------------------------------------------------------------------------------------------------------------

TINY = {
    "data": {"size": 16, "groups": [5, 3]},
    "model": {"backbone": "resnet8"},
    "optim": {"epochs": 2, "batch": 8},
    "run": {"compile": False, "threads": 1, "workers": 0},
}


def run_tiny(recipe: str, root: Path, out: Path, **more: Any) -> dict[str, Any]:
    small = {"hidden": 16, "dim": 8} if recipe.endswith(("concutmix", "bcl", "smcl")) else {}
    values = merge(TINY, {"data": {"path": str(root)}, "method": small, "out": str(out)}, more)
    return run_config(load_config(recipe, values), listener=Recorder()).results


@pytest.mark.parametrize("method", ["ce", "concutmix", "smcl"])
def test_a_run_on_files_reports_the_right_split_and_predicts_as_it_evaluates(
    small: tuple[str, Path], tmp_path: Path, method: str
) -> None:
    name, root = small
    masked = {"method": {"mask_start": 0.5, "mask_probability": 1.0}} if method == "smcl" else {}
    results = run_tiny(f"{name}/{method}", root, tmp_path / "run", **masked)
    assert results["evaluated_on"] == ("val" if name == "inat18" else "test")
    assert results["class_counts"] == [6, 5, 4, 3, 2]
    rows = (tmp_path / "run" / "predictions.csv").read_text().splitlines()[1:]
    ids = [row.split(",")[1] for row in rows]
    said = [int(row.split(",")[3]) for row in rows]
    found = load(tmp_path / "run").predict([root / one for one in ids])
    assert found.argmax(axis=1).tolist() == said
    assert float(rows[0].split(",")[4]) == pytest.approx(float(found[0].max()), abs=2e-5)


def test_a_run_on_files_goes_on_bit_for_bit_and_whatever_reads(tmp_path: Path) -> None:
    root = miniature(tmp_path / "data", "places-lt", classes=SMALL)
    whole = run_tiny("places-lt/smcl", root, tmp_path / "whole", method={"mask_start": 0, "mask_probability": 0.5})
    values = merge(TINY, {"data": {"path": str(root)}, "method": {"hidden": 16, "dim": 8, "mask_start": 0}})
    values = merge(values, {"method": {"mask_probability": 0.5}, "out": str(tmp_path / "cut")})
    config = load_config("places-lt/smcl", values)
    with pytest.raises(KeyboardInterrupt):
        run_config(config, listener=_StopAfter(4))
    run_config(load_config("places-lt/smcl", merge(values, {"run": {"workers": 2}})), resume=True)
    last = [sorted((tmp_path / run / "checkpoints").glob("step-*.safetensors"))[-1] for run in ("whole", "cut")]
    assert last[0].read_bytes() == last[1].read_bytes()
    assert read_json(tmp_path / "cut" / "results.json")["last"] == whole["last"]


class _StopAfter(Recorder):
    """Ends the run as a fault would, after a step of the second epoch."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.last = step

    def stepped(self, step: int, logs: Any, images_per_second: float) -> None:
        if step == self.last:
            raise KeyboardInterrupt


def test_a_damaged_file_ends_a_run_with_its_name(tmp_path: Path) -> None:
    root = miniature(tmp_path / "data", "places-lt", classes=SMALL)
    broken = names("places-lt", 0)["train"].format(n=1)
    (root / broken).write_bytes(b"x")
    with pytest.raises(DataError, match="cannot be read") as caught:
        run_tiny("places-lt/ce", root, tmp_path / "run")
    assert broken in str(caught.value)
    assert caught.value.exit_code == 3


# The whole lists in miniature -----------------------------------------------------------------------------------------

PEAK_MEGABYTES = 2200
"""Of a training process by itself; 550 of them are PyTorch's libraries."""

WITH_PEAK = """
import atexit, pathlib, runpy, sys
place = pathlib.Path(sys.argv.pop(1))
atexit.register(lambda: place.write_text(pathlib.Path("/proc/self/status").read_text()))
runpy.run_module("longtail", run_name="__main__", alter_sys=True)
"""
"""A command that leaves behind what it was. What wait4 tells of a process is no less than its parent once had."""


@pytest.fixture(scope="module", params=BIG)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    data: str = request.param
    return data, miniature(tmp_path_factory.mktemp(data), data)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads /proc")
def test_an_epoch_of_each_list_with_all_its_classes(whole: tuple[str, Path], tmp_path: Path) -> None:
    name, root = whole
    words = [f"data.path={root}", "data.size=32", "model.backbone=torchvision/resnet18", "optim.epochs=1"]
    words += ["optim.batch=128", "run.compile=false", "run.threads=1", "run.workers=2", f"out={tmp_path / 'run'}"]
    program = [sys.executable, "-c", WITH_PEAK, str(tmp_path / "status")]
    subprocess.run([*program, "train", f"{name}/ce", *words], check=True)
    results = read_json(tmp_path / "run" / "results.json")
    assert len(results["class_counts"]) == CLASSES[name]
    status = dict(line.split(":", 1) for line in (tmp_path / "status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) / 1024
    print(f"{name}: {peak:.0f} MB")
    assert peak < PEAK_MEGABYTES


@pytest.mark.slow
@pytest.mark.timeout(1800)  # the peaks of 16,294 images at 224 pixels take some minutes
@pytest.mark.parametrize("method", ["ce", "balanced-softmax", "bcl", "concutmix", "smcl"])
def test_five_steps_of_each_recipe_with_its_own_backbone_and_size(
    whole: tuple[str, Path], tmp_path: Path, method: str
) -> None:
    name, root = whole
    config = load_config(f"{name}/{method}", {"data": {"path": str(root)}, "out": str(tmp_path / "run")})
    few = {"optim": {"batch": 4, "accumulate": 1}, "run": {"compile": False, "workers": 2}}
    if method == "smcl":
        few["method"] = {"mask_start": 0, "mask_probability": 1.0}
    values = merge(config.plain(), few)
    recorder = _EndAfter(5)
    with pytest.raises(KeyboardInterrupt):
        run_config(load_config(f"{name}/{method}", values), listener=recorder)
    assert len(recorder.losses) == 5
    assert all(torch.isfinite(torch.tensor(recorder.losses)))


class _EndAfter(Recorder):
    """Ends the run as a fault would, after so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.last, self.losses = steps, list[float]()

    def stepped(self, step: int, logs: Any, images_per_second: float) -> None:
        self.losses.append(float(logs["loss"]))
        if step == self.last:
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", BIG)
def test_a_recipe_has_a_method_for_all_its_classes(name: str) -> None:
    config = load_config(f"{name}/concutmix", ["model.backbone=resnet8", "method.hidden=8", "method.dim=4"])
    method = build_method(config, [3] * CLASSES[name], 32)
    assert method.eval().logits(torch.zeros(1, 3, 32, 32)).shape == (1, CLASSES[name])
