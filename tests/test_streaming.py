"""Images that are read from their files while a run goes on: the same whoever reads, from wherever it starts."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from longtail.data.batch import DataNeeds
from longtail.data.files import load_files
from longtail.data.images import ImageSet
from longtail.data.loader import Loader
from longtail.data.open import open_data
from longtail.data.reading import cutting, jpeg, reading_all
from longtail.data.reading.cutting import Draw, Part, Window, cut, read_squares, undecodable
from longtail.data.reading.decoding import opened, to_rgb, upright_size
from longtail.data.reading.image_files import PART, ImageFiles, chunks
from longtail.data.reading.members import Member
from longtail.data.reading.readers import Asked, close_readers, read, read_by
from longtail.data.reading.squares import middle_square
from longtail.data.settings import DataSettings
from longtail.data.stream_loader import StreamLoader, loader_for
from longtail.data.views import VIEWS, build_view
from longtail.data.views.geometry import ResizedCrop
from longtail.errors import ConfigError, DataError, ResourceError
from longtail.rng import generator
from longtail.training import detection
from longtail.training.detection import training_peaks
from pictures import SIZE, folder, picture, settings
from tiny import Recorder

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture
def processes() -> Iterator[None]:
    """Two processes read; they end with the test."""
    read_by(2)
    yield
    close_readers()
    read_by(0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 training images of several shapes in 3 classes, larger than SIZE."""
    place = tmp_path_factory.mktemp("streamed")
    for k, count in enumerate((24, 10, 6)):
        for n in range(count):
            seed = 100 * k + n
            picture(place / "train" / "abc"[k] / f"{n}.png", seed, height=10 + seed % 7, width=9 + seed % 11)
    return folder(place, test=[2, 2, 2])


def streamed(root: Path, **more: Any) -> ImageSet:
    return load_files(settings("folder", root, stream=True, **more)).train


def loader(train: ImageSet, *views: str, workers: int = 0, partner: str | None = None, **more: Any) -> Loader:
    made = {name: build_view(name, SIZE, MEAN, STD) for name in VIEWS}
    needs = DataNeeds(views=views, partner_views=(partner,) if partner else (), **more.pop("needs", {}))
    return loader_for(train)(train, needs, made, 9, 2, 7, workers=workers, **more)


def tensors(made: Loader, start: int, stop: int) -> list[Tensor]:
    found: list[Tensor] = []
    for batch in made.iterate(start, stop, lambda at: made.needs.partner and at.step % 3 != 1):
        found += [*batch.views, batch.target, batch.index]
        found += [] if batch.partner is None else [*batch.partner.views, batch.partner.index]
    return found


def assert_same(one: list[Tensor], other: list[Tensor]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


# Against images in memory ---------------------------------------------------------------------------------------------


def test_a_view_that_begins_with_the_square_is_the_same_from_files_as_from_memory(root: Path) -> None:
    in_memory = load_files(settings("folder", root, stream=False)).train
    assert isinstance(in_memory.images, Tensor)
    one = loader(in_memory, "crop-flip", "autoaugment", partner="plain")
    other = loader(streamed(root), "crop-flip", "autoaugment", partner="plain")
    assert (type(one), type(other)) == (Loader, StreamLoader)
    assert_same(tensors(one, 0, 5), tensors(other, 0, 5))


def test_the_images_of_files_are_the_squares_that_memory_would_hold(root: Path) -> None:
    in_memory, files = load_files(settings("folder", root, stream=False)).train, streamed(root).images
    assert isinstance(files, ImageFiles)
    assert files.shape == in_memory.images.shape
    assert torch.equal(files[:], in_memory.stacked)
    assert torch.equal(files[5], in_memory.stacked[5])
    assert torch.equal(files[-1], in_memory.stacked[-1])
    assert torch.equal(files[torch.tensor([7, 2, 7])], in_memory.stacked[[7, 2, 7]])
    assert files[torch.tensor([], dtype=torch.int64)].shape == (0, 3, SIZE, SIZE)
    assert torch.equal(files.subset(torch.tensor([3, 1]))[:], in_memory.stacked[[3, 1]])
    assert [len(part) for part in chunks(files, 15)] == [15, 15, 10]
    assert torch.equal(torch.cat(list(chunks(files, 15))), in_memory.stacked)


def test_windows_are_cut_from_whole_images_where_the_draw_says(root: Path) -> None:
    """By a slow loop: the stage applied to each whole image alone, at its own row of the draw."""
    train = streamed(root)
    assert isinstance(train.images, ImageFiles)
    made = loader(train, "resized-crop")
    batch = made.batch(2, with_partner=False)
    sizes, whole = [], []
    for row in batch.index.tolist():
        with opened(train.images.files[row]) as image:
            whole.append(torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1)[None])
            sizes.append(whole[-1].shape[-2:])
    view = made.views["resized-crop"]
    params = view.draw(torch.tensor(sizes), generator(7, "view", 0, 2))
    assert len({tuple(size) for size in sizes}) > 4, "the sizes are mixed"
    for row, image in enumerate(whole):
        own = tuple({name: values[row : row + 1] for name, values in stage.items()} for stage in params)
        expected = view.apply(image, own)
        # Pillow rounds each of its two passes to whole gray levels.
        assert float((batch.views[0][row] - expected[0]).abs().max() * 255 * max(STD)) < 1.6


