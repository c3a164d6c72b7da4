"""The search and its selections: beams, scores, caches."""

import pytest
import torch

from hf_genrec.modeling.genrec_beams import Beams, beam_search
from hf_genrec.modeling.genrec_ranking import list_items, prior_penalties, rank_ids
from invariants.model import NUM_ITEMS, histories_of, make_model, tiny_config


def test_sums_over_beams_are_sums_of_probabilities():
    catalog = make_model(tiny_config(num_items=3, num_levels=1)).catalog
    beams = Beams(
        leaves=torch.tensor([[2, 0, 2, -1, 2]]),
        scores=torch.tensor([[0.2, 0.35, 0.1, 0.0, 0.1]]).log(),
        trace=[],
        pruned=[],
    )

    for aggregation, expected in (("max", [(0, 0.35), (2, 0.2)]), ("sum", [(2, 0.4), (0, 0.35)])):
        items, scores = list_items(catalog, *rank_ids(beams, top_k=4, latent_aggregation=aggregation), top_k=4)

        leaf_items = catalog.items_in_order[[leaf for leaf, _ in expected]].tolist()
        assert items.tolist() == [[*leaf_items, -1, -1]]
        torch.testing.assert_close(scores.exp(), torch.tensor([[p for _, p in expected] + [0.0, 0.0]]))


def search(model, *, num_beams, lengths=(5, 3, 1), **options):
    with torch.no_grad():
        return beam_search(
            model, model.encode_history(*histories_of(model.config, lengths)), num_beams=num_beams, **options
        )


def test_history_keys_have_a_row_per_user_and_own_keys_a_row_per_beam(monkeypatch):
    model = make_model(tiny_config(num_latent_tokens=3))
    seen, plain = [], model.decode_states

    def watched(tokens, history, cache):
        states = plain(tokens, history, cache)
        layers = cache.cross_attention_cache.layers[0], cache.self_attention_cache.layers[0]
        seen.append([layer.keys.shape[0] for layer in layers])
        return states

    monkeypatch.setattr(model, "decode_states", watched)
    search(model, num_beams=7)

    assert seen == [[3, 3 * width] for width in (1, 3, 7, 7)]


@pytest.mark.parametrize("normalization", ["vocabulary", "catalog"])
def test_lists_of_children_and_rows_of_the_codebook_find_the_same_beams(normalization, monkeypatch):
    model = make_model(tiny_config(num_latent_tokens=2, normalization=normalization))
    found = []
    for max_children in (1, 5):  # of 5 codes: lists at every level, then rows
        monkeypatch.setattr(model.catalog, "max_children", [max_children] * 3)
        found.append(search(model, num_beams=11))

    assert found[0].leaves.tolist() == found[1].leaves.tolist()
    torch.testing.assert_close(found[0].scores, found[1].scores)
    for lists, rows in zip(found[0].paths(), found[1].paths(), strict=True):
        torch.testing.assert_close(lists, rows)


def test_paths_lead_to_the_leaves_and_pruned_ones_score_below():
    model = make_model(tiny_config(num_latent_tokens=2))
    config = model.config

    beams = search(model, num_beams=4, num_pruned=3)

    tokens, scores = beams.paths()
    codes = tokens[..., 1:] - config.first_code_token - config.codebook_size * torch.arange(3)
    assert model.catalog.node_of(codes).tolist() == beams.leaves.tolist()
    assert scores[..., -1].tolist() == beams.scores.tolist()
    for kept, rest in zip(beams.trace[1:], beams.pruned[1:], strict=True):
        assert bool((rest.scores.max(1).values <= kept.scores.min(1).values).all())


def test_penalties_change_which_beams_are_kept_but_not_their_scores():
    model = make_model(tiny_config())
    plain = search(model, num_beams=1000)
    prior = torch.arange(1.0, NUM_ITEMS + 1) ** 3
    penalties = prior_penalties(model.catalog, prior, 0.7)

    beams = search(model, num_beams=1000, penalties=penalties)

    order = (plain.scores - penalties[-1][plain.leaves]).argsort(descending=True)
    assert beams.leaves[:, :NUM_ITEMS].tolist() == plain.leaves.gather(1, order)[:, :NUM_ITEMS].tolist()
    torch.testing.assert_close(beams.scores[:, :NUM_ITEMS], plain.scores.gather(1, order)[:, :NUM_ITEMS])
    assert search(model, num_beams=2, penalties=penalties).leaves.tolist() != plain.leaves[:, :2].tolist()


def test_prior_of_a_prefix_is_the_sum_over_its_items():
    model = make_model(tiny_config())
    prior = torch.rand(NUM_ITEMS, generator=torch.Generator().manual_seed(1)) + 0.01

    penalties = prior_penalties(model.catalog, prior, 0.5)

    share = prior / prior.sum()
    for depth in range(4):
        nodes = model.catalog.node_of(model.item_codes.long()[:, :depth])
        expected = torch.zeros(model.catalog.num_nodes[depth]).index_add(0, nodes, share)
        torch.testing.assert_close(penalties[depth], 0.5 * expected.log(), rtol=1e-5, atol=1e-6)


def test_allowed_items_of_one_row_hold_for_all_users():
    model = make_model(tiny_config())
    allowed = torch.arange(NUM_ITEMS).unsqueeze(0) % 4 == 1

    one, each = (search(model, num_beams=9, allowed_items=rule) for rule in (allowed, allowed.expand(3, -1)))

    assert one.leaves.tolist() == each.leaves.tolist()
    found = [[leaf for leaf in row if leaf >= 0] for row in one.leaves.tolist()]
    assert [sorted(model.catalog.items_in_order[row].tolist()) for row in found] == [[1, 5, 9, 13, 17, 21, 25]] * 3
