import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from app.classifier import Classifier
from training.__main__ import main
from training.run_report import Epoch
from training.track import track_tensorboard

FIRST, SECOND = Epoch(1, 2.3, 2.2, 0.25, 0.01), Epoch(2, 1.5, 1.25, 0.5, 0.005)


def read(folder: Path) -> dict[str, list[float]]:
    """The steps and then the values of each name in a folder of event files."""
    events = EventAccumulator(str(folder)).Reload()
    scalars = {name: events.Scalars(name) for name in events.Tags()["scalars"]}
    return {name: [*(one.step for one in found), *(one.value for one in found)] for name, found in scalars.items()}


def test_an_interrupted_training_is_in_tensorboard_once(tmp_path: Path) -> None:
    with track_tensorboard(tmp_path) as tracker:
        tracker.epochs([FIRST])
    with track_tensorboard(tmp_path) as tracker:
        tracker.epochs([FIRST])
        tracker.epochs([SECOND])
    figures = read(tmp_path)
    assert set(figures) == {"train_loss", "validation_loss", "accuracy", "learning_rate"}
    assert figures["validation_loss"] == pytest.approx([1, 2, 2.2, 1.25])
    assert figures["learning_rate"] == pytest.approx([1, 2, 0.01, 0.005])


def test_the_command_writes_every_epoch_and_the_figures_of_the_file(digits: Path, tmp_path: Path) -> None:
    out, events = tmp_path / "digits.onnx", tmp_path / "events"
    options = ["--recipe", "digits", "--epochs", "2", "--threads", str(torch.get_num_threads())]
    assert main(["train", str(digits), *options, "--out", str(out), "--tensorboard", str(events)]) == 0
    figures = read(events)
    assert figures["train_loss"][:2] == figures["accuracy"][:2] == [1, 2]
    for one in Classifier.load(out).spec.figures:
        part = one.data.rpartition("/")[2]
        assert figures[f"{part}/accuracy"] == pytest.approx([2, one.accuracy])
        assert figures[f"{part}/log_loss"] == pytest.approx([2, one.log_loss])


def test_without_mlflow_a_sentence_says_what_to_install(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)  # where it happens to be installed
    assert main(["train", str(digits), "--recipe", "digits", "--out", str(tmp_path / "model.onnx"), "--mlflow"]) == 2
    assert capsys.readouterr().err == "error: --mlflow needs the package mlflow: pip install mlflow\n"
    assert list(tmp_path.iterdir()) == []
