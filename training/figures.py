"""How good probabilities are: pure numpy, from probabilities `(n, classes)` and the true class indices `(n,)`."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Indices = NDArray[np.int64]

ECE_BINS = 15
Z_95 = 1.959964  # two-sided 95 % of the normal distribution


@dataclass(frozen=True)
class ClassScore:
    """One class: of the images called so, how many are (precision); of those that are, how many were found (recall)."""

    n: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Scores:
    """Everything measured on one data set."""

    n: int
    n_correct: int
    accuracy: float
    interval: tuple[float, float]  # Wilson, 95 %
    macro_f1: float  # over the classes that have images
    ece: float
    log_loss: float  # nats
    classes: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]  # [true class][predicted class]


class Strangers(NamedTuple):
    """Images that are of none of the classes, and how well the top probability tells known ones from them."""

    data: str  # what they are
    n: int
    auroc: float
    accepted: float  # share that reaches the accept threshold; all where there is none


def score(probabilities: Array, truth: Indices) -> Scores:
    """Measures `probabilities` against the truth."""
    predicted = probabilities.argmax(axis=1)
    matrix = confusion_matrix(truth, predicted, probabilities.shape[1])
    classes = class_scores(matrix)
    n, n_correct = len(truth), int((predicted == truth).sum())
    return Scores(
        n=n,
        n_correct=n_correct,
        accuracy=n_correct / n,
        interval=wilson_interval(n_correct, n),
        macro_f1=float(np.mean([of_class.f1 for of_class in classes if of_class.n])),
        ece=expected_calibration_error(probabilities, truth),
        log_loss=log_loss(probabilities, truth),
        classes=classes,
        confusion=tuple(tuple(row) for row in matrix.tolist()),
    )


def confusion_matrix(truth: Indices, predicted: NDArray[np.integer], n_classes: int) -> Indices:
    """Counts, int64 `[true class, predicted class]`."""
    pairs = truth * n_classes + predicted
    return np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes).astype(np.int64)


def class_scores(confusion: Indices) -> tuple[ClassScore, ...]:
    """Precision, recall and F1 of each class; 0 where a class was never predicted or has no images."""
    hits = confusion.diagonal()
    called, real = confusion.sum(axis=0), confusion.sum(axis=1)
    precision, recall, f1 = _share(hits, called), _share(hits, real), _share(2 * hits, called + real)
    columns = (real.tolist(), precision.tolist(), recall.tolist(), f1.tolist())
    return tuple(ClassScore(*values) for values in zip(*columns, strict=True))


def expected_calibration_error(probabilities: Array, truth: Indices, bins: int = ECE_BINS) -> float:
    """The mean gap between confidence and accuracy, over `bins` of equal width, weighted by their images.

    Source: Guo et al., "On calibration of modern neural networks", 2017.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == truth
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(bin_of, weights=confidence - correct, minlength=bins)
    return float(np.abs(gaps).sum() / len(truth))


def uncalibrate(probabilities: Array, temperature: float) -> Array:
    """The probabilities as they were before the logits were divided by `temperature`."""
    powers = probabilities.astype(np.float64) ** temperature
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)


def auroc(known: Array, strange: Array) -> float:
    """The chance that one of `known` is above one of `strange`, where equal ones count half, from their ranks.

    Source: Hanley, McNeil, "The meaning and use of the area under a receiver operating characteristic curve", 1982.
    """
    _, place, counts = np.unique(np.concatenate([known, strange]), return_inverse=True, return_counts=True)
    ranks = (counts.cumsum() - (counts - 1) / 2)[place[: len(known)]]
    return float((ranks.mean() - (len(known) + 1) / 2) / len(strange))


def log_loss(probabilities: Array, truth: Indices) -> float:
    """The mean negative logarithm of the true class's probability, in nats."""
    of_truth = probabilities[np.arange(len(truth)), truth].astype(np.float64)
    return float(-np.log(of_truth.clip(1e-12)).mean())


def wilson_interval(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of `hits` in `n`. Source: Wilson, 1927."""
    share, weight = hits / n, Z_95**2 / n
    centre = (share + weight / 2) / (1 + weight)
    half = Z_95 * math.sqrt(share * (1 - share) / n + weight / (4 * n)) / (1 + weight)
    return max(0.0, centre - half), min(1.0, centre + half)


def _share(part: Indices, whole: Indices) -> Array:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