@pytest.mark.parametrize("workers", [0, 2])
def test_of_partners_whose_labels_alone_are_wanted_no_file_is_opened(
    root: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    made = loader(streamed(root), "plain", workers=workers, needs={"partner_labels": True})
    asked: list[Part] = []
    real = Asked.__init__

    def noted(self: Asked[Any], task: Any, given: list[Part]) -> None:
        asked.extend(given)
        real(self, task, given)

    monkeypatch.setattr(Asked, "__init__", noted)
    batch = next(made.iterate(0, 1, lambda at: True))
    assert batch.partner is not None
    assert len(batch.partner.target) == 9
    assert [len(part.files) for part in asked] == [9]


@pytest.mark.parametrize("name", VIEWS)
def test_a_row_of_a_draw_depends_on_the_size_in_that_row_alone(name: str) -> None:
    view = build_view(name, SIZE, MEAN, STD)
    sizes = torch.tensor([[12, 30], [8, 8], [9, 20], [40, 9]])
    other = torch.tensor([[1, 1], [8, 8], [1, 1], [1, 1]])
    if view.stages and not isinstance(view.stages[0], ResizedCrop):
        sizes, other = (torch.full_like(sizes, 8) for _ in "ab")
    one, two = (view.draw(given, generator(0, "view", 0)) for given in (sizes, other))
    for stage, again in zip(one, two, strict=True):
        for key in stage:
            assert torch.equal(stage[key][1], again[key][1]), (name, key)


# Whoever reads --------------------------------------------------------------------------------------------------------


def test_the_number_of_processes_changes_nothing(root: Path, processes: None) -> None:
    asked = {"partner": "resized-crop"}
    read_by(0)
    alone = tensors(loader(streamed(root), "contrastive", "crop-flip", **asked), 0, 10)
    read_by(2)
    assert_same(alone, tensors(loader(streamed(root), "contrastive", "crop-flip", workers=2, **asked), 0, 10))
    images = streamed(root).images
    assert isinstance(images, ImageFiles)
    assert torch.equal(images[:], torch.cat(list(chunks(images, 7))))


@pytest.mark.parametrize("rows", [[0, 2, 5, 8], []])
@pytest.mark.parametrize("carried", [False, True])
def test_one_of_several_processes_makes_its_rows_of_the_batch_and_no_others(
    root: Path, rows: list[int], carried: bool
) -> None:
    train, own = streamed(root), torch.tensor(rows, dtype=torch.int64)
    peaks = torch.rand(len(train), 2, dtype=torch.float64, generator=generator("peaks")) if carried else None
    asked: dict[str, Any] = {"partner": "crop-flip", "peaks": peaks}
    if carried:
        asked["needs"] = {"detector": "fine-grained"}
    views = ("resized-crop",) if carried else ("contrastive", "autoaugment")
    whole = loader(train, *views, **asked).batch(1, with_partner=True)
    part = loader(train, *views, own=lambda images: own, **asked).batch(1, with_partner=True)
    assert whole.partner is not None
    assert part.partner is not None
    for one, other in ((whole, part), (whole.partner, part.partner)):
        assert torch.equal(one.index, other.index)
        for view, made in zip(one.views, other.views, strict=True):
            # Colors are computed on the stack: sums over other stacks are rounded otherwise.
            assert torch.allclose(view[own], made, rtol=0, atol=1e-5)
        if carried:
            assert one.peaks is not None
            assert other.peaks is not None
            assert torch.equal(one.peaks, other.peaks)


def test_a_batch_is_the_same_wherever_the_loader_starts(root: Path) -> None:
    made = loader(streamed(root), "contrastive", partner="contrastive")
    whole = tensors(made, 0, 6)
    assert_same(
        whole, tensors(made, 0, 4) + tensors(loader(streamed(root), "contrastive", partner="contrastive"), 4, 6)
    )


def test_the_size_of_a_part_changes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tensors(loader(streamed(root), "contrastive"), 0, 2)
    monkeypatch.setattr("longtail.data.reading.image_files.PART", 2)
    assert PART != 2
    assert_same(whole, tensors(loader(streamed(root), "contrastive"), 0, 2))


def test_no_more_steps_are_asked_for_than_are_to_be_in_memory(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, most = streamed(root), 0
    made = loader(train, "resized-crop", workers=1)
    assert isinstance(made, StreamLoader)
    for _ in made.iterate(0, 10, lambda at: False):
        most = max(most, len(made._requests))
    assert most == 2
    stopped = made.iterate(0, 10, lambda at: False)
    next(stopped)
    stopped.close()
    assert not made._requests


def test_a_file_is_decoded_once_for_all_its_views(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[object] = []
    once = cutting.to_rgb
    monkeypatch.setattr(cutting, "to_rgb", lambda image: decoded.append(image) or once(image))
    batch = loader(streamed(root), "contrastive", "resized-crop", "crop-flip").batch(0, with_partner=False)
    assert len(decoded) == len(batch.target) == 9


# What goes wrong ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["batch", "images"])
def test_a_damaged_file_is_named(tmp_path: Path, where: str) -> None:
    place = folder(tmp_path, train=[4, 4])
    train = streamed(place)
    (place / "train" / "b" / "2.png").write_bytes(b"no image")
    (place / "train" / "b" / "3.png").unlink()
    assert isinstance(train.images, ImageFiles)
    with pytest.raises(DataError) as caught:
        _ = loader(train, "resized-crop").batch(0, with_partner=False) if where == "batch" else train.images[:]
    said = str(caught.value)
    assert f"{place}/train/b/2.png: no image of a kind that is read" in said
    assert f"{place}/train/b/3.png: there is no such file" in said
    assert "train/a" not in said


def test_files_that_are_not_there_are_named_before_the_first_step(tmp_path: Path) -> None:
    place = tmp_path / "set"
    rows = [f"{picture(place / f'{n}.png', n).name} {n % 2}" for n in range(14)]
    (place / "train.txt").write_text("\n".join(rows))
    for n in range(1, 13):
        (place / f"{n}.png").unlink()
    with pytest.raises(DataError) as caught:
        load_files(settings("list", place / "train.txt", stream=True))
    said = str(caught.value)
    assert "12 of 14 listed images are not there" in said
    assert "\n10.png\n... and 2 more." in said
    assert "data.root" in said


def test_a_process_that_is_killed_is_a_clear_error_and_the_next_run_has_new_ones(root: Path, processes: None) -> None:
    train = streamed(root)
    assert isinstance(train.images, ImageFiles)
    readers = set(read(_own_number, range(8)))
    assert len(readers) == 2
    os.kill(min(readers), signal.SIGKILL)
    time.sleep(0.2)
    with pytest.raises(ResourceError, match="A process that reads images has died") as caught:
        _ = train.images[:]
    assert caught.value.exit_code == 6
    assert len(train.images[:]) == 40
    for reader in readers:
        assert _ends(reader), "what is left of the broken ones would keep this process from ending"


def test_signals_to_the_group_do_not_end_the_processes_that_read(processes: None) -> None:
    [reader, *_] = read(_own_number, [0, 1])
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(reader, number)
    assert len(read(_own_number, range(8))) == 8
    os.kill(reader, 0)


def test_what_nobody_takes_is_not_waited_for(processes: None) -> None:
    asked = Asked(_wait, [0.5] * 400)
    asked.drop()
    began = time.monotonic()
    close_readers()
    assert time.monotonic() - began < 50  # of the 100 that two processes would take; they start within it too


def _ends(process: int) -> bool:
    for _ in range(200):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def _own_number(_: int) -> int:
    time.sleep(0.05)
    return os.getpid()


def _wait(seconds: float) -> None:
    time.sleep(seconds)


# Files decoded no larger than needed ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 JPEGs and PNGs in 2 classes, up to ten times as large as SIZE, some of them turned."""
    place = tmp_path_factory.mktemp("photographs")
    for n in range(12):
        exif = Image.Exif()
        exif[0x0112] = 6 if n % 4 == 1 else 1
        kind = "png" if n % 5 == 2 else "jpg"
        pixels = np.linspace(0, 255, (60 + 3 * n) * (72 + n) * 3).astype(np.uint8).reshape(60 + 3 * n, 72 + n, 3)
        file = place / "train" / "ab"[n % 2] / f"{n}.{kind}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.sort(pixels, axis=1)).save(file, exif=exif, **({"quality": 95} if kind == "jpg" else {}))
    return folder(place, test=[2, 2])


def test_scaled_windows_are_those_of_the_whole_image_but_for_a_few_levels(photographs: Path) -> None:
    whole, scaled = (
        tensors(loader(streamed(photographs, decoding=decoding), "resized-crop", partner="resized-crop"), 0, 4)
        for decoding in ("whole", "scaled")
    )
    views = [(a, b) for a, b in zip(whole, scaled, strict=True) if a.is_floating_point()]
    assert len(views) == 7
    assert sum(not torch.equal(one, other) for one, other in views) >= 4
    for one, other in views:
        assert float((one - other).abs().mean() * 255 * max(STD)) < 5  # half of a pixel is a 16th of the ramp
    for one, other in zip(whole, scaled, strict=True):
        assert one.is_floating_point() or torch.equal(one, other)


def test_scaled_windows_do_not_depend_on_who_reads_or_on_where_a_run_begins(photographs: Path, processes: None) -> None:
    train = streamed(photographs, decoding="scaled")
    together = tensors(loader(train, "resized-crop", "resized-crop", workers=2), 0, 4)
    read_by(0)
    alone = tensors(loader(train, "resized-crop", "resized-crop"), 0, 4)
    assert_same(alone, together)
    assert_same(tensors(loader(train, "resized-crop", "resized-crop"), 3, 4), alone[-4:])


def test_scaled_windows_are_the_same_without_simplejpeg(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = streamed(photographs, decoding="scaled")
    expected = tensors(loader(train, "resized-crop"), 0, 4)
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    assert_same(tensors(loader(train, "resized-crop"), 0, 4), expected)


def test_what_is_evaluated_and_views_of_squares_are_decoded_whole(photographs: Path) -> None:
    whole, scaled = (streamed(photographs, decoding=decoding) for decoding in ("whole", "scaled"))
    assert isinstance(whole.images, ImageFiles)
    assert isinstance(scaled.images, ImageFiles)
    assert torch.equal(whole.images[:], scaled.images[:])
    views = ("crop-flip", "resized-crop")  # one file serves both: it is decoded once, and whole
    assert_same(tensors(loader(whole, *views), 0, 4), tensors(loader(scaled, *views), 0, 4))


def test_a_scaled_member_of_a_shard_is_read_as_its_file_is(photographs: Path, tmp_path: Path) -> None:
    file = next((photographs / "train").rglob("*.jpg"))
    content = file.read_bytes()
    (tmp_path / "shard").write_bytes(b"before" + content + b"after")
    member, window = Member(str(tmp_path / "shard"), "x.jpg", 6, len(content), None), Window(3, 5, 40, 50, SIZE)
    [expected], [found] = (read_squares(place, [window], scaled=True) for place in (str(file), member))
    assert np.array_equal(found, expected)


def test_a_scaled_file_that_cannot_be_read_is_named(photographs: Path, tmp_path: Path) -> None:
    good = next((photographs / "train").rglob("*.jpg")).read_bytes()
    (tmp_path / "half.jpg").write_bytes(good[: len(good) // 2])
    draw = Draw(ResizedCrop(SIZE, scale=(0.2, 1.0)), (0, "view", 0, 0))
    assert list(cut(Part([str(tmp_path / "half.jpg")], [0], 1, (draw,), scaled=True)).broken) == [0]


# Sizes, squares, settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_the_size_by_the_header_is_that_of_the_upright_image(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = picture(tmp_path / f"x.{kind}", height=12, width=20, exif=exif)
    with opened(file) as image:
        found = upright_size(image)
        assert found == to_rgb(image).size[::-1]


def test_a_window_of_a_turned_image_is_taken_from_it_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = picture(tmp_path / "x.png", height=12, width=20, exif=exif)
    [square] = read_squares(str(file), [Window(4, 3, 6, 6, 6)])
    with opened(file) as image:
        assert np.array_equal(square, np.asarray(to_rgb(image)).transpose(2, 0, 1)[:, 4:10, 3:9])


def test_the_middle_of_a_share_of_the_short_side_is_kept() -> None:
    ramp = torch.arange(64, dtype=torch.uint8).expand(1, 3, 32, 64).contiguous()
    assert torch.equal(middle_square(ramp, 28, 0.875), ramp[..., 2:30, 18:46])
    assert torch.equal(middle_square(ramp[..., :32], 32, 0.875), ramp[..., :32]), (
        "an image of the size is taken as it is"
    )
    assert middle_square(ramp, 7, 0.875).shape == (1, 3, 7, 7)


def test_a_part_of_a_batch_has_the_rows_of_its_own(root: Path) -> None:
    images = streamed(root).images
    assert isinstance(images, ImageFiles)
    draw = Draw(ResizedCrop(SIZE, scale=(0.2, 1.0)), (0, "view", 0, 0))
    whole = cut(Part(images.files[:6], range(6), 6, (draw, (SIZE, 1.0))))
    part = cut(Part(images.files[4:6], [4, 5], 6, (draw, (SIZE, 1.0))))
    for one, other in zip(whole.pixels, part.pixels, strict=True):
        assert np.array_equal(one[4:], other)


def test_mean_and_deviation_are_those_of_a_sample_spread_over_the_files(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longtail.data.sources.arrays.SAMPLE", 10)
    kept = open_data(settings("folder", root, stream=False)).train.stacked[::4].double() / 255
    data = open_data(settings("folder", root, stream=True))
    assert data.mean == pytest.approx(kept.mean((0, 2, 3)).tolist(), rel=1e-6)
    assert data.std == pytest.approx(kept.std((0, 2, 3), correction=0).tolist(), rel=1e-6)


def test_settings_that_contradict_streaming_are_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match="decoding"):
        open_data(settings("folder", root, stream=False, decoding="scaled"))
    assert isinstance(load_files(settings("folder", root, decoding="scaled")).train.images, ImageFiles)
    with pytest.raises(ConfigError, match="center_crop"):
        open_data(settings("folder", root, stream=False, center_crop=0.5))


@pytest.fixture
def spoiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of 20 training images one is cut off, one is no image and one is listed and not there; one of test is broken."""
    monkeypatch.setenv("LONGTAIL_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "set"
    for split, count in (("train", 20), ("test", 6)):
        rows = [f"{picture(place / split / f'{n}.png', n, height=20).relative_to(place)} {n % 2}" for n in range(count)]
        (place / f"{split}.txt").write_text("\n".join(rows))
    content = (place / "train" / "3.png").read_bytes()
    (place / "train" / "3.png").write_bytes(content[: len(content) // 2])
    (place / "train" / "4.png").write_bytes(b"no image")
    (place / "train" / "9.png").unlink()
    (place / "test" / "1.png").write_bytes(b"")
    return place


def skipping(place: Path, **more: Any) -> DataSettings:
    test = str(place / "test.txt")
    return settings("list", place / "train.txt", test_path=test, on_error="skip", stream=True, **more)


def test_files_that_cannot_be_read_are_left_out_as_in_memory_whoever_looks(spoiled: Path, processes: None) -> None:
    by_two = load_files(skipping(spoiled))
    shutil.rmtree(spoiled.parent / "cache")
    read_by(0)
    alone, in_memory = load_files(skipping(spoiled)), load_files(skipping(spoiled).model_copy(update={"stream": False}))
    for source in (by_two, alone):
        assert list(source.notes) == list(in_memory.notes)
        assert source.train.ids == in_memory.train.ids
        assert source.test is not None
        assert in_memory.test is not None
        assert source.test.ids == in_memory.test.ids
        assert torch.equal(source.train.images[:], in_memory.train.stacked)
    [note] = alone.notes
    assert note == "left out, because they cannot be read (4): train/3.png, train/4.png, train/9.png, test/1.png"
    assert open_data(skipping(spoiled)).stats.counts == [9, 8]


def test_a_look_at_all_files_is_kept_until_one_changes(spoiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    monkeypatch.setattr(reading_all, "undecodable", lambda files: looked.append(len(files)) or undecodable(files))
    first, again = load_files(skipping(spoiled)), load_files(skipping(spoiled))
    assert first.train.ids == again.train.ids
    assert sum(looked) == 26
    picture(spoiled / "train" / "4.png", 4)
    assert len(load_files(skipping(spoiled)).train) == 18
    assert sum(looked) == 52
    for kept in (spoiled.parent / "cache" / "broken").iterdir():
        kept.write_text('{"99": "beyond"}')
    assert len(load_files(skipping(spoiled)).train) == 18


def test_a_split_of_which_nothing_can_be_read_is_refused(spoiled: Path) -> None:
    for file in (spoiled / "test").iterdir():
        file.write_bytes(b"x")
    with pytest.raises(DataError, match="Of the 6 test images none can be read"):
        load_files(skipping(spoiled))


def test_an_analysis_of_all_images_in_memory_says_that_they_are_in_files(root: Path) -> None:
    with pytest.raises(DataError, match="read from their files"):
        _ = streamed(root).stacked


# Peaks ----------------------------------------------------------------------------------------------------------------


def spots(root: Path) -> ImageSet:
    """Black images of several shapes with a white square of 4 x 4 pixels, each at a place of its own."""
    for n in range(24):
        height, width = 24 + 5 * (n % 4), 24 + 7 * (n % 3)
        pixels = np.zeros((height, width, 3), np.uint8)
        top, left = (7 * n) % (height - 4), (11 * n) % (width - 4)
        pixels[top : top + 4, left : left + 4] = 255
        file = root / "train" / "ab"[n % 2] / f"{n}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    return load_files(settings("folder", root, stream=True, size=24)).train


def brightness(images: Tensor) -> Tensor:
    return images.float().mean(dim=1)


@pytest.mark.parametrize("view", ["resized-crop", "crop-flip", "plain"])
def test_the_peak_of_a_whole_image_follows_it_into_the_view(tmp_path: Path, view: str) -> None:
    train = spots(tmp_path)
    peaks = training_peaks(train, "fine-grained", given=brightness, listener=Recorder())
    assert peaks is not None
    assert bool(((peaks > 0) & (peaks < 1)).all())
    views = {view: build_view(view, 24, (0, 0, 0), (1, 1, 1))}
    needs = DataNeeds(views=(view,), partner_views=(view,), detector="fine-grained")
    made = loader_for(train)(train, needs, views, 8, 40, 3, peaks=peaks)
    seen = 0
    for batch in made.iterate(0, 60, lambda at: True):
        for part in (batch, batch.partner):
            assert part is not None
            assert part.peaks is not None
            for image, (row, column) in zip(part.views[0], part.peaks.tolist(), strict=True):
                if 1 <= row <= 22 and 1 <= column <= 22 and float(image.max()) > 0.9:
                    seen += 1
                    assert float(image[:, row - 1 : row + 2, column - 1 : column + 2].max()) > 0.5
    assert seen > 300


def test_peaks_of_files_are_kept_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGTAIL_CACHE", str(tmp_path / "cache"))
    train, looked = spots(tmp_path / "set"), list[int]()
    once = detection.whole
    monkeypatch.setattr(detection, "whole", lambda asked: looked.append(len(asked.files)) or once(asked))
    first = training_peaks(train, "fine-grained", listener=Recorder())
    again = training_peaks(train, "fine-grained", listener=Recorder())
    assert first is not None
    assert again is not None
    assert torch.equal(first, again)
    assert sum(looked) == 24
    picture(tmp_path / "set" / "train" / "a" / "0.png", 5, height=24, width=24)
    training_peaks(train, "fine-grained", listener=Recorder())
    assert sum(looked) == 48


def test_peaks_of_files_name_a_file_that_cannot_be_read_and_a_detector_that_needs_more(tmp_path: Path) -> None:
    train = spots(tmp_path)
    with pytest.raises(DataError, match="in memory"):
        training_peaks(train, "ground-truth", listener=Recorder())
    with pytest.raises(DataError, match="in memory"):
        training_peaks(train, "given", maps_file="x.npz", listener=Recorder())
    (tmp_path / "train" / "a" / "2.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"a/2\.png: no image"):
        training_peaks(train, "fine-grained", given=brightness, listener=Recorder())
