"""One image file as pixels: which way is up, what every mode becomes, and damage of all kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from longtail.data.reading.decoding import BrokenImageError, quiet_pillow, read_square
from longtail.rng import numpy_generator
from pictures import picture


def square(image: Image.Image, path: Path, size: int = 4, **more: Any) -> Tensor:
    image.save(path, **more)
    with quiet_pillow():
        return read_square(path, size)


def test_the_short_side_is_scaled_and_the_middle_kept(tmp_path: Path) -> None:
    """Columns of one color each: of 4 x 12 pixels the middle four columns stay."""
    columns = np.repeat(np.arange(12, dtype=np.uint8)[None, :, None] * 20, 4, axis=0).repeat(3, axis=2)
    found = square(Image.fromarray(columns), tmp_path / "x.png")
    assert found[0].tolist() == [[80, 100, 120, 140]] * 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_upright_by_its_exif(tmp_path: Path, orientation: int) -> None:
    """Where the first stored row and column belong (EXIF 2.3, table of Orientation), written out."""
    upright = np.zeros((4, 4, 3), dtype=np.uint8)
    upright[0, 0], upright[0, 3], upright[3, 0] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    stored = np.zeros_like(upright)
    for row in range(4):
        for column in range(4):
            top, left = {
                1: (row, column),
                2: (row, 3 - column),
                3: (3 - row, 3 - column),
                4: (3 - row, column),
                5: (column, row),
                6: (column, 3 - row),
                7: (3 - column, 3 - row),
                8: (3 - column, row),
            }[orientation]
            stored[row, column] = upright[top, left]
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = square(Image.fromarray(stored), tmp_path / "x.png", exif=exif)
    assert torch.equal(found, torch.from_numpy(upright).permute(2, 0, 1))


def test_an_orientation_that_is_none_turns_nothing(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 77
    noise = numpy_generator(0, "x").integers(0, 256, (4, 4, 3), dtype=np.uint8)
    assert torch.equal(
        square(Image.fromarray(noise), tmp_path / "x.png", exif=exif), torch.tensor(noise).permute(2, 0, 1)
    )


def test_gray_of_8_and_16_bits_and_black_and_white_are_repeated(tmp_path: Path) -> None:
    values = numpy_generator(0, "gray").integers(0, 65536, (4, 4), dtype=np.uint16)
    values[0, :2] = 0, 65535
    found = square(Image.fromarray(values), tmp_path / "x.png")
    for row in range(4):
        for column in range(4):
            assert found[:, row, column].tolist() == [int(int(values[row, column]) / 257 + 0.5)] * 3
    assert torch.equal(square(Image.fromarray(values), tmp_path / "x.tif"), found)
    low = (values >> 8).astype(np.uint8)
    assert torch.equal(square(Image.fromarray(low), tmp_path / "y.png"), torch.from_numpy(low).expand(3, 4, 4))
    bits = Image.fromarray(low > 100)
    assert set(square(bits, tmp_path / "z.png").unique().tolist()) == {0, 255}


def test_what_is_transparent_is_laid_over_white(tmp_path: Path) -> None:
    rgba = numpy_generator(0, "rgba").integers(0, 256, (4, 4, 4), dtype=np.uint8)
    rgba[0, 0, 3], rgba[0, 1, 3] = 0, 255
    found = square(Image.fromarray(rgba), tmp_path / "x.png")
    assert found[:, 0, 0].tolist() == [255] * 3
    for row in range(4):
        for column in range(4):
            *color, alpha = (int(value) for value in rgba[row, column])
            wanted = [(value * alpha + 255 * (255 - alpha)) / 255 for value in color]
            assert found[:, row, column].tolist() == pytest.approx(wanted, abs=1)


@pytest.mark.parametrize("mode", ["P", "PA", "LA", "CMYK", "YCbCr", "L"])
def test_other_modes_show_the_color_they_stand_for(tmp_path: Path, mode: str) -> None:
    color = (204, 204, 204) if mode in ("L", "LA") else (204, 51, 102)
    image = Image.new("RGB", (4, 4), color).convert("RGBA" if mode == "PA" else mode)
    suffix = {"CMYK": "tif", "YCbCr": "jpg"}.get(mode, "png")
    found = square(image, tmp_path / f"x.{suffix}")
    assert found[:, 0, 0].tolist() == pytest.approx(color, abs=4)


def test_a_palette_with_a_transparent_color_shows_white_there(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((0, 0), 0)
    found = square(image, tmp_path / "x.png", transparency=0)
    assert found[:, 0, 0].tolist() == [255, 255, 255]
    assert found[:, 1, 1].tolist() == [40, 50, 60]


def test_an_image_of_one_pixel_is_an_image(tmp_path: Path) -> None:
    assert square(Image.new("RGB", (1, 1), (9, 8, 7)), tmp_path / "x.png")[:, 3, 3].tolist() == [9, 8, 7]


def test_of_an_animation_the_first_frame_is_read(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (4, 4), (250, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 250))
    found = square(first, tmp_path / "x.gif", save_all=True, append_images=[second])
    assert found[0].min() > 240


def test_a_file_is_read_by_its_content_and_not_by_its_name(tmp_path: Path) -> None:
    path = picture(tmp_path / "x.png", format="JPEG")
    assert torch.equal(read_square(path, 4), read_square(path.rename(tmp_path / "x.jpg"), 4))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM"])
def test_a_damaged_file_is_read_or_said_to_be_broken_and_nothing_else(tmp_path: Path, kind: str) -> None:
    whole = picture(tmp_path / "whole", format=kind).read_bytes()
    draw = numpy_generator(0, "damage", kind)
    said: list[str] = []
    with quiet_pillow():
        for n in range(60):
            content = bytearray(whole[: int(draw.integers(1, len(whole) + 1))] if n % 2 else whole)
            for place in draw.integers(0, len(content), 4):
                content[place] = int(draw.integers(0, 256))
            path = tmp_path / f"{n}"
            path.write_bytes(content)
            try:
                assert read_square(path, 4).shape == (3, 4, 4)
            except BrokenImageError as error:
                said.append(str(error))
    assert said
    assert all(line and "\n" not in line for line in said)
