"""What an operator can set: environment variables with the prefix `CONVSERVE_`, each with a default that can be kept.

An unknown variable with the prefix is an error at start, so that a typing mistake never passes for a setting.
"""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.classifier import Device
from app.errors import SettingsError

PREFIX = "CONVSERVE_"
DIGEST = "^([0-9a-f]{64})?$"  # as sha256sum prints it, or none
BUNDLED_MODEL = Path(__file__).parent.parent / "models" / "imagenet.onnx"


class Settings(BaseSettings):
    """The service's settings, read once at start and never changed."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", allow_inf_nan=False)

    model: Path = Field(default=BUNDLED_MODEL, description="path of the model file")
    model_sha256: str = Field(default="", pattern=DIGEST, description="that the model file must have; empty = any")
    host: str = Field(default="0.0.0.0", description="address to listen on; 0.0.0.0 because a container has one job")
    port: int = Field(default=8000, ge=0, le=65535, description="TCP port; 0 takes a free one")
    device: Device = Field(default="auto", description="cuda refuses to start where CUDA does not load")
    workers: int = Field(
        default=1, ge=1, le=64, description="processes on the port, for small models; threads, queue and cache are shared out"
    )
    threads: int = Field(
        default=0, ge=0, le=1024, description="threads that decode and compute; 0 = CPU quota, 1 for models under 2 ms"
    )
    max_batch_size: int | None = Field(
        default=None, ge=1, le=1024, description="images run together; None = 4, enough on a CPU, or 12 for models under 2 ms"
    )
    max_wait_ms: float = Field(default=0, ge=0, le=1000, description="how long a batch waits to fill; 0 = never wait")
    max_queue_size: int = Field(default=256, ge=1, description="images waiting or running; more are refused with 503")
    max_queue_bytes: int = Field(
        default=256 * 2**20, ge=1, description="bytes of bodies held at once; never less than MAX_BODY_BYTES"
    )
    request_timeout_ms: float = Field(default=10_000, gt=0, description="deadline of a request that brings none")
    body_timeout_ms: float = Field(
        default=30_000, gt=0, description="how long a request's head, then its body, may take to arrive"
    )
    max_body_bytes: int = Field(default=32 * 2**20, ge=1, description="bytes of one request body")
    max_pixels: int = Field(default=50_000_000, ge=1, description="pixels of one image, by its header")
    max_images_per_request: int = Field(
        default=64, ge=1, description="images of one /predict/batch request; never more than MAX_QUEUE_SIZE"
    )
    drain_seconds: float = Field(
        default=5, ge=0, description="serving goes on this long after SIGTERM, until load balancers have noticed"
    )
    stall_seconds: float = Field(default=60, gt=0, description="a batch that runs longer turns /livez red")
    cache_bytes: int = Field(default=0, ge=0, description="bytes of answers kept for images that come again; 0 = none")
    api_keys_file: Path | None = Field(default=None, description="file of NAME sha256:HEX lines; none = no keys asked")
    admin_keys: tuple[str, ...] = Field(default=(), description="JSON list of the names of keys that may POST /admin/model")
    api_keys_for: Literal["model", "metrics", "all"] = Field(
        default="model", description="what asks for a key: the model, also /metrics, or /health and the probes too"
    )
    tls_cert_file: Path | None = Field(default=None, description="certificate chain in PEM; none = plain HTTP")
    tls_key_file: Path | None = Field(default=None, description="its private key in PEM, without a password")
    drift_window: int = Field(
        default=2000, ge=0, description="last images that are compared with those of validation, to notice drift; 0 = none"
    )
    sample_dir: Path | None = Field(default=None, description="folder that keeps images for labelling; none = none kept")
    sample_below: float = Field(default=0, ge=0, le=1, description="kept: not accepted, or with a lower top probability")
    sample_share: float = Field(default=0, ge=0, le=1, description="kept as well: this share of the others, at random")
    sample_per_minute: float = Field(default=60, gt=0, description="images kept at most")
    sample_max_bytes: int = Field(default=2**30, ge=1, description="bytes that the folder may hold")
    cors_origins: tuple[str, ...] = Field(default=(), description='JSON list of browser origins let in, or ["*"]')
    playground: bool = Field(default=True, description="the page at / for people with a browser")
    docs: bool = Field(default=True, description="the interface's description at /docs and /openapi.json")
    tracing: bool = Field(default=False, description="spans to where OTEL_EXPORTER_OTLP_ENDPOINT says; needs the extra tracing")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "text"] = "json"

    @classmethod
    def load(cls) -> Self:
        """Settings from the environment.

        Raises: SettingsError that names the variable and says what it takes.
        """
        _refuse_unknown(os.environ, known={PREFIX + name.upper() for name in cls.model_fields})
        try:
            return cls()
        except ValidationError as error:
            first = error.errors()[0]
            name = PREFIX + str(first["loc"][0]).upper()
            raise SettingsError(f"{name}={first['input']}: {first['msg']}") from error
        except ValueError as error:  # pydantic-settings' own, for what should be JSON and is not
            name = next(PREFIX + one.upper() for one in cls.model_fields if f'"{one}"' in str(error))
            raise SettingsError(f"{name} must be JSON, for example {name}='[\"https://example.org\"]'") from error


def _refuse_unknown(environment: Mapping[str, str], known: set[str]) -> None:
    for name in environment:
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            near = difflib.get_close_matches(name.upper(), known, n=1)
            raise SettingsError(f"{name} is not a setting" + (f": did you mean {near[0]}?" if near else ""))
