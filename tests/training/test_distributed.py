import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.classifier import Classifier
from tests.service import free_ports
from tests.training.conftest import EPOCHS, ROOT
from training.augment import Augmentation
from training.batches import Batches
from training.checkpoint import Checkpoint
from training.distributed import ALONE, Processes, join_processes
from training.loop import Training, train_network
from training.networks import PlainNet, ResidualNet
from training.recipes import DIGITS, Recipe

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "training", "train"]


def run_two(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*TORCHRUN, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def test_two_processes_make_one_model_like_that_of_one(digits: Path, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "digits.onnx"
    done = run_two(digits, "--recipe", "digits", "--epochs", EPOCHS, "--threads", "1", "--out", out)
    assert done.returncode == 0, done.stderr
    epochs = [line.split()[1] for line in done.stderr.splitlines() if line.startswith("epoch")]
    assert epochs == [f"{number}/{EPOCHS}" for number in range(1, int(EPOCHS) + 1)]
    assert done.stdout.count("wrote ") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits.html", "digits.onnx"]
    one, two = (Classifier.load(path).spec.figures for path in (trained, out))
    for alone, together in zip(one, two, strict=True):
        assert (together.data, together.n) == (alone.data, alone.n)
        assert together.log_loss == pytest.approx(alone.log_loss, abs=0.3)


def test_bad_input_is_said_once_and_ends_every_process(tmp_path: Path) -> None:
    refused = run_two(tmp_path / "nowhere", "--recipe", "digits", "--out", tmp_path / "model.onnx")
    assert refused.returncode != 0
    assert [line for line in refused.stderr.splitlines() if line.startswith(("error:", "interrupted"))] == [
        f"error: {tmp_path / 'nowhere'} does not exist: give a folder that holds one folder per class"
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shares_are_the_whole_once(world: int) -> None:
    shares = [Processes(rank, world).share(torch.arange(7)) for rank in range(world)]
    assert sorted(torch.cat(shares).tolist()) == list(range(7))


def test_the_first_process_draws_as_one_alone_and_the_others_differently() -> None:
    draws = [torch.rand(3, generator=Processes(rank, 2).own(torch.Generator().manual_seed(5))).tolist() for rank in (0, 1)]
    assert draws[0] == torch.rand(3, generator=torch.Generator().manual_seed(5)).tolist()
    assert draws[0] != draws[1]


def test_two_processes_with_uneven_shares_end_where_one_does_even_when_resumed(tmp_path: Path) -> None:
    [port] = free_ports(1)
    common = {**os.environ, "PYTHONPATH": str(ROOT), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    (tmp_path / "alone").mkdir()
    alone = train(PLAIN, tmp_path / "alone")
    processes = []
    for rank in (0, 1):
        (tmp_path / str(rank)).mkdir()
        script = [sys.executable, __file__, str(tmp_path / str(rank))]
        processes.append(subprocess.Popen(script, cwd=ROOT, env={**common, "RANK": str(rank)}))
    assert [process.wait(timeout=100) for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / str(rank) / "weights.pt") for rank in (0, 1))
    for run in ("plain", "resumed", "residual"):
        assert all(torch.equal(value, second[run][name]) for name, value in first[run].items()), run
    for run in ("plain", "resumed"):
        for name, value in alone.items():
            np.testing.assert_allclose(first[run][name], value, rtol=1e-4, atol=1e-6, err_msg=f"{run} {name}")


# Without chance, and of 31 images in batches of 15: shares of 8 and of 7.
PLAIN = replace(
    DIGITS, network=PlainNet((4, 8), 8), augmentation=Augmentation(), epochs=3, batch_size=15, optimizer="sgd", balanced=True
)
RESIDUAL = replace(PLAIN, network=ResidualNet((16, 32), 1), balanced=False)


class KeepingCheckpoint(Checkpoint):
    """Keeps the state after each epoch under the number of the epoch."""

    def save(self, state: dict[str, Any]) -> None:
        super().save(state)
        self.path.rename(self.path.with_name(str(state["epochs_done"])))


def train(recipe: Recipe, folder: Path, processes: Processes = ALONE, checkpoint: str = "none") -> dict[str, torch.Tensor]:
    torch.set_num_threads(1)
    images = torch.randint(256, (31, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batches = Batches(images, torch.arange(31) % 5 % 3)
    training = Training(recipe, 3, 0, processes)
    train_network(training, batches, batches, KeepingCheckpoint(folder / checkpoint, ""))
    return training.network.state_dict()


def train_all(folder: Path) -> None:
    """What each of the two processes does. The second has no checkpoint: the first one's is everyone's."""
    processes = join_processes()
    runs = {"plain": train(PLAIN, folder, processes)}
    runs["resumed"] = train(PLAIN, folder, processes, checkpoint="1")
    runs["residual"] = train(RESIDUAL, folder, processes)
    torch.save(runs, folder / "weights.pt")


if __name__ == "__main__":
    train_all(Path(sys.argv[1]))
