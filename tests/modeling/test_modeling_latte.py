"""LatteForConditionalGeneration: network, loss and checkpoint; what all models share is in `ModelInvariants`."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, T5ForConditionalGeneration

from hf_genrec import LatteConfig, LatteForConditionalGeneration
from invariants.model import (
    NUM_ITEMS,
    ModelInvariants,
    histories_of,
    losses_of_prefixes,
    make_model,
    random_codes,
    tiny_config,
)


class TestLatte(ModelInvariants):
    MODEL_CLASS = LatteForConditionalGeneration
    CONFIGS = {
        "tiger": tiny_config(),
        "gated-latte": tiny_config(
            feed_forward_proj="gated-gelu", num_latent_tokens=2, num_layers=3, num_decoder_layers=1
        ),
        "catalog-latte": tiny_config(history_attention="causal", num_latent_tokens=3, normalization="catalog"),
        "item-psid": tiny_config(history_attention="causal", history_unit="item"),
    }


def labels_of(config, input_ids, mask, *, last_only=False):
    """A random next item at every position with an item, or at each row's last one."""
    labels = torch.randint(config.num_items, input_ids.shape, generator=torch.Generator().manual_seed(9))
    labels = (labels + config.first_item_token).masked_fill(mask == 0, -100)
    if last_only:
        is_last = torch.arange(input_ids.shape[1]) == mask.sum(1, keepdim=True) - 1
        labels = labels.masked_fill(~is_last, -100)
    return labels


@pytest.mark.parametrize(("num_latent_tokens", "num_parameters"), [(0, 4_558_464), (8, 4_559_488)])
def test_default_shape_has_the_papers_parameters_and_one_embedding_row_more(num_latent_tokens, num_parameters):
    """
    The paper's count is 4,558,336 without and 4,559,360 with 8 latents.

    Ours has 128 more in both: the paper's vocabulary has padding, a user token and an end token beside latents and
    codes, ours also `<unk>`, a row of 128 in the (tied) embedding, so that unknown items have a token of their own.
    """
    with torch.device("meta"):
        model = LatteForConditionalGeneration(LatteConfig(num_items=12101, num_latent_tokens=num_latent_tokens))

    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    assert num_parameters - 128 == {0: 4_558_336, 8: 4_559_360}[num_latent_tokens]


@pytest.mark.parametrize("feed_forward_proj", ["relu", "gated-gelu"])
def test_weights_of_a_random_t5_give_equal_logits(feed_forward_proj):
    config = tiny_config(num_latent_tokens=2, feed_forward_proj=feed_forward_proj)
    model = make_model(config)
    t5_config = config.to_t5_config()
    torch.manual_seed(3)
    t5 = T5ForConditionalGeneration(t5_config).eval()

    missing, unexpected = model.load_state_dict(t5.state_dict(), strict=False)

    assert (missing, unexpected) == (["item_codes", "item_counts"], [])
    input_ids, mask = histories_of(config)
    tokens, token_mask = model.history_tokens(input_ids, mask)
    decoder_input_ids = torch.tensor([[0, 4, 7], [0, 5, 9], [0, 4, 10]])
    expected = t5(tokens, attention_mask=token_mask.long(), decoder_input_ids=decoder_input_ids).logits
    logits = model(input_ids, mask, decoder_input_ids=decoder_input_ids).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_encoder_reads_user_codes_and_end_token():
    model = make_model(tiny_config(num_items=3, num_levels=2, codebook_size=4, num_latent_tokens=2))
    model.set_catalog(torch.tensor([[0, 3], [2, 1], [2, 2]]))
    input_ids = torch.tensor([[0, 15, 14], [14, 1, 0], [0, 0, 0]])

    tokens, mask = model.history_tokens(input_ids)

    assert model.config.first_item_token == 14
    soap, brush = [6 + 0, 10 + 3], [6 + 2, 10 + 1]
    assert tokens[0].tolist() == [3, *brush, *soap, 2, 0, 0]
    assert tokens[1].tolist() == [3, *soap, 2, 0, 0, 0, 0]
    assert tokens[2].tolist() == [3, 2, 0, 0, 0, 0, 0, 0]
    assert mask.sum(1).tolist() == [6, 4, 2]


