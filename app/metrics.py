"""What Prometheus scrapes, in a registry of its own so that several services can live in one process."""

import threading
from collections.abc import Callable, Sequence
from functools import cache
from operator import itemgetter
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.process_collector import ProcessCollector

REQUEST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
STAGE_BUCKETS = (0.0001, 0.00025, 0.0005, *REQUEST_BUCKETS)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
PROBABILITY_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
TALLIED = 1000
MAX_LABELS = 100
OTHER_LABEL = "(other)"
_NOT_SUMMED: dict[str, Callable[[list[float]], float]] = {
    "convserve_drift_limit": itemgetter(0),  # of the worker that is asked: each sees its share of the same traffic
    "convserve_drift_psi": itemgetter(0),
    "convserve_estimated_wait_seconds": max,
    "convserve_model_info": max,
    "convserve_ready": min,
    "process_start_time_seconds": min,
    "process_max_fds": min,
}


class Tally:
    """Counts a histogram's values a thousand at a time: one by one each takes 1 µs, a hundredth of a small model's request."""

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._bounds = np.array(histogram._upper_bounds)
        self._values: list[float] = []
        self._flushing = threading.Lock()

    def observe(self, value: float) -> None:
        """As the histogram's, but that `flush` counts it."""
        self._values.append(value)
        if len(self._values) >= TALLIED:
            self.flush()

    def flush(self) -> None:
        """Counts what was observed; from any thread."""
        with self._flushing:  # two at once would take the same values
            values = self._values[:]
            del self._values[: len(values)]
        buckets = np.bincount(self._bounds.searchsorted(values), minlength=len(self._bounds))
        for bucket, count in zip(self._histogram._buckets, buckets.tolist(), strict=False):  # NaN is in none
            bucket.inc(count)
        self._histogram._sum.inc(sum(values))


class Metrics:
    """Counters, gauges and histograms of one service; durations in seconds."""

    tracer: Any = None  # app.tracing's, where spans are asked for

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for each counter, which nobody reads
        self.registry = registry = CollectorRegistry()
        self._tallies: list[Tally] = []
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "convserve_requests", "Requests answered, by route template.", ["route", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "convserve_request_seconds",
            "From the request's first byte to the answer's last.",
            ["route"],
            buckets=REQUEST_BUCKETS,
            registry=registry,
        )
        stage_seconds = Histogram(
            "convserve_stage_seconds",
            "One image's time in a stage: decode (and fit), queue, infer (its batch).",
            ["stage"],
            buckets=STAGE_BUCKETS,
            registry=registry,
        )
        self.stages = [self.tally(stage_seconds.labels(stage)) for stage in ("decode", "queue", "infer")]
        self.batch_size = self.tally(
            Histogram("convserve_batch_size", "Images run together.", buckets=BATCH_BUCKETS, registry=registry)
        )
        self.queue_depth = Gauge("convserve_queue_depth", "Images waiting for a thread.", registry=registry)
        self.estimated_wait_seconds = Gauge(
            "convserve_estimated_wait_seconds", "What an image that came now would wait.", registry=registry
        )
        self.requests_in_progress = Gauge(
            "convserve_requests_in_progress", "Requests begun and not yet answered.", registry=registry
        )
        self.rejected = Counter("convserve_rejected", "Requests or images refused, by reason.", ["reason"], registry=registry)
        self.images = Counter(
            "convserve_images",
            "Images by outcome: classified, failed, expired, abandoned.",
            ["outcome"],
            registry=registry,
        )
        self.predictions = Counter(
            "convserve_predictions",
            f"Top labels; classes from the {MAX_LABELS + 1}th on are counted as one.",
            ["label"],
            registry=registry,
        )
        self.prediction = cache(self.predictions.labels)  # looking labels up takes longer than counting
        self.top_probability = self.tally(
            Histogram(
                "convserve_top_probability", "Probability of the top label.", buckets=PROBABILITY_BUCKETS, registry=registry
            )
        )
        self.cache_lookups = Counter(
            "convserve_cache_lookups", "Images looked up in the answer cache: hit or miss.", ["result"], registry=registry
        )
        self.cache_bytes = Gauge("convserve_cache_bytes", "What the answer cache holds.", registry=registry)
        self.drift_psi = Gauge("convserve_drift_psi", "Distance of the last images.", ["feature"], registry=registry)
        self.drift_limit = Gauge("convserve_drift_limit", "A PSI above it is drift.", ["feature"], registry=registry)
        self.samples = Counter("convserve_samples", "Images for labelling, by outcome.", ["outcome"], registry=registry)
        self.model_info = Gauge(
            "convserve_model_info",
            "1 for the loaded model.",
            ["name", "version", "sha256", "provider"],
            registry=registry,
        )
        self.model_loads = Counter(
            "convserve_model_loads", "Models loaded while serving: changed, refused.", ["outcome"], registry=registry
        )
        self.model_loads.labels("refused")  # there from the start, so that the first one is an increase
        self.shadow_difference = Histogram(
            "convserve_shadow_difference", "Largest difference of a probability in shadow.", ["top_label"], registry=registry
        )
        self.ready = Gauge("convserve_ready", "1 while /readyz answers 200.", registry=registry)

    def tally(self, histogram: Histogram) -> Tally:
        """A quicker way to observe, for a histogram or a labelled child of one."""
        self._tallies.append(Tally(histogram))
        return self._tallies[-1]

    def render(self) -> bytes:
        """The text exposition, format 0.0.4."""
        for tally in self._tallies:
            tally.flush()
        return generate_latest(self.registry)


def merge(texts: Sequence[bytes]) -> bytes:
    """One text exposition of several workers': sums, but for gauges that only one of them can tell."""
    families: dict[str, dict[str, float]] = {}  # help and type to series to value
    for text in texts:
        for line in text.decode().splitlines():
            if line.startswith("# HELP"):
                heading = line
            elif line.startswith("# TYPE"):
                family = families.setdefault(f"{heading}\n{line}", {})
            else:
                series, _, value = line.rpartition(" ")
                combine = _NOT_SUMMED.get(series.partition("{")[0], sum)
                family[series] = combine([*([family[series]] if series in family else []), float(value)])
    lines = [line for heading, family in families.items() for line in (heading, *(f"{k} {v!r}" for k, v in family.items()))]
    return "\n".join([*lines, ""]).encode()
