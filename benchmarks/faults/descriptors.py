"""Clients hold so many connections that the process has no file descriptor left for another."""

import resource
import select
import socket
import time
from contextlib import ExitStack

import httpx

from app.connection import SPARE_DESCRIPTORS
from benchmarks.faults.proc import cpu_seconds, descriptors
from benchmarks.faults.shared import ask, connect, expect, probe, seconds_until, service
from tests.models import png
from tests.service import ServiceProcess

PROMISE = "no file descriptor left: connections that are open are answered, others told so, well again once some close"
CONNECTIONS = 20
A_FEW = 5  # files that the service, which still imports, has open for a moment


def run(*, short: bool) -> str:
    """Twice as many idle connections as there are descriptors for."""
    seconds = 1 if short else 5
    with service() as process, process.client() as kept:
        kept.post("/predict", content=png((0, 0, 255)))
        limit = descriptors(process.pid) + CONNECTIONS + SPARE_DESCRIPTORS
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (limit, limit))
        with ExitStack() as idle:
            sockets = [idle.enter_context(connect(process)) for _ in range(2 * CONNECTIONS)]
            seconds_until(lambda: len(_told(sockets)) >= CONNECTIONS - A_FEW, 10)
            expect(all(one.recv(12) == b"HTTP/1.1 503" for one in _told(sockets)), "who cannot be heard is not told so")
            expect(descriptors(process.pid) < limit, "connections took the last descriptors")
            answers, busy = _use(process, kept, seconds)
        well = seconds_until(lambda: _is_answered(process), 10)
        expect(probe(process) == 200, "not live afterwards")
    return f"{answers} of {answers} answered on the open connection, {busy:.0%} of a core; new ones again after {well:.2f} s"


def _told(sockets: list[socket.socket]) -> list[socket.socket]:
    """Those that were sent something, or closed."""
    return select.select(sockets, [], [], 0)[0]


def _use(process: ServiceProcess, kept: httpx.Client, seconds: float) -> tuple[int, float]:
    """Some requests on an open connection: how many, and cores used meanwhile."""
    begun, before, answers = time.monotonic(), cpu_seconds(process.pid), 0
    while time.monotonic() < begun + seconds:
        expect(kept.post("/predict", content=png((0, 0, 255))).status_code == 200, "an open connection was not answered")
        answers += 1
        time.sleep(0.05)
    busy = (cpu_seconds(process.pid) - before) / seconds
    expect(busy < 0.5, f"{busy:.0%} of a core for hardly any request")
    return answers, busy


def _is_answered(process: ServiceProcess) -> bool:
    try:
        return ask(process)[0] == 200
    except OSError:
        return False
