"""The Open Inference Protocol V2 over REST, as Triton, KServe and MLServer speak it; errors are `{"error": …}`.

Source: kserve/open-inference-protocol, `specification/protocol/inference_rest.md`.
"""

from typing import Annotated, Any

import numpy as np
import orjson
from fastapi import APIRouter, Depends, Header, Path, Request
from fastapi.responses import Response
from pydantic import create_model

from app import __version__
from app.access import trace_of
from app.answers import json_answer
from app.body import read_body
from app.classifier import INPUT, OUTPUT
from app.engine import Answer
from app.errors import ConvServeError, UnavailableError, UnknownModelError
from app.routes import MODEL_KEY, PROBE_KEY, PROBLEMS, RETRY_AFTER, ServiceDependency, TimeoutDependency
from app.schemas import Wire
from app.service import Outcome, Service
from app.tensors import InferAnswer, InferRequest, Tensor, images_of, outputs_of, read_request

HEADER_LENGTH = "Inference-Header-Content-Length"
EXTENSIONS = ["binary_tensor_data", "classification", "schedule_policy"]
Responses = dict[int | str, dict[str, Any]]

V2Error = create_model("V2Error", __base__=Wire, error=str)
Liveness = create_model("Liveness", __base__=Wire, live=bool)
Readiness = create_model("Readiness", __base__=Wire, ready=bool, name=(str | None, None))
ServerMetadata = create_model("ServerMetadata", __base__=Wire, name=str, version=str, extensions=list[str])
ModelMetadata = create_model(
    "ModelMetadata", __base__=Wire, name=str, versions=list[str], platform=str, inputs=list[Tensor], outputs=list[Tensor]
)


async def _check_name(service: ServiceDependency, name: Annotated[str, Path()]) -> None:
    if name != service.classifier.spec.name:
        raise UnknownModelError(f"there is no model {name} here: the one model is {service.classifier.spec.name}")


async def _check_version(service: ServiceDependency, version: Annotated[str, Path()]) -> None:
    if version != service.classifier.spec.version:
        raise UnknownModelError(f"there is no version {version} here: the one version is {service.classifier.spec.version}")


def _errors(*statuses: int) -> Responses:
    described = PROBLEMS | {404: "The model or version is not the one served."}
    answers: Responses = {one: {"model": V2Error, "description": described[one]} for one in statuses}
    if 503 in answers:
        answers[503]["headers"] = RETRY_AFTER
    return answers


