"""The one-stage methods of the family: mixings, their schedule, and the named points that are made of them."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import family_oracles
import oracles
from longtail.api import run_config
from longtail.errors import ConfigError
from longtail.methods import METHODS, Batch, Method, Progress
from longtail.methods.mixings import MIXINGS, Mixed, Mixing, MixingSettings, Mixup, build_mixing, soft_target
from longtail.methods.plain import Plain
from longtail.mixing import mix_labels, remix_factor
from longtail.models.network import ModelSettings, Network
from longtail.rng import generator
from tiny import tiny_config

COUNTS = [90, 30, 9, 2]
IMAGES, SIZE = 12, 16
MIXED = ("mixup", "remix", "cutmix", "cmo", "saliencymix")

every_mixing = pytest.mark.parametrize("name", MIXED)


def mixing_of(name: str, counts: list[int] | None = None, **own: Any) -> Mixing:
    values = {"mixing": name, "partner_sampler": "class_balanced", "mix_probability": 1.0, **own}
    return build_mixing(MixingSettings.model_validate(values), SIZE, counts or COUNTS)


def method_of(name: str, **own: Any) -> Method:
    entry = METHODS[name]
    chosen = entry.settings.model_validate({**entry.defaults, "hidden": 16, "dim": 8, **own})
    return entry.build(chosen, ModelSettings(backbone="resnet8"), COUNTS, size=SIZE, seed=0)


def network() -> Network:
    return Network(ModelSettings(backbone="resnet8"), len(COUNTS), seed=0)


def at(step: int, epoch: int = 5, epochs: int = 10) -> Progress:
    return Progress(step, epoch, epochs, 0)


def some(key: str) -> Batch:
    images = torch.randn(IMAGES, 3, SIZE, SIZE, generator=generator("family", key))
    labels = torch.randint(len(COUNTS), (IMAGES,), generator=generator("family labels", key))
    peaks = torch.randint(SIZE, (IMAGES, 2), generator=generator("family peaks", key))
    return Batch((images,), labels, torch.arange(IMAGES), peaks=peaks)


def mixed_by(mixing: Mixing, step: int) -> Mixed:
    own, partner = some("own"), some("partner")
    return mixing(own.views[0], soft_target(own.target, len(COUNTS)), partner, at(step), network())


# The table ------------------------------------------------------------------------------------------------------------


def test_every_mixing_that_can_be_chosen_is_in_the_table() -> None:
    assert set(get_args(MixingSettings.model_fields["mixing"].annotation)) == set(MIXINGS) == {"none", *MIXED}


@every_mixing
def test_a_mixing_keeps_labels_distributions_and_leaves_what_it_was_given(name: str) -> None:
    mixing, own, partner = mixing_of(name), some("own"), some("partner")
    target = soft_target(own.target, len(COUNTS))
    before = [own.views[0].clone(), partner.views[0].clone(), target.clone()]
    changed = False
    for step in range(10):
        mixed = mixing(own.views[0], target, partner, at(step), network())
        assert mixed.images.shape == own.views[0].shape
        torch.testing.assert_close(mixed.target.sum(dim=1), torch.ones(IMAGES))
        assert bool((mixed.target >= 0).all())
        changed |= not torch.equal(mixed.images, own.views[0])
    assert changed
    assert all(torch.equal(a, b) for a, b in zip(before, (own.views[0], partner.views[0], target), strict=True))


@every_mixing
def test_a_mixing_without_a_partner_leaves_everything(name: str) -> None:
    own = some("own")
    target = soft_target(own.target, len(COUNTS))
    mixed = mixing_of(name)(own.views[0], target, None, at(3), network())
    assert torch.equal(mixed.images, own.views[0])
    assert torch.equal(mixed.target, target)
    assert (mixed.box, mixed.lam, mixed.forwarded) == (None, 1.0, 0)


@every_mixing
@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_a_mixing_wants_partners_as_often_as_its_probability(name: str, probability: float) -> None:
    mixing, n = mixing_of(name, mix_probability=probability), 1000
    wanted = sum(mixing.wants_partner(at(step)) for step in range(n))
    assert abs(wanted / n - probability) <= 4.5 * (probability * (1 - probability) / n) ** 0.5


def test_mixings_of_one_kind_mix_the_same_batches_by_the_same_lambda() -> None:
    """So that mixup and remix, or cutmix, cmo and saliencymix, differ in nothing but what their name says."""
    for names in (("mixup", "remix"), ("cutmix", "cmo", "saliencymix")):
        mixings = [mixing_of(name, mix_probability=0.5) for name in names]
        wanted = [[mixing.wants_partner(at(step)) for step in range(50)] for mixing in mixings]
        assert all(one == wanted[0] for one in wanted)
    assert mixed_by(mixing_of("mixup"), 4).lam == mixed_by(mixing_of("remix"), 4).lam
    middle = dataclasses.replace(some("partner"), peaks=torch.full((IMAGES, 2), SIZE // 2))
    own = some("own")
    for step in range(8):
        # A box in the middle is not clipped, so that its area tells lambda to rounding.
        salient = mixing_of("saliencymix")(
            own.views[0], soft_target(own.target, len(COUNTS)), middle, at(step), network()
        )
        lam = float(torch.rand(1, generator=at(step).generator("mix"), dtype=torch.float64))
        half = int(SIZE * (1 - lam) ** 0.5) // 2
        torch.testing.assert_close(salient.lam, torch.full((IMAGES,), 1 - (2 * half / SIZE) ** 2))


# Remix ----------------------------------------------------------------------------------------------------------------


@given(
    st.floats(0, 1), st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=1, max_size=6),
    st.sampled_from([1.0, 2.0, 3.0, 10.0]), st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0]),
)  # fmt: skip
def test_remix_factor_is_equation_10(lam: float, pairs: list[tuple[int, int]], kappa: float, tau: float) -> None:
    own, other = (torch.tensor(side, dtype=torch.float64) for side in zip(*pairs, strict=True))
    expected = [family_oracles.remix_factor(lam, *pair, kappa, tau) for pair in pairs]
    assert remix_factor(lam, own, other, kappa=kappa, tau=tau).tolist() == pytest.approx(expected, abs=1e-6)
    each = torch.full((len(pairs),), lam, dtype=torch.float64)
    assert remix_factor(each, own, other, kappa=kappa, tau=tau).tolist() == pytest.approx(expected, abs=1e-12)


def test_remix_gives_the_label_to_the_rarer_class_on_either_side_and_to_none_of_like_size() -> None:
    own, other = torch.tensor([90.0, 9.0, 30.0, 90.0]), torch.tensor([9.0, 90.0, 20.0, 30.0])
    assert remix_factor(0.3, own, other).tolist() == pytest.approx([0.0, 0.3, 0.3, 0.0])
    assert remix_factor(0.7, own, other).tolist() == pytest.approx([0.7, 1.0, 0.7, 0.7])
    # A class without images counts as one: two images are not three times as many.
    assert remix_factor(0.7, torch.tensor([0.0, 0.0]), torch.tensor([2.0, 3.0])).tolist() == pytest.approx([0.7, 1.0])
    # At tau itself nothing is moved: the inequality is strict.
    assert remix_factor(0.5, own, other).tolist() == pytest.approx([0.5] * 4)


def test_remix_is_mixup_by_its_images_and_the_factor_by_its_labels() -> None:
    own, partner, moved = some("own"), some("partner"), 0
    for step in range(12):
        plain, made = mixed_by(Mixup(), step), mixed_by(mixing_of("remix"), step)
        assert torch.equal(made.images, plain.images)
        lam = float(plain.lam)
        for i in range(IMAGES):
            a, b = int(own.target[i]), int(partner.target[i])
            share = family_oracles.remix_factor(lam, COUNTS[a], COUNTS[b], 3.0, 0.5)
            expected = [share * (k == a) + (1 - share) * (k == b) for k in range(len(COUNTS))]
            assert made.target[i].tolist() == pytest.approx(expected, abs=1e-6)
            moved += share != lam
    assert moved > 20


@pytest.mark.parametrize("own", [{"remix_tau": 0.0}, {"remix_kappa": 1000.0}])
def test_remix_that_moves_no_label_is_mixup(own: dict[str, float]) -> None:
    for step in range(6):
        made, plain = mixed_by(mixing_of("remix", **own), step), mixed_by(Mixup(), step)
        torch.testing.assert_close(made.target, plain.target)


def test_remix_of_equal_counts_is_mixup() -> None:
    for step in range(6):
        same = mixed_by(mixing_of("remix", counts=[17] * 4), step)
        torch.testing.assert_close(same.target, mixed_by(Mixup(), step).target)


def test_remix_leaves_its_counts_to_the_config_and_moves_them_with_the_module() -> None:
    method = method_of("remix")
    assert not [name for name in method.state_dict() if "mixing" in name]
    assert {buffer.device.type for name, buffer in method.to("meta").named_buffers() if "mixing" in name} == {"meta"}


def test_settings_of_remix_that_do_not_fit_are_refused_in_words() -> None:
    counts = torch.tensor([3.0, 2.0])
    with pytest.raises(ValueError, match=r"counts must be \(B,\)"):
        remix_factor(0.5, counts, counts[:1])
    with pytest.raises(ValueError, match=r"lam must be one number or \(2,\)"):
        remix_factor(torch.rand(3, generator=generator(0)), counts, counts)
    with pytest.raises(ValueError, match=r"kappa must be at least 1, not 0\.5"):
        remix_factor(0.5, counts, counts, kappa=0.5)
    with pytest.raises(ValueError, match=r"tau must be in \[0, 1\], not 1.5"):
        remix_factor(0.5, counts, counts, tau=1.5)


# SaliencyMix ----------------------------------------------------------------------------------------------------------


def test_saliencymix_pastes_each_partner_around_its_own_peak_at_the_same_place() -> None:
    own, partner = some("own"), some("partner")
    assert own.peaks is not None
    assert partner.peaks is not None
    for step in range(6):
        mixed = mixed_by(mixing_of("saliencymix"), step)
        lam = float(torch.rand(1, generator=at(step).generator("mix"), dtype=torch.float64))
        for i in range(IMAGES):
            row, column = partner.peaks[i].tolist()
            image, other = own.views[0][i].tolist(), partner.views[0][i].tolist()
            made, share = family_oracles.pasted_around_the_peak(image, other, (row, column), lam)
            assert mixed.images[i].tolist() == made
            a, b = int(own.target[i]), int(partner.target[i])
            expected = [share * (k == a) + (1 - share) * (k == b) for k in range(len(COUNTS))]
            assert mixed.target[i].tolist() == pytest.approx(expected, abs=1e-6)
        assert isinstance(mixed.lam, Tensor)
    assert len({tuple(box) for box in mixed.box.tolist()}) > 4, "one box serves the whole batch"  # type: ignore[union-attr]


def test_the_peaks_of_the_images_that_are_pasted_into_do_not_matter() -> None:
    own, partner = some("own"), some("partner")
    target, mixing = soft_target(own.target, len(COUNTS)), mixing_of("saliencymix")
    made = mixing(own.views[0], target, partner, at(2), network())
    moved = dataclasses.replace(partner, peaks=(partner.peaks + 5) % SIZE)  # type: ignore[operator]
    assert not torch.equal(mixing(own.views[0], target, moved, at(2), network()).images, made.images)
    method = method_of("saliencymix", mix_probability=1.0).eval()
    losses = [
        method(dataclasses.replace(own, partner=partner, peaks=peaks), at(2)).loss
        for peaks in (own.peaks, some("other").peaks)
    ]
    assert torch.equal(*losses)


def test_saliencymix_wants_peaks_of_detectors_that_are_run_once_and_of_no_other() -> None:
    assert method_of("saliencymix").needs.detector == "fine-grained"
    assert method_of("saliencymix", saliency_maps="maps.npz").needs.detector == "given"
    for own in ({"detector": "random"}, {"detector": "grad-cam"}, {"mix_probability": 0.0}):
        assert method_of("saliencymix", **own).needs.detector is None
    for name, entry in METHODS.items():
        if entry.build is Plain and name != "saliencymix":
            assert method_of(name).needs.detector is None


def test_a_detector_that_the_network_cannot_have_is_refused_before_the_first_step() -> None:
    with pytest.raises(ConfigError, match="attention"):
        method_of("saliencymix", detector="attention-rollout")


def test_images_that_a_detector_forwards_are_counted() -> None:
    own, partner = some("own"), some("partner")
    batch = dataclasses.replace(own, partner=partner)
    passes = {
        detector: method_of("saliencymix", detector=detector, mix_probability=1.0)(batch, at(1)).forwarded
        for detector in ("fine-grained", "random", "grad-cam")
    }
    assert passes == {"fine-grained": IMAGES, "random": IMAGES, "grad-cam": 2 * IMAGES}


# The epochs in which batches are mixed --------------------------------------------------------------------------------


def test_cmo_is_off_in_the_first_four_and_the_last_three_of_200_epochs() -> None:
    """As the authors' program: 3 < epoch < 200 - 3, counted from 0."""
    method = method_of("cmo", mix_probability=1.0)
    on = [epoch for epoch in range(200) if method.needs_partner(at(7, epoch, 200))]
    assert on == list(range(4, 197))


