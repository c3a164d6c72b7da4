"""
What the quantizers share: checks of arguments, rows and codes, the folder they are saved in, and the thread rule.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np


__all__ = [
    "CONFIG_NAME",
    "MAX_CODEBOOK_SIZE",
    "WEIGHTS_NAME",
    "as_codes",
    "as_rows",
    "check_sizes",
    "one_thread",
    "read_config",
    "write_config",
]

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "quantizer.safetensors"
MAX_CODEBOOK_SIZE = 2**15  # codes are stored as int16


def check_sizes(*, num_levels: int, codebook_size: int) -> None:
    """
    Refuse sizes that no quantizer has.

    Args:
        num_levels (`int`): Codes per item, at least 1.
        codebook_size (`int`): Codes per level, a power of two from 2 to 32,768.

    Raises:
        ValueError: If one is out of range.
    """
    if num_levels < 1:
        raise ValueError(f"`num_levels` must be at least 1, got {num_levels}.")
    if not 2 <= codebook_size <= MAX_CODEBOOK_SIZE or codebook_size & (codebook_size - 1):
        raise ValueError(f"`codebook_size` must be a power of two from 2 to {MAX_CODEBOOK_SIZE}, got {codebook_size}.")


def as_rows(embeddings: np.ndarray, *, dim: int | None = None, at_least: int = 0) -> np.ndarray:
    """
    Embeddings as faiss takes them.

    Args:
        embeddings (`np.ndarray` of shape `(num_rows, dim)`): One row per item.
        dim (`int`, *optional*): The columns there must be.
        at_least (`int`, *optional*, defaults to 0): The rows there must be: the centroids of a level, in training.

    Returns:
        `np.ndarray` of the same shape: float32, contiguous, finite.

    Raises:
        ValueError: If the shape does not fit, or a value is NaN or infinity.
    """
    rows = np.ascontiguousarray(embeddings, dtype=np.float32)
    if rows.ndim != 2:
        raise ValueError(f"`embeddings` must have two dimensions, its shape is {rows.shape}.")
    wrong = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(wrong):
        raise ValueError(f"`embeddings` has NaN or infinity in {len(wrong)} rows, first at rows {wrong[:5].tolist()}.")
    if dim is not None and rows.shape[1] != dim:
        raise ValueError(f"`embeddings` must have {dim} columns, got {rows.shape[1]}.")
    if len(rows) < at_least:
        raise ValueError(
            f"`embeddings` has {len(rows)} rows, fewer than the {at_least} centroids of a level. "
            "Use a smaller `codebook_size` or more items."
        )
    return rows


def as_codes(codes: np.ndarray, *, num_levels: int, codebook_size: int) -> np.ndarray:
    """
    Codes that a quantizer can decode.

    Args:
        codes (`np.ndarray` of shape `(num_items, num_levels)`): Integers.
        num_levels (`int`): The columns there must be.
        codebook_size (`int`): Every code must be below it.

    Returns:
        `np.ndarray`: the same array.

    Raises:
        ValueError: If the shape or a code is wrong.
    """
    codes = np.asarray(codes)
    if codes.ndim != 2 or codes.shape[1] != num_levels:
        raise ValueError(f"`codes` must have the shape (num_items, {num_levels}), got {codes.shape}.")
    if codes.size and not (codes.min() >= 0 and codes.max() < codebook_size):
        raise ValueError(f"`codes` must lie between 0 and {codebook_size - 1}.")
    return codes


def read_config(folder: str | Path, *, quantizer_type: str) -> dict[str, Any]:
    """
    The `config.json` of a saved quantizer.

    Args:
        folder (`str` or `Path`): The folder.
        quantizer_type (`str`): The kind it must be.

    Returns:
        `dict[str, Any]`: its content.

    Raises:
        ValueError: If the folder holds a quantizer of another kind.
    """
    config = json.loads((Path(folder) / CONFIG_NAME).read_text(encoding="utf-8"))
    found = config.get("quantizer_type")
    if found != quantizer_type:
        raise ValueError(f"{folder} holds no quantizer of the type {quantizer_type!r} but {found!r}.")
    return config


def write_config(folder: str | Path, config: Mapping[str, Any]) -> Path:
    """
    Write `config.json` into a folder, which is created if missing.

    Args:
        folder (`str` or `Path`): The folder.
        config (`dict`): `quantizer_type`, the arguments of the class, and sizes.

    Returns:
        `Path`: where the tensors go.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_NAME).write_text(json.dumps(dict(config), indent=2) + "\n", encoding="utf-8")
    return folder / WEIGHTS_NAME


@contextmanager
def one_thread() -> Iterator[None]:
    """
    Runs faiss on one thread: with more, rounding and with it the codebooks would depend on their number.

    Yields:
        `None`; the number of threads is restored afterwards.
    """
    num_threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(num_threads)
