"""The item vocabulary: one id, one token, whatever characters it holds."""

import json

import pytest
from transformers import AutoTokenizer

from hf_genrec.modeling.configuration_genrec import GenRecConfig
from hf_genrec.tokenizers.vocabulary import build_tokenizer, check_vocabulary, vocabulary
from invariants.model import tiny_config


PLAIN_IDS = ["B00X", "tooth brush", " B00X ", "été", "42", "<eos"]
IDS = [*PLAIN_IDS, "a,b", "日本", "B00x", "\U0001f600", "x\ty", "<unk", "e\u0301te\u0301"]


@pytest.fixture
def config():
    return tiny_config(num_items=len(IDS), num_levels=2, codebook_size=3, num_latent_tokens=2, max_history_length=4)


@pytest.fixture
def tokenizer(config, tmp_path):
    """As it comes out of a folder."""
    build_tokenizer(IDS, config, max_history_length=4).save_pretrained(tmp_path)
    config.save_pretrained(tmp_path)
    return AutoTokenizer.from_pretrained(tmp_path)


def test_tokens_stand_in_the_order_of_the_layout(config):
    tokens = vocabulary(IDS, config)

    assert tokens[:4] == ["<pad>", "<unk>", "<eos>", "<user>"]
    assert tokens[config.first_latent_token : config.first_code_token] == ["<latent_0>", "<latent_1>"]
    assert tokens[config.first_code_token + 3] == "<code_1_0>"
    assert tokens[config.first_item_token :] == IDS


@pytest.mark.parametrize("index", range(len(IDS)))
def test_every_id_is_one_token_and_comes_back(tokenizer, config, index):
    token = config.first_item_token + index

    assert tokenizer([IDS[index]], is_split_into_words=True).input_ids == [token]
    assert tokenizer(IDS[index]).input_ids == [token]
    assert tokenizer.decode([token]) == IDS[index]
    assert tokenizer.convert_ids_to_tokens(token) == IDS[index]


def test_unknown_ids_become_the_unknown_token(tokenizer, config):
    history = ["42", "tooth", "été"]

    assert tokenizer(history, is_split_into_words=True).input_ids == [
        config.first_item_token + 4,
        config.unk_token_id,
        config.first_item_token + 3,
    ]


def test_long_histories_keep_their_last_items_and_short_ones_are_padded_on_the_left(tokenizer, config):
    batch = tokenizer([IDS[:6], ["42"]], is_split_into_words=True, truncation=True, padding=True)

    first = config.first_item_token
    assert batch.input_ids == [[first + 2, first + 3, first + 4, first + 5], [0, 0, 0, first + 4]]
    assert batch.attention_mask == [[1, 1, 1, 1], [0, 0, 0, 1]]


def test_empty_history_is_all_padding(tokenizer, config):
    batch = tokenizer([["42"], []], is_split_into_words=True, padding=True)

    assert batch.input_ids == [[config.first_item_token + 4], [0]]
    assert batch.attention_mask == [[1], [0]]


def test_what_is_generated_is_printed_in_words(tokenizer, config):
    tokens = [0, config.first_latent_token + 1, config.first_code_token + 2]

    assert tokenizer.decode(tokens) == "<pad> <latent_1> <code_0_2>"


def test_ids_with_a_special_token_inside_stay_whole():
    ids = ["a<unk>b", "<pad> x", "plain"]
    config = tiny_config(num_items=3)

    tokenizer = build_tokenizer(ids, config)

    first = config.first_item_token
    assert tokenizer(ids, is_split_into_words=True).input_ids == [first, first + 1, first + 2]


@pytest.mark.parametrize("item_id", ["", "<pad>", "<latent_1>", "<code_1_2>"])
def test_ids_that_are_another_tokens_string_are_refused(config, item_id):
    with pytest.raises(ValueError, match="1 item ids are empty or the name of a special token"):
        vocabulary([item_id, *IDS[1:]], config)


def test_repeated_and_missing_ids_are_refused(config):
    with pytest.raises(ValueError, match="1 item ids occur twice"):
        vocabulary([IDS[1], *IDS[1:]], config)
    with pytest.raises(ValueError, match="`item_ids` must hold 13 ids"):
        vocabulary(IDS[1:], config)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["model"]["vocab"].update({"soap": 5, "<code_0_1>": 6}),
        lambda content: content["model"]["vocab"].update({"soap": 7}),
        lambda content: content["added_tokens"].append({"content": "rock", "id": 9}),
    ],
    ids=["exchanged", "a number twice", "a token more"],
)
def test_a_vocabulary_of_other_items_is_refused_without_building_the_tokenizer(tmp_path, change):
    config = GenRecConfig(num_items=3, num_levels=1, codebook_size=2)
    build_tokenizer(["soap", "comb", "tooth brush"], config).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    check_vocabulary(path, ["soap", "comb", "tooth brush"], config)
    content = json.loads(path.read_text(encoding="utf-8"))

    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")

    with pytest.raises(ValueError, match=r"tokenizer\.json\) does not hold the items of .*items\.parquet"):
        check_vocabulary(path, ["soap", "comb", "tooth brush"], config)
