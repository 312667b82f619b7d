"""The settings: what is wrong in the environment is named at start, never ignored."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.errors import SettingsError
from app.settings import BUNDLED_MODEL, PREFIX, Settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith(PREFIX):
            monkeypatch.delenv(name)


def refusal(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> str:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        Settings.load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_setting_has_a_default_that_suits_one_pod() -> None:
    settings = Settings.load()
    assert settings.model == BUNDLED_MODEL
    assert (settings.host, settings.port, settings.device, settings.threads) == ("0.0.0.0", 8000, "auto", 0)
    assert (settings.max_wait_ms, settings.request_timeout_ms, settings.drain_seconds) == (0, 10_000, 5)
    assert (settings.api_keys_file, settings.cors_origins) == (None, ())
    assert (settings.log_level, settings.log_format) == ("info", "json")


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("CONVSERVE_PORT", "80", "port", 80),
        ("convserve_port", "80", "port", 80),
        ("Convserve_Log_Format", "text", "log_format", "text"),
        ("CONVSERVE_MODEL", "some/where.onnx", "model", Path("some/where.onnx")),
        ("CONVSERVE_CORS_ORIGINS", '["https://a.example", "*"]', "cors_origins", ("https://a.example", "*")),
        ("CONVSERVE_DRAIN_SECONDS", "0", "drain_seconds", 0),
    ],
)
def test_a_variable_sets_its_field(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, field: str, expected: object
) -> None:
    monkeypatch.setenv(name, value)
    assert getattr(Settings.load(), field) == expected


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("CONVSERVE_PROT", "CONVSERVE_PROT is not a setting: did you mean CONVSERVE_PORT?"),
        ("CONVSERVE_MAX_BODY_BYTE", "CONVSERVE_MAX_BODY_BYTE is not a setting: did you mean CONVSERVE_MAX_BODY_BYTES?"),
        ("convserve_modle", "convserve_modle is not a setting: did you mean CONVSERVE_MODEL?"),
        ("CONVSERVE_ZZZZZZZZZZZZ", "CONVSERVE_ZZZZZZZZZZZZ is not a setting"),
    ],
)
def test_an_unknown_variable_is_refused_and_a_near_one_suggested(
    monkeypatch: pytest.MonkeyPatch, name: str, sentence: str
) -> None:
    assert refusal(monkeypatch, name, "1") == sentence


@pytest.mark.parametrize(
    ("setting", "value", "sentence"),
    [
        ("PORT", "65536", "Input should be less than or equal to 65535"),
        ("PORT", "http", "Input should be a valid integer"),
        ("DEVICE", "gpu", "Input should be 'auto', 'cpu' or 'cuda'"),
        ("THREADS", "-1", "Input should be greater than or equal to 0"),
        ("MAX_BATCH_SIZE", "0", "Input should be greater than or equal to 1"),
        ("MAX_WAIT_MS", "1001", "Input should be less than or equal to 1000"),
        ("MAX_QUEUE_SIZE", "0", "Input should be greater than or equal to 1"),
        ("REQUEST_TIMEOUT_MS", "0", "Input should be greater than 0"),
        ("REQUEST_TIMEOUT_MS", "inf", "Input should be a finite number"),
        ("BODY_TIMEOUT_MS", "nan", "Input should be"),
        ("MAX_BODY_BYTES", "32MB", "Input should be a valid integer"),
        ("MAX_PIXELS", "", "Input should be a valid integer"),
        ("MAX_IMAGES_PER_REQUEST", "0", "Input should be greater than or equal to 1"),
        ("DRAIN_SECONDS", "-1", "Input should be greater than or equal to 0"),
        ("DRAIN_SECONDS", "inf", "Input should be a finite number"),
        ("STALL_SECONDS", "0", "Input should be greater than 0"),
        ("LOG_LEVEL", "loud", "Input should be 'debug', 'info', 'warning' or 'error'"),
        ("LOG_FORMAT", "xml", "Input should be 'json' or 'text'"),
    ],
)
def test_a_bad_value_is_refused_with_the_variable_and_what_it_takes(
    monkeypatch: pytest.MonkeyPatch, setting: str, value: str, sentence: str
) -> None:
    assert refusal(monkeypatch, PREFIX + setting, value).startswith(f"{PREFIX}{setting}={value}: {sentence}")


@pytest.mark.parametrize("value", ["https://a.example", '["https://a.example"', ""])
def test_origins_that_are_not_json_are_refused_with_the_variable(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    assert "CONVSERVE_CORS_ORIGINS" in refusal(monkeypatch, "CONVSERVE_CORS_ORIGINS", value)


def test_settings_never_change() -> None:
    settings = Settings.load()
    with pytest.raises(ValidationError, match="frozen"):
        settings.port = 1  # type: ignore[misc]
