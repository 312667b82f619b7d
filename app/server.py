"""uvicorn as this service runs it: it drains before it stops, and says what it serves once the port listens."""

import asyncio
import logging
import math
import signal
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from app.connection import KEEP_ALIVE_SECONDS
from app.errors import SettingsError
from app.service import Service
from app.shortcut import PredictProtocol

log = logging.getLogger("convserve")


class DrainingServer(uvicorn.Server):
    """uvicorn, but on SIGTERM first unready, then still serving for `drain_seconds`, then finishing what it accepted.

    SIGINT (Ctrl-C) skips the wait, a second one what is being answered too. Exit code 0 either way.
    """

    def __init__(self, app: FastAPI) -> None:
        super().__init__(_config(app))
        self._service: Service = app.state.service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Says that it serves when the engine is warm and the port listens, not before."""
        await super().startup(sockets)
        if self.started and sockets:
            announce(self._service, sockets[0].getsockname()[1])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 (uvicorn's signature)
        """Called in the main thread, between two bytecodes of whatever runs there."""
        if sig == signal.SIGTERM and not self._service.draining and self._service.settings.drain_seconds:
            self._service.draining = True
            asyncio.get_running_loop().call_soon_threadsafe(self._drain)
        else:
            self._service.draining = True
            self.force_exit = self.should_exit and sig == signal.SIGINT
            self.should_exit = True

    def _drain(self) -> None:
        seconds = self._service.settings.drain_seconds
        log.info("draining: unready now, closing in %g s", seconds)
        asyncio.get_running_loop().call_later(seconds, setattr, self, "should_exit", True)


def _config(app: FastAPI) -> uvicorn.Config:
    """Raises: SettingsError when the certificate or its key cannot be used."""
    settings = app.state.service.settings
    config = uvicorn.Config(
        app,
        http=PredictProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=math.ceil((settings.request_timeout_ms + settings.body_timeout_ms) / 1000),
        ssl_certfile=settings.tls_cert_file,
        ssl_keyfile=settings.tls_key_file,
        ssl_keyfile_password="-",  # so that a key with a password is refused instead of asking a terminal for it
    )
    try:
        config.load()
    except (OSError, AssertionError) as error:
        reason = getattr(error, "strerror", None) or "the certificate is missing"
        raise SettingsError(f"CONVSERVE_TLS_CERT_FILE and CONVSERVE_TLS_KEY_FILE cannot be used: {reason}") from error
    return config


def announce(service: Service, port: int) -> None:
    """One log line that says what serves how, and where."""
    spec, settings = service.classifier.spec, service.settings
    fields = {
        "model": f"{spec.name} {spec.version}",
        "file": str(settings.model),
        "classes": len(spec.labels),
        "figures": {one.data: {"n": one.n, "accuracy": one.accuracy, "ece": one.ece} for one in spec.figures},
        "provider": service.classifier.provider,
        "workers": settings.workers,
        "threads": service.engine.threads,
        "max_batch_size": service.engine.max_batch_size,
        "max_queue_size": settings.max_queue_size,
        "address": f"{settings.host}:{port}",
    }
    log.info("serving", extra={"fields": fields})
