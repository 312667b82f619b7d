"""Another model while the service runs: each answer is one model's and says whose, and nothing of the one before stays."""

import asyncio
import hashlib
import json
import random
import re
import shutil
import signal
import socket
import time
import weakref
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.board import PERIOD_SECONDS
from app.classifier import OTHER_DIGEST, Classifier
from app.engine import Answer
from app.image import decode, fit
from app.schemas import ModelChange
from app.service import Outcome, Service, load_engine
from app.settings import Settings
from app.spec import Golden, InputSpec, ModelSpec
from tests.app.test_keys import line
from tests.app.test_open_inference import in_json
from tests.fakes import never_leaves
from tests.models import SHARPNESS, colour_spec, png, write_colour_model
from tests.service import PATIENCE_SECONDS, ServiceProcess, assert_problem, run_app, serve

RED = png((255, 0, 0))
IMAGES = [png((red, green, 0)) for red in (0, 90, 250) for green in (10, 120, 240)]
LABELS = ("rouge", "vert", "bleu", "noir")


def other_spec(version: str = "2") -> ModelSpec:
    """Of a model with one label more, and with another input: its fourth logit is always 0."""
    exponents = np.exp(np.array([SHARPNESS, 0, 0, 0]))
    golden = Golden.of(png((255, 0, 0)), (exponents / exponents.sum()).tolist(), 1e-5)
    shape = InputSpec(height=12, width=16, channels=3)
    return colour_spec(name="couleurs", version=version, labels=LABELS, input=shape, goldens=(golden,))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colour_model(tmp_path_factory.mktemp("models") / "other.onnx", other_spec(), classes=4)


@asynccontextmanager
async def running(model: Path, **settings: Any) -> AsyncIterator[Service]:
    service = Service.create(Settings(model=model, **settings))
    await service.engine.start()
    yield service
    await service.engine.close()


def alone(classifier: Classifier, data: bytes) -> list[float]:
    spec = classifier.spec.input
    return [float(value) for value in classifier(fit(decode(data, spec), spec)[np.newaxis])[0]]


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_all_images_of_a_request_are_answered_by_one_model_and_say_which(colours: Path, other: Path, cache_bytes: int) -> None:
    chance, seen = random.Random(1), list[tuple[list[bytes], list[Outcome]]]()

    async def client(service: Service, changes: asyncio.Task[None]) -> None:
        while not changes.done():
            images = chance.choices(IMAGES, k=chance.randint(1, 9))
            seen.append((images, await service.classify(images, never_leaves, 30)))
            await asyncio.sleep(0)  # answers from the cache do not wait for anything

    async def change_often(service: Service) -> None:
        for number in range(1, 8):
            await asyncio.sleep(0.03)
            path = [colours, other][number % 2]
            await service.serve(load_engine(Settings(model=path, threads=2, max_batch_size=4), service.metrics, ModelChange()))

    async def scenario() -> None:
        async with running(colours, cache_bytes=cache_bytes, threads=2, max_batch_size=4) as service:
            changes = asyncio.create_task(change_often(service))
            await asyncio.gather(changes, *[client(service, changes) for _ in range(6)])

    asyncio.run(scenario())
    right = {(one.spec.name, image): alone(one, image) for one in map(Classifier.load, (colours, other)) for image in IMAGES}
    answers = [[outcome for outcome in outcomes if isinstance(outcome, Answer)] for _, outcomes in seen]
    for (images, outcomes), found in zip(seen, answers, strict=True):
        assert len(found) == len(outcomes), outcomes
        assert len({one.classifier for one in found}) == 1
        for image, one in zip(images, found, strict=True):
            assert one.probabilities.tolist() == pytest.approx(right[one.classifier.spec.name, image], abs=1e-5)
    assert {one.classifier.spec.name for found in answers for one in found} == {"colours", "couleurs"}


def test_nothing_holds_the_model_before_once_its_images_are_answered(colours: Path, other: Path) -> None:
    async def scenario() -> bool:
        async with running(colours, cache_bytes=2**20) as service:
            before = weakref.ref(service.classifier)
            await service.classify(IMAGES, never_leaves, 30)
            await service.serve(load_engine(Settings(model=other), service.metrics, ModelChange()))
            return before() is None

    assert asyncio.run(scenario())


