"""
MovieLens-100K, the quick start's data set: from the publisher's files to a prepared folder.

The data belong to the GroupLens research group (Harper and Konstan 2015, https://doi.org/10.1145/2827872): research
use, no redistribution. They are no part of this library; `scripts/fetch_movielens.py` downloads them.
"""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa

from hf_genrec.data.prepare import prepare
from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.data.split_times import SplitTime


TEXT_FIELDS = ("title", "genres", "year")
NUM_USERS, NUM_ITEMS, NUM_INTERACTIONS = 943, 1_682, 100_000
GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
_TITLE = re.compile(r"(?P<title>.*?)\s*\((?P<year>\d{4})\)\s*(\(V\))?\s*")  # "(V)": released on video


def prepare_movielens(
    output_dir: str | os.PathLike[str],
    source: str | os.PathLike[str],
    *,
    cold_items: float = 0.0,
    split_time: SplitTime | None = None,
    overwrite: bool = False,
) -> PreparedDataset:
    """
    Makes the prepared folder of MovieLens-100K: all ratings count, 5-core, leave-last-out.

    The texts are title, genres and year. Many ratings of a user carry the same second; they keep the order of the
    file.

    Args: `source` is the folder that `scripts/fetch_movielens.py` wrote, or GroupLens's `ml-100k` folder or
        `ml-100k.zip`; for the others see [`~prepare.prepare`].
    """
    interactions, items = read_movielens(source)
    found = (len(set(interactions["user_id"].to_pylist())), len(items), interactions.num_rows)
    expected = (NUM_USERS, NUM_ITEMS, NUM_INTERACTIONS)
    if found != expected:
        raise ValueError(f"{source} holds {found} users, items and interactions, expected {expected}: fetch it again.")
    return prepare(
        output_dir,
        interactions=interactions,
        items=items,
        protocol="movielens",
        text_fields=TEXT_FIELDS,
        source="MovieLens-100K",
        cold_items=cold_items,
        split_time=split_time,
        overwrite=overwrite,
    )


def read_movielens(source: str | os.PathLike[str]) -> tuple[pa.Table, list[dict[str, Any]]]:
    """
    Reads the publisher's two files: the log (times in seconds) in the order of the file, and the items.

    Args: see [`prepare_movielens`].
    """
    # `u.data` is tab-separated without a header; `u.item` has bars, is Latin-1 and has one flag per genre.
    columns = zip(*_lines_of(source, "u.data", "\t", 4), strict=True)
    log = dict(zip(("user_id", "item_id", "rating", "timestamp"), columns, strict=True))
    items = []
    for fields in _lines_of(source, "u.item", "|", 5 + len(GENRES)):
        title, year = _title_and_year(fields[1])
        genres = [genre for genre, flag in zip(GENRES, fields[5:], strict=True) if flag == "1" and genre != "unknown"]
        items.append({"item_id": fields[0], "title": title, "genres": genres, "year": year})
    return pa.table({name: pa.array(column, pa.string()) for name, column in log.items()}), items


def _lines_of(source: str | os.PathLike[str], name: str, delimiter: str, num_fields: int) -> list[list[str]]:
    lines = [line.split(delimiter) for line in _text_of(source, name).splitlines()]
    wrong = next((number for number, fields in enumerate(lines, start=1) if len(fields) != num_fields), None)
    if wrong is not None or not lines:
        place = f"line {wrong}" if lines else "empty"
        raise ValueError(f"{source}: {name} is damaged ({place}, expected {num_fields} fields): fetch it again.")
    return lines


def _text_of(source: str | os.PathLike[str], name: str) -> str:
    is_packed = zipfile.is_zipfile(source)
    try:
        root: Any = zipfile.Path(source) if is_packed else Path(source)
        for folder in (root, root / "ml-100k"):
            if (folder / name).is_file():
                return (folder / name).read_text(encoding="latin-1")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        if not is_packed:
            raise
        raise ValueError(f"{source} is a damaged archive ({error}): fetch it again.") from error
    raise FileNotFoundError(
        f"{source} does not hold MovieLens-100K ({name} is missing). Fetch it with "
        f"`python scripts/fetch_movielens.py OUTPUT_FOLDER`, or unpack https://grouplens.org/datasets/movielens/100k/."
    )


def _title_and_year(text: str) -> tuple[str, str]:
    """`"Toy Story (1995)"` in two parts; the film without a name is called "unknown" and has no year."""
    match = _TITLE.fullmatch(text)
    title, year = (match["title"], match["year"]) if match else (text, "")
    return " ".join(title.split()), year
