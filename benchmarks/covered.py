"""Whether the tests run enough: a table of what they miss, and the shares of lines and branches against the bounds.

python benchmarks/covered.py [--lines 95] [--branches 90]

Reads what ``coverage run`` and ``coverage combine`` left in .coverage (or $COVERAGE_FILE); ``make coverage`` is both.
Ends with 1 where a bound is not reached.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from coverage import Coverage


def share(part: int, whole: int) -> float:
    """In percent; all of nothing is 100."""
    return 100 * part / whole if whole else 100.0


def main() -> None:
    """Read the command line and print the table and the two shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=float, default=95.0)
    parser.add_argument("--branches", type=float, default=90.0)
    given = parser.parse_args()
    measured = Coverage()
    measured.load()
    measured.report()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "coverage.json"
        measured.json_report(outfile=str(file))
        totals = json.loads(file.read_text())["totals"]
    lines = share(totals["covered_lines"], totals["num_statements"])
    branches = share(totals["covered_branches"], totals["num_branches"])
    print(f"lines {lines:.1f} % of {totals['num_statements']} (at least {given.lines:g} %)")
    print(f"branches {branches:.1f} % of {totals['num_branches']} (at least {given.branches:g} %)")
    if lines < given.lines or branches < given.branches:
        sys.exit(1)


if __name__ == "__main__":
    main()
