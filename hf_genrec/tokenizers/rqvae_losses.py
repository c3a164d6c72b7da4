"""
What an RQ-VAE can learn of behaviour: who took which row in, terms that are added to its loss out.

- Co-occurrence (COSETTE): quantized vectors of items that the same users took are drawn together, others apart.
- Collaborative (LETTER): the quantized vector of an item finds its own collaborative vector among those of the batch.
- Diversity (LETTER): the centroids of a level that lie near each other are drawn together, so that all are of use.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import nn

from hf_genrec.tokenizers.behavior import singular_vectors
from hf_genrec.tokenizers.gaoq import balanced_clusters
from hf_genrec.tokenizers.rqvae_network import RQVAEModel, RQVAEOutput


_NUM_CLUSTERS = 10  # of the centroids of a level


class BehaviorTerms(nn.Module):
    """
    The weighted terms for one training.

    Args:
        taken (`scipy.sparse.csr_array` of shape `(num_users, num_rows)`): 1 where the user took the row.
        dim (`int`): Columns of the latents.
        batch_size (`int`): Rows of a step, for the rows of the co-occurrence term too.
        weights (`dict[str, float]`): Of `cooccurrence`, `collaborative` and `diversity`, see [`RQVAE`].
        seed (`int`): Of what is drawn.

    Source: COSETTE, arXiv 2508.14910, section 3; LETTER (https://huggingface.co/papers/2405.07314), section 3.2.
    """

    vectors: torch.Tensor

    def __init__(
        self,
        taken: sp.csr_array,
        *,
        dim: int,
        batch_size: int,
        weights: Mapping[str, float],
        seed: int,
    ) -> None:
        super().__init__()
        self.weights = weights
        # SigLIP's scale and bias, learned; so negative a bias because nearly all pairs are negative.
        self.scale, self.bias = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(-8.0))
        self.taken = taken[np.flatnonzero(np.diff(taken.indptr) > 1)]  # users with a pair
        self.batch_size = batch_size
        self.random = np.random.default_rng(seed)
        vectors = np.zeros((taken.shape[1], dim), np.float32)
        if weights["collaborative"]:
            found = singular_vectors(taken, num_components=dim)
            vectors[:, : found.shape[1]] = found * dim**0.5  # rows of length 1 otherwise: the softmax would be flat
        self.register_buffer("vectors", torch.from_numpy(vectors))
        self._clusters: list[np.ndarray] = []

    def begin_epoch(self, model: RQVAEModel) -> None:
        """Clusters the centroids of each level anew; they move."""
        if self.weights["diversity"]:
            books = model.codebooks.detach().cpu().numpy()
            count = max(2, min(_NUM_CLUSTERS, books.shape[1] // 2))
            self._clusters = [
                balanced_clusters(book, count, num_iterations=5, random=self.random)[2] for book in books
            ]

    def forward(
        self, model: RQVAEModel, rows: torch.Tensor, picked: torch.Tensor, output: RQVAEOutput
    ) -> torch.Tensor:
        """What is added to the loss of a batch `rows[picked]`, whose `output` the model gave."""
        total = self.scale.new_zeros(())
        quantized: Any = output.quantized
        codes: Any = output.codes
        if self.weights["cooccurrence"] and self.taken.shape[0]:
            total = total + self.weights["cooccurrence"] * self._cooccurrence(model, rows)
        if self.weights["collaborative"]:
            logits = quantized @ self.vectors[picked].T  # (B, B), the own one on the diagonal
            own = torch.arange(len(picked), device=logits.device)
            total = total + self.weights["collaborative"] * nn.functional.cross_entropy(logits, own)
        if self.weights["diversity"]:
            total = total + self.weights["diversity"] * self._diversity(model.codebooks, codes)
        return total

    def _cooccurrence(self, model: RQVAEModel, rows: torch.Tensor) -> torch.Tensor:
        """SigLIP over the items of a few users: a pair is positive if one of these users took both."""
        per_user = max(1.0, self.taken.nnz / self.taken.shape[0])
        users = self.random.integers(self.taken.shape[0], size=max(1, int(self.batch_size / per_user)))
        chosen = self.taken[users]
        items = np.unique(chosen.indices)
        if len(items) > self.batch_size:
            items = np.sort(self.random.permutation(items)[: self.batch_size])
        chosen = chosen[:, items]
        together = torch.from_numpy((chosen.T @ chosen).toarray() > 0).to(rows.device)
        unit = nn.functional.normalize(model(rows[torch.from_numpy(items)]).quantized, dim=1)
        logits = self.scale.exp() * unit @ unit.T + self.bias
        signs = together.to(logits.dtype) * 2 - 1
        others = ~torch.eye(len(items), dtype=torch.bool, device=rows.device)
        return -(nn.functional.logsigmoid(signs * logits) * others).sum() / len(items)

    def _diversity(self, codebooks: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Per level: the chosen centroid finds another one of its cluster among all others."""
        total = codebooks.new_zeros(())
        for codebook, clusters, column in zip(codebooks, self._clusters, codes.cpu().numpy().T, strict=True):
            mates = clusters[column][:, None] == clusters  # (B, K)
            mates[np.arange(len(column)), column] = False
            known = np.flatnonzero(mates.any(axis=1))
            targets = (self.random.random(mates.shape) * mates)[known].argmax(axis=1)
            own = torch.from_numpy(column[known])
            logits = (codebook[own] @ codebook.T).scatter(1, own[:, None].to(codebook.device), -torch.inf)
            total = total + nn.functional.cross_entropy(logits, torch.from_numpy(targets).to(codebook.device))
        return total
