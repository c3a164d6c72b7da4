"""RPGForItemGeneration: network, loss and options; what all models share is in `ModelInvariants`."""

import json

import pytest
import torch
from transformers import GPT2Config, GPT2Model

from hf_genrec import RPGConfig, RPGForItemGeneration
from invariants.model import (
    ModelInvariants,
    histories_of,
    losses_of_prefixes,
    make_model,
    make_rpg,
    next_items,
    solved_circle,
    tiny_rpg_config,
)


class TestRPG(ModelInvariants):
    MODEL_CLASS = RPGForItemGeneration
    CONFIGS = {
        "rpg": tiny_rpg_config(),
        "shared-head": tiny_rpg_config(projection="shared", num_layers=1, residual_dropout=0.1),
        "no-head-max-pooled": tiny_rpg_config(projection="none", num_levels=3, item_pooling="max"),
        "dropout": tiny_rpg_config(embedding_dropout=0.5, attention_dropout=0.5, num_layers=3),
    }


@pytest.mark.parametrize(("num_levels", "num_parameters"), [(16, 8_528_384), (32, 13_581_824), (64, 23_688_704)])
def test_default_shape_has_the_published_parameters_and_two_embedding_rows_more(num_levels, num_parameters):
    """Re-runs count 8.528, 13.582 and 23.689 million; ours has four special rows of 448 in its table, not two."""
    with torch.device("meta"):
        model = RPGForItemGeneration(RPGConfig(num_items=12101, num_levels=num_levels))

    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters + 2 * 448


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_encoder_gives_the_states_of_a_gpt2_with_its_weights(mode):
    model = make_rpg(num_layers=3).train(mode == "train")
    config = GPT2Config(
        vocab_size=1, n_positions=11, n_embd=18, n_layer=3, n_head=3, n_inner=24, layer_norm_epsilon=1e-12
    )
    gpt2 = GPT2Model(config).eval()
    assert model.encoder.load_state_dict(gpt2.state_dict(), strict=False).missing_keys == []
    input_ids, mask = histories_of(model.config)
    labels = input_ids.masked_fill(mask == 0, -100)
    read = []
    model.encoder.register_forward_hook(lambda module, inputs, output: read.append(output.squeeze(1)))

    model(input_ids, mask, labels=labels)
    model(input_ids, mask)

    vectors = model.token_embeddings(model.semantic_id_tokens(input_ids.clamp_min(39))).mean(2)
    expected = gpt2(inputs_embeds=vectors).last_hidden_state
    torch.testing.assert_close(read[0], expected[mask.bool()], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(read[1], expected[[0, 1, 2], [4, 2, 0]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_items_enter_as_the_pooled_embeddings_of_their_codes(pooling):
    model = make_rpg(item_pooling=pooling)
    read = []
    model.encoder.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))

    model(torch.tensor([[39 + 8]]))

    table, codes = model.code_embeddings(), model.item_codes[8].tolist()
    rows = torch.stack([table[level, code] for level, code in enumerate(codes)])
    torch.testing.assert_close(read[0], (rows.mean(0) if pooling == "mean" else rows.amax(0)).view(1, 1, 18))


@pytest.mark.parametrize("projection", ["separate", "shared", "none"])
def test_log_probabilities_are_those_of_the_formula(projection):
    model = make_rpg(projection=projection)
    if projection != "none":
        torch.nn.init.normal_(model.heads.weight, std=0.3)
    input_ids, mask = histories_of(model.config)
    states = []
    model.encoder.register_forward_hook(lambda module, inputs, output: states.append(output.squeeze(1)))

    log_probs = model.code_log_probs(input_ids, mask)

    for user, state in enumerate(states[0]):
        for level in range(7):
            output = state
            if projection != "none":
                head = level if projection == "separate" else 0
                output = state + torch.nn.functional.silu(model.heads.weight[head] @ state + model.heads.bias[head])
            cosines = torch.stack(
                [torch.cosine_similarity(output, row, dim=0) for row in model.code_embeddings()[level]]
            )
            torch.testing.assert_close(log_probs[user, level], (cosines / 0.03).log_softmax(0), rtol=1e-4, atol=1e-4)


def test_heads_start_as_the_state_and_the_nonlinearity_of_a_small_bias():
    model = make_rpg()

    assert model.heads.weight.shape == (7, 18, 18)
    assert model.heads.weight.abs().max() == 0
    assert 0.8 * 18**-0.5 < model.heads.bias.abs().max() <= 18**-0.5


def test_weights_start_at_their_standard_deviations():
    config = tiny_rpg_config(d_model=96, d_ff=80, initializer_range=0.3, position_std=0.01, max_history_length=40)
    model = make_model(config, model_class=RPGForItemGeneration)
    block = model.encoder.h[1]

    assert model.token_embeddings.weight.std().item() == pytest.approx(0.3, rel=0.1)
    assert block.mlp.c_fc.weight.std().item() == pytest.approx(0.3, rel=0.1)
    assert block.mlp.c_proj.weight.std().item() == pytest.approx(0.15, rel=0.1)
    assert block.attn.c_proj.weight.std().item() == pytest.approx(0.15, rel=0.1)
    assert model.encoder.wpe.weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_code_embeddings_are_the_rows_of_the_token_table_itself():
    model = make_rpg()

    table = model.code_embeddings()

    assert table.shape == (7, 5, 18)
    assert table[2, 3].data_ptr() == model.token_embeddings.weight[4 + 2 * 5 + 3].data_ptr()


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_loss_of_a_window_is_the_mean_over_its_prefixes(mode):
    model = make_rpg().train(mode == "train")
    input_ids, mask = histories_of(model.config)
    labels = next_items(model.config, input_ids, mask)
    labels[0, 1] = -100

    loss = model(input_ids, mask, labels=labels).loss
    one_by_one = losses_of_prefixes(model, input_ids, labels)

    assert len(one_by_one) == 4 + 3 + 1
    torch.testing.assert_close(loss, one_by_one.mean(), rtol=1e-4, atol=1e-4)


def test_single_target_of_a_row_may_stand_anywhere():
    model = make_rpg()
    input_ids, mask = histories_of(model.config, (5, 3))
    labels = torch.full_like(input_ids, -100)
    labels[[0, 1], [1, 2]] = torch.tensor([39 + 4, 39 + 9])

    loss = model(input_ids, mask, labels=labels).loss

    scores = model.score_items(input_ids[:1, :2])[0, 4] + model.score_items(input_ids[1:, :3])[0, 9]
    torch.testing.assert_close(loss, -scores / 2 / 7, rtol=1e-4, atol=1e-4)


def test_gradients_of_a_window_are_those_of_its_prefixes():
    model = make_rpg().train()
    input_ids, mask = histories_of(model.config, (3,))
    labels = next_items(model.config, input_ids, mask)

    model(input_ids, mask, labels=labels).loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    for end in range(3):
        prefix_labels = torch.full((1, end + 1), -100)
        prefix_labels[0, end] = labels[0, end]
        (model(input_ids[:, : end + 1], labels=prefix_labels).loss / 3).backward()

    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-5)


