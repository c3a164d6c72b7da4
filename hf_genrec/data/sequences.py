"""
Prepared splits in, windows and batches out: what a model reads, one token per item.

Histories are oldest first. An item's token is `first_item_token + item_index`, where `item_index` is its row in
`items.parquet`. Nothing is copied per row: all sequences lie in one flat array, a window is a piece of it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.utils.data import Dataset

from hf_genrec.data.gaps import gap_buckets
from hf_genrec.data.splits import flat_sequences, flat_times
from hf_genrec.files import first_five


logger = logging.getLogger(__name__)

IGNORED_LABEL = -100  # what torch's cross entropy leaves out
TIES = {"time": 1, "day": 24 * 60 * 60 * 1000}  # milliseconds within which the order of items means nothing


@dataclass(frozen=True)
class Windows:
    """
    Pieces of sequences: the items that a model reads in one row, and which of them are targets.

    Window `i` is `values[starts[i]:ends[i]]`. Its last item is not read, only predicted from all before it; its
    targets are `values[first_targets[i]:ends[i]]`. `values` (int32) are the item indices of all sequences, one after
    the other; `user_rows` are the rows of the split; `num_skipped_users` have a single item and no window. `gaps` are
    the buckets of the times before each of `values`, see `gaps.py`, where a model reads them.
    """

    values: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    first_targets: np.ndarray
    user_rows: np.ndarray
    num_skipped_users: int
    gaps: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def targets(self) -> np.ndarray:
        """The item index of each window's last item, its last target, `(num_windows,)`."""
        return self.values[self.ends - 1]

    @property
    def lengths(self) -> np.ndarray:
        """The number of items before each window's last one, `(num_windows,)`."""
        return self.ends - 1 - self.starts


def make_examples(
    split: datasets.Dataset,
    item_ids: Sequence[str],
    *,
    max_history_length: int = 20,
    targets: Literal["all", "last"] = "all",
    has_gaps: bool = False,
) -> Windows:
    """
    Windows with one target each, in the order of the rows: every prefix with at least one history item (shorter ones
    first), or the whole sequence only. Evaluation asks for `"last"`; training a bidirectional model for `"all"`.

    Args: see [`training_dataset`].
    """
    _check_at_least("max_history_length", max_history_length, 1)
    _check_choice("targets", targets, ("all", "last"))
    values, offsets = _known_sequences(split, item_ids)
    first, last = offsets[:-1], offsets[1:] - 1
    has_example = last > first
    if targets == "last":
        user_rows = np.flatnonzero(has_example)
        places = last[user_rows]  # of the targets
    else:
        row_of = np.repeat(np.arange(len(first)), offsets[1:] - first)
        places = np.flatnonzero(np.arange(len(values)) > first[row_of])
        user_rows = row_of[places]
    starts = np.maximum(first[user_rows], places - max_history_length)
    gaps = _gaps(split, offsets) if has_gaps else None
    return Windows(values, starts, places + 1, places, user_rows, int((~has_example).sum()), gaps)


