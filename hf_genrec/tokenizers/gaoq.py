"""
Balanced hierarchical k-means whose codes mean the same in every cluster: level 1 cuts all items into clusters of equal
size, level 2 the members of each, and the children of all clusters are named after one shared set of directions.
"""

from collections.abc import Mapping

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from hf_genrec.tokenizers.base import squared_distances
from hf_genrec.tokenizers.hierarchical_kmeans import TreeQuantizer
from hf_genrec.tokenizers.rqvae_network import balancing_shifts


_EPSILON, _ROUNDS = 0.01, 100  # of the balancing


class GAOQ(TreeQuantizer):
    """
    Balanced k-means inside balanced k-means, with aligned codes.

    In a plain tree the second code is a number that means something else under every first code. Here each child,
    seen from its parent's centroid, is matched to one of `codebook_size` orthogonal directions (Hungarian algorithm on
    cosines), so that a code stands for about the same step everywhere, and a model can share what it learns of it.
    Clusters are balanced by a shift of each centroid's distance, which new items get too.

    The levels stop at small clusters on purpose: the collision policy `"append"`, the default, enumerates the members
    of the last one. Two levels make ids of three codes. There is no `codebooks`.

    Args:
        num_levels, codebook_size, seed: See [`Quantizer`]; by default 2 levels of 64 children per cluster.
        num_iterations (`int`, *optional*, defaults to 10): Of each k-means.

    Raises:
        ValueError: If an argument is out of range.

    Source: ReSID, arXiv 2602.02338; there the sizes of the levels differ, such as 32 x 40 x 19.

    Example:

    ```python
    >>> points = np.array([[0.0, 1.0], [0.2, 1.1], [8.0, 3.0], [8.2, 3.1]])
    >>> codes = GAOQ(num_levels=2, codebook_size=2).fit(points).encode(points)
    >>> codes[0, 0] == codes[1, 0], codes[0, 0] == codes[2, 0]
    (np.True_, np.False_)
    >>> codes[0, 1] == codes[2, 1], codes[1, 1] == codes[3, 1]  # the step to the right has one name in both clusters
    (np.True_, np.True_)

    ```
    """

    quantizer_type = "gaoq"
    names = {"gaoq": {}}
    least_rows = 1

    def __init__(
        self, *, num_levels: int = 2, codebook_size: int = 64, seed: int = 1234, num_iterations: int = 10
    ) -> None:
        super().__init__(num_levels=num_levels, codebook_size=codebook_size, seed=seed, num_iterations=num_iterations)

    @classmethod
    def default_codebook_size(cls, *, num_levels: int, num_items: int, num_rows: int) -> int:
        """See [`Quantizer.default_codebook_size`]: one level more, the appended one, has room for twice the items."""
        return next((2**bits for bits in range(1, 15) if 2 ** (bits * (num_levels + 1)) >= 2 * num_items), 2**15)

    def _fit(self, rows: np.ndarray, *, show_progress: bool) -> None:
        self._random = np.random.default_rng(self.seed)
        directions = self._random.normal(size=(self.codebook_size, rows.shape[1]))
        if self.codebook_size <= rows.shape[1]:
            directions = np.linalg.qr(directions.T)[0].T  # (K, dim), orthonormal; in fewer dimensions as drawn
        self._directions = directions
        super()._fit(rows, show_progress=show_progress)

    def _children(self, rows: np.ndarray, center: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        clusters = balanced_clusters(rows, self.codebook_size, num_iterations=self.num_iterations, random=self._random)
        centroids, shifts, own = clusters
        codes = _aligned(centroids - center, self._directions)
        order = np.argsort(codes)
        return codes[order], centroids[order], shifts[order], np.argsort(order)[own]

    # On disk the key of a node is that of its parent, instead of the parent's number, times K, plus its own code.

    def _shapes(self, dim: int) -> dict[str, tuple[int | None, ...]]:
        shapes: dict[str, tuple[int | None, ...]] = {"keys": (None,), "centroids": (None, dim), "shifts": (None,)}
        return {f"{name}_{level}": shape for name, shape in shapes.items() for level in range(self.num_levels)}

    def _tensors(self) -> dict[str, np.ndarray]:
        tensors: dict[str, np.ndarray] = {}
        before = np.zeros(1, dtype=np.int64)
        for level, (keys, centroids, shifts) in enumerate(zip(self._keys, self._centroids, self._shifts, strict=True)):
            parents, codes = np.divmod(keys, self.codebook_size)
            before = before[parents] * self.codebook_size + codes
            tensors |= {f"keys_{level}": before, f"centroids_{level}": centroids, f"shifts_{level}": shifts}
        return tensors

    def _restore(self, tensors: Mapping[str, np.ndarray]) -> None:
        before = np.zeros(1, dtype=np.int64)
        for level in range(self.num_levels):
            parents, codes = np.divmod(tensors[f"keys_{level}"], self.codebook_size)
            self._keys.append(np.searchsorted(before, parents) * self.codebook_size + codes)
            self._centroids.append(tensors[f"centroids_{level}"])
            self._shifts.append(tensors[f"shifts_{level}"])
            before = tensors[f"keys_{level}"]


def balanced_clusters(
    rows: np.ndarray, num_clusters: int, *, num_iterations: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Clusters of about equal size: centroids, what to take off the squared distances to them, and the cluster of each
    row. With no more distinct rows than `num_clusters` each is its own. Args: one row per item, and a generator.
    """
    distinct = np.unique(rows, axis=0)
    if len(distinct) <= num_clusters:
        return distinct, np.zeros(len(distinct)), squared_distances(rows, distinct).argmin(axis=1)
    centroids = _far_apart(distinct, num_clusters, random)
    for _ in range(num_iterations):
        distances = squared_distances(rows, centroids)
        shifts = balancing_shifts(torch.from_numpy(distances), epsilon=_EPSILON, num_iterations=_ROUNDS).numpy()
        own = (distances - shifts).argmin(axis=1)
        sizes = np.bincount(own, minlength=len(centroids))
        sums = np.zeros_like(centroids)
        np.add.at(sums, own, rows)
        centroids = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centroids)
    # The centroids have moved once more: the rows of training must get what any row gets later.
    own = (squared_distances(rows, centroids.astype(np.float32)) - shifts.astype(np.float32)).argmin(axis=1)
    used, own = np.unique(own, return_inverse=True)
    return centroids[used], shifts[used], own


def _far_apart(rows: np.ndarray, num_centroids: int, random: np.random.Generator) -> np.ndarray:
    """Rows to start from as in k-means++: each is drawn by its squared distance to the nearest one before it."""
    chosen = [int(random.integers(len(rows)))]
    nearest = np.full(len(rows), np.inf)
    while len(chosen) < num_centroids:
        nearest = np.minimum(nearest, np.square(rows - rows[chosen[-1]], dtype=np.float64).sum(axis=1))
        chosen.append(int(np.searchsorted(nearest.cumsum(), random.random() * nearest.sum(), side="right")))
    return rows[chosen].astype(np.float64)


def _aligned(steps: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """A code of its own for each child: the directions to which the steps are closest, all in all."""
    lengths = np.linalg.norm(steps, axis=1, keepdims=True)
    cosines = (steps / np.where(lengths > 0, lengths, 1.0)) @ directions.T  # (children, K): K at least as many
    return linear_sum_assignment(cosines, maximize=True)[1]
