"""Several workers on one port: connections are spread evenly, figures add up, and they start, drain and fail as one."""

import asyncio
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.board import PERIOD_SECONDS, Board
from app.body import BodyLimits
from app.engine import Engine
from app.metrics import Metrics, merge
from app.service import Service
from app.settings import Settings
from tests.fakes import FakeClassifier
from tests.models import png
from tests.service import ServiceProcess, run_app, serve

RED = png((255, 0, 0))
WORKERS = 2

needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads Linux's /proc")


@pytest.fixture(scope="module")
def pair(colours: Path) -> Iterator[ServiceProcess]:
    with serve(model=colours, workers=WORKERS, threads=2, drain_seconds=0) as process:
        yield process


def workers_of(process: ServiceProcess) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def sockets_of(process: ServiceProcess) -> list[int]:
    """How many sockets each worker holds."""
    return [sum("socket:" in str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()) for pid in workers_of(process)]


def connect(process: ServiceProcess, stack: ExitStack) -> httpx.Client:
    """A connection that is open and has been used."""
    client = stack.enter_context(process.client())
    assert client.post("/predict", content=RED).status_code == 200
    return client


@needs_proc
def test_keep_alive_connections_are_spread_evenly_also_when_some_have_left(pair: ServiceProcess) -> None:
    time.sleep(0.3)  # until what others closed is gone
    before = sockets_of(pair)
    with ExitStack() as stack:
        clients = [connect(pair, stack) for _ in range(32)]
        assert [now - then for now, then in zip(sockets_of(pair), before, strict=True)] == [16, 16]
        for client in clients[::2]:  # all on one worker
            client.close()
        time.sleep(0.3)
        for _ in range(16):
            connect(pair, stack)
        assert [now - then for now, then in zip(sockets_of(pair), before, strict=True)] == [16, 16]


def test_requests_on_all_workers_are_counted_once(pair: ServiceProcess) -> None:
    predicted = {"route": "/predict", "status": "200"}
    time.sleep(2 * PERIOD_SECONDS)
    before = pair.metric("convserve_requests_total", **predicted)
    with ExitStack() as stack:
        for _ in range(10):
            connect(pair, stack)
        pair.wait_for_metric("convserve_requests_total", before + 10, **predicted)
        time.sleep(2 * PERIOD_SECONDS)
        assert pair.metric("convserve_requests_total", **predicted) == before + 10
    assert pair.metric("convserve_ready") == 1
    assert pair.metric("process_resident_memory_bytes") > WORKERS * 10e6


def test_threads_and_queue_are_shared_out(colours: Path, pair: ServiceProcess) -> None:
    line = pair.wait_for_line(message="serving")
    assert (line["workers"], line["threads"]) == (2, 1)
    assert line["max_queue_size"] == 128
    assert sum(one.get("message") == "serving" for one in pair.json_lines()) == 1


def test_a_model_that_cannot_be_loaded_stops_the_start_with_one_sentence(tmp_path: Path) -> None:
    ended = run_app(model=tmp_path / "none.onnx", workers=WORKERS, host="127.0.0.1", port=0)
    assert ended.returncode == 1
    assert re.fullmatch(r"convserve: model file \S+ does not exist\n", ended.stderr), ended.stderr


@needs_proc
def test_a_worker_that_ends_unasked_ends_the_service_which_says_so(colours: Path) -> None:
    with serve(model=colours, workers=WORKERS) as process:
        os.kill(workers_of(process)[1], signal.SIGKILL)
        assert process.wait() == 1
        assert process.wait_for_line(message="worker-1 ended with -9: stopping the others")["level"] == "error"


@needs_proc
def test_workers_whose_parent_is_gone_end_by_themselves(colours: Path) -> None:
    with serve(model=colours, workers=WORKERS) as process:
        process.send(signal.SIGKILL)
        process.wait()  # also for the end of its output, which the workers hold open


def test_ctrl_c_ends_all_without_a_traceback(colours: Path) -> None:
    with serve(model=colours, workers=WORKERS, drain_seconds=60) as process:
        process.send(signal.SIGINT)
        assert process.wait() == 0
        assert not process.error_lines


def exposition(*, status: str, requests: int, wait: float, ready: int) -> bytes:
    metrics = Metrics()
    metrics.requests.labels("/predict", status).inc(requests)
    metrics.request_seconds.labels("/predict").observe(0.02)
    metrics.estimated_wait_seconds.set(wait)
    metrics.ready.set(ready)
    return metrics.render()


def test_merged_metrics_are_sums_but_for_what_one_worker_alone_can_say() -> None:
    texts = [
        exposition(status="200", requests=3, wait=0.1, ready=1),
        exposition(status="503", requests=2, wait=0.4, ready=0),
        exposition(status="200", requests=5, wait=0.2, ready=1),
    ]
    families = {family.name: family for family in text_string_to_metric_families(merge(texts).decode())}
    value = {(one.name, *one.labels.values()): one.value for family in families.values() for one in family.samples}
    assert value["convserve_requests_total", "/predict", "200"] == 8
    assert value["convserve_requests_total", "/predict", "503"] == 2
    assert value["convserve_request_seconds_bucket", "0.01", "/predict"] == 0
    assert value["convserve_request_seconds_bucket", "0.025", "/predict"] == 3
    assert value["convserve_request_seconds_sum", "/predict"] == pytest.approx(0.06)
    assert value["convserve_estimated_wait_seconds",] == 0.4
    assert value["convserve_ready",] == 0
    assert families["convserve_requests"].type == "counter"
    assert len(merge(texts[:1]).splitlines()) == len(texts[0].splitlines())


def test_a_worker_that_hangs_turns_the_probes_of_all_red() -> None:
    board = Board(2)
    metrics, classifier = Metrics(), FakeClassifier()
    engine = Engine(classifier, metrics, threads=1)
    settings = Settings(model=Path("none"), stall_seconds=5)
    service = Service(settings, engine, metrics, BodyLimits(1, 1, 1), keys=None, board=board)

    async def statuses() -> list[str]:
        await engine.start()
        seen: list[str] = []
        for stalled_seconds in (0, 60):
            board.own = 1
            board.write(b"%f\n" % stalled_seconds + metrics.render())
            board.own = 0
            seen.append(service.status)
        await engine.close()
        return seen

    assert asyncio.run(statuses()) == ["ok", "stalled"]


def test_a_note_is_read_whole_or_not_at_all() -> None:
    board = Board(3)
    for number in range(3):
        board.own = number
        board.write(b"%d" % number * 5000)
        board.write(b"%d" % number * 1000)
    assert [note for _, note in board.others()] == [b"0" * 1000, b"1" * 1000]
    assert all(0 <= seconds < 5 for seconds, _ in board.others())


def test_a_client_that_connects_and_leaves_at_once_costs_nothing(pair: ServiceProcess) -> None:
    for _ in range(50):
        socket.create_connection(("127.0.0.1", pair.port)).close()
    with ExitStack() as stack:
        connect(pair, stack)
