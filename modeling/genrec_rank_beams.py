"""
`recommend()` by beam search over the catalog's trie, for models that write semantic IDs token by token.

The same ranked items as `generate()`, with one encoder pass and one set of cross-attention keys and values per user
instead of one per beam. A model that mixes in `BeamRankingMixin` supplies `encode_history`, `decode_states`,
`path_states`, `score_tokens` and `decoding_bytes`. Scores are exact sums over the generated tokens, not divided by
length; what a probability is relative to is `config.normalization`.

The search is for semantic IDs, the lists are of items. Where several items share an id they share its score, and it
gives way to all of them that the rules allow, the lowest index first.
"""

import torch

from .genrec_beams import Beams, HistoryOutput, Selection, beam_search, best_candidates
from .genrec_exact import ScoringMixin
from .genrec_ranking import (
    describe_paths,
    list_items,
    num_distinct_items,
    prior_penalties,
    rank_ids,
    reordered,
    sampled_items,
)
from .genrec_recommend import Ranking, RankRequest, RecommendMixin, UserBatch
from .genrec_rerank import rule_rows
from .genrec_selections import DiverseGroups, GumbelTopK


class BeamRankingMixin(RecommendMixin, ScoringMixin):
    """
    `recommend()` and `score_items()` for models that generate semantic IDs token by token.

    Source: Hou et al. 2026, section 4.2 (https://huggingface.co/papers/2605.06331); the search is ours.
    """

    decodings = ("beam",)
    search_options = ("num_rescored", "num_groups", "group_penalty")
    has_paths = True

    def _ranking_bytes(self, request: RankRequest, history_length: int) -> tuple[int, int]:
        return self.decoding_bytes(history_length)

    def _penalties(self, request: RankRequest) -> list[torch.Tensor]:
        return prior_penalties(self.catalog, request.item_prior, request.options.prior_correction)

    def _rank_batch(self, users: UserBatch, request: RankRequest) -> Ranking:
        """Search, then search again with twice the beams for the users whose lists are still short."""
        batch_size, device = len(users.input_ids), users.input_ids.device
        output = _empty_ranking(batch_size, request, device=device)
        if not batch_size:
            return output
        history = self.encode_history(users.input_ids, users.attention_mask)
        wanted = torch.full((batch_size,), request.options.top_k, device=device)
        if users.allowed is not None:
            wanted = wanted.minimum(users.allowed.sum(1))
        pending = [(torch.arange(batch_size, device=device), request.num_beams)]
        while pending:
            rows, num_beams = pending.pop()
            chunks = request.chunks(len(rows), num_beams)
            if len(chunks) > 1:  # wider beams: fewer users at a time
                pending += [(rows[part], num_beams) for part in chunks]
                continue
            is_all = len(rows) == batch_size
            part = history if is_all else _of_users(history, rows)
            allowed = users.allowed if is_all else rule_rows(users.allowed, rows)
            items, scores, beams = self._search_once(part, allowed, request, num_beams)
            is_short = (scores > -float("inf")).sum(1) < wanted[rows]
            is_done = ~is_short if num_beams < request.most_beams else torch.ones_like(is_short)
            done = rows[is_done]
            output.items[done], output.scores[done] = items[is_done], scores[is_done]
            output.num_distinct[done] = num_distinct_items(self.catalog, beams)[is_done]
            if request.return_paths:
                paths, pruned = describe_paths(self.config, self.catalog, beams, items)
                for row in is_done.nonzero()[:, 0].tolist():
                    output.paths[int(rows[row])], output.pruned[int(rows[row])] = paths[row], pruned[row]
            if len(done) < len(rows):
                pending.append((rows[~is_done], min(2 * num_beams, request.most_beams)))
        return output

    def _search_once(self, history, allowed, request, num_beams) -> tuple[torch.Tensor, torch.Tensor, Beams]:
        """Items and scores `(B, top_k)` by one search of this width, short where it found too few; and its beams."""
        config, options, selection = self.config, request.options, _selection(request)
        beams = beam_search(
            self,
            history,
            num_beams=num_beams,
            selection=selection,
            allowed_items=allowed,
            penalties=request.penalty,
            num_pruned=num_beams if request.return_paths else 0,
        )
        if isinstance(selection, DiverseGroups):
            beams = reordered(beams, selection.order, num_latents=config.num_latent_tokens)
        if isinstance(selection, GumbelTopK) and not self.catalog.is_unique:
            items, scores = sampled_items(
                self.catalog,
                beams,
                selection,
                top_k=options.top_k,
                num_latents=config.num_latent_tokens,
                latent_aggregation=options.latent_aggregation,
                allowed=allowed,
            )
            return items, scores, beams
        leaves, scores = rank_ids(
            beams,
            top_k=request.num_pooled(num_beams),
            latent_aggregation=options.latent_aggregation,
            penalty=None if request.penalty is None else request.penalty[-1],
            by_place=isinstance(selection, DiverseGroups | GumbelTopK),
        )
        if options.num_rescored and config.num_latent_tokens:
            leaves, scores = self._rescored(history, leaves, scores, request)
        return *self._listed(leaves, scores, allowed, request), beams

    def _rescored(self, history, leaves, scores, request) -> tuple[torch.LongTensor, torch.FloatTensor]:
        """Ids (B, n), -1 where there is none, in the order of exact scores: all for a diverse list, or `top_k`."""
        path_bytes = self.config.num_decoding_steps * request.bytes_per_beam
        scores = self.score_candidates(
            history,
            self.catalog.item_at(leaves).clamp_min(0),
            latent_aggregation=request.options.latent_aggregation,
            chunk_size=max(1, request.options.memory_budget // (path_bytes * max(1, len(leaves)))),
        ).masked_fill(leaves < 0, -float("inf"))
        ranked = _corrected(leaves, scores, request)
        if request.options.diversity:
            order = ranked.sort(dim=1, descending=True, stable=True).indices
        else:
            order = ranked.topk(request.options.top_k).indices
        return leaves.gather(1, order), scores.gather(1, order)

    def _listed(self, leaves, scores, allowed, request) -> tuple[torch.LongTensor, torch.FloatTensor]:
        """The `top_k` items, -1 where there is none, of ranked ids (B, n): the first ones, or a diverse list."""
        if not request.options.diversity:
            return list_items(self.catalog, leaves, scores, top_k=request.options.top_k, allowed=allowed)
        ranked, width = _corrected(leaves, scores, request), leaves.shape[1]
        items, scores, ranked = list_items(self.catalog, leaves, scores, ranked, top_k=width, allowed=allowed)
        return request.picked(items, scores, ranked, item_codes=self.item_codes)


def _selection(request: RankRequest) -> Selection:
    """One for one search: it may keep a state."""
    if request.generator is not None:
        return GumbelTopK(request.generator)
    if request.options.num_groups > 1:
        return DiverseGroups(request.options.num_groups, request.options.group_penalty)
    return best_candidates


def _corrected(leaves: torch.LongTensor, scores: torch.FloatTensor, request: RankRequest) -> torch.FloatTensor:
    """What ids are ranked by: their scores less the prior correction of the leaf."""
    return scores if request.penalty is None else scores - request.penalty[-1][leaves.clamp_min(0)]


def _of_users(history: HistoryOutput, rows: torch.LongTensor) -> HistoryOutput:
    return HistoryOutput(history.last_hidden_state[rows], history.attention_mask[rows])


def _empty_ranking(batch_size: int, request: RankRequest, *, device: torch.device) -> Ranking:
    shape = (batch_size, request.options.top_k)
    return Ranking(
        items=torch.full(shape, -1, device=device),
        scores=torch.full(shape, -float("inf"), device=device),
        paths=[[] for _ in range(batch_size)] if request.return_paths else None,
        pruned=[[] for _ in range(batch_size)] if request.return_paths else None,
        num_distinct=torch.zeros(batch_size, dtype=torch.long, device=device),
    )


__all__ = ["BeamRankingMixin"]
