"""The trials of a search, drawn and kept by Optuna: the one place that knows it."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from longtail import rng
from longtail.config import NUMBERS_VERSION
from longtail.errors import ConfigError, RunError
from longtail.files import disk_error
from longtail.study.search_file import Search
from longtail.study.space import Axis, Range

JOURNAL = "optuna.journal"


@dataclass(frozen=True)
class Drawn:
    """A trial as it is kept: its parameters, and the metric of each seed once it is finished."""

    number: int
    parameters: Mapping[str, Any]
    state: Literal["open", "finished", "failed"]
    values: tuple[float, ...] = ()
    message: str = ""

    @property
    def mean(self) -> float:
        """What a finished trial is compared by."""
        return sum(self.values) / len(self.values)

    @property
    def name(self) -> str:
        """For people, and of its rows."""
        return f"trial {self.number}"


def optuna_module() -> Any:
    """Optuna, imported when it is needed; raises ConfigError where it is not installed."""
    try:
        return importlib.import_module("optuna")
    except ImportError:
        raise ConfigError(
            "A search needs Optuna, which is not installed.",
            hint="pip install 'longtail[sweep]', or pip install optuna",
        ) from None


class _FolderIsLocked:
    """In place of Optuna's lock, which a kill leaves behind: whoever writes holds the folder of the search."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return None


