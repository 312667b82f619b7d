"""Random changes that keep the label, drawn for a whole batch at once: one `grid_sample` costs less than PIL per image.

Rotation, scale, shear, shift and elastic distortion become one sampling grid; strokes are then made thicker or thinner and
the tones darker or lighter. Sources: Simard, Steinkraus, Platt, "Best practices for convolutional neural networks", 2003;
DeVries, Taylor, "Improved regularization with cutout", 2017; Cubuk et al., "RandAugment", 2019; Zhang et al., "mixup", 2017;
Yun et al., "CutMix", 2019.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """How far each change goes. Every image draws its own, evenly between the negative and the positive limit."""

    rotation_degrees: float = 0.0
    scale: float = 0.0  # natural logarithm of the factor, per axis
    shear: float = 0.0  # tangent of the angle
    shift: float = 0.0  # share of the side
    elastic: float = 0.0  # standard deviation of a knot's displacement, share of the side
    elastic_knots: int = 5  # per side; fewer bend the image more gently
    stroke: float = 0.0  # 1 = as thick or thin as a 3×3 maximum or minimum makes it
    gamma: float = 0.0  # natural logarithm of the exponent of the tones
    mirror: bool = False  # every second image, left for right
    outside: Literal["zeros", "reflection"] = "zeros"  # what a shift brings into the image
    erase: float = 0.0  # side of a grey square somewhere in every image, share of the side
    rand_augment: int = 0  # operations of RandAugment on every image, at its usual strength

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Changes float `(batch, channels, height, width)` in 0…1, keeping shape and range."""
        draw = _Draw(len(images), generator)
        if self.rand_augment:
            images = _rand_augment(images, self.rand_augment)
        grid = F.affine_grid(self._affine(draw, images), list(images.shape), align_corners=False)
        if self.elastic:
            grid = grid + self._displacement(draw, images)
        images = F.grid_sample(images, grid, align_corners=False, padding_mode=self.outside)
        if self.stroke:
            images = _thicken(images, draw.evenly(self.stroke).view(-1, 1, 1, 1))
        if self.gamma:
            images = images.clamp_min(1e-6) ** draw.evenly(self.gamma).exp().view(-1, 1, 1, 1)
        return _erase(images, self.erase, draw) if self.erase else images

    def _affine(self, draw: "_Draw", images: Tensor) -> Tensor:
        """Maps from the changed to the given image, `(batch, 2, 3)`, in coordinates of -1…1."""
        angle = draw.evenly(math.radians(self.rotation_degrees))
        cos, sin, shear = angle.cos(), angle.sin(), draw.evenly(self.shear)
        width, height = draw.evenly(self.scale).exp(), draw.evenly(self.scale).exp()
        if self.mirror:
            width = width * draw.evenly(1.0).sign()
        right, down = (self._shift(draw, side) for side in (images.shape[3], images.shape[2]))
        rows = [width * cos, width * (shear * cos - sin), right, height * sin, height * (shear * sin + cos), down]
        return torch.stack(rows, dim=1).view(-1, 2, 3)

    def _shift(self, draw: "_Draw", side: int) -> Tensor:
        """`(batch,)`, of a grid that is 2 wide. Whole pixels where nothing else moves any: images stay sharp."""
        shift = draw.evenly(2 * self.shift)
        moved = self.rotation_degrees or self.scale or self.shear or self.elastic
        return shift if moved else (shift * side / 2).round() * 2 / side

    def _displacement(self, draw: "_Draw", images: Tensor) -> Tensor:
        """A smooth random field, `(batch, height, width, 2)`."""
        knots = draw.normal(2, self.elastic_knots, self.elastic_knots) * (2 * self.elastic)
        field = F.interpolate(knots, size=images.shape[2:], mode="bicubic", align_corners=True)
        return field.permute(0, 2, 3, 1)


@dataclass(frozen=True)
class Mixing:
    """Pairs of images of a batch become one, and so do their labels. Each batch takes one of the two ways at random.

    `alpha` of the Beta distribution of the share: 1 is any share, less is nearer to one of the two; 0 leaves the way out.
    """

    mixup_alpha: float = 0.0  # both images shine through each other
    cutmix_alpha: float = 0.0  # a rectangle of one image lies in the other

    def __call__(self, images: Tensor, classes: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
        """Images and their targets: class indices int64 `(batch,)`, mixed float32 `(batch, classes)`. By torch's generator."""
        if not (self.mixup_alpha or self.cutmix_alpha):
            return images, classes
        from torchvision.transforms import v2  # type: ignore[import-untyped]  # two seconds, which most recipes need not wait for

        kinds = ((v2.MixUp, self.mixup_alpha), (v2.CutMix, self.cutmix_alpha))
        ways = [kind(alpha=alpha, num_classes=n_classes) for kind, alpha in kinds if alpha]
        mixed: tuple[Tensor, Tensor] = v2.RandomChoice(ways)(images, classes)
        return mixed


@dataclass(frozen=True)
class _Draw:
    """Random numbers for the images of one batch."""

    n: int
    generator: torch.Generator

    def evenly(self, limit: float) -> Tensor:
        """`(n,)`, between `-limit` and `limit`."""
        return (torch.rand(self.n, generator=self.generator, device=self.generator.device) * 2 - 1) * limit

    def normal(self, *shape: int) -> Tensor:
        """`(n, *shape)`, of mean 0 and deviation 1."""
        return torch.randn(self.n, *shape, generator=self.generator, device=self.generator.device)


def _thicken(images: Tensor, amount: Tensor) -> Tensor:
    """Mixes each image with its 3×3 maximum (`amount` above 0) or minimum (below)."""
    thick = F.max_pool2d(images, 3, stride=1, padding=1)
    thin = -F.max_pool2d(-images, 3, stride=1, padding=1)
    return torch.lerp(images, torch.where(amount > 0, thick, thin), amount.abs())


def _erase(images: Tensor, share: float, draw: _Draw) -> Tensor:
    """Grey squares, of which the parts outside the image are lost."""
    height, width = images.shape[2:]
    inside = []
    for side in (height, width):
        centre = (draw.evenly(0.5) + 0.5).view(-1, 1) * side
        inside.append((torch.arange(side) + 0.5 - centre).abs() < share * side / 2)
    rows, columns = inside
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.5)


def _rand_augment(images: Tensor, operations: int) -> Tensor:
    """torchvision's, image by image; it draws from torch's own generator."""
    from torchvision.transforms import v2  # two seconds, which most recipes need not wait for

    change = v2.RandAugment(num_ops=operations)
    changed = torch.stack([change(image) for image in (images * 255).round().byte()])
    return changed.float() / 255
