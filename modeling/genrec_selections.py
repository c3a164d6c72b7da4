"""
Selections for `beam_search` that keep other candidates than the best: `DiverseGroups` makes groups of beams avoid the
prefixes that other groups took; `GumbelTopK` draws beams at random, a sample without replacement, for exploration.
Neither changes the scores, which stay log-probabilities of the model.
"""

import math

import torch

from .genrec_beams import SearchStep


class DiverseGroups:
    """
    A selection for `beam_search`: groups of beams that choose one after the other and avoid what was chosen before.

    At each step a candidate of a group costs `group_penalty` for every beam of an earlier group that chose the same
    child of the same trie node at this step. Prefixes are compared, not paths: two latents that lead to the same
    prefix are the same prefix, and the step that chooses a latent is without penalty. The penalty decides what is
    kept; it is not added to the score.

    Groups are searches of their own otherwise, each with its share of the beams, so different groups may hold the same
    path. With `group_penalty=0` they all equal one plain beam search with that share; with one group it is plain beam
    search. For lists of which every part should differ; costs one comparison of each beam with the beams of the
    earlier groups per step, and no more passes of the model. The candidates of later groups are worse by construction:
    expect less accuracy for the same number of beams.

    Args:
        num_groups (`int`): Number of groups, at most the number of beams. The first ones are larger by one beam where
            beams do not divide evenly.
        group_penalty (`float`): Nats taken off per earlier beam with the same prefix; at least 0.

    Attributes:
        order (`torch.FloatTensor` of shape `(batch_size, num_beams)`):
            After a step: the place of each beam in the list, highest first. Groups take turns, best beam first.

    Raises:
        ValueError: If an argument is out of range, or on selection if there are fewer beams than groups.

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
        Choose the beams of a step.

        `candidates` `(batch_size, num_parents, num_choices)`: cumulative log-probabilities; `-inf` where illegal.
        Returns `(batch_size, n)`: positions in `candidates.flatten(1)`, group by group. In the first steps a group has
        as many beams as there are candidates, if these are fewer than its share.
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
    Beams that are the same path as a beam before them, as groups of beams may hold; a sum must count a path once.

    - `leaves` `(batch_size, num_beams)`: where each beam ends; -1 for a dead one.
    - `latents` (same shape): latent at its beginning; `None` for models without.
    Returns the same shape: `True` from the second beam of each path on.

    Example:

    ```python
    >>> leaves, latents = torch.tensor([[4, 7, 4, 4]]), torch.tensor([[0, 0, 1, 0]])
    >>> repeated_paths(leaves).tolist(), repeated_paths(leaves, latents).tolist()
    ([[False, False, True, True]], [[False, False, False, True]])

    ```
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
    largest among them, so paths outside the beams are never looked at. For exploration, for logging policies and for
    estimates over samples; costs a few element-wise operations on the candidates per step on top of plain beam search.

    What is sampled is the model made to stay in the catalog step by step: at each step the probabilities of the
    candidates that are not `-inf` are divided by their sum. With `normalization="catalog"` and no rules that changes
    nothing, so the sample is from the model exactly. With `normalization="vocabulary"`, or where rules close prefixes,
    the probability of what is closed goes to its neighbours under the same prefix. That is what sampling token by
    token with a constraint does; it differs from dividing each item's probability by that of all items that are left.

    With latents, paths are drawn. In the order of their first paths, distinct items are then a sample of items without
    replacement, an item's probability being the sum over its latents. Number of items times number of latents is the
    number of beams that is always enough for it; a search repeated with more would draw anew.

    Args:
        generator (`torch.Generator`): Source of the noise, on the device of the model. The same state and the same
            batch give the same sample; a user's sample depends on the other users of the batch.

    Attributes:
        order (`torch.FloatTensor` of shape `(batch_size, num_beams)`):
            After a step: log-probability plus noise of each beam, highest first; the place of each beam in the list.
            The noise at the root is 0, which leaves the distribution of the order as it is.

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
        """
        Choose the beams of a step.

        - `candidates` `(batch_size, num_parents, num_choices)`: cumulative log-probabilities; `-inf` where illegal.
        - `step`: where the search stands; not used.
        Returns `(batch_size, n)`: positions in `candidates.flatten(1)`, first drawn first.
        """
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


__all__ = ["DiverseGroups", "GumbelTopK", "repeated_paths"]
