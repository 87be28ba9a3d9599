"""``test.*``: how a trained network answers, none of which changes its training.

Four things that need no training and that any run may use: the mean over an image and its mirror, a classifier whose
rows are brought closer in length, logits without the log prior, and a temperature. Each is a number, or ``val``: then
it is chosen for the weights at hand on images that are neither trained on nor reported.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from longtail.data.images import ImageSet
from longtail.data.reading.image_files import Pixels, chunks, picked
from longtail.data.reading.squares import rows_within
from longtail.data.views import View
from longtail.errors import ConfigError
from longtail.losses import logit_adjustment
from longtail.methods import Method
from longtail.methods.base import Answers
from longtail.models.heads import LinearClassifier
from longtail.processes.distributed import gather_rows, largest, rank, world_size
from longtail.settings import Settings

EVALUATION_BATCH = 500
EVALUATION_PIXELS = EVALUATION_BATCH * 96 * 96
"""Larger images are evaluated in smaller batches, for the memory that the network takes."""

TAU_NORMS = tuple(step / 10 for step in range(11))
TAUS = tuple(step / 10 for step in range(21))


class EvaluationStoppedError(Exception):
    """Raised inside an evaluation when a stop was asked for; what was counted so far is thrown away."""


NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class ScoringSettings(Settings):
    """``test.*``: how answers are made of a trained network. They may be changed when a run is evaluated again."""

    flip: bool = False
    """The mean of the logits of an image and of its mirror image, at twice the cost of a prediction."""
    tau_norm: Literal["val"] | NotNegative = 0.0
    """Classifier rows are divided by their length to this power, without the bias; 0 leaves the classifier alone."""
    tau: Literal["val"] | NotNegative = 0.0
    """This times the log prior of the training images is subtracted from the logits: logit adjustment post hoc."""
    temperature: Literal["val"] | Positive = 1.0
    """What logits are divided by before the softmax; it changes no prediction."""

    @property
    def chooses(self) -> list[str]:
        """The keys that are to be chosen on val: ``["test.temperature"]``."""
        return [f"test.{name}" for name, value in self if value == "val"]

    def check(self, method: Method) -> None:
        """Raise ConfigError where this method's classifier has no rows that could be normalized."""
        if self.tau_norm != 0 and (
            type(method).logits is not Method.logits or not isinstance(method.network.classifier, LinearClassifier)
        ):
            raise ConfigError(
                f"test.tau_norm={self.tau_norm} needs a linear classifier on the features, which this run has not.",
                hint="Leave test.tau_norm out.",
            )


@dataclass(frozen=True)
class Scoring:
    """What ``test.*`` came to: logits = (mean over views of (W_k / |W_k|^tau_norm) . h - tau log pi) / temperature.

    Tau-normalization: Kang et al., arXiv 1910.09217, eq. 4; the bias is dropped, as there. Post-hoc logit adjustment:
    Menon et al., arXiv 2007.07314, eq. 9. Temperature: Guo et al., arXiv 1706.04599. The defaults leave logits as they
    are, bit for bit.
    """

    flip: bool = False
    tau_norm: float = 0.0
    tau: float = 0.0
    temperature: float = 1.0

    def described(self) -> dict[str, bool | float]:
        """What differs from the defaults, by name; empty for a network that answers as it was trained."""
        plain = asdict(AS_TRAINED)
        return {name: value for name, value in asdict(self).items() if value != plain[name]}

    def answers_for(self, own: Answers) -> Answers:
        """The class prior of the probabilities of a method whose logits answer for ``own``.

        Uniform where ``tau`` (of a half or more, as the prior is nearer to the one or the other) or ``tau_norm`` was
        used to answer for classes alike.
        """
        return "uniform" if max(self.tau, self.tau_norm) >= 0.5 else own

    def logits(self, method: Method, images: Tensor, log_prior: Tensor) -> Tensor:
        """Normalized images (B, 3, H, W) and the log prior (C,) to logits (B, C)."""
        scores = self._scores(method, images)
        if self.flip:
            scores = (scores + self._scores(method, images.flip(-1))) / 2
        return self.adjusted(scores, log_prior)

    def adjusted(self, scores: Tensor, log_prior: Tensor) -> Tensor:
        """Scores (B, C) less the prior, over the temperature."""
        if self.tau > 0:
            scores = scores - self.tau * log_prior.to(scores)
        return scores if self.temperature == 1 else scores / self.temperature

    def _scores(self, method: Method, images: Tensor) -> Tensor:
        if self.tau_norm == 0:
            return method.logits(images)
        return self.classified(method, method.network.features(images))

    def classified(self, method: Method, features: Tensor) -> Tensor:
        """Features (B, D) to the scores (B, C) of the normalized classifier, or of the classifier as it is."""
        classifier = method.network.classifier
        if self.tau_norm == 0:
            out: Tensor = classifier(features)
            return out
        return F.linear(features, normalized_rows(classifier.weight, self.tau_norm))


