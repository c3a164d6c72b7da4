"""`recommend()` with groups of beams, samples and re-ranking for diversity."""

import pyarrow as pa
import pytest
import torch
from scipy.stats import chisquare

from hf_genrec.modeling.genrec_lists import diversify
from hf_genrec.serving.recommender import Recommender
from invariants.model import NUM_ITEMS, histories_of, make_model, tiny_config


GROUPS = {"num_groups": 3, "group_penalty": 0.7}
WAYS = {
    "groups": GROUPS,
    "equal groups": {"num_groups": 2},
    "sample": {"sample_seed": 5},
    "codes": {"diversity": 0.6},
    "embeddings": {"diversity": 0.6, "item_embeddings": torch.eye(NUM_ITEMS)},
    "groups and codes": GROUPS | {"diversity": 0.4},
    "re-scored codes": {"diversity": 0.4, "num_rescored": 13},
}


@pytest.fixture(params=[0, 3], ids=["no latents", "latents"])
def model(request):
    return make_model(tiny_config(history_attention="causal", num_latent_tokens=request.param))


@pytest.fixture
def latte():
    return make_model(tiny_config(history_attention="causal", num_latent_tokens=3))


def items_of(model, output):
    return output.item_tokens - model.config.first_item_token


# --- samples ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_latents", [0, 3])
def test_first_and_second_draw_have_the_probabilities_of_the_model(num_latents):
    config = tiny_config(num_items=6, num_levels=2, codebook_size=3, num_latent_tokens=num_latents)
    config.normalization = "catalog"
    model = make_model(config)
    torch.nn.init.normal_(model.shared.weight, std=3)  # else all items are about as probable
    num_users = 3000
    history = torch.full((num_users, 2), config.first_item_token)
    probability = model.score_items(history[:1], latent_aggregation="sum")[0].double().exp()
    pair = probability.unsqueeze(1) * probability / (1 - probability.unsqueeze(1))
    second = pair.fill_diagonal_(0).sum(0)
    assert probability.sum().item() == pytest.approx(1, abs=1e-5)
    assert probability.max() > 2 * probability.min()

    drawn = items_of(model, model.recommend(history, top_k=2, num_beams=1, sample_seed=3))

    for place, expected in enumerate((probability, second)):
        counts = drawn[:, place].bincount(minlength=6)
        assert chisquare(counts.numpy(), (num_users * expected / expected.sum()).numpy()).pvalue > 0.01


def test_sample_is_repeatable_and_follows_its_seed(model):
    histories = histories_of(model.config)
    first, again, other = (
        model.recommend(*histories, top_k=7, sample_seed=seed, memory_budget=1).item_tokens.tolist()
        for seed in (5, 5, 6)
    )

    assert again == first
    assert other != first


@pytest.mark.parametrize("memory_budget", [1, 1 << 30])
def test_users_with_equal_histories_are_not_drawn_alike(model, memory_budget):
    history = histories_of(model.config, (4,))[0].expand(5, -1)

    rows = model.recommend(history, top_k=7, sample_seed=0, memory_budget=memory_budget).item_tokens.tolist()

    assert len(set(map(tuple, rows))) == 5


def test_sample_of_everything_holds_every_item_with_its_exact_score(model):
    histories = histories_of(model.config)
    exact = model.score_items(*histories, latent_aggregation="sum")

    output = model.recommend(
        *histories, top_k=NUM_ITEMS, num_beams=1, latent_aggregation="sum", sample_seed=1, return_paths=True
    )

    items = items_of(model, output)
    assert items.sort().values.tolist() == [list(range(NUM_ITEMS))] * 3
    torch.testing.assert_close(output.scores, exact.gather(1, items), rtol=1e-5, atol=1e-5)
    firsts = [list(dict.fromkeys(path.item_token for path in paths)) for paths in output.paths]
    assert firsts == output.item_tokens.tolist()


def test_lists_of_a_sample_are_full_without_a_second_search(latte, monkeypatch):
    searches = []
    search_once = type(latte)._search_once
    monkeypatch.setattr(latte, "_search_once", lambda *args: searches.append(args[-1]) or search_once(latte, *args))

    output = latte.recommend(*histories_of(latte.config), top_k=5, num_beams=2, sample_seed=1)

    assert searches == [15]  # five items through three latents
    assert bool(output.scores.isfinite().all())


def test_batches_of_a_recommender_are_not_drawn_alike(latte):
    items = pa.table({"item_id": [f"i{n}" for n in range(NUM_ITEMS)]})
    histories = [["i3", "i8"]] * 4
    options = {"top_k": 7, "sample_seed": 9}

    found = Recommender(latte, items, batch_size=1).recommend(histories, **options)

    assert len(set(map(tuple, found.item_ids))) == 4
    assert Recommender(latte, items, batch_size=1).recommend(histories, **options) == found


