"""Somebody sets the clock while the service runs."""

import tempfile
import threading
import time
from pathlib import Path

from benchmarks.faults.shared import expect, expect_all_answered, load, probe, service

PROMISE = "the wall clock jumps by years, both ways: no deadline, timeout or probe notices"
DAY = 86_400
JUMPS = (DAY, -2 * DAY, 3660 * DAY, -7300 * DAY)


def run(*, short: bool) -> str:
    """All that Python reads of the wall clock is turned; settimeofday(2) leaves the monotonic clock alone too."""
    seconds = 0.4 if short else 2.0  # between the jumps
    with tempfile.TemporaryDirectory() as folder:
        skew = Path(folder) / "skew"
        skew.write_text("0")
        settings = {"module": "benchmarks.faults.skewed", "log_level": "debug"}
        with service(prefix=("env", f"SKEW_FILE={skew}"), **settings) as process, process.client() as client:

            def jump() -> None:
                for one in JUMPS:
                    time.sleep(seconds)
                    skew.with_suffix(".new").write_text(str(one))
                    skew.with_suffix(".new").rename(skew)

            before = client.get("/health").json()["uptime_seconds"] - time.monotonic()
            jumping = threading.Thread(target=jump)
            jumping.start()
            answered = expect_all_answered(load(process, 100, seconds * (len(JUMPS) + 1)))
            jumping.join()
            drift = client.get("/health").json()["uptime_seconds"] - time.monotonic() - before
            expect(abs(drift) < 1, f"uptime is off by {drift:.1f} s")
            expect(probe(process) == 200, "not live")
            time.sleep(0.2)  # for the log
            years = {line["time"][:4] for line in process.json_lines() if "time" in line}
    expect(len(years) >= 3, f"the clock was not turned: {years}")
    return f"{answered} while the log's clock went through {', '.join(sorted(years))}; uptime true within {abs(drift):.2f} s"
