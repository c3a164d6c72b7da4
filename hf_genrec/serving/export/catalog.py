"""
A recommender in, its catalog in the formats of other engines out: which semantic IDs exist, and whose they are.

`flashrec` and `static` hold the semantic IDs alone, `nvidia` and `tzrec` the items too. Items that were removed from
the catalog are left out.
"""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hf_genrec.files import replaced, write_json, write_table
from hf_genrec.serving.recommender import Recommender


CATALOG_FORMATS = ("flashrec", "nvidia", "tzrec", "static")


def export_catalog(recommender: Recommender, output: str | os.PathLike[str], *, format: str) -> Path:
    """
    Write the catalog of a recommender for another engine.

    | format | what is written | read by |
    |---|---|---|
    | `flashrec` | JSON, `{"12,7,201": 1, ...}` | FlashRec, `--sid-vocab-file` |
    | `nvidia` | JSON Lines, `{"item_id": ..., "token_ids": [...], "metadata": {...}}` | NVIDIA's sid-gr-inference |
    | `tzrec` | a folder: `GENERATION/item_to_sid`, `sid_to_items` (Parquet), `manifest.json` | TorchEasyRec |
    | `static` | `.npz`: the trie as a sparse matrix with dense first levels | STATIC, `static_decoding` |

    Args:
        recommender ([`Recommender`]): Its model must have semantic IDs.
        output (`str` or `Path`): The file to write, for `tzrec` the folder; what is there is replaced.
        format (`str`): One of the above.

    Returns:
        `Path`: what was written.

    Raises:
        ValueError: If there is no such format, or the model has no semantic IDs.

    Example:

    ```python
    >>> import tempfile
    >>> from hf_genrec import RPGConfig, RPGForItemGeneration
    >>> model = RPGForItemGeneration(RPGConfig(num_items=2, num_levels=2, codebook_size=4, d_model=8, d_ff=16))
    >>> model.set_catalog([[3, 0], [0, 2]])
    >>> shop = Recommender(model, pa.table({"item_id": ["tea", "cup"]}))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print(export_catalog(shop, f"{folder}/ids.json", format="flashrec").read_text())
    {"0,2":1,"3,0":1}

    ```
    """
    if format not in CATALOG_FORMATS:
        raise ValueError(f"`format` must be one of {', '.join(CATALOG_FORMATS)}, got {format!r}.")
    if not recommender.model.config.has_codes:
        raise ValueError(f"A {type(recommender.model).__name__} has no semantic IDs to export.")
    write = {"flashrec": _write_flashrec, "nvidia": _write_nvidia, "tzrec": _write_tzrec, "static": _write_static}
    write[format](recommender, Path(output))
    return Path(output)


def _open_items(recommender: Recommender) -> tuple[list[int], NDArray[np.int64]]:
    """Rows of the items that may be recommended, and their codes."""
    model = recommender.model
    codes = model.item_codes.cpu().numpy().astype(np.int64)
    rows = np.arange(len(codes)) if model.open_items is None else np.flatnonzero(model.open_items.cpu().numpy())
    return rows.tolist(), codes[rows]


def _write_flashrec(recommender: Recommender, output: Path) -> None:
    _, codes = _open_items(recommender)
    keys = {",".join(map(str, row)): 1 for row in np.unique(codes, axis=0).tolist()}
    with replaced(output) as partial:
        partial.write_text(json.dumps(keys, separators=(",", ":")), encoding="utf-8")


