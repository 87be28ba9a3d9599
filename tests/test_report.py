"""The report: its pictures and pages, from run folders made here."""

from __future__ import annotations

import base64
import csv
import dataclasses
import hashlib
import importlib.util
import json
import math
import re
import shlex
import struct
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import matplotlib.colors
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.cli import main
from longtail.data.longtail import class_counts
from longtail.errors import ResourceError, RunError
from longtail.evaluation.intervals import paired_bootstrap
from longtail.evaluation.metrics import compute_metrics, confusion, group_labels, per_class_accuracy
from longtail.report import (
    caution,
    charts,
    comparing,
    comparison_rows,
    findings,
    plots,
    style,
    write_comparison,
    write_report,
)
from longtail.report.columns import classes_per_column, running_mean, smoothing_window
from longtail.report.folder import ClassRow, read_run
from longtail.report.plots import accuracy_by_count, learning_curves, loss_terms, png
from longtail.report.style import GROUP_COLORS
from longtail.report.svg import round_ticks
from longtail.rng import numpy_generator

HOSTILE = ["<script>alert(1)</script>", "\"& onload='x'", "$\\frac{1}$ \u65e5\u672c {{ 7 * 7 }}"]


def fake_run(
    path: Path,
    *,
    counts: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    epochs: int = 20,
    seed: int = 1,
    method: str = "concutmix",
    skill: float = 0.0,
    tested: int = 40,
    untested: Sequence[int] = (),
    selected_on: str = "test",
) -> Path:
    """A finished run folder as the contract describes it: accuracy falls with the training images, with noise."""
    counts = list(counts) if counts is not None else class_counts(500, 100, 100)
    classes = len(counts)
    names = list(names) if names is not None else [f"class {k}" for k in range(classes)]
    rng = numpy_generator(seed, "fake-run", method)
    targets = np.repeat([k for k in range(classes) if k not in untested], tested)
    chance = np.clip(0.05 + 0.13 * np.log(counts) + skill + rng.normal(0, 0.08, classes), 0.02, 0.97)
    wrong = rng.choice(classes, size=targets.size, p=np.array(counts) / sum(counts))
    predicted = np.where(rng.uniform(size=targets.size) < chance[targets], targets, wrong)
    confidence = rng.uniform(0.4, 1.0, size=targets.size)
    table = np.full((targets.size, classes), 0.0)
    table += ((1 - confidence) / classes)[:, None]
    table[np.arange(targets.size), predicted] = confidence
    last = {"epoch": epochs - 1, **compute_metrics(table, targets, counts).as_dict()}
    groups = group_labels(counts)

    (path / "checkpoints").mkdir(parents=True)
    command = ["longtail", "train", f"cifar100/{method}", "data.path=my images.npz", f"seed={seed}"]
    run = {
        "schema": 1, "status": "finished", "command": shlex.join(command), "seed": seed,
        "versions": {"python": "3.11.2", "torch": "2.15.0", "longtail": "0.1.0"}, "threads": 2,
        "data": {"name": "cifar100", "fingerprint": "0f" * 16, "class_names": names, "notes": []},
        "class_counts": counts, "groups": [100, 20], "normalization": {"mean": [0.5] * 3, "std": [0.2] * 3},
        "schedule": {
            "optim": {"warmup_epochs": 1, "milestones": [16, 18]}, "method": {"rectify_start": 0.5, "alpha": 2.0}
        },
        "timings": {"train_seconds": 61.5 * epochs},
    }  # fmt: skip
    (path / "run.json").write_text(json.dumps(run))
    config = {"seed": seed, "data": {"name": "cifar100"}, "method": {"name": method}, "optim": {"epochs": epochs}}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _history(last, epochs, method)))
    results: dict[str, Any] = {
        "schema": 1, "version": "0.1.0", "numbers_version": 1, "config_key": "ab12", "dataset": "cifar100",
        "method": method, "model": "resnet32", "seed": seed, "subset_seed": 0, "epochs": epochs, "imbalance": 100,
        "class_counts": counts, "test_counts": [0 if k in untested else tested for k in range(classes)],
        "image_passes": sum(counts) * epochs * (3 if method == "concutmix" else 1), "parameters": 466_000,
        "train_seconds": 61.5 * epochs, "evaluated_on": selected_on, "last": last,
        "best": {**last, "epoch": max(0, epochs - 2), "top1": last["top1"] + 0.004, "selected_on": selected_on},
    }  # fmt: skip
    (path / "results.json").write_text(json.dumps(results))
    recalls = per_class_accuracy(predicted, targets, classes)
    _write_csv(
        path / "per_class.csv",
        ("class", "train_count", "group", "test_count", "accuracy"),
        [
            (names[k], counts[k], groups[k], results["test_counts"][k], "" if np.isnan(recalls[k]) else recalls[k])
            for k in range(classes)
        ],
    )
    _write_csv(
        path / "predictions.csv",
        ("index", "id", "target", "predicted", "probability", "correct"),
        [
            (i, f"test/{i}", t, p, c, int(t == p))
            for i, (t, p, c) in enumerate(zip(targets, predicted, confidence, strict=True))
        ],
    )
    return path


def _history(last: dict[str, Any], epochs: int, method: str) -> list[dict[str, Any]]:
    rows = []
    for epoch in range(epochs):
        part = (epoch + 1) / epochs
        row: dict[str, Any] = {"step": 43 * (epoch + 1), "epoch": epoch, "lr": 0.1}
        classification = 4.6 - 2.4 * part**0.5
        row |= {"loss": classification, "classification": classification}
        if method == "concutmix":
            row |= {"contrastive": 6 - part, "gamma": 0.4, "loss": 2 * classification + 0.6 * (6 - part)}
        row |= {k: None if last[k] is None else last[k] * part**0.4 for k in ("top1", "many", "medium", "few")}
        rows.append(row | {"img_per_s": 410.0})
    return rows


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def parsed(markup: str) -> list[tuple[str, dict[str, str]]]:
    """The elements of inline SVG, by tag and attributes."""
    return [(part.tag, dict(part.attrib)) for part in ElementTree.fromstring(f"<g>{markup}</g>").iter()][1:]


