"""How the weights move: the optimiser, its learning rate over the training, and the average of what it passed."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from training.muon import Muon
from training.recipes import Recipe

PLAIN_LEARNING_RATE = 0.1  # peak, of what Muon does not make orthogonal


def make_optimizer(network: nn.Module, recipe: Recipe) -> Optimizer:
    """The recipe's, which decays weights (matrices and kernels) and leaves biases and scales alone."""
    if recipe.optimizer == "muon":
        return Muon(network, lr=recipe.peak_learning_rate, plain_lr=PLAIN_LEARNING_RATE, weight_decay=recipe.weight_decay)
    weights = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [{"params": weights, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if recipe.optimizer == "sgd":
        return SGD(groups, lr=recipe.peak_learning_rate, momentum=0.9, nesterov=True, fused=True)
    return AdamW(groups, lr=recipe.peak_learning_rate, fused=True)


def set_learning_rate(optimizer: Optimizer, recipe: Recipe, progress: float) -> None:
    """Sets the one-cycle learning rate where `progress` (0…1) of the training is done.

    Source: Smith, Topin, "Super-convergence", 2018.
    """
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("peak", group["lr"]) * one_cycle(progress, recipe.warm_up)


def one_cycle(progress: float, warm_up: float) -> float:
    """A straight line from 0 to 1 over the share `warm_up`, then half a cosine back to 0."""
    if progress < warm_up:
        return progress / warm_up
    return (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up))) / 2


def moving_average(decay: float) -> Callable[[Iterable[Tensor], Iterable[Tensor], Tensor | int], None]:
    """The exponential moving average in the form that torch's `AveragedModel` calls.

    In the first steps it forgets faster than `decay`, so that short trainings are not averaged with where they began.
    """

    @torch.no_grad()
    def update(averaged: Iterable[Tensor], current: Iterable[Tensor], n_averaged: Tensor | int) -> None:
        n = float(n_averaged)
        weight = 1 - min(decay, (1 + n) / (10 + n))
        for old, new in zip(averaged, current, strict=True):
            if old.is_floating_point():
                old.lerp_(new, weight)
            else:
                old.copy_(new)

    return update
