"""
What somebody wants to add to a catalog, as a table: new rows and items that come back.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from hf_genrec.files import first_five
from hf_genrec.serving.catalog.learned_rows import RowRegression, learned_rows, parts_of
from hf_genrec.tokenizers.collisions import UsedTuples
from hf_genrec.tokenizers.new_items import ItemCoder


def new_rows(
    items: pa.Table | Sequence[Mapping[str, Any]], *, index_of: Mapping[str, int], is_open: Callable[[int], bool]
) -> tuple[pa.Table, list[int]]:
    """
    The items that have no row yet, and the rows of those that were removed and come back.

    Args:
        items (`pa.Table` or `list[dict]`): With `item_id`; see [`LiveCatalog.add`].
        index_of (`dict[str, int]`): The rows that there are.
        is_open (`Callable`): Whether the item of a row may be recommended.
    """
    table = items if isinstance(items, pa.Table) else pa.Table.from_pylist([dict(item) for item in items])
    if not table.num_rows:
        raise ValueError("`items` is empty: give an item at least.")
    if "item_id" not in table.column_names:
        raise ValueError(f"`items` needs `item_id`, found {', '.join(table.column_names)}.")
    item_ids = table["item_id"].to_pylist()
    wrong = [item_id for item_id in item_ids if not isinstance(item_id, str)]
    if wrong:
        raise TypeError(f"`item_id` must be strings, got {first_five(wrong)}.")
    repeated = [item_id for item_id, count in Counter(item_ids).items() if count > 1]
    if repeated:
        raise ValueError(f"{len(repeated)} items occur twice in `items`: {first_five(repeated)}.")
    there = [item_id for item_id in item_ids if item_id in index_of and is_open(index_of[item_id])]
    if there:
        raise ValueError(f"{len(there)} items are in the catalog already: {first_five(there)}. Nothing was added.")
    is_new = [item_id not in index_of for item_id in item_ids]
    known = [index_of[item_id] for item_id, new in zip(item_ids, is_new, strict=True) if not new]
    return table.filter(pa.array(is_new)), known


@dataclass(frozen=True)
class Readers:
    """What training left for new items, each opened where it is needed: the way to an id, and that to learned rows."""

    coder: Callable[[], ItemCoder]
    regression: Callable[[], RowRegression]


def coded_rows(
    table: pa.Table,
    model: Any,
    readers: Readers,
    *,
    taken: np.ndarray,
    vectors: np.ndarray | None,
    encoder: str | os.PathLike[str] | None,
) -> pa.Table:
    """
    New rows with what each part of a model reads of them.

    Semantic IDs stand in `codes`; with the prefix of the part `vector` holds what a dense head reads, and `row` what a
    model knows the item by. Where no part reads anything there are no such columns.

    Args:
        table (`pa.Table`): What [`new_rows`] gave.
        model: The model.
        readers ([`Readers`]): Of the folder's `quantizer/`.
        taken (`np.ndarray` of shape `(num_taken, num_levels)`): Semantic IDs that are not free.
        vectors (`np.ndarray`, *optional*): See [`LiveCatalog.add`].
        encoder (`str` or `Path`, *optional*): Likewise.
    """
    _check_names(table["item_id"].to_pylist(), model.config)
    parts = parts_of(model)
    coded = [part for _, part in parts if part.config.has_codes]
    heads = [(prefix, part) for prefix, part in parts if _reads_vectors(part)]
    read = fused = None
    if heads or (coded and "codes" not in table.column_names):
        coder = readers.coder()
        read = _vectors_of(table, coder, vectors, encoder)
        fused = coder.fused(read)
        if "codes" not in table.column_names:
            codes = coder.assign(fused, taken=taken, codebook_size=coded[0].config.codebook_size)
            table = table.append_column("codes", pa.array(codes.tolist(), pa.list_(pa.int16())))
        for prefix, part in heads:
            _check_vectors(part, coder)
            table = _with_vectors(table, f"{prefix}vector", coder.projected(fused).astype(np.float16))
    if any(learned_rows(part) is not None for _, part in parts):
        regression = readers.regression()
        read = _vectors_of(table, regression, vectors, encoder) if read is None else read
        for prefix, rows in regression.rows_of(regression.usable(read, fused)).items():
            table = _with_vectors(table, f"{prefix}row", rows)
    if coded:
        _check_codes(table, coded[0].config, taken, may_share=not coded[0].catalog.is_unique)
    return table


def _reads_vectors(part: Any) -> bool:
    return bool(getattr(part.config, "dense_head", False) and part.config.dense_text_dim)


def _with_vectors(table: pa.Table, name: str, vectors: np.ndarray) -> pa.Table:
    return table.append_column(name, pa.array(list(vectors), pa.list_(pa.from_numpy_dtype(vectors.dtype))))


def _vectors_of(table: pa.Table, reader: Any, vectors: np.ndarray | None, encoder: Any) -> np.ndarray:
    if vectors is None:
        name = "text" if "text" in table.column_names else "title"
        if name not in table.column_names:
            raise ValueError("New items need `text` or `title`, `vectors`, or `codes`.")
        return reader.embed([text or "" for text in table[name].to_pylist()], encoder=encoder)
    if len(vectors) != table.num_rows:
        raise ValueError(f"`vectors` must have a row for each of the {table.num_rows} new items, got {len(vectors)}.")
    return np.asarray(vectors)


def _reserved_words(config: Any) -> re.Pattern[str]:
    """What the ids of items must not be: the strings of other tokens."""
    words = ["<pad>", "<unk>", "<eos>", "<user>"]
    if config.num_latent_tokens:
        words.append(r"<latent_\d+>")
    if config.has_codes:
        words.append(r"<code_\d+_\d+>")
    return re.compile("|".join(words))


def _check_names(item_ids: list[str], config: Any) -> None:
    words = _reserved_words(config)
    refused = [item_id for item_id in item_ids if not item_id or words.fullmatch(item_id)]
    if refused:
        raise ValueError(
            f"{len(refused)} item ids are empty or the name of a special token: {first_five(refused)}. Rename "
            "these items."
        )


def _check_codes(table: pa.Table, config: Any, taken: np.ndarray, *, may_share: bool) -> None:
    """Whether given codes are semantic IDs of this model, and free where ids are unique."""
    rows, num_levels, size = table["codes"].to_pylist(), config.num_levels, config.codebook_size
    wrong = [row for row in rows if row is None or len(row) != num_levels or not 0 <= min(row) <= max(row) < size]
    if wrong:
        raise ValueError(f"`codes` must be {num_levels} numbers from 0 to {size - 1} for each item, got {wrong[0]}.")
    if not may_share:
        used, clashes = UsedTuples(taken, size), []
        for item_id, key in zip(table["item_id"].to_pylist(), used.keys(np.array(rows)).tolist(), strict=True):
            if key in used:
                clashes.append(item_id)
            used.add(key)
        if clashes:
            raise ValueError(f"{len(clashes)} items have the semantic ID of another item: {first_five(clashes)}.")


def _check_vectors(model: Any, coder: ItemCoder) -> None:
    """Whether the dense head was trained on the vectors that the ids are made of: their codes must come out again."""
    sample: Callable[[torch.Tensor], np.ndarray] = lambda tensor: tensor[:256].float().cpu().numpy()  # noqa: E731
    vectors = sample(model.item_table.text_vectors)
    if vectors.shape[1] == coder.dim and "mean_length" in coder.choice:
        points = vectors * np.float32(coder.choice["mean_length"])
        codes = coder.quantizer.encode(points if coder.whitening is None else coder.whitening.transform(points))
        if (codes[:, 0] == sample(model.item_codes)[:, 0]).mean() > 0.5:
            return
    raise ValueError(
        f"The dense head of this model reads vectors of {vectors.shape[1]} columns that are not those of its ids "
        f"({coder.dim} columns), so new items cannot get one. Train with the vectors that the ids are made of."
    )
