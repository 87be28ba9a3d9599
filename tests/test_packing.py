"""Sets in tar shards: the same images as from their files, whoever wrote them, and what damage of each kind says."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

from longtail.api import run_config
from longtail.data import packing
from longtail.data.batch import DataNeeds
from longtail.data.checking import check_data
from longtail.data.files import list_files, load_files
from longtail.data.images import ImageSet
from longtail.data.open import open_data
from longtail.data.packing import pack
from longtail.data.reading import shards
from longtail.data.reading.decoding import opened, read_square, to_rgb
from longtail.data.reading.image_files import ImageFiles
from longtail.data.reading.listing import Entry, Listing
from longtail.data.reading.members import Member, bytes_of
from longtail.data.reading.readers import close_readers, read_by
from longtail.data.reading.shard_index import INDEX, _digest, read_index, save_index
from longtail.data.reading.shards import is_packed, list_shards
from longtail.data.settings import DataSettings
from longtail.data.stream_loader import loader_for
from longtail.data.views import VIEWS, build_view
from longtail.errors import ConfigError, DataError
from longtail.layers import merge
from longtail.recipes import load_config
from miniatures import miniature
from pictures import SIZE, folder, lines, picture, pictures, settings
from test_streaming import assert_same, tensors
from tiny import At, KilledError, Recorder

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture(autouse=True)
def _own_cache_for_each_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGTAIL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 training images of several shapes in 3 classes, some of them JPEG files; 6 of val and of test."""
    place = tmp_path_factory.mktemp("files")
    for k, count in enumerate((24, 10, 6)):
        for n in range(count):
            seed, ending = 100 * k + n, "JPG" if n % 3 else "png"
            picture(place / "train" / "abc"[k] / f"{n}.{ending}", seed, height=10 + seed % 7, width=9 + seed % 11)
    return folder(place, val=[2, 2, 2], test=[3, 2, 1])


