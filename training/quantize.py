"""A model's fp32 graph to int8: what convolutions and dense layers compute becomes integers, the rest stays as it is.

    ONNX ──onnxruntime folds constants, batch norms, pads──▶ node after node: round it, run it on the images ──▶ ONNX

The result is in QDQ form, which onnxruntime has integer kernels for: every node as in fp32, every integer tensor rounded by
QuantizeLinear and DequantizeLinear. Each layer is rounded for inputs as the rounded layers before it have them.
"""

import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import NodeProto, helper, numpy_helper
from onnx.utils import Extractor

from app.classifier import INPUT
from app.image import Pixels
from training.errors import TrainingError
from training.gptq import Array, Range, choose_range, round_layer
from training.maps import without_maps
from training.model_file import open_session

MIN_OPSET = 13  # the first with a scale per channel
COMPUTED = ("Add", "Concat", "GlobalAveragePool", "AveragePool")  # in integers, where all that goes in is integers
MOVED = ("MaxPool", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Slice")  # the same numbers elsewhere
# In fp32 between integers, onnxruntime rounds the weights of these by itself: one scale for all channels, which ruins them.
UNSAFE_IN_FP32 = ("Conv", "ConvTranspose", "Gemm")
# A zero point this near to an integer is that integer but for the rounding of the constants it comes from.
ZERO_POINT_TOLERANCE = 0.01


def quantize_graph(model: onnx.ModelProto, pixels: Pixels) -> onnx.ModelProto:
    """The int8 form of a served graph, without metadata, from uint8 `(n, height, width, channels)`; 16 to 64 images do.

    Raises: TrainingError when the graph has a part that integers cannot replace and that would be ruined by staying.
    """
    if any("QuantizeLinear" in node.op_type or "QLinear" in node.op_type for node in model.graph.node):
        raise TrainingError("the model is quantised already: give the fp32 file it was made from")
    opset = max((entry.version for entry in model.opset_import if entry.domain == ""), default=0)
    if opset < MIN_OPSET:
        raise TrainingError(f"the model's opset is {opset}, and {MIN_OPSET} is the first that can be quantised: export it anew")
    return _Rewriting(_simplify(without_maps(model)), pixels, opset).run(model.ir_version)


def _simplify(model: onnx.ModelProto) -> onnx.GraphProto:
    """The graph after onnxruntime's own simplifications, all in standard operators."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "simple.onnx")
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath).graph


class _Rewriting:
    """One pass over a graph, with the values of the tensors still to be read as the int8 graph has them."""

    def __init__(self, source: onnx.GraphProto, pixels: Pixels, opset: int) -> None:
        self._source, self._pixels, self._opset = source, pixels, helper.make_opsetid("", opset)
        self._nodes: list[NodeProto] = []
        self._constants: dict[str, Array] = {one.name: numpy_helper.to_array(one) for one in source.initializer}
        self._values: dict[str, Array] = {INPUT: pixels}
        self._ranges: dict[str, Range] = {}  # of the tensors that are integers
        self._readers: defaultdict[str, list[int]] = defaultdict(list)  # numbers of nodes
        for number, node in enumerate(source.node):
            for name in node.input:
                self._readers[name].append(number)

    def run(self, ir_version: int) -> onnx.ModelProto:
        """Rewrites every node, in order; returns the finished model, checked, with only what it uses."""
        for number, node in enumerate(self._source.node):
            if node.output[0] not in self._values:
                self._rewrite(node)
            for name in node.input:
                if self._readers[name][-1] == number:
                    self._values.pop(name, None)
        if not any(name.endswith("_w_levels") for name in self._constants):
            raise TrainingError("the model has no convolution or dense layer that could be quantised")
        constants = [numpy_helper.from_array(values, name) for name, values in self._constants.items()]
        graph = helper.make_graph(self._nodes, "int8", self._source.input, self._source.output, constants)
        model = helper.make_model(graph, opset_imports=[self._opset], ir_version=ir_version)
        model = Extractor(model).extract_model([INPUT], [output.name for output in graph.output])
        onnx.checker.check_model(model, full_check=True)
        return model

    def _rewrite(self, node: NodeProto) -> None:
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        axes = self._constants.get(node.input[-1], attributes.get("axes", [])) if node.op_type == "ReduceMean" else []
        if [int(axis) % 4 for axis in axes] == [2, 3] and self._values[node.input[0]].ndim == 4:
            # A mean over height and width, in the form that has an integer kernel.
            name = node.output[0] if attributes.get("keepdims", 1) else f"{node.output[0]}_pooled"
            self._rewrite(helper.make_node("GlobalAveragePool", node.input[:1], [name]))
            if name != node.output[0]:
                self._rewrite(helper.make_node("Flatten", [name], node.output))
        elif self._is_layer(node, attributes):
            self._round_layer(node, attributes)
        elif node.op_type in COMPUTED and all(name in self._ranges for name in node.input):
            self._write(node, self._run(node)[0])
        elif node.op_type in MOVED and node.input[0] in self._ranges and len(node.output) == 1:
            self._write(node, self._run(node)[0], self._ranges[node.input[0]])
        else:
            self._keep(node)

    def _is_layer(self, node: NodeProto, attributes: dict[str, Any]) -> bool:
        """Whether it is a layer that an integer kernel can compute."""
        if not (len(node.input) > 1 and all(name in self._constants for name in node.input[1:])):
            return False
        ranks = (self._values[node.input[0]].ndim, self._constants[node.input[1]].ndim)
        if node.op_type == "Conv":
            return ranks == (4, 4) and attributes.get("auto_pad", b"NOTSET") == b"NOTSET"
        plain = attributes.get("alpha", 1) == attributes.get("beta", 1) == 1 and not attributes.get("transA", 0)
        return node.op_type in ("Gemm", "MatMul") and ranks == (2, 2) and plain

    def _round_layer(self, node: NodeProto, attributes: dict[str, Any]) -> None:
        """Weights become int8 and the bias int32."""
        source, name, is_dense = node.input[0], node.output[0], node.op_type != "Conv"
        inputs = self._values[source]
        if source not in self._ranges:
            source = f"{name}_input"
            self._quantize(node.input[0], source, choose_range(inputs))
            inputs = self._ranges[source].round(inputs)
        scale = self._ranges[source].scale
        weights, bias, *_ = *(self._constants[one] for one in node.input[1:]), np.zeros(1, np.float32)
        if is_dense:
            weights, attributes = (weights if attributes.get("transB") else weights.T), {"transB": 1}
        levels, scales, bias_levels = round_layer(weights, bias, inputs, scale, attributes)
        constants = {
            f"{name}_w": self._write_constant(f"{name}_w", levels, scales),
            f"{name}_b": self._write_constant(f"{name}_b", bias_levels, scales * np.float32(scale)),
        }
        layer = helper.make_node("Gemm" if is_dense else "Conv", [source, *constants], [name], **attributes)
        values = self._run(layer, {source: inputs, **constants})[0]
        if is_dense and self._activation_after(name) is None:  # logits
            self._nodes.append(layer)
            self._values[name] = values
        else:
            self._write(layer, values)

    def _keep(self, node: NodeProto) -> None:
        """Leaves the node in fp32, unless all it does is to scale the pixels, which are integers."""
        name = node.output[0]
        if node.op_type in UNSAFE_IN_FP32:
            raise TrainingError(
                f"{node.op_type} {node.name or name} is of a kind that cannot be quantised: keep the model in fp32"
            )
        self._values.update(zip(node.output, self._run(node), strict=True))
        scaling = _find_scaling(self._pixels.transpose(0, 3, 1, 2), self._values[name])
        if scaling is None:
            self._nodes.append(node)
        else:
            self._nodes.append(helper.make_node("Transpose", [INPUT], [f"{name}_u8"], perm=[0, 3, 1, 2]))
            self._read(name, scaling)

    def _write(self, node: NodeProto, values: Array, moved: Range | None = None) -> None:
        """Writes a node whose output becomes uint8, of the range `moved` or its own. An activation behind it is saturation."""
        name = node.output[0]
        activation = None if moved else self._activation_after(name)
        if activation is not None:
            values = self._run(activation, {name: values})[0]
            name = activation.output[0]
        node.output[:] = [f"{name}_raw"]
        self._nodes.append(node)
        self._quantize(f"{name}_raw", name, moved or choose_range(values))
        self._values[name] = self._ranges[name].round(values)

    def _activation_after(self, name: str) -> NodeProto | None:
        """The only reader of the tensor, if that is a ReLU or clips below at 0."""
        if len(self._readers[name]) != 1:
            return None
        node = self._source.node[self._readers[name][0]]
        at_zero = node.op_type == "Clip" and len(node.input) > 1 and np.all(self._constants.get(node.input[1], 1) == 0)
        return node if node.op_type == "Relu" or at_zero else None

    def _quantize(self, source: str, name: str, found: Range) -> None:
        self._nodes.append(helper.make_node("QuantizeLinear", [source, f"{name}_scale", f"{name}_zero_point"], [f"{name}_u8"]))
        self._read(name, found)

    def _read(self, name: str, found: Range) -> None:
        """Makes `name` of its uint8 form."""
        self._ranges[name] = found
        # Scalars: of shape (1,) onnxruntime would not fuse additions (+0.3 ms, Zen 3, 2026-11).
        self._constants[f"{name}_scale"] = np.array(found.scale, np.float32)
        self._constants[f"{name}_zero_point"] = np.array(found.zero_point, np.uint8)
        inputs = [f"{name}_{part}" for part in ("u8", "scale", "zero_point")]
        self._nodes.append(helper.make_node("DequantizeLinear", inputs, [name]))

    def _write_constant(self, name: str, levels: Array, scales: Array) -> Array:
        """A constant of int8 or int32 with a scale for each of its rows; returns its values."""
        # Zero points are 0 by default, but without them onnxruntime makes no integers of a dense layer.
        parts = {"levels": levels, "scales": scales, "zero_points": np.zeros(scales.shape, levels.dtype)}
        self._constants.update({f"{name}_{part}": values for part, values in parts.items()})
        self._nodes.append(helper.make_node("DequantizeLinear", [f"{name}_{part}" for part in parts], [name], axis=0))
        return np.asarray((levels.T * scales).T, dtype=np.float32)

    def _run(self, node: NodeProto, more: dict[str, Array] | None = None) -> list[Array]:
        """The node's outputs."""
        values = {**self._constants, **self._values, **(more or {})}
        feeds = {name: values[name] for name in node.input if name}
        types = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in feeds.items()}
        inputs = [helper.make_tensor_value_info(name, types[name], value.shape) for name, value in feeds.items()]
        graph = helper.make_graph([node], "node", inputs, [onnx.ValueInfoProto(name=name) for name in node.output])
        model = helper.make_model(graph, opset_imports=[self._opset], ir_version=10)
        return list(open_session(model).run(None, feeds))


def _find_scaling(pixels: Pixels, values: Array) -> Range | None:
    """The range in which uint8 `pixels` stand for `values`, if there is one."""
    if values.shape != pixels.shape or values.dtype != np.float32:
        return None
    scale, start = np.polyfit(pixels[0].reshape(-1), values[0].reshape(-1), 1)
    found = Range(float(scale), round(-start / scale) if scale > 0 else -1)
    errors = (pixels.astype(np.float32) - found.zero_point) * found.scale - values
    return found if 0 <= found.zero_point <= 255 and np.abs(errors).max() < ZERO_POINT_TOLERANCE * scale else None
