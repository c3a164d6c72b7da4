"""
Amazon Reviews 2014 and 2023 as a `datasets` builder, and from there to a prepared folder.

A configuration is a kind of file and a category, named as on the Hub: `raw_review_All_Beauty`, `raw_meta_All_Beauty`,
`5core_last_out_w_his_All_Beauty` (2023), `reviews_Beauty`, `meta_Beauty` (2014). Files are taken from `data_dir` or
fetched from their hosts. [`prepare_amazon`] runs the builder and hands its tables to [`~prepare.prepare`].
"""

from __future__ import annotations

import itertools
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
import pandas as pd
import pyarrow as pa

from hf_genrec.data.columns import id_string
from hf_genrec.data.items import leaves
from hf_genrec.data.prepare import MissingText, prepare
from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.data.split_times import SplitTime
from hf_genrec.data.text_files import OnError, Skips, TextFile, parse_json


_CATEGORIES = {
    2014: (
        "Amazon_Instant_Video", "Apps_for_Android", "Automotive", "Baby", "Beauty", "Books", "CDs_and_Vinyl",
        "Cell_Phones_and_Accessories", "Clothing_Shoes_and_Jewelry", "Digital_Music", "Electronics",
        "Grocery_and_Gourmet_Food", "Health_and_Personal_Care", "Home_and_Kitchen", "Kindle_Store", "Movies_and_TV",
        "Musical_Instruments", "Office_Products", "Patio_Lawn_and_Garden", "Pet_Supplies", "Sports_and_Outdoors",
        "Tools_and_Home_Improvement", "Toys_and_Games", "Video_Games",
    ),
    2023: (
        "All_Beauty", "Amazon_Fashion", "Appliances", "Arts_Crafts_and_Sewing", "Automotive", "Baby_Products",
        "Beauty_and_Personal_Care", "Books", "CDs_and_Vinyl", "Cell_Phones_and_Accessories",
        "Clothing_Shoes_and_Jewelry", "Digital_Music", "Electronics", "Gift_Cards", "Grocery_and_Gourmet_Food",
        "Handmade_Products",
        "Health_and_Household", "Health_and_Personal_Care", "Home_and_Kitchen", "Industrial_and_Scientific",
        "Kindle_Store", "Magazine_Subscriptions", "Movies_and_TV", "Musical_Instruments", "Office_Products",
        "Patio_Lawn_and_Garden", "Pet_Supplies", "Software", "Sports_and_Outdoors", "Subscription_Boxes",
        "Tools_and_Home_Improvement", "Toys_and_Games", "Unknown", "Video_Games",
    ),
}  # fmt: skip

_HOST_2014 = "http://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
_HOST_2023 = "https://huggingface.co/datasets/McAuley-Lab/Amazon-Reviews-2023/resolve/main"
_BENCHMARKS = ("rating_only", "last_out", "last_out_w_his", "timestamp", "timestamp_w_his")
# Each kind of file: its year, and its place below the host (2014: in one folder).
_FILES = {
    "reviews": (2014, "reviews_{category}_5.json"),
    "meta": (2014, "meta_{category}.json"),
    "raw_review": (2023, "raw/review_categories/{category}.jsonl"),
    "raw_meta": (2023, "raw/meta_categories/meta_{category}.jsonl"),
    "5core_rating_only": (2023, "benchmark/5core/rating_only/{category}.csv"),
} | {f"5core_{name}": (2023, f"benchmark/5core/{name}/{{category}}.{{split}}.csv") for name in _BENCHMARKS[1:]}
_SHOWN = 200  # characters of a value in a message
_BATCH = 10_000  # records per Arrow table
_STRING, _FLOAT, _INTEGER = (datasets.Value(name) for name in ("string", "float64", "int64"))
_STRINGS = datasets.List(_STRING)
_INTERACTION = {"user_id": _STRING, "item_id": _STRING, "rating": _FLOAT, "timestamp": _INTEGER}
_ITEM_2014 = {
    "item_id": _STRING, "title": _STRING, "categories": datasets.List(_STRINGS), "description": _STRING,
    "brand": _STRING, "price": _FLOAT,
}  # fmt: skip
_ITEM_2023 = {
    "item_id": _STRING, "title": _STRING, "features": _STRINGS, "categories": _STRINGS, "description": _STRINGS,
    "main_category": _STRING, "store": _STRING, "price": _STRING, "average_rating": _FLOAT, "rating_number": _INTEGER,
    "details": _STRING,
}  # fmt: skip
# Columns whose fields have other names in the files.
_FIELDS = {
    "reviews": {"user_id": "reviewerID", "item_id": "asin", "rating": "overall", "timestamp": "unixReviewTime"},
    "meta": {"item_id": "asin"},
}
_FIELDS_2023 = {"item_id": "parent_asin"}


