"""Slow loops written from the equations, in plain Python floats: what the fast functions are checked against."""

from __future__ import annotations

import math
from collections.abc import Sequence

Matrix = Sequence[Sequence[float]]


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def log_softmax(row: Sequence[float]) -> list[float]:
    top = max(row)
    log_total = top + math.log(math.fsum(math.exp(value - top) for value in row))
    return [value - log_total for value in row]


def cross_entropy(
    logits: Matrix,
    target: Sequence[int] | Matrix,
    offset: Sequence[float] | None = None,
    weight: Sequence[float] | None = None,
) -> float:
    """sum_ik w_k t_ik l_ik over sum_ik w_k t_ik (with weight) or over B (without)."""
    numerator = denominator = 0.0
    for row, given in zip(logits, target, strict=True):
        classes = len(row)
        soft = [float(k == given) for k in range(classes)] if isinstance(given, int) else given
        shifted = [row[k] + (offset[k] if offset is not None else 0.0) for k in range(classes)]
        log_p = log_softmax(shifted)
        for k in range(classes):
            w = 1.0 if weight is None else weight[k]
            numerator -= w * soft[k] * log_p[k]
            denominator += w * soft[k]
    return numerator / (len(logits) if weight is None else denominator)


def flattened(features: Sequence[Matrix], labels: Sequence[int]) -> tuple[list[Sequence[float]], list[int]]:
    """(B, V, D) and (B,) to rows and their labels."""
    rows = [view for image in features for view in image]
    return rows, [label for image, label in zip(features, labels, strict=True) for _ in image]


def balanced_contrastive(
    features: Sequence[Matrix], labels: Sequence[int], centers: Matrix, temperature: float
) -> float:
    """Z_i and the loss as spec'd: columns are all features and all centers, the row itself is left out."""
    rows, row_labels = flattened(features, labels)
    columns = [*rows, *centers]
    column_labels = [*row_labels, *range(len(centers))]
    size = {c: sum(label == c for label in column_labels) for c in column_labels}
    total = 0.0
    for i, row in enumerate(rows):
        denominator = 0.0
        for j, column in enumerate(columns):
            if j != i:
                positive = column_labels[j] == row_labels[i]
                denominator += math.exp(dot(row, column) / temperature) / (size[column_labels[j]] - positive)
        inner = [
            dot(row, column) / temperature - math.log(denominator)
            for j, column in enumerate(columns)
            if j != i and column_labels[j] == row_labels[i]
        ]
        total -= math.fsum(inner) / (size[row_labels[i]] - 1)
    return total / len(rows)


def masked_contrastive(
    anchors: Matrix,
    labels: Sequence[int],
    keys: Matrix,
    key_labels: Sequence[int],
    temperature: float,
    self_index: Sequence[int] | None = None,
    row_weight: Sequence[float] | None = None,
) -> float:
    """Mean over the anchors that have a positive; 0 if none has."""
    total, counted = 0.0, 0
    for i, anchor in enumerate(anchors):
        columns = [j for j in range(len(keys)) if self_index is None or j != self_index[i]]
        positives = [j for j in columns if key_labels[j] == labels[i]]
        if not positives:
            continue
        denominator = math.fsum(math.exp(dot(anchor, keys[j]) / temperature) for j in columns)
        inner = math.fsum(dot(anchor, keys[p]) / temperature - math.log(denominator) for p in positives)
        total += (1.0 if row_weight is None else row_weight[i]) * -inner / len(positives)
        counted += 1
    return total / counted if counted else 0.0


def supervised_contrastive(features: Sequence[Matrix], labels: Sequence[int], temperature: float) -> float:
    rows, row_labels = flattened(features, labels)
    return masked_contrastive(rows, row_labels, rows, row_labels, temperature, range(len(rows)))


