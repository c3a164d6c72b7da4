"""
Nothing but real items: the raw rows of `generate()` and the lists of `recommend()`, counted one by one.

A list is invalid if a row of it is no item, if it repeats an item (a path, for beams of a model with latents) or if
it is shorter than asked for. The check is a Python dictionary of the codes, not the trie that is being tested.
"""

import pytest
import torch

from invariants.model import make_model, tiny_config


CATALOGS = {
    "sparse": {"num_items": 211, "num_levels": 3, "codebook_size": 13},
    "chains": {"num_items": 37, "num_levels": 4, "codebook_size": 29},
    "full": {"num_items": 64, "num_levels": 3, "codebook_size": 4},
    "one-level": {"num_items": 7, "num_levels": 1, "codebook_size": 19},
    "one-item": {"num_items": 1, "num_levels": 3, "codebook_size": 5},
    "fewer-items-than-beams": {"num_items": 3, "num_levels": 2, "codebook_size": 5},
}
LATENTS = [0, 3]


def make(catalog, num_latent_tokens):
    shape = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_decoder_layers": 1}
    return make_model(tiny_config(**CATALOGS[catalog], **shape, num_latent_tokens=num_latent_tokens), seed=11)


def random_histories(config, num_users, seed):
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(config.num_items, (num_users, 5), generator=generator) + config.first_item_token
    lengths = torch.randint(0, 6, (num_users, 1), generator=generator)  # empty ones too
    return input_ids.masked_fill(torch.arange(5) >= lengths, config.pad_token_id)


def items_by_row(model):
    """What a whole raw row of `generate()` must look like: tokens from the latent on -> item."""
    config = model.config
    table = {}
    for item, codes in enumerate(model.item_codes.tolist()):
        tokens = tuple(
            config.first_code_token + level * config.codebook_size + code for level, code in enumerate(codes)
        )
        for latent in range(config.num_latent_tokens) or [None]:
            prefix = () if latent is None else (config.first_latent_token + latent,)
            table[(config.decoder_start_token_id, *prefix, *tokens)] = item
    return table


def num_invalid_lists(model, rows, list_length, *, must_differ):
    """Lists of raw rows in which a row is no item, a path repeats, or rows are missing."""
    table = items_by_row(model)
    lists = [[tuple(row) for row in part] for part in rows.view(-1, list_length, rows.shape[1]).tolist()]
    return sum(
        any(row not in table for row in part) or (must_differ and len(set(part)) < list_length) for part in lists
    )


def count(catalog, num_latent_tokens, num_users):
    """Numbers of lists and of invalid lists for each way to decode."""
    model = make(catalog, num_latent_tokens)
    config = model.config
    counts = dict.fromkeys(("default", "sampling", "beams", "beam sampling", "recommend", "excluding"), 0)
    num_beams = min(10, config.num_paths)
    top_k = min(10, config.num_items)
    torch.manual_seed(0)
    for start in range(0, num_users, 256):
        size = min(256, num_users - start)
        histories = random_histories(config, size, seed=start)
        rows = model.generate(histories)
        assert len(rows) == size
        counts["default"] += num_invalid_lists(model, rows, 1, must_differ=True)
        rows = model.generate(histories, do_sample=True)
        counts["sampling"] += num_invalid_lists(model, rows, 1, must_differ=True)
        beams = {"num_beams": 10, "num_return_sequences": num_beams}
        counts["beams"] += num_invalid_lists(model, model.generate(histories, **beams), num_beams, must_differ=True)
        rows = model.generate(histories, do_sample=True, **beams)
        counts["beam sampling"] += num_invalid_lists(model, rows, num_beams, must_differ=True)
        tokens = model.recommend(histories, top_k=top_k, num_beams=10).item_tokens
        counts["recommend"] += num_invalid_recommendations(config, tokens, histories[:, :0])
        tokens = model.recommend(histories, top_k=top_k, num_beams=10, exclude_items=histories).item_tokens
        counts["excluding"] += num_invalid_recommendations(config, tokens, histories)
    return counts


def num_invalid_recommendations(config, tokens, excluded):
    items = set(range(config.first_item_token, config.first_item_token + config.num_items))
    return num_lists_outside(config, tokens, [items.difference(gone) for gone in excluded.tolist()])


