import copy

import numpy as np
import pytest
import torch

from hf_genrec.llm.vocabulary import SidVocabulary
from tiny_llms import KINDS, WORDS, tiny_llm, tiny_tokenizer


CODES = np.array([[0, 3, 1], [0, 1, 2], [4, 3, 0], [2, 0, 0], [4, 1, 1]])
TEXTS = WORDS[:5]


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


def grown(tokenizer, kind="llama", **options):
    """A model and the vocabulary of three levels of five codes, of which the last one has no item on level 1."""
    model = tiny_llm(kind, is_tied=options.pop("is_tied", None))
    vocabulary = SidVocabulary.add_to(tokenizer, num_levels=3, codebook_size=5)
    vocabulary.resize(model, tokenizer, **options)
    return model, vocabulary


def test_item_is_begin_codes_end_and_the_tokenizer_reads_it_as_these_tokens(tokenizer):
    vocabulary = SidVocabulary.add_to(tokenizer, num_levels=3, codebook_size=5)

    text = "".join(map(vocabulary.item_text, CODES[:2]))

    assert text == "<|sid_begin|><s_a_0><s_b_3><s_c_1><|sid_end|><|sid_begin|><s_a_0><s_b_1><s_c_2><|sid_end|>"
    tokens = tokenizer(f"red tea {text} cup", add_special_tokens=False).input_ids
    words = tokenizer("red tea ", add_special_tokens=False).input_ids, tokenizer(" cup").input_ids
    assert tokens == [*words[0], *vocabulary.item_tokens(CODES[:2]).flatten().tolist(), *words[1]]


def test_tokens_stand_behind_those_of_the_tokenizer_level_by_level(tokenizer):
    vocabulary = SidVocabulary.add_to(tokenizer, num_levels=2, codebook_size=3)

    assert vocabulary.begin_id == 301
    assert vocabulary.code_token_ids.tolist() == [[302, 303, 304], [305, 306, 307]]
    assert vocabulary.end_id == 308
    assert tokenizer.convert_ids_to_tokens([304, 305]) == ["<s_a_2>", "<s_b_0>"]


def test_saved_tokenizer_has_the_vocabulary_by_its_names(tokenizer, tmp_path):
    vocabulary = SidVocabulary.add_to(tokenizer, num_levels=3, codebook_size=5)
    tokenizer.save_pretrained(tmp_path)

    found = SidVocabulary.from_tokenizer(type(tokenizer).from_pretrained(tmp_path))

    assert found.code_token_ids.tolist() == vocabulary.code_token_ids.tolist()
    assert (found.begin_id, found.end_id) == (vocabulary.begin_id, vocabulary.end_id)
    assert SidVocabulary.add_to(tokenizer, num_levels=3, codebook_size=5).end_id == vocabulary.end_id


def test_tokenizer_without_codes_or_with_others_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"`tokenizer` has no tokens of semantic IDs .*add_to"):
        SidVocabulary.from_tokenizer(tokenizer)
    with pytest.raises(ValueError, match=r"`num_levels` must lie in \[1, 26\], a letter per level, got 27"):
        SidVocabulary.add_to(tokenizer, num_levels=27, codebook_size=2)

    SidVocabulary.add_to(tokenizer, num_levels=3, codebook_size=5)
    with pytest.raises(ValueError, match="tokens of more codes than 3 levels of 4"):
        SidVocabulary.add_to(tokenizer, num_levels=3, codebook_size=4)


