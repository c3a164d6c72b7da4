"""
The catalog: every item's semantic ID, and the trie over them, as tensors.

Codes `(num_items, num_levels)` come in; prefixes, their legal continuations and items go out. The trie is a sorted
table: items ordered by their codes, one node per distinct prefix, the children of a node next to each other. A node
at depth `d` is a number below `num_nodes[d]`, numbered in the order of the codes, so the items below it are one range
of the order.
"""

import hashlib

import torch


# a dense (nodes x codes) table of children is built for levels up to this many entries, a sparse one above
MAX_DENSE_ENTRIES = 1 << 25


def catalog_fingerprint(item_codes: torch.Tensor) -> str:
    """
    Fingerprint of a semantic-ID table: the first 16 hex digits of the sha256 of its int16 codes and its shape.

    Args:
        item_codes (`torch.Tensor` of shape `(num_items, num_levels)`): Codes, any integer type.

    Returns:
        `str`: 16 hexadecimal digits.

    Example:

    ```python
    >>> catalog_fingerprint(torch.tensor([[0, 1], [2, 0]]))
    '3d9c5bb3f8a2b241'

    ```
    """
    codes = item_codes.detach().to(device="cpu", dtype=torch.int16).contiguous().numpy().astype("<i2")
    return hashlib.sha256(codes.tobytes() + str(tuple(codes.shape)).encode()).hexdigest()[:16]


