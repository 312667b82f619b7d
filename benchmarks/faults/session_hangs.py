"""onnxruntime never returns, as with a driver or a GPU that is lost."""

import signal
import time

from benchmarks.faults.shared import HANGS, ask, expect, probe, seconds_to_end, seconds_until, service

PROMISE = "the session hangs: 504 at the deadline, /livez red after STALL_SECONDS and for good, SIGTERM still ends it"


def run(*, short: bool) -> str:
    """One of two threads; the batch is told stalled after a second."""
    with service(module="benchmarks.faults.fragile", request_timeout_ms=500, stall_seconds=1) as process:
        begun = time.perf_counter()
        status, answered = ask(process, HANGS)
        expect(status == 504, f"its image was answered with {status}")
        expect(probe(process) == 200, "red before its time")
        seconds_until(lambda: probe(process) == 503, 3)
        red = time.perf_counter() - begun
        time.sleep(0.2 if short else 3)
        expect(probe(process) == 503, "green again")
        others = [ask(process)[0] for _ in range(20)]
        expect(others == [200] * 20, f"others got {others}")
        process.send(signal.SIGTERM)
        ended = seconds_to_end(process)
    return f"504 after {answered:.2f} s, red after {red:.2f} s; 20 of 20 others answered; ended {ended:.1f} s after SIGTERM"
