"""What SMCL's masks hit, and what its training does to the background (arXiv 2406.02223).

python benchmarks/saliency_study.py hits [--run RUN ...] --out FILE.json
python benchmarks/saliency_study.py backgrounds RUN RUN ... --out FILE.json
python benchmarks/saliency_study.py table FILE.json ...
python benchmarks/saliency_study.py picture --out FILE.png

``hits``: how often each saliency detector finds the object of the embedded scenes; those that ask a network, once for
each finished run. ``backgrounds``: whether images of head classes without their object lie near minority classes and
are taken for them; runs are grouped by the name of their folder before ``-sSEED``, and compared with the first group's
at equal seeds. ``table`` prints both as Markdown.
``picture``: images of the scenes, what a detector makes of them, and what is left when the box around its peak is gone.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from longtail.data.longtail import ClassStats
from longtail.data.open import open_data
from longtail.data.settings import DataSettings
from longtail.errors import ConfigError, LongtailError
from longtail.explain import background_votes, mask_hits, salient_peaks
from longtail.explain.backgrounds import finished_model
from longtail.mixing import boxes_around, erase
from longtail.prediction.predict import Model
from longtail.saliency import fine_grained
from longtail.saliency.detectors import DETECTORS
from longtail.study.statistics import spread

GROUPS = ("many", "medium", "few")
KS = (10, 20, 50)
MINORITIES = ("few", "medium+few")


def hits(runs: Sequence[Path], data: DataSettings, draws: int, ties: str) -> dict[str, Any]:
    """Every detector on every split of the scenes; those of a network once for each run."""
    prepared = open_data(data)
    assert prepared.val is not None, "the scenes have one"
    models: dict[str, Model] = {}
    for run in runs:
        model, seen = finished_model(run)
        if seen.fingerprint != prepared.fingerprint:
            raise ConfigError(f"{run} was not trained on these scenes.", hint="Give its imbalance and subset seed.")
        models[run.name] = model
    splits = {"train": prepared.train, "val": prepared.val, "test": prepared.evaluation}
    groups = ClassStats(prepared.stats.counts).groups(*data.groups)
    measured: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    for name, entry in DETECTORS.items():
        if name.startswith("opencv-") and find_spec("cv2") is None:
            skipped[name] = "OpenCV is not installed"
            continue
        if entry.kind == "network" and not models:
            skipped[name] = "no run was given"
        for run_name, asked in models.items() if entry.kind == "network" else [("", None)]:
            row = f"{name} ({run_name})" if run_name else name
            network, view = (None, None) if asked is None else (asked.method.network, asked.view)
            try:
                measured[row] = {
                    split: mask_hits(
                        images,
                        salient_peaks(name, images, draws=draws, network=network, view=view, ties=ties),
                        groups if split == "test" else {},
                    )
                    for split, images in splits.items()
                }
            except ConfigError as error:  # attention of a network that has none
                skipped[row] = error.message
                continue
            print(f"{row}: {100 * measured[row]['test']['all']['peak_on_object']:.1f} % of peaks on the object")
    return {
        "what": "hits",
        "data": {"name": "scenes", "imbalance": data.imbalance, "subset_seed": data.subset_seed},
        "fingerprint": prepared.fingerprint,
        "draws": draws,
        "ties": ties,
        "detectors": measured,
        "skipped": skipped,
    }


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, float | None]:
    """The numbers of nested dicts, by their names joined with dots; texts are left out."""
    numbers: dict[str, float | None] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            numbers |= flat(value, f"{prefix}{name}.")
        elif not isinstance(value, str):
            numbers[prefix + name] = value
    return numbers


def group_and_seed(name: str) -> tuple[str, int]:
    """``mask-only-s3`` is seed 3 of ``mask-only``."""
    found = re.fullmatch(r"(.+)-s(\d+)", name)
    if found is None:
        raise ConfigError(f"The folder name '{name}' does not end in -sSEED.", hint="As longtail study names its runs.")
    return found[1], int(found[2])


def summarize(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and deviation over seeds for each group of runs, and of the differences to the first group at equal seeds.

    ``runs`` are results by folder name, in the order in which the groups are to stand.
    """
    by_group: dict[str, dict[int, dict[str, float | None]]] = {}
    for name, result in runs.items():
        group, seed = group_and_seed(name)
        if seed in by_group.setdefault(group, {}):
            raise ConfigError(f"'{group}' has seed {seed} twice.", hint="Name each run once.")
        by_group[group][seed] = flat(result)
    base_name = next(iter(by_group))
    base = by_group[base_name]
    groups, differences = {}, {}
    for group, seeds in by_group.items():
        groups[group] = {"seeds": sorted(seeds), "values": _spreads(list(seeds.values()))}
        if group != base_name:
            paired = sorted(set(seeds) & set(base))
            changes = [{key: _minus(value, base[s].get(key)) for key, value in seeds[s].items()} for s in paired]
            differences[group] = {"seeds": paired, "values": _spreads(changes)}
    return {"groups": groups, "baseline": base_name, "differences": differences}


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _spreads(rows: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, Any] | None]:
    """Mean, sample deviation and number of the values under each key; None where a key has no value."""
    found = {key: spread([row.get(key) for row in rows]) for key in dict.fromkeys(key for row in rows for key in row)}
    return {key: None if value is None else value._asdict() for key, value in found.items()}


