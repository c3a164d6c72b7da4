"""
A log of interactions and an items table in, a prepared folder out.

The steps, in this order: read, drop text-less items (only if asked for), minimum rating, order in time,
de-duplication, k-core, minimum history, leave-last-out splits, newest items held out of training (only if asked for).
The statistics of every step go into `dataset.json` and, at level INFO, into the log. The folder's files are described
in `prepared.py`.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hf_genrec.data import steps
from hf_genrec.data.engines import DuckDB, Engine
from hf_genrec.data.fingerprint import fingerprint_of, times_fingerprint_of
from hf_genrec.data.item_readers import read_items
from hf_genrec.data.items import default_fields
from hf_genrec.data.prepared import FORMAT_VERSION, PreparedDataset, replaced_folder
from hf_genrec.data.protocols import PROTOCOLS, Protocol
from hf_genrec.data.readers import Log, ReadTable, columns_by_key, open_interactions, open_sequences
from hf_genrec.data.spark import Spark
from hf_genrec.data.spark_source import load_frame
from hf_genrec.data.split_times import SUFFIX, SplitTime, SplitTimes
from hf_genrec.data.split_writer import SplitSizes, write_splits
from hf_genrec.data.splits import COLD_NAME
from hf_genrec.data.tables import Source, owner_of
from hf_genrec.data.text_files import DELIMITERS, OnError, first_names, format_of
from hf_genrec.files import first_five


logger = logging.getLogger(__name__)

EngineName = Literal["duckdb", "spark"]
MissingText = Literal["error", "drop", "keep"]


def prepare(
    output_dir: str | os.PathLike[str],
    *,
    interactions: Source | None = None,
    sequences: str | os.PathLike[str] | None = None,
    items: Source,
    protocol: str = "custom",
    category: str | None = None,
    user: str = "user_id",
    item: str = "item_id",
    timestamp: str | None = "timestamp",
    rating: str | None = None,
    delimiter: str | None = None,
    date_format: str | None = None,
    items_id: str = "item_id",
    title: str = "title",
    text_fields: Sequence[str] | None = None,
    ascii_only: bool | None = None,
    min_rating: float | None = None,
    deduplicate: bool | None = None,
    k_core: int | None = None,
    min_history: int | None = None,
    missing_text: MissingText = "error",
    keep_all_items: bool = False,
    cold_items: float = 0.0,
    split_time: SplitTime | None = None,
    strict: bool = True,
    on_error: OnError = "raise",
    allow_huge: bool = False,
    engine: EngineName = "duckdb",
    master: str | None = None,
    memory_limit: str | None = None,
    source: str | None = None,
    overwrite: bool = False,
) -> PreparedDataset:
    """
    Makes a prepared folder from a log (or ready-made sequences) and an items table.

    The last item of a user is the test target, the one before it the validation target, the rest the training part.
    Users with fewer than three interactions have a training part only. The folder appears whole or not at all.

    Args:
        output_dir (`str` or `os.PathLike`): The folder to write.
        interactions (file or table, *optional*): A log; see [`~readers.open_interactions`]. This or `sequences`.
        sequences (`str` or `os.PathLike`, *optional*): Ready-made sequences; see [`~readers.open_sequences`].
        items (file, table or `list[dict]`): The items table; see [`~item_readers.read_items`].
        protocol (`str`, *optional*, defaults to `"custom"`):
            A name in `PROTOCOLS`; it decides `deduplicate`, `k_core`, `min_history` and `ascii_only` where they are
            `None`.
        category (`str`, *optional*):
            A category with published statistics, which the data must have (see `strict`). A warning says where a
            protocol has published statistics and they were not compared.
        user (`str`, *optional*, defaults to `"user_id"`): Column of the users' ids in the log.
        item (`str`, *optional*, defaults to `"item_id"`): Column of the items' ids in the log.
        timestamp (`str`, *optional*, defaults to `"timestamp"`): Column of the times; `None` for file order.
        rating (`str`, *optional*): Column of the ratings, needed for `min_rating`.
        delimiter (`str`, *optional*): Between two fields of the log and the items table, where they are delimited.
        date_format (`str`, *optional*): See [`~readers.open_interactions`].
        items_id (`str`, *optional*, defaults to `"item_id"`): Field of the ids in the items table.
        title (`str`, *optional*, defaults to `"title"`): Field of the titles in the items table.
        text_fields (`Sequence[str]`, *optional*):
            Fields of the text, in order; see [`~items.item_text`]. `None` is `title`, then what catalogs usually have.
        ascii_only (`bool`, *optional*):
            Whether texts keep ASCII characters only; see [`~items.clean_text`]. `None` is what the protocol says: the
            papers' do, `"custom"` keeps every script.
        min_rating (`float`, *optional*): Drops interactions rated lower; `None` keeps all.
        deduplicate (`bool`, *optional*): Keep only the earliest interaction of a user with an item.
        k_core (`int`, *optional*): Least interactions of every user and item, iterated; 0 keeps all.
        min_history (`int`, *optional*): Least number of items before a user's last one.
        missing_text (`"error"`, `"drop"` or `"keep"`, *optional*, defaults to `"error"`):
            Items with no metadata or an empty text: stop, drop their interactions first of all, or use the id as text.
        keep_all_items (`bool`, *optional*, defaults to `False`):
            Whether items without a remaining interaction stay in the catalog.
        cold_items (`float`, *optional*, defaults to 0.0):
            Share of the items, the newest ones (see [`~steps.newest_items`]), that leave the training part. They stay
            in the catalog, in the histories and among the targets of validation and test.
        split_time (`str`, `datetime` or two of these, *optional*):
            Splits in time instead of leave-last-out: what came before is for training, the first item from then on is
            the test target; see [`~split_times.SplitTimes`]. Of two times the first one is the validation's. The
            protocol's name gets the ending `-temporal`.
        strict (`bool`, *optional*, defaults to `True`):
            Whether other statistics than the published ones of `category` are an error; else a recorded warning.
        on_error (`"raise"` or `"skip"`, *optional*, defaults to `"raise"`):
            Malformed lines and repeated item ids: stop, or count, report and skip.
        allow_huge (`bool`, *optional*, defaults to `False`): See [`~readers.open_interactions`].
        engine (`"duckdb"` or `"spark"`, *optional*, defaults to `"duckdb"`):
            What runs the steps: DuckDB in this process, or the executors of Spark. Both give the same, by fingerprint.
        master (`str`, *optional*):
            Spark's master, such as `"local[4]"`, `"spark://host:7077"` or `"yarn"`; `None` is the session that there
            is in this process, or that of `spark-submit`, or else all cores of this machine.
        memory_limit (`str`, *optional*):
            What DuckDB may take, such as `"4GB"`; what exceeds it lies beside `output_dir` meanwhile. `None` is 80 %
            of the machine's memory.
        source (`str`, *optional*): Where the data come from, for `dataset.json`; `None` names the file.
        overwrite (`bool`, *optional*, defaults to `False`): Whether an existing prepared folder is replaced.

    Returns:
        [`PreparedDataset`]: the folder, opened; statistics of all steps are in its `metadata`.

    Raises:
        ValueError: If arguments contradict each other, the data are malformed, an item has no text (with
            `missing_text="error"`), nothing is left after the filters, or (with `strict`) the statistics are not the
            published ones.
        FileExistsError: If `output_dir` is not empty and not a prepared folder, or is one and `overwrite` is `False`.
    """
    if (interactions is None) == (sequences is None):
        raise ValueError("Give either `interactions` or `sequences`.")
    if missing_text not in ("error", "drop", "keep"):
        raise ValueError(f'`missing_text` must be "error", "drop" or "keep", got {missing_text!r}.')
    if min_rating is not None and rating is None:
        raise ValueError("`min_rating` needs `rating`, the name of the column with the ratings.")
    if not 0 <= cold_items < 1:
        raise ValueError(f"`cold_items` is a share of the items from 0 to below 1, got {cold_items}.")
    times = None if split_time in (None, [], ()) else SplitTimes.of(split_time)  # a command line gives none as empty
    if times is not None and cold_items:
        raise ValueError("`split_time` and `cold_items` do not go together: items of later times are cold as it is.")
    _check_engine(engine, master, memory_limit)
    _check_formats(interactions, items, timestamp, delimiter=delimiter, date_format=date_format)
    wanted = {"k_core": k_core, "deduplicate": deduplicate, "min_history": min_history, "ascii_only": ascii_only}
    rules = _rules(protocol, wanted)
    fields = default_fields(title) if text_fields is None else text_fields
    texts: dict[str, Any] = {"fields": fields, "ascii_only": rules.ascii_only}
    reading: dict[str, Any] = {"on_error": on_error, "allow_huge": allow_huge}
    columns: dict[str, Any] = {"user": user, "item": item, "timestamp": timestamp, "rating": rating}
    columns |= {"delimiter": delimiter, "date_format": date_format}
    opened = replaced_folder(output_dir, marker="dataset.json", overwrite=overwrite)
    with opened as folder, _running(engine, folder, master, memory_limit) as running:
        log = _read(running, interactions, sequences, columns, reading)
        only = None if keep_all_items else set(steps.used_items(running).to_pylist())
        catalog = read_items(items, item=items_id, title=title, **texts, only=only, delimiter=delimiter, **reading)
        filtered = _filter(running, catalog.table, rules, min_rating=min_rating, missing_text=missing_text)
        _check_texts(catalog.table, filtered, fields, keep_all_items=keep_all_items, missing_text=missing_text)
        _write_items(folder, catalog.table, running, keep_all_items=keep_all_items, missing_text=missing_text)
        options: dict[str, Any] = {"min_rating": min_rating, "missing_text": missing_text, "on_error": on_error}
        options |= {"text_fields": list(fields), "keep_all_items": keep_all_items}
        metadata = {
            "format_version": FORMAT_VERSION,
            "protocol": protocol + ("" if times is None else SUFFIX),
            "category": category,
            "source": source
            or Path(owner_of(interactions if sequences is None else sequences, "a table in memory")).name,
            "options": {name: getattr(rules, name) for name in wanted} | options,
            **_write_splits(folder, filtered, cold_items, times),
            "known_statistics": _compare(rules, category, filtered.statistics, strict=strict),
            "skipped": _skips(log, "log") | _skips(catalog, "items") | filtered.skipped,
        }
        text = json.dumps(metadata, indent=2, ensure_ascii=False)
        (folder / "dataset.json").write_text(text + "\n", encoding="utf-8")
    return PreparedDataset.load(output_dir)


def _check_engine(engine: str, master: str | None, memory_limit: str | None) -> None:
    if engine not in ("duckdb", "spark"):
        raise ValueError(f'`engine` must be "duckdb" or "spark", got {engine!r}.')
    if master is not None and engine != "spark":
        raise ValueError(f'`master` is for `engine="spark"`, got {engine!r}.')
    if memory_limit is not None and engine != "duckdb":
        raise ValueError("`memory_limit` is for DuckDB: Spark's executors have settings of their own.")


@contextmanager
def _running(name: EngineName, folder: Path, master: str | None, memory_limit: str | None) -> Iterator[Engine]:
    """The engine; what exceeds DuckDB's memory lies in the folder that is written, until the block ends."""
    temporary = folder / "engine"
    engine = DuckDB(temporary, memory_limit=memory_limit) if name == "duckdb" else Spark(master)
    try:
        yield engine
    finally:
        engine.close()
        shutil.rmtree(temporary, ignore_errors=True)


