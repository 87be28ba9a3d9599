"""Gradient checkpointing by blocks: activations within a block are not kept for the backward pass but computed anew."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from longtail.models.blocks import blocks_of
from longtail.models.network import Network


def recompute_blocks(network: Network) -> int:
    """Let the training passes of ``network`` keep the inputs of the backbone's blocks alone; returns how many.

    Memory for activations then grows with the largest block and the number of blocks, not with their sum, for one
    forward pass more of the blocks. Gradients are the same bit for bit: dropout draws again what it drew, and buffers
    (batch-norm's running statistics) move in the first pass alone. Evaluation, and detectors that ask the network in
    evaluation mode, are as before.

    Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174.
    """
    blocks = blocks_of(network.backbone)
    for block in blocks.values():
        block.forward = _Recomputed(block, network)
    return len(blocks)


class _Recomputed:
    """The forward of a block. An object and not a closure, so that a deep copy of the network has its own block here.

    A frozen block is in evaluation mode in training too, so that the network's mode says which it is.
    """

    def __init__(self, block: nn.Module, network: Network) -> None:
        self.block, self.network = block, network

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        plain = type(self.block).forward
        if not (self.network.training and torch.is_grad_enabled()):
            return plain(self.block, *inputs, **named)
        return checkpoint(plain, self.block, *inputs, use_reentrant=False, context_fn=self._contexts, **named)

    def _contexts(self) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
        return contextlib.nullcontext(), _buffers_kept(self.block)


@contextlib.contextmanager
def _buffers_kept(block: nn.Module) -> Iterator[None]:
    """Within the block of code, the module works on copies of its buffers."""
    own = [(module, dict(module._buffers)) for module in block.modules() if module._buffers]
    try:
        for module, buffers in own:
            module._buffers.update({name: value if value is None else value.clone() for name, value in buffers.items()})
        yield
    finally:
        for module, buffers in own:
            module._buffers.update(buffers)