def test_evaluation_loss_is_the_negative_score_of_the_target_per_level():
    model = make_rpg()
    input_ids, mask = histories_of(model.config)
    labels = torch.full_like(input_ids, -100)
    labels[[0, 1, 2], [4, 2, 0]] = torch.tensor([39 + 5, 39 + 28, 39])

    loss = model(input_ids, mask, labels=labels).loss

    scores = model.score_items(input_ids, mask)
    torch.testing.assert_close(loss, -(scores[0, 5] + scores[1, 28] + scores[2, 0]) / 3 / 7, rtol=1e-4, atol=1e-4)


def test_score_of_an_item_is_the_sum_over_its_codes():
    model = make_rpg()
    input_ids, mask = histories_of(model.config)

    log_probs, scores = model.code_log_probs(input_ids, mask), model.score_items(input_ids, mask)

    for user in range(3):
        for item, codes in enumerate(model.item_codes.tolist()):
            expected = sum(log_probs[user, level, code] for level, code in enumerate(codes))
            torch.testing.assert_close(scores[user, item], expected)


def test_later_items_leave_earlier_predictions_alone():
    model = make_rpg()
    input_ids, mask = histories_of(model.config, (5,))
    labels = next_items(model.config, input_ids, mask)
    labels[0, 3:] = -100
    loss = model(input_ids, mask, labels=labels).loss

    input_ids[0, 3:] = torch.tensor([39 + 1, 39 + 2])
    later = model(input_ids, mask, labels=labels).loss
    input_ids[0, 2] = 39 + 3
    earlier = model(input_ids, mask, labels=labels).loss

    torch.testing.assert_close(later, loss, rtol=0, atol=1e-5)
    assert abs(earlier.item() - loss.item()) > 1e-3


def test_accumulated_batches_are_divided_by_the_targets_of_all_of_them():
    model = make_rpg().train()
    input_ids, mask = histories_of(model.config)
    labels = next_items(model.config, input_ids, mask)

    whole = model(input_ids, mask, labels=labels).loss
    parts = [
        model(input_ids[rows], mask[rows], labels=labels[rows], num_items_in_batch=torch.tensor(9)).loss
        for rows in (slice(0, 1), slice(1, 3))
    ]

    assert int((labels != -100).sum()) == 9
    torch.testing.assert_close(sum(parts), whole, rtol=1e-5, atol=1e-5)


def test_batch_without_a_target_has_no_loss_and_no_gradient():
    model = make_rpg().train()
    input_ids, mask = histories_of(model.config)

    loss = model(input_ids, mask, labels=torch.full_like(input_ids, -100)).loss
    loss.backward()

    assert loss.item() == 0
    assert model.token_embeddings.weight.grad.abs().max() == 0


