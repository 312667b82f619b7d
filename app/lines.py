"""What `python -m app predict` writes: a JSON or CSV line for each image, and on standard error how far it is."""

import csv
import io
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import orjson

from app.client import Outcome, RequestError
from app.errors import ConvServeError


@dataclass(frozen=True, slots=True)
class Form:
    """How an outcome is written, and read again to resume."""

    is_csv: bool
    top_k: int
    model: str  # name and version, in every line

    @property
    def header(self) -> bytes:
        """Of the CSV."""
        best = [f"{word}_{rank}" for rank in range(1, self.top_k + 1) for word in ("label", "probability")]
        return _csv("path", "model", "accepted", "error", *best)

    def line(self, path: str, outcome: Outcome) -> bytes:
        """One line, whatever the path, the labels and the error hold."""
        head = {"path": one_line(path), "model": one_line(self.model)}
        if isinstance(outcome, RequestError):
            error = one_line(str(outcome))
            return _csv(*head.values(), "", error) if self.is_csv else _json({**head, "error": error})
        if not self.is_csv:
            return _json({**head, "accepted": outcome.accepted, "predictions": list(map(asdict, outcome.predictions))})
        best = [field for one in outcome.predictions for field in (one_line(one.label), one.probability)]
        return _csv(*head.values(), str(outcome.accepted).lower(), "", *best)

    def path(self, line: bytes, number: int) -> str | None:
        """The path of a line written as the `number`-th; None of the header.

        Raises: ConvServeError when it is not of this command, or not of this model.
        """
        if self.is_csv and number == 1 and line == self.header:
            return None
        try:
            fields = next(csv.DictReader([line.decode()], ("path", "model"))) if self.is_csv else orjson.loads(line)
            path, model = str(fields["path"]), str(fields["model"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConvServeError(f"line {number} is not of this command: give another --out") from error
        if model != one_line(self.model):
            raise ConvServeError(f"line {number} is of {model}, not of {self.model}: give another --out")
        return path


class Progress:
    """Counts, and says so every half second on a terminal, every ten seconds elsewhere. `total_of` runs beside, in a thread."""

    def __init__(self, total_of: Callable[[], int], before: int) -> None:
        self.failed = 0
        self._done = self._before = before
        self._total = 0  # not known yet
        self._begun = self._said = time.monotonic()
        self._is_terminal = sys.stderr.isatty()
        threading.Thread(target=lambda: setattr(self, "_total", total_of()), daemon=True).start()

    def add(self, images: int, failed: int) -> None:
        """More are done."""
        self._done += images
        self.failed += failed
        if time.monotonic() - self._said >= (0.5 if self._is_terminal else 10):
            self.say("" if self._is_terminal else "\n")

    def say(self, end: str = "\n") -> None:
        """How far it is."""
        self._said = time.monotonic()
        rate = (self._done - self._before) / max(self._said - self._begun, 1e-6)
        left = max(0, self._total - self._done)
        of = f" of {self._total:,}, {left / rate:,.0f} s left" if self._total and rate else ""
        start = "\r\x1b[K" if self._is_terminal else ""
        print(f"{start}{self._done:,} images{of}, {self.failed:,} failed, {rate:,.0f}/s", end=end, file=sys.stderr, flush=True)


def one_line(text: str) -> str:
    """Text that fits in one line of UTF-8: line breaks, and bytes of a file name that are not UTF-8, as escapes."""
    return text.encode(errors="backslashreplace").decode().replace("\r", "\\r").replace("\n", "\\n")


def _json(fields: dict[str, object]) -> bytes:
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


def _csv(*fields: object) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(fields)
    return text.getvalue().encode()
