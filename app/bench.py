"""`python -m app bench`: how much a service, or its engine without HTTP, can bear, and which settings that asks for.

    images ──closed loop (each client waits for its answer)──▶ most images/s
           ──open loop (they come whether or not the last is answered)──▶ highest rate that keeps the p99 target ──▶ settings

In an open loop a latency counts from when the image was due, so that a service that falls behind cannot hide it.
"""

import argparse
import asyncio
import json
import math
import ssl
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from urllib.parse import urlsplit

from app.classifier import Classifier
from app.errors import ConvServeError, SettingsError
from app.image import sniff
from app.service import Service
from app.settings import PREFIX, Settings

PATIENCE_SECONDS = 60.0
IDLE_SECONDS = 30.0  # servers and load balancers close connections that nobody used for a minute
SEARCH_STEPS = 6  # the rate is found to within 3 % of the fastest
BUSY_CORES = 0.7  # of this client: beyond it it may be what limits
MAX_OPEN = 2000  # requests at once: beyond it the service is lost anyway, and file descriptors are few

Send = Callable[[bytes], Awaitable[int]]  # an encoded image → the HTTP status it was answered with, 0 for none


@dataclass(slots=True)
class Run:
    """What one loop came to. `latencies` are seconds of the images answered with 200."""

    begun: float = field(default_factory=time.perf_counter)
    cpu: float = field(default_factory=time.process_time)
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    failures: Counter[int] = field(default_factory=Counter)  # by status

    async def take(self, answer: Awaitable[int], since: float) -> None:
        """Waits for an answer's status and records it with the seconds `since`, of time.perf_counter."""
        if (status := await answer) == 200:
            self.latencies.append(time.perf_counter() - since)
        else:
            self.failures[status] += 1

    def end(self) -> "Run":
        """`cpu` becomes the CPU seconds that the client used."""
        self.seconds, self.cpu = time.perf_counter() - self.begun, time.process_time() - self.cpu
        return self

    @property
    def rate(self) -> float:
        """Images answered with 200, per second."""
        return len(self.latencies) / self.seconds

    def quantile_ms(self, share: float) -> float:
        """Nearest rank; infinite where nothing was answered."""
        ranked = sorted(self.latencies)
        return 1000 * ranked[max(0, math.ceil(share * len(ranked)) - 1)] if ranked else math.inf

    def line(self, title: str) -> str:
        failures = ", ".join(f"{n} × {status or 'no answer'}" for status, n in sorted(self.failures.items()))
        return f"{title:>10} {self.rate:10,.1f} {self.quantile_ms(0.5):9,.1f} {self.quantile_ms(0.99):9,.1f}   {failures}"


