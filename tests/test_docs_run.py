"""The documentation is run: every command and block of a page, in its order, in one folder.

What a reader has and a test has not (CIFAR-100, photographs, a checkpoint of a public program) is stood in for by files
of the same form. Training is cut to one epoch of a small network, but for the pages that are run as they stand.
"""

from __future__ import annotations

import glob
import shutil
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import longtail
from documents import CHECKED, PAGES, ROOT, SHELL, Block, blocks, commands
from longtail.data.longtail import class_counts
from longtail.methods import MethodEntry
from longtail.recipes import load_config
from longtail.rng import numpy_generator
from longtail.training.state import build_method
from miniatures import miniature
from pictures import picture
from processes import Launcher
from test_docs import python_of
from tiny import write_npz

CLASSES = dict(zip(("oak", "ash", "elm", "fir", "yew", "bay", "box"), (60, 40, 25, 15, 10, 7, 5), strict=True))
"""Seven classes of one's own, with a tail of five images."""

RUNS_ALONE = ["README.md", "CONTRIBUTING.md", "docs/saliency.md"]
"""Pages whose Python needs none of their commands."""

WHOLE = ["docs/tutorial.md", "docs/own-images.md"]
"""Pages that are run as they stand, in the slow set, and shortened by default."""

SMALL = ["model.backbone=resnet8", "data.size=48", "optim.batch=16"]
"""What is laid over a recipe for ImageNet-LT."""

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "longtail"]
"""For every ``torchrun``: two processes of this machine."""

RUN = [page for page in PAGES if any(block.not_run is None and block.language in CHECKED for block in blocks(page))]


# What the reader has --------------------------------------------------------------------------------------------------


def small_archive(place: Path) -> None:
    """Noise in the form of CIFAR-100: enough for imbalance 10 and above."""
    write_npz(place, tuple(class_counts(101, 100, 10)), test=2, shape=(32, 32, 3))


def photos(place: Path) -> None:
    for k, (name, count) in enumerate(CLASSES.items()):
        for n in range(count):
            picture(place / name / f"{n}.jpg", 1000 * k + n, height=70 + k, width=90)


def new(place: Path) -> None:
    for n in range(3):
        picture(place / f"{n}.jpg", 10_000 + n, height=80, width=64)


def maps(place: Path) -> None:
    images = sum(class_counts(101, 100, 10))
    np.savez(place, maps=numpy_generator(0, "maps").random((images, 32, 32), dtype=np.float32))


def public_checkpoint(place: Path) -> None:
    """What the ConCutMix authors' program would write of a ResNet-32 that has not been trained."""
    counts = class_counts(500, 100, 100)
    state = build_method(load_config("cifar100/concutmix", ["data.path=none"]), counts, 32).state_dict()
    parts = {"backbone": "encoder", "projection": "head", "center_head": "head_fc", "classifier": "fc"}
    renamed = {}
    for name, value in state.items():
        _, part, rest = name.split(".", 2)
        renamed[f"module.{parts[part]}.{rest}"] = value
    torch.save({"epoch": 200, "arch": "resnet32", "state_dict": renamed, "best_acc1": 50.0, "optimizer": {}}, place)


def pets(place: Path) -> None:
    """Images of cats, dogs and owls."""
    for k, name in enumerate(("cat", "dog", "owl")):
        for n in range(6):
            picture(place / name / f"{n}.png", 20_000 + 10 * k + n)


def run_on_pets(place: Path) -> None:
    """One epoch on them."""
    data = {"path": place.parents[1] / "pets", "size": 32}
    longtail.train("folder/ce", out=place, data=data, optim={"epochs": 1}, run={"threads": 1})


def images_of_scenes(place: Path) -> None:
    write_npz(place, (2,) * 10, shape=(32, 32, 3))


def big_lists(place: Path) -> None:
    """The lists of 20 classes of ImageNet-LT, and beside them its images."""
    images = miniature(place.parent / "IMAGENET", "imagenet-lt", classes=20)
    place.mkdir()
    for path in images.glob("*.txt"):
        path.rename(place / path.name)


