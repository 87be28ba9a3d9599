"""Does the background vote? What a trained network makes of images of head classes without their object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from longtail.data.images import ImageSet
from longtail.data.longtail import ClassStats
from longtail.data.open import open_data
from longtail.data.prepare import Prepared
from longtail.data.sources.scene_rendering import background, load_material
from longtail.data.sources.scenes import plan_balanced
from longtail.data.views import View
from longtail.errors import DataError, RunError
from longtail.evaluation.scoring import EVALUATION_BATCH
from longtail.explain.objects import Groups, object_boxes, salient_peaks
from longtail.files import read_json
from longtail.mixing.boxes import boxes_around, draw_beta, erase
from longtail.prediction.predict import Model, load
from longtail.rng import generator
from longtail.runs.rundir import RunDir
from longtail.training.state import stored_config

CHUNK = 256
"""Queries compared with the gallery at once."""


def background_neighbors(
    queries: Tensor, gallery: Tensor, gallery_labels: Tensor, groups: Groups, k: int
) -> dict[str, Tensor]:
    """For each query the share of its ``k`` nearest gallery images, by cosine, whose class is in each group.

    share_g(q) = |{i in kNN(q) : y_i in g}| / k, the neighbors being those of the largest <q, h_i> / (|q| |h_i|); of
    equals the earlier image is nearer.

    Args:
        queries: (Q, D) features.
        gallery: (N, D) features.
        gallery_labels: (N,) int64.
        groups: class ids by name; they may overlap.
        k: in 1..N.

    Returns:
        (Q,) float64 for each group.

    Raises:
        ValueError: on shapes that do not fit, or another k.
    """
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"features must be (Q, D) and (N, D), not {tuple(queries.shape)} and {tuple(gallery.shape)}.")
    if gallery_labels.shape != gallery.shape[:1] or not 1 <= k <= len(gallery):
        raise ValueError(f"{len(gallery)} images need as many labels, and a k from 1 to that number, not {k}.")
    unit = F.normalize(gallery, dim=1)  # the queries' lengths change no order
    # A stable sort and not topk, whose order of equals depends on the device.
    nearest = [
        (part @ unit.T).sort(dim=1, descending=True, stable=True).indices[:, :k] for part in torch.split(queries, CHUNK)
    ]
    labels = gallery_labels[torch.cat(nearest)]
    return {
        name: torch.isin(labels, torch.tensor(list(classes), dtype=torch.int64, device=labels.device)).double().mean(1)
        for name, classes in groups.items()
    }


def group_votes(probabilities: Tensor, groups: Groups) -> dict[str, dict[str, float]]:
    """What (N, C) probabilities give to each group: ``mass``, the mean of sum_{k in g} p_k, and ``votes``, the share of
    images whose largest probability is of a class of g (the first of equals)."""
    if probabilities.ndim != 2 or not len(probabilities):
        raise ValueError(f"probabilities must be (N, C) with N above 0, not {tuple(probabilities.shape)}.")
    largest = probabilities.argmax(1)
    ids = {name: torch.tensor(list(classes), dtype=torch.int64) for name, classes in groups.items()}
    return {
        "mass": {name: float(probabilities[:, own].sum(1).double().mean()) for name, own in ids.items()},
        "votes": {name: float(torch.isin(largest, own).double().mean()) for name, own in ids.items()},
    }


def masked_backgrounds(
    images: ImageSet, view: View, *, detector: str = "fine-grained", draws: int = 5, scenes: bool = False
) -> dict[str, Tensor]:
    """What is left of images without their object, normalized (n, 3, S, S) by the plain ``view``, in several ways.

    ``whole``: with it, to compare with. ``object erased``: the smallest box around the object is 0, the mean color,
    where the set has masks. ``salient box erased``: a box around the detector's peak is, with lambda ~ Beta(1, 1),
    ``draws`` times each. ``no object drawn``, for images of the test split of the embedded ``scenes``: the photograph
    alone. The erased ones show a box that a network trained without masking has never seen; the last has none.
    """
    size = (images.images.shape[2], images.images.shape[3])
    whole = view.apply(images.stacked, ())
    made = {"whole": whole}
    if images.masks is not None:
        made["object erased"] = erase(whole, object_boxes(images.masks))
    erased = []
    for draw, places in enumerate(salient_peaks(detector, images, draws=draws)):
        lam = draw_beta(len(images), 1.0, generator("explain", "lambda", draw)).float()
        erased.append(erase(whole, boxes_around(places, lam, size)))
    made["salient box erased"] = torch.cat(erased)
    if scenes:
        material, planned = load_material(), plan_balanced(load_material(), "test")
        crops = np.stack([background(planned[int(i)], material) for i in images.source_index])
        made["no object drawn"] = view.apply(torch.from_numpy(crops).permute(0, 3, 1, 2).to(whole.device), ())
    return made


def finished_model(run: str | Path, which: str = "last") -> tuple[Model, Prepared]:
    """Network and images of a finished run; RunError for an unfinished one, DataError where its images have changed."""
    folder = RunDir(run)
    described = folder.description()
    if described.get("status") != "finished":
        raise RunError(f"{run} is not finished.", hint="Go on with it: longtail train ... --resume")
    data = open_data(stored_config(folder).data)
    if data.fingerprint != described["data"]["fingerprint"]:
        raise DataError(f"The images of {run} are not those that it was trained and evaluated on.")
    return load(run, which=which), data


def background_votes(
    run: str | Path, *, which: str = "last", ks: Sequence[int] = (10, 20, 50), detector: str = "fine-grained"
) -> dict[str, Any]:
    """Whether the backgrounds of head classes speak for head classes, in a finished run.

    Queries are the images of the many-shot classes of the evaluated split, by each way of
    :func:`masked_backgrounds`; the gallery is all training images, in the plain view. For each way: ``neighbors``, the
    mean of :func:`background_neighbors` over the queries for the groups few and medium+few (``share``) and that over
    the group's share of the gallery (``ratio``, 1 for neighbors at random), and :func:`group_votes`. Beside it the
    accuracy on backgrounds that a class had in training and on those that it had not, as in results.json.

    Raises RunError for an unfinished run, DataError where its images have changed or no class is many-shot.
    """
    model, data = finished_model(run, which)
    network, counts = model.method.network, model.class_counts
    groups = ClassStats(counts).groups(*model.config.data.groups)
    device = next(network.parameters()).device
    heads = torch.isin(data.evaluation.labels, torch.tensor(groups["many"], dtype=torch.int64)).nonzero()[:, 0]
    if not len(heads):
        raise DataError(f"{run} was evaluated on no image of a many-shot class.", hint="Set data.groups lower.")
    minority = {"few": groups["few"], "medium+few": [*groups["medium"], *groups["few"]]}
    shares = {name: sum(counts[k] for k in own) / sum(counts) for name, own in minority.items()}
    gallery = _batched(lambda part: network.features(model.view.apply(part, ())), data.train.stacked.to(device))
    labels = data.train.labels.cpu()
    scenes = model.config.data.name == "scenes"
    queries = masked_backgrounds(data.evaluation.subset(heads).to(device), model.view, detector=detector, scenes=scenes)
    ways: dict[str, Any] = {}
    for way, images in queries.items():
        features = _batched(network.features, images)
        near: dict[str, Any] = {}
        for k in ks:
            found = background_neighbors(features, gallery, labels, minority, k)
            means = {name: float(values.mean()) for name, values in found.items()}
            near[str(k)] = {
                name: {"share": mean, "ratio": mean / shares[name] if shares[name] else None}
                for name, mean in means.items()
            }
        said = group_votes(torch.softmax(_batched(model.method.logits, images), dim=1), groups)
        ways[way] = {"neighbors": near, **said}
    results = read_json(RunDir(run).path / "results.json")
    return {
        "queries": len(heads),
        "gallery": len(labels),
        "gallery_share": shares,
        "evaluated_on": data.evaluated_on,
        "weights": which,
        "accuracy": results[which].get("backgrounds"),
        "ways": ways,
    }


@torch.no_grad()
def _batched(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return torch.cat([function(part).float().cpu() for part in torch.split(images, EVALUATION_BATCH)])
