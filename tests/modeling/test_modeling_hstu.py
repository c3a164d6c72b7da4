"""HSTUForItemGeneration: layers, places and times; what all models share is in `ModelInvariants`."""

import pytest
import torch

from hf_genrec import HSTUConfig, HSTUForItemGeneration
from hf_genrec.data.gaps import gap_buckets
from hf_genrec.modeling.genrec_encoder import PackedHistories
from hf_genrec.modeling.modeling_hstu import time_buckets
from invariants.model import ModelInvariants, histories_of, make_model, next_items, solved_circle


FIRST = 4  # token of item 0


def tiny_hstu_config(**changes):
    sizes = {"num_items": 29, "d_model": 18, "num_heads": 3, "max_history_length": 11}
    return HSTUConfig(**(sizes | {"dropout_rate": 0.0, "initializer_range": 0.2} | changes))


def make_hstu(**changes):
    model = make_model(tiny_hstu_config(**changes), model_class=HSTUForItemGeneration)
    for layer in model.encoder.layers:
        if layer.relative_bias.times is not None:  # which begin at zero
            torch.nn.init.normal_(layer.relative_bias.times)
    return model


def one_history(mask):
    """Packed, with these values of the mask."""
    places = torch.arange(len(mask))
    return PackedHistories(places + FIRST, 0 * places, places, torch.tensor([len(mask)]), torch.tensor(mask))


class TestHSTU(ModelInvariants):
    MODEL_CLASS = HSTUForItemGeneration
    CONFIGS = {
        "hstu": tiny_hstu_config(),
        "dropout": tiny_hstu_config(dropout_rate=0.5, num_layers=3),
        "texts": tiny_hstu_config(text_dim=7),
        "times": tiny_hstu_config(history_gap_buckets=9),
    }
    test_catalog_travels_as_int16_and_is_fingerprinted = None  # there are no codes


# --- the network -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_buckets", [0, 9])
def test_layer_is_the_formula_of_the_paper_item_by_item(num_buckets):
    model = make_hstu(history_gap_buckets=num_buckets)
    layer, histories = model.encoder.layers[1], one_history([1, 4, 2, 7, 3])
    states = torch.randn(5, 18, generator=torch.Generator().manual_seed(2))
    times = time_buckets(histories, 9) if num_buckets else None

    found = layer(states, histories, times)

    silu = torch.nn.functional.silu
    gate, values, queries, keys = (part.split(18, dim=1)[0] for part in silu(
        layer.projection(layer.norm(states))).split(18, dim=1))  # fmt: skip
    for item in range(5):
        mixed = torch.zeros(18)
        for earlier in range(item + 1):
            bias = layer.relative_bias.places[item - earlier]
            if num_buckets:
                bias = bias + layer.relative_bias.times[times[0, item, earlier]]
            for head in range(3):
                own = slice(6 * head, 6 * head + 6)
                mixed[own] += silu(queries[item, own] @ keys[earlier, own] + bias) * values[earlier, own]
        expected = states[item] + layer.output(gate[item] * layer.mixed_norm(mixed))
        torch.testing.assert_close(found[item], expected, rtol=1e-4, atol=1e-5)


def test_weights_are_not_normalised_so_an_item_that_stands_twice_counts_twice():
    model = make_hstu(num_layers=1)
    layer = model.encoder.layers[0]
    layer.mixed_norm, layer.relative_bias.places.data[:] = torch.nn.Identity(), 0.3

    def added(tokens):
        states = model.token_embeddings(torch.tensor(tokens))
        histories = one_history([1] * len(tokens))
        return (layer(states, histories, None) - states - layer.output.bias)[-1]

    once, twice = added([FIRST + 3, FIRST + 8]), added([FIRST + 3, FIRST + 3, FIRST + 8])

    torch.testing.assert_close(twice - once, once - added([FIRST + 8]), rtol=1e-3, atol=1e-6)


def test_places_and_items_are_compared_relative_to_each_other():
    model = make_hstu(num_layers=2)
    history = torch.tensor([[FIRST + 3, FIRST + 8, FIRST + 1]])

    shifted = torch.nn.functional.pad(history, (2, 0))

    torch.testing.assert_close(model.score_items(shifted), model.score_items(history))
    assert not any("wpe" in name for name, _ in model.named_parameters())


