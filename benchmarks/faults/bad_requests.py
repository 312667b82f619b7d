"""100,000 bad requests over real sockets: no crash, no hang, no 500, no growth.

    .venv-dev/bin/python -m benchmarks.faults.bad_requests [--requests 100000] [--model models/digits.onnx]

Each request is a sound one with one to eight changes, in its body, in its head, or cut off before its end; of four
connections at a time. What is printed is what came back, and the service's memory and open files on the way.
"""

import argparse
import random
import re
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from benchmarks.faults.proc import descriptors, status_of
from tests.fuzz.__main__ import mutate
from tests.fuzz.targets import CONTENT_TYPES, seeds
from tests.service import ROOT, serve

HANG_SECONDS = 20
HANG = f"no answer within {HANG_SECONDS} s"
CLIENTS = 4
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n")


def requests(model: str) -> list[tuple[bytes, bytes]]:
    """Heads without their Content-Length, and bodies that the fuzzers start from."""
    post = b"POST %b HTTP/1.1\r\nHost: x\r\nX-Request-ID: a-b\r\nContent-Type: %b\r\n"
    infer = f"/v2/models/{model}/infer".encode()
    found = [(post % (b"/predict?top_k=3", b"image/png"), one[1:]) for one in seeds("image")]
    for one in seeds("body"):
        kind = CONTENT_TYPES[one[0]].encode()
        found += [(post % (path, kind), one[1:]) for path in (b"/predict", b"/predict/batch")]
    found.append((post % (b"/predict?explain=true", b"image/png"), seeds("image")[3][1:]))
    for one in seeds("tensors"):
        size = int.from_bytes(one[:2], "little")
        length = b"Inference-Header-Content-Length: %d\r\n" % size if size else b""
        found.append((post % (infer, b"application/octet-stream") + length, one[2:]))
    found += [(b"GET %b HTTP/1.1\r\nHost: x\r\n" % path, b"") for path in (b"/", b"/health", b"/model", b"/v2", b"/docs")]
    return found


class Client(threading.Thread):
    """Sends `count` bad requests, one after the other, and counts what comes back."""

    def __init__(self, port: int, count: int, seed: int, sound: list[tuple[bytes, bytes]]) -> None:
        super().__init__()
        self.outcomes: Counter[str] = Counter()
        self.slowest = 0.0
        self.done = 0
        self._port, self._count, self._sound = port, count, sound
        self._chance = random.Random(seed)
        self._heads, self._bodies = [head for head, _ in sound], [body for _, body in sound if body]
        self._connection: socket.socket | None = None

    def run(self) -> None:
        for _ in range(self._count):
            begun = time.monotonic()
            self.outcomes[self._send(self._bad_request())] += 1
            self.slowest = max(self.slowest, time.monotonic() - begun)
            self.done += 1

    def _bad_request(self) -> bytes:
        head, body = self._chance.choice(self._sound)
        kind = self._chance.random()
        if kind < 0.7 and body:
            body = mutate(body, self._bodies, self._chance)
        if kind > 0.6:
            head = mutate(head, self._heads, self._chance)
        whole = head + (b"Content-Length: %d\r\n\r\n" % len(body)) + body
        return whole if kind < 0.95 else whole[: self._chance.randrange(9, len(whole))]

    def _send(self, request: bytes) -> str:
        try:
            connection = self._connection or socket.create_connection(("127.0.0.1", self._port), timeout=HANG_SECONDS)
            self._connection = connection
            connection.sendall(request)
            return self._receive(connection)
        except TimeoutError:
            self._close()
            return HANG
        except OSError:
            self._close()
            return "closed without an answer"

    def _receive(self, connection: socket.socket) -> str:
        received = b""
        while b"\r\n\r\n" not in received:
            if not (piece := connection.recv(2**16)):
                self._close()
                return "closed without an answer"
            received += piece
        head, _, body = received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head + b"\r\n")
        while length and len(body) < int(length[1]) and not head.startswith(b"HTTP/1.1 1"):
            body += connection.recv(2**16) or b"\0" * int(length[1])
        if b"connection: close" in head or len(body) > int(length[1] if length else 0):
            self._close()  # also when answers to several requests came: the change made two of one
        return head[9:12].decode()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "digits.onnx")
    options = parser.parse_args()
    picture = (ROOT / "docs" / "images" / "seven.png").read_bytes()
    with serve(model=options.model, body_timeout_ms=50, max_pixels=1_000_000, max_body_bytes=2**20) as process:
        with process.client() as client:
            before = client.post("/predict", content=picture).json()["predictions"]
            name = client.get("/model").json()["name"]
        sound, share = requests(name), -(-options.requests // CLIENTS)
        clients = [Client(process.port, share, seed, sound) for seed in range(CLIENTS)]
        begun = time.monotonic()
        for one in clients:
            one.start()
        steps = max(1, options.requests // 10)
        print("requests  seconds  MB resident  open files  500 or hangs")
        for mark in range(steps, options.requests + 1, steps):
            while (done := sum(one.done for one in clients)) < mark and any(one.is_alive() for one in clients):
                time.sleep(0.1)
            files = descriptors(process.pid)
            bad = sum(one.outcomes["500"] + one.outcomes[HANG] for one in clients)
            resident = status_of(process.pid, "VmRSS") / 2**20
            shown = f"{done:8,}  {time.monotonic() - begun:7.0f}  {resident:11.1f}  {files:10}  {bad:12}"
            print(shown, flush=True)
        for one in clients:
            one.join()
        outcomes = sum((one.outcomes for one in clients), Counter[str]())
        print(f"{sum(outcomes.values()):,} requests, slowest {max(one.slowest for one in clients):.2f} s")
        print(", ".join(f"{kind}: {count:,}" for kind, count in outcomes.most_common()))
        with process.client() as client:
            same = client.post("/predict", content=picture).json()["predictions"] == before
        errors = [line for line in process.lines if '"traceback"' in line or '"level":"error"' in line]
        errors += [line for line in process.error_lines if "Traceback" in line]  # libtiff writes there of what it refuses
        print(f"the answer to a sound request is the same: {same}; errors in the log: {len(errors)}")
        print("\n".join(errors[:3]))
        return int(bool(errors) or not same or bool(outcomes["500"] + outcomes[HANG]))


if __name__ == "__main__":
    sys.exit(main())
