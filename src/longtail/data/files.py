"""Data sets of image files: listed, then decoded once by several threads and kept in the user's cache folder, or left
in their files where they are too many."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from longtail.data.images import ImageSet, Source
from longtail.data.prepare import check_classes
from longtail.data.reading.big_lists import BIG_LISTS, compared, list_big, missing_files
from longtail.data.reading.decoding import DECODING_VERSION, BrokenImageError, quiet_pillow, read_square
from longtail.data.reading.folders import list_folder
from longtail.data.reading.image_files import ImageFiles
from longtail.data.reading.listing import SPLITS, Entry, Listing, first_few, shown
from longtail.data.reading.members import state_of
from longtail.data.reading.reading_all import leave_out, note_of, refuse_broken, refuse_empty
from longtail.data.reading.shards import has_index, is_packed, list_shards
from longtail.data.reading.tables import list_csv, list_lists
from longtail.data.settings import BIG, DataSettings
from longtail.errors import ConfigError, DataError
from longtail.files import cache_folder

MAX_BYTES = 4 * 2**30
"""The largest set, decoded, that is held in memory; a larger one is read from its files while a run goes on."""

KEPT_BYTES = 10 * 2**30
"""What the cache holds of decoded sets before the ones not used for longest are deleted."""

Say = Callable[[str], None]

_CHUNK = 256


def list_files(settings: DataSettings, say: Say | None = None) -> Listing:
    """What ``data.path`` of a set of image files consists of; no image is opened. Raises DataError.

    Where it is a folder of shards (see :func:`~longtail.data.reading.shards.is_packed`), the set is that in them,
    whatever it was made of. ``say`` hears how far the first look through shards of others is.
    """
    assert settings.path is not None
    path = Path(settings.path)
    if not path.exists():
        raise DataError(f"There is nothing at {path}.", hint="Check data.path.")
    if path.is_dir() and (is_packed(path) if settings.name == "folder" else has_index(path)):
        return _list_packed(settings, path, say)
    if settings.name == "folder":
        return list_folder(path)
    if settings.name in BIG:
        with _collector_at_rest():
            return list_big(settings)
    files = {"train": path}
    for split, other in (("val", settings.val_path), ("test", settings.test_path)):
        if other is not None:
            files[split] = Path(other)
    root = None if settings.root is None else Path(settings.root)
    if settings.name == "list":
        return list_lists(files, root)
    return list_csv(files, root, settings.image_column, settings.label_column, settings.split_column)


def _list_packed(settings: DataSettings, path: Path, say: Say | None) -> Listing:
    given = [key for key in ("root", "val_path", "test_path", "split_column") if getattr(settings, key) is not None]
    if given:
        raise ConfigError(
            f"data.{given[0]} has no use here: {path} holds shards, which have their images and splits in them.",
            hint=f"Leave data.{given[0]} out.",
        )
    with _collector_at_rest():
        listing = list_shards(path, say)
        return compared(BIG_LISTS[settings.name], listing) if settings.name in BIG else listing


@contextlib.contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Half a million rows hold no circles, and looking for them takes as long as reading the rows."""
    working = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if working:
            gc.enable()


def load_files(settings: DataSettings, say: Say | None = None) -> Source:
    """The images of a folder or of lists at ``data.size``, with their paths as ids; or their files, where
    ``data.stream`` says so or they would not fit in memory. Pixels are those of
    :func:`~longtail.data.reading.decoding.read_square`.

    A set that was decoded before and has not changed (paths, file sizes, times) comes from the cache folder. ``say``
    hears every few seconds how far it is. Raises DataError for a listing with problems, a set that would not fit where
    it must be in memory, and files that cannot be read unless ``data.on_error`` is "skip": they are then left out, with
    a note. Of files that are left where they are it is told only whether they are there.
    """
    listing = list_files(settings, say)
    listing.refuse_problems()
    check_classes(listing.counts("train"), listing.class_names, settings.allow_empty)
    size = settings.size
    assert size is not None
    if _streams(settings, listing):
        return _streamed(settings, listing, say or (lambda line: None))
    _refuse_too_large(listing, size)
    kept = _cache_file(listing, size)
    images = None if kept is None else _read(kept, listing, size)
    broken: dict[Entry, str] = {}
    if images is None:
        images, broken = _decode(listing, size, say or (lambda line: None))
        if broken:
            if settings.on_error == "stop":
                refuse_broken(broken, sum(map(len, listing.splits.values())))
            refuse_empty(broken, listing)
        elif kept is not None:
            _keep(kept, images)
    notes = [*listing.notes, note_of(broken)] if broken else list(listing.notes)
    sets = {split: _image_set(images[split], listing.splits[split], broken) for split in images}
    return Source(
        shown(listing.name),
        listing.class_names,
        sets["train"],
        sets.get("val"),
        sets.get("test"),
        notes=notes,
    )


def _streams(settings: DataSettings, listing: Listing) -> bool:
    """Whether the images are left in their files."""
    if settings.stream != "auto":
        return settings.stream
    size, count = settings.size or 0, sum(map(len, listing.splits.values()))
    wanted = settings.name in BIG or settings.center_crop != 1 or settings.decoding != "whole"
    return wanted or 3 * size * size * count > MAX_BYTES


