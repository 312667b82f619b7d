"""A foreign ONNX classifier, of any framework, to a model file: what belongs around it becomes nodes, and it proves itself.

images uint8 (batch, height, width, channels) → layout, channel order, scale → foreign graph → softmax if logits → probabilities

What the graph or its answers tell is not asked for; what only its maker can know is asked for in one sentence.
"""

import argparse
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper
from pydantic import ValidationError

from app.classifier import INPUT, OUTPUT, top_k
from app.image import Pixels
from app.spec import InputSpec, ModelSpec, Provenance
from training.errors import InputError
from training.folder import LabelledFile
from training.gate import open_session
from training.model_file import GOLDEN_TOLERANCE, encode, make_golden, put_in_place, strip, unfinished_beside, write_model
from training.pixels import decode_files
from training.provenance import git_commit, library_versions

TYPES = (TensorProto.UINT8, TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
SUM_TOLERANCE = 0.01  # of probabilities computed in 8 or 16 bits
BATCH_TOLERANCE = 1e-3  # of the largest answer: another order of additions; mixing images does far more
Array = NDArray[Any]
Step = tuple[str, Array | None, dict[str, Any]]  # operator, constant operand, attributes


def adopt_model(options: argparse.Namespace, name: str, version: str) -> str:
    """Writes the model file of the command `adopt`; returns what was found out, for a person to judge.

    Raises: InputError; ModelError when the file cannot prove itself.
    """
    labels, model = _read_labels(options.labels), _load(options.model)
    source, layout, dims = _find_input(model.graph, options.layout)
    spec = _make_spec(options, *dims[1:])
    before = _steps_before(options, layout, source.type.tensor_type.elem_type, spec.channels)
    with _refusing(f"--images {options.images}"):
        paths = sorted(path for path in (options.images, *options.images.rglob("*")) if path.is_file())
        # Up to three, far apart in the order of their names.
        samples = decode_files([LabelledFile(path, labels[0]) for path in paths[:: -(-len(paths) // 3) or 1]], labels, spec)
    _put_before(model.graph, source.name, before, spec, batch=dims[0])
    output, answers = _ask(model, samples.pixels, len(labels))
    after = _steps_after(answers, options.output)
    _append(model.graph, output, OUTPUT, after)
    model.graph.ClearField("output")
    model.graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", len(labels)]))
    session = open_session(strip(model))
    encoded = [encode(path, pixels) for path, pixels in zip(samples.paths, samples.pixels, strict=True)]
    fields = {"name": name, "version": version, "created": datetime.now(UTC), "labels": labels, "input": spec}
    fields["goldens"] = tuple(make_golden(session, one, spec, GOLDEN_TOLERANCE) for one in encoded)
    with unfinished_beside(options.out) as unfinished:
        about = ModelSpec.model_validate({**fields, "provenance": _provenance(options.model, model)})
        write_model(model, about, unfinished, threads=1)
        put_in_place(unfinished, options.out)
    steps = [", ".join(operator for operator, _, _ in some) or "as it is" for some in (before, after)]
    lines = [f"input   {' × '.join(map(str, spec.shape))}, {layout}: {steps[0]}", f"output  {steps[1]}"]
    for path, golden in zip(samples.paths, about.goldens, strict=True):
        [(best, share)] = top_k(np.array(golden.probabilities, np.float32), 1)
        lines.append(f"{path.name} is {labels[best]} ({share:.1%})")
    return "\n".join(lines)


@contextmanager
def _refusing(sentence: str) -> Iterator[None]:
    """Turns what goes wrong inside into an InputError: the libraries' exceptions share no base but Exception."""
    try:
        yield
    except Exception as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error).strip().partition("\n")[0]
        raise InputError(f"{sentence}: {reason}") from error


def _read_labels(path: Path) -> tuple[str, ...]:
    with _refusing(f"{path} cannot be read as a text with one label a line"):
        labels = tuple(line.strip() for line in path.read_text(encoding="utf-8").rstrip().splitlines())
    if len(labels) < 2 or not all(labels) or len(set(labels)) < len(labels):
        raise InputError(f"{path} must have at least two lines, each with another label, in the order of the model's answers")
    return labels


def _load(path: Path) -> ModelProto:
    with _refusing(f"{path} cannot be read as a whole ONNX model"):
        model = onnx.load(path)  # with its external data, from the same folder only
        # Initializers keep their names, or subgraphs would not find them.
        model = onnx.compose.add_prefix(model, "foreign/", rename_initializers=False, rename_value_infos=False)
    model.ir_version = max(model.ir_version, 4)  # before, weights had to be inputs too
    return model


def _find_input(graph: GraphProto, layout: str | None) -> tuple[onnx.ValueInfoProto, str, list[int]]:
    """The graph's input, its layout, and batch, height, width, channels, each 0 where it is free."""
    inputs = [one for one in graph.input if one.name not in {weights.name for weights in graph.initializer}]
    dims = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim] if len(inputs) == 1 else []
    if len(dims) != 4 or inputs[0].type.tensor_type.elem_type not in TYPES:
        found = ", ".join(helper.printable_value_info(one) for one in inputs) or "none"
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
    with _refusing("the rule of --size, --resize and --crop cannot be"):
        return InputSpec.model_validate(fields)


def _steps_before(options: argparse.Namespace, layout: str, dtype: int, channels: int) -> list[Step]:
    steps: list[Step] = [("Transpose", None, {"perm": [0, 3, 1, 2]})] if layout == "nchw" else []
    if options.color == "bgr":
        steps.append(("Gather", np.array([2, 1, 0]), {"axis": 1 if layout == "nchw" else 3}))
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
    steps.append(("Cast", None, {"to": TensorProto.FLOAT}))
    for operator, numbers, nothing in (("Mul", (high - low) / 255 / std, 1), ("Add", (low - mean) / std, 0)):
        if (numbers != nothing).any():
            shape = () if len(numbers) == 1 else (-1, 1, 1) if layout == "nchw" else (-1,)
            steps.append((operator, numbers.astype(np.float32).reshape(shape), {}))
    return steps if dtype == TensorProto.FLOAT else [*steps, ("Cast", None, {"to": dtype})]


def _put_before(graph: GraphProto, name: str, steps: list[Step], spec: InputSpec, *, batch: int) -> None:
    """Makes uint8 images of any number the graph's input, where that was `batch` (0: any) images as the steps make them."""
    nodes = list(graph.node)
    for part in ("node", "input", "value_info"):  # value_info may tell of a fixed batch, as may the shapes of outputs
        graph.ClearField(part)
    for output in graph.output:
        output.CopyFrom(onnx.ValueInfoProto(name=output.name))
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", *spec.shape]))
    _append(graph, INPUT, name, steps)
    constants = {one.output[0]: one.attribute[0].t for one in nodes if one.op_type == "Constant"}
    constants |= {one.name: one for one in graph.initializer}
    for node in (one for one in nodes if batch and one.op_type == "Reshape" and one.input[1] in constants):
        sizes = numpy_helper.to_array(constants[node.input[1]]).tolist()
        if sizes[:1] == [batch]:
            node.input[1] = f"{node.output[0]}_shape"
            del node.attribute[:]  # allowzero
            freed = np.array([0 if -1 in sizes else -1, *sizes[1:]])
            graph.initializer.append(numpy_helper.from_array(freed, node.input[1]))
    graph.node.extend(nodes)


def _ask(model: ModelProto, pixels: Pixels, n_labels: int) -> tuple[str, Array]:
    """The output with a number for each label, and what it answers, each image alone; all at once must give the same."""
    pixels = np.concatenate([pixels, np.random.default_rng(0).integers(0, 256, (2, *pixels.shape[1:]), np.uint8)])
    with _refusing("onnxruntime cannot run it"):
        session = open_session(model)
        answers = [[np.asarray(one) for one in session.run(None, {INPUT: image[np.newaxis]})] for image in pixels]
    fitting = [number for number, one in enumerate(answers[0]) if one.size == n_labels and one.dtype.kind == "f"]
    if len(fitting) != 1:
        sizes = ", ".join(str(one.size) for one in answers[0])
        raise InputError(f"exactly one output must give a number for each of the {n_labels} labels, but they give {sizes}")
    alone, output = np.concatenate([one[fitting[0]] for one in answers]), session.get_outputs()[fitting[0]].name
    with _refusing("its batch is fixed, or it mixes the images of a batch: export it with a free batch, for evaluation"):
        together = session.run([output], {INPUT: pixels})[0]
        np.testing.assert_allclose(together, alone, rtol=0, atol=BATCH_TOLERANCE * np.abs(alone).max())
    return output, alone


def _steps_after(answers: Array, said: str | None) -> list[Step]:
    rows = answers.reshape(len(answers), -1).astype(np.float64)
    sums, within = rows.sum(axis=1), bool(rows.min() >= 0 and rows.max() <= 1 + SUM_TOLERANCE)
    are_probabilities = within and bool(np.abs(sums - 1).max() <= SUM_TOLERANCE)
    if not np.isfinite(rows).all() or (are_probabilities == (said == "logits") if said else within != are_probabilities):
        raise InputError(
            f"its answers lie in {rows.min():.3g}..{rows.max():.3g} and add up to {sums.min():.3g}..{sums.max():.3g}: not "
            f"{said or 'surely logits or probabilities'}; a yes or no of its own for each class is not served; see --output"
        )
    steps: list[Step] = [] if answers.dtype == np.float32 else [("Cast", None, {"to": TensorProto.FLOAT})]
    steps += [("Flatten", None, {"axis": 1})] * (answers.ndim > 2)
    return steps if are_probabilities else [*steps, ("Softmax", None, {"axis": 1})]


def _append(graph: GraphProto, start: str, end: str, steps: list[Step]) -> None:
    """Adds nodes that make the tensor `end` of `start`."""
    steps = steps or [("Identity", None, {})]
    names = [start, *(f"{end}_{number}" for number in range(1, len(steps))), end]
    for (operator, constant, attributes), source, made in zip(steps, names, names[1:], strict=False):
        if constant is not None:
            graph.initializer.append(numpy_helper.from_array(constant, f"{made}_by"))
        operands = [source] if constant is None else [source, f"{made}_by"]
        graph.node.append(helper.make_node(operator, operands, [made], **attributes))


def _provenance(path: Path, model: ModelProto) -> Provenance:
    maker = f"{model.producer_name or 'an unknown tool'} {model.producer_version}".strip()
    fields = {"data_digest": "unknown", "n_training_images": 0, "seed": 0, "recipe": f"made by {maker}, adopted"}
    note = f"{path.name}, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}"
    return Provenance.model_validate({**fields, "git_commit": git_commit(), "libraries": library_versions(), "note": note})
