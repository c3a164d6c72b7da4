"""
Balanced hierarchical k-means whose codes mean the same in every cluster: level 1 cuts all items into clusters of equal
size, level 2 the members of each, and the children of all clusters are named after one shared set of directions.
"""

from collections.abc import Iterator

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from tqdm.auto import tqdm

from hf_genrec.tokenizers.base import PROGRESS_DELAY, Quantizer, squared_distances
from hf_genrec.tokenizers.rqvae_network import balancing_shifts


_EPSILON, _ROUNDS = 0.01, 100  # of the balancing


class GAOQ(Quantizer):
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
    has_codebooks = False

    def __init__(
        self, *, num_levels: int = 2, codebook_size: int = 64, seed: int = 1234, num_iterations: int = 10
    ) -> None:
        super().__init__(num_levels=num_levels, codebook_size=codebook_size, seed=seed)
        if num_iterations < 1:
            raise ValueError(f"`num_iterations` must be at least 1, got {num_iterations}.")
        self.num_iterations = num_iterations
        # Per level its nodes, ascending by key. The key of a node is that of its parent times K, plus its own code.
        self._keys: list[np.ndarray] = []
        self._centroids: list[np.ndarray] = []  # (num_nodes, dim) each
        self._shifts: list[np.ndarray] = []  # (num_nodes,) each: taken off the squared distance

    @classmethod
    def default_codebook_size(cls, *, num_levels: int, num_items: int, num_rows: int) -> int:
        """See [`Quantizer.default_codebook_size`]: one level more, the appended one, has room for twice the items."""
        return next((2**bits for bits in range(1, 15) if 2 ** (bits * (num_levels + 1)) >= 2 * num_items), 2**15)

    @property
    def _least_rows(self) -> int:
        return 1

    def _fit(self, rows: np.ndarray, *, show_progress: bool) -> None:
        random = np.random.default_rng(self.seed)
        directions = random.normal(size=(self.codebook_size, rows.shape[1]))
        if self.codebook_size <= rows.shape[1]:
            directions = np.linalg.qr(directions.T)[0].T  # (K, dim), orthonormal; in fewer dimensions as drawn
        parents = np.zeros(len(rows), dtype=np.int64)  # the key of each row's node of the level before
        around = rows.mean(axis=0)[None]
        self._keys, self._centroids, self._shifts = [], [], []
        total = self.num_levels * len(rows)
        with tqdm(total=total, desc="Clusters", delay=PROGRESS_DELAY, disable=not show_progress) as progress:
            for _ in range(self.num_levels):
                keys, centroids, shifts = [], [], []
                nodes, members_of = _groups(parents)
                for node, center, members in zip(nodes, around, members_of, strict=True):
                    found, shift, own = balanced_clusters(
                        rows[members], self.codebook_size, num_iterations=self.num_iterations, random=random
                    )
                    codes = _aligned(found - center, directions)
                    parents[members] = node * self.codebook_size + codes[own]
                    order = np.argsort(codes)
                    keys.append(node * self.codebook_size + codes[order])
                    centroids.append(found[order])
                    shifts.append(shift[order])
                    progress.update(len(members))
                self._keys.append(np.concatenate(keys))
                self._centroids.append(np.concatenate(centroids).astype(np.float32))
                self._shifts.append(np.concatenate(shifts).astype(np.float32))
                around = self._centroids[-1][np.searchsorted(self._keys[-1], np.unique(parents))]

    def _encode(self, rows: np.ndarray) -> np.ndarray:
        """From the root down to the nearest child, after the shifts."""
        codes = np.empty((len(rows), self.num_levels), dtype=np.int64)
        parents = np.zeros(len(rows), dtype=np.int64)
        for level, (keys, centroids, shifts) in enumerate(zip(self._keys, self._centroids, self._shifts, strict=True)):
            for node, members in zip(*_groups(parents), strict=True):
                first, end = np.searchsorted(keys, [node * self.codebook_size, (node + 1) * self.codebook_size])
                own = (squared_distances(rows[members], centroids[first:end]) - shifts[first:end]).argmin(axis=1)
                parents[members] = keys[first + own]
            codes[:, level] = parents % self.codebook_size
        return codes

    def _approximations(self, codes: np.ndarray) -> Iterator[np.ndarray]:
        """The centroid of the cluster at each depth."""
        nodes = np.zeros(len(codes), dtype=np.int64)
        for keys, centroids, column in zip(self._keys, self._centroids, codes.T, strict=False):
            nodes = nodes * self.codebook_size + column
            places = np.minimum(np.searchsorted(keys, nodes), len(keys) - 1)
            wrong = np.flatnonzero(keys[places] != nodes)
            if len(wrong):
                raise ValueError(
                    f"`codes` must be those of the tree; no cluster has {len(wrong)} of them, first row {wrong[0]}: "
                    f"{codes[wrong[0]].tolist()}."
                )
            yield centroids[places]

    def _shapes(self, dim: int) -> dict[str, tuple[int | None, ...]]:
        shapes: dict[str, tuple[int | None, ...]] = {"keys": (None,), "centroids": (None, dim), "shifts": (None,)}
        return {f"{name}_{level}": shape for name, shape in shapes.items() for level in range(self.num_levels)}

    def _tensors(self) -> dict[str, np.ndarray]:
        parts = {"keys": self._keys, "centroids": self._centroids, "shifts": self._shifts}
        return {f"{name}_{level}": each for name, levels in parts.items() for level, each in enumerate(levels)}

    def _restore(self, tensors: dict[str, np.ndarray]) -> None:  # type: ignore[override]
        for name, levels in (("keys", self._keys), ("centroids", self._centroids), ("shifts", self._shifts)):
            levels[:] = [tensors[f"{name}_{level}"] for level in range(self.num_levels)]


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


def _groups(keys: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The distinct keys, ascending, and the rows that have each."""
    order = np.argsort(keys, kind="stable")
    found, starts = np.unique(keys[order], return_index=True)
    return found, np.split(order, starts[1:]) if len(keys) else []


def _aligned(steps: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """A code of its own for each child: the directions to which the steps are closest, all in all."""
    lengths = np.linalg.norm(steps, axis=1, keepdims=True)
    cosines = (steps / np.where(lengths > 0, lengths, 1.0)) @ directions.T  # (children, K): K at least as many
    return linear_sum_assignment(cosines, maximize=True)[1]
