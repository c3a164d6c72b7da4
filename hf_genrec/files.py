"""
Files and folders that a reader sees whole or not at all, errors of damaged ones, and long lists of names as a line.

What replaces something is written into a hidden folder beside it, `.partial-NAME-...`, synced to the disk, and put in
place in one step. Hidden folders of killed processes are removed by the next one that writes there: a living process
holds a lock on its own. A run folder, which grows for hours, has one writer at a time.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import pyarrow as pa

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, and nothing that was left behind removed
    fcntl = None  # type: ignore[assignment]

_PARTIAL, _OLD = ".partial-", ".old-"
_UMASK = os.umask(0)  # it can only be read by setting it
os.umask(_UMASK)
_LOCK_NAME = ".writer.lock"
_WRITERS: dict[Path, int] = {}  # of this process: folder to thread
_YOUNG = 60  # seconds in which a hidden folder without a lock may be one that is just being made
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of linux/fs.h


class DamagedFileError(ValueError):
    """A file is not what it must be: the message names the file, what was expected, what was found and the remedy."""


@contextmanager
def reading(path: str | os.PathLike[str], kind: str, *, keeps: type[Exception] | None = None) -> Iterator[None]:
    """
    Turn whatever a library raises over the bytes of a file into a [`DamagedFileError`]; errors of the system and of
    the connection stay.

    Args: the file or folder, and what it must be, for the message; a class of errors, not of its subclasses, that say
        enough and stay as they are.
    """
    try:
        yield
    except Exception as error:  # each format's library has kinds of its own, tokenizers raises the bare class
        from huggingface_hub.errors import HTTPError  # a second to import, and only needed here

        is_of_system = isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError)
        if is_of_system or isinstance(error, HTTPError) or isinstance(error, DamagedFileError) or type(error) is keeps:
            raise
        found = (str(error) or type(error).__name__).rstrip(".")
        raise DamagedFileError(
            f"{os.fspath(path)} is no readable {kind}: {found}. Write or fetch it again."
        ) from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """What a JSON file holds. Args: see [`read_table`]."""
    with reading(path, "JSON file"):
        return json.loads(Path(path).read_text(encoding="utf-8"))


def read_table(path: str | os.PathLike[str], columns: Sequence[str] | None = None) -> pa.Table:
    """
    What a Parquet file holds, its pages compared with their checksums where it has any.

    Args: the file, a [`DamagedFileError`] if it is none or damaged; the columns to read, which it must have.
    """
    import pyarrow.parquet as pq

    with reading(path, "Parquet file"):
        table = pq.read_table(path, columns=columns, page_checksum_verification=True)
        return table if columns is None else table.select(columns)


def write_table(table: pa.Table, path: str | os.PathLike[str], *, compression: str = "snappy") -> None:
    """
    Write a Parquet file with a checksum per page; `compression` may also be `"zstd"` or `"none"`.

    Args: see [`replaced`].
    """
    import pyarrow.parquet as pq

    with replaced(path) as partial:
        pq.write_table(table, partial, write_page_checksum=True, compression=compression)


@contextmanager
def replaced(path: str | os.PathLike[str]) -> Iterator[Path]:
    """
    A file to write that takes the place of another when the block ends; after an error the old one is left as it was.

    What comes is the path to write to, a file of the same name in a hidden folder beside it.

    Args: the file, existing or not; its folder is created where it is missing.
    """
    target = Path(path)
    with hidden_folder(target) as folder:  # same disk, so a plain rename
        partial = folder / target.name
        yield partial
        _sync(partial)
        partial.replace(target)
        _sync(target.parent)


def write_text(text: str, path: str | os.PathLike[str]) -> None:
    """Write a text in UTF-8. Args: see [`replaced`]."""
    with replaced(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(content: Any, path: str | os.PathLike[str]) -> None:
    """Write JSON for people to read. NaN and infinity, which it lacks, are an error. Args: see [`replaced`]."""
    write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", path)


@contextmanager
def hidden_folder(target: str | os.PathLike[str]) -> Iterator[Path]:
    """
    A hidden folder to write in, beside what will be replaced and on the same disk; removed when the block ends.

    Args: what will be replaced; its parent is created where it is missing.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_behind(target.parent)
    folder = target.parent / f"{_PARTIAL}{target.name}-{secrets.token_hex(4)}"
    folder.mkdir()
    lock = _lock(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def put_in_place(fresh: Path, target: Path) -> None:
    """
    Let a folder take the place of another, for good: its files are synced first. What `target` held is removed.

    Linux exchanges both in one step (`renameat2`). Elsewhere there is a moment between two renames; if the process
    ends there, [`restored`] brings the old folder back.

    Args: a folder on the same disk, as of [`hidden_folder`]; the folder to replace, existing or not.
    """
    _sync_tree(fresh)
    if not target.exists():
        fresh.rename(target)
    elif not _exchange(fresh, target):
        old = target.with_name(f"{_OLD}{target.name}")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        fresh.rename(target)
        shutil.rmtree(old)
    _sync(target.parent)


def restored(target: str | os.PathLike[str]) -> Path:
    """A folder, brought back if a process was killed while it replaced it, see [`put_in_place`]. Args: the folder."""
    target = Path(target)
    old = target.with_name(f"{_OLD}{target.name}") if target.name else target
    if not target.exists() and old.is_dir():
        old.rename(target)
    return target


@contextmanager
def updated_folder(target: str | os.PathLike[str], *, dropped: Collection[str] = ()) -> Iterator[Path]:
    """
    A hidden folder whose files take the place of those of `target` when the block ends; its other files stay.

    A reader, and whoever comes after a kill, finds all new files or none of them, except where the folder cannot be
    exchanged as one: a mount point, the folder that the process works in, a parent that may not be written to, a disk
    without hard links. Files are moved one by one then, weights last.

    Args: the folder, created where it is missing, and names of its files and folders that go.
    """
    target = restored(os.path.realpath(target))
    parent = next(folder for folder in target.parents if folder.exists())
    is_whole = (
        os.access(parent, os.W_OK)
        and not os.path.ismount(target)
        and target not in (Path.cwd(), *Path.cwd().parents)  # a shell would be left in a folder that is gone
    )
    with hidden_folder(target if is_whole else target / "files") as fresh:
        yield fresh
        names = sorted(os.listdir(fresh), key=lambda name: name.endswith(".safetensors"))
        if is_whole and _link_others(target, fresh, dropped):
            put_in_place(fresh, target)
        else:
            _sync_tree(fresh)
            _move_one_by_one(fresh, target, names, dropped)


@contextmanager
def single_writer(folder: str | os.PathLike[str]) -> Iterator[None]:
    """
    A block in which this thread alone writes a run folder; the files of two runs would mix. Blocks may be nested.

    The system holds the lock and frees it when the process ends, however it ends. Of the processes of one distributed
    training the first one takes it. Disks and systems without such locks have no protection. If somebody else writes
    it, the `BlockingIOError` says which process.

    Args: the run folder, created where it is missing.
    """
    folder, thread = Path(os.path.realpath(folder)), threading.get_ident()
    if fcntl is None or os.environ.get("RANK", "0") != "0" or _WRITERS.get(folder) == thread:
        yield
        return
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = _writers_lock(folder / _LOCK_NAME)
    _WRITERS[folder] = thread
    try:
        yield
    finally:
        del _WRITERS[folder]
        (folder / _LOCK_NAME).unlink(missing_ok=True)
        if descriptor is not None:
            os.close(descriptor)
        if is_new:
            with contextlib.suppress(OSError):  # it holds something now
                folder.rmdir()


def first_five(names: Sequence[object] | pa.Array | pa.ChunkedArray) -> str:
    """
    Names for a message: the first five, then the count. Args: ids (also of Arrow), paths or the like.

    >>> first_five(["a", "b"])
    "'a', 'b'"
    >>> first_five(range(7))
    '0, 1, 2, 3, 4, ... (7 in all)'
    """
    first: Any = names[:5]
    listed = ", ".join(map(repr, first.to_pylist() if hasattr(first, "to_pylist") else first))
    return listed if len(names) <= 5 else f"{listed}, ... ({len(names):,} in all)"


def _link_others(target: Path, fresh: Path, dropped: Collection[str]) -> bool:
    """Give a folder the files of another that it lacks, as hard links; `False` where the disk has none."""
    if not target.exists():
        return True
    shutil.copymode(target, fresh)
    try:
        for path in target.iterdir():
            if path.name in dropped or path.name.startswith(_PARTIAL) or (fresh / path.name).exists():
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.copytree(path, fresh / path.name, copy_function=os.link, symlinks=True)
            else:
                os.link(path, fresh / path.name, follow_symlinks=False)
    except (OSError, shutil.Error):
        return False
    return True


def _move_one_by_one(fresh: Path, target: Path, names: Sequence[str], dropped: Collection[str]) -> None:
    target.mkdir(exist_ok=True)
    for name in dropped:
        if (target / name).is_dir():
            shutil.rmtree(target / name)
        (target / name).unlink(missing_ok=True)
    for name in names:
        if (target / name).is_dir():
            shutil.rmtree(target / name)
        (fresh / name).replace(target / name)
    _sync(target)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step; `False` where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    if rename(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(first), None, str(second))


def _lock(folder: Path) -> int | None:
    """A lock on a folder as a file descriptor; `None` if another process has it or the system knows none."""
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _writers_lock(path: Path) -> int | None:
    """A lock on a file that says who holds it, as a file descriptor; `None` if the disk knows none."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 300, 0).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise BlockingIOError(
                f"{path.parent} is being written by {owner}; the files of two runs would mix. Wait for it, end it, or "
                "choose another folder."
            ) from None
        except OSError:  # a disk without locks
            os.close(descriptor)
            return None
        with contextlib.suppress(FileNotFoundError):  # the one before may have removed the file meanwhile
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
                return descriptor
        os.close(descriptor)


def _remove_left_behind(parent: Path) -> None:
    """Remove the hidden folders of processes that are gone."""
    for folder in parent.glob(f"{_PARTIAL}*"):
        with contextlib.suppress(OSError):  # somebody else removes it, or it is not ours
            is_young = time.time() - folder.stat().st_mtime < _YOUNG
            lock = None if is_young or not folder.is_dir() else _lock(folder)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    """Wait until a file or the entries of a folder are on the disk. Weights are readable like any other file then."""
    if os.name == "nt" and path.is_dir() or path.is_symlink():
        return
    if path.suffix == ".safetensors" and path.is_file():  # safetensors writes them for their owner alone
        with contextlib.suppress(PermissionError):  # a file of another user, kept from before
            path.chmod(path.stat().st_mode | (0o666 & ~_UMASK))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # a disk that knows no syncing
            raise
    finally:
        os.close(descriptor)
