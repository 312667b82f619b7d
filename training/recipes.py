"""The recipes: everything that decides how a model is trained, each number with its unit or its reason."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from app.spec import InputSpec
from training.augment import Augmentation, Mixing
from training.errors import InputError
from training.networks import AirbenchNet, Network, PlainNet, PretrainedNet, ResidualNet, choose_network
from training.recipe_names import RECIPE_NAMES


@dataclass(frozen=True)
class Recipe:
    """One way to train one kind of model."""

    name: str
    description: str
    input: InputSpec
    network: Network
    augmentation: Augmentation
    epochs: int
    batch_size: int  # images per step
    peak_learning_rate: float  # reached after the warm-up; then half a cosine down to 0
    warm_up: float  # share of all steps
    weight_decay: float  # on weights and not on biases
    label_smoothing: float  # share of the target spread over all classes
    average_decay: float  # per step, of the exponential moving average of the weights
    accept_precision: float  # the accept threshold is the lowest that is right this often on validation
    optimizer: Literal["adamw", "sgd", "muon"] = "adamw"  # sgd: with Nesterov's momentum of 0.9; muon: for residual alone
    mixing: Mixing = field(default_factory=Mixing)
    balanced: bool = False  # every class counts the same, however many images it has
    patience: int | None = None  # epochs without a better one, after which training stops
    bfloat16: bool = False  # train in it where the processor has instructions for it; see `training.precision`

    def settings(self) -> dict[str, Any]:
        """Every value as plain JSON types."""
        return {**asdict(self), "input": self.input.model_dump(mode="json")}


# Chosen on 6,000 images held out of MNIST's train folder (2026-11), one seed each: differences under 5 errors are chance.
DIGITS = Recipe(
    name="digits",
    description="Handwritten digits: 28×28 grey pixels, light strokes on dark, framed as MNIST frames them.",
    input=InputSpec(
        height=28,
        width=28,
        channels=1,
        resize="ink",
        polarity="light_on_dark",
        decode_oversampling=16,  # a small digit on a photographed sheet must keep its strokes until the ink is found
    ),
    # Unpadded, these stages reach only 22×22 pixels of the 28×28 and would never see the right and bottom 6. A margin puts
    # their window in the middle, at the same weights and half the computation: 40 of the 6,000 wrong instead of 50.
    network=PlainNet(widths=(32, 64, 128), hidden=128, margin=3),
    augmentation=Augmentation(
        rotation_degrees=10,  # a sheet held by hand
        scale=0.08,
        shear=0.15,  # slanted handwriting
        shift=0.04,  # 1 pixel; with 2, ink leaves the window: 40 wrong instead of 30
        elastic=0.02,  # 0.6 pixels; with more than 1, 45 and more wrong
        elastic_knots=5,
        stroke=0.35,  # pens differ, and so do the resizings of photographs
        gamma=0.15,
    ),
    epochs=40,  # 5 minutes at 8,000 images/s on two quiet cores
    batch_size=128,  # 64 is no better
    peak_learning_rate=5e-3,  # 3e-3 and 8e-3 are no better
    warm_up=0.2,
    weight_decay=0.1,
    label_smoothing=0.02,  # as right as with 0.05, at half the log loss
    average_decay=0.998,  # about one epoch
    accept_precision=0.999,
)

PHOTOS = Recipe(
    name="photos",
    description="Photographs: 224×224 RGB pixels, by a network that has seen ImageNet.",
    input=InputSpec(height=224, width=224, channels=3, resize="crop", crop_fraction=0.875, filter="bicubic"),
    network=PretrainedNet("tf_efficientnet_lite0", "pip"),
    augmentation=Augmentation(
        rotation_degrees=10,
        scale=0.2,
        shear=0.1,
        shift=0.1,
        gamma=0.3,  # light differs
        mirror=True,
        outside="reflection",
    ),
    epochs=8,  # where no --minutes are given
    batch_size=32,
    peak_learning_rate=3e-4,  # a fine-tuning: the weights are nearly right
    warm_up=0.2,
    weight_decay=0.02,
    label_smoothing=0.05,
    average_decay=0.9,  # about an epoch of 300 images
    accept_precision=0.98,
)

RESIDUAL = Recipe(
    name="residual",
    description="Small pictures: 32×32 RGB pixels, by a residual network trained from nothing.",
    input=InputSpec(height=32, width=32, channels=3),
    network=AirbenchNet(widths=(64, 128, 256)),
    augmentation=Augmentation(shift=0.0625, mirror=True, outside="reflection"),
    epochs=12,
    batch_size=256,
    peak_learning_rate=0.08,  # 0.24 is worse
    warm_up=0.1,
    weight_decay=5e-4,
    label_smoothing=0.2,
    average_decay=0.99,
    accept_precision=0.98,
    optimizer="muon",
    bfloat16=True,
)

DIGITS_RESIDUAL = replace(
    DIGITS,
    name="digits-residual",
    network=ResidualNet(widths=(16, 48, 128), blocks=1),  # with SiLU as many of validation wrong, 17, more slowly
    epochs=25,
    peak_learning_rate=RESIDUAL.peak_learning_rate,
    weight_decay=RESIDUAL.weight_decay,
    optimizer=RESIDUAL.optimizer,
    bfloat16=True,
)

_RECIPES = {recipe.name: recipe for recipe in (PHOTOS, RESIDUAL, DIGITS, DIGITS_RESIDUAL)}
assert tuple(_RECIPES) == RECIPE_NAMES


@dataclass(frozen=True)
class Changes:
    """What is asked for instead of the recipe's own; None keeps that."""

    epochs: int | None = None
    patience: int | None = None
    size: int | None = None  # pixels, of both sides
    resize: Literal["stretch", "crop", "pad"] | None = None
    network: str | None = None
    depth: int | None = None
    width: int | None = None
    weights: str | None = None
    mirrored: bool = False
    balanced: bool = False


def find_recipe(name: str, changes: Changes = Changes()) -> Recipe:
    """The recipe called `name`, changed as asked.

    Raises: InputError.
    """
    if name not in _RECIPES:
        raise InputError(f"there is no recipe {name!r}: take one of {', '.join(RECIPE_NAMES)}")
    for option in ("epochs", "patience", "size", "depth", "width"):
        value = getattr(changes, option)
        if value is not None and value < 1:
            raise InputError(f"--{option} must be at least 1, not {value}")
    recipe = _RECIPES[name]
    asked = {"height": changes.size, "width": changes.size, "resize": changes.resize}
    return replace(
        recipe,
        epochs=changes.epochs or recipe.epochs,
        patience=changes.patience,
        balanced=changes.balanced,
        input=recipe.input.model_copy(update={name: value for name, value in asked.items() if value is not None}),
        network=choose_network(
            recipe.network,
            changes.network,
            depth=changes.depth,
            width=changes.width,
            weights=changes.weights,
            mirrored=changes.mirrored,
        ),
    )