@pytest.fixture
def folder(tmp_path: Path, colours: Path, other: Path) -> Path:
    """Models: model.onnx is the one to serve, other.onnx another, wrong.onnx one that does not compute what it says."""
    shutil.copy(colours, tmp_path / "model.onnx")
    shutil.copy(other, tmp_path / "other.onnx")
    golden = Golden.of(png((255, 0, 0)), [0.2, 0.3, 0.5], 1e-5)
    write_colour_model(tmp_path / "wrong.onnx", colour_spec(version="3", goldens=(golden,)))
    (tmp_path / "text.onnx").write_text("no model")
    (tmp_path / "keys").write_text(line("ops", "admin-key") + line("shop", "shop-key"))
    return tmp_path


def serve_folder(folder: Path, **settings: Any) -> AbstractContextManager[ServiceProcess]:
    return serve(model=folder / "model.onnx", api_keys_file=folder / "keys", admin_keys='["ops"]', **settings)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def replace(folder: Path, name: str) -> None:
    """Makes model.onnx what another file is, as one should: at once."""
    shutil.copy(folder / name, folder / "new")
    (folder / "new").replace(folder / "model.onnx")


def client_of(process: ServiceProcess, key: str = "shop-key") -> httpx.Client:
    return httpx.Client(base_url=process.url, timeout=PATIENCE_SECONDS, trust_env=False, headers={"x-api-key": key})


def ask_to_change(process: ServiceProcess, key: str = "admin-key", **fields: object) -> httpx.Response:
    with client_of(process, key) as client:
        return client.post("/admin/model", json=fields or None)


def served(process: ServiceProcess) -> str:
    """The name and version that an answer has, which must be those that every endpoint tells."""
    with client_of(process) as client:
        answer = client.post("/predict", content=RED).json()
        ref = answer["model"]
        explained = client.post("/predict?explain=true", content=RED).json()
        batch = client.post("/predict/batch", files=[("files", ("x", RED))]).json()
        assert ref == explained["model"] == batch["model"] == client.get("/health").json()["model"]
        card = client.get("/model").json()
        assert answer["predictions"][0]["label"] == explained["explanation"]["label"] == card["labels"][0]
        assert (card["name"], card["version"]) == (ref["name"], ref["version"])
        v2 = client.post(f"/v2/models/{ref['name']}/versions/{ref['version']}/infer", json=in_json([RED])).json()
        assert (v2["model_name"], v2["model_version"]) == (ref["name"], ref["version"])
        assert v2["outputs"][0]["shape"] == [1, len(card["labels"])]
        infos = [dict(labels) for name, labels in process.metrics() if name == "convserve_model_info"]
        assert [one["sha256"] for one in infos] == [card["sha256"]]
        return f"{ref['name']} {ref['version']}"


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_sighup_changes_to_what_the_file_is_by_now_everywhere_at_once(folder: Path, cache_bytes: int) -> None:
    with serve_folder(folder, cache_bytes=cache_bytes) as process:
        assert served(process) == "colours 1"
        replace(folder, "other.onnx")
        process.send(signal.SIGHUP)
        process.wait_for_metric("convserve_model_loads_total", 1, outcome="changed")
        assert served(process) == "couleurs 2"
        for bad, sentence in (("wrong.onnx", "golden image 1 is off"), ("text.onnx", "onnxruntime cannot load it")):
            replace(folder, bad)
            before = process.metric("convserve_model_loads_total", outcome="refused")
            process.send(signal.SIGHUP)
            process.wait_for_metric("convserve_model_loads_total", before + 1, outcome="refused")
            process.wait_for_text(re.compile(f"the model stays as it is: .*{sentence}"))
            assert served(process) == "couleurs 2"


def test_who_has_an_admin_key_changes_to_a_file_beside_by_its_digest(folder: Path) -> None:
    with serve_folder(folder) as process:
        changed = ask_to_change(process, path="other.onnx", sha256=digest(folder / "other.onnx"))
        assert (changed.status_code, changed.json()["sha256"]) == (200, digest(folder / "other.onnx"))
        assert served(process) == "couleurs 2"
        problem = assert_problem(
            ask_to_change(process, path="wrong.onnx", sha256=digest(folder / "wrong.onnx")), 422, "model_refused"
        )
        assert "golden image 1 is off" in problem.detail
        problem = assert_problem(ask_to_change(process, path="model.onnx", sha256="0" * 64), 422, "model_refused")
        assert OTHER_DIGEST in problem.detail
        for fields in (
            {"path": "model.onnx"},
            {"path": "../x.onnx", "sha256": "0" * 64},
            {"file": "x"},
            {"sha256": "abc"},
            {"shadow": 2},
        ):
            assert_problem(ask_to_change(process, **fields), 422, "bad_parameter")
        for key in ("", "other-key", "shop-key"):
            assert_problem(ask_to_change(process, key=key), 401, "unauthorized")
        assert served(process) == "couleurs 2"
        assert ask_to_change(process).json()["version"] == "1"
        assert served(process) == "colours 1"


