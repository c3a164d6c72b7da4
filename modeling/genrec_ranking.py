"""
From the beams of a search to a ranked list of distinct items, and to words about how they were found.
"""

from dataclasses import dataclass

import torch

from .genrec_beam_search import Beams, TraceStep
from .genrec_catalog import Catalog
from .genrec_diversity import GumbelTopK, repeated_paths
from .genrec_shared_ids import id_places, items_of_ids


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
        of the priors below each node, `(num_nodes[depth],)`. Items that share an id have its prior together.

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
        sizes = catalog.first_item(depth).diff()
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
    allowed: torch.BoolTensor | None = None,
) -> tuple[torch.LongTensor, torch.FloatTensor]:
    """
    Beams to distinct items: those of `rank_ids`, an id giving way to all its items.

    Args:
        catalog ([`Catalog`]): The trie that `beams` refer to.
        beams ([`Beams`]): Paths, several of which may end at the same id.
        top_k (`int`): Length of the lists.
        latent_aggregation (`str`): As in `rank_ids`.
        penalty (`torch.FloatTensor` of shape `(num_ids,)`, *optional*): As in `rank_ids`.
        by_place (`bool`, defaults to `False`): As in `rank_ids`.
        allowed (`torch.BoolTensor` of shape `(batch_size or 1, num_items)`, *optional*): As in `list_items`.

    Returns:
        `tuple[torch.LongTensor, torch.FloatTensor]`: item indices and scores, both `(batch_size, top_k)`, best first,
        items of one id in ascending order; -1 and `-inf` where the beams hold fewer items.
    """
    ids = rank_ids(beams, top_k=top_k, latent_aggregation=latent_aggregation, penalty=penalty, by_place=by_place)
    items, scores = list_items(catalog, *ids, top_k=top_k, allowed=allowed)
    return items, scores


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

    Args:
        beams ([`Beams`]): Paths, several of which may end at the same id.
        top_k (`int`): Length of the lists.
        latent_aggregation (`str`): `"max"` or `"sum"` over the paths of an id.
        penalty (`torch.FloatTensor` of shape `(num_ids,)`, *optional*):
            What is subtracted from the score of each leaf in ranking, not in the scores returned.
        by_place (`bool`, defaults to `False`):
            Ids in the order of their first beams whatever the scores, for beams that were drawn or stand in groups.

    Returns:
        `tuple[torch.LongTensor, torch.FloatTensor]`: leaves and scores, both `(batch_size, top_k)`, best first; -1
        and `-inf` where the beams hold fewer ids.
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
    missing = (0, top_k - best.shape[1])
    return torch.nn.functional.pad(leaves, missing, value=-1), torch.nn.functional.pad(best, missing, value=-infinity)


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
        excess = (scores - best.gather(1, group)).nan_to_num(nan=-infinity, neginf=-infinity)
        best = best + torch.zeros_like(scores).scatter_add(1, group, excess.exp()).clamp_min(1).log()
    group_leaf = torch.full_like(leaves, -1).scatter(1, group, leaves)
    return order, group, group_leaf, best.masked_fill(group_leaf < 0, -infinity)


