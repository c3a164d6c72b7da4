"""
Hierarchical k-means on faiss: level 1 clusters all embeddings, level 2 the members of each cluster, and so on.

What a code means depends on the codes before it, so there is no codebook that items of different clusters share.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import faiss
import numpy as np
from tqdm.auto import tqdm

from hf_genrec.tokenizers.base import PROGRESS_DELAY, Quantizer, squared_distances


_TUPLES_PER_ITEM = 8  # clusters differ in size


@dataclass(frozen=True, eq=False)
class _Level:
    """Nodes of one level: the children of node `p` are the rows `offsets[p]` to `offsets[p + 1]`, a code each."""

    offsets: np.ndarray  # (num_parents + 1,)
    children: np.ndarray  # (num_nodes,), each the row of its centroid


class HierarchicalKMeans(Quantizer):
    """
    Codes by walking down a tree of k-means clusters in the space of the embeddings.

    A cluster with at most `codebook_size` distinct members is not clustered again: each member gets a code of its
    own, so ids are distinct but for equal embeddings and clusters that are still larger at the last level. Equal
    rows count once. There is no `codebooks`, so of the collision policies only `"append"` and `"keep"` work.

    Args:
        num_levels (`int`, *optional*, defaults to 3): See [`Quantizer`], as for the next two.
        codebook_size (`int`, *optional*, defaults to 256):
            Clusters per node, a power of two. With `codebook_size ** num_levels` a few times the number of items, all
            levels are used; with far more, the last levels have little left to separate.
        seed (`int`, *optional*, defaults to 1234): Of k-means.
        num_iterations (`int`, *optional*, defaults to 25): Of each k-means; faiss' default.

    Raises:
        ValueError: If an argument is out of range.

    Source: Tay et al. 2022, section 3.2 (https://huggingface.co/papers/2202.06991).

    Example:

    ```python
    >>> points = np.array([[0.0, 1.0], [0.2, 1.1], [8.0, 3.0], [8.1, 3.2]])
    >>> codes = HierarchicalKMeans(num_levels=2, codebook_size=2).fit(points).encode(points)
    >>> codes[0, 0] == codes[1, 0], codes[0, 0] == codes[2, 0], sorted(codes.tolist())
    (np.True_, np.False_, [[0, 0], [0, 1], [1, 0], [1, 1]])

    ```
    """

    quantizer_type = "hierarchical_kmeans"
    names = {"hierarchical-kmeans": {}}
    has_codebooks = False

    def __init__(
        self, *, num_levels: int = 3, codebook_size: int = 256, seed: int = 1234, num_iterations: int = 25
    ) -> None:
        super().__init__(num_levels=num_levels, codebook_size=codebook_size, seed=seed)
        if num_iterations < 1:
            raise ValueError(f"`num_iterations` must be at least 1, got {num_iterations}.")
        self.num_iterations = num_iterations
        self._centroids = np.empty((0, 0), np.float32)  # (num_centroids, dim)
        self._levels: list[_Level] = []

    @classmethod
    def default_codebook_size(cls, *, num_levels: int, num_items: int, num_rows: int) -> int:
        """See [`Quantizer.default_codebook_size`]."""
        fitting = (2**bits for bits in range(1, 15) if 2 ** (bits * num_levels) >= _TUPLES_PER_ITEM * num_items)
        return next(fitting, 2**15)

    @property
    def _least_rows(self) -> int:
        return 0

    def _fit(self, rows: np.ndarray, *, show_progress: bool) -> None:
        if not rows.size:
            raise ValueError(f"`embeddings` must have at least one row and one column, its shape is {rows.shape}.")
        rows = _distinct(rows)
        nodes = np.zeros(len(rows), dtype=np.int64)  # the node of the level reached so far that holds each row
        # A member of a cluster that is not split is its own centroid, so the rows themselves are the first centroids.
        centroids, levels = [rows], []
        num_nodes, num_centroids = 1, len(rows)
        total = self.num_levels * len(rows)
        with tqdm(total=total, desc="Clusters", delay=PROGRESS_DELAY, disable=not show_progress) as progress:
            for _ in range(self.num_levels):
                level, codes, found = self._split(rows, nodes, num_nodes, num_centroids, progress=progress)
                nodes = level.offsets[nodes] + codes
                levels.append(level)
                centroids += found
                num_nodes, num_centroids = len(level.children), num_centroids + sum(map(len, found))
        # Keep only the centroids that a node points to.
        used, new_rows = np.unique(np.concatenate([level.children for level in levels]), return_inverse=True)
        self._centroids = np.concatenate(centroids)[used]
        ends = np.cumsum([len(level.children) for level in levels])[:-1]
        children = np.split(new_rows.ravel(), ends)
        self._levels = [_Level(level.offsets, each) for level, each in zip(levels, children, strict=True)]

    def _encode(self, rows: np.ndarray) -> np.ndarray:
        """From the root down to the nearest child."""
        codes = np.empty((len(rows), self.num_levels), dtype=np.int64)
        nodes = np.zeros(len(rows), dtype=np.int64)
        for number, level in enumerate(self._levels):
            codes[:, number] = _walk(rows, nodes, level, self._centroids)
            nodes = level.offsets[nodes] + codes[:, number]
        return codes

    def _approximations(self, codes: np.ndarray) -> Iterator[np.ndarray]:
        """The centroid of the cluster at each depth."""
        nodes = np.zeros(len(codes), dtype=np.int64)
        for level, column in zip(self._levels, codes.T, strict=False):
            wrong = np.flatnonzero(column >= np.diff(level.offsets)[nodes])
            if len(wrong):
                raise ValueError(
                    f"`codes` must be those of the tree; no cluster has {len(wrong)} of them, first row {wrong[0]}: "
                    f"{codes[wrong[0]].tolist()}."
                )
            nodes = level.offsets[nodes] + column
            yield self._centroids[level.children[nodes]]

    def _shapes(self, dim: int) -> dict[str, tuple[int | None, ...]]:
        parts = [f"{part}_{number}" for part in ("offsets", "children") for number in range(self.num_levels)]
        return {"centroids": (None, dim)} | dict.fromkeys(parts, (None,))

    def _tensors(self) -> dict[str, np.ndarray]:
        tensors = {"centroids": self._centroids}
        for number, level in enumerate(self._levels):
            tensors |= {f"offsets_{number}": level.offsets, f"children_{number}": level.children}
        return tensors

    def _restore(self, tensors: Mapping[str, np.ndarray]) -> None:
        numbers = range(self.num_levels)
        self._centroids = tensors["centroids"]
        self._levels = [_Level(tensors[f"offsets_{number}"], tensors[f"children_{number}"]) for number in numbers]

    def _split(
        self, rows: np.ndarray, nodes: np.ndarray, num_nodes: int, num_centroids: int, *, progress: tqdm
    ) -> tuple[_Level, np.ndarray, list[np.ndarray]]:
        """The next level, the code of each row in it, and centroids to be added behind the `num_centroids` known."""
        order = np.argsort(nodes, kind="stable")
        starts = np.searchsorted(nodes[order], np.arange(num_nodes + 1))
        counts = np.diff(starts)  # members; below, children
        codes = np.empty(len(rows), dtype=np.int64)
        codes[order] = np.arange(len(rows)) - starts[nodes[order]]  # right for nodes that are not clustered
        large = np.flatnonzero(counts > self.codebook_size)
        progress.update(int(counts[counts <= self.codebook_size].sum()))
        found = []
        for node in large:
            members = order[starts[node] : starts[node + 1]]
            centroids, codes[members] = self._cluster(rows[members])
            found.append(centroids)
            counts[node] = len(centroids)
            progress.update(len(members))
        offsets = np.concatenate([[0], np.cumsum(counts)])
        children = np.empty(offsets[-1], dtype=np.int64)
        is_small = ~np.isin(nodes, large)
        children[offsets[nodes[is_small]] + codes[is_small]] = np.flatnonzero(is_small)
        for node, centroids in zip(large, found, strict=True):
            children[offsets[node] : offsets[node + 1]] = num_centroids + np.arange(len(centroids))
            num_centroids += len(centroids)
        return _Level(offsets, children), codes, found

    def _cluster(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Centroids that have members, and the centroid of each row."""
        points = {"min_points_per_centroid": 1, "max_points_per_centroid": len(rows)}  # all rows, and no advice
        kmeans = faiss.Kmeans(rows.shape[1], self.codebook_size, niter=self.num_iterations, seed=self.seed, **points)
        kmeans.train(rows)
        centroids = np.asarray(kmeans.centroids)
        used, codes = np.unique(squared_distances(rows, centroids).argmin(axis=1), return_inverse=True)
        return centroids[used], codes


def _distinct(rows: np.ndarray) -> np.ndarray:
    """Each row once, in an order that does not depend on theirs."""
    rows = rows + np.float32(0.0)  # -0 and 0 are one value
    as_bytes = rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1]))).ravel()
    return rows[np.unique(as_bytes, return_index=True)[1]]


def _walk(rows: np.ndarray, nodes: np.ndarray, level: _Level, centroids: np.ndarray) -> np.ndarray:
    """Code of the child nearest to each row, among those of its node."""
    codes = np.zeros(len(rows), dtype=np.int64)
    choosing = np.flatnonzero(np.diff(level.offsets)[nodes] > 1)
    if not len(choosing):
        return codes
    choosing = choosing[np.argsort(nodes[choosing], kind="stable")]
    visited, starts = np.unique(nodes[choosing], return_index=True)
    for node, members in zip(visited, np.split(choosing, starts[1:]), strict=True):
        children = level.children[level.offsets[node] : level.offsets[node + 1]]
        codes[members] = squared_distances(rows[members], centroids[children]).argmin(axis=1)
    return codes
