import hashlib
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from app.classifier import Classifier
from app.spec import ModelSpec
from tests.training.conftest import EPOCHS, ROOT
from training.__main__ import main
from training.files import unfinished_beside
from training.model_file import write_model


def command(digits: Path, out: Path, *more: str) -> list[str | Path]:
    options = ["--recipe", "digits", "--epochs", EPOCHS, "--threads", "1", *more]
    return [sys.executable, "-m", "training", "train", digits, "--out", out, *options]


def interrupt(arguments: list[str | Path], checkpoint: Path, number: signal.Signals) -> subprocess.CompletedProcess[str]:
    """Runs the command and sends the signal as soon as it has written a checkpoint."""
    before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else None
    with subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before:
            assert process.poll() is None, "it ended before it could be interrupted"
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    return subprocess.CompletedProcess(arguments, process.returncode, "", errors)


def graph_bytes(path: Path) -> bytes:
    return bytes(onnx.load(path).graph.SerializeToString(deterministic=True))


def test_a_training_that_was_killed_and_terminated_ends_with_the_same_weights(
    digits: Path, trained: Path, tmp_path: Path
) -> None:
    out, checkpoint = tmp_path / "digits.onnx", tmp_path / "digits.onnx.checkpoint"
    assert interrupt(command(digits, out), checkpoint, signal.SIGKILL).returncode == -signal.SIGKILL
    stopped = interrupt(command(digits, out), checkpoint, signal.SIGTERM)
    assert stopped.returncode == 130
    assert "the same command goes on" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]

    refused = subprocess.run(command(digits, out, "--seed", "1"), cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "other settings" in refused.stderr

    done = subprocess.run(command(digits, out), cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"epoch   1/{EPOCHS}" not in done.stderr
    assert f"epoch  {EPOCHS}/{EPOCHS}" in done.stderr
    assert graph_bytes(out) == graph_bytes(trained)
    assert [path.name for path in tmp_path.iterdir()] == ["digits.html", "digits.onnx"]


def test_the_file_says_what_it_is_and_where_it_comes_from(trained: Path, digits: Path) -> None:
    spec = Classifier.load(trained).spec
    assert (spec.name, spec.labels) == ("digits", tuple("0123456789"))
    assert [(figures.data, figures.n) for figures in spec.figures] == [("digits/validation", 10), ("digits/test", 50)]
    assert spec.provenance.n_training_images == 70
    assert (spec.provenance.seed, spec.provenance.recipe) == (0, f"digits, {EPOCHS} epochs")
    assert {"python", "torch", "onnxruntime"} <= set(spec.provenance.libraries)
    assert "agree on all 10 validation images" in spec.provenance.note
    assert spec.accept is not None
    assert spec.accept.chosen_on == "digits/validation"


def test_the_goldens_are_files_of_the_validation_images(trained: Path, digits: Path) -> None:
    goldens = Classifier.load(trained).spec.goldens
    encoded = {path.read_bytes() for path in digits.glob("train/*/*.png")}
    assert [golden.data in encoded for golden in goldens] == [True, True, True]
    assert {int(np.argmax(golden.probabilities)) for golden in goldens} <= set(range(10))


def test_nothing_but_the_model_file_is_left(trained: Path) -> None:
    assert sorted(path.name for path in trained.parent.iterdir()) == ["digits.html", "digits.onnx"]


def test_a_failure_leaves_the_old_file_and_no_half_written_one(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    out.write_bytes(b"the old one")
    model = onnx.load(trained)
    spec = ModelSpec.from_metadata({prop.key: prop.value for prop in model.metadata_props})
    golden = spec.goldens[0].model_copy(update={"probabilities": spec.goldens[0].probabilities[::-1]})
    with pytest.raises(Exception, match="golden image 1 is off"), unfinished_beside(out) as unfinished:
        write_model(model, spec.model_copy(update={"goldens": (golden,)}), unfinished, threads=1)
    assert out.read_bytes() == b"the old one"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_training_does_not_change_its_data(trained: Path, digits: Path) -> None:
    assert len(list(digits.glob("*/*/*"))) == 130
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(digits.glob("*/*/*.png")))).hexdigest()
    assert digest == "b475105ebf93792e9e905ecb8c78e1fdb4e10772c7268065d54018051034985c"


def test_leaks_are_told_and_a_report_that_cannot_be_written_costs_neither_model_nor_checkpoint(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "digits", tmp_path / "out" / "m.onnx"
    shutil.copytree(digits, data)
    shutil.copy(next(data.glob("train/3/*.png")), data / "test" / "3" / "leaked.png")
    out.with_suffix(".html").mkdir(parents=True)
    arguments = [str(one) for one in command(data, out)[3:]]
    assert main([*arguments, "--epochs", "1"]) == 1
    errors = capsys.readouterr().err
    assert "audit: 1 leak (error)\nwarning: some pictures are in two parts of the data" in errors
    assert errors.splitlines()[-1].startswith(f"error: {out} is whole and in its place, but its report is missing: ")
    first = Classifier.load(out).spec.figures
    out.with_suffix(".html").rmdir()
    assert main([*arguments, "--epochs", "1"]) == 0
    output = capsys.readouterr()
    assert "epoch " not in output.err  # it was trained already
    assert "noise        AUROC" in output.out
    assert Classifier.load(out).spec.figures == first
    assert "leaked.png" in out.with_suffix(".html").read_text(encoding="utf-8")
    assert sorted(path.name for path in out.parent.iterdir()) == ["m.html", "m.onnx"]
