"""Puts the application together: `create_app(settings)` loads the model, and the lifespan starts and closes the engine."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app import __version__
from app.access import AccessMiddleware, trace_of
from app.errors import ConvServeError
from app.pages import playground_router
from app.problem import problem_response
from app.routes import predict_router, router
from app.service import Service
from app.settings import Settings

DESCRIPTION = "Classifies images by one self-describing ONNX model. Errors are RFC 9457 problem+json with a stable `reason`."


def create_app(settings: Settings) -> FastAPI:
    """The ASGI application, its model loaded and proven.

    Raises: ModelError, SettingsError.
    """
    service = Service.create(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        await service.engine.start()
        yield {"service": service}
        await service.engine.close()

    app = FastAPI(title="ConvServe", version=__version__, description=DESCRIPTION, lifespan=lifespan)
    app.state.service = service
    app.include_router(predict_router)
    app.include_router(router)
    if settings.playground:
        app.include_router(playground_router())
    for kind in (ConvServeError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _answer_problem)
    app.add_middleware(AccessMiddleware, service=service)
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
    trace = trace_of(request.scope)
    reason, response = problem_response(error, trace.request_id)
    trace.fields["reason"] = reason
    request.app.state.service.metrics.rejected.labels(reason).inc()
    return response
