"""Examples, windows and batches, checked by hand and by their properties."""

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_genrec.data.sequences import (
    SequenceCollator,
    WindowDataset,
    make_examples,
    make_windows,
    training_dataset,
)


ITEM_IDS = ["a", "b", "c", "d", "e"]
FIRST = 100


def split_of(*sequences):
    return datasets.Dataset.from_dict(
        {
            "history": [list(sequence[:-1]) for sequence in sequences],
            "target": [sequence[-1] for sequence in sequences],
        },
        features=datasets.Features(
            {
                "history": datasets.List(datasets.Value("string")),
                "target": datasets.Value("string"),
            }
        ),
    )


def number_split(num_items):
    return split_of([str(number) for number in range(num_items)]), [str(number) for number in range(num_items)]


def pairs_of(examples):
    items = [examples.values[start:end].tolist() for start, end in zip(examples.starts, examples.ends, strict=True)]
    return [(history, target) for *history, target in items]


def test_every_prefix_with_a_history_is_an_example():
    examples = make_examples(split_of("abc", "d", "ea"), ITEM_IDS)

    assert pairs_of(examples) == [([0], 1), ([0, 1], 2), ([4], 0)]
    assert examples.user_rows.tolist() == [0, 0, 2]
    assert examples.lengths.tolist() == [1, 2, 1]
    assert examples.num_skipped_users == 1


def test_only_the_last_target_is_an_example_when_asked_for():
    examples = make_examples(split_of("abc", "d", "ea"), ITEM_IDS, targets="last")

    assert pairs_of(examples) == [([0, 1], 2), ([4], 0)]
    assert examples.user_rows.tolist() == [0, 2]


def test_histories_keep_their_last_items():
    assert pairs_of(make_examples(split_of("abcde"), ITEM_IDS, max_history_length=2, targets="last")) == [([2, 3], 4)]
    examples = make_examples(*number_split(30))
    assert examples.lengths.max() == 20
    assert pairs_of(examples)[28] == (list(range(9, 29)), 29)


def test_rows_that_were_selected_or_shuffled_keep_their_meaning():
    split = split_of("abc", "de", "ca").select([2, 0])

    assert pairs_of(make_examples(split, ITEM_IDS, targets="last")) == [([2], 0), ([0, 1], 2)]


def test_unknown_items_are_named():
    with pytest.raises(ValueError, match="2 item ids are not in the catalog: 'x', 'y'"):
        make_examples(split_of("axya"), ITEM_IDS)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [({"max_history_length": 0}, "max_history_length"), ({"targets": "first"}, "targets")],
)
def test_arguments_of_examples_are_checked(arguments, match):
    with pytest.raises(ValueError, match=match):
        make_examples(split_of("ab"), ITEM_IDS, **arguments)


def test_a_prefix_row_labels_its_last_position_only():
    rows = WindowDataset(make_examples(split_of("abc"), ITEM_IDS), first_item_token=FIRST)

    assert [rows[1]["input_ids"].tolist(), rows[1]["labels"].tolist()] == [[100, 101], [-100, 102]]
    assert (len(rows), rows.lengths, rows.targets_per_row) == (2, [1, 2], [1, 1])


def test_a_short_sequence_is_one_window():
    rows = WindowDataset(make_windows(split_of("abc", "d"), ITEM_IDS), first_item_token=FIRST)

    assert [rows[0]["input_ids"].tolist(), rows[0]["labels"].tolist()] == [[100, 101], [101, 102]]
    assert (len(rows), rows.lengths, rows.targets_per_row) == (1, [2], [2])
    assert rows.windows.num_skipped_users == 1


@pytest.mark.parametrize(("num_items", "num_windows"), [(2, 1), (21, 1), (22, 2), (31, 2), (32, 3), (106, 10)])
def test_longer_sequences_are_windows_of_21_items_every_10(num_items, num_windows):
    windows = make_windows(*number_split(num_items))

    assert windows.starts.tolist() == [10 * number for number in range(num_windows)]
    assert windows.ends.tolist() == [min(start + 21, num_items) for start in windows.starts.tolist()]


def test_later_windows_label_only_what_no_earlier_one_holds():
    rows = WindowDataset(make_windows(*number_split(23)), first_item_token=FIRST)

    assert rows[1]["input_ids"].tolist() == list(range(110, 122))
    assert rows[1]["labels"].tolist() == [-100] * 10 + [121, 122]


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=4), max_history=st.integers(1, 25), data=st.data())
def test_every_target_is_trained_once_with_most_of_its_history(lengths, max_history, data):
    stride = data.draw(st.integers(1, max_history))
    catalog = [str(number) for number in range(sum(lengths))]
    firsts = np.cumsum([0, *lengths])
    split = split_of(*(catalog[first:last] for first, last in zip(firsts[:-1], firsts[1:], strict=True)))

    rows = training_dataset(split, catalog, first_item_token=0, max_history_length=max_history, stride=stride)

    seen: dict[int, int] = {}
    for row in (rows[number] for number in range(len(rows))):
        assert 1 <= len(row["input_ids"]) <= max_history
        for position, label in enumerate(row["labels"].tolist()):
            if label != -100:
                assert label not in seen
                assert label == row["input_ids"][position] + 1
                seen[label] = position + 1
    expected = [item for first, last in zip(firsts[:-1], firsts[1:], strict=True) for item in range(first + 1, last)]
    assert sorted(seen) == expected
    assert sum(rows.targets_per_row) == len(expected)
    for item, length in seen.items():
        before = item - firsts[np.searchsorted(firsts, item, side="right") - 1]
        assert length >= min(before, max_history + 1 - stride)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=5))
