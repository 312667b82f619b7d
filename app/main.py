"""Puts the routes together: what FastAPI answers, which is all but the short road."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from opentelemetry.trace import get_current_span
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app import __version__
from app.access import PROBES, Access, AccessMiddleware, refuse
from app.errors import BadParameterError, ConvServeError
from app.open_inference import router as open_inference_router
from app.openapi import complete
from app.pages import playground_router
from app.routes import admin_router, predict_router, router
from app.service import Service

DESCRIPTION = "Classifies images by one self-describing ONNX model. Errors are RFC 9457 problem+json with a stable `reason`."


class Application(FastAPI):
    """FastAPI, with an OpenAPI document that is complete."""

    def openapi(self) -> dict[str, Any]:
        """The document, made when it is first asked for."""
        if self.openapi_schema is None:
            complete(super().openapi())
        return super().openapi()


def create_app(service: Service, access: Access) -> FastAPI:
    """The ASGI application of a service."""
    settings = service.settings

    # Unless told otherwise, FastAPI would look for somebody to tell of metrics, logs and spans at each request.
    app = Application(
        title="ConvServe",
        version=__version__,
        description=DESCRIPTION,
        openapi_url="/openapi.json" if settings.docs else None,  # and without it no /docs
        redoc_url=None,
        telemetry={
            "tracing": settings.tracing,
            "tracer_provider": service.metrics.tracer and service.metrics.tracer.provider,
            "exclude": lambda scope: scope["path"] in PROBES,
            "operation_spans": False,
            "metrics": False,
            "logs": False,
        },
    )
    app.state.service = service
    app.include_router(predict_router)
    app.include_router(open_inference_router)
    app.include_router(router)
    if settings.admin_keys:
        app.include_router(admin_router)
    if settings.playground:
        app.include_router(playground_router())
    for kind in (ConvServeError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _answer_problem)
    app.add_middleware(AccessMiddleware, access=access)
    if settings.cors_origins:  # around the other, so that a browser can read a 500 too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-ID", "Server-Timing", "Retry-After"],
        )
    return app


async def _answer_problem(request: Request, error: Exception) -> Response:
    get_current_span().record_exception(error)
    if isinstance(error, RequestValidationError):
        error = _bad_parameter(error)
    return refuse(error, request.scope, request.app.state.service.metrics)


def _bad_parameter(error: RequestValidationError) -> BadParameterError:
    errors = [{"parameter": str(one["loc"][-1]), "message": str(one["msg"])} for one in error.errors()]
    found = BadParameterError("; ".join(f"{one['parameter']}: {one['message']}" for one in errors))
    found.errors = errors
    return found
