"""Another model while the service runs: loaded beside the one that serves, proven, in shadow if asked, then in its place.

What cannot be loaded or proven, or disagrees in shadow, changes nothing: it is logged, counted and raised.
"""

import asyncio
import logging
import random
from contextlib import suppress

import numpy as np

from app.board import PERIOD_SECONDS
from app.classifier import Classifier
from app.engine import Answer, Source
from app.errors import ModelError
from app.image import decode, fit
from app.memory import give_back_memory
from app.schemas import ModelChange
from app.service import Service, load_engine

log = logging.getLogger("convserve")


async def follow(service: Service) -> None:
    """Changes the model when SIGHUP says so, and to what another worker decided on: to each once, also if it is refused."""
    while True:
        await asyncio.sleep(PERIOD_SECONDS)
        with suppress(Exception):  # it is in the log
            if service.told.is_set():
                service.told.clear()
                await change(service, ModelChange())
            elif service.board is not None and (decision := service.board.decision()) != service.decision:
                try:
                    await change(service, ModelChange.model_validate_json(decision), for_all=False)
                finally:
                    service.decision = decision


async def change(service: Service, asked: ModelChange, *, for_all: bool = True) -> None:
    """Returns when the other model serves; all other workers then follow. Raises: ModelError, BadParameterError."""
    async with service.changing:
        try:
            engine = await asyncio.to_thread(load_engine, service.settings, service.metrics, asked)
            model = engine.classifier
            if asked.shadow:
                await _run_in_shadow(service, model, asked)
            await service.serve(engine)
            await asyncio.to_thread(give_back_memory)
        except Exception as error:
            service.metrics.model_loads.labels("refused").inc()
            log.error("the model stays as it is: %s", error)
            raise
        service.metrics.model_loads.labels("changed").inc()
        log.info("the model is %s %s now, SHA-256 %s", model.spec.name, model.spec.version, model.sha256)
        if for_all and service.board is not None:
            service.decision = ModelChange(path=asked.path, sha256=model.sha256).model_dump_json().encode()
            service.board.write(service.decision, decision=True)


async def _run_in_shadow(service: Service, model: Classifier, asked: ModelChange) -> None:
    """Lets the model answer a share of what is answered, one image at a time: those who wait come first. Raises: ModelError."""
    answered: asyncio.Queue[tuple[bytes, Answer]] = asyncio.Queue(1)
    compared = agreed = 0

    def see(image: Source, answer: Answer) -> None:
        if isinstance(image, bytes) and answered.empty() and random.random() < asked.shadow:
            answered.put_nowait((image, answer))

    service.engine.shadow = see
    try:
        async with asyncio.timeout(asked.seconds):
            while not service.draining:
                difference, same = await asyncio.to_thread(_compare, model, *await answered.get())
                service.metrics.shadow_difference.labels("same" if same else "other").observe(difference)
                compared, agreed = compared + 1, agreed + same
    except TimeoutError:
        pass
    finally:
        service.engine.shadow = None
    if agreed < asked.agreement * compared:
        raise ModelError(f"in shadow {agreed} of {compared} images got the same label: mend it, or ask for less agreement")


def _compare(model: Classifier, image: bytes, answer: Answer) -> tuple[float, bool]:
    """The largest difference of a label's probability, and whether the top label is the same."""
    try:
        pixels = fit(decode(image, model.spec.input, max_pixels=2**62), model.spec.input)
        ours = dict(zip(model.spec.labels, model(pixels[np.newaxis])[0].tolist(), strict=True))
    except Exception:
        log.exception("the model in shadow fails on an image that the serving one answered")
        return 1.0, False
    theirs = dict(zip(answer.classifier.spec.labels, answer.probabilities.tolist(), strict=True))
    difference = max(abs(theirs.get(label, 0.0) - ours.get(label, 0.0)) for label in theirs | ours)
    return difference, max(theirs, key=theirs.__getitem__) == max(ours, key=ours.__getitem__)
