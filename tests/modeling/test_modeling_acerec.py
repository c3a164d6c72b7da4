"""ACERecForItemGeneration: mergers, the mask, the two other losses; what all models share is in `ModelInvariants`."""

import math

import pytest
import torch
from torch.nn.functional import cosine_similarity

from hf_genrec import ACERecConfig, ACERecForItemGeneration
from hf_genrec.modeling import modeling_acerec, modeling_rpg
from hf_genrec.modeling.genrec_encoder import BlockEncoder, PackedHistories
from hf_genrec.modeling.modeling_acerec import GroupMerger, Reconstruction
from invariants.model import ModelInvariants, histories_of, make_model, make_rpg, next_items, solved_circle


WITHOUT_OTHER_LOSSES = {"alignment_weight": 0.0, "reconstruction_weight": 0.0}


def tiny_acerec_config(**changes):
    sizes = {"num_items": 29, "num_levels": 7, "codebook_size": 5, "d_model": 18, "d_ff": 24, "num_heads": 3}
    dropout = {"embedding_dropout": 0.0, "attention_dropout": 0.0}
    return ACERecConfig(**(sizes | dropout | {"max_history_length": 11, "num_merged_tokens": 3} | changes))


def make_acerec(**changes):
    return make_model(tiny_acerec_config(**changes), model_class=ACERecForItemGeneration)


class TestACERec(ModelInvariants):
    MODEL_CLASS = ACERecForItemGeneration
    CONFIGS = {
        "acerec": tiny_acerec_config(),
        "merger-alone": tiny_acerec_config(anchor="last", **WITHOUT_OTHER_LOSSES),
        "conv-mean": tiny_acerec_config(merger="conv", anchor="mean", projection="none", num_layers=1),
        "mlps": tiny_acerec_config(merger="mlp", anchor="mlp", num_merged_tokens=2, alignment_weight=0.0),
        "mean-merger": tiny_acerec_config(merger="mean", embedding_dropout=0.3, attention_dropout=0.3, num_layers=3),
    }


# --- the encoder -------------------------------------------------------------------------------------------------