def num_lists_outside(config, tokens, allowed_items):
    """Lists that hold an item that is not allowed, repeat one, or are shorter than they could be."""
    num_invalid = 0
    for row, allowed in zip(tokens.tolist(), allowed_items, strict=True):
        wanted = min(len(row), len(allowed))
        is_valid = len(set(row[:wanted])) == wanted and allowed.issuperset(row[:wanted])
        num_invalid += not (is_valid and set(row[wanted:]) <= {config.pad_token_id})
    return num_invalid


@pytest.mark.parametrize("num_latent_tokens", LATENTS)
@pytest.mark.parametrize("catalog", CATALOGS)
def test_no_list_is_invalid(catalog, num_latent_tokens):
    counts = count(catalog, num_latent_tokens, num_users=40)

    assert set(counts.values()) == {0}, counts


@pytest.mark.slow
@pytest.mark.parametrize("num_latent_tokens", LATENTS)
@pytest.mark.parametrize("catalog", CATALOGS)
def test_no_list_of_twenty_thousand_is_invalid(catalog, num_latent_tokens):
    """12 catalogs x 1,792 users: more than 21,000 lists for each of the six ways to decode."""
    assert len(CATALOGS) * len(LATENTS) * 1792 > 20_000

    counts = count(catalog, num_latent_tokens, num_users=1792)

    assert set(counts.values()) == {0}, counts


SEARCHES = [{}, {"num_groups": 2, "group_penalty": 1.5}, {"diversity": 0.4}, {"sample_seed": 3}]
LATENT_SEARCHES = [{"latent_aggregation": "sum"}, {"num_rescored": 10, "diversity": 0.3}, {"num_rescored": 10}]


def num_invalid_under_rules(catalog, num_latent_tokens, num_users):
    """Invalid lists when every user has random rules, from none to such that leave nothing."""
    model = make(catalog, num_latent_tokens)
    config, generator = model.config, torch.Generator().manual_seed(5)
    items = torch.arange(config.num_items)
    searches = SEARCHES + (LATENT_SEARCHES if num_latent_tokens else [])
    num_invalid = 0
    for number, start in enumerate(range(0, num_users, 60)):
        size = min(60, num_users - start)
        shares = torch.rand(2, size, 1, generator=generator)
        exclude, allow = torch.rand(2, size, config.num_items, generator=generator) < shares
        tokens = model.recommend(
            random_histories(config, size, seed=start),
            top_k=min(10, config.num_items),
            num_beams=7,
            exclude_items=exclude,
            allow_items=allow,
            **searches[number % len(searches)],
        ).item_tokens
        allowed = [set((items[row] + config.first_item_token).tolist()) for row in allow & ~exclude]
        num_invalid += num_lists_outside(config, tokens, allowed)
    return num_invalid


@pytest.mark.parametrize("num_latent_tokens", LATENTS)
@pytest.mark.parametrize("catalog", CATALOGS)
def test_no_list_breaks_random_rules(catalog, num_latent_tokens):
    assert num_invalid_under_rules(catalog, num_latent_tokens, num_users=7 * 60) == 0


@pytest.mark.slow
@pytest.mark.parametrize("num_latent_tokens", LATENTS)
@pytest.mark.parametrize("catalog", CATALOGS)
def test_no_list_of_a_hundred_thousand_breaks_random_rules(catalog, num_latent_tokens):
    assert len(CATALOGS) * len(LATENTS) * 8400 > 100_000

    assert num_invalid_under_rules(catalog, num_latent_tokens, num_users=8400) == 0


@pytest.mark.parametrize("num_latent_tokens", LATENTS)
def test_checker_finds_what_is_wrong(num_latent_tokens):
    model = make("sparse", num_latent_tokens)
    rows = model.generate(random_histories(model.config, 6, seed=0), do_sample=True)
    repeated, foreign, stopped = rows.clone(), rows.clone(), rows.clone()
    repeated[1] = repeated[0]
    foreign[2, -1] = model.config.first_code_token
    stopped[3, -1] = model.config.pad_token_id

    assert num_invalid_lists(model, rows, 1, must_differ=True) == 0
    assert num_invalid_lists(model, repeated, 2, must_differ=True) >= 1
    assert num_invalid_lists(model, foreign, 1, must_differ=True) == 1
    assert num_invalid_lists(model, stopped, 1, must_differ=True) == 1
