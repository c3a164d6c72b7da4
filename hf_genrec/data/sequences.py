"""
Prepared splits in, examples and batches out: what a model reads, one token per item.

Histories are oldest first. An item's token is `first_item_token + item_index`, where `item_index` is its row in
`items.parquet`. Nothing is copied per example: all sequences lie in one flat array, an example is a piece of it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.utils.data import Dataset


logger = logging.getLogger(__name__)

IGNORED_LABEL = -100  # what torch's cross entropy leaves out


@dataclass(frozen=True)
class Examples:
    """
    Pairs of a history and a target, as pieces of one flat array.

    The history of example `i` is `values[starts[i]:ends[i]]` and its target `values[ends[i]]`.

    Attributes:
        values (`np.ndarray` of shape `(num_values,)`, int32): the item indices of all sequences, one after the other.
        starts (`np.ndarray` of shape `(num_examples,)`, int64): where each history begins.
        ends (`np.ndarray` of shape `(num_examples,)`, int64): where each history ends and the target stands.
        user_rows (`np.ndarray` of shape `(num_examples,)`, int64): the row of the split an example comes from.
        num_skipped_users (`int`): users without an example, because their sequence has a single item.
    """

    values: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    user_rows: np.ndarray
    num_skipped_users: int

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def targets(self) -> np.ndarray:
        """`np.ndarray` of shape `(num_examples,)`: the item index of each target."""
        return self.values[self.ends]

    @property
    def lengths(self) -> np.ndarray:
        """`np.ndarray` of shape `(num_examples,)`: the number of items in each history."""
        return self.ends - self.starts

    def history(self, example: int) -> np.ndarray:
        """
        The history of one example.

        Args:
            example (`int`): number of the example.

        Returns:
            `np.ndarray` of shape `(length,)`: item indices, oldest first.
        """
        return self.values[self.starts[example] : self.ends[example]]


class EvaluationHistories(NamedTuple):
    """
    What a recommender is asked and what it should answer.

    Attributes:
        histories (`list[list[str]]`): item ids per user, oldest first.
        targets (`list[str]`): the item id that came next.
    """

    histories: list[list[str]]
    targets: list[str]


def make_examples(
    split: datasets.Dataset,
    item_ids: Sequence[str],
    *,
    max_history_length: int = 20,
    targets: Literal["all", "last"] = "all",
) -> Examples:
    """
    Examples of one split: every prefix with at least one history item, or the row's own target only.

    The training part uses `"all"`, validation and test `"last"`.

    Args:
        split (`datasets.Dataset`):
            Rows with `history` (list of item ids) and `target` (item id).
        item_ids (`Sequence[str]`):
            The catalog: position is item index.
        max_history_length (`int`, *optional*, defaults to 20):
            Longer histories keep their last items. The default is the one of all protocols.
        targets (`"all"` or `"last"`, *optional*, defaults to `"all"`):
            Whether every item after the first is a target, or only the last one of each row.

    Returns:
        [`Examples`]: in the order of the rows, shorter histories of a row first.

    Raises:
        ValueError: If `max_history_length` is below 1, `targets` is something else or an item is not in the catalog.

    Example:

    ```python
    >>> split = datasets.Dataset.from_list([{"history": ["a", "b", "c"], "target": "a"}])
    >>> examples = make_examples(split, ["a", "b", "c"], max_history_length=2)
    >>> [(examples.history(i).tolist(), int(examples.targets[i])) for i in range(len(examples))]
    [([0], 1), ([0, 1], 2), ([1, 2], 0)]

    ```
    """
    _check_at_least("max_history_length", max_history_length, 1)
    _check_choice("targets", targets, ("all", "last"))
    values, offsets = _flat_sequences(split, item_ids)
    first, last = offsets[:-1], offsets[1:] - 1
    has_example = last > first
    if targets == "last":
        user_rows = np.flatnonzero(has_example)
        ends = last[user_rows]
    else:
        row_of = np.repeat(np.arange(len(first)), offsets[1:] - first)
        ends = np.flatnonzero(np.arange(len(values)) > first[row_of])
        user_rows = row_of[ends]
    starts = np.maximum(first[user_rows], ends - max_history_length)
    return Examples(values, starts, ends, user_rows, int((~has_example).sum()))


def evaluation_histories(
    split: datasets.Dataset, item_ids: Sequence[str], *, max_history_length: int = 20
) -> EvaluationHistories:
    """
    The histories and targets of a split as item ids, one pair per user.

    Args:
        split (`datasets.Dataset`):
            Rows with `history` and `target`; validation or test.
        item_ids (`Sequence[str]`):
            The catalog; a target outside it is an error, because no model could ever be right.
        max_history_length (`int`, *optional*, defaults to 20):
            Longer histories keep their last items.

    Returns:
        [`EvaluationHistories`]: in the order of the rows; unpacks as `histories, targets`.

    Raises:
        ValueError: If `max_history_length` is below 1 or a target is not in the catalog.

    Example:

    ```python
    >>> split = datasets.Dataset.from_list([{"history": ["a", "b", "c"], "target": "a"}])
    >>> evaluation_histories(split, ["a", "b", "c"], max_history_length=2)
    EvaluationHistories(histories=[['b', 'c']], targets=['a'])

    ```
    """
    _check_at_least("max_history_length", max_history_length, 1)
    table = _arrow_table(split)
    _indices_of(table["target"], pa.array(item_ids, pa.string()))
    histories = [history[-max_history_length:] for history in table["history"].to_pylist()]
    return EvaluationHistories(histories, table["target"].to_pylist())


def training_dataset(
    split: datasets.Dataset,
    item_ids: Sequence[str],
    *,
    first_item_token: int,
    history_attention: Literal["causal", "bidirectional"] = "causal",
    max_history_length: int = 20,
    stride: int = 10,
    targets: Literal["all", "last"] = "all",
) -> PrefixDataset | WindowDataset:
    """
    The training rows for a model: one per window (causal) or one per prefix (bidirectional).

    Args:
        split (`datasets.Dataset`):
            Rows with `history` and `target`.
        item_ids (`Sequence[str]`):
            The catalog: position is item index.
        first_item_token (`int`):
            Token of item 0; the model's config owns it.
        history_attention (`"causal"` or `"bidirectional"`, *optional*, defaults to `"causal"`):
            The mode of the model: all targets of a window in one pass, or one target per row.
        max_history_length (`int`, *optional*, defaults to 20):
            Most items in `input_ids`.
        stride (`int`, *optional*, defaults to 10):
            Items between the beginnings of two windows of one sequence; causal mode only.
        targets (`"all"` or `"last"`, *optional*, defaults to `"all"`):
            Whether every item after the first is a target, or only the last one of each row.

    Returns:
        [`WindowDataset`] or [`PrefixDataset`]: rows are mappings of `input_ids` and `labels`.

    Raises:
        ValueError: If an argument is out of its range or an item is not in the catalog.
    """
    _check_choice("history_attention", history_attention, ("causal", "bidirectional"))
    _check_at_least("first_item_token", first_item_token, 0)
    if history_attention == "causal" and targets == "all":
        windows = make_windows(split, item_ids, max_history_length=max_history_length, stride=stride)
        return WindowDataset(windows, first_item_token=first_item_token)
    examples = make_examples(split, item_ids, max_history_length=max_history_length, targets=targets)
    if examples.num_skipped_users:
        logger.info("%d users have a single training item and give no example.", examples.num_skipped_users)
    return PrefixDataset(examples, first_item_token=first_item_token)


class PrefixDataset(Dataset[dict[str, np.ndarray]]):
    """
    One row per example: the history goes in, only its last position has a label.

    Args:
        examples ([`Examples`]): the histories and targets.
        first_item_token (`int`): token of item 0.

    Example:

    ```python
    >>> split = datasets.Dataset.from_list([{"history": ["a", "b"], "target": "c"}])
    >>> rows = PrefixDataset(make_examples(split, ["a", "b", "c"]), first_item_token=100)
    >>> {name: array.tolist() for name, array in rows[1].items()}
    {'input_ids': [100, 101], 'labels': [-100, 102]}

    ```
    """

    def __init__(self, examples: Examples, *, first_item_token: int) -> None:
        self.examples = examples
        self.first_item_token = first_item_token

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        input_ids = self.examples.history(row).astype(np.int64) + self.first_item_token
        labels = np.full_like(input_ids, IGNORED_LABEL)
        labels[-1] = self.examples.values[self.examples.ends[row]] + self.first_item_token
        return {"input_ids": input_ids, "labels": labels}

    @property
    def lengths(self) -> list[int]:
        """`list[int]`: items in each row's `input_ids`, for grouping by length."""
        return self.examples.lengths.tolist()

    @property
    def targets_per_row(self) -> list[int]:
        """`list[int]`: labels in each row that are not ignored; here always one."""
        return [1] * len(self.examples)


