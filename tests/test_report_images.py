"""The part of the report that reads images and weights again: what it shows is what the run did."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from longtail.api import Run, run_config
from longtail.data.batch import Batch
from longtail.evaluation.scoring import evaluating
from longtail.explain.backgrounds import finished_model
from longtail.methods.concutmix import ConCutMix
from longtail.methods.smcl import SMCL
from longtail.mixing import erase
from longtail.report import remaking, write_report
from longtail.report.findings import confusions
from longtail.report.folder import read_run
from longtail.report.images import Shot, data_uri, edges_of, gray, visible
from longtail.report.measured import feature_space, hard_images, measure, pair_images
from longtail.report.remaking import Remade, Shown, label_bars, remake
from longtail.report.samples import masked_boxes, show_method
from longtail.training.optim import build_optimizer
from longtail.training.state import RunState
from longtail.training.updating import update
from test_report import fake_run
from tiny import tiny_config, write_npz

Trained = Callable[..., Run]


@pytest.fixture(scope="module")
def trained(tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A finished tiny run of a method with these settings; the same one for the same words."""
    kept: dict[str, Run] = {}

    def run(method: str, **settings: Any) -> Run:
        words = f"{method} {settings}"
        if words not in kept:
            folder = tmp_path_factory.mktemp("runs") / "run"
            kept[words] = run_config(tiny_config(method, tiny_npz, folder, method=settings))
        return kept[words]

    return run


def remade(run: Run) -> Remade:
    model, data = finished_model(run.path)
    return remake(model, data, read_run(run.path).classes)


def pixels_of(uri: str) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


ALWAYS = {"mix_probability": 1.0}
ALWAYS_MASKED = {"mask_probability": 1.0, "mask_start": 0}


@pytest.mark.parametrize(
    ("method", "settings", "shots", "titles"),
    [
        ("concutmix", ALWAYS, 3, ["area label", "rectified label"]),
        ("smcl-concutmix", ALWAYS, 4, ["area label", "rectified label"]),
        ("smcl-concutmix", ALWAYS | {"place": "random", "mu": 0.0}, 3, ["area label", "rectified label"]),
        ("smcl", {"mask_probability": 1.0, "mask_start": 0}, 4, ["label"]),
        ("smcl", {"mask_probability": 1.0, "mask_start": 0, "detector": "random"}, 2, ["label"]),
        ("smcl", {"mask_probability": 1.0, "mask_start": 0, "detector": "grad-cam"}, 2, ["label"]),
        ("smcl", {"mask_probability": 0.0}, 2, []),
        ("ce", {"mixing": "cutmix", **ALWAYS}, 3, ["label"]),
        ("ce", {"mixing": "mixup", **ALWAYS}, 3, ["label"]),
        ("ce", {"mixing": "saliencymix", **ALWAYS}, 3, ["label"]),
        ("ce", {}, 2, []),
        ("bcl", {}, 4, []),
        ("paco", {"queue": 8}, 3, []),
    ],
)
def test_every_kind_of_method_shows_what_it_did(
    trained: Trained, method: str, settings: dict[str, Any], shots: int, titles: list[str]
) -> None:
    run = trained(method, **settings)
    made = measure(read_run(run.path), [])
    assert made.notes == []
    assert isinstance(made.shown, Shown)
    assert 1 <= len(made.shown.examples) <= 6
    for example in made.shown.examples:
        assert len(example.shots) == shots
        assert [bars.title.partition(":")[0] for bars in example.bars] == titles
        for bars in example.bars:
            assert sum(weight for _, weight in bars.rows) + bars.rest == pytest.approx(1)
            assert [weight for _, weight in bars.rows] == sorted((w for _, w in bars.rows), reverse=True)
    assert 'svg class="chart space"' in run.report.read_text()


def test_the_box_that_is_shown_is_the_one_that_was_erased(trained: Trained) -> None:
    run = remade(trained("smcl", mask_probability=1.0, mask_start=0))
    method = run.model.method
    assert isinstance(method, SMCL)
    at = next(run.late_steps())
    batch = run.loader.batch(at.step, with_partner=True)
    with evaluating(method):
        boxes, peaks = masked_boxes(method, batch, at)
        masked = method.mask(batch, at)
    assert batch.peaks is not None
    torch.testing.assert_close(peaks, batch.peaks)
    torch.testing.assert_close(masked.images, erase(batch.views[0], boxes))
    assert len({tuple(box) for box in boxes.tolist()}) > 1


