"""The tables of a study: what is averaged, what is marked, and that no text is taken for markup."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from longtail.config import NUMBERS_VERSION
from longtail.files import write_json
from longtail.recipes import load_config
from longtail.study.cells import Cell, Finished
from longtail.study.page import page
from longtail.study.table import StudyResults, study_results
from longtail.study.writing import (
    body,
    comma_separated,
    header,
    latex,
    latex_text,
    markdown,
    markdown_text,
    remarks,
    write_tables,
)

TARGETS = [0, 0, 0, 0, 1, 1, 2, 2]
NASTY = r"""a|b <i>&"' _x_ $5% #{1} ~^\ [c](d) `e`"""


def results(top1: float = 0.5, **more: Any) -> dict[str, Any]:
    numbers = {"top1": top1, "many": 0.9, "medium": 0.5, "few": 0.25}
    return {
        "numbers_version": NUMBERS_VERSION,
        "evaluated_on": "test",
        "last": numbers | more.pop("last", {}),
        "best": {"top1": top1 + 0.01, "selected_on": "val"},
        "image_passes": 1000,
        "train_seconds": 2.0,
        "class_counts": [150, 30, 5],
        **more,
    }


def cell(
    folder: Path,
    label: str,
    seed: int,
    found: dict[str, Any] | None,
    correct: str | None = None,
    targets: Any = TARGETS,
    overlap: float = 0.0,
) -> Cell:
    """A cell with these results; ``correct`` has a 1 for each test image that was right."""
    config = load_config("scenes/ce", {"seed": seed, "data": {"overlap": overlap}})
    place = folder / f"{abs(hash(label))}-s{seed}"
    if correct is not None:
        place.mkdir(parents=True)
        lines = [f"{i},{i},{t},0,0.5,{c}" for i, (t, c) in enumerate(zip(targets, correct, strict=True))]
        (place / "predictions.csv").write_text("\n".join(["index,id,target,predicted,probability,correct", *lines]))
    done = None if found is None else Finished(found, place)
    return Cell([label], seed, config, place, [], f"{label}{seed}", finished=done)


def table(cells: list[Cell], baseline: str | None = None, failed: tuple[str, ...] = ()) -> StudyResults:
    return study_results("x", list(dict.fromkeys(one.labels[0] for one in cells)), baseline, cells, failed)


def line_of(found: StudyResults, row: int = 0) -> dict[str, str]:
    return dict(zip(header(found), body(found)[row], strict=True))


def test_a_row_is_mean_and_sample_deviation_over_its_seeds(tmp_path: Path) -> None:
    line = line_of(table([cell(tmp_path, "a", seed, results(top1)) for seed, top1 in enumerate((0.5, 0.6, 0.7))]))
    assert line["top-1"] == "60.00 ± 10.00"
    assert line["best top-1 (selected on)"] == "61.00 ± 10.00 (val)"
    assert line["seeds"] == "3"
    assert line["image passes"] == "1,000"


def test_passes_at_full_size_are_shown_where_they_differ_from_images(tmp_path: Path) -> None:
    whole, small = results(full_size_passes=1000), results(full_size_passes=400)
    found = table([cell(tmp_path, "a", 0, whole), cell(tmp_path, "b", 0, small), cell(tmp_path, "c", 0, None)])
    assert [line_of(found, row)["at full size"] for row in range(3)] == ["1,000", "400", "-"]
    assert any("a quarter of a pass" in remark for remark in remarks(found))
    assert "full_size_passes" in comma_separated(found).splitlines()[0]
    older = table([cell(tmp_path, "a", 1, results()), cell(tmp_path, "b", 1, whole)])
    assert "at full size" not in header(older)
    assert not any("quarter" in remark for remark in remarks(older))


def test_runs_of_other_machines_are_said_not_to_compare_in_seconds(tmp_path: Path) -> None:
    cells = [cell(tmp_path, label, 0, results(), "1" * 8) for label in "abc"]
    for one, about in zip(cells, ({"threads": 1, "versions": {"torch": "2"}}, {"threads": 1}, {}), strict=True):
        write_json(one.folder / "environment.json", about)
    assert not any("do not compare" in remark for remark in remarks(table(cells)))
    write_json(cells[1].folder / "run.json", {"threads": 2, "versions": {"torch": "2"}, "processor": "x, 2 cores"})
    write_json(cells[2].folder / "run.json", {"processor": "y, 2 cores"})
    said = [remark for remark in remarks(table(cells)) if "do not compare" in remark]
    assert len(said) == 1
    assert "the runs differ in processor x, 2 cores / y, 2 cores; threads 1 / 2." in said[0]


