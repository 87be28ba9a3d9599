"""Writes a data set of image files as tar files of many images each: some file systems are slow with small files."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import os
import shutil
import tarfile
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from longtail.data.files import Say, list_files
from longtail.data.reading.decoding import (
    BrokenImageError,
    one_large_at_a_time,
    opened,
    quiet_pillow,
    to_rgb,
)
from longtail.data.reading.folders import SUFFIXES
from longtail.data.reading.listing import Entry, Listing
from longtail.data.reading.members import LARGEST, Member, Place, fetched
from longtail.data.reading.reading_all import leave_out, refuse_broken
from longtail.data.reading.shard_index import INDEX, save_index
from longtail.data.settings import FILES, DataSettings
from longtail.errors import ConfigError, ResourceError
from longtail.files import disk_error

MEGABYTE = 2**20
MEGABYTES = 512
"""Of a shard, unless its images are fewer."""

_AT_ONCE = 64
"""Images that are in memory."""

_READERS = 8
"""Threads that read files: on a network file system each waits."""

_ENDINGS = {"JPEG": "jpg", "MPO": "jpg", "JPEG2000": "jp2", "DIB": "bmp"}

_LOSSY = ("JPEG", "MPO", "WEBP", "JPEG2000", "AVIF")
"""Formats whose shrunk images become JPEGs; those of the others become PNGs."""

_QUALITY = 95


@dataclasses.dataclass(frozen=True)
class Packed:
    """What was written: shards, bytes, images of each split, and how many of them all were shrunk."""

    shards: int
    size: int
    images: dict[str, int]
    shrunk: int = 0


def pack(
    settings: DataSettings,
    out: Path,
    megabytes: int = MEGABYTES,
    say: Say | None = None,
    *,
    shorter_side: int | None = None,
) -> Packed:
    """Write the set that ``data.*`` names into the new folder ``out``, before any long tail is cut.

    ``SPLIT-NUMBER.tar`` hold, in the order of the set, KEY.jpg (the bytes of the file), KEY.cls (the class number) and
    KEY.json (id and class) of each image; ``index.safetensors`` says where they lie. The same images give the same
    bytes. With ``shorter_side`` an image whose shorter side has more pixels is written anew: upright, in RGB, resized
    to that side by antialiased bicubic, as JPEG of quality 95 where its format loses something anyway, else as PNG; the
    index keeps the side, so that the set counts as another one. Images that cannot be read end it, or, with
    ``data.on_error=skip``, are left out and noted; of those that keep their bytes headers alone are looked at without
    it. Nothing is left behind where it ends early. Raises ConfigError for a set that is not of files, and where ``out``
    is there; DataError, ResourceError.
    """
    if settings.name not in FILES:
        raise ConfigError(
            f"'{settings.name}' is no set of image files: there is nothing to pack.",
            hint=f"Packed are: {', '.join(FILES)}.",
        )
    if shorter_side is not None and shorter_side < 1:
        raise ConfigError(f"The shorter side of images cannot be {shorter_side} pixels.")
    if out.exists():
        raise ConfigError(f"{out} is there already.", hint="Give a new folder: --out FOLDER")
    say = say or (lambda line: None)
    listing = list_files(settings, say)
    listing.refuse_problems()
    if settings.on_error == "skip":
        listing = leave_out(listing, say)
    with _new_folder(out) as folder:
        written = _Writer(folder, listing, megabytes * MEGABYTE, shorter_side, say)
        splits = {split: written.split(split, entries) for split, entries in listing.splits.items()}
        refuse_broken(written.broken, written.total)
        made = dataclasses.replace(listing, splits=splits)
        if written.shrunk:  # none of them was smaller after an earlier packing
            made = dataclasses.replace(made, shorter_side=shorter_side)
        save_index(folder / INDEX, made, folder)
        size = sum(file.stat().st_size for file in folder.iterdir())
    return Packed(written.shards, size, {split: len(entries) for split, entries in splits.items()}, written.shrunk)


@contextlib.contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that takes its name in the end, or goes with what is in it."""
    folder = out.with_name(f".{out.name}.packing")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except FileExistsError:
        raise ConfigError(
            f"{folder} is there: it is being written, or was left by a program that was killed.",
            hint="Delete it if nothing writes into it, or give another --out.",
        ) from None
    except OSError as error:
        raise disk_error(folder, error) from None
    try:
        yield folder
        folder.rename(out)
    except OSError as error:
        hint = "Free some space, or give another --out." if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
        raise ResourceError(f"{out} cannot be written: {error.strerror}.", hint=hint) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Writer:
    def __init__(self, folder: Path, listing: Listing, most: int, shorter_side: int | None, say: Say) -> None:
        self.folder, self.listing, self.most, self.say = folder, listing, most, say
        self.look = partial(_look, shorter_side=shorter_side)
        self.total = sum(map(len, listing.splits.values()))
        self.broken: dict[Entry, str] = {}
        self.done = self.shards = self.shrunk = 0
        self.said = time.monotonic()

    def split(self, split: str, entries: Sequence[Entry]) -> list[Entry]:
        """Write the shards of one split, and return its entries where they lie now."""
        written: list[Entry] = []
        with contextlib.ExitStack() as shard, quiet_pillow(), ThreadPoolExecutor(_READERS) as pool:
            file: BinaryIO | None = None
            for first in range(0, len(entries), _AT_ONCE):
                some = entries[first : first + _AT_ONCE]
                found = list(pool.map(self.look, (entry.path for entry in some)))
                self.broken |= {e: one for e, one in zip(some, found, strict=True) if isinstance(one, str)}
                for entry, one in zip(some, found, strict=True):
                    if isinstance(one, str) or self.broken:
                        continue  # nothing of it will stay, but all that cannot be read are to be named
                    members = self._members(len(written), entry, one)
                    if file is None or (file.tell() and file.tell() + sum(map(_length, members.values())) > self.most):
                        shard.close()
                        file = shard.enter_context(self._shard(split))
                    start = file.tell() + tarfile.BLOCKSIZE
                    for name, content in members.items():
                        file.write(_header(name, len(content)) + content + bytes(-len(content) % tarfile.BLOCKSIZE))
                    place = Member(file.name, next(iter(members)), start, len(one.content), zlib.crc32(one.content))
                    written.append(entry._replace(path=place))
                    self.shrunk += one.shrunk
                self._progress(len(some))
        return written

    def _members(self, row: int, entry: Entry, found: _Found) -> dict[str, bytes]:
        about = {"id": entry.id, "class": self.listing.class_names[entry.label]}
        key = f"{row:08d}"
        return {
            f"{key}{found.ending}": found.content,
            f"{key}.cls": str(entry.label).encode(),
            f"{key}.json": json.dumps(about).encode(),
        }

    @contextlib.contextmanager
    def _shard(self, split: str) -> Iterator[BinaryIO]:
        number = len(list(self.folder.glob(f"{split}-*.tar")))
        with open(self.folder / f"{split}-{number:06d}.tar", "xb") as file:
            yield file
            file.write(bytes(2 * tarfile.BLOCKSIZE))
            file.flush()
            os.fsync(file.fileno())
        self.shards += 1

    def _progress(self, images: int) -> None:
        self.done += images
        if time.monotonic() - self.said > 5:
            self.said = time.monotonic()
            self.say(f"packing images: {self.done:,} of {self.total:,}")


