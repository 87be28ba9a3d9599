"""What masks hit and what backgrounds vote for: checked with loops, and on pictures whose answer is known."""

from __future__ import annotations

import json
import math
import runpy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from longtail.api import Run
from longtail.data.images import ImageSet
from longtail.data.sources.scenes import load_scenes
from longtail.data.views import View, build_view
from longtail.errors import ConfigError, DataError, RunError
from longtail.explain import (
    background_neighbors,
    background_votes,
    group_votes,
    mask_hits,
    masked_backgrounds,
    object_boxes,
    object_removed,
    peak_hits,
    peaks_in_boxes,
    salient_peaks,
)
from longtail.mixing import boxes_around, draw_beta
from longtail.models.network import ModelSettings, Network
from longtail.prediction.predict import load
from longtail.rng import generator
from longtail.saliency.detectors import DETECTORS
from tiny import write_npz

STUDY = runpy.run_path(str(Path(__file__).resolve().parents[1] / "benchmarks" / "saliency_study.py"))
SIDE = 12


def random_masks(count: int, *key: str | int, density: float = 0.1) -> Tensor:
    """Masks (count, 9, 7) with at least one pixel each."""
    drawn = generator("masks", *key)
    masks = torch.rand(count, 9, 7, generator=drawn) < density
    rows, columns = (torch.randint(side, (count,), generator=drawn) for side in (9, 7))
    masks[torch.arange(count), rows, columns] = True
    return masks


def random_boxes(count: int, *key: str | int) -> Tensor:
    """Boxes within 9 x 7 pixels, some of them empty."""
    drawn = generator("boxes", *key)
    rows = torch.randint(10, (count, 2), generator=drawn).sort(1).values
    columns = torch.randint(8, (count, 2), generator=drawn).sort(1).values
    return torch.cat((rows, columns), dim=1)


def spots(count: int = 12) -> ImageSet:
    """Gray images with one white square of 3 pixels, in two classes by turns; its mask."""
    images = torch.full((count, 3, SIDE, SIDE), 120, dtype=torch.uint8)
    masks = torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
    for i, (top, left) in enumerate(torch.randint(SIDE - 2, (count, 2), generator=generator("spots")).tolist()):
        masks[i, top : top + 3, left : left + 3] = True
        images[i, :, top : top + 3, left : left + 3] = 255
    return ImageSet(images, torch.arange(count) % 2, torch.arange(count), masks=masks)


def plain(size: int) -> View:
    return build_view("plain", size, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))


# Boxes, peaks and objects ---------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6))
def test_the_box_of_an_object_holds_all_its_pixels_and_each_edge_touches_one(seed: int) -> None:
    masks = random_masks(4, seed)
    for mask, box in zip(masks, object_boxes(masks).tolist(), strict=True):
        on = [(r, c) for r in range(9) for c in range(7) if mask[r, c]]
        rows, columns = [r for r, _ in on], [c for _, c in on]
        assert box == [min(rows), max(rows) + 1, min(columns), max(columns) + 1]


@given(st.integers(0, 10**6))
def test_hits_and_removed_shares_agree_with_loops(seed: int) -> None:
    masks, boxes = random_masks(4, seed, density=0.3), random_boxes(4, seed)
    drawn = generator("peaks", seed)
    peaks = torch.stack([torch.randint(side, (4,), generator=drawn) for side in (9, 7)], dim=1)
    removed, hit, inside = object_removed(masks, boxes), peak_hits(peaks, masks), peaks_in_boxes(peaks, boxes)
    assert (removed.dtype, hit.dtype, inside.dtype) == (torch.float32, torch.bool, torch.bool)
    for i in range(4):
        top, bottom, left, right = boxes[i].tolist()
        row, column = peaks[i].tolist()
        on = [(r, c) for r in range(9) for c in range(7) if masks[i, r, c]]
        covered = [(r, c) for r, c in on if top <= r < bottom and left <= c < right]
        assert removed[i].item() == pytest.approx(len(covered) / len(on))
        assert hit[i].item() == ((row, column) in on)
        assert inside[i].item() == (top <= row < bottom and left <= column < right)


