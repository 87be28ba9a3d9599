"""scikit-learn's own checks of an estimator, on rows of numbers laid out as square images."""

from __future__ import annotations

import unittest
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from longtail import LongTailClassifier

CANNOT_APPLY = {
    "check_array_api_input": "pixels are rounded to uint8 on the CPU first: arrays of other libraries gain nothing",
    "check_classifier_data_not_an_array": "its second half wants pandas, which is no dependency",
}
"""The checks that end as skipped, and why; none is expected to fail. docs/estimator.md has the same list."""


def on_rows() -> LongTailClassifier:
    """An estimator that takes any table, and learns it well enough for the accuracy that the checks ask for."""
    return LongTailClassifier(
        "ce",
        epochs=2,
        batch=32,
        lr=0.05,
        backbone="resnet8",
        size=8,
        image_shape="square",
        pixel_range="training",
        settings={
            "views.classification": "plain",
            "optim.schedule": "onecycle",
            "run": {"threads": 1, "compile": False},
        },
    )


@parametrize_with_checks([on_rows()])
def test_the_estimator_passes_a_check_of_scikit_learn(estimator: Any, check: Callable[[Any], None]) -> None:
    name = check.func.__name__  # type: ignore[attr-defined]
    try:
        check(estimator)
    except unittest.SkipTest:
        if name not in CANNOT_APPLY:
            pytest.fail(f"{name} was skipped, and is not on the list of those that cannot apply")
        pytest.skip(CANNOT_APPLY[name])


def test_the_list_of_checks_that_cannot_apply_is_short() -> None:
    assert len(CANNOT_APPLY) <= 10


def test_the_checks_run_on_rows_because_the_estimator_says_that_it_takes_them() -> None:
    assert on_rows().__sklearn_tags__().input_tags.two_d_array
    assert not LongTailClassifier().__sklearn_tags__().input_tags.two_d_array
    with pytest.raises(ValueError, match=r"rows of 4 numbers, not images"):
        LongTailClassifier().fit(np.zeros((3, 4)), [0, 1, 1])
