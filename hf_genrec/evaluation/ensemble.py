"""
Trained models and a prepared data set in, one model out: an ensemble whose weights are chosen on the validation split.

The weights are searched on half of the validation users and looked at on the other half.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.optimize
import torch
from numpy.typing import NDArray

from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.evaluation.baselines.base import validation_users
from hf_genrec.evaluation.lists import history_matrix, item_indices
from hf_genrec.evaluation.metrics import ndcg_at_k
from hf_genrec.modeling.genrec_folder import items_fingerprint
from hf_genrec.modeling.modeling_ensemble import EnsembleForItemGeneration


logger = logging.getLogger(__name__)

_NUM_BEST = 100  # items of each score among which the sum's best 10 are looked for
_USERS_AT_ONCE, _CALIBRATION_USERS = 128, 512
_FACTORS = (0.0, 0.25, 0.5, 0.7, 0.85, 1.2, 1.4, 2.0, 4.0)
_MOST_ROUNDS = 6
_BEHIND = 0.3  # of the weight of the score ahead, where a climb starts
_NOTABLE = 0.003  # of ndcg@10, between the halves


def fit_ensemble(
    members: Mapping[str, Any],
    prepared: PreparedDataset,
    *,
    combination: str = "standardised",
    num_candidates: int = 50,
    exclude_seen: bool = False,
    max_users: int | None = 6_000,
    seed: int = 0,
) -> tuple[EnsembleForItemGeneration, dict[str, Any]]:
    """
    An ensemble of models, weighted by coordinate search for ndcg@10.

    What adds to a good model is one that knows something else: a linear model, texts, a generator. A weight may become
    0; that member is saved all the same. Lists without items of the history and lists in which these may stand have
    weights of their own, searched alike; serving takes those of the list that is asked for.

    Args:
        members (`dict[str, PreTrainedModel]`): Models over the items of the data set, by a name for each.
        prepared ([`PreparedDataset`]): The data set; its validation split alone is read.
        combination (`str`, *optional*, defaults to `"standardised"`): See [`EnsembleConfig`].
        num_candidates (`int`, *optional*, defaults to 50): See [`EnsembleConfig`].
        exclude_seen (`bool`, *optional*, defaults to `False`):
            Of which lists the report speaks first: those without items of the history, or the others.
        max_users (`int`, *optional*, defaults to 6000): Use a sample of this many validation users. `None` means all.
        seed (`int`, *optional*, defaults to 0): Of the sample, and of its halves.

    Returns:
        The [`EnsembleForItemGeneration`] and a `dict`: `scores` (what is added up), `weights` (of a size that makes
        the softmax of the sums probabilities that mean something), and `ndcg@10` with the pairs of halves (searched,
        held out) of the weighted sum (`chosen`), of equal weights (`equal`) and of each score `alone`. The same three
        of the other lists stand under `seen_excluded` or `seen_allowed`.
    """
    found = items_fingerprint(prepared.item_ids)
    for name, member in members.items():
        if member.config.items_fingerprint not in (None, found) or member.config.num_items != len(prepared.item_ids):
            raise ValueError(f"The member {name} is not about the items of {prepared.folder}, in their order.")
    settings: dict[str, Any] = {"combination": combination, "num_candidates": num_candidates}
    model = EnsembleForItemGeneration.of(list(members.values()), **settings)
    histories, targets = validation_users(prepared, max_users=max_users, seed=seed)
    pools = _Pool.of(model, histories, targets, prepared.item_ids)
    is_searched = np.random.default_rng(seed).permutation(len(histories)) % 2 == 0
    chosen = {column: _searched_weights(pool, is_searched) for column, pool in pools.items()}
    for column, weights in chosen.items():
        model.config.weights = weights.tolist()
        chosen[column] = weights * _likeliest(model, histories, targets, prepared.item_ids)
    model.config.weights, model.config.weights_with_seen = chosen[True].tolist(), chosen[False].tolist()
    names = _names(model, members)
    shown = {column: _shown(pool, chosen[column], is_searched, names) for column, pool in pools.items()}
    other = "seen_allowed" if exclude_seen else "seen_excluded"
    report: dict[str, Any] = {
        "scores": names,
        "weights": chosen[exclude_seen].tolist(),
        "ndcg@10": shown[exclude_seen],
    }
    report[other] = {"weights": chosen[not exclude_seen].tolist(), "ndcg@10": shown[not exclude_seen]}
    searched, held_out = report["ndcg@10"]["chosen"]
    if searched - held_out > _NOTABLE:
        logger.warning(
            "ndcg@10 is %.4f on the users that the weights were chosen for and %.4f on others: the data set has few.",
            searched,
            held_out,
        )
    return model, report


def _shown(
    pool: _Pool, weights: NDArray[np.float64], is_searched: NDArray[np.bool_], names: list[str]
) -> dict[str, Any]:
    """ndcg@10 on both halves of the users: of the weighted sum, of equal weights and of each score alone."""

    def halves(weights: NDArray[np.float64]) -> list[float]:
        ranks = pool.ranks(weights)
        return [ndcg_at_k(ranks[half], k=10) if half.any() else 0.0 for half in (is_searched, ~is_searched)]

    alone = {name: halves(row) for name, row in zip(names, np.eye(len(names)), strict=True)}
    return {"chosen": halves(weights), "equal": halves(np.ones(len(names))), "alone": alone}


@dataclass(frozen=True)
class _Pool:
    """The scores of some items of each user: the target, then the best 100 of each single score."""

    values: NDArray[np.float32]  # (num_users, num_places, num_scores); NaN where a place is not taken
    is_before: NDArray[np.bool_]  # (num_users, num_places): items that stand before the target where scores are equal

    @classmethod
    def of(
        cls,
        model: EnsembleForItemGeneration,
        histories: list[list[str]],
        targets: Sequence[str],
        item_ids: Sequence[str],
    ) -> dict[bool, _Pool]:
        """Of these users, by whether items of the history are excluded: they take no place then."""
        parts: dict[bool, list[Any]] = {True: [], False: []}
        for start in range(0, len(histories), _USERS_AT_ONCE):
            some = histories[start : start + _USERS_AT_ONCE]
            own = torch.from_numpy(item_indices([targets[start : start + _USERS_AT_ONCE]], item_ids=item_ids)[0])
            taken = torch.from_numpy(history_matrix(some, item_ids=item_ids).toarray() > 0)
            with torch.no_grad():
                scores: Any = list(model.member_scores(as_tokens(some, item_ids, model.config)))  # type: ignore[arg-type]
            for exclude_seen, rows in parts.items():
                rows.append(_places(scores, own, taken if exclude_seen else torch.zeros_like(taken)))
        return {column: cls(*map(np.concatenate, zip(*rows, strict=True))) for column, rows in parts.items()}

    def ranks(self, weights: NDArray[np.float64]) -> NDArray[np.int64]:
        """0-based rank of each target by the weighted sum."""
        total = self.values @ weights.astype(np.float32)
        target = total[:, :1]
        ranks = ((total > target) | ((total == target) & self.is_before)).sum(axis=1)
        return np.where(np.isnan(target[:, 0]), total.shape[1], ranks)  # a target that may not be listed


def _places(
    scores: list[torch.Tensor], targets: torch.Tensor, seen: torch.Tensor
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Rows of a [`_Pool`]."""
    length = min(_NUM_BEST, seen.shape[1])
    best = [row.masked_fill(seen, -float("inf")).topk(length).indices for row in scores]
    items = torch.cat([targets.unsqueeze(1), *best], dim=1)  # (B, 1 + num_scores * length)
    order = items.sort(dim=1, stable=True)
    is_again = torch.nn.functional.pad(order.values[:, 1:] == order.values[:, :-1], (1, 0))
    is_out = torch.zeros_like(is_again).scatter(1, order.indices, is_again) | seen.gather(1, items)
    values = torch.stack([row.gather(1, items).masked_fill(is_out, float("nan")) for row in scores], dim=2)
    return values.numpy(), (items < targets.unsqueeze(1)).numpy()


