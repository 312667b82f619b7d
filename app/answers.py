"""What is answered, as JSON; FastAPI has no part in it, so that nobody waits for it to be imported."""

from collections.abc import Callable
from typing import Any

import orjson
from starlette.responses import Response

from app.access import RequestTrace
from app.classifier import Classifier, name_classes
from app.engine import Answer
from app.problem import problem_of
from app.service import Outcome, Service

DEFAULT_TOP_K = 5


def predict_answer(answer: Answer, k: int, trace: RequestTrace) -> bytes:
    """The JSON of one image's answer; the times it took go to the trace."""
    trace.stages = {"decode": answer.decode_seconds, "queue": answer.queue_seconds, "infer": answer.infer_seconds}
    content = {"model": model_ref(answer.classifier), **result_of(answer, k), "request_id": trace.request_id}
    if answer.explanation is not None:
        trace.stages["explain"] = answer.explain_seconds
        content["explanation"] = answer.explanation
    return orjson.dumps(content)


def json_answer(content: dict[str, Any], status: int = 200) -> Response:
    """An answer that FastAPI need not check."""
    return Response(orjson.dumps(content), status, media_type="application/json")


def model_ref(classifier: Classifier) -> dict[str, str]:
    return {"name": classifier.spec.name, "version": classifier.spec.version}


def result_of(answer: Answer, k: int) -> dict[str, Any]:
    spec = answer.classifier.spec
    best = answer.top(k)
    return {
        "predictions": name_classes(best, spec.labels),
        "accepted": spec.accepts(best[0][1]),
    }


def result_or_problem(outcome: Outcome, k: int, request_id: str) -> dict[str, Any]:
    if isinstance(outcome, Answer):
        return result_of(outcome, k)
    if not isinstance(outcome, Exception):
        raise outcome
    return {"problem": problem_of(outcome, request_id)}


def _live(service: Service) -> Response:
    return json_answer({"status": "live"}) if service.is_live else json_answer({"status": "stalled"}, 503)


def _ready(service: Service) -> Response:
    return json_answer({"status": "ready"}) if service.status == "ok" else json_answer({"status": service.status}, 503)


PROBES: dict[str, Callable[[Service], Response]] = {"/livez": _live, "/readyz": _ready}
