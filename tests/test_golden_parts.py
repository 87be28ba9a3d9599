"""The parts against numbers that the authors' program of ConCutMix produced."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtail.losses import balanced_contrastive_loss, cross_entropy, logit_adjustment
from longtail.mixing import mix_labels, rectify_labels
from longtail.models import MLPHead, build_backbone, build_classifier

pytestmark = pytest.mark.shared

# A bias before a batch-norm has no gradient but rounding.
WITHOUT_GRADIENT = {"head.0.bias", "head_fc.0.bias"}


def opened(path: Path) -> dict[str, Tensor]:
    with np.load(path) as archive:
        return {key: torch.from_numpy(np.array(archive[key])) for key in archive.files}


@pytest.fixture(scope="module")
def vectors() -> dict[str, Tensor]:
    return {}


@pytest.fixture
def reference(shared: Path, vectors: dict[str, Tensor]) -> dict[str, Tensor]:
    if not vectors:
        vectors.update(opened(shared / "golden" / "concutmix_reference.npz"))
    return vectors


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Norm of the difference over the norm."""
    return float((ours.detach() - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("case", ["c10", "c100", "c1000", "one_class", "pairs"])
def test_balanced_contrastive_loss_and_gradients_are_the_authors(reference: dict[str, Tensor], case: str) -> None:
    at = f"balanced_contrastive/{case}/"
    features = reference[at + "features"].clone().requires_grad_()
    centers = reference[at + "centers"].clone().requires_grad_()
    temperature = float(reference[at + "temperature"])
    loss = balanced_contrastive_loss(features, reference[at + "targets"], centers, temperature=temperature)
    loss.backward()
    assert features.grad is not None
    assert centers.grad is not None
    assert difference(loss, reference[at + "loss"]) < 1e-5
    assert difference(features.grad, reference[at + "grad_features"]) < 1e-5
    assert difference(centers.grad, reference[at + "grad_centers"]) < 1e-5


@pytest.mark.parametrize("case", ["cifar100", "cifar10", "strong"])
def test_rectified_labels_are_the_authors(reference: dict[str, Tensor], case: str) -> None:
    at = f"rectified_label/{case}/"
    label = rectify_labels(
        reference[at + "features"],
        reference[at + "centers"],
        reference[at + "area_label"],
        reference[at + "class_counts"],
        scale=float(reference[at + "scale"]),
        topk=int(reference[at + "topk"]),
    )
    # Relative as well, because the authors' omega makes most entries smaller than the tolerance.
    torch.testing.assert_close(label, reference[at + "label"], rtol=1e-5, atol=1e-9)
    assert float((label - reference[at + "label"]).abs().max()) < 1e-6


@pytest.mark.parametrize("case", ["cifar100", "cifar10", "imagenet"])
def test_logit_adjusted_cross_entropy_is_the_authors(reference: dict[str, Tensor], case: str) -> None:
    at = f"logit_adjusted/{case}/"
    logits = reference[at + "logits"].clone().requires_grad_()
    offset = logit_adjustment(reference[at + "class_counts"], float(reference[at + "tau"]))
    hard = cross_entropy(logits, reference[at + "targets"], offset=offset)
    soft = cross_entropy(logits, reference[at + "soft_targets"], offset=offset)
    (hard + soft).backward()
    assert logits.grad is not None
    assert difference(hard, reference[at + "loss_hard"]) < 1e-5
    assert difference(soft, reference[at + "loss_soft"]) < 1e-5
    assert difference(logits.grad, reference[at + "grad_sum"]) < 1e-5


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_models_of_step_zero_give_the_authors_outputs_losses_and_gradients(shared: Path) -> None:
    # Channels last on one thread sums in the order of the reference. In another order the outputs still agree to 1e-5,
    # but a few of the millions of ReLUs switch, and the gradients of the encoder then differ by 1 %, as they do from
    # those in float64 (whose u is 9e-6 away).
    golden = opened(shared / "golden" / "concutmix_step.npz")
    parts: dict[str, nn.Module] = {
        "encoder": build_backbone("resnet32").to(memory_format=torch.channels_last),
        "fc": build_classifier("linear", 64, 100),
        "head": MLPHead(64, 512, 128),
        "head_fc": MLPHead(64, 512, 128),
    }
    for name, module in parts.items():
        at = f"init/{name}."
        module.load_state_dict({key.removeprefix(at): value for key, value in golden.items() if key.startswith(at)})
        module.train()
    step = {key.removeprefix("step0/"): value for key, value in golden.items() if key.startswith("step0/")}
    batch, counts = len(step["target"]), golden["class_counts"]

    h = parts["encoder"](step["images"].contiguous(memory_format=torch.channels_last))
    logits, u, v = parts["fc"](h[:batch]), parts["head"](h), parts["head_fc"](parts["fc"].weight)
    assert difference(logits, step["logits"]) < 1e-5
    assert difference(u[:batch], step["features_unnormalized"]) < 2e-5
    assert difference(v, step["centers_unnormalized"]) < 1e-5

    one_hot = (F.one_hot(step[name], 100).float() for name in ("target", "partner_target"))
    label = rectify_labels(u[:batch], v, mix_labels(*one_hot, step["lam"]), counts, scale=20 / 255, topk=30)
    torch.testing.assert_close(label, step["rectified_label"], rtol=0, atol=1e-6)

    classification = cross_entropy(logits, label, offset=logit_adjustment(counts, 0.9))
    z = F.normalize(u[batch:], dim=1).view(2, batch, -1).transpose(0, 1)
    contrastive = balanced_contrastive_loss(z, step["target"], F.normalize(v, dim=1), temperature=0.1)
    loss = 2 * classification + 0.6 * contrastive
    assert difference(classification, step["loss_classification"]) < 1e-5
    assert difference(contrastive, step["loss_contrastive"]) < 1e-5
    assert difference(loss, step["loss"]) < 1e-5

    loss.backward()
    gradients = {f"{part}.{name}": p.grad for part, module in parts.items() for name, p in module.named_parameters()}
    assert set(gradients) == {key.removeprefix("grad/") for key in golden if key.startswith("grad/")}
    for name, gradient in gradients.items():
        assert gradient is not None
        if name in WITHOUT_GRADIENT:
            assert float(gradient.norm()) < 1e-5
        elif not name.startswith("encoder."):  # those are in test_golden_step.py, with what another processor may do
            assert difference(gradient, golden[f"grad/{name}"]) < 1e-4, name


def test_backbone_names_are_those_of_the_public_checkpoints(shared: Path) -> None:
    golden = opened(shared / "golden" / "concutmix_step.npz")
    theirs = {
        key.removeprefix("init/encoder."): value.shape
        for key, value in golden.items()
        if key.startswith("init/encoder.")
    }
    assert {key: value.shape for key, value in build_backbone("resnet32").state_dict().items()} == theirs
