"""
The versions of a catalog on disk: files of added rows beside the weights, and `catalog/versions.json`, written last.

    catalog/rows-000002.parquet   items that version 2 added: item_id, codes, title, ..., and vectors of a dense head
    catalog/versions.json         what each version added, closed and opened, digests of all files and of itself

What is there is never changed: a process that is killed leaves the version before whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from transformers.utils.hub import cached_file

from hf_genrec.files import read_table, write_table, write_text
from hf_genrec.modeling.genrec_lists import VERSIONS_FILE, digest_of, read_versions


try:
    import fcntl
except ImportError:  # Windows: two processes that change one folder are not kept apart
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True)
class CatalogVersion:
    """
    One state of a catalog.

    Attributes:
        number (`int`): From 1, the catalog of training.
        parent (`int`): The version that it was made from; 0 for the first one.
        time (`str`): When, in UTC.
        num_items (`int`): Items that may be recommended.
        num_added (`int`): Items that may be recommended and could not be in the version before.
        num_removed (`int`): Items that may not be any more.
        fingerprint (`str`): Of the ids and semantic IDs of these items; equal for equal catalogs.
    """

    number: int
    parent: int
    time: str
    num_items: int
    num_added: int
    num_removed: int
    fingerprint: str


@dataclass(frozen=True)
class VersionRecord:
    """A version and how it differs from the one before: rows, and which of them were closed or opened (ranges)."""

    version: CatalogVersion
    num_rows: int
    closed: str = ""
    opened: str = ""

    def to_json(self) -> dict[str, Any]:
        """What stands in the file."""
        changes = {"num_rows": self.num_rows, "closed": self.closed, "opened": self.opened}
        return asdict(self.version) | changes

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> VersionRecord:
        """What `to_json` gave."""
        entry = dict(entry)
        changes = {name: entry.pop(name) for name in ("num_rows", "closed", "opened")}
        return cls(CatalogVersion(**entry), **changes)


@dataclass(frozen=True)
class StoredCatalog:
    """What a folder says: the items of the weights, all versions, the added rows in order, digests of their files."""

    base: dict[str, Any]
    records: tuple[VersionRecord, ...]
    tables: tuple[pa.Table, ...]
    files: dict[str, str]


def read_catalog(source: str | os.PathLike[str], where: dict[str, Any]) -> StoredCatalog | None:
    """
    The versions of a folder or repository; `None` if its catalog never changed.

    Args:
        source (`str` or `Path`): The folder or the name of the repository.
        where (`dict`): `revision`, `cache_dir`, ... as in `transformers.utils.cached_file`.
    """
    kinds = ("missing_entries", "gated_repo", "connection_errors")
    quiet = {f"_raise_exceptions_for_{kind}": False for kind in kinds}
    path = cached_file(os.fspath(source), VERSIONS_FILE, **where, **quiet)
    if path is None:
        return None
    content = read_versions(path)
    tables = []
    for name, digest in content["files"].items():
        file = str(cached_file(os.fspath(source), f"catalog/{name}", **where))
        found = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        if found != digest:
            raise ValueError(
                f"{file} is not the file that was saved: its SHA-256 begins with {found[:12]}, {path} records "
                f"{digest[:12]}. Fetch the folder again."
            )
        tables.append(read_table(file))
    records = tuple(VersionRecord.from_json(entry) for entry in content["versions"])
    return StoredCatalog(content["base"], records, tuple(tables), content["files"])


def write_version(
    folder: str | os.PathLike[str],
    base: dict[str, Any],
    records: Sequence[VersionRecord],
    *,
    closed: str,
    rows: pa.Table | None,
    files: dict[str, str],
) -> dict[str, str]:
    """
    Write the last of some versions; returns the digests of all files of rows.

    Args:
        folder (`str` or `Path`): The run folder.
        base (`dict`): Number and fingerprints of the items of the weights.
        records (`list`): All versions.
        closed (`str`): The rows that are closed in the last one, for loaders that read no more than this.
        rows (`pa.Table`, *optional*): The items that it adds.
        files (`dict[str, str]`): Digests of the files before.
    """
    number = records[-1].version.number
    path = Path(folder) / VERSIONS_FILE
    if rows is not None:
        name = f"rows-{number:06d}.parquet"
        write_table(rows, path.parent / name)
        files = files | {name: hashlib.sha256((path.parent / name).read_bytes()).hexdigest()}
    content = {"base": base, "current": number, "num_rows": records[-1].num_rows, "closed": closed, "files": files}
    versions = [record.to_json() for record in records]
    whole = json.dumps({"digest": digest_of(content | {"versions": versions}), **content, "versions": 0})
    lines = ",\n".join(json.dumps(entry) for entry in versions)
    write_text(whole.removesuffix("0}") + f"[\n{lines}\n]}}\n", path)
    return files


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """
    While the block runs no other process changes the catalog of a folder.

    Args:
        folder (`str` or `Path`): The run folder.
    """
    catalog = (Path(folder) / VERSIONS_FILE).parent
    catalog.mkdir(exist_ok=True)
    if fcntl is None:
        yield
        return
    descriptor = os.open(catalog, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def current_number(folder: str | os.PathLike[str]) -> int:
    """
    The version that a folder holds; 1 where its catalog never changed.

    Args:
        folder (`str` or `Path`): The run folder.
    """
    path = Path(folder) / VERSIONS_FILE
    return int(read_versions(path)["current"]) if path.is_file() else 1
