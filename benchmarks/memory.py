"""Peak memory of inat18/concutmix, 8142 classes, by its parts: python benchmarks/memory.py (some minutes).

Each part runs in a process of its own, and counts what the peak of the resident set grew by while it ran. Written to
results/memory/inat18-concutmix.json, of which docs/results.md has a table. The true images are not needed: the list has
the true number of lines, and the run goes over the miniature of the tests, with all classes.
"""

from __future__ import annotations

import json
import multiprocessing
import platform
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SAVED = ROOT / "results" / "memory" / "inat18-concutmix.json"
RECIPE, CLASSES, TRAIN, VAL, MICRO_BATCH = "inat18/concutmix", 8142, 437_513, 24_426, 128
STEPS = 3

WHAT = {
    "libraries": "Python, PyTorch and this package",
    "list": "lists of 437,513 and 24,426 images, read and checked",
    "method": "ResNet-50, heads, classifier of 8142 classes",
    "optimizer": "gradients and momentum of all weights",
    "losses": "logits, centers, rectified labels and contrast of one micro-batch of 128, with gradients",
    "run of 4": "three steps on the miniature, 4 images at once",
    "run of 8": "the same, 8 images at once",
}


def peak() -> float:
    """MiB of the resident set at its largest."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 2**20)


def grown(part: Callable[[Path], Any], place: Path) -> float:
    """What the peak grew by. It is that of all before, too: libraries are imported first."""
    import longtail.api  # noqa: F401

    before = peak()
    kept = part(place)
    found = peak() - before
    del kept
    return found


def libraries(place: Path) -> float:
    import longtail.api  # noqa: F401

    return peak()


def lists(place: Path) -> Any:
    from longtail.data.files import list_files
    from longtail.data.reading.big_lists import missing_files
    from longtail.data.settings import DataSettings

    first = 0
    for split, count in (("train", TRAIN), ("val", VAL)):
        with (place / f"iNaturalist18_{split}.txt").open("w") as file:
            file.writelines(
                f"train_val2018/Plantae/{i % CLASSES}/{i:032x}.jpg {i % CLASSES}\n" for i in range(first, first + count)
            )
        first += count
    listing = list_files(DataSettings(name="inat18", path=str(place), size=224))
    return listing, missing_files(listing)


def built() -> Any:
    from longtail.recipes import load_config
    from longtail.training.state import build_method

    return build_method(load_config(RECIPE), [2] * CLASSES, 224)


def optimizer(place: Path) -> Any:
    import torch

    method = built()
    before = peak()
    stepping = torch.optim.SGD(method.parameters(), lr=0.1, momentum=0.9)
    for parameter in method.parameters():
        parameter.grad = torch.zeros_like(parameter)
    stepping.step()
    return peak() - before


def losses(place: Path) -> Any:
    """As the micro-batch has them: two contrastive views, one mixed view."""
    import torch
    import torch.nn.functional as F

    from longtail.losses import balanced_contrastive_loss, cross_entropy, logit_adjustment
    from longtail.mixing import rectify_labels
    from longtail.rng import generator

    draws = generator("memory")
    counts = torch.full((CLASSES,), 2)
    centers = F.normalize(torch.randn(CLASSES, 1024, generator=draws)).requires_grad_()
    weight = F.normalize(torch.randn(CLASSES, 2048, generator=draws)).requires_grad_()
    features = F.normalize(torch.randn(MICRO_BATCH, 2, 1024, generator=draws), dim=2).requires_grad_()
    pooled = torch.randn(MICRO_BATCH, 2048, generator=draws).requires_grad_()
    labels = torch.randint(CLASSES, (MICRO_BATCH,), generator=draws)
    target = F.one_hot(labels, CLASSES).float()
    rectified = rectify_labels(features[:, 0].detach(), centers.detach(), target, counts, scale=1628 / 255, topk=30)
    logits = pooled @ weight.T
    loss = cross_entropy(logits, rectified, offset=logit_adjustment(counts.tolist(), 0.99))
    (loss + balanced_contrastive_loss(features, labels, centers, temperature=0.07)).backward()


def run(images: int) -> Callable[[Path], None]:
    def part(place: Path) -> None:
        from longtail.api import run_config
        from longtail.recipes import load_config
        from longtail.training.listeners import Silent

        class Stop(Silent):
            def stepped(self, step: int, logs: Any, images_per_second: float) -> None:
                if step == STEPS:
                    raise KeyboardInterrupt

        few = {"data": {"path": str(place)}, "out": str(place / f"run-{images}")}
        few |= {"optim": {"batch": images, "accumulate": 1}}
        few |= {"run": {"workers": 0, "threads": 1, "compile": False}}
        few |= {"method": {"rectify_start": 0, "mix_probability": 1.0}}
        try:
            run_config(load_config(RECIPE, few), listener=Stop())
        except KeyboardInterrupt:
            return
        raise AssertionError("the run ended before it was stopped")

    return part


def measured(name: str, place: Path, answer: Any) -> None:
    """One part, in this process."""
    parts: dict[str, Callable[[Path], Any]] = {
        "list": lists,
        "method": lambda _: built(),
        "losses": losses,
        "run of 4": run(4),
        "run of 8": run(8),
    }
    if name == "libraries":
        answer.put(libraries(place))
    elif name == "optimizer":
        answer.put(optimizer(place))
    else:
        answer.put(grown(parts[name], place))


def memory_table(saved: dict[str, Any]) -> list[str]:
    """The section of docs/results.md."""
    rows = saved["mib"]
    an_image = (rows["run of 8"] - rows["run of 4"]) / 4
    whole = (rows["libraries"] + rows["run of 4"] + (MICRO_BATCH - 4) * an_image) / 1024
    ahead, answers = 3 * 3 * 256 * 3 * 224**2 / 2**20, VAL * CLASSES * 4 / 2**20
    return [
        "## Memory of 8142 classes",
        "",
        "`python benchmarks/memory.py`: `inat18/concutmix` (ResNet-50, 224 pixels, rectifying), each part in a process",
        f"of its own on a CPU, float32, one thread, PyTorch {saved['torch']}; by how much it lifts the peak of the",
        "resident set. Images are those of a miniature with all classes; the list has the true number of lines.",
        "",
        "| part | MiB |",
        "|---|---|",
        *(f"| {WHAT[name]} | {value:,.0f} |" for name, value in rows.items()),
        f"| each image more in a micro-batch, three views (from the two runs) | {an_image:,.0f} |",
        "",
        f"By that, a micro-batch of {MICRO_BATCH} images, as the recipe has it, takes {whole:,.0f} GiB on a CPU:",
        "computed, not run. Views of a step and of the two after it are 3 x 3 x 256 x 3 x 224 x 224 bytes,",
        f"{ahead:,.0f} MiB, where readers are ahead. An evaluation holds {VAL:,} x {CLASSES:,} probabilities,",
        f"{answers:,.0f} MiB, two to three times.",
    ]


def main() -> None:
    """Measure every part and save it."""
    import torch

    sys.path.insert(0, str(ROOT / "tests"))
    from miniatures import miniature

    context = multiprocessing.get_context("spawn")
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        small = miniature(Path(folder) / "miniature", "inat18", most=2)
        (Path(folder) / "list").mkdir()
        for name in WHAT:
            answer = context.Queue()
            place = small if name.startswith("run") else Path(folder) / "list"
            process = context.Process(target=measured, args=(name, place, answer))
            process.start()
            found[name] = round(answer.get(timeout=1200), 1)
            process.join()
            print(f"{name}: {found[name]} MiB", flush=True)
    SAVED.parent.mkdir(parents=True, exist_ok=True)
    saved = {"recipe": RECIPE, "torch": torch.__version__, "system": platform.system(), "mib": found}
    SAVED.write_text(json.dumps(saved, indent=1) + "\n")


if __name__ == "__main__":
    main()
