"""What a pretrained network brings before any of its weights is changed: a new classifier on its features.

Features are computed once for each image and its mirror image, so the classifier costs seconds.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.backbones import Backbone
from training.batches import EVALUATION_BATCH, Batches, to_float
from training.calibrate import minimise
from training.distributed import ALONE, Processes

DECAY = 1e-3  # half the weight of the squared weights beside the mean loss
ITERATIONS = 200  # of L-BFGS


def fit_head(network: nn.Module, train: Batches, class_weights: Tensor | None = None, processes: Processes = ALONE) -> None:
    """Puts the best linear classifier of the pooled features into the network.

    A convex problem: the same features give the same classifier, whatever the seed.
    """
    assert isinstance(network, Backbone)
    views = [_features(network, processes.share(train), mirror=mirror) for mirror in (False, True)]
    features = torch.cat([processes.gather(view, len(train)) for view in views])
    classes = train.classes.repeat(2)
    classifier = network.classifier
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)

    def loss() -> Tensor:
        return F.cross_entropy(classifier(features), classes, class_weights) + DECAY / 2 * classifier.weight.square().sum()

    minimise(loss, classifier.parameters(), ITERATIONS)


@torch.no_grad()
def _features(network: Backbone, batches: Batches, *, mirror: bool) -> Tensor:
    """The pooled features, float32 `(n, features)`."""
    network.eval()
    views = (images.flip(3) if mirror else images for images in torch.split(batches.images, EVALUATION_BATCH))
    pooled = [network.pool(network.features(to_float(view).contiguous(memory_format=torch.channels_last))) for view in views]
    return torch.cat(pooled)
