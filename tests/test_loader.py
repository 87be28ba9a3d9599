"""Batches as a function of the step: the same from any step, with any number of workers, and no more than is asked."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from longtail.data.batch import Batch, DataNeeds, Progress
from longtail.data.images import ImageSet
from longtail.data.loader import Loader
from longtail.data.views import View, ViewParams, build_view
from longtail.errors import ConfigError, DataError
from longtail.methods.mixings import CutMix, Mixup
from longtail.rng import generator
from tiny import COUNTS, STEPS

ROLES = ("classification", "contrastive", "plain")
NEEDS = DataNeeds(
    views=("classification", "contrastive", "contrastive"),
    partner_views=("classification",),
    partner_sampler="class_balanced",
)
PLAIN = DataNeeds(views=("plain",), partner_views=("plain",))


def images() -> ImageSet:
    """Every pixel of image i is i, so that a plain view tells which image it shows."""
    labels = torch.arange(len(COUNTS)).repeat_interleave(torch.tensor(COUNTS))
    pixels = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8).contiguous()
    return ImageSet(pixels, labels, torch.arange(len(labels)))


def views() -> dict[str, View]:
    names = ("autoaugment", "contrastive", "plain")
    return {
        role: build_view(name, 8, (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
        for role, name in zip(ROLES, names, strict=True)
    }


def loader(needs: DataNeeds = NEEDS, **own: Any) -> Loader:
    return Loader(images(), needs, own.pop("views", views()), 8, 2, own.pop("seed", 0), **own)


def coin(at: Progress) -> bool:
    return at.step % 2 == 1


def flat(batch: Batch | None) -> list[torch.Tensor]:
    return [] if batch is None else [*batch.views, batch.target, batch.index, *flat(batch.partner)]


def assert_equal(one: Batch, other: Batch) -> None:
    assert len(flat(one)) == len(flat(other))
    assert all(torch.equal(a, b) for a, b in zip(flat(one), flat(other), strict=True))


def test_an_epoch_shows_every_image_once_and_keeps_the_short_last_batch() -> None:
    made = loader()
    assert made.steps_per_epoch == STEPS // 2
    for epoch in range(2):
        batches = [made.batch(epoch * 3 + step, with_partner=False) for step in range(3)]
        assert [len(batch.target) for batch in batches] == [8, 8, 5]
        assert sorted(int(i) for batch in batches for i in batch.index) == list(range(21))


def test_the_order_is_another_in_every_epoch_and_for_every_seed() -> None:
    orders = {
        (seed, epoch): [
            int(i) for s in range(3) for i in loader(seed=seed).batch(3 * epoch + s, with_partner=False).index
        ]
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len({tuple(order) for order in orders.values()}) == 4


def test_target_index_and_pixels_belong_to_each_other() -> None:
    made = loader(PLAIN)
    for step in range(STEPS):
        batch = made.batch(step, with_partner=True)
        assert batch.partner is not None
        for part in (batch, batch.partner):
            assert torch.equal(part.target, images().labels[part.index])
            assert torch.equal(part.views[0][:, 0, 0, 0].round().long(), part.index)


def test_a_partner_has_as_many_images_as_its_batch_and_every_class_alike() -> None:
    made = Loader(images(), PLAIN, views(), 8, 200, 0)
    seen: Counter[int] = Counter()
    for step in range(600):
        batch = made.batch(step, with_partner=True)
        assert batch.partner is not None
        assert batch.partner.partner is None
        assert len(batch.partner.target) == len(batch.target)
        seen.update(batch.partner.target.tolist())
    total = sum(seen.values())
    for label in range(4):
        assert abs(seen[label] / total - 0.25) < 5 * (0.25 * 0.75 / total) ** 0.5


def test_a_shuffled_partner_is_in_an_order_of_its_own() -> None:
    """The same order would mix every image with itself."""
    made = loader(DataNeeds(views=("plain",), partner_views=("plain",), partner_sampler="shuffle"))
    batches = [made.batch(step, with_partner=True) for step in range(3)]
    partners = [batch.partner for batch in batches if batch.partner is not None]
    assert sorted(int(i) for partner in partners for i in partner.index) == list(range(21))
    same = sum(int((b.index == p.index).sum()) for b, p in zip(batches, partners, strict=True))
    assert same < 8


def test_a_batch_is_the_same_whether_the_steps_before_were_made_or_not() -> None:
    one, other = loader(), loader()
    for step in range(STEPS):
        one.batch(step, with_partner=True)
    for step in (5, 0, 3):
        assert_equal(one.batch(step, with_partner=True), other.batch(step, with_partner=True))


def test_a_batch_does_not_change_because_it_gets_a_partner() -> None:
    alone, paired = (loader().batch(1, with_partner=with_partner) for with_partner in (False, True))
    assert alone.partner is None
    assert paired.partner is not None
    assert_equal(alone, dataclasses.replace(paired, partner=None))


def test_two_views_of_an_image_differ_and_each_is_the_same_when_made_again() -> None:
    made = loader()
    _, one, other = made.batch(0, with_partner=False).views
    assert not torch.equal(one, other)
    again = made.batch(0, with_partner=False)
    assert torch.equal(again.views[1], one)


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize(("start", "stop"), [(0, 6), (1, 3), (4, 6), (2, 3), (3, 3)])
def test_workers_give_the_same_batches_in_the_same_order(workers: int, start: int, stop: int) -> None:
    alone = list(loader().iterate(start, stop, coin))
    together = list(loader(workers=workers).iterate(start, stop, coin))
    assert len(alone) == len(together) == stop - start
    for one, other in zip(alone, together, strict=True):
        assert_equal(one, other)


class Racing(Loader):
    """Another thread takes the plan away as soon as it is put down: it wants that of another epoch."""

    @property
    def _plans(self) -> dict[int, Any]:
        return {}

    @_plans.setter
    def _plans(self, plans: dict[int, Any]) -> None:
        pass


def test_workers_that_are_an_epoch_apart_do_not_take_each_others_plan() -> None:
    racing, alone = Racing(images(), PLAIN, views(), 8, 2, 0), loader(PLAIN)
    for step in range(STEPS):
        assert_equal(racing.batch(step, with_partner=True), alone.batch(step, with_partner=True))


def test_iterating_gives_what_the_steps_give() -> None:
    made = loader()
    for step, batch in enumerate(made.iterate(0, STEPS, coin)):
        assert_equal(batch, made.batch(step, with_partner=coin(made.progress(step))))


@pytest.mark.parametrize("workers", [0, 2])
def test_leaving_the_loop_early_leaves_no_thread_waiting(workers: int) -> None:
    batches = loader(workers=workers).iterate(0, STEPS, coin)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert next(batches, None) is None


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_worker_reaches_the_loop(workers: int) -> None:
    wrong = views() | {"contrastive": build_view("plain", 9, (0, 0, 0), (1, 1, 1))}
    with pytest.raises(DataError, match="9 x 9"):
        list(loader(views=wrong, workers=workers).iterate(0, STEPS, coin))


class Counting:
    """A view that counts how often it is made."""

    def __init__(self, view: View) -> None:
        self.view, self.calls = view, 0

    def draw(self, sizes: torch.Tensor, drawn: torch.Generator) -> ViewParams:
        return self.view.draw(sizes, drawn)

    def apply(self, pixels: torch.Tensor, params: ViewParams) -> torch.Tensor:
        self.calls += 1
        return self.view.apply(pixels, params)


@pytest.mark.parametrize(
    ("needs", "wants", "expected"),
    [
        (NEEDS, lambda at: False, {"classification": 6, "contrastive": 12, "plain": 0}),
        (NEEDS, coin, {"classification": 6 + 3, "contrastive": 12, "plain": 0}),
        (NEEDS, lambda at: True, {"classification": 6 + 6, "contrastive": 12, "plain": 0}),
        (DataNeeds(), lambda at: False, {"classification": 6, "contrastive": 0, "plain": 0}),
    ],
)
def test_only_what_is_declared_and_wanted_is_made(
    needs: DataNeeds, wants: Callable[[Progress], bool], expected: Mapping[str, int]
) -> None:
    counting: dict[str, Any] = {role: Counting(view) for role, view in views().items()}
    for step, batch in enumerate(loader(needs, views=counting).iterate(0, STEPS, wants)):
        assert (batch.partner is not None) == wants(Progress(step, step // 3, 2, 0))
        assert len(batch.views) == len(needs.views)
    assert {role: view.calls for role, view in counting.items()} == expected


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["cutmix", "mixup"])
def test_the_coin_falls_as_often_as_its_probability(kind: str, probability: float) -> None:
    mixing = CutMix(32, probability=probability) if kind == "cutmix" else Mixup(probability=probability)
    n = 2000
    heads = sum(mixing.wants_partner(Progress(step, 0, 1, 3)) for step in range(n))
    assert abs(heads / n - probability) <= 4.5 * (probability * (1 - probability) / n) ** 0.5


# Peaks ----------------------------------------------------------------------------------------------------------------

CARRIED = DataNeeds(
    views=("classification", "contrastive"),
    partner_views=("classification", "plain"),
    partner_labels=True,
    detector="fine-grained",
)


def spotted() -> tuple[ImageSet, torch.Tensor]:
    """Black images with one white pixel each, and where it is."""
    plain = images()
    peaks = torch.randint(8, (len(plain), 2), generator=generator("peaks"))
    pixels = torch.zeros_like(plain.images)
    pixels[torch.arange(len(plain)), :, peaks[:, 0], peaks[:, 1]] = 255
    return dataclasses.replace(plain, images=pixels), peaks


@pytest.mark.parametrize("name", ["crop", "crop-flip"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_white_pixel_is_found_where_the_peak_of_the_first_view_says(name: str, workers: int) -> None:
    train, peaks = spotted()
    chosen = views() | {"classification": build_view(name, 8, (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))}
    made = Loader(train, CARRIED, chosen, 8, 10, 0, peaks=peaks, workers=workers)
    inside, mirrored = 0, 0
    for batch in made.iterate(0, 30, lambda at: True):
        assert batch.partner is not None
        for part in (batch, batch.partner):
            assert part.peaks is not None
            assert part.peaks.dtype == torch.int64
            for i, image in enumerate(part.views[0]):
                row, column = part.peaks[i].tolist()
                spot = (image[0] > 250).nonzero().tolist()
                assert spot == [[row, column]] or (not spot and (row in (0, 7) or column in (0, 7)))
                inside += bool(spot)
                mirrored += bool(spot) and abs(column - int(peaks[part.index[i], 1])) > 4
    assert inside > 100
    assert (mirrored > 0) == (name == "crop-flip"), "further than a crop can move it"


@pytest.mark.parametrize("workers", [0, 2])
def test_peaks_change_no_view(workers: int) -> None:
    """A run with a detector sees the images that it would see without."""
    train, peaks = spotted()
    bare = dataclasses.replace(CARRIED, detector=None)
    without = Loader(train, bare, views(), 8, 2, 0)
    with_peaks = Loader(train, CARRIED, views(), 8, 2, 0, peaks=peaks, workers=workers)
    for step, batch in enumerate(with_peaks.iterate(0, STEPS, lambda at: True)):
        assert_equal(batch, without.batch(step, with_partner=True))
        assert without.batch(step, with_partner=True).peaks is None


def test_a_partner_whose_labels_alone_are_used_has_no_view_and_no_peaks() -> None:
    train, peaks = spotted()
    needs = DataNeeds(views=("plain",), partner_labels=True, detector="fine-grained")
    batch = Loader(train, needs, views(), 8, 2, 0, peaks=peaks).batch(0, with_partner=True)
    assert batch.peaks is not None
    assert torch.equal(batch.peaks, peaks[batch.index])
    assert batch.partner is not None
    assert (batch.partner.views, batch.partner.peaks) == ((), None)
    assert torch.equal(batch.partner.target, train.labels[batch.partner.index])


def test_peaks_that_nobody_declared_that_are_missing_or_of_other_images_are_refused() -> None:
    train, peaks = spotted()
    for needs, given in ((NEEDS, peaks), (CARRIED, None), (CARRIED, peaks[:-1]), (CARRIED, peaks[:, :1])):
        with pytest.raises(ConfigError, match="the peaks given are"):
            Loader(train, needs, views(), 8, 2, 0, peaks=given)


def test_the_beta_of_effective_numbers_reaches_the_partners() -> None:
    shares = []
    for beta in (0.0, 0.99):
        needs = DataNeeds(views=("plain",), partner_labels=True, partner_sampler="effective_number", beta=beta)
        made = Loader(images(), needs, views(), 21, 300, 0)
        drawn = torch.cat([torch.cat(made.plan(epoch)[1]) for epoch in range(300)])
        shares.append(float((images().labels[drawn] == 3).double().mean()))
    effective = [sum(0.99**i for i in range(count)) for count in COUNTS]
    assert shares[0] == pytest.approx(0.25, abs=0.025)
    assert shares[1] == pytest.approx(1 / effective[3] / sum(1 / e for e in effective), abs=0.03)


def test_progress_counts_steps_and_epochs_from_zero() -> None:
    made = loader()
    assert made.progress(0) == Progress(0, 0, 2, 0)
    assert made.progress(2).epoch == 0
    assert made.progress(3) == Progress(3, 1, 2, 0)


def test_a_purpose_and_a_step_make_a_draw_of_their_own() -> None:
    at, later = Progress(4, 1, 2, 9), Progress(5, 1, 2, 9)
    drawn = [
        float(torch.rand((), generator=made)) for made in (at.generator("a"), at.generator("b"), later.generator("a"))
    ]
    assert len(set(drawn)) == 3
    assert drawn[0] == float(torch.rand((), generator=generator(9, "a", 4)))
