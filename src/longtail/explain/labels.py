"""What ConCutMix's rectification does to labels, measured (Pan et al., arXiv 2407.04911)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longtail.data.prepare import Prepared
from longtail.errors import ConfigError
from longtail.evaluation.scoring import EVALUATION_BATCH, evaluating
from longtail.explain.backgrounds import finished_model
from longtail.methods.concutmix import ConCutMix
from longtail.methods.mixings import soft_target
from longtail.mixing import Confidence, moved_labels, rectification_confidence, semantic_labels
from longtail.prediction.predict import Model
from longtail.training.feeding import build_loader, build_views
from longtail.training.updating import places, split_up, wants_partner


def label_effect(
    features: Tensor,
    centers: Tensor,
    area: Tensor,
    counts: Sequence[int] | Tensor,
    gallery: Tensor,
    gallery_labels: Tensor,
    *,
    scale: float,
    topk: int,
    confidence: Confidence = "frequency",
) -> dict[str, Tensor]:
    """What rectification does to each mixed image's label, and what its nearest gallery image says of it.

    With t the area label, whose classes are the pair, q the semantic label, gamma its confidence, t' the rectified
    label, and c the class of the gallery feature at the smallest Euclidean distance from u_i::

        gamma            gamma_i                     neighbor_in_pair  [t_i,c > 0]
        moved            1/2 sum_k |t'_ik - t_ik|    semantic_agrees   [argmax_k q_ik = c]
        outside          sum_{k: t_ik = 0} t'_ik     area_agrees       [argmax_k t_ik = c]
        semantic_outside sum_{k: t_ik = 0} q_ik      rectified_agrees  [argmax_k t'_ik = c]
        semantic_mass    q_ic     area_mass t_ic     rectified_mass    t'_ic

    Args:
        features: u (B, D), not normalized, of the mixed images.
        centers: v (C, D), not normalized.
        area: t (B, C).
        counts: (C,) training images per class.
        gallery: (N, D) features of other images in the same space.
        gallery_labels: (N,) int64.
        scale: omega.
        topk: classes that keep a share in q.
        confidence: what gamma depends on.

    Returns:
        (B,) float64 for each name.
    """
    nearest = gallery_labels[torch.cdist(features, gallery).argmin(dim=1)]
    semantic = semantic_labels(features, centers, topk)
    gamma = rectification_confidence(area, counts, scale, kind=confidence, semantic=semantic)
    rectified = moved_labels(area, semantic.clone(), gamma)
    outside = area == 0
    found = {
        "gamma": gamma,
        "moved": (rectified - area).abs().sum(1) / 2,
        "outside": (rectified * outside).sum(1),
        "semantic_outside": (semantic * outside).sum(1),
        "neighbor_in_pair": ~outside.gather(1, nearest[:, None])[:, 0],
    }
    for name, label in (("semantic", semantic), ("area", area), ("rectified", rectified)):
        found[f"{name}_agrees"] = label.argmax(dim=1) == nearest
        found[f"{name}_mass"] = label.gather(1, nearest[:, None])[:, 0]
    return {name: value.double() for name, value in found.items()}


def rectification_effect(run: str | Path, *, which: str = "last", omega: float | None = None) -> dict[str, Any]:
    """The means of :func:`label_effect` over the mixed images of a finished ConCutMix run's last epoch.

    The images are those that the run mixed, in the views that it made of them; features and centers are those of the
    trained network in evaluation mode, the gallery is the evaluated split in the plain view. ``omega`` asks what
    another scale would have done to the same labels. ``outside_pair`` repeats the means over the images whose nearest
    neighbor is of neither class of the pair, which is where an area label cannot be right.

    Raises RunError for an unfinished run, ConfigError for one of another method or without mixed batches.
    """
    model, data = finished_model(run, which)
    method = model.method
    if not isinstance(method, ConCutMix):
        raise ConfigError(f"{run} is a run of '{model.config.method_name}', and rectifies no labels.")
    own = method.settings
    assert own.omega is not None, "filled in by with_classes"
    assert own.topk is not None, "filled in by with_classes"
    features, area = _mixed(method, model, data)
    if not len(area):
        raise ConfigError(f"The last epoch of {run} mixed no batch.", hint="Raise method.mix_probability.")
    with evaluating(method):
        gallery = torch.cat(
            [
                method.network.project(method.network.features(model.view.apply(part, ())))
                for part in torch.split(data.evaluation.stacked.to(area.device), EVALUATION_BATCH)
            ]
        )
        centers = method.network.centers()
    scale = own.omega if omega is None else omega
    labels = data.evaluation.labels.to(area.device)
    found = label_effect(
        features,
        centers,
        area,
        method.counts,
        gallery,
        labels,
        scale=scale,
        topk=own.topk,
        confidence=own.confidence,
    )
    apart = found["neighbor_in_pair"] == 0
    return {
        "which": which,
        "omega": scale,
        "topk": own.topk,
        "images": len(area),
        "all": {name: float(value.mean()) for name, value in found.items()},
        "outside_pair": {
            name: float(value[apart].mean()) if bool(apart.any()) else math.nan for name, value in found.items()
        },
    }


def _mixed(method: ConCutMix, model: Model, data: Prepared) -> tuple[Tensor, Tensor]:
    """Features u (B, D) and area labels (B, C) of the images that the last epoch mixed."""
    config, device = model.config, next(method.parameters()).device
    views = build_views(config, data)
    train = data.train.to(device)
    loader = build_loader(config, train, method, views)
    wanted = wants_partner(method, config.optim.accumulate)
    features, labels = [], []
    classes = len(model.class_counts)
    with evaluating(method):
        last = loader.steps_per_epoch * model.epochs
        for step in range(last - loader.steps_per_epoch, last):
            if not wanted(loader.progress(step)):
                continue
            parts = split_up(loader.batch(step, with_partner=True), config.optim)
            for at, part in zip(places(loader.progress(step), len(parts)), parts, strict=True):
                if not method.needs_partner(at):
                    continue
                mixed = method.mixing(part.views[0], soft_target(part.target, classes), part.partner, at)
                features.append(method.network.project(method.network.features(mixed.images)))
                labels.append(mixed.target)
    if not labels:
        return torch.empty(0, 0), torch.empty(0, classes)
    return torch.cat(features), torch.cat(labels)
