"""What int8 gains and costs `models/imagenet.onnx` on this machine: the figures of docs/int8.md.

    python -m benchmarks.int8 FOLDER [--model models/imagenet.onnx]

FOLDER is the one that `python -m benchmarks.imagenet` took; photographs that it calibrated with are left out. Run it on a
machine that does nothing else.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from app.classifier import Classifier
from benchmarks.imagenet import read_photographs, write_fp32
from training.evaluate import classify_all
from training.gate import compare_speed, judge

THREADS = (1, 2)
ROUNDS = 101


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.int8", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--model", type=Path, default=Path("models/imagenet.onnx"), metavar="FILE")
    options = parser.parse_args()
    labels, _, photographs = read_photographs(options.folder)
    with tempfile.TemporaryDirectory() as temporary:
        fp32 = Path(temporary) / "fp32.onnx"
        write_fp32(fp32, labels, photographs)
        files = (fp32, options.model)
        speeds = {n: compare_speed(*files, photographs.pixels[0], threads=n, rounds=ROUNDS) for n in THREADS}
        before, after = (classify_all(Classifier.load(file, threads=2), photographs.pixels) for file in files)
        sizes = (files[0].stat().st_size, files[1].stat().st_size)
    print(judge(before, after, photographs.classes, speed=speeds[1], sizes=sizes))
    for n, speed in speeds.items():
        print(f"{n} threads    {speed}")
    print(f"KL           {np.sum(before * np.log(before.clip(1e-9) / after.clip(1e-9)), axis=1).mean():.4f} nats")


if __name__ == "__main__":
    main()
