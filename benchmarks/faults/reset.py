"""Peers break off in the middle of their bodies with a reset, not an end."""

import socket
import struct

from benchmarks.faults.proc import descriptors, status_of
from benchmarks.faults.shared import ask, connect, expect, seconds_until, service
from tests.models import png

PROMISE = "resets in mid-body: what was held is given back, no descriptor and no memory stay"
BODY = 200_000
HELD = 1_000_000


def run(*, short: bool) -> str:
    """Each holds a part of what all bodies together may: if a few were not given back, nobody would be let in."""
    n = 100 if short else 2000
    with service(max_body_bytes=HELD, max_queue_bytes=HELD, log_level="info") as process:
        ask(process)
        before, open_before = status_of(process.pid, "VmRSS"), descriptors(process.pid)
        for number in range(n):
            one = connect(process)
            one.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % BODY + bytes(BODY // 2))
            if number % 10 == 0:  # let some be read before they break off
                seconds_until(lambda: process.metric("convserve_requests_in_progress") > 1, 5)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() sends RST
            one.close()
        seconds_until(lambda: process.metric("convserve_requests_in_progress") <= 1, 5)  # its own
        expect(ask(process, png((255, 0, 0)).ljust(HELD, b"\0"))[0] == 200, "there is no room for a body of the full size")
        seconds_until(lambda: descriptors(process.pid) <= open_before, 5)
        grown = (status_of(process.pid, "VmRSS") - before) / 1e6
        seen = process.metric("convserve_requests_total", route="/predict", status="499")
    expect(seen >= n / 10, f"only {seen:.0f} of {n} were read before they broke off")
    expect(grown < 20, f"{grown:.0f} MB more")
    return f"{n:,} resets, {seen:,.0f} of them in a request: then a body of the full size is taken; {grown:.1f} MB more"
