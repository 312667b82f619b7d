"""A thread of the engine ends, as no Exception could make it."""

import signal
import time

from benchmarks.faults.shared import DIES, ask, expect, probe, seconds_to_end, seconds_until, service

PROMISE = "a thread dies: /livez and /readyz turn red for good, the other thread answers, SIGTERM ends it"


def run(*, short: bool) -> str:
    """One of two threads."""
    with service(module="benchmarks.faults.fragile", request_timeout_ms=1000) as process:
        status, seconds = ask(process, DIES)
        expect(status == 504, f"its image was answered with {status}")
        red = seconds_until(lambda: probe(process) == 503, 1)
        time.sleep(0.2 if short else 3)
        expect((probe(process), probe(process, "/readyz")) == (503, 503), "the probes turned green again")
        others = [ask(process)[0] for _ in range(20)]
        expect(others == [200] * 20, f"others got {others}")
        process.send(signal.SIGTERM)
        ended = seconds_to_end(process)
    return f"its image 504 after {seconds:.2f} s, red {red:.2f} s later; 20 of 20 others answered; ended in {ended:.1f} s"
