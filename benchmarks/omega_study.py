"""Whether ConCutMix's label rectification helps: what it does to the labels of finished runs.

python benchmarks/omega_study.py labels RUN RUN ... --out FILE.json
python benchmarks/omega_study.py table FILE.json

Runs are those of studies/omega-cifar100.yaml, or any of ConCutMix; ``table`` prints Markdown, a line for each group of
runs whose folders differ in ``-sSEED`` alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longtail.explain import rectification_effect
from longtail.study.statistics import spread


def labels(runs: Sequence[Path]) -> dict[str, Any]:
    """rectification_effect of each run, by the name of its folder."""
    return {run.name: rectification_effect(run) for run in runs}


def table(measured: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Markdown: a line for each row of the study, means and deviations over its seeds, in percent."""
    names = {
        "gamma": "gamma",
        "outside": "label mass outside the pair",
        "semantic_outside": "of the semantic label",
        "neighbor_in_pair": "neighbor in the pair",
        "area_agrees": "area label agrees",
        "semantic_agrees": "semantic label agrees",
        "rectified_agrees": "rectified label agrees",
    }
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for name, values in measured.items():
        rows.setdefault(name.rpartition("-s")[0], []).append(values)
    lines = [
        f"| row | seeds | omega | {' | '.join(names.values())} | semantic label agrees, neighbor not in the pair |",
        "|---" * (4 + len(names)) + "|",
    ]
    for row, runs in rows.items():
        cells = [percent([run["all"][name] for run in runs]) for name in names]
        cells.append(percent([run["outside_pair"]["semantic_agrees"] for run in runs]))
        lines.append(f"| {row} | {len(runs)} | {runs[0]['omega']:.4g} | {' | '.join(cells)} |")
    return lines


def percent(values: Sequence[float]) -> str:
    """Mean and sample deviation in percent."""
    found = spread([100 * value for value in values])
    if found is None:
        return "-"
    return f"{found.mean:.2f}" if found.deviation is None else f"{found.mean:.2f} ± {found.deviation:.2f}"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    measure = commands.add_parser("labels")
    measure.add_argument("runs", type=Path, nargs="+")
    measure.add_argument("--out", type=Path, required=True)
    show = commands.add_parser("table")
    show.add_argument("file", type=Path)
    given = parser.parse_args()
    if given.command == "labels":
        given.out.write_text(json.dumps(labels(given.runs), indent=1) + "\n")
    else:
        print("\n".join(table(json.loads(given.file.read_text()))))


if __name__ == "__main__":
    main()