@every_mixing
def test_every_mixing_can_be_limited_to_some_epochs(name: str) -> None:
    limits = {"mix_start": 2, "mix_stop": 0.5, "mix_probability": 1.0, "partner_sampler": "class_balanced"}
    method = method_of("ce", mixing=name, **limits)
    assert [epoch for epoch in range(10) if method.needs_partner(at(7, epoch))] == [2, 3, 4]
    everywhere = method_of("ce", mixing=name, mix_probability=1.0, partner_sampler="class_balanced")
    assert all(everywhere.needs_partner(at(7, epoch)) for epoch in range(10))


def test_an_epoch_without_mixing_is_cross_entropy_whatever_partner_there_is() -> None:
    batch = dataclasses.replace(some("own"), partner=some("partner"))
    cmo, ce = method_of("cmo", mix_probability=1.0), method_of("ce")
    assert torch.equal(cmo(batch, at(3, 199, 200)).loss, ce(batch, at(3, 199, 200)).loss)
    assert not torch.equal(cmo(batch, at(3, 100, 200)).loss, ce(batch, at(3, 100, 200)).loss)


@pytest.mark.parametrize(("start", "stop"), [(0.5, 0.5), (0.9, 0.2), (7, 3)])
def test_epochs_that_no_run_has_are_refused(start: float, stop: float) -> None:
    with pytest.raises(ConfigError, match=r"mix_start=.* is not before method\.mix_stop"):
        method_of("cutmix", mix_start=start, mix_stop=stop)
    method_of("ce", mix_start=start, mix_stop=stop)