def random_blocks(config, *, lengths=(4, 2), tokens_per_item=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(lengths)
    rows = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    columns = torch.cat([torch.arange(length) for length in lengths])
    tokens = torch.randn(len(rows), tokens_per_item, config.d_model, generator=generator)
    return tokens, PackedHistories(torch.zeros(len(rows), dtype=torch.long), rows, columns, lengths)


def make_encoder(config, *, has_intent=True):
    torch.manual_seed(0)
    encoder = BlockEncoder(config, tokens_per_item=3, has_intent=has_intent).eval()
    for block in encoder.h:
        torch.nn.init.normal_(block.attn.c_attn.weight, std=0.3)
        torch.nn.init.normal_(block.attn.c_proj.weight, std=0.3)
    return encoder


@pytest.mark.parametrize("has_intent", [True, False])
def test_tokens_see_their_block_and_those_before_but_nobody_beside_it_sees_an_intent_token(has_intent):
    config = tiny_acerec_config(num_layers=1)
    encoder = make_encoder(config, has_intent=has_intent)
    tokens, histories = random_blocks(config, lengths=(4,))
    tokens = tokens.requires_grad_()

    states = encoder(tokens, histories, anchors=torch.arange(4))

    for item in range(4):
        for token in range(3):
            (gradient,) = torch.autograd.grad(states[item, token].square().sum(), tokens, retain_graph=True)
            sees = (gradient.abs().sum(-1) > 0).tolist()
            own = [True, True, True] if token == 2 or not has_intent else [True, True, False]
            assert sees == [[True] * 3] * item + [own] + [[False] * 3] * (3 - item)


def test_later_blocks_leave_earlier_states_alone_in_every_layer():
    config = tiny_acerec_config(num_layers=3)
    encoder = make_encoder(config)
    tokens, histories = random_blocks(config)
    states = encoder(tokens, histories, anchors=torch.arange(6))

    tokens[2:4] = tokens[2:4].flip(-1)
    changed = encoder(tokens, histories, anchors=torch.arange(6))

    torch.testing.assert_close(changed[[0, 1, 4, 5]], states[[0, 1, 4, 5]], rtol=0, atol=1e-6)
    assert bool(((changed - states)[2:4].abs().amax(-1) > 1e-3).all())


def test_latents_do_not_see_their_own_intent_token_but_the_next_block_does():
    config = tiny_acerec_config(num_layers=2)
    encoder = make_encoder(config)
    tokens, histories = random_blocks(config, lengths=(3,))
    states = encoder(tokens, histories, anchors=torch.arange(3))

    tokens[1, 2] = tokens[1, 2].flip(-1)
    changed = (encoder(tokens, histories, anchors=torch.arange(3)) - states).abs().amax(-1) > 1e-4

    assert changed.tolist() == [[False] * 3, [False, False, True], [True] * 3]


@pytest.mark.parametrize("first_read", [0, 2])
def test_states_behind_the_last_item_are_the_same_however_they_are_read(first_read):
    config = tiny_acerec_config(num_layers=2)
    encoder = make_encoder(config, has_intent=first_read == 2)
    tokens, histories = random_blocks(config, lengths=(4, 1, 2))

    all_states = encoder(tokens, histories, anchors=torch.arange(7), first_read=first_read)
    last = encoder(tokens, histories, first_read=first_read)

    assert last.shape == (3, 3 - first_read, 18)
    torch.testing.assert_close(last, all_states[[3, 4, 6]], rtol=1e-5, atol=1e-5)


def test_dropout_on_attention_weights_keeps_the_mean_and_the_mask():
    config = tiny_acerec_config(num_layers=1, attention_dropout=0.5)
    encoder, (_, histories) = make_encoder(config), random_blocks(config)
    queries, keys_values = torch.randn(2, 4, 3, 18), torch.randn(2, 4, 3, 36)
    mask = encoder._mask(histories, queries.device)
    expected = encoder._attend(encoder.h[0], queries, keys_values, mask)

    encoder.train()
    samples = [encoder._attend(encoder.h[0], queries, keys_values, mask) for _ in range(400)]

    dropped = torch.stack(samples)
    assert dropped.std(0).mean() > 0.1
    torch.testing.assert_close(dropped.mean(0), expected, rtol=0, atol=6 * dropped.std(0).max().item() / 20)


# --- the ablation ------------------------------------------------------------------------------------------------


def test_mean_of_all_codes_read_at_that_token_without_other_losses_is_rpg():
    rpg = make_rpg()
    options = {"merger": "mean", "num_merged_tokens": 1, "anchor": "last", **WITHOUT_OTHER_LOSSES}
    model = make_acerec(**options)

    missing, unexpected = model.load_state_dict(rpg.state_dict(), strict=False)

    assert (missing, unexpected) == ([], [])
    input_ids, mask = histories_of(model.config)
    labels = next_items(model.config, input_ids, mask)
    for batch in ({}, {"labels": labels}):
        expected, output = (m.train()(input_ids, mask, **batch) for m in (rpg, model))
        torch.testing.assert_close(output[0], expected[0], rtol=1e-5, atol=1e-5)


def test_what_is_switched_off_has_no_parameters():
    def parts(**options):
        return {name.split(".")[0] for name, _ in make_acerec(**options).named_parameters()}

    rpg = {"token_embeddings", "encoder", "heads"}
    assert parts() == rpg | {"item_vector", "merger", "reconstruction"}
    assert parts(reconstruction_weight=0.0) == rpg | {"item_vector", "merger"}
    assert parts(merger="mean", anchor="last", **WITHOUT_OTHER_LOSSES) == rpg
    assert parts(merger="conv", anchor="last", alignment_weight=0.0) == rpg | {"merger", "reconstruction"}
    assert parts(merger="mean", anchor="mlp", **WITHOUT_OTHER_LOSSES) == rpg | {"anchor_mlp"}


@pytest.mark.parametrize("anchor", ["intent", "last", "mean", "mlp"])
def test_later_items_leave_earlier_predictions_alone(anchor):
    model = make_acerec(anchor=anchor)
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


@pytest.mark.parametrize("anchor", ["intent", "last", "mean", "mlp"])
def test_anchor_says_which_states_of_a_block_are_read(anchor):
    model = make_acerec(anchor=anchor)
    input_ids, mask = histories_of(model.config, (4, 2))
    histories = model._pack(input_ids, model._present(input_ids, mask))
    merged = model._merge(model._code_tokens(histories.tokens))

    states = model._encode(merged, torch.arange(6), histories)

    block = model.encoder(merged.tokens, histories)
    assert block.shape == (2, 4 if anchor == "intent" else 3, 18)
    expected = {"intent": block[:, -1], "last": block[:, -1], "mean": block.mean(1)}
    expected["mlp"] = model.anchor_mlp(block.flatten(1)) if anchor == "mlp" else None
    torch.testing.assert_close(states, expected[anchor], rtol=1e-5, atol=1e-5)


def test_embeddings_of_levels_and_of_places_in_a_block_start_at_their_standard_deviations():
    config = tiny_acerec_config(d_model=96, num_levels=20, initializer_range=0.3, position_std=0.05)
    model = ACERecForItemGeneration(config)

    assert model.merger.level_embedding.std().item() == pytest.approx(0.3, rel=0.1)
    assert model.encoder.places.weight.std().item() == pytest.approx(0.05, rel=0.2)


def test_evaluation_loss_is_that_of_the_codes_over_all_prefixes():
    model = make_acerec()
    input_ids, mask = histories_of(model.config)
    labels = next_items(model.config, input_ids, mask)

    loss = model(input_ids, mask, labels=labels).loss

    scores = []
    for user, end in (labels != -100).nonzero().tolist():
        target = labels[user, end] - model.config.first_item_token
        scores.append(model.score_items(input_ids[user : user + 1, : end + 1])[0, target])
    torch.testing.assert_close(loss, -torch.stack(scores).mean() / 7, rtol=1e-4, atol=1e-4)


def test_training_loss_adds_the_weighted_others():
    losses = {}
    for alignment, reconstruction in ((0.0, 0.0), (0.1, 0.0), (0.3, 0.0), (0.3, 0.2), (0.3, 0.6)):
        model = make_acerec(alignment_weight=alignment, reconstruction_weight=reconstruction)
        state = make_acerec(alignment_weight=0.3, reconstruction_weight=0.6).state_dict()
        model.load_state_dict(state, strict=False)
        input_ids, mask = histories_of(model.config)
        labels = next_items(model.config, input_ids, mask)
        evaluation = model(input_ids, mask, labels=labels).loss.item()
        losses[alignment, reconstruction] = model.train()(input_ids, mask, labels=labels).loss.item()

    assert losses[0.0, 0.0] == pytest.approx(evaluation, abs=1e-5)
    alignment = (losses[0.1, 0.0] - losses[0.0, 0.0]) / 0.1
    reconstruction = (losses[0.3, 0.2] - losses[0.3, 0.0]) / 0.2
    assert 0.5 < alignment < 20
    assert 0.2 < reconstruction < 2
    assert losses[0.3, 0.6] == pytest.approx(losses[0.0, 0.0] + 0.3 * alignment + 0.6 * reconstruction, abs=1e-3)


# --- mergers -----------------------------------------------------------------------------------------------------


def test_attentive_merger_is_multi_head_attention_with_a_residual_and_an_mlp():
    model = make_acerec(num_merged_tokens=2)
    merger = model.merger
    items = torch.tensor([39 + 3, 39 + 20])
    code_tokens = model.semantic_id_tokens(items)
    rows = model.token_embeddings(code_tokens)  # (2, 7, 18)

    merged = model._merge(code_tokens)

    vectors = merger.code_norm(rows + merger.level_embedding)
    queries = merger.queries(merged.vectors).view(2, 2, 18)
    normed, keys, values = merger.query_norm(queries), merger.key(vectors), merger.value(vectors)
    for item in range(2):
        for token in range(2):
            heads = []
            for head in range(3):
                part = slice(6 * head, 6 * head + 6)
                weights = (keys[item, :, part] @ normed[item, token, part] / 6**0.5).softmax(0)
                heads.append(weights @ values[item, :, part])
            expected = queries[item, token] + merger.output(torch.cat(heads))
            expected = expected + merger.mlp(merger.mlp_norm(expected))
            torch.testing.assert_close(merged.tokens[item, token], expected, rtol=1e-4, atol=1e-5)


def test_intent_token_starts_as_the_vector_of_the_item():
    model = make_acerec()
    code_tokens = model.semantic_id_tokens(torch.tensor([39 + 3]))

    merged = model._merge(code_tokens)

    pooled = model.token_embeddings(code_tokens).mean(1)
    unit = torch.nn.functional.layer_norm(pooled, (18,), eps=1e-12)
    torch.testing.assert_close(merged.vectors, unit + model.item_vector.mlp(unit), rtol=1e-4, atol=1e-5)
    assert merged.tokens.shape == (1, 4, 18)
    assert merged.tokens[:, 3].tolist() == merged.vectors.tolist()


def test_items_of_a_large_batch_are_merged_as_those_of_a_small_one():
    model = make_acerec()
    tokens = torch.cat([torch.tensor([model.config.user_token_id]), torch.arange(39, 39 + 29)])

    together = model._merge(model._code_tokens(tokens)).tokens
    few = [model._merge(model._code_tokens(part)).tokens for part in tokens.split(3)]
    without_user = model._merge(model._code_tokens(tokens[1:])).tokens

    torch.testing.assert_close(torch.cat(few), together, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(without_user, together[1:], rtol=1e-5, atol=1e-5)


def test_items_that_round_a_batch_up_change_nothing(monkeypatch):
    model = make_acerec(reconstruction_weight=0.0).train()
    input_ids, mask = histories_of(model.config)
    labels = next_items(model.config, input_ids, mask)
    num_merged, results = [], []
    model.merger.register_forward_pre_hook(lambda module, inputs: num_merged.append(len(inputs[1])))

    for step in (1, 10):
        monkeypatch.setattr(modeling_rpg, "ITEMS_STEP", step)
        loss = model(input_ids, mask, labels=labels).loss
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])

    assert num_merged[0] % 10
    assert num_merged[1] % 10 == 0
    torch.testing.assert_close(*results)


