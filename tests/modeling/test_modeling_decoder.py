"""DecoderForItemGeneration: one stream of history and target; what all models share is in `ModelInvariants`."""

import pytest
import torch
from transformers import Qwen3ForCausalLM

from generated_beams import best_of_each, generate_beams
from hf_genrec import DecoderConfig, DecoderForItemGeneration
from invariants.model import (
    NUM_ITEMS,
    NUM_LEVELS,
    ModelInvariants,
    histories_of,
    losses_of_prefixes,
    make_decoder,
    next_items,
    solved_circle,
    tiny_decoder_config,
)


TWO_HEADS = {"history_unit": "item", "normalization": "catalog", "dense_head": True, "dense_row_dropout": 0.0}
CONFIGS = {
    "codes": tiny_decoder_config(),
    "catalog latents": tiny_decoder_config(num_latent_tokens=3, normalization="catalog", num_layers=1),
    "two heads": tiny_decoder_config(**TWO_HEADS, num_latent_tokens=2),
}


class TestDecoder(ModelInvariants):
    MODEL_CLASS = DecoderForItemGeneration
    CONFIGS = CONFIGS


@pytest.fixture(params=list(CONFIGS))
def model(request):
    return make_decoder(DecoderConfig(**CONFIGS[request.param].to_diff_dict()))


# --- one stream ---------------------------------------------------------------------------------------------------


def test_weights_of_a_random_qwen3_give_equal_logits():
    model = make_decoder()
    torch.manual_seed(3)
    qwen = Qwen3ForCausalLM(model.config.to_qwen3_config()).eval()
    torch.nn.init.normal_(qwen.model.embed_tokens.weight)

    missing, unexpected = model.load_state_dict(qwen.model.state_dict(), strict=False)

    assert (missing, unexpected) == (["item_codes", "item_counts"], [])
    history, path = torch.tensor([[7, 20, 3, 11]]) + model.config.first_item_token, torch.tensor([[0, 4 + 2, 9 + 1]])
    stream = [model.config.user_token_id, *model.semantic_id_tokens(history).flatten().tolist(), *path[0, 1:].tolist()]
    expected = qwen(torch.tensor([stream])).logits[:, 12:]
    torch.testing.assert_close(model(history, decoder_input_ids=path).logits, expected, rtol=1e-5, atol=1e-5)


def test_stream_of_codes_holds_the_user_token_and_the_codes_of_items_in_order():
    model = make_decoder(num_items=3, num_levels=2, codebook_size=4, num_latent_tokens=2)
    model.set_catalog(torch.tensor([[0, 3], [2, 1], [2, 2]]))

    embeddings, is_real = model.history_embeddings(torch.tensor([[0, 15, 14], [14, 1, 0], [0, 0, 0]]))

    soap, brush = [6 + 0, 10 + 3], [6 + 2, 10 + 1]
    for row, tokens in enumerate(([3, *brush, *soap], [3, *soap], [3])):
        torch.testing.assert_close(embeddings[row, : len(tokens)], model.embed_tokens(torch.tensor(tokens)))
    assert is_real.sum(1).tolist() == [5, 3, 1]


def test_history_of_items_is_one_vector_each():
    model = make_decoder(tiny_decoder_config(**TWO_HEADS))

    embeddings, is_real = model.history_embeddings(*histories_of(model.config))

    assert is_real.sum(1).tolist() == [6, 4, 2]
    items = histories_of(model.config)[0][0] - model.config.first_item_token
    torch.testing.assert_close(embeddings[0, 1:], model.item_vectors(items))


# --- all targets of a user in one pass ----------------------------------------------------------------------------


