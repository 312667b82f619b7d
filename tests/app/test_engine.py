"""The engine: batching changes no answer, failures stay with their image, closing is clean, and a hang is seen."""

import asyncio
import math
import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.classifier import Classifier
from app.engine import Answer, Engine
from app.errors import DrainingError, UndecodableImageError
from app.image import decode, fit
from app.metrics import Metrics
from tests.engines import blocked, ends, image, running, soon, until
from tests.fakes import FakeClassifier
from tests.models import png

Images = Sequence[bytes]
POISON = 13


def alone(classifier: Classifier, data: bytes) -> list[float] | type[Exception]:
    """What an image comes to without an engine."""
    spec = classifier.spec.input
    try:
        row = classifier(fit(decode(data, spec), spec)[np.newaxis])[0]
    except Exception as error:
        return type(error)
    return [float(value) for value in row]


def some_image(chance: random.Random) -> bytes:
    size = chance.choice([8, 8, 20])
    picture = png(np.random.default_rng(chance.randrange(2**32)).integers(0, 256, (size, size, 3), np.uint8))
    return chance.choice([picture] * 6 + [picture[:60], b"text", b"", png((255, 255, 255))])


@pytest.mark.parametrize("seed", range(4))
def test_concurrent_clients_get_what_each_image_gets_alone(colours: Path, seed: int) -> None:
    chance = random.Random(seed)
    classifier = Classifier.load(colours)
    requests = [[some_image(chance) for _ in range(chance.randint(1, 6))] for _ in range(40)]

    async def ask(engine: Engine, images: Images) -> list[Answer | BaseException]:
        await asyncio.sleep(chance.random() * 0.05)
        return await ends(engine.submit(images, deadline=soon()))

    async def scenario() -> list[list[Answer | BaseException]]:
        options: dict[str, Any] = {"threads": chance.choice([1, 2, 3]), "max_batch_size": chance.choice([2, 4, 16])}
        options |= {"max_wait_seconds": chance.choice([0, 0.005]), "shares_cores": chance.choice([False, True])}
        async with running(classifier, **options) as engine:
            return await asyncio.gather(*[ask(engine, images) for images in requests])

    for images, outcomes in zip(requests, asyncio.run(scenario()), strict=True):
        for data, outcome in zip(images, outcomes, strict=True):
            expected = alone(classifier, data)
            if isinstance(outcome, Answer):
                assert outcome.probabilities.tolist() == pytest.approx(expected, abs=1e-5)
            else:
                assert type(outcome) is expected


@pytest.mark.parametrize(
    ("seconds", "options", "on_the_loop"),
    [
        (0, {}, [True, False]),  # a thread helps who comes while the first is in progress
        (0, {"shares_cores": True}, [True, True]),
        (0, {"shares_cores": True, "max_wait_seconds": 0.001}, [False, False]),
        (0.001, {"shares_cores": True}, [False, False]),
    ],
)
def test_an_instant_model_runs_on_the_event_loop_where_a_thread_would_gain_nothing(
    seconds: float, options: dict[str, Any], on_the_loop: list[bool]
) -> None:
    async def scenario() -> list[bool]:
        fake = FakeClassifier()
        async with running(fake, max_batch_size=1, **options) as engine:
            fake.seconds = seconds
            fake.threads.clear()
            both = [*engine.submit([image(0)], deadline=soon()), *engine.submit([image(1)], deadline=soon())]
            outcomes = await ends(both)
            assert [outcome.probabilities.argmax() for outcome in outcomes if isinstance(outcome, Answer)] == [0, 1]
            assert engine.images_in_progress == 0
            return [thread is threading.main_thread() for thread in fake.threads]

    assert sorted(asyncio.run(scenario())) == sorted(on_the_loop)


def test_what_a_thread_must_decode_is_run_there_too() -> None:
    async def scenario() -> list[bool]:
        fake = FakeClassifier()
        async with running(fake, shares_cores=True) as engine:
            fake.seconds = 0
            fake.threads.clear()
            await ends(engine.submit([png(np.zeros((20, 20, 3), np.uint8))], deadline=soon()))
            return [thread is threading.main_thread() for thread in fake.threads]

    assert asyncio.run(scenario()) == [False]


