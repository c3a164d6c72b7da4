"""`generate()`: transformers' own, kept inside the catalog, with one row of history keys per user."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PrefixConstrainedLogitsProcessor

from generated_beams import generate_beams, items_of
from hf_genrec.modeling.configuration_genrec import GenRecConfig
from hf_genrec.modeling.genrec_catalog import Catalog
from hf_genrec.modeling.genrec_generate import CatalogLogitsProcessor, SharedHistoryCache
from invariants.model import NUM_LEVELS, histories_of, make_model, tiny_config


# --- what is written ----------------------------------------------------------------------------------------------


@pytest.fixture
def latte():
    return make_model(tiny_config(history_attention="causal", num_latent_tokens=3))


def test_generate_writes_a_start_token_a_latent_and_codes_whatever_length_is_asked_for(latte):
    config = latte.config
    input_ids, mask = histories_of(config)

    for lengths in ({}, {"max_new_tokens": 1}, {"max_new_tokens": 50}, {"max_length": 2}, {"min_new_tokens": 9}):
        rows = latte.generate(input_ids, attention_mask=mask, **lengths)

        assert rows.shape == (3, 1 + 1 + NUM_LEVELS)
        assert rows[:, 0].tolist() == [config.decoder_start_token_id] * 3
        assert bool(((rows[:, 1] >= config.first_latent_token) & (rows[:, 1] < config.first_code_token)).all())
        assert bool((items_of(latte, rows) >= 0).all())


def test_generate_takes_a_generation_config(latte):
    settings = type(latte.generation_config)(num_beams=5, num_return_sequences=5, max_length=3)
    histories = histories_of(latte.config)

    rows = latte.generate(histories[0], generation_config=settings, attention_mask=histories[1])

    assert items_of(latte, rows).view(3, 5).tolist() == generate_beams(latte, histories, 5)[0].tolist()


def test_further_processors_run_inside_the_catalog(latte):
    def only_even_latents(input_ids, scores):
        if input_ids.shape[1] == 1:
            scores = scores.index_fill(1, torch.tensor([latte.config.first_latent_token + 1]), -math.inf)
        return scores

    rows = latte.generate(
        histories_of(latte.config)[0], do_sample=True, num_return_sequences=40, logits_processor=[only_even_latents]
    )

    assert set((rows[:, 1] - latte.config.first_latent_token).tolist()) == {0, 2}
    assert bool((items_of(latte, rows) >= 0).all())


def test_more_sequences_than_paths_are_refused_and_as_many_are_all_of_them():
    model = make_model(tiny_config(num_items=4, num_latent_tokens=2))
    history = histories_of(model.config, (3,))

    items, scores = generate_beams(model, history, 8)

    assert sorted(items[0].tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert bool(scores.isfinite().all())
    with pytest.raises(ValueError, match=r"only 8 different paths \(4 semantic IDs x 2 latents\)"):
        model.generate(history[0], num_beams=9, num_return_sequences=9)


def test_sampling_follows_the_model_within_the_catalog():
    model = make_model(tiny_config(num_items=3, num_levels=1))
    history = histories_of(model.config, (3,))[0]
    probabilities = model.score_items(history)[0].softmax(0)

    torch.manual_seed(0)
    rows = model.generate(history, do_sample=True, num_return_sequences=4000)

    counts = items_of(model, rows).bincount(minlength=3)
    torch.testing.assert_close(counts / 4000, probabilities, rtol=0, atol=0.03)


def test_items_that_share_a_semantic_id_are_written_once():
    model = make_model(tiny_config(num_items=4, num_levels=1))
    model.set_catalog(torch.tensor([[3], [0], [3], [4]]))
    history = histories_of(model.config, (3,))[0]

    rows = model.generate(history, num_beams=3, num_return_sequences=3)

    assert sorted(items_of(model, rows).tolist()) == [0, 1, 3]
    with pytest.raises(ValueError, match=r"only 3 different paths \(3 semantic IDs x 1 latents\)"):
        model.generate(history, num_beams=4, num_return_sequences=4)


def test_beam_sampling_that_runs_out_of_probability_is_an_error():
    model = make_model(tiny_config())
    input_ids, attention_mask = histories_of(model.config)

    with pytest.raises(ValueError, match="sampled beams are no items"):
        model.generate(
            input_ids,
            attention_mask=attention_mask,
            do_sample=True,
            num_beams=10,
            num_return_sequences=10,
            temperature=0.001,
        )


# --- what is held in memory per user and per beam -----------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"num_beams": 7, "num_return_sequences": 7}, {"do_sample": True, "num_return_sequences": 7}]
)
@pytest.mark.parametrize("unit", ["code", "item"])
def test_beams_and_samples_of_a_user_share_one_row_of_history_keys(options, unit):
    model = make_model(tiny_config(history_attention="causal", history_unit=unit, num_latent_tokens=2))
    input_ids, mask = histories_of(model.config)

    output = model.generate(input_ids, attention_mask=mask, return_dict_in_generate=True, **options)

    cache = output.past_key_values
    assert isinstance(cache, SharedHistoryCache)
    num_positions = 1 + 5 * model.config.history_tokens_per_item
    for layer in range(model.config.num_decoder_layers):
        assert cache.cross_attention_cache.layers[layer].keys.shape == (3, 2, num_positions, 6)
        assert cache.self_attention_cache.layers[layer].keys.shape[0] == 3 * 7


def test_one_user_among_others_generates_what_the_user_generates_alone():
    model = make_model(tiny_config(num_latent_tokens=2))
    input_ids, mask = histories_of(model.config)
    together = model.generate(input_ids, attention_mask=mask, num_beams=4, num_return_sequences=4)

    for user, length in enumerate((5, 3, 1)):
        alone = model.generate(input_ids[user : user + 1, :length], num_beams=4, num_return_sequences=4)

        assert alone.tolist() == together[4 * user : 4 * (user + 1)].tolist()


# --- the processor: which tokens may follow which -----------------------------------------------------------------


# Items (0, 1), (0, 3), (2, 0): code 3 of level 1 is legal after 0 only, code 0 after 2 only.
CODES = torch.tensor([[0, 1], [2, 0], [0, 3]])


def make_processor(num_latent_tokens=0):
    config = GenRecConfig(num_items=3, num_levels=2, codebook_size=4, num_latent_tokens=num_latent_tokens)
    return CatalogLogitsProcessor(Catalog(CODES, 4), config), config


def allowed_tokens(processor, config, rows):
    scores = processor(torch.tensor(rows), torch.zeros(len(rows), config.vocab_size))
    return [row.isfinite().nonzero()[:, 0].tolist() for row in scores]


def test_codes_follow_the_trie_level_by_level():
    processor, config = make_processor()

    assert config.first_code_token == 4
    assert allowed_tokens(processor, config, [[0]]) == [[4 + 0, 4 + 2]]
    assert allowed_tokens(processor, config, [[0, 4], [0, 6]]) == [[8 + 1, 8 + 3], [8 + 0]]


def test_nothing_but_padding_follows_the_last_code():
    processor, config = make_processor()

    assert allowed_tokens(processor, config, [[0, 4, 9], [0, 6, 8]]) == [[0], [0]]
    assert allowed_tokens(processor, config, [[0, 4, 9, 0], [0, 6, 8, 0]]) == [[0], [0]]


def test_latents_come_first_and_every_one_leads_to_the_same_trie():
    processor, config = make_processor(num_latent_tokens=3)

    assert allowed_tokens(processor, config, [[0]]) == [[4, 5, 6]]
    assert allowed_tokens(processor, config, [[0, 4], [0, 6]]) == [[7, 9], [7, 9]]
    assert allowed_tokens(processor, config, [[0, 5, 9], [0, 4, 7]]) == [[11], [12, 14]]
    assert allowed_tokens(processor, config, [[0, 5, 9, 11]]) == [[0]]


def test_row_that_left_the_catalog_still_has_one_token():
    processor, config = make_processor()

    assert allowed_tokens(processor, config, [[0, 5], [0, 0], [0, 9]]) == [[8], [8], [8]]


def test_scores_of_legal_tokens_stay_as_they_are_and_the_input_is_not_touched():
    processor, config = make_processor()
    scores = torch.randn(2, config.vocab_size, generator=torch.Generator().manual_seed(0))
    before = scores.clone()

    processed = processor(torch.tensor([[0], [0]]), scores)

    assert torch.equal(scores, before)
    assert processed[:, [4, 6]].tolist() == scores[:, [4, 6]].tolist()
    assert processed.dtype == scores.dtype


def test_half_precision_scores_are_masked_too():
    processor, config = make_processor()

    processed = processor(torch.tensor([[0]]), torch.zeros(1, config.vocab_size, dtype=torch.bfloat16))

    assert processed.dtype == torch.bfloat16
    assert processed.isfinite().sum() == 2


def test_order_of_calls_and_of_rows_does_not_matter():
    processor, config = make_processor()
    rows = [[0, 6], [0, 4], [0, 5]]

    first = allowed_tokens(processor, config, rows)
    allowed_tokens(processor, config, [[0, 4, 9]])

    assert allowed_tokens(processor, config, rows[::-1]) == first[::-1]


def test_catalog_of_another_size_is_refused():
    config = GenRecConfig(num_items=3, num_levels=2, codebook_size=5)

    with pytest.raises(ValueError, match=r"= \(3, 2, 4\), but `config` says \(3, 2, 5\)"):
        CatalogLogitsProcessor(Catalog(CODES, 4), config)


def dictionary_rule(codes, config):
    """Tokens that may follow, by brute force over the items; what has left the catalog may write code 0."""

    def allowed(_, sentence):
        written = sentence.tolist()[1:]
        if config.num_latent_tokens:
            if not written:
                return list(range(config.first_latent_token, config.first_code_token))
            written = written[1:]
        if len(written) >= config.num_levels:
            return [config.pad_token_id]
        starts = [config.first_code_token + level * config.codebook_size for level in range(config.num_levels)]
        prefix = [token - start for token, start in zip(written, starts, strict=False)]
        start = starts[len(prefix)]
        return sorted({start + item[len(prefix)] for item in codes if item[: len(prefix)] == prefix}) or [start]

    return allowed


@st.composite
def decodings(draw):
    """A catalog, its config, the size of its dense tables and random rows, on and off the catalog."""
    codebook_size, num_levels = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    item = st.lists(st.integers(0, codebook_size - 1), min_size=num_levels, max_size=num_levels)
    codes = draw(st.lists(item, min_size=1, max_size=15, unique_by=tuple))
    config = GenRecConfig(
        num_items=len(codes),
        num_levels=num_levels,
        codebook_size=codebook_size,
        num_latent_tokens=draw(st.sampled_from([0, 3])),
    )
    length = draw(st.integers(1, config.num_decoding_steps + 2))
    rows = []
    for path in draw(st.lists(st.sampled_from(codes), min_size=1, max_size=7)):
        tokens = [config.first_code_token + level * codebook_size + code for level, code in enumerate(path)]
        row = [0, *([draw(st.integers(4, 6))] if config.num_latent_tokens else []), *tokens, 0, 0, 0][:length]
        if draw(st.booleans()):
            row[draw(st.integers(0, length - 1))] = draw(st.integers(0, config.vocab_size - 1))
        rows.append(row)
    return codes, config, draw(st.sampled_from([0, 9, 1 << 25])), torch.tensor(rows)


@settings(max_examples=30, deadline=None)
@given(decodings(), st.integers(0, 3))
def test_scores_are_those_of_transformers_processor_over_a_brute_force_trie(decoding, num_more_tokens):
    codes, config, max_dense_entries, rows = decoding
    catalog = Catalog(torch.tensor(codes), config.codebook_size, max_dense_entries=max_dense_entries)
    scores = torch.randn(len(rows), config.vocab_size + num_more_tokens, generator=torch.Generator().manual_seed(0))

    processed = CatalogLogitsProcessor(catalog, config)(rows, scores)

    stock = PrefixConstrainedLogitsProcessor(dictionary_rule(codes, config), num_beams=1)
    assert torch.equal(processed, stock(rows, scores))


class WideResults(TorchDispatchMode):
    """Sizes of the tensors that operations return, views apart, from some number of elements on."""

    def __init__(self, least):
        super().__init__()
        self.least, self.sizes = least, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if torch.is_tensor(result) and not result._is_view() and result.numel() >= self.least:
            self.sizes.append((result.dtype, tuple(result.shape)))
        return result


@pytest.mark.parametrize("max_dense_entries", [0, 1 << 25])
@pytest.mark.parametrize("row", [[0], [0, 4], [0, 4, 9]])
def test_vocabulary_of_a_language_model_costs_one_tensor_of_its_width(max_dense_entries, row):
    config = make_processor()[1]
    processor = CatalogLogitsProcessor(Catalog(CODES, 4, max_dense_entries=max_dense_entries), config)
    scores = torch.zeros(5, 150_001)

    with WideResults(least=5 * 5) as wide:
        processed = processor(torch.tensor([row] * 5), scores)

    assert wide.sizes == [(torch.float32, (5, 150_001))]
    assert processed.isfinite().sum(1).tolist() == [len(t) for t in allowed_tokens(processor, config, [row] * 5)]
