import datasets
import numpy as np
import pytest
import torch

from hf_genrec import SemanticIds
from hf_genrec.data.sequences import make_examples
from hf_genrec.llm.mix import item_blocks, sequence_rows
from hf_genrec.llm.prompts import check_mix, first_words, is_chat, prompt_text, sequence_prefix
from hf_genrec.llm.recommender import as_recommender
from hf_genrec.llm.vocabulary import SidVocabulary
from tests.tiny_llms import tiny_llm, tiny_tokenizer


CODES = np.array([[0, 2], [1, 0], [2, 2]])
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def with_codes(chat=False):
    tokenizer = tiny_tokenizer()
    if chat:
        tokenizer.chat_template = TEMPLATE
    return tokenizer, SidVocabulary.add_to(tokenizer, num_levels=2, codebook_size=3)


@pytest.mark.parametrize("chat", [False, True])
def test_the_prompt_that_is_served_is_what_the_tokenizer_makes_of_its_text(chat):
    tokenizer, _ = with_codes(chat)
    llm = tiny_llm(vocab_size=len(tokenizer))
    ids = SemanticIds.from_codes(["a", "b", "c"], CODES, codebook_size=3, policy="keep")
    prefix = sequence_prefix(tokenizer, chat=chat)
    model = as_recommender(llm, tokenizer, ids, prefix=prefix, closes_items=False)
    text = prefix + "<|sid_begin|><s_a_1><s_b_0><|sid_begin|><s_a_2><s_b_2><|sid_begin|>"

    tokens, mask = model.prompt_tokens(torch.tensor([[1, 2], [0, 0]]) + model.config.first_item_token)

    assert tokens[0, mask[0]].tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert model.config.prompt_length(2) == len(tokens[0])


def test_the_prompt_that_is_served_is_a_training_row_up_to_its_answer():
    tokenizer, vocabulary = with_codes()
    ids = SemanticIds.from_codes(["a", "b", "c"], CODES, codebook_size=3, policy="keep")
    prefix = sequence_prefix(tokenizer, chat=False)
    model = as_recommender(tiny_llm(vocab_size=len(tokenizer)), tokenizer, ids, prefix=prefix, closes_items=False)
    split = datasets.Dataset.from_list([{"history": ["c", "a"], "target": "b"}])
    windows = make_examples(split, ["a", "b", "c"])
    rows = sequence_rows(windows, item_blocks(vocabulary, CODES), model.config.prompt_prefix_ids, all_items=False)

    tokens, _ = model.prompt_tokens(torch.tensor([[2, 0]]) + model.config.first_item_token)

    row = np.array(rows[1]["input_ids"])
    assert tokens[0].tolist() == row[np.array(rows[1]["labels"]) == -100].tolist()


def test_a_chat_model_reads_the_question_in_the_turn_of_the_user_and_the_list_in_its_own():
    tokenizer, _ = with_codes(chat=True)

    assert is_chat(tokenizer)
    assert prompt_text(tokenizer, "Which?", chat=True) == "<|user|>Which?\n<|assistant|>"
    assert prompt_text(tokenizer, "Which?", chat=False) == "Which?\n"


def test_a_mix_keeps_the_tasks_with_a_weight_in_their_order():
    assert check_mix({"id_to_title": 0.5, "title_to_id": 2, "search_to_id": 0}) == {
        "sequential": 1.0, "title_to_id": 2.0, "id_to_title": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("mix", "reason"),
    [
        ({"titel_to_id": 1}, "no task 'titel_to_id'; there are sequential, title_to_id"),
        ({"title_to_id": -1}, "'title_to_id' in `mix` must be a number from 0, got -1"),
        ({"title_to_id": "2"}, "must be a number from 0, got '2'"),
        ({"sequential": 0}, "must keep the task 'sequential'"),
    ],
)
def test_a_mix_that_cannot_be_is_refused(mix, reason):
    with pytest.raises(ValueError, match=reason):
        check_mix(mix)


def test_a_text_is_cut_after_its_first_words_and_stands_on_one_line():
    assert first_words("red  tea\ncup of mine", 3) == "red tea cup"
