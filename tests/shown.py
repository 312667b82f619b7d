"""Whether an answer is the one that a page or the OpenAPI document shows."""

import re
from typing import Any

import pytest

ANYTHING = "…"
TOLERANCE = 2e-3  # processors round differently


def is_shown(given: Any, shown: Any) -> bool:
    """Equal but for the last digits of numbers; `…` in a text stands for anything."""
    if shown == ANYTHING:
        return True
    if isinstance(shown, dict):
        return (
            isinstance(given, dict)
            and given.keys() == shown.keys()
            and all(is_shown(given[key], value) for key, value in shown.items())
        )
    if isinstance(shown, list):
        return isinstance(given, list) and len(given) == len(shown) and all(map(is_shown, given, shown))
    if isinstance(shown, float) and isinstance(given, float | int):
        return bool(given == pytest.approx(shown, abs=TOLERANCE))
    if isinstance(shown, str) and isinstance(given, str):
        return re.fullmatch(re.escape(shown).replace(ANYTHING, ".*"), given, re.DOTALL) is not None
    return bool(given == shown)
