"""Saliency by pixels alone, and peaks, against slow loops; OpenCV's own numbers where they are at hand."""

from __future__ import annotations

import cmath
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longtail.errors import ConfigError, DataError
from longtail.rng import generator
from longtail.saliency import (
    fine_grained,
    image,
    image_centers,
    maps_from_masks,
    mask_centers,
    opencv_fine_grained,
    opencv_spectral_residual,
    peak,
    random_centers,
    spectral_residual,
)

DETECTORS = [fine_grained, spectral_residual]
SIDE = 64

Grid = list[list[float]]


def mirrored(place: int, length: int) -> int:
    """The position that a mirror at both ends, which does not repeat the end itself, shows at ``place``."""
    while length > 1 and not 0 <= place < length:
        place = -place if place < 0 else 2 * (length - 1) - place
    return place if length > 1 else 0


def filtered(grid: Grid, taps: list[list[float]]) -> Grid:
    """Two-dimensional filter, mirrored at the frame."""
    height, width, reach = len(grid), len(grid[0]), len(taps) // 2
    around = range(-reach, reach + 1)
    return [
        [
            sum(
                taps[i + reach][j + reach] * grid[mirrored(y + i, height)][mirrored(x + j, width)]
                for i in around
                for j in around
            )
            for x in range(width)
        ]
        for y in range(height)
    ]


def gray_of(pixels: Tensor) -> list[list[int]]:
    """(3, H, W) to OpenCV's gray."""
    red, green, blue = pixels.tolist()
    return [
        [(3735 * b + 19235 * g + 9798 * r + 2**14) >> 15 for r, g, b in zip(*rows, strict=True)]
        for rows in zip(red, green, blue, strict=True)
    ]


def slow_fine_grained(pixels: Tensor) -> Grid:
    """One image (3, H, W), pixel by pixel."""
    gray = gray_of(pixels)
    height, width = len(gray), len(gray[0])
    for _ in range(2):
        gray = [[(int(v) + 8) >> 4 for v in row] for row in filtered(gray, [[1, 2, 1], [2, 4, 2], [1, 2, 1]])]
    parts = [[[0] * width for _ in range(height)] for _ in range(2)]
    for y in range(height):
        for x in range(width):
            for n in (12, 24, 48, 28, 56, 112):
                rows = gray[max(y - n + 1, 0) : min(y + n + 1, height)]
                window = [row[max(x - n + 1, 0) : min(x + n + 1, width)] for row in rows]
                others = sum(map(len, window)) - 1
                if others:
                    difference = gray[y][x] * others - (sum(map(sum, window)) - gray[y][x])
                    parts[difference < 0][y][x] += abs(difference) // others
    both = [[0] * width for _ in range(height)]
    for part in parts:
        most = max(map(max, part))
        for y in range(height):
            for x in range(width):
                if most:
                    both[y][x] += math.floor(255.0 * float(np.float32(part[y][x]) / np.float32(most)))
    return [[min(v, 255) / 255 for v in row] for row in both]


def resized(grid: Grid, height: int, width: int) -> Grid:
    """Bilinear between pixel centers, the frame's pixels going on outside."""

    def neighbors(place: int, size: int, length: int) -> list[tuple[int, float]]:
        at = min(max((place + 0.5) * length / size - 0.5, 0.0), length - 1.0)
        low = int(at)
        return [(low, 1 - (at - low)), (min(low + 1, length - 1), at - low)]

    return [
        [
            sum(
                grid[i][j] * a * b
                for i, a in neighbors(y, height, len(grid))
                for j, b in neighbors(x, width, len(grid[0]))
            )
            for x in range(width)
        ]
        for y in range(height)
    ]


def transformed(grid: list[list[complex]], sign: int) -> list[list[complex]]:
    """sum_xy grid[y][x] exp(sign 2 pi i (u y + v x) / 64), first over the columns, then over the rows."""
    turn = [cmath.exp(sign * 2j * cmath.pi * k / SIDE) for k in range(SIDE)]
    for _ in range(2):
        grid = [[sum(row[x] * turn[v * x % SIDE] for x in range(SIDE)) for row in grid] for v in range(SIDE)]
    return grid