def test_the_mixed_image_holds_the_foreground_inside_its_box_and_the_background_outside(trained: Trained) -> None:
    run = remade(trained("concutmix", **ALWAYS, mix_alpha=2.0))
    assert isinstance(run.model.method, ConCutMix)
    for example in show_method(run).examples:
        background, foreground, mixed = example.shots
        assert mixed.box is not None
        top, bottom, left, right = mixed.box
        assert (top, bottom) != (left, right), "or the order of the edges would not matter"
        expected = background.pixels.clone()
        expected[:, top:bottom, left:right] = foreground.pixels[:, top:bottom, left:right]
        assert torch.equal(mixed.pixels, expected)
        share = 1 - (bottom - top) * (right - left) / expected[0].numel()
        names = {row.name: weight for row, weight in example.bars[0].rows}
        own, other = background.caption, foreground.caption
        assert names[own] == pytest.approx(1.0 if own == other else share)


def test_the_batch_that_is_shown_is_of_the_last_steps_and_the_weights_stay_in_their_mode(trained: Trained) -> None:
    run = remade(trained("concutmix", **ALWAYS))
    last = run.loader.steps_per_epoch * run.model.config.optim.epochs - 1
    assert next(run.late_steps()).step == last
    assert len(list(run.late_steps())) == last + 1
    before = {name: value.clone() for name, value in run.model.method.state_dict().items()}
    show_method(run)
    assert all(torch.equal(before[name], value) for name, value in run.model.method.state_dict().items())


def test_a_run_that_ended_early_shows_a_batch_that_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    improves = RunState.improves
    monkeypatch.setattr(
        RunState, "improves", lambda state, epoch, numbers: improves(state, epoch, numbers | {"balanced_accuracy": 0})
    )
    data = write_npz(tmp_path / "data.npz", val=2)
    run = run_config(tiny_config("concutmix", data, tmp_path / "run", optim={"epochs": 9, "patience": 1}))
    made = remade(run)
    assert run.results["epochs"] == 2
    assert next(made.late_steps()).epoch == 1
    assert len(list(made.late_steps())) == 2 * made.loader.steps_per_epoch


