"""
Codes by walking down a tree of clusters, and hierarchical k-means on faiss, the plain way to such a tree: level 1
clusters all embeddings, level 2 the members of each cluster, and so on.

What a code means depends on the codes before it, so there is no codebook that items of different clusters share.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping

import faiss
import numpy as np
from tqdm.auto import tqdm

from hf_genrec.tokenizers.base import PROGRESS_DELAY, Quantizer, squared_distances


_TUPLES_PER_ITEM = 8  # clusters differ in size


class TreeQuantizer(Quantizer):
    """
    From the root of a tree down to the nearest child, level by level; subclasses say what the children are.

    Args: see [`HierarchicalKMeans`].
    """

    has_codebooks = False

    def __init__(self, *, num_levels: int, codebook_size: int, seed: int, num_iterations: int) -> None:
        super().__init__(num_levels=num_levels, codebook_size=codebook_size, seed=seed)
        if num_iterations < 1:
            raise ValueError(f"`num_iterations` must be at least 1, got {num_iterations}.")
        self.num_iterations = num_iterations
        # Per level its nodes, ascending by key: the number of the parent in the level before, times K, plus the code.
        self._keys: list[np.ndarray] = []
        self._centroids: list[np.ndarray] = []  # (num_nodes, dim) each
        self._shifts: list[np.ndarray] = []  # (num_nodes,) each: taken off the squared distance

    @abstractmethod
    def _children(self, rows: np.ndarray, center: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Codes (ascending), centroids and shifts of the children of a node, and of each of its rows the child."""

    def _fit(self, rows: np.ndarray, *, show_progress: bool) -> None:
        if not rows.size:
            raise ValueError(f"`embeddings` must have at least one row and one column, its shape is {rows.shape}.")
        parents = np.zeros(len(rows), dtype=np.int64)  # the node of the level before that holds each row
        self._keys, self._centroids, self._shifts = [], [], []
        around = rows.mean(axis=0)[None]
        total = self.num_levels * len(rows)
        with tqdm(total=total, desc="Clusters", delay=PROGRESS_DELAY, disable=not show_progress) as progress:
            for _ in range(self.num_levels):
                keys, centroids, shifts = [], [], []
                num_nodes = 0
                for node, members in zip(*_groups(parents), strict=True):
                    codes, found, shift, own = self._children(rows[members], around[node])
                    keys.append(node * self.codebook_size + codes)
                    centroids.append(found)
                    shifts.append(shift)
                    parents[members] = num_nodes + own
                    num_nodes += len(codes)
                    progress.update(len(members))
                self._keys.append(np.concatenate(keys))
                self._centroids.append(np.concatenate(centroids).astype(np.float32))
                self._shifts.append(np.concatenate(shifts).astype(np.float32))
                around = self._centroids[-1]

    def _encode(self, rows: np.ndarray) -> np.ndarray:
        codes = np.empty((len(rows), self.num_levels), dtype=np.int64)
        nodes = np.zeros(len(rows), dtype=np.int64)
        for level, (keys, centroids, shifts) in enumerate(zip(self._keys, self._centroids, self._shifts, strict=True)):
            first, end = np.searchsorted(keys, [nodes * self.codebook_size, (nodes + 1) * self.codebook_size])
            choosing = np.flatnonzero(end - first > 1)  # the others have one way to go
            for _, places in zip(*_groups(nodes[choosing]), strict=True):
                members = choosing[places]
                children = slice(first[members[0]], end[members[0]])
                distances = squared_distances(rows[members], centroids[children]) - shifts[children]
                first[members] += distances.argmin(axis=1)
            codes[:, level] = keys[first] % self.codebook_size
            nodes = first
        return codes

    def _approximations(self, codes: np.ndarray) -> Iterator[np.ndarray]:
        """The centroid of the cluster at each depth."""
        nodes = np.zeros(len(codes), dtype=np.int64)
        for keys, centroids, column in zip(self._keys, self._centroids, codes.T, strict=False):
            wanted = nodes * self.codebook_size + column
            nodes = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            wrong = np.flatnonzero(keys[nodes] != wanted)
            if len(wrong):
                raise ValueError(
                    f"`codes` must be those of the tree; no cluster has {len(wrong)} of them, first row {wrong[0]}: "
                    f"{codes[wrong[0]].tolist()}."
                )
            yield centroids[nodes]