def slow_spectral_residual(pixels: Tensor) -> Grid:
    """One image (3, H, W) whose spectrum has no zeros."""
    small = [[math.floor(v + 0.5) for v in row] for row in resized(gray_of(pixels), SIDE, SIDE)]
    spectrum = transformed(small, -1)
    log_amplitude = [[math.log(1 + abs(v)) for v in row] for row in spectrum]
    mean = filtered(log_amplitude, [[1 / 9] * 3] * 3)
    places = [(u, v) for u in range(SIDE) for v in range(SIDE)]
    changed = [[0j] * SIDE for _ in range(SIDE)]
    for u, v in places:
        changed[u][v] = cmath.rect(math.exp(log_amplitude[u][v] - mean[u][v]), cmath.phase(spectrum[u][v]))
    back = [[abs(v) / SIDE**2 for v in row] for row in transformed(changed, 1)]
    bell = [[math.exp(-(i * i + j * j) / (2 * 64)) for i in range(-2, 3)] for j in range(-2, 3)]
    total = sum(map(sum, bell))
    squared = [[v * v for v in row] for row in filtered(back, [[b / total for b in row] for row in bell])]
    most = max(map(max, squared))
    return resized([[v / most for v in row] for row in squared], pixels.shape[1], pixels.shape[2])


def painted(*key: str | int, size: tuple[int, int], count: int = 1, cell: int = 1) -> Tensor:
    """``count`` images of random colors in squares of ``cell`` pixels."""
    height, width = size
    cells = torch.randint(0, 256, (count, 3, -(-height // cell), -(-width // cell)), generator=generator(*key))
    large = cells.repeat_interleave(cell, 2).repeat_interleave(cell, 3)
    return large[:, :, :height, :width].to(torch.uint8)


@settings(max_examples=40)
@given(st.integers(1, 14), st.integers(1, 14), st.integers(1, 5), st.integers(0, 10**6))
def test_fine_grained_is_the_pixel_by_pixel_rule(height: int, width: int, cell: int, seed: int) -> None:
    images = painted("fine-grained", seed, size=(height, width), count=2, cell=cell)
    expected = torch.tensor([slow_fine_grained(pixels) for pixels in images])
    torch.testing.assert_close(fine_grained(images), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(41, 30), (27, 60), (1, 300), (130, 2)])
def test_fine_grained_cuts_windows_at_the_frame_of_images_larger_than_them(size: tuple[int, int]) -> None:
    images = painted("large", size=size, cell=7)
    expected = torch.tensor([slow_fine_grained(images[0])])
    torch.testing.assert_close(fine_grained(images), expected, rtol=0, atol=1e-6)


def test_fine_grained_stays_at_one_where_a_pixel_stands_out_both_ways() -> None:
    # A bright spot in a black square in a white frame: brighter than what is near, darker than the whole.
    away = (torch.arange(260) - 130).abs()
    away = torch.maximum(away[:, None], away)
    gray = torch.where(away < 4, 200, torch.where(away < 20, 0, 255))
    found = fine_grained(gray.to(torch.uint8).expand(1, 3, 260, 260))
    # The two parts of the spot add to 272: 16 in OpenCV.
    assert found[0, 129:132, 129:132].tolist() == [[1.0] * 3] * 3
    assert float(found.max()) == 1.0


def test_scaling_in_integers_is_scaling_by_a_float32_ratio() -> None:
    most = torch.arange(1, 6 * 255 + 1)[:, None]  # all there are: six differences of at most 255
    values = torch.arange(6 * 255 + 1).minimum(most)[:, None, :]
    ratio = values.numpy().astype(np.float32) / most.numpy().astype(np.float32)[:, None]
    expected = torch.from_numpy(np.floor(255.0 * ratio.astype(np.float64))).long()
    assert torch.equal(image._scaled(values), expected)


@pytest.mark.parametrize("size", [(32, 32), (20, 45), (64, 64), (90, 70)])
def test_spectral_residual_is_the_slow_transform(size: tuple[int, int]) -> None:
    images = painted("spectral", size=size, cell=3)
    expected = torch.tensor([slow_spectral_residual(images[0])])
    torch.testing.assert_close(spectral_residual(images), expected, rtol=0, atol=1e-4)


def test_spectral_residual_of_stripes_is_striped() -> None:
    # Almost all coefficients are 0: with the phase of their rounding error they would scatter over the map.
    line = painted("stripes", size=(1, 64), cell=4)[:, :, 0]
    straight = spectral_residual(line[:, :, None].expand(1, 3, 64, 64))
    assert float(straight.std()) > 0.01
    torch.testing.assert_close(straight, straight[:, :1].expand(1, 64, 64), rtol=0, atol=1e-5)
    place = torch.arange(64)
    slanted = spectral_residual(line[:, :, (place[:, None] + place) % 64])
    inside = slanted[:, 2:-2, 2:-2]  # the Gaussian sees a mirror at the frame
    assert float(inside.std()) > 0.01
    torch.testing.assert_close(inside[:, 1:, :-1], inside[:, :-1, 1:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("detect", DETECTORS)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (40, 3), (64, 64), (130, 90)])
@pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255), (12, 200, 77)])
def test_a_constant_image_has_a_map_of_zeros(detect, size: tuple[int, int], color: tuple[int, int, int]) -> None:  # type: ignore[no-untyped-def]
    images = torch.tensor(color, dtype=torch.uint8)[None, :, None, None].expand(2, 3, *size)
    assert torch.equal(detect(images), torch.zeros(2, *size))


