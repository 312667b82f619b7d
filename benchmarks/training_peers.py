"""Our training against fastai's and Keras's: the same images, minutes and machine, one after the other.

    python -m benchmarks.training_peers CASE DATA --peers PYTHON --work FOLDER

CASE is photos, mnist or cifar10; DATA the data set's folder; PYTHON the interpreter of an environment with
benchmarks/peers/requirements.txt. Models, answers and logs go to FOLDER, a table to stdout. The machine should do nothing else.

The minutes count from the start of the process until its model is on the disk. Ours plans them itself. A peer is told how
many epochs: as many whole ones as fit, by a trial of two that costs it nothing. Nobody trains on the images that are scored.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import processor
from training.backbones import load_backbone
from training.evaluate import classify_all, open_model, read_samples
from training.figures import Array, Scores, score

PEERS = {"fastai": "fastai_train.py", "Keras": "keras_train.py"}
TRIAL_EPOCHS = 2  # the first is slow
MARGIN = 0.02  # of the time: not all epochs are equally fast
# Our recipe, minutes, the folder that is scored.
CASES = {"photos": ("photos", 1, "val"), "mnist": ("digits", 4, "test"), "cifar10": ("residual", 20, "test")}


@dataclass(frozen=True)
class Result:
    """One system's figures; `seconds` until the model was on the disk."""

    scores: Scores
    files: frozenset[str]
    seconds: float
    about: str


def main() -> None:
    """Trains, scores and prints."""
    options = _parser().parse_args()
    recipe, minutes, options.scored = CASES[options.case]
    options.recipe, options.minutes = options.recipe or recipe, options.minutes or minutes
    options.work.mkdir(parents=True)
    if options.blind:
        options.data, options.scored = _hide_val(options.data, options.work), "test"
    torch.save(load_backbone().network.state_dict(), options.work / "weights.pth")
    results = {"ours": run_ours(options)} | {name: run_peer(options, script) for name, script in PEERS.items()}
    if len({result.files for result in results.values()}) > 1:
        sys.exit("error: not all answered the same images")
    print(format_table(results, f"{options.data.name}/{options.scored}, {options.minutes:g} minutes"))


def run_ours(options: argparse.Namespace) -> Result:
    """Trains by our command, and lets the model file answer."""
    out = options.work / "ours"
    model = out / "model.onnx"
    command = [sys.executable, "-m", "training", "train", options.data, "--recipe", options.recipe, "--out", model]
    started = _run([*command, "--minutes", options.minutes, "--seed", options.seed], out)
    classifier = open_model(model)
    samples = read_samples(options.data, "validation" if options.scored == "val" else "test", classifier.spec)
    about = f"{classifier.spec.provenance.recipe}, torch {torch.__version__}"
    probabilities = classify_all(classifier, samples.pixels)
    return _judge(probabilities, samples.paths, classifier.spec.labels, model.stat().st_mtime - started, about)


def run_peer(options: argparse.Namespace, script: str) -> Result:
    """Trains by a peer's script, for as many epochs as fit."""
    # It imports what it needs, so that the trial does not read it from a cold disk.
    subprocess.run([options.peers, _script(script), "--help"], stdout=subprocess.DEVNULL, check=True)
    trial, ends = _run_epochs(options, script, TRIAL_EPOCHS)
    epoch = ends[-1] - ends[-2]
    rest = trial.seconds - TRIAL_EPOCHS * epoch
    epochs = max(1, int((60 * options.minutes * (1 - MARGIN) - rest) / epoch))
    print(f"{script}: {rest:.1f} s and {epoch:.1f} s an epoch: {epochs} epochs", file=sys.stderr)
    return _run_epochs(options, script, epochs)[0]


def format_table(results: dict[str, Result], title: str) -> str:
    """One line for each system."""
    ours = results["ours"].scores
    lines = [f"{title}, {ours.n:,} images; {os.cpu_count()} cores, {processor()}", ""]
    lines += ["| | accuracy (95 %) | errors | errors ÷ ours | ECE | log loss | seconds | |", f"|{'---|' * 8}"]
    for name, result in results.items():
        one, (low, high) = result.scores, result.scores.interval
        ratio = (one.n - one.n_correct) / max(ours.n - ours.n_correct, 1)
        right = f"{one.accuracy:.2%} ({low:.2%} – {high:.2%}) | {one.n - one.n_correct:,} | {ratio:.2f}"
        lines.append(f"| {name} | {right} | {one.ece:.4f} | {one.log_loss:.4f} | {result.seconds:.0f} | {result.about} |")
    return "\n".join(lines)


def _run_epochs(options: argparse.Namespace, script: str, epochs: int) -> tuple[Result, list[float]]:
    """Also tells when each epoch ended."""
    out = options.work / f"{Path(script).stem}-{epochs}"
    command = [options.peers, _script(script), options.case, options.data, options.scored, out, options.work / "weights.pth"]
    started = _run([*command, "--epochs", epochs, "--seed", options.seed], out)
    told = json.loads((out / "told.json").read_text())
    seconds = max(file.stat().st_mtime for file in out.glob("model*")) - started
    about = f"{epochs} epochs, {told['versions']}"
    return _judge(np.load(out / "probabilities.npy"), told["files"], told["labels"], seconds, about), told["epoch_ends"]


def _script(name: str) -> Path:
    return Path(__file__).with_name("peers") / name


def _judge(probabilities: Array, paths: Sequence[str | Path], labels: Sequence[str], seconds: float, about: str) -> Result:
    """Against the names of the folders that the files are in."""
    ends = [Path(path).parts[-2:] for path in paths]
    truth = np.array([labels.index(label) for label, _ in ends])
    return Result(score(probabilities, truth), frozenset("/".join(end) for end in ends), seconds, about)


def _run(command: Sequence[object], out: Path) -> float:
    """Runs to the end; returns when it started."""
    out.mkdir(exist_ok=True)
    started = time.time()
    with (out / "log.txt").open("w") as log:
        done = subprocess.run([str(word) for word in command], stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        sys.exit(f"error: {command[1]} failed: see {log.name}")
    return started


def _hide_val(data: Path, work: Path) -> Path:
    """The same data set with its `val` as `test`."""
    root = work / data.name
    root.mkdir()
    (root / "train").symlink_to((data / "train").resolve())
    (root / "test").symlink_to((data / "val").resolve())
    return root


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("data", type=Path)
    parser.add_argument("--peers", type=Path, required=True, metavar="PYTHON")
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER", help="a new one")
    parser.add_argument("--minutes", type=float, help="default: 1, 4 or 20")
    parser.add_argument("--recipe", help="ours; default: photos, digits or residual")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--blind", action="store_true", help="score val and show it to nobody, not even for validation")
    return parser


if __name__ == "__main__":
    main()
