"""GRU4RecForItemGeneration: the recurrent network; what all models share is in `ModelInvariants`."""

import pytest
import torch

from hf_genrec import GRU4RecConfig, GRU4RecForItemGeneration
from invariants.model import ModelInvariants, histories_of, make_model, next_items, solved_circle


FIRST = 4  # token of item 0
SIZES = {"num_items": 29, "d_model": 18, "dropout_rate": 0.0, "initializer_range": 0.2, "max_history_length": 11}


def tiny_gru_config(**changes):
    return GRU4RecConfig(**(SIZES | changes))


def make_gru(**changes):
    return make_model(tiny_gru_config(**changes), model_class=GRU4RecForItemGeneration)


class TestGRU4Rec(ModelInvariants):
    MODEL_CLASS = GRU4RecForItemGeneration
    CONFIGS = {
        "gru4rec": tiny_gru_config(),
        "dropout": tiny_gru_config(dropout_rate=0.5, num_layers=2),
        "texts": tiny_gru_config(text_dim=7),
        "times": tiny_gru_config(history_gap_buckets=6),
    }
    test_catalog_travels_as_int16_and_is_fingerprinted = None  # there are no codes


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_scores_are_those_of_a_torch_gru_over_the_items_alone(num_layers, padding_side):
    model = make_gru(num_layers=num_layers)
    gru = torch.nn.GRU(18, 18, num_layers, batch_first=True)
    gru.load_state_dict(model.encoder.gru.state_dict())
    input_ids, mask = histories_of(model.config, padding_side=padding_side)

    scores = model.score_items(input_ids, mask)

    for user, row in enumerate(input_ids):
        items = row[row > 0].unsqueeze(0)
        state = gru(model.token_embeddings(items) * 18**0.5)[0][0, -1]
        logits = model.token_embeddings.weight[FIRST:] @ model.encoder.output(state)
        torch.testing.assert_close(scores[user], logits.log_softmax(0))


def test_loss_is_the_mean_negative_score_of_the_targets():
    model = make_gru()
    input_ids, mask = histories_of(model.config)
    labels = next_items(model.config, input_ids, mask)

    scores = [
        model.score_items(input_ids[user : user + 1, : end + 1])[0, labels[user, end] - FIRST]
        for user, end in (labels != -100).nonzero().tolist()
    ]

    torch.testing.assert_close(model(input_ids, mask, labels=labels).loss, -torch.stack(scores).mean())


def test_parameters_are_those_of_the_formula():
    model = GRU4RecForItemGeneration(GRU4RecConfig(num_items=101))

    assert sum(weight.numel() for weight in model.parameters()) == 105 * 64 + 6 * (64**2 + 64) + 64**2 + 64
    assert 0.12 < model.encoder.gru.weight_hh_l0.abs().max().item() <= 0.125


def test_world_of_one_rule_is_solved():
    assert solved_circle(make_gru()) == 1.0


def test_options_of_the_config_are_checked():
    with pytest.raises(ValueError, match="`num_levels` must be 0, got 3: items of GRU4Rec have no codes"):
        tiny_gru_config(num_levels=3)
    with pytest.raises(ValueError, match="`num_layers` must be at least 1, got 0"):
        tiny_gru_config(num_layers=0)
