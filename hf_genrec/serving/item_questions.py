"""
What else a recommender can be asked: vectors of items and users, items like another one, and why an item is listed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hf_genrec.modeling.genrec_kept import vectors_of
from hf_genrec.modeling.genrec_recommend import evaluation_mode
from hf_genrec.serving.catalog.snapshot import Snapshot


@dataclass(frozen=True)
class Reason:
    """
    What an item of a history has to do with a listed one.

    Attributes:
        item_id (`str`): The item of the history.
        effect (`float`): What the score of the listed item loses without this one; below 0 where it gains.
        similarity (`float`): Cosine of the two items' vectors; NaN where the model has none.
        shared_codes (`tuple[int, ...]`): The codes of their semantic IDs before the first that differs.
    """

    item_id: str
    effect: float
    similarity: float
    shared_codes: tuple[int, ...]


def item_vectors(now: Snapshot, item_ids: Sequence[str] | None = None) -> NDArray[np.float32]:
    """
    The vectors of items, `(num_items, dimension)`; of all in the order of their rows where no ids are given.

    Those that the model compares states of histories with, where it does so; else the embeddings of their codes. Of a
    sum the unit vectors of its members, side by side.

    Args:
        now ([`Snapshot`]): What is served.
        item_ids (`list[str]`, *optional*): Which items.
    """
    unknown = [item_id for item_id in item_ids or () if item_id not in now.index_of]
    if unknown:
        raise KeyError(f"{unknown[0]!r} is no item of the catalog.")
    with torch.no_grad():
        vectors = vectors_of(now.model)
    if vectors is None:
        raise ValueError(f"{type(now.model).__name__} has no vectors of items: ask another model.")
    found: NDArray[np.float32] = vectors.detach().float().cpu().numpy()
    return found if item_ids is None else found[[now.index_of[item_id] for item_id in item_ids]]


def similar_items(now: Snapshot, item_id: str, k: int) -> list[tuple[str, float]]:
    """
    The items that may be recommended whose vectors point most alike, best first, with their cosines.

    Args:
        now ([`Snapshot`]): What is served.
        item_id (`str`): The item, which may have been removed.
        k (`int`): How many, at least 1.
    """
    if item_id not in now.index_of:
        raise KeyError(f"{item_id!r} is no item of the catalog.")
    if k < 1:
        raise ValueError(f"`k` must be at least 1, got {k}.")
    unit, row = _unit(item_vectors(now)), now.index_of[item_id]
    cosines = unit @ unit[row]
    cosines[now.closed] = -np.inf
    cosines[row] = -np.inf
    best = np.argsort(-cosines, kind="stable")[:k]
    return [(now.item_ids[index], float(cosines[index])) for index in best if cosines[index] > -np.inf]


def user_vectors(now: Snapshot, rows: list[list[int]], *, batch_size: int) -> NDArray[np.float32]:
    """
    The states behind histories, from which the next item is predicted, `(num_users, d_model)`.

    Args:
        now ([`Snapshot`]): What is served.
        rows (`list[list[int]]`): Rows of the items of each history.
        batch_size (`int`): Users computed at a time.
    """
    model = now.model
    if not hasattr(model, "_last_states"):
        raise ValueError(f"{type(model).__name__} has no vectors of users: it has no network that reads histories.")
    parts = [np.zeros((0, model.config.d_model), np.float32)]
    with torch.no_grad(), evaluation_mode(model):
        for start in range(0, len(rows), batch_size):
            tokens = now.history_tokens(rows[start : start + batch_size])
            parts.append(model._last_states(tokens, None).float().cpu().numpy())
    return np.concatenate(parts)


def reasons(now: Snapshot, history: Sequence[str], item_id: str, *, dense_weight: float) -> list[Reason]:
    """
    The items of a history by what the score of another item owes to each.

    Args:
        now ([`Snapshot`]): What is served.
        history (`list[str]`): Item ids, oldest first; unknown ones are left out.
        item_id (`str`): The item that was listed.
        dense_weight (`float`): How much a dense head counts in the score.
    """
    if item_id not in now.index_of or not now.is_open(now.index_of[item_id]):
        raise KeyError(f"{item_id!r} is no item that may be recommended.")
    target, model = now.index_of[item_id], now.model
    (known,), _ = now.look_up([list(history)])
    known = known[-model.config.max_history_length :]
    without = [known[:place] + known[place + 1 :] for place in range(len(known))]
    scores = _scores_of(now, [known, *without], target, dense_weight=dense_weight)
    similarity = np.full(len(known), np.nan)
    try:
        unit = _unit(item_vectors(now))
    except ValueError:  # a model without vectors
        unit = None
    if unit is not None:
        similarity = unit[known] @ unit[target]
    found = [
        Reason(now.item_ids[row], float(scores[0] - score), float(cosine), _shared(model, row, target))
        for row, score, cosine in zip(known, scores[1:], similarity, strict=True)
    ]
    return sorted(found, key=lambda reason: -reason.effect)


def _scores_of(now: Snapshot, rows: list[list[int]], target: int, *, dense_weight: float) -> NDArray[np.float32]:
    """What one item scores after each of some histories."""
    model, tokens = now.model, now.tokens(rows)
    with torch.no_grad(), evaluation_mode(model):
        if hasattr(model, "score_candidates"):
            item = torch.full((len(rows), 1), target, device=tokens.device)
            scores = model.score_candidates(model.encode_history(tokens), item)[:, 0]
        else:
            scores = model.score_items(tokens)[:, target]
        if dense_weight and getattr(model.config, "dense_head", False):
            scores = scores + dense_weight * model.dense_scores(tokens)[:, target]
    return scores.float().cpu().numpy()


def _shared(model: Any, row: int, target: int) -> tuple[int, ...]:
    if not model.config.has_codes:
        return ()
    codes, others = model.item_codes[row].tolist(), model.item_codes[target].tolist()
    length = next(
        (level for level, (code, other) in enumerate(zip(codes, others, strict=True)) if code != other), len(codes)
    )
    return tuple(codes[:length])


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
