"""A server as a process tree with its CPU time and memory, and wrk against it."""

import contextlib
import json
import os
import resource
import secrets
import signal
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

LUA = Path(__file__).with_name("post.lua")
TICK = 1 / os.sysconf("SC_CLK_TCK")
IDLE_CORES = 0.08  # below it a server has nothing left to do: two clock ticks in the time looked at
START_SECONDS = 60
PORT_SECONDS = 5  # in which a server that was killed lets go of its port


class Server:
    """A started server; all processes that it makes are known by a variable of their environment, or by their session."""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str], folder: Path, url: str, log: Path) -> None:
        self._mark, self.url = f"BENCH_MARK={secrets.token_hex(8)}", url
        name, _, value = self._mark.partition("=")
        parts = urllib.parse.urlsplit(url)
        end = time.perf_counter() + PORT_SECONDS
        while _listens(parts.hostname, parts.port):  # it would be measured instead
            if time.perf_counter() > end:
                raise OSError(f"something else listens on port {parts.port}: end it first")
            time.sleep(0.1)
        inherited = {key: one for key, one in os.environ.items() if not key.startswith(("CONVSERVE_", "OPENBLAS_"))}
        self._started = time.perf_counter()
        # Else onnxruntime's threads for Microsoft's telemetry would be measured with the peers; here it is always off.
        environment = {"ORT_DISABLE_TELEMETRY": "1", **inherited, **variables, name: value}
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait_for_answer(self, headers: Mapping[str, str], body: bytes) -> float:
        """Seconds from the start to the first 200 of a real request. Raises: TimeoutError, ChildProcessError."""
        while (seconds := time.perf_counter() - self._started) < START_SECONDS:
            if self._process.poll() is not None:
                raise ChildProcessError(f"the server ended with {self._process.returncode}")
            with contextlib.suppress(OSError):
                self.ask(headers, body)
                return time.perf_counter() - self._started
            time.sleep(0.01)
        raise TimeoutError(f"no answer within {seconds:.0f} s")

    def ask(self, headers: Mapping[str, str], body: bytes) -> tuple[dict[str, str], bytes]:
        """Headers and body of one answer. Raises: OSError, also for a status that is not 200."""
        request = urllib.request.Request(self.url, body, dict(headers))
        with urllib.request.urlopen(request, timeout=START_SECONDS) as response:
            return dict(response.headers), response.read()

    def cpu_seconds(self) -> float:
        """CPU time of the tree so far."""
        ticks = 0
        for pid in self._pids():
            with contextlib.suppress(OSError):  # it ended meanwhile
                ticks += sum(map(int, _stat(pid)[11:13]))
        return ticks * TICK

    def pss_mb(self) -> float:
        """Proportional set size of the tree: shared pages are counted once."""
        total = 0
        for pid in self._pids():
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return total / 1000

    def drain(self, longest: float = 20) -> None:
        """Returns when the server works no more: what a warm-up left behind is not to be measured."""
        end = time.perf_counter() + longest
        while time.perf_counter() < end:
            before = self.cpu_seconds()
            time.sleep(0.25)
            if self.cpu_seconds() - before <= IDLE_CORES * 0.25:
                return

    def close(self) -> None:
        """Ends the tree, hard if need be."""
        for number, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
            for pid in self._pids() if number == signal.SIGKILL else [self._process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            end = time.perf_counter() + patience
            while self._pids() and time.perf_counter() < end:
                self._process.poll()
                time.sleep(0.05)
        self._process.wait(5)

    def _pids(self) -> list[int]:
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return [pid for pid in pids if self._is_mine(pid)]

    def _is_mine(self, pid: int) -> bool:
        try:
            stat = _stat(pid)
            is_mine = int(stat[3]) == self._process.pid or self._mark.encode() in Path(f"/proc/{pid}/environ").read_bytes()
            return is_mine and stat[0] != "Z"
        except (OSError, IndexError):
            return False


def _listens(host: str | None, port: int | None) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def press(server: Server, headers: Mapping[str, str], body: Path, connections: int, seconds: float) -> dict[str, float]:
    """A closed loop of `connections` keep-alive clients: rate, milliseconds, errors, cores, most memory."""
    options = [word for name, value in headers.items() for word in ("-H", f"{name}: {value}")]
    command = ["wrk", "-t1", f"-c{connections}", f"-d{round(seconds)}s", "--timeout=60s", "-s", str(LUA), *options, server.url]
    peak, done = [server.pss_mb()], threading.Event()

    def watch() -> None:
        while not done.wait(1):
            peak.append(server.pss_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    before, wrk_before = server.cpu_seconds(), _children_seconds()
    ran = subprocess.run(command, env={**os.environ, "BENCH_BODY": str(body)}, capture_output=True, text=True, check=True)
    cores, wrk_cores = server.cpu_seconds() - before, _children_seconds() - wrk_before
    done.set()
    watcher.join()
    told: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    window = told.pop("window_s")
    told |= {"server_cores": cores / window, "wrk_cores": wrk_cores / window, "pss_mb": max(peak)}
    return {name: round(value, 3) for name, value in told.items()}


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
