"""Random changes that keep the label, drawn for a whole batch at once: one `grid_sample` costs less than PIL per image.

Rotation, scale, shear, shift and elastic distortion become one sampling grid; strokes are then made thicker or thinner and
the tones darker or lighter. Source: Simard, Steinkraus, Platt, "Best practices for convolutional neural networks", 2003.
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

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Changes float `(batch, channels, height, width)` in 0…1, keeping shape and range."""
        draw = _Draw(len(images), generator)
        grid = F.affine_grid(self._affine(draw), list(images.shape), align_corners=False)
        if self.elastic:
            grid = grid + self._displacement(draw, images)
        images = F.grid_sample(images, grid, align_corners=False, padding_mode=self.outside)
        if self.stroke:
            images = _thicken(images, draw.evenly(self.stroke).view(-1, 1, 1, 1))
        if self.gamma:
            images = images.clamp_min(1e-6) ** draw.evenly(self.gamma).exp().view(-1, 1, 1, 1)
        return images

    def _affine(self, draw: "_Draw") -> Tensor:
        """Maps from the changed to the given image, `(batch, 2, 3)`, in coordinates of -1…1."""
        angle = draw.evenly(math.radians(self.rotation_degrees))
        cos, sin, shear = angle.cos(), angle.sin(), draw.evenly(self.shear)
        width, height = draw.evenly(self.scale).exp(), draw.evenly(self.scale).exp()
        if self.mirror:
            width = width * draw.evenly(1.0).sign()
        right, down = draw.evenly(2 * self.shift), draw.evenly(2 * self.shift)
        rows = [width * cos, width * (shear * cos - sin), right, height * sin, height * (shear * sin + cos), down]
        return torch.stack(rows, dim=1).view(-1, 2, 3)

    def _displacement(self, draw: "_Draw", images: Tensor) -> Tensor:
        """A smooth random field, `(batch, height, width, 2)`."""
        knots = draw.normal(2, self.elastic_knots, self.elastic_knots) * (2 * self.elastic)
        field = F.interpolate(knots, size=images.shape[2:], mode="bicubic", align_corners=True)
        return field.permute(0, 2, 3, 1)


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
