"""Eight-bit numbers for weights and activations, chosen so that a layer's output changes least. Pure numpy.

Weights are int8, symmetric, with one scale per output channel; activations are uint8 with one scale and zero point per tensor.
A layer is a matrix `weights` float32 `(groups, outputs, inputs)`, where the inputs of a convolution are ordered (row, column,
channel) as onnxruntime's kernels walk them; an ordinary layer has one group, a depthwise one has a group per channel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Pairs = NDArray[np.intp]

MAX_SAMPLES = 100_000  # values that a range is chosen on
SHRINK_FACTORS = np.linspace(0.4, 1.0, 31)
MAX_WEIGHT = 127
# Processors without VNNI add two products of uint8 and int8 in 16 bits, which hold 255 × 128 and no more. Without this limit
# EfficientNet-Lite0 loses 5 points on them (Zen 3, 2026-11).
MAX_PAIR = 128
DAMPING = 0.01  # of the covariance's mean diagonal
MAX_PATCHES = 20_000  # that a covariance is taken over
BIAS_BITS = 29  # of the 31 that a bias has; the rest is room for the sum
BLOCK = 128  # inputs whose errors are carried on together; only speed depends on it


@dataclass(frozen=True)
class Range:
    """The real numbers that uint8 stands for: `scale` × (q - `zero_point`)."""

    scale: float
    zero_point: int

    def round(self, values: Array) -> NDArray[np.float32]:
        """The nearest representable value of each, saturating."""
        levels = np.clip(np.rint(values / self.scale) + self.zero_point, 0, 255) - self.zero_point
        return np.asarray(levels * self.scale, dtype=np.float32)


@dataclass(frozen=True)
class RoundedWeights:
    """int8 `(groups, outputs, inputs)` and the scale of each row, float32 `(groups, outputs)`."""

    levels: NDArray[np.int8]
    scales: NDArray[np.float32]

    @property
    def values(self) -> NDArray[np.float32]:
        """What the levels stand for."""
        values: NDArray[np.float32] = self.levels * self.scales[..., np.newaxis]
        return values


def choose_range(values: Array) -> Range:
    """The range that holds zero and has the least squared error on `values`, saturation included."""
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    if low == high:
        return Range(scale=1 / 255, zero_point=0)
    sample = values.reshape(-1)[:: max(1, values.size // MAX_SAMPLES)]
    ranges = [_range_between(low * factor, high * factor) for factor in SHRINK_FACTORS]
    errors = [float(np.square(one.round(sample) - sample, dtype=np.float64).mean()) for one in ranges]
    return ranges[int(np.argmin(errors))]


def _range_between(low: float, high: float) -> Range:
    scale = float(np.float32((high - low) / 255))
    return Range(scale, int(np.clip(np.rint(-low / scale), 0, 255)))


def neighbours(rows: int, columns: int, channels: int) -> Pairs:
    """The inputs of a convolution kernel that some integer kernel may add in 16 bits, as `(pairs, 2)`.

    All orders that onnxruntime may walk the kernel in: channels innermost through the whole kernel, channels innermost and
    starting anew at each of its positions, and channels outermost.
    """
    inner = np.arange(rows * columns * channels)
    by_position = inner.reshape(rows * columns, channels)
    pairs = [_in_twos(inner), _in_twos(by_position.T.reshape(-1)), *map(_in_twos, by_position)]
    return np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0)


def _in_twos(order: Pairs) -> Pairs:
    return order[: len(order) // 2 * 2].reshape(-1, 2)


def choose_scales(weights: Array, pairs: Pairs | None, least: Array) -> NDArray[np.float32]:
    """The scale of each output, `(groups, outputs)`: small enough to be fine, large enough for every limit.

    `pairs` None leaves the pairs free, for kernels that add in 32 bits (depthwise). `least` `(groups, outputs)` is what the
    bias needs to fit into 32 bits.
    """
    scales = np.maximum(np.abs(weights).max(axis=-1) / MAX_WEIGHT, least)
    if pairs is not None and len(pairs):
        for part in (np.maximum(weights, 0), np.maximum(-weights, 0)):
            # Half a level is left for rounding.
            scales = np.maximum(scales, part[..., pairs].sum(axis=-1).max(axis=-1) / (MAX_PAIR - 0.5))
    return np.asarray(np.where(scales > 0, scales, 1.0), dtype=np.float32)


def covariance(patches: Array) -> Array:
    """How the inputs vary together, `(groups, inputs, inputs)`, from `(groups, patches, inputs)`. Their mean is the bias's."""
    centred = patches - patches.mean(axis=1, keepdims=True)
    products: Array = centred.transpose(0, 2, 1) @ centred
    result: Array = products.astype(np.float64) / patches.shape[1]
    return result