def test_cmo_refuses_partners_that_are_not_drawn_by_class() -> None:
    with pytest.raises(ConfigError, match="is cutmix") as caught:
        method_of("ldam-drw", mixing="cmo")
    assert "class_balanced" in str(caught.value.hint)
    assert method_of("cmo", criterion="ldam-drw").needs.partner_sampler == "class_balanced"


# Named points ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixup", "remix", "cutmix", "saliencymix", "cmo"])
def test_a_mixed_method_is_the_slow_cross_entropy_of_what_its_mixing_made(name: str) -> None:
    method, own, partner = method_of(name, mix_probability=1.0), some("own"), some("partner")
    method.eval()
    mixed = mixed_by(method.mixing, 3)  # type: ignore[arg-type]
    with torch.no_grad():
        loss = method(dataclasses.replace(own, partner=partner), at(3)).loss
        logits = method.network.logits(mixed.images)
    assert float(loss) == pytest.approx(oracles.cross_entropy(logits.tolist(), mixed.target.tolist()), rel=1e-5)


def test_a_mixed_label_under_every_criterion_is_the_mix_of_two_losses_where_nothing_is_weighed() -> None:
    """The programs' lam * criterion(y) + (1 - lam) * criterion(y'); with class weights the divisor differs."""
    own, partner = some("own"), some("partner")
    for criterion in ("ce", "focal", "balanced-softmax", "ldam-drw", "label-aware-smoothing"):
        method = method_of("mixup", criterion=criterion).eval()
        mixed = mixed_by(method.mixing, 3)  # type: ignore[arg-type]
        with torch.no_grad():
            loss = method(dataclasses.replace(own, partner=partner), at(3)).loss
            logits = method.network.logits(mixed.images)
            one, other = (
                method.criterion(logits, soft_target(labels, len(COUNTS)), at(3))  # type: ignore[operator]
                for labels in (own.target, partner.target)
            )
        torch.testing.assert_close(loss, mixed.lam * one + (1 - mixed.lam) * other)