@dataclass
class AmazonConfig(datasets.BuilderConfig):
    """A kind of file and a category, by their `name`; `on_error` is that of [`~prepare.prepare`]."""

    on_error: OnError = "raise"

    def __post_init__(self) -> None:
        super().__post_init__()
        kinds = [kind for kind in _FILES if self.name.startswith(f"{kind}_")]
        if not kinds:
            raise ValueError(
                f"`config_name` must be KIND_CATEGORY with a KIND of {', '.join(_FILES)}, got {self.name!r}."
            )
        self.kind = max(kinds, key=len)
        self.year, self.category = _FILES[self.kind][0], self.name.removeprefix(f"{self.kind}_")
        if self.category not in _CATEGORIES[self.year]:
            known = ", ".join(_CATEGORIES[self.year])
            raise ValueError(f"`category` must be one of {known}, got {self.category!r}.")

    def create_config_id(self, config_kwargs: dict[str, Any], custom_features: Any = None) -> str:
        """Names the cache folder (see `datasets.BuilderConfig`); local files that change get a new one."""
        if config_kwargs.get("data_dir"):
            paths = sorted(Path(config_kwargs["data_dir"]).rglob(f"*{self.category}*"))
            stats = [(path.name, path.stat()) for path in paths if path.is_file()]
            stamps = [f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in stats]
            config_kwargs = {**config_kwargs, "files": datasets.fingerprint.Hasher.hash(stamps)}
        return super().create_config_id(config_kwargs, custom_features)


class AmazonReviews(datasets.ArrowBasedBuilder):
    """
    Amazon Reviews of one category, under the library's names of columns.

    Interactions (`reviews`, `raw_review`, `5core_...`) have `user_id`, `item_id`, `rating`, `timestamp` (int64,
    milliseconds since the epoch) and, in kinds with `w_his`, `history` (item ids, oldest first); items (`meta`,
    `raw_meta`) have `item_id`, `title` and the other fields of the files. Items of 2023 are parent products. The
    benchmark has the splits of its files; all else is in `train`, which there means: not split. `data_dir` holds the
    files, plain or gzipped, directly or in the folders of the Hub repository.

    Source: McAuley et al. 2015 (https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html), Hou et al. 2024
    (https://huggingface.co/datasets/McAuley-Lab/Amazon-Reviews-2023).
    """

    BUILDER_CONFIG_CLASS = AmazonConfig
    VERSION = datasets.Version("1.0.0")

    def download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        """As in `datasets`; a malformed line is a `ValueError`."""
        try:
            super().download_and_prepare(*args, **kwargs)
        except datasets.exceptions.DatasetGenerationError as error:
            if isinstance(error.__cause__, ValueError):
                raise ValueError(str(error.__cause__)) from error
            raise

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=datasets.Features(_columns_of(self.config.kind)))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        place = _FILES[self.config.kind][1]
        splits = {"train": "train", "validation": "valid", "test": "test"} if "{split}" in place else {"train": ""}
        files = {name: place.format(category=self.config.category, split=part) for name, part in splits.items()}
        return [
            datasets.SplitGenerator(name=name, gen_kwargs={"path": self._find(dl_manager, file)})
            for name, file in files.items()
        ]

    def _find(self, download: Any, place: str) -> str:
        """A local file (as it is or gzipped, in one of the usual places) or, without `data_dir`, a fetched one."""
        if self.config.data_dir is None:
            is_old = self.config.year == 2014
            return download.download(f"{_HOST_2014}/{place}.gz" if is_old else f"{_HOST_2023}/{place}")
        folder, (parent, _, name) = Path(self.config.data_dir), place.rpartition("/")
        places = [place, place.removeprefix("benchmark/"), f"{parent.replace('/', '_')}/{name}", name]
        for path in (folder / f"{local}{ending}" for local in places for ending in ("", ".gz")):
            if path.is_file():
                return str(path)
        raise FileNotFoundError(f"{folder} has none of {', '.join(dict.fromkeys(places))} (plain or .gz).")

    def _generate_tables(self, path: str) -> Iterator[tuple[int, pa.Table]]:
        records = _records(path, self.config.kind, self.config.on_error)
        for number in itertools.count():
            batch = list(itertools.islice(records, _BATCH))
            if batch or number == 0:
                yield number, pa.Table.from_pylist(batch, schema=self.info.features.arrow_schema)
            if len(batch) < _BATCH:
                return


