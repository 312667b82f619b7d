"""A classifier on pretrained features, with real weights and pictures drawn here."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from app.classifier import Classifier
from training.__main__ import main
from training.backbones import Backbone, load_backbone
from training.batches import Batches, compute_logits
from training.head import fit_head
from training.memory import keep_freed_memory

SIDE = 224


def draw(kind: str, number: int) -> Image.Image:
    """A disc or stripes, in colours and places of its own."""
    random = np.random.default_rng([number, kind == "disc"])
    colours = [tuple(map(int, random.integers(0, 256, 3))) for _ in range(2)]
    image = Image.new("RGB", (SIDE, SIDE), colours[0])
    pencil = ImageDraw.Draw(image)
    if kind == "disc":
        x, y, radius = random.integers(60, 160, 3) // np.array([1, 1, 2])
        pencil.ellipse((int(x - radius), int(y - radius), int(x + radius), int(y + radius)), fill=colours[1])
    else:
        for start in range(int(random.integers(0, 20)), SIDE, int(random.integers(20, 40))):
            pencil.rectangle((start, 0, start + 9, SIDE), fill=colours[1])
    return image


def batches(first: int, count: int) -> Batches:
    """`count` pictures of each kind."""
    pictures = [draw(kind, number) for kind in ("disc", "stripes") for number in range(first, first + count)]
    images = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2).contiguous()
    return Batches(images, torch.tensor([0] * count + [1] * count))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of each kind to train on, three to validate."""
    root = tmp_path_factory.mktemp("pictures")
    for part, numbers in (("train", range(6)), ("val", range(6, 9))):
        for kind in ("disc", "stripes"):
            (root / part / kind).mkdir(parents=True)
            for number in numbers:
                draw(kind, number).save(root / part / kind / f"{number}.png")
    return root


def test_a_classifier_on_pretrained_features_tells_new_pictures_apart() -> None:
    network, unseen = load_backbone(classes=2), batches(6, 4)
    fit_head(network, batches(0, 6))
    assert (compute_logits(network, unseen).argmax(dim=1) == unseen.classes).float().mean() == 1.0


def test_the_same_features_give_the_same_classifier_whatever_the_seed() -> None:
    weights = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = load_backbone(classes=2)
        fit_head(network, batches(0, 3))
        weights.append(network.classifier.weight.detach().clone())
    assert torch.equal(*weights)


class Flat(nn.Module):
    """A network whose features are the pixels."""

    def forward_features(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :, None, None]


def test_what_the_network_knows_already_helps_where_images_are_few() -> None:
    """A hundred faint pictures of two patterns, six to learn each from, and a classifier that tells them among four."""
    patterns = torch.randn(4, 3 * 8 * 8, generator=torch.Generator().manual_seed(0)).sign()

    def faint(n: int, seed: int) -> Batches:
        noise = torch.randn(2 * n, patterns.shape[1], generator=torch.Generator().manual_seed(seed))
        classes = torch.tensor([0] * n + [1] * n)
        images = 128 + 30 * noise + 9 * patterns[[0] * n + [1] * n]
        return Batches(images.clamp(0, 255).byte().view(-1, 3, 8, 8), classes)

    def share_right(pretrained: nn.Linear) -> float:
        network = Backbone(Flat(), nn.Linear(patterns.shape[1], 2), pretrained, (0.5,), (0.1,))
        fit_head(network, faint(6, seed=1))
        unseen = faint(50, seed=2)
        return (compute_logits(network, unseen).argmax(dim=1) == unseen.classes).float().mean().item()

    knows, knows_nothing = nn.Linear(patterns.shape[1], 4), nn.Linear(patterns.shape[1], 4)
    with torch.no_grad():
        knows.weight.copy_(patterns / 20)
        knows_nothing.weight.zero_()
    assert share_right(knows) > 0.95
    assert share_right(knows) > share_right(knows_nothing) + 0.05


def test_minutes_decide_how_many_epochs_a_photograph_model_gets(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pictures.onnx"
    assert main(["train", str(folder), "--out", str(out), "--minutes", "0.001"]) == 0
    assert "0 fit into the time that is left" in capsys.readouterr().err
    spec = Classifier.load(out, device="cpu").spec
    assert spec.provenance.recipe == "photos, 0 epochs"
    assert spec.figures[0].accuracy == 1.0


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf"])
def test_minutes_that_are_none_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], minutes: str
) -> None:
    assert main(["train", str(folder), "--out", str(tmp_path / "x.onnx"), "--minutes", minutes]) == 2
    assert "--minutes must be more than 0" in capsys.readouterr().err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
def test_keeping_freed_memory_is_harmless_twice() -> None:
    keep_freed_memory()
    keep_freed_memory()
    assert torch.ones(1000, 1000).sum() == 1_000_000
