"""
Beam search over the trie of a catalog, with the history of each user read once.

Encoded histories come in, leaves of the trie with their log-probabilities go out. Which candidates become beams is
decided by a selection, an object made for one search; `genrec_selections.py` holds those for groups and samples.
Whatever it ranks by, the scores of the beams stay log-probabilities, exact sums in float32 over the generated tokens,
not divided by length.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import DynamicCache, EncoderDecoderCache
from transformers.utils import ModelOutput

from .genrec_catalog import Catalog


@dataclass
class HistoryOutput(ModelOutput):
    """
    Encoded histories, one row per user whatever the number of beams or targets that read them.

    Takes `last_hidden_state` `(batch_size, num_history_tokens, d_model)`. `attention_mask`
    `(batch_size, num_history_tokens)`: `True` at real tokens.
    """

    last_hidden_state: torch.FloatTensor | None = None
    attention_mask: torch.BoolTensor | None = None


@dataclass
class SearchStep:
    """
    What a selection is told about a step of the search, for beams `(B, W)` that each have `K` continuations.

    - `number`: number of the step, from 0.
    - `depth`: depth in the trie of the beams before the step; -1 where a latent is chosen.
    - `nodes` `(B, W)`: trie nodes of the beams before the step, -1 where one is dead.
    - `latents` `(B, W)`: latents of the beams; `None` before one is chosen and for models without.
    - `children`: from flat positions `w * K + k`, `(B, n)`, to the trie nodes `(B, n)` that they lead to, -1 where
      illegal. Where a latent is chosen all lead to the root.
    """

    number: int
    depth: int
    nodes: torch.LongTensor
    latents: torch.LongTensor | None
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
    """What a step of the search decided; from these the ways to the leaves are read when somebody asks for them."""

    parents: torch.LongTensor  # (B, n): the beam of the step before that each beam continues
    tokens: torch.LongTensor  # (B, n)
    scores: torch.FloatTensor  # (B, n), cumulative


@dataclass
class Beams:
    """
    Result of `beam_search`.

    - `leaves` `(batch_size, num_beams)`: leaves of the trie, -1 where a beam is dead.
    - `scores` (same shape): log-probabilities, `-inf` where a beam is dead.
    - `pruned`: the best continuations at each step that were not kept; empty unless asked for.
    """

    leaves: torch.LongTensor
    scores: torch.FloatTensor
    trace: list[TraceStep]
    pruned: list[TraceStep]

    def paths(
        self, last: TraceStep | None = None, *, num_steps: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The ways to the leaves, or to what was pruned.

        - `last`: where the ways end; `None` for the leaves.
        - `num_steps`: number of steps up to and with `last`.
        Returns tokens and cumulative scores, `(batch_size, n, num_steps)`.
        """
        num_steps = len(self.trace) if num_steps is None else num_steps
        last = self.trace[num_steps - 1] if last is None else last
        tokens, scores, parents = [last.tokens], [last.scores], last.parents
        for step in reversed(self.trace[: num_steps - 1]):
            tokens.append(step.tokens.gather(1, parents))
            scores.append(step.scores.gather(1, parents))
            parents = step.parents.gather(1, parents)
        return torch.stack(tokens[::-1], dim=-1), torch.stack(scores[::-1], dim=-1)


def token_range(config, step: int) -> tuple[int, int, int]:
    """
    What may be written at a decoding step.

    `step`: number of the step, from 0. Returns first token, number of tokens, and depth in the trie before the step
    (-1 for a latent).
    """
    if config.num_latent_tokens and step == 0:
        return config.first_latent_token, config.num_latent_tokens, -1
    depth = step - (1 if config.num_latent_tokens else 0)
    return config.first_code_token + depth * config.codebook_size, config.codebook_size, depth


def token_log_probs(
    model,
    states: torch.FloatTensor,
    step: int,
    *,
    codes: torch.LongTensor | None = None,
    is_legal: torch.BoolTensor | None = None,
) -> torch.FloatTensor:
    """
    Log-probabilities of the tokens of a decoding step, over the whole vocabulary or over the legal tokens
    (`config.normalization`).

    Takes `states` `(..., d_model)`, `is_legal` `(..., n)`.
    - `step`: number of the step, from 0.
    - `codes` `(..., n)`: the tokens wanted, counted from the first of the step.
    Returns `(..., n)`: float32; those of illegal tokens mean nothing.
    """
    config = model.config
    start, width, _ = token_range(config, step)
    is_catalog = config.normalization == "catalog"
    logits = model.score_tokens(states, start, width) if is_catalog else model.score_tokens(states, 0, None)
    block = logits if is_catalog else logits[..., start : start + width]
    if codes is not None:
        block = block.gather(-1, codes)
    if not is_catalog:
        return block - logits.logsumexp(-1, keepdim=True)
    return (block if is_legal is None else block.masked_fill(~is_legal, -float("inf"))).log_softmax(-1)


