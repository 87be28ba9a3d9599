"""A study file: a base recipe, rows of settings over it, seeds. All of it is checked before anything runs."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from longtail.config import Config
from longtail.data.settings import check_complete
from longtail.errors import ConfigError, nearest
from longtail.layers import merge
from longtail.recipes import load_config
from longtail.study.located import Entry, LocatedYaml, Setting, nested

TOP_KEYS = ("name", "base", "seeds", "settings", "baseline", "rows", "grid")
OF_ROW = "row:"
"""``init: row:LABEL`` starts a row from the weights of another row at the same seed."""

LONGEST_LABEL = 120


@dataclass(frozen=True)
class Row:
    """One line of the table: a label, the recipe or file it starts from, and the settings over it, later ones last."""

    label: str
    target: str
    settings: tuple[Setting, ...]
    line: int
    target_line: int

    @property
    def folder(self) -> str:
        """The label as the name of a folder."""
        return re.sub(r"[^\w.=+-]+", "-", self.label).strip("-.")

    @property
    def values(self) -> dict[str, Any]:
        """The settings as nested dicts."""
        return nested(self.settings)

    @property
    def initial_row(self) -> str | None:
        """The label of the row whose weights this one starts from, or None."""
        init = self.values.get("init")
        return init.removeprefix(OF_ROW).strip() if isinstance(init, str) and init.startswith(OF_ROW) else None

    def values_for(self, seed: int, init: Path | None, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """What is laid over the recipe for one seed."""
        start = {} if init is None else {"init": str(init)}
        return merge(self.values, overrides, start, {"seed": seed})


@dataclass(frozen=True)
class Study:
    """A checked study file."""

    path: Path
    name: str
    seeds: tuple[int, ...]
    baseline: str | None
    rows: tuple[Row, ...]
    overrides: Mapping[str, Any]

    def config(self, row: Row, seed: int, init: Path | None = None) -> Config:
        """The configuration of one cell."""
        return load_config(row.target, row.values_for(seed, init, self.overrides))


def read_study(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Study:
    """A study file, checked to the last setting of every row.

    ``overrides`` are laid over every row, last (``data.path`` of this machine). Raises ConfigError with file, line and
    key, and the nearest match for a name that is unknown.
    """
    document = LocatedYaml(Path(path))
    top = read_top(document, TOP_KEYS)
    if not top.keys() & {"rows", "grid"}:
        raise document.refusal(
            1, "The study has neither 'rows' nor 'grid'.", "Example:\nrows:\n  ce: {recipe: scenes/ce}"
        )
    name = read_name(document, top["name"])
    rows = _rows(document, top)
    baseline = document.plain(top["baseline"].node) if "baseline" in top else None
    if baseline is not None:
        _check_label(document, top["baseline"].line, "baseline", str(baseline), [row.label for row in rows])
    laid_over = read_overrides(overrides)
    baseline_label = None if baseline is None else str(baseline)
    study = Study(document.path, name, read_seeds(document, top["seeds"]), baseline_label, rows, laid_over)
    for number, row in enumerate(rows):
        check_row(document, study, row, rows[:number])
    return study


def read_top(document: LocatedYaml, known: Sequence[str], what: str = "study") -> dict[str, Entry]:
    """The keys of the file; a study or a search has those that are ``known``, and in any case a name and seeds."""
    top = {entry.key: entry for entry in document.entries(document.root, f"the {what}")}
    for entry in top.values():
        if entry.key not in known:
            match = nearest(entry.key, known)
            hint = f"Did you mean '{match}'?" if match else f"A {what} has the keys {', '.join(known)}."
            raise document.refusal(entry.line, f"Unknown key '{entry.key}'.", hint)
    for key in ("name", "seeds"):
        if key not in top:
            raise document.refusal(1, f"The {what} has no '{key}'.", f"A {what} has the keys {', '.join(known)}.")
    return top


def read_name(document: LocatedYaml, entry: Entry) -> str:
    """The name, which also names a folder."""
    name = document.plain(entry.node)
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
        raise document.refusal(entry.line, f"name={name!r}: must be the name of a folder, like smcl-scenes.")
    return name


def read_base(document: LocatedYaml, entry: Entry) -> str:
    """The recipe or file that rows start from, as it is written."""
    base = document.plain(entry.node)
    if not isinstance(base, str):
        raise document.refusal(entry.line, f"base={base!r}: must be a recipe or a file, like scenes/ce.")
    return base


def read_overrides(overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is laid over every run; raises ConfigError for what the study itself sets."""
    laid_over = dict(overrides or {})
    for key in ("seed", "out"):
        if key in laid_over:
            raise ConfigError(f"'{key}' is set by the study.", hint="Seeds stand in the file; --out moves the folder.")
    return laid_over


def read_seeds(document: LocatedYaml, entry: Entry) -> tuple[int, ...]:
    """The seeds that every row is trained with."""
    given = document.plain(entry.node)
    if not isinstance(given, list) or not given or not all(type(seed) is int and 0 <= seed < 2**31 for seed in given):
        raise document.refusal(entry.line, f"seeds={given!r}: must be a list of integers from 0, like [0, 1, 2].")
    if len(set(given)) < len(given):
        raise document.refusal(entry.line, f"seeds={given!r}: a seed stands twice.")
    return tuple(given)


