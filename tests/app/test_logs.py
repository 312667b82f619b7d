"""The log: one JSON object a line for machines, one readable line for people."""

import json
import logging
import sys
from datetime import UTC, datetime

import pytest

from app.logs import JsonFormatter, TextFormatter
from tests.service import ServiceProcess


def record(message: str, fields: dict[str, object] | None = None, **extra: object) -> logging.LogRecord:
    content = {"name": "convserve.test", "levelname": "INFO", "levelno": logging.INFO, "msg": message, "created": 0.5}
    return logging.makeLogRecord(content | ({"fields": fields} if fields else {}) | extra)


def test_a_line_is_a_json_object_with_its_fields_on_top() -> None:
    line = json.loads(JsonFormatter().format(record("served", {"status": 200, "path": "/predict"})))
    assert line == {
        "time": "1970-01-01T00:00:00.500000+00:00",
        "level": "info",
        "logger": "convserve.test",
        "message": "served",
        "status": 200,
        "path": "/predict",
    }


@pytest.mark.parametrize("text", ['say "hi"', "two\nlines", "naïve ☃", "\x00\x1b[31m"])
def test_any_text_stays_on_one_line_and_comes_back_whole(text: str) -> None:
    line = JsonFormatter().format(record(text, {"path": text}))
    assert "\n" not in line
    assert json.loads(line)["message"] == json.loads(line)["path"] == text


def test_what_json_does_not_know_is_written_as_text() -> None:
    line = json.loads(JsonFormatter().format(record("odd", {"error": ValueError("why")})))
    assert line["error"] == "why"


def test_an_exception_brings_its_traceback() -> None:
    try:
        raise ValueError("why")
    except ValueError:
        failed = record("failed", exc_info=sys.exc_info())
    assert json.loads(JsonFormatter().format(failed))["traceback"].endswith("ValueError: why")


def test_text_ends_with_the_fields() -> None:
    line = TextFormatter().format(record("served", {"status": 200, "path": "/predict"}))
    assert line.endswith("INFO    served status=200 path=/predict")


def test_every_line_of_a_running_service_is_json_with_a_time(service: ServiceProcess) -> None:
    service.wait_for_line(message="serving")
    assert service.lines
    for line in service.lines:
        entry = json.loads(line)
        assert datetime.fromisoformat(entry["time"]).tzinfo == UTC
        assert {"level", "logger", "message"} <= entry.keys()
