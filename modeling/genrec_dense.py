"""
A second head on the same history: a vector for each item, with which histories are read and the next item is scored.

Codes say what an item is like; which of its siblings it is they hardly say, and beams seldom reach rare items. The
vector of an item is the sum of up to three parts: the embeddings of its codes, a projection of its text vector, and a
row of its own. The encoder reads these vectors, and its last state is compared with all of them in one product.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init

from .genrec_beams import ROUNDING, HistoryOutput, beam_search, list_items, rank_ids
from .genrec_encoder import item_loss, sampled_item_loss
from .genrec_kept import KeptVectorsMixin, read_history
from .genrec_lists import first_of_the_best
from .genrec_recommend import Ranking, RankRequest, UserBatch, evaluation_mode
from .genrec_recommend_config import RecommendConfig


SCORE_BYTES = 32  # per item and user: the two scores, what is ranked, and its place while the best are found


@dataclass
class TwoScores:
    """
    What both heads say of the candidates of each user.

    - `generated` `(batch_size, num_items)`: log-probability of the item's semantic ID; `-inf` for items that are no
      candidates.
    - `dense` (same shape): log-probability of the item, of all items.
    """

    generated: torch.FloatTensor
    dense: torch.FloatTensor


class ItemTable(nn.Module):
    """The parts of the items' vectors beside their codes: own rows and projected text vectors."""

    text_vectors: torch.Tensor  # a buffer, where there is a projection

    def __init__(self, config):
        super().__init__()
        self.rows = nn.Embedding(config.num_items, config.d_model) if config.dense_rows else None
        self.row_dropout = nn.Dropout(config.dense_row_dropout)
        self.text_projection = None
        if config.dense_text_dim:
            self.text_projection = nn.Linear(config.dense_text_dim, config.d_model, bias=False)
            self.register_buffer(
                "text_vectors", torch.zeros(config.num_items, config.dense_text_dim, dtype=torch.float16)
            )

    @torch.no_grad()
    def init_weights(self, std: float) -> None:
        """Both parts at the start on the scale of the code embeddings, rows at half of it."""
        if self.rows is not None:
            init.normal_(self.rows.weight, mean=0.0, std=std / 2)
        if self.text_projection is not None:
            init.normal_(self.text_projection.weight, mean=0.0, std=std)

    def forward(self, items: torch.LongTensor | None, code_vectors: torch.Tensor | None) -> torch.Tensor:
        """
        The whole vectors of `items` `(n,)`, `None` for all in their order; `code_vectors` `(n, ..., d_model)` is the
        part of the codes, `None` for none. Returns its shape or `(n, d_model)`; in training mode some numbers of own
        rows are dropped.
        """
        parts = [] if code_vectors is None else [code_vectors]
        if self.rows is not None:
            parts.append(self.row_dropout(self.rows.weight if items is None else self.rows(items)))
        if self.text_projection is not None:
            texts = self.text_vectors if items is None else self.text_vectors[items]
            parts.append(self.text_projection(texts.to(self.text_projection.weight.dtype)))
        return sum(parts[1:], parts[0])