@pytest.mark.parametrize(("n", "shown"), [(1, "1 (n=1)"), (2, "2 (n=2)"), (3, "3")])
def test_fewer_than_three_seeds_are_marked(tmp_path: Path, n: int, shown: str) -> None:
    assert line_of(table([cell(tmp_path, "a", seed, results()) for seed in range(n)]))["seeds"] == shown


def test_one_seed_has_no_deviation(tmp_path: Path) -> None:
    assert line_of(table([cell(tmp_path, "a", 0, results())]))["top-1"] == "50.00"


def test_a_cell_that_is_not_finished_is_missing_and_not_zero(tmp_path: Path) -> None:
    found = table([cell(tmp_path, "a", 0, results(0.4)), cell(tmp_path, "a", 1, None), cell(tmp_path, "b", 0, None)])
    assert line_of(found)["top-1"] == "40.00"
    assert line_of(found)["seeds"] == "1 of 2 (n=1)"
    assert line_of(found, 1)["top-1"] == "-"
    assert line_of(found, 1)["best top-1 (selected on)"] == "-"


def test_results_of_another_version_of_the_numbers_are_not_averaged(tmp_path: Path) -> None:
    old = results(0.1, numbers_version=NUMBERS_VERSION - 1)
    found = table([cell(tmp_path, "a", 0, results(0.4)), cell(tmp_path, "a", 1, old)])
    assert line_of(found)["top-1"] == "40.00"
    assert found.rows[0].seeds == (0,)


def test_an_empty_group_is_a_dash_and_brings_the_thirds(tmp_path: Path) -> None:
    without = results(last={"few": None, "thirds": {"head": 0.9, "middle": 0.4, "tail": 0.1}})
    found = table([cell(tmp_path, "a", 0, without), cell(tmp_path, "b", 0, results())])
    assert line_of(found)["few"] == "-"
    assert line_of(found)["tail third"] == "10.00"
    assert line_of(found, 1)["tail third"] == "-"
    assert "tail third" not in header(table([cell(tmp_path, "b", 0, results())]))


def test_backgrounds_stand_in_the_table_where_they_are_known(tmp_path: Path) -> None:
    known = results(last={"backgrounds": {"seen": 0.75, "unseen": 0.5}})
    line = line_of(table([cell(tmp_path, "a", 0, known)]))
    assert (line["seen backgrounds"], line["unseen backgrounds"]) == ("75.00", "50.00")
    assert "seen backgrounds" not in header(table([cell(tmp_path, "a", 0, results())]))


# Differences ----------------------------------------------------------------------------------------------------------


def test_a_difference_is_paired_over_seeds_and_images(tmp_path: Path) -> None:
    cells = [
        cell(tmp_path, "base", 0, results(), "11110000"),
        cell(tmp_path, "base", 1, results(), "11110000"),
        cell(tmp_path, "a", 0, results(), "11110011"),
        cell(tmp_path, "a", 1, results(), "11110010"),
    ]
    row = table(cells, "base").rows[1]
    assert row.top1_difference is not None
    assert row.few_difference is not None
    assert row.top1_difference.difference == pytest.approx(3 / 16)
    assert row.few_difference.difference == pytest.approx(3 / 4), "class 2 alone is few-shot"
    assert row.few_difference.high == 1.0
    line = line_of(table(cells, "base"), 1)
    assert line["top-1 minus base"].startswith("+18.75 [")
    assert line_of(table(cells, "base"))["top-1 minus base"] == "baseline"


def test_few_shot_classes_weigh_the_same_whatever_their_test_images(tmp_path: Path) -> None:
    targets, counts = [0, 1, 1, 1, 1, 2], {"class_counts": [150, 5, 5]}
    base = cell(tmp_path, "base", 0, results(**counts), "000000", targets)
    other = cell(tmp_path, "a", 0, results(**counts), "000001", targets)
    difference = table([base, other], "base").rows[1].few_difference
    assert difference is not None
    assert difference.difference == pytest.approx(1 / 2)


def test_only_seeds_that_both_have_are_compared(tmp_path: Path) -> None:
    cells = [
        cell(tmp_path, "base", 0, results(), "00000000"),
        cell(tmp_path, "base", 1, None),
        cell(tmp_path, "a", 0, results(), "10000000"),
        cell(tmp_path, "a", 1, results(), "11111111"),
    ]
    row = table(cells, "base").rows[1]
    assert row.top1_difference is not None
    assert row.top1_difference.difference == pytest.approx(1 / 8)


