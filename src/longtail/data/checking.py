"""What is wrong, or worth a look, in a data set: every image is read once, nothing is changed."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from longtail.data.files import Say, list_files
from longtail.data.images import Source
from longtail.data.open import open_source
from longtail.data.reading.decoding import BrokenImageError, opened, quiet_pillow, read_pixels
from longtail.data.reading.listing import SPLITS, Listing, alike, shown
from longtail.data.settings import FILES, DataSettings
from longtail.errors import DataError

ELONGATED = 3.0
"""From this ratio of the sides on, the middle square shows at most a third of the image."""

_CHUNK = 256


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing found: its kind, whether it must be mended, a line that says it, and the images or classes it is of."""

    kind: str
    mend: bool
    what: str
    where: list[str]


@dataclasses.dataclass(frozen=True)
class Checked:
    """What :func:`check_data` found, with the number of images of each split and of classes."""

    name: str
    images: dict[str, int]
    classes: int
    findings: list[Finding]

    @property
    def to_mend(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.mend]

    def plain(self) -> dict[str, Any]:
        """As built-in types, for JSON."""
        return {
            "schema": 1,
            "name": self.name,
            "images": self.images,
            "classes": self.classes,
            "ok": not self.to_mend,
            "findings": [{**dataclasses.asdict(one), "count": len(one.where)} for one in self.findings],
        }


@dataclasses.dataclass(frozen=True)
class _Look:
    """What is known of one image once it was read: ``broken`` says why it could not be."""

    split: str
    label: int
    id: str
    content: bytes = b""
    width: int = 0
    height: int = 0
    mode: str = ""
    broken: str | None = None


def check_data(settings: DataSettings, say: Say | None = None) -> Checked:
    """Look at every image of a data set and at its labels, before any long tail is cut.

    To be mended: lines and files that cannot be used, classes without training images (unless ``data.allow_empty``),
    the same picture in two splits.
    Worth a look: repeated pictures, pictures with two labels, images smaller than ``data.size`` or with sides of
    1 : 3 and more, modes other than 8-bit RGB, class names that look alike. Two images are the same picture if their
    pixels are equal. Raises ConfigError for settings that name no data set.
    """
    name = settings.path or settings.name
    try:
        if settings.name in FILES:
            listing = list_files(settings)
            looks, names = _look_at_files(listing, say or (lambda line: None)), listing.class_names
            notes = [note for note in listing.notes if note not in alike(names)]
            findings = _of_lines("listing", True, "lines or folders that cannot be used", listing.problems)
            findings += _of_files(looks, settings.size or 0)
        else:
            source = open_source(settings)
            looks, names, notes = _look_at_source(source), list(source.class_names), list(source.notes)
            findings = []
    except DataError as error:
        return Checked(name, {}, 0, [Finding("unusable", True, str(error), [])])
    findings += _of_classes(looks, names, settings.allow_empty)
    findings += _of_repetition(looks, names)
    findings += [Finding("alike", False, note, []) for note in alike(names)]
    findings += [Finding("note", False, note, []) for note in notes]
    found = Counter(look.split for look in looks)
    images = {split: found[split] for split in SPLITS if found[split]}
    ranked = sorted(findings, key=lambda finding: not finding.mend)
    return Checked(name, images, len(names), ranked)


def _look_at_files(listing: Listing, say: Say) -> list[_Look]:
    waiting = [(split, entry) for split, entries in listing.splits.items() for entry in entries]
    looks: list[_Look] = []

    def look(place: int) -> _Look:
        split, entry = waiting[place]
        try:
            with opened(entry.path) as image:
                width, height, mode = image.width, image.height, image.mode
                pixels = read_pixels(image)
        except BrokenImageError as error:
            return _Look(split, entry.label, entry.id, broken=str(error))
        return _Look(split, entry.label, entry.id, _digest(pixels), width, height, mode)

    with quiet_pillow(), ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for first in range(0, len(waiting), _CHUNK):
            looks += pool.map(look, range(first, min(first + _CHUNK, len(waiting))))
            if first // _CHUNK % 20 == 19:
                say(f"{len(looks):,} of {len(waiting):,} images")
    return looks


def _look_at_source(source: Source) -> list[_Look]:
    looks: list[_Look] = []
    for split, part in zip(SPLITS, (source.train, source.val, source.test), strict=True):
        if part is None:
            continue
        labels = part.labels.tolist()
        for row, image in enumerate(part.stacked.cpu().numpy()):
            name = f"{split} {row}" if part.ids is None else part.ids[row]
            looks.append(_Look(split, labels[row], name, _digest(np.ascontiguousarray(image))))
    return looks


def _digest(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(pixels.reshape(-1).data)
    return digest.digest()


def _of_lines(kind: str, mend: bool, what: str, where: Iterable[str]) -> list[Finding]:
    listed = list(where)
    return [Finding(kind, mend, what, listed)] if listed else []


def _of_files(looks: Sequence[_Look], size: int) -> list[Finding]:
    read = [look for look in looks if look.broken is None]
    unreadable = [f"{look.id}: {look.broken}" for look in looks if look.broken is not None]
    findings = _of_lines("unreadable", True, "images that cannot be read", unreadable)

    def those(kind: str, what: str, hold: Callable[[_Look], bool]) -> list[Finding]:
        where = [f"{look.id}: {look.width} x {look.height}" for look in read if hold(look)]
        return _of_lines(kind, False, what, where)

    findings += those("small", f"images smaller than data.size={size}", lambda x: min(x.width, x.height) < size)
    findings += those(
        "elongated",
        f"images with sides of 1 : {ELONGATED:.0f} and more, of which the middle square is used",
        lambda x: max(x.width, x.height) >= ELONGATED * min(x.width, x.height),
    )
    for mode in sorted({look.mode for look in read} - {"RGB"}):
        findings += _of_lines(
            "mode", False, f"images of mode {mode}, brought to RGB", [look.id for look in read if look.mode == mode]
        )
    return findings


def _of_classes(looks: Sequence[_Look], names: Sequence[str], allow_empty: bool) -> list[Finding]:
    findings: list[Finding] = []
    for split in SPLITS:
        there = {look.label for look in looks if look.split == split and look.broken is None}
        if split == "train" or any(look.split == split for look in looks):
            absent = [name for k, name in enumerate(names) if k not in there]
            kind = "training" if split == "train" else split
            mend = split == "train" and not allow_empty
            findings += _of_lines("empty-class", mend, f"classes without {kind} images", absent)
    return findings


def _of_repetition(looks: Sequence[_Look], names: Sequence[str]) -> list[Finding]:
    same: dict[bytes, list[_Look]] = {}
    for look in looks:
        if look.broken is None:
            same.setdefault(look.content, []).append(look)
    shared, labels, repeated = [], [], []
    for group in same.values():
        if len(group) == 1:
            continue
        line = " = ".join(f"{shown(look.id)} ({look.split}, {shown(names[look.label], 40)})" for look in group)
        if len({look.split for look in group}) > 1:
            shared.append(line)
        elif len({look.label for look in group}) > 1:
            labels.append(line)
        else:
            repeated.append(line)
    return [
        *_of_lines("in-two-splits", True, "pictures that are in more than one split", shared),
        *_of_lines("two-labels", False, "pictures that are in more than one class", labels),
        *_of_lines("repeated", False, "pictures that are there more than once", repeated),
    ]
