"""Loading a model file: what cannot prove itself is refused in one sentence; and the most probable classes of a row."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from app.classifier import CUDA, Classifier, top_k
from app.errors import ModelError
from app.spec import SPEC_KEY, Golden, InputSpec
from tests.models import COLOURS, colour_probabilities, colour_spec, png, write_colour_model

RED = (255, 0, 0)


def with_metadata(path: Path, change: Callable[[dict[str, str]], object]) -> Path:
    """Rewrites a model file's metadata."""
    model = onnx.load(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    change(metadata)
    del model.metadata_props[:]
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


def with_spec(path: Path, **changes: object) -> Path:
    """Rewrites fields of a model file's spec, right or wrong."""

    def change(metadata: dict[str, str]) -> None:
        metadata[SPEC_KEY] = json.dumps(json.loads(metadata[SPEC_KEY]) | changes)

    return with_metadata(write_colour_model(path), change)


def golden(image: bytes = png(RED), colour: tuple[int, int, int] = RED) -> tuple[Golden]:
    return (Golden.of(image, colour_probabilities(colour), 1e-5),)


def refusal(path: Path, **options: Any) -> str:
    """The one sentence that `path` is refused with, after the file's name."""
    with pytest.raises(ModelError) as caught:
        Classifier.load(path, **options)
    sentence = str(caught.value)
    assert sentence.startswith(f"model file {path}")
    assert "\n" not in sentence
    return sentence.removeprefix(f"model file {path}").lstrip(": ")


BROKEN_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path, "does not exist"),
    "a directory": (lambda path: path.mkdir(), "cannot be read: Is a directory"),
    "empty": (lambda path: path.touch(), "onnxruntime cannot load it"),
    "random bytes": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)), "onnxruntime cannot load it"),
    "text": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "onnxruntime cannot load it"),
    "float input": (lambda path: write_colour_model(path, input_type=TensorProto.FLOAT), "its input must be images: uint8"),
    "other classes": (lambda path: write_colour_model(path, classes=4), "its output must be probabilities: float32 (batch, 3)"),
    "another input size": (
        lambda path: with_spec(path, input={"height": 9, "width": 8, "channels": 3}),
        "its input must be images: uint8 (batch, 9, 8, 3)",
    ),
    "no spec": (
        lambda path: with_metadata(write_colour_model(path), lambda data: data.pop(SPEC_KEY)),
        "it has no convserve.spec",
    ),
    "a spec that is no JSON": (
        lambda path: with_metadata(write_colour_model(path), lambda data: data.update({SPEC_KEY: "{"})),
        "its convserve.spec cannot be read: the whole: Invalid JSON",
    ),
    "an unknown key": (lambda path: with_spec(path, colour="red"), "cannot be read: colour: Extra inputs are not permitted"),
    "a newer schema": (lambda path: with_spec(path, schema_version=2), "cannot be read: schema_version: Input should be 1"),
    "no goldens": (lambda path: with_spec(path, goldens=[]), "cannot be read: goldens"),
    "a golden that is off": (
        lambda path: write_colour_model(path, colour_spec(goldens=golden(colour=(254, 0, 0)))),
        "its golden image 1 is off by",
    ),
    "a second golden that is off": (
        lambda path: write_colour_model(path, colour_spec(goldens=golden() + golden(colour=(0, 0, 255)))),
        "its golden image 2 is off by",
    ),
    "a golden that does not decode": (
        lambda path: write_colour_model(path, colour_spec(goldens=golden(b"no image"))),
        "its golden image 1 does not decode",
    ),
    "a golden that is no base64": (
        lambda path: write_colour_model(
            path, colour_spec(goldens=[{"image": "é", "probabilities": [1, 0, 0], "tolerance": 0.01}])
        ),
        "its golden image 1 does not decode",
    ),
}


@pytest.mark.parametrize("kind", BROKEN_FILES)
def test_a_broken_model_file_is_refused_in_one_sentence(tmp_path: Path, kind: str) -> None:
    make, sentence = BROKEN_FILES[kind]
    path = tmp_path / "model.onnx"
    make(path)
    assert sentence in refusal(path)


@pytest.mark.parametrize("kept", [0.01, 0.3, 0.6, 0.9, 0.99, 0.999])
def test_a_truncated_model_file_is_refused(tmp_path: Path, kept: float) -> None:
    path = write_colour_model(tmp_path / "model.onnx")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert refusal(path)


@pytest.mark.skipif(CUDA in ort.get_available_providers(), reason="CUDA is here")
def test_cuda_is_refused_where_there_is_none(colours: Path) -> None:
    assert "CONVSERVE_DEVICE=cpu" in refusal(colours, device="cuda")
    assert Classifier.load(colours, device="auto").provider == "CPUExecutionProvider"


@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_batch_has_one_right_row_per_image(colours: Path, size: int) -> None:
    batch = np.random.default_rng(size).integers(0, 255, (size, 8, 8, 3), np.uint8)
    rows = Classifier.load(colours)(batch)
    assert rows.shape == (size, 3)
    assert rows.dtype == np.float32
    for row, pixels in zip(rows, batch, strict=True):
        assert row.tolist() == pytest.approx(colour_probabilities(pixels.mean((0, 1))), abs=1e-5)


@pytest.mark.parametrize(("repeats", "threads_alone"), [(20, 2), (0, 1)], ids=["a slow model", "a fast one"])
def test_a_call_that_is_alone_shares_its_work_among_threads_where_that_pays(
    tmp_path: Path, repeats: int, threads_alone: int
) -> None:
    classifier = Classifier.load(write_colour_model(tmp_path / "model.onnx", repeats=repeats), device="cpu", threads_alone=2)
    assert classifier._session_alone.get_session_options().intra_op_num_threads == threads_alone
    assert classifier.is_quick is (repeats == 0)
    assert classifier._session.get_session_options().intra_op_num_threads == 1
    batch = np.random.default_rng(0).integers(0, 255, (1, 8, 8, 3), np.uint8)
    assert classifier(batch, alone=True).tolist()[0] == pytest.approx(classifier(batch).tolist()[0], abs=1e-6)


def test_a_loaded_model_knows_what_it_is(colours: Path) -> None:
    classifier = Classifier.load(colours, device="cpu", threads=2)
    assert classifier.spec.labels == COLOURS
    assert classifier.spec.input == InputSpec(height=8, width=8, channels=3)
    assert len(classifier.sha256) == 64


@given(st.lists(st.integers(0, 4), min_size=2, max_size=12), st.integers(1, 15))
def test_top_k_is_a_sort_with_ties_by_class_index(quarters: list[int], k: int) -> None:
    probabilities = np.array(quarters, np.float32) / np.float32(4)
    every = sorted(enumerate(probabilities.tolist()), key=lambda pair: (-pair[1], pair[0]))
    assert top_k(np.stack([probabilities, -probabilities]), k)[0] == every[:k]