def test_user_token_stands_for_an_empty_history_and_for_no_other():
    model = make_rpg()
    input_ids, mask = histories_of(model.config, (3, 0))
    before = model.code_log_probs(input_ids, mask)

    with torch.no_grad():
        model.token_embeddings.weight[model.config.user_token_id].normal_()
    after = model.code_log_probs(input_ids, mask)

    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    assert not torch.allclose(after[1], before[1])


def test_first_item_of_a_user_can_be_trained_from_the_user_token():
    model = make_rpg().train()

    model(torch.tensor([[0, 0]]), labels=torch.tensor([[-100, 39 + 4]])).loss.backward()

    moved = model.token_embeddings.weight.grad.abs().sum(1) > 0
    assert bool(moved[model.config.user_token_id])
    assert moved[: model.config.first_code_token].sum() == 1


def test_only_the_latest_items_are_read():
    model = make_rpg(max_history_length=4)
    input_ids, mask = histories_of(model.config, (7, 2), padding_side="left")

    log_probs = model.code_log_probs(input_ids, mask)

    torch.testing.assert_close(log_probs[:1], model.code_log_probs(input_ids[:1, 3:]), rtol=1e-5, atol=1e-5)


def test_target_behind_an_item_that_is_not_read_is_refused():
    model = make_rpg(max_history_length=4)
    input_ids, _ = histories_of(model.config, (6,))
    labels = torch.full_like(input_ids, -100)

    labels[0, 2] = 39
    model(input_ids, labels=labels)
    labels[0, 1] = 39
    with pytest.raises(ValueError, match="more than `max_history_length` 4 items behind it. Cut long sequences"):
        model(input_ids, labels=labels)


def test_generate_says_what_to_call_instead():
    model = make_rpg()

    assert not model.can_generate()
    with pytest.raises(NotImplementedError, match=r"RPGForItemGeneration predicts all codes .* call `recommend\(\)`"):
        model.generate(torch.tensor([[39]]))


def test_items_may_share_their_codes_and_then_share_their_scores(tmp_path):
    model = make_rpg()
    codes = model.item_codes.clone()
    codes[17] = codes[3]

    model.set_catalog(codes)
    model.save_pretrained(tmp_path)
    scores = RPGForItemGeneration.from_pretrained(tmp_path).score_items(torch.tensor([[40]]))

    assert scores[0, 17] == scores[0, 3]


def test_model_without_users_gives_empty_log_probabilities():
    assert make_rpg().code_log_probs(torch.zeros(0, 4, dtype=torch.long)).shape == (0, 7, 5)


def test_longer_histories_take_more_memory_until_they_are_cut():
    model = make_rpg()

    sizes = [model.history_bytes(length) for length in (0, 1, 5, 11, 12)]

    assert 0 < sizes[0] == sizes[1] < sizes[2] < sizes[3] == sizes[4]


def test_dropout_is_drawn_from_torchs_generator():
    model = make_rpg(embedding_dropout=0.4, attention_dropout=0.4).train()
    input_ids, mask = histories_of(model.config)
    labels = next_items(model.config, input_ids, mask)

    def loss(seed):
        torch.manual_seed(seed)
        return model(input_ids, mask, labels=labels).loss.item()

    assert loss(5) == loss(5)
    assert loss(5) != loss(6)


def test_toy_world_is_solved():
    assert solved_circle(make_rpg(d_model=24, num_levels=4, initializer_range=0.1)) == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_latent_tokens": 2}, "`num_latent_tokens` must be 0, got 2: .* no path to write a latent token into"),
        ({"normalization": "catalog"}, "`normalization` must be 'vocabulary', got 'catalog'"),
        ({"num_heads": 4}, "`num_heads` must divide `d_model` 18, got 4"),
        ({"num_layers": 0}, "`num_layers` must be at least 1, got 0"),
        ({"max_history_length": 0}, "`max_history_length` must be at least 1, got 0"),
        ({"attention_dropout": 1.0}, r"`attention_dropout` must lie in \[0, 1\), got 1.0"),
        ({"position_std": -0.1}, "`position_std` must be at least 0, got -0.1"),
        ({"temperature": 0.0}, "`temperature` must be positive, got 0.0"),
        ({"item_pooling": "sum"}, "`item_pooling` must be one of 'mean', 'max', got 'sum'"),
        ({"projection": "mlp"}, "`projection` must be one of 'separate', 'shared', 'none', got 'mlp'"),
    ],
)
def test_config_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_rpg_config(**options)


def test_config_survives_its_file(tmp_path):
    config = tiny_rpg_config(projection="shared", item_pooling="max", temperature=0.07, max_history_length=7)
    config.save_pretrained(tmp_path)

    loaded = RPGConfig.from_pretrained(tmp_path)

    assert loaded.to_dict() == config.to_dict()
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["model_type"] == "rpg"
    assert (loaded.history_attention, loaded.vocab_size, loaded.first_item_token) == ("causal", 39, 39)
