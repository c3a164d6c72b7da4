"""
Beam search over the trie of a catalog, with the history of each user read once.

Encoded histories come in, leaves of the trie with their log-probabilities go out. Which candidates become beams is
decided by a selection, an object made for one search; whatever it ranks by, the scores of the beams stay
log-probabilities, exact sums in float32 over the generated tokens, not divided by length. A leaf is a semantic ID;
what is recommended are the items that have it.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import DynamicCache, EncoderDecoderCache
from transformers.utils import ModelOutput

from .genrec_lists import filled_up
from .genrec_recommend_config import BeamPath


@dataclass
class HistoryOutput(ModelOutput):
    """Encoded histories, one row per user whatever the number of beams or targets that read them."""

    last_hidden_state: torch.FloatTensor | None = None  # (batch_size, num_history_tokens, d_model)
    attention_mask: torch.BoolTensor | None = None  # (batch_size, num_history_tokens): True at real tokens

    def of_users(self, rows: torch.LongTensor) -> "HistoryOutput":
        """The histories of some users."""
        return HistoryOutput(self.last_hidden_state[rows], self.attention_mask[rows])


@dataclass
class SearchStep:
    """What a selection knows about a step of the search, for beams `(B, W)` that each have `K` continuations."""

    number: int  # of the step, from 0
    depth: int  # in the trie, of the beams before the step; -1 where a latent is chosen
    nodes: torch.LongTensor  # (B, W), of the trie, before the step; -1 where a beam is dead
    latents: torch.LongTensor | None  # (B, W), of the beams; `None` before one is chosen and for models without
    # from flat positions `w * K + k`, (B, n), to the nodes that they lead to, -1 where illegal; a latent's is the root
    children: Callable[[torch.LongTensor], torch.LongTensor]


class Selection(Protocol):
    """Decides which candidates become beams; made for one search, called once per step, so it may keep a state."""

    def __call__(self, candidates: torch.FloatTensor, num_beams: int, step: SearchStep) -> torch.LongTensor:
        """
        `candidates` `(B, W, K)`: cumulative log-probability of beam `w` with its continuation `k`; `-inf` where that
        is illegal or the beam is dead. Returns `(B, n)` with `n` at most `num_beams`: flat positions `w * K + k` in
        the order in which the beams shall stand. A position may repeat, and positions that are `-inf` may fill up.
        """


@dataclass
class TraceStep:
    """What a step of the search decided; the ways to the leaves are read from these where they are asked for."""

    parents: torch.LongTensor  # (B, n): the beam of the step before that each beam continues
    tokens: torch.LongTensor  # (B, n)
    scores: torch.FloatTensor  # (B, n), cumulative


@dataclass
class Beams:
    """Result of `beam_search`."""

    leaves: torch.LongTensor  # (B, W), of the trie; -1 where a beam is dead
    scores: torch.FloatTensor  # (B, W), log-probabilities; -inf where a beam is dead
    trace: list[TraceStep]
    pruned: list[TraceStep]  # the best continuations at each step that were not kept; empty unless asked for
    num_alive: torch.LongTensor | None = None  # (B,), with those that were not computed; `None` where all were

    def paths(
        self, last: TraceStep | None = None, *, num_steps: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The ways to the leaves, or to what was pruned at the step `last`, which is step number `num_steps`: tokens and
        cumulative scores, `(batch_size, n, num_steps)`.
        """
        num_steps = len(self.trace) if num_steps is None else num_steps
        last = self.trace[num_steps - 1] if last is None else last
        tokens, scores, parents = [last.tokens], [last.scores], last.parents
        for step in reversed(self.trace[: num_steps - 1]):
            tokens.append(step.tokens.gather(1, parents))
            scores.append(step.scores.gather(1, parents))
            parents = step.parents.gather(1, parents)
        return torch.stack(tokens[::-1], dim=-1), torch.stack(scores[::-1], dim=-1)


ROUNDING = 1e-4  # by which a log-probability may be above 0, or a sum of them off


