"""
From the beams of a search to a ranked list of distinct items, and to words about how they were found.

A search ends at leaves of the trie, which are ids; what is recommended are items. An id stands for all its items: they
have its score, since a model that sees codes alone cannot tell them apart, and they stand next to each other, those
first that are more frequent in the training data, where the model knows the counts, else the lowest index first. Where
all ids are unique a leaf is an item and nothing here costs more than that look-up.
"""

import torch

from .genrec_beams import Beams, GumbelTopK, TraceStep, repeated_paths
from .genrec_catalog import Catalog
from .genrec_lists import filled_up, numbered
from .genrec_recommend_config import BeamPath


def id_of_items(catalog: Catalog) -> torch.LongTensor:
    """
    The id of each item, a leaf of the trie, `(num_items,)`; -1 for items that are not in it.

    >>> id_of_items(Catalog(torch.tensor([[1, 0], [0, 2], [1, 0]]), codebook_size=3)).tolist()
    [1, 0, 1]
    """
    sizes = catalog.first_item(catalog.num_levels).diff()
    leaves = torch.arange(catalog.num_ids, device=catalog.device).repeat_interleave(sizes)
    ids = torch.full((catalog.num_items,), -1, device=catalog.device)
    return ids.scatter_(0, catalog.items_in_order, leaves)


def items_of_ids(
    catalog: Catalog,
    leaves: torch.LongTensor,
    *,
    allowed: torch.BoolTensor | None = None,
    width: int | None = None,
) -> tuple[torch.LongTensor, torch.LongTensor]:
    """
    The items of some ids, one id after the other.

    - `leaves` `(batch_size, n)`: ids as leaves; -1 for none.
    - `allowed` `(batch_size or 1, num_items)`: items that may be listed; `None` for all. With unique ids nothing is
      left out: an id that is closed is no result of a search.
    - `width`: length of the lists; further items are left out. `None` for all, and at least `n`.
    Returns item indices and the place of each one's id in `leaves`, both `(batch_size, width)`; behind them item -1,
    place 0.

    >>> catalog = Catalog(torch.tensor([[1, 0], [0, 2], [1, 0], [1, 1]]), codebook_size=3)
    >>> items, places = items_of_ids(catalog, torch.tensor([[1, 0, -1], [2, -1, -1]]))
    >>> items.tolist(), places.tolist()
    ([[0, 2, 1], [3, -1, -1]], [[0, 0, 1], [0, 0, 0]])
    """
    if catalog.is_unique:
        items = catalog.item_at(leaves)
        width = items.shape[1] if width is None else width
        places = torch.arange(width, device=leaves.device).expand(len(leaves), -1)
        items = torch.nn.functional.pad(items, (0, width - items.shape[1]), value=-1)
        return items, places.masked_fill(items < 0, 0)
    users, places, items = _flat(catalog, leaves, most=None if allowed is not None else width)
    if allowed is not None:
        rows = users if len(allowed) > 1 else torch.zeros_like(users)
        is_allowed = allowed[rows, items]
        users, places, items = users[is_allowed], places[is_allowed], items[is_allowed]
    counts = users.bincount(minlength=len(leaves))
    if width is None:
        width = max(leaves.shape[1], int(counts.max())) if len(leaves) else leaves.shape[1]
    _, columns = numbered(counts)  # entries of a user are adjacent
    is_kept = columns < width
    at = users[is_kept], columns[is_kept]
    shape = (len(leaves), width)
    return (
        torch.full(shape, -1, device=leaves.device).index_put_(at, items[is_kept]),
        torch.zeros(shape, dtype=torch.long, device=leaves.device).index_put_(at, places[is_kept]),
    )


