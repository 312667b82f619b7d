"""Small real model files for the tests, built node by node, so that the right answer to any image is known beforehand."""

import io
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from app.spec import AcceptRule, Golden, InputSpec, ModelSpec, Provenance

COLOURS = ("red", "green", "blue")
COLOUR_INPUT = InputSpec(height=8, width=8, channels=3)
SHARPNESS = 8.0  # logits are (mean of channel / 255) × SHARPNESS


def png(pixels: np.ndarray | tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> bytes:
    """A PNG file of an array, or of one colour all over."""
    image = Image.new("RGB", size, pixels) if isinstance(pixels, tuple) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def colour_probabilities(colour: Sequence[float]) -> list[float]:
    """What the colour model must answer for an image whose channels have these means."""
    exponents = np.exp(np.asarray(colour, np.float64) / 255 * SHARPNESS)
    return [float(value) for value in exponents / exponents.sum()]


def colour_spec(**changes: object) -> ModelSpec:
    """The spec of the colour model."""
    red = (255, 0, 0)
    fields: dict[str, object] = {
        "name": "colours",
        "version": "1",
        "created": datetime(2026, 1, 1, tzinfo=UTC),
        "labels": COLOURS,
        "input": COLOUR_INPUT,
        "accept": AcceptRule(threshold=0.6, precision=0.99, coverage=0.9, chosen_on="nothing"),
        "provenance": Provenance(
            data_digest="0" * 64, n_training_images=0, recipe="by hand", seed=0, git_commit="unknown", libraries={}
        ),
        "goldens": (Golden.of(png(red), colour_probabilities(red), 1e-5),),
    }
    return ModelSpec.model_validate(fields | changes)


def write_colour_model(
    path: Path,
    spec: ModelSpec | None = None,
    *,
    input_type: int = TensorProto.UINT8,
    classes: int = 3,
    repeats: int = 0,
    fails_on_white: bool = False,
) -> Path:
    """Writes a model file that classifies an image by its mean colour: softmax of the scaled channel means.

    `repeats` adds useless matrix products of 512 × 512, to make the model slow on purpose (about 2 ms each on one core).
    `fails_on_white` makes the session itself fail for a batch that holds a wholly white image.
    """
    spec = spec or colour_spec()
    height, width, channels = spec.input.shape
    constants = {
        "scale": np.array(SHARPNESS / 255, np.float32),
        "weights": np.eye(channels, classes, dtype=np.float32),
        "square": np.full((512, 512), 1 / 512, np.float32),
        "zero": np.array(0, np.float32),
        "dark": np.zeros(255, np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["means"], keepdims=0),
        helper.make_node("Mul", ["means", "scale"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "weights"], ["logits0"]),
    ]
    for number in range(repeats):
        nodes += _useless_work(number)
    logits = f"logits{repeats}"
    if fails_on_white:
        nodes += _failure_on_white(logits)
        logits = "checked"
    nodes.append(helper.make_node("Softmax", [logits], ["probabilities"], axis=1))
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    initializers.append(numpy_helper.from_array(np.array([1, 2], np.int64), "axes"))
    initializers.append(numpy_helper.from_array(np.array([1, 2, 3], np.int64), "every_axis"))
    initializers.append(numpy_helper.from_array(np.array([1], np.int64), "last"))
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("images", input_type, ["batch", height, width, channels])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", classes])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, spec.to_metadata())
    onnx.save(model, path)
    return path


def _useless_work(number: int) -> list[onnx.NodeProto]:
    """Adds 0 × max(square · square + logit) to the logits; the logit keeps the optimiser from folding it away."""
    own = [f"{name}{number}" for name in ("top", "sum", "product", "peak", "nothing")]
    top, total, product, peak, nothing = own
    return [
        helper.make_node("ReduceMax", [f"logits{number}"], [top], keepdims=0),
        helper.make_node("Add", ["square", top], [total]),
        helper.make_node("MatMul", [total, "square"], [product]),
        helper.make_node("ReduceMax", [product], [peak], keepdims=0),
        helper.make_node("Mul", [peak, "zero"], [nothing]),
        helper.make_node("Add", [f"logits{number}", nothing], [f"logits{number + 1}"]),
    ]


def _failure_on_white(logits: str) -> list[onnx.NodeProto]:
    """Adds 0 from a table of 255 entries, looked up by the darkest value of the image: 255 is out of its range."""
    return [
        helper.make_node("Cast", ["images"], ["levels"], to=TensorProto.INT32),
        helper.make_node("ReduceMin", ["levels", "every_axis"], ["darkest"], keepdims=0),
        helper.make_node("Gather", ["dark", "darkest"], ["row"]),
        helper.make_node("Unsqueeze", ["row", "last"], ["column"]),
        helper.make_node("Add", [logits, "column"], ["checked"]),
    ]
