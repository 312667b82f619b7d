import re
import shutil
from pathlib import Path

import pytest

from training.__main__ import main
from training.networks import PretrainedNet
from training.recipe_names import RECIPE_NAMES
from training.recipes import Changes, find_recipe


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What the command says on stderr when it refuses."""
    assert main([str(argument) for argument in arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "Traceback" not in output.err
    return output.err.splitlines()[-1]


def train(data: Path, out: Path, *more: str) -> tuple[str | Path, ...]:
    return "train", data, "--recipe", "digits", "--out", out, *more


def test_help_says_what_goes_in_and_what_comes_out(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["train"], ["evaluate"]):
        with pytest.raises(SystemExit) as exited:
            main([*arguments, "--help"])
        assert exited.value.code == 0
    text = re.sub(r"-\n +", "-", capsys.readouterr().out)  # lines may break at a hyphen
    for word in ("DATA/cat/1.jpg", "example: python -m training train", "example: python -m training evaluate", *RECIPE_NAMES):
        assert word in text


def test_every_recipe_that_help_names_exists() -> None:
    assert [find_recipe(name).name for name in RECIPE_NAMES] == list(RECIPE_NAMES)


def test_a_recipe_is_changed_as_asked() -> None:
    photos = find_recipe("photos", Changes(size=128, resize="stretch", mirrored=True))
    assert (photos.input.height, photos.input.width, photos.input.resize) == (128, 128, "stretch")
    assert isinstance(photos.network, PretrainedNet)
    assert photos.network.mirrored


def test_data_that_cannot_be_used_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, empty, file = tmp_path / "model.onnx", tmp_path / "empty", tmp_path / "file"
    empty.mkdir()
    file.touch()
    assert "does not exist" in refusal(capsys, *train(tmp_path / "gone", out))
    assert "is not a folder" in refusal(capsys, *train(file, out))
    assert "has no class folders with images" in refusal(capsys, *train(empty, out))
    assert not out.exists()


def test_files_that_are_no_images_are_named_and_no_images_at_all_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for number in range(5):
            (tmp_path / label / f"{number}.txt").write_text("no image")
    assert "none of the 10 files is an image that can be read" in refusal(capsys, *train(tmp_path, tmp_path / "m.onnx"))


def test_a_class_without_a_readable_image_is_refused(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(digits / "train" / "0", tmp_path / "0")
    (tmp_path / "1").mkdir()
    for number in range(5):
        (tmp_path / "1" / f"{number}.png").write_text("no image")
    assert main([*map(str, train(tmp_path, tmp_path / "out" / "m.onnx"))]) == 2
    errors = capsys.readouterr().err
    assert "class '1' has no training image that can be read: 0.png: the bytes are not an image" in errors


def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert "cannot be written to" in refusal(capsys, *train(digits, tmp_path / "file" / "model.onnx"))
    assert "is a folder: name a file to write" in refusal(capsys, *train(digits, tmp_path, "--name", "digits"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--epochs", "0"], "--epochs must be at least 1, not 0"),
        (["--seed", "-1"], "--seed must be at least 0, not -1"),
        (["--threads", "0"], "--threads must be at least 1, not 0"),
        (["--name", "My Model"], "'My Model' cannot be a model's name"),
        (["--version", "x" * 65], "--version must have 1 to 64 characters"),
        (["--recipe", "photos", "--network", "resnet"], "timm has no network 'resnet': did you mean"),
        (["--network", "resnet18"], "resnet18 takes RGB images"),
        (["--network", "resnt18"], "timm has no network 'resnt18': did you mean resnet18"),
        (["--network", "residual", "--width", "7"], "--width of residual must be at least 8, not 7"),
        (["--network", "residual", "--depth", "9"], "--depth of residual must be one of 8, 14, 20, 26, 32, …, not 9"),
        (["--network", "residual", "--weights", "pip"], "--weights is for timm's networks"),
        (["--mirrored"], "--mirrored is for timm's networks, not for seed"),
        (["--depth", "9"], "the input is too small for 9 stages"),
        (["--size", "0"], "--size must be at least 1, not 0"),
        (["--patience", "0"], "--patience must be at least 1, not 0"),
        (["--recipe", "cats"], "there is no recipe 'cats': take one of photos, residual, digits"),
    ],
)
def test_options_out_of_range_are_refused(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    assert sentence in refusal(capsys, *train(digits, tmp_path / "model.onnx", *options))


def test_a_model_that_cannot_be_used_is_refused(
    digits: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(trained.read_bytes()[:1000])
    assert "does not exist" in refusal(capsys, "evaluate", tmp_path / "gone.onnx", digits)
    assert "onnxruntime cannot load it" in refusal(capsys, "evaluate", broken, digits)


def test_classes_that_the_model_does_not_know_are_refused(
    digits: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(digits / "test" / "0", tmp_path / "zero")
    sentence = refusal(capsys, "evaluate", trained, tmp_path, "--split", "all")
    assert "has classes that the model does not know: zero" in sentence


def test_a_split_that_the_folder_does_not_have_is_refused(
    digits: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(digits / "train", tmp_path / "train")
    assert "has no test images" in refusal(capsys, "evaluate", trained, tmp_path)
