"""uvicorn as this service runs it: it drains before it stops, and says what it serves once the port listens."""

import asyncio
import gc
import logging
import math
import signal
import socket
from types import FrameType

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from app.access import Access, AccessMiddleware, trace_of
from app.answers import PROBES
from app.change import follow
from app.connection import KEEP_ALIVE_SECONDS
from app.errors import SettingsError
from app.memory import give_back_memory
from app.service import Service
from app.shortcut import PredictProtocol

log = logging.getLogger("convserve")


class LateApp:
    """The ASGI application. FastAPI takes as long to import as the model to load, so this begins when the port listens.

    Meanwhile only the probes and the short road are answered; whoever asks for more waits.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.access = Access(service)
        self._probes = AccessMiddleware(self._answer_probe, access=self.access)
        self._app: asyncio.Future[ASGIApp] | None = None

    def begin(self) -> asyncio.Future[ASGIApp]:
        """Imports and builds, once unless it fails (for want of memory or descriptors), beside the event loop."""
        if self._app is None or (self._app.done() and self._app.exception()):
            self._app = asyncio.get_running_loop().run_in_executor(None, self._build)
        return self._app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        asks_probe = scope["path"] in PROBES and scope["method"] == "GET" and self.service.settings.api_keys_for != "all"
        if asks_probe and not self.begin().done():
            await self._probes(scope, receive, send)
        else:
            app = await asyncio.shield(self.begin())
            await app(scope, receive, send)

    def _build(self) -> ASGIApp:
        from app.main import create_app

        app = create_app(self.service, self.access)
        gc.freeze()
        gc.enable()
        return app

    async def _answer_probe(self, scope: Scope, receive: Receive, send: Send) -> None:
        trace_of(scope).route = scope["path"]
        await PROBES[scope["path"]](self.service)(scope, receive, send)


class DrainingServer(uvicorn.Server):
    """uvicorn around a service, which it starts and closes.

    On SIGTERM first unready, then still serving for `drain_seconds`, then finishing what it accepted. SIGINT (Ctrl-C) skips
    the wait, a second one what is being answered too. Exit code 0 either way.
    """

    def __init__(self, service: Service) -> None:
        self._app = LateApp(service)
        super().__init__(_config(self._app))
        self._service = service
        self._background: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Says that it serves when the engine is warm and the port listens, not before."""
        await self._service.engine.start()
        give_back_memory()  # of loading
        self._background = [asyncio.create_task(one(self._service)) for one in (Service.keep_posting, follow)]
        self.lifespan.state.update(service=self._service, access=self._app.access)
        await super().startup(sockets)
        self._app.begin()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._service.told.set)
        if self.started and sockets:
            announce(self._service, sockets[0].getsockname()[1])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers what was accepted first."""
        await super().shutdown(sockets)
        for task in self._background:
            task.cancel()
        if not self.force_exit:
            await self._service.engine.close()

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


def _config(app: LateApp) -> uvicorn.Config:
    """Raises: SettingsError when the certificate or its key cannot be used."""
    settings = app.service.settings
    config = uvicorn.Config(
        app,
        http=PredictProtocol,
        ws="none",
        lifespan="off",
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
