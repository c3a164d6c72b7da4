"""
Mergers: the embeddings of an item's codes in, a few tokens out that stand for the item in a history.

All return `(num_items, num_merged_tokens, d_model)`. A model merges each distinct item of a batch once, however often
it occurs.
"""

import torch
from torch import nn
from transformers import initialization as init

from .genrec_row_attention import attend_to_rows


class ItemVector(nn.Module):
    """
    One vector of an item, `u + MLP(u)` of the normalised pooled embeddings `u` of its codes.

    It makes the queries of the attentive merger, is what an intent token starts as and what the alignment looks for.

    Args:
        config ([`ACERecConfig`]): Sizes.
    """

    def __init__(self, config):
        super().__init__()
        self.norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.mlp = _mlp(config.d_model, config.d_model, config.d_model)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """
        Args:
            pooled (`torch.Tensor` of shape `(num_items, d_model)`): Mean or maximum of the code embeddings.

        Returns:
            `torch.Tensor`, same shape.
        """
        unit = self.norm(pooled)
        return unit + self.mlp(unit)


class AttentiveMerger(nn.Module):
    """
    Queries made from the item itself attend to its codes: one layer, residual, with a feed-forward layer behind it.

    Codes are read with an embedding of their level and normalised. The projections of keys and values are applied to
    the few queries and to the few results instead of to the many codes, which is the same sum in another order.

    Args:
        config ([`ACERecConfig`]): Sizes.

    Source: the attentive token merger of ACERec (https://huggingface.co/papers/2602.13573); residuals, norms and the
        inner sizes are ours.
    """

    def __init__(self, config):
        super().__init__()
        width, self.num_heads = config.d_model, config.num_heads
        self.num_merged_tokens = config.num_merged_tokens
        self.level_embedding = nn.Parameter(torch.zeros(config.num_levels, width))
        self.code_norm = nn.LayerNorm(width, eps=config.layer_norm_epsilon)
        self.queries = nn.Linear(width, config.num_merged_tokens * width)
        self.query_norm = nn.LayerNorm(width, eps=config.layer_norm_epsilon)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=config.layer_norm_epsilon)
        self.mlp = _mlp(width, width, width)

    def forward(self, table: torch.Tensor, places: torch.LongTensor, vectors: torch.Tensor) -> torch.Tensor:
        """
        Args:
            table (`torch.Tensor` of shape `(num_rows, d_model)`): Code embeddings as `normed` returns them.
            places (`torch.LongTensor` of shape `(num_items, num_levels)`): Which rows of `table` each item has.
            vectors (`torch.Tensor` of shape `(num_items, d_model)`): The items' vectors.

        Returns:
            `torch.Tensor` of shape `(num_items, num_merged_tokens, d_model)`
        """
        queries = self.queries(vectors).view(len(vectors), self.num_merged_tokens, -1)
        merged = queries + self.output(self._attend(self.query_norm(queries), table, places))
        return merged + self.mlp(self.mlp_norm(merged))

    def normed(self, rows: torch.Tensor, levels: torch.Tensor | slice) -> torch.Tensor:
        """
        Code embeddings as the attention reads them.

        Args:
            rows (`torch.Tensor` of shape `(..., d_model)`): Code embeddings.
            levels (`torch.LongTensor` or `slice`): Level of each, something that indexes `num_levels` rows and
                broadcasts to `rows` without its last axis.

        Returns:
            `torch.Tensor`, same shape as `rows`.
        """
        return self.code_norm(rows + self.level_embedding[levels])

    def _attend(self, queries, table, places) -> torch.Tensor:
        """Multi-head attention of `queries` to the items' rows, `(num_items, num_merged_tokens, d_model)`."""
        shape, num_heads = queries.shape, self.num_heads
        keys = self.key.weight.unflatten(0, (num_heads, -1))  # (num_heads, head_width, d_model)
        values = self.value.weight.unflatten(0, (num_heads, -1))
        heads = queries.flatten(0, 1).unflatten(1, (num_heads, -1)).transpose(0, 1)
        heads = torch.bmm(heads * heads.shape[-1] ** -0.5, keys)  # (num_heads, num_items * num_merged_tokens, d_model)
        heads = heads.unflatten(1, shape[:2]).transpose(0, 1).flatten(1, 2)
        mixed = attend_to_rows(heads, table, places)
        mixed = mixed.unflatten(1, (num_heads, -1)).transpose(0, 1).flatten(1, 2)
        return torch.bmm(mixed, values.transpose(1, 2)).transpose(0, 1).reshape(shape)


