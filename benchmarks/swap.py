"""What changing the model costs those who are being answered: closed loops with and without it, against a real service.

    python -m benchmarks.swap FOLDER [--model models/imagenet.onnx] [--clients 16] [--seconds 15] [--changes 5]

FOLDER has the images that the clients send, each its next one when it has the answer to its last. In the second loop the
model is changed that many times by `POST /admin/model`, to a file that differs in its version alone and back. A request
counts as "meanwhile" if any part of it lay between such a request and its answer.
"""

import argparse
import asyncio
import hashlib
import json
import secrets
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import onnx

from app.bench import HttpTarget
from app.spec import SPEC_KEY
from benchmarks.faults.proc import status_of
from benchmarks.machine import processor
from tests.service import ServiceProcess, serve

KEY = secrets.token_hex(16)


class Asked(NamedTuple):
    """One request: seconds of its begin and end, its status, and the version that answered it."""

    begun: float
    ended: float
    status: int
    version: str


async def press(target: HttpTarget, images: Iterator[bytes], clients: int, until: asyncio.Event) -> list[Asked]:
    """Closed loop until the event is set."""
    found: list[Asked] = []

    async def client() -> None:
        while not until.is_set():
            begun = time.perf_counter()
            try:
                status, _, body = await target.ask("POST", "/predict", next(images))
                version = json.loads(body)["model"]["version"] if status == 200 else ""
            except (OSError, EOFError, ValueError):
                status, version = 0, ""
            found.append(Asked(begun, time.perf_counter(), status, version))

    await asyncio.gather(*(client() for _ in range(clients)))
    return found


async def change(target: HttpTarget, file: Path) -> tuple[float, float]:
    """When the change was asked for and when it was done."""
    begun = time.perf_counter()
    body = json.dumps({"path": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}).encode()
    status, _, answer = await target.ask("POST", "/admin/model", body)
    assert status == 200, answer
    return begun, time.perf_counter()


def row(title: str, asked: list[Asked], seconds: float, memory: float) -> str:
    milliseconds = [1000 * (one.ended - one.begun) for one in asked]
    quantiles = statistics.quantiles(milliseconds, n=100)
    failed, versions = sum(one.status != 200 for one in asked), sorted({one.version for one in asked if one.version})
    return (
        f"| {title} | {len(asked)} | {len(asked) / seconds:.1f} | {quantiles[49]:.0f} | {quantiles[98]:.0f} | "
        f"{max(milliseconds):.0f} | {failed} | {', '.join(versions)} | {memory:.0f} |"
    )


async def measure(process: ServiceProcess, files: list[Path], options: argparse.Namespace) -> None:
    images = cycle([file.read_bytes() for file in sorted(options.images.rglob("*")) if file.is_file()])
    target, admin = HttpTarget(process.url, KEY), HttpTarget(process.url, KEY)

    async def loop(seconds: float, changes: int = 0) -> tuple[list[Asked], list[tuple[float, float]], float]:
        until, begun = asyncio.Event(), time.perf_counter()
        pressing, spans = asyncio.create_task(press(target, images, options.clients, until)), list[tuple[float, float]]()
        for number in range(changes):
            await asyncio.sleep(seconds / (changes + 1))
            spans.append(await change(admin, files[(number + 1) % 2]))
        await asyncio.sleep(max(0.0, begun + seconds - time.perf_counter()))
        until.set()
        return await pressing, spans, time.perf_counter() - begun

    await loop(3)
    print(f"{processor()}, {options.clients} clients, {options.model.name}\n")
    print("| | requests | /s | p50 ms | p99 ms | longest ms | failed | versions | resident MB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for title, changes in (("no change", 0), (f"{options.changes} changes", options.changes), ("no change", 0)):
        asked, spans, seconds = await loop(options.seconds, changes)
        memory = status_of(process.pid, "VmRSS") / 2**20
        print(row(title, asked, seconds, memory), flush=True)
        if spans:
            during = [one for one in asked if any(one.begun < end and one.ended > begin for begin, end in spans)]
            taken = [end - begin for begin, end in spans]
            print(row("of them meanwhile", during, sum(taken), memory), flush=True)
            note = f"\nA change took {min(taken):.2f} to {max(taken):.2f} s from asking to answer, under that load."
    print(note)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures what changing the model costs those who are being answered.")
    parser.add_argument("images", type=Path, metavar="FOLDER")
    parser.add_argument("--model", type=Path, default=Path("models/imagenet.onnx"))
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--changes", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [folder / "first.onnx", folder / "second.onnx"]
        shutil.copy(options.model, files[0])
        model = onnx.load(files[0])
        [entry] = [one for one in model.metadata_props if one.key == SPEC_KEY]
        entry.value = json.dumps(json.loads(entry.value) | {"version": "second"})
        onnx.save(model, files[1])
        (folder / "keys").write_text(f"ops sha256:{hashlib.sha256(KEY.encode()).hexdigest()}\n")
        with serve(model=files[0], api_keys_file=folder / "keys", admin_keys='["ops"]', log_level="info") as process:
            asyncio.run(measure(process, files, options))


if __name__ == "__main__":
    main()
