"""What operators and tools read: health, probes, the model card, OpenAPI."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app import __version__
from app.routes import PROBLEMS
from app.schemas import Health, ModelCard
from tests.models import COLOUR_INPUT, COLOURS
from tests.service import ServiceProcess

PREDICT_ROUTES = ("/predict", "/predict/batch")


@pytest.fixture(scope="module")
def openapi(service: ServiceProcess) -> Any:
    with service.client() as client:
        return client.get("/openapi.json").json()


def test_health_says_what_runs_and_how_busy_it_is(client: httpx.Client) -> None:
    response = client.get("/health")
    health = Health.model_validate_json(response.content, strict=True)
    assert (response.status_code, health.status) == (200, "ok")
    assert (health.model.name, health.model.version, health.service_version) == ("colours", "1", __version__)
    assert (health.provider, health.threads) == ("CPUExecutionProvider", 2)
    assert health.uptime_seconds > 0
    assert (health.queue.waiting, health.queue.in_progress) == (0, 0)
    assert 0 < health.queue.estimated_wait_seconds < 1


@pytest.mark.parametrize(("path", "status"), [("/livez", "live"), ("/readyz", "ready")])
def test_a_probe_of_a_well_service_answers_200(client: httpx.Client, path: str, status: str) -> None:
    response = client.get(path)
    assert (response.status_code, response.json()) == (200, {"status": status})
    assert response.headers["cache-control"] == "no-store"


def test_the_model_card_is_the_spec_without_its_goldens(client: httpx.Client, colours: Path) -> None:
    response = client.get("/model")
    card = ModelCard.model_validate_json(response.content)
    assert card.labels == list(COLOURS)
    assert card.input == COLOUR_INPUT
    assert card.accept is not None
    assert card.accept.threshold == 0.6
    assert card.sha256 == hashlib.sha256(colours.read_bytes()).hexdigest()
    assert "goldens" not in response.json()


def test_the_documentation_page_is_there(client: httpx.Client) -> None:
    response = client.get("/docs")
    assert response.status_code == 200
    assert "text/html" in response.headers["content-type"]
    assert "/openapi.json" in response.text


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def test_openapi_names_every_endpoint(openapi: dict[str, Any]) -> None:
    named = {name for name, _ in operations(openapi)}
    posts = {"POST /predict", "POST /predict/batch"}
    gets = {f"GET {path}" for path in ("/health", "/livez", "/readyz", "/model", "/metrics")}
    assert named >= posts | gets
    assert openapi["openapi"].startswith("3.1")
    assert openapi["info"]["version"] == __version__


def test_openapi_describes_every_operation_and_response(openapi: dict[str, Any]) -> None:
    identities = [operation["operationId"] for _, operation in operations(openapi)]
    assert len(set(identities)) == len(identities)
    for name, operation in operations(openapi):
        assert operation["summary"], name
        assert operation["responses"], name
        for status, response in operation["responses"].items():
            assert 200 <= int(status) <= 599
            assert response["description"], (name, status)
        for parameter in operation.get("parameters", []):
            assert parameter["in"] in ("query", "header", "path")
            assert parameter["schema"]


@pytest.mark.parametrize("path", PREDICT_ROUTES)
def test_openapi_documents_every_problem_that_predict_can_answer(openapi: dict[str, Any], path: str) -> None:
    responses = openapi["paths"][path]["post"]["responses"]
    assert {int(status) for status in responses} == {200, 431, *PROBLEMS}  # 431: of the connection, before any path
    for status in PROBLEMS:
        schema = responses[str(status)]["content"]["application/problem+json"]["schema"]
        assert {"type", "title", "status", "detail", "instance", "reason", "request_id"} <= set(schema["required"])
    assert "Retry-After" in responses["503"]["headers"]


def test_openapi_documents_the_three_forms_of_body(openapi: dict[str, Any]) -> None:
    content = openapi["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert set(content) == {"image/*", "application/octet-stream", "multipart/form-data", "application/json"}
    assert set(openapi["paths"]["/predict/batch"]["post"]["requestBody"]["content"]) == {"multipart/form-data"}


def references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        yield from [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        for value in node.values():
            yield from references(value)
    if isinstance(node, list):
        for value in node:
            yield from references(value)


def test_every_reference_in_openapi_leads_somewhere(openapi: dict[str, Any]) -> None:
    found = set(references(openapi))
    assert found
    for reference in found:
        place: Any = openapi
        for name in reference.removeprefix("#/").split("/"):
            place = place[name]
        assert place
