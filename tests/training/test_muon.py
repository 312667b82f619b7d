import torch
from torch import nn

from app.spec import InputSpec
from training.muon import Muon, orthogonal
from training.networks import ResidualNet

SPEC = InputSpec(height=8, width=8, channels=3)


def test_orthogonal_brings_singular_values_near_one_and_keeps_the_directions() -> None:
    for shape in ((8, 27), (27, 8), (6, 6)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 5
        near = orthogonal(matrix)
        assert near.shape == shape
        values = torch.linalg.svdvals(near)
        assert 0.2 < values.min() <= values.max() < 1.4
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        turned = left.T @ near @ right.T
        assert (turned - turned.diagonal().diag()).abs().max() < 1e-4


def test_kernels_keep_their_length_and_take_steps_of_one_size_and_the_rest_are_plain_sgd() -> None:
    torch.manual_seed(0)
    network = ResidualNet((4, 8), 1).build(SPEC, 2)
    optimizer = Muon(network, lr=0.01, plain_lr=0.1, weight_decay=0.0)
    last = next(one for one in network.modules() if isinstance(one, nn.Linear))
    before = last.bias.detach().clone()
    for scale in (1.0, 1000.0):
        optimizer.zero_grad()
        (network(torch.rand(4, 3, 8, 8)) * scale).sum().backward()
        gradient = last.bias.grad
        assert gradient is not None
        optimizer.step()
        if scale == 1.0:
            torch.testing.assert_close(last.bias, before - 0.1 * 1.9 * gradient)
        for kernel in (one for one in network.parameters() if one.ndim == 4):
            assert 0.9 < kernel.norm() / len(kernel) ** 0.5 < 1.1


def test_biases_do_not_decay_and_the_classifier_does() -> None:
    network = ResidualNet((4,), 1).build(SPEC, 2)
    by_size = {
        group["params"][0].ndim: group["weight_decay"]
        for group in Muon(network, lr=1, plain_lr=1, weight_decay=0.5).param_groups
    }
    assert by_size == {4: 0.0, 2: 0.5, 1: 0.0}
