"""
A folder that `export_onnx` wrote, served by onnxruntime: histories of item ids in, ranked item ids out, without torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_genrec.files import read_json, read_table
from hf_genrec.serving.export.code_search import CodeSearch


class OnnxRecommender:
    """
    Ranks items with exported graphs; gives the lists of the [`Recommender`] that was exported.

    Args:
        folder (`str` or `Path`): What `export_onnx` or `hf-genrec export --to onnx` wrote.
        int8 (`bool`, *optional*, defaults to `False`): Whether to use the graphs with 8-bit products.
        decoding (`str`, *optional*):
            `"dense"` for the dense head alone where the folder has both heads; `None` for what was exported.
        threads (`int`, *optional*, defaults to 0): Threads of onnxruntime; 0 for the cores there are.
        providers (`Sequence[str]`, *optional*): Execution providers of onnxruntime; `None` for the CPU.

    Example: the room's README.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        int8: bool = False,
        decoding: str | None = None,
        threads: int = 0,
        providers: Sequence[str] | None = None,
    ) -> None:
        import onnxruntime

        self.config: dict[str, Any] = read_json(Path(folder) / "onnx_config.json")
        self.item_ids: list[str] = read_table(Path(folder) / "items.parquet", ["item_id"])["item_id"].to_pylist()
        self._row_of = {item_id: row for row, item_id in enumerate(self.item_ids)}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads

        def session(name: str) -> Any:
            path = Path(folder) / f"{name}{'_int8' if int8 else ''}.onnx"
            return onnxruntime.InferenceSession(
                str(path), options, providers=list(providers or ["CPUExecutionProvider"])
            )

        self.search: CodeSearch | None = None
        if self.config.get("decoding") == "beam" and decoding is None:
            self.search = CodeSearch(Path(folder), self.config, session)
        elif decoding not in (None, "dense") or "top_k" not in self.config:
            raise ValueError(f"`decoding` must be None, or 'dense' for a model with a dense head, got {decoding!r}.")
        else:
            self.session = session("model")

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        *,
        top_k: int = 10,
        exclude_seen: bool | None = None,
        exclude_items: Sequence[str] = (),
    ) -> tuple[list[list[str]], list[list[float]]]:
        """
        The best next items for each history.

        Args:
            histories (`list[list[str]]`): Item ids, oldest first; unknown ones are ignored.
            top_k (`int`, *optional*, defaults to 10):
                Items of a list, at most those that were exported; of a search at most those of the catalog.
            exclude_seen (`bool`, *optional*): As in [`Recommender`].
            exclude_items (`list[str]`, *optional*): Ids that may not be recommended.

        Returns:
            `(list[list[str]], list[list[float]])`: item ids, best first, and their log-probabilities.

        Raises:
            ValueError: If `top_k` is out of range.
        """
        most = len(self.item_ids) if self.search else self.config["top_k"]
        if not 1 <= top_k <= most:
            raise ValueError(f"`top_k` must be in [1, {most}], as exported, got {top_k}.")
        if not histories:
            return [], []
        rows = [[self._row_of[item_id] for item_id in history if item_id in self._row_of] for history in histories]
        closed = [self._row_of[item_id] for item_id in exclude_items if item_id in self._row_of]
        seen = self.config["exclude_seen"] if exclude_seen is None else exclude_seen
        read = _padded([row[-self.config["max_history_length"] :] for row in rows])
        excluded = _padded([[*closed, *(row if seen else ())] for row in rows])
        if self.search:
            items, scores = self.search.find(read, excluded, top_k=top_k)
        else:
            items, scores = self.session.run(None, {"history": read, "excluded": excluded})
        kept = [int(np.isfinite(row).sum()) for row in scores[:, :top_k]]
        lists = [[self.item_ids[item] for item in row[:n]] for row, n in zip(items, kept, strict=True)]
        return lists, [row[:n].tolist() for row, n in zip(scores, kept, strict=True)]


def _padded(rows: list[list[int]]) -> NDArray[np.int64]:
    padded = np.full((len(rows), max(1, *map(len, rows))), -1, np.int64)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = row
    return padded
