"""What the faults share: a model, a service that can be broken on order, and load."""

import asyncio
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from app.bench import HttpTarget, Run, open_loop
from tests.models import png, write_colour_model
from tests.service import ServiceProcess, serve

RED, WHITE = png((255, 0, 0)), png((255, 255, 255))  # the session fails on white
DIES, HANGS = png((1, 0, 0)), png((2, 0, 0))  # in benchmarks.faults.fragile


class BrokenPromiseError(AssertionError):
    """What the service should bear, it did not."""


def expect(is_kept: object, sentence: str) -> None:
    """Raises: BrokenPromiseError."""
    if not is_kept:
        raise BrokenPromiseError(sentence)


@contextmanager
def service(*, prefix: Sequence[str] = (), module: str = "app", **settings: object) -> Iterator[ServiceProcess]:
    """A service of the model that tells colours, on two threads, which ends without a drain."""
    with tempfile.TemporaryDirectory() as folder:
        model = write_colour_model(Path(folder) / "colours.onnx", fails_on_white=True)
        with serve(prefix=prefix, module=module, **({"model": model, "threads": 2, "drain_seconds": 0} | settings)) as process:
            yield process


def load(process: ServiceProcess, rate: float, seconds: float, images: Sequence[bytes] = (RED,)) -> Run:
    """An open loop of images; the services here can bear many hundred a second."""
    target = HttpTarget(process.url)

    async def send() -> Run:
        run = await open_loop(target, images, rate, seconds)
        await target.close()
        return run

    return asyncio.run(send())


def expect_all_answered(run: Run) -> str:
    """Every image was answered with 200; says how fast."""
    expect(not run.failures, f"not answered with 200: {dict(run.failures)} of {len(run.latencies)}")
    return f"{len(run.latencies):,} of {len(run.latencies):,} answered, p99 {run.quantile_ms(0.99):.0f} ms"


def ask(process: ServiceProcess, image: bytes = RED, **headers: str) -> tuple[int, float]:
    """Status and seconds of one image on a connection of its own."""
    begun = time.perf_counter()
    with process.client() as client:
        return client.post("/predict", content=image, headers=headers).status_code, time.perf_counter() - begun


def probe(process: ServiceProcess, path: str = "/livez") -> int:
    """The status of a probe, on a connection of its own as the kubelet's."""
    with process.client() as client:
        return client.get(path).status_code


def seconds_until(condition: Callable[[], bool], at_most: float) -> float:
    """How long it takes. Raises: BrokenPromiseError after `at_most`."""
    begun = time.perf_counter()
    while not condition():
        expect(time.perf_counter() - begun < at_most, f"did not come within {at_most:g} s")
        time.sleep(0.01)
    return time.perf_counter() - begun


def seconds_to_end(process: ServiceProcess, *codes: int) -> float:
    """Waits for the process to end by itself."""
    begun = time.perf_counter()
    ended = process.wait()
    expect(ended in (codes or (0,)), f"exit code {ended}")
    return time.perf_counter() - begun


def connect(process: ServiceProcess) -> socket.socket:
    """A bare connection."""
    return socket.create_connection(("127.0.0.1", process.port), timeout=10)
