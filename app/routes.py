"""The endpoints: each reads its request, asks the service and writes the answer; no logic of their own."""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import Response
from pydantic import ValidationError

from app import __version__
from app.access import check_key, trace_of
from app.answers import DEFAULT_TOP_K, PROBES, json_answer, model_ref, predict_answer, result_or_problem
from app.body import read_body, read_image, read_images
from app.change import change
from app.engine import Answer
from app.errors import BadParameterError, UnauthorizedError
from app.problem import MEDIA_TYPE as PROBLEM_JSON
from app.schemas import (
    Base64Image,
    BatchAnswer,
    Health,
    ModelCard,
    ModelChange,
    ModelRef,
    PredictAnswer,
    ProbeAnswer,
    Problem,
    QueueState,
)
from app.service import Service

MAX_TOP_K = 1000


# Dependencies are async: else FastAPI asks a thread, which costs more than they do, and may not start where memory is short.
async def _service(request: Request) -> Service:
    service = request.state.service
    assert isinstance(service, Service)
    return service


ServiceDependency = Annotated[Service, Depends(_service)]


def _asks_key(*kinds: str) -> Any:
    async def check(request: Request, service: ServiceDependency) -> None:
        if service.settings.api_keys_for in kinds:
            check_key(request.scope, service)

    return Depends(check)


# By `CONVSERVE_API_KEYS_FOR`.
MODEL_KEY, METRICS_KEY, PROBE_KEY = _asks_key("model", "metrics", "all"), _asks_key("metrics", "all"), _asks_key("all")


async def _timeout_seconds(
    service: ServiceDependency,
    x_request_timeout_ms: Annotated[
        float | None,
        Header(gt=0, allow_inf_nan=False, description="deadline, capped at CONVSERVE_REQUEST_TIMEOUT_MS"),
    ] = None,
) -> float:
    return service.timeout_seconds(x_request_timeout_ms)


TimeoutDependency = Annotated[float, Depends(_timeout_seconds)]
TopK = Annotated[int, Query(ge=1, le=MAX_TOP_K, description="how many classes to answer, at most all the model has")]

Explain = Annotated[bool, Query(description="say where in the image the evidence for the most probable class lies")]
ClassIndex = Annotated[int | None, Query(ge=0, description="say it of this class, whether or not `explain` is given")]

PROBLEMS = {
    400: "The body is empty, or not the multipart, JSON or base64 it claims to be.",
    401: "No valid API key (only where keys are configured).",
    408: "The body arrived too slowly.",
    413: "Too many bytes, pixels or images.",
    415: "Not an image of a type taken here.",
    422: "The image does not decode, or a parameter is out of range.",
    500: "A bug in the service.",
    503: "Overloaded or draining; `Retry-After` says when to come back.",
    504: "The deadline passed.",
}
RETRY_AFTER = {"Retry-After": {"description": "seconds", "schema": {"type": "integer", "minimum": 1}}}


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    content = {PROBLEM_JSON: {"schema": Problem.model_json_schema()}}
    responses: dict[int | str, dict[str, Any]] = {one: {"description": PROBLEMS[one], "content": content} for one in statuses}
    if 503 in responses:
        responses[503]["headers"] = RETRY_AFTER
    return responses


def _body(content: dict[str, Any], *, required: bool = True) -> dict[str, Any]:
    return {"requestBody": {"required": required, "content": content}}


_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FILE_FORM = {"type": "object", "required": ["file"], "properties": {"file": _BINARY["schema"]}}
_FILES_FORM = {
    "type": "object",
    "required": ["files"],
    "properties": {"files": {"type": "array", "minItems": 1, "items": _BINARY["schema"]}},
}

predict_router = APIRouter(dependencies=[MODEL_KEY], tags=["predict"])
router = APIRouter(dependencies=[PROBE_KEY], tags=["operate"])
admin_router = APIRouter(tags=["operate"])


@predict_router.post(
    "/predict",
    summary="Classify one image",
    responses={200: {"model": PredictAnswer}, **_problems(*PROBLEMS)},
    openapi_extra=_body(
        {
            "image/*": _BINARY,
            "application/octet-stream": _BINARY,
            "multipart/form-data": {"schema": _FILE_FORM},
            "application/json": {"schema": Base64Image.model_json_schema()},
        }
    ),
)
async def predict(
    request: Request,
    service: ServiceDependency,
    timeout_seconds: TimeoutDependency,
    top_k: TopK = DEFAULT_TOP_K,
    explain: Explain = False,
    class_index: ClassIndex = None,
) -> Response:
    """The most probable classes of one image, and whether the model stands by its answer (`accepted`)."""
    explainer = service.explainer(class_index) if explain or class_index is not None else None
    image = await read_image(request, service.limits)
    [outcome] = await service.classify([image], request.receive, timeout_seconds, explainer)
    if isinstance(outcome, BaseException):
        raise outcome
    return Response(predict_answer(outcome, top_k, trace_of(request.scope)), media_type="application/json")


