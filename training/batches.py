"""Samples as torch tensors, in batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from training.pixels import Samples

EVALUATION_BATCH = 32  # images; only memory depends on it: 19 MB for each of 224×224 in EfficientNet-Lite0


@dataclass(frozen=True)
class Batches:
    """A data set: uint8 `(n, channels, height, width)` and class indices int64 `(n,)`."""

    images: Tensor
    classes: Tensor

    @classmethod
    def of(cls, samples: Samples) -> Self:
        """The samples, with channels before height and width as torch wants them."""
        images = torch.from_numpy(samples.pixels).permute(0, 3, 1, 2).contiguous()
        return cls(images, torch.from_numpy(samples.classes))

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, chosen: slice) -> Self:
        return type(self)(self.images[chosen], self.classes[chosen])

    def class_weights(self, n_classes: int) -> Tensor:
        """float32 `(n_classes,)`: with them every class counts the same in a loss, however many images it has."""
        return len(self) / (n_classes * torch.bincount(self.classes, minlength=n_classes).clamp_min(1))

    def steps(self, size: int) -> int:
        """The batches of an epoch: what does not fill the last one is left out, unless it is the only one."""
        return max(1, len(self) // size)

    def shuffled(self, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch, in random order; images are float32 in 0…1."""
        order = torch.randperm(len(self), generator=generator)
        for indices in torch.split(order[: self.steps(size) * size], size):
            yield to_float(self.images[indices]), self.classes[indices]


def to_float(images: Tensor) -> Tensor:
    """uint8 in 0…255 → float32 in 0…1."""
    return images.float() * (1 / 255)


@torch.inference_mode()
def compute_logits(network: nn.Module, batches: Batches) -> Tensor:
    """The logits of every image, float32 `(n, classes)`, in order."""
    network.eval()
    return torch.cat([network(to_float(images)) for images in torch.split(batches.images, EVALUATION_BATCH)])
