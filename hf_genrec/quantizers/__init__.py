"""
Quantizers: embeddings in, codes out.

Each has `fit(embeddings)`, `encode(embeddings)`, `save(folder)` and `load(folder)`; those with centroids also have
`decode(codes)` and `codebooks`. [`load_quantizer`] opens the folder of any of them.
"""

import json
from pathlib import Path

from .checks import CONFIG_NAME
from .product import ProductQuantizer
from .random_codes import RandomCodes
from .residual_kmeans import ResidualKMeans


__all__ = ["ProductQuantizer", "Quantizer", "RandomCodes", "ResidualKMeans", "load_quantizer"]

Quantizer = ResidualKMeans | ProductQuantizer | RandomCodes

_CLASSES: dict[str, type[ResidualKMeans] | type[ProductQuantizer] | type[RandomCodes]] = {
    "residual_kmeans": ResidualKMeans,
    "product": ProductQuantizer,
    "random": RandomCodes,
}


def load_quantizer(folder: str | Path) -> Quantizer:
    """
    Open the folder of any quantizer.

    Args:
        folder (`str` or `Path`):
            What a quantizer's `save` wrote, such as `quantizer/` of a tokenized folder.

    Returns:
        [`ResidualKMeans`], [`ProductQuantizer`] or [`RandomCodes`]: by the `quantizer_type` in its `config.json`.

    Raises:
        ValueError: If the folder does not fit its config, or the type is unknown.
        FileNotFoundError: If there is no `config.json`.
    """
    kind = json.loads((Path(folder) / CONFIG_NAME).read_text(encoding="utf-8")).get("quantizer_type")
    if kind not in _CLASSES:
        raise ValueError(f"{folder} holds a quantizer of the type {kind!r}; known are {', '.join(_CLASSES)}.")
    return _CLASSES[kind].load(folder)
