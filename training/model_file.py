"""The model file: a graph with its spec and goldens, written beside its place, proven there, and only then put into it."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from app.classifier import INPUT, OUTPUT, Classifier, Probabilities
from app.image import decode, fit
from app.spec import Golden, InputSpec, ModelSpec
from training.files import write_bytes
from training.maps import add_maps

# Other processors and onnxruntime versions differ by 1e-6; a wrong filter, scale or channel order by 1e-2 and more.
GOLDEN_TOLERANCE = 1e-3


def write_model(model: onnx.ModelProto, spec: ModelSpec, unfinished: Path, *, threads: int) -> Classifier:
    """Writes the graph with its spec, and with activation maps where it allows them, and loads it as a server would.

    Raises: ModelError when the file cannot prove itself, TrainingError when it cannot be written.
    """
    add_maps(model)
    onnx.helper.set_model_props(model, spec.to_metadata())
    write_bytes(unfinished, model.SerializeToString(deterministic=True))
    return Classifier.load(unfinished, device="cpu", threads=threads)


def strip(model: onnx.ModelProto) -> onnx.ModelProto:
    """Removes what exporters note of their own work: it holds paths of their machine and doubles a small file."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    return model


def open_session(model: onnx.ModelProto) -> ort.InferenceSession:
    """A session on the CPU for a graph that is no file yet."""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # it raises what it would log
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def make_goldens(
    model: onnx.ModelProto, spec: InputSpec, encoded: Iterable[bytes], tolerance: float = GOLDEN_TOLERANCE
) -> tuple[Golden, ...]:
    """The encoded images, with what onnxruntime answers to them through the whole path from their bytes."""
    session, goldens = open_session(model), []
    for one in encoded:
        probabilities: Probabilities = session.run([OUTPUT], {INPUT: fit(decode(one, spec), spec)[np.newaxis]})[0][0]
        goldens.append(Golden.of(one, [round(float(probability), 7) for probability in probabilities], tolerance))
    return tuple(goldens)
