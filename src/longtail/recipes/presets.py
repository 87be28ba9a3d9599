"""Data presets, and the tuned entries laid over them. A recipe is ``preset, then method defaults, then tuned``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

SourceMark = Literal["paper", "authors' program", "ours (selected on val)", "untuned defaults"]


@dataclass(frozen=True)
class Tuned:
    """Settings for one pair of data set and method (for one imbalance where given), with where they come from."""

    settings: Mapping[str, Any]
    source: SourceMark
    note: str = ""


@dataclass(frozen=True)
class Named(Tuned):
    """A recipe whose name is not its method's: ``method`` is, and the settings are laid over what tunes that."""

    method: str = field(kw_only=True)


# The optimizer, schedule and classification view of the ConCutMix authors' CIFAR runs, for every method alike: a
# comparison of methods is then not one of schedules. 200 epochs: warm-up 5, rates x0.1 at 160 and 180.
_CIFAR: dict[str, Any] = {
    "data": {"imbalance": 100.0},
    "views": {"classification": "autoaugment", "contrastive": "contrastive"},
    "model": {"backbone": "resnet32"},
    "optim": {
        "epochs": 200,
        "batch": 256,
        "lr": 0.15,
        "schedule": "step",
        "warmup_epochs": 0.025,
        "milestones": [0.8, 0.9],
        "weight_decay": 5e-4,
    },
}

# Small images of one's own, from a file or from Python: nothing here was tuned.
_OWN: dict[str, Any] = {
    "views": {"classification": "crop-flip"},
    "optim": {"epochs": 100, "batch": 128, "lr": 0.1, "schedule": "cosine"},
}

# Image files of one's own, a few hundred to a few thousand of them on a laptop's CPU; nothing here was tuned. The
# ResNet-20 has a fortieth of the weights of torchvision's ResNet-18 to fit and to keep. Batches of 32, so that 60
# epochs of a few hundred images are still several hundred steps. One cycle, as for the scenes, warms up by itself.
_FILES: dict[str, Any] = {
    "data": {"size": 64},
    "views": {"classification": "crop-flip"},
    "model": {"backbone": "resnet20"},
    "optim": {"epochs": 60, "batch": 32, "lr": 0.1, "schedule": "onecycle"},
}

# Lists of ImageNet size: 224 of 256 pixels, resized crops from the whole image, color jitter for every method alike.
# Epochs, batch, rate and decay are those of the ConCutMix authors' runs there (and on iNaturalist), for every method
# alike. Eight processes read.
_BIG: dict[str, Any] = {
    "data": {"size": 224, "center_crop": 0.875},
    "views": {"classification": "resized-crop-jitter", "contrastive": "imagenet-contrastive"},
    "model": {"backbone": "torchvision/resnet50"},
    "optim": {
        "epochs": 100,
        "batch": 256,
        "lr": 0.1,
        "schedule": "cosine",
        "warmup_epochs": 0,
        "weight_decay": 5e-4,
    },
    "run": {"workers": 8},
}

# The papers' ResNet-152 begins with weights of ImageNet, which model.weights takes from a file; nothing was tuned.
_PLACES: dict[str, Any] = {
    **_BIG,
    "model": {"backbone": "torchvision/resnet152"},
    "optim": {**_BIG["optim"], "epochs": 30, "lr": 0.05},
}

PRESETS: dict[str, Mapping[str, Any]] = {
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
    "fashion-mnist": {
        "data": {"imbalance": 100.0},
        "views": {"classification": "crop-flip"},
        "optim": {"epochs": 30, "batch": 128, "lr": 0.1, "schedule": "cosine"},
    },
    "npz": _OWN,
    "arrays": _OWN,
    "folder": _FILES,
    "list": _FILES,
    "csv": _FILES,
    "imagenet-lt": _BIG,
    "places-lt": _PLACES,
    "inat18": {**_BIG, "optim": {**_BIG["optim"], "lr": 0.2, "weight_decay": 1e-4}},
    "scenes": {
        "views": {"classification": "crop"},
        "model": {"backbone": "resnet8"},
        "optim": {"epochs": 60, "batch": 32, "lr": 0.1, "schedule": "onecycle"},
    },
}

