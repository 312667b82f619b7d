"""Honest probabilities: the temperature of the softmax, and the threshold from which an answer counts.

Both are chosen on validation images, which the weights were not trained on.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from app.classifier import Probabilities
from app.spec import AcceptRule
from training.figures import Indices


def fit_temperature(logits: Tensor, classes: Tensor) -> float:
    """The number to divide logits `(n, classes)` by for the lowest log loss.

    Source: Guo et al., "On calibration of modern neural networks", 2017.
    """
    logits = logits.double()
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    minimise(lambda: F.cross_entropy(logits / log_temperature.exp(), classes), [log_temperature])
    # Images that are all right would ask for infinitely sharp probabilities.
    return min(max(log_temperature.exp().item(), 0.05), 20.0)


def minimise(loss: Callable[[], Tensor], parameters: Iterable[Tensor], iterations: int = 100) -> None:
    """Moves the parameters to where a convex loss is least, by L-BFGS, which stops by itself before `iterations`."""
    optimizer = torch.optim.LBFGS(parameters, max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        torch.autograd.backward(value)
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]


def choose_threshold(probabilities: Probabilities, truth: Indices, *, precision: float, chosen_on: str) -> AcceptRule | None:
    """The rule that accepts the most images with at least `precision` of them right; None where no threshold does."""
    order = np.argsort(-probabilities.max(axis=1), kind="stable")
    confidence = probabilities.max(axis=1)[order].astype(np.float64)
    right = np.cumsum(probabilities.argmax(axis=1)[order] == truth[order])
    share_right = right / np.arange(1, len(truth) + 1)
    below = np.append(confidence[1:], confidence[-1] - 1e-6)
    # A threshold can only lie where the confidence falls.
    possible = np.flatnonzero((share_right >= precision) & (below < confidence))
    if not len(possible):
        return None
    last = int(possible[-1])
    return AcceptRule(
        threshold=round(float(confidence[last] + below[last]) / 2, 6),
        precision=float(share_right[last]),
        coverage=(last + 1) / len(truth),
        chosen_on=chosen_on,
    )
