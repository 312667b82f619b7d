"""The command line, `python -m training audit | train | evaluate | adopt | quantize`. Torch is imported by `train` alone."""

import argparse
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from app.errors import ConvServeError
from training.audit import format_audit, run_audit
from training.errors import InputError, TrainingError
from training.evaluate import evaluate_file
from training.files import write_bytes, write_whole
from training.recipe_names import RECIPE_NAMES

MAX_SKIPPED = 20

DESCRIPTION = """\
Turns a folder of labelled images into one model file, and measures model files.

A data set is a folder with one folder per class, named as the class is called:
    DATA/cat/1.jpg, DATA/dog/2.png, ...
or such folders in parts: DATA/train/cat/1.jpg, DATA/test/cat/2.jpg, and perhaps DATA/val."""

TRAIN = """\
Trains a classifier on the images of DATA and writes it as one ONNX file that a server can load: weights, labels,
how to prepare an image, measured figures, and images to prove itself with. The images of DATA/test are only looked
at once, at the end. An interrupted training goes on where it was when the same command is given again.

example: python -m training train mnist --recipe digits --out models/digits.onnx"""

AUDIT = """\
Looks at every file of DATA and says what is wrong: files that cannot be read, animations, tiny images, the same picture
twice, in train and test, or under two labels, classes that are too small. Changes nothing. Does not need torch.

example: python -m training audit mnist --strict"""

DATA = "folder with one folder of images (or videos) per class, a .zip of it, or a CSV with path,label[,split][,group]"

EVALUATE = """\
Measures a model file on labelled images, exactly as it is served: accuracy with its interval, precision, recall and
F1 of each class, calibration (ECE), the commonest mistakes. Does not need torch.

example: python -m training evaluate models/digits.onnx mnist --split test --json figures.json"""

ADOPT = """\
Makes a model file of an ONNX classifier of any framework (docs/adopt.md). What the graph tells need not be given.

example: python -m training adopt lenet.onnx --labels digits.txt --images some --input-range 0 1 --out models/lenet.onnx"""

