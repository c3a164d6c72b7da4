"""The times between items of a history: read where a model has buckets for them, unknown where none are given."""

import pytest
import torch

from hf_genrec.modeling.configuration_ensemble import EnsembleConfig
from hf_genrec.modeling.genrec_gaps import GapEmbedding
from invariants.model import histories_of, make_model, make_rpg, make_sasrec, tiny_config


NUM_BUCKETS = 6
ITEMS = {"history_attention": "causal", "history_unit": "item"}
LATTE = {
    "causal": {"history_attention": "causal"},
    "bidirectional": {},
    "items": ITEMS,
    "two heads": ITEMS | {"dense_head": True},
}


def timed_model(kind, **changes):
    """A model whose vectors of times are no zeros."""
    changes = {"history_gap_buckets": NUM_BUCKETS} | changes
    if kind == "sasrec":
        model = make_sasrec(**changes)
    elif kind == "rpg":
        model = make_rpg(**changes)
    else:
        model = make_model(tiny_config(**LATTE[kind], **changes))
    for module in model.modules():
        if isinstance(module, GapEmbedding):
            torch.nn.init.normal_(module.weight, generator=torch.Generator().manual_seed(3))
    return model


def timed_histories(model, **options):
    input_ids, mask = histories_of(model.config, **options)
    buckets = torch.randint(1, NUM_BUCKETS, (int(mask.sum()),), generator=torch.Generator().manual_seed(1))
    values = torch.zeros_like(mask)
    values[mask > 0] = 1 + buckets  # row by row, so an item has the same bucket whatever side is padded
    return input_ids, mask, values


@pytest.mark.parametrize("kind", ["sasrec", "rpg", *LATTE])
def test_times_change_scores_and_padding_does_not(kind):
    model = timed_model(kind)
    input_ids, mask, values = timed_histories(model)
    left_ids, _, left_values = timed_histories(model, padding_side="left")

    timed = model.score_items(input_ids, values)

    assert ((timed - model.score_items(input_ids, mask)).abs().amax(1) > 1e-3).all()
    assert torch.equal(model.score_items(input_ids), model.score_items(input_ids, mask))
    torch.testing.assert_close(model.score_items(left_ids, left_values), timed, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["sasrec", "items", "two heads"])
def test_lists_are_those_of_the_scores_with_times(kind):
    model = timed_model(kind)
    input_ids, _, values = timed_histories(model)
    options = {} if kind == "sasrec" else {"num_beams": 29}
    if kind == "two heads":
        options["dense_weight"] = 0.0

    found = model.recommend(input_ids, values, top_k=4, **options)

    best = model.score_items(input_ids, values).topk(4)
    torch.testing.assert_close(found.scores, best.values, atol=1e-4, rtol=1e-4)
    assert torch.equal(found.item_tokens, best.indices + model.config.first_item_token)


@pytest.mark.parametrize("kind", ["sasrec", "items", "bidirectional"])
def test_a_new_model_with_buckets_is_the_one_without(kind):
    state = timed_model(kind, history_gap_buckets=0).state_dict()
    model = timed_model(kind)
    gaps = [name for name in model.state_dict() if name not in state]
    model.load_state_dict(state | {name: torch.zeros(NUM_BUCKETS, model.config.d_model) for name in gaps})
    input_ids, mask, values = timed_histories(model)

    assert [name.rpartition(".")[2] for name in gaps] == ["weight"]
    assert torch.equal(model.score_items(input_ids, values), model.score_items(input_ids, mask))
    fresh = (
        make_sasrec(history_gap_buckets=NUM_BUCKETS)
        if kind == "sasrec"
        else make_model(tiny_config(**LATTE[kind], history_gap_buckets=NUM_BUCKETS))
    )
    assert not fresh.state_dict()[gaps[0]].any()


@pytest.mark.parametrize("kind", ["sasrec", "items"])
def test_no_prediction_of_a_window_knows_a_later_time(kind):
    model = timed_model(kind)
    input_ids, _, values = timed_histories(model, lengths=(5,))
    later = values.clone()
    later[0, 3:] = 1 + (later[0, 3:] % (NUM_BUCKETS - 1))
    labels = torch.full_like(input_ids, -100)
    labels[0, 2] = model.config.first_item_token + 7

    losses = [model(input_ids, attention_mask=mask, labels=labels).loss.item() for mask in (values, later)]
    labels[0, 3] = labels[0, 2]
    moved = [model(input_ids, attention_mask=mask, labels=labels).loss.item() for mask in (values, later)]

    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert abs(moved[0] - moved[1]) > 1e-4


def test_items_that_are_read_are_a_boolean_mask_unless_times_are_asked_for():
    model = make_sasrec(max_history_length=2)
    input_ids, mask, values = timed_histories(model)

    assert model.latest_items(input_ids, mask.float())[1].tolist() == [[True, True], [True, True], [True, False]]
    timed = model.latest_items(input_ids, values, has_times=True)[1].tolist()
    assert timed == [values[0, 3:].tolist(), values[1, 1:3].tolist(), [values[2, 0].item(), 0]]


def test_the_embedding_learns_and_survives_saving(tmp_path):
    model = timed_model("sasrec").train()
    input_ids, _, values = timed_histories(model)
    model(input_ids, attention_mask=values, labels=input_ids.masked_fill(input_ids == 0, -100)).loss.backward()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)

    assert model.encoder.gaps.weight.grad.abs().sum() > 0
    assert torch.equal(loaded.encoder.gaps.weight, model.encoder.gaps.weight)


def test_a_longer_time_than_the_last_bucket_counts_as_that():
    embedding = GapEmbedding(3, 2)
    torch.nn.init.normal_(embedding.weight)

    assert torch.equal(embedding(torch.tensor([3, 9, 1, 0])), embedding.weight[[2, 2, 0, 0]])


def test_a_member_of_an_ensemble_that_reads_times_is_refused():
    member = {"model_type": "sasrec", "num_items": 3, "history_gap_buckets": 4}

    with pytest.raises(ValueError, match="an ensemble chooses its weights without times"):
        EnsembleConfig(num_items=3, members=[member])
