"""Model files made to read other files, or to take time or memory without end: each is refused in one sentence, soon."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.classifier import MAX_FILE_BYTES, Classifier
from app.errors import ModelError
from tests.models import colour_spec, write_colour_model
from tests.service import ROOT

SECRET = np.array([4, 5, 6], np.float32).tobytes()


def colours(
    nodes: Sequence[onnx.NodeProto], *constants: onnx.TensorProto, functions: Sequence[onnx.FunctionProto] = ()
) -> bytes:
    """The colour model, to whose logits 0 × `evil` is added; `nodes` compute the number `evil` from the logits."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["floats", "axes"], ["means"], keepdims=0),
            helper.make_node("Mul", ["means", "scale"], ["logits"]),
            *nodes,
            helper.make_node("Mul", ["evil", "zero"], ["nothing"]),
            helper.make_node("Add", ["logits", "nothing"], ["sum"]),
            helper.make_node("Softmax", ["sum"], ["probabilities"], axis=1),
        ],
        "colours",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 8, 8, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 3])],
        [
            number("scale", 8 / 255),
            number("zero", 0.0),
            numpy_helper.from_array(np.array([1, 2], np.int64), "axes"),
            *constants,
        ],
    )
    domains = [helper.make_opsetid("", 20), helper.make_opsetid("evil", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=10, functions=functions)
    helper.set_model_props(model, colour_spec().to_metadata())
    return bytes(model.SerializeToString())


def number(name: str, value: float) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(value, np.float32), name)


def shape(*sides: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(sides, np.int64), "shape")


FIRST = [helper.make_node("ReduceMax", ["logits"], ["first"], keepdims=0)]


def chained(op: str, count: int, **attributes: Any) -> list[onnx.NodeProto]:
    """A constant of `shape`, put `count` times through an operator with itself."""
    steps = [helper.make_node(op, [f"c{n}", f"c{n}"], [f"c{n + 1}"], **attributes) for n in range(count)]
    last = helper.make_node("ReduceMax", [f"c{count}"], ["evil"], keepdims=0)
    return [helper.make_node("ConstantOfShape", ["shape"], ["c0"]), *steps, last]


def pointing_to(location: str) -> bytes:
    """Weights that lie in another file."""
    weights = TensorProto(name="weights", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": "0", "length": "12"}.items():
        weights.external_data.add(key=key, value=value)
    weighted = helper.make_node("Mul", ["logits", "weights"], ["weighted"])
    return colours([weighted, helper.make_node("ReduceMax", ["weighted"], ["evil"], keepdims=0)], weights)


def endless_loop() -> bytes:
    same: list[tuple[str, int, list[int]]] = [("go", TensorProto.BOOL, []), ("v", TensorProto.FLOAT, [])]
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["v", "v"], ["w"])],
        "body",
        [helper.make_tensor_value_info(*one) for one in [("i", TensorProto.INT64, []), *same]],
        [helper.make_tensor_value_info("go_on", *same[0][1:]), helper.make_tensor_value_info("w", *same[1][1:])],
    )
    constants = [numpy_helper.from_array(np.array(2**62, np.int64), "n"), numpy_helper.from_array(np.array(True), "true")]
    return colours([*FIRST, helper.make_node("Loop", ["n", "true", "first"], ["evil"], body=body)], *constants)


def nested_functions(depth: int) -> bytes:
    """Each function calls the next twice: 2 to the power of `depth` nodes when all are written out."""
    opset = [helper.make_opsetid("", 20), helper.make_opsetid("evil", 1)]
    functions = [
        helper.make_function(
            "evil",
            f"f{n}",
            ["x"],
            ["y"],
            [helper.make_node(f"f{n + 1}", [a], [b], domain="evil") for a, b in (("x", "t"), ("t", "y"))],
            opset,
        )
        for n in range(depth)
    ]
    last = helper.make_function("evil", f"f{depth}", ["x"], ["y"], [helper.make_node("Neg", ["x"], ["y"])], opset)
    return colours([*FIRST, helper.make_node("f0", ["first"], ["evil"], domain="evil")], functions=[*functions, last])


def recursive_function() -> bytes:
    calls = [helper.make_node("f", ["x"], ["y"], domain="evil")]
    function = helper.make_function("evil", "f", ["x"], ["y"], calls, [helper.make_opsetid("evil", 1)])
    return colours([*FIRST, helper.make_node("f", ["first"], ["evil"], domain="evil")], functions=[function])


def huge_claim() -> bytes:
    """An initialiser that claims 2^40 numbers and brings none."""
    claim = TensorProto(name="claim", data_type=TensorProto.FLOAT, dims=[2**20, 2**20], raw_data=b"")
    return colours([helper.make_node("ReduceMax", ["claim"], ["evil"], keepdims=0)], claim)


