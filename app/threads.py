"""How many threads this process may really use: the cgroup's CPU quota and the affinity, not the host's cores.

Source: Linux `Documentation/admin-guide/cgroup-v2.rst` (`cpu.max`) and `sched-bwc.rst` (`cpu.cfs_quota_us`).
"""

import math
import os
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")


def usable_threads(cgroup_root: Path = CGROUP_ROOT) -> int:
    """Whole cores that may be kept busy: the smaller of affinity and CPU quota (rounded up), at least 1."""
    quota = cpu_quota(cgroup_root)
    cores = _affinity()
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def cpu_quota(cgroup_root: Path = CGROUP_ROOT) -> float | None:
    """Cores granted by cgroup v2 or v1, as the container sees it; None where nothing limits them."""
    quota, period = _read(cgroup_root / "cpu.max", 2)  # v2: "200000 100000" or "max 100000"
    if quota is None:
        (quota,) = _read(cgroup_root / "cpu" / "cpu.cfs_quota_us", 1)  # v1: microseconds, -1 = no limit
        (period,) = _read(cgroup_root / "cpu" / "cpu.cfs_period_us", 1)
    if quota is None or period is None or quota <= 0 or period <= 0:
        return None
    return quota / period


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read(path: Path, count: int) -> list[float | None]:
    """`count` numbers of a one-line file, None for each that is missing or no number."""
    try:
        words = path.read_text().split()
    except OSError:
        words = []
    words += [""] * (count - len(words))
    return [float(word) if word.lstrip("-").isdigit() else None for word in words[:count]]
