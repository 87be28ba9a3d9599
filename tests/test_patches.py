"""Boxes on the grid of patches: where their edges are, and that the label says what was pasted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from longtail.data.batch import Batch, Progress
from longtail.errors import ConfigError
from longtail.methods.concutmix import ConCutMix
from longtail.methods.locating import Locator
from longtail.methods.mixings import CutMix, MixingSettings, SaliencyMix, build_mixing, soft_target
from longtail.methods.patches import PatchSettings
from longtail.methods.smcl import SMCL
from longtail.methods.smcl_concutmix import SMCLConCutMix
from longtail.mixing import Box, align_box, align_boxes, boxes_like, draw_cutmix
from longtail.models.network import ModelSettings, Network
from longtail.recipes import load_config
from longtail.report.samples import masked_boxes
from longtail.rng import generator
from longtail.training.state import build_method

SIZE, PATCH, COUNTS = 16, 4, [9, 6, 4, 2]


def at(step: int) -> Progress:
    return Progress(step, 9, 10, 0)


def nearest(edge: int, patch: int) -> int:
    """The nearest multiple, the higher of two, by trying them all."""
    multiples = range(0, edge + patch + 1, patch)
    return min(multiples, key=lambda multiple: (abs(multiple - edge), -multiple))


edges = st.lists(st.integers(0, 48), min_size=4, max_size=4)


@given(edges=edges, patch=st.integers(1, 16))
def test_an_edge_goes_to_the_nearest_multiple_of_the_patch(edges: list[int], patch: int) -> None:
    assert align_boxes(torch.tensor([edges]), patch).tolist() == [[nearest(edge, patch) for edge in edges]]


@given(edges=edges, patch=st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16, 24, 48]))
def test_an_aligned_box_lies_on_the_grid_within_the_image_and_no_edge_moved_by_more_than_half_a_patch(
    edges: list[int], patch: int
) -> None:
    top, bottom = sorted(edges[:2])
    left, right = sorted(edges[2:])
    box = align_box(Box(top, bottom, left, right, 48, 48), patch)
    moved = (box.top, box.bottom, box.left, box.right)
    assert all(edge % patch == 0 and 0 <= edge <= 48 for edge in moved)
    assert all(2 * abs(edge - was) <= patch for edge, was in zip(moved, (top, bottom, left, right), strict=True))
    assert align_box(box, patch) == box
    assert box.lam == 1 - (box.bottom - box.top) * (box.right - box.left) / 48**2
    if patch == 1:
        assert moved == (top, bottom, left, right)


def test_a_grid_that_does_not_fill_the_image_and_a_patch_of_nothing_are_refused() -> None:
    box = Box(0, 3, 0, 3, 10, 12)
    with pytest.raises(ValueError, match=r"patches of 4 pixels do not fill an image of 10 x 12"):
        align_box(box, 4)
    align_box(box, 2)
    for refused in (lambda: align_boxes(torch.zeros(1, 4), 0), lambda: align_box(box, 0)):
        with pytest.raises(ValueError, match="patch"):
            refused()


@given(step=st.integers(0, 300), row=st.integers(0, SIZE - 1), column=st.integers(0, SIZE - 1))
def test_boxes_of_one_size_stay_on_the_grid_wherever_they_are_put(step: int, row: int, column: int) -> None:
    drawn = draw_cutmix(SIZE, generator("patches", step), probability=1.0)
    assert drawn is not None
    box = align_box(drawn, PATCH)
    (put,) = boxes_like(box, torch.tensor([[row, column]]), PATCH).tolist()
    assert [edge % PATCH for edge in put] == [0] * 4
    assert (put[1] - put[0], put[3] - put[2]) == (box.bottom - box.top, box.right - box.left)
    assert 0 <= put[0] <= put[1] <= SIZE
    assert 0 <= put[2] <= put[3] <= SIZE


def test_the_mean_area_is_about_that_of_free_boxes() -> None:
    """Edges are rounded up as often as down: the grid does not make boxes larger or smaller on the whole."""
    free = [draw_cutmix(32, generator("area", step), probability=1.0) for step in range(1500)]
    areas = [(box.area, align_box(box, 4).area) for box in free if box is not None]
    whole, aligned = (sum(values) / len(areas) for values in zip(*areas, strict=True))
    assert aligned == pytest.approx(whole, rel=0.03)


# In the methods -------------------------------------------------------------------------------------------------------


def whole_patches(images: Tensor, patch: int = PATCH) -> bool:
    """Whether every patch of images (B, 3, H, W) of one color per source is of one color."""
    blocks = images.unfold(2, patch, patch).unfold(3, patch, patch).flatten(4)
    return bool((blocks == blocks[..., :1]).all())


def pair(count: int = 4) -> tuple[Tensor, Tensor, Batch]:
    """Black images of class 0 and white partners of class 1, with peaks off the grid."""
    black, white = torch.zeros(count, 3, SIZE, SIZE), torch.ones(count, 3, SIZE, SIZE)
    peaks = torch.randint(SIZE, (count, 2), generator=generator("patches", "peaks"))
    labels = torch.zeros(count, dtype=torch.int64)
    return black, soft_target(labels, 4), Batch((white,), labels + 1, torch.arange(count), peaks=peaks)


@pytest.mark.parametrize("kind", ["cutmix", "saliencymix"])
def test_a_mixed_image_is_made_of_whole_patches_and_its_label_is_their_share(kind: str) -> None:
    black, target, partner = pair()
    mixing = CutMix(SIZE, probability=1.0, patch=PATCH)
    if kind == "saliencymix":
        mixing = SaliencyMix(Locator("fine-grained"), probability=1.0, patch=PATCH)  # type: ignore[assignment]
    network = Network(ModelSettings(backbone="resnet8"), 4, seed=0, size=SIZE)
    shares = set()
    for step in range(30):
        mixed = mixing(black, target, partner, at(step), network)
        assert whole_patches(mixed.images)
        pasted = mixed.images.mean(dim=(1, 2, 3))
        torch.testing.assert_close(mixed.target[:, 1], pasted, rtol=0, atol=1e-6)
        torch.testing.assert_close(mixed.target[:, 0], 1 - pasted, rtol=0, atol=1e-6)
        shares |= set(pasted.tolist())
    assert len(shares) > 5


def test_without_a_patch_boxes_are_those_of_before() -> None:
    free, one = CutMix(SIZE, probability=1.0), build_mixing(MixingSettings(mixing="cutmix"), SIZE, COUNTS)
    assert isinstance(one, CutMix)
    assert one.patch == 1
    for step in range(20):
        assert free.draw(at(step)) == draw_cutmix(SIZE, at(step).generator("mix"), probability=1.0)


def method_of(name: str, **own: Any) -> Any:
    values = {"model": {"backbone": "tiny-vit"}, "method": {"patch": "auto", **own}}
    return build_method(load_config(f"npz/{name}", values), COUNTS, SIZE)


@pytest.mark.parametrize("name", ["concutmix", "cutmix", "cmo", "saliencymix", "smcl-concutmix", "smcl"])
def test_auto_is_the_patch_of_the_backbone(tiny_vit: str, name: str) -> None:
    made = method_of(name)
    assert made.settings.patch == "auto"
    assert (made.patch if isinstance(made, SMCL | SMCLConCutMix) else made.mixing.patch) == 4


def test_concutmix_draws_boxes_on_the_grid(tiny_vit: str) -> None:
    made = method_of("concutmix", mix_probability=1.0)
    assert isinstance(made, ConCutMix)
    boxes = [made.mixing.draw(at(step)) for step in range(20)]
    assert all(edge % 4 == 0 for box in boxes for edge in (box.top, box.bottom, box.left, box.right))


def test_an_object_that_is_moved_to_another_place_is_moved_by_whole_patches(tiny_vit: str) -> None:
    made = method_of("smcl-concutmix", mix_probability=1.0)
    black, _, partner = pair()
    # Each patch of the partner has a color of its own, so that a shift by part of one would show.
    colors = torch.rand(4, 3, SIZE // PATCH, SIZE // PATCH, generator=generator("colors")) + 0.5
    mosaic = colors.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    partner = Batch((mosaic,), partner.target, partner.index, peaks=partner.peaks.flip(0))
    batch = Batch((black, black, black), partner.target - 1, partner.index, partner, pair()[2].peaks)
    pasted = 0
    for step in range(20):
        box = made.mixing.draw(at(step))
        replaced = made.replace(batch, box, at(step))
        assert whole_patches(replaced.images)
        assert whole_patches(replaced.erased)
        share = (replaced.images != 0).float().mean(dim=(1, 2, 3))
        torch.testing.assert_close(replaced.target[:, 1], share, rtol=0, atol=1e-6)
        pasted += int(share[0] > 0)
    assert pasted > 5


def test_what_smcl_erases_is_whole_patches_and_lambda_is_what_stays(tiny_vit: str) -> None:
    made = method_of("smcl", mask_probability=1.0, mask_start=0, fill="mean")
    _, _, partner = pair()
    batch = Batch(partner.views, partner.target, partner.index, partner, partner.peaks)
    for step in range(20):
        masked = made.mask(batch, at(step))
        assert whole_patches(masked.images)
        torch.testing.assert_close(masked.lam, masked.images.mean(dim=(1, 2, 3)), rtol=0, atol=1e-6)
        assert not (masked_boxes(made, batch, at(step))[0] % PATCH).any(), "the report shows the same boxes"


def test_timms_transformers_tell_their_patch_too() -> None:
    timm = pytest.importorskip("timm")
    network = Network(ModelSettings(backbone="resnet8"), 4, seed=0, size=SIZE)
    network.backbone = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=8, depth=1, num_classes=0)
    assert PatchSettings(patch="auto").grid(network, SIZE) == 8


def test_auto_without_patches_and_a_patch_that_does_not_fill_the_image_are_refused() -> None:
    network = Network(ModelSettings(backbone="resnet8"), 4, seed=0, size=SIZE)
    with pytest.raises(ConfigError, match=r"method.patch=auto: backbone 'resnet8' does not cut images into patches"):
        PatchSettings(patch="auto").grid(network, SIZE)
    with pytest.raises(ConfigError, match=r"method.patch=5: patches of 5 pixels do not fill images of 16"):
        PatchSettings(patch=5).grid(network, SIZE)
    assert PatchSettings(patch=8).grid(network, SIZE) == 8
    assert PatchSettings().grid(network, SIZE) == 1


@pytest.mark.parametrize("value", ["0", "-4", "true", "some", "2.5"])
def test_a_patch_that_is_no_number_of_pixels_is_refused_by_name(value: str) -> None:
    with pytest.raises(ConfigError, match=r"method\.patch="):
        load_config("scenes/concutmix", [f"method.patch={value}"])


@pytest.mark.parametrize("name", ["concutmix", "smcl", "cutmix", "saliencymix", "smcl-concutmix", "cmo"])
def test_no_patch_leaves_the_key_as_it_was_and_a_patch_gives_another(name: str) -> None:
    plain, spelled, asked = (
        load_config(f"cifar100/{name}", own).key()
        for own in ({}, {"method": {"patch": None}}, {"method": {"patch": 4}})
    )
    assert plain == spelled != asked
