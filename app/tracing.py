"""Spans for OpenTelemetry, where `CONVSERVE_TRACING` asks for them.

    request (FastAPI's, under the client's `traceparent`) ─▶ queue ─▶ decode ─▶ infer, linked to the batch's other requests

Where they go, and how many of them, the standard's own variables `OTEL_…` say, which the SDK reads.
"""

import threading
import time
from collections.abc import Sequence

from opentelemetry import trace

from app import __version__
from app.engine import Answer, _Job
from app.errors import SettingsError

FLUSH_SECONDS = 2.0  # at the end; what a collector that is gone does not take by then is lost


class Tracer:
    """What the engine tells its batches, for a `provider` of OpenTelemetry's SDK. Raises: SettingsError when there is none."""

    def __init__(self) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise SettingsError("CONVSERVE_TRACING needs OpenTelemetry's SDK: pip install 'convserve[tracing]'") from error
        ours = Resource.create({"service.name": "convserve", "service.version": __version__})
        self.provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        self.provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self.mark = lambda: trace.get_current_span().get_span_context()  # whose images come now
        self._tracer = self.provider.get_tracer("convserve", __version__)

    def flush(self) -> None:
        """Sends what waits, in a thread that nobody waits for long: the SDK's own limit of time is of no effect."""
        sending = threading.Thread(target=self.provider.force_flush, daemon=True)
        sending.start()
        sending.join(FLUSH_SECONDS)

    def record(self, batch: Sequence[tuple[_Job, Answer | Exception]]) -> None:
        """Makes the spans of a batch that has ended, under those of the requests that its images came with."""
        now, epoch = time.monotonic(), time.time_ns() - time.monotonic_ns()
        together = {job.mark.span_id: trace.Link(job.mark) for job, _ in batch if job.ran_at}
        for job, outcome in batch:
            parent = trace.set_span_in_context(trace.NonRecordingSpan(job.mark))
            others = [link for span_id, link in together.items() if span_id != job.mark.span_id]
            stages = _stages(job, outcome, now) if job.mark.is_valid else []
            for name, begun, ended in stages:
                links = others if name == "infer" else None
                span = self._tracer.start_span(name, parent, links=links, start_time=epoch + int(begun * 1e9))
                if isinstance(outcome, Exception) and name == stages[-1][0]:
                    span.record_exception(outcome)
                    span.set_status(trace.StatusCode.ERROR)
                span.end(epoch + int(ended * 1e9))


def _stages(job: _Job, outcome: Answer | Exception, now: float) -> list[tuple[str, float, float]]:
    """Name, begin and end of each, by time.monotonic; an error ended the last."""
    decoded_at = job.decoded_from + job.decode_seconds
    stages = [("queue", job.queued_at if job.pixels is None else decoded_at, job.started_at or now)]
    if job.run and job.started_at:
        stages.append(("explain", job.started_at, now))
    if job.decode_seconds:
        stages.insert(0 if job.pixels is not None else 1, ("decode", job.decoded_from, decoded_at))
    if job.ran_at:
        stages.append(("infer", job.ran_at, job.ran_at + outcome.infer_seconds if isinstance(outcome, Answer) else now))
    return stages