def prepare_amazon(
    output_dir: str | os.PathLike[str],
    *,
    year: Literal[2014, 2023],
    category: str,
    data_dir: str | os.PathLike[str] | None = None,
    benchmark: Literal["rating_only", "last_out", "last_out_w_his"] | None = "last_out_w_his",
    cache_dir: str | os.PathLike[str] | None = None,
    missing_text: MissingText = "error",
    on_error: OnError = "raise",
    strict: bool = True,
    cold_items: float = 0.0,
    split_time: SplitTime | None = None,
    overwrite: bool = False,
) -> PreparedDataset:
    """
    Makes the prepared folder of one category, under the protocol of its year.

    Args: `data_dir` has the files, `None` fetches them; `benchmark` names the 5-core files of 2023 to start from (the
        default is the Latte paper's, `None` is the raw reviews); `cache_dir` is where `datasets` keeps what it built;
        for the others see [`~prepare.prepare`].
    """
    if year not in (2014, 2023):
        raise ValueError(f"`year` must be 2014 or 2023, got {year!r}.")
    if benchmark not in (None, "rating_only", "last_out", "last_out_w_his"):
        raise ValueError(f"`benchmark` must be rating_only, last_out, last_out_w_his or None, got {benchmark!r}.")
    kinds = ("reviews", "meta") if year == 2014 else (f"5core_{benchmark}" if benchmark else "raw_review", "raw_meta")
    folders = {"data_dir": data_dir and str(data_dir), "cache_dir": cache_dir and str(cache_dir)}
    builders = [AmazonReviews(config_name=f"{kind}_{category}", on_error=on_error, **folders) for kind in kinds]
    for one in builders:
        one.download_and_prepare()
    log, items = (one.as_dataset() for one in builders)
    return prepare(
        output_dir,
        interactions=_interactions_of(log),
        items=items["train"].data.table,
        protocol=f"amazon{year}",
        category=category,
        missing_text=missing_text,
        on_error=on_error,
        source=f"Amazon Reviews {year}, {category}, {kinds[0]}",
        strict=strict,
        cold_items=cold_items,
        split_time=split_time,
        overwrite=overwrite,
    )


def _interactions_of(built: datasets.DatasetDict) -> pa.Table:
    """All rows as one log; with histories, a user's sequence is the longest history and its target: the test row."""
    rows = pa.concat_tables([split.data.table.select(list(_INTERACTION)) for split in built.values()])
    if "history" not in built["train"].column_names:
        return rows
    test = built["test"].to_pandas()
    sequences = pd.DataFrame(
        {
            "user_id": test["user_id"],
            "item_id": [[*history, target] for history, target in zip(test["history"], test["item_id"], strict=True)],
        }
    )
    exploded = sequences.explode("item_id", ignore_index=True)
    times = rows.to_pandas().drop_duplicates(["user_id", "item_id"])
    merged = exploded.merge(times, on=["user_id", "item_id"], how="left", validate="many_to_one")
    missing = int(merged["timestamp"].isna().sum())
    if missing:
        raise ValueError(f"{missing} items of the test rows' histories have no row of their own.")
    return pa.Table.from_pandas(merged.astype({"timestamp": "int64"}), preserve_index=False)


