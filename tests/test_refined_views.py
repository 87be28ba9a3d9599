"""A weaker augmentation in the last part of a run: when it begins, what it changes, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from longtail.config import ViewSettings
from longtail.data.batch import DataNeeds, Progress
from longtail.data.files import load_files
from longtail.data.images import ImageSet
from longtail.data.loader import Loader
from longtail.data.open import open_data
from longtail.data.stream_loader import StreamLoader, loader_for
from longtail.data.views import VIEWS, View, ViewSpec, build_view
from longtail.data.views.geometry import Flip
from longtail.errors import ConfigError
from longtail.recipes import load_config
from longtail.report import samples
from longtail.rng import generator
from longtail.runs.rundir import RunDir, read_json
from longtail.training.feeding import build_loader, build_views
from longtail.training.loop import train
from longtail.training.state import build_method
from test_streaming import picture, settings
from tiny import ends_as_unbroken, outcome, tiny_config

SIDE = 8
START = 1
"""Of two epochs."""
LATE: dict[str, Any] = {"views": {"classification": "autoaugment", "refined": "plain", "refined_start": START}}
ROLES = ("classification", "contrastive")


def made(train: ImageSet, views: dict[str, View], **own: Any) -> Loader:
    needs = DataNeeds(views=ROLES, partner_views=("classification",))
    return loader_for(train)(train, needs, views, 8, 2, 5, **own)


def views(classification: str, refined: str) -> dict[str, View]:
    names = {"classification": classification, "contrastive": "contrastive", "refined": refined}
    return {role: build_view(name, SIDE, (0.4,) * 3, (0.2,) * 3) for role, name in names.items()}


def images() -> ImageSet:
    labels = torch.arange(3).repeat_interleave(torch.tensor([12, 6, 3]))
    pixels = torch.randint(256, (len(labels), 3, SIDE, SIDE), generator=generator("refined"), dtype=torch.uint8)
    return ImageSet(pixels, labels, torch.arange(len(labels)))


def files(root: Path) -> ImageSet:
    for split, counts in (("train", (12, 6, 3)), ("test", (1, 1, 1))):
        for k, count in enumerate(counts):
            for n in range(count):
                picture(root / split / "abc"[k] / f"{n}.png", 100 * k + n, height=11 + n % 3, width=10 + n % 5)
    return load_files(settings("folder", root, stream=True)).train


# When -----------------------------------------------------------------------------------------------------------------


def test_it_begins_at_a_fraction_or_an_epoch() -> None:
    own = ViewSettings(refined="crop-flip", refined_start=0.88)
    assert own.refined_from(250) == 220
    assert own.resolved(250) == {"refined_start": 220}
    assert own.names["refined"] == "crop-flip"
    assert ViewSettings(refined="crop-flip", refined_start=7).refined_from(250) == 7
    assert ViewSettings(refined="plain", progressive_size=16).resolved(40) == {
        "progressive_stop": 20,
        "refined_start": 36,
    }


def test_without_one_there_is_no_such_view_and_no_such_time() -> None:
    assert ViewSettings().refined_from(250) is None
    assert ViewSettings().resolved(250) == {}
    assert "refined" not in ViewSettings().names


# Batches --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("refined", ["crop-flip", "resized-crop"])
def test_from_then_on_the_classified_view_of_images_and_partners_is_the_refined_one(
    refined: str, streams: bool, workers: int, tmp_path: Path
) -> None:
    """Bit for bit what a loader makes that has the one or the other throughout; contrastive views stay.

    A resized crop is cut from the whole file, any other view from its middle square.
    """
    train = files(tmp_path) if streams else images()
    changing = made(train, views("autoaugment", refined), refined_from=START, workers=workers)
    assert type(changing) is (StreamLoader if streams else Loader)
    before, after = (made(train, views(name, refined)) for name in ("autoaugment", refined))
    differ = 0
    for step, batch in enumerate(changing.iterate(0, 2 * changing.steps_per_epoch, lambda at: True)):
        one, other = (tensors(loader, step) for loader in (before, after))
        expected = one if changing.progress(step).epoch < START else other
        assert batch.partner is not None
        found = [*batch.views, *batch.partner.views, batch.index]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert torch.equal(batch.views[1], one[1])
        differ += not torch.equal(one[0], other[0])
    assert differ == 2 * changing.steps_per_epoch, "the two views would tell"


def tensors(loader: Loader, step: int) -> list[Tensor]:
    batch = loader.batch(step, with_partner=True)
    assert batch.partner is not None
    return [*batch.views, *batch.partner.views, batch.index]


# Runs -----------------------------------------------------------------------------------------------------------------


def test_a_run_changes_where_it_begins_and_says_when(tiny_npz: Path, tmp_path: Path) -> None:
    own = {"views": {"classification": "autoaugment"}, "run": {"evaluate_every": 1}}
    train(tiny_config("ce", tiny_npz, tmp_path / "same", **own))
    train(tiny_config("ce", tiny_npz, tmp_path / "run", **LATE))
    one, other = (RunDir(tmp_path / name).read_metrics() for name in ("same", "run"))
    assert one[0]["loss"] == other[0]["loss"]
    assert one[1]["loss"] != other[1]["loss"]
    assert read_json(tmp_path / "run" / "run.json")["schedule"]["views"] == {"refined_start": START}


def test_a_fraction_that_leaves_a_short_run_no_epoch_changes_nothing(tiny_npz: Path, tmp_path: Path) -> None:
    """Else no recipe that has one could be tried in an epoch."""
    train(tiny_config("ce", tiny_npz, tmp_path / "same"))
    train(tiny_config("ce", tiny_npz, tmp_path / "run", views={"refined": "plain", "refined_start": 0.9}))
    assert outcome(tmp_path / "run")["last"] == outcome(tmp_path / "same")["last"]
    assert "views" not in read_json(tmp_path / "run" / "run.json")["schedule"]


@pytest.mark.parametrize("method", ["cmo", "smcl", "concutmix"])
def test_resumed_on_either_side_of_it_a_run_ends_bit_for_bit(method: str, tiny_npz: Path, tmp_path: Path) -> None:
    ends_as_unbroken(method, LATE, tiny_npz, tmp_path, stops=(2, 3, 5))


def test_the_page_shows_it_by_its_name(tiny_npz: Path) -> None:
    config = tiny_config("ce", tiny_npz, Path("nowhere"), **LATE)
    data = open_data(config.data)
    method = build_method(config, data.stats.counts, SIDE)
    loader = build_loader(config, data.train, method, build_views(config, data))
    last = Progress(5, 1, 2, 0)
    run = SimpleNamespace(
        late_steps=lambda: iter([last]),
        loader=loader,
        model=SimpleNamespace(config=config, method=method),
        classes=[SimpleNamespace(group="many")] * 4,
        batch=lambda at, with_partner: loader.batch(at.step, with_partner=with_partner),
        original=lambda position: "the image",
        shot=lambda view, caption, alt: caption,
    )
    shown = samples._views(cast(Any, run))
    assert shown.examples[0].shots == ["the image", "plain"]


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [2, 300, 1.0])
def test_a_start_that_no_run_of_so_many_epochs_reaches_is_refused(start: int | float) -> None:
    """Before any image is read, and so by ``--dry-run`` too."""
    with pytest.raises(ConfigError, match=rf"refined_start={start} leaves none of the 2 epochs"):
        load_config("scenes/ce", ["optim.epochs=2", "views.refined=plain", f"views.refined_start={start}"])


def test_an_unknown_view_is_told_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="crop-flop") as error:
        load_config("scenes/ce", ["views.refined=crop-flop"])
    assert "crop-flip" in f"{error.value} {error.value.hint}"


def test_a_view_that_cannot_carry_salient_peaks_is_refused_before_the_first_step(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Swirl(Flip):
        carries = False

    monkeypatch.setitem(VIEWS, "swirl", ViewSpec("", lambda size, mean: (Swirl(),)))
    own = {"views": {"refined": "swirl", "refined_start": 1}}
    with pytest.raises(ConfigError, match="'swirl' cannot move points"):
        train(tiny_config("smcl", tiny_npz, tmp_path / "run", **own))
    assert not (tmp_path / "run" / "checkpoints").exists()
    train(tiny_config("ce", tiny_npz, tmp_path / "without peaks", **own))
