"""Semantic IDs that several items share, in models that write them code by code."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from generated_beams import items_of
from hf_genrec.modeling.genrec_catalog import Catalog
from hf_genrec.modeling.genrec_rank_beams import GumbelTopK
from invariants.model import histories_of, make_model, tiny_config


# 12 items with 7 ids: groups of 1, 1, 1, 2, 2, 2 and 3
CODES = torch.tensor([[1, 0], [0, 2], [2, 2], [1, 0], [0, 1], [1, 0], [2, 2], [3, 3], [0, 2], [3, 1], [2, 0], [3, 1]])
GROUPS = [[4], [1, 8], [0, 3, 5], [10], [2, 6], [9, 11], [7]]  # in the order of the codes
INFINITY = float("inf")
USERS = (5, 3, 0)


def make_shared(codes=CODES, **setting):
    """A random model over a table of codes."""
    sizes = {"num_items": len(codes), "num_levels": 2, "codebook_size": 4, "num_layers": 1, "num_decoder_layers": 1}
    model = make_model(tiny_config(**(sizes | setting)), seed=5)
    model.set_catalog(codes)
    return model


def ranking(model, scores, *, allowed=None):
    """Brute force: items of each user by their scores, of equal ones the lower index first."""
    items = range(model.config.num_items)
    rows = [[item for item in items if allowed is None or allowed[user][item]] for user in range(len(scores))]
    return [sorted(row, key=lambda item: (-float(scores[user, item]), item)) for user, row in enumerate(rows)]


def listed(model, output):
    """Item indices of each user, without the filling."""
    items = output.item_tokens - model.config.first_item_token
    return [[item for item in row if item >= 0] for row in items.tolist()]


LATENTS = [0, 3]


@pytest.fixture(params=LATENTS, ids="latents-{}".format)
def model(request):
    return make_shared(num_latent_tokens=request.param, history_attention="causal")


@pytest.fixture
def histories(model):
    return histories_of(model.config, USERS)


# --- the trie --------------------------------------------------------------------------------------------------------


def test_groups_stand_in_the_order_of_their_codes():
    catalog = Catalog(CODES, 4)

    items, places = catalog.items_of_ids(torch.arange(7)[None])

    assert items[0].tolist() == sum(GROUPS, [])
    assert places[0].tolist() == [0, 1, 1, 2, 2, 2, 3, 4, 4, 5, 5, 6]
    assert catalog.id_of_items().tolist() == [2, 1, 4, 2, 0, 2, 4, 6, 1, 5, 3, 5]


def test_items_of_some_ids_are_cut_and_filtered_per_user():
    catalog = Catalog(CODES, 4)
    leaves = torch.tensor([[2, 0, 4], [-1, 5, 1], [-1, -1, -1]])
    allowed = torch.ones(3, 12, dtype=torch.bool)
    allowed[0, [0, 4]] = False

    assert catalog.items_of_ids(leaves)[0].tolist() == [[0, 3, 5, 4, 2, 6], [9, 11, 1, 8, -1, -1], [-1] * 6]
    assert catalog.items_of_ids(leaves, width=2)[0].tolist() == [[0, 3], [9, 11], [-1, -1]]
    items, places = catalog.items_of_ids(leaves, allowed=allowed, width=5)
    assert items.tolist() == [[3, 5, 2, 6, -1], [9, 11, 1, 8, -1], [-1] * 5]
    assert places.tolist() == [[0, 0, 2, 2, 0], [1, 1, 2, 2, 0], [0] * 5]
    assert catalog.items_of_ids(leaves, allowed=allowed[:1])[0].tolist()[1] == [9, 11, 1, 8]


def test_table_of_ids_has_a_row_for_each():
    items, is_item = Catalog(CODES, 4).id_places(torch.tensor([[4, -1, 2]]))

    assert is_item.int().tolist() == [[[1, 1, 0], [0, 0, 0], [1, 1, 1]]]
    assert items[is_item].tolist() == [2, 6, 0, 3, 5]


def test_prior_of_an_id_is_that_of_its_items_together():
    tables = Catalog(CODES, 4).prior_penalties(torch.arange(1, 13), 1.0)

    expected = torch.tensor([sum(item + 1 for item in group) / 78 for group in GROUPS]).log()
    torch.testing.assert_close(tables[2], expected)
    torch.testing.assert_close(tables[0], torch.zeros(1))


# --- lists -----------------------------------------------------------------------------------------------------------


def test_items_of_an_id_have_its_score_to_the_last_bit(model, histories):
    scores = model.score_items(*histories)

    assert scores.shape == (3, 12)
    assert [scores[:, group].unique(dim=1).shape[1] for group in GROUPS] == [1] * 7
    history = model.encode_history(*histories)
    torch.testing.assert_close(scores, model.score_candidates(history, torch.arange(12).expand(3, -1)))


def test_joint_probabilities_of_latents_and_items_add_up_to_the_exact_scores(model, histories):
    items = torch.tensor([5, 7, 0, 8])

    paths = model.score_paths(*histories, items=items)

    scores = model.score_items(*histories, latent_aggregation="sum")
    torch.testing.assert_close(paths.logsumexp(1), scores[:, items])
    assert paths[..., 0].tolist() == paths[..., 2].tolist()


@pytest.mark.parametrize("aggregation", ["max", "sum"])
@pytest.mark.parametrize("top_k", [1, 4, 12])
def test_lists_are_those_of_exact_scores(model, histories, aggregation, top_k):
    scores = model.score_items(*histories, latent_aggregation=aggregation)

    output = model.recommend(*histories, top_k=top_k, num_beams=99, latent_aggregation=aggregation)

    expected = [row[:top_k] for row in ranking(model, scores)]
    assert listed(model, output) == expected
    torch.testing.assert_close(output.scores, scores.gather(1, torch.tensor(expected)))


def test_few_beams_fill_the_list_since_an_id_gives_way_to_all_its_items(model, histories):
    output = model.recommend(*histories, top_k=12, num_beams=2)

    assert [sorted(row) for row in listed(model, output)] == [list(range(12))] * 3


def test_items_are_excluded_one_by_one(model, histories):
    scores = model.score_items(*histories)
    excluded = torch.zeros(3, 12, dtype=torch.bool)
    excluded[0, [0, 5, 4]], excluded[1, [1, 8]], excluded[2, [2, 3, 9]] = True, True, True

    output = model.recommend(*histories, top_k=12, num_beams=99, exclude_items=excluded)
    shared = model.recommend(*histories, top_k=12, num_beams=2, exclude_items=excluded[2])

    assert listed(model, output) == ranking(model, scores, allowed=~excluded)
    assert output.scores.isfinite().sum(1).tolist() == [9, 10, 9]
    assert [sorted(row) for row in listed(model, shared)] == [[0, 1, 4, 5, 6, 7, 8, 10, 11]] * 3


def test_rule_that_allows_one_item_of_a_shared_id_lists_that_one(model, histories):
    output = model.recommend(*histories, top_k=3, num_beams=1, allow_items=torch.arange(12) == 3)

    assert output.item_tokens.tolist() == [[model.config.first_item_token + 3, 0, 0]] * 3


def test_prior_correction_is_that_of_the_id(model, histories):
    prior = torch.arange(1, 13)
    scores = model.score_items(*histories)
    of_id = torch.zeros(12)
    for group in GROUPS:
        of_id[group] = (prior[group].sum() / prior.sum()).log()

    options = {"prior_correction": 0.8, "item_prior": prior}
    output = model.recommend(*histories, top_k=9, num_beams=99, **options)

    expected = [row[:9] for row in ranking(model, scores - 0.8 * of_id)]
    assert listed(model, output) == expected
    torch.testing.assert_close(output.scores, scores.gather(1, torch.tensor(expected)))


@pytest.mark.parametrize("options", [{}, {"diversity": 1e-6}, {"prior_correction": 0.3, "item_prior": torch.ones(12)}])
def test_rescored_ids_give_way_to_their_items_in_order(options):
    model = make_shared(num_latent_tokens=3)
    histories = histories_of(model.config, USERS)
    scores = model.score_items(*histories, latent_aggregation="sum")
    sizes = torch.tensor([len(group) for group in GROUPS])[model.catalog.id_of_items()]
    ranked = scores - 0.3 * sizes.log() if "item_prior" in options else scores

    output = model.recommend(*histories, top_k=10, num_beams=99, num_rescored=12, latent_aggregation="sum", **options)

    assert listed(model, output) == [row[:10] for row in ranking(model, ranked)]


def test_diverse_list_takes_other_ids_before_the_second_item_of_one(model, histories):
    output = model.recommend(*histories, top_k=7, num_beams=99, diversity=0.95)

    ids = model.catalog.id_of_items()
    assert [sorted(ids[row].tolist()) for row in listed(model, output)] == [list(range(7))] * 3


def test_groups_of_beams_list_all_items_of_their_ids(model, histories):
    output = model.recommend(*histories, top_k=12, num_beams=4, num_groups=2, group_penalty=1.0)

    assert [sorted(row) for row in listed(model, output)] == [list(range(12))] * 3


def test_distinct_items_are_all_items_of_the_ids_at_the_beams(model, histories):
    some, all_ids = (model.recommend(*histories, top_k=1, num_beams=beams) for beams in (2, 50))

    sizes = {tuple(CODES[group[0]].tolist()): len(group) for group in GROUPS}
    assert all_ids.num_distinct.tolist() == [12, 12, 12]
    alone = make_shared(torch.tensor([[0, 1], [2, 0], [3, 3]]))
    assert alone.recommend(*histories_of(alone.config, USERS), top_k=1).num_distinct.tolist() == [3, 3, 3]
    if not model.config.num_latent_tokens:  # else two beams may be one id
        assert all(
            count in {a + b for a in sizes.values() for b in sizes.values()} for count in some.num_distinct.tolist()
        )
        assert some.num_distinct.max() > 2


def test_paths_name_every_listed_item_of_their_id():
    model = make_shared(num_latent_tokens=0)
    histories = histories_of(model.config, (4,))
    best = listed(model, model.recommend(*histories, top_k=12, num_beams=99))[0]
    top_k = best.index(3) + 1  # ends within the group 0, 3, 5

    output = model.recommend(*histories, top_k=top_k, num_beams=99, return_paths=True)

    first = model.config.first_item_token
    assert [path.item_token - first for path in output.paths[0]] == best[:top_k]
    assert [path.codes for path in output.paths[0]] == CODES[best[:top_k]].tolist()
    torch.testing.assert_close(torch.tensor([path.scores[-1] for path in output.paths[0]]), output.scores[0])


# --- samples ---------------------------------------------------------------------------------------------------------


def test_sample_divides_the_probability_of_an_id_evenly_among_its_items(model):
    histories = [rows.expand(4000, -1) for rows in histories_of(model.config, (4,))]
    model.config.normalization = "catalog"  # then the probabilities of the ids sum to one
    scores = model.score_items(histories[0][:1], latent_aggregation="sum")[0]
    sizes = torch.tensor([len(group) for group in GROUPS])[model.catalog.id_of_items()]
    probabilities = scores.exp() / sizes
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-5)

    output = model.recommend(*histories, top_k=2, num_beams=1, sample_seed=3, latent_aggregation="sum")

    drawn = torch.tensor(listed(model, output))
    frequencies = drawn[:, 0].bincount(minlength=12) / 4000
    torch.testing.assert_close(frequencies, probabilities, rtol=0, atol=0.025)
    pairs = probabilities[:, None] * probabilities / (1 - probabilities[:, None])  # the second among the rest
    second = pairs.fill_diagonal_(0).sum(0)
    torch.testing.assert_close(drawn[:, 1].bincount(minlength=12) / 4000, second, rtol=0, atol=0.025)


def test_sample_of_everything_lists_each_item_once_with_its_score(model, histories):
    allowed = torch.arange(12) != 3

    output = model.recommend(*histories, top_k=12, num_beams=99, sample_seed=7, allow_items=allowed)

    items = listed(model, output)
    assert [sorted(row) for row in items] == [[item for item in range(12) if item != 3]] * 3
    torch.testing.assert_close(output.scores[:, :11], model.score_items(*histories).gather(1, torch.tensor(items)))
    assert output.scores[:, 11].tolist() == [-INFINITY] * 3


def test_parts_of_a_beam_come_after_it_and_the_first_with_it():
    sample = GumbelTopK(torch.Generator().manual_seed(1))
    candidates = torch.tensor([0.1, 0.6, 0.3]).log().expand(5, 1, 3)
    sample(candidates, 3, None)

    is_part = torch.tensor([[True, True, False], [False, True, False]]).expand(5, 2, 3)
    places = sample.divided(is_part)

    assert places[~is_part].tolist() == [-INFINITY] * 15
    torch.testing.assert_close(places.amax(2), sample.order[:, :2], rtol=0, atol=1e-6)


# --- the whole model -------------------------------------------------------------------------------------------------


def test_generated_ids_name_their_first_item(model, histories):
    rows = model.generate(histories[0], attention_mask=histories[1], num_beams=5, num_return_sequences=5)

    assert set(items_of(model, rows).tolist()) <= {group[0] for group in GROUPS}


def test_saved_model_loads_and_answers_the_same(model, histories, tmp_path):
    model.save_pretrained(tmp_path)

    loaded = type(model).from_pretrained(tmp_path)

    assert loaded.item_codes.tolist() == CODES.tolist()
    expected, output = (one.recommend(*histories, top_k=5, num_beams=6) for one in (model, loaded))
    assert output.item_tokens.tolist() == expected.item_tokens.tolist()
    assert output.scores.tolist() == expected.scores.tolist()


@pytest.mark.parametrize("normalization", ["vocabulary", "catalog"])
def test_loss_is_the_mean_negative_log_likelihood_of_the_ids(normalization):
    model = make_shared(num_latent_tokens=3, normalization=normalization, history_attention="causal")
    input_ids, mask = histories_of(model.config, (5, 4, 3))
    labels = torch.full_like(input_ids, -100)
    targets = torch.tensor([3, 11, 7])
    labels[torch.arange(3), torch.tensor([4, 3, 2])] = targets + model.config.first_item_token

    loss = model(input_ids, mask, labels=labels).loss

    scores = model.score_items(input_ids, mask, latent_aggregation="sum")
    torch.testing.assert_close(loss, -scores[torch.arange(3), targets].mean() / 2)


def test_sample_of_no_allowed_item_is_an_empty_list(model, histories):
    nothing = torch.zeros(12, dtype=torch.bool)

    output = model.recommend(*histories, top_k=3, allow_items=nothing, sample_seed=1)

    assert (output.item_tokens == model.config.pad_token_id).all()
    assert (output.scores == -float("inf")).all()


@settings(max_examples=15, deadline=None)
@given(
    rows=st.lists(st.tuples(*[st.integers(0, 3)] * 2), min_size=1, max_size=13),
    top_k=st.integers(1, 13),
    num_beams=st.integers(1, 9),
    num_latents=st.sampled_from(LATENTS),
    mask=st.lists(st.booleans(), min_size=13, max_size=13),
    options=st.sampled_from([{}, {"sample_seed": 1}, {"diversity": 0.4}, {"num_groups": 1, "return_paths": True}]),
)
def test_lists_are_full_distinct_allowed_and_keep_ids_together(rows, top_k, num_beams, num_latents, mask, options):
    model = make_shared(torch.tensor(rows), num_latent_tokens=num_latents)
    histories = histories_of(model.config, USERS)
    allowed = torch.tensor(mask[: len(rows)])

    top_k = min(top_k, len(rows))

    output = model.recommend(*histories, top_k=top_k, num_beams=num_beams, allow_items=allowed, **options)

    ids = model.catalog.id_of_items().tolist()
    for row, scores in zip(listed(model, output), output.scores.tolist(), strict=True):
        assert len(set(row)) == len(row) == min(top_k, int(allowed.sum()))
        assert bool(allowed[row].all())
        assert all(score == -INFINITY for score in scores[len(row) :])
        if "sample_seed" in options or "diversity" in options:
            continue
        assert scores == sorted(scores, reverse=True)
        runs = [item for place, item in enumerate(row) if place == 0 or ids[item] != ids[row[place - 1]]]
        assert len(runs) == len({ids[item] for item in row})
        assert all(a < b for a, b in zip(row, row[1:], strict=False) if ids[a] == ids[b])
