"""`recommend()`: the lists of `generate()`, exact scores, latents, corrections and chunks."""

import math
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from generated_beams import best_of_each, generate_beams, items_of
from hf_genrec.modeling.genrec_beams import Beams, beam_search, list_items, rank_ids
from invariants.model import NUM_ITEMS, NUM_LEVELS, histories_of, make_model, tiny_config


SETTINGS = [
    {"history_attention": "bidirectional", "num_latent_tokens": 0},
    {"history_attention": "causal", "num_latent_tokens": 1},
    {"history_attention": "causal", "history_unit": "item", "num_latent_tokens": 3},
    {"normalization": "catalog", "num_latent_tokens": 3},
]


@pytest.fixture(scope="module", params=SETTINGS, ids=lambda setting: "-".join(map(str, setting.values())))
def model(request):
    return make_model(tiny_config(**request.param))


@pytest.fixture
def latte():
    return make_model(tiny_config(history_attention="causal", num_latent_tokens=3))


@pytest.mark.parametrize("num_beams", [2, 29, 500])
def test_recommend_and_generate_rank_the_same_items(model, num_beams):
    histories = histories_of(model.config)
    # transformers refuses to fill more beams than there are paths
    items, scores = generate_beams(model, histories, min(num_beams, model.config.num_paths))

    for user in range(3):
        expected, expected_scores = best_of_each(items[user], scores[user])
        history = histories[0][user : user + 1]
        output = model.recommend(history, top_k=len(expected), num_beams=num_beams)
        assert (output.item_tokens[0] - model.config.first_item_token).tolist() == expected
        torch.testing.assert_close(output.scores[0], torch.tensor(expected_scores), rtol=1e-5, atol=1e-5)


def test_one_beam_finds_what_greedy_generation_finds(model):
    rows = model.generate(histories_of(model.config)[0])

    output = model.recommend(histories_of(model.config)[0], top_k=1, num_beams=1)

    assert (output.item_tokens[:, 0] - model.config.first_item_token).tolist() == items_of(model, rows).tolist()


@settings(max_examples=12, deadline=None)
@given(
    setting=st.sampled_from(SETTINGS),
    seed=st.integers(0, 99),
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=17),
    side=st.sampled_from(["left", "right"]),
    num_beams=st.integers(2, 87),
)
def test_random_models_and_batches_rank_as_generate_does(setting, seed, lengths, side, num_beams):
    model = make_model(tiny_config(**setting), seed=seed)
    histories = histories_of(model.config, lengths, padding_side=side, seed=seed)
    num_beams = min(num_beams, model.config.num_paths)
    items, scores = generate_beams(model, histories, num_beams)
    expected = [best_of_each(*user) for user in zip(items, scores, strict=True)]
    top_k = min(len(found) for found, _ in expected)

    output = model.recommend(*histories, top_k=top_k, num_beams=num_beams)

    found = (output.item_tokens - model.config.first_item_token).tolist()
    for user, (user_items, user_scores) in enumerate(expected):
        torch.testing.assert_close(output.scores[user], torch.tensor(user_scores[:top_k]), rtol=1e-4, atol=1e-4)
        for rank, item in enumerate(found[user]):  # ties aside: an item elsewhere has the score of this rank
            at = user_items.index(item) if item in user_items else top_k - 1
            assert user_scores[at] == pytest.approx(user_scores[rank], abs=1e-4)


@pytest.mark.parametrize("num_latent_tokens", [0, 3])
@pytest.mark.parametrize("normalization", ["vocabulary", "catalog"])
def test_five_hundred_beams_of_seventeen_users_rank_as_generate_does(num_latent_tokens, normalization):
    options = {"num_latent_tokens": num_latent_tokens, "normalization": normalization}
    model = make_model(tiny_config(num_items=997, codebook_size=13, **options))
    histories = histories_of(model.config, [length % 6 for length in range(17)])
    items, scores = generate_beams(model, histories, 500)

    output = model.recommend(*histories, top_k=10, num_beams=500)

    found = output.item_tokens - model.config.first_item_token
    for user in range(17):
        expected, expected_scores = best_of_each(items[user], scores[user])
        torch.testing.assert_close(output.scores[user], torch.tensor(expected_scores[:10]), rtol=1e-4, atol=1e-4)
        assert set(found[user, :9].tolist()) <= set(expected[:10])  # places may change where scores tie


