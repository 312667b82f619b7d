"""Whatever others send at the same moment, each client gets what its images get alone: over real sockets, in batches."""

import random
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from app.board import PERIOD_SECONDS
from app.classifier import Classifier
from app.image import decode, fit
from tests.models import png
from tests.service import ServiceProcess, serve

CLIENTS, REQUESTS = 24, 12
MAX_BODY_BYTES = 2**20


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two workers"])
def batching(request: pytest.FixtureRequest, colours: Path) -> Iterator[ServiceProcess]:
    with serve(
        model=colours, workers=request.param, threads=2, max_batch_size=16, max_wait_ms=5, max_body_bytes=MAX_BODY_BYTES
    ) as process:
        yield process


class Client:
    """Sends at random, by its own seed; `wrong` are the answers that were not its own."""

    def __init__(self, process: ServiceProcess, classifier: Classifier, seed: int) -> None:
        self._process = process
        self._classifier = classifier
        self._chance = random.Random(seed)
        self.wrong: list[str] = []

    def run(self) -> None:
        moves = [self._one] * 5 + [self._many] * 2 + [self._broken, self._huge, self._leave, self._leave_early]
        with self._process.client() as client:
            for _ in range(REQUESTS):
                self._chance.choice(moves)(client)

    def _image(self) -> bytes:
        size = self._chance.choice([8, 8, 21])
        return png(np.random.default_rng(self._chance.randrange(2**32)).integers(0, 255, (size, size, 3), np.uint8))

    def _probabilities(self, data: bytes) -> list[float]:
        spec = self._classifier.spec.input
        return [float(value) for value in self._classifier(fit(decode(data, spec), spec)[np.newaxis])[0]]

    def _check(self, data: bytes, predictions: list[dict[str, float]]) -> None:
        got = [one["probability"] for one in sorted(predictions, key=lambda one: one["class_index"])]
        if got != pytest.approx(self._probabilities(data), abs=1e-5):
            self.wrong.append(f"{got} instead of {self._probabilities(data)}")

    def _expect(self, response: httpx.Response, status: int) -> None:
        if response.status_code != status:
            self.wrong.append(f"{response.status_code} instead of {status}: {response.text}")

    def _one(self, client: httpx.Client) -> None:
        data = self._image()
        response = client.post("/predict", content=data)
        self._expect(response, 200)
        self._check(data, response.json()["predictions"])

    def _many(self, client: httpx.Client) -> None:
        images = [self._chance.choice([self._image(), b"text", self._image()[:60]]) for _ in range(5)]
        response = client.post("/predict/batch", files=[("files", ("x", data)) for data in images])
        self._expect(response, 200)
        for data, result in zip(images, response.json()["results"], strict=True):
            if "predictions" in result:
                self._check(data, result["predictions"])
            elif result["problem"]["status"] != (415 if data == b"text" else 422) or len(data) > 60:
                self.wrong.append(str(result))

    def _broken(self, client: httpx.Client) -> None:
        self._expect(client.post("/predict", content=self._image()[:70]), 422)
        self._expect(client.post("/predict", content=png((255, 255, 255))), 500)  # fails in the session itself

    def _huge(self, client: httpx.Client) -> None:
        self._expect(client.post("/predict", content=b"\0" * (MAX_BODY_BYTES + 1)), 413)

    def _leave(self, client: httpx.Client) -> None:
        self._send_and_leave(self._image(), cut=0)

    def _leave_early(self, client: httpx.Client) -> None:
        self._send_and_leave(self._image(), cut=20)

    def _send_and_leave(self, data: bytes, *, cut: int) -> None:
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", self._process.port)) as connection:
            connection.sendall(head + data[: len(data) - cut])


@pytest.mark.parametrize("seed", range(2))
def test_each_client_gets_what_its_images_get_alone(batching: ServiceProcess, colours: Path, seed: int) -> None:
    classifier = Classifier.load(colours)
    clients = [Client(batching, classifier, seed * CLIENTS + number) for number in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(Client.run, clients))
    assert [wrong for client in clients for wrong in client.wrong] == []
    batching.wait_for_metric("convserve_batch_size_count", 20)
    time.sleep(2 * PERIOD_SECONDS)  # workers tell of each other so late
    assert batching.metric("convserve_batch_size_sum") > batching.metric("convserve_batch_size_count")
