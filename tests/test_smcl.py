"""SMCL: the loss of whole steps against loops from the equations, what is masked when, and input that is broken."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import longtail.data.views as views
import longtail.methods.smcl as smcl
import oracles
from longtail.api import train as longtail_train
from longtail.data import effective_number_probabilities
from longtail.data.batch import Batch
from longtail.data.images import ImageSet
from longtail.data.loader import Loader
from longtail.errors import ConfigError, DataError, DivergedError
from longtail.files import read_json
from longtail.losses import masked_contrastive_loss
from longtail.methods.base import Progress
from longtail.methods.smcl import SMCL, SMCLSettings
from longtail.models.network import ModelSettings
from longtail.rng import generator
from longtail.runs.rundir import RunDir
from longtail.training.loop import train
from tiny import Recorder, digest, settings_of, tiny_config, write_npz

COUNTS = (40, 12, 5, 2)
SIZE, IMAGES, EPOCHS = 8, 6, 10
ALWAYS: dict[str, Any] = {"mask_probability": 1.0, "mask_start": 0}
NEVER: dict[str, Any] = {"mask_probability": 0.0}
LABELS, TOWARD = [0, 0, 1, 2, 0, 3], [3, 2, 3, 1, 0, 3]
KEPT_PEAKS = [[4, 4], [0, 0], [7, 7], [0, 5], [6, 1], [3, 7]]


def method_of(**own: Any) -> SMCL:
    settings = SMCLSettings.model_validate({"hidden": 16, "dim": 8, "criterion": "ce-drw", **own})
    return SMCL(settings, ModelSettings(backbone="resnet8"), COUNTS, size=SIZE, seed=0)


def at(step: int = 0, *, epoch: int = EPOCHS - 1) -> Progress:
    return Progress(step, epoch, EPOCHS, 0)


def pictures(name: str) -> Tensor:
    return torch.randn(IMAGES, 3, SIZE, SIZE, generator=generator("smcl", name))


def batch_for(method: SMCL, progress: Progress | None = None) -> Batch:
    """What the loader would make: a partner with as many views as are declared, and peaks where a detector is."""
    peaks = torch.tensor(KEPT_PEAKS) if method.needs.detector is not None else None
    partner = None
    if method.needs_partner(progress or at()):
        shown = (pictures("partner"),) if method.needs.partner_views else ()
        partner = Batch(shown, torch.tensor(TOWARD), torch.arange(IMAGES))
    return Batch((pictures("own"),), torch.tensor(LABELS), torch.arange(IMAGES), partner, peaks)


def doubled(method: SMCL, batch: Batch) -> tuple[SMCL, Batch]:
    """In float64 and with batch-norm in evaluation, so that a loop over images can follow."""

    def double(given: Batch) -> Batch:
        partner = None if given.partner is None else double(given.partner)
        return dataclasses.replace(given, views=tuple(view.double() for view in given.views), partner=partner)

    return method.double().eval(), double(batch)


def fix_lambda(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    monkeypatch.setattr(smcl, "draw_beta", lambda count, *_: torch.full((count,), value, dtype=torch.float64))


def passed(method: SMCL, batch: Batch, progress: Progress) -> tuple[int | None, int]:
    """How many images a step says that it forwarded, and how many went into the backbone."""
    seen = 0

    def count(module: torch.nn.Module, given: tuple[Tensor, ...]) -> None:
        nonlocal seen
        seen += len(given[0])

    handle = method.network.backbone.register_forward_pre_hook(count)
    said = method(batch, progress).forwarded
    handle.remove()
    return said, seen


# The loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["ce", "ce-drw"])
@pytest.mark.parametrize("variant", ["A", "B", "C"])
def test_the_loss_of_a_masked_step_is_that_of_the_equations(variant: str, criterion: str) -> None:
    method = method_of(**ALWAYS, variant=variant, criterion=criterion)
    method, batch = doubled(method, batch_for(method))
    progress = at(5)
    drawn = torch.rand(IMAGES, generator=generator(0, "mask", 5), dtype=torch.float64).float().tolist()
    made = [
        oracles.erased_around(image, peak, lam)
        for image, peak, lam in zip(batch.views[0].tolist(), KEPT_PEAKS, drawn, strict=True)
    ]
    assert len({lam for _, lam in made}) > 3
    assert batch.partner is not None
    with torch.no_grad():
        features = [
            torch.cat([method.network.features(image[None]) for image in images])
            for images in (
                batch.views[0].new_tensor([image for image, _ in made]),
                batch.views[0],
                batch.partner.views[0],
            )
        ]
        projected = [method.network.project(rows).tolist() for rows in features]
        logits = method.network.classifier(features[0]).tolist()
        loss = float(method(batch, progress).loss)
    weight = oracles.class_balanced_weights(COUNTS, 0.9999) if criterion == "ce-drw" else [1.0] * 4
    expected = oracles.smcl_masked(
        logits,
        projected[0],
        projected[1] + projected[2],
        LABELS,
        TOWARD,
        [lam for _, lam in made],
        mu=0.3,
        variant=variant,
        temperature=0.1,
        weight=weight,
    )
    assert loss == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("criterion", ["ce", "ce-drw"])
@pytest.mark.parametrize("variant", ["A", "C"])
def test_the_loss_of_a_step_without_a_mask_is_cross_entropy_and_supervised_contrast(
    variant: str, criterion: str
) -> None:
    method = method_of(**NEVER, variant=variant, criterion=criterion)
    method, batch = doubled(method, batch_for(method))
    assert batch.partner is not None
    with torch.no_grad():
        features = [method.network.features(part.views[0]) for part in (batch, batch.partner)]
        logits = method.network.classifier(features[0]).tolist()
        projected = [row for rows in features for row in method.network.project(rows).tolist()]
        loss = float(method(batch, at(5)).loss)
    weight = oracles.class_balanced_weights(COUNTS, 0.9999) if criterion == "ce-drw" else [1.0] * 4
    expected = oracles.smcl_clean(logits, projected, LABELS, TOWARD, mu=0.3, temperature=0.1, weight=weight)
    assert loss == pytest.approx(expected, rel=1e-6)


def test_a_lambda_of_one_gives_the_contrastive_loss_of_the_clean_label_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    method = method_of(**ALWAYS)
    method, batch = doubled(method, batch_for(method))
    fix_lambda(monkeypatch, 1.0)
    with torch.no_grad():
        output = method(batch, at())
        assert batch.partner is not None
        rows = method.network.project(method.network.features(torch.cat((batch.views[0], batch.partner.views[0]))))
        rows = torch.nn.functional.normalize(rows, dim=1)
        own = masked_contrastive_loss(rows[:IMAGES], batch.target, rows, torch.tensor(LABELS + TOWARD), temperature=0.1)
    assert float(output.logs["contrastive"]) == pytest.approx(float(own), rel=1e-9)


def test_lambda_is_the_fraction_of_each_image_that_is_left() -> None:
    method = method_of(**ALWAYS)
    batch = batch_for(method)
    masked = method.mask(batch, at(3))
    left = (masked.images != 0).all(dim=1)
    assert torch.equal(masked.lam, left.float().mean(dim=(1, 2)))
    assert torch.equal(
        masked.images[left[:, None].expand(-1, 3, -1, -1)], batch.views[0][left[:, None].expand(-1, 3, -1, -1)]
    )
    assert len(masked.lam.unique()) > 3
    assert masked.toward.tolist() == TOWARD


@pytest.mark.parametrize(("at_edge", "same"), [("shift", True), ("clip", False)])
def test_shifted_boxes_have_the_area_of_a_box_in_the_middle_and_clipped_ones_a_smaller(
    at_edge: str, same: bool
) -> None:
    method = method_of(**ALWAYS, at_edge=at_edge)
    batch = batch_for(method)
    middle, corner = (
        method.mask(dataclasses.replace(batch, peaks=torch.tensor([peak] * IMAGES)), at(3)).lam
        for peak in ([4, 4], [0, 7])
    )
    assert bool((middle < 1).any())
    assert torch.equal(middle, corner) == same
    assert bool((middle <= corner).all())


def test_the_box_is_filled_as_asked() -> None:
    batch = batch_for(method_of(**ALWAYS))
    image_mean = batch.views[0].mean(dim=(2, 3), keepdim=True).expand_as(batch.views[0])
    boxed = method_of(**ALWAYS).mask(batch, at(3)).images == 0
    assert bool(boxed.any())
    filled = {fill: method_of(**ALWAYS, fill=fill).mask(batch, at(3)).images for fill in ("image-mean", "noise")}
    assert torch.equal(filled["image-mean"], torch.where(boxed, image_mean, batch.views[0]))
    assert torch.equal(filled["noise"][~boxed], batch.views[0][~boxed])
    noise = filled["noise"][boxed]
    assert len(noise.unique()) == len(noise)
    assert 0.7 < float(noise.std()) < 1.3
    other = method_of(**ALWAYS, fill="noise").mask(batch, at(4)).images
    assert not torch.isin(noise, other).any(), "drawn anew in every step"


# When -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probability", [0.2, 0.5])
def test_no_batch_is_masked_before_mask_start_and_the_share_of_its_coin_after(probability: float) -> None:
    method, n = method_of(mask_probability=probability), 1500
    for epoch in range(8):
        assert not any(method.masks(at(step, epoch=epoch)) for step in range(100)), epoch
    for epoch in (8, 9):
        heads = sum(method.masks(at(step, epoch=epoch)) for step in range(n))
        assert abs(heads / n - probability) <= 4.5 * (probability * (1 - probability) / n) ** 0.5
    later = method_of(mask_probability=1.0, mask_start=3)
    assert [later.masks(at(epoch=epoch)) for epoch in range(5)] == [False, False, False, True, True]


def test_one_coin_falls_for_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    fix_lambda(monkeypatch, 0.5)
    method = method_of(mask_probability=0.5, mask_start=0)
    kinds = set()
    for step in range(20):
        progress = at(step)
        kinds.add(method.masks(progress))
        said, _ = passed(method, batch_for(method, progress), progress)
        assert said == (3 if method.masks(progress) else 2) * IMAGES
    assert kinds == {True, False}
    assert bool((method.mask(batch_for(method), at()).lam < 1).all())


def test_the_contrastive_loss_starts_in_its_epoch() -> None:
    method = method_of(contrastive_from=4, mask_probability=0.0).eval()
    for epoch, there in ((0, False), (3, False), (4, True), (9, True)):
        progress = at(epoch=epoch)
        assert method.contrasts(progress) == method.needs_partner(progress) == there
        output = method(batch_for(method, progress), progress)
        assert ("contrastive" in output.logs) == there
        assert output.forwarded == (2 if there else 1) * IMAGES
        assert torch.equal(output.loss, output.logs["classification"]) == (not there)


# What is forwarded ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "plain", "masked"),
    [
        ({}, 2, 3),
        ({"mu": 0.0}, 1, 1),
        ({"mu": 0.0, "forward_partner": True}, 2, 3),
        ({"detector": "random"}, 2, 3),
        ({"detector": "grad-cam"}, 2, 4),
        ({"detector": "input-gradient", "mu": 0.0}, 1, 2),
        ({"contrastive_from": 1.0}, 1, 1),
    ],
)
def test_as_many_images_are_forwarded_as_it_says(own: Mapping[str, Any], plain: int, masked: int) -> None:
    for settings, factor in ((NEVER, plain), (ALWAYS, masked)):
        method = method_of(**settings, **own)
        assert passed(method, batch_for(method), at()) == (factor * IMAGES, factor * IMAGES)


def test_the_image_passes_of_a_run_are_those_that_its_steps_say(tiny_npz: Path, tmp_path: Path) -> None:
    own = {**settings_of("smcl")["method"], **ALWAYS, "detector": "grad-cam"}
    train(tiny_config("smcl", tiny_npz, tmp_path / "run", method=own))
    assert read_json(tmp_path / "run" / "results.json")["image_passes"] == 2 * 21 * 4


def test_without_mu_there_is_no_projection_head_and_no_view_of_a_partner() -> None:
    masking, plain = method_of(**ALWAYS, mu=0.0), method_of(**NEVER, mu=0.0)
    assert masking.network.projection is None
    assert masking.needs.partner_views == plain.needs.partner_views == ()
    assert masking.needs.partner
    assert masking.needs.detector == "fine-grained"
    assert (plain.needs.partner, plain.needs.detector) == (False, None)
    assert method_of().network.projection is not None


def test_a_forwarded_partner_changes_batch_norm_and_no_loss_term() -> None:
    outputs, buffers = [], []
    for forward_partner in (False, True):
        for settings in (NEVER, ALWAYS):
            method = method_of(**settings, mu=0.0, forward_partner=forward_partner)
            batch = batch_for(method)
            assert set(method(batch, at()).logs) == {"classification"}
            buffers.append(torch.cat([b.flatten().float() for b in method.network.buffers()]))
            outputs.append(method_of(**settings, mu=0.0, forward_partner=forward_partner).eval()(batch, at()).loss)
    for without, with_partner in ((0, 2), (1, 3)):
        torch.testing.assert_close(outputs[without], outputs[with_partner], rtol=1e-6, atol=0)
        assert not torch.equal(buffers[without], buffers[with_partner])


@pytest.mark.parametrize(("host", "own"), [("ce-drw", {}), ("ce", {"criterion": "ce"})])
def test_without_masks_and_mu_a_run_is_that_of_its_host_bit_for_bit(
    tiny_npz: Path, tmp_path: Path, host: str, own: dict[str, Any]
) -> None:
    more = {"drw_start": 0.5} if host == "ce-drw" else {}
    train(tiny_config(host, tiny_npz, tmp_path / "host", method=more))
    train(tiny_config("smcl", tiny_npz, tmp_path / "smcl", method={"mask_probability": 0.0, "mu": 0.0, **own, **more}))
    one, other = (RunDir(tmp_path / name).load_checkpoint() for name in ("host", "smcl"))
    assert one is not None
    assert other is not None
    assert digest(one) == digest(other)


# Partners -------------------------------------------------------------------------------------------------------------


def partners(**own: Any) -> tuple[Tensor, Tensor]:
    """Shares of the classes among the partners that a loader draws for SMCL, and how many were drawn."""
    labels = torch.arange(4).repeat_interleave(torch.tensor(COUNTS))
    images = ImageSet(torch.zeros(len(labels), 3, SIZE, SIZE, dtype=torch.uint8), labels, torch.arange(len(labels)))
    method = method_of(**ALWAYS, mu=0.0, detector="center", **own)
    plain = {"classification": views.build_view("plain", SIZE, (0, 0, 0), (1, 1, 1))}
    loader = Loader(images, method.needs, plain, len(labels), 400, 0)
    drawn = []
    for step in range(400):
        partner = loader.batch(step, with_partner=method.needs_partner(loader.progress(step))).partner
        assert partner is not None
        assert partner.views == ()
        drawn.append(partner.target)
    return torch.bincount(torch.cat(drawn), minlength=4).double() / (400 * len(labels)), torch.tensor(400 * len(labels))


@pytest.mark.parametrize("beta", [0.5, 0.9999])
def test_target_classes_are_drawn_by_the_effective_number(beta: float) -> None:
    share, n = partners(effective_beta=beta)
    effective = [sum(beta**i for i in range(count)) for count in COUNTS]
    p = torch.tensor([1 / e for e in effective], dtype=torch.float64)
    p /= p.sum()
    torch.testing.assert_close(p, effective_number_probabilities(COUNTS, beta))
    assert bool(((share - p).abs() <= 4.5 * (p * (1 - p) / n).sqrt()).all())


def test_drawn_per_sample_the_target_classes_are_nearly_uniform() -> None:
    share, _ = partners(partner_sampler="effective_number_per_sample")
    torch.testing.assert_close(share, torch.full((4,), 0.25, dtype=torch.float64), atol=0.015, rtol=0)
    assert float(partners()[0][3]) > 0.6


# Broken input ---------------------------------------------------------------------------------------------------------


def finite_step(method: SMCL, batch: Batch) -> Tensor:
    output = method(batch, at())
    output.loss.backward()
    assert bool(torch.isfinite(output.loss))
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
    return output.loss.detach()


@pytest.mark.parametrize("variant", ["A", "B", "C"])
def test_a_mask_that_covers_all_leaves_the_step_finite(monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    fix_lambda(monkeypatch, 0.0)
    method = method_of(**ALWAYS, variant=variant)
    batch = dataclasses.replace(batch_for(method), peaks=torch.full((IMAGES, 2), 4))
    masked = method.mask(batch, at())
    assert masked.lam.tolist() == [0.0] * IMAGES
    assert not masked.images.any()
    finite_step(method, batch)


def test_a_box_of_one_pixel_is_empty_and_in_a_corner_of_one_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    fix_lambda(monkeypatch, 1 - (1.5 / SIZE) ** 2)
    method = method_of(**ALWAYS)
    batch = batch_for(method)
    masked = method.mask(batch, at())
    assert masked.lam.tolist() == [1.0] * IMAGES
    assert torch.equal(masked.images, batch.views[0])
    finite_step(method, batch)
    fix_lambda(monkeypatch, 1 - (2.5 / SIZE) ** 2)
    batch = dataclasses.replace(batch, peaks=torch.zeros(IMAGES, 2, dtype=torch.int64))
    masked = method.mask(batch, at())
    assert masked.lam.tolist() == [1 - 1 / SIZE**2] * IMAGES
    assert (masked.images == 0).all(dim=1).nonzero()[:, 1:].tolist() == [[0, 0]] * IMAGES
    finite_step(method_of(**ALWAYS), batch)


@pytest.mark.parametrize("what", ["noise", "constant", "one pixel"])
def test_constant_images_images_of_one_pixel_and_a_class_of_one_image_train_to_the_end(
    tmp_path: Path, what: str
) -> None:
    flat = {"train_images": torch.full((21, SIZE, SIZE, 3), 90, dtype=torch.uint8).numpy()}
    more: dict[str, Any] = {"noise": {}, "constant": flat, "one pixel": {"shape": (1, 1, 3)}}[what]
    archive = write_npz(tmp_path / "data.npz", (9, 6, 5, 1), **more)
    # A crop with 4 pixels around leaves nothing of one pixel, and batch-norm of nothing diverges under any method.
    view = "plain" if what == "one pixel" else "crop-flip"
    watched, own = Recorder(), {**settings_of("smcl")["method"], **ALWAYS}
    config = tiny_config("smcl", archive, tmp_path / "run", method=own, views={"classification": view})
    train(config, listener=watched)
    assert len(watched.logs) == 6
    assert all("contrastive" in logs and isfinite(sum(logs.values())) for logs in watched.logs)


def refused(error: type[Any], code: int, folder: Path, method: Mapping[str, Any], data: Path, **more: Any) -> str:
    """What a run of SMCL that cannot start says; it has the exit code ``code`` and leaves no folder."""
    values = settings_of("smcl")
    values["method"] |= ALWAYS | dict(method)
    values["data"] |= {"path": str(data)}
    with pytest.raises(error) as caught:
        longtail_train("npz/smcl", out=folder / "run", **values, **more)
    assert caught.value.exit_code == code
    assert not (folder / "run").exists()
    return str(caught.value)


def test_a_function_that_gives_nan_is_refused_by_the_image(tiny_npz: Path, tmp_path: Path) -> None:
    def broken(images: Tensor) -> Tensor:
        maps = images.float().mean(dim=1)
        maps[17, 3, 2] = float("nan")
        return maps

    said = refused(DataError, 3, tmp_path, {}, tiny_npz, saliency=broken)
    assert "training image 17 (image 17 of the source) has NaN" in said
    assert "the function given" in said


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda images: images.float(), r"(21, 3, 8, 8); (21, 8, 8) is wanted"),
        (lambda images: images[:, 0, :4].float(), r"(21, 4, 8)"),
        (lambda images: images[:, 0].numpy(), "ndarray"),
        (lambda images: None, "NoneType"),
    ],
)
def test_a_function_that_gives_no_maps_is_refused(tiny_npz: Path, tmp_path: Path, given: Any, words: str) -> None:
    assert words in refused(DataError, 3, tmp_path, {}, tiny_npz, saliency=given)


def test_maps_that_nobody_asked_for_are_refused(tiny_npz: Path, tmp_path: Path) -> None:
    def never(images: Tensor) -> Tensor:
        raise AssertionError

    said = refused(ConfigError, 2, tmp_path, {"detector": "random"}, tiny_npz, saliency=never)
    assert "uses no saliency maps" in said


def test_a_network_whose_maps_are_nan_has_diverged() -> None:
    for detector in ("grad-cam", "input-gradient"):
        method = method_of(**ALWAYS, detector=detector)
        with torch.no_grad():
            method.network.classifier.weight.fill_(float("nan"))
        with pytest.raises(DivergedError, match=f"'{detector}' are not finite in step 3") as caught:
            method(batch_for(method), at(3))
        assert caught.value.exit_code == 5


def test_a_run_whose_network_can_no_longer_say_what_is_salient_ends_as_diverged(tiny_npz: Path, tmp_path: Path) -> None:
    own = {**ALWAYS, "detector": "grad-cam"}
    with pytest.raises(DivergedError, match="maps of 'grad-cam' are not finite"):
        train(tiny_config("smcl", tiny_npz, tmp_path / "run", method=own, optim={"lr": 1e30}))
    assert read_json(tmp_path / "run" / "run.json")["status"] == "diverged"


def test_a_detector_that_cannot_be_had_is_refused_at_the_start(tiny_npz: Path, tmp_path: Path) -> None:
    no_masks = refused(DataError, 3, tmp_path, {"detector": "ground-truth"}, tiny_npz)
    assert "needs object masks, and these images have none" in no_masks
    near = refused(ConfigError, 2, tmp_path, {"detector": "fine-graned"}, tiny_npz)
    assert "Unknown detector 'fine-graned'" in near
    assert "Did you mean 'fine-grained'?" in near
    no_attention = refused(ConfigError, 2, tmp_path, {"detector": "attention-rollout"}, tiny_npz)
    assert "'resnet8' has no attention" in no_attention


class Scrambled:
    """A stage that does not say where pixels go."""

    carries = False

    def draw(self, sizes: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {}

    def apply(self, images: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        return images.flip(2)


def test_a_view_that_cannot_carry_peaks_is_refused_by_its_stage(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(views.VIEWS, "scrambled", views.ViewSpec("", lambda size, mean: (Scrambled(),)))  # type: ignore[arg-type]
    config = partial(tiny_config, "smcl", tiny_npz, views={"classification": "scrambled"})
    with pytest.raises(ConfigError, match=r"view 'scrambled' .* stage Scrambled") as caught:
        train(config(tmp_path / "run", method=ALWAYS))
    assert caught.value.exit_code == 2
    assert not (tmp_path / "run").exists()
    train(config(tmp_path / "center", method={**ALWAYS, "detector": "center"}))
