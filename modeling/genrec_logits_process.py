"""Logits processors that keep what `generate()` writes inside the catalog."""

import torch
from transformers import LogitsProcessor

from .configuration_genrec import GenRecConfig
from .genrec_catalog import Catalog


class CatalogLogitsProcessor(LogitsProcessor):
    """
    Lets only tokens through that lead to an item of the catalog: a latent first (if the model has any), then codes
    along the trie, then nothing but padding.

    It keeps no state: the node is found anew from `input_ids` at each step, so beams may be re-ordered at will. The
    only tensor as wide as `scores` is the result: masks are over one level's codes, whatever the vocabulary.
    Scores of legal tokens are left as they are (no renormalisation), so sums of scores stay the model's own
    log-probabilities. A row that has already left the catalog (a filler beam) may write code 0; its score is never
    finite again.

    Args:
        catalog (`Catalog`):
            The semantic IDs of all items, which may share them: what is written are ids.
        config (`GenRecConfig`):
            The token layout.

    Raises:
        ValueError: If the catalog does not fit the config.

    Example:

    ```python
    >>> from hf_genrec.modeling.configuration_genrec import GenRecConfig
    >>> config = GenRecConfig(num_items=2, num_levels=2, codebook_size=3)
    >>> processor = CatalogLogitsProcessor(Catalog(torch.tensor([[0, 1], [2, 0]]), 3), config)
    >>> processor(torch.tensor([[0, 4 + 2]]), torch.zeros(1, config.vocab_size)).isfinite().nonzero()[:, 1].tolist()
    [7]

    ```
    """

    def __init__(self, catalog: Catalog, config: GenRecConfig):
        shape = (catalog.num_items, catalog.num_levels, catalog.codebook_size)
        wanted = (config.num_items, config.num_levels, config.codebook_size)
        if shape != wanted:
            raise ValueError(
                f"`catalog` has (num_items, num_levels, codebook_size) = {shape}, but `config` says {wanted}."
            )
        self.catalog = catalog
        self.config = config

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(num_rows, length)`): Decoder tokens so far, the start token first.
            scores (`torch.FloatTensor` of shape `(num_rows, vocab_size)`): Logits or log-probabilities of the next
            one.

        Returns:
            `torch.FloatTensor`, same shape: a copy of `scores` with `-inf` at every illegal token.
        """
        config = self.config
        codes = input_ids[:, 1 + (1 if config.num_latent_tokens else 0) :]
        depth = codes.shape[1]
        start: int = config.pad_token_id
        width, mask = 1, None
        if config.num_latent_tokens and input_ids.shape[1] == 1:
            start, width = config.first_latent_token, config.num_latent_tokens
        elif depth < config.num_levels:
            start, width = config.first_code_token + depth * config.codebook_size, config.codebook_size
            level_starts = config.first_code_token + torch.arange(depth, device=codes.device) * config.codebook_size
            nodes = self.catalog.node_of(codes - level_starts)
            mask = self.catalog.child_mask(depth, nodes)
            mask[:, 0] |= nodes < 0
        block = scores[:, start : start + width]
        processed = torch.full_like(scores, -float("inf"))
        processed[:, start : start + width] = block if mask is None else block.masked_fill(~mask, -float("inf"))
        return processed


__all__ = ["CatalogLogitsProcessor"]
