"""A foreign ONNX classifier, of any framework, to a model file: what belongs around it becomes nodes, and it proves itself.

images uint8 (batch, height, width, channels) → layout, channel order, scale → foreign graph → softmax if logits → probabilities
"""

import argparse
import hashlib
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from app.classifier import INPUT, OUTPUT
from app.image import Pixels
from app.spec import InputSpec, ModelSpec
from training.data_set import choose_goldens
from training.errors import InputError, refusing
from training.files import unfinished_beside
from training.folder import LabelledFile
from training.model_file import make_goldens, open_session, strip, write_model
from training.pixels import decode_files
from training.provenance import provenance

TYPES = (TensorProto.UINT8, TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
SUM_TOLERANCE = 0.01  # of probabilities computed in 8 or 16 bits
Step = tuple[str, list[NDArray[Any]], dict[str, Any]]  # operator, constant operands, attributes


def adopt_model(options: argparse.Namespace, name: str, version: str) -> str:
    """Writes the model file; returns what was found out, for a person to judge. Raises: InputError, ModelError."""
    labels, model = _read_labels(options.labels), _load(options.model)
    source, layout, dims = _find_input(model.graph, options.layout)
    spec = _make_spec(options, *dims[1:])
    before = _steps_before(options, layout, source.type.tensor_type.elem_type, spec.channels)
    with refusing(f"--images {options.images}"):
        paths = sorted(path for path in (options.images, *options.images.rglob("*")) if path.is_file())
        chosen = zip(paths[:: -(-len(paths) // 3) or 1], labels, strict=False)  # a class for each, so that each is a golden
        samples = decode_files([LabelledFile(path, label) for path, label in chosen], labels, spec)
    _put_before(model.graph, source.name, before, spec, batch=dims[0])
    output, answers = _ask(model, samples.pixels, len(labels))
    last = next((node.op_type for node in model.graph.node if output in node.output), "")
    after = _steps_after(answers, options.output or ("logits" if last in ("Gemm", "MatMul", "Add") else None))
    _append(model.graph, output, OUTPUT, after)
    model.graph.ClearField("output")
    model.graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", len(labels)]))
    goldens, now = make_goldens(strip(model), spec, choose_goldens(samples)), datetime.now(UTC)
    sha256 = hashlib.sha256(options.model.read_bytes()).hexdigest()
    origin = provenance(f"adopted from {options.model.name} of {model.producer_name} {model.producer_version}, sha256 {sha256}")
    about = ModelSpec(name=name, version=version, created=now, labels=labels, input=spec, provenance=origin, goldens=goldens)
    with unfinished_beside(options.out) as unfinished:
        write_model(model, about, unfinished, threads=1)
        unfinished.replace(options.out)
    steps = [", ".join(step[0] for step in some) or "as it is" for some in (before, after)]
    lines = [f"input   {' × '.join(map(str, spec.shape))}, {layout}: {steps[0]}", f"output  {steps[1]}"]
    best = [max(zip(golden.probabilities, labels, strict=True)) for golden in goldens]
    lines += [f"{path.name} is {label} ({share:.1%})" for path, (share, label) in zip(samples.paths, best, strict=True)]
    return "\n".join(lines)


def _read_labels(path: Path) -> tuple[str, ...]:
    with refusing(f"{path} cannot be read as a text with one label a line"):
        labels = tuple(line.strip() for line in path.read_text(encoding="utf-8").rstrip().splitlines())
    if len(labels) < 2 or not all(labels) or len(set(labels)) < len(labels):
        raise InputError(f"{path} must have at least two lines, each with another label, in the order of the model's answers")
    return labels


def _load(path: Path) -> ModelProto:
    with refusing(f"{path} cannot be read as a whole ONNX model"):
        model = onnx.load(path)  # with its external data, from the same folder only
        # With initializers renamed, subgraphs do not find them.
        model = onnx.compose.add_prefix(model, "foreign/", rename_initializers=False, rename_value_infos=False)
    model.ir_version = max(model.ir_version, 4)  # before, weights had to be inputs too
    return model


def _find_input(graph: GraphProto, layout: str | None) -> tuple[onnx.ValueInfoProto, str, list[int]]:
    """The graph's input, its layout, and batch, height, width, channels, each 0 where it is free."""
    inputs = [one for one in graph.input if one.name not in {weights.name for weights in graph.initializer}]
    dims = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim] if len(inputs) == 1 else []
    if len(dims) != 4 or inputs[0].type.tensor_type.elem_type not in TYPES:
        found = ", ".join(map(helper.printable_value_info, inputs)).replace("%foreign/", "") or "none"
        raise InputError(f"the model must have one input, of four dimensions and of floats or uint8, but it has {found}")
    if layout is None and (dims[1] in (1, 3)) == (dims[3] in (1, 3)):
        raise InputError(f"the input's dimensions {dims} do not tell where the channels are: add --layout nchw or nhwc")
    layout = layout or ("nchw" if dims[1] in (1, 3) else "nhwc")
    return inputs[0], layout, dims if layout == "nhwc" else [dims[0], dims[2], dims[3], dims[1]]


def _make_spec(options: argparse.Namespace, height: int, width: int, channels: int) -> InputSpec:
    size = re.fullmatch(r"(\d+)(?:x(\d+))?", options.size or f"{height}x{width}")
    high, wide = (int(size[1]), int(size[2] or size[1])) if size else (0, 0)
    if (height or high, width or wide) != (high, wide) or not high * wide:
        raise InputError(f"give --size as HxW in pixels that fit the model's {height or 'any'} x {width or 'any'}")
    wanted = {"grey": 1, "rgb": 3, "bgr": 3, None: channels}[options.color]
    if wanted not in (1, 3) or channels not in (0, wanted):
        raise InputError(f"the model has {channels or 'any number of'} channels: give --color grey for 1, rgb or bgr for 3")
    rule = {"resize": options.resize} if options.crop is None else {"resize": "crop", "crop_fraction": options.crop}
    fields = {"height": high, "width": wide, "channels": wanted, "filter": options.filter, **rule}
    with refusing("--size goes up to 4096, --crop from above 0 to 1, --resize ink is for grey"):
        return InputSpec.model_validate(fields)


def _steps_before(options: argparse.Namespace, layout: str, dtype: int, channels: int) -> list[Step]:
    steps: list[Step] = [("Transpose", [], {"perm": [0, 3, 1, 2]})] if layout == "nchw" else []
    steps += [("Gather", [np.array([2, 1, 0])], {"axis": 1 if layout == "nchw" else 3})] * (options.color == "bgr")
    given, is_uint8 = options.mean or options.std or options.input_range, dtype == TensorProto.UINT8
    if is_uint8 and not given:
        return steps
    mean, std = np.array(options.mean or [0.0]), np.array(options.std or [1.0])
    if is_uint8 or not given or not {len(mean), len(std)} <= {1, channels} or not (std > 0).all():
        raise InputError(
            f"the model takes {'uint8, so leave out' if is_uint8 else 'floats, so give, as it was trained,'} "
            f"--input-range (0 1, -1 1 or 0 255), or --mean and --std (1 or {channels} numbers each, std above 0), or both"
        )
    low, high = options.input_range or (0, 1 if max(*mean, *std) <= 1 else 255)
    steps.append(("Cast", [], {"to": TensorProto.FLOAT}))
    for operator, numbers, nothing in (("Mul", (high - low) / 255 / std, 1), ("Add", (low - mean) / std, 0)):
        if (numbers != nothing).any():
            shape = () if len(numbers) == 1 else (-1, 1, 1) if layout == "nchw" else (-1,)
            steps.append((operator, [numbers.astype(np.float32).reshape(shape)], {}))
    return steps if dtype == TensorProto.FLOAT else [*steps, ("Cast", [], {"to": dtype})]


def _put_before(graph: GraphProto, name: str, steps: list[Step], spec: InputSpec, *, batch: int) -> None:
    """Makes uint8 images of any number the graph's input, where that was `batch` (0: any) images as the steps make them."""
    nodes = list(graph.node)
    for part in ("node", "input", "value_info"):  # value_info may tell of a fixed batch, as may the shapes of outputs
        graph.ClearField(part)
    for output in graph.output:
        output.CopyFrom(onnx.ValueInfoProto(name=output.name))
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", *spec.shape]))
    _append(graph, INPUT, name, steps)
    constants = {one.output[0]: a.t for one in nodes if one.op_type == "Constant" for a in one.attribute if a.name == "value"}
    constants |= {one.name: one for one in graph.initializer}
    for node in (one for one in nodes if batch and one.op_type == "Reshape" and one.input[1] in constants):
        shape = constants[node.input[1]]
        sizes = numpy_helper.to_array(shape).tolist()
        if sizes[:1] == [batch]:
            shape.CopyFrom(numpy_helper.from_array(np.array([0 if -1 in sizes else -1, *sizes[1:]]), shape.name))
        del node.attribute[:]  # allowzero
    graph.node.extend(nodes)


def _ask(model: ModelProto, pixels: Pixels, n_labels: int) -> tuple[str, NDArray[Any]]:
    """The output with a number for each label, and what it answers, each image alone; all at once must give the same."""
    pixels = np.concatenate([pixels, np.random.default_rng(0).integers(0, 256, (2, *pixels.shape[1:]), np.uint8)])
    with refusing("onnxruntime cannot run it"):
        session = open_session(model)
        answers = [[np.asarray(one) for one in session.run(None, {INPUT: image[np.newaxis]})] for image in pixels]
    fitting = [number for number, one in enumerate(answers[0]) if one.size == n_labels and one.dtype.kind == "f"]
    if len(fitting) != 1:
        raise InputError(f"with {n_labels} labels, one output must give as many numbers, not {[*map(np.size, answers[0])]}")
    alone, output = np.concatenate([one[fitting[0]] for one in answers]), session.get_outputs()[fitting[0]].name
    with refusing("its batch is fixed, or it mixes the images of a batch: export it with a free batch, for evaluation"):
        together = session.run([output], {INPUT: pixels})[0]
        np.testing.assert_allclose(together, alone, rtol=0, atol=1e-3 * np.abs(alone).max())  # additions change places
    return output, alone


def _steps_after(answers: NDArray[Any], said: str | None) -> list[Step]:
    rows = answers.reshape(len(answers), -1).astype(np.float64)
    sums, within = rows.sum(axis=1), bool(rows.min() >= 0 and rows.max() <= 1 + SUM_TOLERANCE)
    are_probabilities = within and bool(np.abs(sums - 1).max() <= SUM_TOLERANCE)
    if not np.isfinite(rows).all() or (are_probabilities == (said == "logits") if said else within != are_probabilities):
        raise InputError(
            f"its answers lie in {rows.min():.3g}..{rows.max():.3g} and add up to {sums.min():.3g}..{sums.max():.3g}: not "
            f"{said or 'surely logits or probabilities'}; a yes or no of its own for each class is not served; see --output"
        )
    steps: list[Step] = [("Cast", [], {"to": TensorProto.FLOAT})] * (answers.dtype != np.float32)
    steps += [("Flatten", [], {"axis": 1})] * (answers.ndim > 2)
    return steps + [("Softmax", [], {"axis": 1})] * (not are_probabilities)


def _append(graph: GraphProto, start: str, end: str, steps: list[Step]) -> None:
    """Adds nodes that make the tensor `end` of `start`."""
    steps = steps or [("Identity", [], {})]
    names = [start, *(f"{end}_{number}" for number in range(1, len(steps))), end]
    for (operator, constants, attributes), source, made in zip(steps, names, names[1:], strict=False):
        operands = [numpy_helper.from_array(one, f"{made}_by") for one in constants]
        graph.initializer.extend(operands)
        graph.node.append(helper.make_node(operator, [source, *(one.name for one in operands)], [made], **attributes))
