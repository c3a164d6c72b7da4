"""
Residual k-means on faiss: embeddings `(num_items, dim)` in, codes `(num_items, num_levels)` out.

Level 1 clusters the embeddings, level 2 what level 1 left over, and so on; an item is approximated by the sum of one
centroid per level.
"""

from pathlib import Path

import faiss
import numpy as np
from safetensors.numpy import load_file, save_file

from hf_genrec.tokenizers.base import (
    WEIGHTS_NAME,
    as_codes,
    as_rows,
    check_sizes,
    one_thread,
    read_config,
    write_config,
)


__all__ = ["ResidualKMeans"]

_TYPE = "residual_kmeans"


class ResidualKMeans:
    """
    Residual quantizer with k-means codebooks.

    Training grows the dimension step by step (faiss' progressive-dim k-means, 10 iterations); the assignment is a beam
    search for the tuple with the smallest squared error, not a greedy walk. The same input gives the same codes,
    however it is cut into batches and however many threads there are.

    Args:
        num_levels (`int`, *optional*, defaults to 3):
            Codes per item, at least 1.
        codebook_size (`int`, *optional*, defaults to 256):
            Centroids per level: a power of two from 2 to 32,768, because faiss counts bits.
        seed (`int`, *optional*, defaults to 1234):
            Seed of the k-means initialisation. The default is faiss' own, which the paper's code uses.
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

    def __init__(self, *, num_levels: int = 3, codebook_size: int = 256, seed: int = 1234, beam_size: int = 5) -> None:
        check_sizes(num_levels=num_levels, codebook_size=codebook_size)
        if beam_size < 1:
            raise ValueError(f"`beam_size` must be at least 1, got {beam_size}.")
        self.num_levels = num_levels
        self.codebook_size = codebook_size
        self.seed = seed
        self.beam_size = beam_size
        self._quantizer: faiss.ResidualQuantizer | None = None

    def fit(self, embeddings: np.ndarray) -> "ResidualKMeans":
        """
        Learn the codebooks.

        Runs on one thread: with more, rounding and with it the codebooks would depend on their number.

        Args:
            embeddings (`np.ndarray` of shape `(num_rows, dim)`):
                The rows to learn from, usually those of the items that occur in training.

        Returns:
            [`ResidualKMeans`]: itself.

        Raises:
            ValueError: If there are fewer rows than centroids, or NaN or infinity among them.
        """
        embeddings = as_rows(embeddings, at_least=self.codebook_size)
        quantizer = self._new_quantizer(embeddings.shape[1])
        with one_thread():
            quantizer.train(embeddings)
        self._quantizer = quantizer
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
        quantizer = self._fitted()
        embeddings = as_rows(embeddings, dim=quantizer.d)
        packed = quantizer.compute_codes(embeddings)
        return faiss.unpack_bitstrings(packed, self.num_levels, self._num_bits).astype(np.int64)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """
        Approximate embeddings: the sum of one centroid per level.

        Args:
            codes (`np.ndarray` of shape `(num_items, num_levels)`):
                Codes as [`ResidualKMeans.encode`] returns them.

        Returns:
            `np.ndarray` of shape `(num_items, dim)`: float32.

        Raises:
            ValueError: If the shape or a code is wrong.
        """
        codebooks = self.codebooks
        codes = as_codes(codes, num_levels=self.num_levels, codebook_size=self.codebook_size)
        return np.sum([codebooks[level][codes[:, level]] for level in range(self.num_levels)], axis=0)

    @property
    def codebooks(self) -> np.ndarray:
        """`np.ndarray` of shape `(num_levels, codebook_size, dim)`: the centroids, float32, a copy."""
        flat = faiss.vector_to_array(self._fitted().codebooks)
        return flat.reshape(self.num_levels, self.codebook_size, -1)

    def save(self, folder: str | Path) -> None:
        """
        Write `config.json` and `quantizer.safetensors`.

        Args:
            folder (`str` or `Path`):
                Created if missing.

        Raises:
            ValueError: If the quantizer is not fitted.
        """
        codebooks = self.codebooks
        config = {
            "quantizer_type": _TYPE,
            "num_levels": self.num_levels,
            "codebook_size": self.codebook_size,
            "seed": self.seed,
            "beam_size": self.beam_size,
            "dim": codebooks.shape[2],
        }
        save_file({"codebooks": codebooks}, write_config(folder, config))

    @classmethod
    def load(cls, folder: str | Path) -> "ResidualKMeans":
        """
        Read what [`ResidualKMeans.save`] wrote; the result assigns the same codes.

        Args:
            folder (`str` or `Path`):
                The folder.

        Returns:
            [`ResidualKMeans`]: a fitted quantizer.

        Raises:
            ValueError: If the folder holds another quantizer, or codebooks of another shape than its config says.
        """
        config = read_config(folder, quantizer_type=_TYPE)
        loaded = cls(**{name: config[name] for name in ("num_levels", "codebook_size", "seed", "beam_size")})
        codebooks = load_file(Path(folder) / WEIGHTS_NAME)["codebooks"]
        expected = (loaded.num_levels, loaded.codebook_size, config["dim"])
        if codebooks.shape != expected:
            raise ValueError(
                f"The codebooks in {folder} have the shape {codebooks.shape}, config.json says {expected}."
            )
        quantizer = loaded._new_quantizer(config["dim"])
        faiss.copy_array_to_vector(np.ascontiguousarray(codebooks, np.float32).ravel(), quantizer.codebooks)
        quantizer.is_trained = True
        loaded._quantizer = quantizer
        return loaded

    @property
    def _num_bits(self) -> int:
        return self.codebook_size.bit_length() - 1

    def _new_quantizer(self, dim: int) -> faiss.ResidualQuantizer:
        quantizer = faiss.ResidualQuantizer(dim, self.num_levels, self._num_bits)
        quantizer.train_type = faiss.ResidualQuantizer.Train_progressive_dim
        # With fewer tuples than beams faiss would read the codes of one row out of those of another.
        quantizer.max_beam_size = min(self.beam_size, self.codebook_size**self.num_levels)
        quantizer.cp.seed = self.seed
        quantizer.cp.min_points_per_centroid = 1  # silences faiss' advice on stderr; `fit` checks the number of rows
        return quantizer

    def _fitted(self) -> faiss.ResidualQuantizer:
        if self._quantizer is None:
            raise ValueError("The quantizer is not fitted: call `fit` or `load` first.")
        return self._quantizer
