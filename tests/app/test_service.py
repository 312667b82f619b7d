"""A request's way through a busy service: overload, deadlines, and clients that do not wait."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.models import png
from tests.service import ServiceProcess, assert_problem

RED = png((255, 0, 0))


def ask(service: ServiceProcess, **headers: str) -> httpx.Response:
    with service.client() as client:
        return client.post("/predict", content=RED, headers=headers)


def wait_until_idle(service: ServiceProcess) -> None:
    deadline = time.monotonic() + 30
    while httpx.get(f"{service.url}/health", trust_env=False).json()["queue"]["in_progress"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_until_busy(service: ServiceProcess, images: int) -> None:
    deadline = time.monotonic() + 30
    while httpx.get(f"{service.url}/health", trust_env=False).json()["queue"]["in_progress"] < images:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def images(service: ServiceProcess, outcome: str) -> float:
    return service.metric("convserve_images_total", outcome=outcome)


def leave_while_waiting(service: ServiceProcess, request_id: str) -> None:
    """Sends a whole request and closes the connection before its answer."""
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nX-Request-ID: {request_id}\r\nContent-Length: {len(RED)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(head.encode() + RED)
        wait_until_busy(service, 1 if request_id.endswith("running") else 2)


def test_a_full_queue_answers_503_with_retry_after(slow_service: ServiceProcess) -> None:
    before = images(slow_service, "classified")
    with ThreadPoolExecutor(10) as pool:
        responses = list(pool.map(lambda _: ask(slow_service), range(10)))
    refused = [response for response in responses if response.status_code != 200]
    assert 2 <= len(responses) - len(refused) < 10
    for response in refused:
        problem = assert_problem(response, 503, "overloaded")
        assert problem.retry_after_seconds is not None
        assert 1 <= int(response.headers["retry-after"]) <= 1 + problem.retry_after_seconds
    assert images(slow_service, "classified") == before + len(responses) - len(refused)


def test_a_deadline_that_passes_while_the_image_runs_answers_504(slow_service: ServiceProcess) -> None:
    before = images(slow_service, "expired"), images(slow_service, "classified")
    assert_problem(ask(slow_service, **{"x-request-timeout-ms": "20"}), 504, "deadline_exceeded")
    wait_until_idle(slow_service)
    assert (images(slow_service, "expired"), images(slow_service, "classified")) == (before[0] + 1, before[1])


def test_a_deadline_that_cannot_be_met_answers_503_at_once(slow_service: ServiceProcess) -> None:
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask, slow_service)
        wait_until_busy(slow_service, 1)
        assert_problem(ask(slow_service, **{"x-request-timeout-ms": "20"}), 503, "overloaded")
        assert running.result().status_code == 200


def test_a_batch_that_runs_too_long_turns_the_probes_red_until_it_ends(
    slow_service: ServiceProcess, slow_client: httpx.Client
) -> None:
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask, slow_service)
        wait_until_busy(slow_service, 1)
        while (live := slow_client.get("/livez")).status_code == 200:
            assert not running.done()
        assert (live.status_code, live.json()) == (503, {"status": "stalled"})
        assert running.result().status_code == 200
    assert [slow_client.get(path).status_code for path in ("/livez", "/readyz", "/health")] == [200] * 3


def test_a_client_that_leaves_while_its_image_runs_costs_nobody_else(slow_service: ServiceProcess) -> None:
    before = images(slow_service, "abandoned")
    leave_while_waiting(slow_service, "left-while-running")
    assert slow_service.wait_for_line(request_id="left-while-running")["status"] == 499
    slow_service.wait_for_metric("convserve_images_total", before + 1, outcome="abandoned")
    assert ask(slow_service).status_code == 200


def test_an_image_whose_client_left_while_it_queued_is_never_run(slow_service: ServiceProcess) -> None:
    abandoned, batches = images(slow_service, "abandoned"), slow_service.metric("convserve_batch_size_count")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask, slow_service)
        wait_until_busy(slow_service, 1)
        leave_while_waiting(slow_service, "left-while-queued")
        assert running.result().status_code == 200
    assert slow_service.wait_for_line(request_id="left-while-queued")["status"] == 499
    slow_service.wait_for_metric("convserve_images_total", abandoned + 1, outcome="abandoned")
    assert slow_service.metric("convserve_batch_size_count") == batches + 1
