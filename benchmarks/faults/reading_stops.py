"""A client asks and asks, and never reads an answer."""

import signal
import time
from contextlib import ExitStack

from benchmarks.faults.proc import status_of
from benchmarks.faults.shared import connect, expect, expect_all_answered, load, seconds_to_end, service

PROMISE = "a client stops reading: bounded memory, others do not notice, SIGTERM does not wait for it for ever"
REQUEST = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"  # the longest answer


def run(*, short: bool) -> str:
    """Pipelined requests until the socket takes no more, on several connections."""
    with service(request_timeout_ms=500, body_timeout_ms=500) as process, ExitStack() as stack:
        load(process, 100, 0.5)
        before = status_of(process.pid, "VmRSS")
        connections = [stack.enter_context(connect(process)) for _ in range(20)]
        sent = 0
        for one in connections:
            one.setblocking(False)
        for _ in range(20):
            for one in connections:
                try:
                    sent += one.send(REQUEST * 1000) // len(REQUEST)
                except (BlockingIOError, ConnectionError):  # full, or cut off, as it should be
                    continue
            time.sleep(0.01)
        answered = expect_all_answered(load(process, 100, 1 if short else 5))
        grown = (status_of(process.pid, "VmRSS") - before) / 1e6
        expect(grown < 20, f"{grown:.0f} MB more")
        process.send(signal.SIGTERM)
        ended = seconds_to_end(process)
    return f"{sent:,} requests unread on 20 connections: {grown:.1f} MB; others: {answered}; ended {ended:.1f} s after SIGTERM"
