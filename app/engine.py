"""The async front of the classifier: the one place where work crosses from the event loop to threads.

    submit ─▶ admission (count, estimated wait) ─▶ queue ─▶ [thread: decode ─▶ fit ─▶ batch ─▶ classifier] ─▶ Answer

Batches form naturally: a free thread takes its share of what is queued and never waits, unless `max_wait_seconds` says so.
Refused with OverloadedError or DrainingError: at once. Expired or abandoned images: dropped unrun. One image's failure is
its own; its neighbours in the batch get their answers. What a quick model can be shown within microseconds is decoded on
the event loop, before it is queued, and an instant model runs there too where a thread would gain nothing.
"""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from app.classifier import Classifier, Probabilities, Ranked, top_k
from app.errors import DeadlineExceededError, DrainingError, OverloadedError
from app.image import DEFAULT_MAX_PIXELS, Pixels, decode, fit, fit_at_once
from app.metrics import Metrics

Source = bytes | Pixels  # an encoded image, or one that needs no decoding and fitting

log = logging.getLogger("convserve.engine")

# Weight of the newest batch in the moving average of seconds per image: settles in about 20 batches.
SMOOTHING = 0.1

# An estimate errs: who would just make it by it often expires after having waited, and takes the place of one who would not.
ADMITTED_SHARE = 0.8

RANKED = 5  # classes that most ask for; ranked image by image, they took a tenth of the event loop's time of a small model

CLOSE_SECONDS = 5.0  # for what still runs at the end; who waits longer waits for a session that hangs

OUTCOMES = ("classified", "failed", "expired", "abandoned")


@dataclass(frozen=True, slots=True)
class Answer:
    """What one image came to, by which model, and the seconds each stage took."""

    classifier: Classifier
    probabilities: Probabilities  # (classes,)
    decode_seconds: float
    queue_seconds: float
    infer_seconds: float
    batch_size: int
    explain_seconds: float = 0.0
    explanation: dict[str, Any] | None = None  # as it goes over the wire
    ranked: Ranked = field(default_factory=list)  # the first `RANKED` classes, where its batch was ranked

    def top(self, k: int) -> Ranked:
        """The `k` most probable classes."""
        return self.ranked[:k] if k <= len(self.ranked) else top_k(self.probabilities[np.newaxis], k)[0]


# Answers encoded bytes by itself; what it is given beside them raises when nobody wants the answer any more.
Run = Callable[[bytes, Callable[[], None]], Answer]


class Slot(Protocol):
    """Where an image's outcome goes, on the event loop: an asyncio.Future[Answer], or what spares one."""

    def done(self) -> bool:
        """It has an outcome, or nobody wants one any more."""

    def cancelled(self) -> bool:
        """Nobody wants one any more."""

    def set_result(self, result: Answer, /) -> None: ...

    def set_exception(self, exception: Exception, /) -> None: ...


@dataclass(slots=True, eq=False)
class _Job:
    data: Source
    deadline: float  # on time.monotonic's clock
    queued_at: float
    slot: Slot
    run: Run | None = None  # instead of decoding and classifying in a batch
    passes: int = 1  # through the network
    mark: Any = None  # the tracer's
    pixels: Pixels | None = None  # decoded at once
    size: tuple[int, int] | None = None  # width, height of the decoded image
    started_at: float = 0.0
    decoded_from: float = 0.0
    decode_seconds: float = 0.0
    ran_at: float = 0.0


@dataclass(slots=True, eq=False)
class _Worker:
    thread: threading.Thread
    busy_since: float | None = None  # on time.monotonic's clock


