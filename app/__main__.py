"""`python -m app`: runs the service under uvicorn, with settings from the environment, or the command that is named."""

import argparse
import asyncio
import logging
import math
import signal
import socket
import sys
from importlib import import_module
from types import FrameType

import uvicorn
from fastapi import FastAPI

from app import __version__
from app.errors import ModelError, SettingsError
from app.logs import configure_logging
from app.main import create_app
from app.service import Service
from app.settings import PREFIX, Settings

log = logging.getLogger("convserve")

# Longer than load balancers keep idle connections (60 s is common), so that they close them, not we: no lost race.
KEEP_ALIVE_SECONDS = 75

# Beside `serve`: `main(arguments)` of app/NAME.py, imported only when asked for, so that serving starts no later.
COMMANDS: dict[str, str] = {}


class DrainingServer(uvicorn.Server):
    """uvicorn, but on SIGTERM first unready, then still serving for `drain_seconds`, then finishing what it accepted.

    SIGINT (Ctrl-C) skips the wait, a second one what is being answered too. Exit code 0 either way.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Says that it serves when the engine is warm and the port listens, not before."""
        await super().startup(sockets)
        if self.started and sockets:
            _announce(self._service, sockets[0].getsockname()[1])

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


def main() -> int:
    """Runs the command that is named first, else serves; returns the exit code."""
    match sys.argv[1:]:
        case [name, *arguments] if name in COMMANDS:
            return int(import_module(f"app.{name}").main(arguments))
    _parse_arguments()
    return serve()


def serve() -> int:
    """Returns the exit code: 0 after a clean shutdown, 1 when the service cannot start."""
    # Until uvicorn takes over: to process 1 of a container SIGTERM means nothing by default, however long the model loads.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        settings = Settings.load()
        configure_logging(settings.log_level, settings.log_format)
        listener = _bind(settings.host, settings.port)
        app = create_app(settings)
    except (ModelError, SettingsError) as error:
        print(f"convserve: {error}", file=sys.stderr)
        return 1
    DrainingServer(_uvicorn_config(app, settings), app.state.service).run(sockets=[listener])
    log.info("stopped")
    return 0


def _uvicorn_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=math.ceil((settings.request_timeout_ms + settings.body_timeout_ms) / 1000),
    )


def _bind(host: str, port: int) -> socket.socket:
    """Takes the port without listening yet: clients are refused until the model is proven.

    Raises: SettingsError when the address is taken or not ours.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise SettingsError(
            f"port {port} on {host} cannot be used: {error.strerror}: choose another with {PREFIX}PORT"
        ) from error
    return listener


def _announce(service: Service, port: int) -> None:
    spec, settings = service.classifier.spec, service.settings
    fields = {
        "model": f"{spec.name} {spec.version}",
        "file": str(settings.model),
        "classes": len(spec.labels),
        "figures": {one.data: {"n": one.n, "accuracy": one.accuracy, "ece": one.ece} for one in spec.figures},
        "provider": service.classifier.provider,
        "threads": service.engine.threads,
        "max_batch_size": settings.max_batch_size,
        "max_queue_size": settings.max_queue_size,
        "address": f"{settings.host}:{port}",
    }
    log.info("serving", extra={"fields": fields})


def _parse_arguments() -> None:
    commands = "".join(f"\n  {name:34} {what}" for name, what in {"serve": "serves (default)", **COMMANDS}.items())
    settings = "\n".join(
        f"  {PREFIX + name.upper():34} {field.description or ''} (default: {field.get_default()})"
        for name, field in Settings.model_fields.items()
    )
    parser = argparse.ArgumentParser(
        prog="python -m app",
        description="Serves an image classifier over HTTP: POST an image to /predict. Stops cleanly on SIGTERM and Ctrl-C.",
        epilog=f"commands:{commands}\n\nsettings, from the environment:\n{settings}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ConvServe {__version__}")
    parser.add_argument("command", nargs="?", choices=["serve", *COMMANDS], default="serve", help="default: serve")
    parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