def test_the_box_of_the_object_removes_all_of_it_and_an_empty_box_nothing() -> None:
    masks = random_masks(6, "limits")
    assert object_removed(masks, object_boxes(masks)).tolist() == [1.0] * 6
    assert object_removed(masks, torch.zeros(6, 4, dtype=torch.int64)).tolist() == [0.0] * 6


def test_an_image_without_an_object_is_refused_by_its_number() -> None:
    masks = random_masks(3, "refused")
    masks[1] = False
    boxes, peaks = torch.zeros(3, 4, dtype=torch.int64), torch.zeros(3, 2, dtype=torch.int64)
    for ask in (lambda: object_boxes(masks), lambda: object_removed(masks, boxes), lambda: peak_hits(peaks, masks)):
        with pytest.raises(DataError, match="image 1 "):
            ask()


def test_shapes_that_do_not_fit_are_refused() -> None:
    masks, boxes = random_masks(3, "shapes"), random_boxes(3, "shapes")
    peaks = torch.zeros(3, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="masks must be bool"):
        object_boxes(masks.float())
    with pytest.raises(ValueError, match="boxes must be"):
        object_removed(masks, boxes[:2])
    with pytest.raises(ValueError, match="peaks must be"):
        peak_hits(peaks[:2], masks)
    with pytest.raises(ValueError, match="peaks and boxes must be"):
        peaks_in_boxes(peaks, boxes[:2])


# Detectors ------------------------------------------------------------------------------------------------------------


def small_network() -> Network:
    return Network(ModelSettings(backbone="resnet8"), 2, seed=0, size=SIDE).eval()


@pytest.mark.parametrize("detector", sorted(set(DETECTORS) - {"learned", "attention-rollout"}))
def test_every_detector_gives_peaks_within_the_image_and_the_same_again(detector: str) -> None:
    if detector.startswith("opencv"):
        pytest.importorskip("cv2")
    images, network = spots(), small_network()
    found = [salient_peaks(detector, images, draws=3, network=network, view=plain(SIDE)) for _ in range(2)]
    assert (found[0].shape, found[0].dtype) == ((3, len(images), 2), torch.int64)
    assert bool(((found[0] >= 0) & (found[0] < SIDE)).all())
    assert torch.equal(*found)


def test_only_what_is_drawn_differs_between_draws() -> None:
    images = spots()
    for detector, ties, differs in (
        ("random", "first", True),
        ("center", "first", False),
        ("ground-truth", "first", False),
        ("fine-grained", "first", False),
        ("fine-grained", "random", True),
    ):
        first, second = salient_peaks(detector, images, draws=2, ties=ties)
        assert bool((first != second).any()) == differs, (detector, ties)


def test_a_network_detector_is_asked_about_normalized_images_and_their_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    images, network, asked = spots(), small_network(), []

    def remembered(given: Network, pixels: Tensor, labels: Tensor) -> Tensor:
        asked.append((given, pixels, labels))
        return pixels[:, 0]

    entry = DETECTORS["grad-cam"]
    monkeypatch.setitem(DETECTORS, "grad-cam", type(entry)("network", "", "", "", network_maps=remembered))
    peaks = salient_peaks("grad-cam", images, network=network, view=plain(SIDE))[0]
    assert asked[0][0] is network
    assert torch.equal(asked[0][1], plain(SIDE).apply(images.images, ()))
    assert torch.equal(asked[0][2], images.labels)
    assert images.masks is not None
    assert bool(peak_hits(peaks, images.masks).all()), "the white square is the largest"


def test_what_a_detector_needs_is_asked_for() -> None:
    images = spots()
    with pytest.raises(ConfigError, match="fine-grained"):
        salient_peaks("fine-graned", images)
    with pytest.raises(ConfigError, match="finished run"):
        salient_peaks("grad-cam", images)
    without = ImageSet(images.images, images.labels, images.source_index)
    with pytest.raises(DataError, match="no object masks"):
        salient_peaks("ground-truth", without)
    with pytest.raises(DataError, match="no object masks"):
        mask_hits(without, torch.zeros(1, 12, 2, dtype=torch.int64), {})