def of_class(elements: list[tuple[str, dict[str, str]]], tag: str, name: str) -> list[dict[str, str]]:
    return [own for kind, own in elements if kind == tag and name in own.get("class", "").split()]


class Page(HTMLParser):
    """Parses a page strictly: every tag closed in order. Collects text, tags and attributes."""

    VOID = frozenset({"meta", "img", "source", "br", "link", "input", "hr"})

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.pieces: list[str] = []
        self.scripts: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.pieces.append(data)


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def png_size(content: bytes) -> tuple[int, int]:
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def three_classes(**values: Any) -> list[ClassRow]:
    rows = zip("abc", (500, 60, 4), ("many", "medium", "few"), (0.9, 0.5, 0.2), strict=True)
    return [ClassRow(i, name, count, group, 10, accuracy) for i, (name, count, group, accuracy) in enumerate(rows)]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 100 classes with its report."""
    path = fake_run(tmp_path_factory.mktemp("report") / "run")
    assert write_report(path) == path / "report.html"
    return path


@pytest.fixture(scope="module")
def page(run_dir: Path) -> Page:
    return Page(run_dir / "report.html")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are built but not rendered, for tests that only read the page."""
    monkeypatch.setattr("longtail.report.page.png", lambda figure: b"\x89PNG\r\n\x1a\n" + bytes(16))


# Pictures -----------------------------------------------------------------------------------------------------------


def test_report_writes_both_pictures_into_the_run_folder(run_dir: Path) -> None:
    assert png_size((run_dir / "plots/learning_curves.png").read_bytes()) == (1536, 608)
    assert png_size((run_dir / "plots/accuracy_by_count.png").read_bytes()) == (1536, 896)


def test_accuracy_by_count_has_a_bar_and_a_dot_per_class_in_its_groups_color(run_dir: Path) -> None:
    run = read_run(run_dir)
    counts, accuracies = accuracy_by_count(run.classes).axes
    ranked = run.ranked()
    bars = [patch for patch in counts.patches if patch.get_height() != 1]
    assert counts.get_yscale() == "log"
    assert [bar.get_height() for bar in bars] == [row.train_count for row in ranked]
    expected = [matplotlib.colors.to_rgba(GROUP_COLORS[row.group])[:3] for row in ranked]
    assert [tuple(bar.get_facecolor()[:3]) for bar in bars] == expected
    dots = accuracies.collections[0]
    np.testing.assert_allclose(dots.get_offsets()[:, 1], [100 * (row.accuracy or 0) for row in ranked])
    assert [tuple(color[:3]) for color in dots.get_facecolors()] == expected
    (line,) = accuracies.lines
    np.testing.assert_allclose(line.get_ydata()[50], np.mean([100 * (row.accuracy or 0) for row in ranked[45:56]]))


def test_a_class_without_test_images_has_a_bar_and_no_dot() -> None:
    rows = [*three_classes(), ClassRow(3, "d", 2, "few", 0, None)]
    counts, accuracies = accuracy_by_count(rows).axes
    assert len([patch for patch in counts.patches if patch.get_height() != 1]) == 4
    assert np.isnan(np.ma.filled(accuracies.collections[0].get_offsets()[3, 1], np.nan))