class HttpTarget:
    """Keep-alive connections to one URL, as many as are needed at once: lighter than a library, since it shares the CPU."""

    def __init__(self, url: str, key: str | None = None) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SettingsError(f"{url} is not an address: give one like http://127.0.0.1:8000")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._address = parts.hostname, parts.port or (443 if self._tls else 80)
        self._path = parts.path.rstrip("/")
        self._head = f"Host: {parts.netloc}\r\n" + (f"X-API-Key: {key}\r\n" if key else "")
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter, float]] = []  # since when

    async def __call__(self, image: bytes) -> int:
        """One request to /predict."""
        try:
            return (await self.ask("POST", "/predict", image))[0]
        except (OSError, EOFError, ValueError):
            return 0

    async def ask(self, method: str, path: str, body: bytes = b"", more: str = "") -> tuple[int, dict[str, str], bytes]:
        """Status, headers (lower case) and body; `more` are header lines. Raises: OSError, EOFError, ValueError."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            reader, writer = self._take_idle() or await asyncio.open_connection(*self._address, ssl=self._tls)
            is_kept = False
            try:
                head = f"{method} {self._path}{path} HTTP/1.1\r\n{self._head}{more}Content-Length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
                status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                answer = await reader.readexactly(int(headers.get("content-length", "none")))
                is_kept = headers.get("connection", "").lower() != "close"
                return int(status.split()[1]), headers, answer
            finally:
                if is_kept:
                    self._idle.append((reader, writer, time.monotonic()))
                else:
                    writer.close()

    def _take_idle(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """The connection that was used last, unless the server may be about to close it, or has."""
        while self._idle:
            reader, writer, since = self._idle.pop()
            if time.monotonic() - since < IDLE_SECONDS and not reader.at_eof():
                return reader, writer
            writer.close()
        return None

    async def close(self) -> None:
        """Hangs up the connections that are kept."""
        writers = [writer for _, writer, _ in self._idle]
        for writer in writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)
        self._idle.clear()


async def closed_loop(send: Send, images: Sequence[bytes], clients: int, seconds: float) -> Run:
    """Each of `clients` sends its next image when it has the answer to its last."""
    run, order = Run(), cycle(images)

    async def client() -> None:
        while (at := time.perf_counter()) < run.begun + seconds:
            await run.take(send(next(order)), at)

    await asyncio.gather(*(client() for _ in range(clients)))
    return run.end()


async def open_loop(send: Send, images: Sequence[bytes], rate: float, seconds: float) -> Run:
    """Images are due at equal distances, `rate` a second, whatever became of the others."""
    run, order, tasks = Run(), cycle(images), set[asyncio.Task[None]]()
    for due in (run.begun + number / rate for number in range(max(1, round(rate * seconds)))):
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        if len(tasks) < MAX_OPEN:
            task = asyncio.create_task(run.take(send(next(order)), due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        else:
            run.failures[0] += 1
    await asyncio.gather(*tasks)
    return run.end()


async def find_rate(send: Send, images: Sequence[bytes], fastest: float, p99_ms: float, seconds: float) -> float:
    """The highest open-loop rate at which every image is answered and 99 % within `p99_ms`, by bisection; 0 where none is."""
    low, high = 0.0, fastest * 1.05
    for step in range(SEARCH_STEPS):
        rate = (low + high) / 2 if step else fastest * 0.9
        run = await open_loop(send, images, rate, seconds)
        keeps = not run.failures and run.quantile_ms(0.99) <= p99_ms
        low, high = (rate, high) if keeps else (low, rate)
        print(run.line(f"{rate:,.1f}") + ("kept" if keeps else ""))
    return low


def advise(rate: float, threads: int, options: argparse.Namespace) -> list[str]:
    """What to write into the manifest for a service of which one replica bears `rate` images/s."""
    queue = max(2 * threads, math.ceil(rate * (options.p99_ms / 1000)))
    lines = [
        f"{PREFIX}THREADS={threads}   (and as many CPUs as request and limit)",
        f"{PREFIX}REQUEST_TIMEOUT_MS={options.p99_ms:g}   (who would wait longer is told so at once)",
        f"{PREFIX}MAX_QUEUE_SIZE={queue}   (more could not be answered within {options.p99_ms:g} ms)",
    ]
    if options.load:
        n = math.ceil(options.load / rate)
        lines.append(f"replicas: {n}   ({options.load:g} images/s: {options.load / rate / n:.0%} busy; add one to spare)")
    if options.price:
        lines.append(f"cost: {options.price / rate / 3600 * 1e6:,.2f} per million images, at {options.price:g} an hour")
    return lines


async def _run(options: argparse.Namespace, settings: Settings) -> None:
    images = _read_images(options.images) if options.images else []
    if not options.in_process:
        images = images or _read_images(settings.model)
        target = HttpTarget(options.url, options.key)
        try:
            health = json.loads((await target.ask("GET", "/health"))[2])
        except (OSError, EOFError, ValueError) as error:
            raise SettingsError(f"{options.url}/health does not answer as ConvServe does: is it running? ({error})") from error
        print(f"{health['model']['name']} {health['model']['version']} at {options.url}, {health['threads']} threads")
        return await _measure(target, images, health["threads"], options)
    service = Service.create(settings)
    await service.engine.start()
    spec, threads = service.classifier.spec, service.engine.threads
    images = images or [one.data for one in spec.goldens]

    async def send(image: bytes) -> int:
        try:
            await service.engine.submit([image], deadline=time.monotonic() + settings.request_timeout_ms / 1000)[0]
        except ConvServeError as error:
            return error.status
        return 200

    print(f"{spec.name} {spec.version} in this process, without HTTP, {threads} threads")
    await _measure(send, images, threads, options)
    return await service.engine.close()


async def _measure(send: Send, images: Sequence[bytes], threads: int, options: argparse.Namespace) -> None:
    print(f"{len(images)} images, {sum(map(len, images)) / len(images) / 1000:,.1f} kB on average\n")
    await closed_loop(send, images, options.clients, 1)  # warm-up
    print(f"{'clients':>10} {'images/s':>10} {'p50 ms':>9} {'p99 ms':>9}")
    runs = {clients: await closed_loop(send, images, clients, options.seconds) for clients in (1, options.clients)}
    print("\n".join(run.line(str(clients)) for clients, run in runs.items()))
    if not (fastest := max(run.rate for run in runs.values())):
        raise SettingsError("no image was answered with 200: the statuses above and the service's log say why")
    print(f"\n{'due/s':>10} {'images/s':>10} {'p50 ms':>9} {'p99 ms':>9}   kept: all answered, p99 ≤ {options.p99_ms:g} ms")
    rate = round(await find_rate(send, images, fastest, options.p99_ms, options.seconds), 1)  # as it is printed
    if not options.in_process and (cores := max(run.cpu / run.seconds for run in runs.values())) > BUSY_CORES:
        print(f"\nthis client kept {cores:.0%} of a core busy: the service may bear more; send from another machine")
    if not rate:
        raise SettingsError(f"no rate keeps p99 ≤ {options.p99_ms:g} ms: allow more with --p99-ms")
    print(f"\none replica bears {rate:,.1f} images/s:\n  " + "\n  ".join(advise(rate, threads, options)))


def _read_images(path: Path) -> list[bytes]:
    """Every image under a folder, or those inside a model file. Raises: SettingsError, ModelError."""
    if path.suffix == ".onnx":
        return [one.data for one in Classifier.load(path).spec.goldens]
    found = []
    for file in sorted(one for one in path.rglob("*") if one.is_file()):
        with suppress(ConvServeError):
            sniff(data := file.read_bytes())
            found.append(data)
    if not found:
        raise SettingsError(f"{path} holds no image that is served: name a folder with JPEG, PNG or other images")
    return found


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 0, or 1 with one sentence where nothing could be measured."""
    parser = argparse.ArgumentParser(prog="python -m app bench", description="Measures what a service can bear.")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("url", nargs="?", metavar="URL", help="of a running service")
    where.add_argument("--in-process", action="store_true", help=f"the engine with the settings {PREFIX}*, without HTTP")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="what to send (default: the images in the model file)")
    parser.add_argument("--clients", type=int, default=32, metavar="N", help="at once, beside one alone (default: 32)")
    parser.add_argument("--p99-ms", type=float, default=500, metavar="MS", help="that the rate must keep (default: 500)")
    parser.add_argument("--seconds", type=float, default=5, help="of each run (default: 5; there are about ten)")
    parser.add_argument("--load", type=float, metavar="RATE", help="images/s that all replicas shall bear")
    parser.add_argument("--price", type=float, metavar="MONEY", help="of a replica for an hour")
    parser.add_argument("--key", help="API key")
    options = parser.parse_args(arguments)
    try:
        asyncio.run(_run(options, Settings.load()))
    except ConvServeError as error:
        print(f"convserve: {error}", file=sys.stderr)
        return 1
    return 0
