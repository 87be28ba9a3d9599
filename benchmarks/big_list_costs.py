"""What the recipes of ImageNet size cost: image passes and multiply-adds of their backbones, counted and not measured.

python benchmarks/big_list_costs.py
"""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from longtail.config import Config
from longtail.data.reading.big_lists import BIG_LISTS
from longtail.methods.smcl import SMCL
from longtail.models import build_backbone
from longtail.recipes import load_config, recipe_source
from longtail.settings import resolve_time
from longtail.training.state import build_method

METHODS = ("ce", "balanced-softmax", "bcl", "concutmix", "smcl")


def image_passes(config: Config) -> float:
    """Images that a run of the recipe on the published list forwards; the expected number where a coin decides."""
    known = BIG_LISTS[config.data.name]
    epochs = config.optim.epochs
    small = config.model_copy(update={"model": config.model.model_copy(update={"backbone": "resnet8"})})
    method = build_method(small, [2] * known.classes, 32)
    a_step = float(method.stacks()[0])
    if isinstance(method, SMCL):
        # An image and its partner in a plain step, and the masked image beside both in a masked one.
        own = method.settings
        masked = own.mask_probability * (1 - resolve_time(own.mask_start, epochs) / epochs)
        a_step = 2 + masked
    return known.images["train"] * epochs * a_step


def multiply_adds(backbone: str, size: int) -> float:
    """Of one image, forward."""
    with torch.device("meta"):
        network = build_backbone(backbone, size).eval()
        images = torch.zeros(1, 3, size, size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images)
    return counter.get_total_flops() / 2


def main() -> None:
    print("| recipe | source | backbone | epochs | image passes | multiply-adds a pass, forward |")
    print("|---|---|---|---|---|---|")
    for data in BIG_LISTS:
        for method in METHODS:
            name = f"{data}/{method}"
            config = load_config(name)
            passes = image_passes(config) / 1e6
            cost = multiply_adds(config.model.backbone, config.data.size or 224) / 1e9
            backbone, epochs = config.model.backbone.partition("/")[2], config.optim.epochs
            print(f"| `{name}` | {recipe_source(name)} | {backbone} | {epochs} | {passes:.1f} M | {cost:.1f} G |")


if __name__ == "__main__":
    main()
