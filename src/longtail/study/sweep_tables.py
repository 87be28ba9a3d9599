"""What a search ends with: its trials as Markdown and CSV, the best settings, and the command that trains them."""

from __future__ import annotations

import csv
import io
import json
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from longtail.files import write_atomic
from longtail.layers import merge, read_config_file
from longtail.runs.exported import PATHS
from longtail.study.cells import assignments
from longtail.study.journal import Drawn
from longtail.study.located import Setting, nested
from longtail.study.search_file import METRICS, Search
from longtail.study.writing import markdown_text

SEARCH_TABLES = ("search.md", "search.csv")
BEST = "best.yaml"


def best_first(drawn: Sequence[Drawn]) -> list[Drawn]:
    """The trials that have ended: finished ones from the highest mean down, of equal ones the first; then failed."""
    finished = [trial for trial in drawn if trial.state == "finished"]
    failed = [trial for trial in drawn if trial.state == "failed"]
    return sorted(finished, key=lambda trial: (-trial.mean, trial.number)) + failed


def write_search_tables(out: Path, search: Search, drawn: Sequence[Drawn]) -> None:
    """Write ``search.md``, ``search.csv`` and, where a trial is finished, ``best.yaml`` into the folder."""
    write_atomic(out / "search.md", markdown(search, drawn).encode())
    write_atomic(out / "search.csv", comma_separated(search, drawn).encode())
    ended = best_first(drawn)
    if ended and ended[0].state == "finished":
        content = f"# {chosen_on_val(search, drawn)}\n" + yaml.safe_dump(configuration(search, ended[0]))
        write_atomic(out / BEST, content.encode())


def chosen_on_val(search: Search, drawn: Sequence[Drawn]) -> str:
    """Where the best settings come from, in a sentence."""
    finished = sum(trial.state == "finished" for trial in drawn)
    seeds = ", ".join(map(str, search.study.seeds))
    plural = "s" if len(search.study.seeds) > 1 else ""
    return (
        f"Chosen on val: the highest {METRICS[search.metric]} of the last epoch among {finished} trials with "
        f"seed{plural} {seeds}."
    )


def configuration(search: Search, trial: Drawn) -> dict[str, Any]:
    """The settings of a trial over its recipe as the nested values of a configuration file, without a seed."""
    values = merge(search.row(trial.name, trial.parameters).values, search.study.overrides)
    if search.target.endswith((".yaml", ".yml")):
        values = merge(read_config_file(Path(search.target)), values)
    else:
        data, _, method = search.target.partition("/")
        values = merge({"data": {"name": data}, "method": {"name": method}}, values)
    return _from_anywhere(search, values)


def _from_anywhere(search: Search, values: dict[str, Any]) -> dict[str, Any]:
    """The values with the places of the images as every trial had them, absolute: a file is used from any folder."""
    given, data = values.get("data", {}), search.first.data
    return merge(values, {"data": {name: getattr(data, name) for name in PATHS["data"] if given.get(name)}})


def command(search: Search, trial: Drawn) -> str:
    """The command that trains the settings of a trial with the first seed that the search did not use."""
    seed = next(seed for seed in range(len(search.study.seeds) + 1) if seed not in search.study.seeds)
    values = search.row(trial.name, trial.parameters).values_for(seed, None, search.study.overrides)
    values = _from_anywhere(search, values)
    return shlex.join(["longtail", "train", search.target, *assignments(values)])


def shown(value: Any) -> str:
    """The value of a setting for people."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def markdown(search: Search, drawn: Sequence[Drawn]) -> str:
    """The table for a page of Markdown, with the best settings below it."""
    seeds = search.study.seeds
    several = [f"seed {seed}" for seed in seeds] if len(seeds) > 1 else []
    names = ["trial", f"{METRICS[search.metric]} on val", *several, *(axis.key for axis in search.space)]
    lines = [f"# {markdown_text(search.study.name)}", "", _line(names), "|" + "---|" * len(names)]
    ended = best_first(drawn)
    for trial in ended:
        numbers = [_percent(trial), *(f"{100 * value:.2f}" for value in trial.values)] if trial.values else ["failed"]
        numbers = numbers[: 1 + len(several)] + [""] * (1 + len(several) - len(numbers))
        lines.append(_line([str(trial.number), *numbers, *map(shown, search.drawn(trial.parameters).values())]))
    said = [
        f"{len(ended)} of {search.trials} trials ended. In percent, of the last epoch on val"
        + (": mean ± sample standard deviation over seeds." if several else "."),
        "No test image had a part in this. The number of the best trial is the highest of many and so too high: what "
        "the settings are worth, other seeds say on test.",
        *(f"Failed: trial {trial.number}: {trial.message}" for trial in ended if trial.state == "failed"),
    ]
    for remark in said:
        lines += ["", markdown_text(remark)]
    if ended and ended[0].state == "finished":
        best = ended[0]
        settings = [Setting(key, value, 0) for key, value in search.drawn(best.parameters).items()]
        lines += ["", f"## The best: trial {best.number}", "", markdown_text(chosen_on_val(search, drawn)), ""]
        lines += ["```yaml", yaml.safe_dump(nested(settings), sort_keys=False).rstrip(), "```", ""]
        others = "seeds other than these" if len(seeds) > 1 else f"seeds other than {seeds[0]}"
        lines += [f"To train it, with {others} (`{BEST}` beside this page has the same settings):", ""]
        lines += ["```sh", command(search, best), "```"]
    return "\n".join(lines) + "\n"


def _percent(trial: Drawn) -> str:
    deviation = f" ± {100 * statistics.stdev(trial.values):.2f}" if len(trial.values) > 1 else ""
    return f"{100 * trial.mean:.2f}{deviation}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(markdown_text, cells)) + " |"


def comma_separated(search: Search, drawn: Sequence[Drawn]) -> str:
    """The table for a program: fractions 0..1, empty where there is nothing."""
    seeds = search.study.seeds
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    measured = [f"val_{search.metric}", *(f"val_{search.metric}_seed_{seed}" for seed in seeds)]
    writer.writerow(["trial", "state", *measured, *(axis.key for axis in search.space)])
    for trial in best_first(drawn):
        numbers = [round(value, 6) for value in (trial.mean, *trial.values)] if trial.values else [""] * len(measured)
        writer.writerow([trial.number, trial.state, *numbers, *map(shown, search.drawn(trial.parameters).values())])
    return text.getvalue()
