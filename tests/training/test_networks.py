import pytest
import torch
from torch import nn

from app.spec import InputSpec
from training.errors import InputError
from training.networks import PlainNet, count_parameters
from training.recipes import DIGITS


def test_the_digits_network_has_the_layers_and_weights_it_should_have() -> None:
    network = DIGITS.network.build(DIGITS.input, 10)
    weighted = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in weighted] == [
        (32, 1, 3, 3),
        (64, 32, 3, 3),
        (128, 64, 3, 3),
        (128, 128),
        (10, 128),
    ]
    assert count_parameters(network) == 110_474


def test_the_digits_network_sees_the_middle_and_the_one_without_margin_is_blind_to_right_and_bottom() -> None:
    assert isinstance(DIGITS.network, PlainNet)
    for margin, seen in ((DIGITS.network.margin, range(3, 25)), (0, range(22))):
        torch.manual_seed(0)
        images = torch.rand(1, 1, 28, 28, requires_grad=True)
        PlainNet(widths=(32, 64, 128), hidden=128, margin=margin).build(DIGITS.input, 10)(images).sum().backward()
        assert images.grad is not None
        rows = torch.nonzero(images.grad.abs().sum(dim=(0, 1, 3))).flatten().tolist()
        assert set(rows) <= set(seen)
        assert len(rows) >= len(seen) - 2


def test_logits_have_one_column_per_class_for_any_input() -> None:
    spec = InputSpec(height=32, width=48, channels=3)
    network = PlainNet(widths=(4, 8), hidden=16).build(spec, 7)
    assert network(torch.rand(2, 3, 32, 48)).shape == (2, 7)


def test_an_input_that_the_stages_use_up_is_refused() -> None:
    with pytest.raises(InputError, match="too small for 4 stages"):
        PlainNet(widths=(4, 4, 4, 4), hidden=8).build(DIGITS.input, 10)