def test_without_predictions_or_on_other_images_there_is_no_difference(tmp_path: Path) -> None:
    base = cell(tmp_path, "base", 0, results(), "11110000")
    kept = cell(tmp_path, "kept", 0, results())
    other = cell(tmp_path, "other", 0, results(), "11110000", targets=[1, *TARGETS[1:]])
    more = cell(tmp_path, "more", 0, results(), "111100001", targets=[*TARGETS, 0])
    blended = cell(tmp_path, "blended", 0, results(), "11110011", overlap=0.3)
    found = table([base, kept, other, more, blended], "base")
    assert [row.top1_difference for row in found.rows] == [None] * 5
    assert line_of(found, 1)["few minus base"] == "-"


def test_few_is_not_compared_where_other_classes_are_few(tmp_path: Path) -> None:
    base = cell(tmp_path, "base", 0, results(), "11110000")
    other = cell(tmp_path, "a", 0, results(class_counts=[150, 5, 5]), "11110011")
    row = table([base, other], "base").rows[1]
    assert row.top1_difference is not None
    assert row.few_difference is None


# Formats --------------------------------------------------------------------------------------------------------------


def nasty(folder: Path) -> StudyResults:
    cells = [cell(folder, NASTY, 0, results(), "11110000"), cell(folder, "b", 0, results(), "11100000")]
    return table(cells, NASTY, (f"{NASTY}, seed 1: it broke",))


class Cells(HTMLParser):
    """The texts of the table's cells, and every tag."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: set[str] = set()
        self.inside = False

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.inside = tag in ("td", "th")
        if self.inside:
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.texts[-1] += data


def test_the_page_shows_every_text_as_it_is_and_loads_nothing(tmp_path: Path) -> None:
    found = nasty(tmp_path)
    text = page(found, header(found), body(found), remarks(found))
    parser = Cells()
    parser.feed(text)
    assert parser.texts == [*header(found), *(one for line in body(found) for one in line)]
    assert not parser.tags & {"i", "script", "img", "link"}
    assert "http" not in text.replace("http-equiv", "")


def test_the_picture_has_a_dot_and_a_bar_for_every_row_with_numbers(tmp_path: Path) -> None:
    cells = [cell(tmp_path, "a", seed, results(top1)) for seed, top1 in enumerate((0.4, 0.6))]
    found = table([*cells, cell(tmp_path, "b", 0, None)])
    text = page(found, header(found), body(found), remarks(found))
    assert text.count("<circle") == text.count('class="bar"') == 2
    # Mean 50 and deviation 14.14: an axis from 35 to 65 in steps of 5 over 300 units from 220.
    assert '<circle cx="370.0"' in text
    assert 'class="bar" x1="228.6" x2="511.4"' in text


def test_a_line_of_markdown_has_as_many_cells_as_the_header_whatever_a_row_is_called(tmp_path: Path) -> None:
    found = nasty(tmp_path)
    lines = [line for line in markdown(found).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(header(found)) + 1}
    assert "<i>" not in markdown(found)


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a|b", r"a\|b"), ("<b>", "&lt;b&gt;"), ("a_b*", r"a\_b\*"), ("[a](b)", r"[a\](b)"), ("a\nb", "a b")],
)
def test_markdown_is_escaped(text: str, shown: str) -> None:
    assert markdown_text(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("50%", r"50\%"),
        ("a_b & c", r"a\_b \& c"),
        ("{#$}", r"\{\#\$\}"),
        ("\\~^", r"\textbackslash{}\textasciitilde{}\textasciicircum{}"),
    ],
)
def test_latex_is_escaped(text: str, shown: str) -> None:
    assert latex_text(text) == shown


def test_a_line_of_latex_has_as_many_cells_as_the_header(tmp_path: Path) -> None:
    found = nasty(tmp_path)
    lines = [line for line in latex(found).splitlines() if line.endswith(r"\\")]
    assert len(lines) == 3
    assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines} == {len(header(found))}
    assert all(line.startswith("%") or line[0] in "\\{r" for line in latex(found).splitlines())


def test_the_file_for_programs_has_fractions_and_reads_back(tmp_path: Path) -> None:
    found = nasty(tmp_path)
    first, second = csv.DictReader(io.StringIO(comma_separated(found)))
    assert first["row"] == NASTY
    assert float(first["top1_mean"]) == 0.5
    assert first["top1_sd"] == ""
    assert first["top1_difference"] == ""
    assert float(second["top1_difference"]) == -0.125
    assert float(second["top1_difference_low"]) < -0.125 < float(second["top1_difference_high"])
    assert second["seeds"] == "0"


def test_what_failed_is_told_under_the_table(tmp_path: Path) -> None:
    found = table([cell(tmp_path, "a", 0, None)], failed=("a, seed 0: The loss became nan",))
    write_tables(tmp_path, found)
    for name in ("study.md", "study.tex", "study.html"):
        assert "Failed: a, seed 0: The loss became nan" in (tmp_path / name).read_text()
