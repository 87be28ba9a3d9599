"""ImageNet-LT, Places-LT, iNaturalist 2018: where their public lists lie, and whether they are the published ones."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longtail.data.reading.listing import SPLITS, Listing, Row, settle, shown
from longtail.data.reading.members import Member
from longtail.data.reading.tables import list_lists, placed
from longtail.data.settings import DataSettings
from longtail.errors import DataError

RGB = tuple[float, float, float]

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class BigList:
    """A row of :data:`BIG_LISTS`: the published numbers, and the names of the lists without regard to case.

    ``folders`` are those below ``data.path`` in which public programs keep the lists. ``largest`` and ``smallest`` are
    training images of a class. ``mean`` and ``std`` are the constants that the field normalizes by.
    """

    title: str
    classes: int
    images: Mapping[str, int]
    largest: int
    smallest: int
    lists: Mapping[str, tuple[str, ...]]
    folders: tuple[str, ...]
    source: str
    mean: RGB = _IMAGENET_MEAN
    std: RGB = _IMAGENET_STD


def _names(*stems: str) -> dict[str, tuple[str, ...]]:
    return {split: tuple(f"{stem}_{split}.txt" for stem in stems) for split in SPLITS}


BIG_LISTS: dict[str, BigList] = {
    "imagenet-lt": BigList(
        title="ImageNet-LT",
        classes=1000,
        images={"train": 115_846, "val": 20_000, "test": 50_000},
        largest=1280,
        smallest=5,
        lists=_names("imagenet_lt"),
        folders=("imagenet_lt",),
        source="Liu et al., arXiv 1904.05160",
    ),
    "places-lt": BigList(
        title="Places-LT",
        classes=365,
        images={"train": 62_500, "val": 7_300, "test": 36_500},
        largest=4980,
        smallest=5,
        lists=_names("places_lt"),
        folders=("places_lt", "places_lt_v2"),
        source="Liu et al., arXiv 1904.05160",
    ),
    "inat18": BigList(
        title="iNaturalist 2018",
        classes=8142,
        images={"train": 437_513, "val": 24_426},
        largest=1000,
        smallest=2,
        lists={
            "train": ("inaturalist18_train.txt", "train2018.json"),
            "val": ("inaturalist18_val.txt", "val2018.json"),
        },
        folders=("inaturalist18", "annotations"),
        source="Van Horn et al., arXiv 1707.06642, the 2018 challenge",
        mean=(0.466, 0.471, 0.380),
        std=(0.195, 0.194, 0.192),
    ),
}


def list_big(settings: DataSettings) -> Listing:
    """The listing of one of :data:`BIG_LISTS` at ``data.path``: the folder that holds its lists, or the training list.

    Paths are below ``data.root``, or the folder that is ``data.path`` or holds that list. Classes have the names of
    their folders where these tell them apart, or those of the JSON files. What differs from the published lists is
    noted. Raises DataError where there is no training list.
    """
    known, path = BIG_LISTS[settings.name], Path(settings.path or "")
    files = _find(known, path)
    for split, other in (("val", settings.val_path), ("test", settings.test_path)):
        if other is not None:
            files[split] = Path(other)
    root = Path(settings.root) if settings.root else (path if path.is_dir() else path.parent)
    in_json = {split for split, file in files.items() if file.suffix.lower() == ".json"}
    if in_json and len(in_json) < len(files):
        raise DataError(
            f"{known.title}: its lists are text or JSON, not one of each: {', '.join(map(str, files.values()))}"
        )
    listing = _list_json(files, root) if in_json else _named_by_folder(list_lists(files, root))
    return compared(known, listing)


def compared(known: BigList, listing: Listing) -> Listing:
    """A listing under the name of the published one, with a note in what it differs from that."""
    said = [note for note in differences(known, listing) if note not in listing.notes]  # as that of a packed list is
    return dataclasses.replace(listing, name=known.title, notes=[*listing.notes, *said])


def differences(known: BigList, listing: Listing) -> list[str]:
    """A note that says in what ``listing`` is not the published list; empty where all numbers agree."""
    found = []
    if len(listing.class_names) != known.classes:
        found.append(f"{len(listing.class_names):,} classes, not {known.classes:,}")
    for split in SPLITS:
        there, published = len(listing.splits.get(split, ())), known.images.get(split, 0)
        if there != published:
            found.append(f"{there:,} {split} images, not {published:,}")
    counts = [count for count in listing.counts("train") if count]
    if counts and not found and (max(counts), min(counts)) != (known.largest, known.smallest):
        found.append(
            f"{max(counts):,} to {min(counts):,} training images a class, not {known.largest:,} to {known.smallest}"
        )
    if not found:
        return []
    return [f"this is not {known.title} as it is published ({known.source}): {'; '.join(found)}"]


def _find(known: BigList, path: Path) -> dict[str, Path]:
    """The lists by split; DataError where there is no list of training images."""
    try:
        if path.is_file():
            return {"train": path} | _beside(path, known)
        there = {name.casefold(): path / name for name in sorted(os.listdir(path))}
        places = [there, *(_inside(there[name]) for name in known.folders if name in there)]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", hint="Check data.path.") from None
    for kind in range(max(map(len, known.lists.values()))):
        for files in places:
            found = {
                split: files[names[kind]]
                for split, names in known.lists.items()
                if kind < len(names) and names[kind] in files
            }
            if "train" in found:
                return found
    wanted = " or ".join(known.lists["train"])
    raise DataError(
        f"{path} holds no list of {known.title}: {wanted} (in any case), there or in {' or '.join(known.folders)}.",
        hint="Give the folder of the lists, or the training list itself, as data.path, and the folder of the images as "
        "data.root.",
    )


def _inside(folder: Path) -> dict[str, Path]:
    return {name.casefold(): folder / name for name in sorted(os.listdir(folder))} if folder.is_dir() else {}


def _beside(train: Path, known: BigList) -> dict[str, Path]:
    """The lists of the other splits beside a training list, named as it is but for the split."""
    start, split, end = train.name.rpartition("train")
    others = {other: train.with_name(f"{start}{other}{end}") for other in known.lists if other != "train"}
    return {other: file for other, file in others.items() if split and file.is_file()}


def _named_by_folder(listing: Listing) -> Listing:
    """With the folder of its images as the name of each class, where every class has one and no two the same."""
    folders: list[set[str]] = [set() for _ in listing.class_names]
    for entry in listing.splits.get("train", ()):
        folders[entry.label].add(os.path.basename(os.path.dirname(entry.id)))
    if any(len(names) != 1 for names in folders):
        return listing
    names = [next(iter(names)) for names in folders]
    return dataclasses.replace(listing, class_names=names) if len(set(names)) == len(names) and all(names) else listing


def _list_json(files: dict[str, Path], root: Path) -> Listing:
    """The listing of JSON files as iNaturalist has them: ``images`` (id, file_name), ``annotations`` (image_id,
    category_id) and ``categories`` (id, name)."""
    problems: list[str] = []
    rows: dict[str, list[Row]] = {}
    names: dict[int, str] = {}
    base = os.path.normpath(root)
    for split, file in files.items():
        content = _json(file)
        try:
            paths = {image["id"]: image["file_name"] for image in content["images"]}
            labels = {one["image_id"]: one["category_id"] for one in content["annotations"]}
            names |= {one["id"]: str(one.get("name", one["id"])) for one in content.get("categories", ())}
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{file} is not as iNaturalist's files are: {type(error).__name__} {error}") from None
        rows[split] = []
        for number, name in paths.items():
            where, label = f"{file.name}, image {number}", labels.get(number)
            if type(label) is not int or label < 0 or not isinstance(name, str) or not name:
                problems.append(f"{where} has no class number or no file name.")
                continue
            found = placed(name, base, where, problems)
            if found is not None:
                rows[split].append(Row(*found, label, where))
    listing = settle(files["train"].stem, rows, problems)
    classes = [names.get(k, str(k)) for k in range(len(listing.class_names))]
    return dataclasses.replace(listing, class_names=classes) if len(set(classes)) == len(classes) else listing


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is no JSON: {shown(str(error))}") from None


def missing_files(listing: Listing) -> list[str]:
    """Ids of listed images that are not there. Each folder is read once: a look at every file takes minutes on some
    network file systems."""
    names: dict[str, set[str]] = {}
    absent = []
    for entries in listing.splits.values():
        for entry in entries:
            if isinstance(entry.path, Member):
                continue  # whose shards were looked at with their index
            folder, name = os.path.split(entry.path)
            if folder not in names:
                try:
                    names[folder] = set(os.listdir(folder))
                except OSError:
                    names[folder] = set()
            if name not in names[folder]:
                absent.append(entry.id)
    return absent
