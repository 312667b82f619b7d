"""The limit: bytes to JSON in a loop, by the code that serves, without HTTP, in the best of several arrangements.

    python -m benchmarks.serving.limit MODEL IMAGE --seconds 3

Prints a JSON object: images/s of one client alone, and of as many as keep all cores busy, each with its arrangement.
"""

import argparse
import json
import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import orjson

from app.classifier import Classifier, name_classes, top_k
from app.image import decode, fit
from app.threads import usable_threads


def run(classifier: Classifier, image: bytes, batch: int, seconds: float) -> float:
    """Images/s of one thread."""
    spec, end, n = classifier.spec, time.perf_counter() + seconds, 0
    begun = time.perf_counter()
    while time.perf_counter() < end:
        pixels = np.stack([fit(decode(image, spec.input), spec.input) for _ in range(batch)])
        for best in top_k(classifier(pixels), 5):
            orjson.dumps({"predictions": name_classes(best, spec.labels)})
        n += batch
    return n / (time.perf_counter() - begun)


def in_threads(model: Path, image: bytes, batch: int, seconds: float, n: int) -> float:
    """Threads around one session, as the engine has them."""
    classifier = Classifier.load(model)
    with ThreadPoolExecutor(n) as pool:
        return sum(pool.map(lambda _: run(classifier, image, batch, seconds), range(n)))


def in_processes(model: Path, image: bytes, batch: int, seconds: float, n: int) -> float:
    """A process for each core, all measured in the same time."""
    with multiprocessing.get_context("spawn").Pool(n) as pool:
        return sum(pool.starmap(_run_process, [(model, image, batch, seconds, time.time() + 2)] * n, chunksize=1))


def _run_process(model: Path, image: bytes, batch: int, seconds: float, start: float) -> float:
    classifier = Classifier.load(model)
    time.sleep(max(0.0, start - time.time()))
    return run(classifier, image, batch, seconds)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--seconds", type=float, default=3)
    options = parser.parse_args()
    image, n = options.image.read_bytes(), usable_threads()
    alone = {
        f"1 thread, session of {k}": run(Classifier.load(options.model, threads=k), image, 1, options.seconds) for k in {1, n}
    }
    busy = {
        f"{n} {kind.__name__[3:]}, batch {batch}": kind(options.model, image, batch, options.seconds, n)
        for kind in (in_threads, in_processes)
        for batch in (1, 4)
    }
    print(
        json.dumps({"alone": max(zip(alone.values(), alone, strict=True)), "busy": max(zip(busy.values(), busy, strict=True))})
    )


if __name__ == "__main__":
    main()
