"""Answers to images seen before, by the content of their bytes: product pictures come again and again.

The probabilities of all classes are kept, so that a request's parameters, which only choose among them, need no key.
"""

import hashlib
from collections import OrderedDict

from app.classifier import Probabilities
from app.image import Pixels
from app.metrics import Metrics

ENTRY_BYTES = 300  # key, array object and places in the dictionary, beside the numbers: 252 on CPython 3.11


class AnswerCache:
    """Keeps at most `max_bytes`; what was not asked for longest goes first."""

    def __init__(self, max_bytes: int, metrics: Metrics) -> None:
        self._max_bytes = max_bytes
        self._rows: OrderedDict[bytes, Probabilities] = OrderedDict()
        self._bytes = 0
        self._hits, self._misses = (metrics.cache_lookups.labels(result) for result in ("hit", "miss"))
        metrics.cache_bytes.set_function(lambda: self._bytes)

    def find(self, image: bytes | Pixels) -> tuple[bytes, Probabilities | None]:
        """The key of an image, and the probabilities kept under it.

        Pixels have keys of their own: else they could be made to answer for an encoded image of the same bytes.
        """
        key = hashlib.sha256(image).digest() if isinstance(image, bytes) else hashlib.sha256(image.data).digest() + b"pixels"
        row = self._rows.get(key)
        if row is None:
            self._misses.inc()
        else:
            self._hits.inc()
            self._rows.move_to_end(key)
        return key, row

    def keep(self, key: bytes, probabilities: Probabilities) -> None:
        """Keeps what an image came to."""
        if key not in self._rows:
            self._rows[key] = probabilities.copy()  # of its own, not a part of its batch
            self._bytes += probabilities.nbytes + ENTRY_BYTES
        while self._bytes > self._max_bytes:
            self._bytes -= self._rows.popitem(last=False)[1].nbytes + ENTRY_BYTES
