"""
Product quantization on faiss: embeddings `(num_items, dim)` in, codes `(num_items, num_levels)` out.

A rotation, then the columns are cut into `num_levels` equal pieces; code `l` is the centroid nearest to piece `l`.
Unlike the levels of a residual quantizer, those of a product quantizer have no order: each describes another part.
"""

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


__all__ = ["ProductQuantizer"]

_TYPE = "product"
_ROUNDS = 50  # of the rotation; faiss' default, and so are all other numbers of iterations
_BLOCK = 2**16  # rows encoded at once
_DELAY = 2.0  # seconds before the progress bar shows


class ProductQuantizer:
    """
    Optimized product quantization: a learned rotation, and k-means in each of `num_levels` subspaces.

    The rotation spreads what the codes lose evenly over the subspaces: 50 rounds of k-means and Procrustes. Codes are
    those of faiss' `OPQ{num_levels},IVF1,PQ{num_levels}x{bits}np` with the inner product (`np`: without a search for
    code numbers whose bits mean something, which takes faiss longer than all the rest and only renames the codes of
    a level). The same rows give the same codes, however many threads there are.

    Args:
        num_levels (`int`, *optional*, defaults to 32):
            Codes per item, at least 1; it must divide the number of columns.
        codebook_size (`int`, *optional*, defaults to 256):
            Centroids per level: a power of two from 2 to 32,768, because faiss counts bits.
        seed (`int`, *optional*, defaults to 1234):
            Seed of the first rotation and of k-means. The default is faiss' own.
        rotate (`bool`, *optional*, defaults to `True`):
            Whether a rotation is learned; without, it is plain product quantization.

    Raises:
        ValueError: If an argument is out of range.

    Source: Ge et al. 2013, the non-parametric solution; settings of Hou et al. 2025, section 3.1
    (https://huggingface.co/papers/2506.05781).

    Example:

    ```python
    >>> points = np.array([[0.0, 1.0], [0.2, 5.0], [8.0, 1.1], [8.1, 5.2], [8.2, 5.1]])
    >>> quantizer = ProductQuantizer(num_levels=2, codebook_size=2, rotate=False).fit(points)
    >>> codes = quantizer.encode(points)
    >>> (codes[:2, 0] == codes[0, 0]).all(), (codes[2:, 0] != codes[0, 0]).all(), codes[0, 1] == codes[2, 1]
    (np.True_, np.True_, np.True_)
    >>> quantizer.decode(codes[:1]).round(2).tolist()
    [[0.1, 1.05]]

    ```
    """

    def __init__(
        self, *, num_levels: int = 32, codebook_size: int = 256, seed: int = 1234, rotate: bool = True
    ) -> None:
        check_sizes(num_levels=num_levels, codebook_size=codebook_size)
        self.num_levels = num_levels
        self.codebook_size = codebook_size
        self.seed = seed
        self.rotate = rotate
        self._rotation: np.ndarray | None = None  # (dim, dim): rotated = rows @ rotation.T
        self._center: np.ndarray | None = None  # (dim,), taken off after the rotation
        self._centroids: np.ndarray | None = None  # (num_levels, codebook_size, dim / num_levels)

    def fit(self, embeddings: np.ndarray, *, show_progress: bool = True) -> "ProductQuantizer":
        """
        Learn the rotation and the codebooks.

        Runs on one thread: with more, rounding and with it the codes would depend on their number. For 12,000 rows of
        128 columns and 32 x 256 centroids that takes about a minute and a half. Of more than 65,536 rows the rotation
        is learned from 65,536.

        Args:
            embeddings (`np.ndarray` of shape `(num_rows, dim)`):
                The rows to learn from, usually those of the items that occur in training.
            show_progress (`bool`, *optional*, defaults to `True`):
                Whether a progress bar is shown once it takes longer than two seconds.

        Returns:
            [`ProductQuantizer`]: itself.

        Raises:
            ValueError: If `num_levels` does not divide `dim`, there are fewer rows than centroids, or NaN or infinity
                among them.
        """
        rows = as_rows(embeddings, at_least=self.codebook_size)
        self._check_dim(rows.shape[1])
        steps = _ROUNDS * self.rotate + 1
        with one_thread(), tqdm(total=steps, desc="Codebooks", delay=_DELAY, disable=not show_progress) as progress:
            rotation = np.eye(rows.shape[1], dtype=np.float32)
            if self.rotate:
                rotation = self._fit_rotation(rows, progress=progress)
            rotated = _linear(rotation).apply(rows)
            index = faiss.IndexIVFPQ(
                faiss.IndexFlatIP(rows.shape[1]),
                rows.shape[1],
                1,
                self.num_levels,
                self._num_bits,
                faiss.METRIC_INNER_PRODUCT,
            )
            self._quieten(index.cp)
            self._quieten(index.pq.cp)
            index.train(rotated)
            progress.update()
        self._rotation = rotation
        self._center = np.array(index.quantizer.reconstruct(0))
        self._centroids = faiss.vector_to_array(index.pq.centroids).reshape(self.num_levels, self.codebook_size, -1)
        return self

    def encode(self, embeddings: np.ndarray) -> np.ndarray:
        """
        Codes of items, seen in training or not.

        Args:
            embeddings (`np.ndarray` of shape `(num_items, dim)`):
                One row per item.

        Returns:
            `np.ndarray` of shape `(num_items, num_levels)`: int64, from 0 to `codebook_size - 1`.

        Raises:
            ValueError: If the quantizer is not fitted, the width differs or a value is not finite.
        """
        rotation, center, centroids = self._fitted()
        rows = as_rows(embeddings, dim=len(center))
        quantizer = faiss.ProductQuantizer(len(center), self.num_levels, self._num_bits)
        faiss.copy_array_to_vector(centroids.ravel(), quantizer.centroids)
        transform = _linear(rotation)
        codes = np.empty((len(rows), self.num_levels), dtype=np.int64)
        with one_thread():
            for start in range(0, len(rows), _BLOCK):
                block = transform.apply(rows[start : start + _BLOCK]) - center
                packed = quantizer.compute_codes(block)
                codes[start : start + _BLOCK] = faiss.unpack_bitstrings(packed, self.num_levels, self._num_bits)
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """
        Approximate embeddings: one centroid per subspace, rotated back.

        Args:
            codes (`np.ndarray` of shape `(num_items, num_levels)`):
                Codes as [`ProductQuantizer.encode`] returns them.

        Returns:
            `np.ndarray` of shape `(num_items, dim)`: float32.

        Raises:
            ValueError: If the quantizer is not fitted, or the shape or a code is wrong.
        """
        rotation, center, centroids = self._fitted()
        codes = as_codes(codes, num_levels=self.num_levels, codebook_size=self.codebook_size)
        pieces = centroids[np.arange(self.num_levels), codes]  # (num_items, num_levels, dim / num_levels)
        return (pieces.reshape(len(codes), -1) + center) @ rotation

    @property
    def codebooks(self) -> np.ndarray:
        """
        `np.ndarray` of shape `(num_levels, codebook_size, dim)`: the centroids among the embeddings, float32.

        The sum of an item's centroids, one per level, is its approximate embedding, as for a residual quantizer; the
        shift that all items share is in the first level.
        """
        rotation, center, centroids = self._fitted()
        width = centroids.shape[2]
        own = rotation.reshape(self.num_levels, width, -1)  # the rows of each subspace
        full = np.matmul(centroids, own)
        full[0] += center @ rotation
        return full

    def save(self, folder: str | Path) -> None:
        """
        Write `config.json` and `quantizer.safetensors`.

        Args:
            folder (`str` or `Path`):
                Created if missing.

        Raises:
            ValueError: If the quantizer is not fitted.
        """
        rotation, center, centroids = self._fitted()
        config = {
            "quantizer_type": _TYPE,
            "num_levels": self.num_levels,
            "codebook_size": self.codebook_size,
            "seed": self.seed,
            "rotate": self.rotate,
            "dim": len(center),
        }
        weights = write_config(folder, config)
        save_file({"rotation": rotation, "center": center, "centroids": centroids}, weights)

    @classmethod
    def load(cls, folder: str | Path) -> "ProductQuantizer":
        """
        Read what [`ProductQuantizer.save`] wrote; the result assigns the same codes.

        Args:
            folder (`str` or `Path`):
                The folder.

        Returns:
            [`ProductQuantizer`]: a fitted quantizer.

        Raises:
            ValueError: If the folder holds another quantizer, or tensors of other shapes than its config says.
        """
        config = read_config(folder, quantizer_type=_TYPE)
        loaded = cls(**{name: config[name] for name in ("num_levels", "codebook_size", "seed", "rotate")})
        dim = config["dim"]
        loaded._check_dim(dim)
        tensors = load_file(Path(folder) / WEIGHTS_NAME)
        expected = {
            "rotation": (dim, dim),
            "center": (dim,),
            "centroids": (loaded.num_levels, loaded.codebook_size, dim // loaded.num_levels),
        }
        found = {name: tensor.shape for name, tensor in tensors.items()}
        if found != expected:
            raise ValueError(f"The tensors in {folder} have the shapes {found}, config.json says {expected}.")
        loaded._rotation, loaded._center, loaded._centroids = (
            np.ascontiguousarray(tensors[name], np.float32) for name in expected
        )
        return loaded

    @property
    def _num_bits(self) -> int:
        return self.codebook_size.bit_length() - 1

    def _check_dim(self, dim: int) -> None:
        if dim % self.num_levels:
            below = dim - dim % self.num_levels
            sizes = f"{below} or {below + self.num_levels}" if below else f"{self.num_levels}"
            raise ValueError(
                f"`num_levels` must divide the columns of `embeddings`, but {self.num_levels} does not divide {dim}. "
                f"Whiten to {sizes} components."
            )

    def _fit_rotation(self, rows: np.ndarray, *, progress: tqdm) -> np.ndarray:
        """faiss' own training, one round per call so that the progress can be told; the result is the same."""
        dim = rows.shape[1]
        first = faiss.RandomRotationMatrix(dim, dim)
        first.init(self.seed)
        rotation = faiss.OPQMatrix(dim, self.num_levels, dim)
        rotation.A = first.A
        quantizer = faiss.ProductQuantizer(dim, self.num_levels, min(8, self._num_bits))  # faiss takes 8 bits here
        self._quieten(quantizer.cp)
        rotation.pq = quantizer
        rotation.niter = 1
        for _ in range(_ROUNDS):
            rotation.train(rows)
            rotation.niter_pq_0 = rotation.niter_pq  # later rounds begin where the last one ended
            progress.update()
        return faiss.vector_to_array(rotation.A).reshape(dim, dim)

    def _quieten(self, parameters: faiss.ClusteringParameters) -> None:
        parameters.seed = self.seed
        parameters.min_points_per_centroid = 1  # silences faiss' advice on stderr; `fit` checks the number of rows

    def _fitted(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self._rotation is None or self._center is None or self._centroids is None:
            raise ValueError("The quantizer is not fitted: call `fit` or `load` first.")
        return self._rotation, self._center, self._centroids


def _linear(matrix: np.ndarray) -> faiss.LinearTransform:
    """faiss' own product of rows and matrix: numpy's rounds differently, which moves a code in a million."""
    transform = faiss.LinearTransform(matrix.shape[1], matrix.shape[0], False)
    faiss.copy_array_to_vector(np.ascontiguousarray(matrix).ravel(), transform.A)
    transform.is_trained = True
    return transform
