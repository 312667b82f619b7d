"""Memory runs out: by a limit of the address space, where an allocation fails; by a cgroup's, where the kernel kills."""

import contextlib
import io
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from app.bench import HttpTarget, closed_loop
from benchmarks.faults.proc import SkippedError, status_of
from benchmarks.faults.shared import ask, expect, probe, service

PROMISE = "memory runs out: a failed allocation fails one request; in the manifest's 2 GiB the worst images fit"
MEBIBYTE = 2**20
LIMIT = 2048 * MEBIBYTE
MEMORY = Path("/sys/fs/cgroup/memory")


def run(*, short: bool) -> str:
    """Photographs of 25 megapixels, which WebP has to decode whole."""
    image = _photograph(5000, 5000)
    told = _failed_allocation(image)
    return told if short else f"{told}; {_in_cgroup(image)}"


def _failed_allocation(image: bytes) -> str:
    with service() as process:
        ask(process)
        most = status_of(process.pid, "VmSize") + 20 * MEBIBYTE
        resource.prlimit(process.pid, resource.RLIMIT_AS, (most, most))
        statuses = [ask(process, image)[0] for _ in range(5)]
        expect(set(statuses) <= {422, 500, 503}, f"answered with {statuses}")
        others = [ask(process)[0] for _ in range(20)]
        expect(others == [200] * 20, f"others got {others}")
        expect(probe(process) == 200, "not live")
    return f"without memory 5 of 5 large images got {', '.join(map(str, sorted(set(statuses))))}, 20 of 20 small ones 200"


def _in_cgroup(image: bytes) -> str:
    import asyncio

    with _cgroup(LIMIT) as group, service(threads=2, max_pixels=25_000_000, request_timeout_ms=60_000) as process:
        (group / "cgroup.procs").write_text(str(process.pid))
        before = status_of(process.pid, "VmRSS")
        outcome = asyncio.run(closed_loop(HttpTarget(process.url), [image], 32, 10))
        expect(not outcome.failures, f"failed: {dict(outcome.failures)}")
        peak = status_of(process.pid, "VmHWM")
        time.sleep(0.5)
        kept = status_of(process.pid, "VmRSS")
    figures = ", ".join(
        f"{name} {value / MEBIBYTE:,.0f} MiB" for name, value in (("idle", before), ("peak", peak), ("after", kept))
    )
    return f"{len(outcome.latencies)} images of 25 megapixels by 32 clients: {figures}"


@contextlib.contextmanager
def _cgroup(limit: int) -> Iterator[Path]:
    group = MEMORY / f"convserve-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(limit))
    except OSError as error:
        raise SkippedError(f"no cgroup can be made: {error}") from error
    try:
        yield group
    finally:
        group.rmdir()


def _photograph(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((width // 20, height // 20), 60).convert("RGB").resize((width, height)).save(file, "WEBP", method=0)
    return file.getvalue()
