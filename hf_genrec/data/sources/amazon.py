"""
Amazon Reviews 2014 and 2023 as `datasets` builders, and from there to a prepared folder.

Every configuration is a kind of file and a category, named as on the Hub: `raw_review_All_Beauty`,
`raw_meta_All_Beauty`, `5core_last_out_w_his_All_Beauty` (2023), `reviews_Beauty`, `meta_Beauty` (2014). Columns come
out under the library's names: `user_id`, `item_id`, `rating`, `timestamp` (int64 milliseconds since the epoch), and
for items `item_id`, `title` and the fields of the texts. Files are taken from `data_dir` or fetched from their hosts.

[`prepare_amazon`] runs a builder and hands its table to [`~prepare.prepare`].
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import datasets
import pandas as pd
import pyarrow as pa

from hf_genrec.data.columns import id_string
from hf_genrec.data.items import leaves
from hf_genrec.data.prepare import MissingText, prepare
from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.data.protocols import PROTOCOLS
from hf_genrec.data.steps import Statistics, statistics_of
from hf_genrec.data.text_files import OnError, Skips, TextFile, first_names, parse_json


logger = logging.getLogger(__name__)

CATEGORIES_2014 = (
    "Amazon_Instant_Video", "Apps_for_Android", "Automotive", "Baby", "Beauty", "Books", "CDs_and_Vinyl",
    "Cell_Phones_and_Accessories", "Clothing_Shoes_and_Jewelry", "Digital_Music", "Electronics",
    "Grocery_and_Gourmet_Food", "Health_and_Personal_Care", "Home_and_Kitchen", "Kindle_Store", "Movies_and_TV",
    "Musical_Instruments", "Office_Products", "Patio_Lawn_and_Garden", "Pet_Supplies", "Sports_and_Outdoors",
    "Tools_and_Home_Improvement", "Toys_and_Games", "Video_Games",
)  # fmt: skip
CATEGORIES_2023 = (
    "All_Beauty", "Amazon_Fashion", "Appliances", "Arts_Crafts_and_Sewing", "Automotive", "Baby_Products",
    "Beauty_and_Personal_Care", "Books", "CDs_and_Vinyl", "Cell_Phones_and_Accessories", "Clothing_Shoes_and_Jewelry",
    "Digital_Music", "Electronics", "Gift_Cards", "Grocery_and_Gourmet_Food", "Handmade_Products",
    "Health_and_Household", "Health_and_Personal_Care", "Home_and_Kitchen", "Industrial_and_Scientific",
    "Kindle_Store", "Magazine_Subscriptions", "Movies_and_TV", "Musical_Instruments", "Office_Products",
    "Patio_Lawn_and_Garden", "Pet_Supplies", "Software", "Sports_and_Outdoors", "Subscription_Boxes",
    "Tools_and_Home_Improvement", "Toys_and_Games", "Unknown", "Video_Games",
)  # fmt: skip
BENCHMARKS_2023 = ("rating_only", "last_out", "last_out_w_his", "timestamp", "timestamp_w_his")

_HOST_2014 = "http://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
_HOST_2023 = "https://huggingface.co/datasets/McAuley-Lab/Amazon-Reviews-2023/resolve/main"
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
_SPLIT_FILES = {"train": "train", "validation": "valid", "test": "test"}


@dataclass
class AmazonConfig(datasets.BuilderConfig):
    """One kind of file of one category, both as the files spell them; `on_error` is that of [`~prepare.prepare`]."""

    category: str = ""
    kind: str = ""
    on_error: OnError = "raise"

    def create_config_id(self, config_kwargs: dict[str, Any], custom_features: Any = None) -> str:
        """Names the cache folder (see `datasets.BuilderConfig`); local files that change get a new one."""
        if config_kwargs.get("data_dir"):
            paths = sorted(Path(config_kwargs["data_dir"]).rglob(f"*{self.category}*"))
            stats = [(path.name, path.stat()) for path in paths if path.is_file()]
            stamps = [f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in stats]
            config_kwargs = {**config_kwargs, "files": datasets.fingerprint.Hasher.hash(stamps)}
        return super().create_config_id(config_kwargs, custom_features)


class _AmazonReviews(datasets.ArrowBasedBuilder):
    """What the two years share: local or fetched files, Arrow tables, the check of the statistics."""

    BUILDER_CONFIG_CLASS = AmazonConfig
    year: ClassVar[int]

    def download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        """Builds the data set, then compares its size with the published one; a difference is a warning."""
        try:
            super().download_and_prepare(*args, **kwargs)
        except datasets.exceptions.DatasetGenerationError as error:
            if isinstance(error.__cause__, ValueError):
                raise ValueError(str(error.__cause__)) from error
            raise
        found = self.find_statistics()
        expected = PROTOCOLS[f"amazon{self.year}"].known_statistics.get(self.config.category)
        if found is None or expected is None:
            return
        sizes = (found.num_users, found.num_items, found.num_interactions)
        if sizes != expected:
            logger.warning(
                "%s: published users, items and interactions are %s, found %s.", self.config.name, expected, sizes
            )

    def find_statistics(self) -> Statistics | None:
        """[`Statistics`] over all splits; `None` for metadata and for files that are not 5-core."""
        if self.config.kind != "reviews" and not self.config.kind.startswith("5core_"):
            return None
        tables = [split.data.table.select(["user_id", "item_id"]) for split in self.as_dataset().values()]
        return statistics_of(pa.concat_tables(tables))

    def _find(self, download: Any, places: list[str], url: str) -> str:
        """A local file (as it is or gzipped, in one of the places) or, without `data_dir`, a fetched one."""
        if self.config.data_dir is None:
            return download.download(url)
        folder = Path(self.config.data_dir)
        for place in places:
            for path in (folder / place, folder / f"{place}.gz"):
                if path.is_file():
                    return str(path)
        raise FileNotFoundError(f"{folder} has none of {', '.join(places)} (plain or .gz).")

    def _generate_tables(self, path: str) -> Iterator[tuple[int, pa.Table]]:
        records = _records(path, self.config.kind, self.config.on_error)
        for number in itertools.count():
            batch = list(itertools.islice(records, _BATCH))
            if batch or number == 0:
                yield number, pa.Table.from_pylist(batch, schema=self.info.features.arrow_schema)
            if len(batch) < _BATCH:
                return


class AmazonReviews2014(_AmazonReviews):
    """
    Amazon Reviews 2014: the 5-core reviews and the metadata of one category.

    Configurations are `reviews_X` (`user_id`, `item_id`, `rating`, `timestamp`) and `meta_X` (`item_id`, `title`,
    `categories`, `description`, `brand`, `price`). `data_dir` holds `reviews_X_5.json` and `meta_X.json`, plain or
    gzipped. Everything is in the split `train`, which here means: not split.

    Source: McAuley et al. 2015 (https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html).
    """

    year = 2014
    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIGS = [
        AmazonConfig(name=f"{kind}_{category}", version=datasets.Version("1.0.0"), category=category, kind=kind)
        for kind in ("reviews", "meta")
        for category in CATEGORIES_2014
    ]

    def _info(self) -> datasets.DatasetInfo:
        columns = _INTERACTION if self.config.kind == "reviews" else _ITEM_2014
        return datasets.DatasetInfo(features=datasets.Features(columns))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        category = self.config.category
        name = f"reviews_{category}_5.json" if self.config.kind == "reviews" else f"meta_{category}.json"
        path = self._find(dl_manager, [name], f"{_HOST_2014}/{name}.gz")
        return [datasets.SplitGenerator(name="train", gen_kwargs={"path": path})]


class AmazonReviews2023(_AmazonReviews):
    """
    Amazon Reviews 2023: raw reviews, raw metadata and the 5-core benchmark files of one category.

    Configurations are `raw_review_X`, `raw_meta_X` and `5core_KIND_X` with `rating_only`, `last_out`,
    `last_out_w_his`, `timestamp` and `timestamp_w_his`; `w_his` ones have the column `history` (item ids,
    oldest first). Items are parent products (`parent_asin`). The benchmark has the splits of its
    files; `rating_only` and the raw files are in `train`, which there means: not split. `data_dir` holds the
    files directly or in the folders of the Hub repository.

    Source: Hou et al. 2024 (https://huggingface.co/datasets/McAuley-Lab/Amazon-Reviews-2023).
    """

    year = 2023
    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIGS = [
        AmazonConfig(name=f"{kind}_{category}", version=datasets.Version("1.0.0"), category=category, kind=kind)
        for kind in ("raw_review", "raw_meta", *(f"5core_{benchmark}" for benchmark in BENCHMARKS_2023))
        for category in CATEGORIES_2023
    ]

    def _info(self) -> datasets.DatasetInfo:
        columns = dict(_ITEM_2023 if self.config.kind == "raw_meta" else _INTERACTION)
        if self.config.kind.endswith("_w_his"):
            columns["history"] = _STRINGS
        return datasets.DatasetInfo(features=datasets.Features(columns))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        category, kind = self.config.category, self.config.kind
        if kind == "raw_review":
            places = {"train": ("raw/review_categories", f"{category}.jsonl")}
        elif kind == "raw_meta":
            places = {"train": ("raw/meta_categories", f"meta_{category}.jsonl")}
        else:
            folder = f"benchmark/{kind.replace('_', '/', 1)}"
            files = _SPLIT_FILES.items() if kind != "5core_rating_only" else [("train", None)]
            places = {split: (folder, f"{category}{f'.{file}' if file else ''}.csv") for split, file in files}
        generators = []
        for split, (folder, name) in places.items():
            flat = f"{folder.replace('/', '_')}/{name}"
            local = [f"{folder}/{name}", f"{folder.removeprefix('benchmark/')}/{name}", flat, name]
            path = self._find(dl_manager, local, f"{_HOST_2023}/{folder}/{name}")
            generators.append(datasets.SplitGenerator(name=split, gen_kwargs={"path": path}))
        return generators


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
    builder = AmazonReviews2014 if year == 2014 else AmazonReviews2023
    categories = CATEGORIES_2014 if year == 2014 else CATEGORIES_2023
    if category not in categories:
        raise ValueError(f"`category` must be one of {', '.join(categories)}, got {category!r}.")
    kinds = ("reviews", "meta") if year == 2014 else (f"5core_{benchmark}" if benchmark else "raw_review", "raw_meta")
    folders = {"data_dir": data_dir and str(data_dir), "cache_dir": cache_dir and str(cache_dir)}
    builders = [builder(config_name=f"{kind}_{category}", on_error=on_error, **folders) for kind in kinds]
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


def _records(path: str, kind: str, on_error: OnError) -> Iterator[dict[str, Any]]:
    """The rows of a file with one record per line."""
    parse, row = _PARSERS.get(kind, (None, _benchmark_row))
    file = TextFile(path, delimiter="," if parse is None else None, parse=parse)
    missing = [name for name in ("user_id", "parent_asin", "rating", "timestamp") if name not in file.header]
    if parse is None and missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}; it has {first_names(file.header)}.")
    skips = Skips(on_error)
    for record in file.records():
        try:
            if record.values is None:
                raise ValueError(record.error)
            values = row(record.values)
        except ValueError as error:
            skips.add(record.shown, str(error))
        else:
            yield values
    skips.report(path)


def _review_2014(record: Mapping[str, Any]) -> dict[str, Any]:
    values = _row(record, _INTERACTION, {"user_id": "reviewerID", "item_id": "asin", "rating": "overall",
                                         "timestamp": "unixReviewTime"})  # fmt: skip
    return values | {"timestamp": 1000 * values["timestamp"]}


def _item_2014(record: Mapping[str, Any]) -> dict[str, Any]:
    categories = record.get("categories")
    if isinstance(categories, list) and not all(isinstance(path, list) for path in categories):
        record = {**record, "categories": [categories]}  # one path
    return _row(record, _ITEM_2014, {"item_id": "asin"})


def _review_2023(record: Mapping[str, Any]) -> dict[str, Any]:
    return _row(record, _INTERACTION, {"item_id": "parent_asin"})


def _benchmark_row(record: Mapping[str, Any]) -> dict[str, Any]:
    row = _review_2023(record)
    return row | {"history": record["history"].split()} if "history" in record else row


def _item_2023(record: Mapping[str, Any]) -> dict[str, Any]:
    """The raw files have numbers and mappings where the Hub's own view has the string `'None'` and JSON."""
    price, details = record.get("price"), record.get("details")
    details = json.dumps(details, ensure_ascii=False) if isinstance(details, dict | list) else details
    record = {**record, "price": None if price in (None, "None") else str(price), "details": details}
    return _row(record, _ITEM_2023, {"item_id": "parent_asin"})


def _row(record: Mapping[str, Any], columns: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a record in the types of the columns; an item needs its id only, an interaction everything."""
    required = columns if columns is _INTERACTION else ("item_id",)
    row = {}
    for column, kind in columns.items():
        name = names.get(column, column)
        value = record.get(name)
        if column in ("user_id", "item_id"):
            value = id_string(value)
        if value is None and column in required:
            raise ValueError(f"there is no {name!r}")
        row[column] = None if value is None else _converted(value, kind, name)
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


_PARSERS: dict[str, tuple[Callable[[str], Any], Callable[[Mapping[str, Any]], dict[str, Any]]]] = {
    "reviews": (parse_json, _review_2014),
    "meta": (_parse_literal, _item_2014),
    "raw_review": (parse_json, _review_2023),
    "raw_meta": (parse_json, _item_2023),
}
