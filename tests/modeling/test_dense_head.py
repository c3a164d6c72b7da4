"""Two heads on one history: the dense head, lists by both heads, and what is left of the generator alone."""

import pytest
import torch

from hf_genrec import (
    ACERecConfig,
    ACERecForItemGeneration,
    LatteConfig,
    LatteForConditionalGeneration,
    RPGConfig,
    RPGForItemGeneration,
)
from hf_genrec.modeling.genrec_encoder import item_loss, sampled_item_loss
from invariants.model import (
    NUM_ITEMS,
    ModelInvariants,
    RecommendInvariants,
    histories_of,
    make_model,
    random_codes,
    solved_circle,
    tiny_config,
)


SHAPE = {"history_attention": "causal", "history_unit": "item", "normalization": "catalog", "dense_head": True}
CONFIGS = {
    "psid": tiny_config(**SHAPE),
    "latte": tiny_config(**SHAPE, num_latent_tokens=2),
    "texts and codes": tiny_config(**SHAPE, dense_rows=False, dense_text_dim=7),
    "rows": tiny_config(**SHAPE, dense_codes=False),
    "texts": tiny_config(**SHAPE, dense_codes=False, dense_rows=False, dense_text_dim=7),
}
EVERY_BEAM = 2 * NUM_ITEMS


def two_headed(config, **changes):
    model = make_model(LatteConfig(**(config.to_diff_dict() | changes)))
    if model.config.dense_text_dim:
        model.set_text_vectors(torch.randn(NUM_ITEMS, 7, generator=torch.Generator().manual_seed(0)))
    return model


RPG = RPGConfig(
    num_items=NUM_ITEMS, num_levels=3, codebook_size=5, d_model=16, d_ff=24, num_heads=2, max_history_length=9,
    embedding_dropout=0.0, attention_dropout=0.0, dense_head=True,
)  # fmt: skip


class TestRPGWithTwoHeads(ModelInvariants):
    MODEL_CLASS = RPGForItemGeneration
    CONFIGS = {"rpg": RPG}


def parallel_model(**changes):
    model = make_model(RPGConfig(**(RPG.to_diff_dict() | changes)), model_class=RPGForItemGeneration)
    if model.config.dense_text_dim:
        model.set_text_vectors(torch.randn(NUM_ITEMS, 7, generator=torch.Generator().manual_seed(0)))
    return model


def items_of(model, output):
    return (output.item_tokens - model.config.first_item_token).tolist()


class TestTwoHeads(ModelInvariants):
    MODEL_CLASS = LatteForConditionalGeneration
    CONFIGS = {"all parts": tiny_config(**SHAPE, dense_text_dim=7)}

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, config):
        return two_headed(config)


class ListsOfTwoHeads(RecommendInvariants):
    """The invariants with the `OPTIONS` that a model was saved with."""

    MODEL_CLASS = LatteForConditionalGeneration
    CONFIGS = {"latte": CONFIGS["latte"]}

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, config):
        model = two_headed(config)
        for name, value in cls.OPTIONS.items():
            setattr(model.recommend_config, name, value)
        return model


class TestListsByBothHeads(ListsOfTwoHeads):
    OPTIONS = {"dense_weight": 0.7}


class TestListsOfTheDenseHead(ListsOfTwoHeads):
    OPTIONS = {"decoding": "dense"}


class TestDraftedLists(ListsOfTwoHeads):
    OPTIONS = {"dense_weight": 0.7, "decoding": "exact"}


@pytest.mark.parametrize("name", ["psid", "latte", "texts"])
@pytest.mark.parametrize("latent_aggregation", ["max", "sum"])
def test_the_best_by_both_heads_are_those_of_the_whole_catalog(name, latent_aggregation):
    model = two_headed(CONFIGS[name])
    history = histories_of(model.config)
    excluded = torch.zeros(3, NUM_ITEMS, dtype=torch.bool)
    excluded[1, 4:17] = True

    output = model.recommend(
        *history,
        top_k=13,
        num_beams=EVERY_BEAM,
        dense_weight=0.6,
        latent_aggregation=latent_aggregation,
        exclude_items=excluded,
    )

    both = model.score_items(*history, latent_aggregation=latent_aggregation) + 0.6 * model.dense_scores(*history)
    scores, items = both.masked_fill(excluded, -torch.inf).sort(descending=True, stable=True)
    assert items_of(model, output) == items[:, :13].tolist()
    torch.testing.assert_close(output.scores, scores[:, :13])


