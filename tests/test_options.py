"""What any method may use, each off by default: accumulation, clipping, averaging, SAM, precision, patience, limits."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import longtail
import longtail.training.starting as starting
import longtail.training.state as state_module
from longtail.api import evaluate_run
from longtail.config import NUMBERS_VERSION, OptimSettings
from longtail.errors import ConfigError, DataError, DivergedError, StoppedError
from longtail.methods import Batch, Method, Progress, StepOutput
from longtail.recipes import load_config
from longtail.rng import generator
from longtail.runs.rundir import RunDir
from longtail.training.averaging import Moving, averaged, decay_at
from longtail.training.loop import train
from longtail.training.optim import build_optimizer
from longtail.training.state import build_method
from longtail.training.updating import PartProgress, Update, part_of, part_sizes, places, update, wants_partner
from tiny import COUNTS, At, KilledError, Recorder, ends_as_unbroken, outcome, read_test_images, tiny_config, write_npz

AT = Progress(step=3, epoch=1, epochs=2, seed=7)


class Regression(Method):
    """0.5 mean_b (w . x_b + noise scale - t_b)^2 with a counted buffer; remembers what it was given."""

    def __init__(self, width: int = 3, noise: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, width))
        self.register_buffer("seen", torch.zeros(()))
        self.seen: Tensor
        self.noise = noise
        self.given: list[tuple[Batch, Progress]] = []
        self.random: list[float] = []

    def forward(self, batch: Batch, at: Progress) -> StepOutput:
        self.given.append((batch, at))
        self.random.append(float(torch.rand(())))
        self.seen += 1
        error = batch.views[0].flatten(1) @ self.weight - batch.target
        loss = 0.5 * (error**2).mean() + self.noise
        return StepOutput(loss, {"loss term": loss.detach()})

    def needs_partner(self, at: Progress) -> bool:
        return isinstance(at, PartProgress)


def batch_of(images: int, width: int = 3, **more: Any) -> Batch:
    draws = generator("batch", images, width)
    views = (torch.randn((images, width), generator=draws),)
    return Batch(views, torch.arange(images), torch.arange(100, 100 + images), **more)


def by_hand(weight: list[float], batch: Batch) -> tuple[float, list[float]]:
    """Loss and gradient of :class:`Regression`, number by number."""
    rows, targets = batch.views[0].tolist(), batch.target.tolist()
    loss, gradient = 0.0, [0.0] * len(weight)
    for row, target in zip(rows, targets, strict=True):
        error = sum(w * x for w, x in zip(weight, row, strict=True)) - target
        loss += 0.5 * error**2 / len(rows)
        for k, x in enumerate(row):
            gradient[k] += error * x / len(rows)
    return loss, gradient


def stepped(method: Method, batch: Batch, lr: float = 0.1, **own: Any) -> Update:
    settings = OptimSettings(**{"momentum": 0, "weight_decay": 0, "batch": len(batch.target), **own})
    return update(method, build_optimizer(method, settings), batch, AT, lr, settings)


def norm(values: list[float]) -> float:
    return math.sqrt(sum(value**2 for value in values))


# One update -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [None, 1e-3, 0.5, 1e6])
def test_a_clipped_step_is_as_long_as_rate_times_the_norm_allows(clip: float | None) -> None:
    method, batch = Regression(), batch_of(6)
    before = method.weight.tolist()
    loss, gradient = by_hand(before, batch)
    done = stepped(method, batch, clip=clip)
    scale = 1.0 if clip is None else min(1.0, clip / norm(gradient))
    assert method.weight.tolist() == pytest.approx(
        [w - 0.1 * scale * g for w, g in zip(before, gradient, strict=True)], rel=1e-5, abs=1e-7
    )
    assert done.loss == pytest.approx(loss, rel=1e-6)
    assert done.forwarded == 6


def test_clipping_goes_by_all_gradients_together() -> None:
    method = Regression()
    method.other = nn.Parameter(torch.tensor([3.0]))

    def forward(batch: Batch, at: Progress) -> StepOutput:
        return StepOutput((3 * method.weight[:1] + 4 * method.other).sum())

    method.forward = forward  # type: ignore[method-assign]
    stepped(method, batch_of(2), lr=1.0, clip=1.0)
    assert method.weight.tolist() == pytest.approx([-1 - 0.6, 0, 1], abs=1e-6)
    assert method.other.tolist() == pytest.approx([3 - 0.8], abs=1e-6)


def test_gradients_whose_norm_is_not_finite_are_not_clipped_to_nothing() -> None:
    method = Regression()
    batch = batch_of(2)
    method.weight.register_hook(lambda gradient: gradient * torch.inf)
    before = method.weight.tolist()
    with pytest.raises(DivergedError, match="norm of the gradients became"):
        stepped(method, batch, clip=1.0)
    assert method.weight.tolist() == before


@pytest.mark.parametrize("noise", [math.inf, math.nan])
@pytest.mark.parametrize("own", [{}, {"accumulate": 2}, {"sam": 0.1}])
def test_a_loss_that_is_not_finite_takes_no_step(noise: float, own: dict[str, Any]) -> None:
    method = Regression(noise=noise)
    before = method.weight.tolist()
    with pytest.raises(
        DivergedError, match=r"loss became (inf|nan) in step 3 \(epoch 1, learning rate 0\.1;.* 100, 101"
    ):
        stepped(method, batch_of(4), **own)
    assert method.weight.tolist() == before


@pytest.mark.parametrize(("images", "accumulate"), [(8, 2), (8, 3), (9, 4), (5, 2)])
def test_micro_batches_add_up_to_the_gradient_of_the_whole_batch(images: int, accumulate: int) -> None:
    whole, parts, batch = Regression(), Regression(), batch_of(images)
    expected = stepped(whole, batch)
    done = stepped(parts, batch, accumulate=accumulate)
    torch.testing.assert_close(parts.weight, whole.weight, rtol=1e-6, atol=1e-6)
    assert done.loss == pytest.approx(expected.loss, rel=1e-6)
    assert done.logs["loss term"] == pytest.approx(expected.loss, rel=1e-6)
    assert done.forwarded == expected.forwarded == images


def test_micro_batches_hold_every_image_once_with_all_that_belongs_to_it() -> None:
    peaks = torch.stack((torch.arange(7), torch.arange(7)), 1)
    method, batch = Regression(), batch_of(7, partner=batch_of(7), peaks=peaks)
    stepped(method, batch, accumulate=3)
    given = [part for part, _ in method.given]
    assert [len(part.target) for part in given] == [3, 2, 2]
    for name in ("target", "index", "peaks"):
        assert torch.equal(torch.cat([getattr(part, name) for part in given]), getattr(batch, name))
    assert torch.equal(torch.cat([part.views[0] for part in given]), batch.views[0])
    assert given[0].partner is None, "the first micro-batch does not want one"
    assert batch.partner is not None
    for part, taken in zip(given[1:], (slice(3, 5), slice(5, 7)), strict=True):
        assert part.partner is not None
        assert torch.equal(part.partner.views[0], batch.partner.views[0][taken])
        assert torch.equal(part.partner.index, part_of(batch.partner, taken).index)


def test_a_short_batch_in_one_part_is_not_given_the_partner_of_a_part_that_it_has_not() -> None:
    method, batch = Regression(), batch_of(4, partner=batch_of(4))
    assert wants_partner(method, 2)(AT), "the second part of a full batch would want one"
    settings = OptimSettings(batch=8, accumulate=2)
    update(method, build_optimizer(method, settings), batch, AT, 0.1, settings)
    assert [len(part.target) for part, _ in method.given] == [4]
    assert method.given[0][0].partner is None


def test_a_term_that_some_micro_batches_log_is_averaged_over_those() -> None:
    method = Regression()

    def forward(batch: Batch, at: Progress) -> StepOutput:
        logs = {"gamma": torch.tensor(float(len(batch.target)))} if isinstance(at, PartProgress) else {}
        return StepOutput(method.weight.sum(), logs)

    method.forward = forward  # type: ignore[method-assign]
    assert stepped(method, batch_of(8), accumulate=3).logs == {"gamma": pytest.approx((3 * 3 + 2 * 2) / 5)}


def test_every_micro_batch_has_draws_of_its_own_and_the_first_those_of_the_step() -> None:
    method = Regression()
    stepped(method, batch_of(6), accumulate=3)
    drawn = [at.generator("mix").initial_seed() for _, at in method.given]
    assert len({*drawn}) == len({*method.random}) == 3
    assert drawn[0] == AT.generator("mix").initial_seed()
    again = Regression()
    stepped(again, batch_of(6), accumulate=3)
    assert [at.generator("mix").initial_seed() for _, at in again.given] == drawn
    assert again.random == method.random
    alone = Regression()
    stepped(alone, batch_of(6))
    assert alone.random == method.random[:1]


@pytest.mark.parametrize("batch", [4, 5, 8, 9, 256, 257])
@pytest.mark.parametrize("accumulate", [1, 2, 3, 4])
def test_no_micro_batch_has_one_image_or_more_than_a_full_one(batch: int, accumulate: int) -> None:
    if batch // accumulate < 2:
        return
    settings = OptimSettings(batch=batch, accumulate=accumulate)
    assert len(part_sizes(batch, settings)) == accumulate
    for images in range(2, batch + 2):  # a last batch of one image is merged into the one before
        sizes = part_sizes(images, settings)
        assert sum(sizes) == images
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= 2
        assert max(sizes) <= math.ceil(batch / accumulate) + 1


def test_a_step_has_partners_where_any_of_its_micro_batches_wants_them() -> None:
    method = Regression()
    assert not wants_partner(method, 1)(AT)
    assert wants_partner(method, 2)(AT)
    assert places(AT, 1) == [AT]


def test_a_sam_step_is_that_of_the_equation_on_a_quadratic() -> None:
    """e = rho g(w) / |g(w)|, w := w - lr g(w + e), with weight decay added at w."""
    method, batch = Regression(), batch_of(5)
    before = method.weight.tolist()
    loss, gradient = by_hand(before, batch)
    near = [w + 0.3 * g / norm(gradient) for w, g in zip(before, gradient, strict=True)]
    _, uphill = by_hand(near, batch)
    done = stepped(method, batch, sam=0.3, weight_decay=0.25)
    expected = [w - 0.1 * (g + 0.25 * w) for w, g in zip(before, uphill, strict=True)]
    assert method.weight.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert done.loss == pytest.approx(loss, rel=1e-6), "the loss that is logged is that at w"
    assert done.forwarded == 10


def test_both_passes_of_sam_see_the_same_batch_and_draws_and_the_first_alone_moves_buffers() -> None:
    method, batch = Regression(), batch_of(6)
    stepped(method, batch, sam=0.3, accumulate=2)
    assert len(method.given) == 4
    assert method.random[:2] == method.random[2:]
    assert method.random[0] != method.random[1]
    for (one, here), (other, there) in zip(method.given[:2], method.given[2:], strict=True):
        assert torch.equal(one.views[0], other.views[0])
        assert here == there
    assert float(method.seen) == 2


def test_sam_with_micro_batches_climbs_along_the_gradient_of_the_whole_batch() -> None:
    whole, parts, batch = Regression(), Regression(), batch_of(6)
    stepped(whole, batch, sam=0.5)
    stepped(parts, batch, sam=0.5, accumulate=3)
    torch.testing.assert_close(parts.weight, whole.weight, rtol=1e-5, atol=1e-6)


def test_the_norm_that_is_clipped_is_that_of_sams_second_gradient() -> None:
    method, batch = Regression(), batch_of(5)
    before = method.weight.tolist()
    stepped(method, batch, sam=0.3, clip=0.01)
    assert norm([a - b for a, b in zip(method.weight.tolist(), before, strict=True)]) == pytest.approx(0.001, rel=1e-3)


# Averages -------------------------------------------------------------------------------------------------------------


def test_the_average_is_that_of_a_slow_loop() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average, decay = Moving(module, 0.5), 0.5
    expected = {name: value.double().clone() for name, value in module.state_dict().items()}
    for step in range(12):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator("move", step)))
        module(torch.randn((4, 2), generator=generator("input", step)))
        average.stepped(module, step)
        d = min(decay, (1 + step) / (10 + step))
        for name, value in module.state_dict().items():
            kept = expected[name]
            for place in np.ndindex(*kept.shape):
                kept[place] = d * float(kept[place]) + (1 - d) * float(value[place])
    for name, value in average.tensors.items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert int(average.tensors["1.num_batches_tracked"]) == 12
    assert not torch.equal(average.tensors["1.running_var"], module.state_dict()["1.running_var"])


def test_the_decay_rises_to_its_own_value_and_stays() -> None:
    assert [decay_at(0.9, step) for step in (0, 8, 79, 80, 81, 10**6)] == pytest.approx(
        [0.1, 0.5, 80 / 89, 0.9, 0.9, 0.9]
    )


def test_a_module_has_its_own_weights_again_after_it_had_the_averaged_ones() -> None:
    module = nn.BatchNorm1d(2)
    average = Moving(module, 0.9)
    with torch.no_grad():
        module.weight += 1
    with contextlib.suppress(KilledError), averaged(module, average):
        assert module.weight.tolist() == [1, 1]
        raise KilledError
    assert module.weight.tolist() == [2, 2]
    with averaged(module, None):
        assert module.weight.tolist() == [2, 2]


def test_the_averaged_weights_are_evaluated_saved_as_best_and_predicted_with(tiny_npz: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    plain = train(tiny_config("ce", tiny_npz, tmp_path / "plain", optim={"lr": 0.5}))
    results = train(tiny_config("ce", tiny_npz, out, optim={"ema": 0.8, "lr": 0.5}))
    last, without = RunDir(out).load_checkpoint(), RunDir(tmp_path / "plain").load_checkpoint()
    assert last is not None
    assert without is not None
    for name, value in without.tensors.items():
        assert torch.equal(last.tensors[name], value), "the average does not touch training"
    name = "network.backbone.layer1.0.conv1.weight"
    assert not torch.equal(last.tensors[f"average/{name}"], last.tensors[f"model/{name}"])
    assert torch.equal(longtail.load(out).method.state_dict()[name], last.tensors[f"average/{name}"])
    probabilities = longtail.load(out).predict(read_test_images(out))
    predicted = [int(line.split(",")[3]) for line in (out / "predictions.csv").read_text().splitlines()[1:]]
    assert probabilities.argmax(1).tolist() == predicted
    assert results["last"]["ece"] != plain["last"]["ece"]


def test_a_run_averages_what_each_of_its_steps_left_and_its_best_is_the_average(tiny_npz: Path, tmp_path: Path) -> None:
    name = "network.backbone.layer1.0.conv1.weight"
    config = tiny_config("ce", tiny_npz, tmp_path / "run", optim={"ema": 0.15, "epochs": 1})
    expected = build_method(config, COUNTS, 8).state_dict()[name].double()
    for step in range(3):
        with pytest.raises(StoppedError):
            train(config, resume=True, listener=At(step + 1))
        last = RunDir(tmp_path / "run").load_checkpoint()
        assert last is not None
        decay = min(0.15, (1 + step) / (10 + step))  # 0.1, then 0.15
        expected = decay * expected + (1 - decay) * last.tensors[f"model/{name}"].double()
        torch.testing.assert_close(last.tensors[f"average/{name}"].double(), expected, rtol=1e-5, atol=1e-7)
    train(config, resume=True)
    best = RunDir(tmp_path / "run").load_best().tensors
    for entry, value in best.items():
        assert torch.equal(value, last.tensors[f"average/{entry}"])
    assert len(best) == sum(entry.startswith("average/") for entry in last.tensors)


def test_averaged_weights_that_are_not_finite_are_never_saved(tiny_npz: Path) -> None:
    config = tiny_config("ce", tiny_npz, Path("unused"))
    method = build_method(config, COUNTS, 8)
    average = Moving(method, 0.9)
    average.tensors["network.classifier.weight"][0, 0] = torch.nan
    optimizer = build_optimizer(method, config.optim)
    with pytest.raises(DivergedError, match=r"network\.classifier\.weight"):
        state_module.snapshot(0, method, optimizer, state_module.RunState(), average)


# Precision ------------------------------------------------------------------------------------------------------------


def test_bfloat16_rounds_the_features_of_training_and_no_others() -> None:
    config = load_config("npz/bcl", {"data": {"path": "unused"}, "model": {"backbone": "resnet8"}})
    method = build_method(config, COUNTS, 8)
    images = torch.randn((4, 3, 8, 8), generator=generator("images"))
    exact = {training: method.train(training).network.features(images) for training in (True, False)}
    starting.use_bfloat16(method, torch.device("cpu"))
    assert torch.equal(method.eval().network.features(images), exact[False])
    rounded = method.train().network.features(images)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact[True])
    torch.testing.assert_close(rounded, exact[True], rtol=0.1, atol=0.1)
    assert all(value.dtype != torch.bfloat16 for value in method.state_dict().values())


@pytest.mark.parametrize("method", ["ce", "concutmix"])
def test_a_run_in_bfloat16_is_near_one_in_float32(tiny_npz: Path, tmp_path: Path, method: str) -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        watched = Recorder()
        train(tiny_config(method, tiny_npz, tmp_path / precision, run={"precision": precision}), listener=watched)
        losses.append([logs["loss"] for logs in watched.logs])
    assert losses[0] != losses[1]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=0.02)
    assert losses[0] == pytest.approx(losses[1], rel=0.2)


# Early end and limits -------------------------------------------------------------------------------------------------


class Scores:
    """In place of an evaluation's balanced accuracy: a list of them, for the evaluations on val."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> None:
        self.real, self.scores = state_module.RunState.improves, scores
        monkeypatch.setattr(state_module.RunState, "improves", self.improves())

    def improves(self) -> Any:
        def improves(state: state_module.RunState, epoch: int, numbers: dict[str, Any]) -> bool:
            return self.real(state, epoch, numbers | {"balanced_accuracy": self.scores[epoch]})

        return improves


