"""All methods by name. A named method is a class with its settings' defaults; nothing registers itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from longtail.methods.base import Batch, DataNeeds, Method, Progress, StepOutput
from longtail.methods.concutmix import ConCutMix, ConCutMixSettings
from longtail.methods.paco import PaCo, PaCoSettings
from longtail.methods.plain import Plain, PlainSettings
from longtail.methods.smcl import SMCL, SMCLSettings
from longtail.methods.smcl_concutmix import SMCLConCutMix, SMCLConCutMixSettings
from longtail.methods.two_stage import TwoStage, TwoStageSettings
from longtail.models.network import ModelSettings
from longtail.settings import Settings

__all__ = ["METHODS", "Batch", "DataNeeds", "Method", "MethodEntry", "Progress", "StepOutput"]


class _Build(Protocol):
    def __call__(
        self, settings: Any, model: ModelSettings, counts: Sequence[int], *, size: int, seed: int
    ) -> Method: ...


@dataclass(frozen=True)
class MethodEntry:
    """A row of ``METHODS``: what builds it, its settings and the point in them that carries the name.

    ``model`` is what a recipe of the method sets under ``model.*``, where its paper asks for a network of its own, and
    ``test`` what it sets under ``test.*``, where its point is how a trained network answers. ``optim`` is what it sets
    under ``optim.*`` for a stage that is short whatever the data.
    """

    build: _Build
    settings: type[Settings]
    summary: str
    paper: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    test: Mapping[str, Any] = field(default_factory=dict)
    optim: Mapping[str, Any] = field(default_factory=dict)


# The rate restarts at that of the first stage and falls by a cosine, in paper and programs of both.
_STAGE_TWO: dict[str, Any] = {"schedule": "cosine", "warmup_epochs": 0}

METHODS: dict[str, MethodEntry] = {
    "ce": MethodEntry(
        Plain,
        PlainSettings,
        "cross-entropy on the images as they come",
        "the baseline of every paper",
        {"criterion": "ce"},
    ),
    "balanced-softmax": MethodEntry(
        Plain,
        PlainSettings,
        "cross-entropy with the log class prior added to the logits",
        "Ren et al., NeurIPS 2020, arXiv 2007.10740",
        {"criterion": "balanced-softmax"},
    ),
    "logit-adjustment": MethodEntry(
        Plain,
        PlainSettings,
        "cross-entropy with tau times the log class prior added to the logits",
        "Menon et al., ICLR 2021, arXiv 2007.07314",
        {"criterion": "logit-adjustment"},
    ),
    "bcl": MethodEntry(
        Plain,
        PlainSettings,
        "logit-adjusted cross-entropy and balanced contrastive learning with class centers",
        "Zhu et al., CVPR 2022, arXiv 2207.09052",
        {"criterion": "logit-adjustment", "contrast": "balanced", "alpha": 2.0, "beta": 0.6},
    ),
    "concutmix": MethodEntry(
        ConCutMix,
        ConCutMixSettings,
        "bcl with class-balanced CutMix whose labels are rectified by similarity to the class centers",
        "Pan et al., IEEE TIP 2024, arXiv 2407.04911",
    ),
    "focal": MethodEntry(
        Plain,
        PlainSettings,
        "cross-entropy that weighs images less the surer they are right",
        "Lin et al., ICCV 2017, arXiv 1708.02002",
        {"criterion": "focal"},
    ),
    "class-balanced": MethodEntry(
        Plain,
        PlainSettings,
        "cross-entropy with classes weighed by the inverse effective number of images",
        "Cui et al., CVPR 2019, arXiv 1901.05555",
        {"criterion": "class-balanced"},
    ),
    "class-balanced-focal": MethodEntry(
        Plain,
        PlainSettings,
        "focal loss with classes weighed by the inverse effective number of images",
        "Cui et al., CVPR 2019, arXiv 1901.05555",
        {"criterion": "class-balanced-focal"},
    ),
    "ce-drw": MethodEntry(
        Plain,
        PlainSettings,
        "cross-entropy with classes weighed in the last fifth of training",
        "Cao et al., NeurIPS 2019, arXiv 1906.07413",
        {"criterion": "ce-drw"},
    ),
    "ldam-drw": MethodEntry(
        Plain,
        PlainSettings,
        "margins that grow as classes get rarer, and classes weighed in the last fifth of training",
        "Cao et al., NeurIPS 2019, arXiv 1906.07413",
        {"criterion": "ldam-drw"},
        {"classifier": "cosine"},
    ),
    "tau-norm": MethodEntry(
        Plain,
        PlainSettings,
        "cross-entropy, tested with a classifier whose rows are brought closer in length",
        "Kang et al., ICLR 2020, arXiv 1910.09217",
        {"criterion": "ce"},
        test={"tau_norm": 1.0},
    ),
    "smcl": MethodEntry(
        SMCL,
        SMCLSettings,
        "erases the salient part of images and pulls the background that is left toward minority classes",
        "Park et al., ICASSP 2023, arXiv 2406.02223",
        {"criterion": "ce-drw"},
    ),
    "smcl-concutmix": MethodEntry(
        SMCLConCutMix,
        SMCLConCutMixSettings,
        "concutmix that replaces the salient object, and pulls the erased view toward the pasted class",
        "a combination of ours of arXiv 2407.04911 and arXiv 2406.02223",
    ),
    "mixup": MethodEntry(
        Plain,
        PlainSettings,
        "cross-entropy on blends of two images and of their labels",
        "Zhang et al., ICLR 2018, arXiv 1710.09412",
        {"mixing": "mixup", "mix_probability": 1.0},
    ),
    "remix": MethodEntry(
        Plain,
        PlainSettings,
        "mixup whose label goes to the rarer class where its image is not too faint",
        "Chou et al., ECCV workshops 2020, arXiv 2007.03943",
        {"mixing": "remix", "mix_probability": 1.0},
    ),
    "cutmix": MethodEntry(
        Plain,
        PlainSettings,
        "cross-entropy on images with a box of another image, labels mixed by area",
        "Yun et al., ICCV 2019, arXiv 1905.04899",
        {"mixing": "cutmix"},
    ),
    "saliencymix": MethodEntry(
        Plain,
        PlainSettings,
        "cutmix whose box lies around the salient peak of the pasted image",
        "Uddin et al., ICLR 2021, arXiv 2006.01791",
        {"mixing": "saliencymix"},
    ),
    "cmo": MethodEntry(
        Plain,
        PlainSettings,
        "cutmix whose pasted images are drawn class-balanced, off in the first and last epochs",
        "Park et al., CVPR 2022, arXiv 2112.00412",
        {"mixing": "cmo", "partner_sampler": "class_balanced", "mix_start": 0.02, "mix_stop": 0.985},
    ),
    "supcon": MethodEntry(
        Plain,
        PlainSettings,
        "cross-entropy and the supervised contrastive loss of two further views, jointly",
        "Khosla et al., NeurIPS 2020, arXiv 2004.11362",
        {"contrast": "supervised"},
    ),
    "paco": MethodEntry(
        PaCo,
        PaCoSettings,
        "one contrastive loss over class centers, the batch and a queue of keys from a momentum encoder",
        "Cui et al., ICCV 2021, arXiv 2107.12028",
    ),
    "label-aware-smoothing": MethodEntry(
        Plain,
        PlainSettings,
        "cross-entropy whose labels are smoothed more the more images their class has",
        "Zhong et al. (MiSLAS), CVPR 2021, arXiv 2104.00466",
        {"criterion": "label-aware-smoothing"},
    ),
    "crt": MethodEntry(
        TwoStage,
        TwoStageSettings,
        "stage two: a fresh classifier on the frozen backbone of init, from class-balanced draws",
        "Kang et al., ICLR 2020, arXiv 1910.09217",
        {"classifier": "anew"},
        optim={"epochs": 10, **_STAGE_TWO},
    ),
    "lws": MethodEntry(
        TwoStage,
        TwoStageSettings,
        "stage two: a scale per class for the frozen classifier of init, from class-balanced draws",
        "Kang et al., ICLR 2020, arXiv 1910.09217",
        {"classifier": "frozen", "scales": True},
        optim={"epochs": 5, **_STAGE_TWO},
    ),
    "mislas": MethodEntry(
        TwoStage,
        TwoStageSettings,
        "stage two: label-aware smoothing, scales and shifted batch-norm on the frozen backbone of init",
        "Zhong et al., CVPR 2021, arXiv 2104.00466",
        {
            "classifier": "continued",
            "scales": True,
            "shift": True,
            "classifier_rate": 0.2,
            "criterion": "label-aware-smoothing",
        },
        optim={"epochs": 10, **_STAGE_TWO},
    ),
}
