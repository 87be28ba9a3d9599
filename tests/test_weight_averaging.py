"""Stochastic weight averaging: its rates, its mean, the statistics of batch-norm under it, and whole runs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import longtail
import longtail.training.loop as loop
from longtail.config import OptimSettings
from longtail.data.loader import Loader
from longtail.data.open import open_data
from longtail.errors import ConfigError, StoppedError
from longtail.methods import Method
from longtail.models.normalization import batch_norms
from longtail.recipes import load_config
from longtail.rng import generator, keyed_global_rng
from longtail.runs.rundir import RunDir
from longtail.training.averaging import Mean, Moving, average_of, renew_statistics
from longtail.training.faults import VARIABLE
from longtail.training.feeding import build_views
from longtail.training.loop import train
from longtail.training.optim import lr_at
from longtail.training.state import build_method
from tiny import At, ends_as_unbroken, tiny_config

PER_EPOCH = 3
SWA = {"swa_start": 1, "epochs": 4, "swa_lr": 0.03}


# Rates ----------------------------------------------------------------------------------------------------------------


def rates(**own: Any) -> list[float]:
    settings = OptimSettings(lr=0.2, warmup_epochs=0, **own)
    return [lr_at(settings, step, PER_EPOCH) for step in range(settings.epochs * PER_EPOCH)]


@pytest.mark.parametrize("schedule", ["step", "cosine", "onecycle"])
def test_a_schedule_ends_where_averaging_begins_at_its_rate(schedule: str) -> None:
    found = rates(schedule=schedule, milestones=[2], epochs=10, swa_start=0.6, swa_lr=0.05)
    alone = rates(schedule=schedule, milestones=[2], epochs=6)
    for place, (rate, falling) in enumerate(zip(found[:18], alone, strict=True)):
        rises = schedule == "onecycle" and place < 5
        assert rate == pytest.approx(falling if schedule == "step" or rises else 0.05 + 0.75 * falling), place
    assert found[18:] == [0.05] * 12


def test_the_rate_of_averaging_is_a_quarter_of_the_top_rate_unless_it_has_its_own() -> None:
    assert rates(epochs=4, swa_start=2)[6:] == [0.05] * 6


def test_the_resolved_times_say_where_averaging_begins() -> None:
    assert OptimSettings(epochs=40, swa_start=0.6).resolved()["swa_start"] == 24
    assert "swa_start" not in OptimSettings(epochs=40).resolved()


@pytest.mark.parametrize(("epochs", "start"), [(1, None), (2, None), (3, 2), (4, 3)])
def test_a_run_too_short_for_its_fraction_is_one_without_an_average(epochs: int, start: int | None) -> None:
    settings = OptimSettings(epochs=epochs, swa_start=0.75)
    mean = average_of(torch.nn.Linear(2, 2), settings)
    assert (mean.start if isinstance(mean, Mean) else mean) == start
    assert settings.resolved().get("swa_start") == start
    if start is None:
        assert rates(epochs=epochs, swa_start=0.75) == rates(epochs=epochs)


# The mean -------------------------------------------------------------------------------------------------------------


def test_the_average_is_the_mean_of_the_first_weights_and_those_after_each_epoch() -> None:
    module = torch.nn.Linear(2, 2)
    average = Mean(module, 2)
    points: list[Tensor] = []
    for epoch in range(9):
        with torch.no_grad():
            module.weight.copy_(torch.randn((2, 2), generator=generator("weights", epoch)))
        average.stepped(module, epoch)
        average.epoch_ended(module, epoch)
        points = [module.weight.detach().clone()] if epoch < 2 else [*points, module.weight.detach().clone()]
        mean = torch.stack(points).mean(dim=0)
        torch.testing.assert_close(average.tensors["weight"], mean, rtol=1e-5, atol=1e-6)
    assert len(points) == 8


def test_no_average_is_kept_unless_one_is_asked_for() -> None:
    module = torch.nn.Linear(2, 2)
    assert average_of(module, OptimSettings()) is None
    moving, mean = (average_of(module, OptimSettings(**own)) for own in ({"ema": 0.9}, {"swa_start": 0.5}))
    assert isinstance(moving, Moving)
    assert isinstance(mean, Mean)
    assert (moving.decay, mean.start) == (0.9, 100)


# Statistics of batch-norm ---------------------------------------------------------------------------------------------


def made(archive: Path, out: Path, method: str, **own: Any) -> tuple[Method, Loader, Any]:
    config = tiny_config(method, archive, out, **own)
    data = open_data(config.data)
    network = build_method(config, data.stats.counts, 8).train()
    loader = Loader(
        data.train, network.needs, build_views(config, data), config.optim.batch, config.optim.epochs, config.seed
    )
    return network, loader, config


@pytest.mark.parametrize("method", ["ce", "concutmix"])
def test_the_statistics_are_those_of_the_latest_batches_under_the_mean(
    tiny_npz: Path, tmp_path: Path, method: str
) -> None:
    network, loader, config = made(tiny_npz, tmp_path / "run", method, optim={**SWA, "epochs": 60})
    average = Mean(network, config.optim.schedule_epochs)
    for name, value in average.tensors.items():  # another network's weights
        if value.is_floating_point():
            value.copy_(value + 0.05 * torch.randn(value.shape, generator=generator("moved", name)))
    other = copy.deepcopy(network)
    other.load_state_dict(average.tensors)
    step = 55
    for number in range(step - 51, step):
        at = loader.progress(number)
        batch = loader.batch(number, with_partner=other.needs_partner(at))
        with keyed_global_rng(at.seed, "step", number), torch.no_grad():
            other(batch, at)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    weights = {name: value.clone() for name, value in average.tensors.items() if "running" not in name}
    stale = average.tensors["network.backbone.bn1.running_mean"].clone()
    renew_statistics(network, average, loader, step, config.optim)
    for name, value in other.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(average.tensors[name], value, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(average.tensors["network.backbone.bn1.running_mean"], stale)
    for name, value in weights.items():
        assert torch.equal(average.tensors[name], value), name
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert network.training


def test_statistics_are_left_alone_before_averaging_and_without_batch_norm(tiny_npz: Path, tmp_path: Path) -> None:
    for own, step in (({}, 3), ({"model": {"backbone": "vit-small-patch4"}}, 9)):
        network, loader, config = made(tiny_npz, tmp_path / "run", "ce", optim=SWA, **own)
        average = Mean(network, config.optim.schedule_epochs)
        before = {name: value.clone() for name, value in average.tensors.items()}
        renew_statistics(network, average, loader, step, config.optim)
        assert all(torch.equal(value, before[name]) for name, value in average.tensors.items())


def test_no_batch_is_made_where_no_statistics_move(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, loader, config = made(tiny_npz, tmp_path / "run", "ce", optim=SWA)
    for norm in batch_norms(network):
        norm.eval()  # as a frozen backbone's are
    monkeypatch.setattr(loader, "iterate", None)
    renew_statistics(network, Mean(network, 1), loader, 9, config.optim)


# Whole runs -----------------------------------------------------------------------------------------------------------

RESUMED: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("concutmix", {"optim": SWA}),
    "micro-batches and sharpness": ("cutmix", {"optim": {**SWA, "accumulate": 2, "sam": 0.05}}),
    "a queue": ("paco", {"optim": SWA}),
    "masks of the network's own": ("smcl", {"method": {"detector": "input-gradient", "mask_start": 0}, "optim": SWA}),
    "two threads": ("ce", {"optim": SWA, "run": {"workers": 2}}),
}


@pytest.mark.parametrize("option", RESUMED)
def test_a_run_that_averages_goes_on_in_the_middle_of_an_epoch(tiny_npz: Path, tmp_path: Path, option: str) -> None:
    method, own = RESUMED[option]
    ends_as_unbroken(method, own, tiny_npz, tmp_path, stops=(2, 4, 7))


def test_averaging_leaves_training_alone_and_its_mean_is_evaluated_and_predicted_with(
    tiny_npz: Path, tmp_path: Path
) -> None:
    """A constant rate: the same steps without and with it."""
    own = {"schedule": "step", "milestones": [1.0], "warmup_epochs": 0, "lr": 0.1, "epochs": 4}
    plain = train(tiny_config("ce", tiny_npz, tmp_path / "plain", optim=own))
    results = train(tiny_config("ce", tiny_npz, tmp_path / "run", optim={**own, "swa_start": 1, "swa_lr": 0.1}))
    last, without = RunDir(tmp_path / "run").load_checkpoint(), RunDir(tmp_path / "plain").load_checkpoint()
    assert last is not None
    assert without is not None
    for name, value in without.tensors.items():
        assert torch.equal(last.tensors[name], value), name
    name = "network.backbone.layer1.0.conv1.weight"
    predicting = longtail.load(tmp_path / "run").method.state_dict()
    assert torch.equal(predicting[name], last.tensors[f"average/{name}"])
    assert not torch.equal(predicting[name], last.tensors[f"model/{name}"])
    assert results["last"]["ece"] != plain["last"]["ece"]
    assert results["image_passes"] == plain["image_passes"]
    rows, others = ([row["top1"] for row in RunDir(tmp_path / name).read_metrics()] for name in ("run", "plain"))
    assert rows[0] == others[0], "until then the weights themselves are evaluated"


def test_a_skipped_last_step_of_an_epoch_costs_the_mean_no_point(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the epoch left is what its last good step left."""
    monkeypatch.setenv(VARIABLE, f"nan-loss@{2 * PER_EPOCH - 1}")
    name, points = "network.classifier.weight", []
    config = tiny_config("ce", tiny_npz, tmp_path / "run", optim={**SWA, "epochs": 3})
    for epoch in range(3):
        if epoch < 2:
            with pytest.raises(StoppedError):
                train(config, resume=True, listener=At((epoch + 1) * PER_EPOCH))
        else:
            train(config, resume=True)
        kept = RunDir(tmp_path / "run").load_checkpoint()
        assert kept is not None
        points.append(kept.tensors[f"model/{name}"])
    torch.testing.assert_close(kept.tensors[f"average/{name}"], torch.stack(points).mean(dim=0))


def test_a_finished_run_has_the_weights_of_the_mean_and_statistics_of_its_own(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny_config("ce", tiny_npz, tmp_path / "run", optim=SWA))
    monkeypatch.setattr(loop, "renew_statistics", lambda *given: None)
    train(tiny_config("ce", tiny_npz, tmp_path / "stale", optim=SWA))
    renewed, stale = (longtail.load(tmp_path / name).method.state_dict() for name in ("run", "stale"))
    for name, value in renewed.items():
        assert torch.equal(value, stale[name]) == ("running" not in name), name


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["optim.swa_start=0.5", "optim.ema=0.9"], "two averages"),
        (["optim.swa_start=1.0"], "none of the 60 epochs"),
        (["optim.epochs=20", "optim.swa_start=20"], "none of the 20 epochs"),
        (["optim.swa_start=0.5", "optim.swa_lr=0"], "greater than 0"),
    ],
)
def test_what_cannot_be_averaged_is_refused_by_its_key(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=r"optim\.swa_") as refused:
        load_config("scenes/ce", words)
    assert said in str(refused.value)
