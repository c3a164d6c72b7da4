"""
The catalog: every item's semantic ID, and the trie over them, as tensors.

Codes `(num_items, num_levels)` come in; prefixes, their legal continuations and items go out. The trie is a sorted
table: items ordered by their codes, one node per distinct prefix, the children of a node next to each other. A node
at depth `d` is a number below `num_nodes[d]`, numbered in the order of the codes, so the items below it are one range
of the order. The nodes at depth `num_levels`, the leaves, are the distinct semantic IDs: of one item each as a rule,
of several where items share an id. Codes count from 0 at every level: nothing here depends on the vocabulary of a
model.
"""

from collections.abc import Iterator

import torch

from .genrec_folder import CheckpointMixin, ItemTokensMixin, catalog_fingerprint
from .genrec_lists import LiveItemsMixin, numbered


# a dense (nodes x codes) table of legal codes is kept for levels up to this many entries (bytes), and up to 8 times as
# many where one in 8 is legal and a search reads masks: marking a thousand children takes far longer than a row. Other
# levels, and `child` above an eighth of it (its table holds int32), read the children where they stand in the order
MAX_DENSE_ENTRIES = 1 << 25
MAX_KEY_BITS = 62  # of the int64 keys that items are sorted by: one sort where a semantic ID fits into one key
ROWS_AT_A_TIME = 1 << 20  # keys that are packed or read at a time: what is int64 in between stays small
MAX_COUNTS = 1 << 24  # int32 counters that `allowed_nodes` holds at a time


