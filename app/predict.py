"""`python -m app predict`: classifies files and folders, by a model file on every core or by a running service.

    walk ─▶ chunks of paths ─▶ process per core: read, decode, fit, classifier ─▶ lines, in the order of the walk ─▶ OUT
                           └─▶ thread per request: read, client ──────────────┘

Only the chunks under way are held. OUT grows by whole lines; resuming cuts off the line that a kill left unfinished and skips
what has a line, known by 8 bytes a path, so that folders may be listed in another order and images may be added.
"""

import argparse
import fcntl
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from functools import cache, partial
from hashlib import blake2b
from itertools import islice
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from app.classifier import Classifier, Probabilities, name_classes, top_k
from app.client import BATCH_SIZE, Client, Outcome, Prediction, RequestError, Result
from app.errors import ConvServeError, TooLargeError
from app.image import Pixels, decode, fit
from app.lines import Form, Progress, one_line
from app.threads import usable_threads

BATCH = 8  # images that run together: more gains nothing on a CPU and costs memory
REQUESTS = 4  # at a time, by default
MAX_FILE_BYTES = 2**28
STOPPED, SOME_FAILED = 1, 3  # exit codes
OF_THE_SERVICE = (0, 503, 504)  # statuses that say nothing of the image

Answerer = Callable[[list[bytes]], list[Outcome]]


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0 all classified, 1 stopped for a reason that is said, 3 done and some images failed."""
    options = _parse(arguments)
    try:
        return _run(options)
    except KeyboardInterrupt:
        reason = "stopped"
    except BrokenProcessPool:
        reason = "a process was killed, perhaps for want of memory: lower --concurrency"
    except (ConvServeError, RequestError, OSError) as error:
        reason = str(error)
    print(f"convserve: {reason}" + ("; --resume goes on from here" if options.out else ""), file=sys.stderr)
    return STOPPED


def _run(options: argparse.Namespace) -> int:
    with ExitStack() as stack:
        pool, answer, model = _classifying(options, stack)
        form = Form(options.csv, options.top_k, model)
        out = stack.enter_context(_open(options.out, options.resume)) if options.out else sys.stdout.buffer
        done = _finished(out, form) if options.resume else np.empty(0, np.uint64)
        if options.csv and not (options.out and out.tell()):
            out.write(form.header)
        own = os.fstat(out.fileno()).st_ino
        progress = stack.enter_context(Progress(lambda: sum(1 for _ in _walk(options.paths, own)), done.size))
        paths = (path for path in _walk(options.paths, own) if not _is_in(done, path))
        for lines, images, failed in _in_order(pool, partial(_classify, answer, form), paths, 4 * options.concurrency):
            out.write(lines)
            out.flush()
            progress.add(images, failed)
    return SOME_FAILED if progress.failed else 0


def _classifying(options: argparse.Namespace, stack: ExitStack) -> tuple[Executor, Answerer, str]:
    """Where images are classified, how, and by what model."""
    if options.source.startswith(("http://", "https://")):
        key = options.api_key_file.read_text(encoding="utf-8").strip() if options.api_key_file else None
        client = stack.enter_context(Client(options.source, api_key=key))
        model = client.model()
        options.concurrency = options.concurrency or REQUESTS
        pool: Executor = ThreadPoolExecutor(options.concurrency)
        answer = partial(_by_service, client, options.top_k)
        return stack.enter_context(pool), answer, f"{model['name']} {model['version']}"
    path = Path(options.source)
    spec = Classifier.load(path).spec
    options.concurrency = options.concurrency or usable_threads()
    pool = ProcessPoolExecutor(options.concurrency, multiprocessing.get_context("forkserver"), _end_with_parent)
    return stack.enter_context(pool), partial(_by_model, path, options.top_k), f"{spec.name} {spec.version}"


def _classify(answer: Answerer, form: Form, paths: list[str]) -> tuple[bytes, int, int]:
    """The lines of some files, how many they are, and how many of them tell of a failure."""
    outcomes: dict[str, Outcome] = {}
    images: dict[str, bytes] = {}
    for path in paths:
        try:
            images[path] = _read(path)
        except (TooLargeError, OSError) as error:
            outcomes[path] = RequestError(getattr(error, "strerror", str(error)))
    if images:
        outcomes |= zip(images, answer(list(images.values())), strict=True)
    lines = b"".join(form.line(path, outcomes[path]) for path in paths)
    return lines, len(paths), sum(isinstance(outcome, RequestError) for outcome in outcomes.values())


def _by_service(client: Client, k: int, images: list[bytes]) -> list[Outcome]:
    """Raises: RequestError when it is the service that fails, not an image."""
    outcomes = client.predict_batch(images, top_k=k)
    for outcome in outcomes:
        if isinstance(outcome, RequestError) and outcome.status in OF_THE_SERVICE:
            raise outcome
    return outcomes


def _by_model(model: Path, k: int, images: list[bytes]) -> list[Outcome]:
    classifier = _classifier(model)
    spec = classifier.spec
    outcomes: dict[int, Outcome] = {}
    fitted: dict[int, Pixels] = {}
    for index, image in enumerate(images):
        try:
            fitted[index] = fit(decode(image, spec.input), spec.input)
        except ConvServeError as error:
            outcomes[index] = RequestError(str(error))
    for start in range(0, len(fitted), BATCH):
        batch = list(fitted)[start : start + BATCH]
        for index, row in zip(batch, _probabilities(classifier, [fitted[one] for one in batch]), strict=True):
            if isinstance(row, Exception):
                outcomes[index] = RequestError(f"the model fails on it: {row}")
                continue
            best = top_k(row, k)
            predictions = tuple(Prediction(**one) for one in name_classes(best, spec.labels))
            outcomes[index] = Result(predictions, spec.accepts(best[0][1]))
    return [outcomes[index] for index in range(len(images))]


@cache
def _classifier(model: Path) -> Classifier:
    return Classifier.load(model)


def _probabilities(classifier: Classifier, batch: Sequence[Pixels]) -> list[Probabilities | Exception]:
    """A row for each image; one that the session fails on gets its error, its neighbours their rows."""
    try:
        return list(classifier(np.stack(batch)))
    except Exception as error:  # onnxruntime's own exceptions share no base but Exception
        return [error] if len(batch) == 1 else [row for one in batch for row in _probabilities(classifier, [one])]


def _end_with_parent() -> None:
    """Else a killed parent would leave its processes waiting for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(STOPPED)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123 (a Path for each image is not free)
        if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
            raise TooLargeError(f"the file has more than {MAX_FILE_BYTES:,} bytes")
        return file.read()