_CONCUTMIX_CIFAR100 = {"tau": 0.9, "omega": 20 / 255, "topk": 30, "rectify_start": 0.5}
_CONCUTMIX_CIFAR10 = {"tau": 0.85, "omega": 2 / 255, "topk": 3, "rectify_start": 0.5}

# mu and masking as the paper has them for CIFAR, the protocol of the papers it builds on: docs/methods/smcl.md.
_SMCL_CIFAR: dict[str, Any] = {
    "views": {"classification": "crop-flip"},
    "optim": {
        "batch": 128,
        "lr": 0.1,
        "decay": 0.01,
        "warmup_epochs": 0.025,
        "milestones": [0.8, 0.9],
        "weight_decay": 2e-4,
    },
    "method": {"mu": 0.3, "mask_start": 0.8, "mask_probability": 0.2},
}
_SMCL_NOTE = "mu and masking are the paper's, the optimizer and views our reading"

# The second stage in the program of MiSLAS; smoothing, rate and shift are in OF_IMBALANCE.
_MISLAS_CIFAR: dict[str, Any] = {
    "views": {"classification": "crop-flip"},
    "optim": {"epochs": 10, "batch": 128, "lr": 0.1, "weight_decay": 2e-4},
}
_MISLAS_NOTE = "stage two, for imbalance 100, 50 and 10; its stage one is mixup: docs/methods/mislas.md"

# What the programs of BCL and ConCutMix have at ImageNet size: RandAugment on the classified view, a cosine classifier,
# MLPs as wide as the backbone.
_CONTRASTIVE_BIG: dict[str, Any] = {
    "views": {"classification": "imagenet-classification", "contrastive": "imagenet-contrastive"},
    "model": {"classifier": "cosine"},
    "method": {"alpha": 1.0, "beta": 0.35, "temperature": 0.07, "hidden": 2048, "dim": 1024},
}


def _concutmix_big(omega: float, rectify_start: float) -> dict[str, Any]:
    own = {"tau": 0.99, "omega": omega, "topk": 30, "rectify_start": rectify_start}
    return {**_CONTRASTIVE_BIG, "method": {**_CONTRASTIVE_BIG["method"], **own}}


_BIG_NOTE = "no warm-up is our reading; tau was chosen on their val list"
_BCL_BIG_NOTE = "as the ConCutMix authors' runs, whose base it is; no warm-up is our reading"

# The paper states mu for all data and the masking probability for ImageNet-LT; the rest is our reading.
_SMCL_IMAGENET: dict[str, Any] = {
    "method": {"mu": 0.3, "mask_start": 0.8, "mask_probability": 0.4, "temperature": 0.07},
}
_SMCL_IMAGENET_NOTE = "mu and masking probability are the paper's; start, optimizer, views, temperature our reading"

_MEETING_NOTE = "tau, omega and K are the ConCutMix authors', place and mu untuned"

_SCENES_NOTE = "backbone, epochs and rate of the preset, in a few trials with seed 0"

