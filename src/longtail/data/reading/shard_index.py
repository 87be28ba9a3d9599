"""The index of a folder of shards: where the bytes of each image lie, with their checksums, labels and names."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from longtail.data.reading.listing import SPLITS, Entry, Listing
from longtail.data.reading.members import LARGEST, Member
from longtail.errors import DataError
from longtail.files import write_atomic

INDEX = "index.safetensors"
"""The name of the index in a folder that ``longtail data pack`` wrote."""

SCHEMA = 1

_COLUMNS = ("split", "shard", "start", "size", "check", "label")
_TEXTS = ("member", "id")
_UNCHECKED = -1
_HEX = 32
"""Digits of the digest, which the description begins with."""


@dataclasses.dataclass(frozen=True)
class Index:
    """Rows of all images, split after split, each in its order.

    ``columns`` are (N,) int64: number of the split and of the shard, first byte, bytes, CRC-32 (-1 where it is not
    known) and label. ``members`` and ``ids`` are N names.
    """

    name: str
    class_names: list[str]
    shards: list[tuple[str, int]]
    """Paths below the folder, and bytes."""
    notes: list[str]
    columns: Mapping[str, NDArray[np.int64]]
    members: Sequence[str]
    ids: Sequence[str]
    splits: list[str]
    shorter_side: int | None = None
    """Of :class:`~longtail.data.reading.listing.Listing`."""

    def listing(self, root: Path) -> Listing:
        """The listing of the set in ``root``."""
        paths = [os.path.join(root, name) for name, _ in self.shards]
        splits: dict[str, list[Entry]] = {split: [] for split in self.splits}
        into = [splits.get(split, []) for split in SPLITS]
        numbers = zip(*(self.columns[name].tolist() for name in _COLUMNS), strict=True)
        for (split, shard, start, size, check, label), member, known in zip(
            numbers, self.members, self.ids, strict=True
        ):
            place = Member(paths[shard], member, start, size, None if check == _UNCHECKED else check)
            into[split].append(Entry(place, label, known))
        return Listing(self.name, self.class_names, splits, [], list(self.notes), self.shorter_side)

    def images_from(self, shard: int, end: int) -> int:
        """Images of a shard that do not lie whole before its byte ``end``."""
        return int(self._beyond(shard, end).sum())

    def first_beyond(self, shard: int, end: int) -> str | None:
        """The first of them."""
        rows = np.flatnonzero(self._beyond(shard, end))
        return self.members[int(rows[0])] if len(rows) else None

    def _beyond(self, shard: int, end: int) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = (self.columns["shard"] == shard) & (
            self.columns["start"] + self.columns["size"] > end
        )
        return found


def save_index(path: Path, listing: Listing, root: Path) -> None:
    """Write the index of a listing of members of shards below ``root``. Raises ResourceError, or OSError of a shard."""
    numbers: dict[str, int] = {}
    rows: list[tuple[int, ...]] = []
    texts: dict[str, list[str]] = {"member": [], "id": []}
    for split, entries in listing.splits.items():
        for entry in entries:
            place = entry.path
            assert isinstance(place, Member)
            shard = numbers.setdefault(place.shard, len(numbers))
            check = _UNCHECKED if place.check is None else place.check
            rows.append((SPLITS.index(split), shard, place.start, place.size, check, entry.label))
            texts["member"].append(place.name)
            texts["id"].append(entry.id)
    table = np.array(rows, np.int64).reshape(-1, len(_COLUMNS))
    arrays: dict[str, NDArray[Any]] = {name: table[:, place].copy() for place, name in enumerate(_COLUMNS)}
    arrays |= {name: np.frombuffer("\0".join(texts[name]).encode(), np.uint8) for name in _TEXTS}
    about = {
        "schema": SCHEMA,
        "name": listing.name,
        "classes": listing.class_names,
        "splits": list(listing.splits),
        "shards": [[Path(os.path.relpath(shard, root)).as_posix(), os.stat(shard).st_size] for shard in numbers],
        "notes": listing.notes,
    }
    if listing.shorter_side is not None:
        about["shorter_side"] = listing.shorter_side
    text = json.dumps(about)
    write_atomic(path, save(arrays, metadata={"index": _digest(arrays, text) + text}))


def read_index(path: Path) -> Index:
    """Read an index. Raises DataError where it is damaged or says what cannot be: nothing of it is trusted."""
    hint = "Copy it again; or delete it, and the shards are gone through anew, without checksums and names."
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        said = metadata.get("index", "")  # in one: several are written in any order
        claimed, text = said[:_HEX], said[_HEX:]
        if _digest(arrays, text) != claimed:
            raise DataError(f"{path} is damaged: its digest does not fit.", hint=hint)
        about = json.loads(text)
        if about["schema"] > SCHEMA:
            raise DataError(f"{path} was written by a later version of longtail.", hint="Update longtail.")
        members, ids = (_names(arrays[name], len(arrays["split"])) for name in _TEXTS)
        index = Index(
            str(about["name"]),
            [str(name) for name in about["classes"]],
            [(str(name), int(size)) for name, size in about["shards"]],
            [str(note) for note in about["notes"]],
            {name: arrays[name] for name in _COLUMNS},
            members,
            ids,
            [split for split in SPLITS if split in about["splits"]],
            None if about.get("shorter_side") is None else int(about["shorter_side"]),
        )
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (
        SafetensorError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
        OverflowError,
    ) as error:
        raise DataError(f"{path} is no index of shards: {type(error).__name__}.", hint=hint) from None
    wrong = _what_is_wrong(index)
    if wrong is not None:
        raise DataError(f"{path} is no index of shards: {wrong}.", hint=hint)
    return index


def _names(given: NDArray[Any], count: int) -> list[str]:
    """``count`` names that were joined by NUL, which none of them can hold."""
    names = given.tobytes().decode().split("\0") if count else []
    if len(names) != count:
        raise ValueError("not a name for each row")
    return names


def _what_is_wrong(index: Index) -> str | None:
    columns, rows = index.columns, len(index.ids)
    for name, column in columns.items():
        if column.dtype != np.int64 or column.shape != (rows,):
            return f"its {name} is not a number for each image"
    for name, _ in index.shards:
        parts = name.split("/")
        if not name.lower().endswith(".tar") or any(
            part in ("", ".", "..") or set(part) & set("\\:\0") for part in parts
        ):
            return "a shard's name is not that of a tar file below its folder"
    if not all(0 <= size < 2**62 for _, size in index.shards):
        return "a shard's size is out of range"
    sizes = np.array([size for _, size in index.shards], np.int64)
    within = {
        "split": len(SPLITS),
        "shard": len(sizes),
        "label": len(index.class_names),
        "size": LARGEST + 1,
        "start": 2**62,
        "check": 2**32,
    }
    for name, end in within.items():
        least = _UNCHECKED if name == "check" else 0
        if rows and not (least <= columns[name].min() and columns[name].max() < end):
            return f"its {name} is out of range"
    if {SPLITS[number] for number in np.unique(columns["split"])} - set(index.splits):
        return "an image is of a split that it does not list"
    if rows and bool((columns["start"] + columns["size"] > sizes[columns["shard"]]).any()):
        return "an image lies beyond the end of its shard"
    return None


def _digest(arrays: Mapping[str, NDArray[Any]], about: str) -> str:
    digest = hashlib.blake2b(about.encode(), digest_size=_HEX // 2)
    for name in sorted(arrays):
        digest.update(f"\0{name}\0".encode())
        digest.update(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
