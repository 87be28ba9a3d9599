"""What every method must do. A new row of METHODS falls under these by itself."""

from __future__ import annotations

import copy
import dataclasses
import io
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from longtail.config import METHOD_SETTINGS, OptimSettings
from longtail.data.sampling import SAMPLERS
from longtail.methods import METHODS, Batch, Method, Progress, StepOutput
from longtail.models.network import ModelSettings
from longtail.rng import generator, keyed_global_rng
from longtail.training.optim import build_optimizer
from tiny import settings_of

COUNTS = (40, 12, 5, 2)
CLASSES, IMAGES, SIZE, EPOCHS = len(COUNTS), 6, 8, 10

POINTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in METHODS},
    "ce + mixup": ("ce", {"mixing": "mixup"}),
    "balanced-softmax + cutmix": ("balanced-softmax", {"mixing": "cutmix", "partner_sampler": "effective_number"}),
    "logit-adjustment + supervised": ("logit-adjustment", {"contrast": "supervised"}),
    "bcl + cutmix": ("bcl", {"mixing": "cutmix"}),
    "bcl + saliencymix": ("bcl", {"mixing": "saliencymix"}),
    "ldam-drw + cmo": ("cmo", {"criterion": "ldam-drw"}),
    "label-aware-smoothing + remix": ("label-aware-smoothing", {"mixing": "remix"}),
    "saliencymix at random": ("saliencymix", {"detector": "random"}),
    "saliencymix by grad-cam": ("saliencymix", {"detector": "grad-cam"}),
    "smcl, masked": ("smcl", {"mask_probability": 1.0, "mask_start": 0}),
    "smcl, masked, variant B": ("smcl", {"mask_probability": 1.0, "mask_start": 0, "variant": "B"}),
    "smcl, masked, variant C": ("smcl", {"mask_probability": 1.0, "mask_start": 0, "variant": "C"}),
    "smcl, masked, no contrast": ("smcl", {"mask_probability": 1.0, "mask_start": 0, "mu": 0.0}),
    "smcl, masked at random": ("smcl", {"mask_probability": 1.0, "mask_start": 0, "detector": "random"}),
    "smcl, masked by grad-cam": ("smcl", {"mask_probability": 1.0, "mask_start": 0, "detector": "grad-cam"}),
    "smcl, masked by gradient": ("smcl", {"mask_probability": 1.0, "mask_start": 0, "detector": "input-gradient"}),
    "smcl + ldam-drw": ("smcl", {"mask_probability": 1.0, "mask_start": 0, "criterion": "ldam-drw"}),
    "smcl-concutmix, random box": ("smcl-concutmix", {"place": "random"}),
    "smcl-concutmix, no masked anchor": ("smcl-concutmix", {"mu": 0.0}),
}
"""Every named method, and points of the composed space that have no name."""

every_point = pytest.mark.parametrize("point", list(POINTS))


def build(point: str, *, seed: int = 0, counts: Sequence[int] = COUNTS, **own: Any) -> Method:
    name, settings = POINTS[point]
    values = {"name": name, **settings_of(name)["method"], **settings, **own}
    chosen = METHOD_SETTINGS[name].model_validate(values)
    model = ModelSettings(backbone="resnet8")
    return METHODS[name].build(chosen, model, list(counts), size=SIZE, seed=seed)


def at(step: int, *, seed: int = 0, epoch: int = EPOCHS - 1) -> Progress:
    return Progress(step, epoch, EPOCHS, seed)


def pictures(*key: str | int) -> Tensor:
    return torch.randn(IMAGES, 3, SIZE, SIZE, generator=generator("pictures", *key))


def labels(*key: str | int) -> Tensor:
    return torch.randint(CLASSES, (IMAGES,), generator=generator("labels", *key))


def batch_for(method: Method, progress: Progress) -> Batch:
    """Exactly what the loader would make of it: the declared views, and a partner where the step wants one."""
    index = torch.arange(IMAGES)
    partner = None
    if method.needs_partner(progress):
        views = tuple(pictures("partner", number) for number in range(len(method.needs.partner_views)))
        partner = Batch(views, labels("partner"), index, peaks=peaks(method, "partner"))
    own = tuple(pictures(number) for number in range(len(method.needs.views)))
    return Batch(own, labels("own"), index, partner, peaks(method, "own"))


def peaks(method: Method, key: str) -> Tensor | None:
    if method.needs.detector is None:
        return None
    return torch.randint(SIZE, (IMAGES, 2), generator=generator("peaks", key))


