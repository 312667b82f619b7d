"""The networks: float images in, logits out. Scaling, temperature and softmax are added by `training.graph`."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from app.spec import InputSpec
from training.errors import InputError


@dataclass(frozen=True)
class PlainNet:
    """Stages of 3×3 convolution, ReLU and 2×2 max-pooling, then a hidden dense layer and the logits. No padding."""

    widths: tuple[int, ...]  # channels of each stage
    hidden: int  # units of the dense layer
    margin: int = 0  # pixels left out at each side before the first stage

    def build(self, spec: InputSpec, n_classes: int) -> nn.Module:
        """The module: float32 `(batch, channels, height, width)` in 0…1 → logits `(batch, classes)`."""
        layers: list[nn.Module] = [Crop(self.margin)] if self.margin else []
        for channels, width in zip((spec.channels, *self.widths), self.widths, strict=False):
            layers += [nn.Conv2d(channels, width, kernel_size=3), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        n_features = self.widths[-1] * self._side_after(spec.height) * self._side_after(spec.width)
        dense = [nn.Flatten(), nn.Linear(n_features, self.hidden), nn.ReLU(inplace=True), nn.Linear(self.hidden, n_classes)]
        return nn.Sequential(*layers, *dense)

    def _side_after(self, side: int) -> int:
        """What the stages leave of a side of `side` pixels: each takes 2 for the kernel and halves, rounding down."""
        side -= 2 * self.margin
        for _ in self.widths:
            side = (side - 2) // 2
        if side < 1:
            raise InputError(f"the input is too small for {len(self.widths)} stages: use larger images or fewer stages")
        return side


@dataclass(frozen=True)
class PretrainedNet:
    """A network of timm's that starts from pretrained weights; see `training.backbones`."""

    name: str
    weights: Literal["pip", "hub"]

    def build(self, spec: InputSpec, n_classes: int) -> nn.Module:
        """The module: float32 `(batch, 3, height, width)` in 0…1 → logits `(batch, classes)`."""
        from training.backbones import load_backbone  # timm takes seconds to import, and the other networks need none of it

        if spec.channels != 3:
            raise InputError(f"{self.name} takes RGB images: use an input with 3 channels")
        return load_backbone(self.name, classes=n_classes, weights=self.weights)


class Crop(nn.Module):
    """Leaves out `margin` pixels at each side."""

    def __init__(self, margin: int) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, images: Tensor) -> Tensor:
        return images[..., self.margin : -self.margin, self.margin : -self.margin]


def channels_last(network: nn.Module) -> nn.Module:
    """The network with channels innermost in memory: 5,000 instead of 2,200 images/s (two cores, AVX-512, 2026-11)."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return network


def count_parameters(network: nn.Module) -> int:
    """The number of trained weights."""
    return sum(parameter.numel() for parameter in network.parameters())
