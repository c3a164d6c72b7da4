"""
A catalog that changes while it is served: items are added and removed without training, in numbered versions.

Rows only grow. An added item gets the next row and token and a free semantic ID; a removed one keeps both, counts in
histories and is never recommended. Encoder, quantizer and weights stay as training left them.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from hf_genrec.files import first_five
from hf_genrec.modeling.genrec_folder import items_fingerprint, write_manifest
from hf_genrec.modeling.genrec_lists import ranges_of, rows_of, set_rows
from hf_genrec.serving.catalog.files import (
    CatalogVersion,
    StoredCatalog,
    VersionRecord,
    current_number,
    locked,
    read_catalog,
    write_version,
)
from hf_genrec.serving.catalog.grown_model import why_not_growable
from hf_genrec.serving.catalog.learned_rows import ROWS_NAME, RowRegression, learned_rows, parts_of
from hf_genrec.serving.catalog.new_rows import Readers, coded_rows, new_rows
from hf_genrec.serving.catalog.snapshot import Snapshot
from hf_genrec.tokenizers.folder import QUANTIZER_NAME
from hf_genrec.tokenizers.new_items import ItemCoder


if TYPE_CHECKING:
    from hf_genrec.serving.recommender import Recommender


logger = logging.getLogger(__name__)


class LiveCatalog:
    """
    The catalog of a recommender as a thing that changes: `recommender.catalog`.

    Each change makes a version with the next number and takes effect at once: requests that are being answered end on
    the version they began with. Of a recommender that was loaded from a folder each change is written there first, in
    files beside the old ones, and is there after a restart; set `folder` to `None` to keep changes in memory.

    Args:
        recommender ([`Recommender`]): Whose catalog it is. There is one for each: use `recommender.catalog`.

    Attributes:
        folder (`Path`, *optional*): Where changes are written.

    Example:

    ```python
    >>> import pyarrow as pa
    >>> from hf_genrec import Recommender, RPGConfig, RPGForItemGeneration
    >>> model = RPGForItemGeneration(RPGConfig(num_items=3, num_levels=2, codebook_size=4, d_model=8, d_ff=16))
    >>> model.set_catalog([[0, 1], [0, 2], [3, 0]])
    >>> shop = Recommender(model, pa.table({"item_id": ["tea", "cup", "pot"]}))
    >>> shop.catalog.add([{"item_id": "jug", "codes": [3, 1]}]).num_items
    4
    >>> shop.catalog.remove(["cup"]).number
    3
    >>> sorted(shop.recommend(["cup"], top_k=4, exclude_seen=False).item_ids)
    ['jug', 'pot', 'tea']
    >>> shop.catalog.rollback(1).num_items
    3

    ```
    """

    def __init__(self, recommender: Recommender) -> None:
        self._recommender = recommender
        self._lock = threading.Lock()  # of those who change; who reads needs none
        self._files: dict[str, str] = {}
        self._read_from = ""  # why the catalog must not be changed
        self._coder: ItemCoder | None = None
        self._regression: RowRegression | None = None
        self.folder: Path | None = None
        now, config = recommender._now, recommender._now.model.config
        self._base = {
            "num_items": len(now.item_ids),
            "items_fingerprint": items_fingerprint(now.item_ids),
            "catalog_fingerprint": config.catalog_fingerprint,
            "closed": config.closed_items or "",
        }
        self._records = [VersionRecord(_version(now, 1, 0, added=0, removed=0), len(now.item_ids))]
        self._closed_at_start = now.closed

    @property
    def version(self) -> CatalogVersion:
        """[`CatalogVersion`]: the current one."""
        return self._records[-1].version

    def versions(self) -> list[CatalogVersion]:
        """`list[CatalogVersion]`: all of them, the first one first."""
        return [record.version for record in self._records]

    def add(
        self,
        items: pa.Table | Sequence[Mapping[str, Any]],
        *,
        vectors: np.ndarray | None = None,
        encoder: str | os.PathLike[str] | None = None,
        reuse_ids: bool = False,
    ) -> CatalogVersion:
        """
        Add items, which can be recommended at once. An item that was removed comes back in its old row.

        The semantic ID of an item follows from its text: encoder, fusion with behaviour, whitening and quantizer are
        those of training (the folder's `quantizer/`). It gets the quantizer's codes where these are free, else a free
        id near by, a shared one, or the next collision code, as at tokenization. Models that have learned a row of
        each item need [`~LiveCatalog.learn`] first. A ridge or item neighbours know nothing of an item without
        interactions: alone they list it last.

        Args:
            items (`pa.Table` or `list[dict]`):
                `item_id` and `text`; `title` and other columns of the item table where they are known. Without `text`
                the title is read. With `codes` (a semantic ID each) nothing is computed.
            vectors (`np.ndarray` of shape `(num_new, dim)`, *optional*):
                Ready embeddings instead of texts, of the encoder that the ids were made with; or whole vectors, with
                behaviour.
            encoder (`str` or `Path`, *optional*): The folder of the encoder, where training read a local one.
            reuse_ids (`bool`, *optional*, defaults to `False`):
                Whether new items may get the semantic IDs of removed ones. Histories with these then read alike.

        Returns:
            [`CatalogVersion`]

        Raises:
            ValueError: If an item is there already, its id or codes cannot be, or the model cannot take new items.
        """
        with self._change():
            now = self._recommender._now
            table, known = new_rows(items, index_of=now.index_of, is_open=now.is_open)
            if known and vectors is not None:
                raise ValueError(
                    f"{len(known)} items come back and keep their semantic IDs: add these without `vectors`."
                )
            closed = now.closed
            closed[known] = False
            if not table.num_rows:
                return self._take(now, closed, rows=None)
            reason = why_not_growable(now.model)
            if reason is not None:
                raise ValueError(f"New items cannot be added: {reason}.")
            parts = [part for _, part in parts_of(now.model)]
            coded = next((part.item_codes.cpu().numpy() for part in parts if part.config.has_codes), None)
            taken = np.zeros((len(closed), 0), np.int64) if coded is None else coded.astype(np.int64)
            taken = taken[~closed] if reuse_ids else taken
            if coded is None and all(learned_rows(part) is None for part in parts):
                logger.warning(
                    "%d items have no interactions, so nothing speaks for them in this model until it is fitted again "
                    "and they are listed last.",
                    table.num_rows,
                )
            readers = Readers(self._find_coder, self._find_regression)
            rows = coded_rows(table, now.model, readers, taken=taken, vectors=vectors, encoder=encoder)
            closed = np.concatenate([closed, np.zeros(rows.num_rows, bool)])
            return self._take(now.with_rows(rows), closed, rows=rows)

    def learn(self, vectors: np.ndarray, *, encoder: Mapping[str, Any] | None = None) -> None:
        """
        Learn from the texts of all items what rows items with such texts have, once, before new ones are added.

        Needed for what knows each item by a row of its own: SASRec, the text scorer, a dense head without codes and
        vectors, and ensembles with such a member. A ridge regression, as for behaviour; it is kept in the folder's
        `quantizer/`.

        Args:
            vectors (`np.ndarray` of shape `(num_items, dim)`):
                Embeddings of the texts of the items that training knew, such as [`read_embeddings`] returns.
            encoder (`dict`, *optional*):
                What made them, `model`, `revision` and `identity` as [`read_embeddings`] returns them; without it new
                items need `vectors`.

        Raises:
            ValueError: If the model has no such rows, or the vectors are not those of its items.
        """
        with self._change():
            now = self._recommender._now
            if self.has_grown:
                raise ValueError("Items were added to this catalog already: learn before the first one.")
            known = {name: (encoder or {}).get(name) or None for name in ("model", "revision", "identity")}
            self._regression = RowRegression.fit(now.model, vectors, encoder=known)
            if self.folder is not None:
                self._regression.save(self.folder / QUANTIZER_NAME)
                write_manifest(self.folder, [f"{QUANTIZER_NAME}/*"])

    def remove(self, item_ids: Iterable[str]) -> CatalogVersion:
        """
        Remove items from what may be recommended; histories with them are read as before.

        Args:
            item_ids (`list[str]`): Items that may be recommended now.

        Returns:
            [`CatalogVersion`]

        Raises:
            ValueError: If an item is unknown or was removed before, or none would be left.
        """
        with self._change():
            now, wanted = self._recommender._now, _distinct(item_ids)
            closed = now.closed
            absent = [item_id for item_id in wanted if item_id not in now.index_of or closed[now.index_of[item_id]]]
            if absent:
                raise ValueError(
                    f"{len(absent)} items are not in the catalog: {first_five(absent)}. Nothing was removed."
                )
            closed[[now.index_of[item_id] for item_id in wanted]] = True
            return self._take(now, closed, rows=None)

    def rollback(self, number: int) -> CatalogVersion:
        """
        Make a new version that recommends the items of an earlier one. Items added since keep their rows and ids.

        Args:
            number (`int`): The number of the earlier version.

        Returns:
            [`CatalogVersion`]

        Raises:
            ValueError: If there is no such version.
        """
        with self._change():
            now = self._recommender._now
            closed = np.ones(len(now.item_ids), bool)
            then = self._closed_at(number)
            closed[: len(then)] = then
            return self._take(now, closed, rows=None)

    def delta(self, since: int) -> dict[str, Any]:
        """
        What a follower must do to get from an earlier version to this one.

        Args:
            since (`int`): The number of the earlier version.

        Returns:
            `dict`: `since` and `version`, numbers; `added`, a `pa.Table` of the items that came, with their `codes`
            where items have semantic IDs; `removed`, the ids of those that left.

        Raises:
            ValueError: If there is no such version.
        """
        with self._lock:
            now, number, then = self._recommender._now, self.version.number, self._closed_at(since)
        was_open, is_open = np.zeros(len(now.item_ids), bool), ~now.closed
        was_open[: len(then)] = ~then
        came = np.flatnonzero(is_open & ~was_open)
        removed = [now.item_ids[row] for row in np.flatnonzero(was_open & ~is_open)]
        return {"since": since, "version": number, "added": now.items.take(came), "removed": removed}

    def refresh(self) -> CatalogVersion:
        """
        Take what another process has written to the folder since.

        Returns:
            [`CatalogVersion`]: the current one.
        """
        with self._lock:
            if self.folder is not None and current_number(self.folder) != self.version.number:
                stored = read_catalog(self.folder, {})
                if stored is not None:
                    self._apply(stored, None)
        return self.version

    # --- what a recommender calls ----------------------------------------------------------------------------------

    def open_folder(self, source: str, where: dict[str, Any], number: int | None) -> None:
        """
        Take the state that a folder or repository holds.

        Args:
            source (`str`): The folder or the name of the repository; changes are written to a folder.
            where (`dict`): See [`read_catalog`].
            number (`int`, *optional*): An earlier version, which is then read only; `None` for the current one.
        """
        self.folder = Path(source) if Path(source).is_dir() else None
        stored = read_catalog(source, where)
        if stored is not None:
            if {**stored.base, "closed": ""} != {**self._base, "closed": ""}:
                raise ValueError(
                    f"The versions of the catalog in {source} were written for other weights or items than those that "
                    "are there now. Remove its folder `catalog/`, or use the weights that it was written for."
                )
            self._apply(stored, number)
        elif number not in (None, 1):
            raise ValueError(f"`catalog_version` is {number}, and the catalog of {source} has never changed.")

    @property
    def has_grown(self) -> bool:
        """Whether there are rows that the weights of the folder do not have."""
        return len(self._recommender.item_ids) > self._base["num_items"]

    # --- helpers ---------------------------------------------------------------------------------------------------

    def _apply(self, stored: StoredCatalog, number: int | None) -> None:
        now, records = self._recommender._now, list(stored.records)
        fresh = [table for table in stored.tables if table["item_id"][0].as_py() not in now.index_of]
        if fresh:  # at once: each step would copy the tables of the model
            now = now.with_rows(pa.concat_tables(fresh, promote_options="permissive"))
        self._files, self._records, self._base = stored.files, records, stored.base
        self._closed_at_start = rows_of(stored.base["closed"], stored.base["num_items"]).numpy()
        closed = np.ones(len(now.item_ids), bool)
        then = self._closed_at(records[-1].version.number if number is None else number)
        closed[: len(then)] = then
        last = records[-1].version if number is None else records[number - 1].version
        if number is not None and number != records[-1].version.number:
            self._records = records[:number]
            self._read_from = (
                f"This recommender was loaded at version {number} of its catalog, and the folder holds version "
                f"{records[-1].version.number}. Load it without `catalog_version` and call `rollback({number})`."
            )
        now = replace(now.with_closed(closed), number=last.number)
        if now.fingerprint != last.fingerprint:
            raise ValueError(
                f"Version {last.number} of the catalog does not hold the items that it says. Restore the folder."
            )
        self._recommender._now = now

    def _closed_at(self, number: int) -> np.ndarray:
        """Which rows were closed in a version, of those that there were."""
        if not 1 <= number <= len(self._records):
            raise ValueError(
                f"There is no version {number} of the catalog: it has the versions 1 to {len(self._records)}."
            )
        records = self._records[:number]
        closed = np.zeros(records[-1].num_rows, bool)
        closed[: len(self._closed_at_start)] = self._closed_at_start
        for record in records:
            set_rows(closed, record.closed, True)
            set_rows(closed, record.opened, False)
        return closed

    @contextlib.contextmanager
    def _change(self) -> Any:
        """One change at a time, on top of what the folder holds."""
        guard: AbstractContextManager[None] = contextlib.nullcontext() if self.folder is None else locked(self.folder)
        with self._lock, guard:
            if self._read_from:
                raise ValueError(self._read_from)
            if self.folder is not None and current_number(self.folder) != self.version.number:
                raise ValueError(
                    f"{self.folder} holds version {current_number(self.folder)} of the catalog, this recommender "
                    f"serves {self.version.number}: another process has changed it. Call `catalog.refresh()` first."
                )
            yield

    def _take(self, now: Snapshot, closed: np.ndarray, *, rows: pa.Table | None) -> CatalogVersion:
        """Write the version, then serve it."""
        if closed.all():
            raise ValueError("No item would be left to recommend. Keep one at least.")
        before = np.ones(len(closed), bool)
        before[: len(self._recommender._now.closed)] = self._recommender._now.closed
        came, left = before & ~closed, closed & ~before
        number = len(self._records) + 1
        fresh = replace(now.with_closed(closed), number=number)
        version = _version(fresh, number, number - 1, added=int(came.sum()), removed=int(left.sum()))
        num_old = len(self._recommender._now.item_ids)
        opened = came & (np.arange(len(came)) < num_old)
        record = VersionRecord(version, len(closed), _ranges(left), _ranges(opened))
        _warm(fresh.model, self._recommender._now.model)
        if self.folder is not None:
            records = [*self._records, record]
            how: dict[str, Any] = {"closed": _ranges(closed), "rows": rows, "files": self._files}
            self._files = write_version(self.folder, self._base, records, **how)
        self._records.append(record)
        self._recommender._now = fresh  # one assignment: whoever reads it gets the old one or the new one
        return version

    def _find_coder(self) -> ItemCoder:
        if self._coder is not None:
            return self._coder
        folder = self._recommender._companions()
        if folder is None or not (folder / QUANTIZER_NAME / "config.json").is_file():
            raise ValueError(
                "There is no `quantizer/` beside this recommender, by which new items get semantic IDs: give `codes`, "
                "or load the folder that training wrote."
            )
        self._coder = ItemCoder.load(folder / QUANTIZER_NAME)
        return self._coder

    def _find_regression(self) -> RowRegression:
        if self._regression is None:
            folder = self._recommender._companions()
            if folder is None or not (folder / QUANTIZER_NAME / ROWS_NAME).is_file():
                raise ValueError(
                    "New items cannot be added: this model scores items by what it learned of each of them. Have it "
                    "learn first how that follows from texts, once: `catalog.learn(vectors)` or `hf-genrec catalog "
                    "learn RUN --embeddings FOLDER`."
                )
            self._regression = RowRegression.load(folder / QUANTIZER_NAME)
        return self._regression


def _version(now: Snapshot, number: int, parent: int, *, added: int, removed: int) -> CatalogVersion:
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return CatalogVersion(number, parent, time, now.num_open, added, removed, now.fingerprint)


def _ranges(rows: np.ndarray) -> str:
    return ranges_of(torch.from_numpy(rows))  # type: ignore[arg-type]


def _warm(model: Any, before: Any) -> None:
    """Build what the first request would have to wait for, as far as the model before had it."""
    for (_, part), (_, old) in zip(parts_of(model), parts_of(before), strict=True):
        if getattr(old, "keeps_item_vectors", False):
            with torch.no_grad():
                part.all_item_vectors()
    if model.config.has_codes and "beam" in model.decodings[:1]:
        _ = model.catalog
    if getattr(model, "_item_graph", None) is not None:
        _ = model.item_graph


def _distinct(item_ids: Iterable[str]) -> list[str]:
    if isinstance(item_ids, str):
        raise TypeError(f"`item_ids` must be a list of ids, got the string {item_ids!r}.")
    return list(dict.fromkeys(item_ids))
