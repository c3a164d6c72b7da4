"""
Quantizers: embeddings in, codes out.

Each has `fit(embeddings)`, `encode(embeddings)`, `decode(codes)`, `save(folder)` and `load(folder)`.
"""

from .residual_kmeans import ResidualKMeans


__all__ = ["ResidualKMeans"]