def test_without_admin_keys_there_is_no_such_endpoint(client: httpx.Client) -> None:
    assert_problem(client.post("/admin/model"), 404, "not_found")
    assert "/admin/model" not in client.get("/openapi.json").json()["paths"]


def test_a_file_of_another_digest_is_refused_at_start_and_at_every_change(folder: Path) -> None:
    ended = run_app(model=folder / "model.onnx", model_sha256=digest(folder / "other.onnx"), host="127.0.0.1", port=0)
    assert (ended.returncode, ended.stderr) == (1, f"convserve: model file {folder / 'model.onnx'}: {OTHER_DIGEST}\n")
    with serve_folder(folder, model_sha256=digest(folder / "model.onnx")) as process:
        replace(folder, "other.onnx")
        assert OTHER_DIGEST in assert_problem(ask_to_change(process), 422, "model_refused").detail
        assert ask_to_change(process, sha256=digest(folder / "other.onnx")).status_code == 200


def test_all_workers_change(folder: Path) -> None:
    def answers(process: ServiceProcess) -> set[str]:
        with ExitStack() as stack:
            clients = [stack.enter_context(client_of(process)) for _ in range(4)]  # on both workers
            return {client.post("/predict", content=RED).json()["model"]["name"] for client in clients}

    def wait_for(process: ServiceProcess, name: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while answers(process) != {name}:
            assert time.monotonic() < deadline
            time.sleep(0.1)

    with serve_folder(folder, workers=2) as process:
        assert ask_to_change(process, path="other.onnx", sha256=digest(folder / "other.onnx")).status_code == 200
        wait_for(process, "couleurs")
        process.wait_for_metric("convserve_model_loads_total", 2, outcome="changed")
        process.send(signal.SIGHUP)
        wait_for(process, "colours")
        process.wait_for_metric("convserve_model_loads_total", 4, outcome="changed")
        time.sleep(2 * PERIOD_SECONDS)
        assert process.metric("convserve_model_loads_total", outcome="changed") == 4  # nobody goes back


def test_who_asked_for_a_version_never_gets_another(folder: Path) -> None:
    body = json.dumps(in_json([RED])).encode()
    head = f"POST /v2/models/colours/versions/1/infer HTTP/1.1\r\nHost: x\r\nX-API-Key: shop-key\r\nContent-Length: {len(body)}"
    with serve_folder(folder) as process, socket.create_connection(("127.0.0.1", process.port)) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + body[:20])
        time.sleep(0.2)
        replace(folder, "other.onnx")
        assert ask_to_change(process).status_code == 200
        connection.sendall(body[20:])
        assert connection.recv(100).startswith(b"HTTP/1.1 404")


@pytest.mark.parametrize(("labels", "status"), [(("red", "green", "blue"), 200), (("green", "red", "blue"), 422)])
def test_in_shadow_a_model_must_agree_with_the_one_that_serves(folder: Path, labels: tuple[str, ...], status: int) -> None:
    write_colour_model(folder / "next.onnx", colour_spec(version="2", labels=labels))
    with serve_folder(folder) as process, ThreadPoolExecutor(1) as pool:
        fields: dict[str, Any] = {"path": "next.onnx", "sha256": digest(folder / "next.onnx"), "shadow": 1, "seconds": 1}
        asked = pool.submit(ask_to_change, process, **fields)
        with client_of(process) as client:
            while not asked.done():
                assert client.post("/predict", content=RED).json()["model"]["version"] in ("1", "2")
        assert asked.result().status_code == status
        same, difference = ("same", 0) if status == 200 else ("other", 1)
        compared = process.metric("convserve_shadow_difference_count", top_label=same)
        assert compared > 3
        assert process.metric("convserve_shadow_difference_sum", top_label=same) == pytest.approx(
            difference * compared, abs=0.01 * compared
        )
        assert served(process) == ("colours 2" if status == 200 else "colours 1")