@pytest.mark.parametrize("name", ["psid", "latte", "texts"])
@pytest.mark.parametrize("latent_aggregation", ["max", "sum"])
def test_drafted_lists_are_the_best_of_all_exact_scores(name, latent_aggregation):
    model = two_headed(CONFIGS[name])
    history = histories_of(model.config)
    excluded = torch.zeros(3, NUM_ITEMS, dtype=torch.bool)
    excluded[1, 4:17] = True
    excluded[2, 3:] = True  # three items are left
    alike = {"latent_aggregation": latent_aggregation}

    output = model.recommend(*history, top_k=5, dense_weight=0.6, decoding="exact", exclude_items=excluded, **alike)

    both = model.score_items(*history, **alike) + 0.6 * model.dense_scores(*history)
    scores, items = both.masked_fill(excluded, -torch.inf).sort(descending=True, stable=True)
    items = items.masked_fill(scores == -torch.inf, model.config.pad_token_id - model.config.first_item_token)
    assert items_of(model, output) == items[:, :5].tolist()
    torch.testing.assert_close(output.scores, scores[:, :5])


def test_a_draft_is_as_long_as_it_must_be():
    model = two_headed(CONFIGS["latte"])
    with torch.no_grad():
        model.item_table.rows.weight.mul_(40)  # the dense head is sure
    history = histories_of(model.config)

    sure = model.recommend(*history, top_k=2, dense_weight=8.0, decoding="exact")
    unsure = model.recommend(*history, top_k=2, dense_weight=1e-3, decoding="exact")

    assert (sure.num_visited < 6).all()
    assert (unsure.num_visited > 6).all()


def test_drafts_obey_corrections_and_diversity_as_beams_do():
    model = two_headed(CONFIGS["psid"])
    history = histories_of(model.config)
    prior = torch.arange(1.0, NUM_ITEMS + 1)
    options = {"top_k": 4, "num_beams": EVERY_BEAM, "dense_weight": 0.6}
    for more in ({"prior_correction": 0.5, "item_prior": prior}, {"diversity": 0.4}):
        drafted = model.recommend(*history, decoding="exact", **options, **more)
        searched = model.recommend(*history, decoding="beam", **options, **more)
        assert items_of(model, drafted) == items_of(model, searched)
        torch.testing.assert_close(drafted.scores, searched.scores)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dense_weight": 0.0}, "needs a `dense_weight` above 0"),
        ({"sample_seed": 3, "dense_weight": 0.0}, "`decoding='exact'` needs"),
        ({"return_paths": True}, "does without: use 'beam'"),
    ],
)
def test_what_a_draft_cannot_do_is_refused(options, message):
    model = two_headed(CONFIGS["psid"])

    with pytest.raises(ValueError, match=message):
        model.recommend(*histories_of(model.config), decoding="exact", **({"dense_weight": 1.0} | options))


def test_items_that_the_beams_miss_come_in_by_the_dense_head_with_their_exact_score():
    model = two_headed(CONFIGS["latte"])
    with torch.no_grad():
        model.item_table.rows.weight.mul_(40)  # the dense head is sure of other items than the generator
    history = histories_of(model.config)

    output = model.recommend(*history, top_k=2, num_beams=2, dense_weight=3.0)

    generated = model.recommend(*history, top_k=2, num_beams=2, dense_weight=0).item_tokens
    assert not torch.equal(output.item_tokens.sort().values, generated.sort().values)
    both = model.score_items(*history) + 3.0 * model.dense_scores(*history)
    items = output.item_tokens - model.config.first_item_token
    torch.testing.assert_close(output.scores[:, :1], both.gather(1, items[:, :1]))


def test_without_weight_the_lists_are_the_generators_to_the_last_bit():
    model = two_headed(CONFIGS["latte"])
    history = histories_of(model.config)

    model.recommend_config.dense_weight = 2.0
    alone = model.recommend(*history, num_beams=3, dense_weight=0.0)
    model.recommend_config.dense_weight = 0.0
    before = model.recommend(*history, num_beams=3)

    assert torch.equal(alone.item_tokens, before.item_tokens)
    assert torch.equal(alone.scores, before.scores)


def test_the_dense_head_alone_ranks_every_item():
    model = two_headed(CONFIGS["psid"])
    history = histories_of(model.config)

    output = model.recommend(*history, decoding="dense", top_k=NUM_ITEMS)

    scores, items = model.dense_scores(*history).sort(descending=True, stable=True)
    assert items_of(model, output) == items.tolist()
    assert torch.equal(output.scores, scores)
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(3))


