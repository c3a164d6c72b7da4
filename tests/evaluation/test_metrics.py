import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_genrec.evaluation.lists import is_invalid_list, item_indices
from hf_genrec.evaluation.metrics import (
    bootstrap_interval,
    mrr_per_user,
    ndcg_at_k,
    ndcg_per_user,
    ranks_of_targets,
    recall_at_k,
    recall_per_user,
)


def test_rank_is_the_zero_based_position_of_the_target():
    recommended = [["a", "b", "c"], ["c"], [], ["b", "a"], ["a", "a", "b"]]

    ranks = ranks_of_targets(recommended, ["c", "a", "a", "b", "a"])

    np.testing.assert_array_equal(ranks, [2, -1, -1, 0, 0])
    assert ranks.dtype == np.int64


def test_rank_in_a_matrix_of_item_indices():
    ranks = ranks_of_targets(np.array([[4, 2, 9], [1, 0, 2], [3, 5, 6]]), np.array([9, 7, 3]))

    np.testing.assert_array_equal(ranks, [2, -1, 0])


@given(st.lists(st.tuples(st.lists(st.sampled_from("abcd"), max_size=5), st.sampled_from("abcd")), max_size=7))
def test_ranks_equal_those_of_list_index(users):
    lists, targets = [items for items, _ in users], [target for _, target in users]

    ranks = ranks_of_targets(lists, targets)

    assert ranks.tolist() == [i.index(t) if t in i else -1 for i, t in users]


def test_lists_and_targets_of_different_number_are_refused():
    with pytest.raises(ValueError, match="got 1 lists and 2 targets"):
        ranks_of_targets([["a"]], ["a", "b"])


def test_users_without_a_hit_count_in_the_denominator():
    ranks = [0, 2, -1, 9, 10, -1, -1]

    assert recall_at_k(ranks, k=1) == pytest.approx(1 / 7)
    assert recall_at_k(ranks, k=10) == pytest.approx(3 / 7)
    assert recall_at_k(ranks, k=20) == pytest.approx(4 / 7)
    assert ndcg_at_k(ranks, k=10) == pytest.approx((1 + 1 / 2 + 1 / math.log2(11)) / 7)


def test_values_per_user_are_zero_from_rank_k_on():
    np.testing.assert_array_equal(recall_per_user([0, 2, 3, -1], k=3), [1, 1, 0, 0])
    np.testing.assert_allclose(ndcg_per_user([0, 2, 3, -1], k=3), [1, 0.5, 0, 0])
    np.testing.assert_allclose(mrr_per_user([0, 2, 3, -1], k=3), [1, 1 / 3, 0, 0])


