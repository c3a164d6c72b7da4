"""
The constraint of `generate()` for language models: semantic IDs by a map from codes to the model's tokens.
"""

import torch
from transformers import LogitsProcessor

from .genrec_catalog import Catalog


class SidLogitsProcessor(LogitsProcessor):
    """
    Lets only tokens through that lead to an item of the catalog, in prompts that end before the codes of an item.

    It keeps no state: what was written is what stands behind the last begin token of a row. After the codes only the
    end token is left. Its work depends on the number of codes of a level, the result alone is as wide as `scores`.

    Args:
        catalog ([`Catalog`]): The semantic IDs of all items.
        code_token_ids (`torch.LongTensor` of shape `(num_levels, codebook_size)`): Token of each code.
        begin_id (`int`): Token before the codes; no other begin token may follow it in a prompt.
        end_id (`int`): Token behind them.

    Example:

    ```python
    >>> tokens = torch.tensor([[5, 6, 7], [8, 9, 10]])
    >>> catalog = Catalog(torch.tensor([[0, 1], [2, 0]]), 3)
    >>> processor = SidLogitsProcessor(catalog, tokens, begin_id=4, end_id=11)
    >>> processor(torch.tensor([[1, 4], [2, 4]]), torch.zeros(2, 12)).isfinite().nonzero()[:, 1].tolist()
    [5, 7, 5, 7]
    >>> processor(torch.tensor([[1, 4, 7]]), torch.zeros(1, 12)).isfinite().nonzero()[:, 1].tolist()
    [8]

    ```
    """

    def __init__(self, catalog: Catalog, code_token_ids: torch.LongTensor, *, begin_id: int, end_id: int):
        self.catalog = catalog
        self.code_token_ids = code_token_ids.to(catalog.device)
        self.begin_id, self.end_id = begin_id, end_id
        self._code_of = codes_of(self.code_token_ids)  # (L, largest token + 2): -1 for what is no code of the level

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """
        A copy of `scores` `(num_rows, vocab_size)` with `-inf` at every illegal token; `input_ids` are prompts and
        what was written, `(num_rows, length)`.
        """
        depth = int((input_ids == self.begin_id).long().flip(1).argmax(1).min())
        processed = torch.full_like(scores, -float("inf"))
        if depth >= len(self.code_token_ids):
            processed[:, self.end_id] = scores[:, self.end_id]
            return processed
        written = input_ids[:, input_ids.shape[1] - depth :].clamp_max(self._code_of.shape[1] - 1)
        codes = self._code_of[torch.arange(depth, device=written.device), written]
        nodes = self.catalog.node_of(codes)
        mask = self.catalog.child_mask(depth, nodes)
        mask[:, 0] |= nodes < 0  # a filler beam, whose score is never finite again
        tokens = self.code_token_ids[depth]
        processed[:, tokens] = scores[:, tokens].masked_fill(~mask, -float("inf"))
        return processed


def codes_of(code_token_ids: torch.LongTensor) -> torch.LongTensor:
    """From tokens to the codes of each level, `(num_levels, largest token + 2)`; -1 for all others."""
    num_levels, codebook_size = code_token_ids.shape
    table = torch.full((num_levels, int(code_token_ids.max()) + 2), -1, device=code_token_ids.device)
    codes = torch.arange(codebook_size, device=code_token_ids.device).expand(num_levels, -1)
    return table.scatter_(1, code_token_ids, codes)
