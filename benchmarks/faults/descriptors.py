"""Clients hold so many connections that the process has no file descriptor left."""

import resource
import time

from benchmarks.faults.proc import cpu_seconds, descriptors
from benchmarks.faults.shared import ask, connect, expect, probe, seconds_until, service
from tests.models import png

PROMISE = "no file descriptor left: connections that are open are answered, no busy loop, well again once some close"
SPARE = 20


def run(*, short: bool) -> str:
    """Twice as many idle connections as there are descriptors left."""
    seconds = 1 if short else 5
    with service() as process, process.client() as kept:
        kept.post("/predict", content=png((0, 0, 255)))
        limit = descriptors(process.pid) + SPARE
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (limit, limit))
        idle = [connect(process) for _ in range(2 * SPARE)]
        time.sleep(0.3)  # to be accepted or not
        expect(descriptors(process.pid) >= limit - 1, "the descriptors did not run out")
        begun, before, answers = time.monotonic(), cpu_seconds(process.pid), 0
        while time.monotonic() < begun + seconds:
            expect(kept.post("/predict", content=png((0, 0, 255))).status_code == 200, "an open connection was not answered")
            answers += 1
            time.sleep(0.05)
        busy = (cpu_seconds(process.pid) - before) / seconds
        expect(busy < 0.5, f"{busy:.0%} of a core for hardly any request")
        for one in idle:
            one.close()
        well = seconds_until(lambda: _is_answered(process), 10)
        expect(probe(process) == 200, "not live afterwards")
    return f"{answers} of {answers} answered on the open connection, {busy:.0%} of a core; new ones again after {well:.2f} s"


def _is_answered(process: object) -> bool:
    try:
        return ask(process)[0] == 200  # type: ignore[arg-type]
    except OSError:
        return False