def _walk(paths: Iterable[str], own: int) -> Iterator[str]:
    """Files named, and those below folders named, but not hidden ones and not the one with inode `own`; unsorted."""
    for path in paths:
        if not os.path.isdir(path):  # noqa: PTH112
            yield path
            continue
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.inode() == own:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    yield from _walk([entry.path], own)
                elif entry.is_file():
                    yield entry.path


def _in_order(
    pool: Executor, work: Callable[[list[str]], tuple[bytes, int, int]], paths: Iterator[str], ahead: int
) -> Iterator[tuple[bytes, int, int]]:
    """As `pool.map` of chunks, but never more than `ahead` chunks are taken before their lines are."""
    waiting: deque[Future[tuple[bytes, int, int]]] = deque()
    try:
        while True:
            while len(waiting) < ahead and (chunk := list(islice(paths, BATCH_SIZE))):
                waiting.append(pool.submit(work, chunk))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _open(path: Path, resume: bool) -> IO[bytes]:
    """The file to add to, for us alone. Raises: ConvServeError."""
    if not resume and path.exists() and path.stat().st_size:
        raise ConvServeError(f"{path} exists: remove it, or add --resume to go on with it")
    file = path.open("a+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConvServeError(f"another process is writing {path}") from error
    return file


def _finished(out: IO[bytes], form: Form) -> NDArray[np.uint64]:
    """The sorted digests of the paths that have a line; a last line that is not whole is cut off. Raises: ConvServeError."""
    end = 0

    def whole_lines() -> Iterator[bytes]:
        nonlocal end
        for line in out:
            if line.endswith(b"\n"):
                end += len(line)
                yield line

    out.seek(0)
    digests = np.sort(np.fromiter(map(_digest, form.paths(whole_lines())), np.uint64))
    out.truncate(end)
    out.seek(end)
    return digests


def _is_in(done: NDArray[np.uint64], path: str) -> bool:
    digest = np.uint64(_digest(one_line(path))) if done.size else np.uint64(0)
    place = int(done.searchsorted(digest))
    return place < done.size and bool(done[place] == digest)


def _digest(path: str) -> int:
    return int.from_bytes(blake2b(path.encode(), digest_size=8).digest())


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m app predict",
        description="Classifies images, one line of output each. Exit code: 0 all classified, 3 some failed, 1 stopped.",
    )
    parser.add_argument("source", help="a model file, or the URL of a running service")
    parser.add_argument("paths", nargs="+", help="image files, and folders of them")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="JSON lines (default)")
    form.add_argument("--csv", action="store_true")
    parser.add_argument("--out", type=Path, help="file to write (default: standard output)")
    parser.add_argument("--resume", action="store_true", help="go on with the file of --out, where it ends")
    parser.add_argument("--top-k", type=_positive, default=1, help="classes for each image (default: 1)")
    parser.add_argument("--concurrency", type=_positive, help=f"processes (default: cores), or requests (default: {REQUESTS})")
    parser.add_argument("--api-key-file", type=Path, help="file with the key that the service asks for")
    options = parser.parse_args(arguments)
    if options.resume and not options.out:
        parser.error("--resume needs --out")
    return options


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number
