"""
`recommend()` for models that predict all codes of a semantic ID at once.

A model that mixes in `CodeRankingMixin` supplies `code_log_probs`, `history_bytes`, `config`, `item_codes` and, with a
second head, `_two_log_probs`: those of codes and those of items from one pass. The score of an item is the sum of the
log-probabilities of its codes. Items with the same codes have the same score and stand in the order of their counts,
without counts in that of the catalog.
"""

from collections.abc import Callable

import torch

from .genrec_beams import HistoryOutput, beam_search, describe_paths
from .genrec_item_graph import (
    ItemGraphMixin,
    best_items,
    candidate_scores,
    graph_search,
    item_scores,
    search_bytes,
    users_per_table,
)
from .genrec_lists import best_of, gumbel_noise, rule_rows
from .genrec_recommend import Ranking, RankRequest, RecommendMixin, UserBatch, evaluation_mode
from .genrec_recommend_config import BeamPath


DENSE_BYTES = 24  # per item and user: logit and log-probability by a second head, and what is ranked
BEAM_BYTES = 32  # per code that may follow a beam: its score, ranked, its node in the trie and whether it is legal


class CodeRankingMixin(RecommendMixin, ItemGraphMixin):
    """
    `recommend()` and `score_items()` for models with `code_log_probs`.

    `decoding="exact"` looks the scores of all items up and keeps the best: never wrong, and hard to beat (see
    `RESULTS.md` of the library for the size of a catalog at which others are faster). `"graph"` walks from `num_beams`
    random items along the item graph; what it does not meet it cannot recommend. `"beam"` searches code by code, for
    comparison. Where these two find fewer items than were asked for although more are allowed, the user gets the exact
    list: lists are never short while allowed items exist.

    Source: Hou et al. 2025, section 3.3 (https://huggingface.co/papers/2506.05781); scores of the whole catalog by
    look-up in blocks of users are ours.
    """

    decodings = ("exact", "graph", "beam")
    search_options = ("num_propagations", "num_neighbors", "start_seed")
    has_paths = True

    @torch.no_grad()
    def score_items(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> torch.FloatTensor:
        """
        Exact log-probability of every item `(batch_size, num_items)`, for catalogs small enough to hold them.

        Args: see [`ItemTokensMixin.is_item`].
        """
        with evaluation_mode(self):
            return self.only_open(item_scores(self.code_log_probs(input_ids, attention_mask), self.item_codes))

    def _log_probs(self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None) -> torch.FloatTensor:
        return self.code_log_probs(input_ids, attention_mask)

    def _ranking_bytes(self, request: RankRequest, history_length: int) -> tuple[int, int]:
        config, options, decoding = self.config, request.options, self._decoding(request)
        # log-probabilities, their transpose and a temporary
        per_user = self.history_bytes(history_length) + 3 * 4 * config.num_levels * config.codebook_size
        if options.dense_weight > 0 or decoding == "dense":
            per_user += DENSE_BYTES * config.num_items
        if decoding == "graph":
            stored = self.item_graph.shape[1]
            if options.num_neighbors is not None and options.num_neighbors > stored:
                raise ValueError(
                    f"`num_neighbors` must be at most {stored}, as the graph, got {options.num_neighbors}."
                )
            per_user += search_bytes(
                num_beams=request.num_beams,
                num_neighbors=options.num_neighbors or stored,
                num_propagations=options.num_propagations,
                num_levels=config.num_levels,
            )
        return per_user, BEAM_BYTES * config.codebook_size if decoding == "beam" else 0

    def _decoding(self, request: RankRequest) -> str:
        return request.options.decoding or self.default_decoding

    def _rank_batch(self, users: UserBatch, request: RankRequest) -> Ranking:
        decoding, dense = self._decoding(request), None
        if request.options.dense_weight > 0 or decoding == "dense":
            log_probs, dense = self._two_log_probs(users.input_ids, users.attention_mask)
        else:
            log_probs = self._log_probs(users.input_ids, users.attention_mask)
        if decoding == "dense":
            items, scores, _ = request.best_of_all(dense, allowed=users.allowed, penalty=request.penalty)
            num_visited = torch.full((len(items),), self.config.num_items, device=items.device)
            found = Ranking(items, scores, num_visited=num_visited)
        elif decoding == "exact":
            found = self._find_exact(log_probs, users, request, dense)
        else:
            find = {"graph": self._find_graph, "beam": self._find_beam}[decoding]
            found = find(log_probs, users, request)
            self._complete(found, log_probs, users, request)
        ranked = found.scores
        if request.penalty is not None:
            ranked = ranked - request.penalty[found.items.clamp_min(0)]
        found.items, found.scores = request.picked(
            found.items, found.scores, ranked, item_codes=self.item_codes, has_prefixes=False
        )
        if request.return_paths:
            found.paths = self._paths(log_probs, found.items)
            found.pruned = found.pruned or [[] for _ in found.paths]
        return found

    def _find_exact(
        self,
        log_probs: torch.FloatTensor,
        users: UserBatch,
        request: RankRequest,
        dense: torch.FloatTensor | None = None,
    ) -> Ranking:
        """All items are scored; with `dense` `(B, N)`, what a second head says of them, by the sum of both heads."""
        num_items, seed, device = self.config.num_items, request.options.sample_seed, log_probs.device
        weight = request.options.dense_weight
        item_codes, allowed, penalty, order = self.item_codes, users.allowed, request.penalty, self.item_order
        if order is not None:  # the first of equal scores wins, so items come in the order in which they shall stand
            item_codes = self.item_codes[order]
            allowed = None if allowed is None else allowed[:, order]
            penalty = None if penalty is None else penalty[order]
            dense = None if dense is None else dense[:, order]
        noise: Callable[[slice, slice], torch.Tensor] | None = None
        if seed is not None:
            keys, catalog = users.keys(seed), torch.arange(num_items, device=device) if order is None else order

            def noise(some_users: slice, some_items: slice) -> torch.FloatTensor:
                return gumbel_noise(keys[some_users], catalog[some_items])

        elif dense is not None:

            def noise(some_users: slice, some_items: slice) -> torch.FloatTensor:
                return weight * dense[some_users, some_items]

        items, scores = best_items(
            log_probs,
            item_codes,
            top_k=request.num_pooled(),
            allowed=allowed,
            penalty=penalty,
            noise=noise,
            memory_budget=request.options.memory_budget,
        )
        if dense is not None:
            scores = scores + weight * dense.gather(1, items.clamp_min(0))
        if order is not None:
            items = torch.where(items >= 0, order[items.clamp_min(0)], -1)
        return Ranking(items, scores, num_visited=torch.full((len(items),), num_items, device=device))

    def _find_graph(self, log_probs: torch.FloatTensor, users: UserBatch, request: RankRequest) -> Ranking:
        """Items that a walk along the graph meets are scored."""
        options = request.options
        start = self.start_items(
            users.input_ids, users.attention_mask, num_starts=request.num_beams, seed=options.start_seed
        )
        found = []
        for rows in torch.arange(len(start), device=start.device).split(users_per_table(start.device)):
            visited = graph_search(
                log_probs[rows],
                self.item_codes,
                self.item_graph[:, : options.num_neighbors],
                start[rows],
                num_beams=request.num_beams,
                num_propagations=options.num_propagations,
                penalty=request.penalty,
            )
            allowed = rule_rows(users.allowed, rows)
            best = visited.best(
                request.num_pooled(), allowed=allowed, penalty=request.penalty, item_order=self.item_order
            )
            found.append((*best, visited.counts()))
        items, scores, num_visited = (torch.cat(parts) for parts in zip(*found, strict=True))
        return Ranking(items, scores, num_visited=num_visited)

    def _find_beam(self, log_probs: torch.FloatTensor, users: UserBatch, request: RankRequest) -> Ranking:
        """
        Items whose codes the beams hold; of the ids that several items share, all of these. It finds less than exact
        scores at the same cost or more, since with long ids the best prefixes are rarely those of the best items; it
        is here because papers compare with it.
        """
        config, penalties = self.config, None
        if request.penalty is not None:
            penalties = self.catalog.prior_penalties(request.item_prior, request.options.prior_correction)
        beams = beam_search(
            _GivenLevels(self, log_probs),
            HistoryOutput(last_hidden_state=log_probs),
            num_beams=request.num_beams,
            allowed_items=users.allowed,
            penalties=penalties,
            num_pruned=request.num_beams if request.return_paths else 0,
        )
        items, _ = self.catalog.items_of_ids(beams.leaves)
        items = items.masked_fill(items < 0, config.num_items).sort(dim=1).values  # -1 last, as `best_of` wants it
        items = items.masked_fill(items == config.num_items, -1)
        scores = candidate_scores(log_probs, self.item_codes, items.clamp_min(0))
        best = best_of(
            items,
            scores,
            top_k=request.num_pooled(),
            allowed=users.allowed,
            penalty=request.penalty,
            item_order=self.item_order,
        )
        _, pruned = describe_paths(config, self.catalog, beams, items) if request.return_paths else (None, None)
        return Ranking(*best, pruned=pruned, num_visited=(items >= 0).sum(1))

    def _complete(self, found: Ranking, log_probs, users: UserBatch, request: RankRequest) -> None:
        """Exact lists for the users who would get too short ones."""
        wanted = users.num_wanted(request.options.top_k)
        short = ((found.items >= 0).sum(1) < wanted).nonzero()[:, 0]
        if len(short):
            some = UserBatch(users.input_ids[short], None, rule_rows(users.allowed, short), users.first_user)
            exact = self._find_exact(log_probs[short], some, request)
            found.items[short], found.scores[short] = exact.items, exact.scores
            found.num_visited[short] = exact.num_visited

    def _paths(self, log_probs: torch.FloatTensor, items: torch.LongTensor) -> list[list[BeamPath]]:
        """The codes of the listed items with the score up to each of them."""
        codes = self.item_codes[items.clamp_min(0)]
        scores = log_probs.float().gather(2, codes.long().transpose(1, 2)).transpose(1, 2).cumsum(-1).tolist()
        tokens = torch.where(items >= 0, items + self.config.first_item_token, -1).tolist()
        return [
            [
                BeamPath(latent=None, codes=path, scores=path_scores, item_token=token)
                for path, path_scores, token in zip(*user, strict=True)
                if token >= 0
            ]
            for user in zip(codes.tolist(), scores, tokens, strict=True)
        ]


class _GivenLevels:
    """A decoder for `beam_search` that computes nothing: the log-probabilities of each level `(B, L, K)` are given."""

    def __init__(self, model, log_probs: torch.FloatTensor):
        self.config, self.catalog, self.log_probs = model.config, model.catalog, log_probs

    def search_cache(self) -> "_GivenLevels":
        """There are no keys and values."""
        return self

    def of_beams(self, rows) -> "_GivenLevels":
        """All beams of a user go on with the same."""
        return self

    def decode_states(self, tokens, history, cache) -> None:
        """A code is as likely after any prefix."""

    def token_log_probs(self, states, step, *, codes=None, is_legal=None) -> torch.FloatTensor:
        level = self.log_probs[:, step].unsqueeze(1)  # (B, 1, K), for every beam
        return level if codes is None else level.expand(-1, codes.shape[1], -1).gather(-1, codes)
