"""Foreign classifiers: what the adopted file answers is what the foreign graph answers, or one clear sentence says why not."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from app.classifier import Classifier
from app.image import Pixels
from tests.models import png
from training.__main__ import main

Array = NDArray[Any]
SIDE, LABELS = 8, ("cat", "dog", "owl")
RANDOM = np.random.default_rng(0)
PIXELS: Pixels = RANDOM.integers(0, 256, (5, SIDE, SIDE, 3), np.uint8)
WEIGHTS = RANDOM.normal(0, 2, (3, 3)).astype(np.float32)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Refuse = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images and the labels, as everyone has them."""
    (tmp_path / "images").mkdir()
    for number in range(3):
        (tmp_path / "images" / f"{number}.png").write_bytes(png(PIXELS[number]))
    (tmp_path / "labels.txt").write_text("\n".join(LABELS) + "\n", encoding="utf-8")
    return tmp_path


@pytest.fixture
def refuse(folder: Path, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """What the command says when it refuses; it never leaves a file."""

    def run(*arguments: str, model: str = "model.onnx") -> str:
        assert main(command(folder, *arguments, model=model)) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.count("\n") == 1
        assert not list(folder.glob("*out.onnx*"))
        return output.err

    return run


def command(folder: Path, *arguments: str, model: str = "model.onnx") -> list[str]:
    given = {"--labels": "labels.txt", "--images": "images", "--out": "out.onnx"}
    paths = [part for option, name in given.items() for part in (option, str(folder / name))]
    return ["adopt", str(folder / model), *paths, *arguments]


def adopt(folder: Path, *arguments: str) -> Classifier:
    assert main(command(folder, *arguments)) == 0
    onnx.checker.check_model(onnx.load(folder / "out.onnx"), full_check=True)
    return Classifier.load(folder / "out.onnx")


def write(
    path: Path,
    nodes: Sequence[NodeProto],
    shape: Sequence[int | str | None],
    *,
    dtype: int = TensorProto.FLOAT,
    output_type: int = TensorProto.FLOAT,
    output_shape: Sequence[int | str | None] = ("n", 3),
    constants: dict[str, Array] | None = None,
    opset: int = 18,
) -> onnx.ModelProto:
    """Writes nodes from `x` to `y`; the constant `w` is there for all."""
    weights = {"w": WEIGHTS} | (constants or {})
    graph = helper.make_graph(
        list(nodes),
        "foreign",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", output_type, output_shape)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9, producer_name="by hand")
    onnx.save_model(model, path)
    return model


def colour_nodes(axes: tuple[int, int], *last: NodeProto, source: str = "x") -> list[NodeProto]:
    """The mean of each channel times `w`; the last of the nodes given reads `logits`, else that is `y`."""
    return [
        helper.make_node("ReduceMean", [source], ["means"], axes=list(axes), keepdims=0),
        helper.make_node("MatMul", ["means", "w"], ["logits" if last else "y"]),
        *last,
    ]


SOFTMAX = helper.make_node("Softmax", ["logits"], ["y"], axis=1)


def write_colours(path: Path, layout: str = "nchw", *, softmax: bool = False, **options: Any) -> onnx.ModelProto:
    shape = ["n", 3, SIDE, SIDE] if layout == "nchw" else ["n", SIDE, SIDE, 3]
    nodes = colour_nodes((2, 3) if layout == "nchw" else (1, 2), *[SOFTMAX] * softmax)
    return write(path, nodes, options.pop("shape", shape), **{"opset": 13} | options)


def expect(numbers: Array) -> Array:
    """The colour model's probabilities of `numbers` (batch, height, width, channels), as the network takes them."""
    exponents = np.exp(numbers.astype(np.float64).mean(axis=(1, 2)) @ WEIGHTS)
    result: Array = exponents / exponents.sum(axis=1, keepdims=True)
    return result


def same(classifier: Classifier, expected: Array) -> None:
    np.testing.assert_allclose(classifier(PIXELS), expected, atol=1e-5)


def test_a_torch_network_answers_as_in_torch(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3)).eval()
    example = (torch.zeros(2, 3, SIDE, SIDE),)
    torch.onnx.export(network, example, folder / "model.onnx", dynamo=True, dynamic_shapes=({0: "batch"},), verbose=False)
    capsys.readouterr()
    classifier = adopt(folder, "--mean", *map(str, MEAN), "--std", *map(str, STD))
    with torch.inference_mode():
        normal = (torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[
            :, None, None
        ]
        expected = network(normal).softmax(1).numpy()
    same(classifier, expected)
    assert capsys.readouterr().out.splitlines() == [
        "input   8 × 8 × 3, nchw: Transpose, Cast, Mul, Add",
        "output  Softmax",
        *(f"{number}.png is {LABELS[row.argmax()]} ({row.max():.1%})" for number, row in enumerate(expected[:3])),
        f"wrote {folder / 'out.onnx'}",
    ]


def test_a_torch_network_exported_for_one_image_answers_any_number(folder: Path) -> None:
    """As `torch.onnx.export` writes it when nobody thinks of batches."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3)).eval()
    torch.onnx.export(network, (torch.zeros(1, 3, SIDE, SIDE),), folder / "model.onnx", dynamo=True, verbose=False)
    assert b"Reshape" in (folder / "model.onnx").read_bytes()
    with torch.inference_mode():
        expected = network(torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255).softmax(1).numpy()
    same(adopt(folder, "--input-range", "0", "1"), expected)


def test_probabilities_stay_as_they_are_and_the_graph_tells_what_it_can(folder: Path) -> None:
    write_colours(folder / "model.onnx", "nhwc", softmax=True)
    classifier = adopt(folder, "--input-range", "0", "1", "--name", "colours", "--version", "7")
    same(classifier, expect(PIXELS / 255))
    spec = classifier.spec
    assert (spec.name, spec.version, spec.labels, spec.input.shape) == ("colours", "7", LABELS, (SIDE, SIDE, 3))
    assert len(spec.goldens) == 3
    assert "adopted from model.onnx of by hand , sha256 " in spec.provenance.recipe
    assert [opset.version for opset in onnx.load(folder / "out.onnx").opset_import] == [13]


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        (["--input-range", "0", "255", "--std", "100"], PIXELS / 100),
        (["--input-range", "-1", "1"], PIXELS / 127.5 - 1),
        (
            ["--mean", "103.9", "116.8", "123.7", "--std", "58", "--color", "bgr"],
            (PIXELS[..., ::-1] - [103.9, 116.8, 123.7]) / 58,
        ),
        (["--std", "255"], PIXELS / 255),
        (["--mean", "0.5"], PIXELS / 255 - 0.5),
    ],
)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_pixels_become_the_numbers_it_was_trained_with(folder: Path, layout: str, arguments: list[str], numbers: Array) -> None:
    write_colours(folder / "model.onnx", layout)
    same(adopt(folder, *arguments), expect(numbers))


def test_a_graph_that_takes_uint8_gets_the_pixels(folder: Path) -> None:
    cast = helper.make_node("Cast", ["x"], ["floats"], to=TensorProto.FLOAT)
    divide = helper.make_node("Div", ["floats", "hundred"], ["scaled"])
    nodes = [cast, divide, *colour_nodes((1, 2), source="scaled")]
    hundred = {"hundred": np.array(100, np.float32)}
    write(folder / "model.onnx", nodes, ["n", SIDE, SIDE, 3], dtype=TensorProto.UINT8, constants=hundred, opset=13)
    same(adopt(folder), expect(PIXELS / 100))


def test_a_graph_in_16_bits_answers_in_32(folder: Path) -> None:
    half = {"w": WEIGHTS.astype(np.float16)}
    write_colours(folder / "model.onnx", dtype=TensorProto.FLOAT16, output_type=TensorProto.FLOAT16, constants=half)
    classifier = adopt(folder, "--input-range", "0", "1")
    np.testing.assert_allclose(classifier(PIXELS), expect(PIXELS / 255), atol=2e-3)


@pytest.mark.parametrize("opset", [8, 14])
@pytest.mark.parametrize("rest", [-1, 3])
def test_a_fixed_batch_is_freed_where_the_graph_allows(folder: Path, rest: int, opset: int) -> None:
    """Also in old files, where weights are inputs too, and where a zero in a shape is a zero."""
    zeros: dict[str, Any] = {"allowzero": 1} if opset == 14 else {}
    reshape = helper.make_node("Reshape", ["logits", "shape"], ["y"], **zeros)
    shape = {"shape": np.array([1, rest], np.int64)}
    nodes = colour_nodes((2, 3), reshape)
    model = write(folder / "model.onnx", nodes, [1, 3, SIDE, SIDE], output_shape=[1, 3], constants=shape, opset=opset)
    model.graph.value_info.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3]))
    if opset == 8:
        model.ir_version = 3
        for one in model.graph.initializer:
            model.graph.input.append(helper.make_tensor_value_info(one.name, one.data_type, one.dims))
    onnx.save_model(model, folder / "model.onnx")
    same(adopt(folder, "--input-range", "0", "1"), expect(PIXELS / 255))
    assert not onnx.load(folder / "out.onnx").graph.value_info


@pytest.mark.parametrize("value", [{"value": numpy_helper.from_array(np.array([1, -1]))}, {"value_ints": [1, -1]}])
def test_shapes_in_nodes_are_freed_or_refused(folder: Path, refuse: Refuse, value: dict[str, Any]) -> None:
    constant, reshape = (
        helper.make_node("Constant", [], ["shape"], **value),
        helper.make_node("Reshape", ["logits", "shape"], ["y"]),
    )
    write(folder / "model.onnx", [constant, *colour_nodes((2, 3), reshape)], [1, 3, SIDE, SIDE], output_shape=[1, 3], opset=13)
    if "value" in value:
        same(adopt(folder, "--input-range", "0", "1"), expect(PIXELS / 255))
    else:
        assert "export it with a free batch" in refuse("--input-range", "0", "1")


def test_of_several_outputs_the_one_with_a_float_for_each_label_is_taken(folder: Path) -> None:
    whole = helper.make_node("Cast", ["y"], ["whole"], to=TensorProto.INT64)
    model = write(folder / "model.onnx", [*colour_nodes((2, 3)), whole], ["n", 3, SIDE, SIDE], opset=13)
    model.graph.output.insert(0, helper.make_tensor_value_info("whole", TensorProto.INT64, ["n", 3]))
    onnx.save_model(model, folder / "model.onnx")
    same(adopt(folder, "--input-range", "0", "1"), expect(PIXELS / 255))


def test_a_fixed_batch_in_the_heart_of_the_graph_is_refused(folder: Path, refuse: Refuse) -> None:
    expand = helper.make_node("Expand", ["token", "one"], ["tokens"])
    join = helper.make_node("Concat", ["logits", "tokens"], ["joined"], axis=1)
    cut = helper.make_node("Slice", ["joined", "zero", "three", "axis"], ["y"])
    constants: dict[str, Array] = {
        "token": np.zeros((1, 1), np.float32),
        **{name: np.array(value, np.int64) for name, value in {"one": [1, 1], "zero": [0], "three": [3], "axis": [1]}.items()},
    }
    nodes = colour_nodes((2, 3), expand, join, cut)
    write(folder / "model.onnx", nodes, [1, 3, SIDE, SIDE], output_shape=[1, 3], constants=constants, opset=13)
    assert "export it with a free batch" in refuse("--input-range", "0", "1")


def test_a_graph_that_mixes_the_images_of_a_batch_is_refused(folder: Path, refuse: Refuse) -> None:
    """As batch norm does that was exported in training mode."""
    nodes = [
        helper.make_node("ReduceMean", ["logits"], ["over_batch"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["logits", "over_batch"], ["y"]),
    ]
    write(folder / "model.onnx", colour_nodes((2, 3), *nodes), ["n", 3, SIDE, SIDE], opset=13)
    assert "mixes the images of a batch" in refuse("--input-range", "0", "1")


def test_weights_in_a_file_beside_it_are_taken_in(folder: Path, refuse: Refuse) -> None:
    """As `torch.onnx.export` writes them by default."""
    model = write_colours(folder / "model.onnx")
    onnx.save_model(model, folder / "model.onnx", save_as_external_data=True, location="model.data", size_threshold=0)
    (folder / "model.data").rename(folder / "moved.data")
    assert "model.onnx cannot be read as a whole ONNX model" in refuse("--input-range", "0", "1")
    (folder / "moved.data").rename(folder / "model.data")
    same(adopt(folder, "--input-range", "0", "1"), expect(PIXELS / 255))


def test_weights_are_never_read_from_elsewhere(folder: Path, refuse: Refuse) -> None:
    model = write_colours(folder / "model.onnx")
    onnx.save_model(model, folder / "model.onnx", save_as_external_data=True, location="model.data", size_threshold=0)
    outside = folder / "inside"
    outside.mkdir()
    stored = onnx.load(folder / "model.onnx", load_external_data=False)
    stored.graph.initializer[0].external_data[0].value = "../model.data"
    onnx.save_model(stored, outside / "model.onnx")
    assert "cannot be read as a whole ONNX model" in refuse("--input-range", "0", "1", model="inside/model.onnx")


def test_sizes_and_layouts_that_the_graph_leaves_open_are_given(folder: Path, refuse: Refuse) -> None:
    write_colours(folder / "model.onnx", shape=["n", "c", "h", "w"])
    given = ["--input-range", "0", "1"]
    assert "add --layout nchw or nhwc" in refuse(*given)
    assert "give --size as HxW in pixels that fit the model's any x any" in refuse(*given, "--layout", "nchw")
    size = ["--layout", "nchw", "--size", "8"]
    assert "any number of channels: give --color" in refuse(*given, *size)
    same(adopt(folder, *given, *size, "--color", "rgb"), expect(PIXELS / 255))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "takes floats, so give, as it was trained, --input-range (0 1, -1 1 or 0 255)"),
        (["--mean", "1", "2"], "--mean and --std (1 or 3 numbers each, std above 0)"),
        (["--std", "0"], "std above 0"),
        (["--input-range", "0", "1", "--size", "9x8"], "--size as HxW in pixels that fit the model's 8 x 8"),
        (["--input-range", "0", "1", "--size", "big"], "--size as HxW"),
        (["--input-range", "0", "1", "--color", "grey"], "has 3 channels: give --color grey for 1"),
        (["--input-range", "0", "1", "--crop", "2"], "--crop from above 0 to 1"),
        (["--input-range", "0", "1", "--resize", "ink"], "--resize ink is for grey"),
        (["--input-range", "0", "1", "--output", "probabilities"], "not probabilities"),
        (["--input-range", "0", "1", "--name", "No Name"], "cannot be a model's name"),
        (["--input-range", "0", "1", "--labels", "{}/none.txt"], "none.txt cannot be read as a text"),
        (["--input-range", "0", "1", "--labels", "{}/images/0.png"], "0.png cannot be read as a text"),
        (
            ["--input-range", "0", "1", "--labels", "{}/four.txt"],
            "with 4 labels, one output must give as many numbers, not [3]",
        ),
        (["--input-range", "0", "1", "--labels", "{}/twice.txt"], "each with another label"),
        (["--input-range", "0", "1", "--images", "{}/none"], "none: none of the 0 files is an image"),
        (["--input-range", "0", "1", "--images", "{}/labels.txt"], "labels.txt: none of the 1 files is an image"),
        (["--input-range", "0", "1", "--out", "{}/images"], "is a folder: name a file to write"),
    ],
)
def test_options_that_cannot_be_are_refused(folder: Path, refuse: Refuse, arguments: list[str], sentence: str) -> None:
    write_colours(folder / "model.onnx")
    (folder / "four.txt").write_text("a\nb\nc\nd\n", encoding="utf-8")
    (folder / "twice.txt").write_text("a\nb\na\n", encoding="utf-8")
    assert sentence in refuse(*(argument.format(folder) for argument in arguments))


def test_graphs_that_are_no_image_classifiers_are_refused(folder: Path, refuse: Refuse) -> None:
    path, free = folder / "model.onnx", ("n", 3, SIDE, SIDE)
    assert "cannot be read as a whole ONNX model" in refuse(model="none.onnx")
    path.write_bytes(b"a Keras file, perhaps")
    assert "cannot be read as a whole ONNX model" in refuse()
    path.write_bytes(b"")
    assert "one input, of four dimensions and of floats or uint8, but it has none" in refuse()
    write_colours(path, shape=["n", 3, SIDE])
    assert "but it has x" in refuse()
    write_colours(path, dtype=TensorProto.INT64)
    assert "of floats or uint8, but it has x" in refuse()
    write_colours(path, shape=["n", 5, SIDE, SIDE])
    assert "add --layout" in refuse()
    assert "has 5 channels" in refuse("--layout", "nchw")
    write(path, colour_nodes((2, 3), helper.make_node("Sigmoid", ["logits"], ["y"])), free, opset=13)
    assert "a yes or no of its own for each class is not served" in refuse("--input-range", "0", "1")
    write(path, colour_nodes((2, 3), helper.make_node("Log", ["logits"], ["y"])), free, opset=13)
    assert "nan" in refuse("--input-range", "0", "1")
    write(path, colour_nodes((2, 3), helper.make_node("Wonder", ["logits"], ["y"], domain="own")), free, opset=13)
    assert "onnxruntime cannot run it: " in refuse("--input-range", "0", "1")
    write_colours(path, "nhwc", softmax=True)
    assert "not logits" in refuse("--input-range", "0", "1", "--output", "logits")
    cast = helper.make_node("Cast", ["x"], ["floats"], to=TensorProto.FLOAT)
    write(path, [cast, *colour_nodes((2, 3), source="floats")], free, dtype=TensorProto.UINT8, opset=13)
    assert "takes uint8, so leave out --input-range" in refuse("--mean", "0.5")


def test_a_name_of_ours_in_a_foreign_graph_is_no_trouble(folder: Path) -> None:
    """Even inside a branch, which reads weights from outside."""
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["probabilities", "w"], ["product"])],
        "branch",
        [],
        [helper.make_tensor_value_info("product", TensorProto.FLOAT, ["n", 3])],
    )
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["probabilities"], axes=[2, 3], keepdims=0),
        helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch),
    ]
    model = write(folder / "model.onnx", nodes, ["n", 3, SIDE, SIDE], constants={"yes": np.array(True)}, opset=13)
    model.graph.input[0].name = "images"
    onnx.save_model(model, folder / "model.onnx")
    same(adopt(folder, "--input-range", "0", "1"), expect(PIXELS / 255))


def test_one_image_is_enough_and_answers_of_four_dimensions_are_flattened(folder: Path) -> None:
    """As SqueezeNet answers."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["means"]),
        helper.make_node("Conv", ["means", "kernel"], ["y"]),
    ]
    kernel = {"kernel": WEIGHTS.T[:, :, None, None].copy()}
    write(folder / "model.onnx", nodes, ["n", 3, SIDE, SIDE], output_shape=["n", 3, 1, 1], constants=kernel)
    classifier = adopt(folder, "--input-range", "0", "1", "--images", str(folder / "images" / "1.png"))
    same(classifier, expect(PIXELS / 255))
    assert len(classifier.spec.goldens) == 1


def test_the_file_tells_nothing_of_the_machine_that_made_it(folder: Path) -> None:
    model = write_colours(folder / "model.onnx")
    model.graph.node[0].doc_string = "/home/somebody/train.py"
    onnx.save_model(model, folder / "model.onnx")
    adopt(folder, "--input-range", "0", "1")
    assert b"/home/somebody" not in (folder / "out.onnx").read_bytes()
    session = ort.InferenceSession(folder / "out.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", SIDE, SIDE, 3]