class HierarchicalKMeans(TreeQuantizer):
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
    least_rows = 0

    def __init__(
        self, *, num_levels: int = 3, codebook_size: int = 256, seed: int = 1234, num_iterations: int = 25
    ) -> None:
        super().__init__(num_levels=num_levels, codebook_size=codebook_size, seed=seed, num_iterations=num_iterations)

    @classmethod
    def default_codebook_size(cls, *, num_levels: int, num_items: int, num_rows: int) -> int:
        """The smallest power of two whose tuples are at least eight times as many as the items."""
        fitting = (2**bits for bits in range(1, 15) if 2 ** (bits * num_levels) >= _TUPLES_PER_ITEM * num_items)
        return next(fitting, 2**15)

    def _fit(self, rows: np.ndarray, *, show_progress: bool) -> None:
        super()._fit(_distinct(rows) if rows.size else rows, show_progress=show_progress)

    def _children(self, rows: np.ndarray, center: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        own = np.arange(len(rows))
        if len(rows) > self.codebook_size:
            points = {"min_points_per_centroid": 1, "max_points_per_centroid": len(rows)}  # all rows, and no advice
            kmeans = faiss.Kmeans(
                rows.shape[1], self.codebook_size, niter=self.num_iterations, seed=self.seed, **points
            )
            kmeans.train(rows)
            centroids = np.asarray(kmeans.centroids)
            used, own = np.unique(squared_distances(rows, centroids).argmin(axis=1), return_inverse=True)
            rows = centroids[used]
        return np.arange(len(rows)), rows, np.zeros(len(rows)), own

    # On disk the children of node `p` are the places `offsets[p]` to `offsets[p + 1]`, each the row of its centroid.

    def _shapes(self, dim: int) -> dict[str, tuple[int | None, ...]]:
        parts = [f"{part}_{level}" for part in ("offsets", "children") for level in range(self.num_levels)]
        return {"centroids": (None, dim)} | dict.fromkeys(parts, (None,))

    def _tensors(self) -> dict[str, np.ndarray]:
        centroids, children = np.unique(np.concatenate(self._centroids), axis=0, return_inverse=True)
        ends, num_parents = np.cumsum([len(keys) for keys in self._keys])[:-1], [1, *map(len, self._keys)]
        tensors = {"centroids": centroids}
        for level, (keys, rows) in enumerate(zip(self._keys, np.split(children.ravel(), ends), strict=True)):
            starts = np.arange(num_parents[level] + 1) * self.codebook_size
            tensors |= {f"offsets_{level}": np.searchsorted(keys, starts), f"children_{level}": rows}
        return tensors

    def _restore(self, tensors: Mapping[str, np.ndarray]) -> None:
        for level in range(self.num_levels):
            offsets, children = tensors[f"offsets_{level}"], tensors[f"children_{level}"]
            parents = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
            self._keys.append(parents * self.codebook_size + np.arange(len(children)) - offsets[parents])
            self._centroids.append(tensors["centroids"][children])
            self._shifts.append(np.zeros(len(children), np.float32))


def _distinct(rows: np.ndarray) -> np.ndarray:
    """Each row once, in an order that does not depend on theirs."""
    rows = rows + np.float32(0.0)  # -0 and 0 are one value
    as_bytes = rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1]))).ravel()
    return rows[np.unique(as_bytes, return_index=True)[1]]


def _groups(keys: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The distinct keys, ascending, and the rows that have each."""
    order = np.argsort(keys, kind="stable")
    found, starts = np.unique(keys[order], return_index=True)
    return found, np.split(order, starts[1:]) if len(keys) else []
