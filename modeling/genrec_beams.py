"""
Beam search over the trie of a catalog, with the history of each user read once.

Encoded histories come in, leaves of the trie with their log-probabilities go out. Which candidates become beams is
decided by a selection, an object made for one search.
Whatever it ranks by, the scores of the beams stay log-probabilities, exact sums in float32 over the generated tokens,
not divided by length.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import DynamicCache, EncoderDecoderCache
from transformers.utils import ModelOutput


@dataclass
class HistoryOutput(ModelOutput):
    """Encoded histories, one row per user whatever the number of beams or targets that read them."""

    last_hidden_state: torch.FloatTensor | None = None  # (batch_size, num_history_tokens, d_model)
    attention_mask: torch.BoolTensor | None = None  # (batch_size, num_history_tokens): True at real tokens


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
) -> Beams:
    """
    Beam search over the trie; the first step runs with one beam per user, keys and values of the history are shared.

    `model` has `config`, `catalog`, `decode_states` and `token_log_probs`, see [`BeamRankingMixin`].
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
            pruned.append(options.traced(candidates, rest.topk(min(num_pruned, num_left)).indices))
        if options.depth < 0:
            latents = kept.tokens - config.first_latent_token
        elif latents is not None:
            latents = latents.gather(1, kept.parents)
        if step + 1 < config.num_decoding_steps:
            # rows of the decoder are user * W + beam; `kept.parents` counts within a user
            cache.self_attention_cache.reorder_cache((first_row * nodes.shape[1] + kept.parents).flatten())
        tokens, scores = kept.tokens, kept.scores
        nodes = options.children(index).masked_fill(scores == -float("inf"), -1)
    return Beams(leaves=nodes, scores=scores, trace=trace, pruned=pruned)


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
        if num_groups < 1:
            raise ValueError(f"`num_groups` must be at least 1, got {num_groups}.")
        if not 0 <= group_penalty < math.inf:
            raise ValueError(f"`group_penalty` must be a finite number of at least 0, got {group_penalty}.")
        self.num_groups = num_groups
        self.group_penalty = group_penalty
        self.order: torch.Tensor | None = None
        self._sizes: list[int] | None = None  # beams of each group; None before the first step: all share the root

    def __call__(self, candidates: torch.Tensor, num_beams: int, step: SearchStep) -> torch.Tensor:
        """
        See [`Selection`]; positions stand group by group. In the first steps a group has as many beams as there are
        candidates, if these are fewer than its share.
        """
        if num_beams < self.num_groups:
            raise ValueError(f"`num_groups` is {self.num_groups}, but there are only {num_beams} beams to divide.")
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
