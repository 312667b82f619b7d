"""A short run of each fuzz target; `make fuzz` runs longer and by coverage."""

import gc

import pytest

from tests.fuzz.__main__ import mutate_blindly
from tests.fuzz.targets import TARGETS, seeds

pytestmark = [
    pytest.mark.filterwarnings("ignore:::PIL"),
    # Starlette does not close the files of a form that breaks off; they are in memory, and nothing is lost with them.
    pytest.mark.filterwarnings("ignore:Unclosed file <tempfile.Spooled:ResourceWarning"),
]


@pytest.mark.parametrize(("target", "seconds"), [("image", 5), ("body", 2), ("tensors", 2), ("spec", 1)])
def test_no_mutation_of_sound_inputs_does_harm(target: str, seconds: float) -> None:
    for data in seeds(target):
        TARGETS[target](data)
    assert mutate_blindly(target, seconds, seed=7) > 20
    gc.collect()  # what it left behind, while the warning is ignored
