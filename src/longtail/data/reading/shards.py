"""Data sets in tar files that WebDataset reads: KEY.jpg beside KEY.cls, which has the label.

A set that ``longtail data pack`` wrote brings an index of its members. Any other is gone through once, and its index is
kept in the cache folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from longtail.data.reading.folders import SUFFIXES
from longtail.data.reading.listing import SPLITS, Listing, Row, as_text, first_few, settle, shown
from longtail.data.reading.members import LARGEST, Member
from longtail.data.reading.shard_index import INDEX, Index, read_index, save_index
from longtail.data.reading.tables import SPLIT_NAMES, number_labels
from longtail.errors import ConfigError, DataError, ResourceError
from longtail.files import cache_folder

LONGEST_LABEL = 1000
"""Bytes of a label."""

_KEY = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
"""Key and extension of a member as WebDataset tells them apart: at the first dot of its last part."""

Say = Callable[[str], None]


def has_index(path: Path) -> bool:
    """Whether a folder was written by ``longtail data pack``."""
    return (path / INDEX).is_file()


def is_packed(path: Path) -> bool:
    """Whether a folder is a set of shards: it has an index of them, or tar files and no folders but those of splits."""
    if has_index(path):
        return True
    try:
        folders = _folders(path)
        inner = [path / name for name in folders]
        return set(folders) <= set(SPLITS) and bool(_tars(path, inner)) and not any(map(_folders, inner))
    except OSError:
        return False


def list_shards(root: Path, say: Say | None = None) -> Listing:
    """The listing of a folder of shards; ids are those that were packed, else shard and member.

    Where there is no index, the shards are those in ``root``, of the split that their names say (all training where
    none says one), and those in ``root/train``, ``val`` and ``test``. Samples are members that follow each other with
    one key, as WebDataset has them: an image, and ``.cls`` with a class number or a name. Nothing is unpacked, and
    names of members are no paths. Raises DataError for an index or a shard that is damaged; what is missing or cut off
    is a problem of the listing.
    """
    if has_index(root):
        index = read_index(root / INDEX)
        listing = index.listing(root)
        return dataclasses.replace(listing, problems=_not_whole(root, index))
    shards = _by_split(root)
    kept = _cache_file(root, [shard for listed in shards.values() for shard in listed])
    if kept is not None and kept.is_file():
        with contextlib.suppress(DataError):
            return read_index(kept).listing(root)
    listing = _look_through(root, shards, say or (lambda line: None))
    if kept is not None and not listing.problems:
        with contextlib.suppress(OSError, ResourceError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            save_index(kept, listing, root)
    return listing


def _not_whole(root: Path, index: Index) -> list[str]:
    """A line for each shard that is not there, or has not as many bytes as it was written with."""
    lines = []
    for number, (name, size) in enumerate(index.shards):
        images = index.images_from(number, 0)
        try:
            there = (root / name).stat().st_size
        except OSError:
            lines.append(f"{root / name} is not there: a shard with {images:,} images.")
            continue
        if there < size:
            lost, first = index.images_from(number, there), index.first_beyond(number, there)
            which = "" if first is None else f"; {lost:,} of its {images:,} images are lost, {first} the first of them"
            lines.append(f"{root / name} is cut off: {there:,} of {size:,} bytes are there{which}.")
        elif there > size:
            lines.append(f"{root / name} is another file: it has {there:,} bytes and not {size:,}.")
    return lines


# Shards without an index ----------------------------------------------------------------------------------------------


def _folders(path: Path) -> list[str]:
    with os.scandir(path) as found:
        return [entry.name for entry in found if entry.is_dir() and not entry.name.startswith(".")]


def _tars(*places: Path | list[Path]) -> list[Path]:
    """The tar files in some folders, numbers in their names counting as numbers."""
    folders = [folder for place in places for folder in (place if isinstance(place, list) else [place])]
    found = [folder / name for folder in folders for name in os.listdir(folder) if name.lower().endswith(".tar")]
    return sorted((one for one in found if not one.name.startswith(".")), key=_in_order)


def _in_order(path: Path) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", str(path))]


def _by_split(root: Path) -> dict[str, list[Path]]:
    """The shards of each split. Raises DataError where only some names say one."""
    shards = {split: _tars(root / split) for split in SPLITS if (root / split).is_dir()}
    loose = _tars(root)
    said = {shard: _split_of(shard.stem) for shard in loose}
    unknown = [shard.name for shard, split in said.items() if split is None]
    if unknown and (len(unknown) < len(loose) or shards):
        raise DataError(
            f"{root}: of which split are {', '.join(map(shown, first_few(unknown)))}?",
            hint="Name shards train-*.tar, val-*.tar and test-*.tar, or put them into folders train, val and test.",
        )
    for shard in loose:
        shards.setdefault(said[shard] or "train", []).append(shard)
    return {split: shards[split] for split in SPLITS if split in shards}


def _split_of(stem: str) -> str | None:
    words = re.split(r"[^a-z]+", stem.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


def _cache_file(root: Path, shards: list[Path]) -> Path | None:
    digest = hashlib.blake2b(os.fsencode(os.path.abspath(root)), digest_size=16)
    try:
        for shard in shards:
            found = shard.stat()
            digest.update(os.fsencode(shard) + f"\0{found.st_size} {found.st_mtime_ns}\0".encode())
        return cache_folder() / "shards" / f"{digest.hexdigest()}.safetensors"
    except (OSError, ConfigError):
        return None


def _look_through(root: Path, shards: dict[str, list[Path]], say: Say) -> Listing:
    rows: dict[str, list[Row]] = {"train": []}
    problems: list[str] = []
    left_out: list[str] = []
    said = time.monotonic()
    for split, listed in shards.items():
        rows[split] = []
        for number, shard in enumerate(listed):
            rows[split] += _Shard(root, shard, problems, left_out).rows()
            if time.monotonic() - said > 5:
                said = time.monotonic()
                say(f"looking through shards: {number + 1:,} of {len(listed):,} {split}")
    notes = number_labels(rows, problems)
    if left_out:
        named = ", ".join(shown(name) for name in first_few(left_out))
        notes.append(f"left out, links, devices or sparse files in shards ({len(left_out)}): {named}")
    return settle(as_text(root.name) or "shards", rows, problems, notes)


class _Shard:
    """Goes through one tar file, from header to header, and reads the labels alone."""

    def __init__(self, root: Path, path: Path, problems: list[str], left_out: list[str]) -> None:
        self.path, self.problems, self.left_out = path, problems, left_out
        self.shown = as_text(path.relative_to(root).as_posix())
        self.last = ""

    def rows(self) -> list[Row]:
        rows: list[Row] = []
        key: str | None = None
        images: list[Member] = []
        labels: list[str] = []
        with self._opened() as tar:
            for info in self._members(tar):
                found = _KEY.fullmatch(info.name)
                if found is None:
                    continue
                if found[1] != key:
                    self._settle(key, images, labels, rows)
                    key, images, labels = found[1], [], []
                kind = found[2].lower()
                if f".{kind}" in SUFFIXES:
                    images.append(Member(str(self.path), as_text(info.name), info.offset_data, info.size, None))
                elif kind == "cls":
                    labels.append(self._label(tar, info))
            self._settle(key, images, labels, rows)
        return rows

    def _settle(self, key: str | None, images: list[Member], labels: list[str], rows: list[Row]) -> None:
        if not images or key is None:
            return
        where = f"{self.shown}, {shown(as_text(key))}"
        if len(images) > 1:
            self.problems.append(f"{where} has several images: {', '.join(shown(image.name) for image in images)}.")
        elif images[0].size > LARGEST:
            self.problems.append(f"{where}: {images[0].size:,} bytes are more than an image has.")
        elif len(labels) != 1 or not labels[0].strip():
            self.problems.append(f"{where} has no label: beside the image there has to be one {key[-20:]!a}.cls.")
        else:
            rows.append(Row(images[0], f"{self.shown}/{images[0].name}", labels[0], where))

    def _label(self, tar: tarfile.TarFile, info: tarfile.TarInfo) -> str:
        file = tar.extractfile(info) if info.size <= LONGEST_LABEL else None
        return "" if file is None else file.read().decode("utf-8", "replace")

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tarfile.TarFile]:
        try:
            if not self.path.is_file():
                raise DataError(f"{self.path} is not a regular file.")
            with tarfile.open(self.path, "r:", errors="surrogateescape") as tar:
                yield tar
        except (tarfile.TarError, OSError, EOFError, ValueError, MemoryError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{self.path} cannot be read as a tar file{self._after()}: {shown(str(error)) or type(error).__name__}",
                hint="Copy or download the shard again. Compressed ones (.tar.gz) have to be unpacked to .tar first.",
            ) from None

    def _members(self, tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
        """Its regular files. Raises DataError where the headers end before the file does."""
        for info in tar:
            tar.members.clear()  # type: ignore[attr-defined]  # or all of them would be kept
            self.last = info.name
            if not info.isreg() or info.issparse():
                if not info.isdir():
                    self.left_out.append(f"{self.shown}/{as_text(info.name)}")
                continue
            if not re.match(r"__[^/]*__($|/)", info.name):  # WebDataset's own notes
                yield info
        self._refuse_unless_ended(tar)

    def _after(self) -> str:
        return f" after {shown(as_text(self.last))}" if self.last else ""

    def _refuse_unless_ended(self, tar: tarfile.TarFile) -> None:
        """A damaged header ends the list of members silently: the end mark, a block of zeros, has to be there."""
        with self.path.open("rb") as file:
            file.seek(tar.offset)
            block = file.read(tarfile.BLOCKSIZE)
        if block == bytes(tarfile.BLOCKSIZE):
            return
        why = "it is cut off" if len(block) < tarfile.BLOCKSIZE else "the header of the next member is damaged"
        raise DataError(f"{self.path} ends{self._after()} without its end mark: {why}.", hint="Copy the shard again.")