def _read(engine: Engine, interactions: Any, sequences: Any, columns: dict[str, Any], reading: dict[str, Any]) -> Log:
    """Makes the tables of the engine; Spark reads itself what its executors reach."""
    log = None
    if isinstance(engine, Spark) and interactions is not None:
        names = columns_by_key(*(columns[name] for name in ("user", "item", "timestamp", "rating")))
        log = load_frame(engine, interactions, names, date_format=columns["date_format"], on_error=reading["on_error"])
    if log is None:
        log = (
            open_sequences(sequences, **reading)
            if interactions is None
            else open_interactions(interactions, **columns, **reading)
        )
        _load(engine, log)
    steps.number_ids(engine)
    return log


def _load(engine: Engine, log: Log) -> None:
    """Hands the rows of a log to the engine, each with its position, as they are read."""
    first = next(log.batches)
    schema = first.schema.append(pa.field("position", pa.int64()))

    def rows() -> Iterator[pa.RecordBatch]:
        position = 0
        for batch in itertools.chain([first], log.batches):
            places = pa.array(np.arange(position, position + batch.num_rows))
            position += batch.num_rows
            yield pa.RecordBatch.from_arrays([*batch.columns, places], schema=schema)

    engine.load("source_rows", pa.RecordBatchReader.from_batches(schema, rows()))