@pytest.mark.parametrize("aggregation", ["max", "sum"])
def test_as_many_beams_as_paths_are_exact(model, aggregation):
    histories = histories_of(model.config, (5, 3, 0))

    exact = model.score_items(*histories, latent_aggregation=aggregation).sort(descending=True)
    output = model.recommend(*histories, top_k=NUM_ITEMS, num_beams=1000, latent_aggregation=aggregation)

    assert (output.item_tokens - model.config.first_item_token).tolist() == exact.indices.tolist()
    torch.testing.assert_close(output.scores, exact.values, rtol=1e-5, atol=1e-5)


def test_exact_scores_equal_a_loop_over_plain_forward_calls(model):
    config = model.config
    history = histories_of(config, (4,))[0]

    exact = {name: model.score_items(history, latent_aggregation=name)[0] for name in ("max", "sum")}

    for item in (0, 17, 28):
        paths = []
        for latent in range(max(1, config.num_latent_tokens)):
            codes = model.semantic_id_tokens(torch.tensor([config.first_item_token + item])).tolist()[0]
            tokens = [config.first_latent_token + latent, *codes] if config.num_latent_tokens else codes
            decoder_input_ids = torch.tensor([[config.decoder_start_token_id, *tokens[:-1]]])
            logits = model(history, decoder_input_ids=decoder_input_ids).logits
            if config.normalization == "catalog":
                for step in range(len(tokens)):
                    logits[:, step] = model.catalog_processor()(decoder_input_ids[:, : step + 1], logits[:, step])
            log_probs = logits[0].log_softmax(-1)
            paths.append(sum(log_probs[step, token].item() for step, token in enumerate(tokens)))
        assert exact["max"][item].item() == pytest.approx(max(paths), abs=1e-5)
        assert exact["sum"][item].item() == pytest.approx(math.log(sum(map(math.exp, paths))), abs=1e-5)


def test_probabilities_of_all_items_sum_to_less_than_one_because_they_are_not_renormalised(latte):
    total = latte.score_items(histories_of(latte.config)[0], latent_aggregation="sum").exp().sum(1)

    assert bool((total > 0).all())
    assert bool((total < 1).all())


def test_exact_scoring_does_not_depend_on_the_chunks(latte, monkeypatch):
    histories = histories_of(latte.config)
    whole = latte.score_items(*histories)

    monkeypatch.setattr("hf_genrec.modeling.genrec_rank_beams.PATHS_AT_A_TIME", 21)

    torch.testing.assert_close(latte.score_items(*histories), whole)


def test_lists_grow_until_they_are_full_and_never_repeat(model):
    output = model.recommend(*histories_of(model.config), top_k=NUM_ITEMS, num_beams=1)

    for row in output.item_tokens.tolist():
        assert sorted(row) == [model.config.first_item_token + item for item in range(NUM_ITEMS)]
    assert bool(output.scores.isfinite().all())


def test_only_the_users_whose_lists_are_short_are_searched_again(latte):
    histories = histories_of(latte.config)
    narrow = latte.recommend(*histories, top_k=4, num_beams=4)
    distinct = [len(set(row)) for row in generate_beams(latte, histories, 4)[0].tolist()]
    assert min(distinct) < 4, "the example needs a user with two paths to one item"

    for user in range(3):
        wide = latte.recommend(histories[0][user : user + 1], top_k=4, num_beams=4)
        assert wide.item_tokens.tolist() == narrow.item_tokens[user : user + 1].tolist()


def test_scores_of_returned_paths_add_up(model):
    config = model.config
    for aggregation in ("max", "sum"):
        output = model.recommend(
            *histories_of(config), top_k=3, num_beams=9, return_paths=True, latent_aggregation=aggregation
        )
        for user in range(3):
            for token, score in zip(output.item_tokens[user].tolist(), output.scores[user].tolist(), strict=True):
                paths = [path for path in output.paths[user] if path.item_token == token]
                ends = torch.tensor([path.scores[-1] for path in paths])
                expected = ends.max() if aggregation == "max" else ends.logsumexp(0)
                assert score == pytest.approx(expected.item(), abs=1e-5)
                for path in paths:
                    assert path.codes == model.item_codes[token - config.first_item_token].tolist()
                    assert len(path.scores) == config.num_decoding_steps
                    assert path.scores == sorted(path.scores, reverse=True)
                    assert (path.latent is None) == (config.num_latent_tokens == 0)


