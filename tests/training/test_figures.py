import math

import numpy as np
import pytest

from training.figures import (
    auroc,
    class_scores,
    confusion_matrix,
    expected_calibration_error,
    log_loss,
    score,
    wilson_interval,
)

TRUTH = np.array([0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 0, 1, 1, 0, 2])


def test_the_confusion_matrix_counts_true_by_predicted() -> None:
    assert confusion_matrix(TRUTH, PREDICTED, 3).tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_class_scores_equal_those_worked_out_by_hand() -> None:
    zero, one, two = class_scores(confusion_matrix(TRUTH, PREDICTED, 3))
    assert (zero.n, zero.precision, zero.recall, zero.f1) == pytest.approx((3, 2 / 3, 2 / 3, 2 / 3))
    assert (one.n, one.precision, one.recall, one.f1) == pytest.approx((2, 1 / 2, 1 / 2, 1 / 2))
    assert (two.n, two.precision, two.recall, two.f1) == (1, 1, 1, 1)


def test_a_class_that_is_neither_seen_nor_called_scores_0_and_leaves_macro_f1_alone() -> None:
    probabilities = np.eye(4)[PREDICTED]
    scores = score(probabilities, TRUTH)
    assert scores.classes[3].f1 == 0
    assert scores.macro_f1 == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert (scores.n, scores.n_correct) == (6, 4)
    assert scores.accuracy == pytest.approx(4 / 6)


def test_calibration_error_is_the_weighted_gap_of_the_bins() -> None:
    # Bin of 0.9: two images, one right, gap 0.4. Bin of 0.6: two images, both right, gap 0.4.
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    truth = np.array([0, 1, 0, 0])
    assert expected_calibration_error(probabilities, truth) == pytest.approx(0.4)


def test_perfect_certainty_that_is_right_has_no_calibration_error() -> None:
    assert expected_calibration_error(np.eye(3), np.arange(3)) == 0


def test_log_loss_is_in_nats_and_finite_for_a_probability_of_0() -> None:
    assert log_loss(np.array([[0.5, 0.5], [0.25, 0.75]]), np.array([0, 0])) == pytest.approx(1.5 * math.log(2))
    assert math.isfinite(log_loss(np.array([[0.0, 1.0]]), np.array([0])))


def test_the_wilson_interval_equals_published_values() -> None:
    # Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I, method 3.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson_interval(29, 29) == pytest.approx((0.8830, 1.0), abs=1e-4)


def test_auroc_is_the_share_of_pairs_in_the_right_order_and_ties_count_half() -> None:
    random = np.random.default_rng(0)
    for size, levels in ((1, 2), (7, 3), (40, 5), (60, 1000)):
        known, strange = random.integers(levels, size=size) / levels, random.integers(levels, size=2 * size + 1) / levels
        pairs = [(one > other) + (one == other) / 2 for one in known for other in strange]
        assert auroc(known, strange) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert auroc(np.array([0.9, 0.8]), np.array([0.1])) == 1
    assert auroc(np.array([0.5]), np.array([0.5, 0.5])) == 0.5
