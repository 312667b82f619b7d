"""What the scripts beside this file share: the command line, and where benchmarks/training_peers.py looks for the answers."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


def main(train: Callable[..., tuple]) -> None:
    """`train` trains, writes its model as `out/model*`, and only then answers: probabilities, files, labels, versions.

    Its task: validate on `root/val`, or on a tenth of `root/train` where there is none; answer the images of `root/scored`;
    call `end_epoch` after each epoch's validation.
    """
    parser = argparse.ArgumentParser()
    for name, kind in (("case", str), ("root", Path), ("scored", str), ("out", Path), ("weights", Path)):
        parser.add_argument(name, type=kind)
    for name in ("--epochs", "--seed"):
        parser.add_argument(name, type=int, required=True)
    task, ends = parser.parse_args(), []
    task.end_epoch = lambda *_: ends.append(time.time())
    probabilities, files, labels, versions = train(task)
    np.save(task.out / "probabilities.npy", probabilities)
    told = {"files": [str(file) for file in files], "labels": list(labels), "versions": versions, "epoch_ends": ends}
    (task.out / "told.json").write_text(json.dumps(told))
