"""BERT4RecForItemGeneration: masks in training, a mask behind the history else; the rest is in `ModelInvariants`."""

import pytest
import torch

from hf_genrec import BERT4RecConfig, BERT4RecForItemGeneration
from invariants.model import ModelInvariants, histories_of, make_model, next_items, solved_circle


FIRST, MASK = 4, 1  # tokens of item 0 and of the mask


def tiny_bert_config(**changes):
    sizes = {"num_items": 29, "d_model": 18, "d_ff": 24, "num_heads": 3, "max_history_length": 11}
    return BERT4RecConfig(**(sizes | {"dropout_rate": 0.0, "initializer_range": 0.2} | changes))


def make_bert(**changes):
    return make_model(tiny_bert_config(**changes), model_class=BERT4RecForItemGeneration)


def read_by(model):
    """A list to which each call of the encoder adds the tokens that it reads, a row per history."""
    rows = []

    def note(module, inputs):
        histories = inputs[1]
        rows.extend([row[row > 0].tolist() for row in histories.to_rows(histories.tokens)])

    model.encoder.register_forward_pre_hook(note)
    return rows


class TestBERT4Rec(ModelInvariants):
    MODEL_CLASS = BERT4RecForItemGeneration
    CONFIGS = {
        "bert4rec": tiny_bert_config(),
        "dropout": tiny_bert_config(dropout_rate=0.3, num_layers=1, last_share=0.9),
        "texts": tiny_bert_config(text_dim=7),
        "times": tiny_bert_config(history_gap_buckets=6),
    }
    test_catalog_travels_as_int16_and_is_fingerprinted = None  # there are no codes


# --- evaluation --------------------------------------------------------------------------------------------------


def test_next_item_is_asked_for_by_a_mask_behind_the_history():
    model = make_bert()
    rows = read_by(model)

    model.score_items(torch.tensor([[FIRST + 3, FIRST + 8, 0], [FIRST + 5, 0, 0], [0, 0, 0]]))

    assert rows == [[FIRST + 3, FIRST + 8, MASK], [FIRST + 5, MASK], [3, MASK]]  # 3: a user without items


def test_target_is_never_read_when_a_loss_is_measured():
    model = make_bert()
    rows = read_by(model)
    items = torch.arange(6) + FIRST

    model(items[None, :5], labels=items[None, 1:])

    assert rows == [[*items[:length].tolist(), MASK] for length in range(1, 6)]


def test_loss_is_the_mean_negative_score_of_the_targets():
    model = make_bert(history_gap_buckets=6)
    input_ids, mask = histories_of(model.config)
    labels = next_items(model.config, input_ids, mask)

    scores = [
        model.score_items(input_ids[user : user + 1, : end + 1])[0, labels[user, end] - FIRST]
        for user, end in (labels != -100).nonzero().tolist()
    ]

    torch.testing.assert_close(model(input_ids, mask, labels=labels).loss, -torch.stack(scores).mean())


def test_scores_are_those_of_the_formula_with_attention_to_both_sides():
    model = make_bert(num_layers=1)
    encoder, block = model.encoder, model.encoder.h[0]
    tokens = torch.tensor([FIRST + 3, FIRST + 8, MASK])

    states = model.token_embeddings(tokens) * 18**0.5 + encoder.wpe.weight[:3]
    queries, keys, values = block.attn.c_attn(block.ln_1(states)).split(18, dim=1)
    mixed = torch.cat([
        (queries[:, own] @ keys[:, own].t() * 6**-0.5).softmax(1) @ values[:, own]
        for own in (slice(0, 6), slice(6, 12), slice(12, 18))
    ], dim=1)  # fmt: skip
    states = states + block.attn.c_proj(mixed)
    states = encoder.ln_f(states + block.mlp(block.ln_2(states)))
    logits = torch.nn.functional.gelu(encoder.head(states[2])) @ model.token_embeddings.weight[FIRST:].t()

    torch.testing.assert_close(model.score_items(tokens[None, :2])[0], logits.log_softmax(0), rtol=1e-4, atol=1e-5)


def test_longest_history_has_a_position_for_the_mask():
    model = make_bert()
    rows = read_by(model)

    model.score_items(torch.arange(14)[None] + FIRST)

    assert rows == [[*range(FIRST + 3, FIRST + 14), MASK]]


# --- training ----------------------------------------------------------------------------------------------------


def test_rows_of_training_end_with_the_last_label_and_have_at_least_one_mask():
    model = make_bert(mask_share=0.4).train()
    rows, items = read_by(model), torch.arange(6) + FIRST

    for seed in range(200):
        torch.manual_seed(seed)
        model(items[None, :5], labels=items[None, 1:])

    assert all(len(row) == 6 for row in rows)
    assert all(token in (MASK, item) for row in rows for token, item in zip(row, items.tolist(), strict=True))
    assert all(MASK in row for row in rows)
    shares = torch.tensor([[token == MASK for token in row] for row in rows]).double().mean(0)
    torch.testing.assert_close(shares[:5], torch.full((5,), 0.36).double(), rtol=0, atol=0.1)  # 0.9 of 0.4
    assert shares[5] > 0.42  # some rows have the last one alone


def test_label_that_is_not_last_is_trained_where_its_item_is_masked():
    model = make_bert(mask_share=0.0, last_share=0.0).train()
    rows, items = read_by(model), torch.arange(4) + FIRST
    labels = torch.tensor([[FIRST + 1, -100, -100]])

    loss = model(items[None, :3], labels=labels).loss

    assert rows == [[FIRST, FIRST + 1, MASK]]  # the label of the last one is not known
    assert loss.isfinite()


def test_loss_of_training_is_that_of_the_masked_items_times_the_labels_for_each():
    model = make_bert(mask_share=0.0, last_share=0.0).train()  # the last one of each row is masked
    input_ids, mask = histories_of(model.config)
    labels = next_items(model.config, input_ids, mask)

    loss = model(input_ids, mask, labels=labels, num_items_in_batch=9).loss

    last = torch.tensor([4, 2, 0])
    scores = model.score_items(input_ids, mask).gather(1, labels.gather(1, last.unsqueeze(1)) - FIRST)
    torch.testing.assert_close(loss, -scores.mean())


def test_mask_learns_and_the_unread_special_tokens_do_not():
    model = make_bert().train()
    input_ids, mask = histories_of(model.config)

    model(input_ids, mask, labels=next_items(model.config, input_ids, mask)).loss.backward()

    gradient = model.token_embeddings.weight.grad[:FIRST].abs().sum(1)
    assert gradient[MASK] > 0
    assert gradient[[0, 2, 3]].sum() == 0


def test_world_of_one_rule_is_solved():
    assert solved_circle(make_bert(num_layers=1, num_items=11, position_std=0.3, last_share=0.5), num_steps=300) == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_levels": 3}, "`num_levels` must be 0, got 3: items of BERT4Rec have no codes"),
        ({"mask_share": 1.0}, r"`mask_share` must lie in \[0, 1\)"),
        ({"last_share": -0.1}, r"`last_share` must lie in \[0, 1\)"),
    ],
)
def test_options_of_the_config_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_bert_config(**changes)
