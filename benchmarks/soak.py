"""Does it stay right, fast and small for an hour? Each answer is held against the one that its image gets alone.

    make soak SOAK_MINUTES=60          (python -m benchmarks.soak --minutes 60 [--model FILE] [--out FOLDER])

Starts the service, measures its capacity with the same mix of requests in a closed loop, then sends 80 % of that in an open
loop: 5 % are bad (empty, text, truncated, a bomb), 1 % leave before their answer, 10 % are batches of three. Writes soak.json
and soak.svg. Exit code 1 if an answer was lost, wrong or another request's.
"""

import argparse
import asyncio
import io
import json
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from app.bench import HttpTarget, Run, closed_loop, open_loop
from app.classifier import Classifier
from app.image import decode, fit
from benchmarks.faults.proc import status_of
from benchmarks.machine import processor
from tests.images import raw_png
from tests.service import ROOT, ServiceProcess, free_ports, serve
from training.charts import BOTTOM, HEIGHT, WIDTH, Axis, Series, chart

SHARE = 0.8  # of the capacity
CLIENTS = 16  # of the closed loop
TOLERANCE = 1e-5  # of a probability; the wire rounds to 7 digits
SAMPLE_SECONDS = 5.0
WARM_SHARE = 0.1  # of the run, left out of the slope: caches and arenas fill
STYLE = (
    "text{font:11px sans-serif;fill:#555;text-anchor:middle}.end{text-anchor:end}.title{font-weight:bold;text-anchor:start}"
    ".rule{stroke:#ddd}.line{fill:none;stroke-width:1.5}.a{stroke:#1668b0}.b{stroke:#c2571a}"
)
BAD = {
    "empty": (b"", 400),
    "text": (b"no image at all", 415),
    "truncated": (b"", 422),  # made of a picture
    "bomb": (raw_png(40_000, 40_000, 8, 2, [b"\0" * 100]), 413),
}
BATCH_FORM = "Content-Type: multipart/form-data; boundary=cut\r\n"


@dataclass(frozen=True)
class Ask:
    """One request: what is sent, and what must come back. `pictures` are the numbers of its images."""

    kind: str
    body: bytes
    status: int = 200
    pictures: tuple[int, ...] = ()


@dataclass
class Sender:
    """Sends by number, for app.bench's loops, and checks."""

    target: HttpTarget
    asks: Sequence[Ask]
    alone: np.ndarray  # (pictures, classes)
    sent: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)

    async def __call__(self, number: bytes) -> int:
        """Returns the status; 0 for none, and 499 for a client that left."""
        ask = self.asks[int(number)]
        self.sent[ask.kind] += 1
        request_id = f"{ask.kind}-{self.sent[ask.kind]}"
        batch = ask.kind == "batch"
        more = f"X-Request-ID: {request_id}\r\n{BATCH_FORM if batch else ''}"
        asking = self.target.ask("POST", "/predict/batch" if batch else "/predict", ask.body, more)
        try:
            status, _, answer = await (asyncio.wait_for(asking, 0.005) if ask.kind == "leaves" else asking)
        except (OSError, EOFError, ValueError) as error:
            status, answer = (499 if ask.kind == "leaves" else 0), repr(error).encode()
        self.ended[ask.kind] += 1
        if ask.kind != "leaves" and (fault := self._fault(ask, status, answer, request_id)):
            self.wrong[f"{ask.kind}: {fault}"] += 1
        return status

    def _fault(self, ask: Ask, status: int, answer: bytes, request_id: str) -> str:
        if status == 503:  # refused in time, and counted so in the slices
            return ""
        if status != ask.status:
            return f"{status} instead of {ask.status}"
        told = json.loads(answer)
        if told["request_id"] != request_id:
            return "another request's answer"
        results = told["results"] if ask.kind == "batch" else [told]
        if status == 200 and len(results) != len(ask.pictures):
            return f"{len(results)} results"
        rights = (self._is_right(result, picture) for result, picture in zip(results, ask.pictures, strict=False))
        return "" if all(rights) else "not the answer that the image gets alone"

    def _is_right(self, result: dict[str, Any], picture: int) -> bool:
        row = self.alone[picture]
        told = [(one["class_index"], one["probability"]) for one in result.get("predictions", [])]
        return bool(told) and told[0][0] == int(row.argmax()) and all(abs(row[n] - p) <= TOLERANCE for n, p in told)