class Catalog:
    """
    Trie over the semantic IDs of all items; vectorised, stateless, on the device of the codes.

    It is built by sorting the items once and comparing neighbours. The children of all nodes of a depth stand in one
    table (CSR); where it is small a dense table of the legal codes stands beside it. A step of a search costs more
    with more children of a prefix, hardly with more items; 10^8 items take 1 to 2 GB, and 4 to 6 to build.

    Attributes: `num_items`, `num_levels`, `codebook_size`, `device`; `num_ids` (number of distinct semantic IDs) and
    `is_unique` (whether each item has its own); `num_nodes` (per depth from 0 to `num_levels`); `max_children` (per
    depth below `num_levels`: the most children a node has); `items_in_order` `(num_items,)` (items in the order of
    their codes, of one id in `item_order`).

    Args:
        item_codes (`torch.Tensor` of shape `(num_items, num_levels)`):
            Code of each item at each level, in `[0, codebook_size)`. Items may share all their codes.
        codebook_size (`int`): Number of codes per level.
        item_order (`torch.LongTensor` of shape `(num_items,)`, *optional*):
            Items in the order in which those of one id stand; `None` for all in ascending order. The trie is that of
            these items: the others keep their numbers and have no node.
        max_dense_entries (`int`, defaults to 2**25):
            Levels with at most so many entries, or where it pays (see above) 8 times as many, are kept dense too.

    Raises:
        ValueError: If a code is out of range.

    Example:

    ```python
    >>> catalog = Catalog(torch.tensor([[1, 0], [0, 2], [1, 1]]), codebook_size=3)
    >>> catalog.child_mask(0, torch.tensor([0])).tolist()
    [[True, True, False]]
    >>> catalog.item_of(torch.tensor([[0, 2], [1, 1], [2, 2]])).tolist()
    [1, 2, -1]

    ```
    """

    def __init__(
        self,
        item_codes: torch.Tensor,
        codebook_size: int,
        *,
        item_order: torch.LongTensor | None = None,
        max_dense_entries: int = MAX_DENSE_ENTRIES,
    ):
        if item_codes.ndim != 2 or item_codes.numel() == 0:
            raise ValueError(f"`item_codes` must have shape (num_items, num_levels), got {tuple(item_codes.shape)}.")
        _check_range(item_codes, codebook_size)
        self.codebook_size = codebook_size
        self.num_items, self.num_levels = item_codes.shape
        self.device = item_codes.device
        self.items_in_order, columns = _sorted_columns(item_codes, codebook_size, order=item_order)
        self._build(columns, max_dense_entries)

    def _build(self, columns: Iterator[torch.Tensor], max_dense_entries: int) -> None:
        """Nodes stand where the prefix of an item differs from that of the item before it."""
        self.num_nodes = [1]
        self.max_children: list[int] = []
        self._codes: list[torch.Tensor] = []  # per level: the code that leads to each node of the next depth
        self._first_child: list[torch.Tensor] = []  # int32; children of n: _first_child[n] .. _first_child[n + 1]
        self._first_item: list[torch.Tensor] = []  # int32, the same for places in the order of items
        self._legal: list[torch.Tensor | None] = []  # bool (num_nodes + 1, K); the last row is that of node -1
        self._child: list[torch.Tensor | None] = []  # int32, same shape: the child or -1
        num_items = len(self.items_in_order)  # in the trie
        is_first = torch.zeros(num_items, dtype=torch.bool, device=self.device)  # is a node's first item
        is_first[0] = True
        starts = torch.zeros(1, dtype=torch.int32, device=self.device)  # first item of each node
        node = torch.zeros(num_items, dtype=torch.int32, device=self.device)  # of each item, at this depth
        for level, column in enumerate(columns):
            # once two neighbours differ they stay apart on all deeper levels, hence `|=`
            is_first[1:] |= column[1:] != column[:-1]
            child = is_first.cumsum(0, dtype=torch.int32).sub_(1)
            child_starts = is_first.nonzero()[:, 0]
            first_child = _with_end(child.index_select(0, starts), len(child_starts))
            self.num_nodes.append(len(child_starts))
            self.max_children.append(int(first_child.diff().max()))
            self._first_child.append(first_child)
            self._first_item.append(_with_end(starts, num_items))
            self._codes.append(column.index_select(0, child_starts))
            self._keep_dense(level, node, child_starts, max_dense_entries)
            starts, node = child_starts.int(), child
        self.num_ids = self.num_nodes[-1]
        self.is_unique = self.num_ids == num_items
        if not self.is_unique:  # else leaf and place in the order are the same
            self._first_item.append(_with_end(starts, num_items))

    def _keep_dense(self, level: int, node: torch.Tensor, child_starts: torch.Tensor, max_dense_entries: int) -> None:
        """Add the dense tables of a level, each where it is small enough; `node` is that of each item."""
        shape = (self.num_nodes[level] + 1, self.codebook_size)
        num_entries = self.num_nodes[level] * self.codebook_size
        legal, child = None, None
        is_masked = 2 * self.max_children[level] > self.codebook_size  # else a search reads lists of children
        if num_entries <= max_dense_entries * (8 if is_masked and 8 * len(child_starts) >= num_entries else 1):
            places = node.index_select(0, child_starts).long().mul_(self.codebook_size).add_(self._codes[level])
            legal = torch.zeros(shape, dtype=torch.bool, device=self.device)
            legal.view(-1).index_fill_(0, places, True)
            if 8 * num_entries <= max_dense_entries:
                child = torch.full(shape, -1, dtype=torch.int32, device=self.device)
                child.view(-1)[places] = torch.arange(len(places), dtype=torch.int32, device=self.device)
        self._legal.append(legal)
        self._child.append(child)

    def first_item(self, depth: int) -> torch.Tensor:
        """
        Start of each node's range of items, `(num_nodes[depth] + 1,)`: those below node `n` are
        `items_in_order[first[n] : first[n + 1]]`; depth -1 is that of the leaves.
        """
        if depth in (-1, self.num_levels) and self.is_unique:
            return torch.arange(self.num_ids + 1, device=self.device)
        return self._first_item[depth].long()

    def child(self, depth: int, nodes: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """
        The nodes at `depth + 1` reached from `nodes` by `codes` of level `depth`, of the same shape; -1 from -1, by
        what is no code, and where there is none.
        """
        table = self._child[depth]
        if table is not None:
            is_code = (codes >= 0) & (codes < self.codebook_size)
            return torch.where(is_code, table[nodes, codes.clamp(0, self.codebook_size - 1)].long(), -1)
        table = self._codes[depth]
        start, end = self._children_range(depth, nodes)
        place = start  # becomes the number of children with a smaller code, by halving the range
        step = 1 << self.max_children[depth].bit_length() - 1
        while step:
            probe = place + step
            is_smaller = table[(probe - 1).clamp_max(len(table) - 1)] < codes
            place = torch.where((probe <= end) & is_smaller, probe, place)
            step >>= 1
        is_found = (place < end) & (table[place.clamp_max(len(table) - 1)] == codes)
        return torch.where(is_found, place, -1)

    def child_mask(self, depth: int, nodes: torch.Tensor) -> torch.Tensor:
        """Which codes may follow `nodes` of a depth: `(*nodes.shape, codebook_size)`, all `False` for -1."""
        table = self._legal[depth]
        if table is not None:
            rows = torch.where(nodes >= 0, nodes, len(table) - 1).reshape(-1)
            return table.index_select(0, rows).view(*nodes.shape, self.codebook_size)
        start, end = self._children_range(depth, nodes)
        places = start.unsqueeze(-1) + self._offsets(depth, start, end)
        # beyond the last child it is repeated: whatever the order of writing, a row of the mask comes out the same
        codes = self._codes[depth][torch.minimum(places, (end - 1).clamp_min(0).unsqueeze(-1))].long()
        mask = torch.zeros(*nodes.shape, self.codebook_size, dtype=torch.bool, device=nodes.device)
        return mask.scatter_(-1, codes, (nodes >= 0).unsqueeze(-1).expand(codes.shape))

    def children(
        self, depth: int, nodes: torch.Tensor, *, width: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        The children of each node, listed; `child_mask` says the same as a row of the codebook. A search gains by it
        where nodes have many times fewer children than `codebook_size`, as at the last levels of a large catalog.

        `width` is the length of the lists; `None` for the most children any of `nodes` has, but at least 1.
        `max_children[depth]` loses none and, on an accelerator, does not wait for the device. Returns codes, nodes at
        `depth + 1`, and which places of the lists are taken, each `(*nodes.shape, width)`: children in the order of
        their codes; behind them code 0, node -1, `False`.

        >>> catalog = Catalog(torch.tensor([[1, 0], [0, 2], [1, 1]]), codebook_size=3)
        >>> codes, nodes, is_child = catalog.children(1, torch.tensor([0, 1]))
        >>> codes.tolist(), nodes.tolist()
        ([[2, 0], [0, 1]], [[0, -1], [1, 2]])
        """
        start, end = self._children_range(depth, nodes)
        if width is None:
            width = max(1, int((end - start).max())) if nodes.numel() else 1
        places = start.unsqueeze(-1) + torch.arange(width, device=nodes.device)
        is_none = places >= end.unsqueeze(-1)
        places.masked_fill_(is_none, -1)
        codes = self._codes[depth].index_select(0, places.clamp_min(0).flatten()).view_as(places).long()
        return codes.masked_fill_(is_none, 0), places, ~is_none

    def _children_range(self, depth: int, nodes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """First child of each node and the one behind the last; the same twice for -1."""
        first, safe = self._first_child[depth], nodes.clamp_min(0)
        start = first[safe].long()
        return start, torch.where(nodes >= 0, first[safe + 1].long(), start)

    def _offsets(self, depth: int, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        """0, 1, ... for the children of any of some nodes; an accelerator is not asked how many they really have."""
        width = self.max_children[depth]
        if start.device.type == "cpu" and not torch.compiler.is_compiling() and start.numel():
            width = int((end - start).max())
        return torch.arange(width, device=start.device)

    def allowed_nodes(self, allowed_items: torch.Tensor) -> list[torch.Tensor]:
        """
        Which nodes still lead to an allowed item of a row `(batch_size, num_items)`; the other prefixes are closed,
        and an id is when all its items are. Returns for each depth from 0 to `num_levels` a tensor
        `(batch_size, num_nodes[depth])`; a rule that is the same for all users needs one row only.
        """
        in_order = allowed_items.index_select(1, self.items_in_order)
        shapes = [(len(in_order), num_nodes) for num_nodes in self.num_nodes[: len(self._first_item)]]
        tables = [torch.empty(shape, dtype=torch.bool, device=in_order.device) for shape in shapes]
        first_row = 0
        for part in in_order.split(max(1, MAX_COUNTS // self.num_items)):
            counts = part.cumsum(1, dtype=torch.int32)
            rows = slice(first_row, first_row + len(part))
            for table, first in zip(tables, self._first_item, strict=True):
                up_to = counts.index_select(1, first[1:] - 1)  # allowed items in and before each node
                table[rows, 1:] = up_to[:, 1:] > up_to[:, :-1]
                table[rows, :1] = up_to[:, :1] > 0
            first_row = rows.stop
        return [*tables, in_order] if self.is_unique else tables

    def node_of(self, codes: torch.Tensor) -> torch.Tensor:
        """The node at depth `length` of each prefix `(..., length)`, -1 if no item begins so."""
        node = torch.zeros(codes.shape[:-1], dtype=torch.long, device=self.device)
        for level in range(codes.shape[-1]):
            node = self.child(level, node, codes[..., level])
        return node

    def item_of(self, codes: torch.Tensor) -> torch.Tensor:
        """The item of each semantic ID `(..., num_levels)`, -1 if none has it; of items that share it the first."""
        return self.item_at(self.node_of(codes))

    def item_at(self, leaves: torch.Tensor) -> torch.Tensor:
        """The item of each leaf, -1 for -1; of items that share an id the first."""
        places = leaves.clamp_min(0)
        if not self.is_unique:
            places = self._first_item[-1][places]
        return torch.where(leaves >= 0, self.items_in_order[places], -1)

    def id_of_items(self) -> torch.LongTensor:
        """
        The id of each item, a leaf of the trie, `(num_items,)`; -1 for items that are not in it.

        >>> Catalog(torch.tensor([[1, 0], [0, 2], [1, 0]]), codebook_size=3).id_of_items().tolist()
        [1, 0, 1]
        """
        leaves = torch.arange(self.num_ids, device=self.device).repeat_interleave(self.first_item(-1).diff())
        ids = torch.full((self.num_items,), -1, device=self.device)
        return ids.scatter_(0, self.items_in_order, leaves)

    def items_of_ids(
        self, leaves: torch.LongTensor, *, allowed: torch.BoolTensor | None = None, width: int | None = None
    ) -> tuple[torch.LongTensor, torch.LongTensor]:
        """
        The items of some ids `(batch_size, n)`, -1 for none, one id after the other.

        - `allowed` `(batch_size or 1, num_items)`: items that may be listed; `None` for all. With unique ids nothing
          is left out: an id that is closed is no result of a search.
        - `width`: length of the lists; further items are left out. `None` for all, and at least `n`.
        Returns item indices and the place of each one's id in `leaves`, both `(batch_size, width)`; behind them item
        -1, place 0.

        >>> catalog = Catalog(torch.tensor([[1, 0], [0, 2], [1, 0], [1, 1]]), codebook_size=3)
        >>> items, places = catalog.items_of_ids(torch.tensor([[1, 0, -1], [2, -1, -1]]))
        >>> items.tolist(), places.tolist()
        ([[0, 2, 1], [3, -1, -1]], [[0, 0, 1], [0, 0, 0]])
        """
        if self.is_unique:
            items = self.item_at(leaves)
            width = items.shape[1] if width is None else width
            places = torch.arange(width, device=leaves.device).expand(len(leaves), -1)
            items = torch.nn.functional.pad(items, (0, width - items.shape[1]), value=-1)
            return items, places.masked_fill(items < 0, 0)
        counts = self.id_sizes(leaves).flatten()
        if width is not None and allowed is None:
            counts = counts.clamp_max(width)
        ids, offsets = numbered(counts)
        items = self.items_in_order[self.first_item(-1)[leaves.flatten()[ids]] + offsets]
        users, places = ids // leaves.shape[1], ids % leaves.shape[1]
        if allowed is not None:
            is_allowed = allowed[users if len(allowed) > 1 else torch.zeros_like(users), items]
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

    def id_places(self, leaves: torch.LongTensor) -> tuple[torch.LongTensor, torch.BoolTensor]:
        """
        The items of ids `(batch_size, n)`, -1 for none, as a table with a row for each id, and which of its places
        are taken; both `(batch_size, n, most items of any of the ids)`, one place at least.
        """
        sizes = self.id_sizes(leaves)
        offsets = torch.arange(max(1, int(sizes.max())) if sizes.numel() else 1, device=leaves.device)
        places = self.first_item(-1)[leaves.clamp_min(0)].unsqueeze(-1) + offsets
        return self.items_in_order[places.clamp_max(len(self.items_in_order) - 1)], offsets < sizes.unsqueeze(-1)

    def id_sizes(self, leaves: torch.LongTensor) -> torch.LongTensor:
        """How many items each id has; 0 for -1."""
        return self.first_item(-1).diff()[leaves.clamp_min(0)].masked_fill(leaves < 0, 0)

    def prior_penalties(self, item_prior: torch.Tensor, prior_correction: float) -> list[torch.Tensor]:
        """
        What a prior correction subtracts in ranking from the score of each node: for each depth from 0 to
        `num_levels` `prior_correction` times the log of the sum of the priors below the nodes, `(num_nodes[depth],)`.
        Items that share an id have its prior together.

        >>> catalog = Catalog(torch.tensor([[0, 0], [0, 1], [1, 0]]), codebook_size=2)
        >>> [table.exp().tolist() for table in catalog.prior_penalties(torch.tensor([1, 1, 2]), 1.0)]
        [[1.0], [0.5, 0.5], [0.25, 0.25, 0.5]]
        """
        prior = item_prior.to(self.device).double()[self.items_in_order]
        tables = []
        for depth in range(self.num_levels + 1):
            sizes = self.first_item(depth).diff()
            node = torch.arange(len(sizes), device=self.device).repeat_interleave(sizes)
            below = torch.zeros(len(sizes), dtype=prior.dtype, device=self.device).index_add(0, node, prior)
            tables.append((prior_correction * (below.log() - prior.sum().log())).float())
        return tables


def _check_range(item_codes: torch.Tensor, codebook_size: int) -> None:
    least, most = (int(value) for value in item_codes.aminmax())
    if least < 0 or most >= codebook_size:
        raise ValueError(f"Codes must lie in [0, {codebook_size}), got values from {least} to {most}.")


def _code_type(codebook_size: int) -> torch.dtype:
    """The smallest integer type that holds all codes."""
    return torch.uint8 if codebook_size <= 1 << 8 else torch.int16 if codebook_size <= 1 << 15 else torch.int32


def _with_end(starts: torch.Tensor, end: int) -> torch.Tensor:
    return torch.nn.functional.pad(starts, (0, 1), value=end)


def _sorted_columns(
    item_codes: torch.Tensor, codebook_size: int, *, order: torch.LongTensor | None = None
) -> tuple[torch.LongTensor, Iterator[torch.Tensor]]:
    """
    Items in the order of their codes, equal ones in that of `order`, and their codes in this order, level by level:
    one sort by an int64 key, or, where a row does not fit into one, a stable sort per group of levels, the last group
    first. The codes of one key are read out of the sorted keys: to gather millions of rows takes longer than the sort.
    """
    num_bits = max(1, (codebook_size - 1).bit_length())
    num_levels, code_type = item_codes.shape[1], _code_type(codebook_size)
    levels_per_key = max(1, MAX_KEY_BITS // num_bits)
    for stop in range(num_levels, 0, -levels_per_key):
        key = torch.zeros(len(item_codes), dtype=torch.long, device=item_codes.device)
        for part, codes in zip(key.split(ROWS_AT_A_TIME), item_codes.split(ROWS_AT_A_TIME), strict=True):
            for level in range(max(0, stop - levels_per_key), stop):
                part.bitwise_left_shift_(num_bits).bitwise_or_(codes[:, level])
        if order is not None:
            key = key[order]  # sorted by the groups behind it; the sort below is stable, so these break its ties
        key, places = key.sort(stable=True)
        order = places if order is None else order[places]
    if num_levels > levels_per_key:
        return order, (item_codes[:, level].to(code_type)[order] for level in range(num_levels))
    shifts = range(num_bits * (num_levels - 1), -1, -num_bits)
    return order, (_bits_of(key, shift, num_bits, code_type) for shift in shifts)


def _bits_of(keys: torch.LongTensor, shift: int, num_bits: int, dtype: torch.dtype) -> torch.Tensor:
    """`num_bits` bits of each key, from bit `shift` on."""
    found = torch.empty(len(keys), dtype=dtype, device=keys.device)
    for part, key in zip(found.split(ROWS_AT_A_TIME), keys.split(ROWS_AT_A_TIME), strict=True):
        part.copy_((key >> shift).bitwise_and_((1 << num_bits) - 1))
    return found


class CatalogMixin(LiveItemsMixin, CheckpointMixin, ItemTokensMixin):
    """
    The semantic-ID table of a model: a buffer `item_codes` in its checkpoint, checked on loading, and the trie over
    it. Items may share a semantic ID: a model gives them one score, and lists them next to each other, those first
    that occur more often in the training data, where a buffer `item_counts` says so (see `set_item_counts`).

    A model calls `register_catalog()` in its `__init__`, before `post_init()`.
    """

    def register_catalog(self) -> None:
        """Reserve the buffer; its content comes from `set_catalog` or from the checkpoint."""
        codes = torch.zeros(self.config.num_items, self.config.num_levels, dtype=torch.int16)
        self.register_buffer("item_codes", codes)
        self.register_buffer("item_counts", torch.zeros(self.config.num_items, dtype=torch.int32))
        self._catalog: Catalog | None = None
        self._item_order: torch.LongTensor | None = None

    def _finish_loading(self, source, where) -> None:
        super()._finish_loading(source, where)
        self.check_catalog()

    def _load_from_state_dict(self, *args, **kwargs):
        self._catalog = self._item_order = None  # other codes may come in, by `load_state_dict` too
        super()._load_from_state_dict(*args, **kwargs)

    @property
    def catalog(self) -> Catalog:
        """[`Catalog`]: the trie over the codes of open items, built at first use, again after a change of device."""
        if self._catalog is None or self._catalog.device != self.item_codes.device:
            order, is_open = self.item_order, self.open_items
            if is_open is not None:
                order = is_open.nonzero()[:, 0] if order is None else order[is_open[order]]
            self._catalog = Catalog(self.item_codes, self.config.codebook_size, item_order=order)
        return self._catalog

    @property
    def item_order(self) -> torch.LongTensor | None:
        """`torch.LongTensor` of shape `(num_items,)`: by counts, equal ones ascending; `None` without counts."""
        if self._item_order is None and bool(self.item_counts.any()):
            self._item_order = self.item_counts.argsort(descending=True, stable=True)
        if self._item_order is not None:
            self._item_order = self._item_order.to(self.item_codes.device)
        return self._item_order

    def set_item_counts(self, counts: torch.Tensor) -> None:
        """
        Write down how often each item occurs in the training data; of items that share an id, frequent ones stand
        first. ACERec corrects its alignment by them too.

        Args:
            counts (`torch.Tensor` of shape `(num_items,)`): Whole numbers from 0.
        """
        if tuple(counts.shape) != (self.config.num_items,) or bool((counts < 0).any()):
            raise ValueError(
                f"`counts` must hold a number from 0 for each of the {self.config.num_items} items, got shape "
                f"{tuple(counts.shape)}."
            )
        self.item_counts.copy_(counts)
        self._catalog = self._item_order = None

    def set_catalog(self, item_codes) -> None:
        """
        Write the semantic-ID table into the model and its fingerprint into the config.

        Args:
            item_codes (`torch.Tensor` or `np.ndarray` of shape `(num_items, num_levels)`):
                Codes in `[0, codebook_size)`, as in `SemanticIds.codes`. Items that share all of them are the same to
                the model; a collision policy other than `"keep"` leaves none.

        Raises:
            ValueError: If the shape differs from the config's or a code is out of range.
        """
        if not isinstance(item_codes, torch.Tensor):
            item_codes = torch.tensor(item_codes)
        wanted = (self.config.num_items, self.config.num_levels)
        if item_codes.is_floating_point():
            raise ValueError(f"`item_codes` must be integers, got {item_codes.dtype}.")
        if tuple(item_codes.shape) != wanted:
            raise ValueError(
                f"`item_codes` must have shape (num_items, num_levels) = {wanted}, got {tuple(item_codes.shape)}."
            )
        _check_range(item_codes, self.config.codebook_size)
        self._catalog = self._item_order = None
        self.item_codes.copy_(item_codes)
        self.config.catalog_fingerprint = catalog_fingerprint(item_codes)

    def check_catalog(self) -> None:
        """
        Compare the semantic-ID table with the fingerprint in the config. Raises `ValueError` if they differ, as they
        do when the checkpoint came without `item_codes`.
        """
        if self.item_codes.device.type == "meta":
            return
        found = catalog_fingerprint(self.item_codes)
        if found != self.config.catalog_fingerprint:
            raise ValueError(
                f"The semantic-ID table `item_codes` of the checkpoint (fingerprint {found}) is not the one that "
                f"config.json records (`catalog_fingerprint` {self.config.catalog_fingerprint}): the weights "
                "file lacks it, is damaged or belongs to another model. Save the model again with `save_pretrained`, "
                "or call `set_catalog` before saving."
            )

    def semantic_id_tokens(self, item_tokens: torch.LongTensor) -> torch.LongTensor:
        """Code tokens of items. Returns `(..., num_levels)`: their semantic IDs as tokens."""
        return self.code_tokens(item_tokens - self.config.first_item_token)

    def code_tokens(self, items: torch.LongTensor | None = None) -> torch.LongTensor:
        """The same of item indices, from 0; `None` for all items."""
        codes = (self.item_codes if items is None else self.item_codes[items]).long()
        levels = torch.arange(self.config.num_levels, device=codes.device)
        return codes + self.config.first_code_token + levels * self.config.codebook_size