class GroupMerger(nn.Module):
    """
    Neighbouring codes together: their mean, a convolution whose kernel is as wide as its stride, or an MLP over them.

    Where `num_merged_tokens` does not divide `num_levels` the groups differ in size by one.

    Args:
        config ([`ACERecConfig`]): With `merger` `"mean"`, `"conv"` or `"mlp"`.

    Source: ablations of ACERec (https://huggingface.co/papers/2602.13573); the inner forms are ours.
    """

    def __init__(self, config):
        super().__init__()
        self.num_merged_tokens, width = config.num_merged_tokens, config.d_model
        group = -(-config.num_levels // config.num_merged_tokens)
        self.transform: nn.Module | None = None
        if config.merger == "conv":
            self.transform = nn.Linear(group * width, width)
        elif config.merger == "mlp":
            self.transform = _mlp(group * width, width, width)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """
        Args:
            rows (`torch.Tensor` of shape `(num_items, num_levels, d_model)`): Code embeddings.

        Returns:
            `torch.Tensor` of shape `(num_items, num_merged_tokens, d_model)`
        """
        grouped, is_code = level_groups(rows, self.num_merged_tokens)
        if self.transform is None:
            return grouped.sum(2) / is_code.sum(1, keepdim=True)
        return self.transform(grouped.flatten(2))


class Reconstruction(nn.Module):
    """
    Rebuilds the embeddings of an item's codes from its merged tokens, each token those of one group of codes.

    Args:
        config ([`ACERecConfig`]): Sizes.

    Source: the second version of ACERec (https://huggingface.co/papers/2602.13573); the decoder's inner form is ours.
    """

    def __init__(self, config):
        super().__init__()
        group = -(-config.num_levels // config.num_merged_tokens)
        self.decoder = _mlp(config.d_model, -(-config.d_model // 2), group * config.d_model)

    def forward(self, merged: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """
        One minus the mean cosine between an item's code embeddings and the rebuilt ones.

        Args:
            merged (`torch.Tensor` of shape `(num_items, num_merged_tokens, d_model)`): Tokens of items.
            rows (`torch.Tensor` of shape `(num_items, num_levels, d_model)`):
                Their code embeddings. No gradient goes into them: they are not to become easy to rebuild.

        Returns:
            `torch.Tensor`: a scalar in [0, 2], the mean over items, float32.
        """
        rows, is_code = level_groups(rows.detach(), merged.shape[1])
        rebuilt = self.decoder(merged).view(rows.shape)
        rows = nn.functional.normalize(rows.float(), dim=-1).to(rebuilt.dtype)
        lengths = torch.linalg.vector_norm(rebuilt, dim=-1, dtype=torch.float32).clamp_min(1e-8)
        cosines = (rebuilt * rows).sum(-1, dtype=torch.float32) / lengths
        return 1 - cosines.sum() / (len(rows) * is_code.sum())  # the filling of small groups is 0 and so its cosines


def level_groups(rows: torch.Tensor, num_groups: int) -> tuple[torch.Tensor, torch.BoolTensor]:
    """
    Levels in groups of neighbours of almost equal size.

    Args:
        rows (`torch.Tensor` of shape `(num_items, num_levels, width)`): Something for each level.
        num_groups (`int`): Number of groups, at most `num_levels`.

    Returns:
        `tuple[torch.Tensor, torch.BoolTensor]`: `(num_items, num_groups, group_size, width)` with zeros at the end of
        the smaller groups, and which places are taken, `(num_groups, group_size)`.

    Example:

    ```python
    >>> groups, is_level = level_groups(torch.tensor([[[1.0], [2.0], [3.0], [4.0], [5.0]]]), 2)
    >>> groups.squeeze(-1).tolist(), is_level.tolist()
    ([[[1.0, 2.0, 0.0], [3.0, 4.0, 5.0]]], [[True, True, False], [True, True, True]])

    ```
    """
    num_levels = rows.shape[1]
    bounds = torch.arange(num_groups + 1, device=rows.device) * num_levels // num_groups
    levels = bounds[:-1, None] + torch.arange(-(-num_levels // num_groups), device=rows.device)
    is_level = levels < bounds[1:, None]
    if num_levels % num_groups == 0:
        return rows.unflatten(1, levels.shape), is_level
    rows = nn.functional.pad(rows, (0, 0, 0, 1))
    levels = torch.where(is_level, levels, num_levels)
    return rows.index_select(1, levels.flatten()).unflatten(1, levels.shape), is_level


def init_merger(module: nn.Module, *, std: float) -> None:
    """
    Initialise what `PreTrainedModel` does not know of.

    Args:
        module (`nn.Module`): Any module of a model.
        std (`float`): Standard deviation.
    """
    if isinstance(module, AttentiveMerger):
        init.normal_(module.level_embedding, mean=0.0, std=std)


def _mlp(num_inputs: int, num_inner: int, num_outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(num_inputs, num_inner), nn.GELU(approximate="tanh"), nn.Linear(num_inner, num_outputs)
    )


__all__ = ["AttentiveMerger", "GroupMerger", "ItemVector", "Reconstruction", "init_merger", "level_groups"]
