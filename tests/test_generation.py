"""Decoding: `recommend()`, `generate()` and exact scoring give one answer."""

import math

import pytest
import torch
from model_invariants import NUM_ITEMS, NUM_LEVELS, histories_of, make_model, random_codes, tiny_config

from hf_genrec.modeling.generation_genrec import Beams, rank_items


SETTINGS = [
    *[{"history_attention": "bidirectional", "num_latent_tokens": number} for number in (0, 3)],
    *[{"history_attention": "causal", "num_latent_tokens": number} for number in (0, 1, 3)],
    {"history_attention": "causal", "history_unit": "item", "num_latent_tokens": 3},
    *[{"normalization": "catalog", "num_latent_tokens": number} for number in (0, 3)],
]


@pytest.fixture(params=SETTINGS, ids=lambda setting: "-".join(map(str, setting.values())))
def model(request):
    return make_model(tiny_config(**request.param))


@pytest.fixture
def latte():
    return make_model(tiny_config(history_attention="causal", num_latent_tokens=3))


def items_of(model, sequences):
    """Items of raw rows of `generate()`, -1 where a row is no item."""
    config = model.config
    codes = sequences[:, -config.num_levels :] - config.first_code_token
    return model.catalog.item_of(codes - torch.arange(config.num_levels) * config.codebook_size)


def generate_beams(model, histories, num_beams):
    output = model.generate(
        histories[0],
        attention_mask=histories[1],
        num_beams=num_beams,
        num_return_sequences=num_beams,
        return_dict_in_generate=True,
        output_scores=True,
    )
    batch_size = len(histories[0])
    items = items_of(model, output.sequences).view(batch_size, num_beams)
    return items, output.sequences_scores.view(batch_size, num_beams)


def best_of_each(items, scores):
    """Items in the order of their first appearance, and that score: what `recommend()` must return."""
    first = {}
    for item, score in zip(items.tolist(), scores.tolist(), strict=True):
        first.setdefault(item, score)
    return list(first), list(first.values())


@pytest.mark.parametrize("num_beams", [2, 10, 29])
def test_recommend_and_generate_rank_the_same_items(model, num_beams):
    histories = histories_of(model.config)

    items, scores = generate_beams(model, histories, num_beams)

    for user in range(3):
        expected, expected_scores = best_of_each(items[user], scores[user])
        history = histories[0][user : user + 1]
        output = model.recommend(history, top_k=len(expected), num_beams=num_beams)
        assert (output.item_tokens[0] - model.config.first_item_token).tolist() == expected
        torch.testing.assert_close(output.scores[0], torch.tensor(expected_scores), rtol=1e-5, atol=1e-5)


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


def test_exact_scoring_does_not_depend_on_the_chunks(latte):
    histories = histories_of(latte.config)

    torch.testing.assert_close(latte.score_items(*histories, chunk_size=7), latte.score_items(*histories))


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


def test_excluding_all_but_two_items_leaves_two_and_fills_with_padding(model):
    config = model.config
    exclude = config.first_item_token + torch.tensor([[i for i in range(NUM_ITEMS) if i not in (4, 23)]] * 3)

    output = model.recommend(*histories_of(config), top_k=5, num_beams=87, exclude_items=exclude)

    exact = model.score_items(*histories_of(config))[:, [4, 23]]
    assert (output.item_tokens[:, :2] - config.first_item_token).sort(dim=1).values.tolist() == [[4, 23]] * 3
    torch.testing.assert_close(output.scores[:, :2], exact.sort(dim=1, descending=True).values, rtol=1e-5, atol=1e-5)
    assert output.item_tokens[:, 2:].tolist() == [[config.pad_token_id] * 3] * 3
    assert output.scores[:, 2:].tolist() == [[-math.inf] * 3] * 3


def test_closed_prefixes_take_no_beam():
    model = make_model(tiny_config(num_items=4, num_levels=2))
    model.set_catalog(torch.tensor([[0, 0], [0, 1], [1, 0], [2, 0]]))
    history = histories_of(model.config, (2,))[0]
    first_codes = model(history).logits[0, 0, model.config.first_code_token :][:3]
    preferred = first_codes.argmax().item()
    members = [item for item, codes in enumerate(model.item_codes.tolist()) if codes[0] == preferred]
    exclude = torch.tensor([members]) + model.config.first_item_token

    output = model.recommend(history, top_k=1, num_beams=1, exclude_items=exclude)

    allowed = model.score_items(history).index_fill(1, torch.tensor(members), -math.inf)
    assert output.scores.isfinite().all()
    assert output.item_tokens.item() - model.config.first_item_token not in members
    assert output.scores.item() <= allowed.max().item() + 1e-5


