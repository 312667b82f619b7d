"""`python -m app predict` on a folder of images, against the same work without files, lines and processes that talk.

    python -m benchmarks.predict MODEL FOLDER [--rounds 3]

Limit: as many processes as the command takes, each with its share of the files in memory; only decode, fit and
classifier are timed, before and after the command.
The command is timed from its start to its end. Its memory is watched, and once it is killed in the midst and resumed.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import mean, median

import numpy as np

from app.classifier import Classifier
from app.image import decode, fit
from app.predict import BATCH
from app.threads import usable_threads
from benchmarks.faults.proc import cpu_seconds
from benchmarks.machine import processor

LOOK_SECONDS = 0.5

Interval = tuple[float, float, float]  # begin, end, processor time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    files = [str(path) for path in sorted(options.folder.rglob("*")) if path.is_file()]
    print(f"{processor()}, {usable_threads()} processes, {options.model.name}, {len(files):,} images", flush=True)
    shares, cpu_shares = [], []
    with tempfile.TemporaryDirectory() as scratch:
        limit = measure_limit(options.model, files)
        for number in range(options.rounds):
            out = Path(scratch, f"{number}.jsonl")
            seconds, cpu, memory = run(options, out)
            before, limit = limit, measure_limit(options.model, files)  # a machine's speed changes from minute to minute
            least, least_cpu = (mean(pair) for pair in zip(before, limit, strict=True))
            shares.append(least / seconds)
            cpu_shares.append(least_cpu / cpu)
            rates = f"limit {len(files) / least:,.0f}/s, command {len(files) / seconds:,.0f}/s: {shares[-1]:.1%}"
            print(f"{rates}; processor time {cpu:.0f} instead of {least_cpu:.0f} s; PSS {memory}", flush=True)
        for what, found in (("rate", shares), ("processor time", cpu_shares)):
            print(f"by {what}, with start and end: {median(found):.1%} of the limit ({min(found):.1%}–{max(found):.1%})")
        resume(options, files, whole=Path(scratch, "0.jsonl"), out=Path(scratch, "killed.jsonl"))


def measure_limit(model: Path, files: Sequence[str]) -> tuple[float, float]:
    """Seconds from the first process's first image to the last one's last, and of processor time between."""
    processes = usable_threads()
    context = multiprocessing.get_context("forkserver")
    barrier, results = context.Barrier(processes), context.SimpleQueue()
    crew = [
        context.Process(target=classify, args=(model, files[number::processes], barrier, results))
        for number in range(processes)
    ]
    for process in crew:
        process.start()
    intervals: list[Interval] = [results.get() for _ in crew]
    for process in crew:
        process.join()
    begins, ends, cpu = zip(*intervals, strict=True)
    return max(ends) - min(begins), sum(cpu)


def classify(model: Path, files: Sequence[str], barrier: Barrier, results: "multiprocessing.SimpleQueue[Interval]") -> None:
    classifier = Classifier.load(model)
    spec = classifier.spec.input
    images = [Path(name).read_bytes() for name in files]
    barrier.wait()
    begun, cpu = time.monotonic(), time.process_time()
    for start in range(0, len(images), BATCH):
        classifier(np.stack([fit(decode(image, spec), spec) for image in images[start : start + BATCH]]))
    results.put((begun, time.monotonic(), time.process_time() - cpu))


def command(options: argparse.Namespace, out: Path, *more: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "app", "predict", str(options.model), str(options.folder), "--out", str(out), *more]
    return subprocess.Popen(words, stderr=subprocess.DEVNULL, start_new_session=True)


def run(options: argparse.Namespace, out: Path) -> tuple[float, float, str]:
    """Seconds, those of processor time until the last look, and the memory after a quarter and at the end."""
    begun = time.monotonic()
    process, seen, cpu = command(options, out), list[float](), 0.0
    while process.poll() is None:
        used = list(usage(process.pid))
        seen.append(sum(pss for pss, _ in used))
        cpu = max(cpu, sum(seconds for _, seconds in used))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LOOK_SECONDS)
    assert process.returncode == 0, process.returncode
    later = seen[len(seen) // 4 : -2]
    memory = f"{later[0]:,.0f} MB after a quarter, {later[-1]:,.0f} at the end, {max(seen):,.0f} at most"
    return time.monotonic() - begun, cpu, memory


def usage(session: int) -> Iterator[tuple[float, float]]:
    """PSS in MB and seconds of processor time of every process of the session."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == session:
                lines = (folder / "smaps_rollup").read_text().splitlines()
                pss = sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1000
                yield pss, cpu_seconds(int(folder.name))
        except (OSError, ProcessLookupError):
            continue  # it ended meanwhile


def resume(options: argparse.Namespace, files: Sequence[str], *, whole: Path, out: Path) -> None:
    """Kills the command when about half is done, and resumes it: each image must have one line, the same as before."""
    process = command(options, out)
    while process.poll() is None and (not out.exists() or out.stat().st_size < whole.stat().st_size / 2):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = out.read_bytes()
    assert command(options, out, "--resume").wait() == 0
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert Counter(line["path"] for line in lines) == Counter(files)
    expected = {line["path"]: line for line in map(json.loads, whole.read_text(encoding="utf-8").splitlines())}
    same = sum(expected[line["path"]] == line for line in lines)
    whole_lines = before.count(b"\n")
    print(f"killed after {whole_lines:,} lines, resumed: {len(lines):,} lines, none twice, {same:,} as in one run")


if __name__ == "__main__":
    main()
