"""`python -m app` as a process: it starts with a proof or one sentence, and stops without losing a request."""

import json
import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from app import __version__
from app.settings import PREFIX, Settings
from tests.app.test_service import wait_until_busy
from tests.models import colour_spec, png, write_colour_model
from tests.service import PATIENCE_SECONDS, ServiceProcess, assert_problem, free_ports, run_app, serve

RED = png((255, 0, 0))
DRAIN_SECONDS = 2.0
LONG_SECONDS = 90  # a drain that no test waits for


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colour_model(tmp_path_factory.mktemp("models") / "slow.onnx", repeats=90)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def assert_refuses_to_start(sentence: str, **settings: object) -> None:
    ended = run_app(**({"host": "127.0.0.1", "port": 0} | settings))
    assert ended.returncode == 1
    assert re.fullmatch(f"convserve: .*{re.escape(sentence)}.*\n", ended.stderr), ended.stderr
    assert ended.stdout == ""


def test_a_missing_model_stops_the_start_with_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "none.onnx"
    assert_refuses_to_start(f"model file {path} does not exist", model=path)


def test_a_truncated_model_stops_the_start_with_one_sentence(tmp_path: Path, colours: Path) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(colours.read_bytes()[:-500])
    assert_refuses_to_start(f"model file {path}: ", model=path)


def test_a_taken_port_stops_the_start_with_one_sentence(colours: Path, taken_port: int) -> None:
    assert_refuses_to_start(f"port {taken_port} on 127.0.0.1 cannot be used: ", model=colours, port=taken_port)


def test_an_unknown_variable_stops_the_start_with_one_sentence(colours: Path) -> None:
    assert_refuses_to_start("CONVSERVE_PROT is not a setting: did you mean CONVSERVE_PORT?", model=colours, prot=80)


def test_a_keys_file_without_keys_stops_the_start_with_one_sentence(colours: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").touch()
    assert_refuses_to_start("holds no key", model=colours, api_keys_file=tmp_path / "keys")


def test_a_certificate_that_cannot_be_used_stops_the_start_with_one_sentence(colours: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("no key")
    for settings in ({"tls_cert_file": tmp_path / "none"}, {"tls_key_file": tmp_path / "key"}):
        assert_refuses_to_start("CONVSERVE_TLS_CERT_FILE and CONVSERVE_TLS_KEY_FILE", model=colours, **settings)


def test_help_names_every_setting() -> None:
    ended = run_app("--help")
    assert ended.returncode == 0
    for name in Settings.model_fields:
        assert PREFIX + name.upper() in ended.stdout


def test_serving_can_be_asked_for_by_name(tmp_path: Path) -> None:
    ended = run_app("serve", model=tmp_path / "none.onnx", port=0)
    assert (ended.returncode, ended.stderr) == (1, f"convserve: model file {tmp_path / 'none.onnx'} does not exist\n")


def test_an_unknown_command_is_named_beside_the_known() -> None:
    ended = run_app("sevre")
    assert ended.returncode == 2
    assert "invalid choice: 'sevre' (choose from" in ended.stderr


def test_the_version_is_the_packages() -> None:
    assert run_app("--version").stdout == f"ConvServe {__version__}\n"


@pytest.mark.parametrize("workers", [1, 2])
def test_the_port_is_closed_until_the_service_is_ready(tmp_path: Path, workers: int) -> None:
    """The model takes more than a second to prove and warm up: whoever is let in meanwhile waits too long for an answer."""
    [port] = free_ports(1)
    process = ServiceProcess(model=write_colour_model(tmp_path / "slow.onnx", repeats=400), port=port, workers=workers)
    try:
        refused, status = 0, 0
        deadline = time.monotonic() + PATIENCE_SECONDS
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=1, trust_env=False) as client:
            while not status and time.monotonic() < deadline:
                try:
                    status = client.get("/readyz").status_code
                except httpx.ConnectError:
                    refused += 1
        assert refused
        assert status == 200  # the first that was let in
    finally:
        process.close()


def test_the_serving_line_says_what_serves_how(tmp_path: Path) -> None:
    figures = {"data": "validation", "n": 10, "accuracy": 0.9, "macro_f1": 0.8, "ece": 0.01, "log_loss": 0.2}
    spec = colour_spec(figures=[figures | {"measured_by": "hand"}])
    with serve(model=write_colour_model(tmp_path / "model.onnx", spec), threads=3, max_queue_size=1) as process:
        line = process.wait_for_line(message="serving")
        assert line["model"] == "colours 1"
        assert json.loads(line["figures"]) == {"validation": {"n": 10, "accuracy": 0.9, "ece": 0.01}}
        assert (line["provider"], line["threads"], line["classes"]) == ("CPUExecutionProvider", 3, 3)
        assert line["max_batch_size"] == 12  # its model is quick
        assert line["address"] == f"127.0.0.1:{process.port}"


class Load:
    """Keep-alive clients that send without a pause until they are refused. `outcomes` are counted, with their times."""

    def __init__(self, process: ServiceProcess, clients: int) -> None:
        self._process = process
        self.statuses: Counter[int] = Counter()
        self.unanswered_at: list[float] = []  # closed without a byte of an answer
        self.broken: list[BaseException] = []  # anything else
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._send) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)

    def _send(self) -> None:
        with self._process.client() as client:
            try:
                while self._ask(client):
                    pass
            except Exception as error:
                self.broken.append(error)

    def _ask(self, client: httpx.Client) -> bool:
        """False when the listener is closed."""
        try:
            with client.stream("POST", "/predict", content=RED) as response:
                response.read()  # an answer that breaks off raises here, and counts as broken
        except httpx.ConnectError:
            return False
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
            with self._lock:
                self.unanswered_at.append(time.monotonic())
            return True
        with self._lock:
            self.statuses[response.status_code] += 1
        return True


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_under_load_loses_no_request(colours: Path, workers: int) -> None:
    """Counted twice: what clients got, and what the service's log says it read.

    The one loss that no server can prevent is a request that arrives on a connection while that connection is being closed,
    after the drain. It must be one that was never read: the log and the clients agree on the number of answers.
    """
    with serve(model=colours, threads=2, drain_seconds=DRAIN_SECONDS, workers=workers) as process:
        load = Load(process, clients=8)
        time.sleep(0.3)
        terminated_at = time.monotonic()
        process.send(signal.SIGTERM)
        with process.client() as client:
            wait_until_unready(client)
            assert client.post("/predict", content=RED).status_code == 200  # unready, and still serving
            health = client.get("/health")
            assert (health.status_code, health.json()["status"]) == (503, "draining")
        assert process.wait() == 0
        load.join()
    logged = Counter(line["status"] for line in process.json_lines() if line.get("path") == "/predict")
    assert load.broken == []
    assert load.statuses.keys() == {200}
    assert logged == {200: load.statuses[200] + 1}  # ours
    assert load.statuses[200] > 20
    assert all(moment - terminated_at >= DRAIN_SECONDS for moment in load.unanswered_at)
    assert len(load.unanswered_at) <= 8


