"""Which parts of a backbone learn: none of it, all of it, or its last blocks."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator
from torch import nn

from longtail.errors import ConfigError
from longtail.models.blocks import blocks_of, layers_of

_LAST_BLOCKS = re.compile(r"all-but-([1-9][0-9]*)")


def _check(value: str) -> str:
    if value not in ("none", "backbone") and _LAST_BLOCKS.fullmatch(value) is None:
        raise ValueError("must be none, backbone, or all-but-N for the last N blocks (all-but-2)")
    return value


Freeze = Annotated[str, AfterValidator(_check)]
"""What of a backbone does not learn: none, backbone (all of it), all-but-N (all but its last N blocks)."""


def freeze(backbone: nn.Module, what: Freeze) -> tuple[nn.Module, ...]:
    """Take the gradient from the parameters of what is frozen, and return the modules that have nothing that learns.

    all-but-N leaves the last N blocks and all that comes after them (:func:`longtail.models.blocks.layers_of`). The
    modules are for the caller to keep in evaluation mode: a frozen batch-norm whose statistics move is not frozen, and
    dropout in a part that cannot adapt to it is noise. A module that holds one that learns is not among them.

    Raises:
        ConfigError: for more blocks than the backbone has.
    """
    if what == "none":
        return ()
    blocks, layers = len(blocks_of(backbone)), layers_of(backbone)
    kept = _LAST_BLOCKS.fullmatch(what)
    if kept is not None and int(kept[1]) > blocks:
        raise ConfigError(
            f"model.freeze={what}: the backbone has {blocks} blocks.",
            hint=f"Choose a number up to {blocks}, or model.freeze=none.",
        )
    first = blocks + 2 if kept is None else blocks + 1 - int(kept[1])
    modules = dict(backbone.named_modules())
    for name, number in layers.items():
        if number < first:
            for parameter in modules[name].parameters(recurse=False):
                parameter.requires_grad_(False)
    learning = [name for name, number in layers.items() if number >= first]
    return tuple(
        module
        for name, module in modules.items()
        if layers[name] < first and not any(other.startswith(f"{name}." if name else "") for other in learning)
    )
