"""One update of the weights: gradients of micro-batches, SAM's second pass, clipping, the optimizer's step."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from longtail.config import OptimSettings
from longtail.errors import DivergedError
from longtail.methods import Batch, Method, Progress, StepOutput
from longtail.processes.distributed import adding_up
from longtail.processes.sharing import ALONE, Shares, Sharing
from longtail.rng import generator, keyed_global_rng


@dataclasses.dataclass(frozen=True)
class Update:
    """The loss and its logged terms, at the weights before the step, and the images that were forwarded for it.

    ``saved`` is how many passes of full images the smaller ones among them did not cost. ``spoiled`` is the value and
    the micro-batch of the first loss that is not finite.
    """

    loss: float
    logs: dict[str, float]
    forwarded: int
    spoiled: tuple[float, Batch] | None = None
    saved: float = 0.0


@dataclasses.dataclass(frozen=True)
class PartProgress(Progress):
    """The place of a micro-batch after the first, whose draws are its own."""

    part: int = 0

    def generator(self, purpose: str) -> torch.Generator:
        """A generator for one purpose in this micro-batch of this step."""
        return generator(self.seed, purpose, self.step, "part", self.part)


def update(
    method: Method,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    at: Progress,
    lr: float,
    settings: OptimSettings,
    sharing: Sharing = ALONE,
    replica: nn.Module | None = None,
) -> Update:
    """Take one step of the optimizer at the rate ``lr``, times the ``rate`` of each group of parameters.

    g = gradient of the loss at the weights w; with ``sam``, from ``sam_start`` on, at w + rho g / |g| instead; with
    ``clip``, g := g min(1, clip / |g|). Norms are over all parameters together. Raises DivergedError in place of the
    step where a loss or |g| is not finite; all of it is computed before that is looked at, so that several processes do
    the same.
    ``sharing`` and ``replica``, the method behind :func:`longtail.processes.distributed.replicated`, are theirs; loss,
    gradients and norms are alike in all.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("rate", 1.0)
    optimizer.zero_grad(set_to_none=True)
    done = add_gradients(method, batch, at, settings, sharing, replica)
    if settings.sam is not None and settings.sharpens(at.epoch, at.epochs):
        with climbed(method, settings.sam):
            optimizer.zero_grad(set_to_none=True)
            again = add_gradients(method, batch, at, settings, sharing, replica)
        forwarded, saved = done.forwarded + again.forwarded, done.saved + again.saved
        done = dataclasses.replace(done, forwarded=forwarded, saved=saved, spoiled=done.spoiled or again.spoiled)
    if settings.clip is not None:
        norm = float(torch.nn.utils.clip_grad_norm_(method.parameters(), settings.clip))
    else:
        norm = float(gradient_norm(method))
    refuse_unless_finite(done, norm, batch, at, lr)
    optimizer.step()
    return done


def add_gradients(
    method: Method,
    batch: Batch,
    at: Progress,
    settings: OptimSettings,
    sharing: Sharing = ALONE,
    replica: nn.Module | None = None,
) -> Update:
    """Add the gradients of sum_j (n_j / n) loss_j over micro-batches j of n_j of the batch's n images.

    Each is a batch of its own to the method: batch-norm, contrastive terms and draws of mixing. A term that only some
    micro-batches log is averaged over those. Authors' program (ConCutMix on iNaturalist): loss / k for each of k
    micro-batches of equal size, the remainder of an epoch leaking into the next. Here: by share and within one batch,
    because the sum is then the loss of the batch, whatever its size.
    """
    images = len(batch.target)
    parts = pieces(method, batch, at, settings, sharing)
    forward = method if replica is None else replica
    loss, passes, spoiled = 0.0, 0, None
    method.take_saved_passes()
    terms, shares = dict[str, float](), dict[str, float]()
    for number, (here, part) in enumerate(parts, 1):
        size = len(part.target)
        with adding_up(forward, last=number == len(parts)):
            output = forwarded(forward, part, here)
            value, share = float(output.loss.detach()), size / images
            if spoiled is None and not math.isfinite(value):
                spoiled = value, part
            torch.autograd.backward(output.loss * share)
        loss += share * value
        passes += len(part.views) * size if output.forwarded is None else output.forwarded
        for name, term in output.logs.items():
            terms[name] = terms.get(name, 0.0) + share * float(term)
            shares[name] = shares.get(name, 0.0) + share
    logs = {name: total / shares[name] for name, total in terms.items()}
    return Update(loss, logs, passes, spoiled, method.take_saved_passes())


def pieces(
    method: Method, batch: Batch, at: Progress, settings: OptimSettings, sharing: Sharing = ALONE
) -> list[tuple[Progress, Batch]]:
    """The micro-batches of a step, each with its place, and with a partner only where it is mixed."""
    parts = split_up(batch, settings, sharing)
    found = []
    for here, part in zip(places(at, len(parts)), parts, strict=True):
        if part.partner is not None and settings.accumulate > 1 and not method.needs_partner(here):
            part = dataclasses.replace(part, partner=None)
        found.append((here, part))
    return found