def test_user_with_everything_excluded_gets_padding_and_others_their_lists(latte):
    first = latte.config.first_item_token
    exclude = torch.zeros(2, NUM_ITEMS, dtype=torch.long)
    exclude[0] = torch.arange(first, first + NUM_ITEMS)

    output = latte.recommend(histories_of(latte.config, (3, 2))[0], top_k=3, exclude_items=exclude)

    assert output.item_tokens[0].tolist() == [0, 0, 0]
    assert len(set(output.item_tokens[1].tolist())) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "`top_k` must lie in"),
        ({"num_beams": 0}, "`num_beams` must be at least 1, got 0"),
        ({"latent_aggregation": "mean"}, "`latent_aggregation` must be 'max' or 'sum', got 'mean'"),
        ({"exclude_items": torch.tensor([[10**6]])}, "`exclude_items` must hold item tokens"),
        ({"exclude_items": torch.tensor([[-100]])}, "`exclude_items` must hold item tokens"),
    ],
)
def test_wrong_arguments_are_refused(latte, options, message):
    with pytest.raises(ValueError, match=message):
        latte.recommend(histories_of(latte.config, (3,))[0], **options)


def test_generate_writes_a_start_token_a_latent_and_codes_whatever_length_is_asked_for(latte):
    config = latte.config
    input_ids, mask = histories_of(config)

    for lengths in ({}, {"max_new_tokens": 1}, {"max_new_tokens": 50}, {"max_length": 2}, {"min_new_tokens": 9}):
        rows = latte.generate(input_ids, attention_mask=mask, **lengths)

        assert rows.shape == (3, 1 + 1 + NUM_LEVELS)
        assert rows[:, 0].tolist() == [config.decoder_start_token_id] * 3
        assert bool(((rows[:, 1] >= config.first_latent_token) & (rows[:, 1] < config.first_code_token)).all())
        assert bool((items_of(latte, rows) >= 0).all())


def test_generate_takes_a_generation_config(latte):
    settings = type(latte.generation_config)(num_beams=5, num_return_sequences=5, max_length=3)
    histories = histories_of(latte.config)

    rows = latte.generate(histories[0], generation_config=settings, attention_mask=histories[1])

    assert items_of(latte, rows).view(3, 5).tolist() == generate_beams(latte, histories, 5)[0].tolist()


def test_further_processors_run_inside_the_catalog(latte):
    def only_even_latents(input_ids, scores):
        if input_ids.shape[1] == 1:
            scores = scores.index_fill(1, torch.tensor([latte.config.first_latent_token + 1]), -math.inf)
        return scores

    rows = latte.generate(
        histories_of(latte.config)[0], do_sample=True, num_return_sequences=40, logits_processor=[only_even_latents]
    )

    assert set((rows[:, 1] - latte.config.first_latent_token).tolist()) == {0, 2}
    assert bool((items_of(latte, rows) >= 0).all())


def test_more_sequences_than_paths_are_refused_and_as_many_are_all_of_them():
    model = make_model(tiny_config(num_items=4, num_latent_tokens=2))
    history = histories_of(model.config, (3,))

    items, scores = generate_beams(model, history, 8)

    assert sorted(items[0].tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert bool(scores.isfinite().all())
    with pytest.raises(ValueError, match=r"only 8 different paths \(4 items x 2 latents\)"):
        model.generate(history[0], num_beams=9, num_return_sequences=9)


def test_sampling_follows_the_model_within_the_catalog():
    model = make_model(tiny_config(num_items=3, num_levels=1))
    history = histories_of(model.config, (3,))[0]
    probabilities = model.score_items(history)[0].softmax(0)

    torch.manual_seed(0)
    rows = model.generate(history, do_sample=True, num_return_sequences=4000)

    counts = items_of(model, rows).bincount(minlength=3)
    torch.testing.assert_close(counts / 4000, probabilities, rtol=0, atol=0.03)


def test_sums_over_beams_are_sums_of_probabilities():
    catalog = make_model(tiny_config(num_items=3, num_levels=1)).catalog
    beams = Beams(
        leaves=torch.tensor([[2, 0, 2, -1, 2]]),
        scores=torch.tensor([[0.2, 0.35, 0.1, 0.0, 0.1]]).log(),
        tokens=torch.zeros(1, 5, 2),
        step_scores=torch.zeros(1, 5, 2),
        pruned=[],
    )

    for aggregation, expected in (("max", [(0, 0.35), (2, 0.2)]), ("sum", [(2, 0.4), (0, 0.35)])):
        items, scores = rank_items(catalog, beams, top_k=4, latent_aggregation=aggregation)

        leaf_items = catalog.items_in_order[[leaf for leaf, _ in expected]].tolist()
        assert items.tolist() == [[*leaf_items, -1, -1]]
        torch.testing.assert_close(scores.exp(), torch.tensor([[p for _, p in expected] + [0.0, 0.0]]))


def test_generate_refuses_a_model_without_unique_codes():
    model = make_model(tiny_config())
    codes = random_codes()
    codes[1] = codes[0]

    with pytest.raises(ValueError, match="1 of 29 items share their semantic ID"):
        model.set_catalog(codes)


def test_beam_sampling_that_runs_out_of_probability_is_an_error():
    model = make_model(tiny_config())
    input_ids, attention_mask = histories_of(model.config)

    with pytest.raises(ValueError, match="sampled beams are no items"):
        model.generate(
            input_ids,
            attention_mask=attention_mask,
            do_sample=True,
            num_beams=10,
            num_return_sequences=10,
            temperature=0.001,
        )