@pytest.fixture(scope="module")
def ranx():
    """A library for the same numbers; compiled, as it is by default, its functions would take minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUMBA_DISABLE_JIT", "1")
        return pytest.importorskip("ranx")


def test_numbers_equal_those_of_ranx(ranx):
    draw = np.random.default_rng(5)
    lists = np.stack([draw.permutation(31)[:13] for _ in range(17)])
    targets = draw.integers(0, 31, size=17)
    truth = ranx.Qrels({f"u{user}": {f"i{target}": 1} for user, target in enumerate(targets)})
    run = ranx.Run(
        {f"u{user}": {f"i{item}": -float(rank) for rank, item in enumerate(r)} for user, r in enumerate(lists)}
    )
    cuts = (1, 3, 5, 10)

    expected = ranx.evaluate(truth, run, [f"{name}@{k}" for name in ("hit_rate", "ndcg", "mrr") for k in cuts])

    ranks = ranks_of_targets(lists, targets)
    metrics = {"hit_rate": recall_at_k, "ndcg": ndcg_at_k, "mrr": lambda ranks, k: mrr_per_user(ranks, k=k).mean()}
    assert 0 < expected["mrr@10"] < expected["ndcg@10"] < expected["hit_rate@10"] < 1
    assert {f"{name}@{k}": metric(ranks, k=k) for name, metric in metrics.items() for k in cuts} == pytest.approx(
        expected
    )


@pytest.mark.parametrize("metric", [recall_at_k, ndcg_at_k])
def test_bad_arguments_of_a_metric_are_named(metric):
    with pytest.raises(ValueError, match="`k` must be at least 1, got 0"):
        metric([0], k=0)
    with pytest.raises(ValueError, match="at least one user"):
        metric([], k=1)
    with pytest.raises(ValueError, match="0-based ranks or -1"):
        metric([-2], k=1)


def invalid(lists, *, catalog, top_k, num_excluded=0):
    lengths, items = [len(row) for row in lists], item_indices(lists, item_ids=catalog)
    return is_invalid_list(items, lengths, expected=np.minimum(top_k, len(catalog) - np.array(num_excluded)))


def test_short_repeated_foreign_and_overlong_lists_are_invalid():
    catalog = ["a", "b", "c", "d", "e"]
    lists = [["a", "b", "c"], ["a", "b"], ["a", "b", "a"], ["a", "b", "x"], ["a", "b", "c", "d"], []]

    np.testing.assert_array_equal(invalid(lists, catalog=catalog, top_k=3), [0, 1, 1, 1, 1, 1])


def test_repeated_foreign_ids_are_invalid_too():
    np.testing.assert_array_equal(invalid([["x", "y"], ["a", "b"]], catalog=["a", "b"], top_k=2), [1, 0])


def test_a_list_of_the_whole_catalog_is_valid_when_the_catalog_is_small():
    lists = [["b", "a"], ["a"]]

    np.testing.assert_array_equal(invalid(lists, catalog=["a", "b"], top_k=5), [0, 1])
    np.testing.assert_array_equal(invalid(lists, catalog=["a", "b"], top_k=5, num_excluded=[0, 1]), [0, 0])


def test_bootstrap_interval_agrees_with_the_normal_approximation():
    values = np.repeat([0.0, 1.0], [900, 100])

    low, high = bootstrap_interval(values, num_resamples=5000, seed=3)

    spread = 1.96 * math.sqrt(0.1 * 0.9 / 1000)
    assert low == pytest.approx(0.1 - spread, abs=0.002)
    assert high == pytest.approx(0.1 + spread, abs=0.002)


def test_bootstrap_interval_depends_on_seed_and_confidence_only():
    values = ndcg_per_user([0, 1, 2, 3, -1, -1, 7], k=10)

    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values[::-1], seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)
    narrow, wide = bootstrap_interval(values, confidence=0.5), bootstrap_interval(values, confidence=0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_interval_of_users_without_a_hit_is_the_exact_one():
    low, high = bootstrap_interval([0.0] * 30, confidence=0.9)

    assert low == 0.0
    assert (1 - high) ** 30 == pytest.approx(0.05)  # so rare is it that users above 0 are missed
    assert bootstrap_interval([1.0] * 30, confidence=0.9) == (pytest.approx(1 - high), 1.0)


def test_interval_of_differences_that_are_all_zero_is_a_point():
    assert bootstrap_interval([0.0] * 30, is_share=False) == (0.0, 0.0)
    assert bootstrap_interval([1.0] * 30, is_share=False) == (1.0, 1.0)


def test_bootstrap_interval_of_many_users_takes_no_time():
    ranks = np.random.default_rng(0).integers(-1, 20, size=100_003)
    start = time.perf_counter()

    bootstrap_interval(ndcg_per_user(ranks, k=20))

    assert time.perf_counter() - start < 2


def test_bad_arguments_of_the_bootstrap_are_named():
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_interval([1.0], confidence=1.0)
    with pytest.raises(ValueError, match="num_resamples"):
        bootstrap_interval([1.0], num_resamples=0)
    with pytest.raises(ValueError, match="at least one user"):
        bootstrap_interval([])
