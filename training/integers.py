"""Writes an ONNX graph whose tensors are uint8 between its nodes, in the QDQ form that onnxruntime has integer kernels for.

Every node stays as it is in fp32, with DequantizeLinear in front of it and QuantizeLinear behind it.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from training.gptq import Range


@dataclass(frozen=True)
class Integer:
    """The uint8 form of a tensor: its name, and what its numbers stand for."""

    name: str
    range: Range


class IntegerGraph:
    """A graph being written. A tensor's name is that of its fp32 form; its uint8 form, where there is one, is in `integers`."""

    def __init__(self, source: onnx.GraphProto) -> None:
        self._source = source
        self._constants = {one.name: one for one in source.initializer}
        self._nodes: list[NodeProto] = []
        self._n_reads: Counter[str] = Counter()
        self._in_fp32 = {*self._constants, *(one.name for one in source.input)}
        self.integers: dict[str, Integer] = {}

    def write(self, node: NodeProto, inputs: list[str], output: str) -> None:
        """Adds a copy of `node` with other names of what it reads and writes."""
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.input[:], copy.output[:] = inputs, [output]
        self._nodes.append(copy)
        self._in_fp32.add(output)

    def keep(self, node: NodeProto) -> None:
        """Adds a node that works in fp32."""
        for name in filter(None, node.input):
            self.ensure_fp32(name)
        self._nodes.append(node)
        self._in_fp32.update(node.output)

    def write_scaling(self, source: str, name: str, scaling: Range) -> None:
        """Makes uint8 `source` `(n, height, width, channels)` the integers of `name` `(n, channels, height, width)`."""
        moved = f"{name}_u8"
        self._nodes.append(helper.make_node("Transpose", [source], [moved], perm=[0, 3, 1, 2]))
        self.integers[name] = Integer(moved, scaling)

    def quantize(self, source: str, name: str, values: Range) -> Integer:
        """Makes fp32 `source` the integers of `name`."""
        integer = Integer(f"{name}_u8", values)
        self._nodes.append(helper.make_node("QuantizeLinear", [source, *self._range(integer)], [integer.name]))
        self.integers[name] = integer
        return integer

    def read(self, integer: Integer) -> str:
        """The fp32 form of an integer tensor for one reader: readers that share it may keep it from becoming integer."""
        self._n_reads[integer.name] += 1
        output = f"{integer.name}_read{self._n_reads[integer.name]}"
        self._nodes.append(helper.make_node("DequantizeLinear", [integer.name, *self._range(integer)], [output]))
        return output

    def read_constant(self, name: str, levels: NDArray[Any], scales: NDArray[np.float32], axis: int) -> str:
        """A constant of int8 or int32 `levels` with a scale for each index of `axis`, in fp32 form."""
        # Zero points are 0 by default, but without them onnxruntime makes no integers of a dense layer.
        zeros = np.zeros(scales.shape, levels.dtype)
        parts = {"levels": levels, "scales": scales, "zero_points": zeros}
        inputs = [self._constant(f"{name}_{part}", values) for part, values in parts.items()]
        self._nodes.append(helper.make_node("DequantizeLinear", inputs, [name], axis=axis))
        return name

    def ensure_fp32(self, name: str) -> None:
        """Makes the tensor readable under its own name."""
        if name not in self._in_fp32:
            integer = self.integers[name]
            self._nodes.append(helper.make_node("DequantizeLinear", [integer.name, *self._range(integer)], [name]))
            self._in_fp32.add(name)

    def assemble(self, opset: int, ir_version: int) -> onnx.ModelProto:
        """The finished model, checked, with only the constants it uses."""
        for output in self._source.output:
            self.ensure_fp32(output.name)
        used = {name for node in self._nodes for name in node.input}
        constants = [one for name, one in self._constants.items() if name in used]
        graph = helper.make_graph(self._nodes, "int8", self._source.input, self._source.output, constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
        onnx.checker.check_model(model, full_check=True)
        return model

    def _range(self, integer: Integer) -> list[str]:
        """Scale and zero point as scalars: of shape (1,) onnxruntime would not fuse additions (+0.3 ms, Zen 3, 2026-11)."""
        scale, zero_point = np.array(integer.range.scale, np.float32), np.array(integer.range.zero_point, np.uint8)
        return [self._constant(f"{integer.name}_scale", scale), self._constant(f"{integer.name}_zero_point", zero_point)]

    def _constant(self, name: str, values: NDArray[Any]) -> str:
        self._constants[name] = numpy_helper.from_array(values, name)
        return name
