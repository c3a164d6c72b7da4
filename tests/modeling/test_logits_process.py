"""CatalogLogitsProcessor: which tokens may follow which."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PrefixConstrainedLogitsProcessor

from hf_genrec.modeling.configuration_genrec import GenRecConfig
from hf_genrec.modeling.genrec_catalog import Catalog
from hf_genrec.modeling.genrec_generate import CatalogLogitsProcessor


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


@settings(max_examples=60, deadline=None)
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