def test_causal_encoder_has_no_end_token_and_does_not_look_ahead():
    model = make_model(tiny_config(history_attention="causal"))
    input_ids = histories_of(model.config, (5,))[0]

    tokens, mask = model.history_tokens(input_ids)
    whole, part = (model.encode_history(ids).last_hidden_state for ids in (input_ids, input_ids[:, :2]))

    assert tokens.shape == mask.shape == (1, 1 + 5 * 3)
    assert model.config.end_of_history_token_id not in tokens
    torch.testing.assert_close(whole[:, :7], part, rtol=1e-5, atol=1e-5)


def test_encoder_of_items_reads_the_sum_of_their_codes():
    model = make_model(tiny_config(history_attention="causal", history_unit="item", num_items=17, num_levels=2))
    input_ids, mask = histories_of(model.config, (3, 1))
    seen = []
    model.encoder.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)

    history = model.encode_history(input_ids, mask)

    embeddings = seen[0]["inputs_embeds"]
    first, second = model.shared(model.semantic_id_tokens(input_ids[0, 1]))
    assert embeddings.shape == (2, 1 + 3, 16)
    assert history.attention_mask.tolist() == [[True, True, True, True], [True, True, False, False]]
    torch.testing.assert_close(embeddings[0, 0], model.shared.weight[model.config.user_token_id])
    torch.testing.assert_close(embeddings[0, 2], (first + second) / 2**0.5)


@pytest.mark.parametrize("unit", ["code", "item"])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("num_latent_tokens", [0, 1])
def test_causal_loss_of_a_window_is_the_mean_over_its_prefixes(num_latent_tokens, mode, unit):
    model = make_model(tiny_config(history_attention="causal", history_unit=unit, num_latent_tokens=num_latent_tokens))
    model.train(mode == "train")
    input_ids, mask = histories_of(model.config)
    labels = labels_of(model.config, input_ids, mask)
    labels[0, 1] = -100

    loss = model(input_ids, mask, labels=labels).loss
    one_by_one = losses_of_prefixes(model, input_ids, labels)

    assert len(one_by_one) == 4 + 3 + 1
    torch.testing.assert_close(loss, one_by_one.mean(), rtol=1e-5, atol=1e-5)


def test_causal_loss_equals_its_prefixes_with_a_latent_drawn_per_target(monkeypatch):
    model = make_model(tiny_config(history_attention="causal", num_latent_tokens=3)).train()
    input_ids, mask = histories_of(model.config, (4,))
    labels = labels_of(model.config, input_ids, mask)
    drawn = torch.tensor([[2, 0, 1, 2]])

    monkeypatch.setattr(torch, "randint", lambda high, size, **options: drawn.expand(size))
    loss = model(input_ids, mask, labels=labels).loss
    one_by_one = []
    for end in range(4):
        latent = drawn[:, end : end + 1]
        monkeypatch.setattr(torch, "randint", lambda high, size, latent=latent, **options: latent.expand(size))
        prefix_labels = torch.full((1, end + 1), -100)
        prefix_labels[0, end] = labels[0, end]
        one_by_one.append(model(input_ids[:, : end + 1], labels=prefix_labels).loss)

    torch.testing.assert_close(loss, torch.stack(one_by_one).mean(), rtol=1e-5, atol=1e-5)


def test_gradients_of_a_window_are_those_of_its_prefixes():
    model = make_model(tiny_config(history_attention="causal")).train()
    input_ids, mask = histories_of(model.config, (3,))
    labels = labels_of(model.config, input_ids, mask)

    model(input_ids, mask, labels=labels).loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    for end in range(3):
        prefix_labels = torch.full((1, end + 1), -100)
        prefix_labels[0, end] = labels[0, end]
        (model(input_ids[:, : end + 1], labels=prefix_labels).loss / 3).backward()

    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["bidirectional", "causal"])
