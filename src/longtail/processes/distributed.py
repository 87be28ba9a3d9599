"""Several processes as one job: the only file that knows torch.distributed.

Without torchrun's environment there is one process: everything here is then the identity, and nothing is started. With
it, every process runs the same program, draws the same numbers and takes the same turns; what differs is which rows of
a batch it sends through the backbone, and that the first process alone writes.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib
import inspect
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from longtail.errors import ConfigError, LongtailError, LostProcessError

T = TypeVar("T")

A_LONG_TIME = timedelta(days=7)
"""For waits in which another process may read a whole data set: one that died ends the job in another way."""

TIME_TO_ASK = timedelta(seconds=2)
"""For processes that raise the same error a moment later: the message is said once."""

_store: Any = None  # a dist.Store, which has no type of its own
_joined = 0  # groups until now, which all processes of a job count alike
_turns = 0


def world_size() -> int:
    """How many processes the job has."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, counted from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_first() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


def local_rank() -> int:
    """Which of the processes of its machine this is: the number of its accelerator."""
    return _number("LOCAL_RANK", 0)


def _number(name: str, otherwise: int) -> int:
    text = os.environ.get(name, str(otherwise))
    if not text.isdigit():
        raise ConfigError(f"The environment has {name}={text}, which is not a number.", hint="torchrun sets it.")
    return int(text)


@contextlib.contextmanager
def job() -> Iterator[None]:
    """Be one process of a job within the block, where torchrun's environment says so; one job within another is one.

    Of an error that several processes raise alike, one is to be said: ``error.said`` is true for the others. A process
    that was lost is a LostProcessError for those that wait for it.
    """
    if _store is not None or _number("WORLD_SIZE", 1) == 1:
        yield
        return
    if world_size() > 1:
        raise ConfigError("torch.distributed was started by another program.", hint="longtail starts it by itself.")
    _join()
    try:
        yield
    except LongtailError as error:
        error.said = _said_before(error)
        raise
    except RuntimeError as error:
        if not _tells_of_a_loss(error):
            raise
        raise LostProcessError(
            f"Process {rank()} of {world_size()} lost another one, which ended or cannot be reached.",
            hint="The messages of the others say why. The last checkpoint is intact: go on with --resume.",
        ) from error
    finally:
        leave()


def _join() -> None:
    global _joined, _store
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"The environment has WORLD_SIZE={os.environ['WORLD_SIZE']} but no {' and no '.join(missing)}.",
            hint="Start several processes by torchrun, or set what it sets: docs/clusters.md. One needs no WORLD_SIZE.",
        )
    # DistributedDataParallel imports this, whose functions have the group of that moment for a default: before there is
    # one, none. Later the threads of the group would outlive leave(), and abort the end of the program now and then.
    importlib.import_module("torch.distributed.nn.functional")
    shared, number, processes = next(iter(rendezvous("env://")))
    _joined += 1  # torchrun's store outlives a group: what one told it must not be read by the next
    _store = _prefixed(f"longtail/{_joined}", shared)
    # No backend is named: the collectives of each kind of device get their own, gloo on the CPU.
    dist.init_process_group(store=_prefixed(f"group/{_joined}", shared), rank=number, world_size=processes)


def _prefixed(prefix: str, store: Any) -> Any:
    return dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]


def leave() -> None:
    """The end of working together: from here on every process is alone."""
    global _store
    if _store is not None:
        _store = None
        dist.destroy_process_group()
        gc.collect()  # a replicated module in a circle of references would keep the group's threads


def _said_before(error: LongtailError) -> bool:
    """Whether another process has come with the same message.

    The first process, which may keep the store, gives the others :data:`TIME_TO_ASK` to ask as well before it leaves.
    """
    asked = f"said/{hashlib.blake2b(str(error).encode(), digest_size=8).hexdigest()}"
    try:
        if _store is None:
            return False
        before = int(_store.add(asked, 1)) > 1
        _store.set(f"{asked}/{rank()}", "asked")
        if is_first():
            with contextlib.suppress(RuntimeError):  # one that has another error, or none, is not waited for longer
                _store.wait([f"{asked}/{number}" for number in range(world_size())], TIME_TO_ASK)
        return before
    except RuntimeError:  # who keeps the store is gone
        return False


def _tells_of_a_loss(error: RuntimeError) -> bool:
    """Whether a collective failed for want of another process: gloo says so in words alone."""
    words = ("gloo", "connection closed", "connection reset", "broken pipe", "nccl", "socket")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)


# What all do together --------------------------------------------------------------------------------------------


