"""What all tests share: the reference vectors beside the checkout, and a say on whether they were there."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import settings

from longtail.models import BACKBONES
from processes import Launcher
from tiny import tiny_config, tiny_transformer, write_npz

if TYPE_CHECKING:
    from longtail.api import Run

SHARED = Path(__file__).resolve().parents[2] / "shared"

torch.set_num_threads(1)  # the tests run in several processes

# A shared machine stalls now and then: a test is to fail for what it finds, not for when.
settings.register_profile("longtail", deadline=None, derandomize=os.environ.get("CI") == "true")
settings.load_profile("longtail")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the cache of whoever runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LONGTAIL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """Nothing but this machine can be reached; processes that are started find a proxy that nobody answers at."""
    real = socket.socket.connect

    def connect(own: socket.socket, address: Any) -> None:
        if own.family in (socket.AF_INET, socket.AF_INET6) and not is_loopback(str(address[0])):
            raise OSError(f"Tests do without a network, and this one asks for {address[0]}.")
        real(own, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect)
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            patch.setenv(name, "http://127.0.0.1:9")
        patch.setenv("no_proxy", "localhost,127.0.0.1,::1")
        yield


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    return host in ("localhost", "") or host.startswith("127.") or host == "::1"


TOGETHER = ("test_browser", "test_big_lists")
"""Files whose tests share what takes long to make: with ``--dist loadgroup`` one process runs all of them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in TOGETHER:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture
def shared() -> Path:
    """The folder of reference vectors beside the checkout; without it a test is skipped, in CI it fails."""
    if not (SHARED / "golden").is_dir():
        message = f"needs the reference vectors in ../{SHARED.name}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return SHARED


@pytest.fixture(scope="session")
def tiny_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """21 training and 12 test images of 8 x 8 pixels in 4 classes."""
    return write_npz(tmp_path_factory.mktemp("data") / "tiny.npz")


@pytest.fixture(scope="module")
def tiny_vit() -> Iterator[str]:
    """The name of a vision transformer of two blocks and patches of 4 pixels, known while a module's tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny-vit", tiny_transformer)
        yield "tiny-vit"


@pytest.fixture(scope="session")
def finished_run(tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of ConCutMix with its report, to be looked at and left alone."""
    from longtail.api import run_config  # it loads Matplotlib, which most tests do without

    return run_config(tiny_config("concutmix", tiny_npz, tmp_path_factory.mktemp("runs") / "finished"))


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """``launch("train", ...)`` starts the command in a process of its own."""
    launcher = Launcher(tmp_path_factory.mktemp("commands"))
    yield launcher
    launcher.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in the last lines which tests could not be run for want of the reference vectors."""
    if (SHARED / "golden").is_dir():
        terminalreporter.write_line(f"Reference vectors: ../{SHARED.name}/golden was used.")
        return
    skipped = [report.nodeid for report in terminalreporter.stats.get("skipped", [])]
    terminalreporter.write_line(f"Reference vectors: ../{SHARED.name}/golden is not there; our own oracles were used.")
    for name in skipped:
        terminalreporter.write_line(f"  not run: {name}")
