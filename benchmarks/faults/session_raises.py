"""onnxruntime itself fails on one image in twenty."""

from benchmarks.faults.shared import RED, WHITE, expect, load, probe, service

PROMISE = "the session raises: that image alone gets 500, its batch does not"


def run(*, short: bool) -> str:
    """Under load, so that batches hold both kinds."""
    with service(max_wait_ms=20) as process:
        outcome = load(process, 200, 1 if short else 10, [WHITE, *[RED] * 19])
        failed = outcome.failures.pop(500, 0)
        expect(not outcome.failures, f"others got {dict(outcome.failures)}")
        expect(failed * 19 == len(outcome.latencies), f"{failed} failed and {len(outcome.latencies)} did not")
        expect(probe(process) == 200, "not live")
        size = process.metric("convserve_batch_size_sum") / process.metric("convserve_batch_size_count")
    return f"{failed} bad images got 500, {len(outcome.latencies):,} others 200, in batches of {size:.1f}"