def test_pruned_paths_are_legal_prefixes_that_score_below_every_kept_one_of_their_step(latte):
    output = latte.recommend(histories_of(latte.config, (4,))[0], top_k=3, num_beams=5, return_paths=True)

    assert output.pruned[0]
    worst = min(path.scores[-1] for path in output.paths[0])
    for path in output.pruned[0]:
        assert path.item_token is None
        if path.codes:
            assert latte.catalog.node_of(torch.tensor(path.codes)).item() >= 0
        if len(path.codes) == NUM_LEVELS:
            assert path.scores[-1] <= worst


@pytest.mark.parametrize("aggregation", ["max", "sum"])
def test_rescored_items_have_their_exact_scores(model, aggregation):
    histories = histories_of(model.config)

    output = model.recommend(*histories, top_k=4, num_beams=20, num_rescored=7, latent_aggregation=aggregation)

    exact = model.score_items(*histories, latent_aggregation=aggregation)
    items = output.item_tokens - model.config.first_item_token
    torch.testing.assert_close(output.scores, exact.gather(1, items), rtol=1e-4, atol=1e-4)
    assert bool((output.scores.diff(dim=1) <= 0).all())


def test_rescoring_every_item_is_exact_scoring(latte):
    histories = histories_of(latte.config)
    exact = latte.score_items(*histories, latent_aggregation="sum").sort(descending=True)

    output = latte.recommend(
        *histories,
        top_k=NUM_ITEMS,
        num_beams=NUM_ITEMS,
        num_rescored=1000,
        latent_aggregation="sum",
        memory_budget=300_000,
    )

    assert (output.item_tokens - latte.config.first_item_token).tolist() == exact.indices.tolist()
    torch.testing.assert_close(output.scores, exact.values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_rescored", [0, 29])
def test_prior_correction_orders_the_list_but_leaves_the_scores(model, num_rescored):
    histories = histories_of(model.config)
    prior = torch.arange(1, NUM_ITEMS + 1) ** 2
    exact = model.score_items(*histories)
    corrected = (exact - 0.8 * (prior / prior.sum()).log()).sort(descending=True)

    output = model.recommend(
        *histories,
        top_k=NUM_ITEMS,
        num_beams=500,
        prior_correction=0.8,
        item_prior=prior,
        num_rescored=num_rescored,
    )

    assert (output.item_tokens - model.config.first_item_token).tolist() == corrected.indices.tolist()
    torch.testing.assert_close(output.scores, exact.gather(1, corrected.indices), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 2},
        {"exclude_items": torch.tensor([[31, 0], [32, 33], [0, 0]])},
        {"allow_items": torch.arange(NUM_ITEMS) % 3 < 2, "num_rescored": 12, "return_paths": True},
    ],
)
def test_chunks_of_users_give_the_lists_of_one_batch(latte, options):
    histories = histories_of(latte.config)
    together = latte.recommend(*histories, top_k=9, **options)

    for users in (1, 2):
        per_user, per_beam = latte.decoding_bytes(5)
        budget = users * (per_user + 50 * per_beam + 8 * NUM_ITEMS)
        chunked = latte.recommend(*histories, top_k=9, memory_budget=budget, **options)

        assert chunked.item_tokens.tolist() == together.item_tokens.tolist()
        torch.testing.assert_close(chunked.scores, together.scores)
        assert (chunked.paths is None) == (together.paths is None)
        assert len(chunked.paths or [0] * 3) == 3


def test_budget_bounds_the_users_decoded_together(latte, monkeypatch):
    seen, plain = [], latte.decode_states

    def watched(tokens, history, cache):
        seen.append(tuple(tokens.shape))
        return plain(tokens, history, cache)

    monkeypatch.setattr(latte, "decode_states", watched)
    per_user, per_beam = latte.decoding_bytes(5)

    latte.recommend(*histories_of(latte.config), top_k=3, num_beams=20, memory_budget=2 * (per_user + 20 * per_beam))

    assert max(users for users, _ in seen) == 2
    assert {width for _, width in seen} == {1, 3, 15, 20}


def test_estimate_grows_with_beams_and_history_apart(latte):
    short, long = latte.decoding_bytes(5), latte.decoding_bytes(50)

    assert long[0] > 5 * short[0]
    assert long[1] < 1.5 * short[1]


