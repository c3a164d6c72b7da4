"""CatalogLogitsProcessor: which tokens may follow which."""

import pytest
import torch

from hf_genrec.modeling.catalog_genrec import Catalog
from hf_genrec.modeling.configuration_genrec import GenRecConfig
from hf_genrec.modeling.logits_process_genrec import CatalogLogitsProcessor


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
