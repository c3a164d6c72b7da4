"""
Files that a reader sees whole or not at all, JSON without NaN, and long lists of names as a line.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replaced(path: str | os.PathLike[str]) -> Iterator[Path]:
    """
    A file to write that takes the place of another when the block ends; after an error the old one is left as it was.

    Args:
        path (`str` or `Path`):
            The file to replace, existing or not. Its folder is created where it is missing.

    Returns:
        `Path`: where to write, a file of the same name in a temporary folder beside it.

    Example:

    ```python
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replaced(f"{folder}/notes.txt") as partial:
    ...         size = partial.write_text("done", encoding="utf-8")
    ...     os.listdir(folder)
    ['notes.txt']

    ```
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".partial-") as folder:  # same disk, so a plain rename
        partial = Path(folder) / target.name
        yield partial
        partial.replace(target)


def write_text(text: str, path: str | os.PathLike[str]) -> None:
    """
    Write a text in UTF-8, see [`replaced`].

    Args:
        text (`str`): The content.
        path (`str` or `Path`): The file.
    """
    with replaced(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(content: Any, path: str | os.PathLike[str]) -> None:
    """
    Write JSON for people to read (two spaces, a newline at the end), see [`replaced`].

    Args:
        content (`Any`): What JSON can hold.
        path (`str` or `Path`): The file.

    Raises:
        ValueError: If there is a NaN or an infinity, which JSON does not have.
    """
    write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", path)


def first_five(names: Sequence[object]) -> str:
    """
    Names for a message: the first five, then the count.

    Args:
        names (`list`): Ids, paths or the like.

    Returns:
        `str`

    Example:

    ```python
    >>> first_five(["a", "b"])
    "'a', 'b'"
    >>> first_five(range(7))
    '0, 1, 2, 3, 4, ... (7 in all)'

    ```
    """
    listed = ", ".join(map(repr, names[:5]))
    return listed if len(names) <= 5 else f"{listed}, ... ({len(names):,} in all)"
