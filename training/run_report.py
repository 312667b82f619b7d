"""What the report of a training is made of: plain values that training has in hand when the model file is done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from training.evaluate import Measured


@dataclass(frozen=True)
class Epoch:
    number: int  # from 1
    train_loss: float  # mean over its steps, as it was minimised
    validation_loss: float  # cross-entropy, nats
    accuracy: float  # on validation
    learning_rate: float  # at its last step


@dataclass(frozen=True)
class RunReport:
    """All that the page shows. Its details are about the last part: test where there is one, since nothing was chosen on it."""

    parts: Sequence[Measured]  # validation, and perhaps test
    history: Sequence[Epoch] = ()  # empty for a model that was not trained here
    audit: Mapping[tuple[str, str], Sequence[str]] | None = None  # by severity and kind; None: there was no audit
    verdict: Sequence[tuple[str, str]] = ()  # of quantisation: names and values