@pytest.mark.parametrize("detect", DETECTORS)
@settings(max_examples=30)
@given(st.integers(0, 3), st.integers(1, 70), st.integers(1, 70), st.integers(1, 9), st.integers(0, 10**6))
def test_maps_lie_in_zero_to_one(detect, count: int, height: int, width: int, cell: int, seed: int) -> None:  # type: ignore[no-untyped-def]
    maps = detect(painted("range", seed, size=(height, width), count=count, cell=cell))
    assert maps.shape == (count, height, width)
    assert maps.dtype == torch.float32
    assert bool(((maps >= 0) & (maps <= 1)).all())


def test_the_brightest_and_the_darkest_spot_both_reach_one() -> None:
    images = torch.full((1, 3, 32, 32), 128, dtype=torch.uint8)
    images[:, :, 20, 9] = 255
    images[:, :, 8, 22] = 0
    found = fine_grained(images)
    assert (found == 1).nonzero().tolist() == [[0, 8, 22], [0, 20, 9]]
    assert peak(found).tolist() == [[8, 22]], "the upper of the two"


@pytest.mark.parametrize("detect", DETECTORS)
def test_a_map_does_not_depend_on_the_other_images(detect, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    images = painted("batch", size=(33, 47), count=7, cell=3)
    whole = detect(images)
    assert torch.equal(torch.cat([detect(images[i : i + 1]) for i in range(7)]), whole)
    strided = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(detect(strided), whole)
    inner, sizes = getattr(image, f"_{detect.__name__}"), []
    monkeypatch.setattr(image, f"_{detect.__name__}", lambda chunk: sizes.append(len(chunk)) or inner(chunk))
    monkeypatch.setattr(image, "CHUNK_BYTES", 250_000)
    assert torch.equal(detect(images), whole)
    assert sum(sizes) == 7
    assert len(sizes) > 1, "in chunks, to bound the memory"


@pytest.mark.parametrize("detect", DETECTORS)
def test_nothing_is_made_on_another_device_than_that_of_the_images(detect) -> None:  # type: ignore[no-untyped-def]
    found = detect(torch.empty(2, 3, 30, 20, dtype=torch.uint8, device="meta"))
    assert found.device.type == "meta"
    assert found.shape == (2, 30, 20)


@pytest.mark.parametrize("detect", [*DETECTORS, opencv_fine_grained, opencv_spectral_residual])
@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros(2, 3, 8, 8), "float32"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), r"\(2, 8, 8, 3\)"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"\(3, 8, 8\)"),
        (torch.zeros(2, 3, 0, 8, dtype=torch.uint8), "0 x 8"),
    ],
)
def test_other_images_than_bytes_in_rgb_are_refused(detect, images: Tensor, said: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=said):
        detect(images)


@pytest.mark.shared
def test_maps_and_peaks_are_those_of_opencv_on_photographs(shared: Path) -> None:
    with np.load(shared / "golden" / "saliency_reference.npz") as archive:
        golden = {key: torch.from_numpy(archive[key]) for key in archive.files}
    images = golden["images"].permute(0, 3, 1, 2)
    fine, spectral = fine_grained(images), spectral_residual(images)
    torch.testing.assert_close(fine, golden["fine_grained"], rtol=0, atol=1e-6)
    torch.testing.assert_close(spectral, golden["spectral_residual"], rtol=0, atol=1e-3)
    assert torch.equal(peak(fine), golden["fine_grained_peak"])
    assert float((peak(spectral) == golden["spectral_residual_peak"]).all(1).float().mean()) >= 0.98


