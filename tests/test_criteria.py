"""Criteria: that each is the loss, with the vectors of the counts, that its name says, in every part of a run."""

from __future__ import annotations

import copy
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

import family_oracles
import oracles
from longtail.config import METHOD_SETTINGS
from longtail.losses import cross_entropy, focal_loss, smooth_labels
from longtail.methods import METHODS
from longtail.methods.base import Batch, Progress
from longtail.methods.criteria import CRITERIA, Criterion, CriterionSettings, build_criterion
from longtail.methods.plain import PlainSettings
from longtail.models.network import ModelSettings
from longtail.rng import generator

COUNTS = [500, 60, 7, 1]
EPOCHS = 10
EARLY, LATE = Progress(70, 7, EPOCHS, 0), Progress(80, 8, EPOCHS, 0)
WEIGHED = {"class-balanced", "class-balanced-focal", "ce-drw", "ldam-drw"}

every_criterion = pytest.mark.parametrize("name", list(CRITERIA))


def built(name: str, **settings: Any) -> Criterion:
    return build_criterion(CriterionSettings.model_validate({"criterion": name, **settings}), COUNTS)


def inputs() -> tuple[Tensor, Tensor]:
    g = generator("criteria test")
    soft = torch.rand(9, 4, generator=g, dtype=torch.float64)
    return 5 * torch.randn(9, 4, generator=g, dtype=torch.float64), soft / soft.sum(1, keepdim=True)


def slow(name: str, logits: list[list[float]], target: list[list[float]], late: bool) -> float:
    """From the papers' equations and the default settings."""
    weight = oracles.class_balanced_weights(COUNTS, 0.9999)
    prior = [n / sum(COUNTS) for n in COUNTS]
    log_prior = torch.tensor(prior, dtype=torch.float64).log().tolist()
    margins = [30 * m for m in oracles.ldam_margins(COUNTS, 0.5)]
    drawn_late = weight if late else None
    return {
        "ce": lambda: oracles.cross_entropy(logits, target),
        "focal": lambda: oracles.focal(logits, target, 1.0),
        "class-balanced": lambda: oracles.cross_entropy(logits, target, weight=weight),
        "class-balanced-focal": lambda: oracles.focal(logits, target, 1.0, weight=weight),
        "balanced-softmax": lambda: oracles.cross_entropy(logits, target, log_prior),
        "logit-adjustment": lambda: oracles.cross_entropy(logits, target, log_prior),
        "ce-drw": lambda: oracles.cross_entropy(logits, target, weight=drawn_late),
        "ldam-drw": lambda: oracles.margin_cross_entropy(logits, target, margins, weight=drawn_late),
        "label-aware-smoothing": lambda: family_oracles.smoothed_cross_entropy(
            logits, target, family_oracles.label_aware_smoothing(COUNTS, 0.4, 0.1)
        ),
    }[name]()


@every_criterion
@pytest.mark.parametrize("at", [EARLY, LATE])
def test_a_criterion_is_the_slow_loop_of_its_paper(name: str, at: Progress) -> None:
    logits, target = inputs()
    expected = slow(name, logits.tolist(), target.tolist(), at.epoch >= 8)
    assert float(built(name)(logits, target, at)) == pytest.approx(expected, rel=1e-6)


@every_criterion
@pytest.mark.parametrize("at", [EARLY, LATE])
def test_label_smoothing_gives_the_criterion_labels_of_which_a_share_went_to_all_classes(
    name: str, at: Progress
) -> None:
    logits, target = inputs()
    smoothed = [[0.8 * share + 0.2 / 4 for share in row] for row in target.tolist()]
    expected = slow(name, logits.tolist(), smoothed, at.epoch >= 8)
    assert float(built(name, label_smoothing=0.2)(logits, target, at)) == pytest.approx(expected, rel=1e-6)
    assert torch.equal(built(name, label_smoothing=0.0)(logits, target, at), built(name)(logits, target, at))


def test_hard_labels_with_smoothing_are_those_of_pytorch() -> None:
    logits, ids = inputs()[0], torch.tensor([0, 1, 2, 3, 3, 2, 1, 0, 1])
    expected = torch.nn.functional.cross_entropy(logits, ids, label_smoothing=0.3)
    hard = torch.nn.functional.one_hot(ids, 4).double()
    torch.testing.assert_close(built("ce", label_smoothing=0.3)(logits, hard, EARLY), expected)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_of_smoothing_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share must be in"):
        smooth_labels(torch.eye(3), share)


