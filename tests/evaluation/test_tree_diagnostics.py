"""Distances in the tree, sampled pairs, correlations, reversals and latents: naive loops are the reference."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from hf_genrec.evaluation.tree import (
    best_latent_differs,
    kendall_tau,
    latent_entropy,
    latent_information,
    num_neighbours,
    pair_correlations,
    reversal_rates,
    sample_pairs,
)
from invariants.model import histories_of, make_model, tiny_config


TABLES = st.integers(1, 4).flatmap(lambda levels: arrays(np.int16, (12, levels), elements=st.integers(0, 2)))


def distance_by_hand(a, b):
    """Up from one leaf to the last common prefix and down to the other."""
    num_shared = 0
    while num_shared < len(a) and a[num_shared] == b[num_shared]:
        num_shared += 1
    return 2 * (len(a) - num_shared)


def pairs_by_hand(codes):
    """All pairs of items by distance, the smaller index first."""
    found = {}
    for a, b in itertools.combinations(range(len(codes)), 2):
        found.setdefault(distance_by_hand(codes[a], codes[b]), set()).add((a, b))
    return found


@settings(max_examples=25, deadline=None)
@given(TABLES)
def test_all_pairs_are_found_where_all_are_asked_for(codes):
    expected = pairs_by_hand(codes)
    expected.pop(0, None)

    pairs = sample_pairs(codes, num_pairs=1000)

    assert list(pairs) == sorted(expected)
    for distance, rows in pairs.items():
        assert {tuple(sorted(row)) for row in rows.tolist()} == expected[distance]
        assert len(rows) == len(expected[distance])


def test_sampled_pairs_are_different_drawn_by_the_seed_and_uniform():
    codes = np.array([[0, 0], [0, 1], [0, 2], [1, 0], [1, 1]])
    counts = dict.fromkeys(pairs_by_hand(codes)[4], 0)

    for seed in range(900):
        rows = sample_pairs(codes, num_pairs=2, seed=seed)[4].tolist()
        first, second = (tuple(sorted(row)) for row in rows)
        assert first != second
        counts[first] += 1
        counts[second] += 1

    assert rows == sample_pairs(codes, num_pairs=2, seed=899)[4].tolist()
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3  # six pairs, each drawn a third of the time


def test_sample_needs_a_pair():
    with pytest.raises(ValueError, match="`num_pairs` must be at least 1"):
        sample_pairs(np.zeros((3, 2), dtype=int), num_pairs=0)


@settings(max_examples=25, deadline=None)
@given(TABLES)
def test_neighbours_are_counted_at_each_distance(codes):
    counts = num_neighbours(codes)

    assert list(counts) == [2 * (level + 1) for level in range(codes.shape[1])]
    for distance, per_item in counts.items():
        for item, count in enumerate(per_item):
            assert count == sum(
                distance_by_hand(codes[item], other) == distance for place, other in enumerate(codes) if place != item
            )


def test_correlations_are_those_of_numpy_and_unknown_for_a_constant():
    probabilities = np.random.default_rng(0).random((7, 5)).astype(np.float32)
    probabilities[:, 3] = 0.1
    pairs = np.array([[0, 1], [4, 2], [1, 0], [3, 4]])

    found = pair_correlations(probabilities, pairs)

    for (a, b), value in zip(pairs[:3], found, strict=False):
        assert value == pytest.approx(np.corrcoef(probabilities[:, a], probabilities[:, b])[0, 1], abs=1e-6)
    assert np.isnan(found[3])


def test_correlations_survive_tiny_probabilities():
    probabilities = np.array([[1e-12, 3e-14], [2e-12, 6e-14], [4e-12, 9e-14]])

    assert pair_correlations(probabilities, np.array([[0, 1]]))[0] == pytest.approx(
        np.corrcoef(probabilities.T)[0, 1], abs=1e-9
    )


@settings(max_examples=25, deadline=None)
@given(arrays(np.int8, (6, 3), elements=st.integers(-2, 2)))
def test_reversals_are_those_of_all_pairs_of_users(scores):
    pairs = np.array([[0, 1], [2, 1]])

    for (a, b), rate in zip(pairs, reversal_rates(scores, pairs), strict=True):
        opposed = [
            (scores[user, a] - scores[user, b]) * (scores[other, a] - scores[other, b]) < 0
            for user, other in itertools.combinations(range(6), 2)
        ]
        assert rate == pytest.approx(np.mean(opposed))


def test_one_user_reverses_nothing():
    with pytest.raises(ValueError, match="at least two users"):
        reversal_rates(np.zeros((1, 3)), np.array([[0, 1]]))


def test_kendall_is_tau_b_of_concordant_pairs_and_leaves_unknown_ones_out():
    correlations = {2: np.array([0.9, 0.8, np.nan]), 4: np.array([0.85, 0.1]), 6: np.array([0.2, 0.2])}
    points = [(2, 0.9), (2, 0.8), (4, 0.85), (4, 0.1), (6, 0.2), (6, 0.2)]
    signs = [(np.sign(b[0] - a[0]), np.sign(b[1] - a[1])) for a, b in itertools.combinations(points, 2)]
    concordance = sum(x * y for x, y in signs)
    expected = concordance / math.sqrt(sum(x != 0 for x, _ in signs) * sum(y != 0 for _, y in signs))

    found = kendall_tau(correlations)

    assert found.tau == pytest.approx(expected)
    assert found.low <= found.tau <= found.high
    assert found == kendall_tau(correlations)


@pytest.mark.parametrize("num_distances", [3, 4])
def test_kendall_of_ties_stops_above_minus_one(num_distances):
    falling = -np.arange(num_distances * 50.0).reshape(num_distances, 50)

    found = kendall_tau({2 * place: values for place, values in enumerate(falling, 1)})

    share_of_ties = (50 - 1) / (num_distances * 50 - 1)
    assert found.tau == pytest.approx(-math.sqrt(1 - share_of_ties))


def test_kendall_is_unknown_where_there_is_one_distance_or_nothing_differs():
    assert kendall_tau({2: np.array([0.1, 0.5])}).tau is None
    assert kendall_tau({2: np.array([0.5]), 4: np.array([0.5])}).tau is None
    assert kendall_tau({}).low is None


def test_entropy_and_information_are_those_of_a_naive_loop():
    joint = np.random.default_rng(1).random((3, 2, 5))
    joint /= joint.sum(axis=(1, 2), keepdims=True)

    entropies, informations = latent_entropy(np.log(joint)), latent_information(np.log(joint) - 3.0)

    for table, entropy, information in zip(joint, entropies, informations, strict=True):
        latents, items = table.sum(1), table.sum(0)
        assert entropy == pytest.approx(-sum(p * math.log(p) for p in latents) / math.log(2))
        expected = sum(
            table[l, i] * math.log(table[l, i] / latents[l] / items[i])
            for l, i in itertools.product(range(2), range(5))  # noqa: E741
        )
        assert information == pytest.approx(expected)


def test_impossible_combinations_carry_no_information():
    with np.errstate(divide="ignore"):
        log_joint = np.log(np.array([[[0.5, 0.0], [0.0, 0.5]]]))

    assert latent_information(log_joint) == pytest.approx([math.log(2)])
    assert latent_entropy(log_joint) == pytest.approx([1.0])


def test_entropy_needs_two_latents():
    with pytest.raises(ValueError, match="at least two latents"):
        latent_entropy(np.zeros((3, 1, 5)))


def test_best_latents_are_compared_user_by_user():
    best = np.array([[0, 0, 4], [1, 2, 2], [3, 1, 1]])

    assert best_latent_differs(best, np.array([[0, 1], [1, 2]])).tolist() == pytest.approx([2 / 3, 1 / 3])


@pytest.mark.parametrize(
    "changes",
    [
        {"num_latent_tokens": 0, "history_attention": "causal"},
        {"num_latent_tokens": 3, "normalization": "catalog"},
        {"num_latent_tokens": 1, "history_attention": "causal", "history_unit": "item"},
    ],
)
def test_paths_of_some_items_are_their_exact_scores(changes, monkeypatch):
    monkeypatch.setattr(
        "hf_genrec.modeling.genrec_rank_beams.PATHS_AT_A_TIME", 13
    )  # several chunks of users and items
    model = make_model(tiny_config(**changes))
    histories = histories_of(model.config)
    items = torch.tensor([17, 3, 28, 3, 0, 11, 12, 13, 14])

    paths = model.score_paths(*histories, items=items)

    assert paths.shape == (3, max(1, model.config.num_latent_tokens), 9)
    for aggregation, found in (("max", paths.amax(1)), ("sum", paths.logsumexp(1))):
        exact = model.score_items(*histories, latent_aggregation=aggregation)
        torch.testing.assert_close(found, exact[:, items], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.score_paths(*histories)[..., items], paths, rtol=1e-5, atol=1e-5)


def test_each_path_is_the_score_of_its_own_latent():
    model = make_model(tiny_config(num_latent_tokens=3))
    input_ids, mask = histories_of(model.config)
    items = torch.arange(29)

    paths = model.score_paths(input_ids, mask)

    expected = model._path_scores(model.encode_history(input_ids, mask), items.expand(3, -1))
    torch.testing.assert_close(paths, expected.transpose(0, 1), rtol=1e-5, atol=1e-5)


def test_paths_refuse_foreign_items_and_take_no_users():
    model = make_model(tiny_config())

    with pytest.raises(ValueError, match=r"`items` must lie in \[0, 29\)"):
        model.score_paths(histories_of(model.config)[0], items=torch.tensor([29]))
    assert model.score_paths(torch.zeros(0, 3, dtype=torch.long)).shape == (0, 1, 29)
    assert model.score_paths(histories_of(model.config)[0], items=torch.zeros(0, dtype=torch.long)).shape == (3, 1, 0)