def test_a_run_that_mixed_long_before_its_end_shows_what_it_mixed(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last third of a run may be unmixed, and longer than the steps that are looked at one by one."""
    own = {"mix_probability": 1.0, "mix_start": 0, "mix_stop": 1}
    run = remade(run_config(tiny_config("cmo", tiny_npz, tmp_path / "run", method=own, optim={"epochs": 4})))
    monkeypatch.setattr(remaking, "LOOKED_AT", 2)
    assert [at.step for at in run.late_steps()] == [11, 10, 9, 6, 3, 0]
    shown = show_method(run)
    assert "of step 0" in shown.sentence
    assert "Images are not mixed" not in shown.sentence


def test_of_a_run_that_mixes_nothing_it_is_said(tiny_npz: Path, tmp_path: Path) -> None:
    own = {"mix_probability": 0.0}
    found = []
    for method, settings in (("ce", {}), ("cmo", own)):
        run = run_config(tiny_config(method, tiny_npz, tmp_path / method, method=settings))
        found.append(show_method(remade(run)).sentence.split(".")[0])
    assert found == ["Images are not mixed", "No step that mixes images was found"]


def test_of_a_batch_in_parts_the_first_is_shown_with_the_draws_that_it_had(tiny_npz: Path, tmp_path: Path) -> None:
    optim = {"accumulate": 2}
    run = remade(run_config(tiny_config("smcl", tiny_npz, tmp_path / "run", method=ALWAYS_MASKED, optim=optim)))
    at = run.loader.progress(0)
    whole, part = run.loader.batch(0, with_partner=True), run.batch(at, with_partner=True)
    assert torch.equal(part.index, whole.index[:4])
    seen: list[Batch] = []
    run.model.method.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    settings = run.model.config.optim
    update(run.model.method, build_optimizer(run.model.method, settings), whole, at, 0.0, settings)
    assert torch.equal(seen[0].views[0], part.views[0])
    assert len(seen) == 2


def test_hard_and_confused_images_are_those_of_the_predictions(trained: Trained) -> None:
    folder = trained("ce").path
    run, (_, data) = read_run(folder), finished_model(folder)
    assert run.predictions is not None
    wrong = np.flatnonzero(~run.predictions.correct)
    surest = max(wrong.tolist(), key=lambda i: run.predictions.confidence[i] if run.predictions else 0)
    first = hard_images(run, data)[0]
    target, called = (run.classes[k[surest]].name for k in (run.predictions.targets, run.predictions.predicted))
    assert torch.equal(first.pixels, data.evaluation.images[surest])
    assert first.caption.startswith(f"{target} → {called}, ")
    found = confusions(run)
    for pair in found:
        test, train = pair_images(run, data, found)[pair.target.index, pair.predicted.index]
        places = [i for i, pixels in enumerate(data.evaluation.images) if torch.equal(pixels, test.pixels)]
        assert any(
            run.predictions.targets[i] == pair.target.index and run.predictions.predicted[i] == pair.predicted.index
            for i in places
        )
        same = [i for i, pixels in enumerate(data.train.images) if torch.equal(pixels, train.pixels)]
        assert pair.predicted.index in data.train.labels[same].tolist()


@pytest.mark.parametrize("method", ["ce", "concutmix"])
def test_the_feature_space_keeps_most_variance_and_has_the_means_or_the_learned_centers(
    trained: Trained, method: str
) -> None:
    model, data = finished_model(trained(method).path)
    space = feature_space(model, data)
    assert space.places.shape == (len(data.evaluation), 2)
    assert 0 < space.share <= 1 + 1e-9
    np.testing.assert_allclose(space.places.mean(axis=0), 0, atol=1e-5)
    means = [space.places[space.labels == k].mean(axis=0) for k in range(len(model.class_names))]
    assert np.allclose(space.centers, means, atol=1e-5) == (method == "ce")
    assert ("learned" in space.center) == (method == "concutmix")


@pytest.mark.parametrize("method", ["ce", "concutmix"])
def test_a_run_with_one_evaluated_image_has_its_page(method: str, tmp_path: Path) -> None:
    """One image spans no plane."""
    one = np.zeros((1, 8, 8, 3), np.uint8)
    archive = write_npz(tmp_path / "one.npz", test_images=one, test_labels=np.zeros(1, np.int64))
    assert run_config(tiny_config(method, archive, tmp_path / "run")).report.is_file()


def test_images_that_are_gone_or_changed_are_a_sentence_on_the_page(
    trained: Trained, tiny_npz: Path, tmp_path: Path
) -> None:
    run = trained("ce")
    config = run.path / "config.yaml"
    before = config.read_text()
    try:
        config.write_text(before.replace(str(tiny_npz), str(tmp_path / "moved.npz")))
        page = write_report(run.path, tmp_path / "page.html").read_text()
        assert "Images and feature space cannot be shown. There is nothing at" in page
        assert "<img" not in page
    finally:
        config.write_text(before)
    changed = dict(np.load(tiny_npz))
    name = next(key for key in changed if key.startswith("train") and changed[key].ndim > 2)
    changed[name] = 255 - changed[name]
    np.savez(tmp_path / "moved.npz", **changed)
    try:
        config.write_text(before.replace(str(tiny_npz), str(tmp_path / "moved.npz")))
        page = write_report(run.path, tmp_path / "page.html").read_text()
        assert "are not those that it was trained and evaluated on" in page
    finally:
        config.write_text(before)


def test_images_that_came_from_python_are_one_sentence_on_the_page(tmp_path: Path) -> None:
    path = fake_run(tmp_path / "run", counts=[30, 8])
    results = json.loads((path / "results.json").read_text())
    (path / "results.json").write_text(json.dumps(results | {"dataset": "arrays"}))
    assert measure(read_run(path), []).notes == [
        "The images came from Python and are not in the run folder: the page is without pictures."
    ]


def test_a_part_that_fails_is_a_sentence_and_the_others_stand(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(run: Remade) -> Shown:
        raise RuntimeError("no such thing\nand more")

    monkeypatch.setattr("longtail.report.measured.show_method", broken)
    made = measure(read_run(trained("ce").path), [])
    assert made.notes == ["What the method did cannot be shown. RuntimeError: no such thing"]
    assert made.hard
    assert made.space is not None


def test_pictures_are_the_pixels_and_large_ones_are_made_smaller(trained: Trained) -> None:
    run = remade(trained("ce"))
    images = run.data.train.images[:4]
    assert torch.equal(visible(run.model.view.apply(images, ()), run.model.view), images)
    np.testing.assert_array_equal(pixels_of(data_uri(images[0])), images[0].permute(1, 2, 0).numpy())
    assert pixels_of(data_uri(torch.zeros(3, 300, 150, dtype=torch.uint8))).shape == (96, 48, 3)
    ramp = gray(torch.tensor([[0.25, 0.5], [0.75, 0.25]]))
    assert ramp[0].tolist() == [[0, 128], [255, 0]]
    assert gray(torch.ones(2, 2)).max() == 0


def test_a_box_and_a_peak_are_drawn_where_they_are_and_captions_stay_text() -> None:
    shot = Shot(torch.zeros(3, 8, 8, dtype=torch.uint8), "<b>", "<i>'\"", box=(2, 6, 0, 8), peak=(3, 7))
    markup = str(shot.markup())
    assert "top:25%;height:50%;left:0%;width:100%" in markup
    assert "top:43.75%;left:93.75%" in markup
    assert "<b>" not in markup
    assert "<i>" not in markup
    assert edges_of((3, 3, 0, 5)) is None
    assert edges_of(torch.tensor([1, 2, 3, 4])) == (1, 2, 3, 4)


def test_a_label_shows_its_largest_classes_and_the_rest_in_one(trained: Trained) -> None:
    classes = read_run(trained("ce").path).classes
    bars = label_bars("x", torch.tensor([0.1, 0.6, 0.0, 0.3]), classes, most=2)
    assert [(row.index, round(weight, 6)) for row, weight in bars.rows] == [(1, 0.6), (3, 0.3)]
    assert bars.rest == pytest.approx(0.1)