def _streamed(settings: DataSettings, listing: Listing, say: Say) -> Source:
    """The files of a listing as a source; DataError, naming the first ten, where some are not there.

    With ``data.on_error=skip`` all are read once, and those that cannot be are left out.
    """
    if settings.on_error == "skip":
        listing = leave_out(listing, say)
    absent = missing_files(listing)
    if absent:
        count = sum(map(len, listing.splits.values()))
        raise DataError(
            "\n".join([f"{len(absent):,} of {count:,} listed images are not there:", *first_few(absent, 10)]),
            hint="Paths are below data.root, or the folder of the list: set data.root to the folder they begin in.",
        )
    sets = {}
    for split, entries in listing.splits.items():
        files, scaled = [entry.path for entry in entries], settings.decoding == "scaled"
        images = ImageFiles(
            files, settings.size or 0, settings.center_crop, scaled=scaled, shorter_side=listing.shorter_side
        )
        labels = torch.tensor([entry.label for entry in entries], dtype=torch.int64)
        sets[split] = ImageSet(images, labels, torch.arange(len(entries)), ids=[entry.id for entry in entries])
    known = BIG_LISTS.get(settings.name)
    return Source(
        shown(listing.name),
        listing.class_names,
        sets["train"],
        sets.get("val"),
        sets.get("test"),
        mean=None if known is None else known.mean,
        std=None if known is None else known.std,
        notes=list(listing.notes),
    )


def _image_set(images: Tensor, entries: Sequence[Entry], broken: dict[Entry, str]) -> ImageSet:
    good = [(position, entry) for position, entry in enumerate(entries) if entry not in broken]
    labels = torch.tensor([entry.label for _, entry in good], dtype=torch.int64)
    index = torch.tensor([position for position, _ in good], dtype=torch.int64)
    return ImageSet(images, labels, index, ids=[entry.id for _, entry in good])


def _refuse_too_large(listing: Listing, size: int) -> None:
    count = sum(map(len, listing.splits.values()))
    needed = 3 * size * size * count
    if needed > MAX_BYTES:
        fits = math.isqrt(MAX_BYTES // (3 * count))
        hint = f"data.size={fits} would fit." if fits >= 8 else "Take fewer images."
        raise DataError(
            f"{count:,} images of {size} x {size} pixels take {needed / 2**30:.1f} GB, and with data.stream=false all "
            f"are held in memory at once: at most {MAX_BYTES / 2**30:.0f} GB.",
            hint=hint,
        )


def _decode(listing: Listing, size: int, say: Say) -> tuple[dict[str, Tensor], dict[Entry, str]]:
    """The images that can be read, by split, and why the others cannot."""
    total = sum(map(len, listing.splits.values()))
    images: dict[str, Tensor] = {}
    broken: dict[Entry, str] = {}
    done, said = 0, time.monotonic()

    def read(entry: Entry) -> Tensor | BrokenImageError:
        try:
            return read_square(entry.path, size)
        except BrokenImageError as error:
            return error

    with quiet_pillow(), ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for split, entries in listing.splits.items():
            stacked = torch.empty(len(entries), 3, size, size, dtype=torch.uint8)
            good = 0
            # By chunks, so that Ctrl-C does not wait for all images.
            for chunk in _chunks(entries):
                for entry, found in zip(chunk, pool.map(read, chunk), strict=True):
                    if isinstance(found, Tensor):
                        stacked[good] = found
                        good += 1
                    else:
                        broken[entry] = str(found)
                done += len(chunk)
                if time.monotonic() - said > 5:
                    said = time.monotonic()
                    say(f"reading images: {done:,} of {total:,}")
            images[split] = stacked[:good]
    return images, broken


def _chunks(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    return (entries[first : first + _CHUNK] for first in range(0, len(entries), _CHUNK))


def _cache_file(listing: Listing, size: int) -> Path | None:
    """Where the decoded images are kept, by what the files are; None where there is no cache or a file is not there."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([DECODING_VERSION, size]).encode())
    try:
        folder = cache_folder() / "images"
        shards: dict[str, bytes] = {}
        for split in SPLITS:
            digest.update(f"\0{split}".encode())
            for entry in listing.splits.get(split, ()):
                digest.update(state_of(entry.path, shards))
    except (OSError, ConfigError):
        return None
    return folder / f"{digest.hexdigest()}.safetensors"


def _read(path: Path, listing: Listing, size: int) -> dict[str, Tensor] | None:
    """What was kept, or None where there is nothing, or nothing that is whole and fits."""
    try:
        with safe_open(path, framework="pt") as file:
            claimed = (file.metadata() or {}).get("digest")
            images = {split: file.get_tensor(split) for split in listing.splits}
    except (OSError, SafetensorError):
        return None
    for split, entries in listing.splits.items():
        if images[split].shape != (len(entries), 3, size, size) or images[split].dtype != torch.uint8:
            return None
    if _digest(images) != claimed:
        return None
    with contextlib.suppress(OSError):
        path.touch()  # the ones not used for longest are deleted first
    return images


def _keep(path: Path, images: dict[str, Tensor]) -> None:
    """Keep decoded images where the cache can be written; elsewhere they are decoded again next time."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(images, temporary, metadata={"digest": _digest(images)})
        temporary.replace(path)
        _drop_old(path.parent)
    except (OSError, SafetensorError):
        with contextlib.suppress(OSError):
            temporary.unlink()


def _drop_old(folder: Path) -> None:
    found = sorted(((kept.stat(), kept) for kept in folder.glob("*.safetensors")), key=lambda pair: -pair[0].st_mtime)
    total = 0
    for about, kept in found:
        total += about.st_size
        if total > KEPT_BYTES:
            kept.unlink(missing_ok=True)


def _digest(images: dict[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for split in sorted(images):
        digest.update(split.encode())
        digest.update(images[split].contiguous().numpy().reshape(-1).data)
    return digest.hexdigest()