def token_range(config, step: int) -> tuple[int, int, int]:
    """
    What may be written at a decoding step, counted from 0: first token, number of tokens, and depth in the trie before
    the step (-1 for a latent).
    """
    if config.num_latent_tokens and step == 0:
        return config.first_latent_token, config.num_latent_tokens, -1
    depth = step - (1 if config.num_latent_tokens else 0)
    return config.first_code_token + depth * config.codebook_size, config.codebook_size, depth


def best_candidates(candidates: torch.FloatTensor, num_beams: int, step: SearchStep) -> torch.LongTensor:
    """The plain [`Selection`]: the best candidates of a user, best first."""
    flat = candidates.flatten(1)
    return flat.topk(min(num_beams, flat.shape[1])).indices


class BeamCache(EncoderDecoderCache):
    """Keys and values of a search: those of written tokens have a row per beam, those of histories one per user."""

    def __init__(self):
        super().__init__(DynamicCache(), DynamicCache())

    def of_beams(self, rows: torch.LongTensor) -> "BeamCache":
        """What these beams go on with; what they write is not seen by this cache."""
        part = copy.copy(self)
        part.self_attention_cache = copy.copy(self.self_attention_cache)
        part.self_attention_cache.layers = [copy.copy(layer) for layer in self.self_attention_cache.layers]
        part.self_attention_cache.reorder_cache(rows)
        return part


