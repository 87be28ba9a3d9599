"""A study file with ``search:``, settings to be drawn in place of rows. All of it is checked before anything runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtail.config import Config
from longtail.errors import nearest
from longtail.study.file import (
    Row,
    Study,
    check_row,
    found_from,
    read_base,
    read_name,
    read_overrides,
    read_seeds,
    read_top,
)
from longtail.study.located import Entry, LocatedYaml, Setting
from longtail.study.space import EXAMPLE, Axis, read_space

TOP_KEYS = ("name", "base", "seeds", "settings", "search")
SEARCH_KEYS = ("trials", "metric", "seed", "space")
METRICS = {
    "balanced_accuracy": "balanced accuracy",
    "top1": "top-1",
    "many": "many",
    "medium": "medium",
    "few": "few",
}
"""What of the last line of metrics.jsonl a search may go by."""

WITHOUT_VAL = ("cifar10", "cifar100", "fashion-mnist")
"""Data sets whose original files have no val split."""


@dataclass(frozen=True)
class Search:
    """A checked search. ``study`` has its name, seeds and overrides, and no rows: those are drawn."""

    study: Study
    target: str
    settings: tuple[Setting, ...]
    trials: int
    metric: str
    seed: int
    space: tuple[Axis, ...]
    line: int
    """Of ``search:`` in the file."""
    target_line: int

    def row(self, label: str, parameters: Mapping[str, Any]) -> Row:
        """The row of a trial, whose drawn settings lie over those of the file."""
        drawn = [Setting(axis.key, axis.value(parameters[axis.key]), axis.line) for axis in self.space]
        return self._row(label, drawn)

    def study_of(self, row: Row) -> Study:
        """A study of this one row."""
        return dataclasses.replace(self.study, rows=(row,))

    def drawn(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The searched settings of a trial by their keys."""
        return {axis.key: axis.value(parameters[axis.key]) for axis in self.space}

    def _row(self, label: str, drawn: list[Setting]) -> Row:
        return Row(label, self.target, (*self.settings, *drawn), self.line, self.target_line)

    def first_row(self, changed: Setting | None = None) -> Row:
        """The first value of every axis, of which one may be another."""
        first = [Setting(axis.key, axis.samples()[0], axis.line) for axis in self.space]
        return self._row("first", [changed if changed and changed.key == one.key else one for one in first])

    @property
    def first(self) -> Config:
        """The configuration of the first value of every axis: its data are those of every trial."""
        return self.study.config(self.first_row(), self.study.seeds[0])


def has_search(path: str | Path) -> bool:
    """Whether a study file has ``search:``; raises ConfigError where it cannot be read."""
    document = LocatedYaml(Path(path))
    return any(entry.key == "search" for entry in document.entries(document.root, "the study"))


def read_search(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Search:
    """A study file with ``search:``, checked with every end of every range and every choice.

    ``overrides`` are laid over every trial, last (``data.path`` of this machine). Raises ConfigError with file, line
    and key, and the nearest match for a name that is unknown.
    """
    document = LocatedYaml(Path(path))
    top = read_top(document, TOP_KEYS, "search")
    for key in ("base", "search"):
        if key not in top:
            raise document.refusal(1, f"The search has no '{key}'.", f"A search has the keys {', '.join(TOP_KEYS)}.")
    target = found_from(document.path, read_base(document, top["base"]))
    laid_over = read_overrides(overrides)
    study = Study(
        document.path, read_name(document, top["name"]), read_seeds(document, top["seeds"]), None, (), laid_over
    )
    common = document.settings(top["settings"].node, "settings") if "settings" in top else []
    given = {entry.key: entry for entry in document.entries(top["search"].node, "search")}
    _check_keys(document, top["search"].line, given)
    search = Search(
        study,
        target,
        tuple(common),
        _whole(document, given["trials"], 1),
        _metric(document, given.get("metric")),
        _whole(document, given["seed"], 0) if "seed" in given else 0,
        read_space(document, given["space"]),
        top["search"].line,
        top["base"].line,
    )
    _check(document, search)
    return search


def _check_keys(document: LocatedYaml, line: int, given: Mapping[str, Entry]) -> None:

    for entry in given.values():
        if entry.key not in SEARCH_KEYS:
            match = nearest(entry.key, SEARCH_KEYS)
            hint = f"Did you mean '{match}'?" if match else f"It has the keys {', '.join(SEARCH_KEYS)}."
            raise document.refusal(entry.line, f"Unknown key '{entry.key}' of search.", hint)
    for key in ("trials", "space"):
        if key not in given:
            raise document.refusal(line, f"'search' has no '{key}'.", "trials: 20" if key == "trials" else EXAMPLE)


def _whole(document: LocatedYaml, entry: Entry, least: int) -> int:
    value = document.plain(entry.node)
    if type(value) is not int or not least <= value < 2**31:
        raise document.refusal(entry.line, f"{entry.key}={value!r}: must be an integer from {least}.")
    return value


def _metric(document: LocatedYaml, entry: Entry | None) -> str:
    value = "balanced_accuracy" if entry is None else document.plain(entry.node)
    if entry is not None and value not in METRICS:
        match = nearest(str(value), METRICS)
        hint = f"Did you mean '{match}'?" if match else f"One of {', '.join(METRICS)}."
        raise document.refusal(entry.line, f"metric={value!r}: is not among the numbers of an epoch on val.", hint)
    return str(value)


def _check(document: LocatedYaml, search: Search) -> None:
    """Each axis with all its samples, the others at their first; what they do together shows in the trials."""
    for axis in search.space:
        group, _, name = axis.key.partition(".")
        given = search.study.overrides.get(group)
        if isinstance(given, Mapping) and name in given:
            raise document.refusal(axis.line, f"'{axis.key}' is searched, and given on the command line too.")
    config = check_row(document, search.study, search.first_row(), what="search")
    for axis in search.space:
        for value in axis.samples():
            row = search.first_row(Setting(axis.key, value, axis.line))
            check_row(document, search.study, row, what=f"search with {axis.key}={value}")
    original = config.data.name in WITHOUT_VAL and not str(config.data.path).endswith(".npz")
    if config.data.val == 0 and original:  # for others the images tell, see sweep.py
        raise document.refusal(
            search.line,
            f"A search chooses on val, and {config.data.name} has no val images of its own.",
            "Keep some from training with data.val in settings: a number of images a class, e.g. data.val: 5",
        )
