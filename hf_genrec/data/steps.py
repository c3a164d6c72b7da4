"""
The steps between a log and its splits, as SQL: numbering, counting, filters, order.

Every step reads and replaces the table `log` of an engine (see `engines.py`): `user_number` and `item_number`
(integers in order of first appearance; the tables `users` and `items` say what their ids are), `timestamp`
(milliseconds since the epoch, or null throughout), `position` (the row's place in the source) and maybe `rating`; and
beside it `user_counts` and `item_counts`, the interactions (`number`) of each user and item that has any. The order of
a user's interactions is that of their times, and of their positions where these are equal or missing.

The statements are standard SQL, so that every engine runs the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from hf_genrec.data.engines import Engine


_ORDER = "user_number, timestamp, position"


def number_ids(engine: Engine) -> None:
    """
    Makes `users`, `items` and `log` of the table `source_rows`, which goes.

    Its columns are `user_id`, `item_id` (strings), `timestamp`, `position`, `is_good` (whether the row counts, which
    has both ids then; those of other rows are numbered, too) and maybe `rating`. Args: the engine.
    """
    for name in ("user", "item"):
        seen = (
            f"SELECT {name}_id, min(position) AS first_position, count(CASE WHEN is_good THEN 1 END) AS number "
            f"FROM source_rows GROUP BY {name}_id"
        )
        engine.create(
            f"{name}s",
            f"SELECT {name}_id, CAST(row_number() OVER (ORDER BY first_position) - 1 AS INTEGER) AS {name}_number, "
            f"number FROM ({seen}) AS seen WHERE {name}_id IS NOT NULL",
        )
        engine.create(f"{name}_counts", f"SELECT {name}_number, number FROM {name}s WHERE number > 0")
    rating = ", rating" if "rating" in engine.columns("source_rows") else ""
    engine.create(
        "log",
        f"SELECT user_number, item_number, timestamp, position{rating} FROM source_rows "
        "JOIN users ON users.user_id = source_rows.user_id JOIN items ON items.item_id = source_rows.item_id "
        "WHERE is_good",
    )
    engine.drop("source_rows")


def statistics_of(engine: Engine) -> dict[str, int | float]:
    """
    Distinct users and items, rows, rows per user, and rows per possible pair of user and item. Args: the engine.
    """
    sizes = _row(
        engine,
        "SELECT (SELECT count(*) FROM user_counts) AS num_users, count(*) AS num_items, "
        "CAST(coalesce(sum(number), 0) AS BIGINT) AS num_interactions FROM item_counts",
    )
    num_users, num_items, num_rows = sizes.values()
    return sizes | {"mean_length": num_rows / max(num_users, 1), "density": num_rows / max(num_users * num_items, 1)}


def keep_items(engine: Engine, item_ids: pa.Array) -> None:
    """Drops interactions with all other items. Args: the engine, and ids, each once."""
    _load_ids(engine, item_ids)
    _set_log(engine, "SELECT log.* FROM log JOIN chosen ON chosen.item_number = log.item_number")
    engine.drop("chosen")


def keep_rated(engine: Engine, least: float) -> None:
    """Drops interactions rated lower; the ratings go. Args: the engine, and the least rating."""
    names = ", ".join(name for name in engine.columns("log") if name != "rating")
    _set_log(engine, f"SELECT {names} FROM log WHERE rating >= CAST('{float(least)!r}' AS DOUBLE)")


def has_times(engine: Engine) -> bool:
    """Whether the log has times. Args: the engine."""
    return _row(engine, "SELECT count(timestamp) AS number FROM log")["number"] > 0


def deduplicate(engine: Engine) -> None:
    """Keeps the earliest row of every pair of user and item. Args: the engine."""
    names = ", ".join(engine.columns("log"))
    _set_log(
        engine,
        f"SELECT {names} FROM (SELECT {names}, row_number() OVER (PARTITION BY user_number, item_number "
        "ORDER BY timestamp, position) AS repetition FROM log) AS numbered WHERE repetition = 1",
    )


def k_core(engine: Engine, k: int) -> None:
    """
    Drops users and items with fewer than `k` interactions until none is left to drop.

    Args: the engine, and the least number; with 0 or 1 nothing is dropped.
    """
    if k < 0:
        raise ValueError(f"`k` must be at least 0, got {k}.")
    while _drop_rare(engine, k):
        pass


def drop_short_histories(engine: Engine, min_history: int) -> None:
    """Drops users with fewer than `min_history` items before their last one. Args: the engine, and the least."""
    if min_history < 0:
        raise ValueError(f"`min_history` must be at least 0, got {min_history}.")
    _drop_rare(engine, min_history + 1, names=("user",))


def newest_items(engine: Engine, share: float) -> pa.Array:
    """
    Ids of the items that appeared in a log last, the newest of all last.

    An item is as old as its first interaction. In a log without times its age is its earliest place: the least number
    of items that any user took before it. Of equally old items the one that the log names first is older.

    Args: the engine, and the share of the items; their number is rounded, and may not be 0 or all.
    """
    if not 0 < share < 1:
        raise ValueError(f"`share` must lie between 0 and 1, got {share}.")
    num_items = statistics_of(engine)["num_items"]
    number = round(share * num_items)
    if not 0 < number < num_items:
        raise ValueError(f"`share` must leave items on both sides: {share:g} of {num_items} items are {number}.")
    ages = "SELECT item_number, timestamp AS age FROM log"
    if not has_times(engine):
        ages = "SELECT item_number, row_number() OVER (PARTITION BY user_number ORDER BY position) AS age FROM log"
    oldest = f"SELECT item_number, min(age) AS age FROM ({ages}) AS aged GROUP BY item_number"
    ordered = engine.table(
        f"SELECT item_id FROM items JOIN ({oldest}) AS oldest ON oldest.item_number = items.item_number "
        "ORDER BY age, items.item_number"
    )
    return _ids(ordered.slice(num_items - number)["item_id"])


def used_items(engine: Engine) -> pa.Array:
    """Ids of the items that have an interaction, in the order of their numbers. Args: the engine."""
    query = "SELECT item_id FROM items JOIN item_counts ON item_counts.item_number = items.item_number "
    return _ids(engine.table(f"{query}ORDER BY items.item_number")["item_id"])


def in_order_of_appearance(engine: Engine, item_ids: pa.Array) -> pa.Array:
    """
    Those of some items that have an interaction, as they come in the histories of one user after the other.

    Args: the engine, and ids, each once; few, as each is looked for in the whole log.
    """
    _load_ids(engine, item_ids)
    numbered = (
        f"SELECT item_id, {_ORDER}, row_number() OVER (PARTITION BY log.item_number ORDER BY {_ORDER}) AS repetition "
        "FROM log JOIN chosen ON chosen.item_number = log.item_number"
    )
    found = engine.table(f"SELECT item_id FROM ({numbered}) AS numbered WHERE repetition = 1 ORDER BY {_ORDER}")
    engine.drop("chosen")
    return _ids(found["item_id"])


def all_items(engine: Engine) -> pa.Array:
    """Ids of all items; the place of an id is its number. Args: the engine."""
    return (
        engine.table("SELECT item_id FROM items ORDER BY item_number")["item_id"]
        .cast(pa.large_string())
        .combine_chunks()
    )


def sorted_rows(engine: Engine) -> Iterator[pa.RecordBatch]:
    """
    The log, users in order of first appearance, each with all interactions together and oldest first.

    Args: the engine. Columns are `user_number`, `item_number` and `timestamp`.
    """
    return engine.batches(f"SELECT user_number, item_number, timestamp FROM log ORDER BY {_ORDER}")


def sorted_users(engine: Engine) -> Iterator[pa.RecordBatch]:
    """The users in the order of [`sorted_rows`], each once; the column is `user_id`. Args: the engine."""
    query = "SELECT user_id FROM users JOIN user_counts ON user_counts.user_number = users.user_number "
    return engine.batches(f"{query}ORDER BY users.user_number")


def _set_log(engine: Engine, query: str) -> None:
    """Replaces the log and what is counted of it."""
    engine.create("log", query)
    for name in ("user", "item"):
        counts = f"SELECT {name}_number, count(*) AS number FROM log GROUP BY {name}_number"
        engine.create(f"{name}_counts", counts)


def _drop_rare(engine: Engine, least: int, names: tuple[str, ...] = ("user", "item")) -> bool:
    """Drops the users and items with fewer rows; whether there were any."""
    rare = [f"SELECT {name}_number FROM {name}_counts WHERE number < {least}" for name in names]
    if not any(_row(engine, f"SELECT count(*) AS number FROM ({query}) AS rare")["number"] for query in rare):
        return False
    # The rare ones are few, so what is looked up in them is quick.
    missing = (
        f"NOT EXISTS (SELECT 1 FROM {name}_counts WHERE number < {least} "
        f"AND {name}_counts.{name}_number = log.{name}_number)"
        for name in names
    )
    _set_log(engine, f"SELECT * FROM log WHERE {' AND '.join(missing)}")
    return True


def _load_ids(engine: Engine, item_ids: pa.Array) -> None:
    """The table `chosen` of items: `item_number`, `item_id`; ids that the log does not have are left out."""
    engine.load("wanted", pa.table({"wanted_id": item_ids}).to_reader())
    engine.create("chosen", "SELECT item_number, item_id FROM items JOIN wanted ON wanted_id = item_id")
    engine.drop("wanted")


def _row(engine: Engine, query: str) -> dict[str, Any]:
    return {name: int(value) for name, value in engine.table(query).to_pylist()[0].items()}


def _ids(column: pa.ChunkedArray) -> pa.Array:
    return column.cast(pa.string()).combine_chunks()
