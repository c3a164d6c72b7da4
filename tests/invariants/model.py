"""
What must hold for every architecture. A test class inherits `ModelInvariants`, says which models it means; done:

    class TestRPG(ModelInvariants):
        MODEL_CLASS = RPGModel
        CONFIGS = {"rpg": RPGConfig(num_items=29, ...)}
"""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModel

from hf_genrec import (
    DecoderConfig,
    DecoderForItemGeneration,
    LatteConfig,
    LatteForConditionalGeneration,
    RPGConfig,
    RPGForItemGeneration,
    SASRecConfig,
    SASRecForItemGeneration,
)
from hf_genrec.modeling.configuration_item_to_item import ItemToItemConfig
from hf_genrec.modeling.genrec_folder import catalog_fingerprint
from hf_genrec.modeling.modeling_item_to_item import ItemToItemForItemGeneration


NUM_ITEMS = 29
NUM_LEVELS = 3
CODEBOOK_SIZE = 5


def random_codes(num_items=NUM_ITEMS, num_levels=NUM_LEVELS, codebook_size=CODEBOOK_SIZE, *, seed=0):
    """Distinct random tuples; with few of the possible ones taken, prefixes have different and few children."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randperm(codebook_size**num_levels, generator=generator)[:num_items]
    powers = codebook_size ** torch.arange(num_levels - 1, -1, -1)
    return numbers.unsqueeze(1) // powers % codebook_size


def tiny_config(**changes):
    sizes = {"num_items": NUM_ITEMS, "num_levels": NUM_LEVELS, "codebook_size": CODEBOOK_SIZE}
    shape = {"d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 1, "num_decoder_layers": 2, "num_heads": 2}
    return LatteConfig(**(sizes | shape | {"dropout_rate": 0.0} | changes))


def make_model(config, *, model_class=LatteForConditionalGeneration, seed=0):
    """A random model in evaluation mode with random unique codes, if its items have codes."""
    torch.manual_seed(seed)
    model = model_class(config)
    if config.has_codes:
        model.set_catalog(random_codes(config.num_items, config.num_levels, config.codebook_size, seed=seed))
    if getattr(config, "text_dim", 0):
        model.set_text_vectors(torch.randn(config.num_items, config.text_dim))
    return model.eval()


def tiny_decoder_config(**changes):
    sizes = {"num_items": NUM_ITEMS, "num_levels": NUM_LEVELS, "codebook_size": CODEBOOK_SIZE}
    shape = {"d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_heads": 3, "max_history_length": 11}
    return DecoderConfig(**(sizes | shape | {"dropout_rate": 0.0} | changes))


def make_decoder(config=None, *, seed=0, **changes):
    return make_model(config or tiny_decoder_config(**changes), model_class=DecoderForItemGeneration, seed=seed)


def tiny_sasrec_config(**changes):
    sizes = {"num_items": NUM_ITEMS, "d_model": 18, "d_ff": 24, "num_heads": 3, "max_history_length": 11}
    return SASRecConfig(**(sizes | {"dropout_rate": 0.0} | changes))


def make_sasrec(**changes):
    return make_model(tiny_sasrec_config(**changes), model_class=SASRecForItemGeneration)


def make_item_to_item(config=None, *, seed=0):
    """A random table and random vectors."""
    config = config or ItemToItemConfig(num_items=NUM_ITEMS, num_weights=90, max_history_length=11)
    generator = torch.Generator().manual_seed(seed)
    model = ItemToItemForItemGeneration(config).eval()
    places = torch.randperm(config.num_items**2, generator=generator)[: config.num_weights].sort().values
    weights = torch.randn(config.num_weights, generator=generator)
    model.set_weights(places // config.num_items, places % config.num_items, weights)
    model.item_vectors.data.copy_(torch.randn(model.item_vectors.shape, generator=generator))
    model.item_shares.copy_(torch.rand(config.num_items, generator=generator))
    return model


def tiny_rpg_config(**changes):
    sizes = {"num_items": 29, "num_levels": 7, "codebook_size": 5, "d_model": 18, "d_ff": 24, "num_heads": 3}
    dropout = {"embedding_dropout": 0.0, "attention_dropout": 0.0}
    return RPGConfig(**(sizes | dropout | {"max_history_length": 11} | changes))


def make_rpg(**changes):
    return make_model(tiny_rpg_config(**changes), model_class=RPGForItemGeneration)


def next_items(config, input_ids, mask):
    """A random label at every item."""
    labels = torch.randint(config.num_items, input_ids.shape, generator=torch.Generator().manual_seed(9))
    return (labels + config.first_item_token).masked_fill(mask == 0, -100)


def histories_of(config, lengths=(5, 3, 1), *, padding_side="right", seed=0):
    """Random histories `(len(lengths), max(lengths))` and their mask; the values do not depend on the padding side."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.zeros(len(lengths), max(1, *lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        items = torch.randint(config.num_items, (length,), generator=generator) + config.first_item_token
        columns = slice(0, length) if padding_side == "right" else slice(input_ids.shape[1] - length, None)
        input_ids[row, columns] = items
    return input_ids, (input_ids != 0).long()


