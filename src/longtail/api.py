"""The Python entry: train by recipe name, and get back a run with its results, model and report."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtail.data.images import Source
from longtail.data.open import open_data
from longtail.data.prepare import Prepared
from longtail.errors import ConfigError, DataError
from longtail.evaluation.evaluate import Evaluation, compare_numbers, evaluate
from longtail.evaluation.scoring import AS_TRAINED, ScoringSettings, describe_scoring
from longtail.files import read_json
from longtail.prediction.predict import load
from longtail.processes.device import resolve_device, threads_kept
from longtail.processes.distributed import is_first, job, leave
from longtail.recipes import load_config
from longtail.report.page import write_report
from longtail.runs.ending import stoppable
from longtail.runs.exported import CARD, exported_config, is_exported, read_about
from longtail.runs.rundir import RunDir
from longtail.training.listeners import Listener, Silent
from longtail.training.loop import train as train_config
from longtail.training.starting import default_out, pin_threads, refuse_choice_without_val
from longtail.training.state import stored_config

if TYPE_CHECKING:
    from torch import Tensor

    from longtail.config import Config
    from longtail.prediction.predict import Model


class Run:
    """A run folder that has finished: ``path``, ``results`` (results.json), ``report`` (a page), ``model()``."""

    def __init__(self, path: str | Path, results: dict[str, Any] | None = None) -> None:
        self.path = Path(path)
        self.results: dict[str, Any] = read_json(self.path / "results.json") if results is None else results
        self.report = self.path / "report.html"

    def model(self, which: str = "last") -> Model:
        """The trained network, ready to predict."""
        return load(self.path, which=which)

    def metrics(self) -> list[dict[str, Any]]:
        """One dict per evaluated epoch."""
        return RunDir(self.path).read_metrics()

    def __repr__(self) -> str:
        last = self.results["last"]
        return f"Run({str(self.path)!r}, last epoch top1={last['top1']:.4f})"


def train(
    recipe: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    listener: Listener | None = None,
    source: Source | None = None,
    saliency: Callable[[Tensor], Tensor] | None = None,
    **settings: Any,
) -> Run:
    """Train a recipe (``"cifar100/concutmix"``) or a YAML file with settings laid over it, and write its report.

    Settings are keys or groups of keys: ``seed=1, data={"path": ...}, optim={"epochs": 20}, out="runs/x"``. Images in
    memory are ``train("arrays/concutmix", source=longtail.data.from_arrays(images, labels))``. ``saliency`` takes the
    place of a method's detector: a function of uint8 (B, 3, H, W) to maps (B, H, W). Raises the errors of
    :mod:`longtail.errors`, each with a message that says what to do.
    """
    values = _plain(settings)
    return run_config(
        load_config(recipe, values),
        resume=resume,
        overwrite=overwrite,
        listener=listener,
        source=source,
        saliency=saliency,
    )


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as YAML would give them: dicts, and paths as strings."""
    plain: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            plain[name] = _plain(value)
        else:
            plain[name] = os.fspath(value) if isinstance(value, os.PathLike) else value
    return plain


@threads_kept()
def run_config(
    config: Config,
    *,
    resume: bool = False,
    overwrite: bool = False,
    listener: Listener | None = None,
    source: Source | None = None,
    saliency: Callable[[Tensor], Tensor] | None = None,
    command: list[str] | None = None,
) -> Run:
    """Train by a Config, then write plots and report; of several processes (torchrun) the first writes them."""
    with job():
        results = train_config(
            config,
            resume=resume,
            overwrite=overwrite,
            listener=listener,
            source=source,
            saliency=saliency,
            command=command,
        )
        first = is_first()
        leave()
    out = Path(config.out or default_out(config))
    if not first:
        return Run(out, results)
    if not (out / "report.html").is_file():
        with stoppable():  # at once: with --resume the run is found finished and its page is written
            write_report(out)
    return Run(out)


MOVABLE = (
    "data.path",
    "data.root",
    "data.val_path",
    "data.test_path",
    "data.test_profile",
    "run.device",
    "run.threads",
    *(f"test.{name}" for name in ScoringSettings.model_fields),
)


@dataclass(frozen=True)
class Evaluated:
    """An evaluation of finished weights: on what, of ``which``, notes worth saying, and whether the numbers are those
    that the run or the card has (``verdict``; empty where there is nothing to compare)."""

    data: Prepared
    evaluation: Evaluation
    which: str
    notes: list[str]
    verdict: str


@threads_kept()
def evaluate_run(run: str | Path, which: str = "last", settings: Mapping[str, Any] | None = None) -> Evaluated:
    """Evaluate the last or best weights of a run, or those of an exported folder, on the set that results are of.

    ``settings`` may move the images and the computation (``data.path``, ``run.device``, ``run.threads``) and change how
    the network answers (``test.*``); anything else would be another run and raises ConfigError.
    """
    settings = settings or {}
    for group, inner in settings.items():
        for name in inner if isinstance(inner, Mapping) else [None]:
            key = group if name is None else f"{group}.{name}"
            if key not in MOVABLE:
                raise ConfigError(
                    f"'{key}' cannot be changed when a run is evaluated.",
                    hint=f"Only {', '.join(MOVABLE)} and which can.",
                )
    folder = RunDir(run)
    exported = is_exported(folder.path)
    if exported:
        about = read_about(folder.path)
        described, config = about | {"data": about}, exported_config(folder.path, about, settings)
    else:
        described, config = folder.description(), stored_config(folder, settings)
    pin_threads(config, described, Silent())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = load(run, which=which, device=str(resolve_device(config.run.device)))
    notes = [str(warning.message) for warning in caught]
    data = open_data(config.data)
    # A run that was imported without its images knows neither their names nor their digest.
    fingerprint = described["data"]["fingerprint"]
    known = fingerprint is not None
    if list(data.class_names) != model.class_names if known else len(data.class_names) != len(model.class_names):
        raise DataError(f"The classes of {config.data.path} are not those that {run} was trained on.")
    if known and data.fingerprint != fingerprint:
        notes.append("these are not the images that the run was trained and evaluated on")
    refuse_choice_without_val(config, data, training=False)  # an early end was chosen when the run was trained
    images = data.evaluation.to(next(model.method.parameters()).device)
    evaluation = evaluate(model.method, images, data, model.view, config.data.groups, config.test)
    if evaluation.scoring != AS_TRAINED:
        notes.append("answers with " + describe_scoring(evaluation.scoring, config.test))
    verdict, recorded = "", model.recorded
    if recorded is not None and data.fingerprint == fingerprint and "test" not in settings:
        whose = f"the card ({folder.path / CARD})" if exported else "the run"
        verdict = compare_numbers(evaluation.numbers(), recorded, len(evaluation.targets), whose)
    return Evaluated(data, evaluation, model.which, notes, verdict)
