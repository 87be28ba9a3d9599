"""Where the bytes of an image lie: in a file of their own, or as a member of a tar file."""

from __future__ import annotations

import os
import zlib
from typing import NamedTuple

LARGEST = 256 * 2**20
"""Bytes of a member. The largest image that is decoded has as many uncompressed."""


class Member(NamedTuple):
    """One member of a tar file: its bytes are those at ``start``, ``size`` of them.

    ``check`` is their CRC-32, or None where nobody has read them yet. A tuple, because there may be half a million.
    """

    shard: str
    name: str
    start: int
    size: int
    check: int | None

    def __str__(self) -> str:
        return f"{self.shard}, {self.name}"


Place = str | Member
"""A file by its path, or a member of a tar file."""


class DamagedMemberError(Exception):
    """A member whose bytes are not those that were packed; its text is the reason, in one line."""


def bytes_of(member: Member) -> bytes:
    """The bytes of a member. Raises DamagedMemberError where they are not there or not those that were packed.

    The tar file is opened for each, so that no process keeps files open and a shard that was mended is read anew.
    """
    try:
        with open(member.shard, "rb") as file:
            file.seek(member.start)
            content = file.read(member.size)
    except FileNotFoundError:
        raise DamagedMemberError("the shard is not there") from None
    if len(content) < member.size:
        raise DamagedMemberError(f"the shard is cut off: {len(content):,} of {member.size:,} bytes are there")
    if not content:
        raise DamagedMemberError("an empty file")
    if member.check is not None and zlib.crc32(content) != member.check:
        raise DamagedMemberError("its bytes are not those that were packed (CRC-32)")
    return content


def fetched(place: Place) -> Place | bytes:
    """A member as its bytes, so that they are read once. One that cannot be read stays, and tells when it is opened."""
    if isinstance(place, Member):
        try:
            return bytes_of(place)
        except (DamagedMemberError, OSError):
            return place
    return place


def state_of(place: Place, known: dict[str, bytes]) -> bytes:
    """What tells that the image at ``place`` is the one that was there before: path, size, time. Raises OSError.

    ``known`` has what was found of the shards so far: each is looked at once.
    """
    if isinstance(place, str):
        return _state(place)
    if place.shard not in known:
        known[place.shard] = _state(place.shard)
    return known[place.shard] + f"{place.start} {place.size}\0".encode()


def _state(path: str) -> bytes:
    found = os.stat(path)
    return os.fsencode(path) + f"\0{found.st_size} {found.st_mtime_ns}\0".encode()