def _check_formats(
    interactions: Any, items: Any, timestamp: str | None, *, delimiter: str | None, date_format: str | None
) -> None:
    """Refuses options of files that would have no effect."""
    if date_format is not None and (interactions is None or timestamp is None):
        raise ValueError("`date_format` is for the times of a log: it needs `interactions` and `timestamp`.")
    files = [Path(source) for source in (interactions, items) if isinstance(source, str | os.PathLike)]
    if delimiter is not None and not any(DELIMITERS.get(format_of(file, delimiter)) for file in files):
        raise ValueError("`delimiter` is for delimited text, and neither `interactions` nor `items` is such a file.")


@dataclass
class _Filtered:
    """How the log in an engine came to what is left of it."""

    engine: Engine
    steps: list[dict[str, Any]]
    skipped: dict[str, Any]

    def record(self, step: str) -> None:
        self.steps.append({"step": step, **steps.statistics_of(self.engine)})
        shown = "%s: %d users, %d items, %d interactions, %.2f per user, density %.5f"
        logger.info(shown, *self.steps[-1].values())

    @property
    def statistics(self) -> dict[str, Any]:
        return {name: value for name, value in self.steps[-1].items() if name != "step"}


def _rules(protocol: str, wanted: dict[str, Any]) -> Protocol:
    """The protocol with what the caller wants otherwise."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"`protocol` must be one of {', '.join(PROTOCOLS)}, got {protocol!r}.")
    rules = replace(PROTOCOLS[protocol], **{name: value for name, value in wanted.items() if value is not None})
    for name in ("k_core", "min_history"):
        value = getattr(rules, name)
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 0:
            raise ValueError(f"`{name}` must be a whole number of at least 0, got {value!r}.")
    return rules


def _skips(read: Log | ReadTable, what: str) -> dict[str, Any]:
    """The part of `dataset.json` about lines that were left out; reported once."""
    read.skips.report(f"the {what}")
    return {f"{what}_lines": read.skips.count, f"{what}_first_line": read.skips.first}


def _filter(
    engine: Engine, catalog: pa.Table, rules: Protocol, *, min_rating: float | None, missing_text: MissingText
) -> _Filtered:
    filtered = _Filtered(engine, [], {"textless_items": 0, "textless_interactions": 0, "users_without_evaluation": 0})
    filtered.record("read")
    if missing_text == "drop":
        steps.keep_items(engine, _with_text(catalog))
        filtered.record("text-less items dropped")
        before, after = filtered.steps
        filtered.skipped["textless_items"] = before["num_items"] - after["num_items"]
        filtered.skipped["textless_interactions"] = before["num_interactions"] - after["num_interactions"]
    if min_rating is not None:
        steps.keep_rated(engine, min_rating)
        filtered.record(f"rated at least {min_rating:g}")
    if rules.deduplicate:
        steps.deduplicate(engine)
        filtered.record("repeated pairs dropped")
    if rules.k_core:
        steps.k_core(engine, rules.k_core)
        filtered.record(f"{rules.k_core}-core")
    if rules.min_history:
        steps.drop_short_histories(engine, rules.min_history)
        filtered.record(f"histories of at least {rules.min_history}")
    if not filtered.statistics["num_interactions"]:
        raise ValueError(f"No interaction is left after the step {filtered.steps[-1]['step']!r}; ask for less.")
    return filtered


def _warn_of_copies(number: int) -> None:
    """A row that is there twice makes a target equal to the item before it."""
    if number:
        logger.warning(
            "%d interactions are there before, with the same user, item and time. They are kept, so a target may be "
            "the item before it; `deduplicate` (--deduplicate) keeps the earliest interaction of a user with an item.",
            number,
        )


def _with_text(catalog: pa.Table) -> pa.ChunkedArray:
    return catalog.filter(pc.not_equal(catalog["text"], ""))["item_id"]


def _check_texts(
    catalog: pa.Table,
    filtered: _Filtered,
    fields: Sequence[str],
    *,
    keep_all_items: bool,
    missing_text: MissingText,
) -> None:
    """Counts the items that belong into the catalog and have no text; raises if there must be none."""
    textless = steps.used_items(filtered.engine)
    textless = textless.filter(pc.invert(pc.is_in(textless, value_set=_with_text(catalog))))
    if len(textless):
        textless = steps.in_order_of_appearance(filtered.engine, textless)
    if keep_all_items:
        others = catalog.filter(pc.equal(catalog["text"], ""))["item_id"]
        textless = pc.unique(pa.chunked_array([textless, *others.chunks]))
    if len(textless) and missing_text == "error":
        raise ValueError(
            f"{len(textless)} items have no metadata or an empty text: {first_five(textless)}. Texts are made of "
            f"{first_names(fields)}; the items table has {first_names(catalog.column_names[3:]) or 'nothing else'}. "
            'Name others with `title` or `text_fields`, pass `missing_text="drop"` to drop the interactions of such '
            'items, or pass `missing_text="keep"` to use their ids as texts.'
        )
    if len(textless) and missing_text == "keep":
        logger.warning("%d items have no text; their ids are used as texts.", len(textless))
    filtered.skipped["textless_items"] += len(textless)


def _write_items(
    folder: Path, catalog: pa.Table, engine: Engine, *, keep_all_items: bool, missing_text: MissingText
) -> None:
    """The catalog: the items table's order, items without metadata behind it in order of first appearance."""
    used = steps.used_items(engine)
    if not keep_all_items:
        catalog = catalog.filter(pc.is_in(catalog["item_id"], value_set=used))
    elif missing_text != "keep":
        catalog = catalog.filter(pc.not_equal(catalog["text"], ""))
    absent = used.filter(pc.invert(pc.is_in(used, value_set=catalog["item_id"])))
    if len(absent):
        absent = steps.in_order_of_appearance(engine, absent)
        empty = pa.array([""] * len(absent), pa.string())
        added = pa.table({"item_id": absent, "title": empty, "text": empty})
        catalog = pa.concat_tables([catalog, added], promote_options="default")
    texts = catalog["text"]
    texts = pc.if_else(pc.equal(texts, ""), catalog["item_id"], texts)
    catalog = catalog.set_column(catalog.column_names.index("text"), "text", texts)
    pq.write_table(catalog, folder / "items.parquet", write_page_checksum=True)


