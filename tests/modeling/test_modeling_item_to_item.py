"""ItemToItemForItemGeneration: its table and lists; what all models share is in `ModelInvariants`."""

import pytest
import torch

from hf_genrec.modeling.configuration_item_to_item import ItemToItemConfig
from hf_genrec.modeling.modeling_item_to_item import ItemToItemForItemGeneration
from invariants.model import ModelInvariants, histories_of, make_item_to_item


FIRST, NUM_ITEMS = 4, 29


def tiny_config(**changes):
    return ItemToItemConfig(**({"num_items": NUM_ITEMS, "num_weights": 90, "max_history_length": 11} | changes))


class TestItemToItem(ModelInvariants):
    MODEL_CLASS = ItemToItemForItemGeneration
    CONFIGS = {
        "weights": tiny_config(),
        "vectors": tiny_config(method="text", num_weights=0, vector_dim=5, decay=0.7, self_similarity=False),
        "both": tiny_config(vector_dim=3),
    }
    # nothing is trained, and there are no codes
    test_catalog_travels_as_int16_and_is_fingerprinted = None
    test_loss_comes_first_and_sets_aside_no_scores_of_a_whole_catalog = None
    test_labels_that_are_no_item_are_refused = None
    test_labels_of_another_shape_and_missing_inputs_are_refused = None
    test_labels_on_left_padded_rows_mean_the_same = None
    test_autocast_to_bfloat16_trains_near_the_float32_loss = None
    test_every_parameter_moves_in_training = None
    test_loss_of_all_targets_falls_when_trained = None

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, config):
        return make_item_to_item(config)


def test_logits_are_the_rows_of_the_table_weighted_by_age():
    model = make_item_to_item(tiny_config(decay=0.25))
    table = torch.zeros(NUM_ITEMS, NUM_ITEMS)
    rows = torch.arange(NUM_ITEMS).repeat_interleave(model.offsets.diff())
    table[rows, model.targets.long()] = model.weights

    logits = model.item_logits(torch.tensor([[FIRST + 3, FIRST + 7, FIRST + 3]]), None)[0]

    torch.testing.assert_close(logits, 1.0625 * table[3] + 0.25 * table[7] + 1e-6 * model.item_shares)


def test_logits_are_inner_products_of_vectors():
    model = make_item_to_item(tiny_config(num_weights=0, vector_dim=5, decay=0.5))

    logits = model.item_logits(torch.tensor([[FIRST + 3, FIRST + 7]]), None)[0]

    vectors = model.item_vectors
    torch.testing.assert_close(logits, vectors @ (0.5 * vectors[3] + vectors[7]), rtol=1e-4, atol=1e-4)


def test_vectors_say_nothing_about_their_own_item_where_that_is_left_out():
    model = make_item_to_item(tiny_config(num_weights=0, vector_dim=5, decay=0.5, self_similarity=False))

    logits = model.item_logits(torch.tensor([[FIRST + 3, FIRST + 7, FIRST + 3]]), None)[0]

    products = model.item_vectors @ model.item_vectors.t()
    products.fill_diagonal_(0)
    torch.testing.assert_close(logits, 1.25 * products[3] + 0.5 * products[7], rtol=1e-4, atol=1e-4)


def test_items_that_nothing_speaks_for_stand_in_order_of_popularity():
    model = ItemToItemForItemGeneration(tiny_config(num_weights=0))
    model.item_shares.copy_(torch.arange(NUM_ITEMS) / 500)

    tokens = model.recommend(torch.zeros(1, 0, dtype=torch.long), top_k=3).item_tokens

    assert tokens.tolist() == [[FIRST + 28, FIRST + 27, FIRST + 26]]


def test_only_the_latest_items_are_read():
    model = make_item_to_item(tiny_config(max_history_length=2))

    long = model.item_logits(torch.tensor([[FIRST + 9, FIRST + 3, FIRST + 7]]), None)

    torch.testing.assert_close(long, model.item_logits(torch.tensor([[FIRST + 3, FIRST + 7]]), None))


def test_diverse_lists_need_no_vectors_of_the_caller():
    model = make_item_to_item(tiny_config())
    plain = model.recommend(*histories_of(model.config), top_k=5).item_tokens

    diverse = model.recommend(*histories_of(model.config), top_k=5, diversity=0.8).item_tokens

    assert diverse[:, 0].tolist() == plain[:, 0].tolist()
    assert diverse.tolist() != plain.tolist()


def test_what_the_model_does_not_do_is_refused_by_name():
    model = make_item_to_item(tiny_config())
    tokens = torch.tensor([[FIRST, FIRST + 1]])

    with pytest.raises(ValueError, match="`labels` are not taken: a ItemToItem"):
        model(tokens, labels=tokens)
    with pytest.raises(ValueError, match="`input_ids` is needed"):
        model()
    with pytest.raises(NotImplementedError, match="call `recommend"):
        model.generate(tokens)
    with pytest.raises(ValueError, match="The table holds 90 weights, got 1 items"):
        model.set_weights(torch.tensor([0]), torch.tensor([1]), torch.tensor([1.0]))
    with pytest.raises(ValueError, match="ascending order"):
        model.set_weights(torch.arange(90).flip(0) % 29, torch.zeros(90), torch.ones(90))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "svd"}, "`method` must be one of 'ridge', 'item-knn', 'text', got 'svd'"),
        ({"decay": 0}, "`decay` must be in"),
        ({"num_weights": -1}, "`num_weights` must be at least 0, got -1"),
        ({"num_levels": 3}, "`num_levels` must be 0, got 3: items of Sequential ridge have no codes"),
    ],
)
def test_config_refuses_what_it_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)
