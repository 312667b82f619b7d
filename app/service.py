"""The running service: the loaded model behind its engine, with what every endpoint needs.

`Service.classify` carries one request's images through the engine, under the request's deadline, while its client is there.
"""

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from app.board import PERIOD_SECONDS, Board
from app.body import BodyLimits, HeldBodies
from app.cache import AnswerCache
from app.classifier import Classifier
from app.engine import Answer, Engine, Source
from app.errors import BadParameterError, DeadlineExceededError
from app.explain import Explainer
from app.keys import ApiKeys
from app.metrics import MAX_LABELS, OTHER_LABEL, Metrics, merge
from app.samples import SampleFolder
from app.schemas import ModelChange
from app.settings import Settings
from app.threads import usable_threads

log = logging.getLogger("convserve")

Outcome = Answer | BaseException

UNWATCHED_SECONDS = 0.02
# Of a model under 2 ms: the next batch comes while one is computed. With 32 clients 7,100 images/s, with batches of 32 5,900
# (2 cores of an AMD EPYC with AVX-512, 2026-11).
QUICK_BATCH = 12


@dataclass(slots=True)
class Service:
    """One model, its engine and its bounds. `draining` turns `/readyz` red while requests are still served."""

    settings: Settings
    engine: Engine
    metrics: Metrics
    limits: BodyLimits
    keys: ApiKeys | None
    cache: AnswerCache | None = None
    board: Board | None = None
    samples: SampleFolder | None = None
    started_at: float = field(default_factory=time.monotonic)
    draining: bool = False
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)  # held while the model is being changed
    told: asyncio.Event = field(default_factory=asyncio.Event)  # to read the configured file anew
    decision: bytes = b""  # of the board's, the one that was acted on last

    @classmethod
    def create(cls, settings: Settings, board: Board | None = None) -> Self:
        """Loads and proves the model; on the `board` it reads and writes what all workers must know.

        Raises: ModelError, SettingsError.
        """
        keys = ApiKeys(settings.api_keys_file) if settings.api_keys_file else None
        metrics = Metrics()
        if settings.tracing:
            from app.tracing import Tracer

            metrics.tracer = Tracer()
        engine = load_engine(settings, metrics, ModelChange(), abandon=_abandon)
        max_images = min(settings.max_images_per_request, settings.max_queue_size)  # more would be refused for ever
        max_bytes = max(settings.max_queue_bytes, settings.max_body_bytes)
        held = HeldBodies(max_bytes, lambda: service.engine.estimated_wait_seconds())
        limits = BodyLimits(settings.max_body_bytes, settings.body_timeout_ms / 1000, max_images, held)
        samples = SampleFolder(settings, metrics) if settings.sample_dir else None
        service = cls(settings, engine, metrics, limits, keys, board=board, samples=samples)
        service._describe()
        metrics.queue_depth.set_function(lambda: service.engine.queue_depth)
        metrics.estimated_wait_seconds.set_function(lambda: service.engine.estimated_wait_seconds())
        metrics.ready.set_function(lambda: float(service._own_is_live and not service.draining))
        return service

    async def serve(self, engine: Engine) -> None:
        """Answers by another engine and its model from now on; the images accepted before get the answers of the one before."""
        await engine.start()
        before, self.engine = self.engine, engine  # no request comes between this and its cache
        self._describe()
        await before.close()

    @property
    def classifier(self) -> Classifier:
        """The model that answers from now on; an Answer names the one that made it."""
        return self.engine.classifier

    @property
    def status(self) -> Literal["ok", "draining", "stalled"]:
        """ok, draining or stalled; of several workers the worst."""
        if self.draining:
            return "draining"
        return "ok" if self.is_live else "stalled"

    @property
    def is_live(self) -> bool:
        """The engine makes progress, and that of every other worker."""
        stalled = [seconds + float(note.partition(b"\n")[0]) - 2 * PERIOD_SECONDS for seconds, note in self._notes()]
        return self._own_is_live and max(stalled, default=0.0) <= self.settings.stall_seconds

    @property
    def _own_is_live(self) -> bool:
        return self.engine.stalled_seconds() <= self.settings.stall_seconds

    def render_metrics(self) -> bytes:
        """The text exposition of this worker and all others."""
        self.metrics.drift_psi.clear()
        self.metrics.drift_limit.clear()
        for feature, drift in (self.classifier.drift() or {}).items():
            self.metrics.drift_psi.labels(feature).set(drift.psi)
            self.metrics.drift_limit.labels(feature).set(drift.limit)
        own = self.metrics.render()
        notes = [note.partition(b"\n")[2] for _, note in self._notes()]
        return merge([own, *notes]) if notes else own

    async def keep_posting(self) -> None:
        """Lets the other workers know how this one is, for as long as it runs."""
        while self.board is not None:
            self.board.write(b"%f\n" % self.engine.stalled_seconds() + self.metrics.render())
            await asyncio.sleep(PERIOD_SECONDS)

    def _notes(self) -> list[tuple[float, bytes]]:
        return self.board.others() if self.board else []

    def timeout_seconds(self, milliseconds: float | None) -> float:
        """The deadline of a request that asks for `milliseconds`, which can only shorten the operator's."""
        longest = self.settings.request_timeout_ms
        return min(milliseconds or longest, longest) / 1000

    def explainer(self, class_index: int | None) -> Explainer:
        """What answers an image with an explanation. Raises: BadParameterError when there is no such class."""
        n_classes = len(self.classifier.spec.labels)
        if class_index is not None and class_index >= n_classes:
            raise BadParameterError(f"class_index: the model has {n_classes} classes, so give 0 to {n_classes - 1}")
        return Explainer(self.classifier, class_index, self.settings.max_pixels)

    async def classify(
        self, images: Sequence[Source], receive: Receive, timeout_seconds: float, explainer: Explainer | None = None
    ) -> list[Outcome]:
        """One outcome per image, in order: an Answer or the exception that image ended with.

        Raises: OverloadedError, DrainingError, DeadlineExceededError for all of them; ClientDisconnect.
        """
        if self.cache is None or explainer:
            outcomes = await self._run(images, receive, timeout_seconds, explainer)
        else:
            outcomes = await self._recall_or_run(self.cache, images, receive, timeout_seconds)
        self.observe(images, outcomes)
        return outcomes

    async def _recall_or_run(
        self, cache: AnswerCache, images: Sequence[Source], receive: Receive, timeout_seconds: float
    ) -> list[Outcome]:
        classifier, found = self.classifier, [cache.find(image) for image in images]
        unknown = [image for image, (_, row) in zip(images, found, strict=True) if row is None]
        fresh = iter(await self._run(unknown, receive, timeout_seconds) if unknown else ())
        outcomes = [next(fresh) if row is None else Answer(classifier, row, 0.0, 0.0, 0.0, 0) for _, row in found]
        for (key, _), outcome in zip(found, outcomes, strict=True):
            if isinstance(outcome, Answer):
                cache.keep(key, outcome.probabilities)
        return outcomes

    async def _run(
        self, images: Sequence[Source], receive: Receive, timeout_seconds: float, explainer: Explainer | None = None
    ) -> list[Outcome]:
        passes = explainer.passes if explainer else 1
        futures = self.engine.submit(images, deadline=time.monotonic() + timeout_seconds, run=explainer, passes=passes)
        watch = _Watch(futures, receive, timeout_seconds)
        try:
            outcomes: list[Outcome] = [await _end(future) for future in futures]
        except asyncio.CancelledError:
            if watch.error is None:
                raise
            raise watch.error from None
        finally:
            watch.end()
        return outcomes

    def observe(self, images: Sequence[Source], outcomes: Sequence[Outcome]) -> None:
        """Counts what was answered."""
        for image, outcome in zip(images, outcomes, strict=True):
            if isinstance(outcome, Answer):
                [(best, probability)] = outcome.top(1)
                label = outcome.classifier.spec.labels[best] if best < MAX_LABELS else OTHER_LABEL
                self.metrics.prediction(label).inc()
                self.metrics.top_probability.observe(probability)
                if self.samples is not None:
                    self.samples.offer(image, outcome.probabilities, outcome.classifier.spec)

    def _describe(self) -> None:
        """Makes the cache of the model's answers, and fills the metric that names it."""
        self.cache = AnswerCache(self.settings.cache_bytes, self.metrics) if self.settings.cache_bytes else None
        spec = self.classifier.spec
        self.metrics.model_info.clear()
        self.metrics.model_info.labels(spec.name, spec.version, self.classifier.sha256, self.classifier.provider).set(1)


