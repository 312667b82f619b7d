import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from training.batches import Batches
from training.checkpoint import Checkpoint
from training.data_set import read_data_set
from training.errors import InputError, TrainingError
from training.loop import Training, train_network
from training.networks import AirbenchNet, Whitening
from training.recipes import DIGITS
from training.train import _settings

QUICK = replace(DIGITS, epochs=3, batch_size=16)


@pytest.fixture(scope="module")
def images(digits: Path) -> tuple[Batches, Batches]:
    data = read_data_set(digits, DIGITS.input, seed=0)
    return Batches.of(data.train), Batches.of(data.validation)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def weights_of(training: Training) -> dict[str, torch.Tensor]:
    return {f"{part}.{name}": value for part in ("network", "averaged") for name, value in training.state()[part].items()}


def train(images: tuple[Batches, Batches], path: Path, seed: int = 0) -> dict[str, torch.Tensor]:
    training = Training(QUICK, 10, seed)
    train_network(training, *images, Checkpoint(path / "checkpoint", "settings"))
    return weights_of(training)


def test_a_seed_reproduces_the_weights_to_the_bit_and_another_does_not(images: tuple[Batches, Batches], tmp_path: Path) -> None:
    runs = []
    for number, seed in enumerate((0, 0, 1)):
        (tmp_path / str(number)).mkdir()
        runs.append(train(images, tmp_path / str(number), seed))
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())
    assert not torch.equal(runs[0]["network.1.weight"], runs[2]["network.1.weight"])


def test_a_network_learns_a_few_images_by_heart(images: tuple[Batches, Batches], tmp_path: Path) -> None:
    plain = replace(DIGITS, epochs=40, batch_size=16, average_decay=0.9)
    network = train_network(Training(plain, 10, 0), images[0], images[0], Checkpoint(tmp_path / "checkpoint", ""))
    right = network(images[0].images / 255).argmax(dim=1) == images[0].classes
    assert right.float().mean() > 0.9


def test_the_filters_that_whiten_come_from_the_training_images_and_are_not_trained(
    images: tuple[Batches, Batches], tmp_path: Path
) -> None:
    recipe = replace(QUICK, network=AirbenchNet((8, 16, 16)), optimizer="muon", peak_learning_rate=0.08)
    network = train_network(Training(recipe, 10, 0), *images, Checkpoint(tmp_path / "checkpoint", ""))
    [found] = [layer for layer in network.modules() if isinstance(layer, Whitening)]
    expected = Whitening(1)
    expected.fit(images[0].images.float() / 255)
    assert torch.allclose(found.filters, expected.filters, atol=1e-4)
    assert expected.filters.abs().max() > 0.1


def test_the_best_epoch_is_kept_and_not_the_last(images: tuple[Batches, Batches], tmp_path: Path) -> None:
    training = Training(QUICK, 10, 0)
    train_network(training, *images, Checkpoint(tmp_path / "checkpoint", ""))
    assert training.best is not None
    assert not training.best.is_beaten_by(training.best.n_correct, training.best.loss)
    assert training.best.is_beaten_by(training.best.n_correct + 1, training.best.loss + 1)
    assert training.best.is_beaten_by(training.best.n_correct, training.best.loss - 0.1)


def test_a_loss_that_is_no_number_stops_with_a_sentence(images: tuple[Batches, Batches], tmp_path: Path) -> None:
    training = Training(replace(QUICK, peak_learning_rate=1e30, warm_up=0.01), 10, 0)
    with pytest.raises(TrainingError, match="the learning rate is too high"):
        train_network(training, *images, Checkpoint(tmp_path / "checkpoint", ""))


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    Checkpoint(tmp_path / "checkpoint", "these").save({})
    with pytest.raises(InputError, match="other settings, data or versions"):
        Checkpoint(tmp_path / "checkpoint", "those").load()


def test_a_damaged_checkpoint_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_bytes(b"half")
    with pytest.raises(InputError, match="start over with --fresh"):
        Checkpoint(tmp_path / "checkpoint", "").load()


def test_timing_an_epoch_changes_nothing(images: tuple[Batches, Batches]) -> None:
    training, untouched = Training(QUICK, 10, 0), Training(QUICK, 10, 0)
    assert 0 < training._time_epoch(*images, at_most=1.0) < 60
    before, after = weights_of(untouched), weights_of(training)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not training.optimizer.state


