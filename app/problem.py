"""Errors as RFC 9457 `application/problem+json`: the only place where an exception becomes an HTTP answer."""

import logging
import math
from http import HTTPStatus
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.errors import BadParameterError, ConvServeError, UnavailableError

log = logging.getLogger("convserve.problem")

MEDIA_TYPE = "application/problem+json"
_DETAILS = {
    404: "there is nothing at this path: /docs lists what there is",
    405: "this path does not take this method: the Allow header lists those it takes",
}


def problem_of(error: Exception, request_id: str) -> dict[str, Any]:
    """The problem object of any exception. What is not ours or Starlette's is a bug: 500, without detail."""
    if isinstance(error, HTTPException):
        phrase = HTTPStatus(error.status_code).phrase
        detail = _DETAILS.get(error.status_code, str(error.detail))
        return _problem(error.status_code, phrase, phrase.lower().replace(" ", "_"), detail, request_id)
    if isinstance(error, ConvServeError) and error.status != 500:
        problem = _problem(error.status, error.title, error.reason, str(error), request_id)
        if isinstance(error, UnavailableError):
            problem["retry_after_seconds"] = round(error.retry_after_seconds, 3)
        if isinstance(error, BadParameterError) and error.errors:
            problem["errors"] = error.errors
        return problem
    log.error("bug: request %s failed", request_id, exc_info=error)
    detail = f"this is a bug in the service: report it with the request id {request_id}"
    return _problem(500, ConvServeError.title, ConvServeError.reason, detail, request_id)


def problem_response(error: Exception, request_id: str, path: str) -> tuple[str, Response]:
    """The reason and the whole HTTP answer, with `Retry-After`, `Allow` or `WWW-Authenticate` where the status asks for it.

    Under `/v2` the Open Inference Protocol's own form: `{"error": detail}`.
    """
    problem = problem_of(error, request_id)
    headers: dict[str, str] = {}
    if isinstance(error, HTTPException) and error.headers:
        headers.update(error.headers)
    if isinstance(error, UnavailableError):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_seconds)))
    if problem["status"] == 401:
        headers["www-authenticate"] = "Bearer"
    if problem["status"] == 408:
        headers["connection"] = "close"  # else the next request would be read as the rest of this one
    is_v2 = f"{path}/".startswith("/v2/")
    content = {"error": problem["detail"]} if is_v2 else problem
    media_type = "application/json" if is_v2 else MEDIA_TYPE
    return problem["reason"], Response(orjson.dumps(content), problem["status"], headers, media_type)


def _problem(status: int, title: str, reason: str, detail: str, request_id: str) -> dict[str, Any]:
    return {
        "type": f"urn:convserve:problem:{reason}",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": f"urn:convserve:request:{request_id}",
        "reason": reason,
        "request_id": request_id,
    }