AS_TRAINED = Scoring()


def normalized_rows(weight: Tensor, power: float) -> Tensor:
    """W_k / |W_k|^power for each row of (C, D); a row of zeros stays."""
    lengths = weight.norm(dim=1, keepdim=True)
    return weight / torch.where(lengths > 0, lengths, 1.0) ** power


def describe_scoring(scoring: Scoring, settings: ScoringSettings) -> str:
    """``test.flip=true, test.temperature=1.31 (chosen on val)``: what differs from the defaults."""
    parts = []
    for name, value in scoring.described().items():
        shown = str(value).lower() if isinstance(value, bool) else f"{value:.4g}"
        chosen = " (chosen on val)" if f"test.{name}" in settings.chooses else ""
        parts.append(f"test.{name}={shown}{chosen}")
    return ", ".join(parts)


@contextlib.contextmanager
def evaluating(method: Method) -> Iterator[None]:
    """The method in evaluation mode and without gradients; its mode comes back."""
    was_training = method.training
    method.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        method.train(was_training)


def score(
    method: Method,
    images: Pixels,
    plain: View,
    scoring: Scoring,
    log_prior: Tensor,
    stopped: Callable[[], bool] = lambda: False,
) -> Tensor:
    """The logits (N, C) float32 on the CPU of images (N, 3, H, W) uint8.

    Raises EvaluationStoppedError between two batches when ``stopped()`` says so.
    """
    return _in_batches(method, images, plain, lambda part: scoring.logits(method, part, log_prior), stopped)


def _in_batches(
    method: Method, images: Pixels, plain: View, ask: Callable[[Tensor], Tensor], stopped: Callable[[], bool]
) -> Tensor:
    """What ``ask`` says of normalized images, a row for each; the processes of a job take a batch in turn.

    A batch is the same in how many processes there are, and so are its rows.
    """
    count, processes = min(EVALUATION_BATCH, rows_within(EVALUATION_PIXELS, *images.shape[2:])), world_size()
    places = torch.split(torch.arange(len(images)), count)
    dealt = [torch.cat([*places[number::processes], places[0][:0]]) for number in range(processes)]
    batches = chunks(images if processes == 1 else picked(images, dealt[rank()]), count)
    found = []
    with evaluating(method):
        # A process that has no batch in the last round looks at the stop as often as the others.
        for first in range(0, len(places), processes):
            if stopped():
                raise EvaluationStoppedError
            if first + rank() < len(places):
                found.append(ask(plain.apply(next(batches), ())).float().cpu())
    if processes == 1:
        return torch.cat(found)
    (width,) = largest(found[0].shape[1] if found else 0)
    rows = gather_rows(torch.cat([*found, torch.empty(0, width)]), [len(hand) for hand in dealt])
    return torch.empty_like(rows).index_copy_(0, torch.cat(dealt), rows)


