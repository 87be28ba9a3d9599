"""Views: what they give, that they depend on the generator alone, and that points and masks follow the pixels."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torchvision.transforms.v2.functional as TF
from torch import Tensor

from longtail.data import views
from longtail.data.views import VIEWS, View, ViewParams, build_view, policies, select
from longtail.data.views.augment import Params, as_float
from longtail.data.views.color import Color
from longtail.data.views.geometry import Flip, ResizedCrop
from longtail.errors import ConfigError, DataError
from longtail.rng import generator

SIDE = 32
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def noise(count: int, side: int = SIDE) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), generator=generator("noise", side), dtype=torch.uint8)


def sizes_of(images: Tensor) -> Tensor:
    return torch.tensor(images.shape[-2:]).expand(len(images), 2)


def built(name: str, size: int = SIDE) -> View:
    return build_view(name, size, MEAN, STD)


def pixels(view: View, images: Tensor) -> Tensor:
    """The normalization taken back: values in [0, 1]."""
    return images * torch.tensor(view.std).view(3, 1, 1) + torch.tensor(view.mean).view(3, 1, 1)


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("count", [1, 2, 40])
def test_a_view_gives_normalized_floats_and_leaves_its_input(name: str, count: int) -> None:
    view, images = built(name), noise(count)
    before = images.clone()
    for key in range(4):
        result = view(images, generator("input", key))
        assert result.shape == (count, 3, SIDE, SIDE)
        assert result.dtype == torch.float32
        values = pixels(view, result)
        assert values.min() > -1e-5
        assert values.max() < 1 + 1e-5
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_depends_on_the_generator_alone(name: str) -> None:
    view, images = built(name), noise(24)
    torch.rand(3, generator=torch.default_generator)
    first = view(images, generator(1, "view"))
    torch.rand(5, generator=torch.default_generator)
    assert torch.equal(view(images, generator(1, "view")), first)
    if name != "plain":
        assert not torch.equal(view(images, generator(2, "view")), first)


@pytest.mark.parametrize("name", VIEWS)
def test_applying_a_slice_of_the_draw_is_a_slice_of_the_whole(name: str) -> None:
    view, images = built(name), noise(30)
    params = view.draw(sizes_of(images), generator("global"))
    assert all(len(values) == 30 and values.device.type == "cpu" for drawn in params for values in drawn.values())
    whole = view.apply(images, params)
    parts = [view.apply(images[lo : lo + 10], select(params, slice(lo, lo + 10))) for lo in (0, 10, 20)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=2e-5)
    order = torch.tensor([7, 0, 29])
    torch.testing.assert_close(view.apply(images[order], select(params, order)), whole[order], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_stays_on_the_device_of_its_images(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The meta device stands for an accelerator: it refuses arithmetic with tensors left on the CPU. It has no bincount.
    monkeypatch.setitem(policies.PIXEL_OPERATIONS, "Equalize", lambda images, _: images)
    images = torch.empty(40, 3, SIDE, SIDE, dtype=torch.uint8, device="meta")
    view = built(name)
    params = view.draw(sizes_of(images), generator("device"))
    assert view.apply(images, params).device.type == "meta"
    assert view.carry_points(torch.empty(40, 2, device="meta"), params).device.type == "meta"
    assert view.carry_masks(torch.empty(40, SIDE, SIDE, device="meta"), params).device.type == "meta"


def test_the_plain_view_is_exactly_the_normalization() -> None:
    images = noise(5)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    assert torch.equal(built("plain")(images, generator("plain")), (images.float() / 255 - mean) / std)


def test_normalization_is_last_so_that_padding_is_black() -> None:
    view = built("crop-flip")
    params = ({"corner": torch.tensor([[0, 0]])}, {"flip": torch.tensor([False]), "width": torch.tensor([SIDE])})
    result = view.apply(torch.full((1, 3, SIDE, SIDE), 255, dtype=torch.uint8), params)
    black = torch.tensor([-mean / std for mean, std in zip(MEAN, STD, strict=True)])
    torch.testing.assert_close(result[0, :, 0, 0], black)
    torch.testing.assert_close(result[0, :, 3, 31], black)
    assert (result[0, :, 4:, 4:] > 2).all()


def test_a_view_that_does_not_resize_refuses_other_sizes() -> None:
    with pytest.raises(DataError, match="'plain' gives images of 30 x 30 pixels where 32 x 32 are expected"):
        built("plain")(noise(2, 30), generator("size"))
    assert built("contrastive")(noise(2, 50), generator("size")).shape == (2, 3, SIDE, SIDE)
    assert built("autoaugment")(noise(2, 36), generator("size")).shape == (2, 3, SIDE, SIDE)


def test_an_unknown_view_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'autoaugment'"):
        built("autoagument")


def test_every_view_has_a_summary() -> None:
    for name, spec in VIEWS.items():
        assert spec.summary, name


GOLDEN = {
    "plain": (0.14017, 1.45057, 2.01720),
    "crop": (-0.16836, 1.59107, 2.30677),
    "crop-flip": (-0.19571, 1.59820, 1.90392),
    "autoaugment": (-0.05595, 1.67237, 2.14111),
    "randaugment": (0.06064, 1.64235, 2.45500),
    "contrastive": (0.01952, 1.22501, 1.76005),
    "resized-crop": (0.15818, 1.33486, 1.83929),
    "resized-crop-jitter": (0.10647, 1.40171, 2.26654),
    "imagenet-classification": (0.17876, 1.44209, 2.09794),
    "imagenet-contrastive": (-0.08332, 1.25405, 1.94086),
}


@pytest.mark.parametrize("name", VIEWS)
def test_the_numbers_of_a_view_stay_what_runs_were_made_with(name: str) -> None:
    # A change here moves the numbers of every run: it belongs in CHANGELOG and raises NUMBERS_VERSION.
    coarse = torch.randint(0, 256, (64, 3, 8, 8), generator=generator("golden"), dtype=torch.uint8)
    result = built(name)(coarse.repeat_interleave(4, 2).repeat_interleave(4, 3), generator("golden", name))
    got = (result.mean().item(), result.std().item(), result[:, 1, 10, 20].square().mean().item())
    assert got == pytest.approx(GOLDEN[name], abs=1e-3)


def test_randaugment_fills_with_the_mean_color() -> None:
    for name in ("randaugment", "imagenet-classification"):
        [stage] = [stage for stage in built(name).stages if isinstance(stage, policies.RandAugment)]
        white = torch.full((1, 3, SIDE, SIDE), 255, dtype=torch.uint8)
        moved = torch.tensor([[policies.NUMBER["TranslateX"], 0]])
        params = policies._params(moved, torch.tensor([[5.0, 0.0]]), torch.tensor([[SIDE, SIDE]]))
        assert stage.apply(white, params)[0, :, 3, 3].tolist() == [125, 123, 114]


# Distributions

COUNT = 20_000


def draws(name: str, stage: type) -> Params:
    view = built(name)
    params = view.draw(torch.tensor([SIDE, SIDE]).expand(COUNT, 2), generator("distribution", name))
    [drawn] = [drawn for own, drawn in zip(view.stages, params, strict=True) if isinstance(own, stage)]
    return drawn


def share(values: Tensor) -> float:
    return values.double().mean().item()


@pytest.mark.parametrize("name", [name for name in VIEWS if name not in ("plain", "crop")])
def test_half_of_the_images_are_flipped(name: str) -> None:
    assert share(draws(name, Flip)["flip"]) == pytest.approx(0.5, abs=0.015)


@pytest.mark.parametrize(
    ("name", "probability", "hue"),
    [("contrastive", 0.8, 0.1), ("imagenet-contrastive", 0.8, 0.1), ("imagenet-classification", 1.0, 0.0)],
)
def test_color_jitter_has_its_probability_range_and_order(name: str, probability: float, hue: float) -> None:
    drawn = draws(name, views.ColorJitter)
    assert share(drawn["jitter"]) == pytest.approx(probability, abs=0.012)
    for column, (center, reach) in enumerate([(1.0, 0.4)] * 3 + [(0.0, hue)]):
        amount = drawn["amount"][:, column]
        assert amount.min() >= center - reach - 1e-6
        assert amount.max() <= center + reach + 1e-6
        assert amount.mean().item() == pytest.approx(center, abs=0.01)
        assert amount.std().item() == pytest.approx(2 * reach / 12**0.5, rel=0.02)
    _, counts = drawn["order"].unique(dim=0, return_counts=True)
    assert counts.tolist() == pytest.approx([COUNT / 24] * 24, rel=0.15)


def test_gray_and_blur_have_their_probabilities() -> None:
    assert share(draws("contrastive", views.Grayscale)["gray"]) == pytest.approx(0.2, abs=0.012)
    blur = draws("contrastive", views.GaussianBlur)
    assert share(blur["blur"]) == pytest.approx(0.5, abs=0.015)
    assert blur["sigma"].min() >= 0.1
    assert blur["sigma"].max() <= 2.0
    assert blur["sigma"].mean().item() == pytest.approx(1.05, abs=0.02)


@pytest.mark.parametrize(("name", "least"), [("contrastive", 0.2), ("resized-crop", 0.08)])
def test_resized_crops_have_their_share_of_the_area(name: str, least: float) -> None:
    extent = draws(name, ResizedCrop)["extent"].double()
    area = extent.prod(1) / SIDE**2
    # Sides are rounded to whole pixels, which moves the area by a few percent.
    assert area.min() > 0.85 * least
    assert area.max() <= 1
    assert ((extent[:, 1] - 0.5) / (extent[:, 0] + 0.5) <= 4 / 3).all()
    assert ((extent[:, 1] + 0.5) / (extent[:, 0] - 0.5) >= 3 / 4).all()


def test_the_draws_of_different_stages_and_images_are_independent() -> None:
    view = built("contrastive")
    params = view.draw(torch.tensor([SIDE, SIDE]).expand(COUNT, 2), generator("independent"))
    columns = [
        values.double().reshape(COUNT, -1) for drawn in params[1:] for name, values in drawn.items() if name != "width"
    ]
    table = torch.cat([column for column in columns if column.std() > 0], dim=1)
    correlation = torch.corrcoef(table.T)
    # The four places of an order exclude each other; all else must not correlate.
    order = 1 + 4 + torch.arange(4)
    correlation[order.unsqueeze(1), order] = 0
    assert (correlation - torch.diag(correlation.diag())).abs().max() < 0.04


# Color stages on the batch


def test_color_jitter_runs_its_operations_in_the_drawn_order() -> None:
    images = noise(48)
    stage = views.ColorJitter(0.4, 0.4, 0.4, 0.1, probability=0.8)
    params = stage.draw(sizes_of(images), generator("jitter"))
    operations = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
    wanted = as_float(images).clone()
    for i in range(len(images)):
        for number in params["order"][i].tolist() if params["jitter"][i] else []:
            wanted[i] = operations[number](wanted[i], params["amount"][i, number].item())
    assert 30 < params["jitter"].sum() < 48
    torch.testing.assert_close(stage.apply(images, params), wanted, rtol=0, atol=1e-5)


def test_grayscale_and_blur_touch_only_the_images_drawn() -> None:
    images = as_float(noise(40))
    for stage, key in ((views.Grayscale(0.3), "gray"), (views.GaussianBlur(0.3), "blur")):
        params = stage.draw(sizes_of(images), generator(key))
        changed = (stage.apply(images, params) != images).flatten(1).any(1)
        assert torch.equal(changed, params[key])
        assert 0 < changed.sum() < 40
        nobody = {**params, key: torch.zeros(40, dtype=torch.bool)}
        assert torch.equal(stage.apply(images, nobody), images)


@pytest.mark.parametrize("name", VIEWS)
def test_no_stage_changes_its_input(name: str) -> None:
    view, images = built(name), noise(40)
    for start in (images, as_float(images)):
        current = start
        for stage, drawn in zip(view.stages, view.draw(sizes_of(images), generator("kept")), strict=True):
            before = current.clone()
            result = stage.apply(current, drawn)
            assert torch.equal(current, before), type(stage).__name__
            current = result


# Points and masks follow the pixels


def moving_part(view: View, params: ViewParams) -> tuple[View, ViewParams]:
    """The view without color, so that what was painted can be told by its color."""
    kept = [(s, p) for s, p in zip(view.stages, params, strict=True) if not isinstance(s, Color)]
    stages = tuple(stage for stage, _ in kept)
    neutral = []
    for _, drawn in kept:
        if "operation" in drawn:
            warps = drawn["operation"] >= policies.NUMBER[policies.WARPS[0]]
            drawn = {**drawn, "operation": torch.where(warps, drawn["operation"], 0)}
        neutral.append(drawn)
    return dataclasses.replace(view, stages=stages), tuple(neutral)


@pytest.mark.parametrize(
    ("name", "side"), [(name, side) for name in VIEWS for side in (SIDE, 35) if name != "plain" or side == SIDE]
)
def test_a_painted_spot_is_found_where_its_point_is_carried(name: str, side: int) -> None:
    count = 600
    points = torch.randint(1, side - 1, (count, 2), generator=generator("points", name)).float()
    image = torch.arange(count)
    painted = torch.zeros(count, 3, side, side, dtype=torch.uint8)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            painted[image, :, points[:, 0].long() + down, points[:, 1].long() + right] = 255
    view = built(name)
    params = view.draw(sizes_of(painted), generator("carry", name))
    carried = view.carry_points(points, params)
    assert carried.min() >= 0
    assert carried.max() <= SIDE - 1
    mover, moves = moving_part(view, params)
    torch.testing.assert_close(mover.carry_points(points, moves), carried)
    shown = pixels(mover, mover.apply(painted, moves))[:, 0]
    # The policies fill with gray levels: only what is brighter than any of them is paint.
    policy = any(isinstance(stage, policies.AutoAugment | policies.RandAugment) for stage in view.stages)
    bright = (shown - (0.6 if policy else 0.0)).clamp(min=0)
    weight = bright.flatten(1).sum(1)
    grid = torch.arange(SIDE, dtype=torch.float32)
    found = torch.stack([(bright.sum(2) * grid).sum(1), (bright.sum(1) * grid).sum(1)], dim=1) / weight.unsqueeze(1)
    # A spot at the border may be cut, and then its middle is elsewhere.
    inside = ((carried >= 4) & (carried <= SIDE - 5)).all(1)
    assert inside.sum() > 150
    # One stage can push a spot out of the frame and the next bring its point back in: the paint is then lost.
    seen = weight > 0
    assert seen[inside].float().mean() > (0.93 if policy else 0.999)
    distance = (found - carried)[inside & seen].abs().amax(1)
    exact = name in ("plain", "crop", "crop-flip")
    assert distance.max() <= (0.001 if exact else 1.0)
    assert distance.mean() <= (0.001 if exact else 0.2)


@pytest.mark.parametrize("name", ["contrastive", "imagenet-contrastive"])
def test_a_white_pixel_is_found_after_all_of_the_contrastive_view(name: str) -> None:
    count = 300
    points = torch.randint(0, SIDE, (count, 2), generator=generator("pixel")).float()
    painted = torch.zeros(count, 3, SIDE, SIDE, dtype=torch.uint8)
    painted[torch.arange(count), :, points[:, 0].long(), points[:, 1].long()] = 255
    view = built(name)
    params = view.draw(sizes_of(painted), generator("pixel", name))
    carried = view.carry_points(points, params)
    brightest = view.apply(painted, params).sum(1).flatten(1).argmax(1)
    found = torch.stack([brightest // SIDE, brightest % SIDE], dim=1)
    inside = ((carried > 1) & (carried < SIDE - 2)).all(1)
    assert inside.sum() > 100
    # Enlarged twice and made brighter than white, a pixel is a plateau of some pixels, of which the first is found.
    distance = (found - carried)[inside].abs().amax(1)
    assert distance.max() <= 2.0
    assert distance.mean() <= 0.5


def test_points_that_leave_the_frame_go_to_its_border() -> None:
    view = built("crop-flip")
    corner, flip = (
        {"corner": torch.tensor([[8, 8], [0, 8]])},
        {"flip": torch.tensor([False, True]), "width": torch.tensor([32, 32])},
    )
    carried = view.carry_points(torch.tensor([[0.0, 31.0], [31.0, 2.0]]), (corner, flip))
    assert carried.tolist() == [[0.0, 27.0], [31.0, 31.0]]


@pytest.mark.parametrize("name", VIEWS)
def test_masks_follow_the_pixels(name: str) -> None:
    count = 200
    rows, columns = torch.arange(SIDE).view(-1, 1), torch.arange(SIDE)
    center = torch.randint(8, 24, (count, 2, 1, 1), generator=generator("discs"))
    masks = (rows - center[:, 0]) ** 2 + (columns - center[:, 1]) ** 2 < 49
    images = masks.unsqueeze(1).expand(-1, 3, -1, -1).to(torch.uint8) * 255
    view = built(name)
    params = view.draw(sizes_of(images), generator("masks", name))
    carried = view.carry_masks(masks, params)
    assert carried.dtype == torch.bool
    assert carried.shape == (count, SIDE, SIDE)
    mover, moves = moving_part(view, params)
    shown = pixels(mover, mover.apply(images, moves))[:, 0] > 0.6
    if any(isinstance(stage, ResizedCrop) for stage in view.stages):
        # The image is interpolated and the mask is not: they differ by a part of the rim.
        assert (shown ^ carried).sum() < 0.05 * carried.sum()
    else:
        assert torch.equal(shown, carried)
    soft = view.carry_masks(masks.float() * 0.25, params)
    torch.testing.assert_close(soft, carried.float() * 0.25)


def test_a_view_with_a_stage_that_cannot_carry_refuses_by_name() -> None:
    class Swirl(Color):
        carries = False

        def draw(self, sizes: Tensor, generator: torch.Generator) -> Params:
            return {}

        def apply(self, images: Tensor, params: Params) -> Tensor:
            return images

    view = View("odd", (Flip(), Swirl()), SIDE, MEAN, STD)
    images = noise(2)
    params = view.draw(sizes_of(images), generator("odd"))
    with pytest.raises(ConfigError, match="'odd' cannot move points and masks: its stage Swirl"):
        view.require_carry()
    with pytest.raises(ConfigError, match="Swirl"):
        view.carry_points(torch.zeros(2, 2), params)
    with pytest.raises(ConfigError, match="Swirl"):
        view.carry_masks(torch.zeros(2, SIDE, SIDE), params)


@pytest.mark.parametrize("name", VIEWS)
def test_every_view_of_the_table_carries(name: str) -> None:
    built(name).require_carry()
