"""What a person sees: tables that name their weights, and a dash for an empty group."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from longtail.training.display import Lines, LiveTable, clock, listener_for, percent, results_table


def printed(results: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    Console(file=out, width=140).print(results_table(results))
    return out.getvalue()


def result(**numbers: Any) -> dict[str, Any]:
    shown = {"top1": 0.5, "many": 0.75, "medium": 0.25, "few": 0.125, "worst_tenth": 0.0, **numbers}
    last, best = {"epoch": 9, **shown}, {"epoch": 7, **shown, "top1": 0.625, "selected_on": "val"}
    return {"dataset": "npz", "method": "ce", "seed": 3, "evaluated_on": "test", "last": last, "best": best}


def test_last_and_best_are_told_apart_and_best_says_what_selected_it() -> None:
    text = printed([result()])
    assert "last (epoch 9)" in text
    assert "best (epoch 7), selected on val" in text
    assert "50.00" in text
    assert "62.50" in text


def test_an_empty_group_is_a_dash_and_brings_the_thirds() -> None:
    assert "middle" not in printed([result()])
    text = printed([result(few=None, thirds={"head": 0.9, "middle": 0.4, "tail": 0.1}), result()])
    for word in ("head", "middle", "tail", "90.00", " - "):
        assert word in text


def test_a_table_wide_enough_is_not_cut() -> None:
    assert "…" not in printed([result()])


@pytest.mark.parametrize(("value", "shown"), [(None, "-"), (0.0, "0.00"), (0.20351, "20.35"), (1.0, "100.00")])
def test_fractions_are_shown_in_percent(value: float | None, shown: str) -> None:
    assert percent(value) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (61.4, "1:01"), (3723, "1:02:03")])
def test_times_are_shown_in_minutes_or_hours(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


def test_a_pipe_gets_lines_and_a_terminal_a_live_table() -> None:
    assert type(listener_for(Console(file=io.StringIO()))) is Lines
    assert type(listener_for(Console(file=io.StringIO(), force_terminal=True))) is LiveTable
