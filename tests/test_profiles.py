"""Other test distributions: their shares, the accuracy under them, and what a known prior changes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import longtail.api
from longtail.data.settings import ALL_PROFILES
from longtail.errors import ConfigError
from longtail.evaluation.profiles import profile_prior, under_profiles
from longtail.recipes import load_config
from longtail.rng import numpy_generator

COUNTS = [40, 5, 90, 5]


def drawn(images: int) -> tuple[Any, Any]:
    numbers = numpy_generator("profiles", images)
    table = numbers.dirichlet(np.ones(4), size=images).astype(np.float32)
    return table, np.concatenate([np.arange(4), numbers.integers(0, 4, images - 4)])


def test_forward_follows_the_training_counts_and_backward_reverses_them() -> None:
    forward, backward = profile_prior("forward-8", COUNTS), profile_prior("backward-8", COUNTS)
    # Ranks by count are 2, 0, 1, 3: the two classes of 5 images in the order of their labels.
    assert torch.allclose(forward[[2, 0, 1, 3]], torch.tensor([8.0, 4.0, 2.0, 1.0]).double() / 15)
    assert torch.allclose(backward[[2, 0, 1, 3]], torch.tensor([1.0, 2.0, 4.0, 8.0]).double() / 15)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30), st.sampled_from(ALL_PROFILES))
def test_shares_sum_to_one_and_the_ratio_is_the_one_named(counts: list[int], name: str) -> None:
    shares = profile_prior(name, counts)
    assert float(shares.sum()) == pytest.approx(1)
    ratio = float(name.partition("-")[2] or 1) if len(counts) > 1 else 1
    assert float(shares.max() / shares.min()) == pytest.approx(ratio)


def test_accuracy_under_a_distribution_is_that_of_a_test_set_with_those_shares() -> None:
    table, truth = drawn(60)
    shares = profile_prior("backward-4", COUNTS).numpy()
    found = under_profiles(["backward-4"], table, truth, COUNTS, "uniform")["backward-4"]
    right = wrong = 0.0
    for probabilities, label in zip(table, truth, strict=True):
        weight = shares[label] / (truth == label).sum()
        right, wrong = (right + weight, wrong) if probabilities.argmax() == label else (right, wrong + weight)
    assert found["top1"] == pytest.approx(right / (right + wrong))


@pytest.mark.parametrize("own", ["uniform", "training"])
def test_a_known_prior_multiplies_the_probabilities(own: Any) -> None:
    table, truth = drawn(200)
    shares = profile_prior("forward-50", COUNTS).numpy()
    divided = np.array(COUNTS) / sum(COUNTS) if own == "training" else np.ones(4)
    told = (table * shares / divided).argmax(axis=1)
    recalls = [float((told[truth == k] == k).mean()) for k in range(4)]
    found = under_profiles(["forward-50"], table, truth, COUNTS, own)["forward-50"]
    assert found["prior_known"] == pytest.approx(float(np.dot(shares, recalls)))
    assert found["prior_known"] != found["top1"]


def test_uniform_is_balanced_accuracy_where_a_class_has_no_test_image() -> None:
    table, truth = drawn(60)
    kept = truth != 3
    found = under_profiles(["uniform"], table[kept], truth[kept], COUNTS, "uniform")["uniform"]
    recalls = [float((table[truth == k].argmax(axis=1) == k).mean()) for k in range(3)]
    assert found == {"top1": pytest.approx(np.mean(recalls)), "prior_known": pytest.approx(np.mean(recalls))}


@pytest.mark.parametrize("given", ["forward", "forward-0.5", "sideways-3", "backward-nan", "backward-1e400", "x-5"])
def test_another_name_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="must be uniform, forward-R or backward-R"):
        load_config("scenes/ce", [f"data.test_profile={given}"])


def test_a_run_reports_them_and_they_may_be_asked_for_later(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"optim": {"epochs": 1, "batch": 256}, "run": {"threads": 1, "compile": False}}
    run = longtail.train("scenes/ce", data={"test_profile": "all"}, out=tmp_path / "run", **settings)
    profiles = run.results["last"]["test_profiles"]
    assert tuple(profiles) == ALL_PROFILES
    assert profiles["uniform"]["top1"] == pytest.approx(run.results["last"]["balanced_accuracy"])
    assert load_config("scenes/ce", ["data.test_profile=all"]).data.test_profile == ALL_PROFILES
    assert load_config("scenes/ce", ["data.test_profile=[forward-50, uniform]"]).data.test_profile[0] == "forward-50"
    found = longtail.api.evaluate_run(tmp_path / "run", settings={"data": {"test_profile": ["uniform"]}})
    assert list(found.evaluation.numbers()["test_profiles"]) == ["uniform"]


def test_nothing_is_computed_where_no_distribution_is_asked_for() -> None:
    class Untouched:
        def __getattr__(self, name: str) -> Any:
            pytest.fail(f"asked for {name}")

    nothing: Any = Untouched()
    assert under_profiles([], nothing, nothing, COUNTS, "uniform") == {}
