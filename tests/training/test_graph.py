import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

from training.errors import TrainingError
from training.graph import OPSET, ServedNetwork, check_parity, export_graph
from training.recipes import DIGITS

PIXELS = np.random.default_rng(0).integers(0, 256, (33, 28, 28, 1), dtype=np.uint8)


@pytest.fixture(scope="module")
def served() -> ServedNetwork:
    torch.manual_seed(0)
    return ServedNetwork(DIGITS.network.build(DIGITS.input, 10), temperature=0.05).eval()


@pytest.fixture(scope="module")
def model(served: ServedNetwork) -> onnx.ModelProto:
    return export_graph(served, DIGITS.input)


def test_onnxruntime_answers_what_torch_answers(served: ServedNetwork, model: onnx.ModelProto) -> None:
    sentence, _, difference = check_parity(model, served, PIXELS).rpartition(" ")
    assert sentence == f"onnxruntime and torch agree on all {len(PIXELS)} validation images, |Δp| ≤"
    assert float(difference) < 1e-5


def test_a_graph_with_another_weight_is_found_out(served: ServedNetwork, model: onnx.ModelProto) -> None:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    bias = next(weight for weight in changed.graph.initializer if list(weight.dims) == [10])
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.eye(10, dtype=np.float32)[0] * 0.01, bias.name))
    with pytest.raises(TrainingError, match="does not compute what was trained"):
        check_parity(changed, served, PIXELS)


def test_any_number_of_images_can_be_asked_at_once(model: onnx.ModelProto) -> None:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for n in (1, 2, 33):
        (probabilities,) = session.run(["probabilities"], {"images": PIXELS[:n]})
        assert probabilities.shape == (n, 10)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_the_graph_has_no_node_that_could_be_left_out(model: onnx.ModelProto) -> None:
    assert [node.op_type for node in model.graph.node] == [
        *("Transpose", "Cast", "Mul", "Slice", "Slice"),
        *("Conv", "Relu", "MaxPool") * 3,
        *("Reshape", "Gemm", "Relu", "Gemm", "Div", "Softmax"),
    ]
    assert [opset.version for opset in model.opset_import] == [OPSET]


def test_the_file_tells_nothing_of_the_machine_that_made_it(model: onnx.ModelProto) -> None:
    assert b".py" not in model.SerializeToString()
    assert b"/" not in b"".join(node.name.encode() for node in model.graph.node)