def wait_until_unready(client: httpx.Client) -> None:
    deadline = time.monotonic() + DRAIN_SECONDS
    while (response := client.get("/readyz")).status_code == 200:
        assert time.monotonic() < deadline
    assert (response.status_code, response.json()) == (503, {"status": "draining"})
    assert response.headers["connection"] == "close"


@pytest.mark.parametrize(
    ("signals", "drain_seconds"),
    [([signal.SIGTERM], 0), ([signal.SIGTERM, signal.SIGTERM], LONG_SECONDS), ([signal.SIGINT], LONG_SECONDS)],
    ids=["SIGTERM without a drain", "a second SIGTERM hurries", "SIGINT"],
)
def test_a_request_in_flight_is_answered_before_a_quick_exit(
    slow_model: Path, signals: list[signal.Signals], drain_seconds: float
) -> None:
    with (
        serve(model=slow_model, threads=1, drain_seconds=drain_seconds, request_timeout_ms=60_000) as process,
        ThreadPoolExecutor(1) as pool,
    ):
        with process.client() as client:
            client.get("/health")  # which waits for FastAPI to be imported, and the image does not
            answer = pool.submit(client.post, "/predict", content=RED)
            wait_until_busy(process, 1)
            begun = time.monotonic()
            for number in signals:
                process.send(number)
                time.sleep(0.05)
            assert answer.result(60).status_code == 200
        assert process.wait() == 0
        assert time.monotonic() - begun < LONG_SECONDS
        assert process.wait_for_line(message="stopped")
        assert not process.error_lines
        assert not any("traceback" in line for line in process.json_lines())


def test_a_draining_service_answers_as_before_and_logs_that_it_drains(colours: Path) -> None:
    with serve(model=colours, drain_seconds=LONG_SECONDS) as process, process.client() as client:
        process.send(signal.SIGTERM)
        process.wait_for_text(re.compile("draining"))
        assert client.post("/predict", content=RED).status_code == 200
        assert_problem(client.post("/predict", content=b"text"), 415, "unsupported_image")
        process.send(signal.SIGTERM)
        assert process.wait() == 0


def test_a_second_ctrl_c_does_not_wait_for_a_body_that_never_comes() -> None:
    with serve() as process:
        connection = process.connection()
        connection.putrequest("POST", "/predict")
        connection.putheader("Content-Length", "1000")
        connection.endheaders(b"half")
        process.wait_for_metric("convserve_requests_in_progress", 2)  # it, and the one that asks
        begun = time.monotonic()
        process.send(signal.SIGINT)
        time.sleep(0.5)
        process.send(signal.SIGINT)
        assert process.wait() == 0
        assert time.monotonic() - begun < 20  # the body would have had 30 s
        connection.close()
