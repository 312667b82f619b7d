"""The second output of a model file: class activation maps, exact where mean pooling and one dense layer end the graph.

    features ── × the dense layer's weights, only where the optional input `explain` is true ──▶ maps (batch, classes, h, w)

The mean of a class's map over all places is its logit before bias and temperature.
Source: Zhou et al., "Learning deep features for discriminative localization", 2016.
"""

from collections.abc import Collection

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from app.classifier import EXPLAIN, MAPS, OUTPUT

AFTER_HEAD = ("Softmax", "Identity", "Add", "Div", "Mul")
BEFORE_HEAD = ("Flatten", "Reshape", "Squeeze", "Identity", "Dropout", "QuantizeLinear", "DequantizeLinear")
LAYOUTS = {(2, 3): "bkhw", (-2, -1): "bkhw", (1, 2): "bhwk"}  # of features, by the axes of their mean


def add_maps(model: onnx.ModelProto) -> None:
    """Adds the output where the graph allows it; what the probabilities are, and what they cost, does not change."""
    graph = model.graph
    constants = {one.name: one for one in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    head = _walk_back(OUTPUT, AFTER_HEAD, makers, constants)
    if head is None or head.op_type not in ("Gemm", "MatMul") or MAPS in makers:
        return
    pool = _walk_back(head.input[0], BEFORE_HEAD, makers, constants)
    if pool is None or (layout := _layout(pool, constants)) is None:
        return
    by_class = any(one.name == "transB" and one.i for one in head.attribute)
    nodes, names = zip(*(_read(name, makers) for name in (head.input[1], pool.input[0])), strict=True)
    weights = constants.get(nodes[0].input[0] if nodes[0] else names[0])
    if weights is None or not (nodes[0] or weights.data_type == TensorProto.FLOAT):
        return
    made, none, shape = f"{MAPS}/made", f"{MAPS}/none", ["batch", weights.dims[not by_class], "rows", "columns"]
    product = helper.make_node("Einsum", names, [made], equation=f"{'ck' if by_class else 'kc'},{layout}->bchw")
    empty = numpy_helper.from_array(np.zeros((0, shape[1], 1, 1), np.float32))
    then_do = helper.make_graph([*filter(None, nodes), product], made, [], [_float(made, shape)])
    else_do = helper.make_graph([helper.make_node("Constant", [], [none], value=empty)], none, [], [_float(none, empty.dims)])
    graph.node.append(helper.make_node("If", [EXPLAIN], [MAPS], then_branch=then_do, else_branch=else_do))
    graph.initializer.append(numpy_helper.from_array(np.array(False), EXPLAIN))
    graph.input.append(helper.make_tensor_value_info(EXPLAIN, TensorProto.BOOL, []))
    graph.output.append(_float(MAPS, shape))


def without_maps(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without the output and all that is for it alone."""
    copy: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    for parts in (copy.graph.input, copy.graph.initializer, copy.graph.output, copy.graph.node):
        kept = [one for one in parts if {EXPLAIN, MAPS}.isdisjoint([one.name, *getattr(one, "output", ())])]
        del parts[:]
        parts.extend(kept)
    return copy


def _walk_back(
    name: str, passed: Collection[str], makers: dict[str, NodeProto], constants: dict[str, TensorProto]
) -> NodeProto | None:
    """What makes the tensor, before nodes that only move numbers or treat all classes alike."""
    node = makers.get(name)
    while node is not None and node.op_type in passed:
        operands = [constants[one] for one in node.input[1:] if one in constants]
        if node.op_type in ("Mul", "Div") and not (operands and np.prod(operands[0].dims) == 1):
            return None
        node = makers.get(node.input[0])
    return node


def _layout(pool: NodeProto, constants: dict[str, TensorProto]) -> str | None:
    if pool.op_type == "GlobalAveragePool":
        return "bkhw"
    axes = [tuple(one.ints) for one in pool.attribute if one.name == "axes"]
    axes += [tuple(numpy_helper.to_array(constants[one]).tolist()) for one in pool.input[1:] if one in constants]
    return LAYOUTS.get(axes[0]) if axes and pool.op_type == "ReduceMean" else None


def _read(name: str, makers: dict[str, NodeProto]) -> tuple[NodeProto | None, str]:
    """The node that reads integers anew, and its tensor: two readers of one would keep onnxruntime from fusing integers."""
    maker = makers.get(name)
    if maker is None or maker.op_type != "DequantizeLinear":
        return None, name
    node = NodeProto.FromString(maker.SerializeToString())
    node.name, node.output[:] = f"{MAPS}/{name}", [f"{MAPS}/{name}"]
    return node, node.output[0]


def _float(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