class Engine:
    """Runs a classifier on `threads` threads behind a bounded queue. Create, start and close it on one event loop."""

    def __init__(
        self,
        classifier: Classifier,
        metrics: Metrics,
        *,
        threads: int,
        max_batch_size: int = 4,
        max_wait_seconds: float = 0.0,
        max_queue_size: int = 256,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        shares_cores: bool = False,  # with other engines, so that a thread beside the event loop gains nothing
    ) -> None:
        self.classifier = classifier
        self._batch_size = metrics.batch_size
        self._outcomes = {outcome: metrics.images.labels(outcome) for outcome in OUTCOMES}
        self._stages = metrics.stages
        self._max_batch_size = max_batch_size
        self._max_wait_seconds = max_wait_seconds
        self._max_queue_size = max_queue_size
        self._max_pixels = max_pixels
        self._shares_cores = shares_cores
        self._queue: deque[_Job] = deque()
        self._here: deque[_Job] = deque()  # what the event loop runs
        self._wake = threading.Condition()
        self._warm = False  # the threads have seen an image
        self._closed = False
        self._in_progress = 0  # jobs that wait or run
        self._extra_passes = 0  # of jobs that wait or run, beyond one for each
        self._seconds_per_image: float | None = None  # of one thread, moving average
        self._workers = [self._make_worker(number) for number in range(threads)]
        self.shadow: Callable[[Source, Answer], None] | None = None  # sees every answer
        self._loop: asyncio.AbstractEventLoop
        self._tracer = metrics.tracer

    async def start(self) -> None:
        """Starts the threads and sends a golden image per thread down the whole path, so that the first user finds it warm."""
        self._loop = asyncio.get_running_loop()
        for worker in self._workers:
            worker.thread.start()
        golden = self.classifier.spec.goldens[0].data
        images = min(len(self._workers), self._max_queue_size)
        await asyncio.gather(*self.submit([golden] * images, deadline=math.inf))
        self._warm = True

    async def close(self) -> None:
        """Refuses new images, finishes those accepted and ends the threads, but not one that hangs."""
        end = time.monotonic() + CLOSE_SECONDS
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        while self._here:
            await asyncio.sleep(0)
        for worker in self._workers:
            if worker.thread.ident is not None:
                await asyncio.to_thread(worker.thread.join, max(0.0, end - time.monotonic()))
        if self._tracer:
            await asyncio.to_thread(self._tracer.flush)

    def submit(
        self, images: Sequence[Source], *, deadline: float, run: Run | None = None, passes: int = 1
    ) -> list[asyncio.Future[Answer]]:
        """Queues images, all or none; `deadline` is on `time.monotonic`'s clock.

        The futures end with an Answer, or with the error of decoding, DeadlineExceededError, or a bug's own exception.
        Cancelling one drops its image unless it is already running. `run` answers each image alone, in the time of `passes`
        images.

        Raises: OverloadedError, DrainingError.
        """
        futures = [self._loop.create_future() for _ in images]
        self.submit_into(futures, images, deadline=deadline, run=run, passes=passes)
        return futures

    def submit_into(
        self,
        slots: Sequence[Slot],
        images: Sequence[Source],
        *,
        deadline: float,
        run: Run | None = None,
        passes: int = 1,
    ) -> None:
        """As `submit`, with a slot for each image."""
        now = time.monotonic()
        mark = self._tracer and self._tracer.mark()
        jobs = [_Job(data, deadline, now, slot, run, passes, mark) for data, slot in zip(images, slots, strict=True)]
        with self._wake:
            self._admit(len(jobs), deadline - now, passes)
        if self.classifier.is_quick and run is None and self._warm:
            for job in jobs:
                self._decode_at_once(job)
        here = self._compute_here(jobs)
        with self._wake:  # meanwhile nobody else was admitted: all come on the event loop
            self._in_progress += len(jobs)
            self._extra_passes += len(jobs) * (passes - 1)
            if not here:
                self._queue.extend(jobs)
                self._wake.notify(len(jobs))
        if here:
            if not self._here:
                self._loop.call_soon(self._run_here)
            self._here.extend(jobs)

    @property
    def threads(self) -> int:
        """Threads that decode and compute."""
        return len(self._workers)

    @property
    def max_batch_size(self) -> int:
        """Images that are run together at most."""
        return self._max_batch_size

    @property
    def queue_depth(self) -> int:
        """Images that wait for a thread, or for the event loop to run them."""
        return len(self._queue) + len(self._here)

    @property
    def images_in_progress(self) -> int:
        """Images that wait or run."""
        return self._in_progress

    def estimated_wait_seconds(self, images: int = 1) -> float:
        """How long the last of `images` that came now would take to be answered."""
        return self._wait_behind(self._in_progress, images)

    def _wait_behind(self, in_progress: int, images: int) -> float:
        if self._seconds_per_image is None:
            return 0.0
        rounds = (in_progress + self._extra_passes + images - 1) / len(self._workers) + 1
        return rounds * self._seconds_per_image

    def stalled_seconds(self) -> float:
        """How long the slowest running batch has been running; infinite if a thread died."""
        now = time.monotonic()
        if not self._closed and any(not worker.thread.is_alive() for worker in self._workers):
            return math.inf
        return max((now - worker.busy_since for worker in self._workers if worker.busy_since is not None), default=0.0)

    def _admit(self, images: int, seconds_left: float, passes: int) -> None:
        if self._closed:
            raise DrainingError(
                "the service is shutting down: send the request again, to another instance", retry_after_seconds=1
            )
        in_progress = self._in_progress
        wait = self._wait_behind(in_progress, images * passes)
        if in_progress + images > self._max_queue_size:
            raise OverloadedError(f"{in_progress} images are already waiting", retry_after_seconds=wait)
        # A free thread takes it whatever the estimate says: else one slow moment would lock an idle service for good.
        if wait > ADMITTED_SHARE * seconds_left and in_progress + images > len(self._workers):
            raise OverloadedError(
                f"the answer would take about {wait:.2f} s and the deadline is in {max(0.0, seconds_left):.2f} s",
                retry_after_seconds=wait - ADMITTED_SHARE * seconds_left,
            )

    def _compute_here(self, jobs: Sequence[_Job]) -> bool:
        """Whether the event loop runs them: an instant model, images that are decoded, and a thread would gain nothing."""
        may = self.classifier.is_instant and not self._max_wait_seconds and (self._shares_cores or not self._in_progress)
        return may and all(job.pixels is not None for job in jobs)

    def _run_here(self) -> None:
        jobs = [self._here.popleft() for _ in range(min(len(self._here), self._max_batch_size))]
        if self._here:
            self._loop.call_soon(self._run_here)  # others come in between
        outcomes = self._run(jobs)
        with self._wake:
            self._in_progress -= len(jobs)
        self._settle(outcomes)

    def _make_worker(self, number: int) -> _Worker:
        thread = threading.Thread(target=lambda: self._work(worker), name=f"engine-{number}", daemon=True)
        worker = _Worker(thread)
        return worker

    def _work(self, worker: _Worker) -> None:
        while jobs := self._take(worker):
            outcomes = self._run(jobs)
            with self._wake:
                worker.busy_since = None
                self._in_progress -= len(jobs)
                self._extra_passes -= sum(job.passes - 1 for job in jobs)
            self._loop.call_soon_threadsafe(self._settle, outcomes)  # last: who is answered is no longer in progress

    def _take(self, worker: _Worker) -> list[_Job]:
        """Waits for a batch that is due and takes this thread's share of it; empty when the engine is closed and done."""
        with self._wake:
            while (seconds := self._seconds_to_fill()) is None or seconds > 0:
                if self._closed and not self._queue:
                    return []
                self._wake.wait(seconds)
            share = len(self._queue) if self._max_wait_seconds else -(-len(self._queue) // len(self._workers))
            jobs = [self._queue.popleft()]
            while len(jobs) < min(share, self._max_batch_size) and not (jobs[0].run or self._queue[0].run):
                jobs.append(self._queue.popleft())
            worker.busy_since = time.monotonic()
            return jobs

    def _seconds_to_fill(self) -> float | None:
        """How long the next batch may still wait for company: None while there is no image, 0 or less when it is due."""
        if not self._queue:
            return None
        if self._closed or len(self._queue) >= self._max_batch_size:
            return 0
        return self._queue[0].queued_at + self._max_wait_seconds - time.monotonic()

    def _run(self, jobs: list[_Job]) -> list[tuple[_Job, Answer | Exception]]:
        """Never raises: whatever goes wrong is an outcome, and ends in a slot."""
        begun = time.monotonic()
        outcomes: list[tuple[_Job, Answer | Exception]] = []
        try:
            wanted = [job for job in jobs if self._is_wanted(job, begun, outcomes)]
            if wanted and (run := wanted[0].run):
                outcomes.append((job := wanted.pop(), self._run_alone(job, run)))
            fitted = [(job, pixels) for job in wanted if (pixels := self._decode(job, outcomes)) is not None]
            self._classify(fitted, outcomes)
        except Exception as error:
            log.exception("a batch failed outside decoding and inference")
            settled = {id(job) for job, _ in outcomes}
            outcomes += [(job, error) for job in jobs if id(job) not in settled]
        self._learn(time.monotonic() - begun, sum(job.passes for job, outcome in outcomes if isinstance(outcome, Answer)))
        return outcomes

    def _is_wanted(self, job: _Job, now: float, outcomes: list[tuple[_Job, Answer | Exception]]) -> bool:
        if now >= job.deadline:
            outcomes.append((job, DeadlineExceededError("the deadline passed while the image waited")))
            return False
        if job.slot.cancelled():
            self._outcomes["abandoned"].inc()
            return False
        return True

    def _run_alone(self, job: _Job, run: Run) -> Answer | Exception:
        assert isinstance(job.data, bytes)
        begun = job.started_at = time.monotonic()

        def check() -> None:
            if time.monotonic() >= job.deadline or job.slot.cancelled():
                raise DeadlineExceededError("the deadline passed while the image was explained")

        try:
            return replace(run(job.data, check), queue_seconds=begun - job.queued_at)
        except Exception as error:
            return error

    def _decode_at_once(self, job: _Job) -> None:
        """On the event loop: what holds the interpreter anyway and takes less than to hand it over."""
        if not isinstance(job.data, bytes):
            return
        begun, spec = time.monotonic(), self.classifier.spec.input
        pixels = fit_at_once(job.data, spec, max_pixels=self._max_pixels)
        if pixels is not None:
            job.pixels, job.size = pixels, (spec.width, spec.height)
            job.decoded_from, job.decode_seconds = begun, time.monotonic() - begun

    def _decode(self, job: _Job, outcomes: list[tuple[_Job, Answer | Exception]]) -> Pixels | None:
        job.started_at = time.monotonic()
        if not isinstance(job.data, bytes):
            return job.data
        if job.pixels is not None:
            return job.pixels
        job.decoded_from = job.started_at
        spec = self.classifier.spec.input
        try:
            image = decode(job.data, spec, max_pixels=self._max_pixels)
            job.size = image.size
            return fit(image, spec)
        except Exception as error:
            outcomes.append((job, error))
            return None
        finally:
            job.decode_seconds = time.monotonic() - job.decoded_from

    def _classify(self, fitted: list[tuple[_Job, Pixels]], outcomes: list[tuple[_Job, Answer | Exception]]) -> None:
        """Runs the batch; if that fails, each image alone, so that only the culprit gets the error."""
        if not fitted:
            return
        begun = time.monotonic()
        for job, _ in fitted:
            job.ran_at = begun
        try:
            alone = self._in_progress == 1
            batch = np.stack([pixels for _, pixels in fitted])
            rows = self.classifier(batch, alone=alone)
        except Exception as error:
            log.exception("a batch of %d failed in the session", len(fitted))
            if len(fitted) == 1:
                outcomes.append((fitted[0][0], error))
            else:
                for pair in fitted:
                    self._classify([pair], outcomes)
            return
        seconds = time.monotonic() - begun
        self._batch_size.observe(len(fitted))
        for (job, _), row, ranked in zip(fitted, rows, top_k(rows, RANKED), strict=True):
            spent = job.decode_seconds, begun - job.queued_at - job.decode_seconds, seconds
            outcomes.append((job, Answer(self.classifier, row, *spent, len(fitted), ranked=ranked)))
        if (window := self.classifier.window) is not None:
            window.observe(batch, rows, [job.size for job, _ in fitted])

    def _learn(self, seconds: float, images: int) -> None:
        if images:
            new = seconds / images
            old = self._seconds_per_image
            self._seconds_per_image = new if old is None else old + SMOOTHING * (new - old)

    def _settle(self, outcomes: list[tuple[_Job, Answer | Exception]]) -> None:
        """On the event loop: fills the slots and counts."""
        if self._tracer:
            self._tracer.record(outcomes)
        classified = 0
        decode_stage, queue_stage, infer_stage = self._stages
        for job, outcome in outcomes:
            if job.slot.done():  # its request ended while it ran
                expired = time.monotonic() >= job.deadline
                self._outcomes["expired" if expired else "abandoned"].inc()
                continue
            if isinstance(outcome, Exception):
                expired = isinstance(outcome, DeadlineExceededError)
                self._outcomes["expired" if expired else "failed"].inc()
                job.slot.set_exception(outcome)
                continue
            classified += 1
            decode_stage.observe(outcome.decode_seconds)
            queue_stage.observe(outcome.queue_seconds)
            infer_stage.observe(outcome.infer_seconds)
            job.slot.set_result(outcome)
            if self.shadow is not None:
                self.shadow(job.data, outcome)
        self._outcomes["classified"].inc(classified)