def id_places(catalog: Catalog, leaves: torch.LongTensor) -> tuple[torch.LongTensor, torch.BoolTensor]:
    """
    The items of ids `(batch_size, n)`, -1 for none, as a table with a row for each id, and which of its places are
    taken; both `(batch_size, n, most items of any of the ids)`, one place at least.
    """
    first, sizes = catalog.first_item(catalog.num_levels), _sizes(catalog, leaves)
    offsets = torch.arange(max(1, int(sizes.max())) if sizes.numel() else 1, device=leaves.device)
    places = (first[leaves.clamp_min(0)].unsqueeze(-1) + offsets).clamp_max(len(catalog.items_in_order) - 1)
    return catalog.items_in_order[places], offsets < sizes.unsqueeze(-1)


def _sizes(catalog: Catalog, leaves: torch.LongTensor) -> torch.LongTensor:
    """How many items each id has; 0 for -1."""
    return catalog.first_item(catalog.num_levels).diff()[leaves.clamp_min(0)].masked_fill(leaves < 0, 0)


def _flat(
    catalog: Catalog, leaves: torch.LongTensor, *, most: int | None
) -> tuple[torch.LongTensor, torch.LongTensor, torch.LongTensor]:
    """All items of all ids in a row: the user, the place of the id, the item; at most `most` of an id."""
    first = catalog.first_item(catalog.num_levels)
    counts = _sizes(catalog, leaves).flatten()
    if most is not None:
        counts = counts.clamp_max(most)
    ids, offsets = numbered(counts)
    items = catalog.items_in_order[first[leaves.flatten()[ids]] + offsets]
    return ids // leaves.shape[1], ids % leaves.shape[1], items


def prior_penalties(catalog: Catalog, item_prior: torch.Tensor, prior_correction: float) -> list[torch.Tensor]:
    """
    What a prior correction subtracts in ranking from the score of each node of the trie: for each depth from 0 to
    `num_levels` `prior_correction` times the log of the sum of the priors below the nodes, `(num_nodes[depth],)`.
    Items that share an id have its prior together.

    >>> catalog = Catalog(torch.tensor([[0, 0], [0, 1], [1, 0]]), codebook_size=2)
    >>> [table.exp().tolist() for table in prior_penalties(catalog, torch.tensor([1, 1, 2]), 1.0)]
    [[1.0], [0.5, 0.5], [0.25, 0.25, 0.5]]
    """
    prior = item_prior.to(catalog.device).double()[catalog.items_in_order]
    tables = []
    for depth in range(catalog.num_levels + 1):
        sizes = catalog.first_item(depth).diff()
        node = torch.repeat_interleave(torch.arange(len(sizes), device=catalog.device), sizes)
        below = torch.zeros(len(sizes), dtype=prior.dtype, device=catalog.device).index_add(0, node, prior)
        tables.append((prior_correction * (below.log() - prior.sum().log())).float())
    return tables


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
    catalog: Catalog,
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

    - `num_latents`: number of latents of the model; 0 for models without.
    - `latent_aggregation`: as in `rank_ids`, for the scores.
    - `allowed` `(batch_size or 1, num_items)`: items that may be listed.
    Returns item indices and scores in the order drawn, as from `filled_up`.
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
    items = items.gather(1, kept).masked_fill(is_none, -1)
    scores = scores.gather(1, beam.gather(1, kept)).masked_fill(is_none, -float("inf"))
    return filled_up(items, scores, top_k)


def num_distinct_items(catalog: Catalog, beams: Beams) -> torch.LongTensor:
    """
    How many items the living beams of each user end at, also those that a rule keeps off the lists: several latents
    may lead to the same id, and an id to several items.
    """
    leaves = beams.leaves.masked_fill(beams.scores == -float("inf"), -1).sort(dim=1).values
    is_first = torch.nn.functional.pad(leaves[:, 1:] != leaves[:, :-1], (1, 0), value=True)
    return _sizes(catalog, leaves.masked_fill(~is_first, -1)).sum(1)


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
    config, catalog: Catalog, beams: Beams, wanted: torch.LongTensor
) -> tuple[list[list[BeamPath]], list[list[BeamPath]]]:
    """
    The beams of each user in words: the paths that end at the `wanted` items `(batch_size, top_k)` (one path for each
    of them where items share an id), and the pruned continuations.
    """
    items, beam = items_of_ids(catalog, beams.leaves)
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
