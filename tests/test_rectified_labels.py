"""What rectification does to labels."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import tiny
from longtail.api import Run, run_config
from longtail.errors import ConfigError
from longtail.explain import label_effect, rectification_effect
from longtail.explain.backgrounds import finished_model
from longtail.explain.labels import _mixed
from longtail.methods import Batch, Progress, StepOutput
from longtail.methods.concutmix import ConCutMix
from longtail.methods.mixings import soft_target
from longtail.rng import generator
from longtail.study import read_study
from longtail.study.cells import study_cells
from longtail.training.state import RunState

NO_BETTER = {"balanced_accuracy": 0}


def test_each_number_of_a_label_is_its_sum_in_loops() -> None:
    g = generator("label effect")
    features, centers = torch.randn(7, 3, generator=g), torch.randn(5, 3, generator=g)
    gallery, gallery_labels = torch.randn(11, 3, generator=g), torch.randint(0, 5, (11,), generator=g)
    pairs = [(0, 1), (2, 2), (3, 4), (1, 4), (0, 4), (2, 3), (1, 0)]
    lam = torch.rand(7, generator=g).tolist()
    area = torch.zeros(7, 5)
    for row, ((one, other), share) in enumerate(zip(pairs, lam, strict=True)):
        area[row, one] += share
        area[row, other] += 1 - share
    counts, scale, topk = [50, 20, 10, 5, 2], 3.0, 2
    found = label_effect(features, centers, area, counts, gallery, gallery_labels, scale=scale, topk=topk)
    for row in range(7):
        u = features[row].tolist()
        near = [math.dist(u, image) for image in gallery.tolist()]
        c = int(gallery_labels[near.index(min(near))])
        distances = [math.dist(u, center) for center in centers.tolist()]
        kept = sorted(range(5), key=distances.__getitem__)[:topk]
        total = sum(1 / distances[k] for k in kept)
        q = [1 / distances[k] / total if k in kept else 0.0 for k in range(5)]
        t = area[row].tolist()
        mass = sum(n * share for n, share in zip(counts, t, strict=True))
        gamma = min(1.0, scale * math.log(mass) / sum(math.log(n) for n in counts))
        moved = [gamma * a + (1 - gamma) * b for a, b in zip(q, t, strict=True)]
        expected = {
            "gamma": gamma,
            "moved": sum(abs(a - b) for a, b in zip(moved, t, strict=True)) / 2,
            "outside": sum(a for a, b in zip(moved, t, strict=True) if b == 0),
            "semantic_outside": sum(a for a, b in zip(q, t, strict=True) if b == 0),
            "neighbor_in_pair": float(t[c] > 0),
            "semantic_agrees": float(q.index(max(q)) == c),
            "area_agrees": float(t.index(max(t)) == c),
            "rectified_agrees": float(moved.index(max(moved)) == c),
            "semantic_mass": q[c],
            "area_mass": t[c],
            "rectified_mass": moved[c],
        }
        assert {name: float(value[row]) for name, value in found.items()} == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_finished_run_tells_what_its_rectification_did(finished_run: Run) -> None:
    told = rectification_effect(finished_run.path)
    assert told["omega"] == pytest.approx(4 / 1275)
    assert told["images"] % 1 == 0
    assert 0 < told["images"] <= 21
    assert 0 < told["all"]["gamma"] < 4 / 1275
    # No mass leaves an image's pair but that which gamma gives to the semantic label.
    assert told["all"]["outside"] <= told["all"]["gamma"]
    assert rectification_effect(finished_run.path, omega=0.0)["all"]["moved"] == 0
    strong = rectification_effect(finished_run.path, omega=1e9)["all"]
    assert strong["gamma"] == 1
    assert strong["rectified_mass"] == pytest.approx(strong["semantic_mass"])


def test_what_is_told_is_of_the_last_epoch_that_a_run_had_and_of_its_micro_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[torch.Tensor] = []
    forward = ConCutMix.forward

    def watched(method: ConCutMix, batch: Batch, at: Progress) -> StepOutput:
        classes = len(method.counts)
        mixed = method.mixing(batch.views[0], soft_target(batch.target, classes), batch.partner, at)
        if at.epoch == 1 and mixed.box is not None:
            ran.append(mixed.target)
        return forward(method, batch, at)

    improves = RunState.improves
    with monkeypatch.context() as patch:
        patch.setattr(ConCutMix, "forward", watched)
        patch.setattr(RunState, "improves", lambda state, epoch, numbers: improves(state, epoch, numbers | NO_BETTER))
        data = tiny.write_npz(tmp_path / "data.npz", val=2)
        own = {"epochs": 7, "patience": 1, "accumulate": 2}
        run = run_config(tiny.tiny_config("concutmix", data, tmp_path / "run", optim=own))
    model, prepared = finished_model(run.path)
    assert isinstance(model.method, ConCutMix)
    _, labels = _mixed(model.method, model, prepared)
    assert 0 < len(torch.cat(ran)) < 21, "some micro-batches are mixed, and some are not"
    assert torch.equal(labels, torch.cat(ran))


def test_a_run_that_rectifies_nothing_is_refused(tmp_path: Path, tiny_npz: Path) -> None:
    run_config(tiny.tiny_config("ce", tiny_npz, tmp_path / "ce"))
    with pytest.raises(ConfigError, match="rectifies no labels"):
        rectification_effect(tmp_path / "ce")


def test_the_shipped_study_rectifies_with_six_strengths() -> None:
    shipped = read_study(Path(__file__).parents[1] / "studies" / "omega-cifar100.yaml", {"data": {"path": "x.npz"}})
    cells = study_cells(shipped, Path("out"))
    omegas = {cell.labels[0]: cell.config.method.omega for cell in cells}  # type: ignore[attr-defined]
    assert omegas["omega 0"] == 0
    assert omegas["authors"] == pytest.approx(20 / 255)
    assert len(shipped.seeds) >= 3
