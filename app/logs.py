"""Log lines for machines (one JSON object a line) or for people (text), to standard output."""

import logging
import sys
from datetime import UTC, datetime
from typing import Literal

import orjson


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, what the call gave as `extra={"fields": {…}}`, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
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


def _printable(value: object) -> str:
    """On one line: a path may hold line breaks that forge log lines."""
    text = str(value)
    return text if text.isprintable() else repr(text)


def configure_logging(level: str, form: Literal["json", "text"]) -> None:
    """Sends every logger of the process, uvicorn's included, to standard output in one form."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    # What no line shows is not gathered. Source: Python's logging documentation, "Optimization".
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = logging.logAsyncioTasks = False
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # uvicorn's word on each start-up step, and httpx's on each request, are ours already.
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLogger().level))
