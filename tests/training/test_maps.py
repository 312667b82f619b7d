"""Class activation maps are exact, cost nothing where nobody asks for them, and survive what is done to a model file."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from app.classifier import EXPLAIN, INPUT, MAPS, OUTPUT
from app.spec import InputSpec
from tests.service import ROOT
from training.graph import ServedNetwork, export_graph
from training.maps import add_maps, without_maps
from training.model_file import open_session
from training.networks import ResidualNet
from training.quantize import quantize_graph

SPEC = InputSpec(height=24, width=24, channels=3)
PIXELS = np.random.default_rng(0).integers(0, 256, (16, *SPEC.shape), np.uint8)
TEMPERATURE = 1.7
N_CLASSES = 5
ON = {EXPLAIN: np.array(True)}


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    network = ResidualNet(widths=(8, 16), blocks=1).build(SPEC, N_CLASSES).eval()
    with torch.no_grad():
        network[-1].bias += torch.randn(N_CLASSES)
    return network


@pytest.fixture(scope="module")
def plain(network: torch.nn.Module) -> onnx.ModelProto:
    return export_graph(ServedNetwork(network, TEMPERATURE), SPEC)


def with_maps(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    add_maps(copy)
    onnx.checker.check_model(copy, full_check=True)
    return copy


def ask(model: onnx.ModelProto, pixels: NDArray[np.uint8] = PIXELS) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    probabilities, maps = open_session(model).run([OUTPUT, MAPS], {INPUT: pixels, **ON})
    return probabilities, maps


def test_the_mean_of_a_map_is_the_logit_before_bias_and_temperature(network: torch.nn.Module, plain: onnx.ModelProto) -> None:
    probabilities, maps = ask(with_maps(plain))
    assert maps.shape[:2] == (len(PIXELS), N_CLASSES)
    assert maps.shape[2] > 1
    logits = (maps.mean(axis=(2, 3)) + network[-1].bias.detach().numpy()) / TEMPERATURE
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)


@pytest.mark.parametrize("quantise", [False, True])
def test_probabilities_are_the_same_to_the_last_bit_with_and_without(plain: onnx.ModelProto, quantise: bool) -> None:
    model = quantize_graph(plain, PIXELS) if quantise else plain
    before = open_session(model).run([OUTPUT], {INPUT: PIXELS})[0]
    session = open_session(with_maps(model))
    np.testing.assert_array_equal(session.run([OUTPUT], {INPUT: PIXELS})[0], before)
    np.testing.assert_array_equal(session.run([OUTPUT, MAPS], {INPUT: PIXELS, **ON})[0], before)


def test_an_integer_model_has_the_maps_of_its_fp32_form(plain: onnx.ModelProto) -> None:
    exact, rounded = ask(with_maps(plain))[1], ask(with_maps(quantize_graph(with_maps(plain), PIXELS)))[1]
    assert np.corrcoef(exact.ravel(), rounded.ravel())[0, 1] > 0.99


def test_the_product_runs_only_for_who_asks(plain: onnx.ModelProto, tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    session = ort.InferenceSession(with_maps(plain).SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = []
    for switch in ({}, ON):
        session.run([OUTPUT], {INPUT: PIXELS, **switch})
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    names = [
        event["args"]["op_name"] for event in sorted(events, key=lambda one: one["ts"]) if "op_name" in event.get("args", {})
    ]
    assert names.count("If") == 2
    assert names.count("Softmax") == 2
    assert names.count("Einsum") == 1


def test_what_was_added_can_be_taken_away_and_is_added_once(plain: onnx.ModelProto) -> None:
    added = with_maps(plain)
    assert without_maps(added) == plain
    assert with_maps(added) == added


def test_a_network_with_hidden_dense_layers_gets_no_maps() -> None:
    digits = onnx.load(ROOT / "models" / "digits.onnx")
    assert with_maps(digits) == digits


def channels_last(*, scale: NDArray[np.float32]) -> onnx.ModelProto:
    """As TensorFlow's are: features (batch, h, w, k), a product and a sum, each class scaled."""
    weights = {"w": np.eye(3, 4, dtype=np.float32), "b": np.ones(4, np.float32), "s": scale}
    nodes = [
        helper.make_node("Cast", [INPUT], ["features"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["features"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["mean", "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["sum"]),
        helper.make_node("Mul", ["sum", "s"], ["scaled"]),
        helper.make_node("Softmax", ["scaled"], [OUTPUT], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "last",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", *SPEC.shape])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_maps_of_a_model_with_channels_last_lie_upright() -> None:
    maps = ask(with_maps(channels_last(scale=np.array(0.01, np.float32))))[1]
    np.testing.assert_array_equal(maps[:, :3], PIXELS.transpose(0, 3, 1, 2))
    assert not maps[:, 3].any()


def test_classes_that_are_scaled_apart_get_no_maps_rather_than_wrong_ones() -> None:
    model = channels_last(scale=np.arange(4, dtype=np.float32))
    assert with_maps(model) == model
