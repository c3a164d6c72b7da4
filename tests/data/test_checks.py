"""Splits that overlap and runs trained on other data are found before a number is believed."""

import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_genrec.data.checks import check_learned_on, check_splits, check_times, check_trained_on
from hf_genrec.data.fingerprint import fingerprint_of
from hf_genrec.data.prepare import prepare
from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.data.splits import SPLITS


CATALOG = [*"abcdefg"]
SEQUENCES = {"u": "abcde", "v": "gba", "w": "cacb"}


def split_of(sequences):
    """Each user's sequence as a row; its last item is the target."""
    users, items = list(sequences), [list(items) for items in sequences.values()]
    columns = {"user_id": users, "history": [row[:-1] for row in items], "target": [row[-1] for row in items]}
    return pa.table(columns, pa.schema(list(zip(columns, TYPES, strict=True))))


TYPES = (pa.string(), pa.list_(pa.string()), pa.string())


def splits_of(sequences, **changed):
    ends = {"train": 2, "validation": 1, "test": 0}
    return {
        name: split_of({user: items[: len(items) - end] for user, items in sequences.items()} | changed.get(name, {}))
        for name, end in ends.items()
    }


def test_splits_that_leave_the_last_items_out_are_fine():
    check_splits(splits_of(SEQUENCES), CATALOG, owner="data")
    check_splits(splits_of(SEQUENCES, train={"x": "dd"}, test={"y": "ab"}), CATALOG, owner="data")
    check_splits(splits_of(SEQUENCES, train={"u": "a"}), CATALOG, owner="data")  # trained on less than could be


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"train": {"v": "gb"}}, r"the train split reaches into the validation split for 1 users \('v'\)"),
        ({"train": {"u": "abcde", "w": "cac"}}, r"validation split for 2 users \('u', 'w'\)"),
        ({"train": {"w": "aa"}}, r"validation split for 1 users \('w'\)"),
        ({"validation": {"w": "cacb"}}, r"the validation split reaches into the test split for 1 users \('w'\)"),
        ({"validation": {"u": "abdd"}, "train": {"u": "ab"}}, r"reaches into the test split for 1 users \('u'\)"),
    ],
)
def test_a_split_that_reaches_into_a_later_one_is_an_error(changed, match):
    with pytest.raises(ValueError, match=match):
        check_splits(splits_of(SEQUENCES, **changed), CATALOG, owner="data")


def test_training_may_lack_cold_items_and_nothing_else():
    sequences = {"u": "agbcde", "v": "gba"}

    without = splits_of(sequences)
    without["train"] = split_of({"u": "abc"})
    check_splits(without, CATALOG, cold_item_ids=["g", "f"], owner="data")
    with pytest.raises(ValueError, match=r"validation split for 1 users \('u'\)"):
        check_splits(without, CATALOG, owner="data")
    with pytest.raises(ValueError, match=r"held out of training occur in the train split \('c'\)"):
        check_splits(without, CATALOG, cold_item_ids=["g", "c"], owner="data")


def test_a_user_with_two_rows_is_an_error():
    splits = splits_of(SEQUENCES)
    splits["train"] = pa.concat_tables([splits["train"], splits["train"].slice(1, 1)])

    with pytest.raises(ValueError, match=r"1 users have several rows in the train split of data \('v'\)"):
        check_splits(splits, CATALOG, owner="data")


def test_only_the_first_five_users_are_named():
    sequences = {f"u{number}": "abc" for number in range(7)}
    splits = splits_of(sequences, train=dict.fromkeys(sequences, "ab"))

    with pytest.raises(ValueError, match=r"for 7 users \('u0', 'u1', 'u2', 'u3', 'u4', \.\.\. \(7 in all\)\)"):
        check_splits(splits, CATALOG, owner="data")


def is_beginning(short, long):
    return long[: len(short)] == short


@settings(deadline=None, max_examples=50)
@given(
    st.dictionaries(st.sampled_from("uvwx"), st.lists(st.sampled_from("ab"), min_size=1, max_size=3), min_size=1),
    st.dictionaries(st.sampled_from("uvwx"), st.lists(st.sampled_from("abg"), min_size=1, max_size=5), min_size=1),
)
def test_training_is_found_fine_exactly_where_it_is_the_beginning_of_each_history_without_cold_items(train, later):
    test = {user: [*items, "a"] for user, items in later.items()}
    splits = {"train": split_of(train), "validation": split_of(later), "test": split_of(test)}
    is_fine = all(
        is_beginning(items, [item for item in later[user][:-1] if item != "g"])
        for user, items in train.items()
        if user in later
    )

    if is_fine:
        check_splits(splits, CATALOG, cold_item_ids=["g"], owner="data")
    else:
        with pytest.raises(ValueError, match="the train split reaches into"):
            check_splits(splits, CATALOG, cold_item_ids=["g"], owner="data")


def times_of(**rows):
    """Each user's times; the last one is the target's."""
    types = (pa.string(), pa.list_(pa.int64()), pa.int64())
    columns = {"user_id": list(rows), "timestamps": [row and row[:-1] for row in rows.values()]}
    columns["timestamp"] = [row and row[-1] for row in rows.values()]
    return pa.table(columns, pa.schema(list(zip(columns, types, strict=True))))