def test_hits_of_a_set_and_of_a_group_are_means_over_draws_and_images() -> None:
    images, draws = spots(), 3
    assert images.masks is not None
    peaks = salient_peaks("random", images, draws=draws)
    found = mask_hits(images, peaks, {"odd": [1], "none": []}, alpha=0.7)
    assert set(found) == {"all", "odd"}, "a group without images has no row"
    for group, rows in (("all", range(12)), ("odd", range(1, 12, 2))):
        own = found[group]
        assert own["images"] == len(rows)
        for edge in ("clip", "shift"):
            removed, erased, on, within = [], [], [], []
            for draw in range(draws):
                lam = draw_beta(12, 0.7, generator("explain", "lambda", draw)).float()
                boxes = boxes_around(peaks[draw], lam, SIDE, at_edge=edge).tolist()
                for i in rows:
                    top, bottom, left, right = boxes[i]
                    mask = images.masks[i]
                    removed.append(float(mask[top:bottom, left:right].sum()) / 9)
                    erased.append((bottom - top) * (right - left) / SIDE**2)
                    row, column = peaks[draw, i].tolist()
                    on.append(bool(mask[row, column]))
                    within.append(bool(mask[row].any()) and bool(mask[:, column].any()))
            assert own[edge]["object_removed"] == pytest.approx(sum(removed) / len(removed))
            assert own[edge]["area_erased"] == pytest.approx(sum(erased) / len(erased))
            assert own["peak_on_object"] == pytest.approx(sum(on) / len(on))
            assert own["peak_in_object_box"] == pytest.approx(sum(within) / len(within))


def test_ground_truth_hits_every_square() -> None:
    images = spots()
    found = mask_hits(images, salient_peaks("ground-truth", images), {})
    assert found["all"]["peak_on_object"] == found["all"]["peak_in_object_box"] == 1.0


# Backgrounds ----------------------------------------------------------------------------------------------------------


def slow_neighbors(query: list[float], gallery: list[list[float]], k: int) -> list[int]:
    """The k nearest by cosine, the earlier of equals first."""

    def length(vector: list[float]) -> float:
        return math.sqrt(sum(v * v for v in vector))

    cosine = [
        sum(a * b for a, b in zip(query, other, strict=True)) / (length(query) * length(other)) for other in gallery
    ]
    return sorted(range(len(gallery)), key=lambda i: (-cosine[i], i))[:k]


@pytest.mark.parametrize("k", [1, 4, 30])
def test_neighbor_shares_agree_with_a_loop(k: int) -> None:
    drawn = generator("features")
    # More queries than are compared at once.
    queries = torch.randn(300, 5, generator=drawn, dtype=torch.float64) + 0.5
    gallery = torch.randn(30, 5, generator=drawn, dtype=torch.float64) * torch.arange(1, 31)[:, None]
    labels = torch.randint(4, (30,), generator=drawn)
    groups = {"few": [3], "medium+few": [1, 3], "nothing": []}
    found = background_neighbors(queries, gallery, labels, groups, k)
    assert set(found) == set(groups)
    for i in range(300):
        near = [int(labels[j]) for j in slow_neighbors(queries[i].tolist(), gallery.tolist(), k)]
        for name, classes in groups.items():
            assert found[name][i].item() == pytest.approx(sum(label in classes for label in near) / k), (i, name)


def test_all_neighbors_are_the_gallery() -> None:
    labels = torch.tensor([0, 0, 0, 1, 2])
    features = torch.randn(5, 3, generator=generator("all"))
    found = background_neighbors(features, features, labels, {"tail": [1, 2]}, 5)
    assert found["tail"].tolist() == pytest.approx([0.4] * 5)


def test_of_equally_near_images_the_earlier_counts() -> None:
    found = background_neighbors(torch.ones(1, 2), torch.ones(64, 2), torch.arange(64), {"first": [0, 1]}, 2)
    assert found["first"].tolist() == [1.0]


def test_neighbors_that_cannot_be_are_refused() -> None:
    features, labels = torch.ones(3, 2), torch.zeros(3, dtype=torch.int64)
    for k in (0, 4):
        with pytest.raises(ValueError, match="a k from 1"):
            background_neighbors(features, features, labels, {}, k)
    with pytest.raises(ValueError, match="as many labels"):
        background_neighbors(features, features, labels[:2], {}, 1)
    with pytest.raises(ValueError, match="features must be"):
        background_neighbors(features[:, :1], features, labels, {}, 1)


