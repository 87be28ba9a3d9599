"""Two gloo processes are as one process on the same global batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from longtail.errors import ConfigError
from longtail.processes.sharing import ALONE, Shares, Sharing
from longtail.recipes import load_config
from longtail.rng import generator
from longtail.training.listeners import Silent
from longtail.training.starting import share_out
from several import ORDERS, five_steps, scores
from tiny import write_npz


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two processes came to."""
    folder = tmp_path_factory.mktemp("pair")
    write_npz(folder / "tiny.npz")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-W", "error", str(Path(__file__).with_name("several.py")), str(folder)]
    both = [
        subprocess.Popen([*words, str(number), str(port)], env=environment, stderr=subprocess.PIPE, text=True)
        for number in range(2)
    ]
    try:
        said = [process.communicate(timeout=240)[1] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], said
    return folder


@pytest.fixture(scope="module")
def came_to(pair: Path) -> Callable[[str], list[dict[str, Tensor]]]:
    """What an order came to in each of the two."""
    return lambda order: [load_file(pair / f"{ORDERS.index(order)}-{number}.safetensors") for number in range(2)]


CONTRASTED = ("bcl", "concutmix", "supcon", "paco", "micro-batches", "sharpness")
"""Beginnings of the orders with a loss between images: its sums are rounded otherwise where rows were gathered."""


def difference(one: dict[str, Tensor], other: dict[str, Tensor], kind: str) -> float:
    """|a - b| / |b| over all tensors of a kind together: "model", "momentum" or "losses"."""
    assert one.keys() == other.keys()
    names = [name for name in one if name.startswith(kind)]
    a, b = (torch.cat([tensors[name].double().flatten() for name in names]) for tensors in (one, other))
    found = float((a - b).norm() / b.norm())
    print(f"{kind} differ by {found:.1e}")
    return found


def is_contrasted(order: str) -> bool:
    return order.removeprefix("smcl-").startswith(CONTRASTED)


@pytest.mark.parametrize("order", ORDERS)
def test_both_processes_end_with_the_same_bits(order: str, came_to: Callable[[str], list[dict[str, Tensor]]]) -> None:
    first, second = came_to(order)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("order", [order for order in ORDERS if "sync" not in order])
def test_two_processes_are_one_that_normalizes_two_shards_apart(
    order: str, pair: Path, came_to: Callable[[str], list[dict[str, Tensor]]]
) -> None:
    found = came_to(order)[0]
    expected = five_steps(order, pair / "tiny.npz", shards=4 if "four" in order else 2)
    # Images are resampled to fewer pixels in the network, half a batch at a time: other sums.
    if is_contrasted(order) or "four" in order or "small images" in order:
        assert difference(found, expected, "model") <= 1e-6
        assert difference(found, expected, "losses") <= 1e-6
        assert difference(found, expected, "momentum") <= 1e-5
    else:
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("order", [order for order in ORDERS if "sync" in order])
def test_with_synchronized_batch_norm_two_processes_are_one_on_the_whole_batch(
    order: str, pair: Path, came_to: Callable[[str], list[dict[str, Tensor]]]
) -> None:
    found, expected = came_to(order)[0], five_steps(order, pair / "tiny.npz")
    assert difference(found, expected, "model") <= 1e-5
    assert difference(found, expected, "losses") <= 1e-5
    assert difference(found, expected, "momentum") <= 1e-4


def test_shards_change_what_a_step_comes_to(pair: Path) -> None:
    whole, apart = (five_steps("ce", pair / "tiny.npz", shards=shards) for shards in (1, 2))
    assert difference(whole, apart, "model") > 1e-3


@pytest.mark.parametrize("images", [1, 5, 13, 21])
def test_every_image_is_scored_once_by_two_processes(images: int, pair: Path) -> None:
    for number in range(2):
        assert torch.equal(
            load_file(pair / f"others-{number}.safetensors")[str(images)], scores(pair / "tiny.npz", images)
        )


def test_the_gradient_of_gathered_rows_is_theirs_times_the_processes(pair: Path) -> None:
    for number, rows in enumerate((slice(0, 3), slice(3, 5))):
        found = load_file(pair / f"others-{number}.safetensors")
        torch.testing.assert_close(found["loss"], found["rows"].pow(3).sum())
        torch.testing.assert_close(found["gradient"], 2 * 3 * found["rows"][rows].square())


@pytest.mark.parametrize("images", range(1, 40))
@pytest.mark.parametrize(("shards", "processes", "least"), [(2, 2, 2), (4, 2, 2), (3, 3, 1), (6, 1, 2), (5, 5, 2)])
def test_every_image_has_one_process_and_none_is_alone(images: int, shards: int, processes: int, least: int) -> None:
    shares = [Sharing(shards, processes, number, least).of(images) for number in range(processes)]
    rows = [image for one in shares if one is not None for image in range(images)[one.rows]]
    assert rows == list(range(images))
    for number, one in enumerate(shares):
        assert one is not None
        assert sum(one.sizes) == images
        assert one.counts[number] == len(range(images)[one.rows]) == sum(one.sizes[shard] for shard in one.own)
        assert all(size == 0 or size >= min(least, images) for size in one.sizes)
        assert max(one.sizes) - min(size for size in one.sizes if size) <= 1


def test_one_process_without_shards_shares_nothing() -> None:
    assert ALONE.of(7) is None
    values = torch.randn(4, 2, generator=generator("values"))
    assert Shares((2, 2)).in_full(values) is values


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.bn=sync", "model.bn_shards=2"], "contradicts model.bn=sync"),
        (["model.bn_shards=8", "optim.batch=15"], "too small for 8 shards"),
        (["model.bn_shards=4", "optim.batch=16", "optim.accumulate=3"], "16 in 3 parts is too small"),
    ],
)
def test_shards_that_leave_batch_norm_nothing_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        share_out(load_config("npz/ce", words), {}, Silent())
