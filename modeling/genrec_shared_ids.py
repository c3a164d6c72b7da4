"""
From semantic IDs to items, where several items may share an id.

A search ends at leaves of the trie, which are ids; what is recommended are items. An id stands for all its items: they
have its score, since a model that sees codes alone cannot tell them apart, and they stand next to each other, the
lowest index first. That order is the catalog's, not a random one: where the catalog lists popular items first, so do
the lists. Where all ids are unique a leaf is an item and nothing here costs more than that look-up.
"""

import torch

from .genrec_catalog import Catalog


def id_of_items(catalog: Catalog) -> torch.LongTensor:
    """
    The id of each item.

    Args:
        catalog ([`Catalog`]): The trie.

    Returns:
        `torch.LongTensor` of shape `(num_items,)`: leaves, in `[0, num_ids)`.

    Example:

    ```python
    >>> id_of_items(Catalog(torch.tensor([[1, 0], [0, 2], [1, 0]]), codebook_size=3)).tolist()
    [1, 0, 1]

    ```
    """
    sizes = catalog.first_item(catalog.num_levels).diff()
    leaves = torch.arange(catalog.num_ids, device=catalog.device).repeat_interleave(sizes)
    return torch.empty_like(leaves).scatter_(0, catalog.items_in_order, leaves)


def items_of_ids(
    catalog: Catalog,
    leaves: torch.LongTensor,
    *,
    allowed: torch.BoolTensor | None = None,
    width: int | None = None,
) -> tuple[torch.LongTensor, torch.LongTensor]:
    """
    The items of some ids, one id after the other, of one id in ascending order.

    Args:
        catalog ([`Catalog`]): The trie.
        leaves (`torch.LongTensor` of shape `(batch_size, n)`): Ids as leaves; -1 for none.
        allowed (`torch.BoolTensor` of shape `(batch_size or 1, num_items)`, *optional*):
            Items that may be listed; `None` for all. With unique ids nothing is left out: an id that is closed is no
            result of a search.
        width (`int`, *optional*): Length of the lists; further items are left out. `None` for all, and at least `n`.

    Returns:
        `tuple[torch.LongTensor, torch.LongTensor]`: item indices and the place of each one's id in `leaves`, both
        `(batch_size, width)`; behind them item -1, place 0.

    Example:

    ```python
    >>> catalog = Catalog(torch.tensor([[1, 0], [0, 2], [1, 0], [1, 1]]), codebook_size=3)
    >>> items, places = items_of_ids(catalog, torch.tensor([[1, 0, -1], [2, -1, -1]]))
    >>> items.tolist(), places.tolist()
    ([[0, 2, 1], [3, -1, -1]], [[0, 0, 1], [0, 0, 0]])

    ```
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
    columns = torch.arange(len(users), device=users.device) - (counts.cumsum(0) - counts)[users]
    is_kept = columns < width
    at = users[is_kept], columns[is_kept]
    shape = (len(leaves), width)
    return (
        torch.full(shape, -1, device=leaves.device).index_put_(at, items[is_kept]),
        torch.zeros(shape, dtype=torch.long, device=leaves.device).index_put_(at, places[is_kept]),
    )


def id_places(catalog: Catalog, leaves: torch.LongTensor) -> tuple[torch.LongTensor, torch.BoolTensor]:
    """
    The items of some ids as a table with a row for each id.

    Args:
        catalog ([`Catalog`]): The trie.
        leaves (`torch.LongTensor` of shape `(batch_size, n)`): Ids as leaves; -1 for none.

    Returns:
        `tuple[torch.LongTensor, torch.BoolTensor]`: item indices in ascending order, and which places are taken, both
        `(batch_size, n, most items of any of the ids)`, one place at least.
    """
    first = catalog.first_item(catalog.num_levels)
    sizes = first.diff()[leaves.clamp_min(0)].masked_fill(leaves < 0, 0)
    offsets = torch.arange(max(1, int(sizes.max())) if sizes.numel() else 1, device=leaves.device)
    places = (first[leaves.clamp_min(0)].unsqueeze(-1) + offsets).clamp_max(catalog.num_items - 1)
    return catalog.items_in_order[places], offsets < sizes.unsqueeze(-1)


def _flat(
    catalog: Catalog, leaves: torch.LongTensor, *, most: int | None
) -> tuple[torch.LongTensor, torch.LongTensor, torch.LongTensor]:
    """All items of all ids in a row: the user, the place of the id, the item; at most `most` of an id."""
    first = catalog.first_item(catalog.num_levels)
    counts = first.diff()[leaves.clamp_min(0)].masked_fill(leaves < 0, 0).flatten()
    if most is not None:
        counts = counts.clamp_max(most)
    ids = torch.arange(len(counts), device=leaves.device).repeat_interleave(counts)
    offsets = torch.arange(len(ids), device=leaves.device) - (counts.cumsum(0) - counts)[ids]
    items = catalog.items_in_order[first[leaves.flatten()[ids]] + offsets]
    return ids // leaves.shape[1], ids % leaves.shape[1], items


__all__ = ["id_of_items", "id_places", "items_of_ids"]
