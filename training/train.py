"""`python -m training train`: from a folder to a model file, step by step.

folder ─▶ pixels, audited ─▶ loop ─▶ temperature ─▶ graph, compared with torch ─▶ goldens, accept threshold
       ─▶ file, proven ─▶ measured as it is served ─▶ file with its figures, proven ─▶ put in its place
"""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import onnx
import torch

from app.classifier import Classifier
from app.image import Pixels
from app.spec import ModelSpec, Provenance
from training.batches import Batches, compute_logits
from training.calibrate import choose_threshold, fit_temperature
from training.checkpoint import Checkpoint
from training.data_set import DataSet, read_data_set, read_others
from training.distributed import Processes, join_processes
from training.errors import InputError, TrainingError
from training.evaluate import Measured, answer_strangers, measure
from training.files import put_in_place, unfinished_beside
from training.graph import Parity, ServedNetwork, check_parity, export_graph
from training.loop import Training, train_network
from training.memory import keep_freed_memory
from training.model_file import make_goldens, write_model
from training.networks import count_parameters
from training.progress import say
from training.provenance import git_commit, library_versions
from training.recipes import Recipe
from training.report import write_report
from training.run_report import RunReport
from training.track import Tracker

EXPORT_SECONDS = 15  # kept of the time for export, proof and measurement


@dataclass(frozen=True)
class Order:
    """What was asked for."""

    root: Path
    out: Path
    recipe: Recipe
    name: str
    version: str
    seed: int
    threads: int
    fresh: bool
    deadline: float | None = None  # on time.monotonic's clock, for everything
    split: Path | None = None  # where to write which file is in which part
    other: Path | None = None  # images of other things, which the model should not be sure of
    trackers: Sequence[AbstractContextManager[Tracker]] = ()  # where figures go as well


@dataclass(frozen=True)
class Draft:
    """A model file in the making."""

    model: onnx.ModelProto
    spec: ModelSpec
    path: Path
    threads: int

    def write(self, **changes: object) -> Classifier:
        """Writes and proves it, with `changes` to its spec."""
        return write_model(self.model, self.spec.model_copy(update=changes), self.path, threads=self.threads)


def train_model(order: Order) -> list[Measured]:
    """Trains, exports and measures a model, and puts its file into its place only when everything held.

    Of many processes all train, and only the first does the rest. Raises: TrainingError, ModelError.
    """
    processes = join_processes()
    torch.set_num_threads(order.threads)
    keep_freed_memory()
    with unfinished_beside(order.out) as unfinished, ExitStack() as stack:
        trackers = [stack.enter_context(tracker) for tracker in order.trackers if not processes.rank]
        others = read_others(order.other, order.recipe.input)
        data = _read(order, processes)
        if 1 < processes.world > min(len(data.train), order.recipe.batch_size) // 2:
            raise InputError(f"{processes.world} processes need two images each per step: start fewer")
        checkpoint = Checkpoint(order.out.with_name(f"{order.out.name}.checkpoint"), _settings(order, data))
        if order.fresh:
            checkpoint.remove()
        training = Training(order.recipe, len(data.labels), order.seed, processes)
        training.trackers = trackers
        n_answers = 4 * len(data.validation) + len(data.test or ())  # forward, which is a third of a step, or two of Mirrored
        training.epochs_after = n_answers / len(data.train) / 2
        say(f"{count_parameters(training.network):,} parameters, {order.threads} threads")
        validation = Batches.of(data.validation)
        deadline = None if order.deadline is None else order.deadline - EXPORT_SECONDS
        network = train_network(training, Batches.of(data.train), validation, checkpoint, deadline)
        if processes.rank:  # what it does now would only be done twice
            return processes.agree([])  # type: ignore[no-any-return]
        temperature = fit_temperature(compute_logits(network, validation), validation.classes)
        served = ServedNetwork(network, temperature)
        model = export_graph(served, order.recipe.input)
        parity = check_parity(model, served, data.validation.pixels)
        spec = _describe(order, data, model, temperature, parity, training.recipe.epochs)
        draft = Draft(model, spec, unfinished, order.threads)
        parts = _measure(draft, data, others, order.recipe.accept_precision)
        put_in_place(unfinished, order.out)
        processes.agree([])
        report = RunReport(parts, training.history, data.audit.by_kind())
        _write_report(report, order.out)
        for tracker in trackers:
            tracker.finish(report, order.out, order.out.with_suffix(".html"))
        checkpoint.remove()  # last: whatever is cut off before, the same command makes quickly
    return parts


def _write_report(report: RunReport, out: Path) -> None:
    try:
        say(f"report: {write_report(report, out)}")
    except TrainingError as error:
        raise TrainingError(f"{out} is whole and in its place, but its report is missing: {error}") from error


def _read(order: Order, processes: Processes) -> DataSet:
    say(f"reading {order.root}")
    data = read_data_set(order.root, order.recipe.input, seed=order.seed, split=None if processes.rank else order.split)
    say(str(data.audit))
    if any(kind.endswith("leak") for _, kind in data.audit.by_kind()):
        say("warning: some pictures are in two parts of the data, so that the figures flatter: the report names them")
    parts = ((data.train, "to train on"), (data.validation, "to validate"), (data.test or (), "to test"))
    say(f"{len(data.labels)} classes: " + ", ".join(f"{len(images):,} images {what}" for images, what in parts))
    return data


def _settings(order: Order, data: DataSet) -> str:
    """What must be the same for a checkpoint to be gone on with."""
    parts = {
        "recipe": order.recipe.settings(),
        "seed": order.seed,
        "labels": data.labels,
        "train": data.train.digest,
        "validation": data.validation.digest,
        "torch": torch.__version__,
    }
    return json.dumps(parts, sort_keys=True)


def _describe(
    order: Order, data: DataSet, model: onnx.ModelProto, temperature: float, parity: Parity, epochs: int
) -> ModelSpec:
    """The spec, but for what only the file itself can tell."""
    return ModelSpec(
        name=order.name,
        version=order.version,
        created=datetime.now(UTC).replace(microsecond=0),
        description=order.recipe.description,
        labels=data.labels,
        input=order.recipe.input,
        temperature=temperature,
        provenance=Provenance(
            data_digest=data.train.digest,
            n_training_images=len(data.train),
            recipe=f"{order.recipe.name}, {epochs} epochs",
            seed=order.seed,
            git_commit=git_commit(),
            libraries=library_versions(),
            note=str(parity),
        ),
        goldens=make_goldens(model, order.recipe.input, data.goldens),
    )


def _measure(draft: Draft, data: DataSet, others: dict[str, Pixels], accept_precision: float) -> list[Measured]:
    """Lets the file answer validation and, once, test; writes the accept threshold and the figures into it."""
    unmeasured = draft.write()
    strange = answer_strangers(unmeasured, others)
    images = (("validation", data.validation), ("test", data.test))
    parts = [measure(unmeasured, f"{data.name}/{name}", part, strange) for name, part in images if part]
    chosen_on = parts[0]
    truth = chosen_on.samples.classes
    accept = choose_threshold(chosen_on.probabilities, truth, precision=accept_precision, chosen_on=chosen_on.data)
    if accept is None:
        say(f"no accept threshold: none is right {accept_precision:.1%} of the time on validation")
    classifier = draft.write(accept=accept, figures=tuple(part.as_figures() for part in parts))
    return [replace(part, spec=classifier.spec, sha256=classifier.sha256) for part in parts]