def test_times_in_order_with_ties_are_fine():
    check_times(times_of(u=[3, 3, 5, 5], v=[1], w=None, x=[2, 4]), owner="data")
    check_times(times_of(u=None), owner="data")
    check_times(times_of(), owner="data")


def test_times_that_go_backwards_are_an_error():
    with pytest.raises(ValueError, match=r"In the test split times go backwards for 2 users \('u', 'x'\)"):
        check_times(times_of(u=[3, 2, 5], v=[1], w=None, x=[2, 4, 3]), owner="the test split")
    with pytest.raises(ValueError, match="1 items have no time where others of that user have one"):
        check_times(times_of(u=[3, None, 5]), owner="data")


@pytest.fixture
def prepared(tmp_path):
    log = pa.table({"user_id": [*"uuuuvvv"], "item_id": [*"abaccba"], "timestamp": range(7)})
    return prepare(tmp_path / "data", interactions=log, items=[{"item_id": name, "title": name} for name in "cab"])


def rewrite(prepared, split, **columns):
    path = prepared.folder / f"{split}.parquet"
    table = pq.read_table(path)
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), pa.array(values, table.schema.field(name).type))
    pq.write_table(table, path)


def test_a_folder_with_changed_files_gives_no_split(prepared):
    rewrite(prepared, "test", target=["b", "b"])
    loaded = PreparedDataset.load(prepared.folder)
    found, stored = loaded.compute_fingerprint(), loaded.fingerprint

    for read in (lambda: loaded.split("train"), loaded.train_item_counts):
        with pytest.raises(ValueError, match=f"is {found}, dataset.json says {stored}"):
            read()


def test_a_folder_made_again_with_targets_in_its_training_part_gives_no_split(prepared):
    rewrite(prepared, "train", history=[["a", "b"], []], target=["a", "c"])
    path = prepared.folder / "dataset.json"
    metadata = json.loads(path.read_text(encoding="utf-8")) | {"fingerprint": fingerprint_of(prepared.folder)}
    path.write_text(json.dumps(metadata), encoding="utf-8")
    loaded = PreparedDataset.load(prepared.folder)

    for split in SPLITS:
        with pytest.raises(ValueError, match=r"the train split reaches into the validation split for 1 users \('u'\)"):
            loaded.split(split)


def test_a_folder_is_read_through_once(prepared, monkeypatch):
    loaded = PreparedDataset.load(prepared.folder)
    computed = []
    monkeypatch.setattr(PreparedDataset, "compute_fingerprint", lambda self: computed.append(1) or self.fingerprint)

    for split in SPLITS:
        loaded.split(split)
    loaded.train_item_counts()

    assert computed == [1]


def training_of(fingerprint, origin=None):
    return {"settings": {"data_fingerprint": fingerprint, "from": origin}}


def test_a_run_is_evaluated_on_the_data_it_was_trained_on(caplog):
    check_trained_on(training_of("f00"), {"fingerprint": "f00"}, owner="The run x")
    check_trained_on({}, {"fingerprint": "f00"}, owner="The run x")
    assert caplog.text == ""

    with pytest.raises(ValueError, match=r"The run x was trained on the data f00, these are .* ba7: .*--keep-all"):
        check_trained_on(training_of("f00"), {"fingerprint": "ba7", "options": {}}, owner="The run x")


@pytest.mark.parametrize(("origin", "keep_all_items"), [("base", False), (None, True)])
def test_a_run_may_meet_new_data_over_its_catalog_with_a_warning(caplog, origin, keep_all_items):
    metadata = {"fingerprint": "ba7", "options": {"keep_all_items": keep_all_items}}

    with caplog.at_level(logging.WARNING, logger="hf_genrec"):
        check_trained_on(training_of("f00", origin), metadata, owner="The run x")

    assert "The run x was trained on the data f00, these are the data ba7" in caplog.text


@pytest.mark.parametrize(("seen", "warns"), [(["ba7"], 0), (["f00", "ba7"], 1), (["f00", "c0c", "ba7"], 1)])
def test_data_that_the_checkpoint_before_was_trained_on_are_warned_of(caplog, seen, warns):
    training = training_of("ba7", "base")
    training["settings"]["trained_on"] = seen

    check_trained_on(training, {"fingerprint": "ba7"}, owner="The run x")

    assert len(caplog.records) == warns
    assert all(name in caplog.text for name in seen if warns)


def test_items_held_out_of_training_are_no_use_after_training_on_other_data():
    training = {"settings": {"data_fingerprint": "cold", "from": "base", "trained_on": ["all", "cold"]}}
    metadata = {"fingerprint": "cold", "cold_items": {"share": 0.2}}

    with pytest.raises(ValueError, match="trained on the data all, .* hold items out of training"):
        check_trained_on(training, metadata, owner="run")


@pytest.mark.parametrize(("fit_on", "learned", "warns"), [("train", "f00", 0), ("train", "ba7", 1), ("all", "ba7", 0)])
def test_codes_learned_from_other_training_items_are_warned_of(caplog, fit_on, learned, warns):
    tokenized = {"settings": {"fit_on": fit_on}, "data_fingerprint": learned}

    check_learned_on(tokenized, {"fingerprint": "f00"}, owner="ids")

    assert len(caplog.records) == warns