def test_items_with_one_id_are_told_apart_by_the_dense_head():
    model = two_headed(CONFIGS["psid"])
    codes = random_codes()
    codes[5] = codes[20]
    model.set_catalog(codes)
    history = histories_of(model.config)

    output = model.recommend(*history, top_k=NUM_ITEMS, num_beams=EVERY_BEAM, dense_weight=1.0)

    both = model.score_items(*history) + model.dense_scores(*history)
    assert items_of(model, output) == both.sort(descending=True, stable=True).indices.tolist()


def test_the_prior_is_subtracted_from_the_sum():
    model = two_headed(CONFIGS["psid"])
    history, prior = histories_of(model.config), torch.arange(1.0, NUM_ITEMS + 1)

    output = model.recommend(
        *history, top_k=5, num_beams=EVERY_BEAM, dense_weight=0.5, item_prior=prior, prior_correction=0.8
    )

    both = model.score_items(*history) + 0.5 * model.dense_scores(*history)
    ranked = both - 0.8 * (prior / prior.sum()).log()
    items = ranked.sort(descending=True, stable=True).indices[:, :5]
    assert items_of(model, output) == items.tolist()
    torch.testing.assert_close(output.scores, both.gather(1, items))


def test_the_loss_is_the_sum_of_both_heads():
    model = two_headed(CONFIGS["psid"]).train()
    input_ids, mask = histories_of(model.config, (4, 2))
    labels = torch.full_like(input_ids, -100)
    labels[0, 3], labels[0, 1], labels[1, 1] = (model.config.first_item_token + item for item in (9, 3, 28))
    model.item_table.row_dropout.p = 0.0

    loss = model(input_ids, mask, labels=labels).loss

    model.config.dense_loss_weight = 0.0
    generated = model(input_ids, mask, labels=labels).loss
    prefixes = [(input_ids[:1], 9), (input_ids[:1, :2], 3), (input_ids[1:, :2], 28)]
    dense = torch.stack([-model.dense_scores(prefix)[0, item] for prefix, item in prefixes]).mean()
    torch.testing.assert_close(loss - generated, dense)


def test_a_large_catalog_is_compared_with_drawn_items():
    model = two_headed(CONFIGS["psid"], dense_negatives=11).train()
    model.item_table.row_dropout.p = 0.0
    states, items = torch.randn(5, 16) / 2, torch.tensor([3, 3, 0, 28, 17])

    estimates = torch.stack([model.dense_loss(states, items) for _ in range(400)])

    full = item_loss(states, model.item_vectors(), items)
    assert estimates.std() > 0.01
    assert abs(estimates.mean() - full) < 0.1 * full


def test_a_sample_of_all_items_gives_the_whole_loss():
    states, table = torch.randn(3, 5), torch.randn(7, 5)
    items, drawn = torch.tensor([6, 0, 6]), torch.randperm(7)

    loss = sampled_item_loss(states, table[items], table[drawn], items, drawn, num_items=7)

    torch.testing.assert_close(loss, item_loss(states, table, items))


def test_text_vectors_and_weight_travel_with_the_checkpoint(tmp_path):
    model = two_headed(CONFIGS["texts and codes"])
    model.recommend_config.dense_weight = 1.5
    history = histories_of(model.config)
    model.save_pretrained(tmp_path)

    loaded = LatteForConditionalGeneration.from_pretrained(tmp_path)

    assert loaded.recommend_config.dense_weight == 1.5
    assert loaded.item_table.text_vectors.dtype == torch.float16
    assert torch.equal(loaded.recommend(*history).scores, model.recommend(*history).scores)


def test_a_model_without_the_head_has_neither_its_weights_nor_its_options():
    model = make_model(tiny_config())

    assert not [name for name in model.state_dict() if name.startswith("item_table")]
    assert "dense_weight" not in model.recommend_options
    with pytest.raises(ValueError, match="dense_weight"):
        model.recommend(*histories_of(model.config), dense_weight=1.0)
    with pytest.raises(ValueError, match="`decoding` must be 'beam'"):
        model.recommend(*histories_of(model.config), decoding="dense")
    with pytest.raises(ValueError, match="dense_head=False"):
        model.item_vectors()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"history_unit": "code"}, "history_unit='item'"),
        ({"dense_codes": False, "dense_rows": False}, "needs one of"),
        ({"dense_row_dropout": 1.0}, r"`dense_row_dropout` must lie in \[0, 1\)"),
        ({"dense_loss_weight": -1.0}, "`dense_loss_weight` must be at least 0"),
    ],
)
def test_wrong_shapes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**SHAPE | changes)


def test_text_vectors_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(29, 7\), got \(29, 6\)"):
        two_headed(CONFIGS["texts"]).set_text_vectors(torch.zeros(NUM_ITEMS, 6))
    with pytest.raises(ValueError, match="reads no text vectors"):
        two_headed(CONFIGS["psid"]).set_text_vectors(torch.zeros(NUM_ITEMS, 7))


