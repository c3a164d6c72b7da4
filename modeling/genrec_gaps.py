"""
How long ago: what the time since the item before adds to the vector of an item of a history.

Times come in with the attention mask: 0 is a position that does not count, 1 an item whose time is unknown, `1 + b` an
item that came `b` buckets after the one before, see `gap_buckets` of the library. So they go wherever a mask goes: to
the members of an ensemble, to chunks of users, through `generate()`.
"""

import torch
from torch import nn
from transformers import initialization as init


class GapEmbedding(nn.Embedding):
    """A row per bucket, the first for an unknown time; zeros at the start, as if there were none."""

    def forward(self, mask: torch.Tensor) -> torch.Tensor:
        """
        From masks `(...)` to vectors `(..., d_model)`; a longer time than the last bucket's counts as that one's.

        >>> GapEmbedding(3, 2)(torch.tensor([[2, 1, 9, 0]])).shape
        torch.Size([1, 4, 2])
        """
        return super().forward((mask.long() - 1).clamp(0, self.num_embeddings - 1))

    @torch.no_grad()
    def init_weights(self) -> None:
        """Zeros."""
        init.zeros_(self.weight)


def gap_embedding(config) -> GapEmbedding | None:
    """The embedding of a model with `history_gap_buckets`; `None` for none, which is also what older configs say."""
    return GapEmbedding(config.history_gap_buckets, config.d_model) if config.history_gap_buckets else None