def _write_splits(folder: Path, filtered: _Filtered, cold_items: float, times: SplitTimes | None) -> dict[str, Any]:
    """Writes the splits; returns the statistics, steps and sizes for `dataset.json`."""
    engine = filtered.engine
    if times is not None and not steps.has_times(engine):
        raise ValueError("`split_time` needs the times of the interactions, which this log does not have.")
    item_ids = steps.all_items(engine)
    is_cold = _hold_out(folder, engine, item_ids, cold_items)
    rows, users = steps.sorted_rows(engine), steps.sorted_users(engine)
    sizes = write_splits(folder, rows, user_ids=users, item_ids=item_ids, is_cold=is_cold, times=times)
    _warn_of_copies(sizes.num_copies)
    num_trained, num_tested = sizes.num_rows["train"], sizes.num_rows["test"]
    if times is not None and not (num_trained and num_tested):
        raise ValueError(
            f"`split_time` leaves {num_trained} users to train on and {num_tested} to test: choose another."
        )
    filtered.skipped["users_without_evaluation"] = sizes.users_without_evaluation
    if sizes.users_without_evaluation:
        why = "fewer than three interactions" if times is None else "no interaction on both sides of the split time"
        logger.warning("%d users have %s and are not tested.", sizes.users_without_evaluation, why)
    return {
        "statistics": filtered.statistics,
        "steps": filtered.steps,
        "splits": sizes.num_rows,
        "num_train_targets": sizes.num_train_targets,
        "repeat_rate": sizes.num_repeats / max(1, sizes.num_train_targets),
        "cold_items": _count_cold(engine, cold_items, int(is_cold.sum()), sizes) if is_cold.any() else None,
        "split_times": times and times.record() | {"num_unused_interactions": sizes.num_unused},
        "fingerprint": fingerprint_of(folder, sizes.digests),
        "times_fingerprint": times_fingerprint_of(folder, sizes.digests),
    }