@pytest.mark.parametrize("kind", KINDS)
def test_old_tokens_are_as_likely_as_before_relative_to_each_other(tokenizer, kind):
    plain, tokens = tiny_llm(kind), torch.tensor([[7, 300, 41]])

    model, _ = grown(tokenizer, kind)

    expected = plain(tokens).logits.log_softmax(-1)
    torch.testing.assert_close(model(tokens).logits[..., :301].log_softmax(-1), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_fill_up_to_a_multiple_and_the_rest_is_trainable_too(tokenizer, kind):
    model, vocabulary = grown(tokenizer, kind, pad_to_multiple_of=32)

    assert len(model.get_input_embeddings().weight) == model.config.vocab_size == 320
    assert len(model.get_output_embeddings().weight) == 320
    assert vocabulary.new_token_ids == list(range(301, 320))
    names = {"llama": ["embed_tokens"], "qwen3": ["embed_tokens", "lm_head"], "gpt2": ["wte"]}[kind]
    assert vocabulary.trainable_token_indices(model) == dict.fromkeys(names, list(range(301, 320)))


def test_model_with_rows_to_spare_keeps_its_size(tokenizer):
    model = tiny_llm(vocab_size=341)
    vocabulary = SidVocabulary.add_to(tokenizer, num_levels=3, codebook_size=5)
    old = model.get_input_embeddings().weight[318:].clone()

    vocabulary.resize(model, tokenizer)

    assert len(model.get_input_embeddings().weight) == 341
    assert vocabulary.new_token_ids == list(range(301, 318))
    assert torch.equal(model.get_input_embeddings().weight[318:], old)


@pytest.mark.parametrize("is_tied", [True, False])
def test_mean_rows_lie_at_the_mean_of_each_matrix_and_are_seeded(tokenizer, is_tied):
    plain = tiny_llm(is_tied=is_tied)

    model, vocabulary = grown(tokenizer, is_tied=is_tied)
    again, _ = grown(tokenizer, is_tied=is_tied)
    other, _ = grown(tokenizer, is_tied=is_tied, seed=1)

    for name in ("get_input_embeddings", "get_output_embeddings"):
        rows = getattr(model, name)().weight[301:]
        mean = getattr(plain, name)().weight.mean(0)
        torch.testing.assert_close(rows, mean.expand_as(rows), atol=1e-3, rtol=0)
        assert torch.equal(rows, getattr(again, name)().weight[301:])
        assert not torch.equal(rows, getattr(other, name)().weight[301:])
        assert torch.equal(getattr(model, name)().weight[:301], getattr(plain, name)().weight)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == is_tied


def test_row_of_words_is_the_mean_over_the_items_of_a_code(tokenizer):
    embeddings = tiny_llm().get_input_embeddings().weight
    words = [embeddings[tokenizer(text).input_ids].mean(0) for text in TEXTS]

    model, vocabulary = grown(tokenizer, init="words", codes=CODES, texts=TEXTS)

    rows = model.get_input_embeddings().weight[vocabulary.code_token_ids]
    torch.testing.assert_close(rows[0, 0], (words[0] + words[1]) / 2)
    torch.testing.assert_close(rows[1, 0], words[3])
    torch.testing.assert_close(rows[2, 1], (words[0] + words[4]) / 2)
    torch.testing.assert_close(rows[1, 4], embeddings.mean(0), atol=1e-3, rtol=0)  # no item has it


def test_rows_of_a_codebook_follow_its_centroids_also_where_no_item_is(tokenizer):
    generator = np.random.default_rng(0)
    centroids = generator.normal(size=(2, 5, 4))
    centroids[0, 1] = centroids[0, 4]  # code 1 of level 0 has no item, and the centroid of code 4

    model, vocabulary = grown(tokenizer, init="codebook", codes=CODES, texts=TEXTS, centroids=centroids)
    by_words, _ = grown(tokenizer, init="words", codes=CODES, texts=TEXTS)

    rows = model.get_input_embeddings().weight[vocabulary.code_token_ids]
    of_words = by_words.get_input_embeddings().weight[vocabulary.code_token_ids]
    torch.testing.assert_close(rows[0, 1], rows[0, 4])
    assert torch.equal(rows[2], of_words[2])  # a level of collision codes has no centroids
    used = [0, 2, 4]
    error = (rows[0, used] - of_words[0, used]).norm()
    assert error < 0.5 * (of_words[0, used] - of_words[0, used].mean(0)).norm()


def test_what_a_start_needs_is_asked_for(tokenizer):
    with pytest.raises(ValueError, match="`init` must be one of 'mean', 'words', 'codebook', got 'zeros'"):
        grown(tokenizer, init="zeros")
    with pytest.raises(ValueError, match="`init='codebook'` needs `texts` and `centroids`"):
        grown(tokenizer, init="codebook", codes=CODES)
    with pytest.raises(ValueError, match=r"`codes` must have shape .* = \(4, 3\), got \(5, 3\)"):
        grown(tokenizer, init="words", codes=CODES, texts=TEXTS[:4])


@pytest.mark.parametrize("kind", KINDS)
def test_adapter_with_the_new_rows_reloads_to_the_same_logits(tokenizer, kind, tmp_path):
    peft = pytest.importorskip("peft")
    model, vocabulary = grown(tokenizer, kind)
    base, _ = grown(tokenizer, kind, seed=5)  # as another process would draw it
    indices = vocabulary.trainable_token_indices(model)
    config = peft.LoraConfig(
        r=3, target_modules="all-linear", trainable_token_indices=indices, ensure_weight_tying=True
    )
    adapted = peft.get_peft_model(copy.deepcopy(model), config).eval()
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)

    loaded = peft.PeftModel.from_pretrained(base, tmp_path).eval()

    tokens = torch.cat([torch.tensor([[7, 41]]), vocabulary.item_tokens(CODES[:1])], dim=1)
    assert torch.equal(loaded(tokens).logits, adapted(tokens).logits)