def _abandon() -> None:
    print("convserve: the model file computes without end, and cannot be loaded", file=sys.stderr, flush=True)
    os._exit(1)


def load_engine(settings: Settings, metrics: Metrics, asked: ModelChange, abandon: Callable[[], None] = lambda: None) -> Engine:
    """An engine for the configured model file, or for the one asked for beside it. Raises: ModelError, BadParameterError."""
    if asked.path and not asked.sha256:
        raise BadParameterError("path: give the file's sha256 too, which sha256sum prints")
    path = settings.model.parent / asked.path if asked.path else settings.model
    threads = max(1, (settings.threads or usable_threads()) // settings.workers)
    sha256 = asked.sha256 or settings.model_sha256
    classifier = Classifier.load(
        path, device=settings.device, threads_alone=threads, sha256=sha256, abandon=abandon, drift_window=settings.drift_window
    )
    return Engine(
        classifier,
        metrics,
        threads=1 if classifier.is_quick and not settings.threads else threads,
        max_batch_size=settings.max_batch_size or (QUICK_BATCH if classifier.is_quick else 4),
        max_wait_seconds=settings.max_wait_ms / 1000,
        max_queue_size=settings.max_queue_size,
        max_pixels=settings.max_pixels,
        shares_cores=settings.workers > 1,
    )


async def _end(future: asyncio.Future[Answer]) -> Outcome:
    try:
        return await future
    except Exception as error:
        return error


class _Watch:
    """Cancels a request's images when its time is up or its client leaves; `error` then says which.

    Nobody listens for the client in the first `UNWATCHED_SECONDS`: most are answered by then, and a task costs 6 µs.
    """

    def __init__(self, futures: Sequence[asyncio.Future[Answer]], receive: Receive, timeout_seconds: float) -> None:
        self.error: Exception | None = None
        self._futures = futures
        self._receive = receive
        self._timeout_seconds = timeout_seconds
        self._listener: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(min(timeout_seconds, UNWATCHED_SECONDS), self._look)

    def end(self) -> None:
        self._timer.cancel()
        if self._listener is not None:
            self._listener.cancel()
        for future in self._futures:
            if not future.cancel() and not future.cancelled():
                future.exception()  # seen, also if another image ended the request

    def _look(self) -> None:
        left = self._timeout_seconds - UNWATCHED_SECONDS
        if left <= 0:
            self._expire()
        else:
            self._timer = self._loop.call_later(left, self._expire)
            self._listener = self._loop.create_task(self._listen())

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._cancel(ClientDisconnect())

    def _expire(self) -> None:
        self._cancel(DeadlineExceededError(f"no answer within {self._timeout_seconds:g} s"))

    def _cancel(self, error: Exception) -> None:
        self.error = error
        for future in self._futures:
            future.cancel()