# --- groups -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", ["max", "sum"])
def test_equal_groups_find_the_plain_list_and_count_a_path_once(model, aggregation):
    options = {"top_k": NUM_ITEMS, "latent_aggregation": aggregation}
    exact = model.score_items(*histories_of(model.config), latent_aggregation=aggregation)
    plain = model.recommend(*histories_of(model.config), **options | {"latent_aggregation": "max"})

    output = model.recommend(*histories_of(model.config), num_beams=5, num_groups=3, **options)

    items = items_of(model, output)
    assert items.tolist() == items_of(model, plain).tolist()
    torch.testing.assert_close(output.scores, exact.gather(1, items), rtol=1e-5, atol=1e-5)


def test_penalised_groups_begin_with_different_codes():
    model = make_model(tiny_config())
    options = {"top_k": 3, "num_beams": 3}

    items = items_of(model, model.recommend(*histories_of(model.config), num_groups=3, group_penalty=1e4, **options))
    plain = items_of(model, model.recommend(*histories_of(model.config), **options))

    assert all(len(set(row)) == 3 for row in model.item_codes[items][..., 0].tolist())
    assert any(len(set(row)) < 3 for row in model.item_codes[plain][..., 0].tolist())


def test_paths_of_groups_are_told_once_each(latte):
    output = latte.recommend(*histories_of(latte.config), top_k=4, num_beams=20, num_groups=5, return_paths=True)

    for row, paths in zip(output.item_tokens.tolist(), output.paths, strict=True):
        ways = [(path.latent, *path.codes) for path in paths]
        assert len(ways) == len(set(ways))
        assert list(dict.fromkeys(path.item_token for path in paths)) == row


# --- re-ranking -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_by_embeddings", [False, True])
@pytest.mark.parametrize("num_rescored", [0, 9])
@pytest.mark.parametrize("prior_correction", [0.0, 0.8])
def test_diverse_list_is_picked_from_the_best_items(latte, is_by_embeddings, num_rescored, prior_correction):
    histories = histories_of(latte.config)
    prior = torch.arange(1, NUM_ITEMS + 1)
    embeddings = torch.randn(NUM_ITEMS, 4, generator=torch.Generator().manual_seed(0)) if is_by_embeddings else None
    exact = latte.score_items(*histories)
    ranked = exact - prior_correction * (prior / prior.sum()).log()
    pool = ranked.topk(num_rescored or NUM_ITEMS).indices
    options = {"top_k": 5, "diversity": 0.35, "item_embeddings": embeddings}
    wanted = diversify(
        pool, exact.gather(1, pool), ranked=ranked.gather(1, pool), item_codes=latte.item_codes, **options
    )
    if prior_correction:
        options |= {"prior_correction": prior_correction, "item_prior": prior}

    output = latte.recommend(*histories, num_beams=1000, num_rescored=num_rescored, **options)

    assert items_of(latte, output).tolist() == wanted[0].tolist()
    torch.testing.assert_close(output.scores, wanted[1], rtol=1e-5, atol=1e-5)
    assert bool((output.scores.diff(dim=1) > 0).any()), "the example must move something"


def test_most_diverse_list_takes_another_first_code_each_time(model):
    items = items_of(model, model.recommend(*histories_of(model.config), top_k=5, num_beams=1000, diversity=1.0))
    plain = items_of(model, model.recommend(*histories_of(model.config), top_k=5, num_beams=1000))

    assert items[:, 0].tolist() == plain[:, 0].tolist()
    assert all(len(set(row)) == 5 for row in model.item_codes[items][..., 0].tolist())


def test_embeddings_that_are_not_finite_resemble_nothing(latte):
    embeddings = torch.full((NUM_ITEMS, 2), float("nan"))

    output = latte.recommend(*histories_of(latte.config), top_k=11, diversity=0.5, item_embeddings=embeddings)

    assert output.item_tokens.tolist() == latte.recommend(*histories_of(latte.config), top_k=11).item_tokens.tolist()


def test_pool_of_a_diverse_list_counts_in_the_size_of_chunks(latte, monkeypatch):
    sizes = []
    encode = type(latte).encode_history
    monkeypatch.setattr(
        latte, "encode_history", lambda ids, mask: sizes[-1].append(len(ids)) or encode(latte, ids, mask)
    )
    per_user, per_beam = latte.decoding_bytes(2)
    history = histories_of(latte.config, (2,) * 8)[0]
    budget = 8 * (per_user + 29 * per_beam)

    for options in ({}, {"diversity": 0.2}, {"diversity": 0.2, "item_embeddings": torch.rand(NUM_ITEMS, 10_000)}):
        sizes.append([])
        latte.recommend(history, num_beams=29, memory_budget=budget, **options)

    plain, by_codes, by_embeddings = map(max, sizes)
    assert plain == 8 > by_codes > by_embeddings


