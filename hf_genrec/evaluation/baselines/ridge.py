"""
The sequential ridge regression: which item comes next, as a linear function of the history, in closed form.

A row `x` for each position of the training part, the history before it with `decay ** age` at its items, and a row `y`
with a 1 at the item that came. The weights are `B = (X'X + regularization I)^-1 X'Y`, one least-squares problem per
target item. Restricted to the items that stood before the target most, each problem is small.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from numpy.typing import NDArray

from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.data.splits import flat_sequences
from hf_genrec.evaluation.baselines.base import Tuning
from hf_genrec.evaluation.baselines.sparse import SparseRanker


MAX_WHOLE = 5_000  # items up to which all weights are solved for together: seconds, and 100 MB
NUM_NEIGHBORS = 200
MOST_NEIGHBORS = 20_000  # a dense system of so many items takes 3 GB
_LEAST_WEIGHT, _MOST_AGES = 1e-3, 100  # of a history item in `X`; what is older or weighs less is left out
_ROWS_AT_ONCE = 1024
_FEW_NEIGHBORS, _ENTRIES_AT_ONCE = 24, 2**22  # of a target that is solved with others, and of their systems


class SequentialRidge(SparseRanker):
    """
    Ridge regression of the next item on the history; the strongest baseline, after seconds on a catalog of 12,000.

    Unlike [`ItemKNN`] it weighs what a history item says beside the others: an item that always follows the same two
    is not counted twice, and items that exclude each other get negative weights, seen items among them. An item scores
    the sum of the weights of the history items, each times `decay ** age` (age 0 is the latest item).

    Args:
        prepared ([`PreparedDataset`]): The data set; only its training part is read.
        regularization (`float`, *optional*, defaults to 100.0):
            What is added to the diagonal of `X'X`; the larger, the less rare items are trusted.
        decay (`float`, *optional*, defaults to 0.5): See [`CatalogRanker`].
        num_weights (`int`, *optional*, defaults to 50):
            Weights that are kept of each history item, the largest in magnitude. `None` keeps all.
        num_neighbors (`int`, *optional*):
            History items that each target's problem is restricted to, those with the most weight before it; as many as
            there are items is the whole problem. `None` for the whole problem up to 5,000 items and 200 above: memory
            does not grow with the square of the catalog.

    Raises:
        ValueError: If an argument is out of range, or asks for a dense system of more than 20,000 items.

    Source: ours, in the family of EASE (Steck 2019, https://arxiv.org/abs/1905.03375) and SLIST (Choi et al. 2021,
    https://arxiv.org/abs/2103.16104); the restriction as in Steck 2019 (https://arxiv.org/abs/1910.09645). The
    defaults were chosen on the validation splits of Amazon Beauty 2014 and Scientific 2018.
    """

    title = "ridge"
    setting_names = ("regularization", "decay")

    def __init__(
        self,
        prepared: PreparedDataset,
        *,
        regularization: float = 100.0,
        decay: float = 0.5,
        num_weights: int | None = 50,
        num_neighbors: int | None = None,
    ) -> None:
        if not 0 < regularization < np.inf:
            raise ValueError(f"`regularization` must be a finite number above 0, got {regularization}.")
        for name, value in {"num_weights": num_weights, "num_neighbors": num_neighbors}.items():
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1 or None, got {value}.")
        super().__init__(prepared, decay=decay)
        self.regularization = regularization
        self.num_weights = num_weights
        self.num_neighbors = num_neighbors
        largest = min(num_neighbors or 0, len(self.item_ids))
        if largest > MOST_NEIGHBORS:
            raise ValueError(
                f"`num_neighbors` is {num_neighbors}, and a dense system of {largest:,} items would take "
                f"{largest**2 * 8 / 1e9:,.0f} GB. Give at most {MOST_NEIGHBORS:,}, or None for {NUM_NEIGHBORS}."
            )
        sequences = flat_sequences(prepared.split("train").with_format("arrow")[:], self.item_ids)
        self._products = _Products.of(*sequences, decay=decay, num_items=len(self.item_ids))
        self.item_weights = self._solved()

    @classmethod
    def for_columns(cls, prepared: PreparedDataset, *, seed: int = 0) -> dict[bool, Self]:
        """See [`CatalogRanker.for_columns`]."""
        tuning = Tuning(prepared, columns=(False, True), max_users=20_000, seed=seed)
        # this runs in every evaluation: seconds up to 5,000 items, and for 12,000 minutes of CPU time
        few = {"regularizations": (100.0,), "decays": (0.5, 0.7)}
        cls._try_settings(tuning, prepared, **(few if len(prepared.item_ids) > MAX_WHOLE else {}))
        return tuning.best

    @classmethod
    def _try_settings(
        cls,
        tuning: Tuning,
        prepared: PreparedDataset,
        *,
        regularizations: Sequence[float] = (100.0, 30.0, 300.0),
        decays: Sequence[float] = (0.35, 0.5, 0.7, 0.85, 0.95),
    ) -> None:
        """First `decay`, with the first regularization, then `regularization`."""
        if not regularizations or not decays:
            raise ValueError("`tune` needs at least one regularization and one decay.")
        first, *others = regularizations
        for decay in decays:
            tuning.consider(cls(prepared, regularization=first, decay=decay))
        for column, ridge in [*tuning.best.items()]:
            for regularization in others:
                other = copy.copy(ridge)  # with the same products of the log
                other.regularization = regularization
                other.item_weights = other._solved()
                tuning.consider(other, columns=(column,))

    def sparse_scores(self, weights: sp.csr_array) -> sp.csr_array:
        """Sum of the weights of the history items; 0 where nothing in the history has a weight for the item."""
        return (weights @ self.item_weights).tocsr()

    def _solved(self) -> sp.csr_array:
        """Weights `(N, N)`: a row for each history item, a column for each target."""
        num_items = len(self.item_ids)
        most = self.num_neighbors or (num_items if num_items <= MAX_WHOLE else NUM_NEIGHBORS)
        if most >= num_items:
            return _solve_whole(self._products, self.regularization, self.num_weights or num_items)
        return _largest(_solve_neighbors(self._products, self.regularization, most), self.num_weights or num_items)


@dataclass(frozen=True)
class _Products:
    """`X'X` by rows and `X'Y` by columns, both `(N, N)`."""

    history: sp.csr_array
    target: sp.csc_array

    @classmethod
    def of(cls, items: NDArray[np.int32], offsets: NDArray[np.int64], *, decay: float, num_items: int) -> _Products:
        """Of all positions of the sequences that have a history."""
        place = np.arange(len(items)) - np.repeat(offsets[:-1], np.diff(offsets))
        positions = np.flatnonzero(place > 0)
        if not len(positions):
            raise ValueError("The training part holds no user with two items: there is nothing to solve for.")
        rows, columns, values = [], [], []
        for age in range(_MOST_AGES):
            if decay**age < _LEAST_WEIGHT:
                break
            known = np.flatnonzero(place[positions] > age)
            rows.append(known)
            columns.append(items[positions[known] - 1 - age])
            values.append(np.full(len(known), decay**age))
        shape = (len(positions), num_items)
        entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
        history = sp.coo_array(entries, shape=shape).tocsr()  # adds up what stands in a history twice
        places = (items[positions], np.arange(len(positions) + 1))
        target = sp.csr_array((np.ones(len(positions)), *places), shape=shape)
        by_history = history.T.tocsr()
        return cls((by_history @ history).tocsr(), (by_history @ target).tocsc())


def _solve_whole(products: _Products, regularization: float, num_weights: int) -> sp.csr_array:
    """All targets with one Cholesky factor: `N ** 3 / 3` multiplications for it, `2 N ** 3` for the inverse."""
    num_items = products.history.shape[0]
    system = products.history.toarray(order="F").astype(np.float32)
    system[np.diag_indices(num_items)] += regularization
    factor = scipy.linalg.cho_factor(system, overwrite_a=True, check_finite=False)
    by_target = products.target.T.tocsr().astype(np.float32)
    parts = []
    for start in range(0, num_items, _ROWS_AT_ONCE):
        width = min(_ROWS_AT_ONCE, num_items - start)
        unit = np.zeros((num_items, width), dtype=np.float32, order="F")
        unit[start + np.arange(width), np.arange(width)] = 1
        inverse = scipy.linalg.cho_solve(factor, unit, overwrite_b=True, check_finite=False)
        rows = (by_target @ inverse).T  # (width, N): the inverse is symmetric, so its columns are its rows
        if num_weights < num_items:
            least = np.partition(-np.abs(rows), num_weights - 1, axis=1)[:, num_weights - 1 : num_weights]
            rows = np.where(np.abs(rows) >= -least, rows, 0)
        parts.append(sp.csr_array(rows))
    return _largest(sp.vstack(parts, format="coo"), num_weights)


def _solve_neighbors(products: _Products, regularization: float, most: int) -> sp.coo_array:
    """
    Each target with the `most` items before it that say most about it: a small dense problem each. Those of rare
    targets, which are nearly all of a large catalog, are solved many at a time.
    """
    history, target = products.history, products.target
    history.sort_indices()
    scale = np.sqrt(history.diagonal() + regularization)
    sizes, few = np.diff(target.indptr), min(most, _FEW_NEIGHBORS)
    rows, columns, values = [], [], []
    for size in range(1, few + 1):
        items, step = np.flatnonzero(sizes == size), max(1, _ENTRIES_AT_ONCE // size**2)
        for some in (items[start : start + step] for start in range(0, len(items), step)):
            places = target.indptr[some][:, None] + np.arange(size)  # (n, size)
            near, right = target.indices[places], target.data[places]
            rows.append(near.ravel())
            columns.append(np.repeat(some, size))
            values.append(_solve_alike(history, near, right, regularization).ravel())
    place = np.full(len(scale), -1)  # of an item among the neighbours of the target at hand
    for item in np.flatnonzero(sizes > few):
        span = slice(target.indptr[item], target.indptr[item + 1])
        near, right = target.indices[span], target.data[span]
        if len(near) > most:
            kept = np.argpartition(-right / scale[near], most)[:most]
            near, right = near[kept], right[kept]
        place[near] = np.arange(len(near))
        found = history[near].tocoo()
        inside = place[found.coords[1]]
        place[near] = -1
        is_inside = inside >= 0
        system = np.zeros((len(near), len(near)))
        system[found.coords[0][is_inside], inside[is_inside]] = found.data[is_inside]
        system[np.diag_indices(len(near))] += regularization
        values.append(scipy.linalg.solve(system, right, assume_a="pos", overwrite_a=True, check_finite=False))
        rows.append(near)
        columns.append(np.full(len(near), item))
    entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    return sp.coo_array(entries, shape=history.shape)


def _solve_alike(
    history: sp.csr_array, near: NDArray[np.integer], right: NDArray[np.float64], regularization: float
) -> NDArray[np.float64]:
    """Weights `(n, size)` of targets with equally many neighbours `(n, size)`."""
    size = near.shape[1]
    pairs = np.repeat(near, size, axis=1).ravel(), np.tile(near, size).ravel()
    systems = history[pairs].reshape(-1, size, size)
    systems[:, np.arange(size), np.arange(size)] += regularization
    return np.linalg.solve(systems, right[:, :, None])[:, :, 0]


def _largest(weights: sp.coo_array, num_weights: int) -> sp.csr_array:
    """The entries of each row that are largest in magnitude; of equal ones those of the more popular targets."""
    rows, columns = weights.coords
    order = np.lexsort((columns, -np.abs(weights.data), rows))
    rows, columns, data = rows[order], columns[order], weights.data[order].astype(np.float64)
    is_kept = (np.arange(len(rows)) - np.searchsorted(rows, rows) < num_weights) & (data != 0)
    return sp.coo_array((data[is_kept], (rows[is_kept], columns[is_kept])), shape=weights.shape).tocsr()
