"""The model card of an exported folder: what was trained, on how many images of what, how well, and how to use it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from longtail.config import Config
from longtail.data.longtail import ClassStats
from longtail.data.prepare import images_of
from longtail.data.settings import WITHOUT_PATH
from longtail.methods import METHODS

LISTED_CLASSES = 100


def model_card(about: Mapping[str, Any], config: Config) -> str:
    """The page in Markdown, of the content of config.json; class names are text in it, whatever they contain."""
    names, counts = about["class_names"], about["class_counts"]
    entry = METHODS[config.method_name]
    prior = {
        "training": "the class shares of the training images, so frequent classes are favored",
        "uniform": "classes that are all equally frequent",
    }[about["answers_for"]]
    front = f"---\nlibrary_name: longtail\ntags: [image-classification, long-tailed, {config.method_name}]\n---\n\n"
    parts = [
        f"# {about['recipe']}, {about['weights']} weights",
        f"{config.model.backbone} for {len(names)} classes, trained with longtail {about['longtail']} by "
        f"`{config.method_name}`: {entry.summary} ({entry.paper}). Images are RGB, {about['image_size']} x "
        f"{about['image_size']} pixels. Probabilities are for {prior}; `predict(..., prior=...)` moves them.",
        "## Training images and results",
        _groups(about),
        _numbers(about),
        "## Training",
        _training(about),
        "## Use",
        '```python\nimport longtail\n\nmodel = longtail.load("THIS_FOLDER")\n'
        'probabilities = model.predict(["photo.jpg"])  # (1, C), in the order of model.class_names\n```',
        f"`longtail predict THIS_FOLDER PATH...` does the same on the command line. {_repeating(about, config)}"
        "`init=THIS_FOLDER` starts a run from these weights.",
        "`model.safetensors` holds the weights without the parts that only training needs; `config.json` holds the "
        "configuration, normalization, class names and counts, the results, and the SHA-256 of the weights.",
        "## Not known",
        "What the images may be used for, whom they show, and how the network does on images of another kind: whoever "
        "publishes this folder says so here, with a license.",
    ]
    if len(names) <= LISTED_CLASSES:
        parts[5:5] = ["| class | training images |\n|---|---|\n" + "\n".join(map(_row, names, counts))]
    return front + "\n\n".join(parts) + "\n"


def _groups(about: Mapping[str, Any]) -> str:
    many, few = about["groups"]
    counts, results = about["class_counts"], about["results"] or {}
    groups = ClassStats(counts).groups(many=many, few=few)
    meaning = {"many": f"more than {many}", "medium": f"{few} to {many}", "few": f"fewer than {few}"}
    lines = ["| group | training images a class | classes | training images | accuracy |", "|---|---|---|---|---|"]
    for name, members in groups.items():
        images = sum(counts[int(k)] for k in members)
        lines.append(f"| {name} | {meaning[name]} | {len(members)} | {images} | {_percent(results.get(name))} |")
    lines.append(
        f"| all | {min(counts)} to {max(counts)} | {len(counts)} | {sum(counts)} | {_percent(results.get('top1'))} |"
    )
    return "\n".join(lines)


def _numbers(about: Mapping[str, Any]) -> str:
    results = about["results"]
    if results is None:
        return "There are no results: the run had not finished when it was exported, or was imported without images."
    said = f"Accuracies are on the {images_of(about['evaluated_on'])}: of a group the mean over its classes, of all "
    said += f"top-1 over images. Epoch {results['epoch']}, counted from 0."
    if "selected_on" in results:
        said += f" The epoch was chosen on {results['selected_on']}."
        if results["selected_on"] == about["evaluated_on"]:
            said += " These are the images that are reported, so the numbers are too good."
    return said


def _training(about: Mapping[str, Any]) -> str:
    command, known = str(about.get("command", "")), about.get("versions", {})
    # A command that names no recipe is `longtail train config.yaml`, and one with a backtick would end its block.
    told = about["recipe"] in command and command.isprintable() and "`" not in command
    said = f"```sh\n{command}\n```\n\n" if told else ""
    said += f"The whole configuration is in `config.json`. Seed {about['config']['seed']}"
    said += f", longtail {about['longtail']}"
    said += f" (numbers {known['numbers']})" if "numbers" in known else ""
    return said + (f", torch {known['torch']}." if "torch" in known else ".")


def _repeating(about: Mapping[str, Any], config: Config) -> str:
    if about["results"] is None or config.data.name == "arrays":
        return ""
    where = "" if config.data.name in WITHOUT_PATH else " data.path=THE_IMAGES"
    return f"`longtail eval THIS_FOLDER{where}` counts again, and says whether that equals this card. "


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _row(name: str, count: int) -> str:
    # As a JSON string in HTML entities: no line break, markup or bar of a table comes through.
    shown = json.dumps(name, ensure_ascii=False)[1:-1]
    return "| " + re.sub(r"[^\w \-.,]", lambda found: f"&#{ord(found[0])};", shown) + f" | {count} |"
