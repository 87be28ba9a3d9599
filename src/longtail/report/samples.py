"""What a method did to images: samples of a late batch of the run, made again as the run made them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from longtail.data.batch import Batch, Progress
from longtail.evaluation.scoring import evaluating
from longtail.methods.concutmix import ConCutMix, ConCutMixSettings, rectified
from longtail.methods.mixings import CutMix, soft_target
from longtail.methods.plain import Plain
from longtail.methods.smcl import SMCL
from longtail.methods.smcl_concutmix import SMCLConCutMix
from longtail.mixing import Box, align_boxes, boxes_around, boxes_like, draw_beta, mix_labels
from longtail.report.folder import GROUPS
from longtail.report.images import Edges, Shot, edges_of, gray
from longtail.report.remaking import EXAMPLES, Example, Remade, Shown, label_bars
from longtail.saliency.detectors import DETECTORS

TELLING = (0.35, 0.8)
"""Shares of the first image between which both can be seen: a step with such a box is preferred."""


def show_method(run: Remade) -> Shown:
    """Examples of what the method did, of its last batches; views alone where it neither mixes nor masks."""
    shows: dict[type, Callable[[Remade], Shown | None]] = {
        ConCutMix: _concutmix, SMCLConCutMix: _smcl_concutmix, SMCL: _smcl, Plain: _plain
    }  # fmt: skip
    show = shows.get(type(run.model.method))
    with evaluating(run.model.method):
        found = None if show is None else show(run)
        return found if found is not None else _views(run)


def _views(run: Remade) -> Shown:
    at = next(run.late_steps())
    batch = run.batch(at, with_partner=False)
    names = run.model.config.views.names
    number = [GROUPS.index(run.classes[k].group) for k in batch.target.tolist()]
    examples = []
    for place in sorted(range(len(number)), key=lambda i: (-number[i], i))[:EXAMPLES]:
        shots = [run.original(int(batch.index[place]))]
        for role, view in zip(run.model.method.needs.views, batch.views, strict=True):
            name = names[run.loader.role_at(role, at.step)]
            shots.append(run.shot(view[place], name, f"The same image in the view {name}"))
        examples.append(Example(shots))
    mixes = "No step that mixes images was found" if run.model.method.needs.partner else "Images are not mixed"
    sentence = f"{mixes}. Training images, and the views made of them in the last step ({at.step})."
    return Shown(sentence, examples)


def _telling(run: Remade, mixing: CutMix) -> tuple[Progress, Box, Batch] | None:
    """The latest step that mixes by a box in which both images can be seen, else the latest that mixes."""
    latest = None
    for at in run.late_steps():
        box = mixing.draw(at)
        if box is not None and run.model.method.needs_partner(at):
            latest = latest or (at, box)
            if TELLING[0] <= box.lam <= TELLING[1]:
                latest = at, box
                break
    return None if latest is None else (*latest, run.batch(latest[0], with_partner=True))


@dataclass(frozen=True)
class Mixture:
    """What a step made of pairs: mixed images (B, 3, H, W), their labels by area (B, C), the edges of the box by place.

    ``rectify`` moves labels (n, C) of images as the method does, if it does; ``erased`` are the first images with
    their salient box erased. ``said`` is the sentence about all of it.
    """

    images: Tensor
    target: Tensor
    edges: Callable[[int], Edges | None]
    said: str
    rectify: Callable[[Tensor, Tensor], Tensor] | None = None
    erased: Tensor | None = None


def _pairs(run: Remade, batch: Batch, made: Mixture) -> Shown:
    """Image, partner and the two mixed, with the label by area and, where there is one, the rectified label."""
    places, said = run.telling_first(batch), made.said
    labels = {"label": made.target[places]}
    if made.rectify is not None:
        moved = made.rectify(made.images[places], made.target[places])
        labels = {"area label": labels["label"], "rectified label": moved}
        share = float((moved - labels["area label"]).abs().sum(dim=1).mean()) / 2
        said += (
            " Area label: by pixels. Rectified label: by the trained network's features, in evaluation mode; on "
            f"average {100 * share:.1f}% of a label went to another class."
        )
    examples = []
    for number, place in enumerate(places):
        mixed = run.shot(made.images[place], "mixed", "The two mixed, with the box", made.edges(place))
        shots = [*_pair(run, batch, place), mixed]
        if made.erased is not None:
            shots.append(run.shot(made.erased[place], "erased", "The background image with its salient box erased"))
        examples.append(Example(shots, [label_bars(name, rows[number], run.classes) for name, rows in labels.items()]))
    return Shown(said, examples)


def _pair(run: Remade, batch: Batch, place: int) -> list[Shot]:
    """The two images of a pair, as the step saw them."""
    assert batch.partner is not None, "the step mixes"
    own, other = (run.classes[int(part.target[place])] for part in (batch, batch.partner))
    return [
        run.shot(batch.views[0][place], own.name, f"Background image, class {own.name}"),
        run.shot(batch.partner.views[0][place], other.name, f"Foreground image, class {other.name}"),
    ]


def _rectifying(run: Remade, counts: Tensor, own: ConCutMixSettings) -> Callable[[Tensor, Tensor], Tensor]:
    network = run.model.method.network

    def rectify(images: Tensor, area: Tensor) -> Tensor:
        return rectified(area, network.project(network.features(images)), network.centers(), counts, own)[0]

    return rectify


def _edges(box: Box | None) -> Edges | None:
    return None if box is None else edges_of((box.top, box.bottom, box.left, box.right))


def _concutmix(run: Remade) -> Shown | None:
    method = run.model.method
    assert isinstance(method, ConCutMix)
    found = _telling(run, method.mixing)
    if found is None:
        return None
    at, box, batch = found
    mixed = method.mixing(batch.views[0], soft_target(batch.target, len(run.classes)), batch.partner, at)
    said = f"Background, foreground and the two mixed, of step {at.step}."
    said += "" if method.rectifies(at) else " The run did not rectify labels in this step."
    rectify = _rectifying(run, method.counts, method.settings)
    return _pairs(run, batch, Mixture(mixed.images, mixed.target, lambda _: _edges(box), said, rectify))


def _smcl_concutmix(run: Remade) -> Shown | None:
    method = run.model.method
    assert isinstance(method, SMCLConCutMix)
    found = _telling(run, method.mixing)
    if found is None:
        return None
    at, box, batch = found
    made = method.replace(batch, box, at)
    if method.settings.place == "salient":
        boxes = boxes_like(box, method.locate(method.network, batch, at).peaks, method.patch)
    else:
        boxes = torch.tensor([[box.top, box.bottom, box.left, box.right]]).expand(len(batch.target), 4)
    said = f"The partner's salient part over the image's, and the image with its own erased, of step {at.step}."
    rectify = _rectifying(run, method.counts, method.settings)
    return _pairs(
        run, batch, Mixture(made.images, made.target, lambda k: edges_of(boxes[k]), said, rectify, made.erased)
    )


def _plain(run: Remade) -> Shown | None:
    method = run.model.method
    assert isinstance(method, Plain)
    at = next((at for at in run.late_steps() if method.needs_partner(at)), None)
    if at is None:
        return None
    batch = run.batch(at, with_partner=True)
    area = soft_target(batch.target, len(run.classes))
    mixed = method.mixing(batch.views[0], area, batch.partner, at, method.network)
    box = mixed.box
    said = f"Image, partner and the two mixed ({method.settings.mixing}), of step {at.step}."

    def edges(place: int) -> Edges | None:
        return _edges(box) if box is None or isinstance(box, Box) else edges_of(box[place])

    return _pairs(run, batch, Mixture(mixed.images, mixed.target, edges, said))


def _smcl(run: Remade) -> Shown | None:
    method = run.model.method
    assert isinstance(method, SMCL)
    at = next((at for at in run.late_steps() if method.masks(at)), None)
    if at is None:
        return None
    batch = run.batch(at, with_partner=True)
    assert batch.partner is not None, "a masked step wants a partner"
    masked, boxes, peaks = method.mask(batch, at), *masked_boxes(method, batch, at)
    labels = soft_target(batch.target, len(run.classes))
    toward = soft_target(masked.toward, len(run.classes))
    target = toward if method.settings.variant == "B" else mix_labels(labels, toward, masked.lam)
    places = run.telling_first(batch)
    maps = _maps(run, method, batch, places)
    examples = []
    for number, place in enumerate(places):
        own, other = (run.classes[int(part.target[place])] for part in (batch, batch.partner))
        seen = run.shot(batch.views[0][place], own.name, f"Class {own.name}, with its salient peak and box")
        peak = (int(peaks[place, 0]), int(peaks[place, 1]))
        shots = [run.original(int(batch.index[place]))] if maps is not None else []
        if maps is not None:
            shots.append(Shot(gray(maps[number]), "saliency", "Saliency map of the training image: white is salient"))
        shots.append(Shot(seen.pixels, "peak, box", seen.alt, edges_of(boxes[place]), peak))
        shots.append(run.shot(masked.images[place], "masked", f"The image masked, pulled toward {other.name}"))
        examples.append(Example(shots, [label_bars(f"label: toward {other.name}", target[place], run.classes)]))
    what = "Training image, its saliency, " if maps is not None else ""
    sentence = f"{what}the view with peak and box, and what is left, of step {at.step} (detector: {_detector(method)})."
    return Shown(sentence[0].upper() + sentence[1:], examples)


def masked_boxes(method: SMCL, batch: Batch, at: Progress) -> tuple[Tensor, Tensor]:
    """Boxes (B, 4) and peaks (B, 2) of ``method.mask`` in this step: the same draws give the same boxes."""
    images = batch.views[0]
    peaks = method.locate(method.network, batch, at).peaks
    drawn = draw_beta(len(images), method.settings.mask_alpha, at.generator("mask")).float()
    boxes = boxes_around(peaks, drawn, (images.shape[-2], images.shape[-1]), at_edge=method.settings.at_edge)
    return align_boxes(boxes, method.patch), peaks


def _detector(method: SMCL) -> str:
    return "maps from a file" if method.settings.saliency_maps is not None else method.settings.detector


def _maps(run: Remade, method: SMCL, batch: Batch, places: list[int]) -> Tensor | None:
    """The saliency maps (n, H, W) of the training images at ``places``; None where the detector has none to show."""
    if method.settings.saliency_maps is not None:
        return None
    entry, rows = DETECTORS[method.settings.detector], batch.index[places]
    if entry.maps is not None:
        return entry.maps(run.data.train.images[rows].clone())
    if entry.kind == "masks" and run.data.train.masks is not None:
        return run.data.train.masks[rows].float()
    return None