def _write_nvidia(recommender: Recommender, output: Path) -> None:
    """Token ids are those of the checkpoint: of a language model its own; else those that its config counts."""
    rows, codes = _open_items(recommender)
    config, levels = recommender.model.config, np.arange(recommender.model.config.num_levels)
    tokens = codes + config.first_code_token + config.codebook_size * levels
    if hasattr(recommender.model, "code_token_ids"):
        tokens = recommender.model.code_token_ids.cpu().numpy()[levels, codes]
    items = recommender.items.take(rows)
    names = [name for name in items.column_names if name in ("title", "category", "brand")]
    metadata = items.select(names).to_pylist() if names else [{} for _ in rows]
    item_ids = items["item_id"].to_pylist()
    with replaced(output) as partial, partial.open("w", encoding="utf-8") as file:
        for item_id, token_ids, known in zip(item_ids, tokens.tolist(), metadata, strict=True):
            line = {"item_id": item_id, "token_ids": token_ids, "metadata": known}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _write_tzrec(recommender: Recommender, output: Path) -> None:
    """A generation is named by its uuid; the manifest is written last, and says that the others are whole."""
    rows, codes = _open_items(recommender)
    config = recommender.model.config
    item_ids = np.array(recommender.item_ids, dtype=object)[rows]
    shifted = codes + config.codebook_size * np.arange(config.num_levels)
    distinct, bucket = np.unique(codes, axis=0, return_inverse=True)
    counts = np.bincount(bucket, minlength=len(distinct))
    in_buckets = item_ids[np.argsort(bucket, kind="stable")]
    offsets = pa.array(np.concatenate([[0], counts.cumsum()]), pa.int32())
    tables = {
        "item_to_sid": pa.table(
            {"item_id": item_ids.tolist(), "codebook": codes.tolist(), "offset_codebook": shifted.tolist()}
        ),
        "sid_to_items": pa.table(
            {
                "codebook": distinct.tolist(),
                "itemids": pa.ListArray.from_arrays(offsets, pa.array(in_buckets.tolist(), pa.string())),
            }
        ),
    }
    bundle = uuid.uuid4().hex
    manifest: dict[str, Any] = {
        "bundle_uuid": bundle,
        "codebook": [config.codebook_size] * config.num_levels,
        "capacity": int(counts.max()),
        "max_observed_items_per_sid": int(counts.max()),
        "artifacts": {},
        "item_id_type": "string",
    }
    generation = output / bundle
    for name, table in tables.items():
        write_table(table, generation / name / "part-0.parquet")
        location = str(generation / name)
        manifest["artifacts"][name] = {"save_type": "parquet", "rows": len(table), "location": location}
    write_json(manifest, generation / "manifest.json")


def _write_static(recommender: Recommender, output: Path) -> None:
    config = recommender.model.config
    if config.num_levels < 2:
        raise ValueError("STATIC needs semantic IDs of at least two levels, these have one.")
    arrays: dict[str, Any] = static_index(_open_items(recommender)[1], codebook_size=config.codebook_size)
    with replaced(output) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)


def static_index(codes: NDArray[np.int64], *, codebook_size: int, num_dense: int = 2) -> dict[str, NDArray[Any]]:
    """
    The trie of semantic IDs as STATIC reads it.

    State 0 is the end. A first code `c` leads to state `c + 1`; deeper prefixes are numbered in order, level by level.
    Row `s` of the matrix, `packed_csr[indptr[s] : indptr[s + 1]]`, holds pairs of a code and the state it leads to.
    Behind the last row stand `codebook_size` pairs that lead nowhere, which kernels may read past the end.

    Args:
        codes (`np.ndarray` of shape `(num_items, num_levels)`): In any order; items may share their codes.
        codebook_size (`int`): Codes per level.
        num_dense (`int`, *optional*, defaults to 2): First levels that are a dense table too.

    Returns:
        `dict`: `packed_csr`, `indptr`, `layer_max_branches`, `start_mask`, `dense_mask`, `dense_states`.

    Source: STATIC (https://huggingface.co/papers/2602.22647) and its package `static_decoding`.
    """
    codes = np.unique(codes, axis=0)
    num_levels, num_dense = codes.shape[1], min(num_dense, codes.shape[1] - 1)
    is_first = np.ones(codes.shape, bool)  # of its prefix, in the order of the codes
    is_first[1:] = np.logical_or.accumulate(codes[1:] != codes[:-1], axis=1)
    states, num_states = [codes[:, 0] + 1], codebook_size + 1
    for level in range(1, num_levels - 1):
        states.append(num_states - 1 + is_first[:, level].cumsum())
        num_states += int(is_first[:, level].sum())
    children = [*states[1:], np.zeros(len(codes), np.int64)]
    edges = [
        np.stack([states[level - 1], codes[:, level], children[level - 1]], axis=1)[is_first[:, level]]
        for level in range(1, num_levels)
    ]
    parents, pairs = np.concatenate(edges)[:, 0], np.concatenate(edges)[:, 1:]
    nowhere = np.tile([codebook_size, 0], (codebook_size, 1))
    indptr = np.concatenate([[0], np.bincount(parents, minlength=num_states).cumsum()])
    widths = [int(np.unique(level[:, 0], return_counts=True)[1].max()) for level in edges]
    dense_mask = np.zeros((codebook_size,) * num_dense, bool)
    dense_states = np.zeros(dense_mask.shape, np.int32)
    places = tuple(codes[:, :num_dense].T)
    dense_mask[places], dense_states[places] = True, states[num_dense - 1]
    start_mask = np.zeros(codebook_size, bool)
    start_mask[codes[:, 0]] = True
    return {
        "packed_csr": np.concatenate([pairs, nowhere]).astype(np.int32),
        "indptr": np.append(indptr, indptr[-1] + codebook_size).astype(np.int32),
        "layer_max_branches": np.array([len(np.unique(codes[:, 0])), *widths], np.int32),
        "start_mask": start_mask,
        "dense_mask": dense_mask,
        "dense_states": dense_states,
    }
