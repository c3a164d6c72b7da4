"""
Beam search, level by level, for models that predict all codes of a semantic ID at once.

Log-probabilities per level `(B, L, K)` come in, items go out. The log-probabilities of a code are the same whatever
codes stand before it, so the search is that of `beam_search` with a decoder that has nothing to compute. It finds less
than exact scores at the same cost or more: with long ids the best prefixes are rarely those of the best items. It is
here because papers compare with it.
"""

from dataclasses import dataclass

import torch

from .beam_search_genrec import Beams, HistoryOutput, beam_search
from .catalog_genrec import Catalog
from .ranking_genrec import prior_penalties


class DistinctIds:
    """
    The trie over the distinct semantic IDs of a catalog in which items may share them.

    Attributes: `catalog` (`Catalog`, of the distinct ids); `id_of_item` (`torch.LongTensor` of shape `(num_items,)`);
    `items` (`torch.LongTensor`, same shape: items in the order of their ids, of one id in ascending order);
    `first_item` (`torch.LongTensor` of shape `(num_ids + 1,)`: id `n` has `items[first_item[n]:first_item[n + 1]]`).

    Args:
        item_codes (`torch.Tensor` of shape `(num_items, num_levels)`): Codes.
        codebook_size (`int`): Number of codes per level.

    Example:

    ```python
    >>> ids = DistinctIds(torch.tensor([[1, 0], [0, 2], [1, 0]]), codebook_size=3)
    >>> ids.catalog.num_items, ids.id_of_item.tolist(), ids.items.tolist(), ids.first_item.tolist()
    (2, [1, 0, 1], [1, 0, 2], [0, 1, 3])

    ```
    """

    def __init__(self, item_codes: torch.Tensor, codebook_size: int):
        codes, self.id_of_item = item_codes.unique(dim=0, return_inverse=True)
        self.catalog = Catalog(codes, codebook_size)
        self.items = self.id_of_item.sort(stable=True).indices
        counts = self.id_of_item.bincount(minlength=len(codes))
        self.first_item = torch.nn.functional.pad(counts.cumsum(0), (1, 0))

    def allowed_ids(self, allowed: torch.BoolTensor) -> torch.BoolTensor:
        """
        Args:
            allowed (`torch.BoolTensor` of shape `(batch_size or 1, num_items)`): Items that may be recommended.

        Returns:
            `torch.BoolTensor` of shape `(batch_size or 1, num_ids)`: ids of which at least one item may be.
        """
        counts = torch.zeros(len(allowed), self.catalog.num_items, dtype=torch.int32, device=allowed.device)
        return counts.index_add_(1, self.id_of_item, allowed.int()) > 0

    def penalties(self, item_prior: torch.Tensor, prior_correction: float) -> list[torch.Tensor]:
        """
        Args:
            item_prior (`torch.Tensor` of shape `(num_items,)`): Positive weights.
            prior_correction (`float`): Share of the log-prior.

        Returns:
            `list[torch.FloatTensor]`: as `prior_penalties`, an id having the prior of its items together.
        """
        prior = torch.zeros(self.catalog.num_items, dtype=torch.float64, device=self.id_of_item.device)
        prior.index_add_(0, self.id_of_item, item_prior.to(prior))
        return prior_penalties(self.catalog, prior, prior_correction)

    def items_of(self, leaves: torch.LongTensor) -> torch.LongTensor:
        """
        The items of the ids at some leaves of the trie.

        Args:
            leaves (`torch.LongTensor` of shape `(batch_size, num_beams)`): Leaves; -1 for none.

        Returns:
            `torch.LongTensor` of shape `(batch_size, n)`: item indices in ascending order, -1 where a user has fewer.
        """
        ids = self.catalog.items_in_order[leaves.clamp_min(0)]
        counts = (self.first_item[ids + 1] - self.first_item[ids]).masked_fill(leaves < 0, 0)
        flat = counts.flatten()
        beam = torch.arange(len(flat), device=leaves.device).repeat_interleave(flat)
        place = torch.arange(len(beam), device=leaves.device) - (flat.cumsum(0) - flat)[beam]
        items = self.items[self.first_item[ids.flatten()[beam]] + place]
        user, totals = beam // leaves.shape[1], counts.sum(1)
        column = torch.arange(len(beam), device=leaves.device) - (totals.cumsum(0) - totals)[user]
        shape = (len(leaves), int(totals.max()) if len(leaves) else 0)
        rows = torch.full(shape, len(self.items), device=leaves.device)
        rows[user, column] = items
        rows = rows.sort(dim=1).values
        return rows.masked_fill(rows == len(self.items), -1)


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
    ids: DistinctIds,
    *,
    first_code_token: int,
    num_beams: int,
    allowed: torch.BoolTensor | None = None,
    penalties: list[torch.Tensor] | None = None,
    num_pruned: int = 0,
) -> Beams:
    """
    Beam search over the distinct ids.

    Args:
        log_probs (`torch.FloatTensor` of shape `(batch_size, num_levels, codebook_size)`): Log-probabilities.
        ids ([`DistinctIds`]): The trie.
        first_code_token (`int`): Token of code 0 of level 0, for the tokens of the trace.
        num_beams (`int`): Beams kept per user and level.
        allowed (`torch.BoolTensor` of shape `(batch_size or 1, num_items)`, *optional*): Items that may be reached.
        penalties (`list[torch.FloatTensor]`, *optional*): Result of `ids.penalties`.
        num_pruned (`int`, defaults to 0): How many discarded continuations to remember per level.

    Returns:
        [`Beams`]: the leaves are those of `ids.catalog`.
    """
    beams = beam_search(
        _LevelDecoder(ids.catalog),
        HistoryOutput(last_hidden_state=log_probs),
        num_beams=num_beams,
        allowed_items=None if allowed is None else ids.allowed_ids(allowed),
        penalties=penalties,
        num_pruned=num_pruned,
    )
    for steps in (beams.trace, beams.pruned):
        for level, step in enumerate(steps):
            step.tokens = step.tokens + first_code_token + level * ids.catalog.codebook_size
    return beams


__all__ = ["DistinctIds", "search_codes"]
