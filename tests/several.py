"""What the tests of several processes run in each of them, and in one process beside: five steps of a variant.

``python several.py FOLDER RANK PORT`` is one of two processes: it takes the steps of every variant of ``ORDERS`` and
writes what they came to.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import longtail.evaluation.scoring as scoring
from longtail.data.loader import Loader
from longtail.data.open import open_data
from longtail.layers import merge
from longtail.losses import logit_adjustment
from longtail.methods import METHODS
from longtail.processes.distributed import gather_rows, job, like_first, rank, replicated
from longtail.rng import generator
from longtail.training.averaging import Mean, average_of, renew_statistics
from longtail.training.feeding import build_views, find_peaks
from longtail.training.listeners import Silent
from longtail.training.optim import build_optimizer
from longtail.training.starting import share_out
from longtail.training.state import build_method
from longtail.training.updating import own_images, update, wants_partner
from tiny import tiny_config

MASKED = {"mask_start": 0, "mask_probability": 0.7}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in METHODS},
    "concutmix, rectified": (
        "concutmix",
        {"method": {"mix_probability": 1.0, "rectify_start": 0}, "optim": {"epochs": 3}},
    ),
    "smcl, masked": ("smcl", {"method": MASKED}),
    "smcl, masked by gradient": ("smcl", {"method": {**MASKED, "detector": "input-gradient", "fill": "noise"}}),
    "smcl, contrast later": ("smcl", {"method": {**MASKED, "contrastive_from": 1}}),
    "smcl-concutmix, by gradient": ("smcl-concutmix", {"method": {"detector": "input-gradient"}}),
    "saliencymix": ("saliencymix", {"method": {"mix_probability": 1.0}}),
    "micro-batches": ("concutmix", {"optim": {"accumulate": 2}}),
    "micro-batches, some mixed": ("cutmix", {"method": {"mix_probability": 0.7}, "optim": {"accumulate": 2}}),
    "sharpness and clipping": ("bcl", {"optim": {"sam": 0.05, "clip": 1.0}}),
    "sharpness and contrast for a while": (
        "bcl",
        {"optim": {"sam": 0.05, "sam_start": 1}, "method": {"contrast_stop": 1}},
    ),
    "mean of the weights": ("cutmix", {"optim": {"swa_start": 1}}),
    "small images at first": ("concutmix", {"views": {"progressive_size": 4, "progressive_stop": 1}}),
    "another view at last": (
        "cmo",
        {"views": {"classification": "autoaugment", "refined": "plain", "refined_start": 1}},
    ),
    "threads": ("cutmix", {"run": {"workers": 2}}),
    "vision transformer": ("ce", {"model": {"backbone": "vit-small-patch4"}}),
}
"""Every method, and what several processes have to do something about."""

SYNCED = ["ce", "concutmix, rectified", "smcl, masked", "paco", "mislas", "micro-batches"]
ORDERS = [*VARIANTS, *(f"{name} | sync" for name in SYNCED), "ce | four shards", "ce | few images"]
RATE = 0.002
"""Small: at 0.05 the contrastive methods amplify a rounding error tenfold in each step of these few noisy images."""

CHANGES: dict[str, dict[str, Any]] = {
    "": {},
    "sync": {"model": {"bn": "sync"}},
    "four shards": {"model": {"bn_shards": 4}},
    "few images": {"optim": {"batch": 18}},  # and then 3: one process has none
}


def five_steps(order: str, archive: Path, *, shards: int | None = None) -> dict[str, Tensor]:
    """Weights, buffers, momentum and losses after five steps; in one process ``shards`` are those of batch-norm."""
    variant, _, change = order.partition(" | ")
    name, settings = VARIANTS[variant]
    settings = merge(settings, CHANGES[change], {} if shards is None else {"model": {"bn_shards": shards}})
    config = tiny_config(name, archive, archive.parent / "nowhere", **settings)
    sharing = share_out(config, {}, Silent())
    data = open_data(config.data, None, lambda message: None)
    method = build_method(config, data.stats.counts, 8)
    like_first(method)
    views = build_views(config, data)
    peaks = find_peaks(config, data, method, views, None, Silent())
    optim = config.optim
    optimizer = build_optimizer(method, optim, method.rates)
    own = own_images(optim, sharing)
    loader = Loader(
        data.train, method.needs, views, optim.batch, 9, 3, workers=config.run.workers, peaks=peaks, own=own
    )
    average = average_of(method, optim)
    replica = replicated(method, leaves_unused=method.leaves_unused)
    method.train()
    losses = []
    for step, batch in enumerate(loader.iterate(0, 5, wants_partner(method, optim.accumulate), method.views_at)):
        at = dataclasses.replace(loader.progress(step), epochs=optim.epochs)
        method.see_at(config.views.side_at(at.epoch, optim.epochs))
        done = update(method, optimizer, batch, at, RATE, optim, sharing, replica)
        losses.append([done.loss, done.forwarded, done.saved, *done.logs.values()])
        if isinstance(average, Mean) and step % loader.steps_per_epoch == loader.steps_per_epoch - 1:
            average.epoch_ended(method, at.epoch)
    width = max(map(len, losses))
    found = {
        f"model/{key}": value.detach().clone(memory_format=torch.contiguous_format)
        for key, value in method.state_dict().items()
    }
    if isinstance(average, Mean):
        stale = {name: value.clone() for name, value in average.tensors.items()}
        renew_statistics(method, average, loader, 5, optim, sharing)
        assert any(not torch.equal(value, stale[name]) for name, value in average.tensors.items())
        found |= {f"average/{key}": value.contiguous() for key, value in average.tensors.items()}
    found["losses"] = torch.tensor([row + [0.0] * (width - len(row)) for row in losses], dtype=torch.float64)
    for key, weight in method.named_parameters():
        if weight in optimizer.state:
            found[f"momentum/{key}"] = optimizer.state[weight]["momentum_buffer"].clone(
                memory_format=torch.contiguous_format
            )
    return found


def scores(archive: Path, images: int) -> Tensor:
    """The logits of so many images in batches of 5."""
    config = tiny_config("ce", archive, archive.parent / "nowhere")
    data = open_data(config.data, None, lambda message: None)
    method, plain = build_method(config, data.stats.counts, 8), build_views(config, data)["plain"]
    before, scoring.EVALUATION_BATCH = scoring.EVALUATION_BATCH, 5
    try:
        return scoring.score(
            method, data.train.images[:images], plain, scoring.AS_TRAINED, logit_adjustment([1, 1], 1.0)
        )
    finally:
        scoring.EVALUATION_BATCH = before


def gathered(counts: list[int]) -> dict[str, Tensor]:
    """A loss of all rows, computed alike in every process, and its gradient by those of this one."""
    rows = torch.randn(sum(counts), 3, generator=generator("rows"))
    first = sum(counts[: rank()])
    own = rows[first : first + counts[rank()]].clone().requires_grad_()
    loss = gather_rows(own, counts).pow(3).sum()
    loss.backward()
    assert own.grad is not None
    return {"rows": rows, "loss": loss.detach(), "gradient": own.grad}


def main(folder: Path, number: int, port: int) -> None:
    os.environ |= {"RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with job():
        for place, order in enumerate(ORDERS):
            save_file(five_steps(order, folder / "tiny.npz"), folder / f"{place}-{number}.safetensors")
        made = {str(images): scores(folder / "tiny.npz", images) for images in (1, 5, 13, 21)}
        save_file(made | gathered([3, 2]), folder / f"others-{number}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
