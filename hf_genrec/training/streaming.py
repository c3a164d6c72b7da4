"""
Training rows of a data set that memory does not hold: Parquet files in, the batches of each step out.

`datasets` shuffles row groups and users; of about two million interactions at a time windows are made, shuffled,
grouped by length and cut into steps as [`TargetBatchSampler`] does. What comes when depends on the seed and the epoch:
every process reads the whole stream and takes its share of each step. So no row comes twice or is lost, whatever the
number of files and processes, all have equally many steps, and an interrupted run goes on with another number of
processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.dataset import ParquetFragmentScanOptions
from torch.utils.data import Dataset, Sampler

from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.data.sequences import IGNORED_LABEL, WindowDataset, Windows, training_dataset
from hf_genrec.data.splits import split_files
from hf_genrec.training.sampler import StepParts


BUFFER_ITEMS = 2**21  # interactions whose windows are grouped by length
_USERS_AT_ONCE = 10_000


@dataclass(frozen=True)
class StreamedWindows(Dataset[dict[str, np.ndarray]]):
    """
    The windows of [`training_dataset`], read anew in each epoch; what `StreamedBatches` hands over are rows already.

    Args: the data set; the seed of their order; and what [`training_dataset`] takes.
    """

    prepared: PreparedDataset
    seed: int
    first_item_token: int
    history_attention: Literal["causal", "bidirectional"] = "causal"
    max_history_length: int = 20
    stride: int = 10
    targets: Literal["all", "last"] = "all"
    has_gaps: bool = False

    @cached_property
    def num_targets(self) -> int:
        """Targets of an epoch: from `dataset.json`, or of last items by one pass over the histories."""
        if self.targets == "all":
            return int(self.prepared.metadata["num_train_targets"])
        batches = (batch for path in self._files for batch in pq.ParquetFile(path).iter_batches(columns=["history"]))
        return sum(pc.sum(pc.greater(pc.list_value_length(batch["history"]), 0)).as_py() or 0 for batch in batches)

    def windows(self, epoch: int) -> Iterator[Windows]:
        """The windows of users one after the other, of about a buffer at a time. Args: the epoch."""
        tables: list[pa.Table] = []
        num_items = 0
        for table in self._users(epoch):
            tables.append(table)
            num_items += table.num_rows + (pc.sum(pc.list_value_length(table["history"])).as_py() or 0)
            if num_items >= BUFFER_ITEMS:
                yield self._windows_of(tables)
                tables, num_items = [], 0
        if tables:
            yield self._windows_of(tables)

    def _users(self, epoch: int) -> Iterator[pa.Table]:
        """The rows of the files in random order: row groups, and the users of neighbouring ones."""
        stream = datasets.IterableDataset.from_parquet(
            [str(path) for path in self._files],
            columns=["history", "target", *(("timestamps", "timestamp") if self.has_gaps else ())],
            batch_size=_USERS_AT_ONCE,
            fragment_scan_options=ParquetFragmentScanOptions(page_checksum_verification=True),
        )
        stream = stream.reshard().shuffle(seed=self.seed, buffer_size=_USERS_AT_ONCE, max_buffer_input_shards=1)
        stream.set_epoch(epoch)
        yield from stream.with_format("arrow").iter(batch_size=_USERS_AT_ONCE)

    @property
    def _files(self) -> list[Path]:
        return split_files(self.prepared.folder, "train")

    def _windows_of(self, tables: list[pa.Table]) -> Windows:
        return training_dataset(
            datasets.Dataset(pa.concat_tables(tables)),
            self.prepared.item_ids,
            first_item_token=self.first_item_token,
            history_attention=self.history_attention,
            max_history_length=self.max_history_length,
            stride=self.stride,
            targets=self.targets,
            has_gaps=self.has_gaps,
        ).windows

    def __len__(self) -> int:
        return self.num_targets  # what a progress report calls examples

    def __getitem__(self, row: dict[str, np.ndarray] | int) -> dict[str, np.ndarray]:
        if isinstance(row, dict):
            return row
        return {"input_ids": np.array([self.first_item_token]), "labels": np.array([IGNORED_LABEL])}


class StreamedBatches(Sampler[list[dict[str, np.ndarray]]]):
    """
    The batches of one process, as [`TargetBatchSampler`] makes them of rows in memory; they hold rows, not numbers.

    Windows of a buffer that do not fill a step wait for those of the next one. An epoch has as many steps as its
    targets fill, a number known before anything is read.

    Args: the windows, targets wanted in a batch, and how a step is divided.

    Raises:
        ValueError: If a step has fewer targets than a window may hold, or there are none; and at the end of an epoch
            if other targets came than `dataset.json` counts.
    """

    def __init__(self, rows: StreamedWindows, *, targets_per_batch: int, parts: StepParts) -> None:
        self.rows, self.parts, self.epoch = rows, parts, 0
        self.num_targets, self.targets_per_step = rows.num_targets, targets_per_batch * parts.number
        longest = rows.max_history_length
        if not self.num_targets:
            raise ValueError("There are no training rows: no user has two items in the training part.")
        if self.targets_per_step < longest:
            raise ValueError(
                f"`streaming` needs steps of at least {longest} targets, as many as a window of `max_history_length` "
                f"items has, got {self.targets_per_step}: raise `per_device_train_batch_size`, or turn it off."
            )

    @property
    def num_steps(self) -> int:
        """Steps of an epoch."""
        return -(-self.num_targets // self.targets_per_step)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_steps * self.parts.num_accumulated

    def __iter__(self) -> Iterator[list[dict[str, np.ndarray]]]:
        random = np.random.default_rng([self.rows.seed, self.epoch])
        waiting, num_seen, num_done = None, 0, 0  # windows, and targets that were read and trained
        for fresh in self.rows.windows(self.epoch):
            num_seen += int((fresh.ends - fresh.first_targets).sum())
            windows = fresh if waiting is None else _joined(waiting, fresh)
            is_end = num_seen >= self.num_targets
            last = self.num_steps if is_end else num_seen // self.targets_per_step
            ready, waiting = self._split(windows, num_done, last, random)
            rows = WindowDataset(ready, first_item_token=self.rows.first_item_token)
            for step in self._steps(ready, num_done, random):
                for numbers in self.parts.mine(step):
                    yield [rows[number] for number in numbers]
            num_done += int((ready.ends - ready.first_targets).sum())
        if num_done != self.num_targets:
            raise ValueError(
                f"The training files of {self.rows.prepared.folder} hold {num_seen} targets, dataset.json says "
                f"{self.num_targets}: prepare the log again."
            )

    def _split(
        self, windows: Windows, num_done: int, last: int, random: np.random.Generator
    ) -> tuple[Windows, Windows]:
        """Windows in random order for the steps before `last`, and those that wait."""
        order = random.permutation(len(windows))
        counts = (windows.ends - windows.first_targets)[order]
        is_ready = num_done + np.cumsum(counts) <= last * self.targets_per_step
        return _taken(windows, order[is_ready]), _taken(windows, order[~is_ready])

    def _steps(self, windows: Windows, num_done: int, random: np.random.Generator) -> Iterator[np.ndarray]:
        """Numbers of windows of similar length for each step, in random order."""
        counts = windows.ends - windows.first_targets
        order = np.lexsort((random.random(len(windows)), counts, windows.lengths))
        first = -(-num_done // self.targets_per_step)
        step_of = np.maximum((num_done + np.cumsum(counts[order]) - 1) // self.targets_per_step, first)
        steps = np.split(order, np.flatnonzero(np.diff(step_of)) + 1) if len(order) else []
        for number in random.permutation(len(steps)):
            yield steps[number]


def is_streamed(prepared: PreparedDataset, args: Any) -> bool:
    """
    Whether a training reads its rows anew in each epoch: where that was asked for, or the data set is large.

    Args: the data set, and the training arguments.
    """
    needs_memory = [
        name for name, idle in (("teacher", None), ("shuffled_ties", "none")) if getattr(args, name) != idle
    ]
    if args.streaming and needs_memory:
        raise ValueError(
            f"`streaming` does not go with `{needs_memory[0]}`, which needs all rows in memory: leave one of them out."
        )
    return prepared.is_large and not needs_memory if args.streaming is None else args.streaming


def sampled_rows(prepared: PreparedDataset, name: str, *, max_users: int | None, seed: int) -> datasets.Dataset:
    """
    The rows of [`sampled_users`] of a split, of which one row group at a time is in memory.

    Args: the data set, the split, the size of the sample (`None` for all) and its seed.
    """
    files = [pq.ParquetFile(path, page_checksum_verification=True) for path in split_files(prepared.folder, name)]
    num_rows = sum(file.metadata.num_rows for file in files)
    chosen = np.arange(num_rows)
    if max_users is not None and max_users < num_rows:
        chosen = np.sort(np.random.default_rng(seed).choice(num_rows, size=max_users, replace=False))
    parts, start = [files[0].schema_arrow.empty_table()], 0
    for file in files:
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            inside = chosen[np.searchsorted(chosen, start) : np.searchsorted(chosen, end)] - start
            if len(inside):
                parts.append(file.read_row_group(group).take(pa.array(inside)))
            start = end
    return datasets.Dataset(pa.concat_tables(parts))


def _taken(windows: Windows, numbers: np.ndarray) -> Windows:
    """Some windows, with the values of these alone."""
    starts, sizes = windows.starts[numbers], (windows.ends - windows.starts)[numbers]
    offsets = np.cumsum(sizes) - sizes
    places = np.arange(sizes.sum()) + np.repeat(starts - offsets, sizes)
    first_targets = windows.first_targets[numbers] - starts + offsets
    gaps = None if windows.gaps is None else windows.gaps[places]
    return Windows(
        windows.values[places], offsets, offsets + sizes, first_targets, windows.user_rows[numbers], 0, gaps
    )


def _joined(first: Windows, second: Windows) -> Windows:
    """Windows behind others."""
    shift = len(first.values)
    return Windows(
        np.concatenate([first.values, second.values]),
        np.concatenate([first.starts, second.starts + shift]),
        np.concatenate([first.ends, second.ends + shift]),
        np.concatenate([first.first_targets, second.first_targets + shift]),
        np.concatenate([first.user_rows, second.user_rows]),
        0,
        None if first.gaps is None or second.gaps is None else np.concatenate([first.gaps, second.gaps]),
    )
