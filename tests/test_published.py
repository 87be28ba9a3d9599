"""Published numbers: that each names a method and a data set of ours, and stands on the method's page."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from longtail.cli import app
from longtail.methods import METHODS
from longtail.recipes.presets import PRESETS
from longtail.recipes.published import Published, published

PAGES = Path(__file__).parents[1] / "docs" / "methods"
PAGE_OF = {"class-balanced-focal": "class-balanced", "ce-drw": "ldam-drw"}


@pytest.mark.parametrize("entry", published(), ids=lambda entry: f"{entry.method}-{entry.data}-{entry.epochs}")
def test_every_entry_is_of_a_method_that_exists_and_stands_on_its_page(entry: Published) -> None:
    assert entry.method in METHODS
    assert entry.data in PRESETS
    page = (PAGES / f"{PAGE_OF.get(entry.method, entry.method)}.md").read_text()
    for value in entry.top1.values():
        for number in value if isinstance(value, tuple) else (value,):
            assert f"{number:.1f}" in page or f"{number:.2f}" in page, f"{number} is not on the page of {entry.method}"


def test_an_entry_reads_as_a_line() -> None:
    entry = Published("ce", "cifar100", {100: (38.3, 39.1), 10: 55.7}, epochs=200, reported="best epoch on test")
    assert (
        entry.describe() == "cifar100 (resnet32, 200 epochs): imbalance 100 38.3 to 39.1, 10 55.7; best epoch on test"
    )


def test_the_command_shows_what_a_name_stands_for_and_what_papers_report() -> None:
    shown = CliRunner().invoke(app, ["methods", "ldam-drw"])
    assert shown.exit_code == 0
    assert "method.criterion=ldam-drw" in shown.output
    assert "model.classifier=cosine" in shown.output
    assert "imbalance 100 42, 50 46.6, 10 58.7" in shown.output
    assert "none traced" in CliRunner().invoke(app, ["methods", "smcl"]).output
