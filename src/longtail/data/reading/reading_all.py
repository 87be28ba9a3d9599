"""A look at all images of a set before the first step: which of them cannot be read, and the set without those."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from longtail.data.reading.cutting import undecodable
from longtail.data.reading.decoding import DECODING_VERSION
from longtail.data.reading.image_files import PART
from longtail.data.reading.listing import Entry, Listing, first_few, shown
from longtail.data.reading.members import Place, state_of
from longtail.data.reading.readers import in_turn
from longtail.errors import ConfigError, DataError, ResourceError
from longtail.files import cache_folder, write_atomic

_AT_ONCE = 32
"""Parts of :data:`PART` images that readers are asked for together."""


def leave_out(listing: Listing, say: Callable[[str], None]) -> Listing:
    """The listing without images that cannot be read, with a note that counts and names them.

    Every image is decoded once, by the readers. What was found is kept in the cache folder by the paths, sizes and
    times of the files, so it depends neither on who reads nor on where a run was stopped. Raises DataError where a
    split has no image left.
    """
    broken = _broken(listing, say)
    if not broken:
        return listing
    refuse_empty(broken, listing)
    splits = {split: [entry for entry in entries if entry not in broken] for split, entries in listing.splits.items()}
    return dataclasses.replace(listing, splits=splits, notes=[*listing.notes, note_of(broken)])


def note_of(broken: Mapping[Entry, str]) -> str:
    """A line that counts and names what is left out."""
    examples = ", ".join(first_few([shown(entry.id) for entry in broken]))
    return f"left out, because they cannot be read ({len(broken)}): {examples}"


def refuse_broken(broken: Mapping[Entry, str], images: int) -> None:
    """Raise DataError naming the images, of so many, that cannot be read, where there are any."""
    if broken:
        lines = first_few([f"  {shown(entry.id)}: {why}" for entry, why in broken.items()])
        raise DataError(
            "\n".join([f"{len(broken)} of {images} images cannot be read:", *lines]),
            hint="longtail data check lists them all; data.on_error=skip leaves them out.",
        )


def refuse_empty(broken: Mapping[Entry, str], listing: Listing) -> None:
    """Raise DataError where no image of a split can be read."""
    for split, entries in listing.splits.items():
        if all(entry in broken for entry in entries):
            raise DataError(f"Of the {len(entries)} {split} images none can be read.", hint="Run longtail data check.")


def _broken(listing: Listing, say: Callable[[str], None]) -> dict[Entry, str]:
    entries = [entry for listed in listing.splits.values() for entry in listed]
    kept = _cache_file([entry.path for entry in entries])
    found = None if kept is None else _read(kept, len(entries))
    if found is None:
        found = _look(entries, say)
        if kept is not None:
            _keep(kept, found)
    return {entries[row]: why for row, why in found.items()}


def _look(entries: Sequence[Entry], say: Callable[[str], None]) -> dict[int, str]:
    parts = [[entry.path for entry in entries[first : first + PART]] for first in range(0, len(entries), PART)]
    groups = [parts[first : first + _AT_ONCE] for first in range(0, len(parts), _AT_ONCE)]
    broken: dict[int, str] = {}
    first, said = 0, time.monotonic()
    for group, found in zip(groups, in_turn(undecodable, groups), strict=True):
        for part, one in zip(group, found, strict=True):
            broken |= {first + row: why for row, why in one.items()}
            first += len(part)
        if time.monotonic() - said > 5:
            said = time.monotonic()
            say(f"looking for images that cannot be read: {first:,} of {len(entries):,}")
    return broken


def _cache_file(places: Sequence[Place]) -> Path | None:
    digest = hashlib.blake2b(f"broken {DECODING_VERSION}".encode(), digest_size=16)
    shards: dict[str, bytes] = {}
    for place in places:
        try:
            digest.update(state_of(place, shards))
        except OSError:
            digest.update(os.fsencode(str(place)) + b"\0not there\0")
    try:
        return cache_folder() / "broken" / f"{digest.hexdigest()}.json"
    except ConfigError:
        return None


def _read(path: Path, images: int) -> dict[int, str] | None:
    """What was kept, or None where there is nothing, or nothing that fits."""
    try:
        found = {int(row): str(why) for row, why in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return found if all(0 <= row < images for row in found) else None


def _keep(path: Path, found: Mapping[int, str]) -> None:
    with contextlib.suppress(OSError, ResourceError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(found).encode())
