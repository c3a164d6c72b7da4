"""
Semantic IDs in, how good they are out: collisions, usage, and whether items that share codes are alike.

Nothing is sampled. The sum of a similarity over all pairs of a group follows from the sum of its vectors, as
`|v1 + ... + vn|^2 = sum |vi|^2 + 2 * (sum over pairs of vi . vj)`, so every mean here is that of all pairs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp

from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.files import write_text
from hf_genrec.modeling.genrec_folder import items_fingerprint
from hf_genrec.tokenizers.base import as_rows
from hf_genrec.tokenizers.collisions import group_by_codes
from hf_genrec.tokenizers.folder import load_tokenized, read_embeddings
from hf_genrec.tokenizers.semantic_ids import SemanticIds


REPORT_NAME = "report.json"

_LEAST_CHANCE = 0.01  # mean cosine of any two texts; over less, as whitening leaves it, a ratio says nothing

Vectors: TypeAlias = "np.ndarray | sp.csr_array"  # one row per item


def id_report(
    semantic_ids: SemanticIds, *, embeddings: np.ndarray | None = None, taken: sp.csr_array | None = None
) -> dict[str, Any]:
    """
    Judge an id table: collisions, code usage, and how alike items are that share codes.

    Three similarities of two items are averaged over pairs. `text` is the cosine of their embeddings. `co_purchase`
    is the cosine of their sets of users. `lift` is the number of users that they share relative to what their
    popularity predicts, divided by the same of all pairs: 1 is chance. Items without users (or with a zero
    embedding) take no part in what cannot be known of them.

    Args: the table; the embeddings of its texts `(num_items, dim)`, and who took what in the training part
    `(num_users, num_items)`; `None` leaves either out.

    Returns:
        `dict[str, Any]`: `statistics` ([`SemanticIds.statistics`]); `measures`, the similarities that could be
        measured; and two lists whose entries hold the mean of each over pairs, `None` where there is no pair.

        - `prefixes`, one entry per `length` from 0 (all items: chance) to where longer prefixes separate no further
          items: `num_prefixes`, `mean_items` and `max_items` per prefix, `share_alone` (items alone in their prefix),
          `group_sizes` (`{items: number of prefixes}`), `num_pairs`, and per measure `at_least` (pairs that share at
          least this many first codes) and `exactly` (those whose next code differs; in the last entry all).
          `text_lift` is `at_least` of the texts over that of any two items; whitened texts, which are as good as
          orthogonal, have none.
        - `positions`, one entry per code of the tuple: `num_used`, `usage`, `perplexity`, `code_counts` (items per
          code, descending), and `num_pairs` that share this code, the others alike or not. The codes of product
          quantization have no order, so only this is fair to them.
    """
    measures = _measures(semantic_ids.num_items, embeddings=embeddings, taken=taken)
    statistics = semantic_ids.statistics()
    return {
        "statistics": statistics,
        "measures": list(measures),
        "prefixes": _prefixes(semantic_ids.codes, measures),
        "positions": _positions(semantic_ids.codes, measures, levels=statistics["levels"]),
    }


def report_tokenized(
    folder: str | os.PathLike[str], prepared: PreparedDataset, *, embeddings: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """
    Judge the ids of a tokenized folder with [`id_report`]; written to `report.json` with fingerprints and the `fit`.

    Args: see [`tokenize_items`]. Co-purchases are those of the training part; without `embeddings` no texts.
    """
    folder = Path(folder)
    semantic_ids, record = load_tokenized(folder)
    if semantic_ids.items_fingerprint != items_fingerprint(prepared.item_ids):
        raise ValueError(f"{folder} holds the ids of other items than those of {prepared.folder}. Tokenize again.")
    matrix, encoder = (None, {}) if embeddings is None else read_embeddings(embeddings, prepared)
    if matrix is not None and "behavior" in encoder:  # the texts stand behind the behaviour
        matrix = matrix[:, int(encoder["behavior_columns"]) :] if float(encoder["weight"]) > 0 else None
    report: dict[str, Any] = {
        "data_fingerprint": prepared.fingerprint,
        "catalog_fingerprint": semantic_ids.catalog_fingerprint,
        "encoder": None
        if embeddings is None or matrix is None
        else encoder.get("model", f"matrix {Path(embeddings).name}"),
    }
    report |= id_report(semantic_ids, embeddings=matrix, taken=prepared.interaction_matrix())
    report |= {"fit": record["fit"]} if "fit" in record else {}
    write_text(json.dumps(report, allow_nan=False) + "\n", folder / REPORT_NAME)
    return report


def _measures(
    num_items: int, *, embeddings: np.ndarray | None, taken: sp.csr_array | None
) -> dict[str, tuple[Vectors, Vectors]]:
    """
    Per similarity two tables of item vectors: the mean over pairs is the sum of the products of the first over that of
    the second. The second is 1 where an item counts, or for the lift its number of users.
    """
    found: dict[str, tuple[Vectors, Vectors]] = {}
    if embeddings is not None:
        rows = as_rows(embeddings, num_rows=num_items).astype(np.float64)
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        found["text"] = rows / np.where(norms > 0, norms, 1.0), (norms > 0).astype(np.float64)  # (N, dim), (N, 1)
    if taken is not None:
        if taken.ndim != 2 or taken.shape[1] != num_items:
            raise ValueError(f"`taken` must have the shape (num_users, {num_items}), got {taken.shape}.")
        users = sp.csr_array(taken.T != 0, dtype=np.float64)  # (N, users)
        num_users = np.diff(users.indptr).astype(np.float64)
        unit = sp.csr_array(sp.diags_array(1 / np.sqrt(np.maximum(num_users, 1))) @ users)
        found["co_purchase"] = unit, (num_users > 0).astype(np.float64)[:, None]
        found["lift"] = users, num_users[:, None]
    return found


def _prefixes(codes: np.ndarray, measures: Mapping[str, tuple[Vectors, Vectors]]) -> list[dict[str, Any]]:
    groups: list[np.ndarray] = []
    entries: list[dict[str, Any]] = []
    num_distinct = len(group_by_codes(codes)[1])
    for length in range(codes.shape[1] + 1):
        found, counts = group_by_codes(codes[:, :length])
        groups.append(found)
        values, repeats = np.unique(counts, return_counts=True)
        entries.append(
            {
                "length": length,
                "num_prefixes": len(counts),
                "mean_items": len(codes) / len(counts),
                "max_items": int(counts.max()),
                "share_alone": float((counts == 1).sum() / len(codes)),
                "group_sizes": dict(zip(values.tolist(), repeats.tolist(), strict=True)),
                "num_pairs": _num_pairs(counts),
            }
        )
        if len(counts) == num_distinct:  # no further items part
            break
    for name, tables in measures.items():
        sums = np.array([_pair_sums(tables, found) for found in groups])  # (lengths, 2)
        differences = sums - np.append(sums[1:], [[0.0, 0.0]], axis=0)
        unit = _unit(name, sums[0])
        for entry, at_least, exactly in zip(entries, sums, differences, strict=True):
            entry[name] = {"at_least": _ratio(at_least, unit), "exactly": _ratio(exactly, unit)}
    if "text" in measures:  # beside the lift of the users: how much more alike the texts are than those of any two
        chance = entries[0]["text"]["at_least"]
        for entry in entries:
            found = entry["text"]["at_least"]
            entry["text_lift"] = found / chance if found is not None and chance and chance >= _LEAST_CHANCE else None
    return entries


def _positions(
    codes: np.ndarray, measures: Mapping[str, tuple[Vectors, Vectors]], *, levels: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    all_items = np.zeros(len(codes), dtype=np.int64)
    units = {name: _unit(name, _pair_sums(tables, all_items)) for name, tables in measures.items()}
    entries = []
    for level, usage in zip(codes.T, levels, strict=True):
        _, groups, counts = np.unique(level, return_inverse=True, return_counts=True)
        entry = {name: usage[name] for name in ("num_used", "usage", "perplexity")}
        entry |= {"code_counts": np.sort(counts)[::-1].tolist(), "num_pairs": _num_pairs(counts)}
        for name, tables in measures.items():
            entry[name] = _ratio(_pair_sums(tables, groups), units[name])
        entries.append(entry)
    return entries


def _pair_sums(tables: tuple[Vectors, Vectors], groups: np.ndarray) -> np.ndarray:
    """Per table the sum of the dot products of all pairs of rows in the same group."""
    num_rows = len(groups)
    members = sp.csr_array((np.ones(num_rows), (groups, np.arange(num_rows))), shape=(int(groups.max()) + 1, num_rows))
    return np.array([_squared_norm(members @ vectors) - _squared_norm(vectors) for vectors in tables]) / 2


def _squared_norm(vectors: Vectors) -> float:
    return float((vectors * vectors).sum())  # sparse arrays multiply element by element too


def _unit(name: str, sums: np.ndarray) -> float:
    """What the mean is divided by: for the lift that of all pairs, which then is 1."""
    return float(sums[0] / sums[1]) if name == "lift" and sums[0] > 0 and sums[1] > 0 else 1.0


def _ratio(sums: np.ndarray, unit: float) -> float | None:
    total, weight = sums.tolist()
    return None if weight < 0.5 else total / weight / unit  # weights are sums of whole numbers


def _num_pairs(counts: np.ndarray) -> int:
    return int((counts * (counts - 1) // 2).sum())