def test_supcon_is_cross_entropy_of_one_view_and_the_slow_contrastive_loss_of_the_others() -> None:
    method = method_of("supcon", beta=0.7).eval()
    own = some("own")
    views = tuple(some(key).views[0] for key in ("own", "second", "third"))
    with torch.no_grad():
        output = method(dataclasses.replace(own, views=views), at(0))
        logits = method.network.logits(views[0])
        projected = method.network.project(method.network.features(torch.cat(views[1:])))
    unit = torch.nn.functional.normalize(projected.double(), dim=1)
    pairs = torch.stack((unit[:IMAGES], unit[IMAGES:]), dim=1).tolist()
    classification = oracles.cross_entropy(logits.tolist(), own.target.tolist())
    contrastive = oracles.supervised_contrastive(pairs, own.target.tolist(), 0.1)
    assert float(output.loss) == pytest.approx(classification + 0.7 * contrastive, rel=1e-4)


def test_the_named_mixings_mix_as_often_as_in_their_papers() -> None:
    settings = {name: METHODS[name].settings.model_validate(METHODS[name].defaults) for name in MIXED}
    assert {name: getattr(one, "mix_probability") for name, one in settings.items()} == {  # noqa: B009
        "mixup": 1.0,
        "remix": 1.0,
        "cutmix": 0.5,
        "cmo": 0.5,
        "saliencymix": 0.5,
    }
    assert {name: getattr(one, "partner_sampler") for name, one in settings.items()} == {  # noqa: B009
        name: "class_balanced" if name == "cmo" else "shuffle" for name in MIXED
    }