def _rows(document: LocatedYaml, top: Mapping[str, Entry]) -> tuple[Row, ...]:
    base = read_base(document, top["base"]) if top.get("base") else None
    common = document.settings(top["settings"].node, "settings") if "settings" in top else []
    points = _points(document, top["grid"]) if "grid" in top else [("", [])]
    if "rows" in top:
        given = document.entries(top["rows"].node, "rows")
        if not given:
            raise document.refusal(top["rows"].line, "'rows' is empty.", "Example:\nrows:\n  ce: {recipe: scenes/ce}")
    else:
        given = [Entry("", yaml.MappingNode("", []), top["grid"].line)]
    rows: list[Row] = []
    for entry in given:
        own = document.settings(entry.node, f"row '{entry.key}'" if entry.key else "the study")
        named = [setting for setting in own if setting.key == "recipe"]
        own = [setting for setting in own if setting.key != "recipe"]
        target = named[0].value if named else base
        if named and not isinstance(target, str):
            raise document.refusal(named[0].line, f"recipe={target!r}: must be a recipe or a file, like scenes/ce.")
        for point, values in points:
            label = ", ".join(part for part in (entry.key, point) if part)
            if target is None:
                raise document.refusal(entry.line, f"Row '{label}' has no recipe.", "Set base, or recipe in the row.")
            target_line = named[0].line if named else top["base"].line
            found = found_from(document.path, target)
            rows.append(Row(label, found, (*common, *own, *values), entry.line, target_line))
    _check_labels(document, rows)
    return tuple(rows)


def found_from(study: Path, target: str) -> str:
    """A recipe as it is; a file as seen from the folder of the study."""
    return str(study.parent / target) if target.endswith((".yaml", ".yml")) else target


def _points(document: LocatedYaml, entry: Entry) -> list[tuple[str, list[Setting]]]:
    """The product of the grid: a label (``mu=0.1``) and the settings of each point, the last key changing fastest."""
    axes = document.settings(entry.node, "grid")
    if not axes:
        raise document.refusal(entry.line, "'grid' is empty.", "Example:\ngrid:\n  optim.lr: [0.05, 0.1]")
    short = [axis.key.rpartition(".")[2] for axis in axes]
    choices = []
    for axis, name in zip(axes, short, strict=True):
        if not isinstance(axis.value, list) or not axis.value:
            raise document.refusal(axis.line, f"{axis.key}={axis.value!r}: a grid has a list of values, like [0, 0.1].")
        shown = name if short.count(name) == 1 else axis.key
        choices.append([(f"{shown}={_text(value)}", Setting(axis.key, value, axis.line)) for value in axis.value])
    return [
        (", ".join(label for label, _ in point), [setting for _, setting in point])
        for point in itertools.product(*choices)
    ]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, separators=(",", ":"))


def _check_labels(document: LocatedYaml, rows: Sequence[Row]) -> None:
    seen: dict[str, Row] = {}
    for row in rows:
        folder = row.folder
        if not folder or not row.label.isprintable() or len(row.label) > LONGEST_LABEL:
            raise document.refusal(row.line, f"'{row.label}' cannot be the name of a row: it also names a folder.")
        if folder in seen:
            other = seen[folder].label
            said = "stand twice" if other == row.label else f"and '{other}' would share the folder {folder}"
            raise document.refusal(row.line, f"Row '{row.label}' {said}.", "Give every row a label of its own.")
        seen[folder] = row


def _check_label(document: LocatedYaml, line: int, key: str, label: str, labels: Sequence[str]) -> None:
    if label not in labels:
        match = nearest(label, labels)
        hint = f"Did you mean '{match}'?" if match else f"Rows: {', '.join(labels)}."
        raise document.refusal(line, f"{key}: there is no row '{label}'.", hint)


def check_row(
    document: LocatedYaml, study: Study, row: Row, earlier: Sequence[Row] = (), what: str | None = None
) -> Config:
    """Build the row's configuration; what is refused is refused with the line of the setting that it names.

    ``what`` is refused for people; without it, it is the row by its label.
    """
    what = what or f"row '{row.label}'"
    for setting in row.settings:
        if setting.key in ("seed", "out"):
            hint = "Seeds are a list of their own; the run folders are OUT/LABEL-sSEED."
            raise document.refusal(setting.line, f"'{setting.key}' is set by the study.", hint)
    initial = row.initial_row
    if initial is not None:
        line = next(setting.line for setting in reversed(row.settings) if setting.key == "init")
        if initial == row.label:
            raise document.refusal(line, f"init: row '{row.label}' cannot start from itself.")
        _check_label(document, line, "init", initial, [other.label for other in earlier])
    try:
        config = study.config(row, study.seeds[0], None if initial is None else Path(initial))
        check_complete(config.data)
    except ConfigError as error:
        line, key = _place_of(error.message, row)
        said = error.message.replace("\n", "; ")
        where = f" ({key})" if key and key not in said else ""
        raise document.refusal(line, f"{what}{where}: {said}", error.hint) from None
    return config


def _place_of(message: str, row: Row) -> tuple[int, str | None]:
    """The line of the last setting of the row that a message names, by its key or else by its value.

    Where it names none, it is the recipe that is refused, or the row as a whole.
    """
    settings = list(reversed(row.settings))
    for setting in settings:
        if message.startswith(f"{setting.key}=") or f"'{setting.key}'" in message:
            return setting.line, setting.key
    for setting in settings:  # an unknown group is named without what stands below it
        if f"'{setting.key.partition('.')[0]}'" in message:
            return setting.line, setting.key
    for setting in settings:
        if isinstance(setting.value, str) and f"'{setting.value}'" in message:
            return setting.line, setting.key
    try:
        load_config(row.target)
    except ConfigError as error:
        if error.message == message:
            return row.target_line, None
    return row.line, None
