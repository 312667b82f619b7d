"""What the report of a training is made of: plain values that training has in hand when the model file is done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from app.classifier import Probabilities
from app.spec import AcceptRule, ModelSpec
from training.figures import ECE_BINS, Scores, Strangers, score, uncalibrate
from training.pixels import Samples


@dataclass(frozen=True)
class Epoch:
    number: int  # from 1
    train_loss: float  # mean over its steps, as it was minimised
    validation_loss: float  # cross-entropy, nats
    accuracy: float  # on validation
    learning_rate: float  # at its last step


@dataclass(frozen=True)
class Measured:
    """One part of the data set, and what the model file answers to it."""

    # A calibrated model is wrong once in twenty at 0.95; that it then gives the label almost nothing is rarer still.
    doubt_from: ClassVar[float] = 0.95  # top probability
    doubt_label_to: ClassVar[float] = 0.01  # probability of the given label

    data: str  # its name, such as "mnist/validation"
    probabilities: Probabilities  # calibrated, as they are served
    samples: Samples

    @cached_property
    def scores(self) -> Scores:
        return score(self.probabilities, self.samples.classes)

    @cached_property
    def confidence(self) -> NDArray[np.float64]:
        return np.asarray(self.probabilities.max(axis=1), np.float64)

    @cached_property
    def wrong(self) -> NDArray[np.bool_]:
        return np.asarray(self.probabilities.argmax(axis=1) != self.samples.classes)

    @cached_property
    def bins(self) -> list[tuple[float, int, int]]:
        """The mean confidence, the images right and all images of each bin of the ECE, but for empty ones."""
        bin_of = np.minimum((self.confidence * ECE_BINS).astype(int), ECE_BINS - 1)
        members = [bin_of == number for number in np.unique(bin_of)]
        return [(float(self.confidence[one].mean()), int((one & ~self.wrong).sum()), int(one.sum())) for one in members]

    @cached_property
    def risk(self) -> NDArray[np.float64]:
        """The share of wrong answers among the 1, 2, … n surest. Source: Geifman and El-Yaniv, 2017."""
        wrong = self.wrong[np.argsort(-self.confidence, kind="stable")]
        return np.asarray(np.cumsum(wrong) / np.arange(1, len(wrong) + 1))

    def accepted(self, rule: AcceptRule | None) -> tuple[float, float]:
        """The share of images that the rule accepts, all without one, and the share of these that are wrong."""
        chosen = self.confidence >= (rule.threshold if rule else 0)
        return float(chosen.mean()), float(self.wrong[chosen].mean()) if chosen.any() else 0.0

    def mistakes(self, *, doubtful: bool) -> list[int]:
        """The images that are called wrong, the surest first: either those with a doubtful label, or the others."""
        of_label = self.probabilities[np.arange(len(self.samples)), self.samples.classes]
        is_doubtful = (self.confidence >= self.doubt_from) & (of_label <= self.doubt_label_to)
        found = np.flatnonzero(self.wrong & (is_doubtful == doubtful))
        return sorted(map(int, found), key=lambda index: -self.confidence[index])

    def uncalibrated(self, temperature: float) -> "Measured":
        """The same before the logits were divided by `temperature`."""
        return replace(self, probabilities=uncalibrate(self.probabilities, temperature))


@dataclass(frozen=True)
class RunReport:
    """All that the page shows. What was before calibration follows from the probabilities and the spec's temperature."""

    spec: ModelSpec
    sha256: str  # of the model file
    validation: Measured
    test: Measured | None = None
    history: Sequence[Epoch] = ()  # empty for a model that was not trained here
    audit: Mapping[tuple[str, str], Sequence[str]] | None = None  # by severity and kind; None: there was no audit
    strangers: Sequence[Strangers] = ()
    verdict: Sequence[Mapping[str, object]] | None = None  # of quantisation: rows of a table; the keys are its columns
    intended_use: str = "To tell its classes apart in images like those it was trained on."

    @property
    def parts(self) -> tuple[Measured, ...]:
        """What was measured. The details are about the last: test where there is one, since nothing was chosen on it."""
        return (self.validation, self.test) if self.test else (self.validation,)
