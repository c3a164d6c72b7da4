"""Exact scores by table look-up: a naive loop is the reference, equal scores go by the item index."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_genrec.modeling import genrec_item_graph
from hf_genrec.modeling.genrec_item_graph import best_items, candidate_scores, item_scores
from hf_genrec.modeling.genrec_lists import first_of_the_best, gumbel_noise, random_items, user_keys


def tables_and_codes(num_users=3, num_items=41, num_levels=5, codebook_size=7, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(num_users, num_levels, codebook_size, generator=generator).log_softmax(-1)
    return log_probs, torch.randint(codebook_size, (num_items, num_levels), generator=generator).short()


def by_hand(log_probs, codes):
    """Scores as the definition says, added from the first level to the last in float32."""
    scores = torch.zeros(len(log_probs), len(codes))
    for user, tables in enumerate(log_probs):
        for item, semantic_id in enumerate(codes.tolist()):
            for level, code in enumerate(semantic_id):
                scores[user, item] += tables[level, code]
    return scores


def sorted_by_hand(values):
    """Positions of each row by falling value, then by rising position."""
    return [sorted(range(len(row)), key=lambda place: (-row[place], place)) for row in values.tolist()]


def test_scores_are_the_sums_of_a_naive_loop():
    log_probs, codes = tables_and_codes()

    assert item_scores(log_probs, codes).tolist() == by_hand(log_probs, codes).tolist()


def test_scores_of_some_items_are_bit_for_bit_those_of_all():
    log_probs, codes = tables_and_codes()
    items = torch.tensor([[40, 0], [3, 3], [17, 5]])

    assert (
        candidate_scores(log_probs, codes, items).tolist() == item_scores(log_probs, codes).gather(1, items).tolist()
    )


@pytest.mark.parametrize("codebook_size", [256, 512])
def test_codes_of_eight_and_nine_bits_are_looked_up_alike(codebook_size):
    log_probs, codes = tables_and_codes(2, 11, 3, codebook_size)
    codes[4] = codebook_size - 1

    assert item_scores(log_probs, codes)[:, 4].tolist() == log_probs[:, :, -1].sum(1).tolist()


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999),
    num_users=st.integers(1, 9),
    num_items=st.integers(1, 60),
    num_levels=st.integers(1, 6),
    codebook_size=st.integers(1, 9),
    top_k=st.integers(1, 64),
    users_per_table=st.integers(1, 9),
    scores_at_a_time=st.integers(1, 99),
)
def test_lists_are_those_of_a_sort_whatever_the_pieces(
    seed, num_users, num_items, num_levels, codebook_size, top_k, users_per_table, scores_at_a_time
):
    log_probs, codes = tables_and_codes(num_users, num_items, num_levels, codebook_size, seed=seed)
    log_probs = log_probs.round()  # makes many scores equal
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(genrec_item_graph, "USERS_PER_TABLE", users_per_table)
        patch.setattr(genrec_item_graph, "SCORES_AT_A_TIME", scores_at_a_time)
        items, scores = best_items(log_probs, codes, top_k=top_k)

    expected = sorted_by_hand(by_hand(log_probs, codes))
    num_found = min(top_k, num_items)
    assert items[:, :num_found].tolist() == [order[:top_k] for order in expected]
    assert items[:, num_found:].tolist() == [[-1] * (top_k - num_found)] * num_users
    assert scores[:, :num_found].tolist() == by_hand(log_probs, codes).gather(1, items[:, :num_found]).tolist()


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 4).flatmap(
        lambda width: st.lists(
            st.lists(st.sampled_from([-float("inf"), -1.0, 0.0, 2.0]), min_size=width, max_size=width), min_size=1
        )
    ),
    top_k=st.integers(1, 5),
)
def test_of_equal_values_the_first_are_taken(rows, top_k):
    values = torch.tensor(rows).repeat(1, 3)

    found = first_of_the_best(values, top_k)

    for row, places in zip(values.tolist(), found.tolist(), strict=True):
        expected = sorted(range(len(row)), key=lambda place: (-row[place], place))[:top_k]
        finite = [place for place in expected if row[place] > -float("inf")]
        assert places[: len(finite)] == finite
        assert len(set(places)) == min(top_k, len(row))


def test_items_that_are_not_allowed_are_left_out():
    log_probs, codes = tables_and_codes()
    order = torch.tensor(sorted_by_hand(by_hand(log_probs, codes)))
    allowed = torch.ones(3, 41, dtype=torch.bool)
    allowed[0, order[0, :2]] = False
    allowed[1, order[1, 1:]] = False

    items, scores = best_items(log_probs, codes, top_k=3, allowed=allowed)

    assert items.tolist() == [order[0, 2:5].tolist(), [int(order[1, 0]), -1, -1], order[2, :3].tolist()]
    assert scores[1, 1:].tolist() == [-float("inf")] * 2


def test_one_rule_serves_all_users():
    log_probs, codes = tables_and_codes()
    allowed = (torch.arange(41) == 7).unsqueeze(0)

    assert best_items(log_probs, codes, top_k=2, allowed=allowed)[0].tolist() == [[7, -1]] * 3


def test_penalty_changes_the_order_but_not_the_scores():
    log_probs, codes = tables_and_codes()
    penalty = torch.arange(41.0)

    items, scores = best_items(log_probs, codes, top_k=4, penalty=penalty)

    plain = by_hand(log_probs, codes)
    assert items.tolist() == [order[:4] for order in sorted_by_hand(plain - penalty)]
    assert scores.tolist() == plain.gather(1, items).tolist()


def test_tables_in_half_precision_are_summed_in_float32():
    log_probs, codes = tables_and_codes()
    half = log_probs.bfloat16()

    assert item_scores(half, codes).tolist() == by_hand(half.float(), codes).tolist()


def test_noise_depends_on_the_seed_the_user_and_the_item_alone():
    keys, catalog = user_keys(5, torch.arange(9)), torch.arange(40)

    noise = gumbel_noise(keys, catalog)

    assert noise[4:6, 10:13].tolist() == gumbel_noise(keys[4:6], catalog[10:13]).tolist()
    assert noise.unique().numel() == 9 * 40
    assert not torch.allclose(noise, gumbel_noise(user_keys(6, torch.arange(9)), catalog))


def test_noise_has_the_distribution_of_gumbel():
    noise = gumbel_noise(user_keys(0, torch.arange(7)), torch.arange(30_000)).flatten().double()

    for value in (-1.0, 0.0, 1.0, 3.0):
        expected = float(torch.tensor(-value).exp().neg().exp())  # P(noise <= value)
        assert float((noise <= value).double().mean()) == pytest.approx(expected, abs=0.005)


def test_random_items_cover_the_catalog_evenly():
    counts = random_items(user_keys(3, torch.arange(50)), 400, num_items=7).flatten().bincount(minlength=7)

    assert counts.sum() == 20_000
    assert int((counts - 20_000 / 7).abs().max()) < 250  # five standard deviations