REFERENCE = """\
Answers one part of the data set and puts into the model file what its images are like, so that a service can notice when
others come (docs/drift.md). The file proves itself anew before it is replaced.
"""
LABEL = """\
Makes a page with the images that a service kept because it was not sure of them, to label in a browser (docs/flywheel.md).
"""
QUANTIZE = """\
Makes a model file that computes in 8-bit integers, from a few training images of DATA without their labels. It is kept
only if it is as right on the validation images, within the gate, and measurably faster on this machine.

example: python -m training quantize models/digits.onnx mnist --out models/digits-int8.onnx"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0 done, 1 failed, 2 what was given cannot be used, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except ConvServeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader, such as head, has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 (so that the interpreter's last flush is quiet too)
        return 0
    except OSError as error:
        print(f"error: {error.filename or 'the output'}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on after the last whole epoch", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m training", description=DESCRIPTION, formatter_class=plain)
    commands = parser.add_subparsers(required=True, metavar="audit | train | evaluate | adopt | quantize | reference | label")

    def add(run: Callable[[argparse.Namespace], int], help_: str, description: str) -> argparse.ArgumentParser:
        name = run.__name__.strip("_")
        made = commands.add_parser(name, help=help_, description=description, formatter_class=plain)
        made.set_defaults(run=run)
        return made

    audit = add(_audit, "look for what is wrong with a data set", AUDIT)
    audit.add_argument("data", type=Path, metavar="DATA", help=DATA)
    audit.add_argument("--json", metavar="FILE", help="write the findings as JSON too; - writes only them, to stdout")
    audit.add_argument("--strict", action="store_true", help="exit with 1 when there are errors or warnings")
    train = add(_train, "train a model on a folder of images", TRAIN)
    train.add_argument("data", type=Path, metavar="DATA", help=DATA)
    default = RECIPE_NAMES[0]
    train.add_argument("--recipe", default=default, help=f"how to train: {', '.join(RECIPE_NAMES)} (default: {default})")
    train.add_argument("--seed", type=int, default=0, help="of the weights, the order and the parts (default: 0)")
    train.add_argument(
        "--network", help="instead of the recipe's: seed, residual, airbench, or the name of a network of timm's"
    )
    train.add_argument("--weights", help="of a timm network: hub (its own, downloaded; the default), pip, or a file")
    train.add_argument("--depth", type=int, help="of seed: stages; of residual: layers, one of 8, 14, 20, 26, 32, …")
    train.add_argument("--width", type=int, help="of seed and residual: channels of the first stage; the next ones double")
    train.add_argument("--mirrored", action="store_true", help="let a timm network look at the mirror image too: twice as slow")
    train.add_argument("--size", type=int, help="side of the network's images in pixels (default: the recipe's)")
    train.add_argument(
        "--resize", choices=("stretch", "crop", "pad"), help="how a picture comes to that (default: the recipe's)"
    )
    train.add_argument("--balanced", action="store_true", help="let every class count the same, however few its images")
    train.add_argument("--patience", type=int, help="stop after so many epochs without a better one")
    train.add_argument("--epochs", type=int, help="passes over the images (default: the recipe's)")
    train.add_argument("--minutes", type=float, help="instead: as many passes as fit into this time, all steps included")
    cores = max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    train.add_argument("--threads", type=int, default=cores, help="processor threads (default: all, shared by torchrun's)")
    train.add_argument("--write-split", type=Path, metavar="FILE", help="write the parts as a CSV that DATA can be next time")
    train.add_argument("--tensorboard", type=Path, metavar="DIR", help="write the figures of every epoch for TensorBoard too")
    train.add_argument("--mlflow", action="store_true", help="log the run to MLflow, where MLFLOW_TRACKING_URI says")
    train.add_argument("--fresh", action="store_true", help="start over, even where a training was interrupted")
    measure = add(_evaluate, "measure a model file", EVALUATE)
    refer = add(_reference, "let a model file notice drift (docs/drift.md)", REFERENCE)
    for command, part in ((measure, "test"), (refer, "validation")):
        command.add_argument("model", type=Path, metavar="MODEL", help="the model file (.onnx)")
        command.add_argument("data", type=Path, metavar="DATA", help=DATA)
        parts = ("train", "validation", "test", "all")
        command.add_argument("--split", choices=parts, default=part, help=f"which images of DATA (default: {part})")
    measure.add_argument("--json", metavar="FILE", help="write the figures as JSON too; - writes only them, to stdout")
    for command in (train, measure):
        command.add_argument("--other", type=Path, metavar="DATA", help="images of other things: how well are they told apart")
    adopt = add(_adopt, "make a model file of another framework's classifier", ADOPT)
    adopt.add_argument("model", type=Path, metavar="MODEL", help="the classifier, as ONNX")
    adopt.add_argument("--labels", type=Path, required=True, metavar="FILE", help="a label a line, in the order of the answers")
    adopt.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="up to three go into the file as proof")
    adopt.add_argument("--input-range", type=float, nargs=2, metavar="LEVEL", help="of black and white: 0 1, -1 1 or 0 255")
    adopt.add_argument("--mean", type=float, nargs="+", help="to subtract, in that range: one number, or one per channel")
    adopt.add_argument("--std", type=float, nargs="+", help="to divide by then")
    adopt.add_argument("--color", choices=("rgb", "bgr", "grey"), help="the order of the channels (default: rgb)")
    adopt.add_argument("--size", metavar="HxW", help="pixels, where the graph does not tell")
    adopt.add_argument("--layout", choices=("nchw", "nhwc"), help="where the channels are, where the graph does not tell")
    adopt.add_argument("--output", choices=("logits", "probabilities"), help="what it answers, where the numbers do not tell")
    adopt.add_argument("--resize", choices=("stretch", "crop", "pad", "ink"), default="stretch", help="(default: stretch)")
    adopt.add_argument("--crop", type=float, metavar="SHARE", help="resize by crop, keeping this share (224 of 256: 0.875)")
    adopt.add_argument("--filter", choices=("bilinear", "bicubic", "lanczos", "box"), default="bilinear", help="(bilinear)")
    label = add(_label, "make a page to label images on (docs/flywheel.md)", LABEL)
    label.add_argument("folder", type=Path, metavar="FOLDER", help="images in folders: by label, and unsure for none")
    shrink = add(_quantize, "make an int8 model file, if that is worth it", QUANTIZE)
    shrink.add_argument("model", type=Path, metavar="MODEL", help="the fp32 model file (.onnx)")
    shrink.add_argument("data", type=Path, metavar="DATA", help="the folder it was trained on")
    shrink.add_argument("--gate", type=float, default=0.5, help="points of accuracy it may lose (default: 0.5)")
    shrink.add_argument("--images", type=int, default=32, help="training images to calibrate with (default: 32)")
    shrink.add_argument("--json", metavar="FILE", help="write the verdict as JSON too")
    for command in (train, adopt, shrink):
        command.add_argument("--out", type=Path, required=True, metavar="FILE", help="the model file to write (.onnx)")
    for command in (train, adopt):
        command.add_argument("--name", help="the model's name (default: that of FILE)")
        command.add_argument("--version", help="the model's version (default: today, as 2026.1.31)")
    return parser


def _train(options: argparse.Namespace) -> int:
    started = time.monotonic()
    if options.minutes is not None and not 0 < options.minutes < math.inf:
        raise InputError(f"--minutes must be more than 0, not {options.minutes:g}")
    _at_least("--seed", options.seed, 0)
    _at_least("--threads", options.threads, 1)
    from training.recipes import Changes, find_recipe
    from training.track import track_mlflow, track_tensorboard
    from training.train import train_model

    recipe = find_recipe(options.recipe, Changes(**{name: getattr(options, name) for name in Changes.__dataclass_fields__}))
    name, version = _name_and_version(options)
    trackers = [track_tensorboard(options.tensorboard)] if options.tensorboard else []
    if options.mlflow:
        trackers.append(track_mlflow(name, {**recipe.settings(), "seed": options.seed, "data": options.data}))
    deadline = None if options.minutes is None else started + 60 * options.minutes
    for part in train_model(options, recipe, name, version, deadline, trackers):
        print(part, end="\n\n")
    print(f"wrote {options.out} ({options.out.stat().st_size / 1000:,.0f} kB)")
    return 0


def _name_and_version(options: argparse.Namespace) -> tuple[str, str]:
    name = options.name or options.out.stem
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name):
        raise InputError(f"{name!r} cannot be a model's name: take a-z, 0-9 and . _ - with --name")
    if options.version is not None and not 1 <= len(options.version) <= 64:
        raise InputError("--version must have 1 to 64 characters")
    now = datetime.now(UTC)
    return name, options.version or f"{now.year}.{now.month}.{now.day}"


def _audit(options: argparse.Namespace) -> int:
    audit = run_audit(options.data)
    print(audit.as_json() if options.json == "-" else format_audit(audit))
    if options.json not in (None, "-"):
        _write(Path(options.json), audit.as_json())
    return 1 if options.strict and not audit.is_clean else 0


def _evaluate(options: argparse.Namespace) -> int:
    evaluation = evaluate_file(options.model, options.data, options.split, options.other)
    if skipped := evaluation.samples.skipped:
        files = f"{len(skipped)} {'file' if len(skipped) == 1 else 'files'}"
        names = [f"  {one.file.path}: {one.reason}" for one in skipped[:MAX_SKIPPED]]
        more = [f"  … and {len(skipped) - MAX_SKIPPED} more"] * (len(skipped) > MAX_SKIPPED)
        print(f"skipped {files} that cannot be read as images:", *names, *more, sep="\n", file=sys.stderr)
    if options.json == "-":
        print(evaluation.as_json())
        return 0
    print(evaluation)
    if options.json:
        _write(Path(options.json), evaluation.as_json())
    return 0


def _adopt(options: argparse.Namespace) -> int:
    from training.adopt import adopt_model

    print(adopt_model(options, *_name_and_version(options)), f"wrote {options.out}", sep="\n")
    return 0


def _quantize(options: argparse.Namespace) -> int:
    from training.gate import quantize_file

    verdict = quantize_file(options.model, options.data, options.out, gate_points=options.gate, n_images=options.images)
    print(verdict)
    if options.json:
        _write(Path(options.json), verdict.as_json())
    return 0 if verdict.kept else 1


def _reference(options: argparse.Namespace) -> int:
    from training.reference import add_reference

    print(add_reference(options.model, options.data, options.split))
    return 0


def _label(options: argparse.Namespace) -> int:
    from training.labelling import write_page

    print(write_page(options.folder))
    return 0


def _write(path: Path, text: str) -> None:
    is_device = path.exists() and not path.is_file()
    (write_bytes if is_device else write_whole)(path, f"{text}\n".encode())


def _at_least(option: str, value: int, least: int) -> None:
    if value < least:
        raise InputError(f"{option} must be at least {least}, not {value}")


if __name__ == "__main__":
    # Containers and schedulers stop with SIGTERM: tidy up as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if int(os.environ.get("RANK", 0)):  # one of torchrun's, and not the first
        from training.distributed import run_silently

        sys.exit(run_silently(main))
    sys.exit(main())
