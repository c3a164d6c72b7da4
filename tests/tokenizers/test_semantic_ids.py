"""SemanticIds: policies by name, import and export, statistics, fingerprints."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hf_genrec.modeling.genrec_folder import catalog_fingerprint, items_fingerprint
from hf_genrec.tokenizers.semantic_ids import SemanticIds, code_column, code_rows


CODES = np.array([[1, 2, 0], [0, 3, 3], [1, 2, 0], [2, 2, 1], [1, 2, 0]])
NAMES = ["soap", "comb", "brush", "oil", "balm"]


@pytest.fixture
def space() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(2)
    codebooks = generator.normal(size=(3, 4, 7))
    embeddings = codebooks[np.arange(3), CODES].sum(axis=1) + 0.1 * generator.normal(size=(5, 7))
    return {"embeddings": embeddings, "codebooks": codebooks}


@pytest.mark.parametrize("policy", ["append", "candidates", "widen", "rematch"])
def test_every_policy_but_keep_makes_the_ids_unique(policy, space):
    ids = SemanticIds.from_codes(NAMES, CODES, codebook_size=4, policy=policy, **space)

    assert ids.is_unique
    assert ids.policy == policy
    assert ids.num_items == 5
    assert ids.num_levels == (4 if policy == "append" else 3)
    np.testing.assert_array_equal(ids.raw_codes, CODES)


def test_kept_collisions_stay():
    ids = SemanticIds.from_codes(NAMES, CODES, codebook_size=4, policy="keep")

    assert not ids.is_unique
    np.testing.assert_array_equal(ids.codes, CODES)


def test_appending_raises_the_codebook_size_where_a_group_is_larger():
    ids = SemanticIds.from_codes(NAMES, np.zeros((5, 2), dtype=int), codebook_size=2, policy="append")

    assert ids.codebook_size == 5
    assert ids.codes.tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 0, 3], [0, 0, 4]]


def test_policies_that_move_items_ask_for_embeddings():
    with pytest.raises(ValueError, match="'widen' needs `embeddings` and `codebooks`"):
        SemanticIds.from_codes(NAMES, CODES, codebook_size=4, policy="widen")


def test_codes_cannot_be_changed_in_place_or_from_outside():
    codes = CODES.copy()
    ids = SemanticIds.from_codes(NAMES, codes, codebook_size=4, policy="keep")

    codes[0, 0] = 3

    assert ids.codes[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        ids.codes[0, 0] = 3


def test_statistics_count_collisions_before_and_after():
    ids = SemanticIds.from_codes(NAMES, CODES, codebook_size=4, policy="append")

    statistics = ids.statistics()

    assert statistics["before"] == {
        "num_distinct": 3,
        "collision_rate": 3 / 5,
        "excess_rate": pytest.approx(2 / 5),
        "group_sizes": {1: 2, 3: 1},
    }
    assert statistics["after"] == {"num_distinct": 5, "collision_rate": 0, "excess_rate": 0, "group_sizes": {1: 5}}
    assert statistics["num_changed"] == 0
    assert [level["num_used"] for level in statistics["levels"]] == [3, 2, 3, 3]
    assert statistics["levels"][1]["usage"] == 2 / 4
    entropy = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))
    assert statistics["levels"][1]["perplexity"] == pytest.approx(math.exp(entropy))
    json.dumps(statistics)


def test_statistics_count_moved_items(space):
    ids = SemanticIds.from_codes(NAMES, CODES, codebook_size=4, policy="candidates", **space)

    assert ids.statistics()["num_changed"] == 2


def test_perplexity_is_the_codebook_size_for_even_use():
    ids = SemanticIds.from_codes(["a", "b", "c"], np.array([[0], [2], [1]]), codebook_size=3, policy="keep")

    assert ids.statistics()["levels"] == [
        {"num_used": 3, "usage": 1.0, "perplexity": pytest.approx(3), "num_prefixes": 3}
    ]


def test_json_round_trip_in_catalog_order(tmp_path):
    ids = SemanticIds.from_codes(NAMES, CODES, codebook_size=4, policy="keep")

    ids.to_json(tmp_path / "ids.json")
    loaded = SemanticIds.from_json(tmp_path / "ids.json", item_ids=NAMES[::-1], codebook_size=4)

    assert loaded.item_ids == tuple(NAMES[::-1])
    np.testing.assert_array_equal(loaded.codes, CODES[::-1])
    assert json.loads((tmp_path / "ids.json").read_text(encoding="utf-8"))["comb"] == [0, 3, 3]


def test_imported_codes_may_be_strings_and_their_size_is_found():
    ids = SemanticIds.from_json({7: ["0", "12"], "a": [3, 4]})

    assert ids.item_ids == ("7", "a")
    assert ids.codes.tolist() == [[0, 12], [3, 4]]
    assert ids.codebook_size == 13


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"a": [1], "b": [1], "c": [1]}, "unknown 'c'"),
        ({"a": [1]}, "no codes for 'b'"),
        ({"a": [1, 2], "b": [1]}, "equally many codes"),
        ({"a": [1], "b": ["red"]}, "item 'b' must be integers, got 'red'"),
        ({"a": [1], "b": [1.0]}, "must be integers, got 1.0"),
        ({"a": [1], "b": [True]}, "must be integers, got True"),
        ({"a": [1], "b": "12"}, "must be a list; they are not for 'b'"),
        ({"a": [1], "b": [-1]}, "must lie between"),
        ({"a": [1], "b": [32768]}, "`codebook_size` must be between 1 and 32768, got 32769"),
        ({"a": [], "b": []}, "no codes: their lists are empty"),
    ],
)
def test_bad_imports_name_the_item(table, message):
    with pytest.raises(ValueError, match=message):
        SemanticIds.from_json(table, item_ids=["a", "b"])


def test_codes_may_be_the_tokens_of_other_projects_each_with_the_letter_of_its_level():
    ids = SemanticIds.from_json({"soap": ["<a_6>", "<b_5>", "<c_14>"], "comb": ["<a_0>", "<b_2>", "<c_0>"]})

    assert ids.to_dict() == {"soap": [6, 5, 14], "comb": [0, 2, 0]}
    for wrong in ("<b_6>", "<a_x>", "<a_6", "a_6>"):
        with pytest.raises(ValueError, match="item 'comb' must be integers"):
            SemanticIds.from_json({"comb": [wrong]})


def test_repeated_items_in_a_json_file_are_refused(tmp_path):
    (tmp_path / "ids.json").write_text('{"a": [1], "b": [2], "a": [3]}', encoding="utf-8")

    with pytest.raises(ValueError, match="repeat: 'a'"):
        SemanticIds.from_json(tmp_path / "ids.json")


def test_json_file_without_an_object_is_refused(tmp_path):
    (tmp_path / "ids.json").write_text("[[1, 2]]", encoding="utf-8")

    with pytest.raises(ValueError, match="one JSON object"):
        SemanticIds.from_json(tmp_path / "ids.json")


def test_parquet_round_trip_keeps_everything(tmp_path):
    ids = SemanticIds.from_codes(NAMES, CODES, codebook_size=4, policy="append")

    ids.save(tmp_path / "ids.parquet")
    loaded = SemanticIds.load(tmp_path / "ids.parquet")

    assert pq.read_schema(tmp_path / "ids.parquet").field("codes").type == pa.list_(pa.int16())
    assert (loaded.item_ids, loaded.codebook_size, loaded.policy) == (ids.item_ids, 4, "append")
    np.testing.assert_array_equal(loaded.codes, ids.codes)
    np.testing.assert_array_equal(loaded.raw_codes, ids.raw_codes)
    assert loaded.fingerprint == ids.fingerprint


def test_columns_added_to_the_table_do_not_disturb_loading(tmp_path):
    ids = SemanticIds.from_codes(NAMES, CODES, codebook_size=4, policy="keep")

    pq.write_table(ids.to_table().append_column("title", [NAMES]), tmp_path / "items.parquet")

    np.testing.assert_array_equal(SemanticIds.load(tmp_path / "items.parquet").codes, CODES)


def test_other_parquet_files_are_refused(tmp_path):
    pq.write_table(pa.table({"item_id": ["a"], "codes": [[1, 2]]}), tmp_path / "other.parquet")

    with pytest.raises(ValueError, match="holds no semantic IDs"):
        SemanticIds.load(tmp_path / "other.parquet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item_ids": ("a", "b", "a")}, "repeat: 'a'"),
        ({"item_ids": (1, 2, 3)}, "must be strings"),
        ({"item_ids": ()}, "at least one item"),
        ({"item_ids": ("a", "b")}, r"shape \(2, num_levels\)"),
        ({"codebook_size": 2}, r"1 items do not, first row 1: \[2, 0\]"),
        ({"codebook_size": 40_000}, "between 1 and 32768"),
        ({"codes": np.zeros((3, 2))}, "must be integers"),
        ({"policy": "drop"}, "`policy` must be one of"),
        ({"raw_codes": np.zeros((2, 2), dtype=int)}, "`raw_codes` must have the shape"),
    ],
)
def test_tables_that_make_no_sense_are_refused(change, message):
    arguments = {
        "item_ids": ("a", "b", "c"),
        "codes": np.array([[0, 1], [2, 0], [1, 1]]),
        "codebook_size": 3,
        "policy": "keep",
    }

    with pytest.raises(ValueError, match=message):
        SemanticIds(**{**arguments, **change})


def test_fingerprints_tell_what_changed():
    ids = SemanticIds.from_codes(NAMES, CODES, codebook_size=4, policy="keep")
    renamed = SemanticIds.from_codes(["x", *NAMES[1:]], CODES, codebook_size=4, policy="keep")
    recoded = SemanticIds.from_codes(NAMES, CODES[::-1], codebook_size=4, policy="append")

    assert renamed.catalog_fingerprint == ids.catalog_fingerprint
    assert renamed.items_fingerprint != ids.items_fingerprint
    assert recoded.catalog_fingerprint != ids.catalog_fingerprint
    assert recoded.items_fingerprint == ids.items_fingerprint
    assert len({ids.fingerprint, renamed.fingerprint, recoded.fingerprint}) == 3
    assert len(ids.fingerprint) == 16


def test_the_fingerprint_depends_on_the_shape_and_on_the_joints_of_ids():
    codes = torch.from_numpy(CODES)

    assert catalog_fingerprint(codes) != catalog_fingerprint(codes.reshape(3, 5))
    assert items_fingerprint(["a,b"]) != items_fingerprint(["a", "b"])


def test_ids_of_other_projects_are_imported(shared_data):
    folder = shared_data / "amazon2014_beauty" / "sids"

    letter = SemanticIds.from_json(folder / "letter_release.json")

    assert letter.statistics()["after"]["num_distinct"] == 12_088
    assert (letter.num_items, letter.num_levels, letter.codebook_size) == (12_101, 4, 256)
    with pytest.raises(ValueError, match="equally many codes, usually 7"):
        SemanticIds.from_json(folder / "gram_text_tokens.json")


@pytest.mark.parametrize("rows", [[[1, 2], [3]], [[1, 2], None], [[1, 2], [3, None]]])
def test_a_column_whose_rows_are_no_tuples_of_one_length_has_no_code_rows(rows):
    assert code_rows(pa.chunked_array([pa.array(rows, pa.list_(pa.int16()))])) is None
    assert code_rows(pa.chunked_array([], pa.list_(pa.int16()))).shape == (0, 0)
    whole = pa.chunked_array([code_column(np.array([[7, 8, 9], [1, 2, 3], [4, 5, 6]])), code_column(np.eye(3))])
    assert code_rows(whole.slice(1, 3)).tolist() == [[1, 2, 3], [4, 5, 6], [1, 0, 0]]
