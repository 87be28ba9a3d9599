"""Windows of image files: the same pixels as cropping the whole image, decoded no larger than needed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor

from longtail.data.reading import jpeg
from longtail.data.reading.decoding import BrokenImageError
from longtail.data.reading.jpeg import Window, _Header, read_windows, windows_of
from longtail.data.views.geometry import ResizedCrop
from longtail.rng import generator

SIZE = 48
DECODERS = ["pillow", "simplejpeg"]


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    return Image.fromarray(load_sample_image("china.jpg")).resize((401, 267))


def encoded(image: Image.Image, **more: object) -> bytes:
    file = io.BytesIO()
    image.save(file, **({"format": "JPEG", "quality": 90} | more))
    return file.getvalue()


def cut(pixels: NDArray[np.uint8], windows: list[Window], size: int = SIZE) -> Tensor:
    """The plain way: the whole image in floats, its window resampled, rounded to the nearest."""
    params = {
        "corner": torch.tensor([window[:2] for window in windows]),
        "extent": torch.tensor([window[2:4] for window in windows]),
    }
    whole = torch.from_numpy(pixels).permute(2, 0, 1).expand(len(windows), -1, -1, -1)
    return ResizedCrop(size, (0.08, 1.0)).apply(whole, params).mul(255).round()


def some_windows(count: int = 40) -> list[Window]:
    crop = ResizedCrop(SIZE, (0.08, 1.0))
    return windows_of(crop.draw(torch.tensor([[267, 401]]).expand(count, 2), generator("jpeg", "windows")), SIZE)


@pytest.mark.parametrize("decoder", DECODERS)
def test_an_undiminished_window_is_the_plain_crop_to_one_level(photograph: Image.Image, decoder: str) -> None:
    data = encoded(photograph)
    whole = np.array(Image.open(io.BytesIO(data)))
    small = [window for window in some_windows() if min(window.height, window.width) < 2 * SIZE]
    assert len(small) > 1
    for window in small:
        found = read_windows(data, lambda height, width, window=window: [window], decoder=decoder)[0]
        assert found.dtype == torch.uint8
        assert float((found.float() - cut(whole, [window])).abs().max()) <= 1


def test_a_diminished_window_looks_like_the_plain_crop(photograph: Image.Image) -> None:
    """Averaged in another way, moved by half a pixel at most: on a photograph rich in detail, three to four levels."""
    data = encoded(photograph)
    whole = np.array(Image.open(io.BytesIO(data)))
    seen, means = set(), []
    for window in some_windows():
        seen.add(_Header(267, 401, 1, "JPEG", "RGB").reduction([window]))
        apart = (read_windows(data, lambda *_, window=window: [window])[0].float() - cut(whole, [window])).abs()
        means.append(float(apart.mean()))
    assert seen == {1, 2, 4}
    assert max(means) < 8
    assert sum(means) / len(means) < 4


def test_a_diminished_window_lies_where_the_plain_crop_does() -> None:
    """The middle of a bright spot is found to the half pixel of the result that edges may move, and a tenth."""
    pixels = np.zeros((403, 605, 3), dtype=np.uint8)
    pixels[195:206, 395:406] = 255
    data = encoded(Image.fromarray(pixels))
    for window in (
        Window(3, 5, 397, 395 + 203, SIZE),
        Window(101, 203, 200, 310, SIZE),
        Window(7, 309, 390, 290, SIZE),
    ):
        found = read_windows(data, lambda *_, window=window: [window])[0][0].double()
        place = [float((found.sum(1 - axis) * torch.arange(SIZE)).sum() / found.sum()) for axis in (0, 1)]
        corner, extent = np.array(window[:2]), np.array(window[2:4])
        expected = (np.array([200, 400]) + 0.5 - corner) * SIZE / extent - 0.5
        assert np.abs(np.array(place) - expected).max() < 0.6


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_both_decoders_give_the_same_pixels(photograph: Image.Image, subsampling: int, reduction: int) -> None:
    data = encoded(photograph, subsampling=subsampling)
    header = _Header(267, 401, 1, "JPEG", "RGB")
    one, other = (jpeg._decode(data, header, reduction, decoder) for decoder in DECODERS)
    assert one.shape == (-(-267 // reduction), -(-401 // reduction), 3)
    assert np.array_equal(one, other)


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 300), st.integers(1, 8), st.booleans())
def test_what_is_left_of_a_window_has_the_side_of_the_result(
    height: int, width: int, size: int, turned: int, photo: bool
) -> None:
    header = _Header(4000, 3000, turned, "JPEG" if photo else "PNG", "RGB")
    windows = [Window(0, 0, height, width, size), Window(0, 0, 2999, 2999, size)]
    reduction = header.reduction(windows)
    assert reduction in ((1, 2, 4, 8) if photo else (1,))
    assert reduction == 1 or min(height, width, 2999) / reduction >= size
    if photo and reduction < 8:
        assert min(height, width, 2999) / (2 * reduction) < size


def test_all_windows_come_from_one_decoding_that_serves_the_smallest(
    photograph: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    decode = jpeg._decode
    monkeypatch.setattr(jpeg, "_decode", lambda *given: calls.append(given[2]) or decode(*given))  # type: ignore[func-returns-value]
    windows = [Window(0, 0, 267, 401, SIZE), Window(20, 30, 100, 110, SIZE)]
    found = read_windows(encoded(photograph), lambda *_: windows)
    assert [tuple(square.shape) for square in found] == [(3, SIZE, SIZE)] * 2
    assert calls == [2]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_windows_are_of_the_upright_image(photograph: Image.Image, orientation: int, tmp_path: Path) -> None:
    """Stored in any orientation, in sides that no reduction divides, the upright image is the same."""
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # from upright to stored, by Image.Transpose
    stored = photograph if orientation == 1 else photograph.transpose(Image.Transpose(back[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "x.jpg"
    path.write_bytes(encoded(stored, quality=98, subsampling=0, exif=exif))
    window = Window(11, 17, 250, 371, SIZE)
    sides = []
    found = read_windows(path, lambda *given: sides.append(given) or [window])[0]  # type: ignore[func-returns-value]
    assert sides == [(267, 401)]
    assert float((found.float() - cut(np.array(photograph), [window])).abs().mean()) < 3


@pytest.mark.parametrize("kind", ["png", "gray jpeg", "cmyk jpeg"])
def test_other_kinds_of_files_are_read_as_they_are_elsewhere(kind: str, photograph: Image.Image) -> None:
    name = kind.partition(" ")[0]
    image = {"png": photograph, "gray": photograph.convert("L"), "cmyk": photograph.convert("CMYK")}[name]
    data = encoded(image, format="PNG" if kind == "png" else "JPEG")
    window = Window(5, 6, 80, 90, SIZE)
    found = read_windows(data, lambda *_: [window])[0]
    whole = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    assert float((found.float() - cut(whole, [window])).abs().max()) <= 1


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_file_that_cannot_be_read_is_a_broken_image(photograph: Image.Image, tmp_path: Path, decoder: str) -> None:
    data = encoded(photograph)
    path = tmp_path / "half.jpg"
    path.write_bytes(data[: len(data) // 2])
    for source in (path, path.read_bytes(), b"", b"no image", tmp_path, tmp_path / "nothing.jpg"):
        with pytest.raises(BrokenImageError):
            read_windows(source, lambda height, width: [Window(0, 0, height, width, SIZE)], decoder=decoder)


def test_errors_of_the_caller_are_not_taken_for_damage(photograph: Image.Image) -> None:
    data = encoded(photograph)
    for window in (
        Window(-1, 0, 9, 9, SIZE),
        Window(0, 393, 9, 9, SIZE),
        Window(259, 0, 9, 9, SIZE),
        Window(0, 0, 0, 9, SIZE),
    ):
        with pytest.raises(ValueError, match="does not lie in an image of 267 x 401 pixels"):
            read_windows(data, lambda *_, window=window: [window])
    with pytest.raises(ZeroDivisionError):
        read_windows(data, lambda height, width: [Window(0, 0, 1 // 0, width, SIZE)])
    with pytest.raises(ValueError, match="decoder must be pillow or simplejpeg, not turbo"):
        read_windows(data, lambda height, width: [Window(0, 0, height, width, SIZE)], decoder="turbo")


def test_without_simplejpeg_the_pixels_are_the_same(photograph: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    data, windows = encoded(photograph), some_windows(6)
    expected = read_windows(data, lambda *_: windows)
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    found = read_windows(data, lambda *_: windows)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