@pytest.fixture(scope="module")
def packed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in shards of a few images."""
    place = tmp_path_factory.mktemp("packed") / "set"
    small_shards(settings("folder", root), place)
    return place


def small_shards(asked: DataSettings, place: Path, most: int = 30_000) -> packing.Packed:
    before, packing.MEGABYTE = packing.MEGABYTE, most
    try:
        return pack(asked, place, 1)
    finally:
        packing.MEGABYTE = before


def copied(packed: Path, place: Path) -> Path:
    place.mkdir()
    for file in packed.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    return place


def loaded(path: Path, **more: Any) -> ImageSet:
    return load_files(settings("folder", path, stream=True) if not more else settings("folder", path, **more)).train


def batches(train: ImageSet, start: int = 0, stop: int = 10, workers: int = 0, **more: Any) -> list[Tensor]:
    made = {name: build_view(name, SIZE, MEAN, STD) for name in VIEWS}
    needs = DataNeeds(views=("contrastive", "resized-crop", "crop-flip"), partner_views=("contrastive",))
    loader = loader_for(train)(train, needs, made, 9, 2, 7, workers=workers, **more)
    return tensors(loader, start, stop)


# The same as from files -----------------------------------------------------------------------------------------------


def test_a_packed_set_is_listed_as_its_files_are(root: Path, packed: Path) -> None:
    files, shards = (list_files(settings("folder", place)) for place in (root, packed))
    assert shards.class_names == files.class_names
    assert shards.name == files.name
    assert (shards.problems, shards.notes) == ([], [])
    assert list(shards.splits) == list(files.splits) == ["train", "val", "test"]
    for split, entries in files.splits.items():
        assert [(e.id, e.label) for e in shards.splits[split]] == [(e.id, e.label) for e in entries]
    assert len({e.path.shard for e in shards.splits["train"] if isinstance(e.path, Member)}) > 2
    one, other = (open_data(settings("folder", place, stream=True)) for place in (root, packed))
    assert one.fingerprint == other.fingerprint
    assert (one.mean, one.std) == (other.mean, other.std)


def test_the_bytes_of_the_files_are_in_the_shards_unchanged(root: Path, packed: Path) -> None:
    files = list_files(settings("folder", root)).splits
    for split, entries in list_files(settings("folder", packed)).splits.items():
        for row, (entry, file) in enumerate(zip(entries, files[split], strict=True)):
            assert isinstance(entry.path, Member)
            assert isinstance(file.path, str)
            with tarfile.open(entry.path.shard) as tar:
                key = f"{row:08d}"
                ending = Path(file.path).suffix.lower()
                assert entry.path.name == key + ending
                members = {name: tar.extractfile(f"{key}{name}") for name in (ending, ".cls", ".json")}
                found = {name: file.read() for name, file in members.items() if file is not None}
            assert found[ending] == Path(file.path).read_bytes()
            assert found[".cls"] == str(entry.label).encode()
            assert json.loads(found[".json"]) == {"id": entry.id, "class": "abc"[entry.label]}


def test_packing_again_gives_the_same_bytes_from_files_and_from_shards(
    root: Path, packed: Path, tmp_path: Path
) -> None:
    small_shards(settings("folder", root), tmp_path / "again")
    small_shards(settings("folder", packed), tmp_path / "repacked")
    for file in packed.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name
        assert file.read_bytes() == (tmp_path / "repacked" / file.name).read_bytes(), file.name


@pytest.fixture
def two_readers() -> Iterator[None]:
    read_by(2)
    yield
    close_readers()
    read_by(0)


def test_batches_have_the_bits_of_the_files_whoever_reads_and_wherever_they_start(
    root: Path, packed: Path, two_readers: None
) -> None:
    by_two = batches(loaded(packed), workers=2)
    read_by(0)
    from_files = batches(loaded(root))
    assert_same(from_files, by_two)
    assert_same(from_files, batches(loaded(packed)))
    assert_same(from_files, batches(loaded(packed), 0, 4) + batches(loaded(packed), 4, 10))


def test_one_of_several_processes_makes_its_rows_from_shards_as_from_files(root: Path, packed: Path) -> None:
    own = torch.tensor([0, 3, 8])
    one, other = (batches(loaded(place), own=lambda images: own[own < images]) for place in (root, packed))
    assert_same(one, other)


def test_images_in_memory_are_the_same_and_kept_in_the_cache(
    root: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_files, from_shards = loaded(root, stream=False), loaded(packed, stream=False)
    assert torch.equal(from_files.stacked, from_shards.stacked)
    monkeypatch.setattr("longtail.data.files.read_square", lambda *given: pytest.fail("it was decoded before"))
    assert torch.equal(loaded(packed, stream=False).stacked, from_files.stacked)


def test_a_check_looks_into_shards(packed: Path) -> None:
    checked = check_data(settings("folder", packed))
    assert checked.images == {"train": 40, "val": 6, "test": 6}
    assert not checked.to_mend


TINY = {
    "data": {"size": 16, "groups": [5, 3]},
    "model": {"backbone": "resnet8"},
    "optim": {"epochs": 2, "batch": 8},
    "method": {"hidden": 16, "dim": 8, "mask_start": 0, "mask_probability": 0.5},
    "run": {"compile": False, "threads": 1, "workers": 0},
}


def test_a_run_on_shards_that_was_killed_goes_on_to_the_bits_of_one_on_files(tmp_path: Path) -> None:
    """Peaks, which SMCL masks at, are found in shards too."""
    files = miniature(tmp_path / "files", "places-lt", classes=5)
    small_shards(settings("places-lt", files), tmp_path / "shards")
    values = merge(TINY, {"data": {"path": str(files)}, "out": str(tmp_path / "whole")})
    whole = run_config(load_config("places-lt/smcl", values), listener=Recorder())
    values |= {"out": str(tmp_path / "cut"), "data": {**values["data"], "path": str(tmp_path / "shards")}}
    with pytest.raises(KilledError):
        run_config(load_config("places-lt/smcl", values), listener=At(4, None))
    resumed = run_config(load_config("places-lt/smcl", merge(values, {"run": {"workers": 2}})), resume=True)
    last = [sorted((tmp_path / run / "checkpoints").glob("step-*.safetensors"))[-1] for run in ("whole", "cut")]
    assert last[0].read_bytes() == last[1].read_bytes()
    assert resumed.results["last"] == whole.results["last"]
    rows = [(tmp_path / run / "predictions.csv").read_bytes() for run in ("whole", "cut")]
    assert rows[0] == rows[1]


def test_lists_know_their_shards_by_the_same_name_and_note(tmp_path: Path) -> None:
    files = miniature(tmp_path / "files", "inat18", classes=5)
    pack(settings("inat18", files), tmp_path / "shards")
    one, other = (open_data(settings("inat18", place)) for place in (files, tmp_path / "shards"))
    assert (one.name, one.notes, one.mean, one.evaluated_on) == (other.name, other.notes, other.mean, "val")
    assert isinstance(other.train.images, ImageFiles)
    listed = lines(tmp_path / "list.txt", [f"{name} {n % 2}" for n, name in enumerate(pictures(tmp_path, 6))])
    pack(settings("list", listed), tmp_path / "own")
    assert open_data(settings("list", tmp_path / "own")).fingerprint == open_data(settings("list", listed)).fingerprint
    with pytest.raises(ConfigError, match=r"data\.root has no use here"):
        open_data(settings("list", tmp_path / "own", root=str(tmp_path)))


def test_thousands_of_images_are_packed_and_listed(tmp_path: Path) -> None:
    content = picture(tmp_path / "one.png").read_bytes()
    names = [f"{k}/{n}.png" for k in range(50) for n in range(100 if k else 1)]
    for name in names:
        file = tmp_path / "set" / "train" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    said = pack(settings("folder", tmp_path / "set"), tmp_path / "packed", 1)
    assert said.images == {"train": 4901}
    assert said.shards == len(list((tmp_path / "packed").glob("*.tar"))) == 15, "341 samples of six blocks fit"
    assert said.size == sum(file.stat().st_size for file in (tmp_path / "packed").iterdir())
    assert all(file.stat().st_size <= 2**20 + 1024 for file in (tmp_path / "packed").glob("*.tar"))
    found = load_files(settings("folder", tmp_path / "packed", stream=True)).train
    assert sorted(found.ids or []) == sorted(f"train/{name}" for name in names)
    assert isinstance(found.images, ImageFiles)
    assert found.images[torch.arange(0, 4901, 100)].unique(dim=0).shape[0] == 1


def test_an_index_of_half_a_million_images_is_read_in_seconds(tmp_path: Path) -> None:
    """CPU time, because the machine may be busy: 10 s are what the list itself may take."""
    rows = 437_513
    listing = list_of(tmp_path, rows)
    save_index(tmp_path / INDEX, listing, tmp_path)
    began = time.process_time()
    found = list_shards(tmp_path)
    assert time.process_time() - began < 10
    assert found == listing


def list_of(place: Path, rows: int) -> Listing:
    shard = place / "train-000000.tar"
    with shard.open("wb") as file:
        file.truncate(512 * (rows + 1))  # sparse
    entries = [
        Entry(Member(str(shard), f"{n:08d}.jpg", 512 * n, 100, n), n % 8142, f"Plantae/{n:032x}") for n in range(rows)
    ]
    return Listing("many", [str(k) for k in range(8142)], {"train": entries}, [], ["a note"])


# What packing refuses -------------------------------------------------------------------------------------------------


def left_behind(place: Path) -> list[str]:
    return sorted(file.name for file in place.iterdir() if "pack" in file.name)


def test_images_that_cannot_be_read_are_all_named_and_nothing_stays(tmp_path: Path) -> None:
    place = folder(tmp_path / "set", train=[90, 4])
    for name in ("a/1.png", "a/80.png", "b/0.png"):
        (place / "train" / name).write_bytes(b"no image")
    with pytest.raises(DataError, match="3 of 94 images cannot be read") as caught:
        pack(settings("folder", place), tmp_path / "packed")
    assert all(f"train/{name}: no image" in str(caught.value) for name in ("a/1.png", "a/80.png", "b/0.png"))
    assert left_behind(tmp_path) == []


def test_images_that_cannot_be_decoded_are_left_out_of_the_shards_where_that_is_asked_for(tmp_path: Path) -> None:
    place = folder(tmp_path / "set", train=[6, 4])
    cut = (place / "train" / "a" / "1.png").read_bytes()
    (place / "train" / "a" / "1.png").write_bytes(cut[: len(cut) // 2])  # its header is whole
    asked = settings("folder", place, on_error="skip")
    assert pack(asked, tmp_path / "packed").images == {"train": 9}
    [note] = list_files(settings("folder", tmp_path / "packed")).notes
    assert note == "left out, because they cannot be read (1): train/a/1.png"
    in_memory, streamed = (load_files(asked.model_copy(update={"stream": stream})) for stream in (False, True))
    assert list(in_memory.notes) == list(streamed.notes) == [note]


def test_a_folder_that_is_there_or_being_written_is_left_alone(root: Path, tmp_path: Path) -> None:
    (tmp_path / "packed").mkdir()
    with pytest.raises(ConfigError, match="is there already"):
        pack(settings("folder", root), tmp_path / "packed")
    (tmp_path / ".other.packing").mkdir()
    (tmp_path / ".other.packing" / "train-000000.tar").touch()
    with pytest.raises(ConfigError, match="was left by a program that was killed"):
        pack(settings("folder", root), tmp_path / "other")
    assert (tmp_path / ".other.packing" / "train-000000.tar").exists()


def test_what_ends_packing_early_leaves_nothing(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*given: object) -> None:
        assert left_behind(tmp_path) == [".packed.packing"]
        raise KeyboardInterrupt

    monkeypatch.setattr(packing, "save_index", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pack(settings("folder", root), tmp_path / "packed")
    assert left_behind(tmp_path) == []


def test_a_set_that_is_not_of_files_is_not_packed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to pack"):
        pack(DataSettings(name="scenes"), tmp_path / "packed")


# Shrunk ---------------------------------------------------------------------------------------------------------------


def shrinkable(root: Path) -> Path:
    """Training images of classes a and b: one that is small enough, a wide one, a narrow one, turned and gray ones."""
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(root / "train" / "a" / "small.png", 1, height=16, width=90)
    picture(root / "train" / "a" / "wide.PNG", 2, height=32, width=64)
    picture(root / "train" / "a" / "narrow.bmp", 3, height=50, width=20)
    picture(root / "train" / "b" / "turned.jpg", 4, height=40, width=24, exif=turned, quality=90)
    picture(root / "train" / "b" / "lossy.webp", 5, height=33, width=48)
    Image.open(picture(root / "train" / "b" / "gray.png", 6, height=24, width=24)).convert("LA").save(
        root / "train" / "b" / "gray.png"
    )
    return root


def test_images_with_a_longer_shorter_side_are_shrunk_to_it_and_the_others_stay(tmp_path: Path) -> None:
    place = shrinkable(tmp_path / "set")
    packed = pack(settings("folder", place), tmp_path / "packed", shorter_side=16)
    assert (packed.images, packed.shrunk) == ({"train": 6}, 5)
    listing, files = (list_files(settings("folder", where)) for where in (tmp_path / "packed", place))
    assert (listing.shorter_side, files.shorter_side) == (16, None)
    with tarfile.open(tmp_path / "packed" / "train-000000.tar") as tar:
        inside = {name: file.read() for name in tar.getnames() if (file := tar.extractfile(name)) is not None}
    found = {}
    for entry, before in zip(listing.splits["train"], files.splits["train"], strict=True):
        assert isinstance(entry.path, Member)
        found[Path(entry.id).name] = entry.path.name[8:]
        with opened(entry.path) as image:
            size, pixels = image.size, np.asarray(to_rgb(image)).astype(int)
        with opened(before.path) as image:
            whole = to_rgb(image)
        if min(whole.size) <= 16:
            assert isinstance(before.path, str)
            assert inside[entry.path.name] == Path(before.path).read_bytes()
            continue
        assert min(size) == 16
        assert abs(max(size) - 16 * max(whole.size) / min(whole.size)) <= 0.5
        wanted = np.asarray(whole.resize(size, Image.Resampling.BICUBIC)).astype(int)
        off = abs(pixels - wanted)
        lossless = entry.path.name.endswith("png")
        assert off.max() == 0 if lossless else off.mean() < 12  # noise of three colors is what JPEG keeps worst
    assert found == {
        "small.png": ".png",
        "wide.PNG": ".png",
        "narrow.bmp": ".png",
        "turned.jpg": ".jpg",
        "lossy.webp": ".jpg",
        "gray.png": ".png",
    }


def test_a_shrunk_set_is_another_set_for_runs_and_stays_one_when_it_is_packed_again(tmp_path: Path) -> None:
    place = shrinkable(tmp_path / "set")
    for side in (16, 20, 90):
        pack(settings("folder", place), tmp_path / str(side), shorter_side=side)
    pack(settings("folder", tmp_path / "16"), tmp_path / "again")
    pack(settings("folder", tmp_path / "20"), tmp_path / "smaller", shorter_side=16)
    prints = {
        where.name: open_data(settings("folder", where, stream=True)).fingerprint
        for where in (place, *(tmp_path / name for name in ("16", "20", "90", "again", "smaller")))
    }
    assert prints["90"] == prints["set"]  # none was that large
    assert prints["again"] == prints["16"] == prints["smaller"]
    assert len({prints["set"], prints["16"], prints["20"]}) == 3
    pack(settings("folder", place), tmp_path / "repeated", shorter_side=16)
    assert [(tmp_path / name / "train-000000.tar").read_bytes() for name in ("repeated", "again")] == [
        (tmp_path / "16" / "train-000000.tar").read_bytes()
    ] * 2


def test_an_image_that_cannot_be_shrunk_is_named_and_nothing_stays(tmp_path: Path) -> None:
    place = shrinkable(tmp_path / "set")
    file = place / "train" / "a" / "wide.PNG"
    file.write_bytes(file.read_bytes()[:-200])  # its header is whole
    with pytest.raises(DataError, match="1 of 6 images cannot be read") as caught:
        pack(settings("folder", place), tmp_path / "packed", shorter_side=16)
    assert "train/a/wide.PNG" in str(caught.value)
    assert left_behind(tmp_path) == []
    with pytest.raises(ConfigError, match="cannot be 0 pixels"):
        pack(settings("folder", place), tmp_path / "packed", shorter_side=0)


# Damage ---------------------------------------------------------------------------------------------------------------


def refused(place: Path) -> str:
    with pytest.raises(DataError) as caught:
        loaded(place)
    return str(caught.value)


def test_a_shard_that_is_cut_off_is_named_with_the_first_image_that_is_lost(packed: Path, tmp_path: Path) -> None:
    place = copied(packed, tmp_path / "cut")
    entries = list_files(settings("folder", place)).splits["train"]
    member = entries[7].path
    assert isinstance(member, Member)
    os.truncate(member.shard, member.start + member.size - 1)
    lost = sum(1 for entry in entries[7:] if isinstance(entry.path, Member) and entry.path.shard == member.shard)
    said = refused(place)
    assert f"{member.shard} is cut off" in said
    assert f"; {lost} of its" in said
    assert f"images are lost, {member.name} the first of them" in said


def test_a_shard_that_is_not_there_or_another_one_is_named(packed: Path, tmp_path: Path) -> None:
    place = copied(packed, tmp_path / "lacks")
    (place / "train-000001.tar").unlink()
    with (place / "val-000000.tar").open("ab") as file:
        file.write(bytes(512))
    said = refused(place)
    assert "train-000001.tar is not there: a shard with " in said
    assert "val-000000.tar is another file: it has " in said
    checked = check_data(settings("folder", place))
    assert [len(one.where) for one in checked.to_mend if one.kind == "listing"] == [2]


@pytest.mark.parametrize("where", ["batch", "images", "memory"])
def test_a_byte_that_changed_is_found_when_it_is_read_and_named_with_shard_and_member(
    packed: Path, tmp_path: Path, where: str
) -> None:
    place = copied(packed, tmp_path / "flipped")
    member = list_files(settings("folder", place)).splits["train"][5].path
    assert isinstance(member, Member)
    content = bytearray(Path(member.shard).read_bytes())
    content[member.start + member.size // 2] ^= 1
    Path(member.shard).write_bytes(content)
    with pytest.raises(DataError) as caught:
        _ = batches(loaded(place)) if where == "batch" else loaded(place, stream=where != "memory").images[:]
    shown = str(caught.value)
    named = "train/a/13.JPG" if where == "memory" else f"{member.shard}, 00000005.jpg"
    assert f"{named}: its bytes are not those that were packed" in shown


def test_a_shard_that_vanishes_while_a_run_goes_on_is_named(packed: Path, tmp_path: Path) -> None:
    place = copied(packed, tmp_path / "vanishes")
    train = loaded(place)
    (place / "train-000000.tar").unlink()
    with pytest.raises(DataError, match=r"train-000000\.tar, \d{8}\.\w+: the shard is not there"):
        batches(train)


@pytest.mark.parametrize("place", [0, 20, -3])
def test_a_damaged_index_is_refused_and_can_be_deleted(packed: Path, tmp_path: Path, place: int) -> None:
    damaged = copied(packed, tmp_path / "damaged")
    content = bytearray((damaged / INDEX).read_bytes())
    content[place] ^= 1
    (damaged / INDEX).write_bytes(content)
    assert "index.safetensors" in refused(damaged)
    assert "delete it" in refused(damaged)
    (damaged / INDEX).unlink()
    anew = load_files(settings("folder", damaged, stream=True)).train
    assert anew.labels.tolist() == loaded(packed).labels.tolist()
    assert_same(batches(anew), batches(loaded(packed)))


HOSTILE: list[tuple[str, Any, str]] = [
    ("shards", [["../outside.tar", 10**9]], "below its folder"),
    ("shards", [["/etc/x.tar", 10**9]], "below its folder"),
    ("shards", [["a.tar/../../x.tar", 10**9]], "below its folder"),
    ("shards", [["passwd", 10**9]], "below its folder"),
    ("shards", [["x.tar", 100]], "beyond the end"),
    ("shards", [["x.tar", 10**30]], "a shard's size is out of range"),
    ("shards", [], "shard is out of range"),
    ("classes", ["a"], "label is out of range"),
    ("classes", None, "TypeError"),
    ("splits", ["val"], "of a split that it does not list"),
    ("schema", 99, "later version"),
    ("start", -5, "start is out of range"),
    ("size", 2**40, "size is out of range"),
    ("split", 3, "split is out of range"),
    ("check", 2**33, "check is out of range"),
    ("member", b"a\0b\0c", "ValueError"),
    ("label", np.zeros(2, np.float64), "its label is not a number"),
]


@pytest.mark.parametrize(("key", "value", "said"), HOSTILE)
def test_an_index_that_says_what_cannot_be_is_not_believed_though_its_digest_fits(
    tmp_path: Path, key: str, value: Any, said: str
) -> None:
    about: dict[str, Any] = {"schema": 1, "name": "x", "classes": ["a", "b"], "splits": ["train"], "notes": []}
    about["shards"] = [["x.tar", 10_000]]
    arrays: dict[str, Any] = {name: np.array([0, 0]) for name in ("split", "shard", "check")}
    arrays |= {"start": np.array([512, 2048]), "size": np.array([9, 9]), "label": np.array([0, 1])}
    arrays |= {name: np.frombuffer(b"a\0b", np.uint8) for name in ("member", "id")}
    if key in about:
        about[key] = value
    elif isinstance(value, int):
        arrays[key] = np.array([value, value])
    else:
        arrays[key] = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value
    text = json.dumps(about)
    save_file(arrays, tmp_path / INDEX, metadata={"index": _digest(arrays, text) + text})
    with pytest.raises(DataError, match=said):
        read_index(tmp_path / INDEX)


def test_the_index_is_one_that_the_battery_of_hostile_ones_begins_with(packed: Path) -> None:
    with safe_open(packed / INDEX, framework="numpy") as file:
        assert {*file.keys()} == {"split", "shard", "start", "size", "check", "label", "member", "id"}
        about = json.loads(file.metadata()["index"][32:])
    assert about.keys() == {"schema", "name", "classes", "splits", "notes", "shards"}


# Shards of others -----------------------------------------------------------------------------------------------------


def tar(path: Path, members: Sequence[tuple[str, bytes] | tarfile.TarInfo], kind: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as file:
        for one in members:
            if isinstance(one, tarfile.TarInfo):
                file.addfile(one)
            else:
                info = tarfile.TarInfo(one[0])
                info.size = len(one[1])
                file.addfile(info, io.BytesIO(one[1]))
    return path


def sample(key: str, label: object, place: Path, ending: str = "png") -> list[tuple[str, bytes]]:
    name = "".join(mark if mark.isalnum() else "-" for mark in key)[-60:]
    content = picture(place / f"{name}.png", zlib.crc32(key.encode("utf-8", "surrogateescape"))).read_bytes()
    return [(f"{key}.{ending}", content), (f"{key}.cls", str(label).encode())]


def foreign(place: Path, shards: dict[str, Sequence[str]], labels: Sequence[object] = (0, 1)) -> Path:
    for name, keys in shards.items():
        members = [one for n, key in enumerate(keys) for one in sample(key, labels[n % len(labels)], place / "own")]
        tar(place / "set" / name, members)
    return place / "set"


def test_shards_of_others_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = {f"x-train-{n}.tar": [f"{n}a", f"{n}b"] for n in (10, 2, 0)} | {"x-val-0.tar": ["v"]}
    place = foreign(tmp_path, names)
    listing = list_files(settings("folder", place))
    ids = [entry.id for entry in listing.splits["train"]]
    assert ids == [f"x-train-{n}.tar/{n}{c}.png" for n in (0, 2, 10) for c in "ab"]
    assert [entry.id for entry in listing.splits["val"]] == ["x-val-0.tar/v.png"]
    assert (listing.class_names, listing.problems) == (["0", "1"], [])
    train = loaded(place)
    assert train.labels.tolist() == [0, 1] * 3
    assert isinstance(train.images, ImageFiles)
    by_hand = picture(tmp_path / "own" / "2b.png", zlib.crc32(b"2b"))
    assert torch.equal(train.images[3], read_square(by_hand, SIZE))
    assert_same(batches(train), batches(loaded(place)))


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_folders_of_splits_deep_keys_and_text_labels_are_taken(tmp_path: Path, kind: int) -> None:
    key = "/".join(["deep" * 10] * 3) + "/x1"
    members = [*sample(key, "owl", tmp_path), *sample("./y.2", "great tit", tmp_path), ("z/notes.txt", b"left alone")]
    members += [(".hidden", b""), ("no-ending", b""), ("w.jpeg.json", b"{}")]
    tar(tmp_path / "set" / "train" / "0.tar", members, kind)
    tar(tmp_path / "set" / "test" / "0.tar", sample("t", "owl", tmp_path), kind)
    listing = list_files(settings("folder", tmp_path / "set"))
    assert listing.problems == []
    assert listing.class_names == ["owl"]
    assert [entry.id for entry in listing.splits["train"]] == [f"train/0.tar/{key}.png"]


def test_capital_endings_and_a_label_before_its_image_are_taken(tmp_path: Path) -> None:
    members = [one for n in range(4) for one in reversed(sample(f"{n}", n % 2, tmp_path, "PNG"))]
    tar(tmp_path / "set" / "a.tar", members)
    assert len(loaded(tmp_path / "set")) == 4


NAMES = [
    "../../etc/x",
    "/etc/x",
    "a\nb",
    "\x1b[31mred",
    "=cmd()",
    "C:\\x",
    "e\u0301 \u202e x",
    "\udcff\udcfe",
    "x" * 300,
    " ",
    "con",
]


def test_a_hostile_name_is_never_a_path_and_never_breaks_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = [one for n, name in enumerate(NAMES) for one in sample(name, n % 2, tmp_path / "own")]
    tar(tmp_path / "set" / "train-0.tar", members)
    tar(tmp_path / "set" / "test-0.tar", sample("ok", 1, tmp_path / "own"))
    before = sorted(tmp_path.rglob("*"))
    train = loaded(tmp_path / "set")
    assert len(train) == len(NAMES)
    assert [file for file in sorted(tmp_path.rglob("*")) if "cache" not in file.parts] == before
    assert isinstance(train.images, ImageFiles)
    assert len(train.images[:]) == len(NAMES)
    for file in train.images.files:
        assert isinstance(file, Member)
        file.name.encode()
    pack(settings("folder", tmp_path / "set"), tmp_path / "packed")
    with tarfile.open(tmp_path / "packed" / "train-000000.tar") as packed:
        assert all(name[:8].isdecimal() for name in packed.getnames())
    assert loaded(tmp_path / "packed").ids == train.ids
    content = bytearray((tmp_path / "set" / "train-0.tar").read_bytes())
    (tmp_path / "set" / "train-0.tar").write_bytes(content[:3000])
    assert all(line.isprintable() for line in refused(tmp_path / "set").splitlines())


def test_what_is_wrong_with_a_sample_is_named(tmp_path: Path) -> None:
    link = tarfile.TarInfo("link.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    device = tarfile.TarInfo("zero.jpg")
    device.type = tarfile.CHRTYPE
    members: list[Any] = [
        ("one.png", b"x"),
        ("two.png", b"x"),
        ("two.jpg", b"x"),
        ("two.cls", b"0"),
        ("three.png", b"x"),
        ("three.cls", b"y" * 2000),
        link,
        device,
        *sample("ok", 0, tmp_path),
        *sample("fine", 1, tmp_path),
        ("minus.png", b"x"),
        ("minus.cls", b"-1"),
    ]
    tar(tmp_path / "set" / "0.tar", members)
    listing = list_files(settings("folder", tmp_path / "set"))
    said = "\n".join(listing.problems)
    assert "0.tar, one has no label" in said
    assert "0.tar, two has several images: two.png, two.jpg" in said
    assert "0.tar, three has no label" in said
    assert "0.tar, minus: label -1 is not a class number" in said
    assert len(listing.problems) == 4
    assert [note for note in listing.notes if "links, devices" in note] == [
        "left out, links, devices or sparse files in shards (2): 0.tar/link.jpg, 0.tar/zero.jpg"
    ]
    assert not list((tmp_path / "cache").rglob("*.safetensors")), "a set with problems is looked through anew"


def test_a_member_larger_than_any_image_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "LARGEST", 100)
    tar(tmp_path / "set" / "0.tar", sample("a", 0, tmp_path))
    assert "bytes are more than an image has" in refused(tmp_path / "set")


@pytest.mark.parametrize("damage", ["cut in a member", "cut in a header", "no end", "header", "zipped", "nothing"])
def test_a_damaged_shard_of_others_is_named(tmp_path: Path, damage: str) -> None:
    place = foreign(tmp_path, {"train-0.tar": ["a", "b", "c", "d"], "train-1.tar": ["e", "f"]})
    shard = place / "train-0.tar"
    content = bytearray(shard.read_bytes())
    with tarfile.open(shard) as file:
        members = file.getmembers()
    third = members[4]
    if damage == "cut in a member":
        content = content[: third.offset_data + 100]
    elif damage == "cut in a header":
        content = content[: third.offset + 100]
    elif damage == "no end":
        content = content[: third.offset]
    elif damage == "header":
        content[third.offset + 3] ^= 1
    elif damage == "zipped":
        content = bytearray(gzip.compress(bytes(content)))
    else:
        content = bytearray()
    shard.write_bytes(content)
    said = refused(place)
    assert str(shard) in said
    assert ("after b.cls" in said) == (damage in ("cut in a header", "no end", "header"))
    assert ("after c.png" in said or "after b.cls" in said) == (damage not in ("zipped", "nothing"))
    assert "Copy" in said


def test_the_first_look_at_shards_of_others_is_kept_until_one_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, looked = foreign(tmp_path, {"0.tar": ["a", "b"], "1.tar": ["c", "d"]}), list[Path]()
    once = shards._Shard.rows
    monkeypatch.setattr(shards._Shard, "rows", lambda self: looked.append(self.path) or once(self))
    first, again = (list_files(settings("folder", place)) for _ in "ab")
    assert first == again
    assert looked == [place / "0.tar", place / "1.tar"]
    tar(place / "1.tar", sample("e", 1, tmp_path))
    assert [entry.id for entry in list_files(settings("folder", place)).splits["train"]][2:] == ["1.tar/e.png"]
    assert len(looked) == 4
    [kept] = [file for file in (tmp_path / "cache" / "shards").iterdir() if file.stat().st_mtime_ns][-1:]
    kept.write_bytes(b"")
    assert len(list_files(settings("folder", place)).splits["train"]) == 3


def test_names_that_only_sometimes_say_a_split_are_refused(tmp_path: Path) -> None:
    place = foreign(tmp_path, {"train-0.tar": ["a", "b"], "more.tar": ["c"]})
    assert "of which split are more.tar?" in refused(place)


def test_class_folders_beside_an_archive_are_a_folder_as_ever(root: Path, tmp_path: Path) -> None:
    place = folder(tmp_path / "set", train=[2, 2])
    tar(place / "images.tar", [("x", b"")])
    assert not is_packed(place)
    assert len(list_files(settings("folder", place)).splits["train"]) == 4
    (place / "train" / "more.tar").write_bytes(b"")
    assert not is_packed(place)


BY_WEBDATASET = """
import hashlib, json, sys, webdataset
where, *shards = sys.argv[1:]
if where == "read":
    for sample in webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8").to_tuple("jpg;png", "cls", "json"):
        image, label, about = sample
        print(json.dumps([about["id"], label, hashlib.sha256(image.tobytes()).hexdigest()]))