class Journal:
    """``optuna.journal`` in the folder of a search. Only who holds the folder may draw, finish or fail trials."""

    def __init__(self, folder: Path, search: Search) -> None:
        self.path, self.search = folder / JOURNAL, search
        self.optuna = optuna_module()
        self._study: Any = None
        self._storage: Any = None

    def open(self, images: str | None) -> None:
        """For writing. ``images`` is the digest of what the trials are trained and compared on, None if not at hand.

        Raises ConfigError where the journal is of another search.
        """
        with self._reading():
            if self.path.is_file():
                content = self.path.read_bytes()
                whole = content[: content.rfind(b"\n") + 1]  # a full disk may have cut the last line
                if whole != content:
                    self.path.write_bytes(whole)
            self._connect(create=True)
        self._refuse_other(images)
        if "search" not in self._study.user_attrs:
            with self._writing():
                self._study.set_user_attr("search", self._identity(images))

    def look(self) -> list[Drawn]:
        """All trials so far, for reading; none where there is no journal."""
        if not self.path.is_file():
            return []
        with self._reading():
            self._connect(create=False)
        if self._study is None:
            return []
        self._refuse_other(None)
        return self.trials()

    def trials(self) -> list[Drawn]:
        """All trials so far, in their order."""
        with self._reading():
            return [self._drawn(trial) for trial in self._study.get_trials(deepcopy=False)]

    def draw(self) -> Drawn:
        """A new trial, open; it stands in the journal whole or not at all.

        By the tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011): random while fewer than ten trials are
        finished, then where good ones are dense and bad ones are not; open ones count as bad ("constant liar"), so that
        several at a time differ. What is drawn depends on the search, the trials so far and the number of this one,
        and on no running state: a search that was cut draws what it would have drawn.
        """
        study, optuna = self._study, self.optuna
        with self._writing():
            earlier = study.get_trials(deepcopy=False)
            seed = rng.key(self.search.seed, "search", len(earlier)) % 2**32
            sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
            distributions = {axis.key: self._distribution(axis) for axis in self.search.space}
            with self._quiet():
                aside = optuna.create_study(sampler=sampler, direction="maximize")
            aside.add_trials(earlier)
            parameters = aside.ask(distributions).params
            study.add_trial(
                optuna.trial.create_trial(
                    state=optuna.trial.TrialState.RUNNING, params=parameters, distributions=distributions
                )
            )
            return self._drawn(study.get_trials(deepcopy=False)[len(earlier)])

    def finish(self, number: int, values: Sequence[float]) -> None:
        """A trial has these values of the metric, one for each seed."""
        self._note(number, "values", list(values))
        with self._writing():
            self._study.tell(number, sum(values) / len(values))

    def fail(self, number: int, message: str) -> None:
        """A trial came to nothing."""
        self._note(number, "message", message)
        with self._writing():
            self._study.tell(number, state=self.optuna.trial.TrialState.FAIL)

    def _note(self, number: int, key: str, value: Any) -> None:
        with self._writing():
            study_id = self._storage.get_study_id_from_name(self.search.study.name)
            trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, number)
            self._storage.set_trial_user_attr(trial_id, key, value)

    def _connect(self, create: bool) -> None:
        storages = self.optuna.storages
        backend = storages.journal.JournalFileBackend(str(self.path), lock_obj=_FolderIsLocked())
        self._storage = storages.JournalStorage(backend)
        names = [study.study_name for study in self._storage.get_all_studies()]
        name = self.search.study.name
        if names and name not in names:
            raise self._refusal(f"is of the search '{names[0]}'")
        if names:
            self._study = self.optuna.load_study(storage=self._storage, study_name=name)
        elif create:
            with self._quiet():
                self._study = self.optuna.create_study(storage=self._storage, study_name=name, direction="maximize")

    def _drawn(self, trial: Any) -> Drawn:
        states = self.optuna.trial.TrialState
        parameters, noted = dict(trial.params), trial.user_attrs
        if trial.state == states.COMPLETE:
            return Drawn(trial.number, parameters, "finished", tuple(map(float, noted["values"])))
        if trial.state == states.FAIL:
            return Drawn(trial.number, parameters, "failed", message=str(noted.get("message", "")))
        return Drawn(trial.number, parameters, "open")

    def _distribution(self, axis: Axis) -> Any:
        kinds = self.optuna.distributions
        if not isinstance(axis, Range):
            return kinds.CategoricalDistribution(axis.choices)
        if axis.whole:
            step = 1 if axis.step is None else int(axis.step)
            return kinds.IntDistribution(int(axis.low), int(axis.high), log=axis.log, step=step)
        return kinds.FloatDistribution(axis.low, axis.high, log=axis.log, step=axis.step)

    def _identity(self, images: str | None) -> dict[str, Any]:
        """What must be the same for trials to be of one search; the number of trials may grow."""
        search = self.search
        return {
            "metric": search.metric,
            "search.seed": search.seed,
            "seeds": list(search.study.seeds),
            "space": {axis.key: axis.described() for axis in search.space},
            "settings": search.first.model_copy(update={"seed": 0}).key(),
            "version of the numbers": NUMBERS_VERSION,
            "images": images,
        }

    def _refuse_other(self, images: str | None) -> None:
        stored = self._study.user_attrs.get("search")
        if stored is not None:
            now = self._identity(images)
            unknown = {"images"} if None in (images, stored.get("images")) else set()
            other = [name for name in now if name not in unknown and now[name] != stored.get(name)]
            if other:
                raise self._refusal(f"is of a search that differs in: {', '.join(other)}")

    def _refusal(self, said: str) -> ConfigError:
        return ConfigError(f"{self.path} {said}.", hint="Choose another --out DIR, or delete the folder.")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """What Optuna cannot read is told with the file."""
        try:
            yield
        except OSError as error:
            raise disk_error(self.path, error) from error
        except (ValueError, LookupError, AssertionError, TypeError) as error:
            if isinstance(error, ConfigError):
                raise
            said = f"{self.path} cannot be read: {type(error).__name__}: {error}"
            raise RunError(said, hint="Choose another --out DIR, or delete the folder.") from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A disk that refuses is told with the file."""
        try:
            yield
        except OSError as error:
            raise disk_error(self.path, error) from error

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        logging = self.optuna.logging
        before = logging.get_verbosity()
        logging.set_verbosity(logging.WARNING)
        try:
            yield
        finally:
            logging.set_verbosity(before)
