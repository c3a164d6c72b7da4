"""
Values of two systems for the same users (or the same seeds) in, the difference with its interval and p-value out.

Two systems see the same users, and most users are easy or hopeless for both: the difference per user varies far less
than either value, so paired intervals are narrower than what two intervals side by side suggest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from hf_genrec.evaluation.metrics import bootstrap_interval


DEFAULT_NUM_RESAMPLES = 9999
_CHUNK = 1 << 21  # numbers drawn at a time: 16 MB


@dataclass(frozen=True)
class PairedDifference:
    """
    How far one system is from another, with the evidence for it.

    Args:
        difference (`float`):
            Mean of the values minus mean of the reference's; above 0 where the system is better.
        low (`float` or `None`):
            Lower end of the interval of the difference; `None`, like the next two, where a t-test has no spread to go
            by, as all differences are equal.
        high (`float` or `None`):
            Upper end of the interval of the difference.
        p_value (`float` or `None`):
            Two-sided: how often chance alone makes a difference as large as this one.
        num_pairs (`int`):
            Users or seeds.
    """

    difference: float
    low: float | None
    high: float | None
    p_value: float | None
    num_pairs: int


def paired_difference(
    values: ArrayLike,
    reference: ArrayLike,
    *,
    test: Literal["permutation", "t"] = "permutation",
    confidence: float = 0.95,
    num_resamples: int = DEFAULT_NUM_RESAMPLES,
    seed: int = 0,
) -> PairedDifference:
    """
    Difference of two means over the same users: bootstrap interval and p-value of a paired test.

    Args:
        values (`np.ndarray` of shape `(num_users,)`):
            One value per user of a system, such as [`ndcg_per_user`] gives.
        reference (`np.ndarray` of shape `(num_users,)`):
            The same of the system to compare with, the users in the same order.
        test (`str`, *optional*, defaults to `"permutation"`):
            `"permutation"` flips the signs of the users' differences at random and assumes nothing; `"t"` is the
            paired t-test, which agrees with it where there are many users.
        confidence (`float`, *optional*, defaults to 0.95):
            Confidence of the interval, between 0 and 1.
        num_resamples (`int`, *optional*, defaults to 9999):
            Resamples of the bootstrap and of the permutation test, at least 1.
        seed (`int`, *optional*, defaults to 0):
            Seed of both.

    Returns:
        [`PairedDifference`]

    Raises:
        ValueError: If the two differ in length or hold something else than numbers, or an argument is out of range.

    Example:

    ```python
    >>> paired_difference([1.0, 0.5, 1.0, 0.0], [0.5, 0.0, 0.5, 0.0])
    PairedDifference(difference=0.375, low=0.125, high=0.5, p_value=0.25, num_pairs=4)

    ```
    """
    if test not in ("permutation", "t"):
        raise ValueError(f'`test` must be "permutation" or "t", got {test!r}.')
    differences = _differences(values, reference, least=2 if test == "t" else 1)
    low, high = bootstrap_interval(
        differences, confidence=confidence, num_resamples=num_resamples, seed=seed, is_share=False
    )
    p_value: float | None
    if test == "permutation":
        p_value = sign_flip_p_value(differences, num_resamples=num_resamples, seed=seed)
    else:
        p_value = _t_test(differences, confidence)[2]
    return PairedDifference(float(differences.mean()), low, high, p_value, len(differences))


def seed_difference(values: ArrayLike, reference: ArrayLike, *, confidence: float = 0.95) -> PairedDifference:
    """
    Difference of two means over the same seeds of training, with the interval of the paired t-test.

    Unlike [`paired_difference`], which takes the trained models as given, this tells what another seed would change.
    With two or three seeds the interval is wide; that is what so few seeds can tell. Seeds that all differ by the same
    tell nothing of what another one would do: then there is neither interval nor p-value.

    Args:
        values (`list[float]`):
            A metric of a system, one value per seed.
        reference (`list[float]`):
            The same of the system to compare with, the seeds in the same order.
        confidence (`float`, *optional*, defaults to 0.95):
            Confidence of the interval, between 0 and 1.

    Returns:
        [`PairedDifference`]

    Raises:
        ValueError: If there are fewer than two seeds, the two differ in length, or `confidence` is out of range.

    Example:

    ```python
    >>> found = seed_difference([0.25, 0.5, 0.75], [0.0, 0.125, 0.5])
    >>> round(found.difference, 4), round(found.low, 4), round(found.high, 4), round(found.p_value, 4)
    (0.2917, 0.1124, 0.471, 0.0198)

    ```
    """
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must be between 0 and 1, got {confidence}.")
    differences = _differences(values, reference, least=2)
    low, high, p_value = _t_test(differences, confidence)
    return PairedDifference(float(differences.mean()), low, high, p_value, len(differences))


def sign_flip_p_value(differences: ArrayLike, *, num_resamples: int = DEFAULT_NUM_RESAMPLES, seed: int = 0) -> float:
    """
    Two-sided p-value of the paired permutation test: how often random signs make a sum as far from 0.

    Users without a difference do not matter, and of `n` users with equal differences up to sign, the number that keeps
    it is binomial; so a resample costs one draw per distinct size instead of one per user, with the same distribution.
    Where all combinations of signs are no more than `num_resamples`, they are counted instead.

    Args:
        differences (`np.ndarray` of shape `(num_users,)`):
            Value of one system minus value of the other, per user.
        num_resamples (`int`, *optional*, defaults to 9999):
            How often signs are drawn, at least 1; the smallest p-value is one in `num_resamples + 1`.
        seed (`int`, *optional*, defaults to 0):
            Seed of the draws.

    Returns:
        `float`: above 0, at most 1.

    Raises:
        ValueError: If `num_resamples` is below 1.

    Example:

    ```python
    >>> sign_flip_p_value([0.5, 0.25, 1.0, 0.0])
    0.25

    ```
    """
    if num_resamples < 1:
        raise ValueError(f"`num_resamples` must be at least 1, got {num_resamples}.")
    changed = np.asarray(differences, dtype=np.float64)
    changed = changed[changed != 0]
    if changed.size < 2:
        return 1.0  # one user, whose sign is either
    if changed.size < 64 and 2**changed.size <= num_resamples:
        test = stats.permutation_test(
            (changed,), np.sum, permutation_type="samples", n_resamples=num_resamples, vectorized=True
        )
        return float(test.pvalue)
    sizes, counts = np.unique(np.abs(changed), return_counts=True)
    observed = abs(changed.sum()) * (1 - 1e-12)  # a tie counts, however its sum was rounded
    generator, num_extreme = np.random.default_rng(seed), 0
    rows = max(1, _CHUNK // len(sizes))
    for start in range(0, num_resamples, rows):
        kept = generator.binomial(counts, 0.5, size=(min(rows, num_resamples - start), len(sizes)))
        num_extreme += int((np.abs((2 * kept - counts) @ sizes) >= observed).sum())
    return (num_extreme + 1) / (num_resamples + 1)


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """
    P-values corrected for being several: each stays below a level only as often as one alone would.

    Args:
        p_values (`list[float]`):
            One per comparison.

    Returns:
        `list[float]`: in the same order, each at least as large as before and at most 1.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.

    Example:

    ```python
    >>> holm_adjusted([0.25, 0.0625, 0.125])
    [0.25, 0.1875, 0.25]

    ```
    """
    array = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(array)
    factors = np.arange(len(array), 0, -1)
    adjusted = np.empty_like(array)
    adjusted[order] = np.minimum(np.maximum.accumulate(array[order] * factors), 1.0)
    return adjusted.tolist()


def _differences(values: ArrayLike, reference: ArrayLike, *, least: int) -> NDArray[np.float64]:
    first, second = np.asarray(values, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or len(first) < least:
        raise ValueError(
            f"`values` and `reference` must be two vectors of the same length, at least {least}; "
            f"got the shapes {first.shape} and {second.shape}."
        )
    differences = first - second
    if not np.isfinite(differences).all():
        raise ValueError("`values` and `reference` must be finite numbers; leave out nobody, count a miss as 0.")
    return differences


def _t_test(
    differences: NDArray[np.float64], confidence: float
) -> tuple[float, float, float] | tuple[None, None, None]:
    """Interval and p-value; nothing without a spread beyond rounding, since the test goes by nothing else."""
    if np.ptp(differences) <= 1e-12 * np.abs(differences).max():
        return None, None, None
    test = stats.ttest_1samp(differences, 0.0)
    interval = test.confidence_interval(confidence)
    return float(interval.low), float(interval.high), float(test.pvalue)