def test_evaluation_loss_sums_the_latents_out_and_agrees_with_exact_scores(mode):
    model = make_model(tiny_config(history_attention=mode, num_latent_tokens=3, label_smoothing=0.1))
    input_ids, mask = histories_of(model.config)
    labels = labels_of(model.config, input_ids, mask, last_only=True)

    loss = model(input_ids, mask, labels=labels).loss

    scores = model.score_items(input_ids, mask, latent_aggregation="sum")
    targets = labels.amax(1, keepdim=True) - model.config.first_item_token
    torch.testing.assert_close(loss, -scores.gather(1, targets).mean() / 3, rtol=1e-5, atol=1e-5)


def test_training_loss_is_the_cross_entropy_over_the_latent_and_the_codes():
    model = make_model(tiny_config(num_latent_tokens=1)).train()
    input_ids, mask = histories_of(model.config, (4,))
    target = model.config.first_item_token + 17
    labels = torch.tensor([[-100, -100, -100, target]])

    loss = model(input_ids, mask, labels=labels).loss.item()

    # of one latent, max and sum are the same and the score holds the latent too: four tokens in all
    assert loss == pytest.approx(-model.score_items(input_ids)[0, 17].item() / 4, abs=1e-5)


def test_latents_come_from_torchs_generator():
    model = make_model(tiny_config(history_attention="causal", num_latent_tokens=4)).train()
    input_ids, mask = histories_of(model.config)
    labels = labels_of(model.config, input_ids, mask)

    def loss(seed):
        torch.manual_seed(seed)
        return model(input_ids, mask, labels=labels).loss.item()

    assert loss(5) == loss(5)
    assert len({loss(seed) for seed in range(6)}) > 1
    model.eval()
    assert loss(5) == loss(6)


def test_label_smoothing_changes_the_training_loss_only():
    losses = {}
    for smoothing in (0.0, 0.2):
        model = make_model(tiny_config(label_smoothing=smoothing))
        input_ids, mask = histories_of(model.config)
        labels = labels_of(model.config, input_ids, mask, last_only=True)
        evaluation = model(input_ids, mask, labels=labels).loss.item()
        losses[smoothing] = (evaluation, model.train()(input_ids, mask, labels=labels).loss.item())

    assert losses[0.0][0] == losses[0.2][0]
    assert losses[0.0][1] != losses[0.2][1]
    assert losses[0.0][1] == pytest.approx(losses[0.0][0], abs=1e-5)


def test_rows_without_a_target_do_not_count():
    model = make_model(tiny_config(history_attention="causal"))
    input_ids, mask = histories_of(model.config)
    labels = labels_of(model.config, input_ids, mask)
    labels[1] = -100

    loss = model(input_ids, mask, labels=labels).loss

    kept = [0, 2]
    torch.testing.assert_close(loss, model(input_ids[kept], mask[kept], labels=labels[kept]).loss)


def test_accumulated_batches_are_divided_by_the_targets_of_all_of_them():
    model = make_model(tiny_config(history_attention="causal")).train()
    input_ids, mask = histories_of(model.config)
    labels = labels_of(model.config, input_ids, mask)

    whole = model(input_ids, mask, labels=labels).loss
    parts = [
        model(input_ids[rows], mask[rows], labels=labels[rows], num_items_in_batch=torch.tensor(9)).loss
        for rows in (slice(0, 1), slice(1, 3))
    ]

    assert int((labels != -100).sum()) == 9
    torch.testing.assert_close(sum(parts), whole)


def test_bidirectional_history_trains_one_target_per_row():
    model = make_model(tiny_config())
    input_ids, mask = histories_of(model.config)

    with pytest.raises(ValueError, match="one target, but `labels` holds up to 5 per row. Make one row per prefix"):
        model(input_ids, mask, labels=labels_of(model.config, input_ids, mask))