STAND_INS: dict[str, Callable[[Path], None]] = {
    "FILE.npz": small_archive,
    "cifar100.npz": small_archive,
    "LISTS": big_lists,
    "MAPS.npz": maps,
    "photos": photos,
    "new": new,
    "photo.jpg": lambda place: new(place.parent / "of-photo") or shutil.copy(place.parent / "of-photo/0.jpg", place),
    "more.npz": images_of_scenes,
    "checkpoint.pth.tar": public_checkpoint,
    "checkpoint": public_checkpoint,
}

OF_PAGE: dict[str, dict[str, Callable[[Path], None]]] = {"docs/taking-away.md": {"pets": pets, "runs/x": run_on_pets}}
"""What a page speaks of as if it were there."""


NEEDS = {"docs/trackers.md": ("tensorboard", "mlflow")}
"""Packages of extras without which a page cannot be followed."""


def furnish(page: str, folder: Path) -> None:
    """Make what the commands and blocks of a page name, and the folders of a clone."""
    text = "\n".join(block.text for block in blocks(page))
    for name, make in {**STAND_INS, **OF_PAGE.get(page, {})}.items():
        if name in text:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            make(folder / name)
    for block in blocks(page):
        if block.file is not None:
            (folder / block.file).write_text(block.text, encoding="utf-8")
    for name in ("studies", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)


# Running --------------------------------------------------------------------------------------------------------------


class Reader:
    """Who follows a page in ``folder``; with ``short``, every training is one epoch."""

    def __init__(self, folder: Path, launch: Launcher, short: bool) -> None:
        self.launch, self.short = launch, short
        self.module = types.ModuleType(f"page_{folder.name}")
        images = numpy_generator(0, "images").integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
        labels = np.arange(40) % 4
        self.own: dict[str, Any] = {
            "images": images,
            "labels": labels,
            "test_images": images,
            "test_labels": labels,
            "others": images,
        }
        self.own["MethodEntry"] = MethodEntry  # of the file that CONTRIBUTING adds a row to
        self.file = folder / f"{self.module.__name__}.py"
        self.module.__file__ = str(self.file)

    def follow(self, block: Block) -> None:
        if block.language in SHELL:
            for words in commands(block.text):
                self.command(words, str(block))
        elif block.language == "python":
            self.python(block)

    def command(self, words: list[str], where: str) -> None:
        expanded = [found for word in words for found in (sorted(glob.glob(word)) if "*" in word else [word])]
        several = expanded[0] == "torchrun"
        assert several or expanded[0] == "longtail", f"{where}: {' '.join(words)} is not run by a test; mark the block"
        expanded = expanded[expanded.index("longtail") + 1 :]
        if self.short and expanded[0] in ("train", "study"):
            expanded += ["optim.epochs=1", "run.threads=1"]
            expanded += ["model.backbone=resnet8"] * any("cifar" in word for word in expanded)
            expanded += SMALL * any("imagenet" in word for word in expanded)
        if several:
            ended = subprocess.run([*TORCHRUN, *expanded], capture_output=True, text=True, timeout=900)
            assert ended.returncode == 0, f"{where}: {' '.join(words)}\n{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}"
            return
        ran = self.launch(*expanded)
        assert ran.wait() == 0, f"{where}: {' '.join(words)}\n{ran.stdout[-2000:]}\n{ran.stderr}"

    def python(self, block: Block) -> None:
        """As a module of its own, whose source pydantic and dataclasses can read."""
        source = self.file.read_text() if self.file.exists() else ""
        text = python_of(block)
        self.file.write_text(source + text)
        self.module.__dict__.update(self.own)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, self.module.__name__, self.module)
            if self.short:
                patch.setattr(longtail, "train", shortened(longtail.train))
            padding = "\n" * source.count("\n")
            exec(compile(padding + text, str(self.file), "exec"), self.module.__dict__)


