"""
From the beams of a search to a ranked list of distinct items, and to words about how they were found.
"""

from dataclasses import dataclass

import torch

from .beam_search_genrec import Beams, TraceStep
from .catalog_genrec import Catalog
from .diversity_genrec import repeated_paths


@dataclass
class BeamPath:
    """
    One way through the decoding tree.

    Args:
        latent (`int`, *optional*): Latent chosen first; `None` for models without.
        codes (`list[int]`): Codes so far; shorter than `num_levels` for a prefix that was pruned.
        scores (`list[float]`): Cumulative log-probability after the latent (if any) and after each code.
        item_token (`int`, *optional*): Token of the item the path ends at; `None` for a pruned prefix.
    """

    latent: int | None
    codes: list[int]
    scores: list[float]
    item_token: int | None


def prior_penalties(catalog: Catalog, item_prior: torch.Tensor, prior_correction: float) -> list[torch.Tensor]:
    """
    What a prior correction subtracts from the score of each node of the trie in ranking.

    Args:
        catalog ([`Catalog`]): The trie.
        item_prior (`torch.Tensor` of shape `(num_items,)`): Positive weights; normalised here.
        prior_correction (`float`): Share of the log-prior.

    Returns:
        `list[torch.FloatTensor]`: for each depth from 0 to `num_levels` `prior_correction` times the log of the sum
        of the priors below each node, `(num_nodes[depth],)`.

    Raises:
        ValueError: If the prior has another shape or is not positive and finite.

    Example:

    ```python
    >>> catalog = Catalog(torch.tensor([[0, 0], [0, 1], [1, 0]]), codebook_size=2)
    >>> [table.exp().tolist() for table in prior_penalties(catalog, torch.tensor([1, 1, 2]), 1.0)]
    [[1.0], [0.5, 0.5], [0.25, 0.25, 0.5]]

    ```
    """
    _check_prior(item_prior, num_items=catalog.num_items)
    prior = item_prior.to(catalog.device).double()[catalog.items_in_order]
    tables = []
    for depth in range(catalog.num_levels + 1):
        sizes = catalog.first_leaf(depth).diff()
        node = torch.repeat_interleave(torch.arange(len(sizes), device=catalog.device), sizes)
        below = torch.zeros(len(sizes), dtype=prior.dtype, device=catalog.device).index_add(0, node, prior)
        tables.append((prior_correction * (below.log() - prior.sum().log())).float())
    return tables


def item_penalties(item_prior: torch.Tensor, prior_correction: float, *, num_items: int) -> torch.FloatTensor:
    """
    What a prior correction subtracts from the score of each item in ranking: `prior_penalties` of the leaves, for
    catalogs without a trie.

    Args:
        item_prior (`torch.Tensor` of shape `(num_items,)`): Positive weights; normalised here.
        prior_correction (`float`): Share of the log-prior.
        num_items (`int`): Size of the catalog.

    Returns:
        `torch.FloatTensor` of shape `(num_items,)`: `prior_correction` times the log of each prior.

    Raises:
        ValueError: If the prior has another shape or is not positive and finite.

    Example:

    ```python
    >>> item_penalties(torch.tensor([1, 1, 2]), 2.0, num_items=3).exp().tolist()
    [0.0625, 0.0625, 0.25]

    ```
    """
    _check_prior(item_prior, num_items=num_items)
    prior = item_prior.double()
    return (prior_correction * (prior.log() - prior.sum().log())).float()


def _check_prior(item_prior: torch.Tensor, *, num_items: int) -> None:
    if item_prior.shape != (num_items,):
        raise ValueError(f"`item_prior` must have shape ({num_items},), got {tuple(item_prior.shape)}.")
    if not bool((item_prior > 0).all() & item_prior.isfinite().all()):
        raise ValueError(
            "`item_prior` must be positive and finite for every item: an item of prior 0 would rank first."
        )


