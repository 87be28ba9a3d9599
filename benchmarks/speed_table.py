"""What benchmarks/throughput.py saved, as tables of docs/results.md."""

from __future__ import annotations

from typing import Any


def speed_table(measured: dict[str, Any]) -> list[str]:
    """What `make bench` saved, and on what machine."""
    machine = measured["machine"]
    lines = [
        "## Speed",
        "",
        "`make bench` (the last column: steps timed): the real step of `longtail train` on images of CIFAR's size",
        "(ResNet-32, batch 256) beside forward and backward of the bare network over as many images, in the fastest of",
        "eager, channels-last and compiled. The two alternate in one run; medians.",
        f"{machine['system']} {machine['processor']}, {machine['cores']} cores of a shared machine,",
        f"{machine['threads']} threads, PyTorch {machine['torch']}: the ratios carry over, the rates do not.",
        "",
        "| method | images a step | step, images/s | bare, images/s | step over bare | making the batch | steps |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = {name: row for name, row in measured.items() if isinstance(row, dict) and "images_per_step" in row}
    for method, row in rows.items():
        lines.append(
            f"| {method} | {row['images_per_step']} | {row['images_per_s']} | {row['bare_images_per_s']} "
            f"({row['bare_variant']}) | {row['ratio']:.3f} | {100 * row['augment_share']:.1f} % of the step | "
            f"{row['steps_timed']} |"
        )
    if "definitions" in measured:
        lines += ["", *step_table(rows), "", f"`longtail --help`: {measured['help_s']} s."]
    return lines


def step_table(rows: dict[str, Any]) -> list[str]:
    """What a step is made of, and the ordinary pipeline beside it."""
    lines = [
        "Seconds of a step by part; the same step behind PIL images, torchvision's transforms and a DataLoader, over",
        "ours; and what a process of its own takes to its first step and in memory. `runs/bench/throughput.json` says",
        'what each number means, under "definitions".',
        "",
    ]
    parts = list(next(iter(rows.values()))["breakdown_s"])
    names = ["method", *parts, "evaluation, of an epoch", "PIL over ours", "first step, s", "memory, MiB"]
    lines += [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for method, row in rows.items():
        values = [f"{row['breakdown_s'][part]:.4f}" for part in parts]
        values += [f"{100 * row['evaluation_share']:.1f} %", f"{row['pil_pipeline_ratio']:.2f}"]
        lines.append(f"| {method} | {' | '.join([*values, str(row['first_step_s']), str(row['peak_memory_mib'])])} |")
    return lines
