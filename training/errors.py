"""The errors of training: one sentence for the person at the terminal, and the exit code of the command.

TrainingError            1, the work failed
└── InputError           2, what was given cannot be used
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class TrainingError(Exception):
    """The work could not be done; `str(error)` says why and what to do."""

    exit_code: ClassVar[int] = 1


class InputError(TrainingError):
    """A folder, file or option that was given cannot be used."""

    exit_code = 2


@contextmanager
def refusing(sentence: str) -> Iterator[None]:
    """Makes an InputError of whatever goes wrong inside: the libraries' own exceptions share no base but Exception."""
    try:
        yield
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"{sentence}: {reason}") from error