def _hold_out(folder: Path, engine: Engine, item_ids: pa.Array, share: float) -> np.ndarray:
    """Which items, by number, are held out of training; they are written down."""
    if not share:
        return np.zeros(len(item_ids), dtype=bool)
    cold = steps.newest_items(engine, share)
    pq.write_table(pa.table({"item_id": cold}), folder / COLD_NAME, write_page_checksum=True)
    return pc.is_in(item_ids, value_set=cold.cast(pa.large_string())).to_numpy(zero_copy_only=False)


def _count_cold(engine: Engine, share: float, num_items: int, sizes: SplitSizes) -> dict[str, Any]:
    """What `dataset.json` says about items held out."""
    has_times = steps.has_times(engine)
    if not has_times:
        logger.warning("The log has no times: the newest items are those that come latest in all histories.")
    return {
        "share": share,
        "newest_by": "time" if has_times else "place in the histories",
        "num_items": num_items,
        "num_train_interactions": sizes.num_cold_interactions,
        "num_train_users": sizes.num_cold_users,
        "num_users_without_training": sizes.users_without_training,
        "num_validation_targets": sizes.num_cold_targets["validation"],
        "num_test_targets": sizes.num_cold_targets["test"],
    }


def _compare(
    rules: Protocol, category: str | None, statistics: dict[str, Any], *, strict: bool
) -> dict[str, Any] | None:
    """Published statistics beside ours."""
    names = ("num_users", "num_items", "num_interactions")
    found = tuple(statistics[name] for name in names)
    if category is None:
        category = next((known for known, sizes in rules.known_statistics.items() if sizes == found), None)
    expected = rules.known_statistics.get(category or "")
    if expected is None:
        if rules.known_statistics:  # a misspelt category would pass for one that was compared
            known = ", ".join(rules.known_statistics)
            story = "Nothing was compared with published statistics of %s: `category` is %r; known: %s."
            logger.warning(story, rules.name, category, known)
        return None
    if expected != found:
        sizes = ["{:,} users, {:,} items, {:,} interactions".format(*numbers) for numbers in (expected, found)]
        story = f"{category} under the protocol {rules.name} has {sizes[0]} as published; found {sizes[1]}."
        if strict:
            raise ValueError(
                f"{story} Use the published files and the protocol's own filters, or call the data something else: "
                'pass `protocol="custom"` or `category=None`. To prepare them all the same, pass `strict=False`.'
            )
        logger.warning("%s", story)
    return {"category": category, "expected": dict(zip(names, expected, strict=True)), "matches": expected == found}