def in_ort_format(path: Path) -> bytes:
    options = ort.SessionOptions()
    options.optimized_model_filepath = os.fspath(path / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(write_colour_model(path / "plain.onnx"), options, providers=["CPUExecutionProvider"])
    return (path / "model.ort").read_bytes()


HOSTILE: dict[str, Callable[[], bytes]] = {
    "another file": lambda: pointing_to("secret.bin"),
    "a file above": lambda: pointing_to("../secret.bin"),
    "an absolute path": lambda: pointing_to("/etc/passwd"),
    "a device": lambda: pointing_to("/dev/zero"),
    "an address in memory": lambda: pointing_to("*/_ORT_MEM_ADDR_/*"),
    "an operator of its own": lambda: colours([*FIRST, helper.make_node("Shell", ["first"], ["evil"], domain="evil")]),
    "64 gigabytes": lambda: colours(chained("Add", 1), shape(2**34)),
    "more than there is": lambda: colours(chained("Add", 1), shape(2**31, 2**31)),
    "a size below zero": lambda: colours(chained("Add", 1), shape(-1)),
    "a doubling": lambda: colours(chained("Concat", 60, axis=0), shape(1024)),
    "an outer product": lambda: colours(chained("MatMul", 1), shape(2**14, 2**14)),
    "much arithmetic": lambda: colours(chained("MatMul", 200), shape(1500, 1500)),
    "an endless loop": endless_loop,
    "functions within functions": lambda: nested_functions(40),
    "a function that calls itself": recursive_function,
    "a huge claim": huge_claim,
}
LOAD = """
import json, os, pathlib, re, sys, time
from app import classifier
from app.errors import ModelError
classifier.LOAD_SECONDS = 1.0
kilobytes = lambda name: int(re.search(name + r":\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])

def end(sentence):
    seconds = time.monotonic() - begun
    print(json.dumps([path.stem, sentence, seconds, 1024 * (kilobytes("VmHWM") - before)]), flush=True)
    os._exit(0)

for path in sorted(pathlib.Path(sys.argv[1]).glob("*.onnx")):
    if pid := os.fork():
        if code := os.waitpid(pid, 0)[1]:
            print(json.dumps([path.stem, f"ended with {code}", 0, 0]), flush=True)
        continue
    before, begun = kilobytes("VmRSS"), time.monotonic()
    try:
        classifier.Classifier.load(path, device="cpu", abandon=lambda: end("model file abandoned"))
        end("loaded")
    except ModelError as error:
        end(str(error))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_a_hostile_model_file_is_refused_soon_in_one_sentence_and_takes_little(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    for place in (folder, tmp_path):
        (place / "secret.bin").write_bytes(SECRET)
    for name, make in HOSTILE.items():
        (folder / f"{name}.onnx").write_bytes(make())
    (folder / "the other format.onnx").write_bytes(in_ort_format(tmp_path))
    command = [sys.executable, "-c", LOAD, os.fspath(folder)]
    environment = os.environ | {"PYTHONPATH": os.fspath(ROOT)}  # and started where the secret lies
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    found = {name: (sentence, seconds, grown) for name, sentence, seconds, grown in map(json.loads, ended.stdout.splitlines())}
    print(json.dumps(found, indent=1))
    assert found.keys() == {*HOSTILE, "the other format"}
    for name, (sentence, seconds, grown) in found.items():
        assert re.fullmatch(rf"model file .*{name}.onnx: .+|model file abandoned", sentence), (name, sentence)
        assert seconds < 6, name
        assert grown < 1.2 * 2**30, name


def test_the_colour_model_that_these_are_made_of_is_a_good_one(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(colours([*FIRST, helper.make_node("Neg", ["first"], ["evil"])]))
    assert Classifier.load(path, device="cpu").spec.name == "colours"


def test_a_file_too_large_for_a_model_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # sparse
    with pytest.raises(ModelError, match="no file of at most 2,147,483,647 bytes"):
        Classifier.load(path)


@pytest.mark.parametrize("path", [Path("/dev/zero"), Path("/dev/stdin")])
def test_a_device_is_no_model_file(path: Path) -> None:
    with pytest.raises(ModelError, match="no file"):
        Classifier.load(path)


def test_nothing_of_the_product_unpickles() -> None:
    """Model files are ONNX; checkpoints of training are read with weights_only, which builds tensors and nothing else."""
    sources = [*ROOT.glob("app/**/*.py"), *ROOT.glob("training/**/*.py")]
    assert len(sources) > 40
    for path in sources:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\b(pickle|dill|joblib|shelve|marshal)\b|(?<![.\w])(eval|exec)\(", text), path
        for call in re.finditer(r"torch\.load\(([^\n]*)", text):
            assert "weights_only=True" in call[1], path
        assert not re.search(r"np\.load\((?![^\n]*allow_pickle=False)", text), path
