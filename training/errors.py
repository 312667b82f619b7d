"""The errors of training: one sentence for the person at the terminal, and the exit code of the command.

TrainingError            1, the work failed
└── InputError           2, what was given cannot be used
"""

from typing import ClassVar


class TrainingError(Exception):
    """The work could not be done; `str(error)` says why and what to do."""

    exit_code: ClassVar[int] = 1


class InputError(TrainingError):
    """A folder, file or option that was given cannot be used."""

    exit_code = 2
