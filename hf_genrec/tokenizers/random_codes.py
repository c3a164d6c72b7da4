"""
Random codes: the control for every quantizer. What a model learns with them owes nothing to the meaning of the codes.
"""

import numpy as np

from hf_genrec.tokenizers.base import Quantizer


class RandomCodes(Quantizer):
    """
    Uniform random codes that depend on an item's embedding and the seed alone.

    The codes are a hash of the embedding, so items with equal embeddings share them. Nothing is learned; there are no
    centroids, so of the collision policies only `"append"` and `"keep"` work.

    Args:
        num_levels (`int`, *optional*, defaults to 32): See [`Quantizer`], as for the next two.
        codebook_size (`int`, *optional*, defaults to 256): A power of two.
        seed (`int`, *optional*, defaults to 1234): Another seed gives other codes.

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

    quantizer_type = "random"
    names = {"random": {}}
    has_codebooks = False
    can_decode = False

    def __init__(self, *, num_levels: int = 32, codebook_size: int = 256, seed: int = 1234) -> None:
        super().__init__(num_levels=num_levels, codebook_size=codebook_size, seed=seed)
        if seed < 0:
            raise ValueError(f"`seed` must be at least 0, got {seed}.")

    @property
    def _least_rows(self) -> int:
        return 0

    def _fit(self, rows: np.ndarray, *, show_progress: bool) -> None:
        """Nothing is learned."""

    def _encode(self, rows: np.ndarray) -> np.ndarray:
        words = (rows + 0.0).view(np.uint32).astype(np.uint64)  # adding 0 makes -0 and 0 one value
        keys = np.random.PCG64(self.seed).random_raw(rows.shape[1] + self.num_levels) | np.uint64(1)
        hashed = _mix((_mix(words) * keys[: rows.shape[1]]).sum(axis=1, dtype=np.uint64))
        drawn = _mix(hashed[:, None] ^ keys[rows.shape[1] :])  # (num_items, num_levels)
        # The codebook size is a power of two, so the highest bits are uniform codes without a remainder.
        return (drawn >> np.uint64(64 - (self.codebook_size.bit_length() - 1))).astype(np.int64)


def _mix(values: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64: each output bit depends on all input bits. Arithmetic is modulo 2 ** 64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
