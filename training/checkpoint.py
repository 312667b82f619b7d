"""Where a training stands after an epoch, on disk beside the model file, so that an interrupted one goes on exactly.

No random state is kept: every epoch seeds itself from (seed, epoch).
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.errors import InputError
from training.files import write_whole


@dataclass(frozen=True)
class Checkpoint:
    """The file of one training. `settings` is what must not change between its sessions."""

    path: Path
    settings: str

    def save(self, state: dict[str, Any]) -> None:
        """Replaces the file in one step, so that a cut or a full disk never leaves half of one. Raises: TrainingError."""
        content = io.BytesIO()
        torch.save({**state, "settings": self.settings}, content)
        write_whole(self.path, content.getvalue())

    def load(self) -> dict[str, Any] | None:
        """The state of the last whole epoch, or None where there is none.

        Raises: InputError when it belongs to other settings or cannot be read.
        """
        if not self.path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.path, weights_only=True)
            settings = state["settings"]
        except Exception as error:  # torch's reader raises almost anything on a damaged file
            raise InputError(f"{self.path} cannot be read: start over with --fresh") from error
        if settings != self.settings:
            raise InputError(
                f"{self.path} is of a training with other settings, data or versions: "
                "repeat that command to go on with it, or start over with --fresh"
            )
        return state

    def remove(self) -> None:
        """Removes the file, if there is one."""
        self.path.unlink(missing_ok=True)