def agreed(make: Callable[[], T]) -> T:
    """``make()`` in every process; an error of one is raised in all, so that none waits for the others."""
    if world_size() == 1:
        return make()
    made, errors = None, cast(list[LongtailError | None], [None] * world_size())
    own: LongtailError | None = None
    try:
        made = make()
    except LongtailError as error:
        own = error
    dist.all_gather_object(errors, own)
    if any(errors):
        raise own or next(filter(None, errors))
    return cast(T, made)


def in_turn(make: Callable[[], T]) -> T:
    """:func:`agreed`, first in one process of each machine: the others find in the cache what it made."""
    if world_size() == 1:
        return make()
    assert _store is not None, "a job has joined"
    global _turns
    _turns += 1
    store, turn = _store, f"turn/{_turns}"
    here = f"{turn}/{socket.gethostname()}"

    def wait_and_make() -> T:
        if local_rank() > 0:
            store.wait([here], A_LONG_TIME)
        try:
            return make()
        finally:
            store.set(here, "made")

    def keep_up() -> T:
        try:
            return wait_and_make()
        finally:
            # The collective that follows has a time limit, which no machine is to miss by reading slowly.
            store.set(f"{turn}/rank/{rank()}", "made")
            store.wait([f"{turn}/rank/{number}" for number in range(world_size())], A_LONG_TIME)

    return agreed(keep_up)


def from_first(make: Callable[[], T]) -> T:
    """What ``make()`` gives, or the LongtailError that it raises, in the first process: in all of them."""
    if world_size() == 1:
        return make()
    box: list[Any] = [None, None]
    own: LongtailError | None = None
    if is_first():
        try:
            box[0] = make()
        except LongtailError as error:
            box[1] = own = error
    dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise own or box[1]
    return cast(T, box[0])


def like_first(module: nn.Module) -> None:
    """Give a module of every process the weights and buffers that it has in the first."""
    if world_size() > 1:
        for value in module.state_dict().values():
            sent = value.detach().contiguous()
            dist.broadcast(sent, src=0)
            value.copy_(sent)


def largest(*values: int) -> tuple[int, ...]:
    """Of each of a few integers the largest that any process has: true where it is true anywhere."""
    if world_size() == 1:
        return values
    together = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(together, dist.ReduceOp.MAX)
    return tuple(int(value) for value in together)


def summed(values: Tensor) -> Tensor:
    """The sum of a tensor over the processes."""
    if world_size() > 1:
        values = values.contiguous()
        dist.all_reduce(values)
    return values


def stacked(values: Tensor) -> Tensor:
    """A tensor of every process, without a gradient: (...) to (processes, ...)."""
    if world_size() == 1:
        return values[None]
    found = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(found, values.contiguous())
    return torch.stack(found)


def gather_rows(own: Tensor, counts: Sequence[int]) -> Tensor:
    """The rows of all processes in their order: (counts[rank], ...) to (sum of counts, ...), with a gradient.

    Every process is to compute one and the same loss from them. Its gradient is known in full where a process has its
    rows, so nothing is sent back; it is multiplied by the number of processes, by which DistributedDataParallel divides
    the sum of theirs.
    """
    if world_size() == 1:
        return own
    gathered: Tensor = _GatherRows.apply(own, tuple(counts))
    return gathered


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, counts: tuple[int, ...]) -> Tensor:
        first = sum(counts[: rank()])
        ctx.rows = slice(first, first + counts[rank()])
        filled = own.new_zeros((max(counts), *own.shape[1:]))
        filled[: len(own)] = own
        found = [torch.empty_like(filled) for _ in counts]
        dist.all_gather(found, filled)
        return torch.cat([rows[:count] for rows, count in zip(found, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][ctx.rows] * world_size(), None


def replicated(module: nn.Module, *, leaves_unused: bool) -> nn.Module:
    """The module whose backward pass averages gradients over the processes, with the first process's weights.

    ``leaves_unused`` is for modules of which a step may leave parameters out: they then keep no gradient, as they do in
    one process. Running statistics are not copied from step to step, because the network averages them itself.
    """
    if world_size() == 1:
        return module
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    copying: Any = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
    return DistributedDataParallel(module, find_unused_parameters=leaves_unused, **copying)


def adding_up(module: nn.Module, *, last: bool) -> contextlib.AbstractContextManager[None]:
    """Within the block backward passes only add to the gradients of this process, but for the ``last`` of a step."""
    if last or not isinstance(module, DistributedDataParallel):
        return contextlib.nullcontext()
    return cast(contextlib.AbstractContextManager[None], module.no_sync())
