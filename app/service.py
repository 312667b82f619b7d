"""The running service: the loaded model behind its engine, with what every endpoint needs.

`Service.classify` carries one request's images through the engine, under the request's deadline, while its client is there.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from app.body import BodyLimits
from app.classifier import Classifier
from app.engine import Answer, Engine
from app.errors import BadParameterError, DeadlineExceededError
from app.explain import Explainer
from app.keys import ApiKeys
from app.metrics import MAX_LABELS, OTHER_LABEL, Metrics
from app.settings import Settings
from app.threads import usable_threads

log = logging.getLogger("convserve")

Outcome = Answer | BaseException


@dataclass(slots=True)
class Service:
    """One model, its engine and its bounds. `draining` turns `/readyz` red while requests are still served."""

    settings: Settings
    classifier: Classifier
    engine: Engine
    metrics: Metrics
    limits: BodyLimits
    keys: ApiKeys | None
    started_at: float = field(default_factory=time.monotonic)
    draining: bool = False

    @classmethod
    def create(cls, settings: Settings) -> Self:
        """Loads and proves the model. Raises: ModelError, SettingsError."""
        keys = ApiKeys.read(settings.api_keys_file) if settings.api_keys_file else None
        classifier = Classifier.load(settings.model, device=settings.device)
        metrics = Metrics()
        engine = Engine(
            classifier,
            metrics,
            threads=settings.threads or usable_threads(),
            max_batch_size=settings.max_batch_size,
            max_wait_seconds=settings.max_wait_ms / 1000,
            max_queue_size=settings.max_queue_size,
            max_pixels=settings.max_pixels,
        )
        max_images = min(settings.max_images_per_request, settings.max_queue_size)  # more would be refused for ever
        limits = BodyLimits(settings.max_body_bytes, settings.body_timeout_ms / 1000, max_images)
        service = cls(settings, classifier, engine, metrics, limits, keys)
        service._describe()
        return service

    @property
    def status(self) -> Literal["ok", "draining", "stalled"]:
        """ok, draining or stalled."""
        if self.draining:
            return "draining"
        return "ok" if self.is_live else "stalled"

    @property
    def is_live(self) -> bool:
        """The engine makes progress."""
        return self.engine.stalled_seconds() <= self.settings.stall_seconds

    def explainer(self, class_index: int | None) -> Explainer:
        """What answers an image with an explanation. Raises: BadParameterError when there is no such class."""
        n_classes = len(self.classifier.spec.labels)
        if class_index is not None and class_index >= n_classes:
            raise BadParameterError(f"class_index: the model has {n_classes} classes, so give 0 to {n_classes - 1}")
        return Explainer(self.classifier, class_index, self.settings.max_pixels)

    async def classify(
        self, images: Sequence[bytes], receive: Receive, timeout_seconds: float, explainer: Explainer | None = None
    ) -> list[Outcome]:
        """One outcome per encoded image, in order: an Answer or the exception that image ended with.

        Raises: OverloadedError, DrainingError, DeadlineExceededError for all of them; ClientDisconnect.
        """
        passes = explainer.passes if explainer else 1
        futures = self.engine.submit(images, deadline=time.monotonic() + timeout_seconds, run=explainer, passes=passes)
        everything = asyncio.gather(*futures, return_exceptions=True)
        watch = asyncio.create_task(_cancel_when_gone(receive, everything))
        try:
            async with asyncio.timeout(timeout_seconds):
                outcomes = await everything
        except TimeoutError as error:
            raise DeadlineExceededError(f"no answer within {timeout_seconds:g} s") from error
        except asyncio.CancelledError as error:
            if watch.done():
                raise ClientDisconnect from error
            raise
        finally:
            watch.cancel()
        self._observe(outcomes)
        return outcomes

    def _observe(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, Answer):
                best = int(outcome.probabilities.argmax())
                label = self.classifier.spec.labels[best] if best < MAX_LABELS else OTHER_LABEL
                self.metrics.predictions.labels(label).inc()
                self.metrics.top_probability.observe(float(outcome.probabilities[best]))

    def _describe(self) -> None:
        """Fills the metrics that read the service's state when scraped, and the one that names the model."""
        spec = self.classifier.spec
        self.metrics.model_info.labels(spec.name, spec.version, self.classifier.sha256, self.classifier.provider).set(1)
        self.metrics.queue_depth.set_function(lambda: self.engine.queue_depth)
        self.metrics.estimated_wait_seconds.set_function(self.engine.estimated_wait_seconds)
        self.metrics.ready.set_function(lambda: float(self.status == "ok"))


async def _cancel_when_gone(receive: Receive, everything: asyncio.Future[list[Outcome]]) -> None:
    """Waits for the client to leave, and cancels what is not yet running for it."""
    while (await receive())["type"] != "http.disconnect":
        pass
    everything.cancel()
