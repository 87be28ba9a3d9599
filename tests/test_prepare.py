"""From a source to the sets of a run: which split is reported, which selects, and what training keeps."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longtail.data import Prepared, Source, class_counts, from_arrays, prepare, subsample
from longtail.data.prepare import check_classes
from longtail.data.sources.arrays import pixel_statistics
from longtail.errors import ConfigError, DataError


def part(counts: list[int], start: int) -> tuple[Any, Any]:
    """Images that are all different: each has its running number in its pixels."""
    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.zeros((len(labels), 2, 2, 3), dtype=np.uint8)
    images[:, 0, 0, 0], images[:, 0, 1, 1] = divmod(start + np.arange(len(labels)), 256)
    return images, labels


def source(counts: list[int], *, val: list[int] | None = None, test: list[int] | None = None) -> Source:
    more: dict[str, Any] = {}
    for name, given_counts, start in (("val", val, 20000), ("test", test, 40000)):
        if given_counts is not None:
            more[f"{name}_images"], more[f"{name}_labels"] = part(given_counts, start)
    names = [f"class {k}" for k in range(len(counts))]
    return from_arrays(*part(counts, 0), class_names=names, name="toy", **more)


def numbers(images: torch.Tensor) -> set[int]:
    return {int(i[0, 0, 0]) * 256 + int(i[1, 0, 1]) for i in images}


def test_a_test_split_is_reported_and_the_val_of_the_source_selects() -> None:
    made = prepare(source([9, 9], val=[2, 2], test=[3, 3]), imbalance=None)
    assert made.evaluated_on == "test"
    assert made.val is not None
    assert (len(made.evaluation), len(made.val)) == (6, 4)
    assert made.notes == []


def test_val_alone_is_reported_as_val() -> None:
    made = prepare(source([9, 9], val=[2, 2]), imbalance=None)
    assert (made.evaluated_on, len(made.evaluation), made.val) == ("val", 4, None)
    assert "reported, as val" in made.notes[0]


def test_with_neither_a_stratified_fifth_is_held_out() -> None:
    made = prepare(source([50, 10, 3, 2, 1]), imbalance=None)
    assert made.evaluated_on == "held-out"
    assert made.evaluation.counts(5) == [10, 2, 1, 1, 0]
    assert made.stats.counts == [40, 8, 2, 1, 1]
    assert "held out" in made.notes[0]
    again, other = (prepare(source([50, 10, 3, 2, 1]), imbalance=None, subset_seed=s) for s in (0, 1))
    assert again.fingerprint == made.fingerprint
    assert other.fingerprint != made.fingerprint


def test_nothing_to_hold_out_is_refused() -> None:
    with pytest.raises(DataError, match="Add a test split"):
        prepare(source([1, 1, 1]), imbalance=None)


def test_another_share_is_held_out_where_it_is_asked_for_and_never_a_whole_class() -> None:
    made = prepare(source([50, 10, 3, 2, 1]), imbalance=None, held_out=0.9)
    assert made.evaluation.counts(5) == [45, 9, 2, 1, 0]
    assert made.stats.counts == [5, 1, 1, 1, 1]


def test_with_nothing_held_out_the_images_trained_on_are_reported_as_such() -> None:
    made = prepare(source([50, 10, 3]), imbalance=None, held_out=0)
    assert (made.evaluated_on, made.selected_on) == ("train", "train")
    assert made.stats.counts == made.evaluation.counts(3) == [50, 10, 3]
    assert "the training images are reported" in made.notes[0]
    with_val = prepare(source([50, 10, 3]), imbalance=None, held_out=0, val=2)
    assert (with_val.evaluated_on, with_val.selected_on) == ("train", "val")
    assert with_val.stats.counts == with_val.evaluation.counts(3) == [48, 8, 1]


def test_the_tail_is_cut_after_the_held_out_part_is_taken() -> None:
    made = prepare(source([50] * 4), imbalance=10)
    assert made.evaluation.counts(4) == [10] * 4
    assert made.stats.counts == class_counts(40, 4, 10)


def test_the_tail_is_the_fields_subset_of_the_source() -> None:
    given_source = source([40] * 5, test=[4] * 5)
    made = prepare(given_source, imbalance=8, subset_seed=7)
    expected, _ = subsample(given_source.train.labels, class_counts(40, 5, 8), 7)
    assert made.train.source_index.tolist() == expected.tolist()
    assert made.stats.counts == class_counts(40, 5, 8)
    assert torch.equal(made.train.images, given_source.train.images[expected])


def test_the_step_profile_reaches_the_set() -> None:
    made = prepare(source([40] * 4, test=[4] * 4), imbalance=10, profile="step")
    assert made.stats.counts == [40, 40, 4, 4]


def test_without_imbalance_the_source_is_kept_as_it_is() -> None:
    given_source = source([7, 3], test=[1, 1])
    assert prepare(given_source, imbalance=None).train.fingerprint() == given_source.train.fingerprint()


def test_validation_images_leave_the_counts_that_groups_use() -> None:
    made = prepare(source([101, 101], test=[5, 5]), imbalance=4, val=3)
    assert made.val is not None
    assert made.val.counts(2) == [3, 3]
    assert made.stats.counts == [98, 25]
    assert made.stats.groups()["medium"] == [0, 1]
    assert "class 0" in made.notes[1]


@given(
    counts=st.lists(st.integers(12, 30), min_size=2, max_size=5),
    val=st.integers(0, 4),
    seed=st.integers(0, 50),
    has_test=st.booleans(),
)
def test_no_image_is_in_two_sets(counts: list[int], val: int, seed: int, has_test: bool) -> None:
    given_source = source(counts, test=[2] * len(counts) if has_test else None)
    made = prepare(given_source, imbalance=None, val=val, subset_seed=seed)
    sets = [numbers(s.images) for s in (made.train, made.val, made.evaluation) if s is not None]
    assert len(set().union(*sets)) == sum(len(s) for s in sets)
    assert sum(len(s) for s in sets) == sum(counts) + 2 * len(counts) * has_test
    assert made.stats.counts == made.train.counts(len(counts))


def test_val_is_refused_where_the_source_has_its_own() -> None:
    with pytest.raises(ConfigError, match="val split of its own"):
        prepare(source([9, 9], val=[2, 2], test=[3, 3]), imbalance=None, val=1)


def test_a_negative_val_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.val"):
        prepare(source([9, 9], test=[3, 3]), imbalance=None, val=-1)


def test_a_source_too_small_for_the_profile_is_refused() -> None:
    with pytest.raises(DataError, match=r"class 1 \('class 1'\) needs 17 and has 10"):
        prepare(source([30, 10, 10], test=[1, 1, 1]), imbalance=3)


def test_a_class_without_training_images_is_refused_unless_allowed() -> None:
    given_source = source([9, 0, 9, 0], test=[1, 1, 1, 1])
    with pytest.raises(DataError, match="2 classes without training images: 'class 1', 'class 3'") as caught:
        prepare(given_source, imbalance=None)
    assert "data.allow_empty=true" in str(caught.value)
    made = prepare(given_source, imbalance=None, allow_empty=True)
    assert made.stats.counts == [9, 0, 9, 0]
    assert "class 3" in made.notes[0]


def test_a_profile_that_empties_a_class_is_refused() -> None:
    with pytest.raises(DataError, match="1 class without training images: 'class 2'"):
        prepare(source([11, 11, 11], test=[1, 1, 1]), imbalance=100)


def test_many_empty_classes_are_listed_in_short() -> None:
    with pytest.raises(DataError, match="'6' and 3 more"):
        check_classes([1, 1] + [0] * 8, [str(k) for k in range(10)], False)


def test_no_training_image_at_all_is_refused_whatever_is_allowed() -> None:
    with pytest.raises(DataError, match="no training image at all"):
        check_classes([0, 0], ["a", "b"], True)


def test_mean_and_deviation_are_those_of_the_images_kept_unless_published() -> None:
    given_source = source([40] * 4, test=[1] * 4)
    made = prepare(given_source, imbalance=10)
    assert (made.mean, made.std) == pixel_statistics(made.train.images)
    assert made.mean != pixel_statistics(given_source.train.images)[0]
    constants = dataclasses.replace(given_source, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    kept = prepare(constants, imbalance=10)
    assert (kept.mean, kept.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_the_fingerprint_covers_every_set_and_the_names() -> None:
    def of(**changes: Any) -> str:
        made: Prepared = prepare(
            dataclasses.replace(source([9, 9], val=[2, 2], test=[3, 3]), **changes), imbalance=None
        )
        return made.fingerprint

    base = source([9, 9], val=[2, 2], test=[3, 3])
    assert base.val is not None
    assert base.test is not None
    order = torch.arange(17, -1, -1)
    prints = [
        of(),
        of(class_names=["class 0", "other"]),
        of(train=base.train.subset(order)),
        of(val=base.val.subset(torch.tensor([0, 1, 2]))),
        of(test=base.test.subset(torch.tensor([0, 1, 2]))),
    ]
    assert of() == prints[0]
    assert len(set(prints)) == 5
