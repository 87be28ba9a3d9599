"""Label rectification with thousands of classes: distances by products are those by differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from live_memory import bytes_alive
from longtail.mixing import rectification, rectify_labels, semantic_labels
from longtail.rng import generator


def drawn(*shape: int, name: str) -> Tensor:
    return torch.randn(*shape, generator=generator("rectification at scale", name))


def features_and_centers() -> tuple[Tensor, Tensor]:
    features, centers = drawn(20, 64, name="features"), drawn(50, 64, name="centers")
    centers[7] = features[3]
    centers[8] = features[4] + 1e-2 * drawn(64, name="near")
    centers[9] = features[5] + 1e-4 * drawn(64, name="nearer")
    return features, centers


def by_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rectification, "PRODUCTS_FROM", 0)
    monkeypatch.setattr(rectification, "_BLOCK", 17 * 64)  # blocks of 17 centers, the last of 16


def test_distances_by_products_are_right_to_the_rounding_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    features, centers = features_and_centers()
    exact = torch.tensor(
        [[float((u.double() - v.double()).square().sum().sqrt()) for v in centers] for u in features],
        dtype=torch.float64,
    )
    by_products(monkeypatch)
    found = rectification._distances(features, centers)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)
    by_product = torch.ones(20, dtype=torch.bool)
    by_product[[3, 5]] = False
    assert float(((found.double() - exact).abs() / exact)[by_product].max()) < 6.1e-8, "half a unit of float32"


def test_only_rows_with_a_center_close_by_are_computed_by_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    features, centers = features_and_centers()
    by_products(monkeypatch)
    given = []
    differences = rectification._differences
    monkeypatch.setattr(rectification, "_differences", lambda u, v: given.append(u) or differences(u, v))  # type: ignore[func-returns-value]
    rectification._distances(features, centers)
    assert torch.equal(torch.cat(given), features[[3, 5]])


@pytest.mark.parametrize("topk", [1, 5, 50])
def test_semantic_labels_by_products_are_those_by_differences(topk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features, centers = features_and_centers()
    expected = semantic_labels(features, centers, topk)
    by_products(monkeypatch)
    found = semantic_labels(features, centers, topk)
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=0)
    torch.testing.assert_close(found.sum(1), torch.ones(20))


def test_double_precision_stays_with_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    features, centers = (x.double() for x in features_and_centers())
    expected = semantic_labels(features, centers, 5)
    by_products(monkeypatch)
    assert torch.equal(semantic_labels(features, centers, 5), expected)


def test_rectification_of_eight_thousand_classes_holds_a_few_matrices_of_images_and_classes() -> None:
    """512 x 8,142 in float32 are 16.7 MB; all differences at once would be 1 GB."""
    images, classes, width = 512, 8142, 64
    features, centers = drawn(images, width, name="many"), drawn(classes, width, name="of many")
    assert images * classes * width >= rectification.PRODUCTS_FROM
    labels = torch.zeros(images, classes)
    labels[torch.arange(images), torch.arange(images)] = 1.0
    counts = torch.arange(classes, 0, -1)
    matrix = 4 * images * classes
    peak, largest = bytes_alive(lambda: rectify_labels(features, centers, labels, counts, scale=6.4, topk=30))
    assert largest <= matrix
    assert peak < 3.5 * matrix
