"""A model's fp32 graph to int8: what convolutions and dense layers compute becomes integers, the rest stays as it is.

    ONNX ──onnxruntime folds constants, batch norms, pads──▶ node after node: round it, run it on the images ──▶ ONNX

Two branches of values are computed on a few unlabelled images, as fp32 has them and as the integers will have them, so that
each layer makes up for the rounding of those before it.
"""

from collections import Counter
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper

from app.classifier import INPUT
from app.image import Pixels
from training.errors import TrainingError
from training.gptq import Layer, Range, choose_range
from training.integers import Integer, IntegerGraph
from training.nodes import NodeRunner, Values, as_layer, output_axis, place_weights, plain_form, simplify

MIN_OPSET = 13  # the first with a scale per channel
SCALING = ("Cast", "Transpose", "Reshape", "Mul", "Div", "Add", "Sub", "DequantizeLinear")
COMPUTED = ("Add", "Concat", "GlobalAveragePool", "AveragePool")  # in integers, where all that goes in is integers
MOVED = ("MaxPool", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Slice")  # the same numbers elsewhere
# In fp32 between integers, onnxruntime rounds the weights of these by itself: one scale for all channels, which ruins them.
UNSAFE_IN_FP32 = ("Conv", "ConvTranspose", "Gemm")
# A zero point this near to an integer is that integer but for the rounding of the constants it comes from.
ZERO_POINT_TOLERANCE = 0.01


def quantize_graph(model: onnx.ModelProto, pixels: Pixels, *, threads: int = 1) -> onnx.ModelProto:
    """The int8 form of a served graph, without metadata, from uint8 `(n, height, width, channels)`; 16 to 64 images do.

    Raises: TrainingError when the graph has a part that integers cannot replace and that would be ruined by staying.
    """
    if any("QuantizeLinear" in node.op_type or "QLinear" in node.op_type for node in model.graph.node):
        raise TrainingError("the model is quantised already: give the fp32 file it was made from")
    opset = max((entry.version for entry in model.opset_import if entry.domain == ""), default=0)
    if opset < MIN_OPSET:
        raise TrainingError(f"the model's opset is {opset}, and {MIN_OPSET} is the first that can be quantised: export it anew")
    return _Rewriting(simplify(model), pixels, NodeRunner(opset, threads)).run().assemble(opset, model.ir_version)


class _Rewriting:
    """One pass over a graph: `exact` and `rounded` hold the two branches' values of the tensors still to be read."""

    def __init__(self, source: onnx.GraphProto, pixels: Pixels, run_node: NodeRunner) -> None:
        self._source, self._run_node = source, run_node
        self._target = IntegerGraph(source)
        self._constants: Values = {one.name: numpy_helper.to_array(one) for one in source.initializer}
        self._readers = Counter(name for node in source.node for name in node.input)
        self._readers.update(output.name for output in source.output)
        self._exact: Values = {INPUT: pixels}
        self._rounded: Values = {INPUT: pixels}
        self._done: set[str] = set()  # tensors whose nodes are part of what was written already
        self._n_layers = 0

    def run(self) -> IntegerGraph:
        """Rewrites every node, in order."""
        self._absorb_scaling()
        for node in self._source.node:
            if node.output[0] not in self._done:
                self._rewrite(node)
            self._forget(node)
        if not self._n_layers:
            raise TrainingError("the model has no convolution or dense layer that could be quantised")
        return self._target

    def _rewrite(self, node: NodeProto) -> None:
        are_integers = [name in self._target.integers for name in node.input]
        layer = as_layer(node, self._constants, self._exact)
        if layer is not None:
            self._rewrite_layer(node, layer)
        elif node.op_type in COMPUTED and all(are_integers):
            self._rewrite_computed(node)
        elif node.op_type in MOVED and are_integers[0] and len(node.output) == 1:
            self._rewrite_moved(node)
        else:
            self._keep(node)

    def _rewrite_layer(self, node: NodeProto, layer: Layer) -> None:
        """Weights become int8 and the bias int32."""
        source = self._as_integer(node.input[0])
        inputs = source.range.round(self._rounded[node.input[0]])
        weights = layer.round(inputs, source.range.scale)
        exact = self._run_node(node, {**self._constants, **self._exact})[0]
        plain = plain_form(node)
        unbiased = self._run_node(plain, {"x": inputs, "w": place_weights(plain, layer.unfold(weights.values))})[0]
        # The mean error of each output is the bias's to undo. Source: Nagel et al., "Data-free quantization", 2019.
        others = (0, *range(2, exact.ndim))
        bias_scales = np.float32(source.range.scale) * weights.scales.reshape(-1)
        missing = exact.mean(others, dtype=np.float64) - unbiased.mean(others, dtype=np.float64)
        bias = np.rint(missing / bias_scales).astype(np.int32)

        name = node.output[0]
        levels = place_weights(plain, layer.unfold(weights.levels))
        reads = [
            self._target.read(source),
            self._target.read_constant(f"{name}_w", levels, weights.scales.reshape(-1), output_axis(plain)),
            self._target.read_constant(f"{name}_b", bias, bias_scales, 0),
        ]
        rounded = unbiased + (bias * bias_scales).astype(np.float32).reshape(-1, *[1] * (exact.ndim - 2))
        self._n_layers += 1
        self._write(plain, reads, name, exact, rounded, may_end=plain.op_type == "Gemm")

    def _rewrite_computed(self, node: NodeProto) -> None:
        integers = [self._target.integers[name] for name in node.input]
        exact, rounded = self._run_both(node)
        self._write(node, [self._target.read(integer) for integer in integers], node.output[0], exact[0], rounded[0])

    def _rewrite_moved(self, node: NodeProto) -> None:
        """The output has the range of the input."""
        name, source = node.output[0], self._target.integers[node.input[0]]
        exact, rounded = self._run_both(node)
        self._target.write(node, [self._target.read(source), *node.input[1:]], f"{name}_raw")
        self._target.quantize(f"{name}_raw", name, source.range)
        self._exact[name], self._rounded[name] = exact[0], rounded[0]

    def _keep(self, node: NodeProto) -> None:
        """Leaves the node in fp32."""
        if node.op_type in UNSAFE_IN_FP32:
            name = node.name or node.output[0]
            raise TrainingError(f"{node.op_type} {name} is of a kind that cannot be quantised: keep the model in fp32")
        self._target.keep(node)
        exact, rounded = self._run_both(node)
        self._exact.update(zip(node.output, exact, strict=True))
        self._rounded.update(zip(node.output, rounded, strict=True))

    def _write(
        self, node: NodeProto, reads: list[str], name: str, exact: NDArray[Any], rounded: NDArray[Any], *, may_end: bool = False
    ) -> None:
        """Writes a node whose output `name` becomes uint8. An activation behind it is what saturation does.

        `may_end` leaves the output in fp32 where no activation follows, as logits are.
        """
        activation = self._activation_after(name)
        if activation is None and may_end:
            self._target.write(node, reads, name)
            self._exact[name], self._rounded[name] = exact, rounded
            return
        if activation is not None:
            exact = self._run_node(activation, {**self._constants, name: exact})[0]
            name = activation.output[0]
            self._done.add(name)
        values = choose_range(exact)
        self._target.write(node, reads, f"{name}_raw")
        self._target.quantize(f"{name}_raw", name, values)
        self._exact[name], self._rounded[name] = exact, values.round(rounded)

    def _activation_after(self, name: str) -> NodeProto | None:
        """The only reader of the tensor, if that is a ReLU or clips below at 0."""
        if self._readers[name] != 1:
            return None
        node = next((node for node in self._source.node if name in node.input), None)
        if node is None or node.op_type == "Relu":
            return node
        at_zero = node.op_type == "Clip" and len(node.input) > 1 and np.all(self._constants.get(node.input[1], 1) == 0)
        return node if at_zero else None

    def _as_integer(self, name: str) -> Integer:
        if name not in self._target.integers:
            self._target.quantize(name, name, choose_range(self._exact[name]))
        return self._target.integers[name]

    def _absorb_scaling(self) -> None:
        """Reads the pixels as integers where the first nodes do no more than to scale all of them alike."""
        name, chain = INPUT, []
        while self._readers[name] == 1:
            node = next((node for node in self._source.node if name in node.input), None)
            if node is None or node.op_type not in SCALING:
                break
            self._exact[node.output[0]] = self._run_node(node, {**self._constants, **self._exact})[0]
            name = node.output[0]
            chain.append(name)
        scaling = _find_scaling(self._exact[INPUT].transpose(0, 3, 1, 2), self._exact[name])
        if scaling is not None:
            self._target.write_scaling(INPUT, name, scaling)
            self._rounded[name] = self._exact[name]
            self._done.update(chain)

    def _run_both(self, node: NodeProto) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
        exact, rounded = (self._run_node(node, {**self._constants, **branch}) for branch in (self._exact, self._rounded))
        return exact, rounded

    def _forget(self, node: NodeProto) -> None:
        """Frees what no later node reads."""
        for name in node.input:
            self._readers[name] -= 1
            if not self._readers[name]:
                self._exact.pop(name, None)
                self._rounded.pop(name, None)


def _find_scaling(pixels: Pixels, values: NDArray[Any]) -> Range | None:
    """The range in which uint8 `pixels` stand for `values`, if there is one."""
    if values.shape != pixels.shape or values.dtype != np.float32:
        return None
    darkest, brightest = int(pixels.argmin()), int(pixels.argmax())
    step = float(pixels.flat[brightest]) - float(pixels.flat[darkest])
    scale = float(values.flat[brightest] - values.flat[darkest]) / step if step else 0.0
    if scale <= 0:
        return None
    zero_point = float(pixels.flat[darkest]) - float(values.flat[darkest]) / scale
    found = Range(scale, round(zero_point))
    fits = np.abs((pixels.astype(np.float32) - found.zero_point) * found.scale - values).max() < ZERO_POINT_TOLERANCE * scale
    return found if 0 <= found.zero_point <= 255 and fits else None
