"""
`recommend()` by beam search over the catalog's trie, for models that write semantic IDs token by token.

The same ranked items as `generate()`, with one encoder pass and one set of cross-attention keys and values per user
instead of one per beam. A model that mixes in `BeamRankingMixin` supplies `encode_history`, `decode_states`,
`path_states`, `score_tokens` and `decoding_bytes`. Scores are exact sums over the generated tokens, not divided by
length; what a probability is relative to is `config.normalization`.

The search is for semantic IDs, the lists are of items. Where several items share an id they share its score, and it
gives way to all of them that the rules allow, in their order.
"""

import math

import torch

from .genrec_beams import (
    BeamCache,
    Beams,
    HistoryOutput,
    SearchStep,
    Selection,
    beam_search,
    best_candidates,
    describe_paths,
    list_items,
    num_distinct_items,
    rank_ids,
    reordered,
    sampled_items,
    token_range,
)
from .genrec_kept import read_history
from .genrec_lists import check_scores, rule_rows
from .genrec_recommend import Ranking, RankRequest, RecommendMixin, UserBatch, evaluation_mode
from .genrec_recommend_config import check_latent_aggregation


PATHS_AT_A_TIME = 1 << 13  # rows of the decoder that `score_paths` holds, of all users


class BeamRankingMixin(RecommendMixin):
    """
    `recommend()` and `score_items()` for models that generate semantic IDs token by token.

    Source: Hou et al. 2026, section 4.2 (https://huggingface.co/papers/2605.06331); the search is ours.
    """

    decodings = ("beam",)
    search_options = ("num_rescored", "num_groups", "group_penalty")
    has_paths = True
    search_cache: type = BeamCache  # of what `decode_states` keeps between the steps of a search

    def _ranking_bytes(self, request: RankRequest, history_length: int) -> tuple[int, int]:
        return self.decoding_bytes(min(history_length, self.config.max_history_length))

    def _penalties(self, request: RankRequest) -> list[torch.Tensor]:
        return self.catalog.prior_penalties(request.item_prior, request.options.prior_correction)

    def _rank_batch(self, users: UserBatch, request: RankRequest) -> Ranking:
        """Search, then search again with twice the beams for the users whose lists are still short."""
        batch_size, device = len(users.input_ids), users.input_ids.device
        if request.options.decoding == "dense":
            return self.rank_dense(users, request)
        if request.options.decoding == "exact":
            return self.rank_drafted(users, request)
        output = _empty_ranking(batch_size, request, device=device)
        if not batch_size:
            return output
        history = read_history(self, users.input_ids, users.attention_mask)
        wanted = users.num_wanted(request.options.top_k)
        pending = [(torch.arange(batch_size, device=device), request.num_beams)]
        while pending:
            rows, num_beams = pending.pop()
            chunks = request.chunks(len(rows), num_beams)
            if len(chunks) > 1:  # wider beams: fewer users at a time
                pending += [(rows[part], num_beams) for part in chunks]
                continue
            is_all = len(rows) == batch_size
            part = history if is_all else history.of_users(rows)
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
        # nothing is read of the beams but the best ones, and how many items they hold is known without scores
        is_plain = selection is best_candidates and request.penalty is None and not request.return_paths
        is_last = not (options.dense_weight or options.diversity or config.num_latent_tokens)
        beams = beam_search(
            self,
            history,
            num_beams=num_beams,
            selection=selection,
            allowed_items=allowed,
            penalties=request.penalty,
            num_pruned=num_beams if request.return_paths else 0,
            num_wanted=options.top_k if is_plain and is_last and self.catalog.is_unique else None,
        )
        check_scores(beams.scores, type(self).__name__)  # NaN would look like lists that are too short
        if isinstance(selection, DiverseGroups):
            beams = reordered(beams, selection.order, num_latents=config.num_latent_tokens)
        if isinstance(selection, GumbelTopK) and not self.catalog.is_unique:
            items, scores = sampled_items(
                self.catalog,
                beams,
                selection.divided,
                top_k=options.top_k,
                num_latents=config.num_latent_tokens,
                latent_aggregation=options.latent_aggregation,
                allowed=allowed,
            )
            return items, scores, beams
        leaves, scores = rank_ids(
            beams,
            top_k=num_beams if options.dense_weight > 0 else request.num_pooled(num_beams),
            latent_aggregation=options.latent_aggregation,
            penalty=None if request.penalty is None else request.penalty[-1],
            by_place=isinstance(selection, DiverseGroups | GumbelTopK),
        )
        if options.dense_weight > 0:
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
    ) -> torch.FloatTensor:
        """
        Exact log-probability of every item: the oracle that beam search approximates, for small catalogs.

        Args:
            input_ids: Item tokens `(batch_size, history_length)`, see [`ItemTokensMixin.is_item`].
            attention_mask: 1 at items that count; `None` for all.
            latent_aggregation (`str`, defaults to `"max"`): `"max"` or `"sum"` over all latents.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_items)`: log-probabilities. Items that share a semantic ID
            each have that of the id, to the last bit.
        """
        check_latent_aggregation(latent_aggregation)
        return _over_latents(self.score_paths(input_ids, attention_mask).transpose(0, 1), latent_aggregation)

    @torch.no_grad()
    def score_paths(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        *,
        items: torch.LongTensor | None = None,
    ) -> torch.FloatTensor:
        """
        Exact joint log-probability of each latent and each of some items, the same items for all users: what
        `score_items` takes the maximum or the sum of. The trie is walked in full, so a prefix that many items share is
        computed once.

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
        ids = catalog.id_of_items()[items]  # -1 for closed items
        leaves, column = ids.clamp_min(0).unique(return_inverse=True)  # rising, as the walk finds them
        scores = torch.empty(len(input_ids), num_latents, len(leaves), device=catalog.device)
        users_at_a_time = max(1, PATHS_AT_A_TIME // max(1, len(leaves)))
        with evaluation_mode(self):
            for start in range(0, len(input_ids) if len(leaves) else 0, users_at_a_time):
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
        parts = (self._path_scores(history, part) for part in items.split(chunk_size, dim=1))
        return torch.cat([_over_latents(part, latent_aggregation) for part in parts], dim=1)

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
        if self.config.normalization == "vocabulary":
            block = self.score_tokens(states, 0, None).log_softmax(-1)[..., start : start + width]
            return block if codes is None else block.gather(-1, codes)
        block = self.score_tokens(states, start, width)
        block = block if codes is None else block.gather(-1, codes)
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
        positions = (candidates != -float("inf")).flatten(1).any(0).nonzero().squeeze(1)
        return positions.expand(len(candidates), -1)


def _over_latents(paths: torch.FloatTensor, latent_aggregation: str) -> torch.FloatTensor:
    """From log-probabilities with each latent `(num_latents, ...)` to those over all latents."""
    return paths.amax(0) if latent_aggregation == "max" else paths.logsumexp(0)


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


def _empty_ranking(batch_size: int, request: RankRequest, *, device: torch.device) -> Ranking:
    shape = (batch_size, request.options.top_k)
    return Ranking(
        items=torch.full(shape, -1, device=device),
        scores=torch.full(shape, -float("inf"), device=device),
        paths=[[] for _ in range(batch_size)] if request.return_paths else None,
        pruned=[[] for _ in range(batch_size)] if request.return_paths else None,
        num_distinct=torch.zeros(batch_size, dtype=torch.long, device=device),
    )


# --- selections that keep other candidates than the best ---------------------------------------------------------


class DiverseGroups:
    """
    A selection for `beam_search`: groups of beams that choose one after the other and avoid what was chosen before.

    At each step a candidate of a group costs `group_penalty` nats for every beam of an earlier group that chose the
    same child of the same trie node at this step. Prefixes are compared, not paths: two latents that lead to the same
    prefix are the same prefix, and the step that chooses a latent is without penalty. The penalty decides what is
    kept; it is not added to the score. Groups are searches of their own otherwise, each with its share of the beams
    (the first ones one more where beams do not divide evenly), so different groups may hold the same path. Later
    groups choose among worse candidates: expect less accuracy for the same number of beams.

    After a step `order` `(batch_size, num_beams)` is the place of each beam in the list, highest first: groups take
    turns, best beam first.

    Source: Vijayakumar et al. 2018, algorithm 1 (https://huggingface.co/papers/1610.02424); their Hamming diversity
    counts the same token at the same step, ours the same prefix, since a code means little without those before it.

    Example:

    ```python
    >>> candidates = torch.tensor([[[0.5, 0.3, 0.2]]]).log()  # one user, the root, three codes
    >>> root = SearchStep(number=0, nodes=torch.tensor([[0]]), depth=0, latents=None, children=None)
    >>> DiverseGroups(2, 0.0)(candidates, 2, root).tolist()
    [[0, 0]]
    >>> DiverseGroups(2, 1.0)(candidates, 2, root).tolist()
    [[0, 1]]

    ```
    """

    def __init__(self, num_groups: int, group_penalty: float):
        self.num_groups = num_groups
        self.group_penalty = group_penalty
        self.order: torch.Tensor | None = None
        self._sizes: list[int] | None = None  # beams of each group; None before the first step: all share the root

    def __call__(self, candidates: torch.Tensor, num_beams: int, step: SearchStep) -> torch.Tensor:
        """
        See [`Selection`]; positions stand group by group. In the first steps a group has as many beams as there are
        candidates, if these are fewer than its share.
        """
        _, num_parents, num_choices = candidates.shape
        sizes = [num_parents] if self._sizes is None else self._sizes
        starts = [sum(sizes[:group]) for group in range(len(sizes))]
        kept: list[torch.Tensor] = []
        for group in range(self.num_groups):
            start, size = (0, num_parents) if self._sizes is None else (starts[group], sizes[group])
            own = candidates[:, start : start + size]
            if kept and self.group_penalty and step.depth >= 0:
                taken = torch.cat(kept, dim=1)
                own = own - self.group_penalty * _times_chosen(step.nodes, start, size, taken, num_choices)
            share = num_beams // self.num_groups + (group < num_beams % self.num_groups)
            top = own.flatten(1).topk(min(share, size * num_choices)).indices
            kept.append(top + start * num_choices)
        self._sizes = [part.shape[1] for part in kept]
        turns = [-(place * self.num_groups + group) for group, n in enumerate(self._sizes) for place in range(n)]
        index = torch.cat(kept, dim=1)
        self.order = torch.tensor(turns, dtype=torch.float32, device=index.device).expand_as(index)
        return index


def _times_chosen(
    nodes: torch.Tensor, start: int, size: int, taken: torch.Tensor, num_choices: int
) -> torch.FloatTensor:
    """
    How many of the positions `taken` (B, n) lead to the same child as each candidate of the beams `start` to
    `start + size`: (B, size, num_choices). Same child: same parent node and same choice.
    """
    parents, choices = taken // num_choices, taken % num_choices
    own_nodes, taken_nodes = nodes[:, start : start + size], nodes.gather(1, parents)
    is_same_node = own_nodes.unsqueeze(-1) == taken_nodes.unsqueeze(1)  # (B, size, n)
    counts = torch.zeros(len(nodes), size, num_choices, device=nodes.device)
    return counts.scatter_add(2, choices.unsqueeze(1).expand_as(is_same_node), is_same_node.float())


class GumbelTopK:
    """
    A selection for `beam_search` that samples: the beams are paths drawn without replacement, in the order drawn.

    Equal to drawing a path from the model, then another one among the rest in proportion to their probabilities, and
    so on, in one search of as many beams as draws. It works by adding Gumbel noise to the log-probability of every
    path and keeping the largest sums; the noise is drawn from the root downwards, that of the children given the
    largest among them, so paths outside the beams are never looked at.

    What is sampled is the model made to stay in the catalog step by step: at each step the probabilities of the
    candidates that are not `-inf` are divided by their sum. With `normalization="catalog"` and no rules that changes
    nothing. Otherwise the probability of what is closed goes to its neighbours under the same prefix, as in sampling
    token by token with a constraint; dividing each item's probability by that of all items left would differ.

    With latents, paths are drawn. In the order of their first paths, distinct items are then a sample of items without
    replacement, an item's probability being the sum over its latents. Number of items times number of latents is the
    number of beams that is always enough for it; a search repeated with more would draw anew.

    The noise comes from `generator`, on the device of the model: a user's sample depends on the other users of the
    batch. After a step `order` `(batch_size, num_beams)` is log-probability plus noise of each beam, highest first,
    which is its place in the list. The noise at the root is 0, which leaves the distribution of the order as it is.

    Source: Kool et al. 2019, algorithm 1 and the stable form of its appendix (https://huggingface.co/papers/1903.06059).

    Example:

    ```python
    >>> candidates = torch.tensor([[[0.5, 0.0, 0.3, 0.2]]]).log()  # one user, the root, four codes, one illegal
    >>> root = SearchStep(number=0, nodes=torch.tensor([[0]]), depth=0, latents=None, children=None)
    >>> sample = GumbelTopK(torch.Generator().manual_seed(0))(candidates, 3, root)
    >>> sorted(sample[0].tolist())
    [0, 2, 3]

    ```
    """

    def __init__(self, generator: torch.Generator):
        self.generator = generator
        self.order: torch.Tensor | None = None  # (B, W)
        self._log_probs: torch.Tensor | None = None  # (B, W), under the model that is sampled

    def __call__(self, candidates: torch.Tensor, num_beams: int, step: SearchStep) -> torch.Tensor:
        """See [`Selection`]; positions stand first drawn first."""
        if self.order is None:
            self.order = self._log_probs = candidates.new_zeros(candidates.shape[:2])
        log_probs, perturbed = self._perturbed(candidates)
        self.order, index = perturbed.flatten(1).topk(min(num_beams, perturbed[0].numel()))
        self._log_probs = log_probs.flatten(1).gather(1, index)
        return index

    def divided(self, is_part: torch.BoolTensor) -> torch.FloatTensor:
        """
        One step more: the places of equally probable parts of the beams, as of items that share an id.

        `is_part` `(batch_size, n, num_parts)`: which parts the first `n` beams of the last step have, up to all of
        them. Returns the same shape: log-probability plus noise, like `order`; `-inf` where there is no part.
        """
        nothing = torch.zeros(is_part.shape, dtype=self.order.dtype, device=is_part.device)
        return self._perturbed(nothing.masked_fill(~is_part, -math.inf))[1]

    def _perturbed(self, candidates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities under the model that is sampled, and with noise, of the children of the first beams."""
        num_parents = candidates.shape[1]
        is_closed = candidates == -math.inf
        log_probs = self._log_probs[:, :num_parents].unsqueeze(-1) + candidates.log_softmax(-1)
        exponential = torch.empty_like(candidates).exponential_(generator=self.generator)
        gumbels = log_probs - exponential.clamp_min(torch.finfo(candidates.dtype).tiny).log()
        perturbed = _given_maximum(gumbels, self.order[:, :num_parents].unsqueeze(-1))
        return log_probs, perturbed.masked_fill(is_closed, -math.inf)


def _given_maximum(gumbels: torch.Tensor, maximum: torch.Tensor) -> torch.Tensor:
    """
    Gumbel variables whose largest along the last dimension is to be `maximum`: -log(e^-T - e^-Z + e^-G) for a maximum
    T, the largest value Z as drawn and each value G, written so that no exponential overflows and Z becomes T exactly.
    """
    gap = gumbels - gumbels.amax(-1, keepdim=True)
    log_rest = torch.where(gap > -math.log(2), (-gap.expm1()).log(), (-gap.exp()).log1p())  # log(1 - e^gap)
    shift = maximum - gumbels + log_rest
    return maximum - shift.clamp_min(0) - (-shift.abs()).exp().log1p()
