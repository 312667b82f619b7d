"""The process is stopped and goes on, as in a debugger, a frozen cgroup or a virtual machine that is moved."""

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.faults.shared import ask, expect, expect_all_answered, load, probe, seconds_until, service

PROMISE = "SIGSTOP, SIGCONT: who can still be answered in time is, nobody is computed for after his deadline"


def run(*, short: bool) -> str:
    """Requests come all the while, patient ones and ones that cannot wait so long."""
    seconds = 1.0 if short else 5.0
    with service() as process, ThreadPoolExecutor(20) as pool:
        load(process, 100, 0.3)
        process.send(signal.SIGSTOP)
        impatient = [pool.submit(ask, process, **{"x-request-timeout-ms": "300"}) for _ in range(20)]
        threading.Timer(seconds, lambda: process.send(signal.SIGCONT)).start()
        patient = load(process, 100, seconds + 1)
        answered = expect_all_answered(patient)
        expect(patient.quantile_ms(1) < (seconds + 2) * 1000, "the backlog was not worked off")
        statuses = [future.result()[0] for future in impatient]
        expect(set(statuses) <= {200, 503, 504}, f"the impatient got {statuses}")
        well = seconds_until(lambda: probe(process) == 200, 5)
        after = load(process, 100, 1)
        time.sleep(0.1)
        lost = process.metric("convserve_requests_in_progress") - 1  # its own
    expect(lost == 0, f"{lost:.0f} requests were never ended")
    return f"stopped {seconds:g} s: {answered}; live {well:.2f} s later, then p99 {after.quantile_ms(0.99):.0f} ms"
