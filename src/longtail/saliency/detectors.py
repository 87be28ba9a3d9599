"""All saliency detectors by name: what each needs, what it costs, where it is from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from longtail.models.network import Network
from longtail.saliency.image import fine_grained, spectral_residual
from longtail.saliency.learned import scenes_detector
from longtail.saliency.model import attention_rollout, grad_cam, input_gradient
from longtail.saliency.opencv import opencv_fine_grained, opencv_spectral_residual

Kind = Literal["image", "masks", "network", "place"]

ImageDetector = Callable[[Tensor], Tensor]
NetworkDetector = Callable[[Network, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Detector:
    """A row of :data:`DETECTORS`.

    ``kind`` says what the peak depends on: the image alone (found once per data set, and kept), the object masks of the
    set, the network as it is in the step, or nothing at all (a place). ``maps`` is the function of an image detector:
    uint8 (B, 3, H, W) to (B, H, W) in [0, 1]; ``network_maps`` that of a network detector: network, normalized images
    and labels to the same.
    """

    kind: Kind
    summary: str
    cost: str
    source: str
    maps: ImageDetector | None = None
    network_maps: NetworkDetector | None = None


def _learned(images: Tensor) -> Tensor:
    return scenes_detector().maps(images)


ONCE = "once per data set"
EACH = "in each masked step: "

DETECTORS: dict[str, Detector] = {
    "fine-grained": Detector(
        "image",
        "a pixel against its surroundings at six sizes, in integers",
        ONCE,
        "Montabone and Soto 2010, as OpenCV computes it",
        maps=fine_grained,
    ),
    "spectral-residual": Detector(
        "image",
        "what the amplitude spectrum of the image has above its own mean",
        ONCE,
        "Hou and Zhang, CVPR 2007, as OpenCV computes it",
        maps=spectral_residual,
    ),
    "opencv-fine-grained": Detector(
        "image",
        "fine-grained by OpenCV itself (extra opencv)",
        ONCE + ", an image at a time",
        "OpenCV, cv2.saliency",
        maps=opencv_fine_grained,
    ),
    "opencv-spectral-residual": Detector(
        "image",
        "spectral-residual by OpenCV itself (extra opencv)",
        ONCE + ", an image at a time",
        "OpenCV, cv2.saliency",
        maps=opencv_spectral_residual,
    ),
    "learned": Detector(
        "image",
        "a small convolutional network that learned the object masks of the embedded scenes",
        ONCE + ", after some seconds of training",
        "ours",
        maps=_learned,
    ),
    "ground-truth": Detector(
        "masks",
        "the middle of the object, where the data set has object masks (scenes)",
        ONCE,
        "ours",
    ),
    "input-gradient": Detector(
        "network",
        "gradient of the label's logit by the pixels",
        EACH + "forward and backward of the batch",
        "Simonyan et al., arXiv 1312.6034",
        network_maps=input_gradient,
    ),
    "grad-cam": Detector(
        "network",
        "the last feature map, weighted by the gradient of the label's logit",
        EACH + "forward and part of the backward of the batch",
        "Selvaraju et al., arXiv 1610.02391",
        network_maps=grad_cam,
    ),
    "attention-rollout": Detector(
        "network",
        "what the class token attends to through all layers (vision transformers)",
        EACH + "forward of the batch",
        "Abnar and Zuidema, arXiv 2005.00928",
        network_maps=attention_rollout,
    ),
    "random": Detector("place", "a uniform place, drawn anew in each step", "none", "the control of SMCL"),
    "center": Detector("place", "the middle of the image", "none", "the control of SMCL"),
}
