"""
A catalog that changes after training: items that are closed, and the file in which a folder keeps its versions.

A removed item keeps its row, token and semantic ID, so that histories with it stay readable; it is closed: no list
holds it and no probability is left to it. Which rows are closed stands in the config as ranges such as `"3,7-9"`.
"""

import hashlib
import json
from pathlib import Path

import torch

from .genrec_folder import optional_file


VERSIONS_FILE = "catalog/versions.json"


def ranges_of(rows: torch.BoolTensor) -> str:
    """
    The places of `True` in `(num_items,)` as ranges.

    >>> ranges_of(torch.tensor([False, True, False, True, True, True]))
    '1,3-5'
    """
    places = rows.nonzero()[:, 0].tolist()
    parts: list[str] = []
    start = 0
    for end in range(1, len(places) + 1):
        if end == len(places) or places[end] != places[end - 1] + 1:
            first, last = places[start], places[end - 1]
            parts.append(str(first) if first == last else f"{first}-{last}")
            start = end
    return ",".join(parts)


def rows_of(ranges: str | None, num_items: int) -> torch.BoolTensor:
    """
    What `ranges_of` wrote as a mask `(num_items,)`; places from `num_items` on are left out.

    >>> rows_of("1,3-5,9", 6).int().tolist()
    [0, 1, 0, 1, 1, 1]
    """
    rows = torch.zeros(num_items, dtype=torch.bool)
    set_rows(rows, ranges, True)
    return rows


def set_rows(rows, ranges: str | None, value: bool) -> None:
    """Write `value` at the places of `ranges` into a mask `(num_items,)`, a tensor or an array."""
    try:
        for part in ranges.split(",") if ranges else ():
            first, _, last = part.partition("-")
            rows[int(first) : int(last or first) + 1] = value
    except ValueError as error:
        raise ValueError(f"`closed_items` must be rows and ranges such as '3,7-9', got {ranges[:50]!r}.") from error


def read_versions(path: str | Path) -> dict:
    """What a file of versions holds, after comparing it with its own digest; `ValueError` if it is damaged."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        is_whole = content.pop("digest") == digest_of(content)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise ValueError(f"{path} is damaged: it must be the one that was saved. Write or fetch the folder again.")
    return content


def digest_of(content: dict) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class LiveItemsMixin:
    """What of a model's items is open; for every model whose config has `closed_items`."""

    num_unread_items = 0  # added after training, in a file that `from_pretrained` of a model does not read
    _open_items: tuple[str, torch.Tensor] | None = None

    @property
    def open_items(self) -> torch.BoolTensor | None:
        """Which items may be recommended, `(num_items,)`; `None` where all may."""
        ranges = self.config.closed_items
        if not ranges:
            return None
        if self._open_items is None or self._open_items[0] != ranges or self._open_items[1].device != self.device:
            self._open_items = ranges, (~rows_of(ranges, self.config.num_items)).to(self.device)
        return self._open_items[1]

    def only_open(self, logits: torch.Tensor) -> torch.Tensor:
        """Scores of all items `(..., num_items)` with `-inf` for those that are closed."""
        is_open = self.open_items
        return logits if is_open is None else logits.masked_fill(~is_open, -float("inf"))

    def allowed_and_open(self, allowed: torch.BoolTensor | None) -> torch.BoolTensor | None:
        """Of the items that rules allow `(batch_size or 1, num_items)`, `None` for all, those that are open."""
        is_open = self.open_items
        if is_open is None or allowed is None:
            return allowed if is_open is None else is_open.unsqueeze(0)
        return allowed & is_open

    def close_items(self, closed: torch.BoolTensor) -> None:
        """
        Say which items are closed, `(num_items,)`; others are open. Raises `ValueError` for another shape, or if none
        were left.
        """
        if closed.dtype != torch.bool or tuple(closed.shape) != (self.config.num_items,) or bool(closed.all()):
            raise ValueError(
                f"`closed` must be a mask over the {self.config.num_items} items that leaves one open, got "
                f"{closed.dtype} of shape {tuple(closed.shape)} with {int((closed == 0).sum())} open."
            )
        self.config.closed_items = ranges_of(closed) or None
        self._open_items = self._catalog = None

    def read_removals(self, source, where: dict) -> None:
        """
        Close what the current version of the catalog of a folder or repository has removed of the items that these
        weights know; `where` is as in `optional_file`.
        """
        path = optional_file(source, VERSIONS_FILE, **where)
        if path is not None:
            content = read_versions(path)
            self.close_items(rows_of(content["closed"], self.config.num_items))
            self.num_unread_items = max(0, content["num_rows"] - self.config.num_items)
