"""What costs less work in a part of a run: small images at first, contrast for a while, SAM late."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from longtail.config import OptimSettings, ViewSettings
from longtail.data.loader import Loader
from longtail.errors import ConfigError
from longtail.methods import METHODS, Batch, Method, Progress
from longtail.methods.base import DataNeeds
from longtail.models.network import ModelSettings, Network
from longtail.processes.sharing import Shares
from longtail.recipes import load_config
from longtail.rng import generator
from longtail.training.feeding import progressive_size
from longtail.training.loop import train
from longtail.training.optim import build_optimizer
from longtail.training.state import RunState, build_method
from longtail.training.updating import update
from tiny import COUNTS, SIZE, Recorder, ends_as_unbroken, outcome, settings_of, tiny_config

IMAGES = sum(COUNTS)
CONTRASTED = ["bcl", "supcon", "concutmix", "smcl-concutmix"]
"""Methods that can be without their contrastive loss for a part of a run."""

HALF: dict[str, Any] = {"views": {"progressive_size": SIZE // 2, "progressive_stop": 1}}
FIRST_EPOCH: dict[str, Any] = {"method": {"contrast_stop": 1}}
SECOND_EPOCH: dict[str, Any] = {"method": {"contrast_start": 1}}


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Number and sides of the images of every pass in training through a network."""
    seen: list[tuple[int, ...]] = []
    before = Network.features

    def watched(self: Network, images: Tensor) -> Tensor:
        if self.training:
            seen.append((len(images), *images.shape[-2:]))
        return before(self, images)

    monkeypatch.setattr(Network, "features", watched)
    return seen


# Small images at first ------------------------------------------------------------------------------------------------


def test_the_side_is_a_function_of_the_epoch() -> None:
    settings = ViewSettings(progressive_size=16, progressive_stop=0.5)
    assert [settings.side_at(epoch, 5) for epoch in range(5)] == [16, 16, 16, None, None]
    assert ViewSettings(progressive_size=16, progressive_stop=2).side_at(1, 100) == 16
    assert ViewSettings().side_at(0, 5) is None


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_sees_small_images_at_first_and_whole_ones_then(
    method: str, tiny_npz: Path, tmp_path: Path, shapes: list[tuple[int, ...]]
) -> None:
    init = {}
    if method in ("crt", "lws", "mislas"):
        train(tiny_config("ce", tiny_npz, tmp_path / "first"))
        init = {"init": str(tmp_path / "first")}
        shapes.clear()
    train(tiny_config(method, tiny_npz, tmp_path / "run", **HALF, **init, optim={"epochs": 2}))
    sides = [height for _, height, _ in shapes]
    switch = sides.index(SIZE)
    assert switch * 2 == len(sides)
    assert set(sides[:switch]) == {SIZE // 2}
    assert set(sides[switch:]) == {SIZE}


def test_images_are_resampled_as_torchvision_does() -> None:
    network = Network(ModelSettings(backbone="resnet8"), 3, seed=0, size=32).train()
    images = torch.randn(4, 3, 32, 32, generator=generator("images"))
    network.seen_at = 24
    small = resize(images, [24, 24], antialias=True)
    assert torch.equal(network.features_of(images), network.features(small))


def test_evaluation_sees_whole_images_in_every_epoch() -> None:
    network = Network(ModelSettings(backbone="resnet8"), 3, seed=0, size=32)
    images = torch.randn(4, 3, 32, 32, generator=generator("images"))
    network.seen_at = 16
    assert torch.equal(network.eval().features_of(images), network.features(images))
    assert network.take_saved_passes() == 0


def test_contrastive_views_that_are_smaller_already_stay_as_they_are(shapes: list[tuple[int, ...]]) -> None:
    network = Network(ModelSettings(backbone="resnet8"), 3, seed=0, size=32).train()
    network.seen_at = 24
    network.features_of(torch.zeros(4, 3, 32, 32), torch.zeros(4, 3, 16, 16), torch.zeros(4, 3, 16, 16))
    assert shapes == [(4, 24, 24), (8, 16, 16)]
    network.seen_at, shapes[:] = 8, []
    network.features_of(torch.zeros(4, 3, 32, 32), torch.zeros(4, 3, 16, 16))
    assert shapes == [(8, 8, 8)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"progressive_size": 64}, "more than the images' 8 pixels"),
        ({"progressive_size": 4, "progressive_stop": 0}, "leaves no epoch"),
    ],
)
def test_sizes_that_cannot_be_had_are_refused(words: dict[str, Any], said: str, tiny_npz: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        train(tiny_config("ce", tiny_npz, tmp_path / "run", views=words))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("key", "method"), [("progressive_size", "ce"), ("contrastive_size", "bcl")])
def test_a_backbone_of_one_size_is_refused_by_name(key: str, method: str, tmp_path: Path) -> None:
    words = {"views": {key: 16}, "model": {"backbone": "vit-small-patch4"}, "out": str(tmp_path / "run")}
    with pytest.raises(ConfigError, match=f"views.{key}=16.*vit-small-patch4"):
        train(load_config(f"scenes/{method}", words))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["ce", "mislas"])
