"""``LongTailClassifier``: training and prediction behind scikit-learn's fit and predict."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from longtail.api import run_config
from longtail.config import Config
from longtail.data.images import ImageSet, Source
from longtail.errors import EXIT_INTERRUPT, ConfigError, StoppedError
from longtail.estimator_inputs import as_images, checked_labels, fitted_range, holds_rows, listed
from longtail.evaluation.priors import class_prior
from longtail.files import read_json
from longtail.layers import merge
from longtail.prediction.predict import load
from longtail.processes.device import threads_kept
from longtail.recipes import load_config
from longtail.runs.rundir import RunDir
from longtail.training.display import Lines
from longtail.training.listeners import Listener, Silent
from longtail.training.loop import train
from longtail.training.state import build_method

OWN_KEYS = {
    "epochs": "optim.epochs",
    "batch": "optim.batch",
    "lr": "optim.lr",
    "backbone": "model.backbone",
    "device": "run.device",
    "random_state": "seed",
    "method": "method.name",
    "size": "data.size",
    "out": "out",
}
"""The parameters that stand for a key of the configuration, which ``settings`` then may not hold."""


class LongTailClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A network trained on arrays of images by a method of longtail, as a classifier of scikit-learn.

    ``fit(X, y)`` trains the recipe ``arrays/METHOD`` on every image given: nothing is held out unless ``settings`` say
    so. X is whatever :meth:`longtail.Model.predict` takes: uint8 (N, H, W, 3), (N, 3, H, W) or (N, H, W), floats in
    [0, 1] of those shapes, or a list of PIL images or paths; y is (N,) labels of any type that can be sorted. Float
    pixels are rounded to 256 levels. Raises the errors of :mod:`longtail.errors`; those of configuration and data are
    ValueErrors too.

    Parameters:

    - ``method``: a name that ``longtail methods`` lists.
    - ``epochs``, ``batch``, ``lr``, ``backbone``: ``optim.*`` and ``model.backbone``; None takes the recipe's (100
      epochs, batches of 128, rate 0.1 with a cosine schedule, ResNet-32, where the method has no other).
    - ``size``: side that images are brought to, short side and then center; None keeps their own, which must be square.
    - ``image_shape``: how a row of a two-dimensional X is an image: (H, W), (H, W, 3), or "square", the smallest gray
      square that holds the row, black where it ends. None refuses two-dimensional X.
    - ``pixel_range``: (darkest, brightest) value of arrays; values beyond are cut. "training" takes the smallest and
      largest of the X in ``fit``. None takes uint8 and floats in [0, 1].
    - ``prior``: the class prior that probabilities are for: None (as the method has it), "training", "uniform", shares
      by class label, or an array (C,) in the order of ``classes_``.
    - ``which``: "last" weights, or "best" on the images that ``data.val`` keeps.
    - ``settings``: every other key of a run, nested or with dots: ``{"method.tau": 0.5, "data": {"val": 5}}``.
    - ``out``: a folder for the run, which must not exist; None trains in a temporary one and keeps only the weights.
    - ``device``: auto, cpu, cuda or mps.
    - ``random_state``: an integer is the seed, and the same seed gives the same network; None or a RandomState draws
      one, from NumPy's global state where it is None.
    - ``verbose``: whether a line is printed for every evaluated epoch.

    After ``fit``: ``classes_`` (C,), ``class_counts_`` (C,) images trained on, ``seed_``, ``pixel_range_``, ``model_``
    (a :class:`longtail.Model`), ``results_`` (results.json), ``history_`` (metrics.jsonl), ``n_features_in_`` where X
    was two-dimensional.
    """

    def __init__(
        self,
        method: str = "balanced-softmax",
        *,
        epochs: int | None = None,
        batch: int | None = None,
        lr: float | None = None,
        backbone: str | None = None,
        size: int | None = None,
        image_shape: tuple[int, ...] | str | None = None,
        pixel_range: tuple[float, float] | str | None = None,
        prior: Any = None,
        which: str = "last",
        settings: Mapping[str, Any] | None = None,
        out: str | Path | None = None,
        device: str = "auto",
        random_state: Any = 0,
        verbose: bool = False,
    ) -> None:
        self.method = method
        self.epochs = epochs
        self.batch = batch
        self.lr = lr
        self.backbone = backbone
        self.size = size
        self.image_shape = image_shape
        self.pixel_range = pixel_range
        self.prior = prior
        self.which = which
        self.settings = settings
        self.out = out
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = self.image_shape is not None
        tags.input_tags.three_d_array = True
        return tags

    def fit(self, X: Any, y: Any) -> LongTailClassifier:
        """Train on images ``X`` and labels ``y`` (N,) and return self; what an earlier fit learned is forgotten."""
        for name in [name for name in vars(self) if name.endswith("_") and not name.startswith("_")]:
            delattr(self, name)
        self.seed_ = self._seed()
        config = self._config()
        if holds_rows(X, self.image_shape):
            X, y = validate_data(self, X, y)
        else:
            X, y = listed(X), checked_labels(X, y)
        check_classification_targets(y)
        self.pixel_range_ = fitted_range(self.pixel_range, X)
        images = as_images(X, self.size, self.image_shape, self.pixel_range_)
        self.classes_, labels = np.unique(y, return_inverse=True)
        part = ImageSet(images, torch.from_numpy(labels.astype(np.int64)), torch.arange(len(images)))
        counts = part.counts(len(self.classes_))
        names = _names(self.classes_)
        if self.prior is not None:
            class_prior(self._prior(), names, counts)  # refused before the training, not after it
        _refuse_second_stage(config, counts, int(images.shape[-1]))
        with _run_folder(self.out) as folder, threads_kept():
            self._train(config, Source("arrays", names, part, None, None), folder)
            self.model_ = load(folder, which=self.which, device=config.run.device)
            _ = self.model_.scoring  # what was chosen on val is read while the folder is there
            self.results_: dict[str, Any] = read_json(folder / "results.json")
            self.history_ = RunDir(folder).read_metrics()
        self.class_counts_ = np.array(self.model_.class_counts)
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float32]:
        """Probabilities (N, C), columns in the order of ``classes_``, for the class prior in ``prior``."""
        check_is_fitted(self, "model_")
        X = validate_data(self, X, reset=False) if holds_rows(X, self.image_shape) else listed(X)
        images = as_images(X, self.model_.size, self.image_shape, self.pixel_range_)
        return self.model_.predict(images, prior=self._prior())

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable class of each image, (N,), as it was called in y."""
        probabilities = self.predict_proba(X)
        found: NDArray[Any] = self.classes_[probabilities.argmax(axis=1)]
        return found

    # Parameters -------------------------------------------------------------------------------------------------------

    def _seed(self) -> int:
        if isinstance(self.random_state, Integral):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _config(self) -> Config:
        settings = _nested(self.settings or {})
        for name, key in OWN_KEYS.items():
            if _holds(settings, key):
                raise ConfigError(f"'{key}' stands in settings.", hint=f"Give it as the parameter {name}.")
        own = {name: getattr(self, name) for name in ("epochs", "batch", "lr", "backbone")}
        own = {OWN_KEYS[name]: value for name, value in own.items() if value is not None}
        own |= {"seed": self.seed_, "run.device": self.device}
        # The loop wants a set to evaluate on: where none is asked for, the training images once, at the end.
        asked = any(_holds(settings, key) for key in ("data.val", "data.held_out", "run.evaluate_every"))
        config = load_config(f"arrays/{self.method}", merge({"data": {"held_out": 0}}, settings, _nested(own)))
        if not asked:
            once = config.run.model_copy(update={"evaluate_every": config.optim.epochs})
            config = config.model_copy(update={"run": once})
        if self.which not in ("last", "best"):
            raise ConfigError(f"which={self.which!r}: there are 'last' and 'best'.")
        if self.which == "best" and not config.data.val:
            raise ConfigError(
                "which='best' needs images that choose.", hint="Keep some of each class: settings={'data.val': 5}"
            )
        if self.out is None and config.run.trackers:
            raise ConfigError("run.trackers need a run folder that stays.", hint="Name one: out=DIR")
        return config

    def _prior(self) -> Any:
        if isinstance(self.prior, Mapping):
            return {str(label): share for label, share in self.prior.items()}
        return self.prior

    # Training ---------------------------------------------------------------------------------------------------------

    def _train(self, config: Config, source: Source, folder: Path) -> None:
        listener: Listener = Lines(Console()) if self.verbose else Silent()
        config = config.model_copy(update={"out": str(folder)})
        try:
            if self.out is None:
                train(config, source=source, listener=listener)
            else:
                run_config(config, source=source, listener=listener)
        except StoppedError as error:
            if error.exit_code == EXIT_INTERRUPT:
                raise KeyboardInterrupt from None
            if self.out is None:
                message = "Training was stopped before its end; without out=DIR nothing of it is kept."
                raise StoppedError(message, exit_code=error.exit_code) from None
            raise


@contextlib.contextmanager
def _run_folder(out: str | Path | None) -> Iterator[Path]:
    """The folder asked for, which must not exist, or a temporary one for the time of the block."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="longtail-") as made:
            yield Path(made) / "run"
        return
    folder = Path(out)
    if folder.exists():
        raise ConfigError(
            f"{folder} exists already.",
            hint="Every fit with out= needs a folder of its own. Leave it out where fits are many.",
        )
    yield folder


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``{"optim.clip": 1, "data": {"val": 5}}`` as nested dicts; raises ConfigError for what is no mapping."""
    if not isinstance(settings, Mapping):
        raise ConfigError(f"settings={settings!r} is not a dict.", hint="Example: settings={'method.tau': 0.5}")
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        inner: Any = _nested(value) if isinstance(value, Mapping) else value
        for part in reversed(str(key).split(".")):
            inner = {part: inner}
        nested = merge(nested, inner)
    return nested


def _holds(settings: Mapping[str, Any], key: str) -> bool:
    group, _, name = key.partition(".")
    return group in settings and (not name or (isinstance(settings[group], Mapping) and name in settings[group]))


def _names(classes: NDArray[Any]) -> list[str]:
    return [str(label) for label in classes.tolist()]


def _refuse_second_stage(config: Config, counts: list[int], size: int) -> None:
    if config.init is None and build_method(config, counts, size).from_init:
        raise ConfigError(
            f"'{config.method_name}' is a second stage, on a network that is trained already.",
            hint="Give the run that trained it: settings={'init': RUN}",
        )
