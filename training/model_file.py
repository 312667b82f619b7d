"""The model file: a graph with its spec and goldens, written beside its place, proven there, and only then put into it."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from PIL import Image

from app.classifier import INPUT, OUTPUT, Classifier, Probabilities
from app.image import Pixels, decode, fit
from app.spec import Golden, InputSpec, ModelSpec
from training.errors import InputError
from training.pixels import Samples

GOLDEN_CLASSES = 3
MAX_GOLDEN_BYTES = 20_000
# Other processors and onnxruntime versions differ by 1e-6; a wrong filter, scale or channel order by 1e-2 and more.
GOLDEN_TOLERANCE = 1e-3


@contextmanager
def unfinished_beside(out: Path) -> Iterator[Path]:
    """The path of a temporary file in the folder of `out`, made if missing; whatever happens, it is gone afterwards.

    Raises: InputError when nothing can be written there.
    """
    unfinished = out.with_name(f".{out.name}.unfinished")
    if out.is_dir():
        raise InputError(f"{out} is a folder: give the model file a name, such as {out / 'model.onnx'}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished.touch()
    except OSError as error:
        raise InputError(f"{out.parent} cannot be written to: {error.strerror}") from error
    try:
        yield unfinished
    finally:
        unfinished.unlink(missing_ok=True)


def write_model(model: onnx.ModelProto, spec: ModelSpec, unfinished: Path, *, threads: int) -> Classifier:
    """Writes the graph with its spec, and loads it as a server would.

    Raises: ModelError when the file cannot prove itself.
    """
    onnx.helper.set_model_props(model, spec.to_metadata())
    unfinished.write_bytes(model.SerializeToString(deterministic=True))
    return Classifier.load(unfinished, device="cpu", threads=threads)


def strip(model: onnx.ModelProto) -> onnx.ModelProto:
    """Removes what exporters note of their own work: it holds paths of their machine and doubles a small file."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    return model


def put_in_place(unfinished: Path, out: Path) -> None:
    """Replaces `out` in one step."""
    unfinished.replace(out)


def make_goldens(model: onnx.ModelProto, spec: InputSpec, samples: Samples) -> tuple[Golden, ...]:
    """Images of up to three classes, with what onnxruntime answers to them through the whole path from their bytes."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    encoded = [_encode(samples.paths[index], samples.pixels[index]) for index in _choose_samples(samples)]
    return tuple(make_golden(session, one, spec, GOLDEN_TOLERANCE) for one in encoded)


def make_golden(session: ort.InferenceSession, encoded: bytes, spec: InputSpec, tolerance: float) -> Golden:
    """The encoded image with what the session answers to it."""
    batch = fit(decode(encoded, spec), spec)[np.newaxis]
    probabilities: Probabilities = session.run([OUTPUT], {INPUT: batch})[0][0]
    return Golden.of(encoded, [round(float(probability), 7) for probability in probabilities], tolerance)


def _choose_samples(samples: Samples) -> list[int]:
    """The first image of the first, the middle and the last class."""
    present = np.unique(samples.classes)
    chosen = np.unique(present[np.linspace(0, len(present) - 1, GOLDEN_CLASSES).round().astype(np.int64)])
    return [int(np.flatnonzero(samples.classes == number)[0]) for number in chosen]


def _encode(path: Path, pixels: Pixels) -> bytes:
    """The file itself if it is small, else its fitted pixels as PNG, which `fit` takes as they are."""
    if path.stat().st_size <= MAX_GOLDEN_BYTES:
        return path.read_bytes()
    encoded = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(encoded, "PNG", optimize=True)
    return encoded.getvalue()