def rectified_labels(
    features: Matrix, centers: Matrix, labels: Matrix, counts: Sequence[int], scale: float, topk: int
) -> list[list[float]]:
    """Inverse distances of the topk nearest centers, mixed in with the clamped confidence."""
    classes = len(centers)
    logs = math.fsum(math.log(n) for n in counts if n > 0)
    rectified = []
    for u, t in zip(features, labels, strict=True):
        distances = [math.sqrt(math.fsum((a - b) ** 2 for a, b in zip(u, v, strict=True))) for v in centers]
        closeness = [1.0 / max(distance, 1e-12) for distance in distances]
        kept = sorted(range(classes), key=lambda k: -closeness[k])[:topk]
        total = math.fsum(closeness[k] for k in kept)
        q = [closeness[k] / total if k in kept else 0.0 for k in range(classes)]
        mass = math.fsum(n * share for n, share in zip(counts, t, strict=True))
        gamma = scale * math.log(mass) / logs if logs > 0 and mass > 0 else 0.0
        gamma = min(max(gamma, 0.0), 1.0)
        rectified.append([gamma * q[k] + (1.0 - gamma) * t[k] for k in range(classes)])
    return rectified


def cutmix_mask(height: int, width: int, lam: float, row: int, column: int) -> list[list[bool]]:
    """Pixel by pixel: inside if within half a side of the center, half = int(side * sqrt(1 - lam)) // 2."""
    half_height = int(height * math.sqrt(1.0 - lam)) // 2
    half_width = int(width * math.sqrt(1.0 - lam)) // 2
    return [
        [
            row - half_height <= y < row + half_height and column - half_width <= x < column + half_width
            for x in range(width)
        ]
        for y in range(height)
    ]


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def log_odds(row: Sequence[float], k: int) -> float:
    """z_k less the logarithm of the sum of all others' exponentials."""
    others = [value for j, value in enumerate(row) if j != k]
    top = max(others)
    return row[k] - top - math.log(math.fsum(math.exp(value - top) for value in others))


def weighted_mean(losses: Matrix, target: Sequence[int] | Matrix, weight: Sequence[float] | None) -> float:
    """sum_ik w_k t_ik l_ik over sum_ik w_k t_ik (with weight) or over B (without)."""
    numerator = denominator = 0.0
    for row, given in zip(losses, target, strict=True):
        for k, loss in enumerate(row):
            share = float(k == given) if isinstance(given, int) else given[k]
            w = 1.0 if weight is None else weight[k]
            numerator += w * share * loss
            denominator += w * share
    return numerator / (len(losses) if weight is None else denominator)


def focal(
    logits: Matrix,
    target: Sequence[int] | Matrix,
    gamma: float,
    offset: Sequence[float] | None = None,
    weight: Sequence[float] | None = None,
) -> float:
    """(1 - p_k)^gamma * -log p_k for each class; 1 - p_k is summed over the others."""
    losses = []
    for row in logits:
        shifted = [row[k] + (offset[k] if offset is not None else 0.0) for k in range(len(row))]
        p = [math.exp(value) for value in log_softmax(shifted)]
        odds = [log_odds(shifted, k) for k in range(len(row))]
        rest = [math.fsum(p[j] for j in range(len(row)) if j != k) for k in range(len(row))]
        losses.append([rest[k] ** gamma * softplus(-odds[k]) for k in range(len(row))])
    return weighted_mean(losses, target, weight)


def margin_cross_entropy(
    logits: Matrix,
    target: Sequence[int] | Matrix,
    margins: Sequence[float],
    offset: Sequence[float] | None = None,
    weight: Sequence[float] | None = None,
) -> float:
    """For each class k, -log softmax_k of the logits of which that of k alone is lowered by its margin."""
    losses = []
    for row in logits:
        shifted = [row[k] + (offset[k] if offset is not None else 0.0) for k in range(len(row))]
        losses.append([softplus(margins[k] - log_odds(shifted, k)) for k in range(len(row))])
    return weighted_mean(losses, target, weight)


def class_balanced_weights(counts: Sequence[int], beta: float) -> list[float]:
    """The effective number as the sum 1 + beta + ... + beta^(N - 1); a class without images has that of one."""
    effective = [math.fsum(beta**i for i in range(max(n, 1))) for n in counts]
    total = math.fsum(1 / e for e in effective)
    return [len(counts) / e / total for e in effective]


def ldam_margins(counts: Sequence[int], max_margin: float) -> list[float]:
    roots = [1 / math.sqrt(math.sqrt(max(n, 1))) for n in counts]
    return [max_margin * root / max(roots) for root in roots]