def labels_of(config, input_ids, mask):
    """At each item its own token (a bidirectional encoder trains one target per row: at the last item), else -100."""
    is_target = mask == 1
    if config.history_attention == "bidirectional":
        is_target &= mask.cumsum(1) == mask.sum(1, keepdim=True)
    return input_ids.masked_fill(~is_target, -100)


def losses_of_prefixes(model, input_ids, labels):
    """The loss of each target `(num_targets,)` alone, after the part of its history up to it."""
    losses = []
    for user, end in (labels != -100).nonzero().tolist():
        prefix_labels = torch.full((1, end + 1), -100)
        prefix_labels[0, end] = labels[user, end]
        losses.append(model(input_ids[user : user + 1, : end + 1], labels=prefix_labels).loss)
    return torch.stack(losses)


def solved_circle(model, *, num_steps=80, length=5):
    """
    Trains in a world with one rule, that item i is followed by item i + 1 and the last by the first; returns the share
    of items after which the right one is recommended.
    """
    config = model.config
    items = (torch.arange(config.num_items).unsqueeze(1) + torch.arange(length + 1)) % config.num_items
    input_ids, labels = (items + config.first_item_token)[:, :-1], (items + config.first_item_token)[:, 1:]
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2)
    torch.manual_seed(0)
    for _ in range(num_steps):
        optimizer.zero_grad()
        model(input_ids, labels=labels).loss.backward()
        optimizer.step()
    first = model.eval().recommend(input_ids, top_k=1, num_beams=3).item_tokens
    return (first == labels[:, -1:]).double().mean().item()