def make_pictures(source: bytes, n: int) -> list[bytes]:
    """Crops of a photograph, no two alike, in three formats."""
    whole, random = Image.open(io.BytesIO(source)).convert("RGB"), np.random.default_rng(7)
    found = []
    for number in range(n):
        width, height = (int(side * random.uniform(0.3, 0.9)) for side in whole.size)
        left, top = int(random.integers(whole.width - width)), int(random.integers(whole.height - height))
        file = io.BytesIO()
        crop = whole.crop((left, top, left + width, top + height)).rotate(int(random.integers(360)))
        crop.save(file, ("JPEG", "PNG", "WEBP")[number % 3])
        found.append(file.getvalue())
    return found


def make_asks(pictures: Sequence[bytes], n: int) -> list[Ask]:
    """The mix, in an order that is random but the same each time."""
    random = np.random.default_rng(11)
    return [_make_ask(pictures, float(random.random()), random.integers(len(pictures), size=3).tolist()) for _ in range(n)]


def _make_ask(pictures: Sequence[bytes], lot: float, numbers: list[int]) -> Ask:
    if lot < 0.05:
        kind = list(BAD)[numbers[0] % len(BAD)]
        jpeg = pictures[numbers[1] // 3 * 3]
        return Ask(kind, jpeg[: len(jpeg) // 2] if kind == "truncated" else BAD[kind][0], BAD[kind][1])
    if lot < 0.06:
        return Ask("leaves", pictures[numbers[0]])
    if lot < 0.16:
        head = b'--cut\r\nContent-Disposition: form-data; name="files"; filename="x"\r\n\r\n'
        parts = b"".join(head + pictures[number] + b"\r\n" for number in numbers)
        return Ask("batch", parts + b"--cut--\r\n", pictures=tuple(numbers))
    return Ask("one", pictures[numbers[0]], pictures=(numbers[0],))


def slope(samples: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Least squares over (seconds, MB): MB an hour and its 95 % confidence interval.

    Neighbouring samples err alike, which would make the interval too narrow: it is that of the means of 20 blocks.
    """
    kept = np.array(samples[int(WARM_SHARE * len(samples)) :])
    blocks = np.array([block.mean(axis=0) for block in np.array_split(kept, min(20, len(kept)))])
    hours, memory = blocks[:, 0] / 3600 - blocks[:, 0].mean() / 3600, blocks[:, 1] - blocks[:, 1].mean()
    freedom = len(blocks) - 2
    rate = float(hours @ memory / (hours @ hours))
    error = math.sqrt(float(((memory - rate * hours) ** 2).sum()) / freedom / float(hours @ hours))
    quantile = 1.96 + 2.37 / freedom + 2.82 / freedom**2  # Student's t. Source: Abramowitz and Stegun 26.7.5
    return rate, rate - quantile * error, rate + quantile * error


async def soak(process: ServiceProcess, sender: Sender, seconds: float) -> dict[str, Any]:
    """Capacity, then slices of a minute, or a sixth of a short run."""
    order = [b"%d" % number for number in range(len(sender.asks))]
    await closed_loop(sender, order, CLIENTS, min(5, seconds / 6))
    base = await closed_loop(sender, order, CLIENTS, min(20, seconds / 6))
    capacity = (len(base.latencies) + base.failures.total()) / base.seconds
    print(f"capacity {capacity:.1f} requests/s, soaking with {SHARE * capacity:.1f}/s for {seconds / 60:g} minutes", flush=True)
    for counter in (sender.sent, sender.ended, sender.wrong):
        counter.clear()
    samples: list[tuple[float, float]] = []
    watching = asyncio.create_task(_watch(process.pid, samples, min(SAMPLE_SECONDS, seconds / 30)))
    slices: list[dict[str, float]] = []
    length, begun = min(60.0, seconds / 6), time.monotonic()
    while len(slices) < round(seconds / length):
        run = await open_loop(sender, order, SHARE * capacity, length)
        slices.append(_figures(run, time.monotonic() - begun))
        print("  ".join(f"{name} {value:g}" for name, value in slices[-1].items()), dict(sender.wrong) or "", flush=True)
    watching.cancel()
    await sender.target.close()
    return {"capacity": round(capacity, 1), "slices": slices, "samples": samples}


def _figures(run: Run, seconds: float) -> dict[str, float]:
    milliseconds = {name: round(run.quantile_ms(share), 1) for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99))}
    return {"seconds": round(seconds, 1), "answered": len(run.latencies), **milliseconds, "refused": run.failures[503]}


async def _watch(pid: int, samples: list[tuple[float, float]], period: float) -> None:
    begun = time.monotonic()
    while True:
        samples.append((round(time.monotonic() - begun, 1), round(status_of(pid, "VmRSS") / 1e6, 2)))
        await asyncio.sleep(period)


def draw(told: dict[str, Any]) -> str:
    """Memory and p99 over the minutes, as one SVG."""
    memory = [(second / 60, value) for second, value in told["samples"]]
    times = [[(one["seconds"] / 60, one[name]) for one in told["slices"]] for name in ("p99_ms", "p50_ms")]
    minutes, floor = Axis("minutes"), [(0.0, 0.0)]
    charts = [
        ("resident memory, MB", [Series("", memory), Series("", floor)]),
        (
            "milliseconds to the answer: median, and 99 % within",
            [Series("", times[0], "line b"), Series("", times[1]), Series("", floor)],
        ),
    ]
    parts = []
    for place, (title, series) in enumerate(charts):
        inner = re.search(r"<svg[^>]*>(.*)</svg>", chart(minutes, Axis(title), series))
        assert inner
        y = place * (HEIGHT + 24)
        parts.append(f'<g transform="translate(0,{y + 20})"><text class="title" x="10" y="0">{title}</text>{inner[1]}</g>')
    height = len(charts) * (HEIGHT + 24) + HEIGHT - BOTTOM - 40
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{2 * WIDTH}">'
    return f'{opening}<style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'


def run(model: Path, minutes: float, out: Path) -> dict[str, Any]:
    """All of it; writes soak.json and soak.svg into `out`."""
    classifier = Classifier.load(model)
    spec = classifier.spec.input
    pictures = make_pictures(classifier.spec.goldens[0].data, 60)
    alone = np.stack([classifier(fit(decode(one, spec), spec)[np.newaxis])[0] for one in pictures])
    asks = make_asks(pictures, 4000)
    [port] = free_ports(1)
    with serve(model=model, port=port, log_level="error", drain_seconds=0) as process:
        sender = Sender(HttpTarget(process.url), asks, alone)
        measured = asyncio.run(soak(process, sender, 60 * minutes))
        with process.client() as client:
            threads = client.get("/health").json()["threads"]
    rate, low, high = slope(measured["samples"])
    told = {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor(),
        "model": model.name,
        "threads": threads,
        "minutes": minutes,
        "sent": dict(sender.sent),
        "lost": sender.sent.total() - sender.ended.total(),
        "wrong": dict(sender.wrong),
        "memory_mb_an_hour": {"slope": round(rate, 3), "low": round(low, 3), "high": round(high, 3)},
        **measured,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "soak.json").write_text(json.dumps(told) + "\n")
    (out / "soak.svg").write_text(draw(told))
    return told


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "imagenet.onnx")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "soak")
    options = parser.parse_args()
    told = run(options.model, options.minutes, options.out)
    print(json.dumps({name: value for name, value in told.items() if name not in ("slices", "samples")}, indent=2))
    return int(bool(told["lost"] or told["wrong"]))


if __name__ == "__main__":
    sys.exit(main())
