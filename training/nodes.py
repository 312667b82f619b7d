"""Single ONNX nodes and small patterns of them: simplified, run, and read as layers."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from training.gptq import Layer

Values = dict[str, NDArray[Any]]


def simplify(model: onnx.ModelProto) -> onnx.GraphProto:
    """The graph after onnxruntime's own simplifications, all in standard operators."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "simple.onnx")
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        simple = onnx.load(options.optimized_model_filepath)
    _replace_means(simple)
    return simple.graph


def _replace_means(model: onnx.ModelProto) -> None:
    """Turns means over height and width into the pooling that has an integer kernel."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    ranks = {one.name: len(one.type.tensor_type.shape.dim) for one in graph.value_info}
    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        axes = constants[node.input[1]].tolist() if len(node.input) > 1 and node.input[1] in constants else None
        axes = _attribute(node, "axes", axes)
        if node.op_type != "ReduceMean" or ranks.get(node.input[0]) != 4 or axes not in ([2, 3], [-2, -1]):
            nodes.append(node)
        elif _attribute(node, "keepdims", 1):
            nodes.append(helper.make_node("GlobalAveragePool", [node.input[0]], list(node.output)))
        else:
            pooled = f"{node.output[0]}_pooled"
            nodes.append(helper.make_node("GlobalAveragePool", [node.input[0]], [pooled]))
            nodes.append(helper.make_node("Flatten", [pooled], list(node.output)))
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    value = next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), default)
    return list(value) if isinstance(value, tuple) else value


class NodeRunner:
    """Runs single nodes through onnxruntime."""

    def __init__(self, opset: int, threads: int) -> None:
        self._opset = helper.make_opsetid("", opset)
        self._options = ort.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.log_severity_level = 3

    def __call__(self, node: NodeProto, values: Values) -> list[NDArray[Any]]:
        """The node's outputs, in order."""
        feeds = {name: values[name] for name in node.input if name}
        types = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in feeds.items()}
        inputs = [helper.make_tensor_value_info(name, types[name], value.shape) for name, value in feeds.items()]
        graph = helper.make_graph([node], "node", inputs, [onnx.ValueInfoProto(name=name) for name in node.output])
        model = helper.make_model(graph, opset_imports=[self._opset], ir_version=10)
        session = ort.InferenceSession(model.SerializeToString(), self._options, providers=["CPUExecutionProvider"])
        return list(session.run(None, feeds))


def as_layer(node: NodeProto, constants: Values, values: Values) -> Layer | None:
    """The convolution or dense layer that a node is, if its weights are constant; `values` are of the tensors it reads."""
    if len(node.input) < 2 or node.input[1] not in constants or node.input[0] not in values:
        return None
    weights = constants[node.input[1]]
    bias = constants.get(node.input[2]) if len(node.input) > 2 else np.zeros(1, np.float32)
    rank = values[node.input[0]].ndim
    if bias is None:
        return None
    if node.op_type == "Conv" and rank == 4 and _attribute(node, "auto_pad", b"NOTSET") == b"NOTSET":
        return _convolution(node, weights, bias)
    plain = [_attribute(node, name, 1) for name in ("alpha", "beta")] == [1, 1] and not _attribute(node, "transA", 0)
    if node.op_type not in ("Gemm", "MatMul") or rank != 2 or weights.ndim != 2 or not plain:
        return None
    by_output = weights if _attribute(node, "transB", 0) else weights.T
    return Layer(by_output[..., np.newaxis, np.newaxis], np.broadcast_to(bias.reshape(-1), len(by_output)))


def _convolution(node: NodeProto, weights: NDArray[Any], bias: NDArray[Any]) -> Layer:
    return Layer(
        weights,
        np.broadcast_to(bias, len(weights)),
        groups=_attribute(node, "group", 1),
        strides=_attribute(node, "strides", [1, 1]),
        pads=_attribute(node, "pads", [0, 0, 0, 0]),
        dilations=_attribute(node, "dilations", [1, 1]),
    )


def plain_form(node: NodeProto) -> NodeProto:
    """The layer's node without its bias, reading `x` and `w`; every dense layer as one form of Gemm."""
    if node.op_type != "Conv":
        return helper.make_node("Gemm", ["x", "w"], ["y"])
    plain = NodeProto()
    plain.CopyFrom(node)
    plain.input[:] = ["x", "w"]
    return plain


def place_weights(plain: NodeProto, weights: NDArray[Any]) -> NDArray[Any]:
    """Weights `(outputs, inputs, rows, columns)` as the plain node wants them."""
    return np.ascontiguousarray(weights if plain.op_type == "Conv" else weights[:, :, 0, 0].T)


def output_axis(plain: NodeProto) -> int:
    return 0 if plain.op_type == "Conv" else 1
