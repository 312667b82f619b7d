"""One of several workers is killed."""

import os
import signal
import time
from pathlib import Path

from benchmarks.faults.shared import connect, expect, seconds_to_end, service

PROMISE = "kill -9 of one worker of several: the service ends with 1 and says why, so that it is started again whole"


def run(*, short: bool) -> str:
    """Connections are open on both; what runs the service would start it again."""
    workers = 2 if short else 4
    with service(workers=workers, threads=workers) as process:
        connections = [connect(process) for _ in range(3 * workers)]
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        expect(len(children) == workers, f"{len(children)} workers")
        os.kill(int(children[1]), signal.SIGKILL)
        ended = seconds_to_end(process, 1)
        expect(any("worker-1 ended with -9" in line for line in process.lines), "the log does not say why")
        expect(not any(Path(f"/proc/{pid}/exe").exists() for pid in children), "a worker was left behind")
        for one in connections:
            one.close()
    begun = time.perf_counter()
    with service(workers=workers, threads=workers):
        ready = time.perf_counter() - begun
    return f"exit code 1 after {ended:.2f} s, no worker left; started again, ready in {ready:.2f} s"
