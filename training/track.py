"""Where a training's figures go beside the terminal, if asked: named numbers by epoch, and files."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.errors import InputError, TrainingError
from training.run_report import Epoch, RunReport


@dataclass(frozen=True)
class Tracker:
    """One place where figures go."""

    log: Callable[[str, float, int], object]  # name, value, number of the epoch
    keep: Callable[[str], object]  # takes a copy of a file

    def epochs(self, epochs: Sequence[Epoch]) -> None:
        """What each of some epochs came to."""
        for epoch in epochs:
            for name in ("train_loss", "validation_loss", "accuracy", "learning_rate"):
                self.log(name, getattr(epoch, name), epoch.number)

    def finish(self, report: RunReport, *files: Path) -> None:
        """What the model file was measured at, part by part, and the files themselves."""
        for part in report.parts:
            for name in ("accuracy", "macro_f1", "log_loss", "ece"):
                self.log(f"{part.data.rpartition('/')[2]}/{name}", getattr(part.scores, name), len(report.history))
        for file in files:
            self.keep(str(file))


@contextmanager
def track_tensorboard(folder: Path) -> Iterator[Tracker]:
    """Writes into an event file in `folder`; what an interrupted training wrote there is written again, and hidden."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("--tensorboard needs the package tensorboard: pip install tensorboard") from error
    with SummaryWriter(str(folder), purge_step=0) as writer:
        yield Tracker(writer.add_scalar, keep=lambda file: None)  # noqa: ARG005


@contextmanager
def track_mlflow(name: str, settings: dict[str, Any]) -> Iterator[Tracker]:
    """Makes a run called `name` where MLflow's own MLFLOW_TRACKING_URI says; it fails when the training does."""
    try:
        import mlflow
    except ImportError as error:
        raise InputError("--mlflow needs the package mlflow: pip install mlflow") from error
    try:
        with mlflow.start_run(run_name=name):
            mlflow.log_params(settings)
            yield Tracker(mlflow.log_metric, mlflow.log_artifact)
    except mlflow.exceptions.MlflowException as error:
        raise TrainingError(f"MLflow: {str(error).splitlines()[0]}") from error
