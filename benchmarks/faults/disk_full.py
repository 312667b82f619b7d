"""The disk that the log goes to is full."""

import signal
from pathlib import Path

from benchmarks.faults.proc import SkippedError
from benchmarks.faults.shared import expect, expect_all_answered, load, seconds_to_end, service
from tests.service import free_ports

PROMISE = "disk full under the log: answers go on, SIGTERM still drains"


def run(*, short: bool) -> str:
    """Standard output is a device on which no byte has room."""
    if not Path("/dev/full").exists():
        raise SkippedError("Linux alone has a disk that is always full")
    [port] = free_ports(1)
    with service(prefix=("sh", "-c", 'exec "$@" >/dev/full', "sh"), port=port) as process:
        answered = expect_all_answered(load(process, 200, 1 if short else 10))
        process.send(signal.SIGTERM)
        ended = seconds_to_end(process, 0, 120)  # 120 is Python's for what it could not flush
        expect(
            not process.error_lines or "No space left" in process.error_lines[-1], f"{len(process.error_lines)} lines of errors"
        )
        return f"{answered}; ended in {ended:.1f} s"
