"""SMCL meets ConCutMix: a placed box of ConCutMix's size and label, and the erased view as one more anchor."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import oracles
from longtail.data.batch import Batch
from longtail.losses import logit_adjustment
from longtail.methods.base import Progress
from longtail.methods.smcl_concutmix import SMCLConCutMix, SMCLConCutMixSettings
from longtail.mixing import Box
from longtail.models.network import ModelSettings
from longtail.rng import generator
from longtail.runs.rundir import RunDir
from longtail.training.loop import train
from tiny import digest, tiny_config

COUNTS = (40, 12, 5, 2)
SIZE, IMAGES, EPOCHS = 8, 6, 10
LABELS, TOWARD = [0, 0, 1, 2, 0, 3], [3, 2, 3, 1, 0, 3]
PEAKS, PARTNER_PEAKS = (
    [[4, 4], [0, 0], [7, 7], [0, 5], [6, 1], [3, 7]],
    [[1, 6], [7, 0], [7, 7], [2, 2], [4, 5], [0, 3]],
)


def method_of(**own: Any) -> SMCLConCutMix:
    settings = SMCLConCutMixSettings.model_validate(
        {"hidden": 16, "dim": 8, "mix_probability": 1.0, "omega": 0.5, **own}
    )
    return SMCLConCutMix(settings, ModelSettings(backbone="resnet8"), COUNTS, size=SIZE, seed=0)


def at(step: int, *, epoch: int = EPOCHS - 1) -> Progress:
    return Progress(step, epoch, EPOCHS, 0)


def pictures(name: str) -> Tensor:
    return torch.randn(IMAGES, 3, SIZE, SIZE, generator=generator("smcl-concutmix", name))


def batch_for(method: SMCLConCutMix) -> Batch:
    with_peaks = method.needs.detector is not None
    index = torch.arange(IMAGES)
    partner = Batch(
        (pictures("partner"),), torch.tensor(TOWARD), index, peaks=torch.tensor(PARTNER_PEAKS) if with_peaks else None
    )
    shown = tuple(pictures(name) for name in ("own", "one", "other"))
    return Batch(shown, torch.tensor(LABELS), index, partner, torch.tensor(PEAKS) if with_peaks else None)


def mixed_step(method: SMCLConCutMix) -> tuple[Progress, Box]:
    """A step whose box covers a part of the image, smaller than the image on both sides."""
    for step in range(50):
        box = method.mixing.draw(at(step))
        if box is not None and box.area and box.bottom - box.top < SIZE and box.right - box.left < SIZE:
            return at(step), box
    raise AssertionError


def box_at(box: Box, peak: list[int]) -> list[int]:
    """Of all places of the box in the frame, the one whose middle pixel is nearest to the peak."""
    edges = []
    for side, whole, place in ((box.bottom - box.top, box.height, peak[0]), (box.right - box.left, box.width, peak[1])):
        low = min(range(whole - side + 1), key=lambda start: abs(start + side // 2 - place))
        edges += [low, low + side]
    return edges


def erased(image: list[Any], box: list[int]) -> list[Any]:
    return [
        [
            [0.0 if box[0] <= y < box[1] and box[2] <= x < box[3] else value for x, value in enumerate(row)]
            for y, row in enumerate(channel)
        ]
        for channel in image
    ]


@pytest.mark.parametrize("own", [{}, {"omega": 0.0}, {"mu": 0.0}, {"mu": 1.0, "place": "random"}])
def test_the_loss_of_a_mixed_step_is_that_of_the_equations(own: dict[str, Any]) -> None:
    method = method_of(**own).double().eval()
    batch = batch_for(method)
    partner = batch.partner
    assert partner is not None
    partner = dataclasses.replace(partner, views=(partner.views[0].double(),))
    batch = dataclasses.replace(batch, views=tuple(view.double() for view in batch.views), partner=partner)
    progress, box = mixed_step(method)
    given = method.settings

    own_pixels, others, mixed, masked = batch.views[0].tolist(), partner.views[0].tolist(), [], []
    fixed = [box.top, box.bottom, box.left, box.right]
    for i in range(IMAGES):
        here, there = box_at(box, PEAKS[i]), box_at(box, PARTNER_PEAKS[i])
        masked.append(erased(own_pixels[i], here))
        places = (here, there) if given.place == "salient" else (fixed, fixed)
        mixed.append(oracles.transplanted(own_pixels[i], others[i], *places))
    lam = 1 - box.area / SIZE**2
    area = [[lam * (k == y) + (1 - lam) * (k == t) for k in range(4)] for y, t in zip(LABELS, TOWARD, strict=True)]
    with torch.no_grad():
        shown = [batch.views[0].new_tensor(mixed), *batch.views[1:], batch.views[0].new_tensor(masked)]
        features = [method.network.features(images) for images in shown]
        projected = [method.network.project(rows) for rows in features]
        logits = method.network.classifier(features[0]).tolist()
        centers = method.network.centers()
        loss = float(method(batch, progress).loss)
    assert given.omega is not None
    assert given.topk is not None
    target = oracles.rectified_labels(projected[0].tolist(), centers.tolist(), area, COUNTS, given.omega, given.topk)
    directions = [oracles.unit(row) for row in centers.tolist()]
    pairs = [
        [oracles.unit(one), oracles.unit(other)]
        for one, other in zip(projected[1].tolist(), projected[2].tolist(), strict=True)
    ]
    expected = (
        given.alpha * oracles.cross_entropy(logits, target, logit_adjustment(COUNTS).tolist())
        + given.beta * oracles.balanced_contrastive(pairs, LABELS, directions, 0.1)
        + given.mu
        * oracles.balanced_masked_contrastive(
            [oracles.unit(row) for row in projected[3].tolist()], TOWARD, pairs, LABELS, directions, 0.1
        )
    )
    assert loss == pytest.approx(expected, rel=1e-6)


def test_with_a_random_box_and_without_mu_a_run_is_that_of_concutmix_bit_for_bit(
    tiny_npz: Path, tmp_path: Path
) -> None:
    train(tiny_config("concutmix", tiny_npz, tmp_path / "one"))
    train(tiny_config("smcl-concutmix", tiny_npz, tmp_path / "other", method={"place": "random", "mu": 0.0}))
    one, other = (RunDir(tmp_path / name).load_checkpoint() for name in ("one", "other"))
    assert one is not None
    assert other is not None
    assert digest(one) == digest(other)


def test_the_placed_box_keeps_the_size_and_lambda_of_concutmix() -> None:
    method, reference = method_of(), method_of(place="random", mu=0.0)
    batch = batch_for(method)
    assert batch.partner is not None
    black, white = torch.full_like(batch.views[0], -1.0), torch.ones_like(batch.views[0])
    batch = dataclasses.replace(
        batch, views=(black, *batch.views[1:]), partner=dataclasses.replace(batch.partner, views=(white,))
    )
    areas = set()
    for step in range(12):
        box = method.mixing.draw(at(step))
        assert box is not None
        assert box == reference.mixing.draw(at(step))
        placed, fixed = (one.replace(batch, box, at(step)) for one in (method, reference))
        assert torch.equal(placed.target, fixed.target)
        for images in (placed.images, fixed.images):
            assert ((images == 1).all(dim=1).sum(dim=(1, 2)) == box.area).all()
        assert placed.erased is not None
        assert fixed.erased is None
        assert ((placed.erased == 0).all(dim=1).sum(dim=(1, 2)) == box.area).all()
        areas.add(box.area)
        if 0 < box.area < SIZE**2:
            assert torch.equal(placed.erased == 0, placed.images == 1), "the object that is erased is the one replaced"
            assert not torch.equal(placed.images, fixed.images)
    assert len(areas) > 5


@pytest.mark.parametrize("switch", [{"place": "random"}, {"mu": 0.0}, {"omega": 0.0}])
def test_each_of_the_three_switches_changes_the_loss(switch: dict[str, Any]) -> None:
    progress, _ = mixed_step(method_of())
    full, other = (method_of(**own).eval() for own in ({}, switch))
    assert not torch.equal(full(batch_for(full), progress).loss, other(batch_for(other), progress).loss)


@pytest.mark.parametrize(
    ("own", "times"),
    [
        ({}, 4),
        ({"mu": 0.0}, 3),
        ({"place": "random"}, 4),
        ({"place": "random", "mu": 0.0}, 3),
        ({"mix_probability": 0.0}, 3),
        ({"detector": "grad-cam"}, 6),
        ({"detector": "grad-cam", "place": "random"}, 5),
        ({"detector": "grad-cam", "mu": 0.0, "place": "random"}, 3),
    ],
)
def test_as_many_images_are_forwarded_as_it_says(own: dict[str, Any], times: int) -> None:
    method, seen = method_of(**own), 0

    def count(module: torch.nn.Module, given: tuple[Tensor, ...]) -> None:
        nonlocal seen
        seen += len(given[0])

    method.network.backbone.register_forward_pre_hook(count)
    batch = batch_for(method)
    if not method.needs_partner(at(0)):
        batch = dataclasses.replace(batch, partner=None)
    assert method(batch, at(0)).forwarded == seen == times * IMAGES
    assert method.stacks() == ((3, 4) if method.settings.mu > 0 else (3,))


def test_peaks_are_asked_for_only_where_a_box_is_placed_or_a_view_erased() -> None:
    assert method_of().needs.detector == "fine-grained"
    assert method_of(place="random").needs.detector == "fine-grained"
    assert method_of(mu=0.0).needs.detector == "fine-grained"
    assert method_of(place="random", mu=0.0).needs.detector is None
    assert method_of(mix_probability=0.0).needs.detector is None
    assert method_of(saliency_maps="maps.npz").needs.detector == "given"


def test_the_masked_anchor_pulls_toward_the_class_of_the_partner() -> None:
    """A step down its term alone brings the erased views nearer to the centers of y'."""
    method = method_of(mu=1.0, alpha=0.0, beta=0.0).eval()
    progress, box = mixed_step(method)
    batch = batch_for(method)

    def closeness() -> float:
        with torch.no_grad():
            view = method.replace(batch, box, progress).erased
            assert view is not None
            anchors = F.normalize(method.network.project(method.network.features(view)), dim=1)
            centers = F.normalize(method.network.centers(), dim=1)
            return float((anchors * centers[TOWARD]).sum(dim=1).mean())

    before = closeness()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        method(batch, progress).loss.backward()
        optimizer.step()
    assert closeness() > before