def test_many_classes_share_columns_that_do_not_cross_groups() -> None:
    sizes = class_counts(1280, 1000, 256)
    rows = [
        ClassRow(i, str(i), n, group, 50, i / 1000)
        for i, (n, group) in enumerate(zip(sizes, group_labels(sizes), strict=True))
    ]
    assert classes_per_column(1000) == 5
    counts, accuracies = accuracy_by_count(rows).axes
    bars = [patch for patch in counts.patches if patch.get_height() != 1]
    assert len(bars) == sum(-(-group_labels(sizes).count(group) // 5) for group in GROUP_COLORS)
    assert bars[0].get_height() == pytest.approx(np.mean(sizes[:5]))
    assert accuracies.collections[0].get_offsets()[0, 1] == pytest.approx(100 * 0.002)
    assert sum(bar.get_width() for bar in bars) == pytest.approx(1000)


@pytest.mark.parametrize("names", [HOSTILE, ["", "\n\t", "\x00\u202e"], ["x" * 500, "$\\unknown$", "$"]])
def test_hostile_class_names_are_drawn_as_text(names: list[str]) -> None:
    rows = [
        ClassRow(r.index, name, r.train_count, r.group, 9, 0.5) for r, name in zip(three_classes(), names, strict=True)
    ]
    figure = accuracy_by_count(rows)
    png(figure)
    labels = [text.get_text() for text in figure.axes[1].get_xticklabels()]
    assert all(0 < len(label) <= 14 for label in labels)
    drawn = parsed(charts.long_tail(rows, rows, "test")) + parsed(charts.over_rank([("ink", rows)] * 2, "test"))
    assert not {tag for tag, _ in drawn} - {"svg", "rect", "line", "text", "circle", "path"}


def test_one_class_and_equal_counts_and_zero_counts_can_be_drawn() -> None:
    for counts in ([7], [0, 0, 0], [50, 50], [10**6, 1]):
        rows = [ClassRow(i, str(i), n, "few", 5, 0.5) for i, n in enumerate(counts)]
        assert png_size(png(accuracy_by_count(rows))) == (1536, 896)


def test_learning_curves_show_terms_total_and_groups_in_their_colors(run_dir: Path) -> None:
    history = read_run(run_dir).history
    losses, accuracies = learning_curves(history, events=(10, 16)).axes
    drawn = {line.get_label(): line for line in losses.lines if not line.get_label().startswith("_")}
    assert set(drawn) == {"total", "classification", "contrastive"}
    np.testing.assert_allclose(drawn["total"].get_ydata(), [row["loss"] for row in history])
    shown = {line.get_label(): line for line in accuracies.lines if not line.get_label().startswith("_")}
    assert list(shown) == ["top-1", "many", "medium", "few"]
    assert shown["few"].get_color() == GROUP_COLORS["few"]
    np.testing.assert_allclose(shown["few"].get_ydata(), [100 * row["few"] for row in history])
    np.testing.assert_array_equal(shown["few"].get_xdata(), range(20))
    assert [line.get_xdata()[0] for line in losses.lines if line.get_linestyle() == ":"] == [10, 16]


def test_learning_curves_of_one_epoch_without_few_shot_classes_have_points_and_no_few() -> None:
    row = {"epoch": 0, "loss": 2.0, "top1": 0.3, "many": 0.4, "medium": 0.2, "few": None}
    losses, accuracies = learning_curves([row]).axes
    assert [line.get_label() for line in accuracies.lines] == ["top-1", "many", "medium"]
    assert all(line.get_marker() == "o" for line in (*losses.lines, *accuracies.lines))
    assert png_size(png(losses.figure)) == (1536, 608)


def test_loss_terms_are_the_keys_that_are_no_accuracy_and_the_total_stands_alone_if_it_is_the_only_one() -> None:
    row = {"epoch": 0, "lr": 0.1, "loss": 3.0, "classification": 1.0, "top1": 0.5, "gamma": 0.4, "evaluated_on": "test"}
    assert loss_terms([row]) == ["loss"]
    assert loss_terms([row, row | {"contrastive": 2.0}]) == ["loss", "classification", "contrastive"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=30), st.integers(1, 6).map(lambda k: 2 * k - 1))
def test_running_mean_is_that_of_a_slow_loop(values: list[float | None], window: int) -> None:
    half = window // 2
    for i, found in enumerate(running_mean(values, window)):
        near = [v for v in values[max(0, i - half) : i + half + 1] if v is not None]
        assert np.isnan(found) if not near else found == pytest.approx(sum(near) / len(near), abs=1e-9)


def test_smoothing_window_is_odd_and_a_tenth_of_the_classes() -> None:
    assert [smoothing_window(n) for n in (3, 10, 50, 100, 1000)] == [3, 3, 5, 11, 101]


@pytest.mark.parametrize("module", [plots, style])
def test_pictures_do_without_pyplot_and_its_global_state(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it now raises ImportError
    spec = importlib.util.spec_from_file_location("loaded_again", module.__file__)
    assert spec is not None
    assert spec.loader is not None
    again = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "loaded_again", again)
    spec.loader.exec_module(again)
    assert png(accuracy_by_count(three_classes()))


# The page -----------------------------------------------------------------------------------------------------------


def test_the_page_has_the_headline_numbers_of_the_last_epoch(run_dir: Path, page: Page) -> None:
    last = json.loads((run_dir / "results.json").read_text())["last"]
    for label, key in (
        ("top-1, last epoch", "top1"),
        ("many", "many"),
        ("medium", "medium"),
        ("few", "few"),
        ("worst tenth of classes", "worst_tenth"),
        ("calibration error", "ece"),
    ):
        assert f"{label} {100 * last[key]:.1f}%" in page.text


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("split", "shown"), [("held-out", "held-out images"), ("train", "training images")])
def test_images_that_are_no_test_images_are_not_called_so(tmp_path: Path, split: str, shown: str) -> None:
    run, other = (
        fake_run(tmp_path / name, method=name, counts=[300, 60, 8, 5], selected_on=split, untested=[3])
        for name in ("ce", "bcl")
    )
    for path in (
        write_report(run, tmp_path / "one.html", baseline=other),
        write_comparison([run, other], tmp_path / "several.html"),
    ):
        text = Page(path).text
        assert not re.search("test images?", text, re.IGNORECASE), path
        assert shown in text
    assert "test image" not in (tmp_path / "one.html").read_text()


def test_the_page_says_what_the_groups_are_and_which_rest_on_few_images(tmp_path: Path) -> None:
    text = Page(write_report(fake_run(tmp_path / "a", counts=[300, 60, 8, 5], tested=20))).text
    assert "Many: classes of more than 100 training images; medium: 20 to 100; few: fewer than 20." in text
    assert "It rests on few test images: many on 20, medium on 20, few on 40." in text
    text = Page(write_report(fake_run(tmp_path / "b", counts=[300, 60, 8, 5], tested=50))).text
    assert "rests on few" not in text


def test_the_page_says_what_top_1_is_worth_where_classes_differ_in_images(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "a", counts=[300, 60, 8, 5], tested=20)
    assert "Classes differ in" not in Page(write_report(run)).text
    found = read_run(run)
    rows = [dataclasses.replace(row, test_count=n) for row, n in zip(found.classes, [10, 7, 3, 0], strict=True)]
    said = caution.balance_sentence(dataclasses.replace(found, classes=rows))
    balanced = findings.percent(found.last["balanced_accuracy"])
    assert said.startswith("Classes differ in test images: to call every image class 0 would be right on 50.0%.")
    assert said.endswith(f"is {balanced}.")


def test_the_page_names_the_folder_of_ones_own_images(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "a", counts=[300, 60, 8, 5])
    dataset = read_run(run).results["dataset"]
    assert f"concutmix on {dataset}" in Page(write_report(run)).text
    description = json.loads((run / "run.json").read_text())
    description["data"] = {**description.get("data", {}), "name": "My <b>Photos"}
    (run / "run.json").write_text(json.dumps(description))
    assert f"concutmix on My <b>Photos ({dataset})" in Page(write_report(run)).text


