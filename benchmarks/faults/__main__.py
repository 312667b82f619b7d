"""`make faults`: every fault, each in a process of its own, with what it did to the service. Exit code 1 if a promise broke.

python -m benchmarks.faults [--short] [NAME ...]
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from importlib import import_module

from benchmarks.faults.proc import SkippedError
from benchmarks.faults.shared import BrokenPromiseError

FAULTS = (
    "disk_full",
    "descriptors",
    "clock",
    "thread_dies",
    "session_raises",
    "session_hangs",
    "memory",
    "reading_stops",
    "reset",
    "idle",
    "stopped",
    "worker_killed",
)
AT_MOST_SECONDS = 90  # of one
CODES = {0: "kept", 1: "BROKEN", 2: "skipped"}


def run_here(name: str, *, short: bool) -> int:
    """Prints what was measured; returns a code of CODES."""
    try:
        print(import_module(f"benchmarks.faults.{name}").run(short=short))
    except BrokenPromiseError as error:
        print(error)
        return 1
    except SkippedError as error:
        print(error)
        return 2
    return 0


def run_apart(name: str, *, short: bool) -> bool:
    """Prints a row of the table; whether the promise was kept, or could not be tried."""
    command = [sys.executable, "-m", "benchmarks.faults", "--here", name, *(["--short"] if short else [])]
    begun = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        out, errors = process.communicate(timeout=AT_MOST_SECONDS)
        code, said = process.returncode, out.strip() or errors.strip().rpartition("\n")[2]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its service too
        process.wait()
        code, said = 1, f"not done within {AT_MOST_SECONDS} s"
    promise = import_module(f"benchmarks.faults.{name}").PROMISE
    print(f"| {promise} | {said} | {CODES.get(code, 'BROKEN')} | {time.monotonic() - begun:.0f} |", flush=True)
    return code in (0, 2)


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FAULTS)} (default: all)")
    parser.add_argument("--short", action="store_true", help="a second each instead of ten")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        return run_here(options.names[0], short=options.short)
    print("| promise | measured | | s |\n|---|---|---|---|")
    kept = [run_apart(name, short=options.short) for name in options.names or FAULTS]
    return int(not all(kept))


if __name__ == "__main__":
    sys.exit(main())
