"""What the package stands on: a reason for every dependency, none that is not used, none with a known hole."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REASONS = (ROOT / "docs" / "decisions" / "0006-dependencies.md").read_text()

DIRECT = sorted(
    {
        re.split(r"[<>=!~\[; ]", wanted)[0]
        for group in ([*PROJECT["dependencies"]], *PROJECT["optional-dependencies"].values())
        for wanted in group
    }
)


@pytest.mark.parametrize("name", DIRECT)
def test_every_direct_dependency_has_a_reason(name: str) -> None:
    assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", REASONS), (
        "say why in docs/decisions/0006-dependencies.md"
    )


def test_no_test_reaches_the_network_and_this_machine_can_be_reached() -> None:
    with socket.socket() as own, pytest.raises(OSError, match="do without a network"):
        own.connect(("192.0.2.1", 80))
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()[:2]):
        pass


@pytest.mark.slow
def test_every_import_is_declared_and_every_dependency_imported() -> None:
    found = subprocess.run([sys.executable, "-m", "deptry", "src"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


@pytest.mark.slow
def test_no_dependency_has_a_known_vulnerability() -> None:
    """Asks the advisory database of PyPI; without a network it is skipped, and says so."""
    outside = {name: value for name, value in os.environ.items() if name.lower() not in ("http_proxy", "https_proxy")}
    command = [sys.executable, "-m", "pip_audit", "--progress-spinner=off", "-r", str(ROOT / "constraints.txt")]
    command += ["--no-deps", "--disable-pip"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=outside)
    said = found.stdout + found.stderr
    wanted = len((ROOT / "constraints.txt").read_text().splitlines())
    if "Connection" in said or "resolve" in said or said.count("could not be audited") > wanted / 2:
        pytest.skip("the advisory database could not be reached")
    assert found.returncode == 0, said