@pytest.mark.parametrize("name", ["concutmix", "smcl-concutmix"])
def test_label_smoothing_moves_the_classification_loss_of_methods_without_a_criterion_by_its_equation(
    name: str,
) -> None:
    def loss(share: float) -> tuple[float, float]:
        own = METHOD_SETTINGS[name].model_validate({"label_smoothing": share, "mix_probability": 0.0})
        model = ModelSettings(backbone="resnet8", classifier="linear")
        method = METHODS[name].build(own, model, COUNTS, size=16, seed=0).double()
        images = torch.rand(6, 3, 16, 16, generator=generator("smoothing"), dtype=torch.float64)
        batch = Batch((images,) * 3, torch.tensor([0, 0, 0, 1, 1, 2]), torch.arange(6))
        logs = method(batch, EARLY).logs
        with torch.no_grad():
            features = method.network.train().features(torch.cat(batch.views))
            log_p = (method.network.classifier(features[:6]) + torch.tensor(COUNTS).div(sum(COUNTS)).log()).log_softmax(
                1
            )
        own_class = log_p.gather(1, batch.target[:, None])[:, 0]
        expected = -((1 - share) * own_class + share * log_p.mean(1)).mean()
        return float(logs["classification"]), float(expected)

    for share in (0.0, 0.3):
        found, expected = loss(share)
        assert found == pytest.approx(expected, rel=1e-6)
    assert loss(0.0)[0] != loss(0.3)[0]


def test_every_criterion_that_can_be_chosen_is_in_the_table() -> None:
    choices = get_args(CriterionSettings.model_fields["criterion"].annotation)
    assert set(choices) == set(CRITERIA)
    assert PlainSettings.model_fields.keys() >= CriterionSettings.model_fields.keys()


@every_criterion
def test_each_setting_moves_the_criteria_that_read_it_and_no_other(name: str) -> None:
    logits, target = inputs()
    moved = {
        key
        for key, value in {
            "tau": 0.5,
            "focal_gamma": 2.0,
            "drw_start": 9,
            "drw_beta": 0.99,
            "max_margin": 0.1,
            "margin_scale": 10.0,
            "smooth_head": 0.3,
            "smooth_tail": 0.2,
        }.items()
        if not torch.equal(built(name, **{key: value})(logits, target, LATE), built(name)(logits, target, LATE))
    }
    assert (
        moved
        == {
            "ce": set(),
            "focal": {"focal_gamma"},
            "class-balanced": {"drw_beta"},
            "class-balanced-focal": {"drw_beta", "focal_gamma"},
            "balanced-softmax": set(),
            "logit-adjustment": {"tau"},
            "ce-drw": {"drw_start", "drw_beta"},
            "ldam-drw": {"drw_start", "drw_beta", "max_margin", "margin_scale"},
            "label-aware-smoothing": {"smooth_head", "smooth_tail"},
        }[name]
    )


@every_criterion
def test_criteria_of_equal_counts_without_gamma_margin_and_smoothing_are_cross_entropy(name: str) -> None:
    logits, target = inputs()
    neutral = {"focal_gamma": 0.0, "max_margin": 0.0, "tau": 1.3, "smooth_head": 0.0, "smooth_tail": 0.0}
    chosen = CriterionSettings.model_validate({"criterion": name, **neutral})
    criterion = build_criterion(chosen, [17] * 4)
    for at in (EARLY, LATE):
        torch.testing.assert_close(criterion(logits, target, at), cross_entropy(logits, target))


@pytest.mark.parametrize("name", ["ce-drw", "ldam-drw"])
def test_deferred_weights_start_in_the_epoch_that_is_named(name: str) -> None:
    criterion = built(name, drw_start=0.8)
    assert [criterion.weighs(Progress(0, epoch, 200, 0)) for epoch in (0, 159, 160, 199)] == [False, False, True, True]
    assert [criterion.weighs(Progress(0, epoch, 20, 0)) for epoch in (15, 16)] == [False, True]
    by_epoch = built(name, drw_start=3)
    assert [by_epoch.weighs(Progress(0, epoch, 200, 0)) for epoch in (2, 3)] == [False, True]
    assert not built(name, drw_start=1.0).weighs(Progress(0, 199, 200, 0))
    assert built(name, drw_start=0.0).weighs(Progress(0, 0, 200, 0))


