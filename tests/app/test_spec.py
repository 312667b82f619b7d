"""The spec goes into a model file's metadata and comes back the same, or is refused."""

import json

import pytest
from pydantic import ValidationError

from app.errors import ModelError
from app.spec import FEATURES, SPEC_KEY, Golden, InputSpec, ModelSpec
from tests.models import colour_probabilities, colour_spec, png
from tests.service import ROOT


def changed_metadata(**changes: object) -> dict[str, str]:
    """The colour model's metadata with fields of its spec changed behind its back."""
    return {SPEC_KEY: json.dumps(json.loads(colour_spec().to_metadata()[SPEC_KEY]) | changes)}


def test_a_spec_survives_its_metadata() -> None:
    spec = colour_spec(description="Größe 😀", temperature=1.7)
    assert ModelSpec.from_metadata(spec.to_metadata()) == spec


def test_metadata_values_are_strings_as_onnx_wants_them() -> None:
    assert all(isinstance(value, str) for value in colour_spec().to_metadata().values())


def test_other_readers_find_names_size_and_task() -> None:
    spec = colour_spec(labels=("rouge", "größe", "b,c"), input=InputSpec(height=8, width=10, channels=3))
    metadata = spec.to_metadata()
    assert "größe" in metadata["names"]
    assert json.loads(metadata["names"]) == ["rouge", "größe", "b,c"]
    assert json.loads(metadata["imgsz"]) == [8, 10]
    assert metadata["task"] == "classify"
    assert metadata["Image.BitmapPixelFormat"] == "Rgb8"


def test_a_grey_model_says_so_to_other_readers() -> None:
    spec = colour_spec(input=InputSpec(height=8, width=8, channels=1))
    assert spec.to_metadata()["Image.BitmapPixelFormat"] == "Gray8"


def test_metadata_without_a_spec_is_refused() -> None:
    with pytest.raises(ModelError, match=r"no convserve\.spec"):
        ModelSpec.from_metadata({"names": "[]"})


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"unheard_of": 1}, "unheard_of"),
        ({"name": "Two Words"}, "name"),
        ({"labels": ["one"]}, "labels"),
        ({"labels": ["a", "a", "b"]}, "unique"),
        ({"labels": ["a", "b"]}, "one probability per label"),
        ({"goldens": []}, "goldens"),
        ({"temperature": 0}, "temperature"),
        ({"created": "yesterday"}, "created"),
        ({"accept": {"threshold": 1.5, "precision": 1, "coverage": 1, "chosen_on": ""}}, r"accept\.threshold"),
        ({"input": {"height": 0, "width": 8, "channels": 3}}, r"input\.height"),
        ({"input": {"height": 8, "width": 8, "channels": 4}}, r"input\.channels"),
        ({"input": {"height": 8, "width": 8, "channels": 3, "resize": "squash"}}, r"input\.resize"),
        ({"input": {"height": 8, "width": 8, "channels": 3, "decode_oversampling": 0.5}}, "decode_oversampling"),
        ({"input": {"height": 8, "width": 8, "channels": 3, "crop_fraction": 0}}, "crop_fraction"),
        ({"input": {"height": 8, "width": 8, "channels": 3, "background": [0, 0, 256]}}, "background"),
    ],
)
def test_a_spec_that_cannot_be_is_refused_with_the_place(changes: dict[str, object], where: str) -> None:
    with pytest.raises(ModelError, match=where):
        ModelSpec.from_metadata(changed_metadata(**changes))


def test_a_spec_that_is_no_json_is_refused() -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        ModelSpec.from_metadata({SPEC_KEY: "{"})


@pytest.mark.parametrize("rule", [{"resize": "ink"}, {"polarity": "light_on_dark"}])
def test_pen_strokes_are_for_grey_models(rule: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="grey"):
        InputSpec.model_validate({"height": 28, "width": 28, "channels": 3} | rule)
    assert InputSpec.model_validate({"height": 28, "width": 28, "channels": 1} | rule).channels == 1


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        colour_spec().input.height = 9  # type: ignore[misc]


def test_the_shape_is_height_width_channels() -> None:
    assert InputSpec(height=2, width=3, channels=1).shape == (2, 3, 1)


@pytest.mark.parametrize(
    ("changes", "side"),
    [
        ({}, 448),
        ({"decode_oversampling": 1.5}, 336),
        ({"width": 300}, 600),
        ({"height": 300}, 600),
        ({"resize": "crop", "crop_fraction": 0.875}, 512),
        ({"resize": "stretch", "crop_fraction": 0.875}, 448),
    ],
)
def test_the_decode_side_is_the_oversampled_target_before_the_crop(changes: dict[str, object], side: float) -> None:
    spec = InputSpec.model_validate({"height": 224, "width": 224, "channels": 3} | changes)
    assert spec.decode_side == pytest.approx(side)


def test_a_golden_gives_back_its_file() -> None:
    file = png((1, 2, 3))
    golden = Golden.of(file, colour_probabilities((1, 2, 3)), 1e-4)
    assert golden.data == file
    assert Golden.model_validate_json(golden.model_dump_json()) == golden


@pytest.mark.parametrize("tolerance", [0, 0.1, 1])
def test_a_golden_that_proves_nothing_is_refused(tolerance: float) -> None:
    with pytest.raises(ValidationError, match="tolerance"):
        Golden.of(b"", [0.5, 0.5], tolerance)


def test_a_probability_above_one_is_no_golden() -> None:
    with pytest.raises(ValidationError, match="probabilities"):
        Golden.of(b"", [1.5, 0.5], 0.01)


def test_the_published_schema_is_that_of_the_code() -> None:
    written = json.loads((ROOT / "docs" / "model-file.schema.json").read_text(encoding="utf-8"))
    now = json.dumps(ModelSpec.model_json_schema(), indent=1, ensure_ascii=False)
    assert written == json.loads(now), f"write docs/model-file.schema.json anew:\n{now}"


def reference(**changes: object) -> dict[str, object]:
    histograms: dict[str, object] = {name: {"edges": [1.0, 2.0], "counts": [1, 2, 3]} for name in FEATURES}
    return {"reference": {"data": "x", "histograms": histograms | changes}}


def test_a_reference_survives_its_metadata() -> None:
    spec = colour_spec(**reference())
    assert ModelSpec.from_metadata(spec.to_metadata()) == spec


@pytest.mark.parametrize(
    "changes",
    [
        {"size": {"edges": [2.0, 1.0], "counts": [1, 2, 3]}},
        {"size": {"edges": [1.0, 2.0], "counts": [1, 2]}},
        {"size": {"edges": [1.0, 2.0], "counts": [0, 0, 0]}},
        {"size": {"edges": [1.0, 2.0], "counts": [1, -1, 0]}},
        {"smell": {"edges": [1.0, 2.0], "counts": [1, 2, 3]}},
    ],
)
def test_a_reference_that_cannot_be_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ModelError, match=r"reference\.histograms"):
        ModelSpec.from_metadata(changed_metadata(**reference(**changes)))
