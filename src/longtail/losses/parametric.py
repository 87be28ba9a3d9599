"""The loss of parametric contrastive learning: a classifier's classes stand among the samples that are compared."""

from __future__ import annotations

import torch
from torch import Tensor

from longtail.losses.classification import check_labels, prepare_logits
from longtail.losses.rows import check_temperature, similarity


def parametric_contrastive_loss(
    queries: Tensor,
    labels: Tensor,
    logits: Tensor,
    keys: Tensor,
    key_labels: Tensor,
    *,
    temperature: float,
    alpha: float,
    beta: float = 1.0,
    offset: Tensor | None = None,
    target: Tensor | None = None,
) -> Tensor:
    """Supervised contrastive loss whose columns are class centers, the other queries, and keys.

    With l_ik = logits_ik + offset_k the similarity of query i to the center of class k, s = query . column /
    temperature that to a sample, J(i) the other queries and the keys, and P(i) those of them with the label y of i::

        Z_i  = sum_k exp(l_ik) + sum_{j in J(i)} exp(s_ij)
        loss = mean_i -(beta (l_iy - log Z_i) + alpha sum_{p in P(i)} (s_ip - log Z_i)) / (beta + alpha |P(i)|)

    An image alone, without keys, has the cross-entropy of l. Memory is O(B (C + B + K)).

    Cui et al., "Parametric Contrastive Learning", arXiv 2107.12028. Paper: positives weigh alpha, the center 1.
    Authors' program: beta for the center, and the sum divided by the weights in it. Here: as the program, without gamma
    (a factor of the samples in Z) and a temperature of the logits, because both are 1 in the commands that we read.

    Args:
        queries: (B, D) of unit length.
        labels: (B,) integer ids in [0, C).
        logits: (B, C) of the same images.
        keys: (K, D) of unit length; K may be 0.
        key_labels: (K,) integer ids; a key with a negative one does not count at all, as an empty place of a queue.
        temperature: above 0, of queries and keys.
        alpha: weight of each positive sample, not below 0.
        beta: weight of the center, above 0, so that every query has a positive.
        offset: (C,) added to the logits, e.g. :func:`logit_adjustment`.
        target: (B, C) soft labels t, for sum_k t_ik (l_ik - log Z_i) in place of the center's term; None for one-hot.

    Returns:
        A scalar, float32 for float16 and bfloat16 inputs.

    Raises:
        ValueError: on shapes that do not fit, an empty batch, (on the CPU) labels outside [0, C), or a temperature,
            alpha or beta out of range.
    """
    center, samples = parametric_contrastive_terms(
        queries,
        labels,
        logits,
        keys,
        key_labels,
        temperature=temperature,
        alpha=alpha,
        beta=beta,
        offset=offset,
        target=target,
    )
    return center + samples


def parametric_contrastive_terms(
    queries: Tensor,
    labels: Tensor,
    logits: Tensor,
    keys: Tensor,
    key_labels: Tensor,
    *,
    temperature: float,
    alpha: float,
    beta: float,
    offset: Tensor | None = None,
    target: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The two scalars whose sum is :func:`parametric_contrastive_loss`: the pull of the centers and of the samples."""
    check_temperature(temperature)
    if not alpha >= 0:
        raise ValueError(f"alpha must not be below 0, and is {alpha}.")
    if not beta > 0:
        raise ValueError(f"beta must be above 0, not {beta}.")
    adjusted = prepare_logits(logits, offset=offset)
    batch, classes = adjusted.shape
    if queries.ndim != 2 or queries.shape[0] != batch:
        raise ValueError(f"queries must be ({batch}, D) as logits are {tuple(logits.shape)}: {tuple(queries.shape)}.")
    if keys.ndim != 2 or keys.shape[1] != queries.shape[1]:
        raise ValueError(f"keys must be (K, {queries.shape[1]}) for these queries, not {tuple(keys.shape)}.")
    check_labels("labels", labels, batch, classes)
    check_labels("key_labels", key_labels, keys.shape[0])
    if target is not None and (target.shape != adjusted.shape or not target.is_floating_point()):
        raise ValueError(f"target must be floating {tuple(adjusted.shape)} like logits, not {tuple(target.shape)}.")

    near = similarity(queries, torch.cat((queries, keys.to(queries.dtype))), temperature)
    itself = torch.eye(batch, dtype=torch.bool, device=labels.device)
    absent = torch.cat((itself, (key_labels < 0).expand(batch, -1)), dim=1)
    positives = (labels[:, None] == torch.cat((labels, key_labels))[None, :]) & ~absent
    columns = torch.cat((adjusted, near.masked_fill(absent, float("-inf"))), dim=1)
    log_total = torch.logsumexp(columns, dim=1)

    number = positives.sum(1).to(columns)
    weight = beta + alpha * number
    if target is None:
        center = adjusted.gather(1, labels.long()[:, None]).squeeze(1) - log_total
    else:
        center = (target.to(adjusted) * (adjusted - log_total[:, None])).sum(1)
    samples = near.masked_fill(~positives, 0.0).sum(1) - number * log_total
    return -(beta * center / weight).mean(), -(alpha * samples / weight).mean()