@every_criterion
def test_only_weights_change_in_the_course_of_a_run(name: str) -> None:
    logits, target = inputs()
    criterion = built(name)
    assert criterion.weighs(LATE) == (name in WEIGHED)
    changed = not torch.equal(criterion(logits, target, EARLY), criterion(logits, target, LATE))
    assert changed == name.endswith("-drw")


@every_criterion
def test_a_criterion_leaves_nothing_in_a_checkpoint_and_survives_a_copy(name: str) -> None:
    logits, target = inputs()
    criterion = built(name)
    assert not criterion.state_dict()
    assert not list(criterion.parameters())
    assert all(buffer.shape == (4,) and buffer.dtype == torch.float32 for buffer in criterion.buffers())
    assert torch.equal(copy.deepcopy(criterion)(logits, target, LATE), criterion(logits, target, LATE))


@every_criterion
def test_what_the_counts_decide_moves_with_the_module(name: str) -> None:
    moved = built(name).to("meta")
    assert all(buffer.device.type == "meta" for buffer in moved.buffers())


def test_a_rarer_class_has_a_smaller_offset_a_larger_weight_a_larger_margin_and_less_smoothing() -> None:
    offsets = [built(name).offset for name in ("balanced-softmax", "logit-adjustment")]
    assert all(bool((offset.diff() < 0).all()) for offset in offsets)
    assert all(bool((built(name).weight.diff() > 0).all()) for name in WEIGHED)
    margins = built("ldam-drw").margins
    assert bool((margins.diff() > 0).all())
    assert float(margins.max()) == pytest.approx(15.0)
    smoothing = built("label-aware-smoothing").smoothing
    assert bool((smoothing.diff() < 0).all())
    assert smoothing[[0, -1]].tolist() == pytest.approx([0.4, 0.1])


def test_ldam_takes_its_margins_from_the_cosine() -> None:
    """As in the authors' program: 30 * (cosine - m) for the label, 30 * cosine for all others."""
    cosine = (2 * torch.rand(6, 4, generator=generator("cosines"), dtype=torch.float64) - 1) * 0.9
    ids = torch.tensor([0, 1, 2, 3, 0, 1])
    hard = torch.nn.functional.one_hot(ids, 4).double()
    margins = torch.tensor(oracles.ldam_margins(COUNTS, 0.5), dtype=torch.float64)
    weight = torch.tensor(oracles.class_balanced_weights(COUNTS, 0.9999), dtype=torch.float64)
    program = torch.nn.functional.cross_entropy(30 * (cosine - hard * margins), ids, weight=weight)
    torch.testing.assert_close(built("ldam-drw")(30 * cosine, hard, LATE), program, rtol=1e-6, atol=0)


def test_a_criterion_of_ones_own_needs_only_a_loss_and_its_vectors() -> None:
    logits, target = inputs()
    offset = torch.tensor([0.0, -1.0, -2.0, -3.0])
    criterion = Criterion(lambda x, t, offset: focal_loss(x, t, gamma=2.0, offset=offset), offset=offset)
    torch.testing.assert_close(criterion(logits, target, EARLY), focal_loss(logits, target, gamma=2.0, offset=offset))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("criterion", "ldam"),
        ("tau", -1),
        ("focal_gamma", -0.1),
        ("drw_start", 1.5),
        ("drw_beta", 1.1),
        ("max_margin", -0.5),
        ("margin_scale", 0),
    ],
)
def test_a_setting_outside_its_range_is_refused(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        CriterionSettings.model_validate({key: value})


@pytest.mark.parametrize("name", ["ce-drw", "ldam-drw"])
def test_weights_that_never_count_do_not_say_what_the_logits_answer_for(name: str) -> None:
    assert built(name).answers_for == built(name, drw_start=1).answers_for == "uniform"
    assert built(name, drw_start=1.0).answers_for == "training"