def _inline(schema: Any, definitions: dict[str, Any]) -> Any:
    """A JSON schema with its references to `$defs` resolved, so that it can stand inside an OpenAPI document."""
    if isinstance(schema, list):
        return [_inline(one, definitions) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inline(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: _inline(value, definitions) for key, value in schema.items() if key != "$defs"}


_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_SCHEMA = InferRequest.model_json_schema()
_BODY = {"required": True, "content": {"application/json": {"schema": _inline(_SCHEMA, _SCHEMA["$defs"])}, **_BINARY}}
_LENGTH = {HEADER_LENGTH: {"description": "binary form: bytes of the JSON", "schema": {"type": "integer"}}}
_ANSWERS: Responses = {200: {"model": InferAnswer, "content": _BINARY, "headers": _LENGTH}, **_errors(404, *PROBLEMS)}
_READINESS: Responses = _errors(404, 422) | {503: {"model": Readiness}}
_NAME, _VERSION = Depends(_check_name), Depends(_check_version)

router = APIRouter(prefix="/v2", tags=["open inference"])
one_model = APIRouter()


@router.get("/health/live", dependencies=[PROBE_KEY], response_model=Liveness, responses={503: {"model": Liveness}})
async def live(service: ServiceDependency) -> Response:
    """As `/livez`."""
    return json_answer({"live": service.is_live}, 200 if service.is_live else 503)


@router.get("/health/ready", dependencies=[PROBE_KEY], response_model=Readiness, responses={503: {"model": Readiness}})
async def ready(service: ServiceDependency) -> Response:
    """As `/readyz`."""
    return _readiness(service)


@router.get("", response_model=ServerMetadata, responses=_errors(401), dependencies=[MODEL_KEY])
async def server_metadata() -> Response:
    """Name, version and the extensions of the protocol that are taken."""
    return json_answer({"name": "convserve", "version": __version__, "extensions": EXTENSIONS})


@one_model.get("/ready", dependencies=[PROBE_KEY], response_model=Readiness, responses=_READINESS)
async def model_ready(service: ServiceDependency) -> Response:
    """As `/readyz`, for the model."""
    return _readiness(service, name=service.classifier.spec.name)


@one_model.get("", response_model=ModelMetadata, responses=_errors(401, 404, 422), dependencies=[MODEL_KEY])
async def model_metadata(service: ServiceDependency) -> Response:
    """The tensors. `images` is taken as UINT8 of this shape, and as BYTES of shape [n]: encoded image files."""
    spec = service.classifier.spec
    images = {"name": INPUT, "datatype": "UINT8", "shape": [-1, *spec.input.shape]}
    probabilities = {"name": OUTPUT, "datatype": "FP32", "shape": [-1, len(spec.labels)]}
    card = {"name": spec.name, "versions": [spec.version], "platform": "onnxruntime_onnx"}
    return json_answer(card | {"inputs": [images], "outputs": [probabilities]})


@one_model.post("/infer", responses=_ANSWERS, dependencies=[MODEL_KEY], openapi_extra={"requestBody": _BODY})
async def infer(
    request: Request,
    service: ServiceDependency,
    timeout_seconds: TimeoutDependency,
    inference_header_content_length: Annotated[
        int | None, Header(ge=0, description="binary form: bytes of the JSON, which the tensors follow")
    ] = None,
) -> Response:
    """Probabilities of all images; if one of them fails, the request fails and the error names its index."""
    body = await read_body(request, service.limits)
    # Again: while the body came, another model may have taken its place.
    await _check_name(service, request.path_params["name"])
    await _check_version(service, request.path_params.get("version", service.classifier.spec.version))
    spec, max_images = service.classifier.spec.input, service.limits.max_images
    max_lists = 1000 + max_images * spec.height * (spec.width + 1)  # with every pixel in a list of its own
    asked, binary = read_request(body, inference_header_content_length, max_lists=max_lists)
    images = images_of(asked.inputs[0], binary, spec, max_images=max_images)
    del body, binary
    asked.inputs.clear()  # numbers as Python objects take more than the body, and the answer may take its time
    outcomes = await service.classify(images, request.receive, asked.timeout_seconds(timeout_seconds))
    answers = [_answer_of(index, outcome) for index, outcome in enumerate(outcomes)]
    return _response(asked, answers, trace_of(request.scope).request_id)


router.include_router(one_model, prefix="/models/{name}", dependencies=[_NAME])
router.include_router(one_model, prefix="/models/{name}/versions/{version}", dependencies=[_NAME, _VERSION])


def _answer_of(index: int, outcome: Outcome) -> Answer:
    """One image's answer. Raises what it ended with, and names the image."""
    if isinstance(outcome, Answer):
        return outcome
    if isinstance(outcome, UnavailableError) or not isinstance(outcome, Exception):
        raise outcome
    kind = type(outcome) if isinstance(outcome, ConvServeError) else ConvServeError
    raise kind(f"image {index}: {outcome}") from outcome


def _response(asked: InferRequest, answers: list[Answer], request_id: str) -> Response:
    spec = answers[0].classifier.spec  # one request's images all go to one model
    outputs = outputs_of(asked, np.stack([one.probabilities for one in answers]), spec.labels)
    head = {"model_name": spec.name, "model_version": spec.version, "id": asked.id or request_id}
    content = orjson.dumps(head | {"outputs": [tensor for tensor, _ in outputs]}, option=orjson.OPT_SERIALIZE_NUMPY)
    packed = b"".join(part for _, part in outputs)
    if not packed:
        return Response(content, media_type="application/json")
    return Response(content + packed, headers={HEADER_LENGTH: str(len(content))}, media_type="application/octet-stream")


def _readiness(service: Service, **name: str) -> Response:
    is_ready = service.status == "ok"
    return json_answer(name | {"ready": is_ready}, 200 if is_ready else 503)
