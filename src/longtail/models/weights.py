"""``model.weights``: a backbone that begins with the tensors of a local file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from longtail.errors import RunError

BEGINNINGS = ("", "network.backbone.", "backbone.", "encoder.", "model.", "module.")
"""What may stand before the names of a backbone's tensors: in our files, those of public programs, wrapped models."""

SHOWN = 4


def load_backbone(backbone: nn.Module, file: str | Path) -> str:
    """Give ``backbone`` every tensor of a safetensors file that has its name and shape; what else is in it is left out.

    A classifier of other classes is therefore left out, and so is a position embedding of another size of image.
    Returns a sentence that says what fits and what does not. Raises RunError for a file that cannot be read, in which
    nothing fits, or with values that are not finite.
    """
    path = Path(file)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"model.weights={path} cannot be read as safetensors: {error}",
            hint="Nothing is fetched: download the file, or save one with safetensors.torch.save_file.",
        ) from None
    own = backbone.state_dict()
    named = max((_below(start, tensors) for start in BEGINNINGS), key=lambda found: len(_fitting(own, found)))
    fitting = _fitting(own, named)
    if not fitting:
        raise RunError(
            f"Nothing in model.weights={path} fits this backbone: it begins with {', '.join(sorted(tensors)[:SHOWN])}.",
            hint=f"This one begins with {', '.join(list(own)[:SHOWN])}. Set model.backbone to that of the file.",
        )
    for name, value in fitting.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise RunError(f"The weights '{name}' in {path} are not finite.")
    backbone.load_state_dict({**own, **{name: value.to(own[name].dtype) for name, value in fitting.items()}})
    counted = [name for name in own if not name.endswith("num_batches_tracked")]
    taken = [name for name in counted if name in fitting]
    other = [name for name in named if name in own and name not in fitting]
    absent = [name for name in counted if name not in named]
    said = [f"{len(taken)} of {len(counted)} tensors of the backbone are from {path}"]
    said += _listed("of another shape, and begun anew", other)
    said += _listed("not in the file, and begun anew", absent)
    said += _listed("left out", [name for name in tensors if name not in _given(named, tensors, own)])
    return "; ".join(said) + "."


def _below(start: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def _fitting(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if name in own and own[name].shape == value.shape}


def _given(named: Mapping[str, Tensor], tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> set[str]:
    """Names in the file of tensors that the backbone has too, whatever their shape."""
    ends = {id(value) for name, value in named.items() if name in own}
    return {name for name, value in tensors.items() if id(value) in ends}


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"{len(names)} {what}: {', '.join(names[:SHOWN])}{rest}"]
