"""SASRecForItemGeneration: network, loss and lists; what all models share is in `ModelInvariants`."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2Model

from hf_genrec import SASRecConfig, SASRecForItemGeneration
from invariants.model import ModelInvariants, histories_of, make_model, make_sasrec, solved_circle, tiny_sasrec_config


FIRST = 4  # token of item 0


def next_items(config, input_ids, mask):
    """A random label at every item."""
    labels = torch.randint(config.num_items, input_ids.shape, generator=torch.Generator().manual_seed(9))
    return (labels + FIRST).masked_fill(mask == 0, -100)


class TestSASRec(ModelInvariants):
    MODEL_CLASS = SASRecForItemGeneration
    CONFIGS = {
        "sasrec": tiny_sasrec_config(),
        "dropout": tiny_sasrec_config(dropout_rate=0.5, num_layers=3),
        "plain-embeddings": tiny_sasrec_config(scale_embeddings=False, num_layers=1, num_heads=1),
        "texts": tiny_sasrec_config(text_dim=7),
    }
    test_catalog_travels_as_int16_and_is_fingerprinted = None  # there are no codes


# --- the network -------------------------------------------------------------------------------------------------


def test_items_stand_right_behind_the_special_tokens_in_one_table():
    config = tiny_sasrec_config()

    assert (config.first_item_token, config.vocab_size, config.num_levels) == (4, 33, 0)
    assert make_sasrec().token_embeddings.weight.shape == (33, 18)


def test_encoder_gives_the_states_of_a_gpt2_with_its_weights():
    model = make_sasrec(num_layers=3)
    config = GPT2Config(
        vocab_size=1, n_positions=11, n_embd=18, n_layer=3, n_head=3, n_inner=24, layer_norm_epsilon=1e-8
    )
    gpt2 = GPT2Model(config).eval()
    assert model.encoder.load_state_dict(gpt2.state_dict(), strict=False).missing_keys == []
    input_ids, mask = histories_of(model.config)

    log_probs = model(input_ids, mask).logits

    vectors = model.token_embeddings(input_ids) * 18**0.5
    states = gpt2(inputs_embeds=vectors).last_hidden_state[[0, 1, 2], [4, 2, 0]]
    expected = (states @ model.token_embeddings.weight[FIRST:].t()).log_softmax(1)
    torch.testing.assert_close(log_probs, expected, rtol=1e-4, atol=1e-5)


def test_projected_texts_are_added_to_the_rows_where_items_are_read_and_where_they_are_scored():
    texts = make_sasrec(text_dim=7)
    rows = make_sasrec()
    weights = {name: weight for name, weight in texts.state_dict().items() if not name.startswith("text_")}
    weights["token_embeddings.weight"] = weights["token_embeddings.weight"].clone()
    weights["token_embeddings.weight"][FIRST:] = texts.item_embeddings()
    rows.load_state_dict(weights)
    input_ids, mask = histories_of(texts.config)
    input_ids, mask = torch.cat([input_ids, torch.zeros_like(input_ids[:1])]), torch.cat([mask, 0 * mask[:1]])

    assert (texts.item_embeddings() - texts.token_embeddings.weight[FIRST:]).abs().min() > 0
    torch.testing.assert_close(texts(input_ids, mask).logits, rows(input_ids, mask).logits)


def test_text_vectors_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"must have shape \(num_items, text_dim\) = \(29, 7\), got \(29, 6\)"):
        make_sasrec(text_dim=7).set_text_vectors(torch.zeros(29, 6))


def test_embeddings_enter_as_they_are_without_scaling():
    model = make_sasrec(scale_embeddings=False)
    read = []
    model.encoder.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))

    model(torch.tensor([[FIRST + 7]]))

    torch.testing.assert_close(read[0], model.token_embeddings.weight[FIRST + 7].view(1, 1, 18), rtol=0, atol=0)


def test_one_table_is_input_and_output():
    model = make_sasrec()

    assert model.item_embeddings().data_ptr() == model.token_embeddings.weight[FIRST].data_ptr()
    tables = [name for name, weight in model.named_parameters() if 33 in weight.shape or 29 in weight.shape]
    assert tables == ["token_embeddings.weight"]


def test_item_of_no_history_gets_a_gradient_through_the_softmax_alone():
    model = make_sasrec().train()
    input_ids, mask = histories_of(model.config)
    labels = next_items(model.config, input_ids, mask)
    (absent, *_) = sorted(set(range(29)) - set((torch.cat([input_ids, labels]) - FIRST).flatten().tolist()))

    model(input_ids, mask, labels=labels).loss.backward()

    gradient = model.token_embeddings.weight.grad
    assert gradient[FIRST + absent].abs().sum() > 0
    assert gradient[:FIRST].abs().sum() == 0


def test_default_shape_has_the_parameters_of_its_formula():
    with torch.device("meta"):
        model = SASRecForItemGeneration(SASRecConfig(num_items=12101))

    blocks = 2 * (12 * 64**2 + 13 * 64)
    assert sum(weight.numel() for weight in model.parameters()) == (12101 + 4 + 50) * 64 + blocks + 2 * 64


def test_weights_start_at_their_standard_deviations():
    config = tiny_sasrec_config(d_model=96, initializer_range=0.3, position_std=0.01, max_history_length=40)
    model = make_model(config, model_class=SASRecForItemGeneration)

    assert model.token_embeddings.weight.std().item() == pytest.approx(0.3, rel=0.1)
    assert model.encoder.wpe.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert model.encoder.h[1].mlp.c_proj.weight.std().item() == pytest.approx(0.15, rel=0.1)


# --- the loss ----------------------------------------------------------------------------------------------------


def test_loss_is_the_mean_negative_score_of_the_targets():
    model = make_sasrec()
    input_ids, mask = histories_of(model.config)
    labels = next_items(model.config, input_ids, mask)
    labels[0, 1] = -100

    loss = model(input_ids, mask, labels=labels).loss
    scores = [
        model.score_items(input_ids[user : user + 1, : end + 1])[0, labels[user, end] - FIRST]
        for user, end in (labels != -100).nonzero().tolist()
    ]

    assert len(scores) == 4 + 3 + 1
    torch.testing.assert_close(loss, -torch.stack(scores).mean(), rtol=1e-5, atol=1e-5)


def test_later_items_change_no_earlier_prediction():
    model = make_sasrec()
    input_ids, mask = histories_of(model.config, (5,))
    labels = torch.full_like(input_ids, -100)
    labels[0, 2] = FIRST + 8

    loss = model(input_ids, mask, labels=labels).loss
    changed = torch.cat([input_ids[:, :3], (input_ids[:, 3:] - FIRST + 1) % 29 + FIRST], dim=1)
    earlier = torch.cat([(input_ids[:, :1] - FIRST + 1) % 29 + FIRST, input_ids[:, 1:]], dim=1)

    torch.testing.assert_close(model(changed, mask, labels=labels).loss, loss, rtol=0, atol=0)
    assert not torch.allclose(model(earlier, mask, labels=labels).loss, loss)


def test_loss_under_accumulation_is_divided_by_the_targets_of_all_batches():
    model = make_sasrec()
    input_ids, mask = histories_of(model.config)
    labels = next_items(model.config, input_ids, mask)

    loss = model(input_ids, mask, labels=labels).loss

    torch.testing.assert_close(model(input_ids, mask, labels=labels, num_items_in_batch=18).loss, loss / 2)


def test_batch_without_targets_has_loss_zero_and_gradients():
    model = make_sasrec().train()
    input_ids, _ = histories_of(model.config)

    loss = model(input_ids, labels=torch.full_like(input_ids, -100)).loss
    loss.backward()

    assert loss.item() == 0
    assert model.token_embeddings.weight.grad.abs().sum() == 0


def test_world_of_one_rule_is_solved():
    torch.manual_seed(0)

    assert solved_circle(SASRecForItemGeneration(tiny_sasrec_config(num_layers=1))) == 1.0


# --- lists -------------------------------------------------------------------------------------------------------


def test_scores_are_log_probabilities_that_sum_to_one():
    model = make_sasrec()

    scores = model.score_items(*histories_of(model.config))

    assert (scores.shape, scores.dtype) == ((3, 29), torch.float32)
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(3))


def test_no_users_get_no_lists():
    output = make_sasrec().recommend(torch.zeros(0, 5, dtype=torch.long), top_k=7)

    assert output.item_tokens.shape == output.scores.shape == (0, 7)


def test_equal_scores_stand_in_the_order_of_the_items():
    model = make_sasrec()
    with torch.no_grad():
        model.token_embeddings.weight[FIRST:] = 0

    tokens = model.recommend(*histories_of(model.config), top_k=13).item_tokens

    assert (tokens - FIRST).tolist() == [list(range(13))] * 3


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 29), st.integers(0, 2**40), st.floats(0, 2), st.booleans())
def test_lists_are_the_allowed_items_in_the_order_of_their_corrected_scores(top_k, seed, correction, is_shared):
    model = make_sasrec()
    histories = histories_of(model.config, seed=seed % 997)
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.rand(1 if is_shared else 3, 29, generator=generator) < 0.5
    prior = torch.rand(29, generator=generator) + 0.01
    options = {"prior_correction": correction, "item_prior": prior} if correction else {}

    output = model.recommend(*histories, top_k=top_k, allow_items=allowed, **options)

    scores = model.score_items(*histories)
    ranked = scores - correction * (prior / prior.sum()).log()
    for user in range(3):
        items = [item for item in ranked[user].argsort(descending=True).tolist() if allowed[user % len(allowed)][item]]
        wanted = torch.tensor([FIRST + item for item in items[:top_k]] + [0] * (top_k - len(items)))
        assert output.item_tokens[user].tolist() == wanted.tolist()
        torch.testing.assert_close(output.scores[user][: len(items)], scores[user, items[:top_k]])


def test_samples_are_drawn_in_proportion_and_do_not_depend_on_the_memory():
    model = make_sasrec()
    input_ids = histories_of(model.config, (5,))[0].expand(4000, -1)

    drawn = model.recommend(input_ids, top_k=2, sample_seed=3)
    again = model.recommend(input_ids[:9], top_k=2, sample_seed=3, memory_budget=1)

    shares = torch.bincount(drawn.item_tokens[:, 0] - FIRST, minlength=29) / 4000
    torch.testing.assert_close(shares, model.score_items(input_ids[:1])[0].exp(), rtol=0, atol=0.025)
    assert again.item_tokens.tolist() == drawn.item_tokens[:9].tolist()
    assert (drawn.item_tokens[:, 0] != drawn.item_tokens[:, 1]).all()


def test_diversity_compares_items_by_the_table_of_the_model_or_by_other_embeddings():
    model = make_sasrec()
    histories = histories_of(model.config)
    plain = model.recommend(*histories, top_k=29).item_tokens - FIRST
    twins = torch.eye(29)
    twins[plain[0, 1]] = twins[plain[0, 0]]  # the second of the first user is just like the first one

    own = model.recommend(*histories, top_k=5, num_beams=29, diversity=1.0).item_tokens - FIRST
    other = model.recommend(*histories, top_k=5, num_beams=29, diversity=0.9, item_embeddings=twins).item_tokens

    cosines = torch.nn.functional.normalize(model.item_embeddings(), dim=1)[own[0]]
    assert own[:, 0].tolist() == plain[:, 0].tolist()
    assert (cosines @ cosines.t()).triu(1).sum() < 0  # random rows in 18 dimensions, picked to be unlike each other
    assert plain[0, 1] not in other[0] - FIRST
    assert other[0, 1] - FIRST == plain[0, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoding": "beam"}, "`decoding` must be 'exact', got 'beam': a SASRecForItemGeneration "),
        ({"latent_aggregation": "mean"}, "`latent_aggregation` must be"),
        ({"prior_correction": 0.5}, "`prior_correction` and `item_prior` go together"),
        ({"diversity": 1.5}, r"`diversity` must lie in \[0, 1\]"),
        ({"sample_seed": 1, "diversity": 0.5}, "`sample_seed` and `diversity` cannot be combined"),
        ({"exclude_items": torch.tensor([33])}, r"`exclude_items` must hold item tokens in \[4, 33\)"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_sasrec().recommend(torch.tensor([[FIRST]]), **options)


def test_writing_tokens_is_refused_with_what_to_call():
    with pytest.raises(NotImplementedError, match=r"SASRecForItemGeneration predicts .* call `recommend\(\)`"):
        make_sasrec().generate(torch.tensor([[FIRST]]))


# --- the config --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_levels": 3}, "`num_levels` must be 0, got 3: items of SASRec have no codes"),
        ({"codebook_size": 4}, "`codebook_size` must be 0"),
        ({"num_latent_tokens": 2}, "`num_latent_tokens` must be 0"),
        ({"normalization": "catalog"}, "`normalization` must be 'vocabulary'"),
        ({"num_heads": 5}, "`num_heads` must divide `d_model` 18"),
        ({"dropout_rate": 1.0}, r"`dropout_rate` must lie in \[0, 1\)"),
        ({"position_std": -0.1}, "`position_std` must be at least 0"),
        ({"max_history_length": 0}, "`max_history_length` must be at least 1"),
    ],
)
def test_options_of_the_config_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_sasrec_config(**changes)


def test_feed_forward_is_four_times_as_wide_unless_told():
    assert SASRecConfig(d_model=24).d_ff == 96
    assert SASRecConfig(d_model=24, d_ff=30).d_ff == 30