@cache
def step_of(point: str, mixed: bool) -> Progress | None:
    """A step that uses a partner (with a box that covers something), or one that does not; None if there is none."""
    method = build(point)
    for step in range(40):
        progress = at(step)
        if method.needs_partner(progress) != mixed:
            continue
        changed = "partner" if method.needs.partner_views else "partner labels"
        if not mixed or float(loss_of(method, progress)) != float(loss_of(method, progress, changed=changed)):
            return progress
    return None


def both_kinds(point: str) -> Iterator[Progress]:
    for mixed in (False, True):
        found = step_of(point, mixed)
        if found is not None:
            yield found


def loss_of(method: Method, progress: Progress, changed: str | int | None = None) -> Tensor:
    """The loss of a step of a copy of ``method``, so that its statistics stay; with one view drawn anew."""
    batch = batch_for(method, progress)
    if isinstance(changed, int):
        views = tuple(pictures("other", n) if n == changed else view for n, view in enumerate(batch.views))
        batch = dataclasses.replace(batch, views=views)
    elif changed == "partner" and batch.partner is not None:
        views = tuple(pictures("other partner", n) for n in range(len(batch.partner.views)))
        batch = dataclasses.replace(batch, partner=dataclasses.replace(batch.partner, views=views))
    elif changed == "partner labels" and batch.partner is not None:
        target = (batch.partner.target + 1) % CLASSES
        batch = dataclasses.replace(batch, partner=dataclasses.replace(batch.partner, target=target))
    elif changed == "labels":
        batch = dataclasses.replace(batch, target=(batch.target + 1) % CLASSES)
    return forward(copy.deepcopy(method), batch, progress).loss.detach()


def apart(point: str) -> Method:
    """With batch-norm in evaluation a view counts only if it is used: in training it moves the others' statistics."""
    return trained(point).eval()


def forward(method: Method, batch: Batch, progress: Progress) -> StepOutput:
    with keyed_global_rng(progress.seed, "step", progress.step):
        return method(batch, progress)


def trained(point: str, steps: int = 3) -> Method:
    """A method whose weights and batch-norm statistics are no longer those of the start."""
    method = build(point)
    optimizer = build_optimizer(method, OptimSettings(lr=0.05))
    for step in range(steps):
        optimizer.zero_grad()
        forward(method, batch_for(method, at(step)), at(step)).loss.backward()
        optimizer.step()
    return method


def frozen(method: Method) -> set[str]:
    """Names in the state of what a step leaves alone: weights without gradient, buffers of what is in evaluation."""
    names = {name for name, parameter in method.named_parameters() if not parameter.requires_grad}
    for prefix, module in method.named_modules():
        if not module.training:
            names |= {f"{prefix}.{name}" for name, _ in module.named_buffers(recurse=False)}
    return names & method.state_dict().keys()


# Training -------------------------------------------------------------------------------------------------------------


@every_point
def test_the_loss_is_a_finite_scalar_and_every_parameter_gets_a_finite_gradient(point: str) -> None:
    for progress in both_kinds(point):
        method = build(point)
        output = forward(method, batch_for(method, progress), progress)
        assert output.loss.shape == ()
        assert output.loss.dtype == torch.float32
        assert bool(torch.isfinite(output.loss))
        output.loss.backward()
        for name, parameter in method.named_parameters():
            if not parameter.requires_grad:
                assert parameter.grad is None, f"{name} is frozen"
                continue
            assert parameter.grad is not None, f"{name} has no gradient"
            assert bool(torch.isfinite(parameter.grad).all()), name
            assert bool((parameter.grad != 0).any()) or "bias" in name, f"{name} is not used"


@every_point
def test_what_is_logged_is_detached_finite_and_scalar(point: str) -> None:
    for progress in both_kinds(point):
        method = build(point)
        output = forward(method, batch_for(method, progress), progress)
        assert "classification" in output.logs
        for name, value in output.logs.items():
            assert value.shape == (), name
            assert not value.requires_grad, name
            assert bool(torch.isfinite(value)), name


@every_point
def test_steps_on_one_batch_lower_its_loss(point: str) -> None:
    method, progress = build(point), at(0)
    optimizer = build_optimizer(method, OptimSettings(lr=0.02, weight_decay=0))
    losses = []
    # Where the network is frozen whole, the little that learns beside it takes longer.
    for _ in range(12 if any(parameter.requires_grad for parameter in method.network.parameters()) else 30):
        optimizer.zero_grad()
        output = forward(method, batch_for(method, progress), progress)
        losses.append(float(output.loss.detach()))
        output.loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