@dataclasses.dataclass(frozen=True)
class _Found:
    content: bytes
    ending: str
    shrunk: bool = False


def _look(place: Place, shorter_side: int | None) -> _Found | str:
    """The bytes of an image and the ending that it gets, or why there are none."""
    try:
        with opened(place) as image:
            kind = image.format or ""
            if shorter_side is not None and min(image.size) > shorter_side:
                return _shrunk(image, shorter_side)
        content = fetched(place)
        if isinstance(content, str):
            with open(content, "rb") as file:
                content = file.read(LARGEST + 1)
    except BrokenImageError as error:
        return str(error)
    except OSError as error:
        return error.strerror or type(error).__name__
    if isinstance(content, Member):
        return "its bytes cannot be read"
    if len(content) > LARGEST:
        return f"more than {LARGEST:,} bytes"
    name = place.name if isinstance(place, Member) else place
    ending = os.path.splitext(name)[1].lower()
    return _Found(content, ending if ending in SUFFIXES else f".{_ENDINGS.get(kind, kind.lower())}")


def _shrunk(image: Image.Image, side: int) -> _Found:
    """The image upright, its shorter side ``side``, in new bytes. Raises what its decoder does."""
    lossy = image.format in _LOSSY
    with one_large_at_a_time(image):
        upright = to_rgb(image)
        width, height = (max(side, round(edge * side / min(upright.size))) for edge in upright.size)
        small = upright.resize((width, height), Image.Resampling.BICUBIC)
    content = io.BytesIO()
    if lossy:
        small.save(content, "JPEG", quality=_QUALITY)
    else:
        small.save(content, "PNG")
    return _Found(content.getvalue(), ".jpg" if lossy else ".png", shrunk=True)


def _header(name: str, size: int) -> bytes:
    """That of a regular file in the plain form of POSIX.1-1988, without owner and time, so that all is repeatable."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.USTAR_FORMAT)


def _length(content: bytes) -> int:
    return tarfile.BLOCKSIZE + len(content) + -len(content) % tarfile.BLOCKSIZE
