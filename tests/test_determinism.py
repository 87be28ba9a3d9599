"""What must not move a run: the seed of Python's hashes, the folder one stands in, the order of files on disk."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longtail.methods import METHODS
from longtail.recipes import load_config
from longtail.rng import numpy_generator
from longtail.training.loop import train
from pictures import folder
from processes import Launcher
from tiny import assignments, outcome, settings_of

QUICK = ("concutmix", "paco", "smcl")
EVERY = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
"""Three methods by default, and every one there is in the slow set."""


def words_for(method: str, images: Path, out: Path) -> list[str]:
    small = settings_of(method)
    small["data"] |= {"path": str(images), "size": 8}
    return [f"folder/{method}", *assignments(small), f"out={out}"]


def run(method: str, images: Path, out: Path) -> dict[str, Any]:
    small = settings_of(method, out=str(out))
    small["data"] |= {"path": str(images), "size": 8}
    train(load_config(f"folder/{method}", small))
    return outcome(out)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures, in classes of 9, 6, 4 and 2."""
    return folder(tmp_path_factory.mktemp("images") / "set", train=[9, 6, 4, 2], test=[2, 2, 2, 2])


@pytest.fixture(scope="module")
def expected(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """What a run in this process ends with; each method runs once."""
    known: dict[str, dict[str, Any]] = {}

    def ends(method: str) -> dict[str, Any]:
        if method not in known:
            known[method] = run(method, images, tmp_path_factory.mktemp("expected") / "run")
        return known[method]

    return ends


@pytest.fixture(scope="module", params=["0", "1", pytest.param("4294967295", marks=pytest.mark.slow)])
def seeded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Starts commands in an interpreter whose hashes have another seed than this one's."""
    launcher = Launcher(tmp_path_factory.mktemp("seeded"), PYTHONHASHSEED=request.param)
    yield launcher
    launcher.close()


@pytest.mark.parametrize("method", EVERY)
def test_the_seed_of_pythons_hashes_does_not_change_a_run(
    seeded: Launcher, images: Path, tmp_path: Path, expected: Callable[[str], dict[str, Any]], method: str
) -> None:
    command = seeded("train", *words_for(method, images, tmp_path / "run"))
    assert command.wait() == 0, command.stderr
    assert outcome(tmp_path / "run") == expected(method)


def test_hashes_do_differ_between_those_seeds() -> None:
    """Else the test above would show nothing."""
    program = [sys.executable, "-c", "print(hash('longtail'))"]
    said = {
        subprocess.run(program, env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True).stdout
        for seed in ("0", "1", "4294967295")
    }
    assert len(said) == 3


@pytest.mark.parametrize(
    "method", [name if name == "concutmix" else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
)
@pytest.mark.parametrize("order", ["reversed", "shuffled"])
def test_the_order_that_a_disk_lists_files_in_and_the_folder_one_stands_in_do_not_change_a_run(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    expected: Callable[[str], dict[str, Any]],
    order: str,
    method: str,
) -> None:
    """Every listing that Python gives is in another order, and no image comes from the cache."""
    asked = 0

    def other(listing: list[Any]) -> list[Any]:
        nonlocal asked
        asked += 1
        if order == "reversed":
            return sorted(listing, key=lambda entry: os.fsencode(os.fspath(entry)), reverse=True)
        return [listing[place] for place in numpy_generator(asked, "listing").permutation(len(listing))]

    class Scanned(list[Any]):
        def __enter__(self) -> Scanned:
            return self

        def __exit__(self, *given: object) -> None:
            pass

        def close(self) -> None:
            pass

    whole = expected(method)
    list_folder, scan_folder = os.listdir, os.scandir
    monkeypatch.setattr(os, "listdir", lambda *given: other(list_folder(*given)))

    def scan(*given: Any) -> Scanned:
        with scan_folder(*given) as entries:
            return Scanned(other(list(entries)))

    monkeypatch.setattr(os, "scandir", scan)
    monkeypatch.setenv("LONGTAIL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = run(method, images, tmp_path / "run")
    monkeypatch.undo()
    assert asked > 10
    assert found == whole
