"""Rules: excluded and allowed items, as tokens or masks, for all users or each."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_genrec.modeling.genrec_lists import allowed_items
from invariants.model import NUM_ITEMS, histories_of, make_model, tiny_config


@pytest.fixture(params=[{}, {"num_latent_tokens": 3}, {"normalization": "catalog", "num_latent_tokens": 2}])
def model(request):
    return make_model(tiny_config(**request.param))


@pytest.fixture
def latte():
    return make_model(tiny_config(history_attention="causal", num_latent_tokens=3))


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


RULE_MODELS = [make_model(tiny_config(num_latent_tokens=number)) for number in (0, 2)]
masks = st.lists(st.booleans(), min_size=NUM_ITEMS, max_size=NUM_ITEMS)


@settings(max_examples=25, deadline=None)
@given(
    model=st.sampled_from(RULE_MODELS),
    exclude=st.lists(masks, min_size=3, max_size=3),
    allow=st.none() | masks,
    top_k=st.integers(1, NUM_ITEMS),
    num_beams=st.integers(1, 60),
)
def test_lists_hold_allowed_items_only_and_as_many_as_there_are(model, exclude, allow, top_k, num_beams):
    exclude = torch.tensor(exclude)
    allow = None if allow is None else torch.tensor(allow)

    output = model.recommend(
        *histories_of(model.config), top_k=top_k, num_beams=num_beams, exclude_items=exclude, allow_items=allow
    )

    allowed = ~exclude if allow is None else ~exclude & allow
    for user in range(3):
        items = (output.item_tokens[user] - model.config.first_item_token).tolist()
        found = [item for item in items if item >= 0]
        assert len(set(found)) == len(found) == min(top_k, int(allowed[user].sum()))
        assert bool(allowed[user, found].all())
        assert output.item_tokens[user, len(found) :].tolist() == [model.config.pad_token_id] * (top_k - len(found))
        assert output.scores[user].isfinite().tolist() == [True] * len(found) + [False] * (top_k - len(found))


def test_scores_of_allowed_items_do_not_depend_on_the_rule(model):
    exact = model.score_items(*histories_of(model.config))
    allow = torch.arange(NUM_ITEMS) % 3 == 0

    output = model.recommend(*histories_of(model.config), top_k=10, num_beams=500, allow_items=allow)

    items = torch.arange(0, NUM_ITEMS, 3)
    best = exact[:, items].sort(dim=1, descending=True)
    assert (output.item_tokens - model.config.first_item_token).tolist() == items[best.indices].tolist()
    torch.testing.assert_close(output.scores, best.values, rtol=1e-4, atol=1e-4)


def test_tokens_and_masks_for_all_users_or_each_are_the_same_rule(latte):
    first = latte.config.first_item_token
    items = torch.tensor([3, 4, 8, 15, 16, 23])
    mask = torch.zeros(NUM_ITEMS, dtype=torch.bool).index_fill(0, items, True)
    tokens = items + first
    forms = [tokens, tokens.expand(3, -1), tokens.int().unsqueeze(0), mask, mask.expand(3, -1)]
    padded = torch.nn.functional.pad(tokens.expand(3, -1), (2, 1), value=latte.config.pad_token_id)

    lists = [
        [
            latte.recommend(*histories_of(latte.config), top_k=5, **{name: form}).item_tokens.tolist()
            for form in [*forms, padded]
        ]
        for name in ("exclude_items", "allow_items")
    ]

    assert all(answers == [answers[0]] * 6 for answers in lists)
    assert {token for row in lists[1][0] for token in row} <= set(tokens.tolist())
    assert {token for row in lists[0][0] for token in row}.isdisjoint(tokens.tolist())


def test_excluding_wins_over_allowing(latte):
    first = latte.config.first_item_token

    output = latte.recommend(
        histories_of(latte.config, (3,))[0],
        top_k=3,
        allow_items=torch.tensor([first + 1, first + 7]),
        exclude_items=torch.tensor([[first + 7]]),
    )

    assert output.item_tokens.tolist() == [[first + 1, 0, 0]]


@pytest.mark.parametrize(
    "rule", [{"allow_items": torch.zeros(2, dtype=torch.long)}, {"exclude_items": torch.ones(NUM_ITEMS).bool()}]
)
@pytest.mark.parametrize("options", [{}, {"num_rescored": 9}, {"return_paths": True}])
def test_rule_that_leaves_nothing_gives_empty_lists(latte, rule, options):
    output = latte.recommend(*histories_of(latte.config), top_k=4, **rule, **options)

    assert output.item_tokens.tolist() == [[latte.config.pad_token_id] * 4] * 3
    assert output.scores.tolist() == [[-math.inf] * 4] * 3
    assert output.paths in (None, [[], [], []])


def test_allowed_items_are_the_allowed_less_the_excluded():
    config = tiny_config(num_items=5)
    first = config.first_item_token
    device = torch.device("cpu")

    assert allowed_items(config, None, None, device=device) is None
    both = allowed_items(config, torch.tensor([[first, 0], [1, first + 4]]), torch.arange(5) > 1, device=device)
    assert both.int().tolist() == [[0, 0, 1, 1, 1], [0, 0, 1, 1, 0]]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (torch.tensor([[10**6]]), "must hold item tokens in .* got 1000000"),
        (torch.tensor([-100]), "must hold item tokens in .* got -100"),
        (torch.arange(4, 11), r"got 4, 5, 6, 7, 8, ... \(7 in all\)"),
        (torch.ones(2, 3, dtype=torch.long), r"\(batch_size, n\) = \(3, n\)"),
        (torch.ones(28, dtype=torch.bool), "mask over the 29 items"),
        (torch.ones(2, 29, dtype=torch.bool), r"got torch.bool of shape \(2, 29\)"),
        (torch.ones(3), "must hold integers"),
        (torch.tensor(1), r"of shape \(\)"),
    ],
)
@pytest.mark.parametrize("name", ["exclude_items", "allow_items"])
def test_wrong_rules_are_refused(latte, name, rule, message):
    with pytest.raises(ValueError, match=f"(?s)`{name}`.*{message}"):
        latte.recommend(*histories_of(latte.config), **{name: rule})