@predict_router.post(
    "/predict/batch",
    summary="Classify many images",
    responses={200: {"model": BatchAnswer}, **_problems(*PROBLEMS)},
    openapi_extra=_body({"multipart/form-data": {"schema": _FILES_FORM}}),
)
async def predict_batch(
    request: Request, service: ServiceDependency, timeout_seconds: TimeoutDependency, top_k: TopK = DEFAULT_TOP_K
) -> Response:
    """One result per image, in the order sent: its predictions, or a problem of its own."""
    images = await read_images(request, service.limits, field="files")
    outcomes = await service.classify(images, request.receive, timeout_seconds)
    request_id = trace_of(request.scope).request_id
    results = [result_or_problem(outcome, top_k, request_id) for outcome in outcomes]
    made_by = next((one.classifier for one in outcomes if isinstance(one, Answer)), service.classifier)
    return json_answer({"model": model_ref(made_by), "results": results, "request_id": request_id})


@predict_router.get("/model", summary="What the model is", response_model=ModelCard, responses=_problems(401))
async def model(service: ServiceDependency) -> Response:
    """Labels, input rule, calibration, measured figures and provenance: all the model file says of itself."""
    classifier = service.classifier
    card = classifier.spec.model_dump(mode="json", exclude={"goldens", "reference", "schema_version"})
    return json_answer(card | {"sha256": classifier.sha256, "provider": classifier.provider})


@router.get("/health", summary="How the service is", response_model=Health, responses={503: {"model": Health}})
async def health(service: ServiceDependency) -> Response:
    """For people and monitors; 503 when draining or stalled."""
    engine = service.engine
    answer = Health(
        status=service.status,
        model=ModelRef(**model_ref(service.classifier)),
        service_version=__version__,
        provider=service.classifier.provider,
        threads=engine.threads,
        uptime_seconds=round(time.monotonic() - service.started_at, 3),
        queue=QueueState(
            waiting=engine.queue_depth,
            in_progress=engine.images_in_progress,
            estimated_wait_seconds=round(engine.estimated_wait_seconds(), 6),
        ),
        drift=service.classifier.drift(),
    )
    return json_answer(answer.model_dump(), 200 if answer.status == "ok" else 503)


@router.get("/livez", summary="Liveness probe", response_model=ProbeAnswer, responses={503: {"model": ProbeAnswer}})
async def livez(service: ServiceDependency) -> Response:
    """200 while the engine makes progress; 503 when a batch hangs or a thread died, so that the pod is restarted."""
    return PROBES["/livez"](service)


@router.get("/readyz", summary="Readiness probe", response_model=ProbeAnswer, responses={503: {"model": ProbeAnswer}})
async def readyz(service: ServiceDependency) -> Response:
    """200 while the model is loaded, proven, warm and not draining."""
    return PROBES["/readyz"](service)


@router.get(
    "/metrics",
    dependencies=[METRICS_KEY],
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(service: ServiceDependency) -> Response:
    """Text exposition format 0.0.4."""
    return Response(service.render_metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")


@admin_router.post(
    "/admin/model",
    summary="Change the model",
    responses={200: {"model": ModelCard}, **_problems(401, 408, 413, 422, 503)},
    openapi_extra=_body({"application/json": {"schema": ModelChange.model_json_schema()}}, required=False),
)
async def admin_model(request: Request, service: ServiceDependency) -> Response:
    """Answers as `/model` when the other model serves; a refusal changes nothing. No body: the configured file, read anew."""
    check_key(request.scope, service)
    if trace_of(request.scope).fields.get("key") not in service.settings.admin_keys:
        raise UnauthorizedError("this key may not change the model: CONVSERVE_ADMIN_KEYS names those that may")
    body = await read_body(request, service.limits, may_be_empty=True)
    try:
        asked = ModelChange.model_validate_json(body or b"{}")
    except ValidationError as error:
        raise BadParameterError(f"the JSON is not taken: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}") from error
    await change(service, asked)
    return await model(service)