@every_point
def test_training_goes_through_without_a_warning_at_the_smallest_batch(point: str) -> None:
    method, progress = build(point), at(0)
    whole = batch_for(method, progress)

    def two(batch: Batch) -> Batch:
        views = tuple(view[:2] for view in batch.views)
        partner = None if batch.partner is None else two(batch.partner)
        peaks = None if batch.peaks is None else batch.peaks[:2]
        return Batch(views, batch.target[:2], batch.index[:2], partner, peaks)

    assert bool(torch.isfinite(forward(method, two(whole), progress).loss))


@every_point
def test_a_class_without_images_leaves_the_loss_finite(point: str) -> None:
    for progress in both_kinds(point):
        method = build(point, counts=(40, 12, 0, 2))
        output = forward(method, batch_for(method, progress), progress)
        output.loss.backward()
        assert bool(torch.isfinite(output.loss))
        assert all(bool(torch.isfinite(p.grad).all()) for p in method.parameters() if p.grad is not None)


# What it needs --------------------------------------------------------------------------------------------------------


@every_point
def test_what_it_needs_exists(point: str) -> None:
    needs = build(point).needs
    assert needs.views
    assert set(needs.views) | set(needs.partner_views) <= {"classification", "contrastive"}
    assert needs.sampler in SAMPLERS
    assert needs.partner_sampler in SAMPLERS


@every_point
def test_every_view_it_declares_changes_the_loss(point: str) -> None:
    """A view that is made and not used costs time and says nothing."""
    method = apart(point)
    for progress in both_kinds(point):
        loss = loss_of(method, progress)
        for number in range(len(method.needs.views)):
            assert not torch.equal(loss_of(method, progress, changed=number), loss), f"view {number} is not used"


@every_point
def test_every_image_of_every_view_and_of_the_partner_gets_a_gradient(point: str) -> None:
    method = apart(point)
    for progress in both_kinds(point):
        batch = batch_for(method, progress)
        given = [*batch.views, *(batch.partner.views if batch.partner is not None else ())]
        for view in given:
            view.requires_grad_()
        forward(method, batch, progress).loss.backward()
        for number, view in enumerate(given):
            assert view.grad is not None, f"view {number} is not used"
            assert bool((view.grad.abs().amax(dim=(1, 2, 3)) > 0).all()), f"view {number} is not used for all images"


@every_point
def test_the_labels_change_the_loss(point: str) -> None:
    method = apart(point)
    for progress in both_kinds(point):
        assert not torch.equal(loss_of(method, progress, changed="labels"), loss_of(method, progress))


@every_point
def test_a_partner_changes_the_loss_by_its_pixels_and_its_labels(point: str) -> None:
    method, progress = apart(point), step_of(point, True)
    assert (progress is not None) == method.needs.partner, "a declared partner is used in some step"
    if progress is not None:
        loss = loss_of(method, progress)
        if method.needs.partner_views:
            assert not torch.equal(loss_of(method, progress, changed="partner"), loss)
        assert not torch.equal(loss_of(method, progress, changed="partner labels"), loss)


NEVER = {"mix_probability": 0.0, "mask_probability": 0.0, "mu": 0.0}
ALWAYS = {"mix_probability": 1.0, "mask_probability": 1.0, "mask_start": 0}


@every_point
def test_without_a_probability_of_mixing_or_masking_no_step_wants_a_partner(point: str) -> None:
    known = METHOD_SETTINGS[POINTS[point][0]].model_fields
    if not build(point).needs.partner:
        assert not any(build(point).needs_partner(at(step)) for step in range(20))
        return
    never, always = ({key: value for key, value in given.items() if key in known} for given in (NEVER, ALWAYS))
    assert not any(build(point, **never).needs_partner(at(step)) for step in range(20))
    assert all(build(point, **always).needs_partner(at(step)) for step in range(20))


@every_point
def test_whether_a_partner_is_wanted_is_known_before_and_depends_on_seed_and_step_alone(point: str) -> None:
    method = build(point)
    wanted = [method.needs_partner(at(step)) for step in range(60)]
    torch.rand(5)
    assert [build(point, seed=9).needs_partner(at(step)) for step in reversed(range(60))] == wanted[::-1]
    if method.needs.partner and not all(wanted):
        assert [method.needs_partner(at(step, seed=1)) for step in range(60)] != wanted


# Randomness -----------------------------------------------------------------------------------------------------------


@every_point
def test_the_same_seed_and_step_give_the_same_loss_bit_for_bit(point: str) -> None:
    for progress in both_kinds(point):
        method = build(point)
        first = loss_of(method, progress)
        torch.rand(7)
        assert torch.equal(loss_of(build(point), progress), first)
        assert torch.equal(loss_of(method, progress), first), "a forward on a copy changed the original"