def test_votes_are_the_mass_and_the_largest_probability_of_each_group() -> None:
    probabilities = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.3, 0.5], [0.4, 0.2, 0.4]])
    found = group_votes(probabilities, {"many": [0], "rest": [1, 2], "nothing": []})
    assert found["mass"] == pytest.approx({"many": 1.2 / 3, "rest": 1.8 / 3, "nothing": 0.0})
    assert found["votes"] == pytest.approx({"many": 2 / 3, "rest": 1 / 3, "nothing": 0.0})
    with pytest.raises(ValueError, match="N above 0"):
        group_votes(probabilities[:0], {})


def test_an_erased_object_is_the_mean_color_and_the_rest_is_as_it_was() -> None:
    images, view = spots(), plain(SIDE)
    assert images.masks is not None
    made = masked_backgrounds(images, view, draws=2)
    assert set(made) == {"whole", "object erased", "salient box erased"}
    assert torch.equal(made["whole"], view.apply(images.images, ()))
    mask = images.masks[:, None].expand(-1, 3, -1, -1)  # a square is its own box
    assert bool((made["object erased"][mask] == 0).all())
    assert torch.equal(made["object erased"][~mask], made["whole"][~mask])
    lam = draw_beta(12, 1.0, generator("explain", "lambda", 1)).float()
    boxes = boxes_around(salient_peaks("fine-grained", images)[0], lam, SIDE).tolist()
    for i, (top, bottom, left, right) in enumerate(boxes):
        expected = made["whole"][i].clone()
        expected[:, top:bottom, left:right] = 0
        assert torch.equal(made["salient box erased"][12 + i], expected), "the second draw stands behind the first"


def test_scenes_without_their_digit_are_the_scenes_off_the_object() -> None:
    test = load_scenes().test
    assert test is not None
    some = test.subset(torch.tensor([3, 401, 77]))
    assert some.masks is not None
    made = masked_backgrounds(some, plain(32), draws=1, scenes=True)
    on = some.masks[:, None].expand(-1, 3, -1, -1)
    assert torch.equal(made["no object drawn"][~on], made["whole"][~on])
    assert float((made["no object drawn"] != made["whole"])[on].double().mean()) > 0.9


def test_background_votes_of_a_run_agree_with_what_its_network_says(finished_run: Run) -> None:
    found = background_votes(finished_run.path, ks=(2, 21))
    # 21 training images, 9, 6, 4, 2 a class; many above 8, few below 3; 3 test images a class.
    assert (found["queries"], found["gallery"], found["weights"], found["accuracy"]) == (3, 21, "last", None)
    assert found["gallery_share"] == pytest.approx({"few": 2 / 21, "medium+few": 12 / 21})
    assert set(found["ways"]) == {"whole", "salient box erased"}, "a set without masks"
    whole = found["ways"]["whole"]
    assert whole["neighbors"]["21"]["few"] == pytest.approx({"share": 2 / 21, "ratio": 1.0})
    model = load(finished_run.path)
    with np_load(finished_run) as archive:
        test, train = (torch.from_numpy(archive[f"{s}_images"]).permute(0, 3, 1, 2) for s in ("test", "train"))
        labels = torch.from_numpy(archive["train_labels"])
    probabilities = torch.from_numpy(model.predict(test[:3]))
    assert whole["mass"]["many"] == pytest.approx(float(probabilities[:, 0].mean()), abs=1e-6)
    assert whole["votes"]["few"] == pytest.approx(float((probabilities.argmax(1) == 3).double().mean()))
    with torch.no_grad():
        queries, gallery = (
            F.normalize(model.method.network.features(model.view.apply(part.contiguous(), ())), dim=1)
            for part in (test[:3], train)
        )
    near = [labels[(gallery @ query).topk(2).indices] for query in queries]
    expected = sum(float((own > 0).double().mean()) for own in near) / 3
    assert whole["neighbors"]["2"]["medium+few"]["share"] == pytest.approx(expected)
    assert whole["neighbors"]["2"]["medium+few"]["ratio"] == pytest.approx(expected * 21 / 12)


