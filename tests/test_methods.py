"""How the methods stand to each other: identities that hold bit for bit."""

from __future__ import annotations

import pytest
import torch

from longtail.methods import METHODS, Batch, Method, Progress
from longtail.methods.concutmix import rectified
from longtail.mixing import rectify_labels
from longtail.models.network import ModelSettings
from longtail.rng import generator

COUNTS = [40, 20, 10, 5]
AT = Progress(step=3, epoch=1, epochs=4, seed=0)


def built(name: str, **settings: object) -> Method:
    entry = METHODS[name]
    chosen = entry.settings.model_validate({**entry.defaults, **settings})
    return entry.build(chosen, ModelSettings(backbone="resnet8"), COUNTS, size=16, seed=0).train()


def batch(views: int) -> Batch:
    draw = generator("test methods")
    images = tuple(torch.randn(12, 3, 16, 16, generator=draw) for _ in range(views))
    return Batch(images, torch.arange(12) % 4, torch.arange(12))


def test_concutmix_without_mixing_is_bcl_bit_for_bit() -> None:
    concutmix, bcl = built("concutmix", mix_probability=0.0, tau=1.0), built("bcl")
    bcl.load_state_dict(concutmix.state_dict())
    one, other = concutmix(batch(3), AT), bcl(batch(3), AT)
    assert torch.equal(one.loss, other.loss)
    one.loss.backward()
    other.loss.backward()
    for (name, parameter), twin in zip(concutmix.named_parameters(), bcl.parameters(), strict=True):
        assert torch.equal(parameter.grad, twin.grad), name


def test_logit_adjustment_of_strength_one_is_balanced_softmax() -> None:
    one = built("logit-adjustment", tau=1.0)(batch(1), AT).loss
    assert torch.equal(one, built("balanced-softmax")(batch(1), AT).loss)


def test_logit_adjustment_of_strength_zero_is_cross_entropy() -> None:
    assert torch.equal(built("logit-adjustment", tau=0.0)(batch(1), AT).loss, built("ce")(batch(1), AT).loss)


def test_rectification_starts_after_its_epoch() -> None:
    method = built("concutmix", rectify_start=0.5)
    assert [method.rectifies(Progress(0, epoch, 20, 0)) for epoch in (9, 10, 11)] == [False, False, True]
    assert [method.rectifies(Progress(0, epoch, 200, 0)) for epoch in (100, 101)] == [False, True]


def test_concutmix_rectifies_with_the_confidence_it_is_told() -> None:
    target, features, centers = torch.eye(4)[[0, 1]] * 0.7 + torch.eye(4)[[2, 3]] * 0.3, torch.eye(4)[:2], torch.eye(4)
    for confidence in ("frequency", "constant", "mixedness", "agreement"):
        own = built("concutmix", confidence=confidence, omega=0.5, topk=2).settings
        moved, gamma = rectified(target, features, centers, torch.tensor([8, 4, 2, 1]), own)
        wanted = rectify_labels(features, centers, target, [8, 4, 2, 1], scale=0.5, topk=2, confidence=confidence)
        assert torch.equal(moved, wanted), confidence
        expected = {"frequency": None, "constant": 0.5, "mixedness": 0.42, "agreement": 0.5}[confidence]
        assert expected is None or float(gamma) == pytest.approx(expected, rel=1e-3), confidence
