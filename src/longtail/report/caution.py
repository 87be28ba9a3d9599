"""What a reader has to know before numbers of few or uneven images are believed."""

from __future__ import annotations

from longtail.data.prepare import images_of
from longtail.report.findings import percent, split_of
from longtail.report.folder import FinishedRun
from longtail.report.svg import shortened


def balance_sentence(run: FinishedRun) -> str:
    """What top-1 is worth where classes have different numbers of evaluated images; empty where they have not."""
    tested = [row for row in run.ranked() if row.test_count]
    most = max(tested, key=lambda row: row.test_count, default=None)
    if most is None or all(row.test_count == most.test_count for row in tested):
        return ""
    share = percent(most.test_count / sum(row.test_count for row in tested))
    said = f"Classes differ in {images_of(split_of(run))}: to call every image {shortened(most.name, 60)} would be "
    said += f"right on {share}."
    balanced = run.last.get("balanced_accuracy")
    return (
        said if balanced is None else f"{said} Balanced accuracy, in which classes count alike, is {percent(balanced)}."
    )


def single_sentence(run: FinishedRun) -> str:
    """Which intervals of a group are too narrow: a class of one image is drawn alike in every resample."""
    single = sum(row.test_count == 1 for row in run.classes)
    if not single:
        return ""
    what = "1 class has a single image" if single == 1 else f"{single} classes have a single image"
    return f"{what} to be evaluated on, which no resample changes: the interval of its group is too narrow."
