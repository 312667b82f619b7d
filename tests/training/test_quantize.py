"""int8: what it keeps, what it must never do, and when it is refused. The network is small, but exported as real ones are."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from app.classifier import Classifier
from app.image import Pixels
from app.spec import InputSpec, ModelSpec, Provenance
from tests.models import png
from training.errors import InputError, TrainingError
from training.gate import (
    QuantizeVerdict,
    SpeedRatio,
    compare_speed,
    judge,
    quantize_file,
    quantize_samples,
)
from training.gptq import choose_range, choose_scales, round_weights
from training.graph import ServedNetwork, export_graph
from training.model_file import make_goldens, open_session, write_model
from training.networks import PlainNet
from training.pixels import Samples
from training.quantize import quantize_graph

SIDE, CLASSES = 24, 4
INPUT = InputSpec(height=SIDE, width=SIDE, channels=3)
FASTER, SLOWER = SpeedRatio(1.5, 1.4, 1.6), SpeedRatio(0.9, 0.8, 1.1)


def draw_images(n: int, seed: int) -> tuple[Pixels, NDArray[np.int64]]:
    """Stripes in four directions, each image in its own colours, width and noise."""
    random = np.random.default_rng(seed)
    classes = np.arange(n) % CLASSES
    angle, period = classes * np.pi / CLASSES + random.normal(0, 0.04, n), random.uniform(4, 8, n)
    row, column = np.mgrid[:SIDE, :SIDE]
    along = np.cos(angle)[:, None, None] * row + np.sin(angle)[:, None, None] * column
    wave = np.sin(2 * np.pi * along / period[:, None, None] + random.uniform(0, 6.3, n)[:, None, None])
    images = 128 + wave[..., None] * random.uniform(30, 90, (n, 1, 1, 3)) + random.normal(0, 12, (n, SIDE, SIDE, 3))
    return images.clip(0, 255).astype(np.uint8), classes


class Residual(nn.Module):
    """Expand, depthwise, project, add: the block that mobile networks are made of."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = 2 * width
        self.body = nn.Sequential(
            nn.Conv2d(width, wide, 1), nn.ReLU6(), nn.Conv2d(wide, wide, 3, padding=1, groups=wide), nn.ReLU6()
        )
        self.project = nn.Conv2d(wide, width, 1)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = features + self.project(self.body(features))
        return result


