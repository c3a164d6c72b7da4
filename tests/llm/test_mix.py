from collections import Counter

import datasets
import numpy as np
import pytest

from hf_genrec import prepare
from hf_genrec.data.sequences import make_examples, make_windows
from hf_genrec.llm.mix import item_blocks, sequence_rows, training_mix
from hf_genrec.llm.vocabulary import SidVocabulary
from tests.tiny_llms import tiny_tokenizer


TITLES = ["red tea", "cup", "pot", "jam", "", "rye"]
CODES = np.array([[0, 1], [1, 1], [2, 0], [0, 0], [1, 2], [2, 2]])
SPLIT = datasets.Dataset.from_list([{"history": list("abcd"), "target": "e"}])
BLOCKS = np.concatenate([np.full((6, 1), 9), CODES + [[10, 20]]], axis=1)
PREFIX = [5, 6]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mix")
    users = [[(user + step) % 6 for step in range(3 + user % 3)] for user in range(13)]
    (folder / "log.tsv").write_text(
        "".join(f"u{n}\t{' '.join(f'i{item}' for item in items)}\n" for n, items in enumerate(users))
    )
    items = [{"item_id": f"i{n}", "title": title, "description": f"green bowl {n}"} for n, title in enumerate(TITLES)]
    return prepare(folder / "data", sequences=folder / "log.tsv", items=items)


def mixed(data, mix, **options):
    tokenizer = tiny_tokenizer()
    vocabulary = SidVocabulary.add_to(tokenizer, num_levels=2, codebook_size=3)
    order = [int(item[1:]) for item in data.item_ids]
    return training_mix(data, CODES[order], vocabulary, tokenizer, mix=mix, chat=False, **options), tokenizer


def test_each_item_of_a_list_but_the_first_is_an_answer():
    row = sequence_rows(make_windows(SPLIT, list("abcde"), max_history_length=4, stride=2), BLOCKS, PREFIX)[0]

    assert row["input_ids"] == [5, 6, 9, 10, 21, 9, 11, 21, 9, 12, 20, 9, 10, 20, 9, 11, 22]
    assert row["labels"] == [-100] * 6 + [11, 21, -100, 12, 20, -100, 10, 20, -100, 11, 22]


def test_targets_of_an_earlier_window_are_no_answers_of_the_next_one():
    rows = sequence_rows(make_windows(SPLIT, list("abcde"), max_history_length=3, stride=1), BLOCKS, PREFIX)

    assert rows["labels"][0] == [-100] * 6 + [11, 21, -100, 12, 20, -100, 10, 20]
    assert rows["labels"][1] == [-100] * 12 + [11, 22]


def test_one_answer_per_row_asks_for_the_last_item_alone():
    examples = make_examples(SPLIT, list("abcde"), max_history_length=2)

    rows = sequence_rows(examples, BLOCKS, PREFIX, all_items=False)

    assert rows["input_ids"][-1] == [5, 6, 9, 12, 20, 9, 10, 20, 9, 11, 22]
    assert rows["labels"][-1] == [-100] * 9 + [11, 22]
    assert len(rows) == 4


def test_weights_are_rows_per_row_of_the_sequential_task(data):
    rows, _ = mixed(data, {"title_to_id": 0.5, "titles_to_id": 2})

    counts = Counter(rows["task"])
    assert counts["title_to_id"] == round(0.5 * counts["sequential"])
    assert counts["titles_to_id"] == 2 * counts["sequential"]


def test_questions_and_answers_of_the_tasks_with_texts(data):
    tasks = ["title_to_id", "id_to_title", "ids_to_title", "titles_to_id", "search_to_id"]
    rows, tokenizer = mixed(data, dict.fromkeys(tasks, 3.0))

    shown = {}
    for row in rows.filter(lambda row: row["task"] != "sequential"):
        is_answer = np.array(row["labels"]) != -100
        assert np.array_equal(np.array(row["labels"])[is_answer], np.array(row["input_ids"])[is_answer])
        first = int(is_answer.argmax())
        assert is_answer[first:].all()
        texts = (tokenizer.decode(row["input_ids"][:first]), tokenizer.decode(row["input_ids"][first:]))
        shown.setdefault(row["task"], set()).add(texts)
    assert ("The item with the title red tea:\n<|sid_begin|>", "<s_a_0><s_b_1>") in shown["title_to_id"]
    assert (
        "The title of the item <|sid_begin|><s_a_0><s_b_1><|sid_end|>:\n", "red tea<|end|>",
    ) in shown["id_to_title"]  # fmt: skip
    assert ("An item for the search green bowl 1:\n<|sid_begin|>", "<s_a_1><s_b_1>") in shown["search_to_id"]
    assert not any("title :" in question for question, _ in shown["title_to_id"])  # the item without a title
    assert all(answer.endswith("<|end|>") for _, answer in shown["ids_to_title"])


def test_a_task_without_texts_is_left_out_with_a_warning(data, caplog):
    bare = type(data)(data.folder, data.metadata, data.fingerprint)
    bare.__dict__["items"] = data.items.set_column(
        data.items.column_names.index("title"), "title", [[""] * len(data.item_ids)]
    )

    rows, _ = mixed(bare, {"title_to_id": 1.0})

    assert set(rows["task"]) == {"sequential"}
    assert "no texts for the task title_to_id" in caplog.text


def test_the_same_seed_draws_the_same_rows(data):
    first, second, other = (mixed(data, {"title_to_id": 0.7}, seed=seed)[0] for seed in (3, 3, 4))

    assert first["input_ids"] == second["input_ids"]
    assert first["input_ids"] != other["input_ids"]


def test_an_item_of_a_list_is_its_begin_token_and_its_codes():
    vocabulary = SidVocabulary.add_to(tiny_tokenizer(), num_levels=2, codebook_size=3)

    blocks = item_blocks(vocabulary, CODES)

    assert blocks.tolist() == vocabulary.item_tokens(CODES)[:, :-1].tolist()
    assert set(blocks[:, 0]) == {vocabulary.begin_id}
