"""Data sets in tables of paths: text lists of ``path label``, and CSV files with a header."""

from __future__ import annotations

import csv
import io
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from longtail.data.reading.listing import Listing, Row, settle, shown
from longtail.errors import DataError, nearest

SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLIT_NAMES |= {"val": "val", "valid": "val", "validation": "val"}

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)", re.ASCII)
_INTEGER = re.compile(r"-?[0-9]+", re.ASCII)
_LARGEST = 2**31 - 1


def list_lists(files: dict[str, Path], root: Path | None) -> Listing:
    """The listing of text files of ``path label``, one for each split; the label is an integer from 0.

    The label is what follows the last space or tab, so paths may hold spaces. Paths are relative to ``root``, or to
    the folder of their list, and may not lead out of it. Blank lines are passed over. Raises DataError for a file that
    cannot be read or is no UTF-8.
    """
    problems: list[str] = []
    rows: dict[str, list[Row]] = {}
    for split, file in files.items():
        rows[split] = []
        base = os.path.normpath(root or file.parent)
        # Not splitlines, which also breaks at marks that a file name may hold.
        for number, line in enumerate(_text(file).split("\n"), start=1):
            if not line.strip():
                continue
            where = f"{file.name}, line {number}"
            path, _, label = line.rstrip().replace("\t", " ").rpartition(" ")
            path = line[: len(path)].rstrip()
            if not path or not _INTEGER.fullmatch(label):
                problems.append(f"{where} is not 'path label' with an integer label: {shown(line)}")
                continue
            found = placed(path, base, where, problems)
            if found is not None and _is_class_number(label, where, problems):
                rows[split].append(Row(*found, int(label), where))
    return settle(files["train"].stem, rows, problems)


def list_csv(
    files: dict[str, Path], root: Path | None, image: str, label: str, split_column: str | None = None
) -> Listing:
    """The listing of CSV files with the columns ``image`` and ``label``, one for each split.

    With ``split_column`` one file holds all splits, and the column says train, val or test. Labels are class numbers
    if every one is an integer without leading zeros, else text, kept as it is. Paths as in :func:`list_lists`. Raises
    DataError for a file that cannot be read, or has no such column.
    """
    problems: list[str] = []
    rows: dict[str, list[Row]] = {split: [] for split in files}
    columns = [image, label] + ([split_column] if split_column else [])
    for given, file in files.items():
        base = os.path.normpath(root or file.parent)
        for where, cells in _cells(file, columns, problems):
            split: str | None = given
            if split_column is not None:
                split = SPLIT_NAMES.get(cells[2].strip().casefold())
                if split is None:
                    problems.append(f"{where}: the split is '{shown(cells[2])}', not train, val or test.")
                    continue
            if not cells[1].strip():
                problems.append(f"{where} has no label.")
                continue
            found = placed(cells[0], base, where, problems)
            if found is not None and split is not None:
                rows.setdefault(split, []).append(Row(*found, cells[1], where))
    notes = number_labels(rows, problems)
    return settle(files["train"].stem, rows, problems, notes)


def number_labels(rows: dict[str, list[Row]], problems: list[str]) -> list[str]:
    """Turn labels into class numbers where all of them are; returns what is to be noted."""
    everything = [row for listed in rows.values() for row in listed]
    texts = {str(row.label).strip() for row in everything}
    words = {text for text in texts if not _NUMBER.fullmatch(text)}
    if not words:
        for split, listed in rows.items():
            rows[split] = [
                Row(row.path, row.id, int(str(row.label)), row.where)
                for row in listed
                if _is_class_number(str(row.label).strip(), row.where, problems)
            ]
        return []
    if all(is_number(text) for text in texts):
        for row in everything:
            text = str(row.label).strip()
            if not _INTEGER.fullmatch(text):
                problems.append(f"{row.where}: label {shown(text)} is not a class number (0, 1, 2, ...).")
        return []
    some = sorted(words)[0]
    return [] if words == texts else [f"some labels are numbers, but '{shown(some)}' is not: all are taken as text"]


def is_number(text: str) -> bool:
    """Whether Python reads the text as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_class_number(text: str, where: str, problems: list[str]) -> bool:
    fits = len(text) < 20 and 0 <= int(text) <= _LARGEST
    if not fits:
        problems.append(f"{where}: label {shown(text)} is not a class number (0, 1, 2, ...).")
    return fits


def placed(text: str, base: str, where: str, problems: list[str]) -> tuple[str, str] | None:
    """The file that ``text`` names and its name below ``base``; a problem where it is none or lies elsewhere."""
    name = os.path.normpath(text)
    if name[0] not in "/.~ " and "\0" not in text:  # a plain name, as nearly all of half a million lines have
        return os.path.join(base, name), name
    whole = os.path.normpath(os.path.join(base, text))
    if not text.strip() or "\0" in text:
        problems.append(f"{where} names no image: '{shown(text)}'")
        return None
    if not whole.startswith(base if base.endswith(os.sep) else base + os.sep):
        problems.append(
            f"{where}: {shown(text)} lies outside {shown(base)}. Make it a path below that, or set data.root."
        )
        return None
    return whole, os.path.relpath(whole, base)


def _text(file: Path) -> str:
    if file.is_dir():
        raise DataError(f"{file} is a folder.", hint="Give the file itself, or take data.name=folder.")
    if file.exists() and not file.is_file():
        raise DataError(f"{file} is not a regular file.")
    try:
        return file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no UTF-8 text: byte {error.start}.", hint="Save it as UTF-8.") from None


def _cells(file: Path, columns: list[str], problems: list[str]) -> Iterator[tuple[str, list[str]]]:
    """For each row where it stands, and its cells in ``columns``."""
    reader = csv.reader(io.StringIO(_text(file), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        keys = ("image_column", "label_column", "split_column")
        places = [_column(name, header, file, f"data.{key}") for key, name in zip(keys, columns, strict=False)]
        for row in reader:
            if not row:
                continue
            where = f"{file.name}, line {reader.line_num}"
            if len(row) <= max(places):
                problems.append(f"{where} has {len(row)} of {len(header)} columns.")
                continue
            yield where, [row[place] for place in places]
    except csv.Error as error:
        raise DataError(f"{file.name}, line {reader.line_num} is no CSV: {error}") from None


def _column(name: str, header: list[str], file: Path, key: str) -> int:
    if header.count(name) == 1:
        return header.index(name)
    if name in header:
        raise DataError(f"{file} has several columns '{shown(name)}'.", hint="Rename all but one of them.")
    listed = ", ".join(f"'{shown(column)}'" for column in header) or "none"
    near = nearest(name, header)
    hint = f"Did you mean {key}={shlex.quote(shown(near))}? " if near else ""
    hint += (
        "data.image_column, data.label_column and data.split_column name the columns, which are separated by commas."
    )
    raise DataError(f"{file} has no column '{shown(name)}'. Its columns: {shown(listed, 300)}.", hint=hint)
