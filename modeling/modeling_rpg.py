"""RPG: items as the mean of their code embeddings, GPT-2 blocks, and one head per level of a long semantic ID."""

import torch
from torch import nn

from .configuration_rpg import RPGConfig
from .genrec_parallel import MergedItems, ParallelPreTrainedModel


class RPGForItemGeneration(ParallelPreTrainedModel):
    """
    Item tokens in, all codes of the next item at once: the log-probability of an item is the sum over its codes.

    Build it from a config, then give it the catalog with `set_catalog`; items may share their codes. `recommend()`
    returns ranked items.

    Args:
        config ([`RPGConfig`]): Sizes, token layout and options.

    Source: Hou et al. 2025 (https://huggingface.co/papers/2506.05781).

    Example:

    ```python
    >>> config = RPGConfig(num_items=3, num_levels=2, codebook_size=4, d_model=8, d_ff=16)
    >>> model = RPGForItemGeneration(config).eval()
    >>> model.set_catalog(torch.tensor([[0, 1], [0, 2], [3, 0]]))
    >>> history = torch.tensor([[config.first_item_token, config.first_item_token + 2]])
    >>> model.code_log_probs(history).shape
    torch.Size([1, 2, 4])
    >>> sorted((model.recommend(history, top_k=3).item_tokens - config.first_item_token)[0].tolist())
    [0, 1, 2]

    ```
    """

    config: RPGConfig
    config_class = RPGConfig

    def __init__(self, config: RPGConfig):
        super().__init__(config)
        self._finish_init()

    def _merge(self, code_tokens: torch.LongTensor) -> MergedItems:
        vectors = nn.functional.embedding_bag(code_tokens, self.token_embeddings.weight, mode=self.config.item_pooling)
        return MergedItems(tokens=vectors.unsqueeze(1))


__all__ = ["RPGForItemGeneration"]
