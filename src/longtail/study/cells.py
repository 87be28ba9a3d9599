"""The cells of a study, a run each, and which of them are finished: by configuration, images and version of numbers."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from longtail.config import NUMBERS_VERSION, Config, build_config, differences
from longtail.data.open import open_data
from longtail.errors import ConfigError, LongtailError
from longtail.files import read_json
from longtail.runs.rundir import RunDir
from longtail.study.file import Row, Study
from longtail.training.state import stored_config

Status = Literal["finished", "kept", "stopped", "missing"]


@dataclass
class Finished:
    """A finished run: its results.json, and the folder it was read from (with predictions.csv, where there is one)."""

    results: dict[str, Any]
    folder: Path

    @property
    def described(self) -> dict[str, Any]:
        """run.json, or what was kept of it; empty where nothing was."""
        found = [self.folder / name for name in ("run.json", "environment.json") if (self.folder / name).is_file()]
        return dict(read_json(found[0])) if found else {}


@dataclass(eq=False)
class Cell:
    """One run of a study; rows that come to the same configuration share it."""

    labels: list[str]
    seed: int
    config: Config
    folder: Path
    words: list[str]
    """``longtail train`` of these words is this run."""
    key: str
    start: Cell | None = None
    """The cell whose weights this one starts from."""
    finished: Finished | None = None
    status: Status = "missing"
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """For people: ``full, seed 0``."""
        return f"{' = '.join(self.labels)}, seed {self.seed}"


def study_cells(study: Study, out: Path) -> list[Cell]:
    """Every cell, seed by seed, so that a study that is cut is a complete table of fewer seeds."""
    cells: list[Cell] = []
    by_identity: dict[str, Cell] = {}
    for seed in study.seeds:
        of_label: dict[str, Cell] = {}
        for row in study.rows:
            start = None if row.initial_row is None else of_label[row.initial_row]
            cell = _cell(study, row, seed, out, start)
            identity = _identity(cell)
            if identity in by_identity:
                by_identity[identity].labels.append(row.label)
            else:
                by_identity[identity] = cell
                cells.append(cell)
            of_label[row.label] = by_identity[identity]
    return cells


def _cell(study: Study, row: Row, seed: int, out: Path, start: Cell | None) -> Cell:
    folder = (out / f"{row.folder}-s{seed}").absolute()
    init = None if start is None else start.folder
    config = study.config(row, seed, init)
    values = row.values_for(seed, init, study.overrides)
    words = [row.target, *assignments(values)]
    key = config.key(init=None if start is None else start.key)
    return Cell([row.label], seed, config.model_copy(update={"out": str(folder)}), folder, words, key, start)


def _identity(cell: Cell) -> str:
    """The key leaves out where the images lie and how often is evaluated, of which a row may make a difference."""
    return json.dumps([cell.key, cell.config.data.path, cell.config.run.model_dump(mode="json")])


def assignments(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Nested values as the words of a command line."""
    words: list[str] = []
    for name, value in values.items():
        if isinstance(value, dict):
            words += assignments(value, f"{prefix}{name}.")
        else:
            words.append(f"{prefix}{name}={_as_yaml(value)}")
    return words


def _as_yaml(value: Any) -> str:
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if _is_plain(value):
        return value
    return yaml.safe_dump(value, default_style='"', width=math.inf, allow_unicode=True).rstrip("\n")


def _is_plain(text: str) -> bool:
    """Whether YAML reads the text as itself: a name or a path, not a number, a truth value, null or a mapping."""
    return _PLAIN.fullmatch(text) is not None and text.lower() not in _NOT_TEXT


_PLAIN = re.compile(r"(?:\.{0,2}/|(?=[^\W\d_]))[\w./@=+-]*(?: [\w./@=+-]+)*")
_NOT_TEXT = ("y", "n", "yes", "no", "on", "off", "true", "false", "null")


def key_of(folder: Path) -> str | None:
    """The key of a stored run as it is counted today, from its config.yaml; None where that is refused today.

    The ``config_key`` in an old results.json may have been counted in another way.
    """
    path = folder / "config.yaml"
    try:
        changed = path.stat()
        return _config_of(folder, changed.st_mtime_ns, changed.st_size, changed.st_ino).key()
    except (LongtailError, OSError):
        return None


@functools.lru_cache(maxsize=4096)
def _config_of(folder: Path, *_of_file: int) -> Config:
    """Read once for as long as the file stays the same: each study of a page of tables looks through all kept runs."""
    return build_config(RunDir(folder).read_config())


