"""
Product quantization on faiss: a rotation, then the columns are cut into `num_levels` equal pieces; code `l` is the
centroid nearest to piece `l`. Unlike the levels of a residual quantizer, those of a product quantizer have no order:
each describes another part.
"""

import faiss
import numpy as np
from tqdm.auto import tqdm

from hf_genrec.tokenizers.base import PROGRESS_DELAY, Quantizer, one_thread


_ROUNDS = 50  # of the rotation; faiss' default, and so are all other numbers of iterations


class ProductQuantizer(Quantizer):
    """
    Optimized product quantization: a learned rotation, and k-means in each of `num_levels` subspaces.

    The rotation spreads what the codes lose evenly over the subspaces: 50 rounds of k-means and Procrustes, learned
    from 65,536 rows at most. From 256 codes up, codes are those of faiss'
    `OPQ{num_levels},IVF1,PQ{num_levels}x{bits}np` with the inner product (`np`: without a search for code numbers
    whose bits mean something, which takes faiss longer than all the rest and only renames the codes of a level). With
    fewer codes they are not: faiss learns the rotation for 256 centroids whatever the index has, here it is learned
    for as many as there are, as in the paper.

    Args:
        num_levels (`int`, *optional*, defaults to 32): See [`Quantizer`]; it must divide the number of columns.
        codebook_size (`int`, *optional*, defaults to 256): A power of two.
        seed (`int`, *optional*, defaults to 1234): Of the first rotation and of k-means. The default is faiss' own.
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

    quantizer_type = "product"
    names = {"opq": {"rotate": True}, "pq": {"rotate": False}}
    default_whitened = 128
    rows_per_code = 256

    def __init__(
        self, *, num_levels: int = 32, codebook_size: int = 256, seed: int = 1234, rotate: bool = True
    ) -> None:
        super().__init__(num_levels=num_levels, codebook_size=codebook_size, seed=seed)
        self.rotate = rotate
        self._rotation = np.empty((0, 0), np.float32)  # (D, D): rotated = rows @ rotation.T
        self._center = np.empty(0, np.float32)  # (D,), taken off after the rotation
        self._centroids = np.empty((num_levels, codebook_size, 0), np.float32)  # (L, K, D / L)

    def usable_columns(self, dim: int) -> int:
        """See [`Quantizer.usable_columns`]."""
        return dim - dim % self.num_levels

    @property
    def codebooks(self) -> np.ndarray:
        """See [`Quantizer.codebooks`]; rotated back, and the shift that all items share is in the first level."""
        own = self._rotation.reshape(self.num_levels, -1, self.dim)  # (L, D / L, D): the rows of each subspace
        full = np.matmul(self._centroids, own)  # (L, K, D)
        full[0] += self._center @ self._rotation
        return full

    def _fit(self, rows: np.ndarray, *, show_progress: bool) -> None:
        dim = rows.shape[1]
        self._check_dim(dim)
        steps = _ROUNDS * self.rotate + 1
        with tqdm(total=steps, desc="Codebooks", delay=PROGRESS_DELAY, disable=not show_progress) as progress:
            rotation = self._fit_rotation(rows, progress=progress) if self.rotate else np.eye(dim, dtype=np.float32)
            # One inverted list, whose centroid is the mean: the index takes it off, then quantizes the pieces.
            sizes = dim, 1, self.num_levels, self._num_bits
            index = faiss.IndexIVFPQ(faiss.IndexFlatIP(dim), *sizes, faiss.METRIC_INNER_PRODUCT)
            self._quieten(index.cp)
            self._quieten(index.pq.cp)
            index.train(_linear(rotation).apply(rows))
            progress.update()
        self._rotation = rotation
        self._center = np.array(index.quantizer.reconstruct(0))
        self._centroids = faiss.vector_to_array(index.pq.centroids).reshape(self.num_levels, self.codebook_size, -1)

    def _encode(self, rows: np.ndarray) -> np.ndarray:
        quantizer = faiss.ProductQuantizer(self.dim, self.num_levels, self._num_bits)
        faiss.copy_array_to_vector(self._centroids.ravel(), quantizer.centroids)
        with one_thread():
            packed = quantizer.compute_codes(_linear(self._rotation).apply(rows) - self._center)
        return faiss.unpack_bitstrings(packed, self.num_levels, self._num_bits)

    def _shapes(self, dim: int) -> dict[str, tuple[int | None, ...]]:
        self._check_dim(dim)
        pieces = (self.num_levels, self.codebook_size, dim // self.num_levels)
        return {"rotation": (dim, dim), "center": (dim,), "centroids": pieces}

    def _check_dim(self, dim: int) -> None:
        if dim % self.num_levels:
            below = dim - dim % self.num_levels
            sizes = f"{below} or {below + self.num_levels}" if below else f"{self.num_levels}"
            raise ValueError(
                f"`num_levels` must divide the columns of `embeddings`, but {self.num_levels} does not divide {dim}. "
                f"Whiten to {sizes} components."
            )

    def _fit_rotation(self, rows: np.ndarray, *, progress: tqdm) -> np.ndarray:
        """faiss' own training, one round per call so that progress can be shown; the result is the same."""
        dim = rows.shape[1]
        first = faiss.RandomRotationMatrix(dim, dim)
        first.init(self.seed)
        rotation = faiss.OPQMatrix(dim, self.num_levels, dim)
        rotation.A = first.A
        # faiss takes 8 bits here for any index; for fewer codes that rotation would suit others than those in use.
        quantizer = faiss.ProductQuantizer(dim, self.num_levels, min(8, self._num_bits))
        self._quieten(quantizer.cp)
        rotation.pq = quantizer
        rotation.niter = 1
        # Each round quantizes the rotated rows, then solves the Procrustes problem for the rotation that brings the
        # rows closest to their approximations (an SVD), so both steps lower the same error.
        for _ in range(_ROUNDS):
            rotation.train(rows)
            rotation.niter_pq_0 = rotation.niter_pq  # later rounds begin where the last one ended
            progress.update()
        return faiss.vector_to_array(rotation.A).reshape(dim, dim)

    def _quieten(self, parameters: faiss.ClusteringParameters) -> None:
        parameters.seed = self.seed
        parameters.min_points_per_centroid = 1  # silences faiss' advice on stderr; `fit` checks the number of rows


def _linear(matrix: np.ndarray) -> faiss.LinearTransform:
    """faiss' own product of rows and matrix: numpy's rounds differently, which moves a code in a million."""
    transform = faiss.LinearTransform(matrix.shape[1], matrix.shape[0], False)
    faiss.copy_array_to_vector(np.ascontiguousarray(matrix).ravel(), transform.A)
    transform.is_trained = True
    return transform