def test_groups_of_codes_are_averaged():
    rows = torch.arange(7.0).view(1, 7, 1)

    merged = GroupMerger(tiny_acerec_config(merger="mean", d_model=1, num_heads=1))(rows)

    assert merged.flatten().tolist() == [0.5, 2.5, 5.0]  # 0 1 | 2 3 | 4 5 6


def test_convolution_has_kernels_as_wide_as_their_stride():
    config = tiny_acerec_config(merger="conv", num_levels=6)
    merger = GroupMerger(config)
    rows = torch.randn(4, 6, 18, generator=torch.Generator().manual_seed(0))

    kernel = merger.transform.weight.view(18, 2, 18).transpose(1, 2)
    expected = torch.nn.functional.conv1d(rows.transpose(1, 2), kernel, merger.transform.bias, stride=2)

    torch.testing.assert_close(merger(rows), expected.transpose(1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("merger", ["mlp", "conv"])
def test_order_of_the_codes_in_a_group_matters_and_other_groups_do_not(merger):
    torch.manual_seed(0)
    layer = GroupMerger(tiny_acerec_config(merger=merger))
    rows = torch.randn(1, 7, 18)
    swapped = rows[:, [1, 0, 2, 3, 4, 5, 6]]

    changed = (layer(swapped) - layer(rows)).abs().amax(-1) > 1e-4

    assert changed.tolist() == [[True, False, False]]


# --- the other losses --------------------------------------------------------------------------------------------


def alignment_by_loops(states, vectors, targets, counts, *, temperature, correction):
    """Every target of the batch is a candidate at every position, but for other occurrences of its own target."""
    most = math.log(max(2, *counts))
    total = 0.0
    for position, target in enumerate(targets):
        logits = {}
        for other, candidate in enumerate(targets):
            if other == position or candidate != target:
                bias = correction * math.log(max(1, counts[candidate])) / most
                logits[other] = cosine_similarity(states[position], vectors[other], dim=0) / temperature - bias
        total = total - logits[position] + torch.stack(list(logits.values())).logsumexp(0)
    return total


def test_alignment_finds_the_next_item_among_the_targets_of_the_batch():
    model = make_acerec(alignment_temperature=0.2, popularity_correction=0.7)
    counts = list(range(0, 87, 3))
    model.set_item_counts(torch.tensor(counts))
    targets = [3, 11, 3, 28, 0, 3, 11]
    torch.manual_seed(1)
    states, vectors = torch.randn(7, 18), torch.randn(31, 18)
    places = torch.tensor([5, 9, 5, 30, 2, 5, 9])

    loss = model._alignment(vectors, states, torch.tensor(targets) + 39, places)

    expected = alignment_by_loops(states, vectors[places], targets, counts, temperature=0.2, correction=0.7)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("count", [0, 1])
def test_counts_of_zero_and_one_correct_nothing(count):
    model = make_acerec(popularity_correction=0.7)
    model.set_item_counts(torch.full((29,), count))

    assert model._popularity(torch.arange(29)).tolist() == [0.0] * 29


def test_popularity_correction_is_whole_for_the_most_popular_item():
    model = make_acerec(popularity_correction=0.5)
    counts = torch.zeros(29, dtype=torch.long)
    counts[:4] = torch.tensor([100, 10, 1, 0])
    model.set_item_counts(counts)

    torch.testing.assert_close(model._popularity(torch.arange(4)), torch.tensor([0.5, 0.25, 0.0, 0.0]))


def test_alignment_moves_the_states_and_the_vectors():
    model = make_acerec().train()
    states, vectors = torch.randn(3, 18, requires_grad=True), torch.randn(4, 18, requires_grad=True)

    model._alignment(vectors, states, torch.tensor([40, 41, 40]), torch.tensor([1, 3, 1])).backward()

    assert bool((states.grad.abs().sum(1) > 0).all())
    assert (vectors.grad.abs().sum(1) > 0).tolist() == [False, True, False, True]


def test_counts_travel_with_the_model_and_bad_ones_are_refused(tmp_path):
    model = make_acerec()
    model.set_item_counts(torch.arange(29))
    model.save_pretrained(tmp_path)

    loaded = ACERecForItemGeneration.from_pretrained(tmp_path)

    assert loaded.item_counts.dtype == torch.int32
    assert loaded.item_counts.tolist() == list(range(29))
    with pytest.raises(ValueError, match=r"a number from 0 for each of the 29 items, got shape \(28,\)"):
        model.set_item_counts(torch.ones(28))
    with pytest.raises(ValueError, match="`counts` must hold a number from 0"):
        model.set_item_counts(torch.arange(29) - 1)


@pytest.mark.parametrize("num_levels", [6, 7])
def test_reconstruction_is_one_minus_the_mean_cosine(num_levels):
    torch.manual_seed(0)
    reconstruction = Reconstruction(tiny_acerec_config(num_levels=num_levels))
    merged, rows = torch.randn(5, 3, 18), torch.randn(5, num_levels, 18)

    loss = reconstruction(merged, rows)

    group = -(-num_levels // 3)
    rebuilt = reconstruction.decoder(merged).view(5, 3, group, 18)
    sizes = [2, 2, num_levels - 4]
    rebuilt = torch.cat([rebuilt[:, token, :size] for token, size in enumerate(sizes)], dim=1)
    torch.testing.assert_close(loss, 1 - cosine_similarity(rebuilt, rows, dim=-1).mean(), rtol=1e-5, atol=1e-5)


def test_reconstruction_moves_the_tokens_and_not_what_is_rebuilt():
    reconstruction = Reconstruction(tiny_acerec_config())
    merged, rows = torch.randn(5, 3, 18, requires_grad=True), torch.randn(5, 7, 18, requires_grad=True)

    reconstruction(merged, rows).backward()

    assert merged.grad.abs().sum() > 0
    assert rows.grad is None


def test_some_items_of_a_large_batch_are_rebuilt(monkeypatch):
    model = make_acerec(alignment_weight=0.0).train()
    input_ids, mask = histories_of(model.config)
    labels = next_items(model.config, input_ids, mask)
    sizes = []
    model.reconstruction.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))

    whole = {model(input_ids, mask, labels=labels).loss.item() for _ in range(3)}
    monkeypatch.setattr(modeling_acerec, "MAX_REBUILT_ITEMS", 4)
    torch.manual_seed(0)
    some = {model(input_ids, mask, labels=labels).loss.item() for _ in range(3)}

    assert len(whole) == 1
    assert sizes[0] > 8
    assert sizes[3:] == [4, 4, 4]
    assert len(some) == 3


# --- training and options ----------------------------------------------------------------------------------------


def test_toy_world_is_solved():
    assert solved_circle(make_acerec(d_model=24, initializer_range=0.1), num_steps=60) == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"merger": "max"}, "`merger` must be one of 'attentive', 'mean', 'mlp', 'conv', got 'max'"),
        ({"anchor": "first"}, "`anchor` must be one of 'intent', 'last', 'mean', 'mlp', got 'first'"),
        ({"num_merged_tokens": 8}, r"`num_merged_tokens` must lie in \[1, `num_levels` 7\], got 8"),
        ({"alignment_weight": -0.1}, "`alignment_weight` must be at least 0, got -0.1"),
        ({"alignment_temperature": 0.0}, "`alignment_temperature` must be positive, got 0.0"),
        ({"temperature": -1.0}, "`temperature` must be positive, got -1.0"),
        ({"item_pooling": "max", "merger": "mean", "anchor": "last", "alignment_weight": 0}, "which nothing reads"),
    ],
)
def test_config_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_acerec_config(**options)


def test_config_survives_its_file(tmp_path):
    config = tiny_acerec_config(merger="conv", anchor="mlp", alignment_weight=0.2, popularity_correction=0)
    config.save_pretrained(tmp_path)

    loaded = ACERecConfig.from_pretrained(tmp_path)

    assert loaded.to_dict() == config.to_dict()
    assert (loaded.model_type, loaded.history_attention, loaded.tokens_per_item) == ("acerec", "causal", 3)
