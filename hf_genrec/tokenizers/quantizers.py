"""
Quantizers: embeddings in, codes out.

Each has `fit(embeddings)`, `encode(embeddings)`, `save(folder)` and `load(folder)`. All but random codes have
`decode(codes)`, and those with centroids that all prefixes share have `codebooks`: in the space of the embeddings, or
for an RQ-VAE in that of its `latents(embeddings)`. [`load_quantizer`] opens the folder of any of them.
"""

import json
from pathlib import Path

from hf_genrec.tokenizers.base import CONFIG_NAME
from hf_genrec.tokenizers.hierarchical_kmeans import HierarchicalKMeans
from hf_genrec.tokenizers.product import ProductQuantizer
from hf_genrec.tokenizers.random_codes import RandomCodes
from hf_genrec.tokenizers.reconstruction import relative_errors
from hf_genrec.tokenizers.residual_kmeans import ResidualKMeans
from hf_genrec.tokenizers.rqvae import RQVAE
from hf_genrec.tokenizers.rqvae_network import RQVAEConfig, RQVAEModel


__all__ = [
    "RQVAE",
    "HierarchicalKMeans",
    "ProductQuantizer",
    "Quantizer",
    "RQVAEConfig",
    "RQVAEModel",
    "RandomCodes",
    "ResidualKMeans",
    "load_quantizer",
    "relative_errors",
]

Quantizer = ResidualKMeans | RQVAE | HierarchicalKMeans | ProductQuantizer | RandomCodes

_CLASSES: dict[str, type[Quantizer]] = {
    "residual_kmeans": ResidualKMeans,
    "rqvae": RQVAE,
    "hierarchical_kmeans": HierarchicalKMeans,
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
        [`ResidualKMeans`], [`RQVAE`], [`HierarchicalKMeans`], [`ProductQuantizer`] or [`RandomCodes`]: by the
        `quantizer_type` in its `config.json`.

    Raises:
        ValueError: If the folder does not fit its config, or the type is unknown.
        FileNotFoundError: If there is no `config.json`.
    """
    kind = json.loads((Path(folder) / CONFIG_NAME).read_text(encoding="utf-8")).get("quantizer_type")
    if kind not in _CLASSES:
        raise ValueError(f"{folder} holds a quantizer of the type {kind!r}; known are {', '.join(_CLASSES)}.")
    return _CLASSES[kind].load(folder)