class StripeNet(nn.Module):
    """Random features, and a linear layer that is fitted to the images in one step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 5, stride=2, padding=2), nn.BatchNorm2d(32), nn.ReLU6(),
            Residual(32), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Linear(64, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images).mean(dim=(2, 3)))
        return logits

    @torch.inference_mode()
    def fit(self, pixels: Pixels, classes: NDArray[np.int64]) -> None:
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
        features = self.features(images).mean(dim=(2, 3))
        mean, deviation = features.mean(0), features.std(0) + 1e-3
        wanted = 8 * nn.functional.one_hot(torch.from_numpy(classes), CLASSES).float() - 2
        known = (features - mean) / deviation
        solved = torch.linalg.solve(known.T @ known + 5 * torch.eye(64), known.T @ wanted)
        self.classifier.weight.copy_((solved / deviation[:, None]).T)
        self.classifier.bias.copy_(wanted.mean(0) - (mean / deviation) @ solved)


@pytest.fixture(scope="module")
def stripes() -> onnx.ModelProto:
    """The fp32 graph."""
    network = StripeNet().eval()
    network.fit(*draw_images(600, seed=1))
    return export_graph(ServedNetwork(network, temperature=1.3), INPUT)


@pytest.fixture(scope="module")
def quantised(stripes: onnx.ModelProto) -> onnx.ModelProto:
    """Its int8 form."""
    return quantize_graph(stripes, draw_images(32, seed=2)[0])


@pytest.fixture
def stripes_file(stripes: onnx.ModelProto, tmp_path: Path) -> Path:
    """A model file of the fp32 graph."""
    provenance = Provenance(data_digest="0", n_training_images=600, recipe="test", seed=0, git_commit="", libraries={})
    goldens = make_goldens(stripes, INPUT, [png(draw_images(1, seed=3)[0][0])])
    spec = ModelSpec(
        name="stripes", version="1", created=datetime(2026, 1, 1, tzinfo=UTC), labels=tuple("-/|X"), input=INPUT,
        provenance=provenance, goldens=goldens,
    )  # fmt: skip
    path = tmp_path / "stripes.onnx"
    write_model(stripes, spec, path, threads=1)
    return path


def answers(model: onnx.ModelProto, pixels: Pixels) -> NDArray[np.float32]:
    result: NDArray[np.float32] = open_session(model).run(["probabilities"], {"images": pixels})[0]
    return result


def constants(model: onnx.ModelProto) -> dict[str, NDArray[np.generic]]:
    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}


def executed_operators(model: onnx.ModelProto, tmp_path: Path) -> list[str]:
    """What onnxruntime really runs."""
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimised.onnx"), 3
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]


def test_quantising_keeps_the_answers(stripes: onnx.ModelProto, quantised: onnx.ModelProto) -> None:
    pixels, classes = draw_images(400, seed=4)
    before, after = answers(stripes, pixels), answers(quantised, pixels)
    assert (before.argmax(1) == classes).mean() > 0.9
    assert (before.argmax(1) == after.argmax(1)).mean() >= 0.98
    assert np.abs(before - after).mean() < 0.01


def test_no_two_neighbouring_weights_can_overflow_16_bits(quantised: onnx.ModelProto) -> None:
    for name, levels in constants(quantised).items():
        if name.endswith("_w_levels") and levels.shape[1:2] != (1,):
            rows = levels.T if levels.ndim == 2 else levels.transpose(0, 2, 3, 1)
            flat = rows.reshape(len(rows), -1).astype(int)
            pairs = flat[:, : flat.shape[1] // 2 * 2].reshape(len(rows), -1, 2)
            assert 255 * np.maximum(pairs, 0).sum(-1).max() < 2**15, name
            assert 255 * np.minimum(pairs, 0).sum(-1).min() >= -(2**15), name


def test_every_layer_runs_on_integers(quantised: onnx.ModelProto, tmp_path: Path) -> None:
    operators = executed_operators(quantised, tmp_path)
    assert operators.count("QLinearConv") == 5
    assert {"QLinearAdd", "QLinearGlobalAveragePool", "QGemm", "Softmax"} <= set(operators)
    assert not {"Conv", "Gemm", "Clip", "Relu", "QuantizeLinear", "DequantizeLinear", "Cast"} & set(operators)


def test_an_images_answer_does_not_depend_on_its_batch(quantised: onnx.ModelProto) -> None:
    pixels, _ = draw_images(8, seed=5)
    alone = np.concatenate([answers(quantised, pixels[number : number + 1]) for number in range(8)])
    assert np.array_equal(answers(quantised, pixels), alone)


def test_a_plain_network_with_a_margin_and_dense_layers_is_quantised(tmp_path: Path) -> None:
    torch.manual_seed(1)
    spec = InputSpec(height=28, width=28, channels=1)
    network = PlainNet(widths=(8, 16), hidden=32, margin=2).build(spec, CLASSES)
    model = export_graph(ServedNetwork(network, temperature=1.0), spec)
    pixels = draw_images(64, seed=6)[0][..., :1].repeat(2, axis=1).repeat(2, axis=2)[:, :28, :28]
    quantised = quantize_graph(model, pixels[:32])
    assert np.abs(answers(model, pixels) - answers(quantised, pixels)).max() < 0.02
    operators = executed_operators(quantised, tmp_path)
    assert (operators.count("QLinearConv"), operators.count("QGemm")) == (2, 2)


def foreign_graph(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    """images → float (n, 3, SIDE, SIDE) `moved` → `nodes` → softmax of the means of `features` (n, 8, …)."""
    random = np.random.default_rng(0)
    values = {
        "mean": np.array([120, 110, 100], np.float32).reshape(1, 3, 1, 1),
        "w1": random.normal(0, 0.2, (8, 3, 3, 3)).astype(np.float32),
        "w2": random.normal(0, 0.3, (8, 8, 1, 1)).astype(np.float32),
        "deviation": np.array([60, 55, 50], np.float32).reshape(1, 3, 1, 1),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["floats"], ["moved"], perm=[0, 3, 1, 2]),
            *nodes,
            helper.make_node("GlobalAveragePool", ["features"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"]),
        ],
        "foreign",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_what_has_no_integer_kernel_stays_in_fp32_and_right() -> None:
    model = foreign_graph(
        helper.make_node("Sub", ["moved", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "deviation"], ["scaled"]),
        helper.make_node("Conv", ["scaled", "w1"], ["first"]),
        helper.make_node("Sigmoid", ["first"], ["gate"]),
        helper.make_node("Mul", ["first", "gate"], ["swish"]),
        helper.make_node("Conv", ["swish", "w2"], ["features"]),
    )
    pixels, _ = draw_images(64, seed=7)
    assert np.abs(answers(model, pixels) - answers(quantize_graph(model, pixels[:32]), pixels)).max() < 0.01


def test_a_layer_that_would_be_ruined_in_fp32_is_refused() -> None:
    pixels, _ = draw_images(8, seed=8)
    model = foreign_graph(helper.make_node("Conv", ["moved", "w1"], ["features"], auto_pad="SAME_UPPER"))
    with pytest.raises(TrainingError, match="cannot be quantised: keep the model in fp32"):
        quantize_graph(model, pixels)


def test_a_quantised_model_and_one_without_layers_are_refused(quantised: onnx.ModelProto) -> None:
    pixels, _ = draw_images(8, seed=9)
    with pytest.raises(TrainingError, match="quantised already"):
        quantize_graph(quantised, pixels)
    with pytest.raises(TrainingError, match="no convolution or dense layer"):
        quantize_graph(foreign_graph(helper.make_node("Concat", ["moved"] * 2 + ["moved"], ["features"], axis=1)), pixels)


def verdict_on(before: onnx.ModelProto, after: onnx.ModelProto, speed: SpeedRatio = FASTER) -> QuantizeVerdict:
    pixels, classes = draw_images(200, seed=10)
    return judge(answers(before, pixels), answers(after, pixels), classes, speed=speed, sizes=(4, 1))


def test_the_gate_keeps_what_is_right_and_fast_and_refuses_what_is_not(
    stripes: onnx.ModelProto, quantised: onnx.ModelProto
) -> None:
    ruined = onnx.ModelProto()
    ruined.CopyFrom(quantised)
    scales = next(one for one in ruined.graph.initializer if one.name.endswith("_scale"))
    scales.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scales) * np.float32(7), scales.name))
    assert verdict_on(stripes, quantised).kept
    slow, wrong = verdict_on(stripes, quantised, SLOWER), verdict_on(stripes, ruined)
    assert not slow.kept
    assert "not measurably faster" in str(slow)
    assert not wrong.kept
    assert "points, and 0.5 are allowed" in str(wrong)


def test_a_verdict_counts_pairs() -> None:
    before, after = np.eye(2, dtype=np.float32)[[0, 0, 0, 1]], np.eye(2, dtype=np.float32)[[0, 0, 1, 1]]
    verdict = judge(before, after, np.array([0, 0, 0, 1]), speed=FASTER, sizes=(4, 1), gate_points=30)
    assert (verdict.drop_points, verdict.agreement, verdict.kept) == (25, 0.75, True)
    assert verdict.drop_error == pytest.approx(100 * (0.25 * 0.75 / 4) ** 0.5)
    assert '"kept": true' in verdict.as_json()


def test_a_model_is_as_fast_as_itself(stripes_file: Path) -> None:
    assert 0.5 < compare_speed(stripes_file, stripes_file, draw_images(1, seed=11)[0][0], rounds=5).median < 2


def samples_of(n: int) -> Samples:
    pixels, classes = draw_images(n, seed=12)
    paths = tuple(Path(f"{number}.png") for number in range(n))
    return Samples(pixels, classes, paths, "0", (), sizes=((pixels.shape[2], pixels.shape[1]),) * n)


def test_only_a_kept_model_is_written_and_it_proves_itself(stripes_file: Path) -> None:
    out = stripes_file.with_name("int8.onnx")
    verdict = quantize_samples(stripes_file, out, draw_images(32, seed=2)[0], samples_of(100), "stripes", gate_points=1)
    assert out.exists() == verdict.kept  # this small, int8 need not be faster
    if verdict.kept:
        spec = Classifier.load(out).spec
        assert spec.figures[0].accuracy == verdict.accuracy_after
        assert "int8" in spec.provenance.note
        assert spec.reference is not None
        assert sum(spec.reference.histograms["brightness"].counts) == 100
        assert f"agreement {verdict.agreement:.2%} of 100 images" in spec.provenance.note
        page = out.with_suffix(".html").read_text(encoding="utf-8")
        assert all(text in page for _, text in verdict.rows())
    assert {path.name for path in stripes_file.parent.iterdir()} <= {"stripes.onnx", "int8.onnx", "int8.html"}


def test_a_refused_model_leaves_nothing_behind_and_what_was_there_untouched(stripes_file: Path) -> None:
    out = stripes_file.with_name("int8.onnx")
    out.write_bytes(b"before")
    assert not quantize_samples(stripes_file, out, draw_images(16, seed=2)[0], samples_of(20), "x", gate_points=-101).kept
    assert out.read_bytes() == b"before"
    assert {path.name for path in stripes_file.parent.iterdir()} == {"stripes.onnx", "int8.onnx"}


def test_rounding_with_the_inputs_in_view_beats_the_nearest_level() -> None:
    random = np.random.default_rng(0)
    mix = random.normal(size=(160, 160)) * np.linspace(0.02, 1, 160)[:, None]  # inputs that vary together
    inputs = random.normal(size=(1, 2000, 160)) @ mix
    weights = random.normal(size=(1, 8, 160))
    scales = choose_scales(weights, limit_pairs=True) * 8  # few levels, so that rounding matters
    rounded = round_weights(weights, scales, inputs.transpose(0, 2, 1) @ inputs, limit_pairs=True)
    nearest = np.rint(weights / scales[..., None])
    changes = [levels * scales[..., None] - weights for levels in (rounded, nearest)]
    errors = [np.square(inputs @ change.transpose(0, 2, 1)).mean() for change in changes]
    assert errors[0] < 0.5 * errors[1]


def test_a_range_holds_zero_exactly_and_rounding_twice_changes_nothing() -> None:
    values = np.random.default_rng(0).normal(3, 1, 10_000)
    found = choose_range(values)
    assert found.round(np.zeros(1))[0] == 0
    assert np.array_equal(found.round(found.round(values)), found.round(values))


def test_too_few_calibration_images_are_refused(stripes_file: Path) -> None:
    with pytest.raises(InputError, match="--images"):
        quantize_file(stripes_file, Path("x"), Path("y"), n_images=1)