def _columns_of(kind: str) -> dict[str, Any]:
    columns: dict[str, Any] = {"meta": _ITEM_2014, "raw_meta": _ITEM_2023}.get(kind, _INTERACTION)
    return columns | {"history": _STRINGS} if kind.endswith("_w_his") else columns


def _records(path: str, kind: str, on_error: OnError) -> Iterator[dict[str, Any]]:
    """The rows of a file with one record per line."""
    is_csv = kind.startswith("5core_")
    file = TextFile(path, delimiter="," if is_csv else None, parse=_parse_literal if kind == "meta" else None)
    skips = Skips(on_error)
    for record in file.records():
        try:
            if record.values is None:
                raise ValueError(record.error)
            values = _row(record.values, kind)
        except ValueError as error:
            skips.add(record.shown, str(error))
        else:
            yield values
    skips.report(path)


def _row(record: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The fields of a record in the types of the columns; an item needs its id only, an interaction everything."""
    row: dict[str, Any] = {}
    for column, of_type in _columns_of(kind).items():
        name = _FIELDS.get(kind, _FIELDS_2023).get(column, column)
        value = record.get(name)
        if column in ("user_id", "item_id"):
            value = id_string(value)
        elif column == "history" and isinstance(value, str):
            value = value.split()
        elif column == "categories" and kind == "meta" and isinstance(value, list):
            value = value if all(isinstance(path, list) for path in value) else [value]  # one path
        elif column == "details" and isinstance(value, dict | list):  # as the Hub's own view has it
            value = json.dumps(value, ensure_ascii=False)
        elif column == "price" and value == "None":  # as the Hub's own view has a missing one
            value = None
        if value is None and (column in _INTERACTION):
            raise ValueError(f"there is no {name!r}")
        row[column] = None if value is None else _converted(value, of_type, name)
    if kind == "reviews":
        row["timestamp"] *= 1000
    return row


def _converted(value: Any, kind: Any, name: str) -> Any:
    if isinstance(kind, datasets.List):
        values = value if isinstance(value, list) else [value]
        return [_converted(inner, kind.feature, name) for inner in values if inner is not None]
    if kind == _STRING:
        return " ".join(leaves(value))
    try:
        number = float(value)
        if kind == _FLOAT or abs(number) < 2**53:
            return number if kind == _FLOAT else int(number)
    except (ValueError, TypeError, OverflowError):
        pass
    raise ValueError(f"{name!r} is {str(value)[:_SHOWN]!r}, expected is a number")


def _parse_literal(text: str) -> Any:
    """A Python literal, as the metadata of 2014 are written, or JSON; nothing is ever run."""
    try:
        return parse_json(text)
    except ValueError:
        return parse_json(_LITERAL.sub(_as_json, text))


# Strings and words of Python. A string that nothing closes is one, too: else each quotation mark in it would be tried.
_LITERAL = re.compile(
    r"""[uU]?'(?P<single>(?:[^'\\]|\\.)*+)(?P<end>'?)|[uU]?"(?P<double>(?:[^"\\]|\\.)*+)(?P<stop>"?)"""
    r"""|\b(?:True|False|None)\b"""
)


def _as_json(found: re.Match[str]) -> str:
    """A string or a word of Python in JSON."""
    text = found["single"] if found["single"] is not None else found["double"]
    if text is None:
        return {"True": "true", "False": "false", "None": "null"}[found[0]]
    if not (found["end"] or found["stop"]):
        raise ValueError("a string that nothing closes")
    if "\\" in text:
        try:
            with warnings.catch_warnings(action="ignore"):  # "\/" is no escape, and stays as it is
                text = text.encode("latin-1", "backslashreplace").decode("unicode_escape")
        except UnicodeDecodeError as error:
            raise ValueError(f"a string cannot be read: {error.reason}") from error
    return json.dumps(text)
