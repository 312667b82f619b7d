"""`python -m training train`: from a folder to a model file, step by step.

folder ─▶ pixels, audited ─▶ loop ─▶ temperature ─▶ graph, compared with torch ─▶ goldens, accept threshold
       ─▶ file, proven ─▶ measured as it is served ─▶ file with its figures, proven ─▶ put in its place
"""

import argparse
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from app.classifier import Classifier
from app.image import Pixels
from app.spec import ModelSpec
from training.batches import Batches, compute_logits
from training.calibrate import choose_threshold, fit_temperature
from training.checkpoint import Checkpoint
from training.data_set import DataSet, read_data_set, read_others
from training.distributed import Processes, join_processes
from training.errors import InputError, TrainingError
from training.evaluate import Measured, answer_strangers, measure
from training.files import unfinished_beside
from training.graph import ServedNetwork, check_parity, export_graph
from training.loop import Training, train_network
from training.memory import keep_freed_memory
from training.model_file import make_goldens, write_model
from training.networks import count_parameters
from training.precision import has_bfloat16
from training.progress import say
from training.provenance import provenance
from training.recipes import Recipe
from training.reference import describe
from training.report import write_report
from training.run_report import RunReport
from training.track import Tracker

EXPORT_SECONDS = 15  # kept of the time for export, proof and measurement


def train_model(
    options: argparse.Namespace,
    recipe: Recipe,
    name: str,
    version: str,
    deadline: float | None,
    trackers: Sequence[AbstractContextManager[Tracker]] = (),
) -> list[Measured]:
    """Trains, exports and measures a model, and puts its file into its place only when everything held.

    `deadline` is on time.monotonic's clock and for all of it. Of many processes all train, and only the first does the rest.

    Raises: TrainingError, ModelError.
    """
    processes = join_processes()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    with unfinished_beside(options.out) as unfinished, ExitStack() as stack:
        opened = [stack.enter_context(tracker) for tracker in trackers if not processes.rank]
        others = read_others(options.other, recipe.input)
        data = _read(options, recipe, processes)
        checkpoint = Checkpoint(options.out.with_name(f"{options.out.name}.checkpoint"), _settings(options.seed, recipe, data))
        if options.fresh:
            checkpoint.remove()
        training = Training(recipe, len(data.labels), options.seed, processes)
        training.trackers = opened
        n_answers = 4 * len(data.validation) + len(data.test or ())  # forward, which is a third of a step, or two of Mirrored
        training.epochs_after = n_answers / len(data.train) / 2
        say(f"{count_parameters(training.network):,} parameters, {options.threads} threads")
        end = None if deadline is None else deadline - EXPORT_SECONDS
        network = train_network(training, Batches.of(data.train), Batches.of(data.validation), checkpoint, end)
        if processes.rank:  # what it does now would only be done twice
            return processes.agree([])  # type: ignore[no-any-return]
        model, spec = _export(network, training, data, name, version)
        parts = _finish(model, spec, unfinished, data, others, recipe.accept_precision, options.threads)
        unfinished.replace(options.out)
        processes.agree([])
        report = RunReport(parts, training.history, data.audit.by_kind())
        _write_report(report, options.out)
        for tracker in opened:
            tracker.finish(report, options.out, options.out.with_suffix(".html"))
        checkpoint.remove()  # last: whatever is cut off before, the same command makes quickly
    return parts


def _export(
    network: nn.Module, training: Training, data: DataSet, name: str, version: str
) -> tuple[onnx.ModelProto, ModelSpec]:
    """The graph, and its spec but for what only the file itself can tell."""
    recipe, validation = training.recipe, Batches.of(data.validation)
    served = ServedNetwork(network, fit_temperature(compute_logits(network, validation), validation.classes))
    model = export_graph(served, recipe.input)
    origin = provenance(
        f"{recipe.name}, {recipe.epochs} epochs",
        data_digest=data.train.digest,
        n_training_images=len(data.train),
        seed=training.seed,
        note=check_parity(model, served, data.validation.pixels),
    )
    return model, ModelSpec(
        name=name,
        version=version,
        created=datetime.now(UTC).replace(microsecond=0),
        description=recipe.description,
        labels=data.labels,
        input=recipe.input,
        temperature=served.temperature,
        provenance=origin,
        goldens=make_goldens(model, recipe.input, data.goldens),
    )


def _read(options: argparse.Namespace, recipe: Recipe, processes: Processes) -> DataSet:
    say(f"reading {options.data}")
    split = None if processes.rank else options.write_split
    data = read_data_set(options.data, recipe.input, seed=options.seed, split=split)
    say(str(data.audit))
    if any(kind.endswith("leak") for _, kind in data.audit.by_kind()):
        say("warning: some pictures are in two parts of the data, so that the figures flatter: the report names them")
    parts = ((data.train, "to train on"), (data.validation, "to validate"), (data.test or (), "to test"))
    say(f"{len(data.labels)} classes: " + ", ".join(f"{len(images):,} images {what}" for images, what in parts))
    if 1 < processes.world > min(len(data.train), recipe.batch_size) // 2:
        raise InputError(f"{processes.world} processes need two images each per step: start fewer")
    return data


def _settings(seed: int, recipe: Recipe, data: DataSet) -> str:
    """What must be the same for a checkpoint to be gone on with."""
    parts = {
        "recipe": recipe.settings(),
        "seed": seed,
        "labels": data.labels,
        "train": data.train.digest,
        "validation": data.validation.digest,
        "torch": torch.__version__,
        "bfloat16": recipe.bfloat16 and has_bfloat16(),
    }
    return json.dumps(parts, sort_keys=True)


def _finish(
    model: onnx.ModelProto,
    spec: ModelSpec,
    path: Path,
    data: DataSet,
    others: dict[str, Pixels],
    precision: float,
    threads: int,
) -> list[Measured]:
    """Lets the file answer validation and, once, test; writes it again with the accept threshold and the figures."""

    def write(**changes: Any) -> Classifier:
        return write_model(model, spec.model_copy(update=changes), path, threads=threads)

    unmeasured = write()
    strange = answer_strangers(unmeasured, others)
    images = (("validation", data.validation), ("test", data.test))
    parts = [measure(unmeasured, f"{data.name}/{name}", part, strange) for name, part in images if part]
    truth = data.validation.classes
    accept = choose_threshold(parts[0].probabilities, truth, precision=precision, chosen_on=parts[0].data)
    if accept is None:
        say(f"no accept threshold: none is right {precision:.1%} of the time on validation")
    reference = describe(parts[0].data, data.validation, parts[0].probabilities)
    done = write(accept=accept, figures=tuple(part.as_figures() for part in parts), reference=reference)
    return [replace(part, spec=done.spec, sha256=done.sha256) for part in parts]


def _write_report(report: RunReport, out: Path) -> None:
    try:
        say(f"report: {write_report(report, out)}")
    except TrainingError as error:
        raise TrainingError(f"{out} is whole and in its place, but its report is missing: {error}") from error
