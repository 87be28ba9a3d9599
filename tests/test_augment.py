"""Every operation against torchvision's functional transforms, one image at a time, with the same parameters."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torchvision.transforms.v2 as T
import torchvision.transforms.v2.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longtail.data.views import augment, geometry, policies
from longtail.errors import DataError
from longtail.rng import generator, keyed_global_rng

SIDE = 32


def example_images(side: int = SIDE) -> Tensor:
    """uint8 (16, 3, side, side): noise, slopes, few levels, constants, gray, one odd pixel."""
    draw = generator("example images", side)
    noise = torch.randint(0, 256, (4, 3, side, side), generator=draw)
    dark = torch.randint(0, 20, (2, 3, side, side), generator=draw)
    levels = torch.randint(0, 3, (2, 3, side, side), generator=draw) * 100
    line = torch.linspace(0, 255, side)
    slopes = torch.stack(
        [line.expand(side, side), line.flip(0).view(-1, 1).expand(side, side), line.expand(side, side) / 2]
    )
    gray = torch.randint(0, 256, (2, 1, side, side), generator=draw).expand(-1, 3, -1, -1)
    constant = torch.tensor([0, 255, 77]).view(3, 1, 1, 1).expand(3, 3, side, side)
    one_odd = torch.full((1, 3, side, side), 50)
    one_odd[0, :, 3, 2] = 200
    red = torch.zeros(1, 3, side, side)
    red[:, 0] = 255
    parts = [noise, dark, levels, slopes[None], gray, constant, one_odd, red]
    return torch.cat([part.to(torch.uint8) for part in parts])


BYTES = example_images()
FLOATS = BYTES.to(torch.float32) / 255
COUNT = len(BYTES)


def one_by_one(function: Callable[..., Tensor], images: Tensor, values: Tensor) -> Tensor:
    return torch.stack([function(image, value.item()) for image, value in zip(images, values, strict=True)])


BLENDS = {
    "brightness": (augment.adjust_brightness, TF.adjust_brightness),
    "contrast": (augment.adjust_contrast, TF.adjust_contrast),
    "saturation": (augment.adjust_saturation, TF.adjust_saturation),
    "sharpness": (augment.adjust_sharpness, TF.adjust_sharpness),
}


@pytest.mark.parametrize("name", BLENDS)
@pytest.mark.parametrize("low", [0.0, 0.4, 0.9, 1.5])
def test_blends_of_bytes_are_torchvisions_to_at_most_one_level(name: str, low: float) -> None:
    # Equal where the machine multiplies and adds in one rounding; elsewhere a value on a whole number may be cut down.
    ours, theirs = BLENDS[name]
    factor = torch.rand(COUNT, generator=generator(name)) * 0.5 + low
    got, wanted = ours(BYTES, factor), one_by_one(theirs, BYTES, factor)
    difference = (got.int() - wanted.int()).abs()
    assert got.dtype == torch.uint8
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.001


@pytest.mark.parametrize("name", BLENDS)
@pytest.mark.parametrize("low", [0.0, 0.4, 0.9, 1.5])
def test_blends_of_floats_are_torchvisions(name: str, low: float) -> None:
    ours, theirs = BLENDS[name]
    factor = torch.rand(COUNT, generator=generator(name)) * 0.5 + low
    torch.testing.assert_close(ours(FLOATS, factor), one_by_one(theirs, FLOATS, factor), rtol=0, atol=2e-7)


@pytest.mark.parametrize("name", BLENDS)
def test_a_blend_with_factor_one_changes_nothing(name: str) -> None:
    ours, _ = BLENDS[name]
    for images in (BYTES, FLOATS):
        assert torch.equal(ours(images, torch.ones(COUNT)), images)


@pytest.mark.parametrize("reach", [0.02, 0.1, 0.5])
def test_hue_is_torchvisions_in_hsv(reach: float) -> None:
    shift = (torch.rand(COUNT, generator=generator("hue")) * 2 - 1) * reach
    torch.testing.assert_close(
        augment.adjust_hue(FLOATS, shift), one_by_one(TF.adjust_hue, FLOATS, shift), rtol=0, atol=2e-6
    )


def test_a_third_of_a_turn_makes_red_green() -> None:
    red = torch.tensor([1.0, 0.25, 0.25]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    turned = augment.adjust_hue(red, torch.tensor([1 / 3, -1 / 3]))
    torch.testing.assert_close(turned[0, :, 0, 0], torch.tensor([0.25, 1.0, 0.25]))
    torch.testing.assert_close(turned[1, :, 0, 0], torch.tensor([0.25, 0.25, 1.0]))


def test_hue_leaves_gray_and_does_not_change_its_input() -> None:
    gray = FLOATS.mean(1, keepdim=True).expand(-1, 3, -1, -1).contiguous()
    before = gray.clone()
    assert torch.equal(augment.adjust_hue(gray, torch.full((COUNT,), 0.3)), gray)
    assert torch.equal(gray, before)


@pytest.mark.parametrize("images", [BYTES, FLOATS], ids=["bytes", "floats"])
def test_grayscale_invert_and_autocontrast_are_torchvisions(images: Tensor) -> None:
    assert torch.equal(augment.grayscale(images), TF.rgb_to_grayscale(images, 3))
    assert torch.equal(augment.invert(images), TF.invert(images))
    torch.testing.assert_close(augment.autocontrast(images), TF.autocontrast(images), rtol=0, atol=0)


def test_equalize_is_torchvisions_also_on_constant_images() -> None:
    for images in (BYTES, example_images(17), example_images(5)):
        assert torch.equal(augment.equalize(images), TF.equalize(images))


@pytest.mark.parametrize("bits", range(9))
def test_posterize_is_torchvisions(bits: int) -> None:
    assert torch.equal(augment.posterize(BYTES, torch.full((COUNT,), bits)), TF.posterize(BYTES, bits))


def test_posterize_takes_bits_per_image() -> None:
    bits = torch.arange(COUNT) % 9
    assert torch.equal(augment.posterize(BYTES, bits), one_by_one(TF.posterize, BYTES, bits))


def test_solarize_is_torchvisions() -> None:
    for threshold in (torch.linspace(0, 255, COUNT), torch.full((COUNT,), 77.0), torch.full((COUNT,), 255.0)):
        assert torch.equal(augment.solarize(BYTES, threshold), one_by_one(TF.solarize, BYTES, threshold))
    assert torch.equal(augment.solarize(BYTES, torch.full((COUNT,), 256.0)), BYTES)


def test_solarize_add_brightens_only_what_is_below_128() -> None:
    addend = torch.arange(COUNT) * 8
    got = augment.solarize_add(BYTES, addend)
    for image, result, added in zip(BYTES.tolist(), got.tolist(), addend.tolist(), strict=True):
        flat, flat_result = torch.tensor(image).flatten().tolist(), torch.tensor(result).flatten().tolist()
        assert flat_result == [min(255, value + added) if value < 128 else value for value in flat]


@pytest.mark.parametrize(("side", "radius"), [(32, 6), (32, 3), (9, 6), (5, 6)])
def test_gaussian_blur_is_torchvisions_with_a_kernel_of_that_radius(side: int, radius: int) -> None:
    images = example_images(side).to(torch.float32) / 255
    sigma = torch.linspace(0.1, 2.0, COUNT)
    size = 2 * min(radius, side - 1) + 1
    wanted = one_by_one(lambda image, s: TF.gaussian_blur(image, [size, size], [s, s]), images, sigma)
    torch.testing.assert_close(augment.gaussian_blur(images, sigma, radius), wanted, rtol=0, atol=2e-6)


def test_gaussian_blur_takes_images_that_are_not_square() -> None:
    images, sigma = FLOATS[:, :, :20, :27], torch.linspace(0.1, 2.0, COUNT)
    wanted = one_by_one(lambda image, s: TF.gaussian_blur(image, [13, 13], [s, s]), images, sigma)
    torch.testing.assert_close(augment.gaussian_blur(images, sigma), wanted, rtol=0, atol=2e-6)


def test_bytes_survive_the_way_to_float_and_back() -> None:
    every = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    assert torch.equal(augment.as_bytes(augment.as_float(every)), every)
    assert torch.equal(augment.as_float(every), (every.to(torch.float64) / 255).to(torch.float32))


def test_bytes_are_rounded_to_the_nearest_level() -> None:
    levels = torch.tensor([-0.3, 0.4, 0.6, 127.4, 127.6, 255.3])
    assert augment.as_bytes(levels / 255).tolist() == [0, 0, 1, 127, 128, 255]


# Geometry


@pytest.mark.parametrize("size", [32, 20, 48])
def test_resized_crop_is_torchvisions_with_antialiasing(size: int) -> None:
    stage = geometry.ResizedCrop(size, scale=(0.05, 1.0), ratio=(0.3, 3.0))
    images = FLOATS[:, :, :, :29]
    for key in range(5):
        params = stage.draw(torch.tensor([32, 29]).expand(COUNT, 2), generator("resized crop", key))
        boxes = torch.cat([params["corner"], params["extent"]], dim=1).tolist()
        wanted = torch.stack(
            [
                TF.resized_crop(image, *box, [size, size], antialias=True)
                for image, box in zip(images, boxes, strict=True)
            ]
        )
        torch.testing.assert_close(stage.apply(images, params), wanted, rtol=0, atol=2e-6)


def test_resized_crop_of_bytes_is_torchvisions_rounding_apart() -> None:
    # torchvision's byte kernel rounds to whole levels after each of its two passes; ours stays in float.
    stage = geometry.ResizedCrop(SIDE, scale=(0.08, 1.0))
    params = stage.draw(torch.tensor([SIDE, SIDE]).expand(COUNT, 2), generator("bytes"))
    boxes = torch.cat([params["corner"], params["extent"]], dim=1).tolist()
    wanted = torch.stack(
        [TF.resized_crop(image, *box, [SIDE, SIDE], antialias=True) for image, box in zip(BYTES, boxes, strict=True)]
    )
    assert (stage.apply(BYTES, params) * 255 - wanted).abs().max() <= 1.01


def test_the_whole_image_as_resized_crop_is_the_image() -> None:
    whole = {"corner": torch.zeros(COUNT, 2, dtype=torch.int64), "extent": torch.full((COUNT, 2), SIDE)}
    assert torch.equal(geometry.ResizedCrop(SIDE, (1.0, 1.0)).apply(BYTES, whole), FLOATS)


def test_masks_of_a_resized_crop_are_torchvisions_nearest_exact() -> None:
    stage = geometry.ResizedCrop(24, scale=(0.05, 1.0))
    params = stage.draw(torch.tensor([SIDE, SIDE]).expand(COUNT, 2), generator("masks"))
    masks = BYTES[:, 0]
    for mask, got, corner, extent in zip(
        masks, stage.carry_masks(masks, params), params["corner"].tolist(), params["extent"].tolist(), strict=True
    ):
        wanted = TF.resized_crop(
            mask[None], *corner, *extent, [24, 24], interpolation=T.InterpolationMode.NEAREST_EXACT
        )
        assert torch.equal(got, wanted[0])


@pytest.mark.parametrize(("size", "padding"), [(32, 4), (24, 0), (32, 0), (36, 3)])
def test_crop_is_pad_and_crop_with_black(size: int, padding: int) -> None:
    stage = geometry.Crop(size, padding)
    params = stage.draw(torch.tensor([32, 32]).expand(COUNT, 2), generator("crop"))
    wanted = torch.stack(
        [
            TF.crop(TF.pad(image, [padding] * 4, fill=0), *corner, size, size)
            for image, corner in zip(BYTES, params["corner"].tolist(), strict=True)
        ]
    )
    assert torch.equal(stage.apply(BYTES, params), wanted)


def test_crop_reaches_every_corner_alike() -> None:
    corner = geometry.Crop(32, 4).draw(torch.tensor([32, 34]).expand(9900, 2), generator("places"))["corner"]
    assert torch.bincount(corner[:, 0]).tolist() == pytest.approx([1100] * 9, rel=0.15)
    assert torch.bincount(corner[:, 1]).tolist() == pytest.approx([900] * 11, rel=0.15)


def test_crop_refuses_images_that_are_too_small() -> None:
    with pytest.raises(DataError, match="at least 24 pixels"):
        geometry.Crop(32, 4).draw(torch.tensor([[32, 23]]), generator("small"))


def test_flip_mirrors_columns() -> None:
    params = {"flip": torch.arange(COUNT) % 2 == 0, "width": torch.full((COUNT,), SIDE)}
    got = geometry.Flip().apply(BYTES, params)
    assert torch.equal(got[0::2], TF.horizontal_flip(BYTES[0::2]))
    assert torch.equal(got[1::2], BYTES[1::2])


@pytest.mark.parametrize(
    ("sizes", "scale"),
    [((32, 32), (0.2, 1.0)), ((32, 32), (0.08, 1.0)), ((20, 100), (0.6, 1.0)), ((90, 30), (0.9, 1.0))],
)
def test_resized_crop_draws_windows_as_torchvision_does(sizes: tuple[int, int], scale: tuple[float, float]) -> None:
    # The last two sizes exercise the redraws and, where none of ten fits, the centered window.
    count = 3000
    transform, image = T.RandomResizedCrop(32, scale=scale), torch.zeros(3, *sizes)
    with keyed_global_rng("windows", *sizes):
        drawn = [transform.make_params([image]) for _ in range(count)]
    theirs = torch.tensor([[p["top"], p["left"], p["height"], p["width"]] for p in drawn], dtype=torch.float64)
    params = geometry.ResizedCrop(32, scale).draw(torch.tensor(sizes).expand(20000, 2), generator("windows", *sizes))
    ours = torch.cat([params["corner"], params["extent"]], dim=1).to(torch.float64)
    assert bool((ours[:, :2] >= 0).all())
    assert bool((ours[:, :2] + ours[:, 2:] <= torch.tensor(sizes)).all())
    for column in range(4):
        # Kolmogorov and Smirnov's distance; 0.036 is exceeded once in a thousand at these numbers.
        values = torch.cat([ours[:, column], theirs[:, column]]).unique()
        distance = torch.stack([(one[:, column].unsqueeze(1) <= values).double().mean(0) for one in (ours, theirs)])
        assert (distance[0] - distance[1]).abs().max() < 0.036, column
    fallback = [(one == one.mode(0).values).all(1).double().mean().item() for one in (ours, theirs)]
    assert fallback[0] == pytest.approx(fallback[1], abs=0.03)


def test_resized_crop_falls_back_to_the_largest_centered_window() -> None:
    stage = geometry.ResizedCrop(32, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    params = stage.draw(torch.tensor([[10, 40], [40, 10], [30, 30]]), generator("fallback"))
    assert params["extent"].tolist() == [[10, 10], [10, 10], [30, 30]]
    assert params["corner"].tolist() == [[0, 15], [15, 0], [0, 0]]


# Policies


def affine(image: Tensor, **change: object) -> Tensor:
    arguments: dict[str, object] = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], **change}
    return TF.affine(image, fill=[128.0] * 3, **arguments)


def slope_in_degrees(m: float) -> float:
    return math.degrees(math.atan(m))


ORACLES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "Identity": lambda x, m: x,
    "AutoContrast": lambda x, m: TF.autocontrast(x),
    "Equalize": lambda x, m: TF.equalize(x),
    "Invert": lambda x, m: TF.invert(x),
    "Posterize": lambda x, m: TF.posterize(x, int(m)),
    "Solarize": lambda x, m: TF.solarize(x, m) if m <= 255 else x,
    "SolarizeAdd": lambda x, m: torch.where(x < 128, (x.int() + int(m)).clamp(max=255), x.int()).to(torch.uint8),
    "Color": TF.adjust_saturation,
    "Contrast": TF.adjust_contrast,
    "Brightness": TF.adjust_brightness,
    "Sharpness": TF.adjust_sharpness,
    "Rotate": lambda x, m: TF.rotate(x, m, fill=[128.0] * 3),
    "ShearX": lambda x, m: affine(x, shear=[slope_in_degrees(m), 0.0], center=[0, 0]),
    "ShearY": lambda x, m: affine(x, shear=[0.0, slope_in_degrees(m)], center=[0, 0]),
    "TranslateX": lambda x, m: affine(x, translate=[m, 0]),
    "TranslateY": lambda x, m: affine(x, translate=[0, m]),
}


def test_every_operation_has_an_oracle_and_a_policy_that_uses_it() -> None:
    assert set(ORACLES) == set(policies.OPERATIONS)
    used = {name for pair in policies.CIFAR10_POLICY for name, _, _ in pair} | set(policies.RANDAUGMENT_OPERATIONS)
    assert used == set(policies.OPERATIONS) - {"Identity"}


def test_the_policy_is_the_published_one() -> None:
    theirs = T.AutoAugment(T.AutoAugmentPolicy.CIFAR10)._policies
    ours = [tuple((name, p, level) for name, p, level in pair) for pair in policies.CIFAR10_POLICY]
    assert ours == [tuple((name, p, level or 0) for name, p, level in pair) for pair in theirs]


@pytest.mark.parametrize("sizes", [(32, 32), (32, 48)])
def test_magnitudes_of_autoaugment_are_torchvisions(sizes: tuple[int, int]) -> None:
    def theirs(name: str, level: int, sign: int) -> float:
        magnitudes, signed = T.AutoAugment._AUGMENTATION_SPACE[name]
        table = magnitudes(10, *sizes)
        drawn = 0.0 if table is None else float(table[level]) * (sign if signed else 1)
        if name in ("Color", "Contrast", "Brightness", "Sharpness"):
            return 1 + drawn
        if name in ("TranslateX", "TranslateY"):
            return int(drawn)
        return 255 * drawn if name == "Solarize" else drawn

    for name, _, level in {choice for pair in policies.CIFAR10_POLICY for choice in pair}:
        for sign in (-1, 1):
            got = policies.autoaugment_magnitude(
                name, level, torch.tensor([float(sign)], dtype=torch.float64), torch.tensor([sizes])
            )
            assert got.item() == pytest.approx(theirs(name, level, sign), rel=1e-6, abs=1e-6), (name, level, sign)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(name=st.sampled_from(policies.OPERATIONS), m=st.floats(0, 10), sign=st.sampled_from([-1.0, 1.0]))
def test_an_operation_in_a_policy_is_torchvisions_on_the_same_magnitude(name: str, m: float, sign: float) -> None:
    sizes = torch.tensor([SIDE, SIDE]).expand(COUNT, 2)
    signs, strengths = torch.full((COUNT,), sign, dtype=torch.float64), torch.full((COUNT,), m, dtype=torch.float64)
    magnitude = policies.randaugment_magnitude(name, strengths, signs, sizes).unsqueeze(1)
    params = policies._params(torch.full((COUNT, 1), policies.NUMBER[name]), magnitude, sizes)
    got = policies.apply_operations(BYTES, params, torch.full((3,), 128.0))
    wanted = one_by_one(ORACLES[name], BYTES, params["magnitude"][:, 0])
    differs = (got != wanted).float().mean().item()
    if name in policies.WARPS:
        # Where a source position lies within a rounding error of a pixel's edge, either neighbor is right.
        assert differs < 0.04
        assert set(got[7].unique().tolist()) <= set(BYTES[7].unique().tolist()) | {128}
    else:
        assert (got.int() - wanted.int()).abs().max() <= 1
        assert differs < 0.001


def run_by_hand(images: Tensor, params: augment.Params) -> Tensor:
    """The policy as a loop over images and slots."""
    results = []
    for image, operations, magnitudes in zip(
        images, params["operation"].tolist(), params["magnitude"].tolist(), strict=True
    ):
        for operation, magnitude in zip(operations, magnitudes, strict=True):
            image = ORACLES[policies.OPERATIONS[operation]](image, magnitude)
        results.append(image)
    return torch.stack(results)


@pytest.mark.parametrize(
    "stage", [policies.AutoAugment(), policies.RandAugment(fill=(128.0,) * 3)], ids=["auto", "rand"]
)
def test_a_policy_is_its_operations_in_order(stage: policies.AutoAugment | policies.RandAugment) -> None:
    images = BYTES.repeat(16, 1, 1, 1)
    before = images.clone()
    params = stage.draw(torch.tensor([SIDE, SIDE]).expand(len(images), 2), generator("policy"))
    got, wanted = stage.apply(images, params), run_by_hand(images, params)
    assert torch.equal(images, before)
    assert (params["operation"][:, 0] != 0).float().mean() > 0.4
    # A tie of one pixel in the first operation can grow in the second; nearly all images are equal to the last bit.
    assert (got == wanted).flatten(1).all(1).float().mean() > 0.97
    assert (got != wanted).float().mean() < 0.001


def test_autoaugment_draws_pairs_probabilities_and_signs_as_published() -> None:
    count = 50_000
    params = policies.AutoAugment().draw(torch.tensor([SIDE, SIDE]).expand(count, 2), generator("pairs"))
    assert torch.bincount(params["pair"], minlength=25).tolist() == pytest.approx([count / 25] * 25, rel=0.1)
    for number, pair in enumerate(policies.CIFAR10_POLICY):
        drawn = params["pair"] == number
        for slot, (name, probability, level) in enumerate(pair):
            operation = params["operation"][drawn, slot]
            applied = operation == policies.NUMBER[name]
            assert bool((applied | (operation == 0)).all())
            assert applied.float().mean().item() == pytest.approx(probability, abs=0.045)
            if name in policies.SIGNED and level > 0:
                magnitude = params["magnitude"][drawn, slot][applied]
                middle = 0.0 if name in policies.WARPS else 1.0
                assert (magnitude > middle).float().mean().item() == pytest.approx(0.5, abs=0.08)
                assert len(magnitude.unique()) == 2
    # The two slots are applied independently of each other.
    both = params["operation"][params["pair"] == 8] != 0
    assert both.all(1).float().mean().item() == pytest.approx(0.6 * 0.5, abs=0.045)


@given(st.integers(1, 60), st.integers(0, 10**6))
def test_autoaugment_draws_what_its_choices_say_one_by_one(count: int, key: int) -> None:
    draws = generator("one by one", key)
    sizes = torch.randint(8, 300, (count, 2), generator=draws)
    before = draws.get_state()
    params = policies.AutoAugment().draw(sizes, draws)
    draws.set_state(before)
    drawn = torch.rand(count, generator=draws, dtype=torch.float64)
    chance, signs = (torch.rand(count, 2, generator=draws, dtype=torch.float64) for _ in range(2))
    for row in range(count):
        pair = policies.CIFAR10_POLICY[int(drawn[row] * 25)]
        for slot, (name, probability, level) in enumerate(pair):
            sign = torch.where(signs[row, slot] < 0.5, -1.0, 1.0).double()[None]
            applied = float(chance[row, slot]) < probability
            magnitude = policies.autoaugment_magnitude(name, level, sign, sizes[row : row + 1])
            assert params["operation"][row, slot] == (policies.NUMBER[name] if applied else 0)
            assert params["magnitude"][row, slot] == (magnitude.float() if applied else 0)


def test_randaugment_draws_two_of_fifteen_each_half_of_the_time() -> None:
    count = 30_000
    stage = policies.RandAugment(fill=(120.0, 110.0, 100.0))
    params = stage.draw(torch.tensor([SIDE, SIDE]).expand(count, 2), generator("fifteen"))
    shares = torch.bincount(params["operation"].flatten(), minlength=16) / (2 * count)
    assert shares[0].item() == pytest.approx(0.5, abs=0.01)
    assert shares[1:].tolist() == pytest.approx([1 / 30] * 15, rel=0.1)
    rotation = params["magnitude"][params["operation"] == policies.NUMBER["Rotate"]]
    assert rotation.abs().max() <= 30
    # m is N(10, 0.5) cut at 10: half of the rotations are at 30 degrees, and the mean m is 10 - 0.5 / sqrt(2 pi).
    assert (rotation.abs() == 30).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert rotation.abs().mean().item() == pytest.approx(30 - 1.5 / math.sqrt(2 * math.pi), abs=0.1)
    assert (rotation > 0).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_magnitudes_of_randaugment_at_ten_and_five() -> None:
    wanted = {
        "Rotate": (30, 15), "ShearX": (0.3, 0.15), "ShearY": (0.3, 0.15), "TranslateX": (18, 9), "TranslateY": (9, 4.5),
        "Posterize": (4, 2), "Solarize": (256, 128), "SolarizeAdd": (110, 55), "Color": (1.9, 1), "Contrast": (1.9, 1),
        "Brightness": (1.9, 1.0), "Sharpness": (1.9, 1.0), "AutoContrast": (0, 0), "Equalize": (0, 0), "Invert": (0, 0),
    }  # fmt: skip
    m, sizes = torch.tensor([10.0, 5.0], dtype=torch.float64), torch.tensor([[20, 40], [20, 40]])
    for name, magnitudes in wanted.items():
        got = policies.randaugment_magnitude(name, m, torch.ones(2, dtype=torch.float64), sizes)
        assert got.tolist() == pytest.approx(magnitudes), name
        mirrored = policies.randaugment_magnitude(name, m, -torch.ones(2, dtype=torch.float64), sizes)
        assert mirrored.tolist() == pytest.approx([-x if name in policies.WARPS else x for x in magnitudes]), name


def test_what_a_warp_uncovers_is_filled() -> None:
    white = torch.full((2, 3, 8, 8), 255, dtype=torch.uint8)
    operation = torch.full((2, 1), policies.NUMBER["TranslateX"])
    params = policies._params(operation, torch.tensor([[3.0], [-2.0]]), torch.tensor([[8, 8], [8, 8]]))
    moved = policies.apply_operations(white, params, torch.tensor([10.0, 20.0, 30.0]))
    assert moved[0, :, 4, 2].tolist() == [10, 20, 30]
    assert moved[0, :, 4, 3].tolist() == [255, 255, 255]
    assert moved[1, :, 4, 5].tolist() == [255, 255, 255]
    assert moved[1, :, 4, 6].tolist() == [10, 20, 30]