@dataclass(frozen=True)
class Windows:
    """
    Pieces of sequences in which every target is trained exactly once.

    Window `i` is `values[starts[i]:ends[i]]`; its targets are `values[first_targets[i]:ends[i]]`.

    Attributes:
        values (`np.ndarray` of shape `(num_values,)`, int32): the item indices of all sequences, one after the other.
        starts (`np.ndarray` of shape `(num_windows,)`, int64): where each window begins.
        ends (`np.ndarray` of shape `(num_windows,)`, int64): the position behind each window.
        first_targets (`np.ndarray` of shape `(num_windows,)`, int64): the first position no earlier window has.
        user_rows (`np.ndarray` of shape `(num_windows,)`, int64): the row of the split a window comes from.
        num_skipped_users (`int`): users without a window, because their sequence has a single item.
    """

    values: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    first_targets: np.ndarray
    user_rows: np.ndarray
    num_skipped_users: int


def make_windows(
    split: datasets.Dataset, item_ids: Sequence[str], *, max_history_length: int = 20, stride: int = 10
) -> Windows:
    """
    Cuts every sequence into windows of `max_history_length + 1` items, one window each `stride` items.

    A target is trained in the earliest window that holds it: there most of its history is seen, never less than
    `max_history_length + 1 - stride` items unless the sequence has no more.

    Args:
        split (`datasets.Dataset`):
            Rows with `history` and `target`; together they are the sequence.
        item_ids (`Sequence[str]`):
            The catalog: position is item index.
        max_history_length (`int`, *optional*, defaults to 20):
            Most items before a target.
        stride (`int`, *optional*, defaults to 10):
            Items between the beginnings of two windows; at most `max_history_length`.

    Returns:
        [`Windows`]: in the order of the rows, earlier windows of a row first.

    Raises:
        ValueError: If `max_history_length` is below 1, `stride` is not in `[1, max_history_length]` or an item is not
            in the catalog.

    Source: ours; sequences that fit into one window give every target the whole history.

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
    values, offsets = _flat_sequences(split, item_ids)
    window_length = max_history_length + 1
    lengths = np.diff(offsets)
    num_windows = np.where(lengths < 2, 0, 1 + np.maximum(0, -(-(lengths - window_length) // stride)))
    user_rows = np.repeat(np.arange(len(lengths)), num_windows)
    number = np.arange(len(user_rows)) - np.repeat(np.cumsum(num_windows) - num_windows, num_windows)
    starts = offsets[:-1][user_rows] + number * stride
    ends = np.minimum(starts + window_length, offsets[1:][user_rows])
    first_targets = starts + np.where(number == 0, 1, window_length - stride)
    num_skipped = int((lengths < 2).sum())
    if num_skipped:
        logger.info("%d users have a single training item and give no window.", num_skipped)
    return Windows(values, starts, ends, first_targets, user_rows, num_skipped)


class WindowDataset(Dataset[dict[str, np.ndarray]]):
    """
    One row per window: all items but the last go in, the label of a position is the next item.

    Args:
        windows ([`Windows`]): the pieces of the sequences.
        first_item_token (`int`): token of item 0.

    Example:

    ```python
    >>> split = datasets.Dataset.from_list([{"history": ["a", "b"], "target": "c"}])
    >>> rows = WindowDataset(make_windows(split, ["a", "b", "c"]), first_item_token=100)
    >>> {name: array.tolist() for name, array in rows[0].items()}
    {'input_ids': [100, 101], 'labels': [101, 102]}

    ```
    """

    def __init__(self, windows: Windows, *, first_item_token: int) -> None:
        self.windows = windows
        self.first_item_token = first_item_token

    def __len__(self) -> int:
        return len(self.windows.starts)

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        start, end = self.windows.starts[row], self.windows.ends[row]
        tokens = self.windows.values[start:end].astype(np.int64) + self.first_item_token
        labels = tokens[1:].copy()
        labels[: self.windows.first_targets[row] - start - 1] = IGNORED_LABEL
        return {"input_ids": tokens[:-1], "labels": labels}

    @property
    def lengths(self) -> list[int]:
        """`list[int]`: items in each row's `input_ids`, for grouping by length."""
        return (self.windows.ends - self.windows.starts - 1).tolist()

    @property
    def targets_per_row(self) -> list[int]:
        """`list[int]`: labels in each row that are not ignored."""
        return (self.windows.ends - self.windows.first_targets).tolist()