def _said_key(results: Path) -> str | None:
    """The key that a results.json names; None where the file is not one of ours."""
    try:
        content = read_json(results)
    except LongtailError:
        return None
    return content.get("config_key") if isinstance(content, dict) else None


class Finder:
    """Finds what is finished: in the cell's own folder, or among kept results.

    Those of the study are in ``kept/study``; the other folders of ``kept`` are looked through for runs whose
    predictions were kept, without which a run has no interval beside it.
    """

    def __init__(self, kept: Path, study: str, fingerprint: Callable[[Config], str | None] | None = None) -> None:
        self.kept: dict[str, list[Path]] = {}
        self._fingerprint = fingerprint or fingerprint_of
        self._known: dict[str, str | None] = {}
        others = (path for path in sorted(kept.glob("*/*/results.json")) if path.parents[1].name != study)
        paths = sorted((kept / study).glob("*/results.json"))
        for path in [*paths, *(path for path in others if (path.parent / "predictions.csv").is_file())]:
            # An init is a path of the machine that ran it: there only the key of the day says what was in it.
            for key in {key_of(path.parent), _said_key(path)}:
                if key is not None:
                    self.kept.setdefault(key, []).append(path.parent)

    def look(self, cell: Cell) -> None:
        """Set the cell's status, and its results if there are any.

        Raises ConfigError where the folder holds something else: other settings, images or version of numbers.
        """
        cell.finished, cell.status, cell.notes = None, "missing", []
        run = RunDir(cell.folder)
        if cell.folder.exists() and not run.is_run:
            run.refuse_unless_new()
        if run.has_started:
            self._refuse_other(cell, run)
            cell.status = "stopped"
            described = run.description()
            if described.get("status") == "finished" and (cell.folder / "report.html").is_file():
                cell.status, cell.finished = "finished", Finished(read_json(cell.folder / "results.json"), cell.folder)
                return
        elif run.is_run:
            cell.status = "stopped"
        for folder in self.kept.get(cell.key, []):
            results = read_json(folder / "results.json")
            if results.get("numbers_version") == NUMBERS_VERSION and self._same_images(cell, _recorded(folder)):
                cell.status, cell.finished = "kept", Finished(results, folder)
                return

    def _refuse_other(self, cell: Cell, run: RunDir) -> None:
        way_out = f"Delete {cell.folder}, rename the row or choose another --out DIR."
        stored = stored_config(run)
        if stored.key() != cell.key:
            keys = [
                key for key in differences(stored, cell.config) if not key.startswith("run.") and key != "data.path"
            ]
            raise ConfigError(f"{cell.folder} was made with other settings: {', '.join(keys) or 'init'}.", hint=way_out)
        described = run.description()
        version = described.get("versions", {}).get("numbers")
        if version != NUMBERS_VERSION:
            said = f"{cell.folder} was made under version {version} of the numbers, and this is {NUMBERS_VERSION}."
            raise ConfigError(said, hint=way_out)
        if not self._same_images(cell, described["data"]["fingerprint"]):
            raise ConfigError(f"{cell.folder} was made from other images than {cell.config.data.path}.", hint=way_out)

    def _same_images(self, cell: Cell, recorded: str | None) -> bool:
        """Whether the images are those of the run; where they are not at hand, or none are recorded, it is believed."""
        if recorded is None:
            return True
        kind = cell.config.data.model_dump_json()
        if kind not in self._known:
            self._known[kind] = self._fingerprint(cell.config)
        if self._known[kind] is None:
            cell.notes.append("the images are not at hand, so they were not compared")
            return True
        return self._known[kind] == recorded


def fingerprint_of(config: Config) -> str | None:
    """The digest of the images of a configuration; None where they cannot be read."""
    try:
        return open_data(config.data).fingerprint
    except LongtailError:
        return None


def _recorded(folder: Path) -> str | None:
    path = folder / "environment.json"
    found = read_json(path).get("fingerprint") if path.is_file() else None
    return None if found is None else str(found)


def chosen(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """What is to be run: the cells of the rows in ``only`` (all if empty) that are not finished, with what they need.

    A cell that others start from must have its weights at hand: kept results alone do not do.
    """
    wanted: list[Cell] = []
    for cell in cells:
        if cell.finished is None and (not only or set(only) & set(cell.labels)):
            needed: list[Cell] = []
            start = cell.start
            while start is not None and start.status != "finished":
                needed.insert(0, start)
                start = start.start
            wanted += [one for one in (*needed, cell) if one not in wanted]
    return wanted