# --- all of them ------------------------------------------------------------------------------------------------


def test_all_of_it_switched_off_changes_nothing(model):
    plain = model.recommend(*histories_of(model.config))

    off = model.recommend(
        *histories_of(model.config), num_groups=1, group_penalty=0.0, diversity=0.0, item_embeddings=None
    )

    assert off.item_tokens.tolist() == plain.item_tokens.tolist()
    assert off.scores.tolist() == plain.scores.tolist()


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_rules_hold_and_lists_are_full_and_distinct(model, options):
    allow = torch.arange(NUM_ITEMS) % 3 > 0
    exclude = torch.tensor([4, 7, 8]) + model.config.first_item_token  # two of them are allowed
    rules = {"allow_items": allow, "exclude_items": exclude}
    allowed = {item for item in range(NUM_ITEMS) if item % 3} - {4, 7, 8}

    few = items_of(model, model.recommend(*histories_of(model.config), top_k=9, num_beams=6, **rules, **options))
    options = options | {"num_rescored": 0}
    every = model.recommend(*histories_of(model.config), top_k=21, num_beams=4, **rules, **options)

    for row in few.tolist():
        assert set(row) <= allowed
        assert len(set(row)) == 9
    num_allowed = len(allowed)
    for row in items_of(model, every).tolist():
        assert set(row[:num_allowed]) == allowed
    assert (every.item_tokens[:, num_allowed:] == model.config.pad_token_id).all()
    assert every.scores.isfinite().sum(1).tolist() == [num_allowed] * 3


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_scores_are_those_of_the_items_whatever_their_order(options):
    model = make_model(tiny_config(normalization="catalog"))
    histories = histories_of(model.config)

    output = model.recommend(*histories, top_k=8, num_beams=11, **options)

    torch.testing.assert_close(
        output.scores, model.score_items(*histories).gather(1, items_of(model, output)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_half_precision_gives_full_distinct_lists(latte, options):
    output = latte.to(torch.bfloat16).recommend(*histories_of(latte.config), top_k=13, num_beams=5, **options)

    assert all(len(set(row)) == 13 for row in output.item_tokens.tolist())
    assert output.scores.dtype == torch.float32
    assert bool(output.scores.isfinite().all())


PRIOR = {"prior_correction": 0.5, "item_prior": torch.ones(NUM_ITEMS)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_seed": 0, "num_groups": 2}, "`sample_seed` and `num_groups` cannot be combined"),
        ({"sample_seed": 0, "diversity": 0.1}, "`sample_seed` and `diversity` cannot be combined"),
        ({"sample_seed": 0, **PRIOR}, "`sample_seed` and `prior_correction` cannot be combined"),
        ({"sample_seed": 0, "num_rescored": 10}, "`sample_seed` and `num_rescored` cannot be combined"),
        ({"num_groups": 2, "num_rescored": 10}, "`num_groups` and `num_rescored` cannot be combined"),
        ({"num_groups": 2, **PRIOR}, "`num_groups` and `prior_correction` cannot be combined"),
        ({"num_groups": 0}, "`num_groups` must be at least 1, got 0"),
        ({"num_groups": 6, "num_beams": 5}, "`num_groups` must be at most `num_beams`, got 6 and 5"),
        ({"num_groups": 2, "group_penalty": -0.5}, "`group_penalty` must be a finite number of at least 0, got -0.5"),
        ({"num_groups": 2, "group_penalty": float("nan")}, "`group_penalty` must be a finite number"),
        ({"group_penalty": 1.0}, "`group_penalty` is between groups: give `num_groups`"),
        ({"diversity": 1.5}, r"`diversity` must lie in \[0, 1\], got 1.5"),
        ({"diversity": float("nan")}, r"`diversity` must lie in \[0, 1\], got nan"),
        ({"item_embeddings": torch.eye(NUM_ITEMS)}, "`item_embeddings` is what `diversity` compares items by"),
        ({"diversity": 0.5, "item_embeddings": torch.eye(3)}, r"\(29, dimension\), got \(3, 3\)"),
        ({"diversity": 0.5, "item_embeddings": torch.ones(NUM_ITEMS)}, r"\(29, dimension\), got \(29,\)"),
        ({"sample_seed": -1}, r"`sample_seed` must be an integer in \[0, 2\*\*63\), got -1"),
        ({"sample_seed": 0.5}, "`sample_seed` must be a whole number or None, got 0.5"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_does_not_go_together_is_refused(latte, options, message):
    with pytest.raises(ValueError, match=message):
        latte.recommend(histories_of(latte.config)[0], **options)
