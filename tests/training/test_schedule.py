import pytest
import torch

from training.networks import PlainNet
from training.recipes import DIGITS
from training.schedule import make_optimizer, moving_average, one_cycle


def test_the_learning_rate_rises_in_a_line_and_falls_to_0_in_half_a_cosine() -> None:
    rates = [one_cycle(progress, 0.2) for progress in (0, 0.1, 0.2, 0.6, 1)]
    assert rates == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_biases_are_not_decayed() -> None:
    network = PlainNet(widths=(4,), hidden=8).build(DIGITS.input, 10)
    decayed, free = make_optimizer(network, DIGITS).param_groups
    assert decayed["weight_decay"] == DIGITS.weight_decay
    assert free["weight_decay"] == 0
    assert {parameter.ndim for parameter in free["params"]} == {1}


def test_the_average_forgets_fast_at_first_and_by_its_decay_later() -> None:
    old, new = torch.zeros(1), torch.ones(1)
    moving_average(0.99)([old], [new], 0)
    assert old.item() == pytest.approx(0.9)
    old.zero_()
    moving_average(0.99)([old], [new], 10_000)
    assert old.item() == pytest.approx(0.01)


def test_whole_numbers_are_copied_and_not_averaged() -> None:
    old, new = torch.tensor(1), torch.tensor(7)
    moving_average(0.99)([old], [new], 5)
    assert old.item() == 7
