"""What tools and unusual calls ask of any model: split batches, other precisions, damaged weights, odd options."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_genrec import ACERecConfig, ACERecForItemGeneration
from invariants.model import (
    NUM_ITEMS,
    histories_of,
    make_decoder,
    make_item_to_item,
    make_model,
    make_rpg,
    make_sasrec,
    random_codes,
    tiny_config,
    tiny_sasrec_config,
)


ACEREC = ACERecConfig(
    num_items=NUM_ITEMS, num_levels=7, codebook_size=5, d_model=18, d_ff=24, num_heads=3, max_history_length=11
)
TRAINED = {
    "latte": lambda: make_model(tiny_config(history_attention="causal", history_unit="item", num_latent_tokens=2)),
    "tiger": lambda: make_model(tiny_config()),
    "dense": lambda: make_model(tiny_config(history_attention="causal", history_unit="item", dense_head=True)),
    "decoder": lambda: make_decoder(history_unit="item", num_latent_tokens=2),
    "rpg": make_rpg,
    "acerec": lambda: make_model(ACEREC, model_class=ACERecForItemGeneration),
    "sasrec": make_sasrec,
}


@pytest.fixture(params=list(TRAINED))
def model(request):
    return TRAINED[request.param]()


def labels_of_lengths(input_ids, mask, lengths):
    """The item itself as the label of the last positions of each row, so many per row."""
    number = mask.flip(1).cumsum(1).flip(1)  # 1 at the last item
    is_label = (number <= torch.tensor(lengths).unsqueeze(1)) & mask.bool()
    return input_ids.masked_fill(~is_label, -100)


# --- training ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_training", [True, False])
def test_parts_of_a_batch_split_over_devices_fit_together(model, is_training):
    """`nn.DataParallel` gathers what each device returns along the first axis."""
    lengths = (1, 1) if getattr(model.config, "history_attention", "") == "bidirectional" else (1, 4)
    input_ids, mask = histories_of(model.config, (5, 5))
    labels = labels_of_lengths(input_ids, mask, lengths)
    model.train(is_training)

    parts = [model(input_ids[row], mask[row], labels=labels[row]) for row in (slice(0, 1), slice(1, 2))]

    shapes = [{name: value.shape[1:] for name, value in part.items() if value.ndim} for part in parts]
    assert shapes[0] == shapes[1]
    assert "logits" not in parts[0]  # the largest tensor of all, which nothing needs beside the loss


def test_loss_of_a_batch_without_labels_is_zero(model):
    input_ids, mask = histories_of(model.config)
    labels = torch.full_like(input_ids, -100)

    assert model(input_ids, mask, labels=labels).loss.item() == 0.0
    assert model.train()(input_ids, mask, labels=labels).loss.item() == 0.0


def test_double_precision_trains(model):
    model = model.double().train()
    input_ids, mask = histories_of(model.config)

    loss = model(input_ids, mask, labels=labels_of_lengths(input_ids, mask, (1, 1, 1))).loss
    loss.backward()

    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_gradient_checkpointing_changes_no_gradient(model):
    input_ids, mask = histories_of(model.config)
    labels = labels_of_lengths(input_ids, mask, (1, 1, 1))
    gradients = []
    for is_checkpointing in (False, True):
        if is_checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(0)  # latents and dropout
        model.zero_grad()
        model.train()(input_ids, mask, labels=labels).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])

    assert model.is_gradient_checkpointing
    torch.testing.assert_close(gradients[1], gradients[0])


def test_vocabulary_cannot_be_resized_and_nothing_changes_by_trying(model):
    before = model.get_input_embeddings()

    with pytest.raises(NotImplementedError, match="vocabulary follows from the catalog"):
        model.resize_token_embeddings(model.config.vocab_size + 3)

    assert model.get_input_embeddings() is before
    assert model.resize_token_embeddings() is before


# --- recommending ------------------------------------------------------------------------------------------------


def test_long_histories_are_cut_to_the_latest_items(model):
    length = model.config.max_history_length
    input_ids, mask = histories_of(model.config, (length + 6, length, 3), padding_side="left")

    whole = model.recommend(input_ids, mask, top_k=5)
    cut = model.recommend(input_ids[:, -length:], mask[:, -length:], top_k=5)

    assert whole.item_tokens.tolist() == cut.item_tokens.tolist()
    torch.testing.assert_close(whole.scores, cut.scores)
    torch.testing.assert_close(model.score_items(input_ids, mask), model.score_items(input_ids[:, -length:]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_refused_never_ranked(model, value):
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(value)

    with pytest.raises(ValueError, match="scores of this .* are no finite numbers"):
        model.recommend(histories_of(model.config)[0], top_k=3)


def test_scores_of_a_model_without_gradients_that_are_no_numbers_are_refused():
    model = make_item_to_item()
    model.weights.data.fill_(float("nan"))

    with pytest.raises(ValueError, match="scores of this .* are no finite numbers"):
        model.recommend(histories_of(model.config)[0], top_k=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 2.5}, "`top_k` must be a whole number, got 2.5"),
        ({"top_k": True}, "`top_k` must be a whole number, got True"),
        ({"top_k": None}, "`top_k` must be a whole number, got None"),
        ({"top_k": "3"}, "`top_k` must be a whole number, got '3'"),
        ({"num_beams": 7.0}, "`num_beams` must be a whole number, got 7.0"),
        ({"memory_budget": 1e9}, "`memory_budget` must be a whole number, got 1000000000.0"),
        ({"diversity": "0.5"}, "`diversity` must be a number, got '0.5'"),
        ({"prior_correction": None}, "`prior_correction` must be a number, got None"),
        ({"decoding": 3}, "`decoding` must be a string or None, got 3"),
        ({"sample_seed": 1.5}, "`sample_seed` must be a whole number or None, got 1.5"),
    ],
)
def test_options_of_another_type_are_refused_by_name(options, message):
    model = make_sasrec()

    with pytest.raises(TypeError, match=message):
        model.recommend(histories_of(model.config)[0], **options)


@pytest.mark.parametrize("histories", [[1, 2], [[1, 2]], "12", None, torch.ones(2), torch.tensor([5, 6])])
def test_histories_that_are_no_matrix_of_tokens_are_refused(histories):
    with pytest.raises(TypeError, match=r"`input_ids` must be a tensor of item tokens .* see `hf_genrec.Recommender`"):
        make_sasrec().recommend(histories)


def test_numpy_numbers_are_numbers():
    output = make_sasrec().recommend(histories_of(tiny_sasrec_config())[0], top_k=np.int64(3), diversity=np.float32(0))

    assert output.item_tokens.shape == (3, 3)


# --- generate() --------------------------------------------------------------------------------------------------


def test_generating_for_no_users_gives_no_rows():
    model = make_model(tiny_config(num_latent_tokens=2))

    for num_beams in (1, 5):
        rows = model.generate(torch.zeros(0, 4, dtype=torch.long), num_beams=num_beams)
        assert rows.shape == (0, 5)


@pytest.mark.parametrize(
    "options",
    [{"encoder_repetition_penalty": 1.2}, {"encoder_no_repeat_ngram_size": 2}, {"prompt_lookup_num_tokens": 3}],
)
def test_options_that_read_the_history_as_text_are_refused(options):
    model = make_model(tiny_config())

    with pytest.raises(ValueError, match=f"`{next(iter(options))}` reads .* item tokens"):
        model.generate(histories_of(model.config)[0], **options)


def test_assistant_models_are_refused():
    model = make_model(tiny_config())

    with pytest.raises(ValueError, match="`assistant_model` reads"):
        model.generate(histories_of(model.config)[0][:1], assistant_model=make_model(tiny_config()))


# --- items that share an id --------------------------------------------------------------------------------------


def shared(counts=None):
    """Items 3, 11, 20 share an id, so do 5 and 6."""
    model = make_model(tiny_config(history_attention="causal", history_unit="item", num_latent_tokens=2))
    codes = random_codes()
    codes[[11, 20]] = codes[3].clone()
    codes[6] = codes[5].clone()
    model.set_catalog(codes)
    if counts is not None:
        model.set_item_counts(counts)
    return model


def order_of(model, items, **options):
    found = model.recommend(histories_of(model.config)[0][:1], top_k=NUM_ITEMS, num_beams=500, **options)
    listed = (found.item_tokens - model.config.first_item_token)[0].tolist()
    return [item for item in listed if item in items]


def test_items_of_one_id_are_listed_by_popularity_where_counts_are_known(tmp_path):
    counts = torch.zeros(NUM_ITEMS, dtype=torch.long)
    counts[[3, 11, 20, 5, 6]] = torch.tensor([2, 9, 4, 7, 7])

    assert order_of(shared(), {3, 11, 20}) == [3, 11, 20]  # the catalog's order
    model = shared(counts)
    assert order_of(model, {3, 11, 20}) == [11, 20, 3]
    assert order_of(model, {5, 6}) == [5, 6]  # equally popular: the catalog's order
    allow = torch.ones(NUM_ITEMS, dtype=torch.bool)
    allow[11] = False
    assert order_of(model, {3, 11, 20}, allow_items=allow) == [20, 3]
    model.save_pretrained(tmp_path)
    assert order_of(type(model).from_pretrained(tmp_path), {3, 11, 20}) == [11, 20, 3]


def test_parallel_models_list_equal_codes_by_popularity_too():
    model = make_rpg()
    codes = model.item_codes.clone()
    codes[[11, 20]] = codes[3].clone()
    model.set_catalog(codes)
    counts = torch.zeros(NUM_ITEMS, dtype=torch.long)
    counts[[3, 11, 20]] = torch.tensor([2, 9, 4])

    assert order_of(model, {3, 11, 20}) == [3, 11, 20]
    model.set_item_counts(counts)
    assert order_of(model, {3, 11, 20}) == [11, 20, 3]
    assert order_of(model, {3, 11, 20}, decoding="beam") == [11, 20, 3]
    first = model.recommend(histories_of(model.config)[0], top_k=NUM_ITEMS)
    prior = torch.ones(NUM_ITEMS)
    again = model.recommend(histories_of(model.config)[0], top_k=NUM_ITEMS, prior_correction=0.5, item_prior=prior)
    assert first.item_tokens.tolist() == again.item_tokens.tolist()


def test_checkpoint_without_counts_loads_and_keeps_the_order_of_the_catalog(tmp_path):
    for made in (shared(), make_rpg()):
        made.save_pretrained(tmp_path, safe_serialization=True)
        weights = dict(load_file(tmp_path / "model.safetensors"))
        assert weights.pop("item_counts").tolist() == [0] * NUM_ITEMS
        save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
        (tmp_path / "manifest.json").unlink()  # the weights were changed on purpose

        loaded = type(made).from_pretrained(tmp_path)

        assert loaded.item_counts.tolist() == [0] * NUM_ITEMS
        assert order_of(loaded, {3, 11, 20}) == order_of(made, {3, 11, 20})
