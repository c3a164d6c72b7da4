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

    Args: see [`Quantizer`]; by default 32 levels of 256 codes.
    """

    quantizer_type = "random"
    names = {"random": {}}
    has_codebooks = False
    can_decode = False
    least_rows = 0

    def __init__(self, *, num_levels: int = 32, codebook_size: int = 256, seed: int = 1234) -> None:
        super().__init__(num_levels=num_levels, codebook_size=codebook_size, seed=seed)
        if seed < 0:
            raise ValueError(f"`seed` must be at least 0, got {seed}.")

    def _fit(self, rows: np.ndarray, *, show_progress: bool) -> None:
        """Nothing is learned."""

    def _encode(self, rows: np.ndarray) -> np.ndarray:
        words = (rows + 0.0).view(np.uint32).astype(np.uint64)  # adding 0 makes -0 and 0 one value
        keys = np.random.PCG64(self.seed).random_raw(rows.shape[1] + self.num_levels) | np.uint64(1)
        hashed = _mix((_mix(words) * keys[: rows.shape[1]]).sum(axis=1, dtype=np.uint64))
        drawn = _mix(hashed[:, None] ^ keys[rows.shape[1] :])  # (num_items, num_levels)
        # The codebook size is a power of two, so the highest bits are uniform codes without a remainder.
        return (drawn >> np.uint64(64 - self._num_bits)).astype(np.int64)


def _mix(values: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64: each output bit depends on all input bits. Arithmetic is modulo 2 ** 64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