def test_no_users_get_no_lists(latte):
    output = latte.recommend(torch.zeros(0, 3, dtype=torch.long), top_k=4)

    assert output.item_tokens.shape == output.scores.shape == (0, 4)


@pytest.mark.slow
def test_compiled_encoder_and_decoder_give_the_same_lists(latte):
    if shutil.which("g++") is None:
        pytest.skip("no compiler")
    plain = latte.recommend(*histories_of(latte.config), top_k=7)
    latte.encoder, latte.decoder = torch.compile(latte.encoder), torch.compile(latte.decoder)

    compiled = latte.recommend(*histories_of(latte.config), top_k=7)

    assert compiled.item_tokens.tolist() == plain.item_tokens.tolist()
    torch.testing.assert_close(compiled.scores, plain.scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "`top_k` must lie in"),
        ({"num_beams": 0}, "`num_beams` must be at least 1, got 0"),
        ({"latent_aggregation": "mean"}, "`latent_aggregation` must be 'max' or 'sum', got 'mean'"),
        ({"num_rescored": 9}, "`num_rescored` must be 0 or at least `top_k`, got 9 and 10"),
        ({"num_rescored": -1}, "`num_rescored` must be 0 or at least `top_k`, got -1 and 10"),
        ({"prior_correction": 0.5}, "`prior_correction` and `item_prior` go together"),
        ({"item_prior": torch.ones(NUM_ITEMS)}, "`prior_correction` and `item_prior` go together"),
        ({"item_prior": torch.ones(28), "prior_correction": 0.5}, r"`item_prior` must have shape \(29,\), got"),
        ({"item_prior": torch.arange(29), "prior_correction": 0.5}, "`item_prior` must be positive and finite"),
        ({"memory_budget": 0}, "`memory_budget` must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_refused(latte, options, message):
    with pytest.raises(ValueError, match=message):
        latte.recommend(histories_of(latte.config, (3,))[0], **options)


def test_exact_scores_are_the_same_in_training_mode_and_for_nobody(latte):
    histories = histories_of(latte.config)
    model = make_model(tiny_config(history_attention="causal", num_latent_tokens=2, dropout_rate=0.5)).train()

    torch.testing.assert_close(model.score_items(*histories), model.score_items(*histories), rtol=0, atol=0)
    assert model.training
    assert model.score_items(torch.zeros(0, 3, dtype=torch.long)).shape == (0, 29)


def test_item_of_a_tiny_prior_is_put_behind_no_finite_score(latte):
    prior = torch.ones(29)
    prior[3] = 1e-20

    output = latte.recommend(
        *histories_of(latte.config), top_k=29, num_beams=200, prior_correction=0.01, item_prior=prior
    )

    assert bool(output.scores.isfinite().all())
    assert (output.item_tokens.sort(1).values - latte.config.first_item_token).tolist() == [list(range(29))] * 3


@pytest.mark.parametrize("correction", [float("nan"), float("inf")])
def test_corrections_that_are_no_number_are_refused(latte, correction):
    with pytest.raises(ValueError, match="`prior_correction` must be a finite number"):
        latte.recommend(*histories_of(latte.config), top_k=3, prior_correction=correction, item_prior=torch.ones(29))


# --- the search itself -------------------------------------------------------------------------------------------


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
        (history_keys, _), (own_keys, _) = cache.history[0], cache.steps[-1][0]
        seen.append([len(history_keys) // model.config.num_heads, len(own_keys)])
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
    penalties = model.catalog.prior_penalties(prior, 0.7)

    beams = search(model, num_beams=1000, penalties=penalties)

    order = (plain.scores - penalties[-1][plain.leaves]).argsort(descending=True)
    assert beams.leaves[:, :NUM_ITEMS].tolist() == plain.leaves.gather(1, order)[:, :NUM_ITEMS].tolist()
    torch.testing.assert_close(beams.scores[:, :NUM_ITEMS], plain.scores.gather(1, order)[:, :NUM_ITEMS])
    assert search(model, num_beams=2, penalties=penalties).leaves.tolist() != plain.leaves[:, :2].tolist()


def test_prior_of_a_prefix_is_the_sum_over_its_items():
    model = make_model(tiny_config())
    prior = torch.rand(NUM_ITEMS, generator=torch.Generator().manual_seed(1)) + 0.01

    penalties = model.catalog.prior_penalties(prior, 0.5)

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