@pytest.mark.parametrize("is_training", [True, False])
def test_loss_of_a_window_is_the_mean_over_its_prefixes(model, is_training, monkeypatch):
    model.train(is_training)
    monkeypatch.setattr(torch, "randint", lambda high, size, **options: torch.ones(size, dtype=torch.long))
    input_ids, mask = histories_of(model.config)
    labels = next_items(model.config, input_ids, mask)
    labels[0, 1], labels[0, 2], labels[1, 0] = -100, input_ids[0, 3], input_ids[1, 1]  # two that follow in the stream

    loss = model(input_ids, mask, labels=labels).loss
    one_by_one = losses_of_prefixes(model, input_ids, labels)

    assert len(one_by_one) == 4 + 3 + 1
    torch.testing.assert_close(loss, one_by_one.mean(), rtol=1e-5, atol=1e-5)


def test_gradients_of_a_window_are_those_of_its_prefixes(model, monkeypatch):
    monkeypatch.setattr(torch, "randint", lambda high, size, **options: torch.zeros(size, dtype=torch.long))
    model.train()
    input_ids, mask = histories_of(model.config, (3,))
    labels = torch.cat([input_ids[:, 1:], input_ids[:, :1]], dim=1)

    model(input_ids, mask, labels=labels).loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    losses_of_prefixes(model, input_ids, labels).mean().backward()

    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-5)


def test_targets_that_follow_in_the_stream_need_no_branch(monkeypatch):
    model = make_decoder().train()
    input_ids, mask = histories_of(model.config)
    labels = torch.nn.functional.pad(input_ids[:, 1:], (0, 1)).masked_fill(mask == 0, -100)
    labels[[0, 1, 2], [4, 2, 0]] = model.config.first_item_token + 8
    widths = []
    run = model._run
    monkeypatch.setattr(model, "_run", lambda embeddings, *args, **kwargs: widths.append(embeddings.shape[1]) or run(embeddings, *args, **kwargs))  # fmt: skip  # noqa: E501

    model(input_ids, mask, labels=labels.where(labels != 0, -100))

    assert widths == [1 + 5 * NUM_LEVELS + NUM_LEVELS - 1]  # the last target of each row has one


def test_training_latents_come_from_torchs_generator():
    model = make_decoder(num_latent_tokens=4).train()
    input_ids, mask = histories_of(model.config)
    labels = next_items(model.config, input_ids, mask)

    def loss(seed):
        torch.manual_seed(seed)
        return model(input_ids, mask, labels=labels).loss.item()

    assert loss(5) == loss(5)
    assert len({loss(seed) for seed in range(6)}) > 1


def test_evaluation_loss_sums_the_latents_out_and_agrees_with_exact_scores(model):
    input_ids, mask = histories_of(model.config, (5, 5))
    labels = torch.full_like(input_ids, -100)
    labels[:, -1] = model.config.first_item_token + torch.tensor([17, 4])

    loss = model(input_ids, mask, labels=labels).loss

    scores = model.score_items(input_ids, mask, latent_aggregation="sum")
    torch.testing.assert_close(loss, -(scores[0, 17] + scores[1, 4]) / 2 / NUM_LEVELS, rtol=1e-5, atol=1e-5)


def test_accumulated_batches_are_divided_by_the_targets_of_all_of_them(model, monkeypatch):
    monkeypatch.setattr(torch, "randint", lambda high, size, **options: torch.zeros(size, dtype=torch.long))
    model.train()
    input_ids, mask = histories_of(model.config)
    labels = next_items(model.config, input_ids, mask)

    whole = model(input_ids, mask, labels=labels).loss
    parts = [
        model(input_ids[rows], mask[rows], labels=labels[rows], num_items_in_batch=torch.tensor(9)).loss
        for rows in (slice(0, 1), slice(1, 3))
    ]

    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("name", ["codes", "two heads"])