def make_windows(
    split: datasets.Dataset,
    item_ids: Sequence[str],
    *,
    max_history_length: int = 20,
    stride: int = 10,
    has_gaps: bool = False,
) -> Windows:
    """
    Windows with many targets: pieces of `max_history_length + 1` items, one each `stride` items.

    A target is trained exactly once, in the earliest window that holds it: there most of its history is seen, never
    less than `max_history_length + 1 - stride` items unless the sequence has no more. Sequences that fit into one
    window give every target the whole history.

    Args: see [`training_dataset`].

    Source: ours.

    Example:

    ```python
    >>> split = datasets.Dataset.from_list([{"history": list("abcdef"), "target": "g"}])
    >>> windows = make_windows(split, list("abcdefg"), max_history_length=4, stride=2)
    >>> windows.starts.tolist(), windows.ends.tolist(), windows.first_targets.tolist()
    ([0, 2], [5, 7], [1, 5])

    ```
    """
    _check_at_least("max_history_length", max_history_length, 1)
    if not 1 <= stride <= max_history_length:
        raise ValueError(f"`stride` must be in [1, `max_history_length`={max_history_length}], got {stride}.")
    values, offsets = _known_sequences(split, item_ids)
    window_length = max_history_length + 1
    lengths = np.diff(offsets)
    # One window, and one more for each (begun) stride that the sequence is longer than a window.
    num_windows = np.where(lengths < 2, 0, 1 + np.maximum(0, -(-(lengths - window_length) // stride)))
    user_rows = np.repeat(np.arange(len(lengths)), num_windows)
    number = np.arange(len(user_rows)) - np.repeat(np.cumsum(num_windows) - num_windows, num_windows)  # within its row
    starts = offsets[:-1][user_rows] + number * stride
    ends = np.minimum(starts + window_length, offsets[1:][user_rows])
    # The window before ended at `starts - stride + window_length`: what comes from there on is new.
    first_targets = starts + np.where(number == 0, 1, window_length - stride)
    gaps = _gaps(split, offsets) if has_gaps else None
    return Windows(values, starts, ends, first_targets, user_rows, int((lengths < 2).sum()), gaps)


def training_dataset(
    split: datasets.Dataset,
    item_ids: Sequence[str],
    *,
    first_item_token: int,
    history_attention: Literal["causal", "bidirectional"] = "causal",
    max_history_length: int = 20,
    stride: int = 10,
    targets: Literal["all", "last"] = "all",
    shuffled_ties: Literal["none", "time", "day"] = "none",
    seed: int = 0,
    has_gaps: bool = False,
) -> WindowDataset:
    """
    The training rows for a model: all targets of a window in one row (causal), or one target per row (bidirectional).

    Args: `split` has `history` (item ids) and `target` (item id), together the sequence; the position of an item in
        `item_ids` is its index, and its token that plus `first_item_token`; `history_attention` is the model's mode;
        of a history the last `max_history_length` items are kept; `stride`, for causal models, see [`make_windows`];
        `targets` are all of each row but the first item, or the last one; `shuffled_ties` are items of a user whose
        order is drawn anew in each epoch, from `seed`: none, those of equal times, or those of one day (UTC);
        `has_gaps` is whether the model reads the times between items.
    """
    _check_choice("history_attention", history_attention, ("causal", "bidirectional"))
    _check_choice("shuffled_ties", shuffled_ties, ("none", *TIES))
    _check_at_least("first_item_token", first_item_token, 0)
    shape: dict[str, Any] = {"max_history_length": max_history_length, "has_gaps": has_gaps}
    if history_attention == "causal" and targets == "all":
        windows = make_windows(split, item_ids, stride=stride, **shape)
    else:
        windows = make_examples(split, item_ids, targets=targets, **shape)
    if windows.num_skipped_users:
        logger.info("%d users have a single training item and are not trained on.", windows.num_skipped_users)
    ties = None if shuffled_ties == "none" else _tied_items(split, TIES[shuffled_ties])
    return WindowDataset(windows, first_item_token=first_item_token, ties=ties, seed=seed)


@dataclass(frozen=True)
class TiedItems:
    """
    Places of the flat array whose items may change places: `places[i]` with all others of the group `groups[i]`.

    Example:

    ```python
    >>> ties = TiedItems(places=np.array([1, 2, 4, 5]), groups=np.array([0, 0, 1, 1]))
    >>> ties.shuffled(np.array([7, 8, 9, 10, 11, 12]), np.random.default_rng(0)).tolist()
    [7, 9, 8, 10, 12, 11]

    ```
    """

    places: np.ndarray
    groups: np.ndarray

    def shuffled(self, values: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """A copy of `values` with the items of each group in a random order."""
        order = np.lexsort((random.random(len(self.places)), self.groups))
        values = values.copy()
        values[self.places] = values[self.places[order]]
        return values


class WindowDataset(Dataset[dict[str, np.ndarray]]):
    """
    One row per window: all items but the last are the input; a position's label is the next item if that is a target.

    With `ties`, items that stand at places of one group change places in each epoch (see `set_epoch`), in all windows
    alike: where a log says only the day, or a whole basket has one time, their order is arbitrary, and a model that
    reads it once in one order learns that order. What is drawn depends on `seed` and the epoch alone.

    Source: ours.

    Example:

    ```python
    >>> split = datasets.Dataset.from_list([{"history": ["a", "b"], "target": "c"}])
    >>> rows = WindowDataset(make_windows(split, ["a", "b", "c"]), first_item_token=100)
    >>> {name: array.tolist() for name, array in rows[0].items()}
    {'input_ids': [100, 101], 'labels': [101, 102]}

    ```
    """

    def __init__(
        self, windows: Windows, *, first_item_token: int, ties: TiedItems | None = None, seed: int = 0
    ) -> None:
        self.windows = windows
        self.first_item_token = first_item_token
        self.ties = ties
        self.seed = seed
        self._values = windows.values  # of the epoch
        self.names_places = False  # whether rows hold `places`: where in `windows.values` each label stands

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        start, end = self.windows.starts[number], self.windows.ends[number]
        tokens = self._values[start:end].astype(np.int64) + self.first_item_token
        labels = tokens[1:].copy()
        labels[: self.windows.first_targets[number] - start - 1] = IGNORED_LABEL
        row = {"input_ids": tokens[:-1], "labels": labels}
        if self.windows.gaps is not None:
            row["gaps"] = self.windows.gaps[start : end - 1]
        return row | {"places": np.arange(start + 1, end)} if self.names_places else row

    def set_epoch(self, epoch: int) -> None:
        """Draws the order of tied items for an epoch; the data loader of a training calls it."""
        if self.ties is not None:
            self._values = self.ties.shuffled(self.windows.values, np.random.default_rng([self.seed, epoch]))

    @property
    def lengths(self) -> list[int]:
        """Items in each row's `input_ids`, for grouping by length."""
        return self.windows.lengths.tolist()

    @property
    def targets_per_row(self) -> list[int]:
        """Labels in each row that are not ignored."""
        return (self.windows.ends - self.windows.first_targets).tolist()


@dataclass(frozen=True)
class SequenceCollator:
    """
    Pads rows on the right to the longest of their batch, with the token `pad_token_id`.

    Where rows have `gaps`, buckets of the times between items, the `attention_mask` of an item is 1 more than its own.

    Example:

    ```python
    >>> rows = [{"input_ids": [7, 8, 9], "labels": [8, 9, 5]}, {"input_ids": [6], "labels": [7]}]
    >>> for name, tensor in SequenceCollator()(rows).items():
    ...     print(name, tensor.tolist())
    input_ids [[7, 8, 9], [6, 0, 0]]
    attention_mask [[1, 1, 1], [1, 0, 0]]
    labels [[8, 9, 5], [7, -100, -100]]

    ```
    """

    pad_token_id: int = 0

    def __call__(self, rows: Sequence[dict[str, np.ndarray | list[int]]]) -> dict[str, torch.Tensor]:
        """The arrays of rows to tensors `(batch, longest row)`, with the `attention_mask` of the items."""
        lengths = np.array([len(row["input_ids"]) for row in rows])
        is_item = np.arange(max(lengths.max(), 1)) < lengths[:, None]  # (B, T)
        batch = {"attention_mask": torch.from_numpy(is_item.astype(np.int64))}
        fillers = {"input_ids": self.pad_token_id, "labels": IGNORED_LABEL, "places": 0, "gaps": 0}
        for name in [name for name in fillers if name in rows[0]]:
            padded = np.full(is_item.shape, fillers[name], dtype=np.int64)
            padded[is_item] = np.concatenate([np.asarray(row[name], dtype=np.int64) for row in rows])
            batch[name] = torch.from_numpy(padded)
        if "gaps" in batch:
            batch["attention_mask"] += batch.pop("gaps")
        return {"input_ids": batch.pop("input_ids"), **batch}


def _known_sequences(split: datasets.Dataset, item_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """[`flat_sequences`], refusing items that are not in the catalog."""
    table = split.select_columns(["history", "target"]).with_format("arrow")[:]
    values, offsets = flat_sequences(table, item_ids)
    if (values < 0).any():
        named = pa.chunked_array([*table["target"].chunks, *pc.list_flatten(table["history"]).chunks], pa.string())
        unknown = pc.unique(named.filter(pc.invert(pc.is_in(named, value_set=pa.array(item_ids, pa.string())))))
        raise ValueError(f"{len(unknown)} item ids are not in the catalog: {first_five(unknown)}.")
    return values, offsets


def _tied_items(split: datasets.Dataset, width: int) -> TiedItems:
    """Groups of at least two items of one user within the same `width` milliseconds since the epoch."""
    if "timestamps" not in split.column_names:
        raise ValueError(
            "`shuffled_ties` needs the times of all items, which folders of format 1 do not have: prepare the log "
            "again with `hf-genrec prepare`."
        )
    table = split.select_columns(["timestamps", "timestamp"]).with_format("arrow")[:]
    spans = flat_times(table) // width
    ends = np.cumsum(pc.list_value_length(table["timestamps"]).to_numpy().astype(np.int64) + 1)
    starts_anew = np.diff(spans, prepend=spans[:1] - 1) != 0
    starts_anew[ends[:-1]] = True
    groups = np.cumsum(starts_anew) - 1
    places = np.flatnonzero(np.bincount(groups)[groups] > 1)
    return TiedItems(places, groups[places])


def _gaps(split: datasets.Dataset, offsets: np.ndarray) -> np.ndarray:
    if "timestamps" not in split.column_names:
        raise ValueError(
            "A model with `history_gap_buckets` reads the times of all items, which folders of format 1 do not have: "
            "prepare the log again with `hf-genrec prepare`."
        )
    times = flat_times(split.select_columns(["timestamps", "timestamp"]).with_format("arrow")[:])
    return gap_buckets(times, offsets[:-1])


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"`{name}` must be at least {least}, got {value}.")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")
