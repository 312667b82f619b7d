"""The networks: float images in, logits out. Scaling, temperature and softmax are added by `training.graph`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.spec import InputSpec
from training.errors import InputError


@dataclass(frozen=True)
class PlainNet:
    """Stages of 3×3 convolution, ReLU and 2×2 max-pooling, then a hidden dense layer and the logits. No padding."""

    name: ClassVar[str] = "seed"

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
class ResidualNet:
    """A 3×3 convolution, stages of blocks, each but the first halving the sides, the mean over all places, and the logits.

    Its depth, counted in layers with weights as in the paper, is 2 · stages · blocks + 2. Without `shortcuts` it is the plain
    network of the same depth. Source: He, Zhang, Ren, Sun, "Deep residual learning for image recognition", 2015, section 4.2.
    """

    name: ClassVar[str] = "residual"

    widths: tuple[int, ...]  # channels of each stage
    blocks: int  # of each stage
    shortcuts: bool = True

    def build(self, spec: InputSpec, n_classes: int) -> nn.Module:
        """The module: float32 `(batch, channels, height, width)` in 0…1 → logits `(batch, classes)`."""
        scaled = nn.BatchNorm2d(spec.channels, affine=False)  # by the mean and deviation of the training images
        layers: list[nn.Module] = [scaled, _convolution(spec.channels, self.widths[0]), nn.ReLU(inplace=True)]
        channels = self.widths[0]
        for stage, width in enumerate(self.widths):
            for block in range(self.blocks):
                stride = 2 if stage and not block else 1
                layers.append(Block(channels, width, stride, shortcut=self.shortcuts))
                channels = width
        return nn.Sequential(*layers, Mean(), nn.Linear(channels, n_classes))


class Block(nn.Module):
    """Two convolutions, whose result is added to what came in; where the shape changes, a 1×1 convolution fits it."""

    def __init__(self, channels: int, width: int, stride: int, *, shortcut: bool) -> None:
        super().__init__()
        last = _convolution(width, width)
        self.body = nn.Sequential(_convolution(channels, width, stride), nn.ReLU(inplace=True), last)
        self.shortcut: nn.Module | None = None
        if shortcut:
            nn.init.zeros_(cast(Tensor, last[1].weight))  # the block begins as its shortcut
            same = stride == 1 and channels == width
            self.shortcut = nn.Identity() if same else _convolution(channels, width, stride, kernel=1)

    def forward(self, images: Tensor) -> Tensor:
        """`(batch, channels, h, w)` → `(batch, width, h / stride, w / stride)`."""
        changed = self.body(images)
        return F.relu(changed if self.shortcut is None else changed + self.shortcut(images), inplace=True)


def _convolution(channels: int, width: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    convolution = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width))


@dataclass(frozen=True)
class AirbenchNet:
    """Few layers for small pictures: a fixed whitening, stages that halve the sides, the mean over all places, and the logits.

    When it is not trained it looks at each image and its mirror image. Source: Jordan, "94% on CIFAR-10 in 3.29 seconds on a
    single GPU", 2024, here with a shortcut around every second convolution, and with SiLU, which costs these processors half of
    what GELU does: 90.4 instead of 89.9 % of CIFAR-10 in the same 20 minutes as with ReLU.
    """

    name: ClassVar[str] = "airbench"

    widths: tuple[int, ...]  # channels of each stage

    def build(self, spec: InputSpec, n_classes: int) -> nn.Module:
        """The module: float32 `(batch, channels, height, width)` in 0…1 → logits `(batch, classes)`."""
        if min(spec.height, spec.width) <= 2 ** len(self.widths):
            raise InputError(f"the input is too small for {len(self.widths)} stages: use larger images or fewer stages")
        whitening = Whitening(spec.channels)
        layers: list[nn.Module] = [whitening, nn.SiLU(inplace=True)]
        for channels, width in zip((len(whitening.filters), *self.widths), self.widths, strict=False):
            halved = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(width))
            layers += [halved, nn.SiLU(inplace=True), Shortcut(_convolution(width, width))]
        return nn.Sequential(Mirrored(nn.Sequential(*layers)), Mean(), nn.Linear(self.widths[-1], n_classes))


class Whitening(nn.Module):
    """A 2×2 convolution that is not trained: the principal components of the training images' patches, and their negatives."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        n = 4 * channels
        self.register_buffer("filters", torch.zeros(2 * n, channels, 2, 2))
        self.register_buffer("bias", torch.zeros(2 * n))
        self.filters: Tensor
        self.bias: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """`(batch, channels, h, w)` → `(batch, 8 · channels, h - 1, w - 1)`."""
        return F.conv2d(images, self.filters, self.bias)

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Gives every component of the patches of `images`, float32 in 0…1, mean 0 and a deviation of nearly 1."""
        patches = F.unfold(images, 2).transpose(1, 2).flatten(0, 1)
        variances, components = torch.linalg.eigh(patches.T.cov())
        # The least of them are noise, and are not raised to the full deviation.
        filters = (components / (variances + 5e-4 * variances.mean() + 1e-9).sqrt()).T
        self.filters.copy_(torch.cat([filters, -filters]).view_as(self.filters))
        self.bias.copy_(-self.filters.flatten(1) @ patches.mean(dim=0))


class Mirrored(nn.Module):
    """Features of an image; outside training their mean with those of its mirror image, mirrored back."""

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features

    def forward(self, images: Tensor) -> Tensor:
        """As the features are."""
        return self.features(images) if self.training else mirrored_mean(self.features, images)


def mirrored_mean(features: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The mean of an image's `features` and of its mirror image's, mirrored back; `(batch, channels, h, w)` both."""
    return (features(images) + features(images.flip(3)).flip(3)) / 2


