"""Small stand-ins for what cannot be had on order: a classifier that is slow, blocked or broken at will."""

import asyncio
import math
import threading
import time
from collections.abc import MutableMapping
from typing import Any

import numpy as np

from app.classifier import Classifier, Probabilities
from app.image import Pixels
from app.spec import ModelSpec
from tests.models import colour_spec


class FakeClassifier(Classifier):
    """Says class N for an image whose first red is N; fails on `poison`. `batches` are the sizes it was called with."""

    def __init__(self, *, spec: ModelSpec | None = None, seconds_per_image: float = 0.0) -> None:
        self.spec = spec or colour_spec()
        self.sha256 = "0" * 64
        self.window = None
        self.seconds = math.inf
        self.seconds_per_image = seconds_per_image
        self.poison: dict[int, BaseException] = {}  # first red to what is raised
        self.gate = threading.Event()  # closed: calls wait
        self.gate.set()
        self.seen: list[int] = []  # first red of every image that came, also of failed batches
        self.batches: list[int] = []
        self.alone: list[bool] = []  # which of them were told to be alone
        self.threads: list[threading.Thread] = []  # that called it

    @property
    def provider(self) -> str:
        return "none"

    def __call__(self, batch: Pixels, *, alone: bool = False) -> Probabilities:
        """One-hot rows."""
        self.alone.append(alone)
        self.threads.append(threading.current_thread())
        reds = [int(red) for red in batch[:, 0, 0, 0]]
        self.batches.append(len(batch))
        self.seen += reds
        assert self.gate.wait(30)
        time.sleep(self.seconds_per_image * len(batch))
        for red in reds:
            if red in self.poison:
                raise self.poison[red]
        return np.eye(256, len(self.spec.labels), dtype=np.float32)[reds]


async def never_leaves() -> MutableMapping[str, Any]:
    """The `receive` of a client that waits for its answer however long it takes."""
    await asyncio.Event().wait()
    return {}
