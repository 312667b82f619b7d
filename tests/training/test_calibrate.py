import numpy as np
import pytest
import torch

from training.calibrate import choose_threshold, fit_temperature


def test_the_temperature_that_sharpened_the_logits_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 5, generator=generator) * 2
    classes = torch.multinomial(logits.softmax(dim=1), 1, generator=generator).squeeze(1)
    assert fit_temperature(logits * 3, classes) == pytest.approx(3, rel=0.03)


def test_the_temperature_stays_in_bounds_where_everything_is_right() -> None:
    assert 0.05 <= fit_temperature(torch.eye(4) * 10, torch.arange(4)) <= 20


def two_classes(top: list[float]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.array([[p, 1 - p] for p in top], dtype=np.float32)


def test_the_threshold_accepts_as_many_as_the_precision_allows() -> None:
    probabilities, truth = two_classes([0.99, 0.9, 0.8, 0.7, 0.6]), np.array([0, 0, 1, 0, 1])
    rule = choose_threshold(probabilities, truth, precision=0.75, chosen_on="here")
    assert rule is not None
    assert (rule.precision, rule.coverage) == (0.75, 0.8)
    assert rule.threshold == pytest.approx(0.65)


def test_no_threshold_parts_equal_probabilities() -> None:
    rule = choose_threshold(two_classes([0.9, 0.8, 0.8]), np.array([0, 0, 1]), precision=1.0, chosen_on="here")
    assert rule is not None
    assert rule.threshold == pytest.approx(0.85)


def test_where_all_are_right_all_are_accepted() -> None:
    rule = choose_threshold(two_classes([0.9, 0.8]), np.array([0, 0]), precision=0.999, chosen_on="here")
    assert rule is not None
    assert 0.799 < rule.threshold <= 0.8
    assert rule.coverage == 1


def test_there_is_no_rule_where_the_surest_answer_is_wrong() -> None:
    assert choose_threshold(two_classes([0.9, 0.8]), np.array([1, 1]), precision=0.999, chosen_on="here") is None
