"""Contrastive losses some rows at a time: the same values and gradients, in less memory."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from live_memory import bytes_alive
from longtail.losses import (
    balanced_contrastive_loss,
    balanced_masked_contrastive_loss,
    masked_contrastive_loss,
    supervised_contrastive_loss,
)
from longtail.losses.rows import CHUNK_ENTRIES, WHOLE_ENTRIES, chunk_rows
from longtail.rng import generator

IMAGES, ANCHORS, KEYS, WIDTH, CLASSES = 13, 11, 17, 6, 9


def unit(*shape: int, name: str) -> Tensor:
    drawn = torch.randn(*shape, generator=generator("chunks", name), dtype=torch.float64)
    return F.normalize(drawn, dim=-1).requires_grad_()


def ids(count: int, classes: int, name: str) -> Tensor:
    return torch.randint(classes, (count,), generator=generator("chunks", name))


LABELS, TOWARD, KEY_LABELS = (
    ids(IMAGES, CLASSES, "labels"),
    ids(ANCHORS, CLASSES, "toward"),
    ids(KEYS, CLASSES - 4, "k"),
)
OWN = ids(ANCHORS, KEYS, "own")

# Of the tensors that are differentiated, and the rows at a time.
LOSSES: dict[str, Callable[[list[Tensor], int | None], Tensor]] = {
    "balanced": lambda x, chunk: balanced_contrastive_loss(x[0], LABELS, x[1], temperature=0.1, chunk=chunk),
    "balanced masked": lambda x, chunk: balanced_masked_contrastive_loss(
        x[2], TOWARD, x[0], LABELS, x[1], temperature=0.1, chunk=chunk
    ),
    "supervised": lambda x, chunk: supervised_contrastive_loss(x[0], LABELS, temperature=0.1, chunk=chunk),
    # Some anchors have no positive: the keys lack classes.
    "masked": lambda x, chunk: masked_contrastive_loss(
        x[2], TOWARD, x[3], KEY_LABELS, temperature=0.1, self_index=OWN, row_weight=x[4], chunk=chunk
    ),
}
USED = {"balanced": (0, 1), "balanced masked": (0, 1, 2), "supervised": (0,), "masked": (2, 3, 4)}


def inputs() -> list[Tensor]:
    return [
        unit(IMAGES, 2, WIDTH, name="features"),
        unit(CLASSES, WIDTH, name="centers"),
        unit(ANCHORS, WIDTH, name="anchors"),
        unit(KEYS, WIDTH, name="keys"),
        torch.rand(ANCHORS, generator=generator("chunks", "weight"), dtype=torch.float64).requires_grad_(),
    ]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("chunk", [1, 4, 10])
def test_a_loss_in_chunks_has_the_value_and_the_gradients_of_the_whole(name: str, chunk: int) -> None:
    given = inputs()
    wanted = [given[number] for number in USED[name]]
    whole, parts = LOSSES[name](given, 1000), LOSSES[name](given, chunk)
    assert float(parts.detach()) == pytest.approx(float(whole.detach()), rel=1e-12)
    # A factor, because the gradients of the parts are taken before that of the whole is known.
    expected = torch.autograd.grad(-3 * whole, wanted)
    for one, other in zip(torch.autograd.grad(-3 * parts, wanted), expected, strict=True):
        assert bool((other != 0).any())
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12 * float(other.abs().max()))


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_a_loss_in_chunks_agree_with_finite_differences(name: str) -> None:
    given = inputs()

    def loss(*wanted: Tensor) -> Tensor:
        return LOSSES[name]([dict(zip(USED[name], wanted, strict=True)).get(k, x) for k, x in enumerate(given)], 4)

    assert torch.autograd.gradcheck(loss, [given[number] for number in USED[name]])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_a_loss_in_chunks_of_half_precision_is_computed_in_float32(name: str, kind: torch.dtype) -> None:
    given = [x.detach().to(kind).requires_grad_() for x in inputs()]
    wanted = [given[number] for number in USED[name]]
    whole = LOSSES[name](given, 1000)
    with torch.autocast("cpu", dtype=kind):
        loss = LOSSES[name](given, 4)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, whole, rtol=1e-5, atol=0)
    for one, other in zip(torch.autograd.grad(loss, wanted), torch.autograd.grad(whole, wanted), strict=True):
        assert one.dtype == kind
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02 * float(other.abs().max()))


def test_a_loss_in_chunks_without_a_gradient_is_the_same_number() -> None:
    given = inputs()
    for name, loss in LOSSES.items():
        with torch.no_grad():
            bare = loss(given, 4)
        assert not bare.requires_grad, name
        assert float(bare) == float(loss(given, 4).detach()), name


def test_no_positive_in_any_chunk_is_zero_with_a_graph() -> None:
    anchors, keys = unit(5, 4, name="anchors"), unit(6, 4, name="keys")
    loss = masked_contrastive_loss(anchors, torch.arange(5), keys, torch.full((6,), 9), temperature=0.1, chunk=2)
    assert float(loss.detach()) == 0.0
    for gradient in torch.autograd.grad(loss, [anchors, keys]):
        assert bool((gradient == 0).all())


def test_a_second_derivative_of_a_loss_in_chunks_is_refused() -> None:
    given = inputs()
    (gradient,) = torch.autograd.grad(LOSSES["supervised"](given, 4), given[:1], create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        gradient.sum().backward()


def test_rows_are_taken_at_once_until_the_similarities_outgrow_the_bound() -> None:
    assert chunk_rows(512, 612, None) == 512
    assert chunk_rows(1024, WHOLE_ENTRIES // 1024, None) == 1024
    assert chunk_rows(1024, WHOLE_ENTRIES // 1024 + 1, None) == CHUNK_ENTRIES // (WHOLE_ENTRIES // 1024 + 1)
    assert chunk_rows(3, WHOLE_ENTRIES, None) == 1
    assert chunk_rows(10, 10, 4) == 4
    for chunk in (0, -1):
        with pytest.raises(ValueError, match=f"chunk must be at least 1 row, not {chunk}"):
            supervised_contrastive_loss(inputs()[0], LABELS, temperature=0.1, chunk=chunk)


def test_the_losses_of_eight_thousand_classes_never_hold_the_square_of_anything() -> None:
    """Rows x columns in float32 are 37.5 MB and a one-hot of the columns is 298 MB; the bound is 2 MiB a matrix."""
    images, classes, width = 512, 8142, 8
    features = unit(images, 2, width, name="many").detach().float().requires_grad_()
    centers = unit(classes, width, name="of many").detach().float().requires_grad_()
    labels = ids(images, classes, "of many")
    for loss in (
        lambda: balanced_contrastive_loss(features, labels, centers, temperature=0.1),
        lambda: balanced_masked_contrastive_loss(
            features.flatten(0, 1), labels.repeat(2), features, labels, centers, temperature=0.1
        ),
    ):
        peak, largest = bytes_alive(lambda loss=loss: loss().backward())  # type: ignore[misc]
        assert largest <= 4 * CHUNK_ENTRIES
        assert peak < 8 * 4 * CHUNK_ENTRIES


@pytest.mark.slow
def test_the_balanced_loss_of_inaturalist_takes_less_memory_than_five_times_its_centers() -> None:
    """512 images, 8,142 classes, 1,024 features: centers are 33 MB, the similarities would be 37.5 MB a matrix."""
    code = """
        import pathlib, re, torch
        import torch.nn.functional as F
        from longtail.losses import balanced_contrastive_loss
        from longtail.rng import generator

        def memory(kind):
            return int(re.search(kind + r":\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 1024

        def step(images, classes, width):
            draw = generator("memory")
            features = F.normalize(torch.randn(images, 2, width, generator=draw), dim=2).requires_grad_()
            centers = F.normalize(torch.randn(classes, width, generator=draw), dim=1).requires_grad_()
            labels = torch.randint(classes, (images,), generator=draw)
            pathlib.Path("/proc/self/clear_refs").write_text("5")
            before = memory("VmRSS")
            balanced_contrastive_loss(features, labels, centers, temperature=0.1).backward()
            return memory("VmHWM") - before

        step(64, 1000, 1024)
        print(step(512, 8142, 1024))
    """
    if not sys.platform.startswith("linux"):
        pytest.skip("the peak of a process is read from /proc")
    said = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert float(said.stdout) < 5 * 33.3
