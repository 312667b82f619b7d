"""BentoML: worker processes with adaptive batching, or without it where BENCH_BATCH is 1. `bentoml serve` runs it."""

from pathlib import Path

import bentoml
from common import BATCH, WORKERS, Network


class Base:
    def __init__(self):
        self._network = Network()

    def answer(self, images):
        return self._network.classify([self._network.decode(image.read_bytes()) for image in images])


@bentoml.service(workers=WORKERS, threads=1, traffic={"timeout": 60})
class Batching(Base):
    """See the module."""

    @bentoml.api(batchable=True, max_batch_size=max(2, BATCH), max_latency_ms=60_000)
    def predict(self, images: list[Path]) -> list[dict]:
        return self.answer(images)


@bentoml.service(workers=WORKERS, threads=1, traffic={"timeout": 60})
class Single(Base):
    """See the module."""

    @bentoml.api
    def predict(self, images: list[Path]) -> list[dict]:
        return self.answer(images)
