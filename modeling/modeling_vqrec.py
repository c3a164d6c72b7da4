"""VQ-Rec: items read and scored by the mean of their code embeddings, with a softmax over the catalog."""

import torch
from torch import nn

from .configuration_vqrec import VQRecConfig
from .genrec_catalog import CatalogMixin
from .genrec_encoder import PackedHistories
from .genrec_item_rows import ItemVectorsModel
from .genrec_kept import KeptVectorsMixin


class VQRecForItemGeneration(CatalogMixin, KeptVectorsMixin, ItemVectorsModel):
    """
    Item tokens in, the next item out, by the cosine of a state and the vectors of all items, which are made of codes.

    It reads what [`RPGForItemGeneration`] reads, with the same encoder, and is asked for an item as
    [`SASRecForItemGeneration`] is: so it says what a softmax over items gains or loses against one for each code.
    Pooling the codes of the whole catalog is part of each training step, and of the first request. Items with the same
    codes have the same score and stand in the order of the catalog.

    Args:
        config ([`VQRecConfig`]): Sizes, token layout and options.

    Source: Hou et al. 2023, sections 2.2 and 2.4 (https://arxiv.org/abs/2210.12316).

    Example:

    ```python
    >>> config = VQRecConfig(num_items=3, num_levels=2, codebook_size=4, d_model=8)
    >>> model = VQRecForItemGeneration(config).eval()
    >>> model.set_catalog(torch.tensor([[0, 1], [0, 2], [3, 0]]))
    >>> history = torch.tensor([[config.first_item_token, config.first_item_token + 2]])
    >>> model.score_items(history).exp().sum().round(decimals=4).item()
    1.0
    >>> sorted((model.recommend(history, top_k=3).item_tokens - config.first_item_token)[0].tolist())
    [0, 1, 2]

    ```
    """

    config: VQRecConfig
    config_class = VQRecConfig
    _auto_class = "AutoModel"  # saving takes the code along
    item_table = None  # there is no dense head

    def __init__(self, config: VQRecConfig):
        super().__init__(config)
        self.register_catalog()
        self._finish_init()

    def code_vectors(self, items: torch.LongTensor | None = None) -> torch.Tensor:
        """Means of the code embeddings of `items` `(n,)`, `None` for all: `(n, d_model)`."""
        return self._pooled(self.code_tokens(items))

    def item_embeddings(self) -> torch.Tensor:
        """What states are compared with, `(num_items, d_model)`; kept between requests, see [`KeptVectorsMixin`]."""
        return self.all_item_vectors()

    def item_vectors(self) -> torch.Tensor:
        """The items' directions over the temperature, `(num_items, d_model)`."""
        return nn.functional.normalize(self.code_vectors(), dim=-1) / self.config.temperature

    def _pooled(self, code_tokens: torch.LongTensor) -> torch.Tensor:
        return nn.functional.embedding_bag(code_tokens, self.token_embeddings.weight, mode="mean")

    def _vectors_of(self, tokens: torch.LongTensor) -> torch.Tensor:
        items = tokens - self.config.first_item_token  # below 0: the token of an empty history
        code_tokens = self.code_tokens(items.clamp_min(0))
        return self._pooled(code_tokens.masked_fill((items < 0).unsqueeze(1), self.config.user_token_id))

    def _encode(self, histories: PackedHistories, anchors: torch.LongTensor | None = None) -> torch.Tensor:
        return nn.functional.normalize(super()._encode(histories, anchors), dim=-1)


__all__ = ["VQRecForItemGeneration"]