@pytest.mark.parametrize("size", [(32, 32), (1, 7), (9, 2), (28, 28), (50, 83), (120, 150)])
def test_maps_are_those_of_the_opencv_that_is_installed(size: tuple[int, int]) -> None:
    if not hasattr(pytest.importorskip("cv2"), "saliency"):
        pytest.skip("this OpenCV lacks the contrib modules")
    images = painted("opencv", size=size, count=4, cell=3)
    torch.testing.assert_close(fine_grained(images), opencv_fine_grained(images), rtol=0, atol=1e-6)
    if min(size) > 9:  # smaller ones have coefficients of 0
        torch.testing.assert_close(spectral_residual(images), opencv_spectral_residual(images), rtol=0, atol=1e-3)


@pytest.mark.parametrize("detect", [opencv_fine_grained, opencv_spectral_residual])
def test_without_opencv_the_error_says_how_to_install_it(detect, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    images = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    for module in (None, SimpleNamespace()):  # not there; there without the contrib modules
        monkeypatch.setitem(sys.modules, "cv2", module)
        with pytest.raises(ConfigError, match=r'pip install "longtail\[opencv\]"') as caught:
            detect(images)
        assert caught.value.exit_code == 2


def test_opencv_is_given_blue_green_red_bytes_of_one_image_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[np.ndarray] = []

    def compute(pixels: np.ndarray) -> tuple[bool, np.ndarray]:
        given.append(pixels)
        return len(given) < 3, np.full(pixels.shape[:2], len(given) / 4, dtype=np.float32)

    saliency = SimpleNamespace(StaticSaliencyFineGrained_create=lambda: SimpleNamespace(computeSaliency=compute))
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(saliency=saliency))
    images = painted("bgr", size=(5, 6), count=2)
    maps = opencv_fine_grained(images)
    assert maps[:, 0, 0].tolist() == [0.25, 0.5]
    assert maps.shape == (2, 5, 6)
    for pixels, ours in zip(given, images, strict=True):
        assert pixels.dtype == np.uint8
        assert pixels.flags["C_CONTIGUOUS"]
        assert np.array_equal(pixels[..., ::-1], ours.permute(1, 2, 0).numpy())
    with pytest.raises(ValueError, match="no map for image 0"):
        opencv_fine_grained(images)


@settings(max_examples=50)
@given(st.data(), st.integers(0, 4), st.integers(1, 9), st.integers(1, 9))
def test_peak_is_the_first_maximum_in_raster_order(data: st.DataObject, count: int, height: int, width: int) -> None:
    row = st.lists(st.integers(-3, 2), min_size=width, max_size=width)
    values = data.draw(st.lists(st.lists(row, min_size=height, max_size=height), min_size=count, max_size=count))
    maps = torch.tensor(values, dtype=torch.float32).reshape(count, height, width)
    expected = []
    for grid in values:
        best = (0, 0)
        for y in range(height):
            for x in range(width):
                if grid[y][x] > grid[best[0]][best[1]]:
                    best = (y, x)
        expected.append(list(best))
    found = peak(maps)
    assert found.dtype == torch.int64
    assert found.shape == (count, 2)
    assert found.tolist() == expected
    assert torch.equal(peak(maps.transpose(1, 2).contiguous().transpose(1, 2)), found)
    tied = peak(maps, generator=generator("ties"))
    for grid, (y, x), (i, j) in zip(values, expected, tied.tolist(), strict=True):
        assert grid[i][j] == grid[y][x]


def test_a_random_peak_is_any_of_the_equals_equally_often() -> None:
    one = torch.tensor([[0.0, 1.0, 0.5], [1.0, 0.0, 1.0]])
    draws = peak(one.expand(3000, 2, 3), generator=generator("equals", 1))
    share = dict.fromkeys([(0, 1), (1, 0), (1, 2)], 0)
    for y, x in draws.tolist():
        share[y, x] += 1
    assert all(900 < n < 1100 for n in share.values())
    assert torch.equal(draws, peak(one.expand(3000, 2, 3), generator=generator("equals", 1)))
    assert not torch.equal(draws, peak(one.expand(3000, 2, 3), generator=generator("equals", 2)))


def test_the_number_of_ties_in_one_map_does_not_move_the_choice_in_another() -> None:
    single, many = torch.zeros(4, 4), torch.ones(4, 4)
    single[1, 2] = 1
    other = peak(torch.stack((single, many)), generator=generator("apart"))
    assert torch.equal(other[1], peak(torch.stack((many, many)), generator=generator("apart"))[1])


