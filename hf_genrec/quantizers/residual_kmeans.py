"""
Residual k-means on faiss: embeddings `(num_items, dim)` in, codes `(num_items, num_levels)` out.

Level 1 clusters the embeddings, level 2 what level 1 left over, and so on; an item is approximated by the sum of one
centroid per level.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import faiss
import numpy as np
from safetensors.numpy import load_file, save_file


__all__ = ["ResidualKMeans"]

_CONFIG_NAME = "config.json"
_WEIGHTS_NAME = "quantizer.safetensors"
_MAX_CODEBOOK_SIZE = 2**15  # codes are stored as int16


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
        if num_levels < 1:
            raise ValueError(f"`num_levels` must be at least 1, got {num_levels}.")
        if not 2 <= codebook_size <= _MAX_CODEBOOK_SIZE or codebook_size & (codebook_size - 1):
            raise ValueError(
                f"`codebook_size` must be a power of two from 2 to {_MAX_CODEBOOK_SIZE}, got {codebook_size}."
            )
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
        embeddings = _as_rows(embeddings)
        if len(embeddings) < self.codebook_size:
            raise ValueError(
                f"`embeddings` has {len(embeddings)} rows, fewer than the {self.codebook_size} centroids of a level. "
                "Use a smaller `codebook_size` or more items."
            )
        quantizer = self._new_quantizer(embeddings.shape[1])
        with _one_thread():
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
        embeddings = _as_rows(embeddings)
        if embeddings.shape[1] != quantizer.d:
            raise ValueError(f"`embeddings` must have {quantizer.d} columns, got {embeddings.shape[1]}.")
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
        codebooks, codes = self.codebooks, np.asarray(codes)
        if codes.ndim != 2 or codes.shape[1] != self.num_levels:
            raise ValueError(f"`codes` must have the shape (num_items, {self.num_levels}), got {codes.shape}.")
        if codes.size and not (codes.min() >= 0 and codes.max() < self.codebook_size):
            raise ValueError(f"`codes` must lie between 0 and {self.codebook_size - 1}.")
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
        codebooks, folder = self.codebooks, Path(folder)
        config = {
            "quantizer_type": "residual_kmeans",
            "num_levels": self.num_levels,
            "codebook_size": self.codebook_size,
            "seed": self.seed,
            "beam_size": self.beam_size,
            "dim": codebooks.shape[2],
        }
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"codebooks": codebooks}, folder / _WEIGHTS_NAME)
        (folder / _CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

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
        folder = Path(folder)
        config = json.loads((folder / _CONFIG_NAME).read_text(encoding="utf-8"))
        if config.get("quantizer_type") != "residual_kmeans":
            raise ValueError(f"{folder} holds no residual k-means but {config.get('quantizer_type')!r}.")
        loaded = cls(**{name: config[name] for name in ("num_levels", "codebook_size", "seed", "beam_size")})
        codebooks = load_file(folder / _WEIGHTS_NAME)["codebooks"]
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
        quantizer.max_beam_size = self.beam_size
        quantizer.cp.seed = self.seed
        quantizer.cp.min_points_per_centroid = 1  # silences faiss' advice on stderr; `fit` checks the number of rows
        return quantizer

    def _fitted(self) -> faiss.ResidualQuantizer:
        if self._quantizer is None:
            raise ValueError("The quantizer is not fitted: call `fit` or `load` first.")
        return self._quantizer


@contextmanager
def _one_thread() -> Iterator[None]:
    num_threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(num_threads)


def _as_rows(embeddings: np.ndarray) -> np.ndarray:
    rows = np.ascontiguousarray(embeddings, dtype=np.float32)
    if rows.ndim != 2:
        raise ValueError(f"`embeddings` must have two dimensions, its shape is {rows.shape}.")
    wrong = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(wrong):
        raise ValueError(f"`embeddings` has NaN or infinity in {len(wrong)} rows, first at rows {wrong[:5].tolist()}.")
    return rows