def backgrounds(runs: Sequence[Path], which: str, detector: str) -> dict[str, Any]:
    """background_votes of each run, grouped and compared."""
    for run in runs:
        group_and_seed(run.name)
    results: dict[str, Any] = {}
    for run in runs:
        if run.name in results:
            raise ConfigError(f"Two runs are called '{run.name}'.", hint="Name each run once.")
        results[run.name] = background_votes(run, which=which, ks=KS, detector=detector)
        votes = results[run.name]["ways"]["salient box erased"]["votes"]
        print(f"{run.name}: salient box erased, {100 * votes['few']:.1f} % of votes to few-shot classes")
    summary = summarize(results)
    return {"what": "backgrounds", "weights": which, "detector": detector, **summary, "runs": results}


def picture(detectors: Sequence[str], columns: int, lam: float, out: Path) -> None:
    """One image of each class, and for each detector its box of 1 - lam of the area around the peak, erased."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    data = open_data(DataSettings(name="scenes"))
    train = data.train
    first = torch.tensor([int((train.labels == label).nonzero()[0]) for label in range(columns)])
    shown = train.subset(first)
    fill = train.images.float().mean((0, 2, 3))
    side = int(shown.images.shape[-1])
    rows: list[tuple[str, torch.Tensor]] = [("image", shown.images.float())]
    if "fine-grained" in detectors:
        rows.append(("fine-grained map", 255 * fine_grained(shown.images)[:, None].expand(-1, 3, -1, -1)))
    for name in detectors:
        boxes = boxes_around(salient_peaks(name, shown)[0], torch.full((columns,), lam), (side, side))
        rows.append((f"{name}, erased", erase(shown.images.float(), boxes, fill)))
    figure, axes = pyplot.subplots(len(rows), columns, figsize=(columns, len(rows)), squeeze=False)
    for line, (title, pixels) in zip(axes, rows, strict=True):
        for axis, image in zip(line, pixels, strict=True):
            axis.imshow(image.permute(1, 2, 0).clamp(0, 255).byte().numpy(), interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(title.replace(", ", ",\n"), rotation=0, ha="right", va="center", fontsize=8)
    for axis, label in zip(axes[0], shown.labels.tolist(), strict=True):
        axis.set_title(f"{data.class_names[label]} ({data.stats.counts[label]})", fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=72, bbox_inches="tight", metadata={"Software": None})


def percent(value: float) -> str:
    """A fraction as percent."""
    return f"{100 * value:.1f}"


def hits_table(measured: Mapping[str, Any]) -> list[str]:
    """Markdown: the test split for every detector, then the other splits and the groups of classes."""
    rows = measured["detectors"]
    images = next(iter(rows.values()))["test"]["all"]["images"]
    data = measured["data"]
    lines = [
        f"Test split of the scenes (imbalance {data['imbalance']:g}, subset seed {data['subset_seed']}), {images} "
        f"images, boxes of {measured['draws']} draws of lambda ~ Beta(1, 1), ties: {measured['ties']}. Percent; "
        "*gain* is object removed over area erased; a box that knows nothing has that of `random`.",
        "",
        "| detector | peak on object | in its box | object removed (clip) | area erased (clip) | gain | "
        "object removed (shift) | area erased (shift) | gain |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, splits in rows.items():
        one = splits["test"]["all"]
        cells = [percent(one["peak_on_object"]), percent(one["peak_in_object_box"])]
        for edge in ("clip", "shift"):
            removed, erased = one[edge]["object_removed"], one[edge]["area_erased"]
            cells += [percent(removed), percent(erased), f"{removed / erased:.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "| detector | peak on object: train | val | test | many | medium | few | object removed (clip): many | medium "
        "| few |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, splits in rows.items():
        cells = [percent(splits[split]["all"]["peak_on_object"]) for split in ("train", "val", "test")]
        cells += [percent(splits["test"][group]["peak_on_object"]) for group in GROUPS]
        cells += [percent(splits["test"][group]["clip"]["object_removed"]) for group in GROUPS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if measured["skipped"]:
        said = "; ".join(f"{name} ({why.rstrip('.')})" for name, why in measured["skipped"].items())
        lines += ["", f"Not measured: {said}."]
    return lines


def cell(value: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    """Mean and deviation in percent, or a dash."""
    if value is None:
        return "-"
    mean = f"{round(100 * value['mean'], 1) + 0.0:{'+' if signed else ''}.1f}"  # no -0.0
    return mean if value["deviation"] is None else f"{mean} ± {percent(value['deviation'])}"


def backgrounds_table(measured: Mapping[str, Any]) -> list[str]:
    """Markdown: accuracy by background, then for every way of taking the object out neighbors and votes."""
    first = next(iter(measured["runs"].values()))
    base = measured["baseline"]
    rows = [(name, group, False) for name, group in measured["groups"].items()]
    rows += [(f"{name} - {base}", group, True) for name, group in measured["differences"].items()]
    shares = ", ".join(f"{name} {percent(first['gallery_share'][name])} %" for name in MINORITIES)
    lines = [
        f"Queries: the {first['queries']} {first['evaluated_on']} images of many-shot classes; gallery: all "
        f"{first['gallery']} training images, of which {shares}. Percent, {measured['weights']} weights, mean and "
        "standard deviation over seeds; in brackets the share of the neighbors over that of the gallery. Rows with a "
        "difference are paired by seed.",
    ]
    titles = ["accuracy, seen backgrounds", "unseen backgrounds"]
    lines += ["", f"| runs | seeds | {' | '.join(titles)} |", "|---|---|---|---|"]
    for name, group, signed in rows:
        cells = [cell(group["values"].get(f"accuracy.{kind}"), signed=signed) for kind in ("seen", "unseen")]
        lines.append(f"| {name} | {_seeds(group)} | {' | '.join(cells)} |")
    for way in first["ways"]:
        titles = [f"{name} among {k}" for name in MINORITIES for k in KS]
        titles += [f"{what} {name}" for what in ("mass", "votes") for name in GROUPS]
        lines += ["", f"**{way}**", "", f"| runs | seeds | {' | '.join(titles)} |", "|---" * (2 + len(titles)) + "|"]
        for name, group, signed in rows:
            values = group["values"]
            cells = []
            for near in [f"ways.{way}.neighbors.{k}.{minority}" for minority in MINORITIES for k in KS]:
                share, ratio = cell(values[f"{near}.share"], signed=signed), values[f"{near}.ratio"]
                cells.append(share if signed or ratio is None else f"{share} ({ratio['mean']:.2f})")
            cells += [
                cell(values[f"ways.{way}.{what}.{name}"], signed=signed)
                for what in ("mass", "votes")
                for name in GROUPS
            ]
            lines.append(f"| {name} | {_seeds(group)} | {' | '.join(cells)} |")
    return lines


def _seeds(group: Mapping[str, Any]) -> str:
    seeds = group["seeds"]
    return ", ".join(map(str, seeds)) + ("" if len(seeds) >= 3 else f" (n={len(seeds)})")


def table(measured: Mapping[str, Any]) -> list[str]:
    """Markdown of either kind of file, with the command that made it."""
    lines = hits_table(measured) if measured["what"] == "hits" else backgrounds_table(measured)
    return [*lines, "", "```", measured["command"], "```"]


def arguments(words: Sequence[str]) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    kinds = parser.add_subparsers(dest="what", required=True)
    on_objects = kinds.add_parser("hits", help="which detector finds the object")
    on_objects.add_argument("--run", type=Path, nargs="+", default=[], help="runs whose networks are asked")
    on_objects.add_argument("--draws", type=int, default=20)
    on_objects.add_argument("--ties", choices=("first", "random"), default="first")
    on_objects.add_argument("--imbalance", type=float, default=50.0)
    on_objects.add_argument("--subset-seed", type=int, default=0)
    on_votes = kinds.add_parser("backgrounds", help="what backgrounds are near to and taken for")
    on_votes.add_argument("runs", type=Path, nargs="+")
    on_votes.add_argument("--which", choices=("last", "best"), default="last")
    on_votes.add_argument("--detector", default="fine-grained")
    for kind in (on_objects, on_votes):
        kind.add_argument("--out", type=Path, required=True)
    drawn = kinds.add_parser("picture", help="what the detectors find")
    drawn.add_argument("--detectors", nargs="+", default=["fine-grained", "ground-truth", "center"])
    drawn.add_argument("--columns", type=int, default=10)
    drawn.add_argument("--lam", type=float, default=0.75, help="share of the image outside the box")
    drawn.add_argument("--out", type=Path, required=True)
    shown = kinds.add_parser("table", help="print Markdown")
    shown.add_argument("files", type=Path, nargs="+")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> None:
    """Do what the first word says."""
    given = arguments(words)
    torch.set_num_threads(given.threads)
    if given.what == "table":
        print("\n\n".join("\n".join(table(json.loads(file.read_text()))) for file in given.files))
        return
    if given.what == "picture":
        picture(given.detectors, given.columns, given.lam, given.out)
        return
    if given.what == "hits":
        data = DataSettings(name="scenes", imbalance=given.imbalance, subset_seed=given.subset_seed)
        measured = hits(given.run, data, given.draws, given.ties)
    else:
        measured = backgrounds(given.runs, given.which, given.detector)
    measured["command"] = shlex.join(["python", "benchmarks/saliency_study.py", *words])
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(measured, indent=1) + "\n")
    print("\n".join(["", *table(measured)]))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except LongtailError as error:
        sys.exit(f"error: {error}")
