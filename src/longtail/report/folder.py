"""A finished run folder, read into typed rows; whatever is missing or broken is a RunError that names it."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray

from longtail.errors import RunError
from longtail.files import read_json
from longtail.layers import load_yaml
from longtail.runs.missing import no_run

GROUPS = ("many", "medium", "few")
NEEDED = ("run.json", "config.yaml", "metrics.jsonl", "results.json", "per_class.csv")

T = TypeVar("T")


@dataclass(frozen=True)
class ClassRow:
    """One line of per_class.csv; ``accuracy`` is None where the class has no evaluated image."""

    index: int
    name: str
    train_count: int
    group: str
    test_count: int
    accuracy: float | None


@dataclass(frozen=True)
class Predictions:
    """predictions.csv: per evaluated image its ``ids``, its ``targets`` and ``predicted``, (N,) class indices, and
    ``confidence`` (N,), the probability of the predicted class."""

    ids: list[str]
    targets: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each image is called its class, (N,)."""
        right: NDArray[np.bool_] = self.predicted == self.targets
        return right


@dataclass(frozen=True)
class FinishedRun:
    """What a run folder holds; ``predictions`` is None where the file is absent."""

    path: Path
    description: Mapping[str, Any]
    config: str
    history: list[dict[str, Any]]
    results: Mapping[str, Any]
    classes: list[ClassRow]
    predictions: Predictions | None

    @property
    def last(self) -> Mapping[str, Any]:
        """The numbers of the last epoch."""
        last: Mapping[str, Any] = self.results["last"]
        return last

    @property
    def planned_epochs(self) -> int:
        """The epochs of the configuration, of which fractions are meant; the run may have ended before (patience)."""
        with contextlib.suppress(yaml.YAMLError, LookupError, TypeError, ValueError):
            return int(load_yaml(self.config)["optim"]["epochs"])
        return int(self.history[-1]["epoch"]) + 1

    @property
    def overlap(self) -> float:
        """``data.overlap``: how far the images of ``scenes`` are those of other classes; 0 elsewhere."""
        with contextlib.suppress(yaml.YAMLError, LookupError, TypeError, ValueError):
            return float(load_yaml(self.config)["data"]["overlap"])
        return 0.0

    def ranked(self) -> list[ClassRow]:
        """The classes from the most to the fewest training images, in label order where equal."""
        return sorted(self.classes, key=lambda row: -row.train_count)

    def group_sizes(self) -> dict[str, int]:
        """Classes per group, without the groups that have none."""
        sizes = {name: sum(row.group == name for row in self.classes) for name in GROUPS}
        return {name: size for name, size in sizes.items() if size}


def read_run(path: Path) -> FinishedRun:
    """Read the folder of a finished run; raises RunError for one that is absent, unfinished, incomplete or broken."""
    path = Path(path)
    if not path.is_dir():
        raise no_run(path)
    if not (path / "run.json").is_file():
        raise no_run(path)
    description = _parsed(path / "run.json", _mapping)
    status = description.get("status")
    if status == "imported":
        hint = f"Evaluate it: longtail eval {path} data.path=FILE_OR_FOLDER"
        raise RunError(f"The run {path} was imported without images, so it has no results to show.", hint=hint)
    if status != "finished":
        hint = f"Go on with it: longtail train {path / 'config.yaml'} out={path} --resume"
        raise RunError(f"The run {path} is not finished (status: {status}).", hint=hint)
    missing = [name for name in NEEDED if not (path / name).is_file()]
    if missing:
        raise RunError(f"The run {path} lacks {', '.join(missing)}.")
    classes = _named(_parsed(path / "per_class.csv", _classes), description)
    has_predictions = (path / "predictions.csv").is_file()
    return FinishedRun(
        path=path,
        description=description,
        config=_parsed(path / "config.yaml", _text),
        history=_parsed(path / "metrics.jsonl", _history),
        results=_parsed(path / "results.json", _results),
        classes=classes,
        predictions=_parsed(path / "predictions.csv", lambda p: _predictions(p, classes)) if has_predictions else None,
    )


def _parsed(path: Path, parse: Callable[[Path], T]) -> T:
    try:
        return parse(path)
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise RunError(f"{path} cannot be read: {what}") from None


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _mapping(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    return content


def _results(path: Path) -> dict[str, Any]:
    content = _mapping(path)
    _fraction(content["last"]["top1"])
    str(content["method"])
    return content


def _fraction(value: Any) -> float:
    number = float(value)
    if not 0 <= number <= 1:
        raise ValueError(f"{value} is no accuracy")
    return number


def _history(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in _text(path).splitlines() if line.strip()]
    if not rows:
        raise ValueError("it holds no evaluated epoch")
    for row in rows:
        int(row["epoch"])
    return rows


def _classes(path: Path) -> list[ClassRow]:
    rows = [
        ClassRow(
            index=index,
            name=row["class"],
            train_count=int(row["train_count"]),
            group=row["group"],
            test_count=int(row["test_count"]),
            accuracy=_fraction(row["accuracy"]) if row["accuracy"] else None,
        )
        for index, row in enumerate(_lines(path))
    ]
    if not rows:
        raise ValueError("it holds no class")
    unknown = {row.group for row in rows} - set(GROUPS)
    if unknown:
        raise ValueError(f"unknown group {sorted(unknown)[0]!r}")
    return rows


def _named(classes: list[ClassRow], description: Mapping[str, Any]) -> list[ClassRow]:
    """The classes with the names of run.json: the file, made for spreadsheets too, marks names that begin a formula."""
    data = description.get("data")
    names = data.get("class_names") if isinstance(data, Mapping) else None
    if not isinstance(names, list) or len(names) != len(classes):
        return classes
    return [replace(row, name=str(name)) for row, name in zip(classes, names, strict=True)]


def _predictions(path: Path, classes: list[ClassRow]) -> Predictions:
    lines = _lines(path)
    return Predictions(
        ids=[row["id"] for row in lines],
        targets=_labels([row["target"] for row in lines], classes),
        predicted=_labels([row["predicted"] for row in lines], classes),
        confidence=np.array([_fraction(row["probability"]) for row in lines], dtype=np.float64),
    )


def _labels(values: list[str], classes: list[ClassRow]) -> NDArray[np.int64]:
    wrong = next((v for v in values if not (v.isascii() and v.isdigit() and int(v) < len(classes))), None)
    if wrong is not None:
        raise ValueError(f"{wrong[:40]!r} is not a class index in 0..{len(classes) - 1}")
    return np.array([int(v) for v in values], dtype=np.int64)


def _lines(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        if None in row or None in row.values():
            raise ValueError(f"its row {number} has not as many fields as the header")
    return rows
