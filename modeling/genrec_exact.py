"""
Exact scores by teacher forcing: what a beam search approximates, for all items of a small catalog or for a few.

A model that mixes in `ScoringMixin` supplies `encode_history`, `path_states`, `decode_states` and `score_tokens`.
"""

import torch

from .genrec_beams import HistoryOutput, SearchStep, beam_search, token_log_probs
from .genrec_ranking import id_of_items
from .genrec_recommend import evaluation_mode
from .genrec_recommend_config import check_latent_aggregation


PATHS_AT_A_TIME = 1 << 13  # rows of the decoder that `score_paths` holds, of all users of a chunk


class ScoringMixin:
    """`score_items()`, and the log-probability of every way to write an item."""

    @torch.no_grad()
    def score_items(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        *,
        latent_aggregation: str = "max",
        chunk_size: int = 1024,
    ) -> torch.FloatTensor:
        """
        Exact log-probability of every item: the oracle that beam search approximates, for small catalogs.

        Args:
            input_ids: Item tokens `(batch_size, history_length)`, see [`ItemTokensMixin.is_item`].
            attention_mask: 1 at items that count; `None` for all.
            latent_aggregation (`str`, defaults to `"max"`): `"max"` or `"sum"` over all latents.
            chunk_size (`int`, defaults to 1024): Items (ids, where items share them) scored at a time.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_items)`: log-probabilities. Items that share a semantic ID
            each have that of the id, to the last bit.

        Raises:
            ValueError: If `latent_aggregation` is neither of the two.
        """
        check_latent_aggregation(latent_aggregation)
        if not len(input_ids):
            return torch.zeros(0, self.config.num_items, device=self.item_codes.device)
        catalog = self.catalog
        items = torch.arange(self.config.num_items, device=self.item_codes.device)
        if not catalog.is_unique:  # one item of each id
            items = catalog.item_at(torch.arange(catalog.num_ids, device=catalog.device))
        with evaluation_mode(self):
            scores = self.score_candidates(
                self.encode_history(input_ids, attention_mask),
                items.expand(len(input_ids), -1),
                latent_aggregation=latent_aggregation,
                chunk_size=chunk_size,
            )
        return scores if catalog.is_unique else scores[:, id_of_items(catalog)]

    def score_candidates(
        self,
        history: HistoryOutput,
        items: torch.LongTensor,
        *,
        latent_aggregation: str = "max",
        chunk_size: int = 1024,
    ) -> torch.FloatTensor:
        """
        Exact log-probabilities of some items of each user, over all latents.

        Args:
            history ([`HistoryOutput`]): Encoded histories, one row per user.
            items (`torch.LongTensor` of shape `(batch_size, num_candidates)`): Item indices, from 0.
            latent_aggregation (`str`, defaults to `"max"`): `"max"` or `"sum"` over all latents.
            chunk_size (`int`, defaults to 1024): Items scored at a time, per user.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_candidates)`
        """
        chunks = []
        for part in items.split(chunk_size, dim=1):
            paths = self._path_scores(history, part)
            chunks.append(paths.amax(0) if latent_aggregation == "max" else paths.logsumexp(0))
        return torch.cat(chunks, dim=1)

    @torch.no_grad()
    def score_paths(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        *,
        items: torch.LongTensor | None = None,
    ) -> torch.FloatTensor:
        """
        Exact joint log-probability of each latent and each of some items, the same items for all users.

        What `score_items` takes the maximum or the sum of. The trie is walked in full, so a prefix that many items
        share is computed once.

        Args:
            input_ids: Item tokens `(batch_size, history_length)`, see [`ItemTokensMixin.is_item`].
            attention_mask: 1 at items that count; `None` for all.
            items (`torch.LongTensor` of shape `(n,)`, *optional*): Item indices, from 0; `None` for all items.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_latent_tokens or 1, n)`

        Raises:
            ValueError: If an item is not in the catalog.
        """
        catalog, num_items = self.catalog, self.config.num_items
        items = torch.arange(num_items, device=catalog.device) if items is None else items.to(catalog.device)
        if items.numel() and not 0 <= int(items.min()) <= int(items.max()) < num_items:
            raise ValueError(f"`items` must lie in [0, {num_items}), got {int(items.min())} to {int(items.max())}.")
        num_latents = max(1, self.config.num_latent_tokens)
        leaves, column = id_of_items(catalog)[items].unique(return_inverse=True)  # rising, as the walk finds them
        scores = torch.empty(len(input_ids), num_latents, len(leaves), device=catalog.device)
        if not scores.numel():
            return scores
        users_at_a_time = max(1, PATHS_AT_A_TIME // len(leaves))
        with evaluation_mode(self):
            for start in range(0, len(input_ids), users_at_a_time):
                users = slice(start, start + users_at_a_time)
                mask = None if attention_mask is None else attention_mask[users]
                history, first = self.encode_history(input_ids[users], mask), 0
                for part in leaves.split(PATHS_AT_A_TIME):
                    allowed = torch.zeros(1, num_items, dtype=torch.bool, device=catalog.device)
                    allowed[0, catalog.item_at(part)] = True
                    for latent in range(num_latents):
                        beams = beam_search(
                            self, history, num_beams=len(part), selection=_AllOfLatent(latent), allowed_items=allowed
                        )
                        scores[users, latent, first : first + len(part)] = beams.scores
                    first += len(part)
        return scores[..., column]

    def _path_scores(self, history, items) -> torch.FloatTensor:
        """Log-probability of each way to write each item: `(num_latents or 1, batch_size, num_candidates)`."""
        config, catalog = self.config, self.catalog
        codes = self.item_codes[items].long()
        is_legal = [None] * config.num_levels  # only where the softmax runs over legal tokens
        if config.normalization == "catalog":
            nodes = torch.zeros_like(items)
            for level in range(config.num_levels):
                is_legal[level] = catalog.child_mask(level, nodes)
                nodes = catalog.child(level, nodes, codes[..., level])
        code_tokens = self.semantic_id_tokens(items + config.first_item_token)
        first_step = config.num_decoding_steps - config.num_levels
        paths = []
        for latent in range(max(1, config.num_latent_tokens)):
            tokens, total = code_tokens, 0.0
            if config.num_latent_tokens:
                tokens = torch.nn.functional.pad(code_tokens, (1, 0), value=config.first_latent_token + latent)
            states = self.path_states(tokens, history)
            if config.num_latent_tokens:
                total = token_log_probs(self, states[:, :, 0], 0)[..., latent]
            for level in range(config.num_levels):
                step = first_step + level
                log_probs = token_log_probs(self, states[:, :, step], step, is_legal=is_legal[level])
                total = total + log_probs.gather(-1, codes[..., level, None]).squeeze(-1)
            paths.append(total)
        return torch.stack(paths)


class _AllOfLatent:
    """A [`Selection`] that drops nothing but the other latents: beams stand in the order of the trie."""

    def __init__(self, latent: int):
        self.latent = latent

    def __call__(self, candidates: torch.FloatTensor, num_beams: int, step: SearchStep) -> torch.LongTensor:
        if step.depth < 0:
            return torch.full((len(candidates), 1), self.latent, device=candidates.device)
        # the trie is the same for all users, so what is legal for one is legal for all
        positions = (candidates > -float("inf")).flatten(1).any(0).nonzero().squeeze(1)
        return positions.expand(len(candidates), -1)


__all__ = ["ScoringMixin"]
