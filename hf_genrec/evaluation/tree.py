"""
Semantic IDs and probabilities of items in, what the decoding tree does to the probabilities out.

The tree holds all prefixes of semantic IDs; its leaves are the items. Two items that share their first `k` of `m`
codes are `2 * (m - k)` edges apart: siblings, which share all codes but the last, are at distance 2. A model that
decodes along the tree multiplies the same `k` numbers into the probabilities of both, which pulls them together. The
functions here measure by how much, for any model: NumPy arrays only, users in rows, items in columns.

Source: Hou et al. 2026, section 3 and appendices B and C (https://huggingface.co/papers/2605.06331).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import logsumexp, xlogy

from hf_genrec.tokenizers.collisions import group_by_codes


def sample_pairs(codes: NDArray[np.integer], *, num_pairs: int = 1024, seed: int = 0) -> dict[int, NDArray[np.int64]]:
    """
    Different pairs of items for each distance in the tree, drawn uniformly from all pairs at that distance.

    Pairs that share all codes are left out.

    Args: semantic IDs of shape `(num_items, num_levels)`, pairs per distance (all if fewer), seed of the draw.
    """
    if num_pairs < 1:
        raise ValueError(f"`num_pairs` must be at least 1, got {num_pairs}.")
    if codes.ndim != 2 or 0 in codes.shape:
        raise ValueError(f"`codes` must have shape (num_items, num_levels), got {codes.shape}.")
    # pairs are numbered, not listed: the draw takes time and memory of the catalog's size, not of its square
    (num_items, num_levels), order, pairs = codes.shape, np.lexsort(codes.T[::-1]), {}
    num_alike = np.cumprod(codes[order[1:]] == codes[order[:-1]], axis=1).sum(axis=1)  # codes that neighbours share

    def ends(num_shared: int) -> NDArray[np.int64]:
        """For each item in order the place behind the last that shares its first `num_shared` codes."""
        bounds = np.append(np.flatnonzero(num_alike < num_shared) + 1, num_items)
        return bounds[np.searchsorted(bounds, np.arange(num_items), side="right")]

    for shared in range(num_levels - 1, -1, -1):
        behind = ends(shared + 1)
        counts = ends(shared) - behind  # later items that share exactly so many codes with each
        totals = np.cumsum(counts)
        if totals[-1] == 0:
            continue
        generator, size = np.random.default_rng([seed, num_levels - shared]), min(num_pairs, int(totals[-1]))
        drawn = np.sort(generator.choice(totals[-1], size=size, replace=False, shuffle=False))
        first = np.searchsorted(totals, drawn, side="right")
        second = behind[first] + drawn - (totals[first] - counts[first])
        pairs[2 * (num_levels - shared)] = order[np.stack([first, second], axis=1)]
    return pairs


def num_neighbours(codes: NDArray[np.integer]) -> dict[int, NDArray[np.int64]]:
    """How many items stand at each distance of each item. Args: `codes` of shape `(num_items, num_levels)`."""
    num_levels = codes.shape[1]
    found = [group_by_codes(codes[:, :shared]) for shared in range(num_levels + 1)]
    sizes = [counts[groups] for groups, counts in found]  # items that share so many first codes with each
    return {2 * (num_levels - shared): sizes[shared] - sizes[shared + 1] for shared in range(num_levels - 1, -1, -1)}


def pair_correlations(probabilities: NDArray[np.floating], pairs: NDArray[np.integer]) -> NDArray[np.float64]:
    """
    Pearson correlation over users of the probabilities of two items.

    Args: `probabilities` (not logarithms) of shape `(num_users, num_items)`; `pairs` of its columns `(num_pairs, 2)`.
    """
    items, columns = np.unique(pairs, return_inverse=True)
    values = np.asarray(probabilities)[:, items].astype(np.float64)
    # rounding leaves a rest where all values are equal, so that is asked of the values themselves
    is_constant = (values == values[:1]).all(axis=0)
    values -= values.mean(axis=0)
    norms = np.sqrt(np.einsum("ui,ui->i", values, values))
    values /= np.where(is_constant | (norms == 0), np.nan, norms)
    first, second = columns.reshape(pairs.shape).T
    return np.clip(np.einsum("up,up->p", values[:, first], values[:, second]), -1.0, 1.0)


def reversal_rates(scores: NDArray[np.floating], pairs: NDArray[np.integer]) -> NDArray[np.float64]:
    """
    Share of pairs of users who order two items oppositely: 0 where all agree, about 1/2 where halves differ.

    The estimate of `2 P(D > 0) P(D < 0)` with `D` the difference of the two scores of a user (lemma B.2).

    Args: `scores` of shape `(num_users, num_items)`, or their logarithms; `pairs` of its columns `(num_pairs, 2)`.
    """
    num_users = len(scores)
    if num_users < 2:
        raise ValueError(f"`scores` must have at least two users, got {num_users}.")
    difference = scores[:, pairs[:, 0]] - scores[:, pairs[:, 1]]
    num_first, num_second = (difference > 0).sum(axis=0), (difference < 0).sum(axis=0)
    return 2.0 * num_first * num_second / (num_users * (num_users - 1))


@dataclass(frozen=True)
class KendallTau:
    """
    Kendall's tau-b of distance and correlation.

    It cannot reach -1, since distances are tied: its floor is `-sqrt(1 - t)` with `t` the share of ties, close to
    -0.816 for three distances of equally many pairs and -0.866 for four. Trees of different depth do not compare.
    """

    tau: float | None  # 0 where the tree does not matter, below it where correlation falls with distance
    low: float | None  # its 95 % spread over pairs of items (a bootstrap), users fixed
    high: float | None


def kendall_tau(correlations: Mapping[int, NDArray[np.floating]], *, seed: int = 0) -> KendallTau:
    """
    Rank correlation of the distance of two items and the correlation of their probabilities.

    Section 5.3 of the paper; the variant is ours: tau-b, since distances are tied.

    Args: `correlations` of pairs by their distance, NaN left out; `seed` of the 200 resamples.
    """
    values = np.concatenate([np.zeros(0), *correlations.values()])
    distances = np.repeat([*correlations], [len(part) for part in correlations.values()])
    is_known = ~np.isnan(values)
    values, distances = values[is_known], distances[is_known]
    if len(np.unique(values)) < 2 or len(np.unique(distances)) < 2:
        return KendallTau(None, None, None)

    def tau(a: NDArray[np.floating], b: NDArray[np.integer]) -> float:
        return float(stats.kendalltau(a, b, variant="b").statistic)

    with warnings.catch_warnings():  # resamples of very few pairs may be all alike
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        interval = stats.bootstrap(
            (values, distances),
            tau,
            paired=True,
            vectorized=False,
            n_resamples=200,
            method="percentile",
            random_state=np.random.default_rng(seed),  # called `rng` since scipy 1.15, which knows both
        ).confidence_interval
    low, high = (None if np.isnan(end) else float(end) for end in interval)
    return KendallTau(tau(values, distances), low, high)


def latent_entropy(log_joint: NDArray[np.floating]) -> NDArray[np.float64]:
    """
    Entropy of the latent given the user, as a share of the most it could be.

    Args: `log_joint` of shape `(num_users, num_latents, num_items)`, of all items; it is normalised per user.
    """
    if log_joint.shape[1] < 2:
        raise ValueError(f"`log_joint` must have at least two latents, got {log_joint.shape[1]}.")
    latents = _normalised(log_joint).sum(axis=2)
    return -xlogy(latents, latents).sum(axis=1) / np.log(log_joint.shape[1]) + 0.0


def latent_information(log_joint: NDArray[np.floating]) -> NDArray[np.float64]:
    """
    Mutual information of latent and item given the user: 0 where the latent says nothing about the item.

    Args: see [`latent_entropy`].
    """
    joint = _normalised(log_joint)
    independent = joint.sum(axis=2, keepdims=True) * joint.sum(axis=1, keepdims=True)
    information = xlogy(joint, joint / np.where(joint > 0, independent, 1.0)).sum(axis=(1, 2))
    return np.maximum(information, 0.0)


def best_latent_differs(best_latents: NDArray[np.integer], pairs: NDArray[np.integer]) -> NDArray[np.float64]:
    """
    Share of users for whom the best latent of one item is not that of the other (proposition C.2).

    Args: `best_latents` of shape `(num_users, num_items)`, those of the best paths; `pairs` of its columns.
    """
    return (best_latents[:, pairs[:, 0]] != best_latents[:, pairs[:, 1]]).mean(axis=0)


def _normalised(log_joint: NDArray[np.floating]) -> NDArray[np.float64]:
    values = np.asarray(log_joint, dtype=np.float64)
    return np.exp(values - logsumexp(values, axis=(1, 2), keepdims=True))
