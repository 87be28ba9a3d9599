"""What every loss must do. A new name in longtail.losses, CRITERIA or CONTRASTS falls under these by itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import longtail.losses as losses
from longtail.methods.base import Progress
from longtail.methods.contrasting import CONTRASTS
from longtail.methods.criteria import CRITERIA, Criterion, CriterionSettings
from longtail.methods.mixings import soft_target
from longtail.models.network import ModelSettings, Network, ProjectionSettings
from longtail.rng import generator

IMAGES, VIEWS, WIDTH, CLASSES = 12, 2, 8, 5
COUNTS = [300, 80, 20, 5, 1]
AT = {"at first": Progress(0, 0, 10, 0), "at last": Progress(90, 9, 10, 0)}

Loss = Callable[[Tensor, Tensor], Tensor]


def random(*shape: int, key: str = "inputs", dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=generator("losses", key), dtype=torch.float64).to(dtype)


def some_labels() -> Tensor:
    return torch.randint(CLASSES - 1, (IMAGES,), generator=generator("losses", "labels"))  # the last class is absent


def centers_like(features: Tensor) -> Tensor:
    return F.normalize(random(CLASSES, WIDTH, key="centers").to(features), dim=1)


def one_network() -> Network:
    heads = ProjectionSettings(hidden=16, dim=WIDTH)
    return Network(ModelSettings(backbone="resnet8"), CLASSES, seed=0, projection=heads, centers=True).eval()


def _masked(features: Tensor, labels: Tensor) -> Tensor:
    rows, ids = features.flatten(0, 1), labels.repeat_interleave(features.shape[1])
    itself = torch.arange(len(rows))
    return losses.masked_contrastive_loss(rows, ids, rows, ids, temperature=0.1, self_index=itself)


def _parametric(features: Tensor, labels: Tensor) -> Tensor:
    rows, ids = features.flatten(0, 1), labels.repeat_interleave(features.shape[1])
    logits = 2 * soft_target(ids, CLASSES).to(features)
    return losses.parametric_contrastive_loss(rows, ids, logits, rows, ids, temperature=0.1, alpha=0.3)


# Of logits (B, C) and labels (B,).
CLASSIFICATION: dict[str, Loss] = {
    "cross_entropy": lambda logits, labels: losses.cross_entropy(logits, labels),
    "cross_entropy, soft": lambda logits, labels: losses.cross_entropy(
        logits, 0.7 * soft_target(labels, CLASSES) + 0.3 / CLASSES
    ),
    "cross_entropy, weighted": lambda logits, labels: losses.cross_entropy(
        logits, labels, weight=torch.arange(1.0, CLASSES + 1).to(logits.device)
    ),
    "logit_adjustment": lambda logits, labels: losses.cross_entropy(
        logits, labels, offset=losses.logit_adjustment(COUNTS)
    ),
    "class_balanced_weights": lambda logits, labels: losses.cross_entropy(
        logits, labels, weight=losses.class_balanced_weights(COUNTS, 0.999).to(logits)
    ),
    "margin_cross_entropy": lambda logits, labels: losses.margin_cross_entropy(
        logits, labels, margins=torch.arange(1.0, CLASSES + 1).to(logits)
    ),
    "margin_cross_entropy, soft": lambda logits, labels: losses.margin_cross_entropy(
        logits, 0.7 * soft_target(labels, CLASSES) + 0.3 / CLASSES, margins=torch.arange(1.0, CLASSES + 1).to(logits)
    ),
    "ldam_margins": lambda logits, labels: losses.margin_cross_entropy(
        logits, labels, margins=losses.ldam_margins(COUNTS).to(logits)
    ),
    "smoothed_cross_entropy": lambda logits, labels: losses.smoothed_cross_entropy(
        logits, labels, smoothing=torch.linspace(0.4, 0.1, CLASSES).to(logits)
    ),
    "smoothed_cross_entropy, soft": lambda logits, labels: losses.smoothed_cross_entropy(
        logits,
        0.7 * soft_target(labels, CLASSES) + 0.3 / CLASSES,
        smoothing=torch.linspace(0.4, 0.1, CLASSES).to(logits),
    ),
    "smooth_labels": lambda logits, labels: losses.cross_entropy(
        logits, losses.smooth_labels(soft_target(labels, CLASSES).to(logits), 0.2)
    ),
    "label_aware_smoothing": lambda logits, labels: losses.smoothed_cross_entropy(
        logits, labels, smoothing=losses.label_aware_smoothing(COUNTS).to(logits)
    ),
    **{
        f"focal_loss, gamma {gamma}": lambda logits, labels, gamma=gamma: losses.focal_loss(  # type: ignore[misc]
            logits, labels, gamma=gamma
        )
        for gamma in (0.0, 0.5, 2.0)
    },
}


def criterion(name: str, counts: list[int] = COUNTS, **settings: float) -> Criterion:
    return CRITERIA[name](CriterionSettings.model_validate(settings), counts)


for _name in CRITERIA:
    for _when, _at in AT.items():
        CLASSIFICATION[f"criterion {_name}, {_when}"] = lambda logits, labels, _name=_name, _at=_at: criterion(  # type: ignore[misc]
            _name, tau=0.8
        )(logits, soft_target(labels, CLASSES), _at)

# Of normalized features (B, V, D) and labels (B,).
CONTRASTIVE: dict[str, Loss] = {
    "balanced_contrastive_loss": lambda features, labels: losses.balanced_contrastive_loss(
        features, labels, centers_like(features), temperature=0.1
    ),
    "balanced_masked_contrastive_loss": lambda features, labels: losses.balanced_masked_contrastive_loss(
        features.flatten(0, 1),
        labels.repeat_interleave(features.shape[1]),
        features,
        labels,
        centers_like(features),
        temperature=0.1,
    ),
    "supervised_contrastive_loss": lambda features, labels: losses.supervised_contrastive_loss(
        features, labels, temperature=0.1
    ),
    "masked_contrastive_loss": _masked,
    "parametric_contrastive_loss": _parametric,
}
for _name in CONTRASTS:
    CONTRASTIVE[f"contrast {_name}"] = lambda features, labels, _name=_name: CONTRASTS[_name](  # type: ignore[misc]
        features, labels, one_network().to(features.dtype), 0.1
    )

ALL = {**CLASSIFICATION, **CONTRASTIVE}


def inputs(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    if name in CLASSIFICATION:
        return random(IMAGES, CLASSES, dtype=dtype)
    return F.normalize(random(IMAGES, VIEWS, WIDTH, dtype=torch.float64), dim=2).to(dtype)


def test_every_public_loss_is_among_those_tried_here() -> None:
    tried = {name.partition(",")[0] for name in ALL}
    assert set(losses.__all__) <= tried, "say above how the new one is called"


@pytest.mark.parametrize("name", ALL)
def test_a_loss_is_a_finite_scalar_not_below_zero_with_a_finite_gradient(name: str) -> None:
    given = inputs(name).requires_grad_()
    loss = ALL[name](given, some_labels())
    assert loss.shape == ()
    assert bool(torch.isfinite(loss))
    assert float(loss.detach()) > 0
    loss.backward()
    assert given.grad is not None
    assert bool(torch.isfinite(given.grad).all())
    assert bool((given.grad != 0).any())


@pytest.mark.parametrize("name", ALL)
def test_the_order_of_the_images_does_not_matter(name: str) -> None:
    given, labels = inputs(name, torch.float64), some_labels()
    order = torch.randperm(IMAGES, generator=generator("order"))
    torch.testing.assert_close(ALL[name](given[order], labels[order]), ALL[name](given, labels), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ALL)
def test_the_inputs_stay_as_they_were(name: str) -> None:
    given, labels = inputs(name), some_labels()
    before, labels_before = given.clone(), labels.clone()
    ALL[name](given, labels)
    assert torch.equal(given, before)
    assert torch.equal(labels, labels_before)


@pytest.mark.parametrize("name", [name for name in ALL if not name.startswith("contrast ")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    given = inputs(name, dtype)
    loss = ALL[name](given, some_labels())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, ALL[name](given.float(), some_labels()), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ALL)
def test_double_precision_stays_double_and_agrees_with_single(name: str) -> None:
    double = ALL[name](inputs(name, torch.float64), some_labels())
    assert double.dtype == torch.float64
    torch.testing.assert_close(ALL[name](inputs(name), some_labels()).double(), double, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ALL)
def test_gradients_agree_with_finite_differences(name: str) -> None:
    given = inputs(name, torch.float64)[:4].clone().requires_grad_()
    labels = torch.tensor([0, 1, 0, 2])
    assert torch.autograd.gradcheck(lambda x: ALL[name](x, labels), (given,), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_a_shift_of_an_images_logits_does_not_matter(name: str) -> None:
    given, labels = inputs(name, torch.float64), some_labels()
    shifted = given + 50 * random(IMAGES, 1, key="shift", dtype=torch.float64)
    torch.testing.assert_close(ALL[name](shifted, labels), ALL[name](given, labels), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_logits_of_a_thousand_stay_finite(name: str) -> None:
    given = (1000 * inputs(name)).requires_grad_()
    loss = ALL[name](given, some_labels())
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert given.grad is not None
    assert bool(torch.isfinite(given.grad).all())


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_raising_the_logit_of_the_label_lowers_the_loss(name: str) -> None:
    given, labels = inputs(name), some_labels()
    better = given + 0.1 * soft_target(labels, CLASSES)
    assert float(ALL[name](better, labels)) < float(ALL[name](given, labels))


@pytest.mark.parametrize("name", [name for name in CONTRASTIVE if "balanced" not in name])
def test_a_rotation_of_the_feature_space_does_not_matter_without_centers(name: str) -> None:
    rotation = torch.linalg.qr(random(WIDTH, WIDTH, key="rotation", dtype=torch.float64)).Q
    given, labels = inputs(name, torch.float64), some_labels()
    torch.testing.assert_close(ALL[name](given @ rotation, labels), ALL[name](given, labels), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_the_order_of_the_views_does_not_matter(name: str) -> None:
    given, labels = inputs(name, torch.float64), some_labels()
    torch.testing.assert_close(ALL[name](given.flip(1), labels), ALL[name](given, labels), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_pulling_the_views_of_a_class_together_lowers_the_loss(name: str) -> None:
    given, labels = inputs(name), some_labels()
    means = centers_like(given)[labels][:, None]
    pulled = ALL[name](F.normalize(given + means, dim=2), labels)
    assert float(pulled.detach()) < float(ALL[name](given, labels).detach())


@pytest.mark.parametrize("name", CRITERIA)
def test_what_a_criterion_takes_from_the_counts_is_one_finite_number_per_class(name: str) -> None:
    for counts in (COUNTS, [0, 3, 100, 2, 1]):
        for vector in criterion(name, counts).buffers():
            assert vector.shape == (CLASSES,)
            assert vector.dtype == torch.float32
            assert bool(torch.isfinite(vector).all())


@pytest.mark.parametrize("name", CRITERIA)
def test_a_criterion_of_equal_counts_favors_no_class(name: str) -> None:
    """Renaming the classes changes nothing."""
    given, labels = inputs("cross_entropy, soft"), some_labels()
    renamed = torch.tensor([2, 0, 4, 1, 3])
    equal = criterion(name, [17] * CLASSES)
    target = soft_target(labels, CLASSES)
    for at in AT.values():
        torch.testing.assert_close(equal(given[:, renamed], target[:, renamed], at), equal(given, target, at))


@pytest.mark.parametrize("name", CRITERIA)
def test_a_criterion_never_favors_a_class_for_having_more_images(name: str) -> None:
    """The push of a class by its label, at equal logits, does not fall as it gets rarer."""
    for at in AT.values():
        given = torch.zeros(CLASSES, CLASSES, requires_grad=True)
        criterion(name)(given, torch.eye(CLASSES), at).backward()
        assert given.grad is not None
        assert bool((given.grad.diagonal().diff() <= 1e-6).all())
