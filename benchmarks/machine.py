"""What a table of results says of the machine."""

import platform
from pathlib import Path


def processor() -> str:
    """The processor's name, where Linux tells it, else its kind."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())
