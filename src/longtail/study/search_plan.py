"""A search with what there is of its trials."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from longtail.study.cells import Cell, study_cells
from longtail.study.journal import Drawn
from longtail.study.search_file import Search
from longtail.study.sweep_tables import best_first, write_search_tables


@dataclass
class SearchPlan:
    """A search, its folder, and what there is of its trials."""

    search: Search
    out: Path
    drawn: list[Drawn]
    images: str | None = None
    """The digest of the images; None where nothing is to be run."""

    @property
    def open(self) -> list[Drawn]:
        """Trials that were begun, in their order."""
        return [one for one in self.drawn if one.state == "open" and one.number < self.search.trials]

    @property
    def missing(self) -> int:
        """How many trials are still to be drawn."""
        return max(0, self.search.trials - len(self.drawn))

    @property
    def best(self) -> Drawn | None:
        """The finished trial of the highest mean, of equal ones the first."""
        ended = best_first(self.drawn)
        return ended[0] if ended and ended[0].state == "finished" else None

    def write_tables(self) -> None:
        """Write search.md, search.csv and, once a trial is finished, best.yaml."""
        write_search_tables(self.out, self.search, self.drawn)

    def cells(self, trial: Drawn) -> list[Cell]:
        """The runs of a trial, one for each seed; raises ConfigError where its settings do not go together."""
        return study_cells(self.search.study_of(self.search.row(trial.name, trial.parameters)), self.out)

    def lines(self) -> list[str]:
        """What ``--dry-run`` shows."""
        said = []
        for trial in self.drawn:
            drawn = ", ".join(f"{key}={value}" for key, value in self.search.drawn(trial.parameters).items())
            number = f" ({self.search.metric} {trial.mean:.4f} on val)" if trial.state == "finished" else ""
            said.append(f"{trial.name}: {trial.state}{number}: {drawn}")
        to_run = len(self.open) + self.missing
        return [*said, f"{self.search.trials} trials, {to_run} to be run, into {self.out}"]
