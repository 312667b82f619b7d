"""The model files that the repository carries answer pictures that the repository carries."""

import pytest

from app.classifier import Classifier, top_k
from app.image import decode, fit
from tests.service import ROOT

MODELS = ROOT / "models"


@pytest.mark.parametrize(
    ("model", "picture", "label"),
    [
        ("digits", "seven.png", "7"),
        ("digits", "seven-on-paper.jpg", "7"),
        ("imagenet", "clock.jpg", "analog clock"),
        ("imagenet", "crossword.jpg", "crossword puzzle"),
    ],
)
def test_a_bundled_model_knows_what_is_in_the_picture(model: str, picture: str, label: str) -> None:
    classifier = Classifier.load(MODELS / f"{model}.onnx", device="cpu")
    spec = classifier.spec
    pixels = fit(decode((ROOT / "docs" / "images" / picture).read_bytes(), spec.input), spec.input)
    [[(best, probability)]] = top_k(classifier(pixels[None]), 1)
    assert spec.labels[best] == label
    assert spec.accept is not None
    assert probability >= spec.accept.threshold


@pytest.mark.parametrize(("model", "max_kilobytes"), [("digits", 600), ("imagenet", 20_000)])
def test_a_bundled_model_is_small_and_says_how_good_it_is_and_where_it_comes_from(model: str, max_kilobytes: int) -> None:
    path = MODELS / f"{model}.onnx"
    spec = Classifier.load(path, device="cpu").spec
    assert path.stat().st_size <= max_kilobytes * 1000
    assert all(figures.n > 400 and figures.accuracy > 0.85 for figures in spec.figures)
    assert not spec.provenance.git_commit.endswith(("-dirty", "unknown"))