def test_world_with_one_rule_is_learnt(name):
    model = make_decoder(DecoderConfig(**CONFIGS[name].to_diff_dict() | {"d_model": 32, "num_layers": 1}))

    assert solved_circle(model, num_steps=60) > 0.9


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for enable in (False, True):
        model = make_decoder().train()
        if enable:
            old_name = model.gradient_checkpointing_enable  # before transformers 5.23
            getattr(model, "activation_checkpointing_enable", old_name)()
        input_ids, mask = histories_of(model.config)
        model(input_ids, mask, labels=next_items(model.config, input_ids, mask)).loss.backward()
        gradients.append(model.embed_tokens.weight.grad)

    torch.testing.assert_close(gradients[0], gradients[1])


# --- decoding: one answer by two ways -----------------------------------------------------------------------------


@pytest.mark.parametrize("num_beams", [5, NUM_ITEMS])
def test_search_finds_the_beams_of_generate_with_their_scores(model, num_beams):
    histories = histories_of(model.config)
    beams = [best_of_each(*user) for user in zip(*generate_beams(model, histories, num_beams), strict=True)]
    top_k = min(len(items) for items, _ in beams)  # fewer than beams where several latents lead to an item

    output = model.recommend(*histories, top_k=top_k, num_beams=num_beams, **beams_alone(model))

    found = output.item_tokens - model.config.first_item_token
    assert found.tolist() == [items[:top_k] for items, _ in beams]
    torch.testing.assert_close(output.scores, torch.tensor([scores[:top_k] for _, scores in beams]))


def beams_alone(model):
    return {"dense_weight": 0.0} if model.config.dense_head else {}


def test_search_over_all_paths_is_exact(model):
    histories = histories_of(model.config)
    scores = model.score_items(*histories)

    every = model.recommend(*histories, top_k=NUM_ITEMS, num_beams=model.config.num_paths, **beams_alone(model))

    torch.testing.assert_close(every.scores, scores.sort(dim=1, descending=True).values, rtol=1e-4, atol=1e-4)


def test_candidates_are_scored_as_in_the_search(model):
    input_ids, mask = histories_of(model.config)
    items = torch.tensor([[3, 28, 0, 3], [1, 2, 4, 5], [9, 8, 7, 6]])

    scores = model.score_candidates(model.encode_history(input_ids, mask), items, chunk_size=3)

    torch.testing.assert_close(scores, model.score_items(input_ids, mask).gather(1, items), rtol=1e-5, atol=1e-5)


def test_generate_without_a_cache_writes_the_same(model):
    input_ids, mask = histories_of(model.config)
    options = {"attention_mask": mask, "num_beams": 4, "num_return_sequences": 4}

    with_cache = model.generate(input_ids, **options)

    assert model.generate(input_ids, use_cache=False, **options).tolist() == with_cache.tolist()


def test_history_is_read_once_per_user_whatever_the_number_of_beams(monkeypatch):
    model = make_decoder()
    input_ids, mask = histories_of(model.config)
    shapes, run = [], model._run
    monkeypatch.setattr(model, "_run", lambda embeddings, *args, **kwargs: shapes.append(tuple(embeddings.shape[:2])) or run(embeddings, *args, **kwargs))  # fmt: skip  # noqa: E501

    model.recommend(input_ids, mask, top_k=5, num_beams=7)

    assert shapes[0] == (3, 1 + 5 * NUM_LEVELS)
    assert [length for _, length in shapes[1:]] == [1] * (NUM_LEVELS - 1)
    assert [keys.shape for keys in model.encode_history(input_ids, mask).keys] == [(3, 3, 16, 6)] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_kv": 5}, "`d_kv` must be even, got 5"),
        ({"history_unit": "word"}, "`history_unit` must be one of 'code', 'item', got 'word'"),
        ({"dense_head": True}, "`dense_head=True` needs `history_unit='item'`"),
        ({"dropout_rate": 1.0}, r"`dropout_rate` must lie in \[0, 1\), got 1.0"),
        ({"num_layers": 0}, "`num_layers` must be at least 1, got 0"),
        ({"max_history_length": 0}, "`max_history_length` must be at least 1, got 0"),
    ],
)
def test_config_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_decoder_config(**options)
