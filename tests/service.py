"""A real service for the tests: `python -m app` in a process of its own, on a real socket, its log read as it comes."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from app.schemas import Problem

ROOT = Path(__file__).parent.parent
PATIENCE_SECONDS = 60  # of a machine that does much else
_ADDRESS = re.compile(r"address\W+127\.0\.0\.1:(\d+)")


def environment(**settings: object) -> dict[str, str]:
    """This process's environment with these settings and no others: `max_body_bytes=5` → `CONVSERVE_MAX_BODY_BYTES=5`."""
    inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith("CONVSERVE_")}
    return inherited | {f"CONVSERVE_{name.upper()}": str(value) for name, value in settings.items()}


def run_app(*arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """`python -m app` to its end."""
    command = [sys.executable, "-m", "app", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment(**settings), capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )


class ServiceProcess:
    """`python -m app`, or another `module`, as it runs. `lines` and `error_lines` are its outputs so far."""

    def __init__(self, *, prefix: Sequence[str] = (), module: str = "app", **settings: object) -> None:
        settings = {"host": "127.0.0.1", "port": 0} | settings
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-m", module],
            cwd=ROOT,
            env=environment(**settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self.error_lines: list[str] = []
        self._news = threading.Condition()
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=(self._process.stdout, self.lines), daemon=True),
            threading.Thread(target=self._read, args=(self._process.stderr, self.error_lines), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        self.port = int(str(settings["port"]))  # 0: the one that the log tells

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> httpx.Client:
        """A keep-alive client of its own."""
        return httpx.Client(base_url=self.url, timeout=PATIENCE_SECONDS, trust_env=False)

    def connection(self) -> http.client.HTTPConnection:
        """One plain connection, for what httpx is too polite to send."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)

    def wait_until_ready(self) -> None:
        """Finds the port in the log, then asks `/readyz` until it answers 200."""
        self.port = self.port or int(self.wait_for_text(_ADDRESS)[1])
        deadline = time.monotonic() + PATIENCE_SECONDS
        with self.client() as client:
            while time.monotonic() < deadline:
                try:
                    if client.get("/readyz").status_code == 200:
                        return
                except httpx.ConnectError:
                    time.sleep(0.02)
        raise TimeoutError("the service did not get ready:\n" + "\n".join(self.lines + self.error_lines))

    def wait_for_text(self, pattern: re.Pattern[str]) -> re.Match[str]:
        """The first match in any line of the log."""
        found: list[re.Match[str]] = []

        def search() -> bool:
            found.extend(match for line in self.lines if (match := pattern.search(line)))
            return bool(found)

        self._wait(search, f"no line matches {pattern.pattern}")
        return found[0]

    def wait_for_line(self, **fields: object) -> dict[str, Any]:
        """The first JSON line of the log that has these fields."""
        found: list[dict[str, Any]] = []

        def search() -> bool:
            found.extend(line for line in self.json_lines() if fields.items() <= line.items())
            return bool(found)

        self._wait(search, f"no line has {fields}")
        return found[0]

    def json_lines(self) -> list[dict[str, Any]]:
        """The log so far; lines that are not JSON are left out."""
        return [_hashable(json.loads(line)) for line in self.lines if line.startswith("{")]

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """`/metrics` as Prometheus's own parser reads it."""
        text = httpx.get(f"{self.url}/metrics", trust_env=False).text
        families = text_string_to_metric_families(text)
        return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}

    def metric(self, name: str, **labels: str) -> float:
        """One sample's value, 0 while there is none."""
        return self.metrics().get((name, frozenset(labels.items())), 0.0)

    def wait_for_metric(self, name: str, at_least: float, **labels: str) -> None:
        """Returns when the sample has grown to `at_least`."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.metric(name, **labels) < at_least:
            assert time.monotonic() < deadline, f"{name} {labels} never reached {at_least}"
            time.sleep(0.02)

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """The exit code, when the process has ended and its log is read to the end."""
        code = self._process.wait(PATIENCE_SECONDS)
        for reader in self._readers:
            reader.join(PATIENCE_SECONDS)
        return code

    def close(self) -> None:
        """Ends the process, hard if need be."""
        if self._process.poll() is None:
            self._process.kill()
        self.wait()

    def _read(self, stream: IO[str], lines: list[str]) -> None:
        with stream:
            for line in stream:
                with self._news:
                    lines.append(line.rstrip("\n"))
                    self._news.notify_all()

    def _wait(self, condition: Callable[[], bool], complaint: str) -> None:
        with self._news:
            assert self._news.wait_for(condition, PATIENCE_SECONDS), (
                complaint + ":\n" + "\n".join(self.lines + self.error_lines)
            )


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def serve(*, prefix: Sequence[str] = (), module: str = "app", **settings: object) -> Iterator[ServiceProcess]:
    """A service that is ready, for as long as the block lasts."""
    process = ServiceProcess(prefix=prefix, module=module, **settings)
    try:
        process.wait_until_ready()
        yield process
    finally:
        process.close()


def assert_problem(response: httpx.Response, status: int, reason: str) -> Problem:
    """Holds an answer against all that the contract says of errors; returns the problem."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    problem = Problem.model_validate_json(response.content, strict=True)
    assert (problem.status, problem.reason) == (status, reason)
    assert problem.request_id == response.headers["x-request-id"]
    assert problem.type == f"urn:convserve:problem:{reason}"
    assert problem.instance == f"urn:convserve:request:{problem.request_id}"
    assert problem.title
    assert problem.detail
    return problem


def _hashable(line: dict[str, Any]) -> dict[str, Any]:
    return {name: json.dumps(value) if isinstance(value, dict | list) else value for name, value in line.items()}
