"""The training loop: pixels in, the weights of the best epoch on validation out.

The same recipe, data, seed, versions and thread count give the same weights to the bit, in one go or interrupted and
resumed: every epoch seeds itself, and everything else that it depends on is in the checkpoint.
"""

import math
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from training.batches import Batches, compute_logits
from training.checkpoint import Checkpoint
from training.errors import TrainingError
from training.head import fit_head, seconds_per_epoch
from training.networks import PretrainedNet, channels_last
from training.progress import Progress, say
from training.recipes import Recipe
from training.run_report import Epoch
from training.schedule import make_optimizer, moving_average, set_learning_rate

MAX_EPOCHS = 100  # however long the time: more of the same images teaches nothing


@dataclass(frozen=True)
class Best:
    """The best epoch so far, by the averaged weights on validation."""

    epoch: int
    n_correct: int
    loss: float  # cross-entropy, nats
    weights: dict[str, Tensor]

    def is_beaten_by(self, n_correct: int, loss: float) -> bool:
        """More images right; where equal, the lower loss."""
        return (n_correct, -loss) > (self.n_correct, -self.loss)


class Training:
    """The moving parts of one training, as they are between two epochs."""

    def __init__(self, recipe: Recipe, n_classes: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.recipe, self.n_classes, self.seed = recipe, n_classes, seed
        self.network = channels_last(recipe.network.build(recipe.input, n_classes))
        self.averaged = self._average()
        self.optimizer = make_optimizer(self.network, recipe)
        self.epochs_done = 0
        self.best: Best | None = None
        self.history: list[Epoch] = []

    def start(self, train: Batches, validation: Batches, deadline: float | None) -> None:
        """Fits a pretrained network's new classifier, which is the best so far, and plans as many epochs as there is time for.

        `deadline` is on `time.monotonic`'s clock; None keeps the recipe's epochs.
        """
        if isinstance(self.recipe.network, PretrainedNet):
            fit_head(self.network, train)
            self.averaged = self._average()
            loss, accuracy = self._validate(validation)
            say(f"classifier on the pretrained features: validation: loss {loss:.4f}, accuracy {accuracy:.2%}")
        if deadline is not None:
            seconds = seconds_per_epoch(self.network, train, validation, self.recipe.batch_size)
            epochs = max(0, int((deadline - time.monotonic()) / seconds))
            self.recipe = replace(self.recipe, epochs=min(epochs, MAX_EPOCHS))
            say(f"an epoch takes {seconds:.1f} s: {self.recipe.epochs} fit into the time that is left")

    def _average(self) -> AveragedModel:
        average = moving_average(self.recipe.average_decay)
        return AveragedModel(self.network, multi_avg_fn=average, use_buffers=True)

    def run_epoch(self, train: Batches, validation: Batches, progress: Progress) -> None:
        """One pass over the training images, and what it came to on validation."""
        train_loss = self._pass_over(train, progress)
        loss, accuracy = self._validate(validation)
        rate = self.optimizer.param_groups[0]["lr"]
        self.history.append(Epoch(self.epochs_done, train_loss, loss, accuracy, rate))
        progress.epoch(self.history[-1])

    def _pass_over(self, train: Batches, progress: Progress) -> float:
        """Takes every step of an epoch; returns their mean loss."""
        epoch_seed = self.seed * 100_003 + self.epochs_done  # no two seeds share an epoch
        torch.manual_seed(epoch_seed)
        generator = torch.Generator().manual_seed(epoch_seed)
        steps = train.steps(self.recipe.batch_size)
        self.network.train()
        losses = []
        for step, (images, classes) in enumerate(train.shuffled(self.recipe.batch_size, generator)):
            set_learning_rate(self.optimizer, self.recipe, (self.epochs_done + step / steps) / self.recipe.epochs)
            images = self.recipe.augmentation(images, generator)
            loss = self._step(images.contiguous(memory_format=torch.channels_last), classes)
            progress.step(loss, len(images))
            losses.append(loss)
        self.epochs_done += 1
        return sum(losses) / len(losses)

    def _step(self, images: Tensor, classes: Tensor) -> float:
        loss = F.cross_entropy(self.network(images), classes, label_smoothing=self.recipe.label_smoothing)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.averaged.update_parameters(self.network)
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(f"the loss became {value} in epoch {self.epochs_done + 1}: the learning rate is too high")
        return value

    def _validate(self, validation: Batches) -> tuple[float, float]:
        """Measures the averaged weights and keeps them if they are the best so far; returns their loss and accuracy."""
        logits = compute_logits(self.averaged.module, validation)
        loss = F.cross_entropy(logits, validation.classes).item()
        n_correct = int((logits.argmax(dim=1) == validation.classes).sum())
        if self.best is None or self.best.is_beaten_by(n_correct, loss):
            weights = {name: value.clone() for name, value in self.averaged.module.state_dict().items()}
            self.best = Best(self.epochs_done, n_correct, loss, weights)
        return loss, n_correct / len(validation)

    def state(self) -> dict[str, Any]:
        """Everything that the next epoch depends on, as tensors and plain types."""
        return {
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epochs": self.recipe.epochs,
            "epochs_done": self.epochs_done,
            "history": [asdict(epoch) for epoch in self.history],
            "best": self.best and asdict(self.best),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Puts the parts back to where `state` was taken."""
        self.network.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.recipe = replace(self.recipe, epochs=state["epochs"])
        self.epochs_done = state["epochs_done"]
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self.best = state["best"] and Best(**state["best"])

    def best_network(self) -> nn.Module:
        """A new network with the best weights, ready to evaluate."""
        assert self.best is not None
        network = self.recipe.network.build(self.recipe.input, self.n_classes)
        network.load_state_dict(self.best.weights)
        network.eval()
        return network


def train_network(
    training: Training, train: Batches, validation: Batches, checkpoint: Checkpoint, deadline: float | None = None
) -> nn.Module:
    """Runs the epochs that are left, from the checkpoint where there is one; returns the best network on validation."""
    state = checkpoint.load()
    if state is None:
        training.start(train, validation, deadline)
    else:
        training.restore(state)
    with Progress(training.recipe.epochs, train.steps(training.recipe.batch_size)) as progress:
        while training.epochs_done < training.recipe.epochs:
            training.run_epoch(train, validation, progress)
            checkpoint.save(training.state())
    return training.best_network()
