"""
Beam search, level by level, for models that predict all codes of a semantic ID at once.

Log-probabilities per level `(B, L, K)` come in, items go out. The log-probabilities of a code are the same whatever
codes stand before it, so the search is that of `beam_search` with a decoder that has nothing to compute. It finds less
than exact scores at the same cost or more: with long ids the best prefixes are rarely those of the best items. It is
here because papers compare with it.
"""

from dataclasses import dataclass

import torch

from .genrec_beam_search import Beams, HistoryOutput, beam_search
from .genrec_catalog import Catalog


@dataclass
class _LevelConfig:
    """What `beam_search` reads of a config. The logits of a step hold one level, so its codes begin at token 0."""

    num_levels: int
    codebook_size: int
    level: int = -1
    num_latent_tokens: int = 0
    normalization: str = "vocabulary"
    decoder_start_token_id: int = 0

    @property
    def num_decoding_steps(self) -> int:
        return self.num_levels

    @property
    def first_code_token(self) -> int:
        return -self.level * self.codebook_size


class _LevelDecoder:
    """A decoder for `beam_search` whose log-probabilities at each level are given."""

    def __init__(self, catalog: Catalog):
        self.catalog = catalog
        self.config = _LevelConfig(catalog.num_levels, catalog.codebook_size)

    def decode_states(self, tokens, history, cache) -> torch.FloatTensor:
        """The log-probabilities of the next level, for every beam the same: `(B, W, K)`, a view."""
        self.config.level += 1
        level = history.last_hidden_state[:, self.config.level]
        return level.unsqueeze(1).expand(-1, tokens.shape[1], -1)

    def score_tokens(self, states, start, width) -> torch.FloatTensor:
        return states


def search_codes(
    log_probs: torch.FloatTensor,
    catalog: Catalog,
    *,
    first_code_token: int,
    num_beams: int,
    allowed: torch.BoolTensor | None = None,
    penalties: list[torch.Tensor] | None = None,
    num_pruned: int = 0,
) -> Beams:
    """
    Beam search over the semantic IDs, which several items may share.

    Args:
        log_probs (`torch.FloatTensor` of shape `(batch_size, num_levels, codebook_size)`): Log-probabilities.
        catalog ([`Catalog`]): The trie.
        first_code_token (`int`): Token of code 0 of level 0, for the tokens of the trace.
        num_beams (`int`): Beams kept per user and level.
        allowed (`torch.BoolTensor` of shape `(batch_size or 1, num_items)`, *optional*): Items that may be reached.
        penalties (`list[torch.FloatTensor]`, *optional*): Result of `prior_penalties`.
        num_pruned (`int`, defaults to 0): How many discarded continuations to remember per level.

    Returns:
        [`Beams`]: the leaves are those of `catalog`.
    """
    beams = beam_search(
        _LevelDecoder(catalog),
        HistoryOutput(last_hidden_state=log_probs),
        num_beams=num_beams,
        allowed_items=allowed,
        penalties=penalties,
        num_pruned=num_pruned,
    )
    for steps in (beams.trace, beams.pruned):
        for level, step in enumerate(steps):
            step.tokens = step.tokens + first_code_token + level * catalog.codebook_size
    return beams


__all__ = ["search_codes"]
