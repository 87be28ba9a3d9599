"""How a trained network answers: each of ``test.*`` is its equation, and chooses on val alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from longtail import load
from longtail.api import evaluate_run, run_config
from longtail.config import METHOD_SETTINGS
from longtail.data.images import ImageSet
from longtail.data.views import build_view
from longtail.errors import ConfigError, DataError, RunError
from longtail.evaluation.scoring import (
    AS_TRAINED,
    EVALUATION_BATCH,
    EvaluationStoppedError,
    Scoring,
    ScoringSettings,
    balanced_accuracy,
    choose_scoring,
    fit_temperature,
    score,
)
from longtail.methods import METHODS, Method
from longtail.models.network import ModelSettings
from longtail.recipes import load_config
from longtail.rng import generator

COUNTS = [40, 10, 3]
LOG_PRIOR = torch.tensor([math.log(count / sum(COUNTS)) for count in COUNTS])
PLAIN = build_view("plain", 8, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))


def method(name: str = "ce", classifier: Any = "linear") -> Method:
    settings = METHOD_SETTINGS[name]()
    built = METHODS[name].build(
        settings, ModelSettings(backbone="resnet8", classifier=classifier), COUNTS, size=8, seed=0
    )
    with torch.no_grad():  # rows of clearly different lengths
        built.network.classifier.weight.mul_(torch.tensor([[3.0], [1.0], [0.2]]))
    return built


def images(number: int = 12) -> Tensor:
    return torch.randint(0, 256, (number, 3, 8, 8), generator=generator("scoring"), dtype=torch.uint8)


def found(scoring: Scoring, trained: Method, pixels: Tensor) -> Tensor:
    return score(trained, pixels, PLAIN, scoring, LOG_PRIOR)


def by_hand(trained: Method, pixels: Tensor, *, power: float = 0.0, bias: bool = True) -> list[list[float]]:
    """logits in loops: sum_d W_kd / |W_k|^power h_d + b_k."""
    trained.eval()
    with torch.no_grad():
        features = trained.network.features(PLAIN.apply(pixels, ())).double().tolist()
    rows = trained.network.classifier.weight.double().tolist()
    biases = trained.network.classifier.bias.double().tolist() if bias else [0.0] * len(rows)
    out = []
    for feature in features:
        scores = []
        for row, shift in zip(rows, biases, strict=True):
            length = math.sqrt(sum(value * value for value in row))
            scores.append(sum(w * h for w, h in zip(row, feature, strict=True)) / length**power + shift)
        out.append(scores)
    return out


def test_without_settings_the_logits_are_the_methods_own_bit_for_bit() -> None:
    trained, pixels = method(), images()
    trained.eval()
    with torch.no_grad():
        own = trained.logits(PLAIN.apply(pixels, ()))
    assert torch.equal(found(AS_TRAINED, trained, pixels), own)
    assert AS_TRAINED.described() == {}


@pytest.mark.parametrize("power", [0.3, 1.0, 2.0])
def test_tau_normalization_divides_each_row_by_a_power_of_its_length_and_drops_the_bias(power: float) -> None:
    trained, pixels = method(), images()
    expected = torch.tensor(by_hand(trained, pixels, power=power, bias=False))
    torch.testing.assert_close(found(Scoring(tau_norm=power), trained, pixels), expected, rtol=1e-4, atol=1e-5)


def test_a_row_of_zeros_survives_normalization() -> None:
    trained = method()
    with torch.no_grad():
        trained.network.classifier.weight[1] = 0
    assert torch.equal(found(Scoring(tau_norm=1.0), trained, images())[:, 1], torch.zeros(12))


def test_post_hoc_adjustment_subtracts_tau_times_the_log_prior() -> None:
    trained, pixels = method(), images()
    expected = [
        [value - 0.7 * math.log(count / sum(COUNTS)) for value, count in zip(row, COUNTS, strict=True)]
        for row in by_hand(trained, pixels)
    ]
    torch.testing.assert_close(found(Scoring(tau=0.7), trained, pixels), torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_a_flip_is_the_mean_of_the_logits_of_an_image_and_its_mirror() -> None:
    trained, pixels = method(), images()
    one, other = torch.tensor(by_hand(trained, pixels)), torch.tensor(by_hand(trained, pixels.flip(-1)))
    flipped = found(Scoring(flip=True), trained, pixels)
    torch.testing.assert_close(flipped, (one + other) / 2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found(Scoring(flip=True), trained, pixels.flip(-1)), flipped)
    assert not torch.allclose(flipped, one, atol=1e-3)


def test_the_temperature_divides_what_is_left_of_all_else() -> None:
    trained, pixels = method(), images()
    hot = Scoring(flip=True, tau_norm=0.5, tau=1.0, temperature=2.5)
    cold = Scoring(flip=True, tau_norm=0.5, tau=1.0)
    torch.testing.assert_close(found(hot, trained, pixels), found(cold, trained, pixels) / 2.5)


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_the_temperature_that_is_fitted_has_the_lowest_cross_entropy(scale: float) -> None:
    g = generator("temperature")
    logits, labels = scale * torch.randn(300, 4, generator=g), torch.randint(0, 4, (300,), generator=g)
    logits[torch.arange(300), labels] += scale
    fitted = fit_temperature(logits, labels)

    def loss(temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits.double() / temperature, labels))

    assert 0.05 < fitted < 20
    assert all(loss(fitted) <= loss(fitted * factor) for factor in (0.9, 0.99, 1.01, 1.1))
    assert fitted == pytest.approx(scale * fit_temperature(logits / scale, labels), rel=1e-4)


def test_a_temperature_stays_within_its_bounds_where_the_loss_has_no_minimum() -> None:
    labels = torch.tensor([0, 1, 2])
    assert fit_temperature(torch.eye(3), labels) == pytest.approx(0.05)
    assert fit_temperature(torch.eye(3)[[1, 2, 0]], labels) == pytest.approx(20)


def test_balanced_accuracy_is_the_mean_over_the_classes_that_have_images() -> None:
    scores = torch.eye(4)[[0, 0, 0, 1, 2]]
    assert balanced_accuracy(scores, torch.tensor([0, 0, 1, 1, 2])) == pytest.approx((1 + 0.5 + 1) / 3)


def val_of(trained: Method, favored: Scoring) -> ImageSet:
    """Images whose labels are what ``favored`` answers, so that it alone is right about all."""
    pixels = images(200)
    labels = found(favored, trained, pixels).argmax(dim=1)
    return ImageSet(pixels, labels, torch.arange(len(labels)))


@pytest.mark.parametrize(
    ("settings", "favored"),
    [
        ({"tau_norm": "val"}, Scoring(tau_norm=0.6)),
        ({"tau": "val"}, Scoring(tau=0.4)),
        ({"tau": "val", "flip": True}, Scoring(tau=0.4, flip=True)),
        ({"tau": "val", "tau_norm": 0.6}, Scoring(tau=0.3, tau_norm=0.6)),
    ],
)
def test_what_is_chosen_is_as_good_on_val_as_what_made_its_labels(settings: dict[str, Any], favored: Scoring) -> None:
    trained = method()
    val = val_of(trained, favored)
    assert len(val.labels.unique()) > 1, "or every choice were right"
    chosen = choose_scoring(ScoringSettings.model_validate(settings), trained, val, PLAIN, COUNTS)
    assert balanced_accuracy(found(chosen, trained, val.images), val.labels) == 1.0
    assert balanced_accuracy(found(AS_TRAINED, trained, val.images), val.labels) < 1.0
    kept = {name: value for name, value in settings.items() if value != "val"}
    assert {name: getattr(chosen, name) for name in kept} == kept


def test_the_temperature_is_chosen_after_the_rest() -> None:
    trained = method()
    val = val_of(trained, Scoring(tau=0.4))
    settings = ScoringSettings.model_validate({"tau": "val", "temperature": "val"})
    chosen = choose_scoring(settings, trained, val, PLAIN, COUNTS)
    logits = found(Scoring(tau=chosen.tau), trained, val.images)
    assert chosen.temperature == pytest.approx(fit_temperature(logits, val.labels))
    assert chosen.temperature != 1


def test_numbers_are_taken_as_they_are_without_looking_at_any_image() -> None:
    settings = ScoringSettings(flip=True, tau=0.5, temperature=2.0)
    assert choose_scoring(settings, method(), None, PLAIN, COUNTS) == Scoring(flip=True, tau=0.5, temperature=2.0)


def test_a_choice_without_val_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"test\.tau=val needs images"):
        choose_scoring(ScoringSettings(tau="val"), method(), None, PLAIN, COUNTS)


@pytest.mark.parametrize("power", [1.0, "val"])
def test_a_classifier_without_lengths_is_not_normalized(power: Any) -> None:
    with pytest.raises(ConfigError, match=r"test\.tau_norm=.* needs a linear classifier"):
        ScoringSettings(tau_norm=power).check(method(classifier="cosine"))
    ScoringSettings(tau_norm=power).check(method())


@pytest.mark.parametrize(
    ("key", "value"),
    [("tau", -0.1), ("tau_norm", -1), ("temperature", 0), ("temperature", "test"), ("tau", math.inf), ("flip", "val")],
)
def test_a_setting_outside_its_range_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"test\.{key}"):
        load_config("scenes/ce", {"test": {key: value}})


def test_the_mode_of_the_method_comes_back_and_a_stop_is_heard_between_batches() -> None:
    trained = method().train()
    pixels = images(EVALUATION_BATCH + 1)
    answers = iter([False, True])
    with pytest.raises(EvaluationStoppedError):
        score(trained, pixels, PLAIN, AS_TRAINED, LOG_PRIOR, lambda: next(answers))
    assert trained.training
    assert not score(trained, images(), PLAIN, AS_TRAINED, LOG_PRIOR).requires_grad


CHOOSING = {"flip": True, "tau_norm": "val", "tau": "val", "temperature": "val"}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_npz(tmp_path_factory.mktemp("scoring") / "tiny.npz", val=5)


@pytest.fixture(scope="module")
def finished(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scoring") / "run"
    run_config(tiny.tiny_config("ce", archive, folder, test=CHOOSING))
    return folder


def test_a_run_answers_and_predicts_as_its_settings_have_it(finished: Path, archive: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    again = evaluate_run(finished)
    evaluation, notes = again.evaluation, again.notes
    assert evaluation.numbers()["top1"] == results["last"]["top1"]
    assert evaluation.scoring.described() == results["last"]["test"]
    assert "chosen on val" in notes[-1]
    for which in ("last", "best"):
        model = load(finished, which=which)
        assert model.scoring == Scoring(**results[which]["test"])
    pixels = np.load(archive)["test_images"]
    assert torch.equal(torch.from_numpy(load(finished).predict(pixels)), torch.from_numpy(evaluation.probabilities))


def test_the_weights_do_not_depend_on_how_they_are_tested(finished: Path, archive: Path, tmp_path: Path) -> None:
    run_config(tiny.tiny_config("ce", archive, tmp_path / "plain"))
    mine, other = (load(folder).method.state_dict() for folder in (finished, tmp_path / "plain"))
    assert all(torch.equal(value, other[name]) for name, value in mine.items())
    assert "test" not in json.loads((tmp_path / "plain" / "results.json").read_text())["last"]


def test_a_run_can_be_evaluated_with_other_answers(finished: Path) -> None:
    plain = evaluate_run(finished, settings={"test": {"flip": False, "tau_norm": 0, "tau": 0, "temperature": 1}})
    assert plain.evaluation.scoring == AS_TRAINED
    assert not any("answers with" in note for note in plain.notes)
    assert plain.verdict == "", "other answers are not compared with the run's"
    adjusted = evaluate_run(finished, settings={"test": {"tau": 1.5, "temperature": 1}})
    assert adjusted.evaluation.scoring.tau == 1.5
    assert "test.tau=1.5" in adjusted.notes[-1]
    assert "test.tau=1.5 (chosen" not in adjusted.notes[-1]


def test_nothing_is_chosen_on_images_that_are_reported(tmp_path: Path) -> None:
    archive = tiny.write_npz(tmp_path / "without_val.npz")
    with pytest.raises(DataError, match=r"test\.temperature=val needs val images"):
        run_config(tiny.tiny_config("ce", archive, tmp_path / "run", test={"temperature": "val"}))
    assert not (tmp_path / "run").exists()
    run_config(tiny.tiny_config("ce", archive, tmp_path / "run"))
    with pytest.raises(DataError, match=r"test\.tau=val needs val images"):
        evaluate_run(tmp_path / "run", settings={"test": {"tau": "val"}})


def test_a_run_that_has_not_chosen_yet_does_not_predict(finished: Path) -> None:
    model = load(finished)
    model.folder = finished / "elsewhere"
    with pytest.raises(RunError, match="has not finished"):
        model.predict(images(2))


def test_tau_norm_is_a_recipe_of_cross_entropy_that_is_tested_with_rows_of_length_one() -> None:
    config = load_config("scenes/tau-norm")
    assert config.test.tau_norm == 1.0
    assert config.method == METHOD_SETTINGS["tau-norm"]()
    assert METHODS["tau-norm"].defaults == METHODS["ce"].defaults
    assert load_config("scenes/ce").test == ScoringSettings()


def test_the_key_of_a_configuration_counts_how_it_is_tested() -> None:
    plain, flipped = load_config("scenes/ce"), load_config("scenes/ce", {"test": {"flip": True}})
    assert plain.key() != flipped.key()