def test_parameters_are_those_of_the_formula():
    model = HSTUForItemGeneration(HSTUConfig(num_items=101, history_gap_buckets=34))

    layer = 4 * (64**2 + 64) + 64**2 + 64 + 4 * 64 + 50 + 34
    assert sum(weight.numel() for weight in model.parameters()) == (101 + 4) * 64 + 2 * layer + 2 * 64
    assert model.encoder.layers[1].relative_bias.places.std().item() == pytest.approx(0.02, rel=0.3)
    assert model.encoder.layers[1].relative_bias.times.abs().sum() == 0


# --- times -------------------------------------------------------------------------------------------------------


def test_time_between_neighbours_is_the_bucket_of_the_mask_and_that_of_others_is_at_most_one_off():
    random = torch.Generator().manual_seed(0)
    times = (1000 * (10 ** (6 * torch.rand(40, generator=random)) - 1).long()).cumsum(0).numpy()

    buckets = time_buckets(one_history([1 + bucket for bucket in gap_buckets(times, [0]).tolist()]), 60)[0]

    true = torch.tensor([[gap_buckets([early, late], [0])[1] for early in times] for late in times]).long()
    later = torch.ones(40, 40, dtype=torch.bool).tril(-1)
    assert buckets.diagonal(-1).tolist() == true.diagonal(-1).tolist()
    assert (buckets - true)[later].abs().max() <= 1
    assert ((buckets - true)[later] == 0).double().mean() > 0.7


def test_one_unknown_time_makes_all_times_across_it_unknown():
    assert time_buckets(one_history([1, 3, 1, 3]), 9)[0].tril().tolist() == [
        [1, 0, 0, 0],
        [2, 1, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 2, 1],
    ]


def test_times_change_scores_and_padding_does_not():
    model = make_hstu(history_gap_buckets=6)
    scores = []
    for side in ("right", "left"):
        input_ids, mask = histories_of(model.config, padding_side=side)
        timed = mask.clone()
        timed[mask > 0] = 1 + torch.randint(1, 6, (9,), generator=torch.Generator().manual_seed(1))
        scores.append(model.score_items(input_ids, timed))
        unknown = model.score_items(input_ids, mask)

    torch.testing.assert_close(scores[0], scores[1])
    assert not torch.allclose(scores[0][:2], unknown[:2])
    torch.testing.assert_close(scores[0][2], unknown[2])  # a single item has no time to another one


def test_no_mask_means_unknown_times():
    model = make_hstu(history_gap_buckets=6)
    input_ids, mask = histories_of(model.config)

    torch.testing.assert_close(model.score_items(input_ids), model.score_items(input_ids, mask))


# --- losses and options ------------------------------------------------------------------------------------------


def test_loss_is_the_mean_negative_score_of_the_targets():
    model = make_hstu(history_gap_buckets=6)
    input_ids, mask = histories_of(model.config)
    labels = next_items(model.config, input_ids, mask)

    scores = [
        model.score_items(input_ids[user : user + 1, : end + 1])[0, labels[user, end] - FIRST]
        for user, end in (labels != -100).nonzero().tolist()
    ]

    torch.testing.assert_close(model(input_ids, mask, labels=labels).loss, -torch.stack(scores).mean())


def test_gradients_are_those_of_finite_differences():
    model = make_hstu(num_layers=1, num_items=5, history_gap_buckets=6).double()
    input_ids = torch.tensor([[FIRST, FIRST + 3, FIRST + 1]])
    mask, labels = torch.tensor([[1, 3, 4]]), torch.tensor([[-100, FIRST + 2, FIRST + 4]])
    layer = model.encoder.layers[0]
    weights = [layer.relative_bias.places, layer.relative_bias.times, layer.projection.weight, layer.output.weight]

    model(input_ids, mask, labels=labels).loss.backward()

    for weight in weights:
        place = weight.grad.abs().argmax()
        losses = []
        for step in (1e-6, -2e-6):
            weight.data.view(-1)[place] += step
            losses.append(model(input_ids, mask, labels=labels).loss.item())
        weight.data.view(-1)[place] += 1e-6
        assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(weight.grad.view(-1)[place].item(), rel=1e-5)


def test_world_of_one_rule_is_solved():
    assert solved_circle(make_hstu(num_layers=1)) == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_levels": 3}, "`num_levels` must be 0, got 3: items of HSTU have no codes"),
        ({"num_heads": 5}, "`num_heads` must divide `d_model` 18"),
        ({"dropout_rate": 1.0}, r"`dropout_rate` must lie in \[0, 1\)"),
        ({"history_gap_buckets": -1}, "`history_gap_buckets` must be at least 0"),
    ],
)
def test_options_of_the_config_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_hstu_config(**changes)