class RecommendInvariants:
    """
    Tests of the lists of one architecture in all its settings: `CONFIGS` maps a name to a tiny config with 29 items.
    The tests of a config share one `model`; `own` is a copy of it, to be changed.
    """

    MODEL_CLASS = None
    CONFIGS = {}

    def pytest_generate_tests(self, metafunc):
        if "config" in metafunc.fixturenames:
            metafunc.parametrize("config", list(self.CONFIGS.values()), ids=list(self.CONFIGS), scope="class")

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, config):
        return make_model(type(config)(**config.to_diff_dict()), model_class=cls.MODEL_CLASS)

    @pytest.fixture
    def own(self, model):
        return copy.deepcopy(model)

    @staticmethod
    def items_and_scores(model, input_ids, attention_mask=None, **options):
        output = model.recommend(input_ids, attention_mask, **({"top_k": 11, "num_beams": 13} | options))
        return output.item_tokens, output.scores

    def test_lists_are_full_distinct_and_ranked(self, model):
        tokens, scores = self.items_and_scores(model, *histories_of(model.config), num_beams=3)

        assert tokens.shape == scores.shape == (3, 11)
        assert all(len(set(row)) == 11 for row in tokens.tolist())
        first = model.config.first_item_token
        assert bool(((tokens >= first) & (tokens < first + model.config.num_items)).all())
        assert bool((scores.diff(dim=1) <= 0).all())
        assert bool((scores <= 0).all())

    def test_padding_on_either_side_or_in_excess_changes_nothing(self, model):
        input_ids, mask = histories_of(model.config)
        tokens, scores = self.items_and_scores(model, input_ids, mask)

        left_tokens, left_scores = self.items_and_scores(model, *histories_of(model.config, padding_side="left"))
        wide = torch.nn.functional.pad(input_ids, (2, 4))
        wide_tokens, wide_scores = self.items_and_scores(model, wide, torch.nn.functional.pad(mask, (2, 4)))
        _, unmasked_scores = self.items_and_scores(model, input_ids)

        assert left_tokens.tolist() == wide_tokens.tolist() == tokens.tolist()
        torch.testing.assert_close(left_scores, scores)
        torch.testing.assert_close(wide_scores, scores)
        torch.testing.assert_close(unmasked_scores, scores)

    def test_user_alone_equals_the_same_user_in_a_batch(self, model):
        input_ids, mask = histories_of(model.config)
        tokens, scores = self.items_and_scores(model, input_ids, mask)

        for user, length in enumerate((5, 3, 1)):
            alone, alone_scores = self.items_and_scores(model, input_ids[user : user + 1, :length])

            assert alone.tolist() == tokens[user : user + 1].tolist()
            torch.testing.assert_close(alone_scores, scores[user : user + 1])

    def test_masked_and_special_tokens_are_no_history(self, model):
        input_ids, mask = histories_of(model.config, (4,))
        _, scores = self.items_and_scores(model, input_ids[:, :3])

        mask[:, 3] = 0
        _, masked_scores = self.items_and_scores(model, input_ids, mask)
        unknown = torch.cat([torch.ones(1, 1, dtype=torch.long), input_ids[:, :3], torch.ones(1, 2).long()], dim=1)
        _, unknown_scores = self.items_and_scores(model, unknown, torch.ones_like(unknown))

        torch.testing.assert_close(masked_scores, scores)
        torch.testing.assert_close(unknown_scores, scores)

    def test_empty_history_gives_full_lists(self, model):
        tokens, scores = self.items_and_scores(model, torch.zeros(2, 3, dtype=torch.long))
        no_columns, _ = self.items_and_scores(model, torch.zeros(2, 0, dtype=torch.long))

        assert all(len(set(row)) == 11 for row in tokens.tolist())
        assert bool(scores.isfinite().all())
        assert no_columns.tolist() == tokens.tolist()

    def test_history_and_its_order_matter(self, model):
        input_ids, _ = histories_of(model.config, (5,))
        _, scores = self.items_and_scores(model, input_ids)
        _, reversed_scores = self.items_and_scores(model, input_ids.flip(1))

        assert not torch.allclose(scores, reversed_scores)

    def test_excluded_items_are_left_out_and_the_others_move_up(self, model):
        histories = histories_of(model.config)
        tokens, scores = self.items_and_scores(model, *histories, top_k=NUM_ITEMS, num_beams=500)
        excluded = tokens[:, [0, 2, 3]]

        rest, rest_scores = self.items_and_scores(
            model, *histories, top_k=26, num_beams=500, exclude_items=torch.nn.functional.pad(excluded, (1, 1))
        )

        kept = [1, *range(4, NUM_ITEMS)]
        assert rest.tolist() == tokens[:, kept].tolist()
        torch.testing.assert_close(rest_scores, scores[:, kept])

    def test_only_allowed_items_are_recommended_with_the_scores_they_have_anyway(self, model):
        histories = histories_of(model.config)
        tokens, scores = self.items_and_scores(model, *histories, top_k=NUM_ITEMS, num_beams=500)
        allow = torch.arange(NUM_ITEMS) % 4 == 2

        few, few_scores = self.items_and_scores(model, *histories, top_k=9, num_beams=500, allow_items=allow)

        is_allowed = allow[tokens - model.config.first_item_token]
        assert few[:, :7].tolist() == tokens[is_allowed].view(3, 7).tolist()
        torch.testing.assert_close(few_scores[:, :7], scores[is_allowed].view(3, 7))
        assert few[:, 7:].tolist() == [[model.config.pad_token_id] * 2] * 3
        assert few_scores[:, 7:].tolist() == [[-float("inf")] * 2] * 3

    def test_rule_that_allows_nothing_gives_empty_lists(self, model):
        tokens, scores = self.items_and_scores(
            model, *histories_of(model.config), allow_items=torch.zeros(NUM_ITEMS, dtype=torch.bool)
        )

        assert tokens.tolist() == [[model.config.pad_token_id] * 11] * 3
        assert not bool(scores.isfinite().any())

    def test_users_decoded_one_at_a_time_get_the_lists_of_a_batch(self, model):
        tokens, scores = self.items_and_scores(model, *histories_of(model.config))

        chunked, chunked_scores = self.items_and_scores(model, *histories_of(model.config), memory_budget=1)

        assert chunked.tolist() == tokens.tolist()
        torch.testing.assert_close(chunked_scores, scores)

    def test_more_items_than_the_catalog_holds_are_refused(self, model):
        with pytest.raises(ValueError, match=r"`top_k` must lie in \[1, 29\]"):
            model.recommend(histories_of(model.config)[0], top_k=30)

    def test_token_behind_the_last_item_is_refused(self, model):
        last = model.config.first_item_token + model.config.num_items - 1

        model.recommend(torch.tensor([[last]]), top_k=1)
        with pytest.raises(ValueError, match=f"holds token {last + 1}; the last item token"):
            model.recommend(torch.tensor([[last + 1]]), top_k=1)

    def test_recommending_in_training_mode_is_the_same_and_leaves_the_mode(self, own):
        tokens, _ = self.items_and_scores(own, *histories_of(own.config))

        again, _ = self.items_and_scores(own.train(), *histories_of(own.config))

        assert own.training
        assert again.tolist() == tokens.tolist()