TUNED: dict[str, Tuned] = {
    "cifar100/concutmix": Tuned({"method": _CONCUTMIX_CIFAR100}, "authors' program", "tau is theirs for imbalance 100"),
    "scenes/ce": Tuned({}, "ours (selected on val)", _SCENES_NOTE),
    "scenes/concutmix": Tuned({}, "ours (selected on val)", _SCENES_NOTE),
    "cifar100/smcl-concutmix": Tuned({"method": _CONCUTMIX_CIFAR100}, "authors' program", _MEETING_NOTE),
    "cifar10/smcl-concutmix": Tuned({"method": _CONCUTMIX_CIFAR10}, "authors' program", _MEETING_NOTE),
    "cifar10/smcl": Tuned(_SMCL_CIFAR, "paper", _SMCL_NOTE),
    "cifar100/smcl": Tuned(_SMCL_CIFAR, "paper", _SMCL_NOTE),
    "scenes/smcl-concutmix": Tuned({}, "ours (selected on val)", "mu 0.3 rather than 0.1, two seeds"),
    "scenes/smcl": Tuned({}, "ours (selected on val)", "the paper's masking stood a trial of five on val, one seed"),
    "cifar10/concutmix": Tuned({"method": _CONCUTMIX_CIFAR10}, "authors' program", "tau is theirs for imbalance 100"),
    "imagenet-lt/concutmix": Tuned(_concutmix_big(200 / 255, 0.7), "authors' program", _BIG_NOTE),
    "inat18/concutmix": Tuned(
        {**_concutmix_big(1628 / 255, 0.8), "optim": {"accumulate": 2}}, "authors' program", _BIG_NOTE
    ),
    "imagenet-lt/bcl": Tuned(_CONTRASTIVE_BIG, "authors' program", _BCL_BIG_NOTE),
    "inat18/bcl": Tuned(_CONTRASTIVE_BIG, "authors' program", _BCL_BIG_NOTE),
    "imagenet-lt/paco": Tuned(
        {"method": {"alpha": 0.05, "temperature": 0.2}},
        "authors' program",
        "alpha and T alone; the rest is the preset's",
    ),
    "imagenet-lt/smcl": Tuned(_SMCL_IMAGENET, "paper", _SMCL_IMAGENET_NOTE),
    "cifar10/mislas": Tuned(_MISLAS_CIFAR, "authors' program", _MISLAS_NOTE),
    "cifar100/mislas": Tuned(_MISLAS_CIFAR, "authors' program", _MISLAS_NOTE),
}


# One view, class-balanced CutMix and logit adjustment, 250 epochs: 0.42 times the image passes of 200 epochs of
# ConCutMix, at batch 128. What was compared on val and on images that the subset left unused, and what was not:
# docs/log.md. test.tau is that of 250 epochs; shorter runs want less. Evaluated rarely, for each evaluation renews
# batch-norm's statistics and answers every image twice.
_FAST_CIFAR100: dict[str, Any] = {
    "views": {"classification": "autoaugment", "refined": "crop-flip", "refined_start": 0.88},
    "model": {"classifier": "cosine"},
    "optim": {
        "epochs": 250,
        "batch": 128,
        "lr": 0.2,
        "nesterov": True,
        "schedule": "cosine",
        "warmup_epochs": 2,
        "swa_start": 0.66,
    },
    "method": {"criterion": "logit-adjustment", "mix_start": 0.016, "mix_stop": 0.868},
    "test": {"flip": True, "tau": 0.3},
    "run": {"evaluate_every": 20},
}

NAMED: dict[str, Named] = {
    "cifar100/fast": Named(_FAST_CIFAR100, "ours (selected on val)", "unused images, one seed", method="cmo"),
}
"""Recipes ``DATASET/NAME`` beside those of each pair of a data set and a method."""


def _mislas(head: float, tail: float, classifier_rate: float, shift: bool) -> dict[str, Any]:
    return {"smooth_head": head, "smooth_tail": tail, "classifier_rate": classifier_rate, "shift": shift}


OF_IMBALANCE: dict[str, dict[float, dict[str, Any]]] = {
    "cifar100/concutmix": {100.0: {"tau": 0.9}, 50.0: {"tau": 0.75}, 10.0: {"tau": 1.0}},
    "cifar10/concutmix": {100.0: {"tau": 0.85}, 50.0: {"tau": 0.81}, 10.0: {"tau": 1.0}},
    "cifar10/mislas": {
        100.0: _mislas(0.3, 0.0, 0.5, False),
        50.0: _mislas(0.2, 0.0, 0.2, False),
        10.0: _mislas(0.1, 0.0, 0.2, False),
    },
    "cifar100/mislas": {
        100.0: _mislas(0.4, 0.1, 0.2, True),
        50.0: _mislas(0.3, 0.0, 0.1, True),
        10.0: _mislas(0.2, 0.0, 0.1, True),
    },
}
"""``method.*`` that a source has for each imbalance: the ConCutMix authors' strength of logit adjustment (chosen on the
test set), and the second stage of the MiSLAS authors' program (which has no val set)."""
