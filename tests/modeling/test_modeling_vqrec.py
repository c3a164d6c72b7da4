"""VQRecForItemGeneration: items made of codes; what all models share is in `ModelInvariants`."""

import pytest
import torch

from hf_genrec import VQRecConfig, VQRecForItemGeneration
from invariants.model import ModelInvariants, histories_of, make_model, next_items, random_codes, solved_circle


FIRST = 4 + 7 * 5  # token of item 0


def tiny_vqrec_config(**changes):
    sizes = {"num_items": 29, "num_levels": 7, "codebook_size": 5, "d_model": 18, "d_ff": 24, "num_heads": 3}
    return VQRecConfig(**(sizes | {"dropout_rate": 0.0, "max_history_length": 11} | changes))


def make_vqrec(**changes):
    return make_model(tiny_vqrec_config(**changes), model_class=VQRecForItemGeneration)


class TestVQRec(ModelInvariants):
    MODEL_CLASS = VQRecForItemGeneration
    CONFIGS = {
        "vqrec": tiny_vqrec_config(),
        "dropout": tiny_vqrec_config(dropout_rate=0.5, num_layers=3),
        "times": tiny_vqrec_config(history_gap_buckets=6),
    }


def test_vector_of_an_item_is_the_mean_of_its_code_embeddings_both_where_it_is_read_and_scored():
    model = make_vqrec(num_layers=1)
    codes = random_codes(29, 7, 5)
    means = torch.stack([model.token_embeddings.weight[4 + 5 * torch.arange(7) + row].mean(0) for row in codes])
    read = []
    model.encoder.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    history = torch.tensor([[FIRST + 3, FIRST + 8]])

    scores = model.score_items(history)

    torch.testing.assert_close(read[0][:, 0], means[[3, 8]] * 18**0.5)
    cosines = torch.nn.functional.cosine_similarity(model._last_states(history, None), means)
    torch.testing.assert_close(scores[0], (cosines / 0.07).log_softmax(0))


def test_item_is_known_by_its_codes_alone():
    model, codes = make_vqrec(), random_codes(29, 7, 5)
    codes[[6, 12]] = codes[[12, 6]]
    history = torch.tensor([[FIRST + 6, FIRST + 3]])
    before = model.score_items(history)[0]

    model.set_catalog(codes)

    after = model.score_items(torch.tensor([[FIRST + 12, FIRST + 3]]))[0]
    order = torch.arange(29)
    order[[6, 12]] = order[[12, 6]]
    torch.testing.assert_close(after, before[order])
    assert not any(29 in weight.shape or 29 + FIRST in weight.shape for _, weight in model.named_parameters())


def test_items_with_the_same_codes_have_the_same_score_and_stand_in_their_order():
    model, codes = make_vqrec(), random_codes(29, 7, 5)
    codes[20] = codes[9]
    model.set_catalog(codes)

    tokens = (model.recommend(torch.tensor([[FIRST + 1]]), top_k=29).item_tokens - FIRST)[0].tolist()

    assert tokens.index(20) == tokens.index(9) + 1


def test_loss_is_the_mean_negative_score_of_the_targets():
    model = make_vqrec()
    input_ids, mask = histories_of(model.config)
    labels = next_items(model.config, input_ids, mask)

    scores = [
        model.score_items(input_ids[user : user + 1, : end + 1])[0, labels[user, end] - FIRST]
        for user, end in (labels != -100).nonzero().tolist()
    ]

    torch.testing.assert_close(model(input_ids, mask, labels=labels).loss, -torch.stack(scores).mean())


def test_world_of_one_rule_is_solved():
    assert solved_circle(make_vqrec(num_layers=1, num_items=11)) == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0}, "`temperature` must be positive, got 0"),
        ({"num_latent_tokens": 2}, "`num_latent_tokens` must be 0"),
        ({"num_levels": 0}, "`num_levels` must be at least 1"),
    ],
)
def test_options_of_the_config_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_vqrec_config(**changes)


def test_codes_of_the_whole_catalog_are_pooled_once_until_the_model_changes():
    model = make_vqrec().eval()
    history = torch.tensor([[FIRST + 3, FIRST + 8]])
    before = model.recommend(history, top_k=5)
    kept = model._kept[1]
    model.recommend(history, top_k=5)
    assert model._kept[1] is kept

    with torch.no_grad():
        model.token_embeddings.weight[4:] = model.token_embeddings.weight[4:].flip(0)
        after = model.recommend(history, top_k=5)

    assert model._kept[1] is not kept
    assert not torch.equal(after.scores, before.scores)
