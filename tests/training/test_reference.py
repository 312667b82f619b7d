import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from app.classifier import Classifier
from app.spec import FEATURES, ModelSpec, Reference
from tests.training.conftest import ROOT
from tests.training.test_main import refusal
from training.__main__ import main
from training.data_set import read_samples
from training.evaluate import classify_all
from training.pixels import Samples
from training.reference import describe


def reference_of(path: Path) -> Reference | None:
    return Classifier.load(path).spec.reference


def test_training_writes_what_the_images_of_validation_are_like(trained: Path, digits: Path) -> None:
    classifier = Classifier.load(trained)
    validation = read_samples(digits, "validation", classifier.spec)
    reference = classifier.spec.reference
    assert reference == describe("digits/validation", validation, classify_all(classifier, validation.pixels))
    assert {sum(one.counts) for one in reference.histograms.values()} == {len(validation)}


def test_the_command_adds_it_to_a_file_whose_proof_and_answers_stay(trained: Path, digits: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(trained, tmp_path / "model.onnx"))
    model = onnx.load(path)
    spec = Classifier.load(path).spec.model_copy(update={"reference": None})
    onnx.helper.set_model_props(model, spec.to_metadata())
    onnx.save(model, path)
    assert reference_of(path) is None
    assert main(["reference", str(path), str(digits), "--split", "train"]) == 0
    after = Classifier.load(path)
    assert after.spec.reference is not None
    assert after.spec.reference.data == "digits/train"
    assert after.spec.model_copy(update={"reference": None}) == spec
    assert onnx.load(path).graph == model.graph
    assert [one.name for one in tmp_path.iterdir()] == ["model.onnx"]


def test_data_of_other_classes_changes_nothing(trained: Path, pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = trained.read_bytes()
    assert "classes that the model does not know: cat, dog" in refusal(capsys, "reference", trained, pets, "--split", "all")
    assert trained.read_bytes() == before


def samples_of(n: int, random: np.random.Generator) -> Samples:
    pixels = random.integers(0, 256, (n, 4, 4, 1), np.uint8)
    return Samples(pixels, np.zeros(n, np.int64), (Path("x"),) * n, "0", (), sizes=((640, 480),) * n)


@pytest.mark.parametrize(("n", "classes", "bins"), [(1000, 3, 11), (1000, 1000, 11), (20, 3, 5)])
def test_bins_hold_about_equally_many_images_and_what_was_never_seen_has_its_own(n: int, classes: int, bins: int) -> None:
    random = np.random.default_rng(0)
    answers = random.dirichlet(np.ones(classes), n).astype(np.float32)
    histograms = describe("x", samples_of(n, random), answers).histograms
    assert list(histograms) == list(FEATURES)
    brightness = histograms["brightness"].counts
    assert len(brightness) == bins + 1
    assert (brightness[0], brightness[-1]) == (0, 0)
    assert max(brightness) - min(brightness[1:-1]) <= max(2, n // 100)
    assert histograms["aspect"].counts == (0, n, 0)
    assert len(histograms["predicted_class"].counts) == (classes if classes <= 20 else 22)


@pytest.mark.parametrize("model", ["digits", "imagenet"])
def test_a_bundled_model_has_one(model: str) -> None:
    metadata = {one.key: one.value for one in onnx.load(ROOT / "models" / f"{model}.onnx").metadata_props}
    reference = ModelSpec.from_metadata(metadata).reference
    assert reference is not None
    assert sum(reference.histograms["size"].counts) > 400