# --- models that predict all codes at once -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{}, {"dense_codes": True, "dense_rows": False}, {"dense_codes": True, "dense_text_dim": 7}]
)
def test_parallel_models_rank_the_whole_catalog_by_both_heads(changes):
    model = parallel_model(**changes)
    history = histories_of(model.config)
    excluded = torch.zeros(3, NUM_ITEMS, dtype=torch.bool)
    excluded[2, 9:22] = True

    output = model.recommend(*history, top_k=11, dense_weight=0.6, exclude_items=excluded)
    dense = model.recommend(*history, top_k=11, decoding="dense", exclude_items=excluded)

    both = model.score_items(*history) + 0.6 * model.dense_scores(*history)
    scores, items = both.masked_fill(excluded, -torch.inf).sort(descending=True, stable=True)
    assert items_of(model, output) == items[:, :11].tolist()
    torch.testing.assert_close(output.scores, scores[:, :11])
    allowed = model.dense_scores(*history).masked_fill(excluded, -torch.inf)
    assert items_of(model, dense) == allowed.sort(descending=True, stable=True).indices[:, :11].tolist()


def test_loss_of_parallel_models_is_the_sum_of_both_heads():
    model = parallel_model().train()
    input_ids, mask = histories_of(model.config, (4, 2))
    labels = torch.full_like(input_ids, -100)
    labels[0, 3], labels[1, 1] = (model.config.first_item_token + item for item in (9, 28))
    model.item_table.row_dropout.p = 0.0

    loss = model(input_ids, mask, labels=labels).loss

    model.config.dense_loss_weight = 0.0
    dense = model.dense_scores(input_ids, mask)[torch.arange(2), torch.tensor([9, 28])]
    torch.testing.assert_close(loss - model(input_ids, mask, labels=labels).loss, -dense.mean())


def test_parallel_models_without_weight_list_what_their_codes_say():
    model = parallel_model()
    history = histories_of(model.config)

    output = model.recommend(*history, top_k=NUM_ITEMS, dense_weight=0)

    assert items_of(model, output) == model.score_items(*history).sort(descending=True, stable=True).indices.tolist()
    with pytest.raises(ValueError, match="`dense_weight` is for `decoding='exact'`"):
        model.recommend(*history, decoding="beam", dense_weight=0.5)


@pytest.mark.parametrize("architecture", [ACERecConfig, RPGConfig])
def test_parallel_models_learn_by_both_heads(architecture):
    sizes = {"num_items": NUM_ITEMS, "num_levels": 4, "codebook_size": 5, "d_model": 16, "d_ff": 24, "num_heads": 2}
    model_class = ACERecForItemGeneration if architecture is ACERecConfig else RPGForItemGeneration
    fast = {"embedding_dropout": 0.0, "attention_dropout": 0.0, "initializer_range": 0.1}
    model = make_model(architecture(**sizes, **fast, dense_head=True), model_class=model_class)

    assert solved_circle(model, num_steps=50) > 0.8
    assert model.score_both(*histories_of(model.config)).dense.shape == (3, NUM_ITEMS)


def test_the_vectors_of_all_items_are_computed_once_until_something_is_written_to_the_model():
    model = two_headed(CONFIGS["texts and codes"]).eval()
    with torch.no_grad():
        first = model.all_item_vectors()
        assert model.all_item_vectors() is first
        for change in (
            lambda: model.shared.weight.mul_(2),
            lambda: model.set_text_vectors(model.item_table.text_vectors.flip(0)),
            lambda: model.set_catalog(model.item_codes.flip(0)),
            lambda: setattr(model.shared, "weight", torch.nn.Parameter(model.shared.weight + 1)),
            lambda: setattr(model.shared.weight, "data", model.shared.weight.data + 1),
            lambda: model.load_state_dict({name: value.flip(0) for name, value in model.state_dict().items()}),
            lambda: (model.shared.weight.data.mul_(2), model.train(), model.eval()),
            lambda: model.double(),
        ):
            before = model.all_item_vectors()
            change()
            after = model.all_item_vectors()
            assert not torch.equal(after, before) or model.dtype == torch.float64
            assert torch.equal(after, model.item_vectors().float())
            assert after is not before
            assert model.all_item_vectors() is after


def test_vectors_with_gradients_or_dropout_are_computed_anew():
    model = two_headed(CONFIGS["psid"])
    assert model.eval().all_item_vectors().requires_grad
    with torch.no_grad():
        assert model.train().all_item_vectors() is not model.all_item_vectors()
