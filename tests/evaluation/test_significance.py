import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hf_genrec.evaluation.metrics import holm_adjusted, paired_difference, seed_difference, sign_flip_p_value


def ndcg_like(num_users, *, seed):
    """Mostly zeros, and a few values that many users share."""
    return np.random.default_rng(seed).choice([0.0, 0.0, 0.0, 1.0, 0.5, 0.63], size=num_users)


def test_difference_is_that_of_the_means_and_points_towards_the_first():
    found = paired_difference([1.0, 1.0, 0.5, 0.0], [0.0, 1.0, 0.0, 0.5])

    assert found.difference == 0.25
    assert found.num_pairs == 4
    assert found.low < 0.25 < found.high


def test_equal_systems_differ_by_nothing_for_sure():
    found = paired_difference([0.5, 0.0, 1.0], [0.5, 0.0, 1.0])

    assert (found.difference, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_pairing_sees_what_two_separate_intervals_do_not():
    hopeless_or_easy = ndcg_like(400, seed=0)

    found = paired_difference(hopeless_or_easy * 1.1, hopeless_or_easy)

    assert found.low > 0
    assert found.p_value < 0.001


def test_all_signs_are_counted_where_there_are_few_differences():
    # 0.5 + 0.25 + 1 is reached with all signs kept or all flipped: 2 of 8.
    assert sign_flip_p_value([0.5, 0.25, 1.0]) == 0.25
    assert sign_flip_p_value([0.5, 0.25, 1.0, 0.0, 0.0]) == 0.25
    assert sign_flip_p_value([-0.5, -0.25, -1.0]) == 0.25


def test_smallest_p_value_is_never_zero():
    assert sign_flip_p_value(np.ones(100), num_resamples=999) == 0.001


def test_drawn_signs_agree_with_scipy():
    differences = ndcg_like(60, seed=1) - ndcg_like(60, seed=2) + 0.2 * (np.arange(60) % 3)

    expected = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=20000, rng=0, vectorized=True
    )

    assert 0.01 < expected.pvalue < 0.99
    assert sign_flip_p_value(differences, num_resamples=20000) == pytest.approx(expected.pvalue, abs=0.015)


def test_interval_agrees_with_scipy():
    values, reference = ndcg_like(300, seed=3), ndcg_like(300, seed=4)

    found = paired_difference(values, reference, confidence=0.9)

    expected = stats.bootstrap(
        (values - reference,), np.mean, n_resamples=9999, confidence_level=0.9, method="percentile", rng=0
    ).confidence_interval
    assert found.low == pytest.approx(expected.low, abs=0.004)
    assert found.high == pytest.approx(expected.high, abs=0.004)


def test_t_test_is_that_of_scipy():
    values, reference = ndcg_like(50, seed=5), ndcg_like(50, seed=6)

    assert seed_difference(values, reference).p_value == stats.ttest_rel(values, reference).pvalue


def test_interval_covers_the_true_difference_as_often_as_it_says():
    worlds = [(ndcg_like(80, seed=seed), ndcg_like(80, seed=1000 + seed)) for seed in range(200)]

    found = [paired_difference(a, b, confidence=0.9, num_resamples=199) for a, b in worlds]

    covered = np.mean([world.low <= 0 <= world.high for world in found])  # both are drawn from the same values
    assert 0.83 < covered < 0.96


def test_chance_alone_is_found_significant_no_more_often_than_allowed():
    worlds = [ndcg_like(80, seed=seed) - ndcg_like(80, seed=1000 + seed) for seed in range(300)]

    p_values = [sign_flip_p_value(differences, num_resamples=199) for differences in worlds]

    assert 0.05 < np.mean(np.array(p_values) <= 0.1) < 0.15


def test_seeds_give_the_interval_of_the_paired_t_test():
    values, reference = [0.031, 0.033, 0.035], [0.030, 0.031, 0.032]

    found = seed_difference(values, reference, confidence=0.9)

    expected = stats.ttest_rel(values, reference)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.9)))
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.num_pairs == 3


@pytest.mark.parametrize("reference", [[0.1, 0.2, 0.3], [0.2, 0.3, 0.4]])
def test_seeds_that_all_differ_by_the_same_give_no_interval(reference):
    found = seed_difference([0.2, 0.3, 0.4], reference)

    assert found.difference == pytest.approx(0.2 - reference[0])
    assert (found.low, found.high, found.p_value, found.num_pairs) == (None, None, None, 3)


def test_holm_multiplies_the_smallest_most_and_keeps_the_order():
    assert holm_adjusted([0.5, 0.125, 0.25]) == [0.5, 0.375, 0.5]
    assert holm_adjusted([0.75, 0.75]) == [1.0, 1.0]
    assert holm_adjusted([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_holm_never_lowers_a_p_value_and_leaves_a_single_one(p_values):
    adjusted = holm_adjusted(p_values)

    assert all(p <= after <= 1 for p, after in zip(p_values, adjusted, strict=True))
    assert holm_adjusted(p_values[:1]) == p_values[:1]


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, -0.25, 0.63]), min_size=1, max_size=12))
def test_turning_all_differences_around_does_not_change_the_p_value(differences):
    array = np.array(differences)

    assert sign_flip_p_value(array) == pytest.approx(sign_flip_p_value(-array))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_difference([1.0], [1.0, 0.0]), r"two vectors of the same length.*\(1,\) and \(2,\)"),
        (lambda: paired_difference([], []), "at least 1"),
        (lambda: paired_difference([1.0], [float("nan")]), "finite numbers"),
        (lambda: paired_difference([1.0], [0.0], confidence=95), "`confidence` must be between 0 and 1"),
        (lambda: seed_difference([1.0], [0.0]), "at least 2"),
        (lambda: seed_difference([1.0, 0.0], [0.0, 0.0], confidence=1), "`confidence` must be between 0 and 1"),
        (lambda: sign_flip_p_value([1.0], num_resamples=0), "`num_resamples` must be at least 1"),
    ],
)
def test_wrong_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
