"""`python -m app serve`: runs the service under uvicorn, with settings from the environment.

Its start is short: nothing is collected as garbage meanwhile, and the model loads while uvicorn is imported.
"""

import argparse
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from app import __version__
from app.errors import ModelError, SettingsError
from app.logs import configure_logging
from app.service import Service
from app.settings import PREFIX, Settings

log = logging.getLogger("convserve")


def main(arguments: Sequence[str], others: Mapping[str, str]) -> int:
    """Returns the exit code: 0 after a clean shutdown, 1 when the service cannot start. `others` are the commands beside it."""
    _parse(arguments, {"serve": "serves (default)", **others})
    # Until uvicorn takes over: to process 1 of a container SIGTERM means nothing by default, however long the model loads.
    # At once: unwinding waits for the thread that loads it, and a second signal would end the interpreter under that thread.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the model file is being read anyway
    try:
        settings = Settings.load()
        configure_logging(settings.log_level, settings.log_format)
        listener = _bind(settings.host, settings.port)
        return _serve_in_workers(settings, listener) if settings.workers > 1 else _serve(settings, listener)
    except (ModelError, SettingsError) as error:
        print(f"convserve: {error}", file=sys.stderr)
        return 1


def _serve(settings: Settings, listener: socket.socket) -> int:
    with ThreadPoolExecutor(1) as pool:
        service = pool.submit(Service.create, settings)
        from app.server import DrainingServer
    server = DrainingServer(service.result())
    server.run(sockets=[listener])
    log.info("stopped")
    return 0


def _serve_in_workers(settings: Settings, listener: socket.socket) -> int:
    from app.workers import serve_in_workers

    gc.enable()
    return serve_in_workers(settings, listener)


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


def _parse(arguments: Sequence[str], commands: Mapping[str, str]) -> None:
    listing = "".join(f"\n  {name:34} {what}" for name, what in commands.items())
    settings = "\n".join(
        f"  {PREFIX + name.upper():34} {field.description or ''} (default: {field.get_default()})"
        for name, field in Settings.model_fields.items()
    )
    parser = argparse.ArgumentParser(
        prog="python -m app",
        description="Serves an image classifier over HTTP: POST an image to /predict. Stops cleanly on SIGTERM and Ctrl-C.",
        epilog=f"commands:{listing}\n\nsettings, from the environment:\n{settings}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ConvServe {__version__}")
    parser.add_argument("command", nargs="?", choices=commands, default="serve", help="default: serve")
    parser.parse_args(arguments)