class Shortcut(nn.Module):
    """What comes in, and what a layer makes of it, added."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, features: Tensor) -> Tensor:
        """As they are."""
        return F.silu(features + self.layer(features), inplace=True)


@dataclass(frozen=True)
class PretrainedNet:
    """A network of timm's that starts from pretrained weights; see `training.backbones`."""

    name: str
    weights: str  # pip, hub, or a file of them
    mirrored: bool = False  # answers with the mean over an image and its mirror image

    def build(self, spec: InputSpec, n_classes: int) -> nn.Module:
        """The module: float32 `(batch, 3, height, width)` in 0…1 → logits `(batch, classes)`."""
        from training.backbones import (
            check_name,
            load_backbone,
        )  # timm takes seconds to import, and the other networks need none of it

        check_name(self.name)
        if spec.channels != 3:
            raise InputError(f"{self.name} takes RGB images: choose a recipe for those")
        return load_backbone(self.name, classes=n_classes, weights=self.weights, mirrored=self.mirrored)


Network = PlainNet | ResidualNet | AirbenchNet | PretrainedNet


class Mean(nn.Module):
    """The mean over all places, as one node: torch exports its own pooling to one place as a table of indices."""

    def forward(self, features: Tensor) -> Tensor:
        """`(batch, channels, height, width)` → `(batch, channels)`."""
        return features.mean(dim=(2, 3))


class Crop(nn.Module):
    """Leaves out `margin` pixels at each side."""

    def __init__(self, margin: int) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, images: Tensor) -> Tensor:
        return images[..., self.margin : -self.margin, self.margin : -self.margin]


MIN_WIDTH = 8  # with 4, 5 or 6 channels, torch 2.14 crashes in the gradient of a channels-last convolution
NETWORKS = (PlainNet.name, ResidualNet.name, AirbenchNet.name)  # beside those of timm


def choose_network(
    now: Network, name: str | None, *, depth: int | None, width: int | None, weights: str | None, mirrored: bool = False
) -> Network:
    """The network called `name`, None for the kind of `now`, as deep and wide as asked.

    seed: `depth` counts its stages, residual: its layers (6 · blocks + 2); `width` is the channels of the first stage, which
    double from stage to stage. Any other name is timm's, with `weights` as `training.backbones` takes them, `mirrored` or not.

    Raises: InputError.
    """
    name = name or now.name
    if name not in NETWORKS:
        if depth or width:
            raise InputError(f"--depth and --width are for {', '.join(NETWORKS)}: timm's networks have theirs in their names")
        old = now if isinstance(now, PretrainedNet) and now.name == name else None
        return PretrainedNet(name, weights or (old.weights if old else "hub"), mirrored)
    if weights:
        raise InputError(f"--weights is for timm's networks: {name} begins untrained")
    if mirrored:
        raise InputError(f"--mirrored is for timm's networks, not for {name}")
    if name == PlainNet.name:
        seed = now if isinstance(now, PlainNet) else PlainNet((32, 64, 128), hidden=128)
        return replace(seed, widths=_doubling(seed.widths, depth or len(seed.widths), width))
    if width is not None and width < MIN_WIDTH:
        raise InputError(f"--width of {name} must be at least {MIN_WIDTH}, not {width}")
    if name == AirbenchNet.name:
        if depth:
            raise InputError(f"--depth is for {PlainNet.name} and {ResidualNet.name}: {name} has one")
        airbench = now if isinstance(now, AirbenchNet) else AirbenchNet((64, 128, 256))
        return replace(airbench, widths=_doubling(airbench.widths, len(airbench.widths), width))
    residual = now if isinstance(now, ResidualNet) else ResidualNet((32, 64, 128), blocks=1)
    n_stages = len(residual.widths)
    blocks, rest = divmod((depth or 2 * n_stages * residual.blocks + 2) - 2, 2 * n_stages)
    if rest or blocks < 1:
        raise InputError(f"--depth of residual must be one of 8, 14, 20, 26, 32, …, not {depth}")
    return replace(residual, widths=_doubling(residual.widths, n_stages, width), blocks=blocks)


def _doubling(widths: tuple[int, ...], stages: int, width: int | None) -> tuple[int, ...]:
    """The given widths where nothing is asked for, else twice as many channels from stage to stage."""
    if width is None and stages == len(widths):
        return widths
    return tuple((width or widths[0]) * 2**stage for stage in range(stages))


def channels_last(network: nn.Module) -> nn.Module:
    """The network with channels innermost in memory: 5,000 instead of 2,200 images/s (two cores, AVX-512, 2026-11)."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return network


def count_parameters(network: nn.Module) -> int:
    """The number of trained weights."""
    return sum(parameter.numel() for parameter in network.parameters())
