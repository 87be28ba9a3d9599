"""How many bytes of tensors are alive at once while a piece of code runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Watch(TorchDispatchMode):
    """Counts each storage that an operation returns until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self.alive:
                    self.alive[key] = size
                    weakref.finalize(storage, self.alive.pop, key, None)
                self.largest = max(self.largest, size)
        self.peak = max(self.peak, sum(self.alive.values()))
        return made


def bytes_alive(action: Callable[[], object]) -> tuple[int, int]:
    """The most bytes alive at once among tensors that ``action`` made, and the largest of them.

    What an operation takes and gives back within itself is not seen.
    """
    watch = _Watch()
    with watch:
        action()
    return watch.peak, watch.largest