class _Continuations:
    """
    The legal continuations of all beams at one step: their tokens, log-probabilities and trie nodes.

    They stand as lists of children (`codes`) where these are short or their nodes are needed, else as a row of the
    codebook with a mask. Short lists are many times cheaper than rows of the whole codebook; lists as long as a row
    cost several times as much as the row.
    """

    def __init__(self, model, step: int, nodes: torch.LongTensor, *, allowed_nodes=None, penalties=None):
        self.catalog, self.step, self.nodes = model.catalog, step, nodes
        self.first_token, self.width, self.depth = token_range(model.config, step)
        self.codes = self.is_legal = self.is_open = self.penalty = None
        if self.depth < 0:
            return
        max_children = self.catalog.max_children[self.depth]
        if allowed_nodes is None and penalties is None and 2 * max_children > self.width:
            self.is_open = self.is_legal = self.catalog.child_mask(self.depth, nodes)
            return
        # an accelerator is not asked how many children these very nodes have: it would have to wait
        width = None if nodes.device.type == "cpu" else max_children
        self.codes, self.child_nodes, self.is_legal = self.catalog.children(self.depth, nodes, width=width)
        self.width, self.is_open = self.codes.shape[-1], self.is_legal
        if allowed_nodes is not None:
            is_allowed = allowed_nodes[self.depth + 1].expand(len(nodes), -1)
            is_allowed = is_allowed.gather(1, self.child_nodes.clamp_min(0).flatten(1))
            self.is_open = self.is_legal & is_allowed.view_as(self.is_legal)
        if penalties is not None:
            self.penalty = penalties[self.depth + 1][self.child_nodes.clamp_min(0)]

    def of_beams(self, beams: torch.LongTensor) -> "_Continuations":
        """Those of some beams `(B, n)` of each user."""
        part = copy.copy(self)
        part.nodes = self.nodes.gather(1, beams)
        for name in ("codes", "is_legal", "is_open"):
            table = getattr(self, name)
            if table is not None:
                setattr(part, name, table.gather(1, beams.unsqueeze(-1).expand(-1, -1, table.shape[-1])))
        return part

    def candidates(self, model, states, scores) -> torch.FloatTensor:
        """Cumulative log-probabilities `(B, W, width)`."""
        log_probs = model.token_log_probs(states, self.step, codes=self.codes, is_legal=self.is_legal)
        candidates = scores.unsqueeze(-1) + log_probs
        return candidates if self.is_open is None else candidates.masked_fill_(~self.is_open, -float("inf"))

    def children(self, index: torch.LongTensor) -> torch.LongTensor:
        """Trie nodes `(B, n)` of flat positions."""
        if self.depth < 0:
            return torch.zeros_like(index)
        if self.codes is None:
            return self.catalog.child(self.depth, self.nodes.gather(1, index // self.width), index % self.width)
        is_open = self.is_open.flatten(1).gather(1, index)
        return self.child_nodes.flatten(1).gather(1, index).masked_fill(~is_open, -1)

    def traced(self, candidates: torch.FloatTensor, index: torch.LongTensor) -> TraceStep:
        """Parents, tokens and true scores of flat positions."""
        codes = index % self.width if self.codes is None else self.codes.flatten(1).gather(1, index)
        scores = candidates.flatten(1).gather(1, index)
        return TraceStep(parents=index // self.width, tokens=self.first_token + codes, scores=scores)


def beam_search(
    model,
    history: HistoryOutput,
    *,
    num_beams: int,
    selection: Selection = best_candidates,
    allowed_items: torch.BoolTensor | None = None,
    penalties: list[torch.Tensor] | None = None,
    num_pruned: int = 0,
    num_wanted: int | None = None,
) -> Beams:
    """
    Beam search over the trie; the first step runs with one beam per user, keys and values of the history are shared.

    `model` has `config`, `catalog`, `search_cache`, `decode_states` and `token_log_probs`, see [`BeamRankingMixin`].
    - `allowed_items` `(batch_size or 1, num_items)`: items that may be reached; prefixes without any are closed. One
      row serves all users.
    - `penalties`: for each depth from 0 to `num_levels` what the selection subtracts from the score of a node,
      `(num_nodes[depth],)`. Scores that come out are free of it.
    - `num_pruned`: how many of the best discarded continuations to remember per step.
    - `num_wanted`: how many of the best leaves are read; the last step then computes only beams that may hold one of
      them, see `_last_candidates`, and the others come out dead. For the plain selection without penalties.
    """
    config, device = model.config, history.last_hidden_state.device
    batch_size = len(history.last_hidden_state)
    allowed_nodes = None if allowed_items is None else model.catalog.allowed_nodes(allowed_items)
    nodes = torch.zeros(batch_size, 1, dtype=torch.long, device=device)
    first_row = torch.arange(batch_size, device=device).unsqueeze(-1)  # of each user in the decoder's batch, over W
    tokens, scores, latents = torch.full_like(nodes, config.decoder_start_token_id), nodes.float(), None
    cache, num_alive = model.search_cache(), None
    trace, pruned = [], []
    for step in range(config.num_decoding_steps):
        options = _Continuations(model, step, nodes, allowed_nodes=allowed_nodes, penalties=penalties)
        if num_wanted is not None and 0 < step == config.num_decoding_steps - 1:
            candidates = _last_candidates(model, history, cache, options, tokens, scores, num_wanted)
            num_alive = options.is_open.flatten(1).sum(1).clamp_max(num_beams)
        else:
            candidates = options.candidates(model, model.decode_states(tokens, history, cache), scores)
        ranked = candidates if options.penalty is None else candidates - options.penalty
        index = selection(ranked, num_beams, SearchStep(step, options.depth, nodes, latents, options.children))
        kept = options.traced(candidates, index)
        trace.append(kept)
        if num_pruned:
            rest = ranked.flatten(1).scatter(1, index, -float("inf"))
            num_left = max(0, rest.shape[1] - index.shape[1])  # a selection may take a position more than once
            pruned.append(options.traced(candidates, rest.topk(min(num_pruned, num_left)).indices))
        if options.depth < 0:
            latents = kept.tokens - config.first_latent_token
        elif latents is not None:
            latents = latents.gather(1, kept.parents)
        if step + 1 < config.num_decoding_steps:
            # rows of the decoder are user * W + beam; `kept.parents` counts within a user
            cache = cache.of_beams((first_row * nodes.shape[1] + kept.parents).flatten())
        tokens, scores = kept.tokens, kept.scores
        nodes = options.children(index).masked_fill(scores == -float("inf"), -1)
    return Beams(leaves=nodes, scores=scores, trace=trace, pruned=pruned, num_alive=num_alive)


def _last_candidates(model, history, cache, options, tokens, scores, num_wanted: int) -> torch.FloatTensor:
    """
    Cumulative log-probabilities of the last step as from `_Continuations.candidates`, but `-inf` where they cannot be
    among the `num_wanted` best of a user.

    No continuation is better than its beam. So a beam that is worse than `num_wanted` known leaves is not computed;
    nor is the only child of a beam where the softmax runs over legal tokens: it is as good as the beam. Wide searches
    first compute the best beams, which sort most of the others out.
    """
    is_known = (options.is_legal.sum(-1) == 1) & (model.config.normalization == "catalog")
    is_left = (scores != -float("inf")) & ~is_known & options.is_open.any(-1)
    is_known = is_known.unsqueeze(-1) & options.is_open
    candidates = scores.unsqueeze(-1).masked_fill(~is_known, -float("inf"))
    for most in (2 * num_wanted, scores.shape[1]):
        best = candidates.flatten(1).topk(min(num_wanted, candidates.shape[1] * candidates.shape[2])).values
        if best.shape[1] == num_wanted:
            is_left &= ~(scores < best[:, -1:] - ROUNDING)
        num_left = int(is_left.sum(1).max())
        if num_left == 0:
            break
        if num_left == scores.shape[1]:
            return options.candidates(model, model.decode_states(tokens, history, cache), scores)
        if num_left > 4 * most:  # what two passes cost more is little, what the first one saves is much
            num_left = most
        beams = is_left.int().argsort(dim=1, descending=True, stable=True)[:, :num_left]
        rows = torch.arange(len(beams), device=beams.device).unsqueeze(1) * scores.shape[1] + beams
        states = model.decode_states(tokens.gather(1, beams), history, cache.of_beams(rows.flatten()))
        part = options.of_beams(beams).candidates(model, states, scores.gather(1, beams))
        places = beams.unsqueeze(-1).expand_as(part)
        is_new = is_left.gather(1, beams).unsqueeze(-1)  # others fill the rows of users with fewer
        candidates.scatter_(1, places, torch.where(is_new, part, candidates.gather(1, places)))
        is_left.scatter_(1, beams, False)
    return candidates


# --- from beams to ids, items and words --------------------------------------------------------------------------
#
# An id stands for all its items: they have its score, since a model that sees codes alone cannot tell them apart, and
# they stand next to each other in the order of the catalog. Where all ids are unique a leaf is an item, and this costs
# no more than a look-up.


def repeated_paths(leaves: torch.LongTensor, latents: torch.LongTensor | None = None) -> torch.BoolTensor:
    """
    Which beams, that end at `leaves` `(batch_size, num_beams)` and begin with `latents`, are the same path as a beam
    before them, as groups of beams may hold; a sum must count a path once.

    >>> leaves, latents = torch.tensor([[4, 7, 4, 4]]), torch.tensor([[0, 0, 1, 0]])
    >>> repeated_paths(leaves).tolist(), repeated_paths(leaves, latents).tolist()
    ([[False, False, True, True]], [[False, False, False, True]])
    """
    paths = leaves if latents is None else (leaves + 1) * (latents.max() + 1) + latents
    paths, order = paths.sort(dim=1, stable=True)
    is_repeated = torch.nn.functional.pad(paths[:, 1:] == paths[:, :-1], (1, 0))
    return torch.empty_like(is_repeated).scatter(1, order, is_repeated)


def rank_ids(
    beams: Beams,
    *,
    top_k: int,
    latent_aggregation: str,
    penalty: torch.Tensor | None = None,
    by_place: bool = False,
) -> tuple[torch.LongTensor, torch.FloatTensor]:
    """
    Beams to distinct semantic IDs.

    - `latent_aggregation`: `"max"` or `"sum"` over the paths of an id.
    - `penalty` `(num_ids,)`: what is subtracted from the score of each leaf in ranking, not in the scores returned.
    - `by_place`: in the order of their first beams whatever the scores, for beams that were drawn or stand in groups.
    Returns leaves and scores, best first, as from `filled_up`.
    """
    infinity = float("inf")
    order, group, group_leaf, best = _by_id(beams, latent_aggregation)
    ranked = best if penalty is None else best - penalty[group_leaf.clamp_min(0)]
    if by_place:
        first = torch.full_like(order, order.shape[1]).scatter_reduce(1, group, order, "amin")
        ranked = (-first.double()).masked_fill(best == -infinity, -infinity)
    top = ranked.topk(min(top_k, best.shape[1])).indices
    best = best.gather(1, top)
    leaves = group_leaf.gather(1, top).masked_fill(best == -infinity, -1)
    return filled_up(leaves, best, top_k)


def _by_id(beams: Beams, latent_aggregation: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Beams sorted by their leaves: the beam at each place, and the group that it belongs to; and of each group its leaf
    and its score. All `(B, W)`; leaf -1 and `-inf` for dead beams and behind the last group.
    """
    infinity = float("inf")
    leaves, order = beams.leaves.sort(dim=1, stable=True)
    scores = beams.scores.gather(1, order)
    group = torch.nn.functional.pad((leaves[:, 1:] != leaves[:, :-1]).long().cumsum(1), (1, 0))
    best = torch.full_like(scores, -infinity).scatter_reduce(1, group, scores, "amax")
    if latent_aggregation == "sum":
        # log-sum-exp per group, relative to the best: that one adds exactly 1, hence the clamp, and none overflows
        excess = (scores - best.gather(1, group)).nan_to_num(nan=-infinity, neginf=-infinity)
        best = best + torch.zeros_like(scores).scatter_add(1, group, excess.exp()).clamp_min(1).log()
    group_leaf = torch.full_like(leaves, -1).scatter(1, group, leaves)
    return order, group, group_leaf, best.masked_fill(group_leaf < 0, -infinity)


def list_items(
    catalog,
    leaves: torch.LongTensor,
    scores: torch.FloatTensor,
    *others: torch.Tensor,
    top_k: int,
    allowed: torch.BoolTensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """
    Ranked ids `(batch_size, n)`, -1 where there are fewer, with their scores and `others`, to ranked items with these.

    - `top_k`: length of the lists where items share ids; else it is `n`.
    - `allowed` `(batch_size or 1, num_items)`: items that may be listed, of which the search has seen that each id has
      one.
    """
    if catalog.is_unique:
        return catalog.item_at(leaves), scores, *others
    items, places = catalog.items_of_ids(leaves, allowed=allowed, width=top_k)
    numbers = (values.gather(1, places).masked_fill(items < 0, -float("inf")) for values in (scores, *others))
    return items, *numbers


def sampled_items(
    catalog,
    beams: Beams,
    divided: Callable[[torch.BoolTensor], torch.FloatTensor],
    *,
    top_k: int,
    num_latents: int,
    latent_aggregation: str,
    allowed: torch.BoolTensor | None = None,
) -> tuple[torch.LongTensor, torch.FloatTensor]:
    """
    A sample of ids to one of items: the probability of an id is divided evenly among its items, and they are drawn
    without replacement like everything above them.

    An item comes after the beam that it belongs to was drawn, so the items of `top_k` beams with different ids say
    which ones come first; only a search with as many beams holds them.

    - `divided`: that of the [`GumbelTopK`] which chose the beams.
    - `num_latents`: number of latents of the model; 0 for models without.
    - `latent_aggregation`: as in `rank_ids`, for the scores.
    - `allowed` `(batch_size or 1, num_items)`: items that may be listed.
    Returns item indices and scores in the order drawn, as from `filled_up`.
    """
    most = max(1, num_latents)  # beams of one id
    leaves = beams.leaves[:, : most * top_k]
    order, group, _, best = _by_id(beams, latent_aggregation)
    scores = torch.empty_like(best).scatter(1, order, best.gather(1, group))[:, : most * top_k]
    items, is_item = catalog.id_places(leaves)
    if allowed is not None:
        is_item = is_item & allowed.expand(len(items), -1).gather(1, items.flatten(1)).view_as(items)
    places = divided(is_item).flatten(1)  # (B, n * items of an id)
    places, index = places.topk(min(most * top_k, places.shape[1]))
    beam = index // items.shape[2]
    items = items.flatten(1).gather(1, index).masked_fill(places == -float("inf"), -1)
    is_out = repeated_paths(items) | (items < 0)
    kept = is_out.long().argsort(dim=1, stable=True)[:, :top_k]
    is_none = is_out.gather(1, kept)
    items = items.gather(1, kept).masked_fill(is_none, -1)
    scores = scores.gather(1, beam.gather(1, kept)).masked_fill(is_none, -float("inf"))
    return filled_up(items, scores, top_k)


def num_distinct_items(catalog, beams: Beams) -> torch.LongTensor:
    """
    How many items the living beams of each user end at, also those that a rule keeps off the lists: several latents
    may lead to the same id, and an id to several items.
    """
    if beams.num_alive is not None:
        return beams.num_alive
    leaves = beams.leaves.masked_fill(beams.scores == -float("inf"), -1).sort(dim=1).values
    is_first = torch.nn.functional.pad(leaves[:, 1:] != leaves[:, :-1], (1, 0), value=True)
    return catalog.id_sizes(leaves.masked_fill(~is_first, -1)).sum(1)


def reordered(beams: Beams, order: torch.Tensor, *, num_latents: int) -> Beams:
    """
    Beams in the order of the largest of some numbers `(batch_size, num_beams)`; of beams that are the same path only
    the first one lives on.
    """
    index = order.argsort(dim=1, descending=True, stable=True)
    last = beams.trace[-1]
    last = TraceStep(*(values.gather(1, index) for values in (last.parents, last.tokens, last.scores)))
    moved = Beams(beams.leaves.gather(1, index), last.scores, [*beams.trace[:-1], last], beams.pruned)
    is_repeated = repeated_paths(moved.leaves, moved.paths()[0][..., 0] if num_latents else None)
    moved.leaves = moved.leaves.masked_fill(is_repeated, -1)
    moved.scores = moved.scores.masked_fill(is_repeated, -float("inf"))
    return moved


def describe_paths(
    config, catalog, beams: Beams, wanted: torch.LongTensor
) -> tuple[list[list[BeamPath]], list[list[BeamPath]]]:
    """
    The beams of each user in words: the paths that end at the `wanted` items `(batch_size, top_k)` (one path for each
    of them where items share an id), and the pruned continuations.
    """
    items, beam = catalog.items_of_ids(beams.leaves)
    ends = items.tolist()
    places, (tokens, scores) = beam.tolist(), (values.tolist() for values in beams.paths())
    paths: list[list[BeamPath]] = []
    pruned: list[list[BeamPath]] = [[] for _ in ends]
    for user, listed in enumerate(map(set, wanted.tolist())):
        ways = [way for way in zip(places[user], ends[user], strict=True) if way[1] in listed and way[1] >= 0]
        paths.append(
            [
                _path(config, tokens[user][place], scores[user][place], item + config.first_item_token)
                for place, item in ways
            ]
        )
    for number, step in enumerate(beams.pruned):
        step_tokens, step_scores = (values.tolist() for values in beams.paths(step, num_steps=number + 1))
        for user in range(len(ends)):
            ways = zip(step_tokens[user], step_scores[user], strict=True)
            pruned[user] += [
                _path(config, path, path_scores, None) for path, path_scores in ways if path_scores[-1] > -float("inf")
            ]
    return paths, pruned


def _path(config, tokens: list[int], scores: list[float], item_token: int | None) -> BeamPath:
    latent = None
    if config.num_latent_tokens:
        latent, tokens = tokens[0] - config.first_latent_token, tokens[1:]
    codes = [token - config.first_code_token - level * config.codebook_size for level, token in enumerate(tokens)]
    return BeamPath(latent=latent, codes=codes, scores=scores, item_token=item_token)
