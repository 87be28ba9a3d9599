"""Slow loops written from the equations, in plain Python floats: what the fast functions are checked against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

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
    features: Matrix,
    centers: Matrix,
    labels: Matrix,
    counts: Sequence[int],
    scale: float,
    topk: int,
    confidence: str = "frequency",
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
        if confidence == "frequency":
            gamma = scale * math.log(mass) / logs if logs > 0 and mass > 0 else 0.0
        elif confidence == "constant":
            gamma = scale
        elif confidence == "mixedness":
            gamma = 2 * scale * math.fsum(t[k] * t[j] for k in range(classes) for j in range(classes) if j != k)
        else:
            gamma = scale * math.fsum(q[k] for k in range(classes) if t[k] > 0)
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


def balanced_masked_contrastive(
    anchors: Matrix,
    labels: Sequence[int],
    features: Sequence[Matrix],
    key_labels: Sequence[int],
    centers: Matrix,
    temperature: float,
) -> float:
    """Every class weighs the same in the denominator, and no column is left out: the anchors are not among them."""
    rows, row_labels = flattened(features, key_labels)
    columns, column_labels = [*rows, *centers], [*row_labels, *range(len(centers))]
    total = 0.0
    for anchor, label in zip(anchors, labels, strict=True):
        scores = [dot(anchor, column) / temperature for column in columns]
        denominator = 0.0
        for c in range(len(centers)):
            own = [math.exp(s) for s, k in zip(scores, column_labels, strict=True) if k == c]
            denominator += math.fsum(own) / len(own)
        toward = [s - math.log(denominator) for s, k in zip(scores, column_labels, strict=True) if k == label]
        total -= math.fsum(toward) / len(toward)
    return total / len(anchors)


Pixels = Sequence[Sequence[Sequence[float]]]
"""One image: channels, rows, columns."""


def transplanted(background: Pixels, foreground: Pixels, box: Sequence[int], source: Sequence[int]) -> list[Any]:
    """Pixel by pixel: what lies in the box comes from the place in the foreground that lies alike in its box."""
    moved = [[list(row) for row in channel] for channel in background]
    for c in range(len(background)):
        for down in range(box[1] - box[0]):
            for right in range(box[3] - box[2]):
                moved[c][box[0] + down][box[2] + right] = foreground[c][source[0] + down][source[2] + right]
    return moved


def erased_around(image: Pixels, peak: Sequence[int], lam: float, *, value: float = 0.0) -> tuple[list[Any], float]:
    """The image with the box of CutMix around ``peak`` at ``value``, and the fraction of its pixels that are left."""
    height, width = len(image[0]), len(image[0][0])
    inside = cutmix_mask(height, width, lam, peak[0], peak[1])
    masked = [
        [[value if inside[y][x] else channel[y][x] for x in range(width)] for y in range(height)] for channel in image
    ]
    return masked, 1 - sum(map(sum, inside)) / (height * width)


def unit(row: Sequence[float]) -> list[float]:
    length = math.sqrt(dot(row, row))
    return [value / length for value in row]


def sc(z: Sequence[float], toward: int, others: Matrix, labels: Sequence[int], temperature: float) -> float | None:
    """-1/|P| sum over the others of class ``toward`` of log exp(s_p) / sum_j exp(s_j); None without one."""
    scores = [dot(z, other) / temperature for other in others]
    total = math.fsum(math.exp(score) for score in scores)
    terms = [math.log(math.exp(s) / total) for s, label in zip(scores, labels, strict=True) if label == toward]
    return -math.fsum(terms) / len(terms) if terms else None


def smcl_masked(
    logits: Matrix,
    anchors: Matrix,
    keys: Matrix,
    labels: Sequence[int],
    toward: Sequence[int],
    lam: Sequence[float],
    *,
    mu: float,
    variant: str,
    temperature: float,
    weight: Sequence[float],
) -> float:
    """Equations (5) to (7): lam CE(x^M, y) + (1 - lam) CE(x^M, y') and mu (lam sc(z^M; y) + (1 - lam) sc(z^M; y')).

    ``logits`` and ``anchors`` are of x^M, ``keys`` of x and then of x'. B: y' alone in both; C: y' alone in the second.
    """
    key_labels = [*labels, *toward]
    ce = weights = contrast = 0.0
    for i, row in enumerate(logits):
        log_p, z = log_softmax(row), unit(anchors[i])
        share = 0.0 if variant == "B" else lam[i]
        ce -= share * weight[labels[i]] * log_p[labels[i]] + (1 - share) * weight[toward[i]] * log_p[toward[i]]
        weights += share * weight[labels[i]] + (1 - share) * weight[toward[i]]
        mine, other = (sc(z, c, [unit(k) for k in keys], key_labels, temperature) for c in (labels[i], toward[i]))
        assert mine is not None
        assert other is not None
        contrast += lam[i] * mine + (1 - lam[i]) * other if variant == "A" else other
    return ce / weights + mu * contrast / len(logits)


def smcl_clean(
    logits: Matrix,
    projected: Matrix,
    labels: Sequence[int],
    toward: Sequence[int],
    *,
    mu: float,
    temperature: float,
    weight: Sequence[float],
) -> float:
    """A step without a mask: cross-entropy of x, and sc of every image of x and x' among all the others."""
    known, rows = [*labels, *toward], [unit(row) for row in projected]
    terms = []
    for i, z in enumerate(rows):
        others = [j for j in range(len(rows)) if j != i]
        terms.append(sc(z, known[i], [rows[j] for j in others], [known[j] for j in others], temperature))
    there = [term for term in terms if term is not None]
    applied = [weight[label] for label in labels]
    ce = [-w * log_softmax(row)[label] for w, row, label in zip(applied, logits, labels, strict=True)]
    return math.fsum(ce) / math.fsum(applied) + mu * math.fsum(there) / len(there)