def _searched_weights(pool: _Pool, is_searched: NDArray[np.bool_]) -> NDArray[np.float64]:
    """
    The best that climbs from equal weights and from one score ahead of the others end at; the largest becomes 1.

    One climb alone ends where no single weight can be changed: on Beauty 0.003 below another one's end, on the users
    that were not searched on.
    """
    half = _Pool(pool.values[is_searched], pool.is_before[is_searched])
    num_scores = pool.values.shape[2]
    starts = [np.ones(num_scores)]
    if num_scores > 2:
        starts += [*np.where(np.eye(num_scores) > 0, 1.0, _BEHIND)]
    ends = [_climbed(half, start) for start in starts]
    best, weights = max(ends, key=lambda end: end[0])  # of equal ones the first
    logger.info("weights %s: ndcg@10 %.4f", np.round(weights / weights.max(), 3).tolist(), best)
    return weights / weights.max()


def _climbed(half: _Pool, weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """One weight at a time is multiplied by some factors, until a round changes nothing; with the ndcg@10 there."""

    def ndcg(weights: NDArray[np.float64]) -> float:
        return ndcg_at_k(half.ranks(weights), k=10)

    best = ndcg(weights)
    for _ in range(_MOST_ROUNDS):
        before = best
        for place, weight in enumerate(weights.copy()):
            for factor in _FACTORS:
                tried = weights.copy()
                tried[place] = factor * (weight or 0.25)
                found = ndcg(tried) if tried.any() else -1.0
                if found > best:
                    best, weights = found, tried
        if best == before:
            break
    return best, weights


@torch.no_grad()
def _likeliest(
    model: EnsembleForItemGeneration, histories: list[list[str]], targets: list[str], item_ids: list[str]
) -> float:
    some = slice(_CALIBRATION_USERS)
    tokens: Any = as_tokens(histories[some], item_ids, model.config)
    logits = torch.cat([model.item_logits(part) for part in tokens.split(_USERS_AT_ONCE)])
    return likeliest_factor(logits, torch.from_numpy(item_indices([targets[some]], item_ids=item_ids)[0]))


def likeliest_factor(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """
    The factor on logits under whose softmax the targets are most likely, between 0.007 and 3,000.

    Args: scores of all items `(num_users, num_items)`, and the item index of each target.

    >>> logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])  # right for three users of four
    >>> round(likeliest_factor(logits, torch.tensor([0, 0, 0, 0])), 2)  # log 3
    1.1
    """

    def loss(exponent: float) -> float:
        return torch.nn.functional.cross_entropy(logits * float(np.exp(exponent)), targets).item()

    return float(np.exp(scipy.optimize.minimize_scalar(loss, bounds=(-5, 8), method="bounded").x))


def as_tokens(histories: Sequence[Sequence[str]], item_ids: Sequence[str], config: Any) -> torch.Tensor:
    """
    Histories as item tokens, padded on the right.

    Args: item ids of the catalog per user, oldest first; the catalog; and the config of the model that reads them.
    """
    latest = [history[-config.max_history_length :] for history in histories]
    items = item_indices(latest, item_ids=item_ids, k=max(1, *map(len, latest)))
    return torch.from_numpy(np.where(items >= 0, items + config.first_item_token, 0))


def _names(model: EnsembleForItemGeneration, members: Mapping[str, Any]) -> list[str]:
    """The scores by the names of the members."""
    names = []
    for name, member in members.items():
        names += [name, f"{name}, dense head"] if getattr(member.config, "dense_head", False) else [name]
    return names
