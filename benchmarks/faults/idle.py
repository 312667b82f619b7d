"""Ten thousand clients connect and say nothing."""

import resource
import signal
from contextlib import ExitStack

from benchmarks.faults.proc import SkippedError, descriptors, status_of
from benchmarks.faults.shared import connect, expect_all_answered, load, seconds_to_end, seconds_until, service

PROMISE = "10,000 idle connections: the others are answered as before, SIGTERM ends at once"


def run(*, short: bool) -> str:
    """Both ends are on this machine: it needs descriptors for each."""
    n = 1000 if short else 10_000
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most != resource.RLIM_INFINITY and most < n + 200:
        raise SkippedError(f"needs {n + 200:,} file descriptors: ulimit -Hn says {most}")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, n + 200), hard))  # the service inherits it
    try:
        with service() as process, ExitStack() as stack:
            alone = load(process, 200, 1 if short else 5)
            before = status_of(process.pid, "VmRSS")
            for _ in range(n):
                stack.enter_context(connect(process))
            seconds_until(lambda: descriptors(process.pid) > n, 10)
            answered = expect_all_answered(load(process, 200, 1 if short else 10))
            each = (status_of(process.pid, "VmRSS") - before) / n / 1000
            process.send(signal.SIGTERM)
            ended = seconds_to_end(process)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    p99 = alone.quantile_ms(0.99)
    return f"{n:,} idle, {each:.1f} kB each; others: {answered} (without them {p99:.0f} ms); ended in {ended:.1f} s"