def list_items(
    catalog: Catalog,
    leaves: torch.LongTensor,
    scores: torch.FloatTensor,
    *others: torch.Tensor,
    top_k: int,
    allowed: torch.BoolTensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """
    Ranked ids to ranked items.

    Args:
        catalog ([`Catalog`]): The trie.
        leaves (`torch.LongTensor` of shape `(batch_size, n)`): Ids, best first; -1 where there are fewer.
        scores (`torch.FloatTensor`, same shape): Their scores, `-inf` where there is none.
        *others (`torch.Tensor`, same shape): Other numbers like scores.
        top_k (`int`): Length of the lists where items share ids; else it is `n`.
        allowed (`torch.BoolTensor` of shape `(batch_size or 1, num_items)`, *optional*):
            Items that may be listed, of which the search has seen that each id has one; `None` for all.

    Returns:
        `tuple[torch.Tensor, ...]`: items, -1 where there are fewer, and each one's scores and other numbers.
    """
    if catalog.is_unique:
        return catalog.item_at(leaves), scores, *others
    items, places = items_of_ids(catalog, leaves, allowed=allowed, width=top_k)
    numbers = (values.gather(1, places).masked_fill(items < 0, -float("inf")) for values in (scores, *others))
    return items, *numbers


def sampled_items(
    catalog: Catalog,
    beams: Beams,
    sample: GumbelTopK,
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

    Args:
        catalog ([`Catalog`]): The trie that `beams` refer to.
        beams ([`Beams`]): Paths in the order drawn.
        sample ([`GumbelTopK`]): What drew them.
        top_k (`int`): Length of the lists.
        num_latents (`int`): Number of latents of the model; 0 for models without.
        latent_aggregation (`str`): As in `rank_ids`, for the scores.
        allowed (`torch.BoolTensor` of shape `(batch_size or 1, num_items)`, *optional*): Items that may be drawn.

    Returns:
        `tuple[torch.LongTensor, torch.FloatTensor]`: item indices and scores, both `(batch_size, top_k)`, in the
        order drawn; -1 and `-inf` where there are fewer.
    """
    most = max(1, num_latents)  # beams of one id
    leaves = beams.leaves[:, : most * top_k]
    order, group, _, best = _by_id(beams, latent_aggregation)
    scores = torch.empty_like(best).scatter(1, order, best.gather(1, group))[:, : most * top_k]
    items, is_item = id_places(catalog, leaves)
    if allowed is not None:
        is_item = is_item & allowed.expand(len(items), -1).gather(1, items.flatten(1)).view_as(items)
    places = sample.divided(is_item).flatten(1)  # (B, n * items of an id)
    places, index = places.topk(min(most * top_k, places.shape[1]))
    beam = index // items.shape[2]
    items = items.flatten(1).gather(1, index).masked_fill(places == -float("inf"), -1)
    is_out = repeated_paths(items) | (items < 0)
    kept = is_out.long().argsort(dim=1, stable=True)[:, :top_k]
    is_none = is_out.gather(1, kept)
    missing = (0, top_k - kept.shape[1])
    items = items.gather(1, kept).masked_fill(is_none, -1)
    scores = scores.gather(1, beam.gather(1, kept)).masked_fill(is_none, -float("inf"))
    pad = torch.nn.functional.pad
    return pad(items, missing, value=-1), pad(scores, missing, value=-float("inf"))


def num_distinct_items(catalog: Catalog, beams: Beams) -> torch.LongTensor:
    """
    How many items the living beams of each user end at: several latents may lead to the same id, and an id to several
    items.

    Args:
        catalog ([`Catalog`]): The trie that `beams` refer to.
        beams ([`Beams`]): Result of a search.

    Returns:
        `torch.LongTensor` of shape `(batch_size,)`: all items of the ids, also those that a rule keeps off the lists.
    """
    leaves = beams.leaves.masked_fill(beams.scores == -float("inf"), -1).sort(dim=1).values
    is_first = torch.nn.functional.pad(leaves[:, 1:] != leaves[:, :-1], (1, 0), value=True)
    is_counted = is_first & (leaves >= 0)
    if catalog.is_unique:
        return is_counted.sum(1)
    sizes = catalog.first_item(catalog.num_levels).diff()
    return sizes[leaves.clamp_min(0)].masked_fill(~is_counted, 0).sum(1)


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
        `tuple[list[list[BeamPath]], list[list[BeamPath]]]`: per user the paths that end at these items (one path for
        each of them where items share an id), and the pruned continuations.
    """
    items, beam = items_of_ids(catalog, beams.leaves)
    ends = torch.where(items >= 0, items + config.first_item_token, -1).tolist()
    places, (tokens, scores) = beam.tolist(), (values.tolist() for values in beams.paths())
    paths: list[list[BeamPath]] = []
    pruned: list[list[BeamPath]] = [[] for _ in ends]
    for user, wanted in enumerate(map(set, item_tokens.tolist())):
        ways = [way for way in zip(places[user], ends[user], strict=True) if way[1] in wanted and way[1] >= 0]
        paths.append([_path(config, tokens[user][place], scores[user][place], end) for place, end in ways])
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


__all__ = [
    "BeamPath",
    "describe_paths",
    "item_penalties",
    "list_items",
    "num_distinct_items",
    "prior_penalties",
    "rank_ids",
    "rank_items",
    "reordered",
    "sampled_items",
]
