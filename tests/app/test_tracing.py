"""Spans as a collector gets them: from a real service, by OpenTelemetry's own exporter, over HTTP."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from app.errors import SettingsError
from app.tracing import Tracer
from tests.models import png
from tests.service import PATIENCE_SECONDS, ROOT, ServiceProcess, serve

RED, WHITE = png((255, 0, 0)), png((255, 255, 255))
STAGES = ["queue", "decode", "infer"]


class Collector(ThreadingHTTPServer):
    """Takes OTLP over HTTP. `spans` are all that came, `services` the names of those that sent them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[Span] = []
        self.services: set[str] = set()
        self.news = threading.Condition()

    def trace(self, trace_id: str, spans: int) -> dict[str, Span]:
        """The spans of a trace by name, when as many have come."""

        def found() -> list[Span]:
            return [span for span in self.spans if span.trace_id.hex() == trace_id]

        with self.news:
            assert self.news.wait_for(lambda: len(found()) >= spans, PATIENCE_SECONDS), found()
            return {span.name: span for span in found()}


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        with self.server.news:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                names = {one.key: one.value.string_value for one in resource.resource.attributes}
                self.server.services.add(names["service.name"])
                self.server.spans += [span for scope in resource.scope_spans for span in scope.spans]
            self.server.news.notify_all()
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        yield collector
        collector.shutdown()


@pytest.fixture(scope="module")
def traced(colours: Path, collector: Collector) -> Iterator[ServiceProcess]:
    """Waits for a second image, so that two run together; sends its spans at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
        with serve(
            model=colours, tracing="true", threads=1, max_batch_size=2, max_wait_ms=200, drain_seconds=0, log_level="debug"
        ) as process:
            yield process


def ask(process: ServiceProcess, number: int, body: bytes = RED, path: str = "/predict", sampled: bool = True) -> str:
    """Sends an image under a trace of its own; returns the trace's id."""
    trace_id = f"{number:032x}"
    with process.client() as client:
        client.post(path, content=body, headers={"traceparent": f"00-{trace_id}-00000000000000aa-0{sampled:d}"})
    return trace_id


def attributes(span: Span) -> dict[str, object]:
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


def exceptions(span: Span) -> list[str]:
    found = [one.value.string_value for event in span.events for one in event.attributes if one.key == "exception.type"]
    return [name.rpartition(".")[2] for name in found]


@pytest.mark.parametrize(("number", "path"), [(1, "/predict"), (2, "/predict?top_k=2")])
def test_a_request_is_a_span_under_its_callers_and_its_stages_follow_one_another_under_it(
    traced: ServiceProcess, collector: Collector, number: int, path: str
) -> None:
    spans = collector.trace(ask(traced, number, path=path), 4)
    request = spans["POST /predict"]
    assert request.parent_span_id.hex() == "00000000000000aa"
    assert request.kind == Span.SPAN_KIND_SERVER
    assert attributes(request).items() >= {"http.route": "/predict", "http.response.status_code": 200}.items()
    assert {spans[name].parent_span_id for name in STAGES} == {request.span_id}
    stages = sorted((spans[name] for name in STAGES), key=lambda span: span.start_time_unix_nano)  # decoding before or after
    edges = [moment for span in stages for moment in (span.start_time_unix_nano, span.end_time_unix_nano)]
    assert [request.start_time_unix_nano, *edges, request.end_time_unix_nano] == sorted(
        [request.start_time_unix_nano, *edges, request.end_time_unix_nano]
    )
    assert 0.15e9 < spans["queue"].end_time_unix_nano - spans["queue"].start_time_unix_nano < 5e9  # waited for company
    assert abs(request.start_time_unix_nano / 1e9 - time.time()) < PATIENCE_SECONDS
    assert not spans["infer"].links
    assert collector.services == {"convserve"}


def test_images_that_run_together_are_linked_to_one_anothers_requests(traced: ServiceProcess, collector: Collector) -> None:
    with ThreadPoolExecutor(2) as pool:
        one, other = [collector.trace(trace_id, 4) for trace_id in pool.map(lambda number: ask(traced, number), (3, 4))]
    for mine, theirs in ((one, other), (other, one)):
        assert [link.span_id for link in mine["infer"].links] == [theirs["POST /predict"].span_id]
        assert [link.trace_id for link in mine["infer"].links] == [theirs["POST /predict"].trace_id]


@pytest.mark.parametrize(
    ("number", "body", "stages", "error"),
    [(5, RED[:45], ["queue", "decode"], "UndecodableImageError"), (6, WHITE, STAGES, "InvalidArgument"), (7, b"", [], "")],
)
def test_an_error_is_recorded_at_the_stage_and_at_the_request(
    traced: ServiceProcess, collector: Collector, number: int, body: bytes, stages: list[str], error: str
) -> None:
    spans = collector.trace(ask(traced, number, body), 1 + len(stages))
    assert spans.keys() == {"POST /predict", *stages}
    assert exceptions(spans["POST /predict"]) == ([] if error == "InvalidArgument" else [error or "MalformedRequestError"])
    failed = [name for name in stages if spans[name].status.code == Status.STATUS_CODE_ERROR]
    assert failed == stages[-1:]
    assert [exceptions(spans[name]) for name in failed] == [[error]] * len(failed)
    assert (spans["POST /predict"].status.code == Status.STATUS_CODE_ERROR) == (error == "InvalidArgument")  # 500, not 4xx


def test_an_explanation_is_a_stage_of_its_own(traced: ServiceProcess, collector: Collector) -> None:
    spans = collector.trace(ask(traced, 8, path="/predict?explain=true"), 3)
    assert spans.keys() == {"POST /predict", "queue", "explain"}


def test_what_the_caller_does_not_sample_and_probes_leave_no_span(traced: ServiceProcess, collector: Collector) -> None:
    with traced.client() as client:
        client.get("/readyz")
        client.get("/metrics")
    unsampled = ask(traced, 9, sampled=False)
    collector.trace(ask(traced, 10), 4)  # came later
    assert not [span for span in collector.spans if span.trace_id.hex() == unsampled or "GET" in span.name]


def test_spans_that_wait_are_sent_before_the_end(colours: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    with serve(model=colours, tracing="true", workers=2, threads=2, drain_seconds=0) as process:
        trace_id = ask(process, 11)
        process.send(signal.SIGTERM)
        assert process.wait() == 0
    assert len(collector.trace(trace_id, 4)) == 4
    assert "shop" in collector.services


def test_a_collector_that_is_gone_costs_no_answer_and_no_slow_end(colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    with serve(model=colours, tracing="true", drain_seconds=0) as process, process.client() as client:
        assert [client.post("/predict", content=RED).status_code for _ in range(20)] == [200] * 20
        begun = time.monotonic()
        process.send(signal.SIGTERM)
        assert process.wait() == 0
    assert time.monotonic() - begun < 10


def test_without_the_sdk_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SettingsError, match=r"pip install 'convserve\[tracing\]'"):
        Tracer()


def test_a_service_that_is_not_traced_never_loads_the_sdk() -> None:
    code = "import sys, app.server, app.workers; print(*(name for name in sys.modules if name.startswith('opentelemetry.sdk')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "\n"
