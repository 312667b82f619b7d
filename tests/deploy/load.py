"""Open-loop load: requests leave at their times, whether or not earlier ones were answered, as the world's do."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx


@dataclass
class Load:
    """What became of the requests so far. `failures` are all but a 200, with the second in which they were sent."""

    statuses: Counter[int] = field(default_factory=Counter)
    failures: list[tuple[float, str]] = field(default_factory=list)
    slowest_seconds: float = 0.0
    stopped: threading.Event = field(default_factory=threading.Event)

    @property
    def sent(self) -> int:
        return self.statuses.total() + sum(not what.isdigit() for _, what in self.failures)


async def _ask(client: httpx.AsyncClient, body: bytes, load: Load) -> None:
    begun = time.monotonic()
    try:
        response = await client.post("/predict", content=body)
    except httpx.HTTPError as error:
        load.failures.append((begun, repr(error)))
        return
    load.slowest_seconds = max(load.slowest_seconds, time.monotonic() - begun)
    load.statuses[response.status_code] += 1
    if response.status_code != 200:
        load.failures.append((begun, str(response.status_code)))


async def _send(url: str, body: bytes, per_second: float, seconds: float, load: Load) -> None:
    limits = httpx.Limits(max_connections=64)
    async with (
        httpx.AsyncClient(base_url=url, timeout=30, limits=limits, trust_env=False) as client,
        asyncio.TaskGroup() as tasks,
    ):
        begun = time.monotonic()
        for number in range(int(per_second * seconds)):
            await asyncio.sleep(max(0.0, begun + number / per_second - time.monotonic()))
            if load.stopped.is_set():
                break
            tasks.create_task(_ask(client, body, load))


@contextmanager
def open_loop(url: str, body: bytes, *, per_second: float, at_most_seconds: float) -> Iterator[Load]:
    """Sends in a thread for as long as the block lasts; every request has its outcome when the block has ended."""
    load = Load()
    thread = threading.Thread(target=lambda: asyncio.run(_send(url, body, per_second, at_most_seconds, load)))
    thread.start()
    try:
        yield load
    finally:
        load.stopped.set()
        thread.join()
