"""`python -m app` whose wall clock runs ahead, or behind, by the seconds in the file that SKEW_FILE names."""

import os
import sys
import time
from pathlib import Path

from app.serve import main

if __name__ == "__main__":
    file, true_time = Path(os.environ["SKEW_FILE"]), time.time
    time.time = lambda: true_time() + float(file.read_text())
    sys.exit(main([], {}))