@pytest.mark.parametrize(
    ("patience", "scores", "epochs", "best"),
    [
        (1, [0.1, 0.2, 0.2, 0.9, 0.9], 3, 1),
        (2, [0.3, 0.2, 0.4, 0.3, 0.4], 5, 2),
        (2, [0.3, 0.2, 0.1, 0.9, 0.9], 3, 0),
        (9, [0.3, 0.2, 0.1, 0.0, 0.0], 5, 0),
    ],
)
def test_a_run_ends_after_so_many_evaluations_without_a_better_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: int, scores: list[float], epochs: int, best: int
) -> None:
    Scores(monkeypatch, scores)
    data, watched = write_npz(tmp_path / "data.npz", val=2), Recorder()
    own = {"epochs": 5, "patience": patience, "lr": 0.01}
    config = tiny_config("ce", data, tmp_path / "run", optim=own)
    results = train(config, listener=watched)
    assert (results["epochs"], results["last"]["epoch"], results["best"]["epoch"]) == (epochs, epochs - 1, best)
    assert results["image_passes"] == 21 * epochs
    assert [row["epoch"] for row in watched.rows] == list(range(epochs))
    assert any("stays the best" in message for message in watched.messages) == (epochs < 5)
    assert results["config_key"] == config.key()


def test_a_run_that_ended_early_does_not_go_on_when_its_results_were_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Scores(monkeypatch, [0.5, 0.4, 0.6, 0.6])
    data = write_npz(tmp_path / "data.npz", val=2)
    config = tiny_config("ce", data, tmp_path / "run", optim={"epochs": 4, "patience": 1})

    def full(*given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("longtail.training.description.write_per_class", full)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    watched = Recorder()
    assert train(config, resume=True, listener=watched)["epochs"] == 2
    assert watched.steps == []


def test_a_run_that_val_ended_is_evaluated_where_there_are_no_val_images(tmp_path: Path) -> None:
    data, elsewhere = write_npz(tmp_path / "data.npz", val=2), write_npz(tmp_path / "test.npz")
    results = train(tiny_config("ce", data, tmp_path / "run", optim={"patience": 1}))
    found = evaluate_run(tmp_path / "run", settings={"data": {"path": str(elsewhere)}})
    assert found.evaluation.numbers()["top1"] == results["last"]["top1"]
    choosing = {"data": {"path": str(elsewhere)}, "test": {"tau": "val"}}
    with pytest.raises(DataError, match="nothing is selected"):
        evaluate_run(tmp_path / "run", settings=choosing)


def test_patience_without_val_images_is_refused_before_anything_is_written(tiny_npz: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"optim\.patience=3.*nothing is selected") as caught:
        train(tiny_config("ce", tiny_npz, tmp_path / "runs" / "run", optim={"patience": 3}))
    assert "data.val" in str(caught.value.hint)
    assert not (tmp_path / "runs").exists()


def test_a_limit_of_time_stops_with_a_checkpoint_and_every_start_gets_on(tiny_npz: Path, tmp_path: Path) -> None:
    train(tiny_config("concutmix", tiny_npz, tmp_path / "whole"))
    config = tiny_config("concutmix", tiny_npz, tmp_path / "run", run={"stop_after_minutes": 1e-9})
    for step in (1, 2, 3, 3, 4, 5):  # the fourth start evaluates the first epoch
        with pytest.raises(StoppedError, match=r"after 1e-09 minutes \(run\.stop_after_minutes\)") as caught:
            train(config, resume=True)
        assert caught.value.exit_code == 75
        assert "--resume" in str(caught.value.hint)
        assert RunDir(tmp_path / "run").description()["status"] == "stopped"
        found = RunDir(tmp_path / "run").load_checkpoint()
        assert found is not None
        assert found.step == step
    train(config, resume=True)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_a_run_goes_on_under_another_limit_or_none(tiny_npz: Path, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        train(tiny_config("ce", tiny_npz, tmp_path / "run", run={"stop_after_minutes": 1e-9}))
    train(tiny_config("ce", tiny_npz, tmp_path / "run", run={"stop_after_minutes": 60.0}), resume=True)


# Whole runs -----------------------------------------------------------------------------------------------------------

RESUMED: dict[str, tuple[str, dict[str, Any]]] = {
    "ema": ("concutmix", {"optim": {"ema": 0.8}}),
    "sam": ("concutmix", {"optim": {"sam": 0.05, "clip": 1.0}}),
    "accumulate": ("concutmix", {"optim": {"accumulate": 2}}),
    "bfloat16": ("ce", {"run": {"precision": "bfloat16"}}),
    "all": (
        "smcl",
        {
            "method": {"mask_start": 0.0, "mask_probability": 0.5},
            "optim": {"ema": 0.5, "sam": 0.05, "accumulate": 2, "clip": 2.0},
            "run": {"precision": "bfloat16"},
        },
    ),
}


@pytest.mark.parametrize("option", RESUMED)
def test_a_run_with_an_option_goes_on_in_the_middle_of_an_epoch(tiny_npz: Path, tmp_path: Path, option: str) -> None:
    method, own = RESUMED[option]
    results = ends_as_unbroken(method, own, tiny_npz, tmp_path, stops=(2, 4))
    assert results["numbers_version"] == NUMBERS_VERSION


def test_sam_counts_both_passes(tiny_npz: Path, tmp_path: Path) -> None:
    results = train(tiny_config("ce", tiny_npz, tmp_path / "run", optim={"sam": 0.05}))
    assert results["image_passes"] == 2 * 2 * 21


def test_each_option_changes_the_weights(tiny_npz: Path, tmp_path: Path) -> None:
    options: dict[str, dict[str, Any]] = {
        "none": {},
        "clip": {"optim": {"clip": 0.01}},
        "accumulate": {"optim": {"accumulate": 2}},
        "sam": {"optim": {"sam": 0.5}},
        "precision": {"run": {"precision": "bfloat16"}},
    }
    ends = set()
    for name, own in options.items():
        train(tiny_config("ce", tiny_npz, tmp_path / name, **own))
        found = RunDir(tmp_path / name).load_checkpoint()
        assert found is not None
        ends.add(found.tensors["model/network.classifier.weight"].numpy().tobytes())
    assert len(ends) == len(options)


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word",
    [
        *("optim.clip=0", "optim.clip=-1", "optim.clip=inf", "optim.ema=0", "optim.ema=1", "optim.sam=0"),
        *("optim.accumulate=0", "optim.accumulate=200", "optim.patience=0", "optim.patience=yes"),
        *("run.precision=float16", "run.stop_after_minutes=0"),
    ],
)
def test_a_value_that_no_option_can_have_is_refused_by_its_key(word: str) -> None:
    with pytest.raises(ConfigError, match=word.partition("=")[0].replace(".", r"\.")):
        load_config("scenes/ce", [word])


ON = {
    "optim": {"accumulate": 2, "clip": 1.0, "ema": 0.99, "sam": 0.05, "patience": 3},
    "run": {"precision": "bfloat16", "stop_after_minutes": 30.0},
}


def test_every_option_is_off_by_default_and_comes_back_from_a_file() -> None:
    off, on = load_config("scenes/ce").plain(), load_config("scenes/ce", ON).plain()
    assert {name: off["optim"][name] for name in ON["optim"]} == dict.fromkeys(ON["optim"]) | {"accumulate": 1}
    assert {name: off["run"][name] for name in ON["run"]} == {"precision": "float32", "stop_after_minutes": None}
    read = json.loads(json.dumps(on))
    assert {group: {name: read[group][name] for name in values} for group, values in ON.items()} == ON
    assert load_config("scenes/ce", {group: read[group] for group in ON}).plain() == on


def test_the_key_of_a_configuration_counts_every_option_but_the_limit_of_time() -> None:
    plain = load_config("scenes/ce").key()
    keys = {plain}
    for group, values in ON.items():
        for name, value in values.items():
            key = load_config("scenes/ce", {group: {name: value}}).key()
            assert (key == plain) == (name == "stop_after_minutes"), name
            keys.add(key)
    assert len(keys) == sum(map(len, ON.values()))
