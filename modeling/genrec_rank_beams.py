"""
`recommend()` by beam search over the catalog's trie, for models that write semantic IDs token by token.

The same ranked items as `generate()`, with one encoder pass and one set of cross-attention keys and values per user
instead of one per beam. A model that mixes in `BeamRankingMixin` supplies `encode_history`, `decode_states`,
`path_states`, `score_tokens` and `decoding_bytes`. Scores are exact sums over the generated tokens, not divided by
length; what a probability is relative to is `config.normalization`.

The search is for semantic IDs, the lists are of items. Where several items share an id they share its score, and it
gives way to all of them that the rules allow, in their order (see `genrec_ranking.py`).
"""

import torch

from .genrec_beams import (
    Beams,
    DiverseGroups,
    GumbelTopK,
    HistoryOutput,
    SearchStep,
    Selection,
    beam_search,
    best_candidates,
    token_range,
)
from .genrec_lists import check_scores, rule_rows
from .genrec_ranking import (
    describe_paths,
    id_of_items,
    list_items,
    num_distinct_items,
    prior_penalties,
    rank_ids,
    reordered,
    sampled_items,
)
from .genrec_recommend import Ranking, RankRequest, RecommendMixin, UserBatch, evaluation_mode
from .genrec_recommend_config import check_latent_aggregation


PATHS_AT_A_TIME = 1 << 13  # rows of the decoder that `score_paths` holds, of all users of a chunk


class BeamRankingMixin(RecommendMixin):
    """
    `recommend()` and `score_items()` for models that generate semantic IDs token by token.

    Source: Hou et al. 2026, section 4.2 (https://huggingface.co/papers/2605.06331); the search is ours.
    """

    decodings = ("beam",)
    search_options = ("num_rescored", "num_groups", "group_penalty")
    has_paths = True

    def _ranking_bytes(self, request: RankRequest, history_length: int) -> tuple[int, int]:
        return self.decoding_bytes(min(history_length, self.config.max_history_length))

    def _penalties(self, request: RankRequest) -> list[torch.Tensor]:
        return prior_penalties(self.catalog, request.item_prior, request.options.prior_correction)

    def _rank_batch(self, users: UserBatch, request: RankRequest) -> Ranking:
        """Search, then search again with twice the beams for the users whose lists are still short."""
        batch_size, device = len(users.input_ids), users.input_ids.device
        if request.options.decoding == "dense":
            return self.rank_dense(users, request)
        output = _empty_ranking(batch_size, request, device=device)
        if not batch_size:
            return output
        history = self.encode_history(users.input_ids, users.attention_mask)
        wanted = users.num_wanted(request.options.top_k)
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
        check_scores(beams.scores, type(self).__name__)  # NaN would look like lists that are too short
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
        is_fused = options.dense_weight > 0
        leaves, scores = rank_ids(
            beams,
            top_k=num_beams if is_fused else request.num_pooled(num_beams),
            latent_aggregation=options.latent_aggregation,
            penalty=None if request.penalty is None else request.penalty[-1],
            by_place=isinstance(selection, DiverseGroups | GumbelTopK),
        )
        if is_fused:
            return *self.rank_both(history, leaves, scores, allowed, request, num_beams), beams
        if options.num_rescored and config.num_latent_tokens:
            leaves, scores = self._rescored(history, leaves, scores, request)
        return *self._listed(leaves, scores, allowed, request), beams

    def _rescored(self, history, leaves, scores, request) -> tuple[torch.LongTensor, torch.FloatTensor]:
        """Ids (B, n), -1 where there is none, in the order of exact scores: all for a diverse list, or `top_k`."""
        scores = self.score_candidates(
            history,
            self.catalog.item_at(leaves).clamp_min(0),
            latent_aggregation=request.options.latent_aggregation,
            chunk_size=request.paths_at_a_time(len(leaves)),
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

    # --- exact scores by teacher forcing: what a search approximates -------------------------------------------------

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
        return self.only_open(scores if catalog.is_unique else scores[:, id_of_items(catalog)])

    def score_candidates(
        self,
        history: HistoryOutput,
        items: torch.LongTensor,
        *,
        latent_aggregation: str = "max",
        chunk_size: int = 1024,
    ) -> torch.FloatTensor:
        """
        Exact log-probabilities of some items `(batch_size, num_candidates)` of each user, over all latents; options as
        in `score_items`, in the shape of `items`.
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
        """
        catalog, num_items = self.catalog, self.config.num_items
        items = torch.arange(num_items, device=catalog.device) if items is None else items.to(catalog.device)
        if items.numel() and not 0 <= int(items.min()) <= int(items.max()) < num_items:
            raise ValueError(f"`items` must lie in [0, {num_items}), got {int(items.min())} to {int(items.max())}.")
        num_latents = max(1, self.config.num_latent_tokens)
        ids = id_of_items(catalog)[items]  # -1 for closed items
        leaves, column = ids.clamp_min(0).unique(return_inverse=True)  # rising, as the walk finds them
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
        return scores[..., column].masked_fill(ids < 0, -float("inf"))

    def token_log_probs(
        self,
        states: torch.FloatTensor,
        step: int,
        *,
        codes: torch.LongTensor | None = None,
        is_legal: torch.BoolTensor | None = None,
    ) -> torch.FloatTensor:
        """
        Log-probabilities `(..., n)` of the tokens of a decoding step, over the whole vocabulary or over the legal
        tokens (`config.normalization`); float32, those of illegal tokens mean nothing.

        `codes` `(..., n)`: the tokens wanted, counted from the first of the step; `is_legal` (same shape).
        """
        start, width, _ = token_range(self.config, step)
        is_catalog = self.config.normalization == "catalog"
        logits = self.score_tokens(states, start, width) if is_catalog else self.score_tokens(states, 0, None)
        block = logits if is_catalog else logits[..., start : start + width]
        if codes is not None:
            block = block.gather(-1, codes)
        if not is_catalog:
            return block - logits.logsumexp(-1, keepdim=True)
        return (block if is_legal is None else block.masked_fill(~is_legal, -float("inf"))).log_softmax(-1)

    def _path_scores(self, history, items) -> torch.FloatTensor:
        """Log-probability of each way to write each item: `(num_latents or 1, batch_size, num_candidates)`."""
        config, catalog = self.config, self.catalog
        codes = self.item_codes[items].long()  # (B, n, L)
        is_legal = [None] * config.num_levels  # (B, n, K) each; only where the softmax runs over legal tokens
        if config.normalization == "catalog":
            nodes = torch.zeros_like(items)
            for level in range(config.num_levels):
                is_legal[level] = catalog.child_mask(level, nodes)
                nodes = catalog.child(level, nodes, codes[..., level])
        code_tokens = self.code_tokens(items)
        first_step = config.num_decoding_steps - config.num_levels
        paths = []
        for latent in range(max(1, config.num_latent_tokens)):
            tokens, total = code_tokens, 0.0
            if config.num_latent_tokens:
                tokens = torch.nn.functional.pad(code_tokens, (1, 0), value=config.first_latent_token + latent)
            states = self.path_states(tokens, history)  # (B, n, steps, d_model)
            if config.num_latent_tokens:
                total = self.token_log_probs(states[:, :, 0], 0)[..., latent]
            for level in range(config.num_levels):
                step = first_step + level
                log_probs = self.token_log_probs(states[:, :, step], step, is_legal=is_legal[level])
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
