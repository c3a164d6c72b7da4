"""
Residual k-means on faiss: level 1 clusters the embeddings, level 2 what level 1 left over, and so on.
"""

from collections.abc import Mapping

import faiss
import numpy as np

from hf_genrec.tokenizers.base import Quantizer


class ResidualKMeans(Quantizer):
    """
    Residual quantizer with k-means codebooks: an item is approximated by the sum of one centroid per level.

    Training grows the dimension step by step (faiss' progressive-dim k-means, 10 iterations); the assignment is a beam
    search for the tuple with the smallest squared error, not a greedy walk.

    Args:
        num_levels (`int`, *optional*, defaults to 3): See [`Quantizer`], as for the next two.
        codebook_size (`int`, *optional*, defaults to 256): A power of two.
        seed (`int`, *optional*, defaults to 1234): Of k-means. The default is faiss' own, which the paper's code uses.
        beam_size (`int`, *optional*, defaults to 5):
            Beams of the assignment, in training too. 1 is the greedy nearest centroid.

    Raises:
        ValueError: If an argument is out of range.

    Source: Hou et al. 2026, published tokenizer settings (https://huggingface.co/papers/2605.06331).

    Example:

    ```python
    >>> points = np.array([[0.0, 1.0], [0.2, 1.1], [8.0, 3.0], [8.1, 3.2], [8.2, 3.1]])
    >>> quantizer = ResidualKMeans(num_levels=1, codebook_size=2).fit(points)
    >>> codes = quantizer.encode(points)
    >>> codes.shape, (codes[:2] == codes[0]).all(), (codes[2:] == codes[2]).all()
    ((5, 1), np.True_, np.True_)
    >>> quantizer.decode(codes[:1]).round(2).tolist(), quantizer.decode(codes[2:3]).round(2).tolist()
    ([[0.1, 1.05]], [[8.1, 3.1]])

    ```
    """

    quantizer_type = "residual_kmeans"
    names = {"residual-kmeans": {}}
    default_whitened = 192
    rows_per_code = 256

    def __init__(self, *, num_levels: int = 3, codebook_size: int = 256, seed: int = 1234, beam_size: int = 5) -> None:
        super().__init__(num_levels=num_levels, codebook_size=codebook_size, seed=seed)
        if beam_size < 1:
            raise ValueError(f"`beam_size` must be at least 1, got {beam_size}.")
        self.beam_size = beam_size
        self._quantizer = self._new_quantizer(1)

    @property
    def codebooks(self) -> np.ndarray:
        """See [`Quantizer.codebooks`]; a copy."""
        flat = faiss.vector_to_array(self._quantizer.codebooks)
        return flat.reshape(self.num_levels, self.codebook_size, self.dim)

    def _fit(self, rows: np.ndarray, *, show_progress: bool) -> None:
        self._quantizer = self._new_quantizer(rows.shape[1])
        if len(rows) < rows.shape[1]:  # the rotation of the progressive k-means needs as many rows as dimensions
            self._quantizer.train_type = faiss.ResidualQuantizer.Train_default
        self._quantizer.train(rows)

    def _encode(self, rows: np.ndarray) -> np.ndarray:
        return faiss.unpack_bitstrings(self._quantizer.compute_codes(rows), self.num_levels, self._num_bits)

    def _shapes(self, dim: int) -> dict[str, tuple[int | None, ...]]:
        return {"codebooks": (self.num_levels, self.codebook_size, dim)}

    def _tensors(self) -> dict[str, np.ndarray]:
        return {"codebooks": self.codebooks}

    def _restore(self, tensors: Mapping[str, np.ndarray]) -> None:
        self._quantizer = self._new_quantizer(self.dim)
        flat = np.ascontiguousarray(tensors["codebooks"], np.float32).ravel()
        faiss.copy_array_to_vector(flat, self._quantizer.codebooks)
        self._quantizer.is_trained = True

    def _new_quantizer(self, dim: int) -> faiss.ResidualQuantizer:
        quantizer = faiss.ResidualQuantizer(dim, self.num_levels, self._num_bits)
        quantizer.train_type = faiss.ResidualQuantizer.Train_progressive_dim
        # With fewer tuples than beams faiss would read the codes of one row out of those of another.
        quantizer.max_beam_size = min(self.beam_size, self.codebook_size**self.num_levels)
        quantizer.cp.seed = self.seed
        quantizer.cp.min_points_per_centroid = 1  # silences faiss' advice on stderr; `fit` checks the number of rows
        return quantizer