@pytest.mark.parametrize(("value", "said"), [(math.nan, "NaN"), (math.inf, "infinite"), (-math.inf, "infinite")])
def test_a_map_that_is_not_finite_is_refused_by_its_place_in_the_batch(value: float, said: str) -> None:
    maps = torch.rand(5, 4, 4, generator=generator("finite"))
    maps[3, 1, 2] = maps[4, 0, 0] = value
    for draw in (None, generator("finite")):
        with pytest.raises(DataError, match=rf"map 3 of a batch of 5 .* has {said} values, 1 of 16") as caught:
            peak(maps, generator=draw)
        assert caught.value.hint


def test_a_map_without_pixels_is_refused_and_a_batch_without_maps_is_not() -> None:
    with pytest.raises(DataError, match=r"map 0 of a batch of 2 .* no pixels: 0 x 4") as caught:
        peak(torch.zeros(2, 0, 4))
    assert caught.value.hint
    assert peak(torch.zeros(0, 4, 4)).shape == (0, 2)
    assert peak(torch.zeros(0, 0, 0), generator=generator("none")).shape == (0, 2)
    with pytest.raises(ValueError, match=r"maps must be \(B, H, W\), not \(4, 4\)"):
        peak(torch.zeros(4, 4))


def test_random_centers_are_uniform_over_the_pixels() -> None:
    centers = random_centers(6000, (2, 3), generator("centers"))
    assert centers.dtype == torch.int64
    counts = torch.bincount(centers[:, 0] * 3 + centers[:, 1], minlength=6)
    assert counts.shape == (6,)
    assert bool((counts > 880).all())
    assert centers.amax(0).tolist() == [1, 2]
    assert torch.equal(centers, random_centers(6000, (2, 3), generator("centers")))
    assert random_centers(0, (2, 3), generator("centers")).shape == (0, 2)


def test_image_centers_are_half_the_sides_rounded_down() -> None:
    assert image_centers(2, (5, 8)).tolist() == [[2, 4], [2, 4]]
    assert image_centers(1, (1, 1)).tolist() == [[0, 0]]
    assert image_centers(0, (5, 8)).shape == (0, 2)


@pytest.mark.parametrize("size", [(0, 3), (3, 0)])
def test_an_image_without_pixels_has_no_center(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]}"):
        image_centers(1, size)
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]}"):
        random_centers(1, size, generator("none"))
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]}"):
        mask_centers(torch.zeros(1, *size, dtype=torch.bool))


@settings(max_examples=50)
@given(st.data(), st.integers(0, 3), st.integers(1, 9), st.integers(1, 9))
def test_mask_centers_are_rounded_centroids(data: st.DataObject, count: int, height: int, width: int) -> None:
    row = st.lists(st.booleans(), min_size=width, max_size=width)
    values = data.draw(st.lists(st.lists(row, min_size=height, max_size=height), min_size=count, max_size=count))
    masks = torch.tensor(values, dtype=torch.bool).reshape(count, height, width)
    expected = []
    for grid in values:
        places = [(y, x) for y in range(height) for x in range(width) if grid[y][x]]
        if places:
            mean = [sum(place[axis] for place in places) / len(places) for axis in (0, 1)]
            expected.append([math.floor(m + 0.5) for m in mean])
        else:
            expected.append([height // 2, width // 2])
    centers = mask_centers(masks)
    assert centers.dtype == torch.int64
    assert centers.tolist() == expected
    assert torch.equal(peak(maps_from_masks(masks)), centers)


def test_maps_from_masks_fall_with_the_distance_from_the_center() -> None:
    masks = torch.zeros(2, 6, 9, dtype=torch.bool)
    masks[0, 1:4, 5:8] = True
    maps = maps_from_masks(masks)
    assert maps.dtype == torch.float32
    for grid, (row, column) in zip(maps, [(2, 6), (3, 4)], strict=True):
        for y in range(6):
            for x in range(9):
                expected = 1 - math.dist((y, x), (row, column)) / math.sqrt(6**2 + 9**2)
                assert float(grid[y, x]) == pytest.approx(expected, abs=1e-6)
    assert maps_from_masks(torch.ones(1, 1, 1, dtype=torch.bool)).tolist() == [[[1.0]]]


@pytest.mark.parametrize("masks", [torch.zeros(2, 4, 4), torch.zeros(4, 4, dtype=torch.bool)])
def test_masks_of_another_type_or_shape_are_refused(masks: Tensor) -> None:
    for function in (mask_centers, maps_from_masks):
        with pytest.raises(ValueError, match=r"masks must be bool \(B, H, W\)"):
            function(masks)
