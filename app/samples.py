"""Keeps images for labelling: those the model is not sure of, and a share of the others. Off unless a folder is named.

answer ──offer──▶ bounded queue ──thread──▶ FOLDER/<label, or unsure>/<label>_<probability>_<hash>.<format>
"""

import hashlib
import logging
import os
import queue
import random
import re
import threading
import time

from app.classifier import Probabilities
from app.engine import Source
from app.errors import SettingsError
from app.image import sniff
from app.metrics import Metrics
from app.settings import Settings
from app.spec import ModelSpec

UNSURE = "unsure"  # the folder of answers that are not accepted
MAX_QUEUE_SIZE = 4  # images, each as large as a body may be
BLOCK_BYTES = 4096  # the least that a file takes on disk
RESCAN_SECONDS = 60  # when a full folder is looked at again

# What they are named: by their prediction, and by their content, so that what comes again is kept once.
NAME = re.compile(r"(?P<label>.+)_(?P<probability>[01]\.\d{3})_(?P<digest>[0-9a-f]{32})\.\w+")

log = logging.getLogger("convserve")


class SampleFolder:
    """Never blocks or fails a request: what cannot be kept is counted, and the first failure logged."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        assert settings.sample_dir is not None
        self._settings, self._root, self._count = settings, settings.sample_dir, metrics.samples.labels
        self._queue: queue.Queue[tuple[bytes, str, float, bool]] = queue.Queue(MAX_QUEUE_SIZE)
        self._next_at = self._scan_at = time.monotonic()
        self._has_failed = False
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"CONVSERVE_SAMPLE_DIR={self._root}: {error.strerror}") from error
        threading.Thread(target=self._work, name="samples", daemon=True).start()

    def offer(self, image: Source, probabilities: Probabilities, spec: ModelSpec) -> None:
        """Keeps an encoded image if it is one of those to keep, and there is room and time for it."""
        best, settings, now = int(probabilities.argmax()), self._settings, time.monotonic()
        probability = float(probabilities[best])
        accepted = spec.accepts(probability)
        sure = accepted and probability >= settings.sample_below and random.random() >= settings.sample_share
        if sure or not isinstance(image, bytes):
            return
        if now < self._next_at:
            self._count("rate").inc()
            return
        self._next_at = now + 60 * settings.workers / settings.sample_per_minute
        try:
            self._queue.put_nowait((image, spec.labels[best], probability, accepted))
        except queue.Full:
            self._count("busy").inc()

    def _work(self) -> None:
        while True:
            sample = self._queue.get()
            try:
                self._count(self._store(*sample)).inc()
            except Exception as error:  # whatever it is, the next may be kept
                self._count("failed").inc()
                if not self._has_failed:
                    log.error("images cannot be kept in %s: %s", self._root, error)
                self._has_failed = True

    def _store(self, data: bytes, label: str, probability: float, accepted: bool) -> str:
        """Writes the image as it was sent, for its owner alone, unless it is there already; returns what came of it."""
        if time.monotonic() >= self._scan_at:
            files = [path for path in self._root.rglob("*") if path.is_file()]
            self._known = {path.stem[-32:] for path in files}
            free = self._settings.sample_max_bytes - sum(max(path.stat().st_size, BLOCK_BYTES) for path in files)
            self._bytes_left, self._scan_at = free / self._settings.workers, float("inf")
        digest = hashlib.sha256(data).hexdigest()[:32]
        if digest in self._known:
            return "known"
        if (size := max(len(data), BLOCK_BYTES)) > self._bytes_left:
            self._scan_at = min(self._scan_at, time.monotonic() + RESCAN_SECONDS)
            return "full"
        name = re.sub(r"[/\0]|^\.", "_", label)
        folder = self._root / (name if accepted else UNSURE)
        folder.mkdir(mode=0o700, exist_ok=True)
        beside = folder / f".{digest}.{os.getpid()}"
        try:
            beside.touch(0o600)
            beside.write_bytes(data)
            beside.replace(folder / f"{name[:40]}_{probability:.3f}_{digest}.{sniff(data).lower()}")
        finally:
            beside.unlink(missing_ok=True)
        self._known.add(digest)
        self._bytes_left -= size
        return "stored"