def test_reused_encoder_outputs_and_cache_give_the_same_logits():
    model = make_model(tiny_config(num_latent_tokens=2))
    input_ids, mask = histories_of(model.config)
    decoder_input_ids = torch.tensor([[0, 4, 7], [0, 5, 9], [0, 4, 10]])
    expected = model(input_ids, mask, decoder_input_ids=decoder_input_ids).logits

    history = model.encode_history(input_ids, mask)
    first = model(encoder_outputs=history, decoder_input_ids=decoder_input_ids[:, :1], use_cache=True)
    steps, cache = [first.logits], first.past_key_values
    for step in (1, 2):
        tokens = decoder_input_ids[:, step : step + 1]
        steps.append(model(encoder_outputs=history, decoder_input_ids=tokens, past_key_values=cache).logits)

    torch.testing.assert_close(model(encoder_outputs=history, decoder_input_ids=decoder_input_ids).logits, expected)
    torch.testing.assert_close(torch.cat(steps, dim=1), expected, rtol=1e-5, atol=1e-5)


def test_embeddings_are_tied_and_start_at_their_standard_deviation():
    model = make_model(tiny_config(codebook_size=64, d_model=32, embedding_std=0.5))

    assert model.shared.weight.std().item() == pytest.approx(0.5, rel=0.05)
    assert model.lm_head.weight is model.shared.weight
    assert model.encoder.embed_tokens.weight is model.decoder.embed_tokens.weight is model.shared.weight


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for enable in (False, True):
        model = make_model(tiny_config(history_attention="causal")).train()
        if enable:
            old_name = model.gradient_checkpointing_enable  # before transformers 5.23
            getattr(model, "activation_checkpointing_enable", old_name)()
        input_ids, mask = histories_of(model.config)
        model(input_ids, mask, labels=labels_of(model.config, input_ids, mask)).loss.backward()
        gradients.append(model.shared.weight.grad)

    torch.testing.assert_close(gradients[0], gradients[1])


def test_sequence_to_sequence_auto_class_loads_and_generates(tmp_path):
    model = make_model(tiny_config(num_latent_tokens=3))
    input_ids, mask = histories_of(model.config)
    model.save_pretrained(tmp_path)

    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)

    assert type(loaded) is LatteForConditionalGeneration
    options = {"attention_mask": mask, "num_beams": 4, "num_return_sequences": 4}
    assert loaded.generate(input_ids, **options).tolist() == model.generate(input_ids, **options).tolist()


def test_checkpoint_without_its_codes_is_refused(tmp_path):
    make_model(tiny_config()).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["item_codes"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ValueError, match="semantic-ID table `item_codes` of the checkpoint"):
        LatteForConditionalGeneration.from_pretrained(tmp_path, check_files=False)


def test_checkpoint_with_the_codes_of_another_model_is_refused(tmp_path):
    make_model(tiny_config()).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["item_codes"] = random_codes(seed=4).to(torch.int16)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ValueError, match="is damaged or belongs to another model"):
        LatteForConditionalGeneration.from_pretrained(tmp_path, check_files=False)


def test_model_saved_without_a_catalog_is_refused_on_loading(tmp_path):
    LatteForConditionalGeneration(tiny_config()).save_pretrained(tmp_path)

    with pytest.raises(ValueError, match="call `set_catalog` before saving"):
        LatteForConditionalGeneration.from_pretrained(tmp_path)


def test_new_catalog_takes_the_place_of_the_old_one():
    model = make_model(tiny_config())
    history = histories_of(model.config)[0]
    before = model.catalog, model.config.catalog_fingerprint, model.recommend(history).scores

    model.set_catalog(random_codes(seed=1))

    assert model.catalog is not before[0]
    assert model.config.catalog_fingerprint != before[1]
    assert model.catalog.item_of(random_codes(seed=1)).tolist() == list(range(NUM_ITEMS))
    assert not torch.equal(model.recommend(history).scores, before[2])