class ModelInvariants(RecommendInvariants):
    """All tests of one architecture: lists, files, half precision, losses and training."""

    def test_saved_folder_loads_through_the_auto_classes_and_answers_the_same(self, own, tmp_path):
        tokens, scores = self.items_and_scores(own, *histories_of(own.config))
        own.save_pretrained(tmp_path)

        assert isinstance(AutoConfig.from_pretrained(tmp_path), type(own.config))
        for auto_class in (AutoModel, self.MODEL_CLASS):
            loaded = auto_class.from_pretrained(tmp_path)
            again, again_scores = self.items_and_scores(loaded, *histories_of(own.config))

            assert type(loaded) is self.MODEL_CLASS
            assert again.tolist() == tokens.tolist()
            torch.testing.assert_close(again_scores, scores, rtol=0, atol=0)

    def test_catalog_travels_as_int16_and_is_fingerprinted(self, own, tmp_path):
        own.save_pretrained(tmp_path)
        loaded = self.MODEL_CLASS.from_pretrained(tmp_path)

        assert loaded.item_codes.dtype == torch.int16
        assert loaded.item_codes.tolist() == own.item_codes.tolist()
        assert loaded.config.catalog_fingerprint == catalog_fingerprint(own.item_codes)
        assert loaded.to(torch.bfloat16).item_codes.dtype == torch.int16

    def test_half_precision_answers_with_full_distinct_lists(self, own):
        tokens, scores = self.items_and_scores(own.to(torch.bfloat16), *histories_of(own.config), num_beams=3)

        assert all(len(set(row)) == 11 for row in tokens.tolist())
        assert scores.dtype == torch.float32

    def test_forward_answers_logits_where_tools_look_for_them(self, model):
        input_ids, mask = histories_of(model.config)

        output = model(input_ids, mask)

        assert output[0] is output.logits  # without labels the first entry, with labels behind the loss
        assert output.loss is None
        assert len(output.logits) == len(input_ids)
        torch.testing.assert_close(model(input_ids, mask, return_dict=True).logits, output.logits)

    def test_loss_comes_first_and_sets_aside_no_scores_of_a_whole_catalog(self, own):
        input_ids, mask = histories_of(own.config, (5, 5, 5))
        labels = torch.full_like(input_ids, -100)
        labels[:, -1] = input_ids[:, 0]

        output = own.train()(input_ids, mask, labels=labels)

        assert output[0] is output.loss
        assert output.loss.shape == ()
        assert output.logits is None or output.logits.requires_grad  # where there are any, the loss needed them

    def test_labels_that_are_no_item_are_refused(self, model):
        first, end = model.config.first_item_token, model.config.first_item_token + model.config.num_items

        for label in (0, first - 1, end, -1):
            with pytest.raises(ValueError, match=rf"`labels` must be item tokens in \[{first}, {end}\) or -100"):
                model(torch.tensor([[first, first + 1]]), labels=torch.tensor([[-100, label]]))

    def test_labels_of_another_shape_and_missing_inputs_are_refused(self, model):
        first = model.config.first_item_token

        with pytest.raises(ValueError, match=r"`labels` must have the shape of `input_ids`, \(1, 2\)"):
            model(torch.tensor([[first, first + 1]]), labels=torch.tensor([[first + 2]]))
        with pytest.raises(ValueError, match="`input_ids` .*is needed"):
            model()

    def test_labels_on_left_padded_rows_mean_the_same(self, model):
        losses = []
        for side in ("right", "left"):
            input_ids, mask = histories_of(model.config, padding_side=side)
            losses.append(model(input_ids, mask, labels=labels_of(model.config, input_ids, mask)).loss)

        torch.testing.assert_close(losses[0], losses[1])

    def test_autocast_to_bfloat16_trains_near_the_float32_loss(self, own):
        input_ids, mask = histories_of(own.config)
        labels = labels_of(own.config, input_ids, mask)
        losses = []

        for is_enabled in (False, True):
            torch.manual_seed(0)  # the latents
            with torch.autocast("cpu", torch.bfloat16, enabled=is_enabled):
                losses.append(own.train()(input_ids, mask, labels=labels).loss)
        losses[1].backward()

        assert losses[1].dtype == torch.float32
        assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.03)
        assert all(p.grad.isfinite().all() for p in own.parameters() if p.grad is not None)

    def test_every_parameter_moves_in_training(self, own):
        input_ids, mask = histories_of(own.config, (5, 5, 5))
        labels = torch.full_like(input_ids, -100)
        labels[:, -1] = input_ids[:, 0]
        own.train()

        torch.manual_seed(1)
        for _ in range(3):  # a latent per step: some steps for all of them
            own(input_ids, mask, labels=labels).loss.backward()

        still = [name for name, p in own.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert still == []

    def test_loss_of_all_targets_falls_when_trained(self, own):
        input_ids, mask = histories_of(own.config, (5, 5, 5))
        labels = torch.full_like(input_ids, -100)
        labels[:, -1] = input_ids[:, 0]
        before = own(input_ids, mask, labels=labels).loss.item()

        own.train()
        optimizer = torch.optim.AdamW(own.parameters(), lr=1e-2)
        for _ in range(10):
            optimizer.zero_grad()
            own(input_ids, mask, labels=labels).loss.backward()
            optimizer.step()

        assert own.eval()(input_ids, mask, labels=labels).loss.item() < before - 0.5