def test_closing_finishes_what_the_event_loop_was_to_run() -> None:
    async def scenario() -> list[Answer | BaseException]:
        fake = FakeClassifier()
        async with running(fake, shares_cores=True, max_batch_size=2) as engine:
            fake.seconds = 0
            futures = engine.submit([image(red) for red in range(9)], deadline=soon())
            await engine.close()
            assert all(future.done() for future in futures)
            return await ends(futures)

    assert [type(outcome) for outcome in asyncio.run(scenario())] == [Answer] * 9


def test_a_session_that_fails_on_one_image_fails_for_that_image_alone() -> None:
    async def scenario() -> tuple[list[Answer | BaseException], list[int]]:
        async with blocked(max_batch_size=8) as (engine, fake):
            fake.poison[POISON] = ValueError("poison")
            futures = engine.submit([image(0), image(POISON), image(2)], deadline=soon())
            fake.gate.set()
            return await ends(futures), fake.batches

    (first, second, third), batches = asyncio.run(scenario())
    assert isinstance(first, Answer)
    assert first.probabilities.argmax() == 0
    assert isinstance(second, ValueError)
    assert isinstance(third, Answer)
    assert third.probabilities.argmax() == 2
    assert batches == [1, 1, 3, 1, 1, 1]  # golden, blocker, all three, then each alone


def test_an_image_that_does_not_decode_never_reaches_the_session() -> None:
    async def scenario() -> tuple[list[Answer | BaseException], list[int]]:
        async with blocked(max_batch_size=8) as (engine, fake):
            futures = engine.submit([image(0), image(1)[:40], image(2)], deadline=soon())
            fake.gate.set()
            return await ends(futures), fake.batches

    outcomes, batches = asyncio.run(scenario())
    assert [type(outcome) for outcome in outcomes] == [Answer, UndecodableImageError, Answer]
    assert batches == [1, 1, 2]


def test_closing_finishes_what_was_accepted_and_refuses_the_rest() -> None:
    async def scenario() -> list[Answer | BaseException]:
        fake = FakeClassifier(seconds_per_image=0.02)
        async with running(fake, max_batch_size=2) as engine:
            futures = engine.submit([image(0)] * 9, deadline=soon())
            closing = asyncio.create_task(engine.close())
            await asyncio.sleep(0)
            with pytest.raises(DrainingError):
                engine.submit([image(0)], deadline=soon())
            await closing
            assert all(future.done() for future in futures)
            return await ends(futures)

    assert [type(outcome) for outcome in asyncio.run(scenario())] == [Answer] * 9


def test_an_engine_that_never_started_closes() -> None:
    asyncio.run(Engine(FakeClassifier(), Metrics(), threads=2).close())


def test_an_engine_starts_with_a_queue_smaller_than_its_threads() -> None:
    async def scenario() -> list[Answer | BaseException]:
        async with running(FakeClassifier(), threads=4, max_queue_size=1) as engine:
            return await ends(engine.submit([image(0)], deadline=math.inf))

    assert isinstance(asyncio.run(scenario())[0], Answer)


def test_a_batch_that_hangs_shows_as_stalled_until_it_ends() -> None:
    async def scenario() -> tuple[float, float]:
        async with blocked() as (engine, fake):
            await asyncio.sleep(0.1)
            hanging = engine.stalled_seconds()
            fake.gate.set()
            await until(lambda: engine.images_in_progress == 0)
            return hanging, engine.stalled_seconds()

    hanging, after = asyncio.run(scenario())
    assert hanging >= 0.1
    assert after == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_died_shows_as_stalled_for_ever() -> None:
    async def scenario() -> float:
        fake = FakeClassifier()
        async with running(fake, threads=2) as engine:
            fake.poison[POISON] = SystemExit()  # ends a thread silently
            [lost] = engine.submit([image(POISON)], deadline=soon())
            await until(lambda: engine.stalled_seconds() == math.inf)
            lost.cancel()
            return engine.stalled_seconds()

    assert asyncio.run(scenario()) == math.inf
