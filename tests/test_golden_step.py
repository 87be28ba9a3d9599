"""Three whole training steps of ConCutMix against the reference vectors: losses, gradients, weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from longtail.config import OptimSettings
from longtail.methods import METHODS, Method, Progress
from longtail.methods.base import Batch
from longtail.methods.composition import Mixed, soft_target
from longtail.mixing import mix_labels
from longtail.models.network import ModelSettings
from longtail.optim import build_optimizer

Vectors = dict[str, Tensor]

NAMES = {
    "encoder.": "network.backbone.",
    "head.": "network.projection.",
    "fc.": "network.classifier.",
    "head_fc.": "network.center_head.",
}
"""How the reference vectors name what is called otherwise here."""


def ours(name: str) -> str:
    for theirs, here in NAMES.items():
        if name.startswith(theirs):
            return here + name.removeprefix(theirs)
    return name


class GivenMixing:
    """Hands out the images and labels that the reference mixed, so that only the step is compared."""

    def __init__(self) -> None:
        self.given: Mixed | None = None

    def wants_partner(self, at: Progress) -> bool:
        return False

    def __call__(self, images: Tensor, target: Tensor, partner: Batch | None, at: Progress) -> Mixed:
        assert self.given is not None
        return self.given


@pytest.fixture
def vectors(shared: Path) -> Iterator[Vectors]:
    with np.load(shared / "golden" / "concutmix_step.npz") as file:
        yield {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}


def exponential_counts() -> list[int]:
    return [int(500 * 100 ** (-i / 99)) for i in range(100)]


def build(vectors: Vectors) -> tuple[Method, GivenMixing]:
    entry = METHODS["concutmix"]
    settings = entry.settings.model_validate({"tau": 0.9, "omega": 20 / 255, "topk": 30, "rectify_start": 0})
    method = entry.build(settings, ModelSettings(), exponential_counts(), size=32, seed=0)
    mixing = GivenMixing()
    method.mixing = mixing  # type: ignore[assignment]
    state = method.state_dict()
    weights = {ours(name[5:]): value for name, value in vectors.items() if name.startswith("init/")}
    unknown = set(weights) - set(state)
    assert not {name for name in unknown if "linear" not in name}, unknown
    method.load_state_dict(state | {name: weights[name] for name in weights if name in state})
    return method, mixing


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm().clamp_min(1e-12))


@pytest.mark.shared
def test_three_training_steps_are_those_of_the_reference(vectors: Vectors) -> None:
    from longtail.mixing import Box

    torch.set_num_threads(1)
    method, mixing = build(vectors)
    method.train()
    optimizer = build_optimizer(method, OptimSettings(lr=0.05, momentum=0.9, weight_decay=5e-4))
    for step in range(3):
        given = {name.split("/", 1)[1]: value for name, value in vectors.items() if name.startswith(f"step{step}/")}
        images = given["images"].chunk(3)
        target = soft_target(given["target"].long(), 100)
        lam = float(given["lam"]) if "lam" in given else 1.0
        box = None
        if lam < 1.0:
            target = mix_labels(target, soft_target(given["partner_target"].long(), 100), lam)
            box = Box(0, 1, 0, 1, 32, 32)
        mixing.given = Mixed(images[0], target, box, lam)
        # rectify_start is 0 and epochs count from 0: epoch 1 rectifies, epoch 0 does not.
        at = Progress(step=step, epoch=1 if "rectified_label" in given else 0, epochs=20, seed=0)
        optimizer.zero_grad()
        output = method(Batch(tuple(images), given["target"].long(), torch.arange(12)), at)
        output.loss.backward()
        for name, value in (("loss", output.loss.detach()), *((f"loss_{k}", v) for k, v in output.logs.items())):
            if name in given:
                assert float(value) == pytest.approx(float(given[name]), rel=1e-5), (step, name)
        if step == 0:
            assert "rectified_label" in given
            parameters = {name: p for name, p in method.named_parameters()}
            compared = 0
            for name, expected in vectors.items():
                if name.startswith("grad/") and ours(name[5:]) in parameters:
                    gradient = parameters[ours(name[5:])].grad
                    assert gradient is not None, name
                    if float(expected.norm()) > 1e-6:
                        assert relative(gradient, expected) < 1e-4, name
                    compared += 1
            assert compared == len(parameters)
        optimizer.step()
    parameters = dict(nn.Module.named_parameters(method))
    for name, expected in vectors.items():
        if name.startswith("final/") and ours(name[6:]) in parameters:
            assert relative(parameters[ours(name[6:])].detach(), expected) < 1e-4, name