def test_a_copied_method_mixes_by_its_own_network() -> None:
    """Grad-CAM of a copy that was trained on asks the copy."""
    method = method_of("saliencymix", detector="grad-cam", mix_probability=1.0)
    batch = dataclasses.replace(some("own"), partner=some("partner"))
    other = copy.deepcopy(method)
    assert torch.equal(other(batch, at(1)).loss, copy.deepcopy(method)(batch, at(1)).loss)
    with torch.no_grad():
        for parameter in other.network.parameters():
            parameter.add_(0.3)
    assert not torch.equal(other(batch, at(1)).loss, method(batch, at(1)).loss)


@pytest.mark.parametrize("name", ["saliencymix", "cmo", "remix"])
def test_a_tiny_run_of_it_finishes_with_peaks_and_partners_from_the_loader(
    name: str, tiny_npz: Path, tmp_path: Path
) -> None:
    config = tiny_config(name, tiny_npz, tmp_path / "run", method={"mix_probability": 1.0}, optim={"epochs": 1})
    results = run_config(config).results
    assert results["method"] == name
    assert results["image_passes"] == 21


def test_mixing_by_a_factor_of_one_leaves_the_first_label() -> None:
    labels = soft_target(torch.tensor([0, 1]), 3)
    assert torch.equal(mix_labels(labels, labels.flip(0), torch.ones(2)), labels)
