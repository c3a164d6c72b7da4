"""
Texts and a sentence-transformers model in, one vector per text out, kept in shards as they come: a run that was killed
goes on where it was.

    000000.safetensors   `rows` (n,), which texts, and `embeddings` (n, dim); its header has their digest
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm.auto import tqdm

from hf_genrec.files import replaced
from hf_genrec.tokenizers.base import as_rows


logger = logging.getLogger(__name__)

TEXTS_PER_SHARD = 2**13  # what a killed run loses at most; a minute or two of one core
_CHUNKS_PER_PROCESS = 4  # of a shard: texts stand by length, so equal chunks take unequal times


def embed_in_shards(
    model: Any,
    texts: Sequence[str],
    folder: Path,
    *,
    name: str,
    batch_size: int,
    num_processes: int,
    device: str | None,
    show_progress: bool,
) -> np.ndarray:
    """
    Vectors `(num_texts, dim)`, float32, of texts that the shards in a folder may hold in part.

    The batches are those of `model.encode(texts)`, the longest texts first, so that one process gets the same vectors
    however many shards there are. Several processes cut a shard into other batches, which moves the last bits.

    Args: the model; the texts, always the same ones for a folder; where the shards are, and what an error calls the
    model; the rest as in [`embed_texts`].
    """
    size = batch_size * max(1, TEXTS_PER_SHARD // batch_size)
    paths, is_left = _finished(folder, len(texts))
    if paths:
        message = "Going on with text %d of %d: the %d shards before it are in %s."
        logger.warning(message, len(texts) - int(is_left.sum()) + 1, len(texts), len(paths), folder)
    order = np.arange(len(texts))
    if len(texts) > size:  # as sentence-transformers does: least padding
        order = np.argsort([-len(text) for text in texts])
    left, number = order[is_left[order]], 1 + max((int(path.stem) for path in paths), default=-1)
    is_one = len(texts) <= size
    options: dict[str, Any] = {"batch_size": batch_size, "convert_to_numpy": True}
    with (
        _workers(model, num_processes, device) as pool,
        tqdm(
            total=len(texts), initial=len(texts) - len(left), unit=" texts", disable=is_one or not show_progress
        ) as bar,
    ):
        if pool is not None:
            batches = max(1, size // batch_size // (num_processes * _CHUNKS_PER_PROCESS))
            options |= {"pool": pool, "chunk_size": batch_size * batches}
        for start in range(0, len(left), size):
            rows = left[start : start + size]
            found = model.encode([texts[row] for row in rows], show_progress_bar=is_one and show_progress, **options)
            paths.append(folder / f"{number + start // size:06d}.safetensors")
            _write(paths[-1], rows, as_rows(found, name=f"the output of {name!r}", num_rows=len(rows)))
            bar.update(len(rows))
    return _joined(paths, len(texts))


@contextmanager
def _workers(model: Any, num_processes: int, device: str | None) -> Iterator[Any]:
    """A pool of sentence-transformers, one process per GPU or some on the cores; `None` for this process alone."""
    if num_processes == 1:
        yield None
        return
    num_gpus = torch.cuda.device_count() if device in (None, "cuda") else 0
    devices = [f"cuda:{process % num_gpus}" if num_gpus else device or "cpu" for process in range(num_processes)]
    before = os.environ.get("OMP_NUM_THREADS")
    if before is None:  # each process would start a thread for each core
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // num_processes))
    try:
        pool = model.start_multi_process_pool(devices)
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
    try:
        yield pool
    finally:
        model.stop_multi_process_pool(pool)


def _finished(folder: Path, num_texts: int) -> tuple[list[Path], np.ndarray]:
    """Whole shards, and which texts none of them holds; damaged ones are removed."""
    paths, is_left = [], np.ones(num_texts, bool)
    for path in sorted(folder.glob("*.safetensors")):
        try:
            rows, _ = _read(path)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            logger.warning("The shard %s cannot be read (%s) and is computed again.", path, error)
            path.unlink()
            continue
        is_left[rows] = False
        paths.append(path)
    return paths, is_left


def _write(path: Path, rows: np.ndarray, embeddings: np.ndarray) -> None:
    with replaced(path) as partial:
        save_file({"rows": rows, "embeddings": embeddings}, partial, metadata={"sha256": _digest(rows, embeddings)})


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with safe_open(path, framework="np") as file:
        rows, embeddings = file.get_tensor("rows"), file.get_tensor("embeddings")
        expected = file.metadata()["sha256"]
    if _digest(rows, embeddings) != expected:
        raise ValueError("its digest is another one")
    return rows, embeddings


def _digest(rows: np.ndarray, embeddings: np.ndarray) -> str:
    return hashlib.sha256(rows.tobytes() + embeddings.tobytes()).hexdigest()


def _joined(paths: Sequence[Path], num_texts: int) -> np.ndarray:
    """All vectors; beside them one shard is in memory at a time."""
    whole = np.empty((0, 0), np.float32)
    for path in paths:
        rows, embeddings = _read(path)
        if not len(whole):
            whole = np.empty((num_texts, embeddings.shape[1]), np.float32)
        whole[rows] = embeddings
    return whole
