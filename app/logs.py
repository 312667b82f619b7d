"""Log lines for machines (one JSON object a line) or for people (text), to standard output."""

import asyncio
import logging
import sys
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from typing import Literal, TextIO

import orjson

FLUSH_SECONDS = 0.05


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, what the call gave as `extra={"fields": {…}}`, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


class TextFormatter(logging.Formatter):
    """The same for a terminal."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        fields: dict[str, object] = getattr(record, "fields", {})
        return " ".join([super().format(record), *(f"{name}={_printable(value)}" for name, value in fields.items())])


class GatheringHandler(logging.StreamHandler[TextIO]):
    """Writes what the event loop logs 20 times a second, all lines at once; warnings and all else without delay.

    A write per request hands the interpreter to another thread each time, and costs a small model a third of its rate.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """See the class."""
        try:
            self._lines.append(self.format(record) + self.terminator)
            loop = asyncio.get_running_loop()
        except RuntimeError:  # not on an event loop
            self.flush()
            return
        except Exception:
            self.handleError(record)
            return
        if record.levelno >= logging.WARNING:
            self.flush()
        elif len(self._lines) == 1:
            loop.call_later(FLUSH_SECONDS, self.flush)

    def flush(self) -> None:
        """Writes what was gathered."""
        with self.lock or nullcontext():
            lines, self._lines = self._lines, []
            with suppress(OSError):  # a full disk costs lines, not answers
                self.stream.write("".join(lines))
                self.stream.flush()


def _printable(value: object) -> str:
    """On one line: a path may hold line breaks that forge log lines."""
    text = str(value)
    return text if text.isprintable() else repr(text)


def configure_logging(level: str, form: Literal["json", "text"]) -> None:
    """Sends every logger of the process, uvicorn's included, to standard output in one form."""
    handler = GatheringHandler(sys.stdout)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    # What no line shows is not gathered. Source: Python's logging documentation, "Optimization".
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # uvicorn's word on each start-up step, and httpx's on each request, are ours already.
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLogger().level))
    for library in ("PIL", "python_multipart"):  # what a broken body is refused for is in its request's line
        logging.getLogger(library).setLevel(logging.CRITICAL)
