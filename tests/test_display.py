"""What a person sees: tables that name their weights, and a dash for an empty group."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from longtail.training.display import Lines, LiveTable, clock, listener_for, percent, results_table


def printed(results: list[dict[str, Any]], width: int = 140) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(results_table(results))
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


def test_eighty_columns_hold_every_number_whole_with_thirds_and_long_names() -> None:
    numbers = dict(zip(("top1", "many", "medium", "few", "worst_tenth"), (0.9876, 1.0, None, 1.0, 1.0), strict=True))
    wide = result(**numbers, thirds={"head": 1.0, "middle": 0.1234, "tail": 1.0})
    wide |= {"dataset": "fashion-mnist", "method": "class-balanced-focal", "evaluated_on": "held-out"}
    text = printed([wide], 80)
    assert max(map(len, text.splitlines())) <= 80
    last = next(line for line in text.splitlines() if "98.76" in line)
    assert last.split()[-8:] == ["98.76", "100.00", "-", "100.00", "100.00", "12.34", "100.00", "100.00"]
    heads = text.splitlines()
    assert "on held-out" in heads[0]
    assert heads[2].split() == ["run", "weights", "top-1", "many", "medium", "few", "head", "middle", "tail", "tenth"]
    assert "…" not in text


def test_runs_on_several_sets_each_say_theirs() -> None:
    text = printed([result(), result() | {"evaluated_on": "val"}])
    assert "seed 3, on test" in text
    assert "seed 3, on val" in text
    assert ", on test" in printed([result()]).splitlines()[0]


@pytest.mark.parametrize(("value", "shown"), [(None, "-"), (0.0, "0.00"), (0.20351, "20.35"), (1.0, "100.00")])
def test_fractions_are_shown_in_percent(value: float | None, shown: str) -> None:
    assert percent(value) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (61.4, "1:01"), (3723, "1:02:03")])
def test_times_are_shown_in_minutes_or_hours(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


def test_a_pipe_gets_lines_and_a_terminal_a_live_table() -> None:
    assert type(listener_for(Console(file=io.StringIO()))) is Lines
    assert type(listener_for(Console(file=io.StringIO(), force_terminal=True))) is LiveTable
