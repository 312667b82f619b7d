import pytest
import torch
from torch import nn

from app.spec import InputSpec
from training.errors import InputError
from training.networks import (
    AirbenchNet,
    PlainNet,
    PretrainedNet,
    ResidualNet,
    Whitening,
    choose_network,
    count_parameters,
)
from training.recipes import DIGITS, RESIDUAL


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


@pytest.mark.parametrize(("depth", "weights"), [(8, 78_042), (20, 272_474), (32, 466_906)])
def test_a_residual_network_has_the_layers_of_the_paper(depth: int, weights: int) -> None:
    spec = InputSpec(height=32, width=32, channels=3)
    network = choose_network(ResidualNet((16, 32, 64), 1), None, depth=depth, width=None, weights=None).build(spec, 10)
    layers = [one for one in network.modules() if isinstance(one, nn.Conv2d | nn.Linear)]
    assert len([one for one in layers if isinstance(one, nn.Linear) or one.kernel_size == (3, 3)]) == depth
    # The paper counts 0.27 M and 0.46 M for 20 and 32 layers.
    assert count_parameters(network) == weights
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_a_new_residual_block_is_its_shortcut_and_a_plain_one_is_not() -> None:
    images = torch.rand(4, 8, 6, 6)
    for shortcuts in (True, False):
        block = ResidualNet((8,), 1, shortcuts=shortcuts).build(InputSpec(height=6, width=6, channels=3), 2)[3]  # type: ignore[index]
        assert torch.equal(block(images), images) is shortcuts


def test_the_seed_network_is_as_deep_and_wide_as_asked() -> None:
    def chosen(depth: int | None, width: int | None) -> tuple[int, ...]:
        network = choose_network(DIGITS.network, "seed", depth=depth, width=width, weights=None)
        assert isinstance(network, PlainNet)
        assert network.margin == 3
        return network.widths

    assert chosen(None, None) == (32, 64, 128)
    assert chosen(2, None) == (32, 64)
    assert chosen(None, 8) == (8, 16, 32)
    assert chosen(1, 5) == (5,)


def test_a_timm_network_is_downloaded_unless_its_weights_are_given() -> None:
    given = PretrainedNet("tf_efficientnet_lite0", "pip")
    assert choose_network(given, None, depth=None, width=None, weights=None) == given
    assert choose_network(given, "resnet18", depth=None, width=None, weights=None) == PretrainedNet("resnet18", "hub")
    assert choose_network(given, "resnet18", depth=None, width=None, weights="a.pth") == PretrainedNet("resnet18", "a.pth")
    with pytest.raises(InputError, match="--depth and --width are for seed, residual, airbench"):
        choose_network(given, None, depth=3, width=None, weights=None)


def test_whitening_gives_the_patches_of_its_images_no_mean_and_no_correlation() -> None:
    torch.manual_seed(0)
    smooth = nn.functional.interpolate(torch.rand(200, 3, 8, 8), size=16, mode="bilinear") * 0.5 + 0.2
    whitening = Whitening(3)
    whitening.fit(smooth)
    responses = whitening(smooth).transpose(0, 1).flatten(1)
    assert torch.equal(responses[:12], -responses[12:])
    assert responses.mean(dim=1).abs().max() < 1e-3
    covariance = responses[:12].cov()
    assert torch.triu(covariance, 1).abs().max() < 1e-2
    assert (covariance.diag()[-3:] > 0.9).all()  # the strongest, which the guard against noise hardly touches
    assert (covariance.diag() < 1.01).all()


def test_an_airbench_network_answers_an_image_and_its_mirror_image_alike_except_while_it_is_trained() -> None:
    torch.manual_seed(0)
    network = AirbenchNet((8, 16)).build(InputSpec(height=16, width=12, channels=3), 5)
    [whitening] = [layer for layer in network.modules() if isinstance(layer, Whitening)]
    images = torch.rand(4, 3, 16, 12)
    whitening.fit(images)
    for training in (False, True):
        network.train(training)
        alike = torch.allclose(network(images), network(images.flip(3)), atol=1e-5)
        assert alike is not training
    assert network(images).shape == (4, 5)
    assert all("filters" not in name for name, _ in network.named_parameters())


def test_an_airbench_network_is_as_wide_as_asked_and_has_one_depth() -> None:
    now = RESIDUAL.network
    assert choose_network(now, None, depth=None, width=None, weights=None) == now
    assert choose_network(now, None, depth=None, width=16, weights=None) == AirbenchNet((16, 32, 64))
    with pytest.raises(InputError, match="--depth is for seed and residual: airbench has one"):
        choose_network(now, None, depth=8, width=None, weights=None)
    with pytest.raises(InputError, match="too small for 3 stages"):
        AirbenchNet((8, 8, 8)).build(InputSpec(height=8, width=32, channels=3), 2)
