"""What a person sees while a run goes on: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from longtail.runs.rundir import NOT_A_LOSS

if TYPE_CHECKING:
    from longtail.config import Config
    from longtail.data.prepare import Prepared

SHOWN_EPOCHS = 12


def percent(value: float | None) -> str:
    """A fraction as a percentage with two decimals; None, an empty group, as a dash."""
    return "-" if value is None else f"{100 * value:.2f}"


def clock(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def loss_names(row: Mapping[str, Any]) -> list[str]:
    """The total and its terms, as they stand in a line of metrics.jsonl."""
    return [name for name in row if name == "loss" or name not in NOT_A_LOSS]


class Lines:
    """Plain lines: one when the run starts, one for each evaluated epoch, one at the end."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.began = time.monotonic()
        self.first = self.steps = 0
        self.header_shown = False

    def started(self, config: Config, data: Prepared, steps: int, first_step: int) -> None:
        self.steps, self.first, self.began = steps, first_step, time.monotonic()
        counts = data.stats.counts
        sets = f"{len(data.train)} training images ({max(counts)} to {min(counts)} a class), "
        sets += f"{len(data.evaluation)} {data.evaluated_on} images"
        if data.val is not None:
            sets += f", {len(data.val)} val images that select"
        self.say(f"{config.recipe}, seed {config.seed}: {sets}")
        for note in data.notes:
            self.say(f"note: {note}")
        resumed = f", resumed at step {first_step}" if first_step else ""
        self.say(f"{config.optim.epochs} epochs, {steps} steps{resumed}, into {config.out}")

    def stepped(self, step: int, logs: Mapping[str, float], images_per_second: float) -> None:
        pass

    def evaluated(self, row: Mapping[str, Any]) -> None:
        losses = {name: row[name] for name in loss_names(row)}
        if not self.header_shown:
            self.header_shown = True
            self.say(f"(top-1 and groups in %, on {row['evaluated_on']}; losses are means over the epoch)")
        terms = "  ".join(f"{name} {value:.4g}" for name, value in losses.items())
        groups = "  ".join(f"{name} {percent(row[name])}" for name in ("many", "medium", "few"))
        left = clock(self.seconds_left(int(row["step"])))
        self.say(
            f"epoch {row['epoch']}  {terms}  top-1 {percent(row['top1'])}  {groups}  "
            f"{row['img_per_s']:.0f} images/s  {left} left"
        )

    def seconds_left(self, step: int) -> float:
        """At the mean pace since this process started, evaluations included."""
        done = max(1, step - self.first)
        return (time.monotonic() - self.began) / done * (self.steps - step)

    def said(self, message: str) -> None:
        self.say(message)

    def finished(self, results: Mapping[str, Any]) -> None:
        self.console.print(results_table([results]))

    def say(self, line: str) -> None:
        """Print one line as it is: no markup, no wrapping."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class LiveTable(Lines):
    """The same on a terminal: the last epochs in a table, and a bar with the current step."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.rows: list[Mapping[str, Any]] = []
        self.bar = Progress(
            BarColumn(bar_width=30), TextColumn("{task.description}", markup=False), console=console, auto_refresh=False
        )
        self.live = Live(console=console, refresh_per_second=4, transient=False)

    def started(self, config: Config, data: Prepared, steps: int, first_step: int) -> None:
        super().started(config, data, steps, first_step)
        self.epochs, self.steps_per_epoch = config.optim.epochs, steps // config.optim.epochs
        self.task = self.bar.add_task("", total=steps, completed=first_step)
        self.live.start()

    def stepped(self, step: int, logs: Mapping[str, float], images_per_second: float) -> None:
        terms = ", ".join(f"{name} {value:.3g}" for name, value in logs.items())
        epoch = min((step - 1) // self.steps_per_epoch, self.epochs - 1)
        text = f"epoch {epoch} of 0..{self.epochs - 1}, {images_per_second:.0f} images/s, "
        text += f"{clock(self.seconds_left(step))} left; {terms}"
        self.bar.update(self.task, completed=step, description=text)
        self.live.update(self._picture())

    def evaluated(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)
        self.live.update(self._picture(), refresh=True)

    def said(self, message: str) -> None:
        self.say(message)

    def finished(self, results: Mapping[str, Any]) -> None:
        self.close()
        super().finished(results)

    def close(self) -> None:
        """Leave the last picture on the screen and give the terminal back."""
        self.live.stop()

    def _picture(self) -> Group:
        if not self.rows:
            return Group(self.bar)
        table = Table(box=None, pad_edge=False, caption=f"in %, on {self.rows[-1]['evaluated_on']}")
        losses = loss_names(self.rows[-1])
        for name in ("epoch", *losses, "top-1", "many", "medium", "few"):
            table.add_column(name, justify="right")
        for row in self.rows[-SHOWN_EPOCHS:]:
            values = [f"{row[name]:.4g}" if name in row else "" for name in losses]
            groups = [percent(row[name]) for name in ("top1", "many", "medium", "few")]
            table.add_row(str(row["epoch"]), *values, *groups)
        return Group(table, self.bar)


def results_table(results: list[Mapping[str, Any]]) -> Table:
    """Finished runs side by side, last epoch and best epoch apart, in percent.

    Where a group of any run is empty, the thirds of the classes by rank stand beside the groups. In 80 columns every
    number is whole: names wrap, and what all runs were evaluated on stands in the title.
    """
    splits = list(dict.fromkeys(str(result["evaluated_on"]) for result in results))
    title = f"top-1 and groups in %{f', on {splits[0]}' if len(splits) == 1 else ''}"
    table = Table(box=None, pad_edge=False, collapse_padding=True, title=title, title_justify="left")
    thirds = ["head", "middle", "tail"] if any("thirds" in result["last"] for result in results) else []
    for name in ("run", "weights"):
        table.add_column(name, overflow="fold", min_width=10)
    for name in ("top-1", "many", "medium", "few", *thirds, "worst\ntenth"):
        table.add_column(name, justify="right", no_wrap=True, min_width=max(map(len, ["00.00", *name.split()])))
    for result in results:
        name = f"{result['dataset']}/{result['method']}, seed {result['seed']}"
        name += f", on {result['evaluated_on']}" if len(splits) > 1 else ""
        last, best = result["last"], result["best"]
        weights = (f"last (epoch {last['epoch']})", f"best (epoch {best['epoch']}), selected on {best['selected_on']}")
        for numbers, said in zip((last, best), weights, strict=True):
            values = [percent(numbers[name]) for name in ("top1", "many", "medium", "few")]
            values += [percent(numbers.get("thirds", {}).get(name)) for name in thirds]
            table.add_row(name if numbers is last else "", said, *values, percent(numbers["worst_tenth"]))
    return table


def evaluation_table(numbers: Mapping[str, Any], which: str, split: str, images: int) -> Group:
    """One evaluation: every metric on a line, in percent, with the word for the weights it is of."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    for name, value in numbers.items():
        if name == "test":  # settings, which are said in words
            continue
        if name == "test_profiles":
            for profile, accuracy in value.items():
                table.add_row(f"top-1, {profile}", percent(accuracy["top1"]))
                table.add_row(f"top-1, {profile}, prior known", percent(accuracy["prior_known"]))
            continue
        for inner, number in value.items() if isinstance(value, Mapping) else [(None, value)]:
            shown = name if inner is None else f"{name}: {inner}"
            table.add_row(shown.replace("top1", "top-1").replace("_", " "), percent(number))
    # Not the table's title, which would be wrapped at the table's narrow width.
    return Group(f"{which} weights, {images} {split} images, %", table)


def listener_for(console: Console) -> Lines:
    """A live table where the console is a terminal, lines where it is a file or a pipe."""
    return LiveTable(console) if console.is_terminal else Lines(console)
