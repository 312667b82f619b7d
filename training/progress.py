"""What a person sees while a model is trained: a bar on a terminal, one line per epoch anywhere. All on stderr."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from training.run_report import Epoch


def say(line: str) -> None:
    """One line on stderr."""
    print(line, file=sys.stderr, flush=True)


class Progress:
    """A context manager around the epochs of one training."""

    def __init__(self, epochs: int, steps: int) -> None:
        self._console = Console(stderr=True, highlight=False)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[loss]}"), TimeRemainingColumn())
        self._bar = Bar(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("training", total=epochs * steps, loss="")
        self._epochs, self._steps = epochs, steps
        self._begin_epoch()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._bar.stop()

    def step(self, loss: float, n_images: int) -> None:
        """One batch of `n_images` is done."""
        self._n_images += n_images
        self._bar.update(self._task, advance=1, loss=f"loss {loss:.3f}")

    def epoch(self, done: Epoch) -> None:
        """An epoch is done and validated."""
        rate = self._n_images / (time.perf_counter() - self._started)
        self._console.print(
            f"epoch {done.number:>3}/{self._epochs}  loss {done.train_loss:.4f}  "
            f"validation: loss {done.validation_loss:.4f}, accuracy {done.accuracy:.2%}  {rate:,.0f} images/s",
            soft_wrap=True,
        )
        self._bar.update(self._task, completed=done.number * self._steps, description=f"epoch {done.number}/{self._epochs}")
        self._begin_epoch()

    def expect(self, epochs: int) -> None:
        """The plan is now of `epochs` in all."""
        self._epochs = epochs
        self._bar.update(self._task, total=epochs * self._steps)

    def _begin_epoch(self) -> None:
        self._n_images = 0
        self._started = time.perf_counter()