@every_point
def test_another_seed_builds_other_weights(point: str) -> None:
    one, other = build(point, seed=0), build(point, seed=1)
    assert not torch.equal(loss_of(one, at(0)), loss_of(other, at(0)))
    for (name, parameter), another in zip(one.named_parameters(), other.parameters(), strict=True):
        constant = bool((parameter == parameter.flatten()[0]).all())
        assert constant or not torch.equal(parameter, another), name


@every_point
def test_building_leaves_the_global_stream_alone(point: str) -> None:
    before = torch.get_rng_state()
    build(point)
    assert torch.equal(torch.get_rng_state(), before)


@every_point
def test_a_step_leaves_the_global_stream_alone(point: str) -> None:
    method = build(point)
    before = torch.get_rng_state()
    forward(method, batch_for(method, at(0)), at(0)).loss.backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_adding_heads_does_not_move_the_start_of_the_backbone_and_classifier() -> None:
    """Otherwise two methods would differ in their starting point, too."""
    reference = build("ce", seed=3).state_dict()
    for point in POINTS:
        state = build(point, seed=3).state_dict()
        shared = [name for name in reference if name.startswith(("network.backbone.", "network.classifier."))]
        assert len(shared) == len(reference)
        for name in shared:
            assert torch.equal(state[name], reference[name]), f"{point}: {name}"


# Evaluation -----------------------------------------------------------------------------------------------------------


@every_point
def test_logits_are_one_number_per_class_and_have_no_training_offset(point: str) -> None:
    """Methods that differ in nothing but the training counts say the same."""
    one, other = build(point, counts=(1000, 10, 10, 1)).eval(), build(point, counts=(7, 7, 7, 7)).eval()
    with torch.no_grad():
        logits = one.logits(pictures("test"))
        assert logits.shape == (IMAGES, CLASSES)
        assert bool(torch.isfinite(logits).all())
        assert torch.equal(other.logits(pictures("test")), logits)


@every_point
def test_evaluation_is_deterministic_and_changes_nothing(point: str) -> None:
    method = trained(point).eval()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    with torch.no_grad():
        first = method.logits(pictures("test"))
        method.logits(pictures("other test"))
        assert torch.equal(method.logits(pictures("test")), first)
    for name, value in method.state_dict().items():
        assert torch.equal(value, before[name]), name


@every_point
def test_an_image_is_judged_alike_in_any_company(point: str) -> None:
    method = trained(point).eval()
    images = pictures("test")
    with torch.no_grad():
        together = method.logits(images)
        alone = torch.cat([method.logits(image[None]) for image in images])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


# State ----------------------------------------------------------------------------------------------------------------


@every_point
def test_a_state_written_and_read_back_gives_the_same_logits_and_the_same_next_step(point: str) -> None:
    method = trained(point)
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    file.seek(0)
    again = build(point, seed=5)
    again.load_state_dict(torch.load(file, weights_only=True))
    for progress in both_kinds(point):
        assert torch.equal(loss_of(again, progress), loss_of(method, progress))
    with torch.no_grad():
        assert torch.equal(again.eval().logits(pictures("test")), method.eval().logits(pictures("test")))


@every_point
def test_the_state_holds_what_training_changed_and_nothing_that_counts_decide(point: str) -> None:
    """Offsets come from the config: a checkpoint must not smuggle in those of other data."""
    start, end = build(point).state_dict(), trained(point).state_dict()
    assert start.keys() == end.keys()
    assert {name for name, _ in build(point).named_parameters()} <= start.keys()
    unchanged = {name for name in start if torch.equal(start[name], end[name])}
    assert unchanged == frozen(build(point))
    other = build(point, counts=(7, 7, 7, 7)).state_dict()
    assert all(torch.equal(other[name], start[name]) for name in start)


@every_point
def test_a_deep_copy_trains_on_its_own(point: str) -> None:
    method = trained(point)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    other = copy.deepcopy(method)
    optimizer = build_optimizer(other, OptimSettings(lr=0.1))
    forward(other, batch_for(other, at(0)), at(0)).loss.backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in other.state_dict().items())


# The table ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(METHODS))
def test_a_row_says_what_it_is_where_it_is_from_and_which_point_it_stands_for(name: str) -> None:
    entry = METHODS[name]
    assert entry.summary
    assert not entry.summary.endswith(".")
    assert entry.paper
    assert set(entry.defaults) <= set(entry.settings.model_fields)
    chosen = METHOD_SETTINGS[name]
    for key, value in entry.defaults.items():
        assert getattr(chosen.model_validate({"name": name}), key) == value
    assert type(build(name)).__mro__[1] is Method, "no method inherits from another"
