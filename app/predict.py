"""`python -m app predict`: classifies files and folders, by a model file on every core or by a running service.

    walk ─▶ chunks of paths ─▶ process per core: read, decode, fit, classifier ─▶ lines, in the order of the walk ─▶ OUT
                           └─▶ thread per request: read, client ──────────────┘

Only the chunks under way are held. OUT grows by whole lines; resuming cuts off the line that a kill left unfinished and skips
what has a line, known by 8 bytes a path, so that folders may be listed in another order and images may be added.
"""

import argparse
import errno
import fcntl
import multiprocessing
import os
import signal
import sys
import threading
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from app.classifier import Classifier, name_classes, top_k
from app.client import Client, Outcome, Prediction, RequestError, Result
from app.errors import ConvServeError
from app.image import Pixels, decode, fit
from app.lines import Form, Progress, one_line
from app.threads import usable_threads

BATCH = 8  # images that run together or go in one request: more gains nothing on a CPU and costs memory
CHUNK = 32  # paths that go to a process together, since each journey costs both ends
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
        pool, answer, model, chunk = _classifying(options, stack)
        form = Form(options.csv, options.top_k, model)
        out = stack.enter_context(_open(options.out, options.resume)) if options.out else sys.stdout.buffer
        done = _finished(out, form) if options.resume else np.empty(0, np.int64)
        if options.csv and not (options.out and out.tell()):
            out.write(form.header)
        own = os.fstat(out.fileno()).st_ino
        progress = Progress(lambda: sum(1 for _ in _walk(options.paths, own)), done.size)
        stack.callback(progress.say)
        paths = (path for path in _walk(options.paths, own) if not _is_in(done, path))
        work = partial(_classify, answer, form)
        for lines, failed in _in_order(pool, work, paths, chunk, ahead=4 * options.concurrency):
            out.write(lines)
            out.flush()
            progress.add(lines.count(b"\n"), failed)
    return SOME_FAILED if progress.failed else 0


def _classifying(options: argparse.Namespace, stack: ExitStack) -> tuple[Executor, Answerer, str, int]:
    """Where images are classified, how, by what model, and how many paths go there together."""
    if options.source.startswith(("http://", "https://")):
        key = options.api_key_file.read_text(encoding="utf-8").strip() if options.api_key_file else None
        client = stack.enter_context(Client(options.source, api_key=key))
        model = client.model()
        options.concurrency = options.concurrency or REQUESTS
        pool: Executor = ThreadPoolExecutor(options.concurrency)
        answer = partial(_by_service, client, options.top_k)
        return stack.enter_context(pool), answer, f"{model['name']} {model['version']}", BATCH
    path = Path(options.source)
    options.concurrency = options.concurrency or usable_threads()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imported once, and beside the loading here
    pool = stack.enter_context(ProcessPoolExecutor(options.concurrency, context, _end_with_parent))
    for _ in range(options.concurrency):
        pool.submit(_load, path)
    spec = Classifier.load(path).spec  # here too, where what is wrong with it is said
    return pool, partial(_by_model, path, options.top_k), f"{spec.name} {spec.version}", CHUNK


def _classify(answer: Answerer, form: Form, paths: list[str]) -> tuple[bytes, int]:
    """The lines of some files, and how many of them tell of a failure; never more than `BATCH` images are held."""
    parts = [_classify_batch(answer, form, paths[start : start + BATCH]) for start in range(0, len(paths), BATCH)]
    return b"".join(lines for lines, _ in parts), sum(failed for _, failed in parts)


def _classify_batch(answer: Answerer, form: Form, paths: list[str]) -> tuple[bytes, int]:
    outcomes: dict[str, Outcome] = {}
    images: dict[str, bytes] = {}
    for path in paths:
        try:
            images[path] = _read(path)
        except OSError as error:
            outcomes[path] = RequestError(error.strerror or str(error))
    if images:
        outcomes |= zip(images, answer(list(images.values())), strict=True)
    failed = sum(isinstance(outcome, RequestError) for outcome in outcomes.values())
    return b"".join(form.line(path, outcomes[path]) for path in paths), failed


def _by_service(client: Client, k: int, images: list[bytes]) -> list[Outcome]:
    """Raises: RequestError when it is the service that fails, not an image."""
    outcomes = client.predict_batch(images, top_k=k)
    for outcome in outcomes:
        if isinstance(outcome, RequestError) and outcome.status in OF_THE_SERVICE:
            raise outcome
    return outcomes


def _by_model(model: Path, k: int, images: list[bytes]) -> list[Outcome]:
    classifier = _classifier(model)
    fitted = [_fit(classifier, image) for image in images]
    pixels = [one for one in fitted if not isinstance(one, RequestError)]
    results = iter(_results(classifier, k, pixels) if pixels else ())
    return [one if isinstance(one, RequestError) else next(results) for one in fitted]


def _load(model: Path) -> None:
    """Beside what the parent does before the first image."""
    _classifier(model)


@cache
def _classifier(model: Path) -> Classifier:
    return Classifier.load(model)


def _fit(classifier: Classifier, image: bytes) -> Pixels | RequestError:
    try:
        return fit(decode(image, classifier.spec.input), classifier.spec.input)
    except ConvServeError as error:
        return RequestError(str(error))


def _results(classifier: Classifier, k: int, batch: Sequence[Pixels]) -> list[Outcome]:
    """One for each image; one that the session fails on gets its error, its neighbours their results."""
    spec = classifier.spec
    try:
        best = top_k(classifier(np.stack(batch)), k)
    except Exception as error:  # onnxruntime's own exceptions share no base but Exception
        alone = [RequestError(f"the model fails on it: {error}")]
        return [*alone] if len(batch) == 1 else [result for one in batch for result in _results(classifier, k, [one])]
    named = [tuple(Prediction(**prediction) for prediction in name_classes(one, spec.labels)) for one in best]
    return [Result(predictions, spec.accepts(one[0][1])) for predictions, one in zip(named, best, strict=True)]


def _end_with_parent() -> None:
    """Else a killed parent would leave its processes waiting for ever."""

    def wait() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
        os._exit(STOPPED)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=wait, daemon=True).start()


def _read(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123 (a Path for each image is not free)
        if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, f"the file has more than {MAX_FILE_BYTES:,} bytes")
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
    pool: Executor, work: Callable[[list[str]], tuple[bytes, int]], paths: Iterator[str], size: int, *, ahead: int
) -> Iterator[tuple[bytes, int]]:
    """As `pool.map` of chunks, but never more than `ahead` chunks are taken before their lines are."""
    waiting: deque[Future[tuple[bytes, int]]] = deque()
    try:
        while True:
            while len(waiting) < ahead and (chunk := list(islice(paths, size))):
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


def _finished(out: IO[bytes], form: Form) -> NDArray[np.int64]:
    """The sorted hashes of the paths that have a line; a last line that is not whole is cut off. Raises: ConvServeError."""
    hashes, end = array("q"), 0
    out.seek(0)
    for number, line in enumerate(out, start=1):
        if line.endswith(b"\n"):
            end += len(line)
            if (path := form.path(line, number)) is not None:
                hashes.append(hash(path))
    out.truncate(end)
    out.seek(end)
    return np.sort(np.array(hashes))


def _is_in(done: NDArray[np.int64], path: str) -> bool:
    found = hash(one_line(path))
    place = int(done.searchsorted(found))
    return place < done.size and bool(done[place] == found)


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
