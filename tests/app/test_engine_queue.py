"""The engine's queue: refusals are early and honest, what nobody waits for is never run, batches fill as they were told."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from app.engine import Answer, Engine
from app.errors import DeadlineExceededError, OverloadedError
from app.metrics import Metrics
from tests.engines import blocked, ends, image, running, soon, until
from tests.fakes import FakeClassifier


@pytest.mark.parametrize(("queued", "images"), [(0, 3), (2, 1), (1, 2)])
def test_a_queue_takes_images_up_to_its_size(queued: int, images: int) -> None:
    async def scenario() -> int:
        async with blocked(max_queue_size=4) as (engine, _):  # one of the four runs
            engine.submit([image(2)] * queued, deadline=soon())
            engine.submit([image(2)] * images, deadline=soon())
            return engine.queue_depth

    assert asyncio.run(scenario()) == 3


@pytest.mark.parametrize(("queued", "images"), [(0, 4), (3, 1), (2, 2)])
def test_a_full_queue_refuses_all_of_them(queued: int, images: int) -> None:
    async def scenario() -> tuple[int, float]:
        async with blocked(max_queue_size=4) as (engine, _):
            engine.submit([image(2)] * queued, deadline=soon())
            with pytest.raises(OverloadedError) as caught:
                engine.submit([image(2)] * images, deadline=soon())
            return engine.queue_depth, caught.value.retry_after_seconds

    depth, retry_after_seconds = asyncio.run(scenario())
    assert depth == queued
    assert 0 < retry_after_seconds < 1


def test_what_cannot_meet_its_deadline_is_refused_at_once_with_an_honest_wait() -> None:
    async def scenario() -> float:
        fake = FakeClassifier(seconds_per_image=0.05)
        async with running(fake, max_batch_size=1) as engine:
            futures = engine.submit([image(0)] * 10, deadline=soon())
            wait = engine.estimated_wait_seconds()
            with pytest.raises(OverloadedError) as caught:
                engine.submit([image(0)], deadline=soon(0.2))
            assert caught.value.retry_after_seconds == pytest.approx(wait - 0.2, abs=0.05)
            begun = time.monotonic()
            await ends(futures + engine.submit([image(0)], deadline=soon(10)))
            assert time.monotonic() - begun == pytest.approx(wait, rel=0.5)
            return wait

    assert asyncio.run(scenario()) == pytest.approx(11 * 0.05, rel=0.5)


def test_an_idle_engine_takes_an_image_whatever_its_estimate_and_so_learns_that_it_is_fast_again() -> None:
    async def scenario() -> list[float]:
        fake = FakeClassifier(seconds_per_image=0.3)  # one slow moment: the warm-up
        async with running(fake) as engine:
            fake.seconds_per_image = 0
            estimates = [engine.estimated_wait_seconds()]
            for _ in range(30):
                await ends(engine.submit([image(0)], deadline=soon(0.1)))
                estimates.append(engine.estimated_wait_seconds())
            return estimates

    estimates = asyncio.run(scenario())
    assert estimates[0] >= 0.3
    assert estimates[-1] < 0.1


def test_an_image_whose_deadline_passes_in_the_queue_is_never_run() -> None:
    async def scenario() -> tuple[Answer | BaseException, list[int]]:
        async with blocked() as (engine, fake):
            futures = engine.submit([image(200)], deadline=soon(0.05))
            await asyncio.sleep(0.1)
            fake.gate.set()
            [outcome] = await ends(futures)
            return outcome, fake.seen

    outcome, seen = asyncio.run(scenario())
    assert isinstance(outcome, DeadlineExceededError)
    assert 200 not in seen


def test_an_image_whose_client_left_the_queue_is_never_run() -> None:
    async def scenario() -> list[int]:
        async with blocked() as (engine, fake):
            gone, stays = engine.submit([image(200), image(2)], deadline=soon())
            gone.cancel()
            fake.gate.set()
            await stays
            return fake.seen

    assert 200 not in asyncio.run(scenario())


@pytest.mark.parametrize("threads", [1, 2])
def test_max_wait_lets_a_batch_fill(threads: int) -> None:
    async def scenario() -> tuple[list[Answer | BaseException], float]:
        async with running(FakeClassifier(), threads=threads, max_batch_size=4, max_wait_seconds=1) as engine:
            begun = time.monotonic()
            futures = []
            for _ in range(4):
                futures += engine.submit([image(0)], deadline=soon())
                await asyncio.sleep(0.01)
            return await ends(futures), time.monotonic() - begun

    answers, seconds = asyncio.run(scenario())
    assert [answer.batch_size for answer in answers if isinstance(answer, Answer)] == [4] * 4
    assert seconds < 0.8  # full, so nobody waits on


def test_max_wait_ends_for_a_batch_that_does_not_fill() -> None:
    async def scenario() -> float:
        async with running(FakeClassifier(), max_batch_size=4, max_wait_seconds=0.2) as engine:
            begun = time.monotonic()
            await ends(engine.submit([image(0)], deadline=soon()))
            return time.monotonic() - begun

    assert 0.19 < asyncio.run(scenario()) < 1


def test_without_max_wait_nobody_waits_and_what_queued_meanwhile_runs_together() -> None:
    async def scenario() -> list[int]:
        async with blocked(max_batch_size=4) as (engine, fake):
            futures = engine.submit([image(2)] * 6, deadline=soon())
            fake.gate.set()
            await ends(futures)
            return fake.batches

    assert asyncio.run(scenario()) == [1, 1, 4, 2]


@pytest.mark.parametrize("threads", [1, 2])
def test_only_the_single_image_in_flight_counts_as_alone(threads: int) -> None:
    async def scenario() -> list[bool]:
        fake = FakeClassifier(seconds_per_image=0.05)
        async with running(fake, threads=threads, max_batch_size=1) as engine:
            fake.alone.clear()
            await ends(engine.submit([image(0)], deadline=soon()))
            await ends(engine.submit([image(0)] * 3, deadline=soon()))
            return fake.alone

    assert asyncio.run(scenario())[:2] == [True, False]


def outcome_counts(work: Callable[[Engine, FakeClassifier], Coroutine[Any, Any, None]]) -> dict[str, float]:
    """What `convserve_images_total` says after `work`, without the warm-up and the blocker, that are classified."""

    async def scenario() -> Metrics:
        fake, metrics = FakeClassifier(), Metrics()
        engine = Engine(fake, metrics, threads=1)
        await engine.start()
        fake.gate.clear()
        blocker = engine.submit([image(1)], deadline=soon())
        await until(lambda: fake.seen[-1] == 1)
        await work(engine, fake)
        fake.gate.set()
        await ends(blocker)
        await engine.close()
        await asyncio.sleep(0)
        return metrics

    registry = asyncio.run(scenario()).registry
    names = ("classified", "failed", "expired", "abandoned")
    counts = {name: registry.get_sample_value("convserve_images_total", {"outcome": name}) or 0 for name in names}
    return {name: value for name, value in (counts | {"classified": counts["classified"] - 2}).items() if value}


def test_each_image_is_counted_once_by_what_became_of_it() -> None:
    async def work(engine: Engine, fake: FakeClassifier) -> None:
        late = engine.submit([image(0)], deadline=soon(0.03))
        gone = engine.submit([image(0)], deadline=soon())
        engine.submit([b"text", image(0)], deadline=soon())
        late[0].cancel()  # as `Service.classify` does when the time is up
        gone[0].cancel()
        await asyncio.sleep(0.05)

    assert outcome_counts(work) == {"classified": 1, "failed": 1, "expired": 1, "abandoned": 1}