class ItemTableMixin(KeptVectorsMixin):
    """
    The items' vectors and the loss of a model with a second head, where `config.dense_head` is set.

    A model calls `register_item_table()` in its `__init__`, before `post_init()`, initialises the table in
    `_init_weights` and supplies `code_vectors`, the part of the codes in an item's vector, `_last_states`, the states
    behind histories, and `score_both`: both scores that `recommend()` adds up, as [`TwoScores`].
    """

    item_table: ItemTable | None

    def register_item_table(self) -> None:
        """Make the table, or none; before `post_init()`. With it, lists are by both heads until a weight is chosen."""
        self.item_table = None
        if self.config.dense_head:
            self.item_table = ItemTable(self.config)
            self.recommend_config = RecommendConfig(dense_weight=1.0)

    @property
    def decodings(self) -> tuple[str, ...]:
        """`tuple[str, ...]`: how items can be found; where there is a dense head also by that alone."""
        return (*super().decodings, "dense") if self.config.dense_head else super().decodings

    @property
    def recommend_options(self) -> tuple[str, ...]:
        """See [`RecommendMixin`]; `dense_weight` where there is a dense head."""
        options = super().recommend_options
        return (*options, "dense_weight") if self.config.dense_head else options

    def item_vectors(self, items: torch.LongTensor | None = None) -> torch.Tensor:
        """What the last state of a history is compared with: vectors `(n, d_model)` of `items`, `None` for all."""
        if self.item_table is None:
            raise ValueError(f"This {type(self).__name__} has no dense head: its config says `dense_head=False`.")
        return self.item_table(items, self.code_vectors(items) if self.config.dense_codes else None)

    def set_text_vectors(self, vectors) -> None:
        """
        Write the vectors that the table projects into the model; they travel in the checkpoint.

        Args:
            vectors (`torch.Tensor` or `np.ndarray` of shape `(num_items, dense_text_dim)`):
                Of texts, or of anything else that is known of the items.
        """
        wanted = (self.config.num_items, self.config.dense_text_dim)
        if self.item_table is None or not self.config.dense_text_dim:
            raise ValueError("The model reads no text vectors: set `dense_head` and `dense_text_dim` in its config.")
        if tuple(vectors.shape) != wanted:
            raise ValueError(
                f"`vectors` must have shape (num_items, dense_text_dim) = {wanted}, got {tuple(vectors.shape)}."
            )
        self.item_table.text_vectors.copy_(torch.as_tensor(vectors))

    @property
    def weight_decays(self) -> dict[str, float]:
        """`dict[str, float]`: parameters whose weight decay is the model's, not that of the training arguments."""
        if self.item_table is None or self.item_table.rows is None:
            return {}
        return {"item_table.rows.weight": self.config.dense_row_weight_decay}

    def log_probs_of_items(self, states: torch.Tensor) -> torch.FloatTensor:
        """Log-probability of every item after `states` `(n, d_model)`: `(n, num_items)`, float32."""
        with torch.autocast(states.device.type, enabled=False):
            return self.only_open(torch.matmul(states.float(), self.all_item_vectors().t())).log_softmax(-1)

    @torch.no_grad()
    def dense_scores(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> torch.FloatTensor:
        """
        Log-probability of every item by the dense head `(batch_size, num_items)`, as `score_items` gives that of the
        generator.

        Args: see [`ItemTokensMixin.is_item`].
        """
        with evaluation_mode(self):
            return self.log_probs_of_items(self._last_states(input_ids, attention_mask))

    def dense_loss(self, states: torch.Tensor, items: torch.LongTensor) -> torch.Tensor:
        """
        Cross-entropy of the next items `(num_targets,)` after `states` `(num_targets, d_model)`, summed; of a large
        catalog with a sample of the other items.
        """
        config = self.config
        if config.num_items <= 2 * config.dense_negatives:
            return item_loss(states, self.item_vectors(), items)
        drawn = torch.randperm(config.num_items, device=items.device)[: config.dense_negatives]
        return sampled_item_loss(
            states, self.item_vectors(items), self.item_vectors(drawn), items, drawn, num_items=config.num_items
        )


class DenseHeadMixin(ItemTableMixin):
    """
    The second head of a model that writes semantic IDs, beside what [`BeamRankingMixin`] needs.

    Source: ours; generated and dense retrieval in one network also in Yang et al. 2024, LIGER
    (https://huggingface.co/papers/2411.18814).
    """

    @property
    def decodings(self) -> tuple[str, ...]:
        """See [`ItemTableMixin`]; with both heads also `"exact"`, without beams."""
        return (*super().decodings, "exact") if self.config.dense_head else super().decodings

    # --- scores --------------------------------------------------------------------------------------------------

    def _last_states(self, input_ids, attention_mask) -> torch.Tensor:
        return _states_behind(read_history(self, input_ids, attention_mask))

    @torch.no_grad()
    def score_both(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        *,
        allowed: torch.BoolTensor | None = None,
        num_beams: int = 50,
        latent_aggregation: str = "max",
    ) -> TwoScores:
        """
        See [`ItemTableMixin`]: of the items that the beams or the dense head propose.

        Args:
            input_ids: Item tokens `(batch_size, history_length)`, see [`ItemTokensMixin.is_item`].
            attention_mask: 1 at items that count; `None` for all.
            allowed (`torch.BoolTensor` of shape `(batch_size or 1, num_items)`, *optional*):
                Items that may be proposed; `None` for all.
            num_beams (`int`, defaults to 50): Width of the search, and number of the dense head's proposals.
            latent_aggregation (`str`, defaults to `"max"`): As in `score_items`.
        """
        num_beams = min(num_beams, self.config.num_paths)
        with evaluation_mode(self):
            history = self.encode_history(input_ids, attention_mask)
            beams = beam_search(self, history, num_beams=num_beams, allowed_items=allowed)
            ids = rank_ids(beams, top_k=num_beams, latent_aggregation=latent_aggregation)
            items, scores = list_items(self.catalog, *ids, top_k=num_beams, allowed=allowed)
            return self.two_scores(
                history,
                items,
                scores,
                allowed=allowed,
                num_candidates=num_beams,
                latent_aggregation=latent_aggregation,
            )

    # --- ranking -------------------------------------------------------------------------------------------------

    def _ranking_bytes(self, request: RankRequest, history_length: int) -> tuple[int, int]:
        per_user, per_beam = super()._ranking_bytes(request, history_length)
        is_dense = request.options.dense_weight > 0 or request.options.decoding == "dense"
        return per_user + (SCORE_BYTES * self.config.num_items if is_dense else 0), per_beam

    def two_scores(
        self,
        history: HistoryOutput,
        items: torch.LongTensor,
        scores: torch.FloatTensor,
        *,
        allowed: torch.BoolTensor | None,
        num_candidates: int,
        latent_aggregation: str,
        chunk_size: int = 1024,
    ) -> TwoScores:
        """
        Unites what the beams found, `items` and `scores` `(batch_size, n)`, -1 for none, with the `num_candidates`
        best items of the dense head, whose semantic IDs are scored exactly; the rest is as in `score_candidates`.
        """
        infinity = float("inf")
        dense = self.log_probs_of_items(_states_behind(history))
        num_items = dense.shape[1]
        generated = dense.new_full((len(dense), num_items + 1), -infinity)  # one place more: for no item
        generated = generated.scatter_(1, items.masked_fill(items < 0, num_items), scores.to(dense.dtype))
        generated = generated[:, :num_items]
        ranked = dense if allowed is None else dense.masked_fill(~allowed, -infinity)
        best = first_of_the_best(ranked, num_candidates)
        exact = self.score_candidates(history, best, latent_aggregation=latent_aggregation, chunk_size=chunk_size)
        exact = exact.masked_fill(ranked.gather(1, best) == -infinity, -infinity)
        return TwoScores(generated.scatter(1, best, exact), dense)

    def rank_both(self, history, leaves, scores, allowed, request: RankRequest, num_beams: int):
        """
        Ids that the beams found, with their scores, to items and scores `(batch_size, top_k)` by both heads; -1 and
        `-inf` where there are fewer candidates.
        """
        items, scores = list_items(self.catalog, leaves, scores, top_k=num_beams, allowed=allowed)
        both = self.two_scores(
            history,
            items,
            scores,
            allowed=allowed,
            num_candidates=num_beams,
            latent_aggregation=request.options.latent_aggregation,
            chunk_size=request.paths_at_a_time(len(leaves)),
        )
        scores = both.generated + request.options.dense_weight * both.dense
        return self._best_listed(scores, request, top_k=request.num_pooled(num_beams))

    def rank_drafted(self, users: UserBatch, request: RankRequest) -> Ranking:
        """
        The best items of the whole catalog by both heads, of which few are read by the decoder: the dense head drafts,
        the decoder verifies a draft in one pass.

        No item is more likely than its first code, so the dense head and the codes of the first level bound the sum
        of every item. Items are drafted in the order of their bounds, twice the list at first, then twice as many as
        before, until the last place of the list is above all bounds of what is left: it is that of all exact scores.
        """
        if request.return_paths:
            raise ValueError("`return_paths` is of beams, which `decoding='exact'` does without: use 'beam'.")
        infinity, options, num_items = float("inf"), request.options, self.config.num_items
        device = users.input_ids.device
        if not len(users.input_ids):
            return Ranking(*self._best_listed(torch.zeros(0, num_items, device=device), request))
        history = self.encode_history(users.input_ids, users.attention_mask)
        dense = options.dense_weight * self.log_probs_of_items(_states_behind(history))
        first_codes = self._first_code_log_probs(history, options.latent_aggregation)
        penalty = None if request.penalty is None else request.penalty[-1][self.catalog.id_of_items()]
        most = dense + first_codes[:, self.item_codes[:, 0].long()] + ROUNDING  # (B, N): what an item may reach
        most = most if penalty is None else most - penalty
        most = most if users.allowed is None else most.masked_fill(~users.allowed, -infinity)
        scores, top_k = torch.full_like(most, -infinity), request.num_pooled()
        num_visited = torch.zeros(len(most), dtype=torch.long, device=device)
        rows, start, size = torch.arange(len(most), device=device), 0, min(2 * top_k, num_items)
        while len(rows):
            bounds = most[rows]
            drafted = first_of_the_best(bounds, size)[:, start:]
            is_drafted = bounds.gather(1, drafted) > -infinity
            generated = self.score_candidates(
                history if len(rows) == len(most) else history.of_users(rows),
                drafted,
                latent_aggregation=options.latent_aggregation,
                chunk_size=request.paths_at_a_time(len(rows)),
            )
            both = (generated + dense[rows].gather(1, drafted)).masked_fill(~is_drafted, -infinity)
            scores[rows.unsqueeze(1), drafted] = both
            num_visited[rows] += is_drafted.sum(1)
            if size == num_items:
                break
            ranked = scores[rows] if penalty is None else scores[rows] - penalty
            last, outside = ranked.topk(top_k).values[:, -1], bounds.topk(size + 1).values[:, -1]
            rows = rows[(last <= outside) & (outside > -infinity)]
            start, size = size, min(2 * size, num_items)
        return Ranking(*self._best_listed(scores, request, top_k=top_k), num_visited=num_visited)

    def _first_code_log_probs(self, history: HistoryOutput, latent_aggregation: str) -> torch.FloatTensor:
        """Log-probability of each code of the first level, over all latents: `(batch_size, codebook_size)`."""
        num_users, num_latents = len(history.last_hidden_state), self.config.num_latent_tokens
        root = torch.zeros(num_users, max(1, num_latents), dtype=torch.long, device=history.last_hidden_state.device)
        is_legal = self.catalog.child_mask(0, root) if self.config.normalization == "catalog" else None
        if not num_latents:
            states = self.path_states(root.unsqueeze(-1), history)[:, :, 0]
            return self.token_log_probs(states, 0, is_legal=is_legal)[:, 0]
        latents = self.config.first_latent_token + torch.arange(num_latents, device=root.device)
        states = self.path_states(nn.functional.pad((root + latents).unsqueeze(-1), (0, 1)), history)
        of_latents = self.token_log_probs(states[:, 0, 0], 0).unsqueeze(-1)  # (B, num_latents, 1)
        of_codes = self.token_log_probs(states[:, :, 1], 1, is_legal=is_legal)
        paths = of_latents + of_codes
        return paths.amax(1) if latent_aggregation == "max" else paths.logsumexp(1)

    def rank_dense(self, users: UserBatch, request: RankRequest) -> Ranking:
        """The dense head alone: every item is scored, so nothing is searched for."""
        if not len(users.input_ids):
            scores = torch.zeros(0, self.config.num_items, device=users.input_ids.device)
        else:
            scores = self.log_probs_of_items(self._last_states(users.input_ids, users.attention_mask))
        items, scores = self._best_listed(scores, request, allowed=users.allowed)
        num_found = torch.zeros(len(items), dtype=torch.long, device=items.device)
        nothing: list | None = [[] for _ in items] if request.return_paths else None
        return Ranking(items, scores, paths=nothing, pruned=nothing, num_distinct=num_found)

    def _best_listed(self, scores, request: RankRequest, *, allowed=None, top_k: int | None = None):
        """The best of all items by `scores` `(B, N)`, `-inf` where an item may not be listed; or a diverse list."""
        penalty = None if request.penalty is None else request.penalty[-1][self.catalog.id_of_items()]
        found = request.best_of_all(scores, allowed=allowed, penalty=penalty, top_k=top_k)
        return request.picked(*found, item_codes=self.item_codes)


def _states_behind(history: HistoryOutput) -> torch.Tensor:
    """States of the last tokens of histories, `(batch_size, d_model)`."""
    last = history.attention_mask.sum(1) - 1
    return history.last_hidden_state[torch.arange(len(last), device=last.device), last]