def test_windows_and_prefixes_train_the_same_targets(lengths):
    catalog = [str(number) for number in range(20)]
    split = split_of(*(catalog[:length] for length in lengths))

    prefixes = training_dataset(split, catalog, first_item_token=0, history_attention="bidirectional")
    windows = training_dataset(split, catalog, first_item_token=0)

    assert sum(prefixes.targets_per_row) == sum(windows.targets_per_row) == sum(length - 1 for length in lengths)


def test_the_mode_decides_what_a_row_is():
    split = split_of("abcd")

    assert len(training_dataset(split, ITEM_IDS, first_item_token=0)) == 1
    assert len(training_dataset(split, ITEM_IDS, first_item_token=0, history_attention="bidirectional")) == 3
    last = training_dataset(split, ITEM_IDS, first_item_token=0, targets="last")
    assert [row["labels"].tolist() for row in (last[0],)] == [[-100, -100, 3]]
    with pytest.raises(ValueError, match="history_attention"):
        training_dataset(split, ITEM_IDS, first_item_token=0, history_attention="both")


@pytest.mark.parametrize("stride", [0, 21])
def test_a_stride_that_would_lose_targets_is_refused(stride):
    with pytest.raises(ValueError, match="`stride`"):
        make_windows(split_of("ab"), ITEM_IDS, stride=stride)


def test_batches_are_padded_to_their_longest_row():
    rows = [{"input_ids": [7, 8, 9], "labels": [8, 9, 5]}, {"input_ids": np.array([6]), "labels": np.array([4])}]

    batch = SequenceCollator(pad_token_id=3)(rows)

    torch.testing.assert_close(batch["input_ids"], torch.tensor([[7, 8, 9], [6, 3, 3]]))
    torch.testing.assert_close(batch["attention_mask"], torch.tensor([[1, 1, 1], [1, 0, 0]]))
    torch.testing.assert_close(batch["labels"], torch.tensor([[8, 9, 5], [4, -100, -100]]))


def timed_split(*rows):
    """Each row is a user's items and the days of all of them."""
    split = split_of(*[items for items, _ in rows])
    day = 24 * 60 * 60 * 1000
    return split.add_column("timestamps", [[int(time * day) for time in times[:-1]] for _, times in rows]).add_column(
        "timestamp", [int(times[-1] * day) for _, times in rows]
    )


def orders_of(split, epochs, **options):
    rows = training_dataset(split, ITEM_IDS, first_item_token=0, max_history_length=9, stride=4, **options)
    for epoch in epochs:
        rows.set_epoch(epoch)
        yield ["".join(ITEM_IDS[token] for token in [*row["input_ids"], row["labels"][-1]]) for row in rows]


def test_items_of_one_day_change_places_in_each_epoch_and_others_keep_theirs():
    split = timed_split(("abcde", [1, 2, 2.5, 2.9, 3]), ("ab", [3, 3]), ("cd", [3, 4]))

    seen = list(orders_of(split, range(30), shuffled_ties="day"))

    assert {first for first, *_ in seen} == {f"a{middle}e" for middle in ("bcd", "bdc", "cbd", "cdb", "dbc", "dcb")}
    assert {second for _, second, _ in seen} == {"ab", "ba"}
    assert {third for *_, third in seen} == {"cd"}
    assert {first for first, *_ in orders_of(split, range(30), shuffled_ties="time")} == {"abcde"}
    assert {second for _, second, _ in orders_of(split, range(30), shuffled_ties="time")} == {"ab", "ba"}


def test_the_order_of_an_epoch_depends_on_the_seed_and_the_epoch_alone():
    split = timed_split(("abcde", [1, 1, 1, 1, 1]))

    upwards = list(orders_of(split, range(9), shuffled_ties="day", seed=3))

    assert list(orders_of(split, range(8, -1, -1), shuffled_ties="day", seed=3))[::-1] == upwards
    assert list(orders_of(split, range(9), shuffled_ties="day", seed=4)) != upwards
    assert set(map(tuple, orders_of(split, range(9)))) == {("abcde",)}


def test_shuffling_needs_times():
    with pytest.raises(ValueError, match="prepare the log again"):
        training_dataset(split_of("abc"), ITEM_IDS, first_item_token=0, shuffled_ties="day")
    with pytest.raises(ValueError, match="`shuffled_ties` must be one of none, time, day, got 'week'"):
        training_dataset(split_of("abc"), ITEM_IDS, first_item_token=0, shuffled_ties="week")


def test_rows_hold_the_bucket_of_the_time_before_each_item_they_read():
    split = timed_split(("abcde", [1, 1, 2, 4, 9]), ("ab", [3, 3]), ("cda", [3, 4, 4]))
    rows = training_dataset(split, ITEM_IDS, first_item_token=9, max_history_length=3, stride=2, has_gaps=True)

    batch = SequenceCollator()([rows[number] for number in range(len(rows))])

    day = 18  # 2 ** 16 seconds are less than a day, and 2 ** 17 are more
    assert batch["input_ids"].tolist() == [[9, 10, 11], [11, 12, 0], [9, 0, 0], [11, 12, 0]]
    assert batch["attention_mask"].tolist() == [[1, 2, 1 + day], [1 + day, 2 + day, 0], [1, 0, 0], [1, 1 + day, 0]]
    assert "gaps" not in batch
    with pytest.raises(ValueError, match="`history_gap_buckets` reads the times of all items"):
        make_windows(split_of("abc"), ITEM_IDS, has_gaps=True)
