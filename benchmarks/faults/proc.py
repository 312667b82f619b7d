"""What the kernel says of a process. It needs no package: benchmarks run where there is none but those of the service."""

import os
from pathlib import Path


class SkippedError(Exception):
    """This machine cannot make the fault."""


def status_of(pid: int, name: str) -> int:
    """A number of /proc/PID/status, VmRSS in bytes for example."""
    if not (file := Path(f"/proc/{pid}/status")).exists():
        raise SkippedError("reads Linux's /proc")
    line = next(line for line in file.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * (1024 if line.endswith("kB") else 1)


def descriptors(pid: int) -> int:
    """How many files and sockets a process holds open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def cpu_seconds(pid: int) -> float:
    """CPU time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