@pytest.mark.parametrize("instructions", [True, False])
def test_bfloat16_is_used_where_the_processor_has_it_and_the_weights_stay_float32(
    images: tuple[Batches, Batches], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instructions: bool
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": instructions})
    recipe = replace(QUICK, network=AirbenchNet((8, 16, 16)), optimizer="muon", peak_learning_rate=0.08, bfloat16=True)
    training = Training(recipe, 10, 0)
    seen = set()
    convolutions = [layer for layer in training.network.modules() if isinstance(layer, torch.nn.Conv2d)]
    convolutions[0].register_forward_hook(lambda layer, given, made: seen.add(made.dtype) if layer.training else None)
    train_network(training, *images, Checkpoint(tmp_path / "checkpoint", ""))
    assert seen == {torch.bfloat16 if instructions else torch.float32}
    assert {value.dtype for value in weights_of(training).values() if value.is_floating_point()} == {torch.float32}
    assert training.history[-1].train_loss < training.history[0].train_loss


def test_a_machine_that_computes_otherwise_does_not_go_on_with_a_checkpoint(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = read_data_set(digits, DIGITS.input, seed=0)
    settings = []
    for instructions in (True, False):
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda has=instructions: {"avx512_bf16": has})
        settings.append([_settings(0, replace(DIGITS, bfloat16=wanted), data) for wanted in (True, False)])
    assert settings[0][0] != settings[1][0]
    assert settings[0][1] == settings[1][1]


def test_patience_ends_a_training_that_gets_no_better(images: tuple[Batches, Batches], tmp_path: Path) -> None:
    stuck = replace(QUICK, peak_learning_rate=1e-12, epochs=9, patience=2)
    training = Training(stuck, 10, 0)
    train_network(training, *images, Checkpoint(tmp_path / "checkpoint", ""))
    assert training.best is not None
    assert training.epochs_done == training.best.epoch + 2 < 9


def test_sgd_and_balanced_classes_train_too(images: tuple[Batches, Batches], tmp_path: Path) -> None:
    recipe = replace(QUICK, optimizer="sgd", balanced=True, epochs=1)
    training = Training(recipe, 10, 0)
    train_network(training, *images, Checkpoint(tmp_path / "checkpoint", ""))
    assert isinstance(training.optimizer, torch.optim.SGD)
    assert training.class_weights is not None
    assert training.history[0].train_loss > 0


def test_class_weights_make_every_class_count_the_same() -> None:
    batches = Batches(torch.zeros(8, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 0, 0, 0, 0, 0, 1, 1]))
    weights = batches.class_weights(3)
    sums = [float(weights[batches.classes][batches.classes == number].sum()) for number in (0, 1)]
    assert sums[0] == pytest.approx(sums[1])
    assert weights.isfinite().all()


def test_time_decides_the_epochs_but_something_is_always_trained(images: tuple[Batches, Batches], tmp_path: Path) -> None:
    training = Training(QUICK, 10, 0)
    training.plan(time.monotonic() + 10, seconds_per_epoch=3, at_most=100)
    assert training.recipe.epochs == 3
    training.plan(time.monotonic() + 10, seconds_per_epoch=3, at_most=2)
    assert training.recipe.epochs == 2
    train_network(training, *images, Checkpoint(tmp_path / "checkpoint", ""), deadline=time.monotonic() - 1)
    assert training.epochs_done == 1
    training.plan(time.monotonic() - 1, seconds_per_epoch=3, at_most=100)
    assert training.recipe.epochs == 1


def test_an_epoch_that_something_else_held_up_does_not_cost_the_later_ones(
    images: tuple[Batches, Batches], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    training = Training(QUICK, 10, 0)

    def start(train: Batches, validation: Batches, deadline: float | None) -> None:
        assert deadline is not None
        training._validate(validation)
        training.plan(deadline, 1.0, at_most=100)

    def run_epoch(*given: object) -> None:
        nonlocal now
        training.epochs_done += 1
        now += 10.0 if training.epochs_done == 5 else 1.0

    monkeypatch.setattr("training.loop.time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(training, "start", start)
    monkeypatch.setattr(training, "run_epoch", run_epoch)
    train_network(training, *images, Checkpoint(tmp_path / "checkpoint", ""), deadline=50.0)
    assert training.epochs_done == 41
    assert now == 50.0
