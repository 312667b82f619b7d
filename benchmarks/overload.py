"""Three times as many images as the service can bear, for a minute: does it stay useful, and does it tell the truth?

    python -m benchmarks.overload [--model models/imagenet.onnx] [--image FILE] [--seconds 60] [--deadline-ms 1000]

Starts the service itself. Capacity comes before and after, by the same client in a closed loop: a machine's speed changes
within minutes. A flood costs the client more than a closed loop does, on the same cores: what is left of them is told too.
Then `Retry-After`: behind a backlog of patient requests, one with a short deadline is refused and told when to come back; the
truth is when such a request is first let in.
"""

import argparse
import asyncio
import json
import math
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from app.bench import HttpTarget, closed_loop
from app.classifier import Classifier
from app.threads import usable_threads
from benchmarks.serving.contenders import ROOT, pack_raw
from benchmarks.serving.measure import Server

CLIENTS = 32
FACTOR = 3
BACKLOG_SECONDS = (1.5, 3.0, 6.0)
SHORT_MS = 200
CAPACITY_SECONDS = 12
PORT = 18650


@dataclass(frozen=True)
class Outcome:
    """One request: seconds from sending to the answer, and what a refusal said of the wait."""

    status: int
    seconds: float
    retry_after: float = 0.0  # the header, whole seconds
    told: float = 0.0  # the problem's retry_after_seconds


async def ask(target: HttpTarget, image: bytes, deadline_ms: float) -> Outcome:
    """One image with a deadline."""
    begun = time.perf_counter()
    try:
        status, headers, body = await target.ask("POST", "/predict", image, f"X-Request-Timeout-Ms: {deadline_ms:g}\r\n")
    except (OSError, EOFError, ValueError):
        return Outcome(0, time.perf_counter() - begun)
    seconds = time.perf_counter() - begun
    told = json.loads(body).get("retry_after_seconds", 0.0) if status == 503 else 0.0
    return Outcome(status, seconds, float(headers.get("retry-after", 0)), told)


async def flood(target: HttpTarget, image: bytes, rate: float, seconds: float, deadline_ms: float) -> list[Outcome]:
    """Images due at equal distances; all their outcomes."""
    tasks, begun = [], time.perf_counter()
    for number in range(round(rate * seconds)):
        await asyncio.sleep(max(0.0, begun + number / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(ask(target, image, deadline_ms)))
    return list(await asyncio.gather(*tasks))


async def try_retry_after(target: HttpTarget, image: bytes, n: int) -> tuple[Outcome, float]:
    """Behind `n` patient requests: the first refusal of an impatient one, and the seconds until one was let in."""
    backlog = [asyncio.create_task(ask(target, image, 60_000)) for _ in range(n)]
    await asyncio.sleep(0.3)  # until they have arrived
    begun, refused, outcome = time.perf_counter(), None, Outcome(503, 0)
    while outcome.status != 200:
        at = time.perf_counter()
        outcome = await ask(target, image, SHORT_MS)
        refused = refused or (outcome if outcome.status == 503 else None)
        await asyncio.sleep(0.02)
    await asyncio.gather(*backlog)
    return refused or outcome, at - begun


async def measure(server: Server, image: bytes, options: argparse.Namespace) -> None:
    """All of it, printed as it comes."""
    target = HttpTarget(server.url)
    await closed_loop(target, [image], CLIENTS, 2)
    base = await closed_loop(target, [image], CLIENTS, CAPACITY_SECONDS)
    before = server.pss_mb()
    print(f"capacity  {base.rate:.1f}/s ({CLIENTS} clients), client {base.cpu / base.seconds:.2f} cores, PSS {before:.0f} MB")
    cpu, begun = time.process_time(), time.perf_counter()
    seen = [before]
    memory = asyncio.create_task(_watch(server, seen))
    outcomes = await flood(target, image, FACTOR * base.rate, options.seconds, options.deadline_ms)
    seconds = time.perf_counter() - begun
    memory.cancel()
    accepted = sorted(one.seconds for one in outcomes if one.status in (200, 504))
    good = sum(one.status == 200 and one.seconds <= options.deadline_ms / 1000 for one in outcomes)
    refused = [one.seconds for one in outcomes if one.status == 503]
    statuses = {status: sum(one.status == status for one in outcomes) for status in sorted({one.status for one in outcomes})}
    cores = (time.process_time() - cpu) / seconds
    print(f"flood     {len(outcomes) / seconds:.1f}/s for {seconds:.1f} s, client {cores:.2f} cores")
    print(f"statuses  {statuses}")
    after = await closed_loop(target, [image], CLIENTS, CAPACITY_SECONDS)
    capacity = (base.rate + after.rate) / 2
    share = good / seconds / capacity
    left = (usable_threads() - cores) / (usable_threads() - base.cpu / base.seconds)
    print(f"capacity  {after.rate:.1f}/s afterwards, {capacity:.1f}/s on average")
    print(f"goodput   {good / seconds:.1f}/s in time = {share:.1%} of capacity, {share / left:.1%} of what is left of it")
    p99 = accepted[math.ceil(0.99 * len(accepted)) - 1] * 1000
    print(f"accepted  {good / len(accepted):.2%} within {options.deadline_ms:g} ms; p99 {p99:.0f} ms")
    print(f"refused   median {median(refused) * 1000:.1f} ms" if refused else "refused   nobody")
    await asyncio.sleep(1)
    print(f"memory    {before:.0f} MB before, {max(seen):.0f} at most, {server.pss_mb():.0f} after")
    for backlog in BACKLOG_SECONDS:
        first, truth = await try_retry_after(target, image, round(capacity * backlog))
        error = f"{first.told / truth - 1:+.0%}" if truth else ""
        print(f"retry     told {first.told:.2f} s (header {first.retry_after:g}), true {truth:.2f} s: {error}")


async def _watch(server: Server, seen: list[float]) -> None:
    while True:
        seen.append(server.pss_mb())
        await asyncio.sleep(1)


def main() -> None:
    """Starts, measures, stops."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "imagenet.onnx")
    parser.add_argument("--image", type=Path, help="default: the model's first golden")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--deadline-ms", type=float, default=1000)
    options = parser.parse_args()
    image = options.image.read_bytes() if options.image else Classifier.load(options.model).spec.goldens[0].data
    given = {"MODEL": options.model, "HOST": "127.0.0.1", "PORT": PORT, "LOG_LEVEL": "warning", "DRAIN_SECONDS": 0}
    # A long queue and long deadlines, so that the estimate of the wait decides, not the count.
    given |= {"MAX_QUEUE_SIZE": 100_000, "REQUEST_TIMEOUT_MS": 60_000}
    variables = {f"CONVSERVE_{name}": str(value) for name, value in given.items()}
    with tempfile.NamedTemporaryFile() as log:
        url = f"http://127.0.0.1:{PORT}"
        server = Server([sys.executable, "-m", "app"], variables, ROOT, f"{url}/predict", Path(log.name))
        try:
            server.wait_for_answer(*pack_raw(image))
            server.url = url
            asyncio.run(measure(server, image, options))
        finally:
            server.close()


if __name__ == "__main__":
    main()