def rank_items(
    catalog: Catalog,
    beams: Beams,
    *,
    top_k: int,
    latent_aggregation: str,
    penalty: torch.Tensor | None = None,
    by_place: bool = False,
) -> tuple[torch.LongTensor, torch.FloatTensor]:
    """
    Beams to distinct items.

    Args:
        catalog ([`Catalog`]): The trie that `beams` refer to.
        beams ([`Beams`]): Paths, several of which may end at the same item.
        top_k (`int`): Length of the lists.
        latent_aggregation (`str`): `"max"` or `"sum"` over the paths of an item.
        penalty (`torch.FloatTensor` of shape `(num_items,)`, *optional*):
            What is subtracted from the score of each leaf in ranking, not in the scores returned.
        by_place (`bool`, defaults to `False`):
            Items in the order of their first beams whatever the scores, for beams that were drawn or stand in groups.

    Returns:
        `tuple[torch.LongTensor, torch.FloatTensor]`: item indices and scores, both `(batch_size, top_k)`, best first;
        -1 and `-inf` where the beams hold fewer items.
    """
    infinity = float("inf")
    leaves, order = beams.leaves.sort(dim=1, stable=True)
    scores = beams.scores.gather(1, order)
    group = torch.nn.functional.pad((leaves[:, 1:] != leaves[:, :-1]).long().cumsum(1), (1, 0))
    best = torch.full_like(scores, -infinity).scatter_reduce(1, group, scores, "amax")
    if latent_aggregation == "sum":
        excess = (scores - best.gather(1, group)).nan_to_num(nan=-infinity, neginf=-infinity)
        best = best + torch.zeros_like(scores).scatter_add(1, group, excess.exp()).clamp_min(1).log()
    group_leaf = torch.full_like(leaves, -1).scatter(1, group, leaves)
    best = best.masked_fill(group_leaf < 0, -infinity)  # dead beams, and groups that are none
    ranked = best if penalty is None else best - penalty[group_leaf.clamp_min(0)]
    if by_place:
        first = torch.full_like(order, order.shape[1]).scatter_reduce(1, group, order, "amin")
        ranked = (-first.double()).masked_fill(best == -infinity, -infinity)
    top = ranked.topk(min(top_k, best.shape[1])).indices
    leaf, best = group_leaf.gather(1, top), best.gather(1, top)
    items = torch.where(best > -infinity, catalog.items_in_order[leaf.clamp_min(0)], -1)
    missing = (0, top_k - best.shape[1])
    return torch.nn.functional.pad(items, missing, value=-1), torch.nn.functional.pad(best, missing, value=-infinity)


def reordered(beams: Beams, order: torch.Tensor, *, num_latents: int) -> Beams:
    """
    Beams in another order; of beams that are the same path only the first one lives on.

    Args:
        beams ([`Beams`]): Result of a search.
        order (`torch.Tensor` of shape `(batch_size, num_beams)`): Place of each beam, highest first.
        num_latents (`int`): Number of latents of the model; 0 for models without.

    Returns:
        [`Beams`]
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
    config, catalog: Catalog, beams: Beams, item_tokens: torch.LongTensor
) -> tuple[list[list[BeamPath]], list[list[BeamPath]]]:
    """
    The beams of each user in words.

    Args:
        config: The model's config.
        catalog ([`Catalog`]): The trie that `beams` refer to.
        beams ([`Beams`]): Result of a search with `num_pruned > 0`.
        item_tokens (`torch.LongTensor` of shape `(batch_size, top_k)`): Recommended items.

    Returns:
        `tuple[list[list[BeamPath]], list[list[BeamPath]]]`: per user the paths that end at these items, and the pruned
        continuations.
    """
    items = catalog.items_in_order[beams.leaves.clamp_min(0)] + config.first_item_token
    ends = items.masked_fill(beams.leaves < 0, -1).tolist()
    tokens, scores = (values.tolist() for values in beams.paths())
    paths: list[list[BeamPath]] = []
    pruned: list[list[BeamPath]] = [[] for _ in ends]
    for user, wanted in enumerate(map(set, item_tokens.tolist())):
        ways = zip(tokens[user], scores[user], ends[user], strict=True)
        paths.append([_path(config, *way) for way in ways if way[-1] in wanted and way[-1] >= 0])
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


__all__ = ["BeamPath", "describe_paths", "item_penalties", "prior_penalties", "rank_items", "reordered"]
