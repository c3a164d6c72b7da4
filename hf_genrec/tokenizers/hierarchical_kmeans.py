"""
Hierarchical k-means on faiss: embeddings `(num_items, dim)` in, codes `(num_items, num_levels)` out.

A tree of clusters: level 1 clusters all embeddings, level 2 the members of each cluster, and so on. What a code means
depends on the codes before it, so there is no codebook that items of different clusters share.
"""

from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
from safetensors.numpy import load_file, save_file
from tqdm.auto import tqdm

from hf_genrec.tokenizers.base import (
    WEIGHTS_NAME,
    as_codes,
    as_rows,
    check_sizes,
    one_thread,
    read_config,
    write_config,
)


__all__ = ["HierarchicalKMeans"]

_TYPE = "hierarchical_kmeans"
_BLOCK = 2**16  # rows encoded at once
_DELAY = 2.0  # seconds before the progress bar shows


@dataclass(frozen=True, eq=False)
class _Level:
    """Nodes of one level: the children of node `p` are the rows `offsets[p]` to `offsets[p + 1]`, a code each."""

    offsets: np.ndarray  # (num_parents + 1,)
    children: np.ndarray  # (num_nodes,), each the row of its centroid


class HierarchicalKMeans:
    """
    Codes by walking down a tree of k-means clusters in the space of the embeddings.

    A cluster with at most `codebook_size` distinct members is not clustered again: each member gets a code of its
    own, so ids are distinct but for equal embeddings and clusters that are still larger at the last level. The same
    rows give the same codes in any order, however many threads there are; equal rows count once. There is no
    `codebooks`, so of the collision policies only `"append"` and `"keep"` work.

    Args:
        num_levels (`int`, *optional*, defaults to 3):
            Codes per item, at least 1.
        codebook_size (`int`, *optional*, defaults to 256):
            Clusters per node: a power of two from 2 to 32,768. With `codebook_size ** num_levels` a few times the
            number of items, all levels are used; with far more, the last levels have little left to tell apart.
        seed (`int`, *optional*, defaults to 1234):
            Seed of the k-means initialisation.
        num_iterations (`int`, *optional*, defaults to 25):
            Iterations of each k-means; faiss' default.

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

    def __init__(
        self, *, num_levels: int = 3, codebook_size: int = 256, seed: int = 1234, num_iterations: int = 25
    ) -> None:
        check_sizes(num_levels=num_levels, codebook_size=codebook_size)
        if num_iterations < 1:
            raise ValueError(f"`num_iterations` must be at least 1, got {num_iterations}.")
        self.num_levels = num_levels
        self.codebook_size = codebook_size
        self.seed = seed
        self.num_iterations = num_iterations
        self._centroids: np.ndarray | None = None  # (num_centroids, dim)
        self._levels: list[_Level] = []

    def fit(self, embeddings: np.ndarray, *, show_progress: bool = True) -> "HierarchicalKMeans":
        """
        Grow the tree, on one thread: with more, rounding and with it the tree would depend on their number.

        Args:
            embeddings (`np.ndarray` of shape `(num_rows, dim)`):
                The rows to learn from, usually those of the items that occur in training.
            show_progress (`bool`, *optional*, defaults to `True`):
                Whether a progress bar is shown once it takes longer than two seconds.

        Returns:
            [`HierarchicalKMeans`]: itself.

        Raises:
            ValueError: If there are no rows, or NaN or infinity among them.
        """
        rows = as_rows(embeddings)
        if not rows.size:
            raise ValueError(f"`embeddings` must have at least one row and one column, its shape is {rows.shape}.")
        rows = _distinct(rows)
        nodes = np.zeros(len(rows), dtype=np.int64)
        centroids, levels = [rows], []
        num_nodes, num_centroids = 1, len(rows)
        total = self.num_levels * len(rows)
        with one_thread(), tqdm(total=total, desc="Clusters", delay=_DELAY, disable=not show_progress) as progress:
            for _ in range(self.num_levels):
                level, codes, found = self._split(rows, nodes, num_nodes, num_centroids, progress=progress)
                nodes = level.offsets[nodes] + codes
                levels.append(level)
                centroids += found
                num_nodes, num_centroids = len(level.children), num_centroids + sum(map(len, found))
        used, new_rows = np.unique(np.concatenate([level.children for level in levels]), return_inverse=True)
        self._centroids = np.concatenate(centroids)[used]
        ends = np.cumsum([len(level.children) for level in levels])[:-1]
        self._levels = [
            _Level(level.offsets, children)
            for level, children in zip(levels, np.split(new_rows.ravel(), ends), strict=True)
        ]
        return self

    def encode(self, embeddings: np.ndarray) -> np.ndarray:
        """
        Codes of items, seen in training or not: from the root down to the nearest child.

        Args:
            embeddings (`np.ndarray` of shape `(num_items, dim)`):
                One row per item.

        Returns:
            `np.ndarray` of shape `(num_items, num_levels)`: int64, from 0 to `codebook_size - 1`.

        Raises:
            ValueError: If the quantizer is not fitted, the width differs or a value is not finite.
        """
        centroids = self._fitted()
        rows = as_rows(embeddings, dim=centroids.shape[1])
        codes = np.zeros((len(rows), self.num_levels), dtype=np.int64)
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            nodes = np.zeros(len(block), dtype=np.int64)
            for number, level in enumerate(self._levels):
                code = _walk(block, nodes, level, centroids)
                codes[start : start + _BLOCK, number] = code
                nodes = level.offsets[nodes] + code
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """
        Approximate embeddings: the centroid of the cluster at the end of the codes.

        Args:
            codes (`np.ndarray` of shape `(num_items, num_levels)`):
                Codes as [`HierarchicalKMeans.encode`] returns them; with fewer columns, the clusters at that depth.

        Returns:
            `np.ndarray` of shape `(num_items, dim)`: float32.

        Raises:
            ValueError: If the quantizer is not fitted, the shape or a code is wrong, or the tree has no such cluster.
        """
        centroids = self._fitted()
        num_levels = min(max(1, np.shape(codes)[-1]), self.num_levels)
        codes = as_codes(codes, num_levels=num_levels, codebook_size=self.codebook_size)
        nodes = np.zeros(len(codes), dtype=np.int64)
        for number, level in enumerate(self._levels[:num_levels]):
            wrong = np.flatnonzero(codes[:, number] >= np.diff(level.offsets)[nodes])
            if len(wrong):
                raise ValueError(
                    f"`codes` must be those of the tree; no cluster has {len(wrong)} of them, first row {wrong[0]}: "
                    f"{codes[wrong[0]].tolist()}."
                )
            nodes = level.offsets[nodes] + codes[:, number]
        return centroids[level.children[nodes]]

    def save(self, folder: str | Path) -> None:
        """
        Write `config.json` and `quantizer.safetensors`.

        Args:
            folder (`str` or `Path`):
                Created if missing.

        Raises:
            ValueError: If the quantizer is not fitted.
        """
        centroids = self._fitted()
        config = {
            "quantizer_type": _TYPE,
            "num_levels": self.num_levels,
            "codebook_size": self.codebook_size,
            "seed": self.seed,
            "num_iterations": self.num_iterations,
            "dim": centroids.shape[1],
        }
        tensors = {"centroids": centroids}
        for number, level in enumerate(self._levels):
            tensors |= {f"offsets_{number}": level.offsets, f"children_{number}": level.children}
        save_file(tensors, write_config(folder, config))

    @classmethod
    def load(cls, folder: str | Path) -> "HierarchicalKMeans":
        """
        Read what [`HierarchicalKMeans.save`] wrote; the result assigns the same codes.

        Args:
            folder (`str` or `Path`):
                The folder.

        Returns:
            [`HierarchicalKMeans`]: a fitted quantizer.

        Raises:
            ValueError: If the folder holds another quantizer, or a tree of another shape than its config says.
        """
        config = read_config(folder, quantizer_type=_TYPE)
        loaded = cls(**{name: config[name] for name in ("num_levels", "codebook_size", "seed", "num_iterations")})
        tensors = load_file(Path(folder) / WEIGHTS_NAME)
        centroids = tensors["centroids"]
        expected = {"centroids"} | {
            f"{part}_{n}" for part in ("offsets", "children") for n in range(loaded.num_levels)
        }
        if set(tensors) != expected or centroids.ndim != 2 or centroids.shape[1] != config["dim"]:
            raise ValueError(
                f"The tree in {folder} has centroids of the shape {centroids.shape} and {(len(tensors) - 1) // 2} "
                f"levels, config.json says {loaded.num_levels} levels and {config['dim']} columns."
            )
        loaded._centroids = centroids
        loaded._levels = [
            _Level(tensors[f"offsets_{number}"], tensors[f"children_{number}"]) for number in range(loaded.num_levels)
        ]
        return loaded

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
        kmeans = faiss.Kmeans(
            rows.shape[1],
            self.codebook_size,
            niter=self.num_iterations,
            seed=self.seed,
            min_points_per_centroid=1,
            max_points_per_centroid=len(rows),
        )
        kmeans.train(rows)
        centroids = np.asarray(kmeans.centroids)
        used, codes = np.unique(_nearest(rows, centroids), return_inverse=True)
        return centroids[used], codes

    def _fitted(self) -> np.ndarray:
        if self._centroids is None:
            raise ValueError("The quantizer is not fitted: call `fit` or `load` first.")
        return self._centroids


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
        codes[members] = _nearest(rows[members], centroids[children])
    return codes


def _nearest(rows: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """In float64, so that rounding, which depends on the batch, decides nothing."""
    centroids = centroids.astype(np.float64)
    return ((centroids**2).sum(axis=1) - 2 * rows @ centroids.T).argmin(axis=1)
