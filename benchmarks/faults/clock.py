"""Somebody sets the clock while the service runs."""

import tempfile
import threading
import time
from pathlib import Path

from benchmarks.faults.shared import SkippedError, expect, expect_all_answered, load, probe, service

PROMISE = "the clock jumps by years, both ways: no deadline, timeout or probe notices"
LIBRARIES = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/lib/faketime/libfaketimeMT.so.1")
JUMPS = ("+1d", "-2d", "+10y", "-20y")


def run(*, short: bool) -> str:
    """libfaketime turns the wall clock alone, as settimeofday(2) would."""
    found = [path for pattern in LIBRARIES for path in Path("/").glob(pattern[1:])]
    if not found:
        raise SkippedError("needs libfaketime (Debian: apt install faketime)")
    seconds = 0.5 if short else 2.0  # between the jumps
    with tempfile.TemporaryDirectory() as folder:
        offset = Path(folder) / "offset"
        offset.write_text("+0d")
        variables = f"LD_PRELOAD={found[0]} FAKETIME_TIMESTAMP_FILE={offset} FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1"
        with service(prefix=("env", *variables.split()), log_level="debug") as process, process.client() as client:

            def jump() -> None:
                for one in JUMPS:
                    time.sleep(seconds)
                    (offset.with_suffix(".new")).write_text(one)
                    offset.with_suffix(".new").rename(offset)

            begun, uptime = time.monotonic(), client.get("/health").json()["uptime_seconds"]
            jumping = threading.Thread(target=jump)
            jumping.start()
            answered = expect_all_answered(load(process, 100, seconds * (len(JUMPS) + 1)))
            jumping.join()
            drift = client.get("/health").json()["uptime_seconds"] - uptime - (time.monotonic() - begun)
            expect(abs(drift) < 0.5, f"uptime is off by {drift:.1f} s")
            expect(probe(process) == 200, "not live")
            time.sleep(0.2)  # for the log
            years = {line["time"][:4] for line in process.json_lines() if "time" in line}
    expect(len(years) >= 3, f"the clock was not turned: {years}")
    return f"{answered} while the log's clock ran through {', '.join(sorted(years))}; uptime true to {abs(drift) * 1000:.0f} ms"
