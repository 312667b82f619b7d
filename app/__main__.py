"""`python -m app`: serves, or runs the command that is named first."""

import gc
import sys
from importlib import import_module

# `main(arguments)` of app/NAME.py, imported only when asked for, so that serving starts no later.
COMMANDS = {
    "bench": "measures what a service can bear, and says which settings that asks for",
    "predict": "classifies files and folders, by a model file or a running service",
}


def main() -> int:
    """Returns the exit code."""
    match sys.argv[1:]:
        case [name, *arguments] if name in COMMANDS:
            return int(import_module(f"app.{name}").main(arguments))
    gc.disable()  # until all is imported: looking for garbage meanwhile takes a tenth of the start and finds none
    return int(import_module("app.serve").main(sys.argv[1:], COMMANDS))


if __name__ == "__main__":
    sys.exit(main())
