"""Data sets in folders: ``ROOT/train/CLASS/*`` with optional ``val`` and ``test``, or ``ROOT/CLASS/*``."""

from __future__ import annotations

import os
from pathlib import Path

from longtail.data.reading.listing import SPLITS, Listing, Row, as_text, first_few, settle, shown
from longtail.errors import DataError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
    | {".pnm", ".jp2", ".avif"}
)
"""Names of files that are taken for images. What is in a file is told by its content, not by its name."""

_MEANT_AS_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


def list_folder(root: Path) -> Listing:
    """The listing of ``ROOT/train/CLASS/*`` (``val``, ``test`` likewise), or of ``ROOT/CLASS/*``, all of it training.

    Classes are the folder names of all splits, sorted as text. A class folder is searched to any depth; links are
    followed, each folder once. Names that begin with a dot and names that are not an image's are left out, the latter
    with a note. Raises DataError where ``root`` is no folder or holds no class folders.
    """
    if not root.is_dir():
        raise DataError(
            f"{root} is no folder.",
            hint="data.name=folder wants a folder of class folders. Unpack an archive first.",
        )
    search = _Search(root)
    parts = search.folders(root)
    found = {part.name: part for part in parts}
    if "train" in found:
        places = {split: found[split] for split in SPLITS if split in found}
        unread = [part.name for part in parts if part.name not in SPLITS]
        if unread:
            search.notes.append(
                f"only train, val and test are read, not: {', '.join(shown(name) for name in first_few(unread))}"
            )
    else:
        splits = [name for name in found if name.casefold() in _MEANT_AS_SPLITS]
        if splits:
            raise DataError(
                f"{root} has a folder '{splits[0]}' but none named 'train'.",
                hint="The layout is train/CLASS/*, and optional val/CLASS/* and test/CLASS/*, in lower case.",
            )
        if not parts and not search.problems:
            loose = sum(path.suffix.lower() in SUFFIXES for path, is_folder in search.entries(root) if not is_folder)
            but = f", but {loose:,} {'image' if loose == 1 else 'images'}" if loose else ""
            raise DataError(
                f"{root} holds no class folders{but}.",
                hint="The layout is CLASS/* or train/CLASS/*. Labels in a table: see data.name=csv."
                if loose
                else "The layout is CLASS/* or train/CLASS/*.",
            )
        places = {"train": root}
    rows = {split: search.rows(place) for split, place in places.items()}
    if search.classes and not any(rows.values()) and not search.problems:
        held = f" It holds {shown(search.others[0])}." if search.others else ""
        raise DataError(
            f"{root} has class folders, as {shown(min(search.classes))}, and no image in them.{held}",
            hint=f"Images are files named {', '.join(sorted(SUFFIXES))}.",
        )
    search.say_left_out()
    return settle(root.name or "folder", rows, search.problems, search.notes, classes=sorted(search.classes))


class _Search:
    """Goes through folders and remembers what it met."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.classes: set[str] = set()
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.others: list[str] = []
        self.again: list[str] = []

    def relative(self, path: Path) -> str:
        return as_text(str(path.relative_to(self.root)))

    def entries(self, folder: Path) -> list[tuple[Path, bool]]:
        """What a folder holds, by name, and whether it is a folder."""
        try:
            with os.scandir(folder) as scanned:
                names = sorted(entry.name for entry in scanned if not _is_hidden(entry.name))
        except OSError as error:
            self.problems.append(f"{shown(self.relative(folder))} cannot be read: {error.strerror}.")
            return []
        return [(folder / name, os.path.isdir(folder / name)) for name in names]

    def folders(self, folder: Path) -> list[Path]:
        return [path for path, is_folder in self.entries(folder) if is_folder]

    def rows(self, place: Path) -> list[Row]:
        """The images of a split, class by class."""
        rows: list[Row] = []
        for path, is_folder in self.entries(place):
            if not is_folder:
                self.others.append(self.relative(path))
                continue
            self.classes.add(path.name)
            for image in self.images(path, place):
                name = self.relative(image)
                rows.append(Row(str(image), name, path.name, shown(name)))
        return rows

    def images(self, folder: Path, place: Path) -> list[Path]:
        """The images below a class folder, a folder that links lead to more than once being entered once."""
        entered = {_identity(part) for part in (self.root, place, folder)}
        images: list[Path] = []
        waiting = [folder]
        while waiting:
            inner: list[Path] = []
            for path, is_folder in self.entries(waiting.pop()):
                if not is_folder:
                    if path.suffix.lower() in SUFFIXES:
                        images.append(path)
                    else:
                        self.others.append(self.relative(path))
                elif _identity(path) in entered:
                    self.again.append(self.relative(path))
                else:
                    entered.add(_identity(path))
                    inner.append(path)
            waiting += reversed(inner)
        return images

    def say_left_out(self) -> None:
        for names, why in (
            (self.others, "not named as an image of a class"),
            (self.again, "links to a folder that is being read already"),
        ):
            if names:
                listed = ", ".join(shown(name) for name in first_few(names))
                self.notes.append(f"left out, {why} ({len(names)}): {listed}")


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"  # what macOS adds to an archive


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
