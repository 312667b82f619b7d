"""The training loop: pixels in, the weights of the best epoch on validation out.

The same recipe, data, seed, versions and thread count give the same weights to the bit, in one go or interrupted and
resumed: every epoch seeds itself, and everything else that it depends on is in the checkpoint.
"""

import copy
import math
import statistics
import time
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from training.batches import Batches, compute_logits, to_float
from training.checkpoint import Checkpoint
from training.distributed import ALONE, Processes
from training.errors import TrainingError
from training.head import fit_head
from training.networks import PretrainedNet, Whitening, channels_last
from training.precision import has_bfloat16, rounded
from training.progress import Progress, say
from training.recipes import Recipe
from training.run_report import Epoch
from training.schedule import make_optimizer, moving_average, set_learning_rate
from training.track import Tracker

MAX_EPOCHS = 100  # however long the time: more of the same images teaches nothing
WHITENED_IMAGES = 1000  # enough for 12 variances, in 100 MB
LATEST_EPOCHS = 3  # which tell how long one takes
TIMED_SHARE = 0.01  # of the time left, spent on finding out how long a step takes; two steps at least


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

    def __init__(self, recipe: Recipe, n_classes: int, seed: int, processes: Processes = ALONE) -> None:
        torch.manual_seed(seed)
        self.processes = processes
        self.class_weights: Tensor | None = None
        self.recipe, self.n_classes, self.seed = recipe, n_classes, seed
        self.bfloat16 = recipe.bfloat16 and has_bfloat16()
        self.network = channels_last(recipe.network.build(recipe.input, n_classes))
        self.averaged = self._average()
        self.optimizer = make_optimizer(self.network, recipe)
        self.epochs_done = 0
        self.best: Best | None = None
        self.history: list[Epoch] = []
        self.trackers: list[Tracker] = []
        self.epochs_after = 0.0  # what the finished model's answers to be measured take, as a share of an epoch

    def start(self, train: Batches, validation: Batches, deadline: float | None) -> None:
        """Fits what one pass over the images can fit, and plans as many epochs as there is time for.

        That is a pretrained network's new classifier, which is the best so far, or the filters that whiten the images.

        `deadline` is on `time.monotonic`'s clock; None keeps the recipe's epochs.
        """
        if isinstance(self.recipe.network, PretrainedNet):
            fit_head(self.network, train, self.class_weights, self.processes)
            self.averaged = self._average()
            loss, accuracy = self._validate(validation)
            say(f"classifier on the pretrained features: validation: loss {loss:.4f}, accuracy {accuracy:.2%}")
        for layer in self.network.modules():
            if isinstance(layer, Whitening):
                layer.fit(to_float(train.images[:: -(-len(train) // WHITENED_IMAGES)]))
                self.averaged = self._average()
        if deadline is not None:
            seconds = self._time_epoch(train, validation, at_most=TIMED_SHARE * (deadline - time.monotonic()))
            self.plan(deadline, seconds, at_most=MAX_EPOCHS)
            say(f"an epoch takes {seconds:.1f} s: {self.recipe.epochs} fit into the time that is left")

    def plan(self, deadline: float, seconds_per_epoch: float, at_most: int) -> None:
        """Sets the number of epochs to what ends before `deadline`: at least one where there is nothing yet to keep."""
        more = max(0 if self.best else 1, int((deadline - time.monotonic()) / seconds_per_epoch - self.epochs_after))
        self.recipe = replace(self.recipe, epochs=self.processes.agree(min(self.epochs_done + more, at_most)))

    def _time_epoch(self, train: Batches, validation: Batches, at_most: float) -> float:
        """Seconds, from a few real steps that are then undone."""
        before = copy.deepcopy(self.state())
        self.network.train()
        seconds: list[float] = []
        begun = time.monotonic()
        for images, classes in train.shuffled(self.recipe.batch_size, torch.Generator().manual_seed(self.seed)):
            step_begun = time.monotonic()
            self._step(*self._vary(images, classes, torch.Generator().manual_seed(self.seed)))
            seconds.append(time.monotonic() - step_begun)
            if self.processes.agree(len(seconds) > 1 and time.monotonic() - begun > at_most):
                break
        self.restore(before)
        step = statistics.median(seconds[1:] or seconds)  # the first is slow
        # Forward is a third of a step.
        return step * (train.steps(self.recipe.batch_size) + len(validation) / 3 / self.recipe.batch_size)

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
        generator = torch.Generator().manual_seed(epoch_seed)
        own = self.processes.own(generator)
        torch.manual_seed(own.initial_seed())
        steps = train.steps(self.recipe.batch_size)
        self.network.train()
        losses = []
        for step, (images, classes) in enumerate(train.shuffled(self.recipe.batch_size, generator)):
            set_learning_rate(self.optimizer, self.recipe, (self.epochs_done + step / steps) / self.recipe.epochs)
            loss = self._step(*self._vary(images, classes, own))
            progress.step(loss, len(images))
            losses.append(loss)
        self.epochs_done += 1
        return sum(losses) / len(losses)

    def _vary(self, images: Tensor, classes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images, classes = self.processes.share(images), self.processes.share(classes)
        images = self.recipe.augmentation(images, generator)
        images, targets = self.recipe.mixing(images, classes, self.n_classes)
        return images.contiguous(memory_format=torch.channels_last), targets

    def _step(self, images: Tensor, targets: Tensor) -> float:
        with rounded(self.bfloat16):
            logits = self.network(images)
        smoothing = self.recipe.label_smoothing
        loss = F.cross_entropy(logits.float(), targets, weight=self.class_weights, label_smoothing=smoothing)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        by_class = None if targets.is_floating_point() else self.class_weights
        self.processes.mean_gradients(self.network, loss, len(targets) if by_class is None else by_class[targets].sum())
        with rounded(self.bfloat16):
            self.optimizer.step()
        self.averaged.update_parameters(self.network)
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(f"the loss became {value} in epoch {self.epochs_done + 1}: the learning rate is too high")
        return value

    def _validate(self, validation: Batches) -> tuple[float, float]:
        """Measures the averaged weights and keeps them if they are the best so far; returns their loss and accuracy."""
        with rounded(self.bfloat16):
            own = compute_logits(self.averaged.module, self.processes.share(validation)).float()
        logits = self.processes.gather(own, len(validation))
        loss = F.cross_entropy(logits, validation.classes).item()
        n_correct = int((logits.argmax(dim=1) == validation.classes).sum())
        if self.best is None or self.best.is_beaten_by(n_correct, loss):
            weights = {name: value.clone() for name, value in self.averaged.module.state_dict().items()}
            self.best = Best(self.epochs_done, n_correct, loss, weights)
        return loss, n_correct / len(validation)

    @property
    def is_over(self) -> bool:
        """All epochs are done, or the last `patience` of them brought nothing better."""
        patience, best = self.recipe.patience, self.best.epoch if self.best else 0
        return self.epochs_done >= self.recipe.epochs or (patience is not None and self.epochs_done - best >= patience)

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
    state = training.processes.agree(checkpoint.load())
    if training.recipe.balanced:
        training.class_weights = train.class_weights(training.n_classes)
    if state is None:
        training.start(train, validation, deadline)
    training.restore(state or training.processes.agree(training.state()))  # all go on as one
    for tracker in training.trackers:
        tracker.epochs(training.history)
    ends = [time.monotonic()]
    with Progress(training.recipe.epochs, train.steps(training.recipe.batch_size)) as progress:
        while not training.is_over:
            training.run_epoch(train, validation, progress)
            if state is None and deadline is not None:
                ends.append(time.monotonic())
                # One epoch that other programs held up says nothing of the next ones.
                seconds = statistics.median(end - begin for begin, end in list(pairwise(ends))[-LATEST_EPOCHS:])
                # The first whole epoch tells more than a few steps; later, more epochs would raise the learning rate again.
                training.plan(deadline, seconds, at_most=MAX_EPOCHS if training.epochs_done == 1 else training.recipe.epochs)
                progress.expect(training.recipe.epochs)
            if not training.processes.rank:
                checkpoint.save(training.state())
            for tracker in training.trackers:
                tracker.epochs(training.history[-1:])
    return training.best_network()
