"""`python -m app`, but a session that ends its thread on one image, and never returns from another."""

import sys
import threading
from typing import Any

import app.service
from app.classifier import Classifier
from app.serve import main


class FragileClassifier(Classifier):
    """Looks at the first pixel of each image."""

    is_instant = False  # what hangs, hangs in a thread

    def __call__(self, batch: Any, *, alone: bool = False) -> Any:
        """Dies at red 1, hangs at red 2."""
        reds = set(batch[:, 0, 0, 0].tolist())
        if 1 in reds:
            raise SystemExit  # no Exception: nothing in the engine catches it
        if 2 in reds:
            threading.Event().wait()
        return super().__call__(batch, alone=alone)


if __name__ == "__main__":
    app.service.Classifier = FragileClassifier  # type: ignore[misc]
    sys.exit(main([], {}))
