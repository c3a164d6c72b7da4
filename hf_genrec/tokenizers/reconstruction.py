"""
How well codes stand for embeddings: a fitted quantizer and its codes in, relative errors per level out.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np


__all__ = ["relative_errors"]


def relative_errors(quantizer: Any, embeddings: np.ndarray, codes: np.ndarray) -> list[float] | None:
    """
    Squared error of the first 1, 2, ... levels, in units of the embeddings' own spread.

    0 is a perfect reconstruction, 1 is what the mean of the embeddings achieves. For product quantization, a level
    that is left out counts as zeros. The decoder of an RQ-VAE was trained for all levels; errors of fewer may pass 1.

    Args:
        quantizer ([`Quantizer`]):
            A fitted quantizer.
        embeddings (`np.ndarray` of shape `(num_items, dim)`):
            What the codes stand for.
        codes (`np.ndarray` of shape `(num_items, num_levels)`):
            Codes as the quantizer's `encode` returns them.

    Returns:
        `list[float]`: one number per level; `None` for a quantizer that cannot decode, or without any spread.

    Example:

    ```python
    >>> from hf_genrec.tokenizers.quantizers import HierarchicalKMeans
    >>> points = np.array([[0.0], [1.0], [4.0], [5.0]])
    >>> quantizer = HierarchicalKMeans(num_levels=2, codebook_size=2).fit(points)
    >>> relative_errors(quantizer, points, quantizer.encode(points))  # of 17, the first level leaves 4 * 0.25
    [0.0588, 0.0]

    ```
    """
    rows = np.asarray(embeddings, dtype=np.float32)
    spread = float(np.square(rows - rows.mean(axis=0)).sum(dtype=np.float64)) if len(rows) else 0.0
    if not hasattr(quantizer, "decode") or spread == 0:
        return None
    approximations = _approximations(quantizer, codes)
    return [float(np.square(rows - found).sum(dtype=np.float64)) / spread for found in approximations]


def _approximations(quantizer: Any, codes: np.ndarray) -> Iterator[np.ndarray]:
    """Of the first level, the first two, ...; a sum of centroids where the codebooks lie among the embeddings."""
    if hasattr(quantizer, "latents") or not hasattr(quantizer, "codebooks"):
        for level in range(codes.shape[1]):
            yield quantizer.decode(codes[:, : level + 1])
        return
    total = np.zeros((len(codes), quantizer.codebooks.shape[2]), dtype=np.float32)
    for level, centroids in enumerate(quantizer.codebooks):
        total = total + centroids[codes[:, level]]
        yield total