def test_asking_the_backbone_leaves_no_trace(name: str) -> None:
    """In mislas a frozen backbone has batch-norm alone in training mode."""
    config = load_config(f"npz/{name}", settings_of(name, views={"progressive_size": 4}))
    method = build_method(config, COUNTS, SIZE).train()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    modes = [module.training for module in method.modules()]
    assert progressive_size(config, method, SIZE, SIZE) == 4
    assert [module.training for module in method.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in method.state_dict().items())


def test_the_size_that_images_have_changes_nothing(tiny_npz: Path, tmp_path: Path) -> None:
    train(tiny_config("ce", tiny_npz, tmp_path / "plain"))
    own = {"views": {"progressive_size": SIZE, "progressive_stop": 1.0}}
    train(tiny_config("ce", tiny_npz, tmp_path / "whole", **own))
    assert outcome(tmp_path / "plain")["last"] == outcome(tmp_path / "whole")["last"]


# Contrast for a while -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", CONTRASTED)
@pytest.mark.parametrize(("when", "which"), [(FIRST_EPOCH, 0), (SECOND_EPOCH, 1)])
def test_steps_without_contrast_make_and_forward_the_classified_view_alone(
    method: str,
    when: dict[str, Any],
    which: int,
    tiny_npz: Path,
    tmp_path: Path,
    shapes: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []
    before = Loader.batch

    def watched(self: Loader, step: int, **given: Any) -> Batch:
        batch = before(self, step, **given)
        made.append(len(batch.views))
        return batch

    monkeypatch.setattr(Loader, "batch", watched)
    small = {"mu": 0.0} if method == "smcl-concutmix" else {}
    shown = Recorder()
    own = {**when, "method": {**when["method"], **small}}
    results = train(tiny_config(method, tiny_npz, tmp_path / "run", **own), listener=shown)
    expected = [3, 3, 3, 1, 1, 1] if which == 0 else [1, 1, 1, 3, 3, 3]
    assert made == expected
    assert [count for count, *_ in shapes] == [
        views * images for views, images in zip(expected, [8, 8, 5, 8, 8, 5], strict=True)
    ]
    assert [("contrastive" in logs) for logs in shown.logs] == [views == 3 for views in expected]
    assert results["image_passes"] == results["full_size_passes"] == IMAGES * 4


def step(method: str, epoch: int, **own: Any) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one step of batch 8 in this of 10 epochs, with every view given."""
    made = build_method(load_config(f"npz/{method}", settings_of(method, method=own)), COUNTS, SIZE).train()
    draw = generator("step")
    views = tuple(torch.randn(8, 3, SIZE, SIZE, generator=draw) for _ in range(3))
    batch = Batch(views, torch.arange(8) % 4, torch.arange(8))
    output = made(batch, Progress(9, epoch, 10, 0))
    output.loss.backward()
    gradients = {name: p.grad for name, p in made.named_parameters() if p.grad is not None}
    return float(output.loss.detach()), gradients


@pytest.mark.parametrize("method", ["bcl", "concutmix", "smcl-concutmix"])
def test_a_step_without_contrast_is_one_of_logit_adjustment(method: str) -> None:
    own = {"contrast_stop": 0.5} | ({"mix_probability": 0.0} if method != "bcl" else {})
    loss, gradients = step(method, 5, **own)
    other, expected = step("logit-adjustment", 5)
    assert loss == 2.0 * other  # alpha
    assert gradients.keys() == expected.keys()
    assert all(torch.equal(gradients[name], 2.0 * value) for name, value in expected.items())


@pytest.mark.parametrize("method", CONTRASTED)
def test_a_step_with_contrast_is_as_it_was(method: str) -> None:
    loss, gradients = step(method, 4, contrast_stop=0.5)
    other, expected = step(method, 4)
    assert loss == other
    assert all(torch.equal(gradients[name], value) for name, value in expected.items())


def test_labels_are_not_rectified_without_the_space_to_do_it_in() -> None:
    own = {"rectify_start": 0, "contrast_stop": 0.5}
    made = build_method(load_config("npz/concutmix", settings_of("concutmix", method=own)), COUNTS, SIZE)
    assert made.rectifies(Progress(0, 4, 10, 0))  # type: ignore[operator]
    assert not made.rectifies(Progress(0, 5, 10, 0))  # type: ignore[operator]


@pytest.mark.parametrize("method", CONTRASTED)
def test_a_run_without_any_epoch_of_contrast_is_refused(method: str) -> None:
    own = {"contrast_start": 0.5, "contrast_stop": 0.5}
    with pytest.raises(ConfigError, match="no contrast"):
        build_method(load_config(f"npz/{method}", {"method": own}), COUNTS, SIZE)
    assert not build_method(load_config(f"npz/{method}"), COUNTS, SIZE).leaves_unused


def test_the_times_of_contrast_mean_nothing_to_a_method_without_it() -> None:
    made = build_method(load_config("npz/ce", {"method": {"contrast_start": 0.9}}), COUNTS, SIZE)
    at = Progress(0, 0, 10, 0)
    assert made.views_at(at) == ("classification",)
    assert (made.stacks(), made.leaves_unused) == ((1,), False)


# SAM late -------------------------------------------------------------------------------------------------------------


def test_sam_passes_twice_from_its_start_on_and_is_plain_before() -> None:
    def weights(epoch: int, **own: Any) -> tuple[int, Tensor]:
        made = build_method(load_config("npz/ce", settings_of("ce")), COUNTS, SIZE).train()
        settings = OptimSettings(**own)
        images = torch.randn(8, 3, SIZE, SIZE, generator=generator("sam"))
        batch = Batch((images,), torch.arange(8) % 4, torch.arange(8))
        done = update(made, build_optimizer(made, settings), batch, Progress(0, epoch, 10, 0), 0.1, settings)
        return done.forwarded, made.network.classifier.weight.detach().clone()

    for epoch, same_as in ((7, {}), (8, {"sam": 0.5})):
        passes, found = weights(epoch, sam=0.5, sam_start=0.8)
        assert (passes, bool(torch.equal(found, weights(epoch, **same_as)[1]))) == (8 if epoch == 7 else 16, True)
    assert not torch.equal(weights(8, sam=0.5)[1], weights(8)[1])
    assert OptimSettings(sam=0.5, sam_start=0.8, epochs=40).resolved()["sam_start"] == 32
    assert "sam_start" not in OptimSettings(sam=0.5).resolved()


# What it costs --------------------------------------------------------------------------------------------------------


def test_passes_are_counted_by_images_and_by_pixels(tiny_npz: Path, tmp_path: Path) -> None:
    """Half the side: a quarter of a pass. One epoch of two, SAM in the second, contrast in the first."""
    own = {**HALF, "method": {"contrast_stop": 1}, "optim": {"sam": 0.05, "sam_start": 1}}
    results = train(tiny_config("bcl", tiny_npz, tmp_path / "run", **own))
    assert results["image_passes"] == IMAGES * (3 + 2)
    assert results["full_size_passes"] == round(IMAGES * (3 / 4 + 2))


def test_contrastive_views_of_fewer_pixels_count_less(tmp_path: Path) -> None:
    network = Network(ModelSettings(backbone="resnet8"), 3, seed=0, size=32).train()
    network.features_of(torch.zeros(4, 3, 32, 32), torch.zeros(4, 3, 16, 16), torch.zeros(4, 3, 24, 24))
    assert network.take_saved_passes() == 4 * (3 / 4) + 4 * (7 / 16)
    assert network.take_saved_passes() == 0


def test_passes_are_those_of_the_whole_batch_in_every_process() -> None:
    network = Network(ModelSettings(backbone="resnet8"), 3, seed=0, size=32).train()
    network.seen_at = 16
    shares = Shares(sizes=(4, 4), processes=1, rank=0)
    network.features_of(torch.zeros(8, 3, 32, 32), shares=shares)
    assert network.take_saved_passes() == 8 * (3 / 4)


def test_a_state_of_before_pixels_were_counted_can_be_read() -> None:
    assert RunState.read({"image_passes": 5}).saved_passes == 0.0


# Whole runs -----------------------------------------------------------------------------------------------------------

RESUMED: dict[str, tuple[str, dict[str, Any]]] = {
    "small images": ("concutmix", HALF),
    "contrast at first": ("concutmix", FIRST_EPOCH),
    "contrast later": ("bcl", SECOND_EPOCH),
    "a queue": ("paco", HALF),
    "all": (
        "smcl-concutmix",
        {**HALF, "method": {"contrast_start": 1}, "optim": {"epochs": 3, "sam": 0.05, "sam_start": 2, "ema": 0.5}},
    ),
}


@pytest.mark.parametrize("option", RESUMED)
def test_a_run_goes_on_bit_for_bit_on_either_side_of_the_switch(tiny_npz: Path, tmp_path: Path, option: str) -> None:
    method, own = RESUMED[option]
    ends_as_unbroken(method, own, tiny_npz, tmp_path, stops=(1, 3, 4))


@pytest.mark.parametrize(
    ("stacks", "contrastive", "progressive", "expected"),
    [
        ((3,), None, None, {(15, 16)}),
        ((3,), None, 12, {(15, 16), (15, 12)}),
        ((3, 1), 8, None, {(5, 16), (10, 8)}),
        ((3, 1), None, 12, {(15, 16), (5, 16), (15, 12), (5, 12)}),
        ((3, 4), 8, 12, {(5, 16), (10, 16), (10, 8), (5, 12), (10, 12)}),
        ((3,), 8, 8, {(5, 16), (10, 8), (15, 8)}),
        ((3,), 12, 8, {(5, 16), (10, 12), (15, 8)}),
    ],
)
def test_what_is_compiled_is_what_full_batches_send_through(
    stacks: tuple[int, ...],
    contrastive: int | None,
    progressive: int | None,
    expected: set[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Network(ModelSettings(backbone="resnet8"), 3, seed=0, size=16)
    monkeypatch.setattr(torch, "compile", lambda module, **settings: module)

    class Given:
        needs = DataNeeds(views=("classification", "contrastive", "contrastive"))
        network = made

        def stacks(self) -> tuple[int, ...]:
            return stacks

    Method.compile_for(Given(), 5, 16, contrastive, progressive)  # type: ignore[arg-type]
    assert made._compiled is not None
    assert made._compiled[1] == {(images, 3, side, side) for images, side in expected}
