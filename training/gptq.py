"""Eight-bit numbers for weights and activations, chosen so that a layer's output changes least. Pure numpy.

Weights are int8, symmetric, with one scale per output channel; activations are uint8 with one scale and zero point per tensor.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

MAX_SAMPLES = 100_000  # values that a range is chosen on
SHRINK_FACTORS = np.linspace(0.4, 1.0, 31)
MAX_WEIGHT = 127
# Processors without VNNI add two products of uint8 and int8 in 16 bits, which hold 255 × 128 and no more. Without this limit
# EfficientNet-Lite0 loses 5 points on them (Zen 3, 2026-11).
MAX_PAIR = 128
DAMPING = 0.01  # of the covariance's mean diagonal
MAX_PATCHES = 20_000  # that a covariance is taken over
BIAS_BITS = 29  # of the 31 that a bias has; the rest is room for the sum


@dataclass(frozen=True)
class Range:
    """The real numbers that uint8 stands for: `scale` × (q - `zero_point`)."""

    scale: float
    zero_point: int

    def round(self, values: Array) -> NDArray[np.float32]:
        """The nearest representable value of each, saturating."""
        levels = np.clip(np.rint(values / self.scale) + self.zero_point, 0, 255) - self.zero_point
        return np.asarray(levels * self.scale, dtype=np.float32)


def choose_range(values: Array) -> Range:
    """The range that holds zero and has the least squared error on `values`, saturation included."""
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    if low == high:
        return Range(scale=1 / 255, zero_point=0)
    sample = values.reshape(-1)[:: max(1, values.size // MAX_SAMPLES)]
    scales = [float(np.float32(factor * (high - low) / 255)) for factor in SHRINK_FACTORS]
    ranges = [Range(scale, round(-low / (high - low) * 255)) for scale in scales]
    return min(ranges, key=lambda one: float(np.square(one.round(sample) - sample, dtype=np.float64).mean()))


def round_layer(
    weights: Array, bias: Array, inputs: Array, input_scale: float, attributes: Mapping[str, Any]
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int32]]:
    """The integers of a layer: weights, the scale of each output, and the bias in units of that and of `input_scale`.

    A convolution has weights `(outputs, inputs / group, rows, columns)` and the `attributes` of its node, a dense layer
    `(outputs, inputs)`; `inputs` are `(n, inputs, height, width)` or `(n, inputs)`, rounded to uint8.
    """
    group, (rows, columns) = attributes.get("group", 1), weights.shape[2:] or (1, 1)
    patches = _sample_patches(inputs.reshape(*inputs.shape, *[1] * (4 - inputs.ndim)), (rows, columns), attributes)
    patches = np.moveaxis(patches.reshape(len(patches), rows * columns, group, -1), 2, 0).reshape(group, len(patches), -1)
    # The order in which onnxruntime's kernels walk a convolution.
    unfolded = np.moveaxis(weights, 1, -1)
    matrix = unfolded.reshape(group, len(weights) // group, -1)
    limit_pairs = weights.shape[1] > 1 or group == 1  # depthwise kernels add in 32 bits
    bias = np.broadcast_to(bias.reshape(-1), len(weights))
    least = np.abs(bias).reshape(group, -1) / (input_scale * 2.0**BIAS_BITS)
    scales = np.maximum(choose_scales(matrix, limit_pairs), least).astype(np.float32)
    mean = patches.mean(axis=1, keepdims=True)
    centred = np.subtract(patches, mean, order="C")  # as patches lie, numpy would multiply them 10 times as slowly
    levels = round_weights(matrix, scales, (centred.transpose(0, 2, 1) @ centred).astype(np.float64), limit_pairs)
    # The mean error is the bias's to undo. Source: Nagel et al., "Data-free quantization", 2019.
    missing = (mean @ (matrix - levels * scales[..., np.newaxis]).transpose(0, 2, 1)).reshape(-1)
    folded = np.ascontiguousarray(np.moveaxis(levels.reshape(unfolded.shape), -1, 1))
    return folded, scales.reshape(-1), np.rint((bias + missing) / (input_scale * scales.reshape(-1))).astype(np.int32)


def _sample_patches(inputs: Array, kernel: Sequence[int], attributes: Mapping[str, Any]) -> Array:
    """What the kernel sees at up to `MAX_PATCHES` random positions, `(patches, rows, columns, inputs)`."""
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    (down, across), (tall, wide) = (attributes.get(name, (1, 1)) for name in ("strides", "dilations"))
    padded = np.pad(inputs.transpose(0, 2, 3, 1), ((0, 0), (top, bottom), (left, right), (0, 0)))
    reach = ((kernel[0] - 1) * tall + 1, (kernel[1] - 1) * wide + 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(1, 2))[:, ::down, ::across, :, ::tall, ::wide]
    positions = windows.shape[:3]
    chosen = np.sort(np.random.default_rng(0).permutation(np.prod(positions))[:MAX_PATCHES])
    return windows[np.unravel_index(chosen, positions)].transpose(0, 2, 3, 1)


def choose_scales(weights: Array, limit_pairs: bool) -> NDArray[np.float32]:
    """The scale of each output, `(groups, outputs)`, for weights `(groups, outputs, inputs)`.

    `limit_pairs` makes it so large that two weights that a kernel may add in 16 bits fit.
    """
    scales = np.abs(weights).max(axis=-1) / MAX_WEIGHT
    if limit_pairs:
        twos = weights[..., : weights.shape[-1] // 2 * 2].reshape(*weights.shape[:2], -1, 2)
        sums = np.maximum(twos.clip(min=0).sum(axis=-1), -twos.clip(max=0).sum(axis=-1))
        scales = np.maximum(scales, sums.max(axis=-1, initial=0) / (MAX_PAIR - 0.5))  # half a level is left for rounding
    return np.asarray(np.where(scales > 0, scales, 1.0), dtype=np.float32)


def round_weights(weights: Array, scales: Array, covariances: Array, limit_pairs: bool) -> NDArray[np.int8]:
    """Rounds input after input, and makes up for the errors before it; `covariances` are `(groups, inputs, inputs)`.

    Source: Frantar et al., "GPTQ: accurate post-training quantization for generative pre-trained transformers", 2023.
    """
    n_inputs = weights.shape[-1]
    damping = DAMPING * np.trace(covariances, axis1=1, axis2=2).reshape(-1, 1, 1) / n_inputs
    factors = np.linalg.cholesky(np.linalg.inv(covariances + np.where(damping > 0, damping, 1) * np.eye(n_inputs)))
    wanted = weights / scales[..., np.newaxis].astype(np.float64)
    levels, errors = np.zeros_like(wanted), np.zeros_like(wanted)
    for column in range(n_inputs):
        target = wanted[..., column] - (errors[..., :column] @ factors[:, column, :column, np.newaxis])[..., 0]
        first_of_pair = levels[..., column - 1] if limit_pairs and column % 2 else np.zeros_like(target)
        lowest, highest = -MAX_PAIR - np.minimum(first_of_pair, -1), MAX_PAIR - np.maximum(first_of_pair, 1)
        levels[..., column] = np.clip(np.rint(target), lowest, highest)
        errors[..., column] = (target - levels[..., column]) / factors[:, column, column, np.newaxis]
    return levels.astype(np.int8)
