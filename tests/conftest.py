"""What all tests share: the reference vectors beside the checkout, and a say on whether they were there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"

torch.set_num_threads(1)  # the tests run in several processes


@pytest.fixture
def shared() -> Path:
    """The folder of reference vectors beside the checkout; without it a test is skipped, in CI it fails."""
    if not (SHARED / "golden").is_dir():
        message = f"needs the reference vectors in ../{SHARED.name}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return SHARED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in the last lines which tests could not be run for want of the reference vectors."""
    if (SHARED / "golden").is_dir():
        terminalreporter.write_line(f"Reference vectors: ../{SHARED.name}/golden was used.")
        return
    skipped = [report.nodeid for report in terminalreporter.stats.get("skipped", [])]
    terminalreporter.write_line(f"Reference vectors: ../{SHARED.name}/golden is not there; our own oracles were used.")
    for name in skipped:
        terminalreporter.write_line(f"  not run: {name}")
