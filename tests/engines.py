"""Engines on a real event loop and real threads, for the tests of the queue."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from app.classifier import Classifier
from app.engine import Answer, Engine
from app.metrics import Metrics
from tests.fakes import FakeClassifier
from tests.models import png


def image(red: int) -> bytes:
    """An image that the fake classifier gives class `red`."""
    return png((red, 0, 0))


@asynccontextmanager
async def running(classifier: Classifier, **options: Any) -> AsyncIterator[Engine]:
    """An engine on one thread unless told otherwise; closed at the end."""
    engine = Engine(classifier, Metrics(), **({"threads": 1} | options))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def ends(futures: Sequence[asyncio.Future[Answer]]) -> list[Answer | BaseException]:
    """What the futures end with."""
    async with asyncio.timeout(30):
        return await asyncio.gather(*futures, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    """Returns when the condition holds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


def soon(seconds: float = 30) -> float:
    """A deadline."""
    return time.monotonic() + seconds


@asynccontextmanager
async def blocked(**options: Any) -> AsyncIterator[tuple[Engine, FakeClassifier]]:
    """An engine whose only thread is held by image 1 until the gate opens."""
    fake = FakeClassifier()
    async with running(fake, **options) as engine:
        fake.gate.clear()
        first = engine.submit([image(1)], deadline=soon())
        await until(lambda: fake.seen[-1] == 1)
        try:
            yield engine, fake
        finally:
            fake.gate.set()
            await ends(first)
