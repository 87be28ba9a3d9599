"""How long recipes would train, by steps: ``python benchmarks/whole_recipes.py RECIPE RECIPE ... data.path=FILE``.

A recipe may carry settings of its own after commas (``cifar100/fast,run.precision=bfloat16``). The real steps of each
(the batch, its views, forward, backward, optimizer), from the middle of the run on, take turns in one process with as
many threads. The median seconds times the steps of the whole recipe are printed beside those of the last recipe given,
and saved to runs/bench/whole_recipes.json. Evaluation, start and compilation do not count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from longtail.recipes import load_config
from longtail.runs.rundir import RunDir
from longtail.training.listeners import Silent
from longtail.training.optim import lr_at
from longtail.training.setup import set_up
from longtail.training.updating import update, wants_partner
from precision import instructions

OUT = Path("runs/bench/whole_recipes.json")


def stepper(words: str, settings: list[str], threads: int, folder: str) -> tuple[Callable[[], float], int]:
    """A function that takes the recipe's next step and says its seconds, and how many steps the recipe has."""
    name, *own = words.split(",")
    config = load_config(name, [*settings, *own, f"run.threads={threads}", "run.evaluate_every=1000000"])
    made = set_up(config, RunDir(folder), {}, source=None, saliency=None, command=None, listener=Silent())
    steps = config.optim.epochs * made.loader.steps_per_epoch
    made.method.train()
    half, partners = steps // 2, wants_partner(made.method, config.optim.accumulate)
    batches = enumerate(made.loader.iterate(half, steps, partners, made.method.views_at), half)

    def step() -> float:
        began = time.perf_counter()
        number, batch = next(batches)
        at, lr = made.loader.progress(number), lr_at(config.optim, number, made.loader.steps_per_epoch)
        update(made.method, made.optimizer, batch, at, lr, config.optim)
        return time.perf_counter() - began

    return step, steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="RECIPE[,key=value...] | key=value")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    settings = [word for word in given.words if "=" in word.split(",")[0]]
    recipes = [word for word in given.words if word not in settings]
    with tempfile.TemporaryDirectory() as folder:
        made = {words: stepper(words, settings, given.threads, f"{folder}/run") for words in recipes}
        seconds: dict[str, list[float]] = {words: [] for words in recipes}
        for _ in range(given.steps + 2):  # the first ones compile
            for words, (step, _) in made.items():
                seconds[words].append(step())
    found: dict[str, dict[str, Any]] = {}
    for words, (_, steps) in made.items():
        median = statistics.median(seconds[words][2:])
        found[words] = {"step_s": median, "steps": steps, "hours": median * steps / 3600}
    for words, row in found.items():
        row["share"] = row["hours"] / found[recipes[-1]]["hours"]
        print(
            f"{words}: {row['steps']:,} steps of {row['step_s']:.3f} s are {row['hours']:.2f} h, "
            f"{row['share']:.3f} of {recipes[-1]}"
        )
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(
        json.dumps({"processor_has": instructions(), "threads": given.threads, "recipes": found}, indent=1) + "\n"
    )
    print(OUT)


if __name__ == "__main__":
    main()
