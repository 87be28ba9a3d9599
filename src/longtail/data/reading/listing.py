"""What a data set of files consists of, settled before any image is read: paths, classes, splits, and what is wrong."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from longtail.data.reading.members import Place
from longtail.errors import DataError

SPLITS = ("train", "val", "test")

SHOWN = 5
"""Examples in a message; the count says how many there are."""


class Row(NamedTuple):
    """One image as a folder or a table names it. ``label`` is a class number, or text; ``where`` says who named it."""

    path: Place
    id: str
    label: int | str
    where: str


class Entry(NamedTuple):
    """One image of a :class:`Listing`: its file, its class number, and the name to find it again by.

    A tuple, and its file a string, because there may be half a million of them.
    """

    path: Place
    label: int
    id: str


@dataclasses.dataclass(frozen=True)
class Listing:
    """A data set of files, unread. ``problems`` keep it from being used, ``notes`` do not; both are lines of text.

    ``shorter_side`` is what images with a longer one were resized to when they were packed, None where they are as they
    came.
    """

    name: str
    class_names: list[str]
    splits: dict[str, list[Entry]]
    problems: list[str]
    notes: list[str]
    shorter_side: int | None = None

    def counts(self, split: str) -> list[int]:
        """Images of each class in ``split``."""
        counts = [0] * len(self.class_names)
        for entry in self.splits.get(split, ()):
            counts[entry.label] += 1
        return counts

    def refuse_problems(self) -> None:
        """Raise DataError, with the first few problems and their number, where there are any."""
        if self.problems:
            hint = "longtail data check lists them all." if len(self.problems) > SHOWN else None
            raise DataError("\n".join(first_few(self.problems)), hint=hint)


def settle(
    name: str,
    rows: dict[str, list[Row]],
    problems: Iterable[str] = (),
    notes: Iterable[str] = (),
    *,
    classes: Sequence[str] | None = None,
) -> Listing:
    """The :class:`Listing` of rows by split.

    Classes are ``classes`` where they are given, numbers 0..max where labels are numbers, else the sorted labels. A
    file that a split names twice with one label counts once and is noted; with two labels, or in two splits, it is a
    problem, and so is a split without an image. Labels that look alike are noted and kept apart.
    """
    problems, notes = list(problems), list(notes)
    for split, listed in rows.items():
        # With problems of its own a split may be empty because of them, and one message is enough.
        if not listed and (split == "train" or not problems):
            problems.append(f"{shown(name)}: the {split} split has no images.")
    rows = {split: _once(split, listed, problems, notes) for split, listed in rows.items()}
    _refuse_shared(rows, problems)
    everything = [row for listed in rows.values() for row in listed]
    numbers = [row.label for row in everything if isinstance(row.label, int)]
    if classes is None and numbers:
        last = max(numbers)
        # One stray label would otherwise make thousands of classes, each with weights and a table row.
        if last >= len(everything):
            stray = next(row for row in everything if row.label == last)
            problems.append(
                f"{stray.where}: label {last} among only {len(everything)} images; classes are numbered 0, 1, "
                "2, ... without gaps."
            )
            return Listing(name, [], {}, problems, notes)
        classes = [str(k) for k in range(last + 1)]
    elif classes is None:
        classes = sorted({str(row.label) for row in everything})
    number = {label: k for k, label in enumerate(classes)}
    splits = {
        split: [Entry(row.path, row.label if isinstance(row.label, int) else number[row.label], row.id) for row in rs]
        for split, rs in rows.items()
    }
    names = [as_text(label) for label in classes]
    return Listing(name, names, splits, problems, notes + alike(names))


def _once(split: str, rows: list[Row], problems: list[str], notes: list[str]) -> list[Row]:
    kept: dict[Place, Row] = {}
    repeated = 0
    for row in rows:
        first = kept.setdefault(row.path, row)
        if first is row:
            continue
        if first.label == row.label:
            repeated += 1
        else:
            problems.append(
                f"{row.where}: {shown(row.id)} is of class {shown(str(row.label))} here and of class "
                f"{shown(str(first.label))} at {first.where}."
            )
    if repeated:
        notes.append(f"{repeated} repeated {'line' if repeated == 1 else 'lines'} of the {split} split count once")
    return list(kept.values())


def _refuse_shared(rows: dict[str, list[Row]], problems: list[str]) -> None:
    seen: dict[Place, tuple[str, Row]] = {}
    for split, listed in rows.items() if len(rows) > 1 else ():
        for row in listed:
            other, first = seen.setdefault(row.path, (split, row))
            if first is not row:
                problems.append(f"{row.where}: {shown(row.id)} is in {split} and, at {first.where}, in {other}.")


def alike(names: Sequence[str]) -> list[str]:
    """A note for every group of class names that differ only in case, spaces or Unicode form."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_folded(name), []).append(name)
    return [
        "classes that look alike and are kept apart: "
        + ", ".join(f"'{shown(name)}'" for name in group)
        + " (they differ only in case, spaces or Unicode form)"
        for group in groups.values()
        if len(group) > 1
    ]


def _folded(name: str) -> str:
    text = unicodedata.normalize("NFKC", name).casefold()
    visible = "".join(mark for mark in text if unicodedata.category(mark) != "Cf")  # zero-width marks
    return unicodedata.normalize("NFKC", " ".join(visible.split()))


def as_text(name: str) -> str:
    r"""A name from the file system as text that can be written: bytes that are no UTF-8 become ``\xff``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def shown(name: str, longest: int = 80) -> str:
    """A name for one line of a message: control characters escaped, cut where it is long."""
    line = "".join(mark if mark.isprintable() else ascii(mark)[1:-1] for mark in name)
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def first_few(lines: Sequence[str], most: int = SHOWN) -> list[str]:
    """The first few lines, and one that says how many more there are."""
    rest = len(lines) - most
    return [*lines[:most], f"... and {rest} more."] if rest > 0 else list(lines)
