"""What a request costs the processor without a socket, and what metrics, log and tracing are of that.

    python -m benchmarks.hot_path [--model models/digits.onnx] [--image FILE] [--clients 32] [--rounds 7]

Requests go into the connection as a socket would bring them, and all clients wait for their answers. The figures are processor
time, of the event loop's thread and of the engine's, which what else runs on the machine disturbs little. Variants take turns.
"""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import uvloop
from prometheus_client.metrics import Counter
from uvicorn.server import ServerState

from app.logs import configure_logging
from app.metrics import Tally
from app.server import LateApp, _config
from app.service import Service
from app.settings import Settings
from app.shortcut import PredictProtocol
from benchmarks.machine import processor
from benchmarks.serving.contenders import ROOT

PASSES = 60  # of all clients, in a round
LONG = "?top_k=05"  # the short road takes plain numbers alone

Cost = tuple[float, float]  # microseconds a request: event loop, whole process


class Wire:
    """A transport that only counts the answers."""

    def __init__(self) -> None:
        self.answers = 0

    def write(self, data: bytes) -> None:
        self.answers += data.startswith(b"HTTP/1.1 200")

    def get_extra_info(self, name: str, default: object = None) -> object:
        return {"sockname": ("127.0.0.1", 8000), "peername": ("127.0.0.1", 50000)}.get(name, default)

    def __getattr__(self, name: str) -> Callable[..., None]:  # close, pause_reading, …: nothing happens
        return lambda *_: None


class Clients:
    """Connections to one service, each with one request at a time."""

    def __init__(self, service: Service, n: int) -> None:
        app, self.wires = LateApp(service), []
        config, state = _config(app), {"service": service, "access": app.access}
        for _ in range(n):
            connection, wire = PredictProtocol(config, ServerState(), state), Wire()
            connection.connection_made(wire)  # type: ignore[arg-type]
            self.wires.append((connection, wire))

    async def send(self, request: bytes, passes: int) -> Cost:
        """Microseconds a request, of this thread and of all."""
        loop, whole = time.thread_time(), time.process_time()
        for _ in range(passes):
            wanted = sum(wire.answers for _, wire in self.wires) + len(self.wires)
            for connection, _ in self.wires:
                connection.data_received(request)
            while sum(wire.answers for _, wire in self.wires) < wanted:
                await asyncio.sleep(0.0002)
        n = passes * len(self.wires) / 1e6
        return (time.thread_time() - loop) / n, (time.process_time() - whole) / n


@contextmanager
def without_log() -> Iterator[None]:
    with patch("app.access.log.isEnabledFor", new=_nothing):
        yield


@contextmanager
def without_metrics() -> Iterator[None]:
    with patch.object(Tally, "observe", _nothing), patch.object(Counter, "inc", _nothing):
        yield


def _nothing(*_: object) -> None: ...


async def measure(options: argparse.Namespace, image: bytes) -> dict[str, list[Cost]]:
    """Each variant's rounds."""
    plain = Service.create(Settings(model=options.model))
    traced = Service.create(Settings(model=options.model, tracing=True))
    for service in (plain, traced):
        await service.engine.start()
    head = "POST /predict{} HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: {}\r\n\r\n"
    short, long = (head.format(query, len(image)).encode() + image for query in ("", LONG))
    ours, theirs = Clients(plain, options.clients), Clients(traced, options.clients)
    variants: dict[str, tuple[Clients, bytes, list[Any]]] = {
        "as shipped": (ours, short, []),
        "without metrics": (ours, short, [without_metrics]),
        "without log": (ours, short, [without_log]),
        "through FastAPI": (ours, long, []),
        "through FastAPI, with tracing": (theirs, long, []),
    }
    rounds: list[dict[str, Cost]] = []
    for number in range(options.rounds + 1):
        rounds.append({})
        for name, (clients, request, changes) in list(variants.items())[:: 1 if number % 2 else -1]:
            with ExitStack() as stack:
                for change in changes:
                    stack.enter_context(change())
                rounds[-1][name] = await clients.send(request, PASSES)
    for service in (plain, traced):
        await service.engine.close()
    return {name: [one[name] for one in rounds[1:]] for name in variants}  # the first one warmed up


def main() -> None:
    """Measures and prints a table; log lines go nowhere, but are made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "digits.onnx")
    parser.add_argument("--image", type=Path, default=ROOT / "docs" / "images" / "seven.png")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:9"  # nobody listens: spans are made and dropped
    shown = sys.stdout
    with open(os.devnull, "w") as sys.stdout:  # noqa: PTH123
        configure_logging("info", "json")
        found = uvloop.run(measure(options, options.image.read_bytes()))
        sys.stdout = shown
    print(f"{processor()}, {options.model.name}, {options.clients} clients, {options.rounds} rounds, µs a request\n")
    print("| | event loop | whole process | against as shipped |\n|---|---|---|---|")
    base = found["as shipped"]
    for name, rounds in found.items():
        shares = [whole / first for (_, whole), (_, first) in zip(rounds, base, strict=True)]
        loop, whole = (median(one[place] for one in rounds) for place in (0, 1))
        print(f"| {name} | {loop:.1f} | {whole:.1f} | × {median(shares):.3f} ({min(shares):.3f}–{max(shares):.3f}) |")


if __name__ == "__main__":
    main()