@dataclass(frozen=True)
class SequenceCollator:
    """
    Pads rows to the longest of their batch and makes tensors of them.

    Attributes:
        pad_token_id (`int`, *optional*, defaults to 0): what stands in `input_ids` where no item is.
        padding_side (`"right"` or `"left"`, *optional*, defaults to `"right"`): where the padding goes.

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
    padding_side: Literal["right", "left"] = "right"

    def __post_init__(self) -> None:
        _check_choice("padding_side", self.padding_side, ("right", "left"))

    def __call__(self, rows: Sequence[dict[str, np.ndarray | list[int]]]) -> dict[str, torch.Tensor]:
        lengths = np.array([len(row["input_ids"]) for row in rows])
        columns = np.arange(max(lengths.max(), 1))
        if self.padding_side == "right":
            is_item = columns < lengths[:, None]  # (B, T)
        else:
            is_item = columns >= len(columns) - lengths[:, None]
        batch = {"attention_mask": torch.from_numpy(is_item.astype(np.int64))}
        for name, filler in (("input_ids", self.pad_token_id), ("labels", IGNORED_LABEL)):
            padded = np.full(is_item.shape, filler, dtype=np.int64)
            padded[is_item] = np.concatenate([np.asarray(row[name], dtype=np.int64) for row in rows])
            batch[name] = torch.from_numpy(padded)
        return {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}


def _flat_sequences(split: datasets.Dataset, item_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """All sequences (history, then target) as item indices in one array, and the offsets of the rows."""
    table = _arrow_table(split)
    catalog = pa.array(item_ids, pa.string())
    lengths = pc.list_value_length(table["history"]).to_numpy().astype(np.int64) + 1
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = np.empty(offsets[-1], dtype=np.int32)
    is_target = np.zeros(len(values), dtype=bool)
    is_target[offsets[1:] - 1] = True
    values[is_target] = _indices_of(table["target"], catalog)
    values[~is_target] = _indices_of(pc.list_flatten(table["history"]), catalog)
    return values, offsets


def _arrow_table(split: datasets.Dataset) -> pa.Table:
    return split.select_columns(["history", "target"]).with_format("arrow")[:]


def _indices_of(column: pa.ChunkedArray, catalog: pa.Array) -> np.ndarray:
    """Item indices of item ids."""
    indices = pc.index_in(column, value_set=catalog)
    if indices.null_count:
        unknown = pc.unique(column.filter(indices.is_null()))
        shown = ", ".join(map(repr, unknown.slice(0, 5).to_pylist()))
        raise ValueError(
            f"{len(unknown)} item ids are not in the catalog: {shown}{', ...' if len(unknown) > 5 else ''}."
        )
    return indices.to_numpy()


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"`{name}` must be at least {least}, got {value}.")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")
