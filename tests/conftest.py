"""What many tests share: the colour model's file, and one running service."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.models import write_colour_model
from tests.service import ServiceProcess, serve

MAX_BODY_BYTES = 20 * 2**20
MAX_IMAGES_PER_REQUEST = 8
BODY_TIMEOUT_MS = 1500
ORIGIN = "https://shop.example"


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file that tells red, green and blue, and whose session fails on a wholly white image."""
    return write_colour_model(tmp_path_factory.mktemp("models") / "colours.onnx", fails_on_white=True)


@pytest.fixture(scope="session")
def service(colours: Path) -> Iterator[ServiceProcess]:
    """The service that most tests ask. What they count, they count as a difference."""
    with serve(
        model=colours,
        threads=2,
        max_body_bytes=MAX_BODY_BYTES,
        max_images_per_request=MAX_IMAGES_PER_REQUEST,
        body_timeout_ms=BODY_TIMEOUT_MS,
        cors_origins=f'["{ORIGIN}"]',
        log_level="debug",
    ) as process:
        yield process


@pytest.fixture(scope="session")
def slow_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """One thread that needs about 0.3 s for an image, behind a queue of two; it counts as stalled after 0.1 s."""
    model = write_colour_model(tmp_path_factory.mktemp("models") / "slow.onnx", repeats=90)
    with serve(
        model=model, threads=1, max_batch_size=1, max_queue_size=2, stall_seconds=0.1, request_timeout_ms=60_000
    ) as process:
        yield process


@pytest.fixture
def client(service: ServiceProcess) -> Iterator[httpx.Client]:
    """A client of the shared service."""
    with service.client() as client:
        yield client


@pytest.fixture
def slow_client(slow_service: ServiceProcess) -> Iterator[httpx.Client]:
    """A client of the slow service."""
    with slow_service.client() as client:
        yield client
