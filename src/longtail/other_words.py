"""What people write who have used other programs, and the keys that they mean by it."""

from __future__ import annotations

from collections.abc import Sequence

from longtail.errors import nearest

OTHER_WORDS = {
    "data.path": ("csv", "dir", "root", "folder", "dataset", "file"),
    "data.size": ("image_size", "img_size", "imgsz", "input_size", "resolution", "resize"),
    "data.imbalance": ("imb_factor", "imbalance_factor", "imbalance_ratio"),
    "data.held_out": ("test_size", "val_split", "validation_split", "split"),
    "views.classification": ("augment", "augmentation", "aug", "transform", "transforms"),
    "model.backbone": ("arch", "architecture", "name", "network", "net", "model"),
    "model.weights": ("pretrained", "checkpoint"),
    "method.name": ("loss", "loss_fn"),
    "optim.lr": ("learning_rate",),
    "optim.batch": ("batch_size", "bs"),
    "optim.weight_decay": ("wd",),
    "optim.schedule": ("scheduler", "lr_scheduler"),
    "optim.milestones": ("schedule_steps",),
    "optim.warmup_epochs": ("warmup",),
    "optim.patience": ("early_stopping",),
    "run.device": ("gpu", "gpus"),
    "run.workers": ("num_workers",),
    "run.precision": ("amp", "fp16", "bf16"),
    "seed": ("random_state", "random_seed"),
    "out": ("output", "output_dir", "save_dir", "out_dir"),
}
"""What other programs call our keys: as text they are nearer to keys that mean something else."""


FAR = 0.7
"""How similar a key of another group must be: no suggestion is better than a wrong one."""


def meant_key(key: str, known: Sequence[str]) -> str | None:
    """The key of ``known`` that an unknown one was meant for, or None.

    First what another program calls so, then a group or key without group, then the nearest last word within the
    group, and last a key of another group.
    """
    group, _, last = key.rpartition(".")
    for ours, words in OTHER_WORDS.items():
        if last.replace("-", "_") in words and ours in known:
            return ours
    near = None if group else nearest(key, {name.partition(".")[0] for name in known}, FAR)
    if near is not None:
        return near
    by_last = {name.rpartition(".")[2]: name for name in reversed(known)}
    inside = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == group}
    near = nearest(last, inside)
    if near is not None:
        return inside[near]
    if last in by_last:
        return by_last[last]
    near = nearest(last, by_last, FAR)
    return nearest(key, known, FAR) if near is None else by_last[near]
