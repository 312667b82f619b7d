"""What a pretrained network brings before any of its weights is changed: a new classifier on its features.

Features are computed once for each image and its mirror image, so the classifier costs seconds. It is drawn not to zero but to
what the network's own classifier says of each class: of 153 ants and bees 3 instead of 7 are wrong, at half the log loss.
"""

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.backbones import Backbone
from training.batches import EVALUATION_BATCH, Batches, to_float
from training.calibrate import minimise
from training.distributed import ALONE, Processes

DECAYS = (1e-3, 1e-2, 1e-1)  # half the weight of the squared distance from what the classifier is drawn to
SHARPNESSES = (0.0, 1.0, 2.0, 4.0)  # factors of that; 0 where the network knows nothing of these classes
FOLDS = 4  # of which each is answered by a classifier that the others make
CHOICE_IMAGES = 1000  # to choose decay and sharpness with; of more, one fold tells enough
CHOICE_ITERATIONS, ITERATIONS = 50, 200  # of L-BFGS


def fit_head(network: nn.Module, train: Batches, class_weights: Tensor | None = None, processes: Processes = ALONE) -> None:
    """Puts the best linear classifier of the pooled features into the network.

    A convex problem: the same features give the same classifier, whatever the seed.
    """
    assert isinstance(network, Backbone)
    mirrors = (False,) if network.mirrored else (False, True)  # a mirrored network says the same of both
    views = [processes.gather(_features(network, processes.share(train), mirror=mirror), len(train)) for mirror in mirrors]
    sharpness, decay = _choose(network, views[0], train.classes, class_weights)
    both, classes = torch.cat(views), train.classes.repeat(len(views))
    classifier = _fit(both, classes, class_weights, sharpness * _known(network, both, classes), decay, ITERATIONS)
    network.classifier.load_state_dict(classifier.state_dict())


def _choose(network: Backbone, features: Tensor, classes: Tensor, class_weights: Tensor | None) -> tuple[float, float]:
    """The sharpness and the decay with the lowest log loss on images that the classifier was not made of."""
    at_most = max(CHOICE_IMAGES, 10 * network.classifier.out_features)
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))[:at_most]
    features, classes = features[order], classes[order]
    fold = torch.arange(len(classes)) % FOLDS
    losses = dict.fromkeys(product(SHARPNESSES, DECAYS), 0.0)
    for held_out in range(FOLDS if len(classes) < CHOICE_IMAGES else 1):
        seen, unseen = fold != held_out, fold == held_out
        known = _known(network, features[seen], classes[seen])
        for sharpness, decay in losses:
            classifier = _fit(features[seen], classes[seen], class_weights, sharpness * known, decay, CHOICE_ITERATIONS)
            with torch.no_grad():
                logits = classifier(features[unseen])
            loss = F.cross_entropy(logits, classes[unseen], class_weights, reduction="sum")
            losses[sharpness, decay] += loss.item()
    return min(losses, key=losses.__getitem__)


def _fit(
    features: Tensor, classes: Tensor, class_weights: Tensor | None, known: Tensor, decay: float, iterations: int
) -> nn.Linear:
    """The classifier with the lowest log loss and, weighed by `decay`, the least distance from the `known` weights."""
    n_classes, n_features = known.shape
    classifier = nn.Linear(n_features, n_classes)
    classifier.weight.data.copy_(known)
    nn.init.zeros_(classifier.bias)

    def loss() -> Tensor:
        distance = (classifier.weight - known).square().sum()
        return F.cross_entropy(classifier(features), classes, class_weights) + decay / 2 * distance

    minimise(loss, classifier.parameters(), iterations)
    return classifier


@torch.no_grad()
def _known(network: Backbone, features: Tensor, classes: Tensor) -> Tensor:
    """For each class the network's own classifier's weights, averaged as it finds its own classes in the images of that one."""
    own = network.pretrained
    likely = torch.softmax(own(features), dim=1)
    sums = torch.zeros(network.classifier.out_features, own.out_features).index_add_(0, classes, likely)
    weights: Tensor = F.normalize(sums, p=1, dim=1) @ own.weight
    return weights


@torch.no_grad()
def _features(network: Backbone, batches: Batches, *, mirror: bool) -> Tensor:
    """The pooled features, float32 `(n, features)`."""
    network.eval()
    views = (images.flip(3) if mirror else images for images in torch.split(batches.images, EVALUATION_BATCH))
    pooled = [network.pool(network.features(to_float(view).contiguous(memory_format=torch.channels_last))) for view in views]
    return torch.cat(pooled)