def best_candidates(candidates: torch.FloatTensor, num_beams: int, step: SearchStep) -> torch.LongTensor:
    """
    The plain selection: the best candidates of a user, best first.

    Takes `candidates` `(B, W, K)`. Returns `(B, min(num_beams, W * K))`: flat positions.

    Example:

    ```python
    >>> candidates = torch.tensor([[[-3.0, -1.0, -9.0], [-2.0, -8.0, -7.0]]])
    >>> best_candidates(candidates, 3, None).tolist()
    [[1, 3, 0]]

    ```
    """
    flat = candidates.flatten(1)
    return flat.topk(min(num_beams, flat.shape[1])).indices


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

    def candidates(self, model, states, scores) -> torch.FloatTensor:
        """Cumulative log-probabilities `(B, W, width)`."""
        log_probs = token_log_probs(model, states, self.step, codes=self.codes, is_legal=self.is_legal)
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
) -> Beams:
    """
    Beam search over the trie; the first step runs with one beam per user, keys and values of the history are shared.

    - `allowed_items` `(batch_size or 1, num_items)`: items that may be reached; prefixes without any are closed. One
      row serves all users.
    - `penalties`: for each depth from 0 to `num_levels` what the selection subtracts from the score of a node,
      `(num_nodes[depth],)`. Scores that come out are free of it.
    - `num_pruned`: how many of the best discarded continuations to remember per step.
    """
    config, device = model.config, history.last_hidden_state.device
    batch_size = len(history.last_hidden_state)
    allowed_nodes = None if allowed_items is None else model.catalog.allowed_nodes(allowed_items)
    nodes = torch.zeros(batch_size, 1, dtype=torch.long, device=device)
    first_row = torch.arange(batch_size, device=device).unsqueeze(-1)  # of each user in the decoder's batch, over W
    tokens, scores, latents = torch.full_like(nodes, config.decoder_start_token_id), nodes.float(), None
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    trace, pruned = [], []
    for step in range(config.num_decoding_steps):
        states = model.decode_states(tokens, history, cache)
        options = _Continuations(model, step, nodes, allowed_nodes=allowed_nodes, penalties=penalties)
        candidates = options.candidates(model, states, scores)
        ranked = candidates if options.penalty is None else candidates - options.penalty
        index = selection(ranked, num_beams, SearchStep(step, options.depth, nodes, latents, options.children))
        kept = options.traced(candidates, index)
        trace.append(kept)
        if num_pruned:
            rest = ranked.flatten(1).scatter(1, index, -float("inf"))
            num_left = max(0, rest.shape[1] - index.shape[1])  # a selection may take a position more than once
            rest = rest.topk(min(num_pruned, num_left)).indices
            pruned.append(options.traced(candidates, rest))
        if options.depth < 0:
            latents = kept.tokens - config.first_latent_token
        elif latents is not None:
            latents = latents.gather(1, kept.parents)
        if step + 1 < config.num_decoding_steps:
            cache.self_attention_cache.reorder_cache((first_row * nodes.shape[1] + kept.parents).flatten())
        tokens, scores = kept.tokens, kept.scores
        nodes = options.children(index).masked_fill(scores == -float("inf"), -1)
    return Beams(leaves=nodes, scores=scores, trace=trace, pruned=pruned)


# --- models that predict all codes of a semantic ID at once ------------------------------------------------------


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
    Beam search over the semantic IDs, which several items may share, with the log-probabilities of each level given.

    The log-probabilities of a code are the same whatever codes stand before it, so the search is `beam_search` with a
    decoder that has nothing to compute. It finds less than exact scores at the same cost or more: with long ids the
    best prefixes are rarely those of the best items. It is here because papers compare with it.

    Takes `log_probs` `(batch_size, num_levels, codebook_size)`, `allowed` `(batch_size or 1, num_items)`.
    - `first_code_token`: token of code 0 of level 0, for the tokens of the trace.
    - `penalties`: result of `prior_penalties`.
    - `num_pruned`: how many discarded continuations to remember per level.
    The leaves are those of `catalog`.
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


__all__ = [
    "Beams",
    "HistoryOutput",
    "SearchStep",
    "Selection",
    "TraceStep",
    "beam_search",
    "best_candidates",
    "search_codes",
    "token_log_probs",
    "token_range",
]