def test_an_interval_that_rests_on_classes_of_one_image_is_said_to_be_too_narrow(tmp_path: Path) -> None:
    run, other = (fake_run(tmp_path / name, counts=[300, 60, 8, 5], tested=1) for name in "ab")
    assert "4 classes have a single image" in Page(write_report(run, baseline=other)).text
    run, other = (fake_run(tmp_path / name, counts=[300, 60, 8, 5], tested=2) for name in "cd")
    assert "a single image" not in Page(write_report(run, baseline=other)).text


def test_the_best_epoch_is_labelled_with_what_selected_it(page: Page, tmp_path: Path) -> None:
    assert "(best epoch, selected on test)" in page.text
    other = write_report(fake_run(tmp_path / "run", counts=[300, 30, 3], selected_on="val"))
    assert "(best epoch, selected on val)" in Page(other).text
    assert "evaluated on val" in Page(other).text


def test_the_page_loads_nothing_and_runs_its_own_script_alone(run_dir: Path, page: Page) -> None:
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "srcset", "action", "data"):
            assert value.startswith("data:image/png;base64,")
    assert not {"link", "iframe", "object", "a"} & set(page.tags)
    for outside in ("url(", "@import", "http://", "https://"):
        assert outside not in page.source
    data, script = page.scripts
    assert len(json.loads(data)["classes"]) == 100
    assert script == (Path(plots.__file__).parent / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert ("meta", "content", allowed) in page.attributes
    assert len(script) < 6_000
    assert (run_dir / "report.html").stat().st_size < 400_000


def test_every_picture_has_a_text_alternative(page: Page) -> None:
    charts = [1 for tag, name, value in page.attributes if tag == "svg" and name == "aria-label" and value]
    assert len(charts) == page.tags.count("svg") == 5
    assert [value for tag, name, value in page.attributes if tag == "svg" and name == "role"] == ["img"] * 5


def test_the_page_says_how_to_repeat_the_run_and_on_what_it_ran(page: Page) -> None:
    assert "longtail train cifar100/concutmix 'data.path=my images.npz' seed=1" in page.text
    assert "method: name: concutmix" in page.text
    assert "versions.torch 2.15.0" in page.text


def test_the_table_of_classes_has_a_line_per_class_from_the_most_images_to_the_fewest(page: Page) -> None:
    places = [page.source.index(f'<bdi>class {k}</bdi></span></td><td class="number" data-value') for k in range(100)]
    assert places == sorted(places)


@pytest.mark.usefixtures("undrawn")
def test_with_out_only_that_file_is_written(tmp_path: Path) -> None:
    path = fake_run(tmp_path / "run", counts=[300, 30, 3])
    before = sorted(path.rglob("*"))
    out = write_report(path, tmp_path / "new" / "page.html")
    assert out == tmp_path / "new" / "page.html"
    assert sorted(path.rglob("*")) == before
    assert Page(out).tags.count("svg") == 5


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    path = fake_run(tmp_path / "run", counts=[300, 30, 3], names=HOSTILE, epochs=1, method="</style><script>x")
    (path / "config.yaml").write_text("a: '</pre><img src=x onerror=y>'\n")
    edit_json(path / "run.json", notes=["<b>bold</b>"], command=["longtail", "train", "<i>;rm"])
    found = Page(write_report(path))
    assert found.tags.count("script") == 2
    assert not {"b", "i"} & set(found.tags)
    assert all(value.startswith("data:") for _, name, value in found.attributes if name == "src")
    assert {entry["name"] for entry in json.loads(found.scripts[0])["classes"]} == set(HOSTILE)
    assert not set("<>&") & set(found.scripts[0])
    for name in (*HOSTILE, "</style><script>x on cifar100", "</pre><img src=x onerror=y>", "<b>bold</b>", "'<i>;rm'"):
        assert " ".join(name.split()) in found.text
    assert "{{ 7 * 7 }}" in found.text
    compared = Page(write_comparison([path], tmp_path / "compared.html"))
    assert compared.tags.count("script") == 2


@pytest.mark.usefixtures("undrawn")
def test_an_empty_group_is_a_dash_and_thirds_are_added(tmp_path: Path) -> None:
    path = fake_run(tmp_path / "run", counts=[5000, 2000, 900, 300, 150, 120], untested=[5])
    text = Page(write_report(path)).text
    assert "few -" in text
    assert "nan" not in text.lower().split("environment")[0]
    thirds = findings.thirds_of(read_run(path))
    assert f"head third {findings.percent(thirds['head'])}" in text
    assert "All tested classes are of one group." not in text


@pytest.mark.usefixtures("undrawn")
def test_a_run_without_predictions_has_a_page_without_what_needs_them(tmp_path: Path) -> None:
    path = fake_run(tmp_path / "run", counts=[300, 30, 3])
    (path / "predictions.csv").unlink()
    results = json.loads((path / "results.json").read_text())
    results["last"]["backgrounds"] = {"seen": 0.8, "unseen": None}
    (path / "results.json").write_text(json.dumps(results))
    text = Page(write_report(path)).text
    assert "Most confused" not in text
    assert "Where the images go" not in text
    assert "On backgrounds that the class had in training 80.0%, on those it never had -." in text


# Against a baseline -------------------------------------------------------------------------------------------------


def test_headline_numbers_stand_beside_their_difference_to_the_baseline(run_dir: Path, tmp_path: Path) -> None:
    other = fake_run(tmp_path / "ce", method="cross-entropy", skill=-0.1)
    run, baseline = read_run(run_dir), read_run(other)
    found = comparing.differences(run, baseline)
    for name in ("top1", "many", "medium", "few"):
        difference, low, high = found[name]
        assert difference == pytest.approx(run.last[name] - baseline.last[name])
        assert low < difference < high
    page = Page(write_report(run_dir, tmp_path / "page.html", other))
    for name, label in (("top1", "top-1, last epoch"), ("few", "few")):
        interval = ", ".join(findings.points(end) for end in found[name][1:])
        said = f"{label} {findings.percent(run.last[name])} {findings.points(found[name][0])} [{interval}]"
        assert said in page.text
    assert "against cross-entropy" in page.text
    share = findings.percent(findings.image_flow(baseline)[-1].shares["many"], 0)
    assert f"a many-shot class (baseline: {share})." in page.text
    drawn = [value for tag, name, value in page.attributes if tag == "path" and name == "class"]
    assert drawn.count("line base") == 2


def test_the_difference_of_a_group_is_that_of_the_means_over_its_classes(tmp_path: Path) -> None:
    paths = [fake_run(tmp_path / name, counts=[300, 200, 30, 3], method=name) for name in ("a", "b")]
    for path in paths:  # class 0 keeps 10 of its 40 test images
        lines = (path / "predictions.csv").read_text().splitlines(keepends=True)
        (path / "predictions.csv").write_text("".join(lines[:11] + lines[41:]))
    runs = [read_run(path) for path in paths]
    means = []
    for run in runs:
        assert run.predictions is not None
        right, targets = run.predictions.correct, run.predictions.targets
        means.append(sum(sum(right[targets == k]) / sum(targets == k) for k in (0, 1)) / 2)
    assert comparing.differences(runs[0], runs[1])["many"][0] == pytest.approx(means[0] - means[1])


def test_the_interval_of_a_group_leaves_the_images_of_each_class_their_number(tmp_path: Path) -> None:
    """Where every image of a class goes the same way, other images of it would too: there is nothing to doubt."""
    right = read_run(fake_run(tmp_path / "run", counts=[300, 200, 3], tested=20))
    assert right.predictions is not None
    targets, classes = right.predictions.targets, (0, 1)
    one, other = (
        dataclasses.replace(
            right, predictions=dataclasses.replace(right.predictions, predicted=np.where(targets == k, k, 2))
        )
        for k in classes
    )
    assert comparing.differences(one, other)["many"] == (0.0, 0.0, 0.0)


@pytest.mark.usefixtures("undrawn")
def test_a_baseline_on_other_images_gives_a_sentence_instead_of_differences(tmp_path: Path) -> None:
    path = fake_run(tmp_path / "run", counts=[300, 30, 3])
    other = fake_run(tmp_path / "other", counts=[300, 30, 3], tested=20, names=["x", "y", "z"])
    page = Page(write_report(path, baseline=other))
    assert "The baseline was not evaluated on the same images" in page.text
    assert "line base" not in page.source
    edit_json(other / "run.json", status="running")
    with pytest.raises(RunError, match="not finished"):
        write_report(path, baseline=other)


@pytest.mark.usefixtures("undrawn")
def test_the_command_takes_a_baseline_for_one_run_and_for_several(tmp_path: Path) -> None:
    runs = [fake_run(tmp_path / name, counts=[300, 30, 3], method=name) for name in ("ours", "theirs", "third")]
    out = tmp_path / "page.html"
    for words, said in (
        ([runs[0]], "against theirs"),
        ([runs[0], runs[2]], "3 runs compared"),
        ([runs[0], runs[1]], "2 runs compared"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["report", *map(str, words), "--baseline", str(runs[1]), "--out", str(out)])
        assert ended.value.code == 0
        page = Page(out)
        assert said in page.text
        if "compared" in said:
            assert page.text.index("theirs") < page.text.index("ours")


# Charts -------------------------------------------------------------------------------------------------------------


def test_the_long_tail_has_a_bar_and_a_dot_per_class_at_its_accuracy(run_dir: Path) -> None:
    ranked = read_run(run_dir).ranked()
    wide, narrow = str(charts.long_tail(ranked, None, "test")).split("</svg>")[:2]
    for drawing in (wide, narrow):
        drawn = parsed(drawing + "</svg>")
        bars = [own for tag, own in drawn if tag == "rect" and own["class"].startswith("bar")]
        dots = [own for tag, own in drawn if tag == "circle"]
        assert [own["class"] for own in bars] == [f"bar {row.group}" for row in ranked]
        assert [own["class"] for own in dots] == [f"dot {row.group}" for row in ranked]
        heights = [float(own["height"]) for own in bars]
        logarithms = [math.log10(row.train_count) / math.log10(500) for row in ranked]
        np.testing.assert_allclose(heights, [1 + 112 * part for part in logarithms], atol=0.06)
        scale = np.polyfit([row.accuracy or 0 for row in ranked], [float(own["cy"]) for own in dots], 1)
        assert scale == pytest.approx([-180, 356], abs=0.5)


def test_a_thousand_classes_share_two_hundred_columns_and_keep_their_row(tmp_path: Path) -> None:
    path = fake_run(tmp_path / "run", counts=class_counts(1280, 1000, 256), tested=3, epochs=2)
    page = Page(write_report(path, tmp_path / "page.html"))
    bars = [value for tag, name, value in page.attributes if tag == "rect" and name == "class" and "bar" in value]
    assert 200 <= len(bars) / 2 <= 203
    assert len(json.loads(page.scripts[0])["classes"]) == 1000
    assert page.source.count('<tr><td class="name') == 1000 + 8
    assert len(page.source) < 1_000_000


def test_reliability_bins_and_error_are_those_of_a_slow_loop(run_dir: Path) -> None:
    run = read_run(run_dir)
    assert run.predictions is not None
    run.predictions.confidence[1:60:2] = 0.4  # on the edge of a bin
    found = {entry.name: entry for entry in findings.reliability(run)}
    assert list(found) == ["all", "many", "medium", "few"]
    for name, entry in found.items():
        bins: dict[int, list[tuple[float, bool]]] = {}
        for sure, right, target in zip(
            run.predictions.confidence, run.predictions.correct, run.predictions.targets, strict=True
        ):
            if name in ("all", run.classes[target].group):
                bins.setdefault(min(k for k in range(15) if sure <= (k + 1) / 15), []).append((sure, right))
        number = sum(map(len, bins.values()))
        gaps = [abs(sum(right - sure for sure, right in own)) for own in bins.values()]
        assert entry.ece == pytest.approx(sum(gaps) / number)
        means = [
            (sum(s for s, _ in own) / len(own), sum(r for _, r in own) / len(own), len(own) / number)
            for _, own in sorted(bins.items())
            if len(own) >= 5
        ]
        np.testing.assert_allclose(entry.bins, means)
    assert found["all"].ece == pytest.approx(run.last["ece"], abs=0.01)


def test_the_hardest_images_are_the_wrong_ones_that_the_network_was_surest_of(run_dir: Path) -> None:
    run = read_run(run_dir)
    assert run.predictions is not None
    chosen = findings.hardest(run, 12)
    sure, right = run.predictions.confidence, run.predictions.correct
    assert not right[chosen].any()
    others = [sure[i] for i in range(len(sure)) if not right[i] and i not in chosen]
    assert sorted(sure[chosen], reverse=True) == list(sure[chosen])
    assert min(sure[chosen]) >= max(others)


@pytest.mark.parametrize(("low", "high"), [(0, 59), (0, 0.3), (-3, 7), (0, 2300), (0, 1), (19, 19.5), (0, 1e-3)])
def test_ticks_are_a_few_round_numbers_inside(low: float, high: float) -> None:
    ticks = round_ticks(low, high)
    assert 1 <= len(ticks) <= 9
    assert all(low <= tick <= high * (1 + 1e-9) for tick in ticks)


# What cannot be reported --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["running", "stopped", "failed", None])
def test_an_unfinished_run_is_refused_with_exit_code_four(tmp_path: Path, status: str | None) -> None:
    path = fake_run(tmp_path / "run", counts=[300, 3])
    edit_json(path / "run.json", status=status)
    for write in (write_report, lambda p: write_comparison([p], tmp_path / "x.html"), lambda p: comparison_rows([p])):
        with pytest.raises(RunError, match=f"not finished .status: {status}") as caught:
            write(path)
        assert caught.value.exit_code == 4
    assert not (path / "report.html").exists()


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "results.json", "per_class.csv"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    path = fake_run(tmp_path / "run", counts=[300, 3])
    (path / name).unlink()
    with pytest.raises(RunError, match=f"lacks {name}"):
        write_report(path)


def test_a_folder_that_is_absent_or_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run folder"):
        write_report(tmp_path / "absent")
    with pytest.raises(RunError, match=r"has no run\.json"):
        write_report(tmp_path)
    with pytest.raises(RunError, match="No run"):
        comparison_rows([])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", "{"),
        ("run.json", "[1]"),
        ("results.json", '{"method": "x"}'),
        ("results.json", '{"method": "x", "last": {"top1": null}}'),
        ("metrics.jsonl", ""),
        ("metrics.jsonl", '{"epoch": 0}\n{"epo'),
        ("metrics.jsonl", '{"step": 3}\n'),
        ("metrics.jsonl", "[0]\n"),
        ("per_class.csv", "class,train_count\n"),
        ("per_class.csv", "class,train_count\na,3\n"),
        ("per_class.csv", "class,train_count,group,test_count,accuracy\na,x,few,3,0.5\n"),
        ("per_class.csv", "class,train_count,group,test_count,accuracy\na,3,rare,3,0.5\n"),
        ("per_class.csv", "class,train_count,group,test_count,accuracy\na,3\n"),
        ("per_class.csv", "class,train_count,group,test_count,accuracy\na,3,few,3,nan\n"),
        ("per_class.csv", "class,train_count,group,test_count,accuracy\na,3,few,3,50\n"),
        ("predictions.csv", "index,id,target,predicted\n0,a,0,9\n"),
        ("predictions.csv", "index,id,target,predicted\n0,a,-1,0\n"),
        ("predictions.csv", "index,id,target,predicted\n0,a,cat,0\n"),
        ("predictions.csv", "index,id\n0,a\n"),
        ("predictions.csv", "index,id,target,predicted\n0,a\n"),
        ("per_class.csv", b"\xff\xfe\x00"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: str | bytes) -> None:
    path = fake_run(tmp_path / "run", counts=[300, 3])
    (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RunError, match=name.replace(".", r"\.")):
        comparison_rows([path])


def test_a_place_that_cannot_be_written_is_exit_code_six(tmp_path: Path) -> None:
    path = fake_run(tmp_path / "run", counts=[300, 3])
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError):
        write_comparison([path], tmp_path / "file" / "page.html")


# Findings -----------------------------------------------------------------------------------------------------------


def test_confused_pairs_are_the_off_diagonal_of_the_confusion_matrix(run_dir: Path) -> None:
    run = read_run(run_dir)
    assert run.predictions is not None
    matrix = confusion(run.predictions.targets, run.predictions.predicted, 100)
    found = findings.confusions(run)
    assert {(c.target.index, c.predicted.index): c.images for c in found} == {
        (t, p): int(matrix[t, p]) for t in range(100) for p in range(100) if t != p and matrix[t, p]
    }
    assert [c.share for c in found] == sorted((c.share for c in found), reverse=True)
    assert all(c.tested == 40 for c in found)


def test_the_flow_of_images_is_that_of_a_slow_loop(run_dir: Path) -> None:
    run = read_run(run_dir)
    assert run.predictions is not None
    group = [row.group for row in run.classes]
    flows = findings.image_flow(run)
    assert [flow.group for flow in flows] == ["many", "medium", "few"]
    for flow in flows:
        pairs = zip(run.predictions.targets, run.predictions.predicted, strict=True)
        there = [group[p] for t, p in pairs if group[t] == flow.group]
        for name, share in flow.shares.items():
            assert share == pytest.approx(there.count(name) / len(there))
    share = 100 * flows[2].shares["many"]
    assert findings.flow_sentence(flows) == f"{share:.0f}% of few-shot test images are called a many-shot class."


def test_schedule_events_are_epochs_whether_given_as_epochs_or_as_fractions(run_dir: Path) -> None:
    assert findings.schedule_events(read_run(run_dir)) == {
        "warmup epochs": [1],
        "milestones": [16, 18],
        "rectify start": [10],
    }


@pytest.mark.parametrize(
    ("own", "shown"),
    [
        ({"criterion": "ce", "drw_start": 0.5}, None),
        ({"criterion": "ldam-drw", "drw_start": 0.5}, {"drw start": [10]}),
        ({"mixing": "none", "mix_start": 2, "mix_stop": 0.5}, None),
        ({"mixing": "cutmix", "mix_start": 2, "mix_stop": 0.5}, {"mix start": [2], "mix stop": [10]}),
        ({"contrast": "none", "contrast_start": 1, "contrast_stop": 3}, None),
        ({"contrast_start": 1, "contrast_stop": 3}, {"contrast start": [1], "contrast stop": [3]}),
        ({"mu": 0.3, "contrastive_from": 4, "mask_probability": 0, "mask_start": 3}, {"contrastive from": [4]}),
        ({"mu": 0, "contrastive_from": 4, "mask_probability": 0.2, "mask_start": 3}, {"mask start": [3]}),
        ({"omega": 0, "rectify_start": 3}, None),
        ({"omega": 0.1, "rectify_start": 0.8}, {"rectify start": [16]}),
    ],
)
def test_schedule_events_are_those_at_which_something_happened(
    tmp_path: Path, own: dict[str, Any], shown: dict[str, list[int]] | None
) -> None:
    path = fake_run(tmp_path / "run", counts=[300, 30, 3])
    edit_json(path / "run.json", schedule={"method": own, "views": {"progressive_stop": 7}})
    assert findings.schedule_events(read_run(path)) == (shown or {}) | {"progressive stop": [7]}


def test_fractions_are_of_the_run_that_was_planned_and_events_of_the_one_that_was(tmp_path: Path) -> None:
    path = fake_run(tmp_path / "run", counts=[300, 30, 3], epochs=10)
    edit_json(path / "run.json", schedule={"method": {"mask_start": 0.8, "rectify_start": 0.2}})
    (path / "config.yaml").write_text("optim: {epochs: 40}\n")
    assert findings.schedule_events(read_run(path)) == {"rectify start": [8]}


def test_sentences_say_the_numbers(run_dir: Path) -> None:
    run = read_run(run_dir)
    many, few = (findings.percent(run.last[name]) for name in ("many", "few"))
    assert findings.tail_sentence(run) == f"From many to few the mean accuracy falls from {many} to {few}."
    move = findings.points(run.history[-1]["top1"] - run.history[16]["top1"])
    assert f"From epoch 16 to the last, 19, accuracy moved by top-1 {move}," in findings.curves_sentence(run)
    assert findings.points(-0.0123) == "\N{MINUS SIGN}1.2"


# Several runs -------------------------------------------------------------------------------------------------------


def test_comparison_rows_are_the_results_of_the_last_epoch_in_the_order_given(run_dir: Path, tmp_path: Path) -> None:
    other = fake_run(tmp_path / "ce", method="cross-entropy", skill=-0.1)
    rows = comparison_rows([other, run_dir])
    assert [row.method for row in rows] == ["cross-entropy", "concutmix"]
    for row, path in zip(rows, (other, run_dir), strict=True):
        results = json.loads((path / "results.json").read_text())
        for name in ("top1", "many", "medium", "few", "worst_tenth", "ece"):
            assert getattr(row, name) == results["last"][name]
        assert (row.image_passes, row.seconds) == (results["image_passes"], results["train_seconds"])
        assert (row.epochs, row.seed, row.head) == (20, 1, None)
    ours, theirs = (read_run(path).predictions for path in (run_dir, other))
    assert ours is not None
    assert theirs is not None
    assert rows[0].difference is None
    assert rows[1].difference == paired_bootstrap(
        ours.predicted == ours.targets, theirs.predicted == theirs.targets, seed=0
    )
    assert rows[1].difference[0] == pytest.approx(rows[1].top1 - rows[0].top1)


@pytest.mark.usefixtures("undrawn")
def test_runs_on_other_test_images_have_no_difference_and_a_note(tmp_path: Path) -> None:
    first = fake_run(tmp_path / "a", counts=[300, 30, 3])
    second = fake_run(tmp_path / "b", counts=[300, 30, 3], tested=20, method="smcl", epochs=5)
    edit_json(second / "run.json", data={"fingerprint": "another"})
    renamed = fake_run(tmp_path / "c", counts=[300, 30, 3])
    table = renamed / "predictions.csv"
    table.write_text(table.read_text().replace("test/", "other/"))
    assert [row.difference for row in comparison_rows([first, second, renamed])] == [None, None, None]
    text = Page(write_comparison([first, second], tmp_path / "page.html")).text
    assert "trained on different images" in text
    assert "of different length" in text
    assert "Image passes differ" in text
    assert "against the first" not in text
    assert "Seconds do not compare" not in text
    assert "whose numbers do not compare" not in text
    edit_json(second / "run.json", threads=1)
    edit_json(second / "results.json", numbers_version=2)
    text = Page(write_comparison([first, second], tmp_path / "page.html")).text
    assert "Seconds do not compare: the runs differ in threads 1 / 2." in text
    assert "of versions of longtail whose numbers do not compare" in text


def test_thirds_are_added_to_all_rows_where_one_run_has_an_empty_group(run_dir: Path, tmp_path: Path) -> None:
    balanced = fake_run(tmp_path / "balanced", counts=[500, 400, 300], names=["a", "b", "c"])
    rows = comparison_rows([balanced, run_dir])
    assert (rows[0].medium, rows[0].few) == (None, None)
    assert rows[0].tail == read_run(balanced).classes[2].accuracy
    assert all(row.head is not None for row in rows)


def test_runs_have_labels_that_tell_them_apart(tmp_path: Path) -> None:
    one, two = (fake_run(tmp_path / f"s{seed}", counts=[300, 3], seed=seed) for seed in (1, 2))
    again = fake_run(tmp_path / "again", counts=[300, 3], seed=2)
    assert [row.label for row in comparison_rows([one])] == ["concutmix"]
    assert [row.label for row in comparison_rows([one, two])] == ["concutmix, seed 1", "concutmix, seed 2"]
    assert [row.label for row in comparison_rows([two, again])] == ["concutmix (s2)", "concutmix (again)"]
    same = fake_run(tmp_path / "other" / "s2", counts=[300, 3], seed=2)
    assert [row.label for row in comparison_rows([two, same])] == [f"concutmix ({two})", f"concutmix ({same})"]


def test_a_class_is_called_as_it_is_and_not_as_a_spreadsheet_must_see_it(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", counts=[300, 30, 3], names=["'=a|x", "'-1", "c"])
    description = json.loads((run / "run.json").read_text())
    edit_json(run / "run.json", data={**description["data"], "class_names": ["=a|x", "-1", "c"]})
    assert [row.name for row in read_run(run).classes] == ["=a|x", "-1", "c"]
    text = Page(write_report(run, tmp_path / "page.html")).text
    assert "'=a|x" not in text


def test_nothing_is_said_of_the_rarest_classes_where_a_run_has_no_image_of_them(tmp_path: Path) -> None:
    one = fake_run(tmp_path / "one", counts=[300, 30, 3], untested=[2])
    other = fake_run(tmp_path / "other", counts=[300, 30, 3], untested=[2], method="smcl")
    assert "On the third of the classes" not in Page(write_comparison([one, other], tmp_path / "page.html")).text


def test_an_overlap_of_classes_makes_other_images_under_the_same_numbers(tmp_path: Path) -> None:
    one, other = (fake_run(tmp_path / name, counts=[300, 30, 3]) for name in ("one", "other"))
    assert comparison_rows([one, other])[1].difference is not None
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["data"]["overlap"] = 0.4
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    assert comparison_rows([one, other])[1].difference is None


def test_a_comparison_made_inside_a_run_leaves_the_runs_own_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (fake_run(tmp_path / name, counts=[300, 30, 3]) for name in ("one", "other"))
    monkeypatch.chdir(one)
    with pytest.raises(SystemExit) as stopped:
        main(["report", ".", "../other"])
    assert stopped.value.code == 0
    assert (tmp_path / "report.html").is_file()
    assert not (one / "report.html").exists()
    assert not (other / "report.html").exists()


def test_a_run_that_was_imported_without_images_is_not_said_to_be_unfinished(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", counts=[300, 30, 3])
    edit_json(run / "run.json", status="imported")
    with pytest.raises(RunError, match="imported without images") as caught:
        read_run(run)
    assert "longtail eval" in str(caught.value.hint)


def test_runs_that_are_alike_on_the_tail_are_not_ranked(run_dir: Path, tmp_path: Path) -> None:
    text = Page(write_comparison([run_dir, run_dir], tmp_path / "page.html")).text
    assert "all runs have the same mean accuracy" in text
    assert "the lowest" not in text


def test_comparison_page_has_a_line_per_run_and_says_who_is_best_on_the_tail(run_dir: Path, tmp_path: Path) -> None:
    worse = fake_run(tmp_path / "ce", method="cross-entropy", skill=-0.2)
    found = Page(write_comparison([worse, run_dir], tmp_path / "deep" / "page.html"))
    tails = [findings.percent(findings.thirds_of(read_run(path))["tail"]) for path in (run_dir, worse)]
    assert f"concutmix has the highest mean accuracy, {tails[0]}, cross-entropy the lowest, {tails[1]}." in found.text
    assert found.tags.count("svg") == 4
    lines = parsed(charts.over_rank([("run-0", read_run(worse).classes), ("run-1", read_run(run_dir).classes)], "test"))
    for color in ("run-0", "run-1"):
        assert len(of_class(lines, "path", color)) == 2, "one wide, one narrow"
    assert len({*style.LINE_COLORS, *GROUP_COLORS.values()}) == len(style.LINE_COLORS) + 3
    rows = json.loads(found.scripts[0])["classes"]
    ours, theirs = (findings.percent(read_run(path).classes[0].accuracy) for path in (run_dir, worse))
    assert rows[0]["said"] == f"500 training images · cross-entropy {theirs} · concutmix {ours}"


def test_what_all_runs_have_in_common_stands_once_over_the_table(tmp_path: Path) -> None:
    counts = [300, 60, 8]
    runs = [fake_run(tmp_path / name, method=name, counts=counts, epochs=7, seed=3) for name in ("ce", "bcl")]
    text = Page(write_comparison(runs, tmp_path / "page.html")).text
    assert "cifar100 · last of 7 epochs · seed 3 · evaluated on test" in text
    heads = text[text.index("method") :].partition("image passes")[0]
    assert "epochs" not in heads
    assert "seed" not in heads
    runs.append(fake_run(tmp_path / "other", method="ce", counts=counts, epochs=9, seed=4))
    text = Page(write_comparison(runs, tmp_path / "page.html")).text
    assert "last epoch of each run · evaluated on test" in text
    assert "method epochs seed top-1" in text


def test_classes_of_other_names_or_order_are_not_set_side_by_side(run_dir: Path, tmp_path: Path) -> None:
    other = fake_run(tmp_path / "other", counts=[300, 30, 3])
    found = Page(write_comparison([other, run_dir], tmp_path / "page.html"))
    assert json.loads(found.scripts[0])["classes"] == []
    assert "input" not in found.tags