def np_load(run: Run) -> Any:
    import numpy as np

    return np.load(yaml.safe_load((run.path / "config.yaml").read_text())["data"]["path"])


def test_runs_that_are_unfinished_or_whose_images_changed_are_refused(finished_run: Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished_run.path, copy)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["data"]["path"] = str(write_npz(tmp_path / "other.npz", seed=1))
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(DataError, match="not those that it was trained"):
        background_votes(copy)
    described = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(described | {"status": "running"}))
    with pytest.raises(RunError, match="not finished"):
        background_votes(copy)


# The tables of the study ----------------------------------------------------------------------------------------------


def votes_of(value: float, accuracy: Mapping[str, float] | None = None) -> dict[str, Any]:
    """A result of background_votes in which every number that may differ is ``value``."""
    near = {str(k): {m: {"share": value, "ratio": 2 * value} for m in ("few", "medium+few")} for k in (10, 20, 50)}
    said = {what: dict.fromkeys(("many", "medium", "few"), value) for what in ("mass", "votes")}
    return {
        "queries": 3,
        "gallery": 21,
        "gallery_share": {"few": 0.1, "medium+few": 0.5},
        "evaluated_on": "test",
        "weights": "last",
        "accuracy": accuracy,
        "ways": {"salient box erased": {"neighbors": near, **said}},
    }


def test_differences_are_paired_by_seed_and_taken_to_the_first_group() -> None:
    runs = {
        "host-s0": votes_of(0.1, {"seen": 0.5, "unseen": 0.2}),
        "host-s1": votes_of(0.3, {"seen": 0.6, "unseen": 0.2}),
        "mask-only-s1": votes_of(0.4, {"seen": 0.5, "unseen": 0.4}),
        "mask-only-s2": votes_of(0.9, {"seen": 0.5, "unseen": 0.4}),
    }
    found = STUDY["summarize"](runs)
    key = "ways.salient box erased.votes.few"
    assert found["baseline"] == "host"
    assert found["groups"]["host"]["seeds"] == [0, 1]
    assert found["groups"]["host"]["values"][key] == pytest.approx({"mean": 0.2, "deviation": 0.02**0.5, "n": 2})
    assert found["groups"]["mask-only"]["values"][key]["mean"] == pytest.approx(0.65)
    assert found["differences"]["mask-only"]["seeds"] == [1]
    assert found["differences"]["mask-only"]["values"][key] == pytest.approx({"mean": 0.1, "deviation": None, "n": 1})
    assert found["differences"]["mask-only"]["values"]["accuracy.unseen"]["mean"] == pytest.approx(0.2)
    measured = {"what": "backgrounds", "weights": "last", "runs": runs, "command": "x", **found}
    lines = STUDY["table"](measured)
    assert "| mask-only - host | 1 (n=1) | -10.0 | +20.0 |" in lines
    start = "| host | 0, 1 (n=2) | 20.0 ± 14.1 (0.40) |"
    assert sum(line.startswith(start) for line in lines) == 1
    widths = [(lines[i].count("|"), lines[i - 1].count("|")) for i in range(len(lines)) if lines[i].startswith("|---")]
    assert widths
    assert all(rule == head for rule, head in widths)


def test_a_folder_without_a_seed_in_its_name_is_refused() -> None:
    assert STUDY["group_and_seed"]("host-2x-epochs-s12") == ("host-2x-epochs", 12)
    with pytest.raises(ConfigError, match="does not end in -sSEED"):
        STUDY["group_and_seed"]("demo")
    with pytest.raises(ConfigError, match="seed 0 twice"):
        STUDY["summarize"]({"host-s0": votes_of(0.1), "host-s00": votes_of(0.2)})


def test_runs_without_known_backgrounds_have_a_dash_in_the_table() -> None:
    runs = {"host-s0": votes_of(0.1), "full-s0": votes_of(0.2)}
    summary = STUDY["summarize"](runs)
    lines = STUDY["table"]({"what": "backgrounds", "weights": "last", "runs": runs, "command": "x", **summary})
    assert "| full - host | 0 (n=1) | - | - |" in lines