def round_weights(weights: Array, scales: NDArray[np.float32], covariances: Array, pairs: Pairs | None) -> RoundedWeights:
    """Rounds input after input, and makes up for each error with the inputs not yet rounded.

    Source: Frantar et al., "GPTQ: accurate post-training quantization for generative pre-trained transformers", 2023.
    """
    factors = _inverse_factors(covariances)
    levels = np.zeros(weights.shape, np.float64)
    rest = weights / scales[..., np.newaxis].astype(np.float64)
    earlier = _earlier_partners(pairs, weights.shape[-1])
    for start in range(0, weights.shape[-1], BLOCK):
        stop = min(start + BLOCK, weights.shape[-1])
        errors = np.zeros_like(rest[..., start:stop])
        for column in range(start, stop):
            levels[..., column] = _round_column(rest[..., column], levels[..., earlier[column]])
            error = (rest[..., column] - levels[..., column]) / factors[:, np.newaxis, column, column]
            rest[..., column:stop] -= error[..., np.newaxis] * factors[:, np.newaxis, column, column:stop]
            errors[..., column - start] = error
        rest[..., stop:] -= errors @ factors[:, start:stop, stop:]
    return RoundedWeights(levels.astype(np.int8), scales)


def _inverse_factors(covariances: Array) -> Array:
    """The upper triangular U of each with UᵀU = covariance⁻¹, damped."""
    n_inputs = covariances.shape[-1]
    damping = DAMPING * np.trace(covariances, axis1=1, axis2=2) / n_inputs
    damping = np.where(damping > 0, damping, 1.0)
    inverses = np.linalg.inv(covariances + damping[:, np.newaxis, np.newaxis] * np.eye(n_inputs))
    return np.asarray(np.linalg.cholesky(inverses).transpose(0, 2, 1))


def _earlier_partners(pairs: Pairs | None, n_inputs: int) -> list[list[int]]:
    """For each input, the inputs before it that it makes a pair with."""
    earlier: list[list[int]] = [[] for _ in range(n_inputs)]
    for first, second in [] if pairs is None else pairs.tolist():
        earlier[second].append(first)
    return earlier


def _round_column(column: Array, partners: Array) -> Array:
    """The nearest levels that keep every pair within its limit; `partners` `(groups, outputs, n)` are rounded already."""
    highest = MAX_PAIR - partners.max(axis=-1, initial=MAX_PAIR - MAX_WEIGHT)
    lowest = -MAX_PAIR - partners.min(axis=-1, initial=MAX_WEIGHT - MAX_PAIR)
    return np.clip(np.rint(column), lowest, highest)


@dataclass(frozen=True)
class Layer:
    """A convolution, or a dense layer as a convolution of one position: weights `(outputs, inputs / groups, rows, columns)`."""

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    groups: int = 1
    strides: Sequence[int] = (1, 1)
    pads: Sequence[int] = (0, 0, 0, 0)  # top, left, bottom, right
    dilations: Sequence[int] = (1, 1)

    @property
    def pairs(self) -> Pairs | None:
        """The inputs that must not add up to too much; None for depthwise, whose kernels add in 32 bits."""
        _, channels, rows, columns = self.weights.shape
        return None if channels == 1 and self.groups > 1 else neighbours(rows, columns, channels)

    def round(self, inputs: Array, input_scale: float) -> RoundedWeights:
        """Rounds the weights for `inputs` `(n, channels, height, width)` or `(n, channels)`, which are uint8 of that scale."""
        by_group = self.weights.reshape(self.groups, -1, *self.weights.shape[1:])
        matrix = by_group.transpose(0, 1, 3, 4, 2).reshape(*by_group.shape[:2], -1)
        least = np.abs(self.bias).reshape(self.groups, -1) / (input_scale * 2.0**BIAS_BITS)
        scales = choose_scales(matrix, self.pairs, least)
        return round_weights(matrix, scales, covariance(self._sample_patches(inputs)), self.pairs)

    def unfold(self, matrix: NDArray[np.generic]) -> NDArray[Any]:
        """A matrix `(groups, outputs, inputs)` in the shape of the weights."""
        _, channels, rows, columns = self.weights.shape
        return matrix.reshape(-1, rows, columns, channels).transpose(0, 3, 1, 2)

    def _sample_patches(self, inputs: Array) -> Array:
        """What the kernel sees at up to `MAX_PATCHES` random positions, `(groups, patches, inputs)`."""
        top, left, bottom, right = self.pads
        inputs = inputs.reshape(*inputs.shape, *[1] * (4 - inputs.ndim))
        padded = np.pad(inputs, ((0, 0), (0, 0), (top, bottom), (left, right)))
        reach = [(size - 1) * step + 1 for size, step in zip(self.weights.shape[2:], self.dilations, strict=True)]
        windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(2, 3))
        windows = windows[:, :, :: self.strides[0], :: self.strides[1], :: self.dilations[0], :: self.dilations[1]]
        n, channels, height, width = windows.shape[:4]
        chosen = np.random.default_rng(0).permutation(n * height * width)[:MAX_PATCHES]
        image, row, column = np.unravel_index(np.sort(chosen), (n, height, width))
        patches = windows[image, :, row, column].reshape(len(chosen), self.groups, channels // self.groups, -1)
        return np.ascontiguousarray(patches.transpose(1, 0, 3, 2)).reshape(self.groups, len(chosen), -1)
