"""`GET /metrics`, read with Prometheus's own parser: the names of the contract, and counts that move as they should."""

import asyncio
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.body import BodyLimits
from app.engine import Engine
from app.metrics import MAX_LABELS, OTHER_LABEL, Metrics
from app.service import Service
from app.settings import Settings
from tests.fakes import FakeClassifier, never_leaves
from tests.models import colour_spec, png
from tests.service import ServiceProcess

CONTRACT = {
    "convserve_requests": ("counter", {"route", "status"}),
    "convserve_request_seconds": ("histogram", {"route"}),
    "convserve_stage_seconds": ("histogram", {"stage"}),
    "convserve_batch_size": ("histogram", set()),
    "convserve_queue_depth": ("gauge", set()),
    "convserve_estimated_wait_seconds": ("gauge", set()),
    "convserve_requests_in_progress": ("gauge", set()),
    "convserve_rejected": ("counter", {"reason"}),
    "convserve_images": ("counter", {"outcome"}),
    "convserve_predictions": ("counter", {"label"}),
    "convserve_top_probability": ("histogram", set()),
    "convserve_model_info": ("gauge", {"name", "version", "sha256", "provider"}),
    "convserve_ready": ("gauge", set()),
}


def test_the_metrics_have_the_names_types_and_labels_of_the_contract(client: httpx.Client) -> None:
    client.post("/predict", content=png((255, 0, 0)))
    client.post("/predict", content=b"text")
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(response.text)}
    assert families.keys() >= CONTRACT.keys()
    for name, (kind, labels) in CONTRACT.items():
        assert families[name].type == kind
        assert families[name].documentation
        assert {label for sample in families[name].samples for label in sample.labels} - {"le"} == labels, name


def test_an_answered_request_moves_its_counts(service: ServiceProcess, client: httpx.Client) -> None:
    before = service.metrics()
    client.post("/predict", content=png((0, 255, 0)))
    after = service.metrics()
    moved = {
        ("convserve_requests_total", frozenset({("route", "/predict"), ("status", "200")})),
        ("convserve_request_seconds_count", frozenset({("route", "/predict")})),
        ("convserve_images_total", frozenset({("outcome", "classified")})),
        ("convserve_predictions_total", frozenset({("label", "green")})),
        ("convserve_top_probability_count", frozenset()),
        ("convserve_batch_size_count", frozenset()),
        *(("convserve_stage_seconds_count", frozenset({("stage", stage)})) for stage in ("decode", "queue", "infer")),
    }
    for sample in moved:
        assert after[sample] == before.get(sample, 0) + 1, sample


def test_a_refused_request_is_counted_by_its_reason(service: ServiceProcess, client: httpx.Client) -> None:
    before = service.metrics()
    client.post("/predict", content=b"text")
    client.get("/nothing")
    after = service.metrics()
    for sample in (
        ("convserve_rejected_total", frozenset({("reason", "unsupported_image")})),
        ("convserve_rejected_total", frozenset({("reason", "not_found")})),
        ("convserve_images_total", frozenset({("outcome", "failed")})),
        ("convserve_requests_total", frozenset({("route", "/predict"), ("status", "415")})),
    ):
        assert after[sample] == before.get(sample, 0) + 1, sample


def test_a_batch_counts_each_image_and_one_request(service: ServiceProcess, client: httpx.Client) -> None:
    before = service.metrics()
    client.post("/predict/batch", files=[("files", ("x", png((0, 0, 255)))) for _ in range(5)])
    after = service.metrics()
    images = ("convserve_images_total", frozenset({("outcome", "classified")}))
    requests = ("convserve_requests_total", frozenset({("route", "/predict/batch"), ("status", "200")}))
    assert after[images] == before.get(images, 0) + 5
    assert after[requests] == before.get(requests, 0) + 1


@pytest.mark.parametrize("path", ["/secret/42", "/predict/secret/42", "/%0Asecret/42"])
def test_no_raw_path_ever_becomes_a_label(client: httpx.Client, path: str) -> None:
    client.get(path)
    text = client.get("/metrics").text
    assert "secret/42" not in text
    assert 'route="(unmatched)",status="404"' in text


def test_an_idle_ready_service_says_so(service: ServiceProcess) -> None:
    assert service.metric("convserve_ready") == 1
    assert service.metric("convserve_queue_depth") == 0
    assert service.metric("convserve_requests_in_progress") == 1  # the scrape itself


def test_the_process_itself_is_measured(service: ServiceProcess) -> None:
    assert service.metric("process_resident_memory_bytes") > 10e6


def test_at_most_so_many_labels_are_counted_by_name() -> None:
    labels = tuple(f"class {number}" for number in range(MAX_LABELS + 20))
    golden = {"image": colour_spec().goldens[0].image, "probabilities": [0.0] * len(labels), "tolerance": 0.01}
    classifier = FakeClassifier(spec=colour_spec(labels=labels, goldens=[golden]))
    metrics = asyncio.run(classify_each(classifier))
    counted = {key: value for key in (*labels, OTHER_LABEL) if (value := count(metrics, key))}
    assert counted == dict.fromkeys(labels[:MAX_LABELS], 1) | {OTHER_LABEL: 20}


async def classify_each(classifier: FakeClassifier) -> Metrics:
    """One image per class; the fake says class N for an image whose red is N."""
    metrics = Metrics()
    engine = Engine(classifier, metrics, threads=1)
    settings = Settings(model=Path("none"))
    service = Service(settings, engine, metrics, BodyLimits(1, 1, 1), keys=None)
    await engine.start()
    images = [png((number, 0, 0)) for number in range(len(classifier.spec.labels))]
    await service.classify(images, never_leaves, 30)
    await engine.close()
    return metrics


def count(metrics: Metrics, label: str) -> float:
    return metrics.registry.get_sample_value("convserve_predictions_total", {"label": label}) or 0
