"""Drift: how far the last images, and the answers to them, are from those that the model was validated on.

    pixels, probabilities, size ──measure──▶ features of an image ──Window──▶ counts in bins ──▶ PSI and its limit

With p and q the shares of a bin now and in the reference, PSI = Σ (p - q) ln(p / q). If nothing has changed, PSI divided by
1/n + 1/m (images now and then) follows chi-square with one degree of freedom less than there are bins, so that the limit
comes from a rate of false alarms. Source: Yurdakul and Naranjo, "Statistical properties of the population stability index".
"""

import math
import threading
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from app.spec import FEATURES, Reference

FALSE_ALARMS = 0.001  # of windows in which nothing has changed, over all features together
MATERIAL_PSI = 0.1  # with many images smaller changes are certain too, and nobody's concern
MIN_IMAGES = 100  # with fewer, bins are too empty for the distribution above
PERIOD_SECONDS = 0.02  # per image that is counted: its 25 to 46 µs are then never more than a quarter of a percent of a core
SIDE = 32  # places in a row and in a column at which brightness and contrast are measured

Size = tuple[int, int] | None  # width, height of the decoded image; None for pixels that came as such


@dataclass(frozen=True, slots=True)
class Drift:
    """How far one feature of the last `images` is from the reference: above `limit`, it has drifted."""

    images: int
    psi: float  # population stability index
    limit: float


def measure(pixels: NDArray[np.uint8], probabilities: NDArray[np.float32], size: Size) -> tuple[float, ...]:
    """An image's `FEATURES`, the last two only with a size, from `(height, width, channels)` and `(classes,)`."""
    height, width, _ = pixels.shape
    some = pixels[:: -(-height // SIDE), :: -(-width // SIDE)]
    best = int(probabilities.argmax())
    # In thousandths: finer, the surest answers would tell processors apart, whose last digits differ.
    features = (best, round(float(probabilities[best]), 3), float(some.mean()), float(some.std()))
    return (*features, size[0] / size[1], size[0] * size[1]) if size else features


class Window:
    """Counts the last `size` images or, at least, half as many: the older half goes as a whole. Thread-safe."""

    def __init__(self, reference: Reference, size: int) -> None:
        self._histograms = [reference.histograms[name] for name in FEATURES]
        self._half, self._next_at, self._lock = -(-size // 2), 0.0, threading.Lock()
        self._older, self._newer, self._n = self._zeros(), self._zeros(), 0

    def observe(self, batch: NDArray[np.uint8], probabilities: NDArray[np.float32], sizes: Sequence[Size]) -> None:
        """Measures and counts a batch's images, unless they follow others too closely."""
        if (now := time.monotonic()) < self._next_at:
            return
        self._next_at = now + len(batch) * PERIOD_SECONDS
        self.count([measure(*one) for one in zip(batch, probabilities, sizes, strict=True)])

    def count(self, measured: Sequence[tuple[float, ...]]) -> None:
        """Counts images by their features."""
        with self._lock:
            if self._n >= self._half:
                self._older, self._newer, self._n = self._newer, self._zeros(), 0
            self._n += len(measured)
            for features in measured:
                for counts, histogram, value in zip(self._newer, self._histograms, features, strict=False):
                    counts[bisect_left(histogram.edges, value)] += 1

    def drift(self) -> dict[str, Drift]:
        """Of each feature, as soon as there are `MIN_IMAGES` of it."""
        with self._lock:
            now = [np.add(*halves) for halves in zip(self._older, self._newer, strict=True)]
        rows = zip(FEATURES, now, self._histograms, strict=True)
        return {name: compare(counts, np.array(then.counts)) for name, counts, then in rows if counts.sum() >= MIN_IMAGES}

    def _zeros(self) -> list[list[int]]:
        return [[0] * len(one.counts) for one in self._histograms]


def compare(now: NDArray[np.int64], then: NDArray[np.int64]) -> Drift:
    """The drift of one feature, from its counts by bin."""
    # Half an image more in every bin, so that an empty one is no infinite distance.
    p, q = ((counts + 0.5) / (counts + 0.5).sum() for counts in (now, then))
    # Chi-square's quantile from the normal one. Source: Wilson and Hilferty, 1931.
    freedom, z = len(now) - 1, NormalDist().inv_cdf(1 - FALSE_ALARMS / len(FEATURES))
    spread = 2 / (9 * freedom)
    noise = (1 / now.sum() + 1 / then.sum()) * freedom * (1 - spread + z * math.sqrt(spread)) ** 3
    return Drift(int(now.sum()), float(((p - q) * np.log(p / q)).sum()), max(MATERIAL_PSI, float(noise)))