class Catalog:
    """
    Trie over the semantic IDs of all items; vectorised, stateless, on the device of the codes.

    Args:
        item_codes (`torch.Tensor` of shape `(num_items, num_levels)`):
            Code of each item at each level, in `[0, codebook_size)`. All rows must differ.
        codebook_size (`int`):
            Number of codes per level.
        max_dense_entries (`int`, defaults to 2**25):
            Levels whose table of children has at most this many entries are kept dense, others sparse.

    Raises:
        ValueError: If two items share their codes or a code is out of range.

    Example:

    ```python
    >>> catalog = Catalog(torch.tensor([[1, 0], [0, 2], [1, 1]]), codebook_size=3)
    >>> catalog.child_mask(0, torch.tensor([0])).tolist()
    [[True, True, False]]
    >>> catalog.item_of(torch.tensor([[0, 2], [1, 1], [2, 2]])).tolist()
    [1, 2, -1]

    ```
    """

    def __init__(self, item_codes: torch.Tensor, codebook_size: int, *, max_dense_entries: int = MAX_DENSE_ENTRIES):
        if item_codes.ndim != 2 or item_codes.numel() == 0:
            raise ValueError(f"`item_codes` must have shape (num_items, num_levels), got {tuple(item_codes.shape)}.")
        codes = item_codes.long()
        if int(codes.min()) < 0 or int(codes.max()) >= codebook_size:
            raise ValueError(
                f"Codes must lie in [0, {codebook_size}), got values from {int(codes.min())} to {int(codes.max())}."
            )
        self.codebook_size = codebook_size
        self.num_items, self.num_levels = codes.shape
        self.device = codes.device
        self._build(codes, max_dense_entries)

    def _build(self, codes: torch.Tensor, max_dense_entries: int) -> None:
        K = self.codebook_size
        node = torch.zeros(self.num_items, dtype=torch.long, device=self.device)  # of each item, at the current depth
        self.num_nodes = [1]
        self._keys: list[torch.Tensor] = []  # per level: parent * K + code of each node of the next depth, ascending
        for level in range(self.num_levels):
            keys, node = torch.unique(node * K + codes[:, level], sorted=True, return_inverse=True)
            self._keys.append(keys)
            self.num_nodes.append(len(keys))
        if self.num_nodes[-1] < self.num_items:
            raise ValueError(
                f"{self.num_items - self.num_nodes[-1]} of {self.num_items} items share their semantic ID with "
                "another item. A model needs unique ids: resolve the collisions first "
                "(`SemanticIds.from_codes(..., policy=...)`)."
            )
        self.items_in_order = torch.empty_like(node)  # leaf -> item
        self.items_in_order[node] = torch.arange(self.num_items, device=self.device)
        # _first_child[level][n] .. _first_child[level][n + 1] are the children of node n
        self._first_child = [
            torch.searchsorted(keys, torch.arange(num_nodes + 1, device=self.device) * K)
            for keys, num_nodes in zip(self._keys, self.num_nodes, strict=False)
        ]
        self._dense = []
        for keys, num_nodes in zip(self._keys, self.num_nodes, strict=False):
            table = None
            if num_nodes * K <= max_dense_entries:
                table = torch.zeros(num_nodes * K, dtype=torch.bool, device=self.device)
                table[keys] = True
                table = table.view(num_nodes, K)
            self._dense.append(table)
        self._first_leaf: list[torch.Tensor] | None = None

    def first_leaf(self, depth: int) -> torch.Tensor:
        """
        Start of each node's range of leaves.

        Args:
            depth (`int`): Depth of the nodes, from 0 (the root) to `num_levels` (the leaves).

        Returns:
            `torch.LongTensor` of shape `(num_nodes[depth] + 1,)`: node `n` covers leaves `[first[n], first[n + 1])`.
        """
        if self._first_leaf is None:
            first = [torch.arange(self.num_items + 1, device=self.device)]
            for level in reversed(range(self.num_levels)):
                first.append(first[-1][self._first_child[level]])
            self._first_leaf = first[::-1]
        return self._first_leaf[depth]

    def child(self, depth: int, nodes: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """
        The node reached from each node by one code.

        Args:
            depth (`int`): Depth of `nodes`.
            nodes (`torch.LongTensor`, any shape): Nodes; -1 is no node.
            codes (`torch.LongTensor`, same shape): Codes of level `depth`; others than `[0, codebook_size)` lead
            nowhere.

        Returns:
            `torch.LongTensor`, same shape: nodes at `depth + 1`, -1 where there is none.
        """
        keys = self._keys[depth]
        wanted = nodes * self.codebook_size + codes
        found = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
        is_legal = (nodes >= 0) & (codes >= 0) & (codes < self.codebook_size) & (keys[found] == wanted)
        return torch.where(is_legal, found, -1)

    def child_mask(self, depth: int, nodes: torch.Tensor) -> torch.Tensor:
        """
        Which codes may follow each node.

        Args:
            depth (`int`): Depth of `nodes`, below `num_levels`.
            nodes (`torch.LongTensor`, any shape): Nodes; -1 is no node.

        Returns:
            `torch.BoolTensor` of shape `(*nodes.shape, codebook_size)`: all `False` for -1.
        """
        table = self._dense[depth]
        if table is not None:
            return table[nodes.clamp_min(0)] & (nodes >= 0).unsqueeze(-1)
        flat = nodes.reshape(-1)
        first = self._first_child[depth]
        start = first[flat.clamp_min(0)]
        count = torch.where(flat >= 0, first[flat.clamp_min(0) + 1] - start, 0)
        rows = torch.repeat_interleave(torch.arange(len(flat), device=self.device), count)
        within = torch.arange(len(rows), device=self.device) - torch.repeat_interleave(count.cumsum(0) - count, count)
        mask = torch.zeros(len(flat), self.codebook_size, dtype=torch.bool, device=self.device)
        mask[rows, self._keys[depth][start[rows] + within] % self.codebook_size] = True
        return mask.view(*nodes.shape, self.codebook_size)

    def allowed_nodes(self, allowed_items: torch.Tensor) -> list[torch.Tensor]:
        """
        Which nodes still lead to an allowed item, per row of a request; the other prefixes are closed.

        Args:
            allowed_items (`torch.BoolTensor` of shape `(batch_size, num_items)`): Items that may be recommended.

        Returns:
            `list[torch.BoolTensor]`: for each depth from 0 to `num_levels` a tensor `(batch_size, num_nodes[depth])`.
        """
        counts = torch.nn.functional.pad(allowed_items[:, self.items_in_order].long().cumsum(1), (1, 0))
        return [
            counts[:, first[1:]] > counts[:, first[:-1]]
            for first in (self.first_leaf(depth) for depth in range(self.num_levels + 1))
        ]

    def node_of(self, codes: torch.Tensor) -> torch.Tensor:
        """
        The node of each prefix.

        Args:
            codes (`torch.LongTensor` of shape `(..., length)`): The first `length` codes, `length` up to `num_levels`.

        Returns:
            `torch.LongTensor` of shape `(...)`: node at depth `length`, -1 if no item begins so.
        """
        node = torch.zeros(codes.shape[:-1], dtype=torch.long, device=self.device)
        for level in range(codes.shape[-1]):
            node = self.child(level, node, codes[..., level])
        return node

    def item_of(self, codes: torch.Tensor) -> torch.Tensor:
        """
        The item of each full semantic ID.

        Args:
            codes (`torch.LongTensor` of shape `(..., num_levels)`): Semantic IDs.

        Returns:
            `torch.LongTensor` of shape `(...)`: item index, -1 if no item has these codes.
        """
        leaf = self.node_of(codes)
        return torch.where(leaf >= 0, self.items_in_order[leaf.clamp_min(0)], -1)


class CatalogMixin:
    """
    The semantic-ID table of a model: a buffer `item_codes` in its checkpoint, checked on loading, and the trie over
    it.

    A model calls `register_catalog()` in its `__init__`, before `post_init()`.
    """

    def register_catalog(self) -> None:
        """Reserve the buffer; its content comes from `set_catalog` or from the checkpoint."""
        codes = torch.zeros(self.config.num_items, self.config.num_levels, dtype=torch.int16)
        self.register_buffer("item_codes", codes)
        self._catalog: Catalog | None = None

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """
        As in transformers; in addition the semantic-ID table of the checkpoint must be there and be the recorded one.

        Args:
            *args: See `PreTrainedModel.from_pretrained`.
            **kwargs: See `PreTrainedModel.from_pretrained`.

        Returns:
            The model, or the model and its loading info.

        Raises:
            ValueError: If `item_codes` is missing from the checkpoint or differs from `config.catalog_fingerprint`.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.check_catalog()
        return loaded

    def _load_from_state_dict(self, *args, **kwargs):
        self._catalog = None  # other codes may come in, by `load_state_dict` too
        super()._load_from_state_dict(*args, **kwargs)

    @property
    def catalog(self) -> Catalog:
        """[`Catalog`]: the trie over `item_codes`, built at first use and again after a change of device."""
        if self._catalog is None or self._catalog.device != self.item_codes.device:
            self._catalog = Catalog(self.item_codes, self.config.codebook_size)
        return self._catalog

    def set_catalog(self, item_codes: torch.Tensor) -> None:
        """
        Write the semantic-ID table into the model and its fingerprint into the config.

        Args:
            item_codes (`torch.Tensor` of shape `(num_items, num_levels)`): Unique codes, in `[0, codebook_size)`.

        Raises:
            ValueError: If the shape differs from the config's, a code is out of range or two items share their codes.
        """
        wanted = (self.config.num_items, self.config.num_levels)
        if item_codes.is_floating_point():
            raise ValueError(f"`item_codes` must be integers, got {item_codes.dtype}.")
        if tuple(item_codes.shape) != wanted:
            raise ValueError(
                f"`item_codes` must have shape (num_items, num_levels) = {wanted}, got {tuple(item_codes.shape)}."
            )
        self._catalog = Catalog(item_codes.to(self.item_codes.device), self.config.codebook_size)
        self.item_codes.copy_(item_codes)
        self.config.catalog_fingerprint = catalog_fingerprint(item_codes)

    def check_catalog(self) -> None:
        """
        Compare the semantic-ID table with the fingerprint in the config.

        Raises:
            ValueError: If they differ, as they do when the checkpoint came without `item_codes`.
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

    def is_item(self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None) -> torch.BoolTensor:
        """
        Which positions hold an item that counts.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, history_length)`): Tokens.
            attention_mask (`torch.Tensor`, same shape, *optional*): 1 at tokens that count; `None` for all.

        Returns:
            `torch.BoolTensor`, same shape: `False` at padding, unknown and special tokens.

        Raises:
            ValueError: If a token lies behind the last item.
        """
        config = self.config
        if input_ids.numel() and int(input_ids.max()) >= config.first_item_token + config.num_items:
            raise ValueError(
                f"`input_ids` holds token {int(input_ids.max())}; the last item token of this catalog is "
                f"{config.first_item_token + config.num_items - 1}."
            )
        is_item = input_ids >= config.first_item_token
        return is_item if attention_mask is None else is_item & attention_mask.bool()

    def semantic_id_tokens(self, item_tokens: torch.LongTensor) -> torch.LongTensor:
        """
        Code tokens of items.

        Args:
            item_tokens (`torch.LongTensor`, any shape): Item tokens.

        Returns:
            `torch.LongTensor` of shape `(..., num_levels)`: their semantic IDs as tokens.
        """
        config = self.config
        levels = torch.arange(config.num_levels, device=item_tokens.device)
        codes = self.item_codes[item_tokens - config.first_item_token].long()
        return codes + config.first_code_token + levels * config.codebook_size


__all__ = ["Catalog", "CatalogMixin", "catalog_fingerprint"]
