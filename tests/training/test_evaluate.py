import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from app.classifier import Classifier
from app.image import decode, fit
from tests.training.conftest import ROOT
from training.__main__ import main
from training.data_set import read_samples
from training.evaluate import classify_all, evaluate_file
from training.folder import Part

WITHOUT_TORCH = """
import sys
from training.__main__ import main
code = main(sys.argv[1:])
assert not {"torch", "onnx", "rich", "jinja2"} & set(sys.modules), "it imported what serving does not have"
sys.exit(code)
"""


def test_evaluate_needs_nothing_that_serving_does_not_have(trained: Path, digits: Path) -> None:
    arguments = [sys.executable, "-c", WITHOUT_TORCH, "evaluate", str(trained), str(digits), "--json", "-"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["n"] == 50


def test_the_figures_are_those_of_the_file_asked_image_by_image(trained: Path, digits: Path) -> None:
    classifier = Classifier.load(trained)
    spec, right = classifier.spec, 0
    for path in digits.glob("test/*/*.png"):
        pixels = fit(decode(path.read_bytes(), spec.input), spec.input)
        right += spec.labels[int(np.argmax(classifier(pixels[np.newaxis])))] == path.parent.name
    evaluation = evaluate_file(trained, digits, "test")
    assert evaluation.scores.n_correct == right


def test_the_figures_in_the_file_are_those_that_evaluate_finds(trained: Path, digits: Path) -> None:
    stored = Classifier.load(trained).spec.figures
    parts: tuple[Part, ...] = ("validation", "test")
    for figures, part in zip(stored, parts, strict=True):
        found = evaluate_file(trained, digits, part).as_figures()
        assert found.model_dump(exclude={"ece", "log_loss"}) == figures.model_dump(exclude={"ece", "log_loss"})
        assert (found.ece, found.log_loss) == pytest.approx((figures.ece, figures.log_loss), abs=1e-5)


def test_some_of_the_classes_are_enough_to_measure_on(trained: Path, digits: Path, tmp_path: Path) -> None:
    for label in "37":
        shutil.copytree(digits / "test" / label, tmp_path / label)
    evaluation = evaluate_file(trained, tmp_path, "all")
    assert evaluation.scores.n == 10
    assert [of_class.n for of_class in evaluation.scores.classes] == [0, 0, 0, 5, 0, 0, 0, 5, 0, 0]


def test_the_table_names_totals_classes_and_mistakes(trained: Path, digits: Path) -> None:
    text = str(evaluate_file(trained, digits, "test"))
    for word in ("digits/test", "accuracy", "95 % interval", "macro-F1", "ECE", "log loss", "precision", "taken for"):
        assert word in text


def test_json_goes_to_a_file_beside_the_table(
    trained: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(trained), str(digits), "--json", str(tmp_path / "figures.json")]) == 0
    content = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert np.sum(content["confusion"]) == content["n"] == 50
    assert len(content["classes"]) == len(content["labels"]) == 10
    assert "accuracy" in capsys.readouterr().out


def test_noise_and_images_of_other_things_are_measured_by_their_top_probability(
    trained: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    arguments = [str(trained), str(digits), "--other", str(digits / "train"), "--json", str(path)]
    assert main(["evaluate", *arguments]) == 0
    content = json.loads(path.read_text(encoding="utf-8"))
    noise, other = content["out_of_distribution"]
    assert (noise["data"], noise["n"], other["data"], other["n"]) == ("noise", 128, "train", 80)
    classifier = Classifier.load(trained)
    rule = classifier.spec.accept
    assert rule is not None
    known, strange = (
        classify_all(classifier, read_samples(digits, part, classifier.spec).pixels).max(axis=1) for part in ("test", "train")
    )
    assert other["auroc"] == pytest.approx(np.mean(known[:, None] > strange) + np.mean(known[:, None] == strange) / 2)
    assert other["accepted"] == pytest.approx(np.mean(strange >= rule.threshold))
    text = capsys.readouterr().out
    assert f"train        AUROC {other['auroc']:.4f}, {other['accepted']:.2%} of 80 accepted" in text
    assert f"ECE {content['ece_before_calibration']:.4f} before, {content['ece']:.4f} after" in text