else:
    with webdataset.ShardWriter(where + "/set-%06d.tar", maxcount=3, verbose=0) as sink:
        for n, file in enumerate(shards):
            content = open(file, "rb").read()
            sink.write({"__key__": f"sample{n:04d}", "png": content, "cls": n % 2, "json": {"n": n}})
"""


def by_webdataset(*words: str) -> str:
    """What it prints in a process of its own, since it leaves files open."""
    pytest.importorskip("webdataset", reason="WebDataset is not installed")
    found = subprocess.run([sys.executable, "-c", BY_WEBDATASET, *words], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_webdataset_reads_what_was_packed(packed: Path) -> None:
    shards = sorted(map(str, packed.glob("train-*.tar")))
    found = [json.loads(line) for line in by_webdataset("read", *shards).splitlines()]
    expected = []
    for entry in list_files(settings("folder", packed)).splits["train"]:
        with opened(entry.path) as image:
            pixels = np.asarray(to_rgb(image)).tobytes()
        expected.append([entry.id, entry.label, hashlib.sha256(pixels).hexdigest()])
    assert found == expected


def test_what_webdataset_writes_is_read(tmp_path: Path) -> None:
    files = [picture(tmp_path / f"{n}.png", n) for n in range(7)]
    by_webdataset(str(tmp_path), *map(str, files))
    found = list_files(settings("folder", tmp_path)).splits["train"]
    assert [entry.label for entry in found] == [0, 1, 0, 1, 0, 1, 0]
    for file, entry in zip(files, found, strict=True):
        assert isinstance(entry.path, Member)
        assert bytes_of(entry.path) == file.read_bytes()
