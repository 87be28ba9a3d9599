"""Supervised contrastive losses: of Khosla et al., its masked form for SMCL, and the balanced one of Zhu et al."""

from __future__ import annotations

import torch
from torch import Tensor

from longtail.losses.classification import check_labels
from longtail.losses.rows import check_temperature, mean_over_rows, row_losses, similarity, similarity_type


def balanced_contrastive_loss(
    features: Tensor, labels: Tensor, centers: Tensor, *, temperature: float, chunk: int | None = None
) -> Tensor:
    """Balanced contrastive loss: class centers join the columns, and each class weighs the same in the denominator.

    Rows i are the R = B V features, columns j the R features and the C centers, s = z . z / temperature, and n_c the
    number of columns of class c, n_c = V * (images of c in the batch) + 1::

        Z_i  = sum_{j != i} exp(s_ij) / (n_c(j) - [c(j) = c(i)])
        loss = mean_i -1/(n_c(i) - 1) sum_{j != i, c(j) = c(i)} (s_ij - log Z_i)

    A class absent from the batch keeps its center, with n = 1. Memory is O(chunk (R + C) + (R + C) D).

    Zhu et al., "Balanced Contrastive Learning for Long-Tailed Visual Recognition", arXiv 2207.09052, eq. 5-6.
    Paper: divides by n_c. Authors' program (BCL, and ConCutMix after it): divides the positives by n_c - 1, as the row
    itself is not among them. Here: as the programs.

    Args:
        features: (B, V, D) of unit length, V >= 1 views of each image.
        labels: (B,) integer ids in [0, C).
        centers: (C, D) of unit length, one per class; receives a gradient.
        temperature: above 0.
        chunk: rows at a time; None for all where rows times columns are at most 2^20, and else as many as keep to 2^19.
            The value does not depend on it, up to rounding; more than one chunk cannot be differentiated twice.

    Returns:
        A scalar, float32 for float16 and bfloat16 inputs.

    Raises:
        ValueError: on shapes that do not fit, an empty batch, (on the CPU) ids outside [0, C), a bad temperature, or
            chunk < 1.
    """
    batch, views, width = _check_features(features, temperature)
    if centers.ndim != 2 or centers.shape[1] != width:
        raise ValueError(f"centers must be (C, {width}) for these features, not {tuple(centers.shape)}.")
    classes = centers.shape[0]
    check_labels("labels", labels, batch, classes)
    rows = features.reshape(batch * views, width)
    row_labels = labels.long().repeat_interleave(views)
    columns = torch.cat((rows, centers.to(rows.dtype)))
    column_labels, column_sizes = _balanced_columns(row_labels, classes, similarity_type(rows, columns))
    # The clamp touches absent classes only: they are nobody's positive, but where() evaluates both sides.
    own_size, other_size = (column_sizes - 1).clamp_min(1).log(), column_sizes.log()
    itself = torch.arange(len(rows), device=rows.device)[:, None]

    def of_rows(similarities: Tensor, taken: slice) -> tuple[Tensor, Tensor]:
        positives = row_labels[taken, None] == column_labels[None, :]
        return row_losses(similarities, positives, itself[taken], torch.where(positives, own_size, other_size))

    return mean_over_rows(rows, columns, of_rows, temperature=temperature, chunk=chunk)


def balanced_masked_contrastive_loss(
    anchors: Tensor,
    labels: Tensor,
    features: Tensor,
    key_labels: Tensor,
    centers: Tensor,
    *,
    temperature: float,
    chunk: int | None = None,
) -> Tensor:
    """:func:`balanced_contrastive_loss` of anchors that are not among the columns, as masked images are.

    Columns are the R = B V features and the C centers, n_c the number of columns of class c, s = anchor . column /
    temperature::

        Z_i  = sum_j exp(s_ij) / n_c(j)
        loss = mean_i -1/n_c(i) sum_{j: c(j) = label i} (s_ij - log Z_i)

    Every class has a center, so every anchor has a positive. Of `smcl-concutmix`; the denominator is that of Zhu et
    al., arXiv 2207.09052, and no column is left out of it because none is the anchor itself.

    Args:
        anchors: (A, D) of unit length.
        labels: (A,) integer ids in [0, C), the classes that the anchors are pulled toward.
        features: (B, V, D) of unit length.
        key_labels: (B,) integer ids in [0, C).
        centers: (C, D) of unit length.
        temperature: above 0.
        chunk: anchors at a time, as in :func:`balanced_contrastive_loss`.

    Returns:
        A scalar, float32 for float16 and bfloat16 inputs; 0 with a graph if there is no anchor.

    Raises:
        ValueError: on shapes that do not fit, an empty batch of features, (on the CPU) ids outside [0, C), a bad
            temperature, or chunk < 1.
    """
    batch, views, width = _check_features(features, temperature)
    for name, rows in (("anchors", anchors), ("centers", centers)):
        if rows.ndim != 2 or rows.shape[1] != width:
            raise ValueError(f"{name} must be (., {width}) for these features, not {tuple(rows.shape)}.")
    classes = centers.shape[0]
    check_labels("labels", labels, anchors.shape[0], classes)
    check_labels("key_labels", key_labels, batch, classes)
    columns = torch.cat((features.reshape(batch * views, width), centers.to(features.dtype)))
    if anchors.shape[0] == 0:
        return similarity(anchors, columns, temperature).sum()
    kind = similarity_type(anchors, columns)
    column_labels, column_sizes = _balanced_columns(key_labels.long().repeat_interleave(views), classes, kind)
    log_size = column_sizes.log()[None, :]
    row_labels = labels.long()[:, None]

    def of_rows(similarities: Tensor, taken: slice) -> tuple[Tensor, Tensor]:
        return row_losses(similarities, row_labels[taken] == column_labels[None, :], None, log_size)

    return mean_over_rows(anchors, columns, of_rows, temperature=temperature, chunk=chunk)