def shortened(train: Callable[..., Any]) -> Callable[..., Any]:
    """``longtail.train`` for one epoch of a small network."""

    def short(recipe: str, **settings: Any) -> Any:
        settings["optim"] = {**settings.get("optim", {}), "epochs": 1}
        small = {"model": {"backbone": "resnet8"}, "run": {"threads": 1}}
        return train(recipe, **{**small, **settings})

    return short


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def here(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Commands that start in the folder of the page."""
    launcher = Launcher(tmp_path_factory.mktemp("output"))
    yield launcher
    launcher.close()


def follow(page: str, folder: Path, launch: Launcher, *, short: bool) -> None:
    for package in NEEDS.get(page, ()):
        pytest.importorskip(package, reason=f"{page} needs the extra {package!r}")
    furnish(page, folder)
    reader = Reader(folder, launch, short)
    followed = [block for block in blocks(page) if block.not_run is None and block.language in CHECKED]
    assert followed
    for block in followed:
        reader.follow(block)


@pytest.mark.parametrize("page", RUNS_ALONE)
def test_the_python_of_a_page_that_trains_nothing_runs(page: str, folder: Path) -> None:
    """What trains, and what needs what a command left, is run in the slow set."""
    reader = Reader(folder, None, short=True)  # type: ignore[arg-type]  # no command is run
    alone = [block for block in blocks(page) if block.language == "python" and "longtail.train(" not in block.text]
    assert alone
    for block in alone:
        reader.follow(block)


@pytest.mark.parametrize("page", WHOLE)
def test_a_page_for_beginners_runs_with_short_trainings(page: str, folder: Path, here: Launcher) -> None:
    follow(page, folder, here, short=True)
    look_at(page, folder)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", [page for page in RUN if page not in WHOLE])
def test_every_page_runs_with_short_trainings(page: str, folder: Path, here: Launcher) -> None:
    follow(page, folder, here, short=True)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", WHOLE)
def test_a_page_for_beginners_runs_as_it_stands(page: str, folder: Path, here: Launcher) -> None:
    follow(page, folder, here, short=False)
    look_at(page, folder)
    if page == "docs/tutorial.md":
        ce, concutmix = (longtail.Run(folder / "runs" / name).results["last"] for name in ("ce", "concutmix"))
        assert ce["many"] > 0.9, "nearly all right among many"
        assert ce["few"] < 0.4, "a third or less among few"
        assert concutmix["few"] > ce["few"]


def look_at(page: str, folder: Path) -> None:
    """What the page says is there afterwards."""
    if page == "docs/tutorial.md":
        for name in ("scenes.png", "runs/ce/report.html", "runs/compared.html", "runs/concutmix/export/model-last"):
            assert (folder / name).exists(), name
        return
    results = longtail.Run(folder / "runs/photos").results
    assert sorted(results["class_counts"]) == sorted(n - max(1, round(0.2 * n)) for n in CLASSES.values())
    assert results["evaluated_on"] == "held-out"
    assert (folder / "runs/photos/report.html").stat().st_size > 10_000
    lines = (folder / "predictions.csv").read_text().splitlines()
    assert len(lines) == 1 + 3
    assert all(name in lines[0] for name in CLASSES)
    onnx = pytest.importorskip("onnxruntime")
    session = onnx.InferenceSession(str(folder / "runs/photos/export/model-last.onnx"))
    (probabilities,) = session.run(["probabilities"], {"images": np.zeros((1, 3, 64, 64), dtype=np.uint8)})
    assert probabilities.shape == (1, len(CLASSES))


def test_a_page_without_commands_does_not_wait_for_a_process_that_would_run_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("processes.SERVER", "import time; time.sleep(600)")
    launcher = Launcher(tmp_path)
    launcher.close()
    assert launcher.server.returncode == -signal.SIGKILL


def test_a_command_that_fails_is_a_page_that_fails(folder: Path, here: Launcher) -> None:
    with pytest.raises(AssertionError, match="page:1: longtail eval runs/none"):
        Reader(folder, here, short=True).follow(Block("page", 1, "sh", "longtail eval runs/none\n"))
    with pytest.raises(AssertionError, match="mark the block"):
        Reader(folder, here, short=True).follow(Block("page", 1, "sh", "make demo\n"))
