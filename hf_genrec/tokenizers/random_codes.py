"""
Random codes: the control for every quantizer. Embeddings `(num_items, dim)` in, codes `(num_items, num_levels)` out.

What a model learns with them it learns without any meaning in the codes.
"""

from pathlib import Path

import numpy as np

from hf_genrec.tokenizers.base import as_rows, check_sizes, read_config, write_config


__all__ = ["RandomCodes"]

_TYPE = "random"


class RandomCodes:
    """
    Uniform random codes that depend on an item's embedding and the seed alone.

    The codes are a hash of the embedding: an item gets the same ones in any batch and any order, and items with equal
    embeddings share them, as with any quantizer. Nothing is learned; there are no centroids, so of the collision
    policies only `"append"` and `"keep"` work.

    Args:
        num_levels (`int`, *optional*, defaults to 32):
            Codes per item, at least 1.
        codebook_size (`int`, *optional*, defaults to 256):
            Codes per level: a power of two from 2 to 32,768.
        seed (`int`, *optional*, defaults to 1234):
            Another seed gives other codes.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    ```python
    >>> points = np.array([[0.0, 1.0], [0.2, 1.1], [0.0, 1.0]])
    >>> codes = RandomCodes(num_levels=3, codebook_size=8).fit(points).encode(points)
    >>> codes.shape, (codes[0] == codes[2]).all(), (codes[0] == codes[1]).all()
    ((3, 3), np.True_, np.False_)

    ```
    """

    def __init__(self, *, num_levels: int = 32, codebook_size: int = 256, seed: int = 1234) -> None:
        check_sizes(num_levels=num_levels, codebook_size=codebook_size)
        if seed < 0:
            raise ValueError(f"`seed` must be at least 0, got {seed}.")
        self.num_levels = num_levels
        self.codebook_size = codebook_size
        self.seed = seed
        self._dim: int | None = None

    def fit(self, embeddings: np.ndarray) -> "RandomCodes":
        """
        Note the number of columns; nothing is learned.

        Args:
            embeddings (`np.ndarray` of shape `(num_rows, dim)`):
                Any rows.

        Returns:
            [`RandomCodes`]: itself.

        Raises:
            ValueError: If the shape is wrong, or NaN or infinity is among them.
        """
        self._dim = as_rows(embeddings).shape[1]
        return self

    def encode(self, embeddings: np.ndarray) -> np.ndarray:
        """
        Codes of items.

        Args:
            embeddings (`np.ndarray` of shape `(num_items, dim)`):
                One row per item.

        Returns:
            `np.ndarray` of shape `(num_items, num_levels)`: int64, from 0 to `codebook_size - 1`.

        Raises:
            ValueError: If `fit` was not called, the width differs or a value is not finite.
        """
        rows = as_rows(embeddings, dim=self._fitted())
        words = (rows + 0.0).view(np.uint32).astype(np.uint64)  # adding 0 makes -0 and 0 one value
        keys = np.random.PCG64(self.seed).random_raw(rows.shape[1] + self.num_levels) | np.uint64(1)
        hashed = _mix((_mix(words) * keys[: rows.shape[1]]).sum(axis=1, dtype=np.uint64))
        drawn = _mix(hashed[:, None] ^ keys[rows.shape[1] :])  # (num_items, num_levels)
        return (drawn >> np.uint64(64 - (self.codebook_size.bit_length() - 1))).astype(np.int64)

    def save(self, folder: str | Path) -> None:
        """
        Write `config.json`; there is nothing else to keep.

        Args:
            folder (`str` or `Path`):
                Created if missing.

        Raises:
            ValueError: If `fit` was not called.
        """
        sizes = {"num_levels": self.num_levels, "codebook_size": self.codebook_size}
        write_config(folder, {"quantizer_type": _TYPE, **sizes, "seed": self.seed, "dim": self._fitted()})

    @classmethod
    def load(cls, folder: str | Path) -> "RandomCodes":
        """
        Read what [`RandomCodes.save`] wrote; the result assigns the same codes.

        Args:
            folder (`str` or `Path`):
                The folder.

        Returns:
            [`RandomCodes`]: ready to encode.

        Raises:
            ValueError: If the folder holds another quantizer.
        """
        config = read_config(folder, quantizer_type=_TYPE)
        loaded = cls(**{name: config[name] for name in ("num_levels", "codebook_size", "seed")})
        loaded._dim = config["dim"]
        return loaded

    def _fitted(self) -> int:
        if self._dim is None:
            raise ValueError("The quantizer is not fitted: call `fit` or `load` first.")
        return self._dim


def _mix(values: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64: each output bit depends on all input bits. Arithmetic is modulo 2 ** 64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
