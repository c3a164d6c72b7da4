"""
The state that a request is answered from: a model, its items, and which of them may be recommended.

A snapshot never changes. A change of the catalog makes another one, and a recommender takes it by one assignment, so
requests that are being answered end on the snapshot they began with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from hf_genrec.modeling.genrec_folder import batch_of, items_fingerprint, look_up
from hf_genrec.serving.catalog.grown_model import with_closed, with_items


MAX_CHUNKS = 64  # of the item table, which has one more after each addition

ItemRule = Sequence[str] | Sequence[Sequence[str]] | None


@dataclass(frozen=True, eq=False)
class Snapshot:
    """
    A model and its items at one version of the catalog.

    Attributes:
        model: The model, in evaluation mode.
        items (`pa.Table`): A row per item in the model's order, removed ones too.
        item_ids (`list[str]`): Column `item_id`; not to be changed.
        index_of (`dict[str, int]`): The row of each id; not to be changed.
        number (`int`): That of the version.
    """

    model: Any
    items: pa.Table
    item_ids: list[str]
    index_of: dict[str, int]
    number: int = 1

    @classmethod
    def of(cls, model: Any, items: pa.Table) -> Snapshot:
        """
        A snapshot of a model and its item table.

        Args: see [`Recommender`].
        """
        item_ids = items["item_id"].to_pylist()
        return cls(model.eval(), items, item_ids, {item_id: index for index, item_id in enumerate(item_ids)})

    @property
    def num_open(self) -> int:
        """`int`: items that may be recommended."""
        is_open = self.model.open_items
        return len(self.item_ids) if is_open is None else int(is_open.sum())

    def is_open(self, index: int) -> bool:
        """Whether the item of a row may be recommended."""
        is_open = self.model.open_items
        return is_open is None or bool(is_open[index])

    def look_up(self, histories: list[list[str]]) -> tuple[list[list[int]], int]:
        """Rows of the items of histories, unknown ones left out, and how many of these there were."""
        return look_up(histories, self.index_of, name="histories")

    def rule(self, name: str, item_ids: ItemRule, *, num_users: int) -> list[list[int]] | None:
        """Rows of the items of a rule: one list for all users, or one for each."""
        if item_ids is None:
            return None
        lists, is_shared = batch_of(item_ids, name=name)
        if not lists:  # no ids, for all users
            lists, is_shared = [[]], True
        if not is_shared and len(lists) != num_users:
            raise ValueError(
                f"`{name}` must be one list of ids or one per user ({num_users}), got {len(lists)} lists."
            )
        return look_up(lists, self.index_of, name=name)[0]

    def rule_tokens(self, rule: list[list[int]] | None, users: list[int], *, num_users: int) -> torch.Tensor | None:
        """Item tokens of a rule for some of the users: `(n,)` for all, or `(len(users), n)`."""
        if rule is None:
            return None
        if len(rule) == num_users:
            return self.tokens([rule[user] for user in users])
        return self.tokens(rule)[0]

    def history_tokens(self, histories: list[list[int]]) -> torch.LongTensor:
        """Tokens of the latest items, as many as the model reads."""
        width = self.model.config.max_history_length
        return self.tokens([history[-width:] for history in histories])

    def history_mask(self, values: list[list[int]]) -> torch.LongTensor:
        """The mask of [`history_tokens`], from a value for each item, see [`~hf_genrec.serving.times.mask_values`]."""
        latest = [row[-self.model.config.max_history_length :] for row in values]
        mask = np.zeros((len(latest), max(1, *map(len, latest))), dtype=np.int64)
        for number, row in enumerate(latest):
            mask[number, : len(row)] = row
        return torch.from_numpy(mask).to(self.model.device)  # type: ignore[return-value]

    def tokens(self, histories: list[list[int]]) -> torch.LongTensor:
        """Rows of items as item tokens, padded on the right with the pad token."""
        config = self.model.config
        tokens = np.full((len(histories), max(1, *map(len, histories))), config.pad_token_id, dtype=np.int64)
        for row, history in enumerate(histories):
            tokens[row, : len(history)] = np.asarray(history, dtype=np.int64) + config.first_item_token
        return torch.from_numpy(tokens).to(self.model.device)  # type: ignore[return-value]

    @property
    def closed(self) -> NDArray[np.bool_]:
        """Which rows are items that may not be recommended, an array of its own."""
        is_open = self.model.open_items
        return np.zeros(len(self.item_ids), bool) if is_open is None else ~is_open.cpu().numpy()

    @property
    def fingerprint(self) -> str:
        """Of the open items and their semantic IDs; 16 hex digits, the same in whatever rows they are."""
        open_rows = np.flatnonzero(~self.closed)
        digest = hashlib.sha256(json.dumps([self.item_ids[row] for row in open_rows]).encode())
        if self.model.config.has_codes:
            codes = self.model.item_codes.cpu().numpy()[open_rows]
            digest.update(codes.astype("<i2").tobytes())
        return digest.hexdigest()[:16]

    def with_closed(self, closed: NDArray[np.bool_]) -> Snapshot:
        """The snapshot in which other rows are closed, `(num_items,)`."""
        if (closed == self.closed).all():
            return self
        return replace(self, model=with_closed(self.model, torch.from_numpy(closed)))

    def with_rows(self, rows: pa.Table) -> Snapshot:
        """The snapshot with further items, which are open; `rows` is what [`coded_rows`] gives."""
        read = [name for name in rows.column_names if name == "codes" or name.endswith(("vector", "row"))]
        model = with_items(self.model, len(rows), {name: _tensor(rows[name]) for name in read})
        columns = [
            rows[field.name].cast(field.type) if field.name in rows.column_names else pa.nulls(len(rows), field.type)
            for field in self.items.schema
        ]
        items = pa.concat_tables([self.items, pa.table(columns, schema=self.items.schema)])
        if items.column(0).num_chunks > MAX_CHUNKS:
            items = items.combine_chunks()
        fresh = rows["item_id"].to_pylist()
        item_ids = [*self.item_ids, *fresh]
        model.config.items_fingerprint = items_fingerprint(item_ids)
        index_of = self.index_of | {item_id: row for row, item_id in enumerate(fresh, len(self.item_ids))}
        return Snapshot(model, items, item_ids, index_of)


def _tensor(column: pa.ChunkedArray) -> torch.Tensor:
    """A column of lists of one length as a table."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return torch.from_numpy(flat.reshape(len(column), -1).copy())