def test_loaded_state_brings_its_own_trie():
    model, other = make_model(tiny_config()), make_model(tiny_config(), seed=1)
    history = histories_of(model.config)[0]
    model.recommend(history)

    model.load_state_dict(other.state_dict())

    assert model.recommend(history).item_tokens.tolist() == other.recommend(history).item_tokens.tolist()


@pytest.mark.parametrize("shape", [(NUM_ITEMS - 1, 3), (NUM_ITEMS, 4)])
def test_catalog_of_another_size_is_refused(shape):
    with pytest.raises(ValueError, match=r"must have shape \(num_items, num_levels\) = \(29, 3\)"):
        make_model(tiny_config()).set_catalog(torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_items": 0}, "`num_items` must be at least 1, got 0"),
        ({"num_levels": 0}, "`num_levels` must be at least 1, got 0"),
        ({"codebook_size": 40000}, "`codebook_size` must be at most 32768"),
        ({"num_latent_tokens": -1}, "`num_latent_tokens` must be at least 0, got -1"),
        (
            {"history_attention": "forward"},
            "`history_attention` must be one of 'bidirectional', 'causal', got 'forward'",
        ),
        ({"history_unit": "word"}, "`history_unit` must be one of 'code', 'item', got 'word'"),
        ({"history_unit": "item"}, "`history_unit='item'` needs `history_attention='causal'`"),
        ({"label_smoothing": 1.0}, r"`label_smoothing` must lie in \[0, 1\), got 1.0"),
        ({"dropout_rate": -0.1}, r"`dropout_rate` must lie in \[0, 1\), got -0.1"),
        ({"max_history_length": 0}, "`max_history_length` must be at least 1, got 0"),
    ],
)
def test_config_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**options)


def test_config_survives_its_file(tmp_path):
    config = tiny_config(history_attention="causal", num_latent_tokens=3, label_smoothing=0.1, max_history_length=7)
    config.save_pretrained(tmp_path)

    loaded = LatteConfig.from_pretrained(tmp_path)

    assert loaded.to_dict() == config.to_dict()
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["model_type"] == "latte"
    assert (loaded.first_code_token, loaded.vocab_size, loaded.first_item_token) == (7, 22, 22)


@pytest.mark.parametrize(
    ("num_latent_tokens", "marked_tokens", "num_marked"), [(0, "first", 1), (3, "first", 2), (0, "all", 4)]
)
@pytest.mark.parametrize("cached", [False, True])
def test_codes_are_written_from_the_latest_item(monkeypatch, num_latent_tokens, marked_tokens, num_marked, cached):
    sizes = {"num_latent_tokens": num_latent_tokens, "marked_tokens": marked_tokens}
    config = tiny_config(history_attention="causal", history_unit="item", **sizes)
    model = make_model(config)
    history = model.encode_history(*histories_of(config))
    tokens = torch.full((3, 4), config.decoder_start_token_id)
    read, decoder = [], model.decoder.forward
    monkeypatch.setattr(
        model.decoder, "forward", lambda inputs_embeds, **words: read.append(inputs_embeds) or decoder(inputs_embeds=inputs_embeds, **words)  # noqa: E501
    )  # fmt: skip

    past = None
    for step in tokens.split(1, dim=1) if cached else [tokens]:
        past = model(
            encoder_outputs=history, decoder_input_ids=step, past_key_values=past, use_cache=True
        ).past_key_values  # noqa: E501

    added = torch.cat(read, dim=1) - model.shared(tokens)
    last = history.last_hidden_state[torch.arange(3), history.attention_mask.sum(1) - 1]
    torch.testing.assert_close(added[:, :num_marked], last.unsqueeze(1).expand(-1, num_marked, -1))
    torch.testing.assert_close(added[:, num_marked:], torch.zeros_like(added[:, num_marked:]))