def _balanced_columns(row_labels: Tensor, classes: int, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Labels of the columns [features, centers], and of each the number of columns of its class."""
    column_labels = torch.cat((row_labels, torch.arange(classes, device=row_labels.device)))
    ones = torch.ones_like(row_labels, dtype=kind)
    sizes = torch.ones(classes, dtype=kind, device=row_labels.device).index_add(0, row_labels, ones)
    return column_labels, sizes[column_labels]


def supervised_contrastive_loss(
    features: Tensor, labels: Tensor, *, temperature: float, chunk: int | None = None
) -> Tensor:
    """Supervised contrastive loss with the mean over positives outside the logarithm (L_out).

    Over the R = B V features, with s = z . z / temperature and P(i) the others of the class of i::

        loss = mean_i -1/|P(i)| sum_{p in P(i)} (s_ip - log sum_{j != i} exp(s_ij))

    Khosla et al., "Supervised Contrastive Learning", arXiv 2004.11362, eq. 2. Paper: every row has a positive. Here:
    rows without one (possible for V = 1) are left out of the mean, as in :func:`masked_contrastive_loss`.

    Args:
        features: (B, V, D) of unit length, V >= 1 views of each image.
        labels: (B,) integer ids.
        temperature: above 0.
        chunk: rows at a time, as in :func:`balanced_contrastive_loss`.

    Returns:
        A scalar, float32 for float16 and bfloat16 inputs; 0 with a graph if no row has a positive.

    Raises:
        ValueError: on shapes that do not fit, an empty batch, a bad temperature, or chunk < 1.
    """
    batch, views, width = _check_features(features, temperature)
    check_labels("labels", labels, batch)
    rows = features.reshape(batch * views, width)
    row_labels = labels.repeat_interleave(views)
    itself = torch.arange(len(rows), device=rows.device)
    return masked_contrastive_loss(
        rows, row_labels, rows, row_labels, temperature=temperature, self_index=itself, chunk=chunk
    )


def masked_contrastive_loss(
    anchors: Tensor,
    labels: Tensor,
    keys: Tensor,
    key_labels: Tensor,
    *,
    temperature: float,
    self_index: Tensor | None = None,
    row_weight: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Supervised contrastive loss of anchors against a set of keys that need not hold the anchors.

    With s = anchor . key / temperature, J(i) all keys but ``self_index[i]``, P(i) those of them with the anchor's
    label, and M the number of anchors whose P is not empty::

        loss = 1/M sum_{i: P(i) not empty} w_i * -1/|P(i)| sum_{p in P(i)} (s_ip - log sum_{j in J(i)} exp(s_ij))

    Park et al., "SMCL", arXiv 2406.02223: anchors are features of masked images, keys those of the clean and the
    weighted-sampled batch; the lambda of each image is ``row_weight``. The form is that of Khosla et al.,
    arXiv 2004.11362, eq. 2.

    Args:
        anchors: (A, D) of unit length.
        labels: (A,) integer ids.
        keys: (K, D) of unit length.
        key_labels: (K,) integer ids.
        temperature: above 0.
        self_index: (A,) integer, the column that is the anchor itself and does not count; None where there is none.
        row_weight: (A,) factor w of each anchor's term; None for 1. The divisor M does not change with it.
        chunk: anchors at a time, as in :func:`balanced_contrastive_loss`.

    Returns:
        A scalar, float32 for float16 and bfloat16 inputs; 0 with a graph if no anchor has a positive.

    Raises:
        ValueError: on shapes that do not fit, (on the CPU) a self_index outside [0, K), a bad temperature, or
            chunk < 1.
    """
    check_temperature(temperature)
    if anchors.ndim != 2 or keys.ndim != 2 or anchors.shape[1] != keys.shape[1]:
        raise ValueError(
            f"anchors and keys must be (A, D) and (K, D), not {tuple(anchors.shape)} and {tuple(keys.shape)}."
        )
    count = anchors.shape[0]
    check_labels("labels", labels, count)
    check_labels("key_labels", key_labels, keys.shape[0])
    if row_weight is not None and row_weight.shape != (count,):
        raise ValueError(f"row_weight must be ({count},), not {tuple(row_weight.shape)}.")
    if self_index is not None:
        check_labels("self_index", self_index, count, keys.shape[0])
    if count == 0 or keys.shape[0] == 0:
        nothing = similarity(anchors, keys, temperature)
        return nothing.sum() + 0 * (anchors.sum() + keys.sum()).to(nothing.dtype)
    itself = None if self_index is None else self_index.long()[:, None]

    def of_rows(similarities: Tensor, taken: slice) -> tuple[Tensor, Tensor]:
        positives = labels[taken, None] == key_labels[None, :]
        return row_losses(similarities, positives, None if itself is None else itself[taken])

    return mean_over_rows(anchors, keys, of_rows, temperature=temperature, chunk=chunk, weight=row_weight)


def _check_features(features: Tensor, temperature: float) -> tuple[int, int, int]:
    check_temperature(temperature)
    if features.ndim != 3 or not features.is_floating_point():
        raise ValueError(f"features must be a floating (B, V, D) tensor, not {features.dtype} {tuple(features.shape)}.")
    batch, views, width = features.shape
    if batch == 0 or views == 0:
        raise ValueError(f"features {tuple(features.shape)} hold no row to take the mean over.")
    return batch, views, width
