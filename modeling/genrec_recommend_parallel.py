"""
From a history to ranked items, for models that predict all codes of a semantic ID at once.

A model that mixes in `ParallelRecommendMixin` supplies `code_log_probs`, `history_bytes`, `config` and `item_codes`.
The score of an item is the sum of the log-probabilities of its codes: a log-probability, as everywhere in the library.
Two items may have the same codes; they have the same score and the one with the lower index stands first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from .genrec_beam_parallel import search_codes
from .genrec_choice import best_of, gumbel_noise, user_keys
from .genrec_code_scores import (
    best_items,
    candidate_scores,
    check_table_dtype,
    code_scores,
    item_scores,
    users_per_table,
)
from .genrec_diversity import diversify, shared_codes
from .genrec_item_graph import GraphOptions, ItemGraphMixin, graph_search, search_bytes
from .genrec_ranking import BeamPath, describe_paths, item_penalties, prior_penalties
from .genrec_recommend import MEMORY_BUDGET, RULE_BYTES, RecommendOutput
from .genrec_rules import allowed_items, check_rule, rule_rows
from .genrec_scoring import check_level_temperature, evaluation_mode
from .genrec_search_options import SearchOptions
from .genrec_shared_ids import items_of_ids


DECODINGS = ("exact", "graph", "beam")
BEAM_BYTES = 32  # per code that may follow a beam: its score, ranked, its node in the trie and whether it is legal


@dataclass
class ParallelRecommendOutput(RecommendOutput):
    """
    Ranked items, and what it took to find them.

    Args:
        num_visited (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Number of distinct items that were scored for each user.
    """

    num_visited: torch.LongTensor | None = None


@dataclass
class _Found:
    """What a search of some users found: items (B, n), -1 where there are fewer, their scores, and how many it saw."""

    items: torch.LongTensor
    scores: torch.FloatTensor
    num_visited: torch.LongTensor
    pruned: list[list[BeamPath]] | None = None


@dataclass
class _Request:
    """What holds for some users of a call."""

    input_ids: torch.LongTensor
    attention_mask: torch.Tensor | None
    log_probs: torch.FloatTensor
    allowed: torch.BoolTensor | None
    first_user: int  # number of the first of them in the call
    options: SearchOptions
    graph: GraphOptions
    item_prior: torch.Tensor | None
    penalty: torch.FloatTensor | None
    table_dtype: str

    def part(self, users: torch.LongTensor) -> "_Request":
        """The same for some of the users; of the history nothing is needed any more."""
        return replace(self, log_probs=self.log_probs[users], allowed=rule_rows(self.allowed, users))


class ParallelRecommendMixin(ItemGraphMixin):
    """`recommend()` and `score_items()` for models with `code_log_probs`."""

    default_decoding = "exact"

    @torch.no_grad()
    def score_items(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        *,
        level_temperature: Sequence[float] | None = None,
    ) -> torch.FloatTensor:
        """
        Exact log-probability of every item, for catalogs small enough that a number per user and item can be held.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, history_length)`): Item tokens, oldest first.
            attention_mask (`torch.Tensor`, same shape, *optional*): 1 at items that count; `None` for all.
            level_temperature (`Sequence[float]` of length `num_levels`, *optional*): As in `recommend`.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_items)`: log-probabilities.

        Raises:
            ValueError: If a temperature is not positive.
        """
        check_level_temperature(level_temperature, num_levels=self.config.num_levels)
        with evaluation_mode(self):
            log_probs = self._level_log_probs(input_ids, attention_mask, level_temperature)
        return item_scores(log_probs, self.item_codes)

    @torch.no_grad()
    def recommend(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        *,
        top_k: int = 10,
        num_beams: int = 50,
        latent_aggregation: str = "max",
        exclude_items: torch.Tensor | None = None,
        allow_items: torch.Tensor | None = None,
        level_temperature: Sequence[float] | None = None,
        prior_correction: float = 0.0,
        item_prior: torch.Tensor | None = None,
        diversity: float = 0.0,
        item_embeddings: torch.Tensor | None = None,
        sample_seed: int | None = None,
        memory_budget: int = MEMORY_BUDGET,
        decoding: str = "exact",
        num_propagations: int = 3,
        num_neighbors: int | None = None,
        graph_start: str = "random",
        start_seed: int = 0,
        table_dtype: str = "float32",
        return_paths: bool = False,
    ) -> ParallelRecommendOutput:
        """
        The `top_k` best items for each history.

        `decoding="exact"` looks the scores of all items up and keeps the best. It is the default since it is never
        wrong and hard to beat: see `RESULTS.md` of the library for the size of a catalog at which others are faster.
        `"graph"` walks from `num_beams` items along a graph of similar items, which `hf_genrec.serving.item_graph` builds once
        after training, always on from the best items seen so far; what it does not meet it cannot recommend.
        `"beam"` is beam search, code by code, for comparison. Where these two find fewer items than were asked for
        although more are allowed, the user gets the exact list: lists are never short while allowed items exist.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, history_length)`):
                Item tokens, oldest first, padded on either side. Special and unknown tokens are ignored.
            attention_mask (`torch.Tensor`, same shape, *optional*): 1 at items that count; `None` for all.
            top_k (`int`, defaults to 10): Length of the lists, at most `num_items`.
            num_beams (`int`, defaults to 50):
                Width of the search of `"graph"` and `"beam"`; and, if that is more than `top_k`, the number of items
                that `diversity` picks from.
            latent_aggregation (`str`, defaults to `"max"`):
                `"max"` or `"sum"`, for calls that serve other models too: without latents both are the same.
            exclude_items (`torch.Tensor`, *optional*):
                Items that must not be recommended: item tokens `(n,)` for all users or `(batch_size, n)` padded with
                the pad token, or a boolean mask over items, `(num_items,)` or `(batch_size, num_items)`.
            allow_items (`torch.Tensor`, *optional*):
                The only items that may be recommended, in the same forms, less those excluded; `None` for all. Where
                fewer than `top_k` are left the list is filled up with padding, to the last place if none is.
            level_temperature (`Sequence[float]` of length `num_levels`, *optional*):
                What the logits of each level are divided by. Scores are log-probabilities under it.
            prior_correction (`float`, defaults to 0.0):
                Share of the log-prior of an item that is subtracted in ranking. The lists are in the order of
                corrected scores; the scores returned are log-probabilities without it.
            item_prior (`torch.Tensor` of shape `(num_items,)`, *optional*):
                Probability of each item whoever the user is, above zero; normalised to a sum of 1. For example the
                number of its interactions plus one. Without `prior_correction` it only says which items are
                `"popular"`, and may be zero.
            diversity (`float`, defaults to 0.0):
                From 0, the best items in their order, to 1, the best one and then the least similar ones; see `mmr`.
            item_embeddings (`torch.Tensor` of shape `(num_items, dimension)`, *optional*):
                What `diversity` compares items by, with the cosine; `None` for the share of codes in common.
            sample_seed (`int`, *optional*):
                Draw items at random, in proportion to their probabilities and without replacement, in the order
                drawn, instead of taking the best ones. What is drawn depends on the seed and on the user's place in
                the batch, not on the other users, the device or the memory.
            memory_budget (`int`, defaults to 2 GiB):
                Bytes by which users and items are chunked, by an estimate; at least one user at a time.
            decoding (`str`, defaults to `"exact"`): `"exact"`, `"graph"` or `"beam"`.
            num_propagations (`int`, defaults to 3): Steps along the graph.
            num_neighbors (`int`, *optional*): Neighbours of an item that are followed; `None` for all of the graph's.
            graph_start (`str`, defaults to `"random"`):
                Where the walk begins: at `"random"` items, at the `"popular"` ones by `item_prior`, or at items
                `"similar"` to the last five of the history (and at random ones where these are too few).
            start_seed (`int`, defaults to 0): Of the random start, which depends on it and the history alone.
            table_dtype (`str`, defaults to `"float32"`):
                `"bfloat16"` or, on the CPU, `"int8"` for look-ups in tables of a half or a quarter of the size in
                exact decoding: they choose a shortlist, which is then scored in float32, from the log-probabilities
                that are held all the same. On the CPU that takes more time, not less.
            return_paths (`bool`, defaults to `False`):
                Also return the codes of the items in the lists, with the cumulative score after each level.

        Returns:
            [`ParallelRecommendOutput`]

        Raises:
            ValueError: If an argument is out of range or two do not go together.

        Source: Hou et al. 2025, section 3.3 (https://huggingface.co/papers/2506.05781); scores of the whole catalog by
        look-up in blocks of users are ours.
        """
        options = SearchOptions(
            top_k=top_k,
            num_beams=num_beams,
            latent_aggregation=latent_aggregation,
            beams_per_latent=None,
            latents_per_prefix=None,
            num_rescored=0,
            level_temperature=level_temperature,
            prior_correction=prior_correction,
            num_groups=1,
            group_penalty=0.0,
            diversity=diversity,
            item_embeddings=item_embeddings,
            sample_seed=sample_seed,
            memory_budget=memory_budget,
            return_paths=return_paths,
        )
        graph = GraphOptions(num_propagations, num_neighbors, graph_start, start_seed)
        self._check(options, graph, decoding, table_dtype, item_prior)
        rules = {"exclude_items": exclude_items, "allow_items": allow_items}
        for name, rule in rules.items():
            check_rule(name, rule, config=self.config, batch_size=len(input_ids))
        penalty = None
        if item_prior is not None:
            item_prior = item_prior.to(input_ids.device)
        if prior_correction:
            penalty = item_penalties(item_prior, prior_correction, num_items=self.config.num_items)
        self._prepare(options, graph, decoding, input_ids, has_rules=any(rule is not None for rule in rules.values()))
        outputs = []
        with evaluation_mode(self):
            for rows in options.chunks(len(input_ids), options.beams(self.config)) or [slice(0, 0)]:
                mask = None if attention_mask is None else attention_mask[rows]
                log_probs = self._level_log_probs(input_ids[rows], mask, level_temperature)
                parts = {name: rule_rows(rule, rows) for name, rule in rules.items()}
                allowed = allowed_items(self.config, **parts, device=log_probs.device)
                request = _Request(
                    input_ids[rows],
                    mask,
                    log_probs,
                    allowed,
                    rows.start,
                    options,
                    graph,
                    item_prior,
                    penalty,
                    table_dtype,
                )
                outputs.append(self._answer(request, decoding))
        return outputs[0] if len(outputs) == 1 else _concatenate(outputs)

    def _check(self, options: SearchOptions, graph: GraphOptions, decoding: str, table_dtype: str, item_prior) -> None:
        if decoding not in DECODINGS:
            raise ValueError(f"`decoding` must be one of {', '.join(map(repr, DECODINGS))}, got {decoding!r}.")
        is_for_start = decoding == "graph" and graph.start == "popular" and not options.prior_correction
        options.check(self.config, None if is_for_start else item_prior)
        graph.check(decoding, item_prior, num_items=self.config.num_items)
        if options.sample_seed is not None and decoding != "exact":
            raise ValueError(
                f"`sample_seed` is for `decoding='exact'`; this is `decoding={decoding!r}`, whose search would decide "
                "what can be drawn."
            )
        check_table_dtype(table_dtype, device=self.item_codes.device)
        if table_dtype != "float32" and (decoding != "exact" or options.sample_seed is not None):
            name = f"`decoding={decoding!r}`" if decoding != "exact" else "`sample_seed`"
            raise ValueError(f"`table_dtype={table_dtype!r}` and {name} cannot be combined.")

    def _prepare(self, options, graph, decoding: str, input_ids, *, has_rules: bool) -> None:
        """Tell `options` what a user and a beam take."""
        config = self.config
        # log-probabilities, their transpose and a temporary
        per_user = self.history_bytes(input_ids.shape[1]) + 3 * 4 * config.num_levels * config.codebook_size
        per_user += RULE_BYTES * config.num_items if has_rules else 0
        if decoding == "graph":
            stored = self.item_graph.shape[1]
            if graph.num_neighbors is not None and graph.num_neighbors > stored:
                raise ValueError(f"`num_neighbors` must be at most {stored}, as the graph, got {graph.num_neighbors}.")
            per_user += search_bytes(
                num_beams=options.beams(config),
                num_neighbors=graph.num_neighbors or stored,
                num_propagations=graph.num_propagations,
                num_levels=config.num_levels,
            )
        per_beam = BEAM_BYTES * config.codebook_size if decoding == "beam" else 0
        options.prepare(config, bytes_per_user=per_user, bytes_per_beam=per_beam, device=input_ids.device)

    def _level_log_probs(self, input_ids, attention_mask, level_temperature) -> torch.FloatTensor:
        if not len(input_ids):
            return torch.zeros(0, self.config.num_levels, self.config.codebook_size, device=input_ids.device)
        log_probs = self.code_log_probs(input_ids, attention_mask)
        if level_temperature is None:
            return log_probs
        divisor = torch.tensor(level_temperature, dtype=log_probs.dtype, device=log_probs.device)
        return (log_probs / divisor[:, None]).log_softmax(-1)

    def _answer(self, request: _Request, decoding: str) -> ParallelRecommendOutput:
        """The lists of some users."""
        config, options = self.config, request.options
        find = {"exact": self._find_exact, "graph": self._find_graph, "beam": self._find_beam}[decoding]
        found = find(request)
        if decoding != "exact":
            self._complete(found, request)
        items, scores = found.items, found.scores
        if options.diversity:
            items, scores = diversify(
                items,
                scores,
                top_k=options.top_k,
                diversity=options.diversity,
                item_codes=self.item_codes,
                item_embeddings=options.item_embeddings,
                ranked=scores if request.penalty is None else scores - request.penalty[items.clamp_min(0)],
                code_similarity=shared_codes,
            )
        output = ParallelRecommendOutput(
            item_tokens=torch.where(items >= 0, items + config.first_item_token, config.pad_token_id),
            scores=scores,
            num_visited=found.num_visited,
        )
        if options.return_paths:
            output.paths = self._paths(request.log_probs, items)
            output.pruned = found.pruned or [[] for _ in range(len(items))]
        return output

    def _find_exact(self, request: _Request) -> _Found:
        """All items are scored."""
        config, options, device = self.config, request.options, request.log_probs.device
        noise = None
        if options.sample_seed is not None:
            users = torch.arange(request.first_user, request.first_user + len(request.log_probs), device=device)
            keys, catalog = user_keys(options.sample_seed, users), torch.arange(config.num_items, device=device)
            noise = _SampleNoise(keys, catalog)
        items, scores = best_items(
            request.log_probs,
            self.item_codes,
            top_k=options.num_pooled(config, options.beams(config)),
            allowed=request.allowed,
            penalty=request.penalty,
            noise=noise,
            memory_budget=options.memory_budget,
            table_dtype=request.table_dtype,
        )
        return _Found(items, scores, torch.full((len(items),), config.num_items, device=device))

    def _find_graph(self, request: _Request) -> _Found:
        """Items that a walk along the graph meets are scored."""
        config, options, graph = self.config, request.options, request.graph
        num_beams = options.beams(config)
        start = self.start_items(
            graph, request.input_ids, request.attention_mask, num_beams=num_beams, item_prior=request.item_prior
        )
        found = []
        for users in torch.arange(len(start), device=start.device).split(users_per_table(start.device)):
            visited = graph_search(
                request.log_probs[users],
                self.item_codes,
                self.item_graph[:, : graph.num_neighbors],
                start[users],
                num_beams=num_beams,
                num_propagations=graph.num_propagations,
                penalty=request.penalty,
            )
            best = visited.best(
                options.num_pooled(config, num_beams),
                allowed=rule_rows(request.allowed, users),
                penalty=request.penalty,
            )
            found.append((*best, visited.counts()))
        return _Found(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def _find_beam(self, request: _Request) -> _Found:
        """Items whose codes the beams hold; of the ids that several items share, all of these."""
        config, options, log_probs = self.config, request.options, request.log_probs
        num_beams, penalties = options.beams(config), None
        if request.penalty is not None:
            penalties = prior_penalties(self.catalog, request.item_prior, options.prior_correction)
        beams = search_codes(
            log_probs,
            self.catalog,
            first_code_token=config.first_code_token,
            num_beams=num_beams,
            allowed=request.allowed,
            penalties=penalties,
            num_pruned=num_beams if options.return_paths else 0,
        )
        items, _ = items_of_ids(self.catalog, beams.leaves)
        items = items.masked_fill(items < 0, config.num_items).sort(dim=1).values
        items = items.masked_fill(items == config.num_items, -1)
        scores = candidate_scores(log_probs, self.item_codes, items.clamp_min(0))
        top_k = options.num_pooled(config, num_beams)
        best = best_of(items, scores, top_k=top_k, allowed=request.allowed, penalty=request.penalty)
        _, pruned = describe_paths(config, self.catalog, beams, items) if options.return_paths else (None, None)
        return _Found(*best, (items >= 0).sum(1), pruned)

    def _complete(self, found: _Found, request: _Request) -> None:
        """Exact lists for the users who would get too short ones."""
        wanted = torch.full_like(found.num_visited, request.options.top_k)
        if request.allowed is not None:
            wanted = wanted.minimum(request.allowed.sum(1))
        short = ((found.items >= 0).sum(1) < wanted).nonzero()[:, 0]
        if len(short):
            exact = self._find_exact(request.part(short))
            found.items[short], found.scores[short] = exact.items, exact.scores
            found.num_visited[short] = exact.num_visited

    def _paths(self, log_probs: torch.FloatTensor, items: torch.LongTensor) -> list[list[BeamPath]]:
        """The codes of the listed items with the score up to each of them."""
        codes = self.item_codes[items.clamp_min(0)]
        scores = code_scores(log_probs, codes).cumsum(-1).tolist()
        tokens = torch.where(items >= 0, items + self.config.first_item_token, -1).tolist()
        return [
            [
                BeamPath(latent=None, codes=path, scores=path_scores, item_token=token)
                for path, path_scores, token in zip(*user, strict=True)
                if token >= 0
            ]
            for user in zip(codes.tolist(), scores, tokens, strict=True)
        ]


@dataclass
class _SampleNoise:
    """The noise of a sample, for `best_items`."""

    keys: torch.LongTensor
    catalog: torch.LongTensor

    def __call__(self, users: slice, items: slice) -> torch.FloatTensor:
        return gumbel_noise(self.keys[users], self.catalog[items])


def _concatenate(outputs: list[ParallelRecommendOutput]) -> ParallelRecommendOutput:
    """The lists of all users, chunk after chunk."""
    return ParallelRecommendOutput(
        item_tokens=torch.cat([output.item_tokens for output in outputs]),
        scores=torch.cat([output.scores for output in outputs]),
        paths=None if outputs[0].paths is None else [paths for output in outputs for paths in output.paths],
        pruned=None if outputs[0].pruned is None else [paths for output in outputs for paths in output.pruned],
        num_visited=torch.cat([output.num_visited for output in outputs]),
    )


__all__ = ["DECODINGS", "ParallelRecommendMixin", "ParallelRecommendOutput"]