def choose_scoring(
    settings: ScoringSettings,
    method: Method,
    val: ImageSet | None,
    plain: View,
    counts: Sequence[int] | Tensor,
    stopped: Callable[[], bool] = lambda: False,
) -> Scoring:
    """The numbers of ``settings``, with those that are ``val`` chosen for the weights that ``method`` has now.

    In this order: tau_norm of 0, 0.1, ..., 1 and then tau of 0, 0.1, ..., 2 with the highest balanced accuracy on
    ``val`` (the smallest of equals), then the temperature with the lowest cross-entropy there. Raises ConfigError for a
    classifier that cannot be normalized, and where something is to be chosen and there is no ``val``.
    """
    settings.check(method)
    values = {name: value for name, value in settings if value != "val"}
    if not settings.chooses:
        return Scoring(**values)
    if val is None:
        raise ConfigError(
            f"{', '.join(settings.chooses)}=val needs images apart from those that are trained on and reported.",
            hint="Keep some with data.val=IMAGES_A_CLASS, or give a number.",
        )
    labels, log_prior = val.labels.cpu(), logit_adjustment(counts, 1.0)
    if settings.tau_norm == "val":
        tau = 0.0 if settings.tau == "val" else settings.tau
        by_power = _normalized_scores(method, val.images, plain, settings.flip, stopped)
        values["tau_norm"] = _best(by_power, lambda power: balanced_accuracy(by_power[power] - tau * log_prior, labels))
        found = by_power[values["tau_norm"]]
    else:
        unscaled = Scoring(flip=settings.flip, tau_norm=settings.tau_norm)
        found = score(method, val.images, plain, unscaled, log_prior, stopped)
    if settings.tau == "val":
        values["tau"] = _best(TAUS, lambda tau: balanced_accuracy(found - tau * log_prior, labels))
    if settings.temperature == "val":
        values["temperature"] = fit_temperature(found - values["tau"] * log_prior, labels)
    return Scoring(**values)


def _normalized_scores(
    method: Method, images: Pixels, plain: View, flip: bool, stopped: Callable[[], bool]
) -> dict[float, Tensor]:
    """The scores (N, C) by power of normalization, from one pass of the network over the images."""
    device = method.network.classifier.weight.device
    mirrored = (False, True) if flip else (False,)

    def features_of(images: Tensor, mirror: bool) -> Tensor:
        return method.network.features(images.flip(-1) if mirror else images)

    features = [
        _in_batches(method, images, plain, partial(features_of, mirror=mirror), stopped).to(device)
        for mirror in mirrored
    ]
    with evaluating(method):
        return {
            power: torch.stack([Scoring(tau_norm=power).classified(method, view) for view in features]).mean(0).cpu()
            for power in TAU_NORMS
        }


def _best(candidates: Iterable[float], quality: Callable[[float], float]) -> float:
    """The candidate of the highest quality, the first of equals."""
    return max(candidates, key=quality)


def balanced_accuracy(scores: Tensor, labels: Tensor) -> float:
    """The mean over the classes that have images of the share of theirs that is right."""
    right = (scores.argmax(dim=1) == labels).double()
    images = torch.bincount(labels)
    there = images > 0
    return float((torch.bincount(labels, weights=right)[there] / images[there]).mean())


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T within [0.05, 20] with the lowest mean cross-entropy of ``logits / T``; logits (N, C), labels (N,).

    The cross-entropy is convex in 1 / T, so that halving the interval by the sign of its derivative finds it. Guo et
    al., arXiv 1706.04599. Authors' program: L-BFGS on T.
    """
    logits = logits.double()
    own = logits.gather(1, labels[:, None].long())[:, 0].mean()
    low, high = 1 / 20, 1 / 0.05
    for _ in range(60):
        middle = (low + high) / 2
        slope = (torch.softmax(middle * logits, dim=1) * logits).sum(dim=1).mean() - own
        low, high = (middle, high) if float(slope) < 0 else (low, middle)
    return 1 / low
