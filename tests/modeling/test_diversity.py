"""Diverse groups, sampled beams and re-ranking: each against its definition."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from hf_genrec.modeling.genrec_beams import SearchStep, repeated_paths
from hf_genrec.modeling.genrec_lists import code_overlap, diversify, embedding_similarity, mmr
from hf_genrec.modeling.genrec_rank_beams import DiverseGroups, GumbelTopK


class TopK:
    """Plain beam search, as a selection."""

    def __call__(self, candidates, num_beams, step):
        return candidates.flatten(1).topk(min(num_beams, candidates[0].numel())).indices


def step_at(depth, nodes):
    return SearchStep(number=max(0, depth), nodes=nodes, depth=depth, latents=None, children=None)


def random_tree(widths, *, num_illegal=0, seed=0):
    """Per level a table (prefixes, codes) of log-probabilities; a prefix is a number, illegal codes are -inf."""
    generator = torch.Generator().manual_seed(seed)
    tables, num_prefixes = [], 1
    for num_codes in widths:
        logits = 2 * torch.randn(num_prefixes, num_codes, generator=generator)
        for _ in range(num_illegal):
            prefix = torch.randint(num_prefixes, (1,), generator=generator)
            logits[prefix, torch.randint(1, num_codes, (1,), generator=generator)] = -math.inf
        tables.append(logits.log_softmax(-1))
        num_prefixes *= num_codes
    return tables


def log_probs_of(tables):
    """Log-probability of every leaf."""
    total = torch.zeros(1)
    for table in tables:
        total = (total.unsqueeze(1) + table).flatten()
    return total


def search(selection, tables, *, num_beams, batch_size=1):
    """Beam search through the tables: leaves and their true scores, -1 where a beam is dead."""
    scores, nodes = torch.zeros(batch_size, 1), torch.zeros(batch_size, 1, dtype=torch.long)
    for depth, table in enumerate(tables):
        candidates = scores.unsqueeze(-1) + table[nodes]
        index = selection(candidates, num_beams, step_at(depth, nodes))
        num_codes = table.shape[1]
        scores = candidates.flatten(1).gather(1, index)
        nodes = nodes.gather(1, index // num_codes) * num_codes + index % num_codes
    return nodes.masked_fill(scores == -math.inf, -1), scores


# --- groups -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group_penalty", [0.0, 3.0])
def test_one_group_is_plain_beam_search(group_penalty):
    tables = random_tree((4, 3, 5), num_illegal=3)

    expected = search(TopK(), tables, num_beams=7, batch_size=2)

    for found, wanted in zip(
        search(DiverseGroups(1, group_penalty), tables, num_beams=7, batch_size=2), expected, strict=True
    ):
        assert found.tolist() == wanted.tolist()


def test_groups_without_a_penalty_are_the_same_search_with_their_share_of_the_beams():
    tables = random_tree((4, 3, 5), num_illegal=3)

    leaves, scores = search(DiverseGroups(3, 0.0), tables, num_beams=11)

    larger, smaller = search(TopK(), tables, num_beams=4), search(TopK(), tables, num_beams=3)
    assert leaves[0].tolist() == [*larger[0][0].tolist(), *larger[0][0].tolist(), *smaller[0][0].tolist()]
    assert scores[0].tolist() == [*larger[1][0].tolist(), *larger[1][0].tolist(), *smaller[1][0].tolist()]


def test_later_groups_pay_for_each_earlier_beam_at_the_same_prefix():
    first = torch.tensor([[0.50, 0.30, 0.15, 0.05]]).log()
    second = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.5, 0.5], [0.5, 0.5]]).log()
    selection = DiverseGroups(3, math.log(3.2))

    leaves, scores = search(selection, [first, second], num_beams=3)

    # first step: 0.5 | 0.5 / 3.2 < 0.3 | 0.5 / 3.2 > 0.15, 0.3 / 3.2: prefixes 0, 1 and 0 again
    # second step: 0.3 | 0.27 | from prefix 0: 0.3 / 3.2 < 0.2
    assert leaves.tolist() == [[0, 2, 1]]
    torch.testing.assert_close(scores.exp(), torch.tensor([[0.3, 0.27, 0.2]]))


def test_penalties_add_up_over_beams_and_groups():
    candidates = torch.tensor([[[0.6, 0.28, 0.12], [0.6, 0.28, 0.12]]]).log()
    nodes = torch.tensor([[4, 4]])  # two latents at the same prefix

    index = DiverseGroups(2, math.log(2.0))(candidates, 4, step_at(1, nodes))

    # both beams of the first group take code 0, which then costs a factor of 4: 0.15 < 0.28
    assert index[0, :2].sort().values.tolist() == [0, 3]
    assert index[0, 2:].sort().values.tolist() == [1, 4]


def test_the_same_code_after_another_prefix_costs_nothing():
    candidates = torch.tensor([[[0.6, 0.4], [0.59, 0.41]]]).log()

    index = DiverseGroups(2, 9.0)(candidates, 2, step_at(1, torch.tensor([[4, 5]])))

    assert index.tolist() == [[0, 2]]


def test_latents_are_chosen_without_a_penalty():
    candidates = torch.tensor([[[0.2, 0.7, 0.1]]]).log()

    assert DiverseGroups(2, 9.0)(candidates, 2, step_at(-1, torch.tensor([[0]]))).tolist() == [[1, 1]]


def test_groups_that_outnumber_the_first_codes_grow_to_their_share():
    tables = random_tree((2, 3, 5))
    selection = DiverseGroups(2, 0.5)

    leaves, _ = search(selection, tables, num_beams=9)

    assert leaves.shape == (1, 9)
    assert [len(set(group)) for group in (leaves[0, :5].tolist(), leaves[0, 5:].tolist())] == [5, 4]
    assert selection.order.tolist() == [[0, -2, -4, -6, -8, -1, -3, -5, -7]]


def test_a_large_penalty_spreads_the_groups_over_the_first_codes():
    tables = random_tree((5, 4, 3), seed=3)

    plain, _ = search(TopK(), tables, num_beams=5, batch_size=2)
    spread, _ = search(DiverseGroups(5, 50.0), tables, num_beams=5, batch_size=2)

    assert [len(set(row)) for row in (plain // 12).tolist()] == [3, 3]
    assert [len(set(row)) for row in (spread // 12).tolist()] == [5, 5]


@given(
    num_groups=st.integers(1, 5),
    extra_beams=st.integers(0, 9),
    penalty=st.sampled_from([0.0, 0.3, 2.0, 40.0]),
    seed=st.integers(0, 99),
)
def test_every_group_holds_distinct_legal_leaves_with_their_true_scores(num_groups, extra_beams, penalty, seed):
    tables = random_tree((3, 4, 2), num_illegal=4, seed=seed)
    exact = log_probs_of(tables)
    num_beams = num_groups + extra_beams

    leaves, scores = search(DiverseGroups(num_groups, penalty), tables, num_beams=num_beams)

    torch.testing.assert_close(scores[leaves >= 0], exact[leaves[leaves >= 0]])
    shares = [num_beams // num_groups + (group < num_beams % num_groups) for group in range(num_groups)]
    for group in leaves[0].split(shares):
        alive = group[group >= 0].tolist()
        assert len(alive) == len(set(alive)) > 0


def test_a_path_is_repeated_from_its_second_beam_on():
    leaves = torch.tensor([[3, -1, 3, 0, 3, 0], [5, 4, 3, 2, 1, 0]])
    latents = torch.tensor([[0, 0, 2, 1, 0, 1], [0, 0, 0, 0, 0, 0]])

    assert repeated_paths(leaves, latents)[0].tolist() == [False, False, False, False, True, True]
    assert repeated_paths(leaves)[0].tolist() == [False, False, True, False, True, True]
    assert not repeated_paths(leaves, latents)[1].any()


# --- sampled beams ----------------------------------------------------------------------------------------------


def sampled(tables, *, num_beams, batch_size=1, seed=0):
    selection = GumbelTopK(torch.Generator().manual_seed(seed))
    leaves, scores = search(selection, tables, num_beams=num_beams, batch_size=batch_size)
    return leaves, scores, selection.order


def probabilities_of_the_second(probabilities):
    """Chance that each item is drawn second when the first is taken out."""
    p = probabilities.double()
    return (p * (p / (1 - p)).sum() - p * p / (1 - p)).float()


@pytest.fixture(scope="module")
def draws():
    # 3 of 5, 20 and 60 prefixes are kept: noise that were not passed down would change every draw
    tables = random_tree((5, 4, 3), num_illegal=2, seed=5)
    leaves, scores, order = sampled(tables, num_beams=3, batch_size=50_000, seed=1)
    return log_probs_of(tables), leaves, scores, order


def p_value(leaves, probabilities):
    """Chi-square test of drawn leaves; the rare ones are counted together."""
    expected = probabilities.double() * len(leaves)
    counts = leaves.bincount(minlength=len(expected))
    assert counts[expected == 0].sum() == 0
    bins = torch.where(expected < 10, 0, torch.arange(1, 1 + len(expected)))
    counts, expected = (
        values.double().new_zeros(bins.max() + 1).scatter_add(0, bins, values.double())
        for values in (counts, expected)
    )
    is_bin = expected > 0
    return chisquare(counts[is_bin], expected[is_bin] / expected.sum() * len(leaves)).pvalue


def test_the_first_draw_follows_the_model(draws):
    log_probs, leaves, _, _ = draws

    assert p_value(leaves[:, 0], log_probs.exp()) > 0.01


def test_the_second_draw_follows_the_model_without_the_first(draws):
    log_probs, leaves, _, _ = draws

    assert p_value(leaves[:, 1], probabilities_of_the_second(log_probs.exp())) > 0.01
    assert p_value(leaves[:, 1], log_probs.exp()) < 1e-9


def test_the_third_draw_follows_the_model_without_the_two_before(draws):
    log_probs, leaves, _, _ = draws
    p = log_probs.exp().double()
    first, second = p[:, None, None], p[None, :, None]
    orders = first * second / (1 - first) * p[None, None, :] / (1 - first - second)
    i, j, k = torch.meshgrid(*[torch.arange(len(p))] * 3, indexing="ij")
    orders = orders.masked_fill((i == j) | (j == k) | (i == k), 0).nan_to_num()

    assert p_value(leaves[:, 2], orders.sum((0, 1))) > 0.01


def test_draws_are_distinct_and_keep_their_true_scores(draws):
    log_probs, leaves, scores, order = draws

    assert bool((leaves.sort(dim=1).values.diff(dim=1) > 0).all())
    torch.testing.assert_close(scores, log_probs[leaves])
    assert bool((order.diff(dim=1) <= 0).all())
    assert bool((order[:, 0] == 0).all())


def test_what_stays_inside_a_constraint_is_sampled_as_token_by_token():
    # below the first of two codes 3/4 of the probability are lost to illegal codes
    tables = [torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.1, 0.15, 0.0], [0.5, 0.3, 0.2]]).log()]
    leaves, scores, _ = sampled(tables, num_beams=2, batch_size=20_000)
    stepwise = torch.tensor([0.2, 0.3, 0.0, 0.25, 0.15, 0.1])

    assert p_value(leaves[:, 0], stepwise) > 0.01
    assert p_value(leaves[:, 1], probabilities_of_the_second(stepwise)) > 0.01
    torch.testing.assert_close(scores, log_probs_of(tables)[leaves])


def test_the_same_seed_draws_the_same_and_another_seed_does_not():
    tables = random_tree((4, 5, 3))

    first, again, other = (sampled(tables, num_beams=7, batch_size=3, seed=seed)[0] for seed in (1, 1, 2))

    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()
    assert len({tuple(row) for row in first.tolist()}) == 3  # users are drawn apart


@given(num_beams=st.integers(1, 30), seed=st.integers(0, 99))
def test_sampled_beams_are_distinct_leaves_and_all_of_them_if_there_are_enough(num_beams, seed):
    tables = random_tree((3, 4, 2), num_illegal=4, seed=seed)
    legal = log_probs_of(tables).isfinite().nonzero()[:, 0].tolist()

    leaves, _, order = sampled(tables, num_beams=num_beams, seed=seed)

    alive = leaves[0][leaves[0] >= 0].tolist()
    assert len(alive) == len(set(alive)) == min(num_beams, len(legal))
    assert set(alive) <= set(legal)
    assert (order[0] == -math.inf).tolist() == (leaves[0] < 0).tolist()


def test_noise_of_children_is_that_of_their_parent_at_most():
    tables = random_tree((3, 40), seed=1)
    selection = GumbelTopK(torch.Generator().manual_seed(0))
    nodes = torch.zeros(2, 1, dtype=torch.long)
    first = selection(tables[0][nodes], 3, step_at(0, nodes))
    parents = selection.order
    scores = tables[0][nodes].flatten(1).gather(1, first)

    index = selection(scores.unsqueeze(-1) + tables[1][first], 120, step_at(1, first))

    best = torch.full_like(parents, -math.inf).scatter_reduce(1, index // 40, selection.order, "amax")
    torch.testing.assert_close(best, parents, rtol=0, atol=0)


def test_a_very_peaked_model_overflows_nothing():
    tables = [torch.tensor([[0.0, -200.0, -1000.0, -math.inf]]), torch.tensor([[0.0, -700.0]]).expand(4, 2)]

    leaves, scores, order = sampled(tables, num_beams=8, batch_size=5)

    assert [sorted(row) for row in leaves.tolist()] == [[-1, -1, 0, 1, 2, 3, 4, 5]] * 5
    assert leaves[:, :2].tolist() == [[0, 2]] * 5
    assert not order.isnan().any()
    assert not scores.isnan().any()


# --- re-ranking -------------------------------------------------------------------------------------------------


def mmr_by_hand(scores, similarity, top_k, diversity):
    """The definition, item by item, for one user."""
    relevance = np.exp(scores - scores.max())
    picked = []
    for _ in range(top_k):
        values = {}
        for item in range(len(scores)):
            nearest = max((similarity[item, other] for other in picked), default=0.0)
            values[item] = ((1 - diversity) * relevance[item] - diversity * nearest, relevance[item])
        picked.append(max((item for item in values if item not in picked), key=values.get))
    return picked


@given(
    num_pooled=st.integers(1, 9),
    diversity=st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 999),
    is_cosine=st.booleans(),
)
def test_picks_equal_the_definition(num_pooled, diversity, seed, is_cosine):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(3, num_pooled)) - 2
    similarity = rng.uniform(-1 if is_cosine else 0, 1, size=(3, num_pooled, num_pooled))
    similarity = (similarity + similarity.transpose(0, 2, 1)) / 2
    top_k = 1 + seed % num_pooled

    picks = mmr(torch.from_numpy(scores), torch.from_numpy(similarity), top_k=top_k, diversity=diversity)

    expected = [mmr_by_hand(*user, top_k, diversity) for user in zip(scores, similarity, strict=True)]
    assert picks.tolist() == expected


def test_half_relevance_half_novelty_by_hand():
    scores = torch.tensor([[0.4, 0.36, 0.2, 0.04]]).log() - 5  # relevance 1, 0.9, 0.5, 0.1
    similarity = code_overlap(torch.tensor([[[1, 1], [1, 2], [1, 3], [2, 0]]]))

    # after item 0: 0.9 - 0.5, 0.5 - 0.5, 0.1 - 0; then 0.5 - 0.5 and 0.1
    assert mmr(scores, similarity, top_k=4, diversity=0.5).tolist() == [[0, 1, 3, 2]]
    assert mmr(scores, similarity, top_k=2, diversity=0.7).tolist() == [[0, 3]]


@given(st.lists(st.floats(-1e4, 0, width=32), min_size=1, max_size=9), st.data())
def test_no_diversity_keeps_the_order_of_the_scores(scores, data):
    top_k = data.draw(st.integers(1, len(scores)))
    expected = sorted(range(len(scores)), key=lambda item: -scores[item])[:top_k]

    picks = mmr(torch.tensor([scores]), torch.ones(1, len(scores), len(scores)), top_k=top_k, diversity=0.0)

    assert picks.tolist() == [expected]


@settings(deadline=None)
@given(st.permutations(range(7)), st.floats(0, 1))
def test_order_of_the_pool_does_not_matter(permutation, diversity):
    generator = torch.Generator().manual_seed(1)
    scores, embeddings = torch.randn(2, 7, generator=generator), torch.randn(2, 7, 3, generator=generator)
    similarity = embedding_similarity(embeddings)

    picks = mmr(scores, similarity, top_k=5, diversity=diversity)
    moved = mmr(scores[:, permutation], similarity[:, permutation][:, :, permutation], top_k=5, diversity=diversity)

    assert torch.tensor(permutation)[moved].tolist() == picks.tolist()


@given(st.lists(st.booleans(), min_size=6, max_size=6), st.floats(0, 1), st.integers(0, 99))
def test_places_without_an_item_come_last_and_nothing_comes_twice(is_item, diversity, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(1, 6, generator=generator).masked_fill(~torch.tensor([is_item]), -math.inf)

    picks = mmr(scores, torch.rand(1, 6, 6, generator=generator), top_k=6, diversity=diversity)[0].tolist()

    assert sorted(picks) == list(range(6))
    assert [is_item[pick] for pick in picks] == sorted(is_item, reverse=True)


def test_most_diversity_takes_the_best_item_and_then_the_least_similar_ones():
    codes = torch.tensor([[[1, 1, 1], [1, 1, 2], [1, 2, 1], [2, 1, 1]]])
    scores = torch.tensor([[-1.0, -2.0, -3.0, -9.0]])

    assert mmr(scores, code_overlap(codes), top_k=4, diversity=1.0).tolist() == [[0, 3, 2, 1]]


def test_overlap_counts_leading_codes_only():
    codes = torch.tensor([[[4, 1, 7], [4, 1, 8], [5, 1, 7]], [[0, 0, 0], [0, 9, 0], [0, 0, 0]]], dtype=torch.int16)

    expected = torch.tensor([[[3, 2, 0], [2, 3, 0], [0, 0, 3]], [[3, 1, 3], [1, 3, 1], [3, 1, 3]]])
    torch.testing.assert_close(code_overlap(codes), expected / 3)


def test_cosines_are_of_unit_vectors_and_zero_for_none():
    embeddings = torch.tensor([[[3.0, 4.0], [0.0, 0.0], [8.0, 6.0]]], dtype=torch.bfloat16)

    expected = torch.tensor([[[1.0, 0.0, 0.96], [0.0, 0.0, 0.0], [0.96, 0.0, 1.0]]])
    torch.testing.assert_close(embedding_similarity(embeddings), expected)


def test_diversified_items_keep_their_scores_and_short_pools_are_filled_up():
    items = torch.tensor([[3, 0, 2], [1, -1, -1]])
    scores = torch.tensor([[0.5, 0.45, 0.05], [0.3, 0.0, 0.0]]).log()
    codes = torch.tensor([[6, 1], [0, 0], [7, 1], [6, 2]])
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.1], [0.0, 1.0]])

    by_codes = diversify(items, scores, top_k=4, diversity=0.8, item_codes=codes)
    by_embeddings = diversify(items, scores, top_k=2, diversity=0.8, item_codes=codes, item_embeddings=embeddings)

    assert by_codes[0].tolist() == [[3, 2, 0, -1], [1, -1, -1, -1]]
    expected = torch.tensor([[0.5, 0.05, 0.45, 0.0], [0.3, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(by_codes[1].exp(), expected)
    assert by_embeddings[0].tolist() == [[3, 0], [1, -1]]
