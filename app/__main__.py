"""`python -m app`: runs the service under uvicorn, with settings from the environment, or the command that is named."""

import argparse
import logging
import signal
import socket
import sys
from importlib import import_module

from app import __version__
from app.errors import ModelError, SettingsError
from app.logs import configure_logging
from app.main import create_app
from app.server import DrainingServer
from app.settings import PREFIX, Settings
from app.workers import serve_in_workers

log = logging.getLogger("convserve")

# Beside `serve`: `main(arguments)` of app/NAME.py, imported only when asked for, so that serving starts no later.
COMMANDS = {
    "bench": "measures what a service can bear, and says which settings that asks for",
    "predict": "classifies files and folders, by a model file or a running service",
}


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
        if settings.workers > 1:
            return serve_in_workers(settings, listener)
        app = create_app(settings)
    except (ModelError, SettingsError) as error:
        print(f"convserve: {error}", file=sys.stderr)
        return 1
    DrainingServer(app).run(sockets=[listener])
    log.info("stopped")
    return 0


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