def forwarded(forward: nn.Module, part: Batch, here: Progress) -> StepOutput:
    """The loss of a micro-batch; what the network draws (dropout) is keyed by its place."""
    stream = ("part", here.part) if isinstance(here, PartProgress) else ()
    with keyed_global_rng(here.seed, "step", here.step, *stream):
        output: StepOutput = forward(part, here)
    return output


def gradient_norm(method: Method) -> torch.Tensor:
    """|g| over all parameters together, a scalar on their device."""
    return torch.nn.utils.get_total_norm([p.grad for p in method.parameters() if p.grad is not None])


@contextlib.contextmanager
def climbed(method: Method, rho: float) -> Iterator[None]:
    """The weights are w + rho g / |g| within the block, for the gradients g they have now, and w again after it.

    Foret, Kleiner, Mobahi, Neyshabur, "Sharpness-Aware Minimization for Efficiently Improving Generalization",
    arXiv 2010.01412, equation 2 with p = 2. Buffers are put back too: batch-norm's running statistics are those of the
    first pass alone, at the weights that are kept. Weight decay is no part of g; the optimizer adds it at w.
    """
    moved = [parameter for parameter in method.parameters() if parameter.grad is not None]
    kept = [(tensor, tensor.detach().clone()) for tensor in (*moved, *method.buffers())]
    with torch.no_grad():
        scale = rho / (gradient_norm(method) + 1e-12)
        for parameter in moved:
            assert parameter.grad is not None
            parameter.add_(parameter.grad * scale)
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in kept:
                tensor.copy_(value)


def places(at: Progress, parts: int) -> list[Progress]:
    """The places of a step's micro-batches: the step's own for the first, so that one part is the whole step."""
    return [at, *(PartProgress(at.step, at.epoch, at.epochs, at.seed, part) for part in range(1, parts))]


def part_sizes(images: int, settings: OptimSettings) -> list[int]:
    """How many of a batch's images go into each micro-batch: equal to within one, the largest first, never one alone.

    A full batch has ``accumulate`` parts; a shorter one as many as keep a part no larger than those.
    """
    whole = settings.accumulate
    parts = max(1, min(whole, math.ceil(images * whole / settings.batch), images // 2))
    return [images // parts + (part < images % parts) for part in range(parts)]


def split_up(batch: Batch, settings: OptimSettings, sharing: Sharing = ALONE) -> list[Batch]:
    """The micro-batches of a batch, each shared out by itself."""
    sizes = part_sizes(len(batch.target), settings)
    if len(sizes) == 1 and sharing.shards == 1:
        return [batch]
    parts, first, seen = [], 0, 0
    for size in sizes:
        shares = sharing.of(size)
        made = size if shares is None else shares.counts[shares.rank]
        parts.append(part_of(batch, slice(first, first + size), slice(seen, seen + made), shares))
        first, seen = first + size, seen + made
    return parts


def part_of(batch: Batch, taken: slice, made: slice | None = None, shares: Shares | None = None) -> Batch:
    """The images ``taken`` of a batch, with all that belongs to them; ``made`` are their places in its views."""
    return Batch(
        tuple(view[taken if made is None else made] for view in batch.views),
        batch.target[taken],
        batch.index[taken],
        None if batch.partner is None else part_of(batch.partner, taken, made, shares),
        None if batch.peaks is None else batch.peaks[taken],
        shares,
    )


def own_images(settings: OptimSettings, sharing: Sharing) -> Callable[[int], Tensor] | None:
    """Which of a batch's images this process makes views of, by the batch's size: its rows of every micro-batch.

    None where it makes all of them.
    """
    if sharing.processes == 1:
        return None

    def places_of(images: int) -> Tensor:
        first, found = 0, []
        for size in part_sizes(images, settings):
            shares = sharing.of(size)
            assert shares is not None, "several processes have several shards"
            found.append(torch.arange(first, first + size)[shares.rows])
            first += size
        return torch.cat(found)

    return places_of


def wants_partner(method: Method, accumulate: int) -> Callable[[Progress], bool]:
    """Whether a step uses partners: where any of its micro-batches does."""
    return lambda at: any(method.needs_partner(here) for here in places(at, accumulate))


def refuse_unless_finite(done: Update, norm: float, batch: Batch, at: Progress, lr: float) -> None:
    """Raise DivergedError, naming step, rate and images, for a loss or a norm of the gradients that is not finite."""
    if done.spoiled is None and math.isfinite(norm):
        return
    what, (value, part) = ("loss", done.spoiled) if done.spoiled else ("norm of the gradients", (norm, batch))
    shown = ", ".join(str(int(i)) for i in part.index[:8])
    raise DivergedError(
        f"The {what} became {value} in step {at.step} (epoch {at.epoch}, learning rate {lr:g}; training images "
        f"{shown}, ...).",
        hint="Lower optim.lr or lengthen optim.warmup_epochs. The last checkpoint is intact.",
        report={"loss": done.loss, "gradient_norm": norm, "images": part.index.tolist()}
        | {"forwarded": done.forwarded, "saved": done.saved},
    )
