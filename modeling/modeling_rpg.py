"""
RPG, and what it shares with ACERec: all codes of the next item predicted at once, item tokens in, a loss or
log-probabilities out.

RPG reads an item as the mean of its code embeddings, with GPT-2 blocks and one head per level of a long semantic ID.
A model of the family says how items become tokens of the encoder (`_merge`) and how a state is read (`_encode`). The
token table's rows for codes, the heads, the loss and the log-probabilities of codes are the same for all.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init

from .configuration_rpg import RPGConfig
from .genrec_catalog import CatalogMixin
from .genrec_dense import ItemTable, ItemTableMixin, TwoScores
from .genrec_encoder import HistoryPreTrainedModel, PackedHistories
from .genrec_parallel import code_loss, item_scores
from .genrec_rank_codes import CodeRankingMixin
from .genrec_recommend import evaluation_mode


ITEMS_STEP = 64


@dataclass
class MergedItems:
    """Items as the encoder reads them."""

    tokens: torch.Tensor  # (num_items, tokens_per_item, d_model)
    vectors: torch.Tensor | None = None  # (num_items, d_model)
    code_tokens: torch.LongTensor | None = None  # (num_items, num_levels)


class CodeHeads(nn.Module):
    """`g_j(h) = h + SiLU(W_j h + b_j)`, one `W_j` and `b_j` per level or one for all. `W` starts at zero."""

    def __init__(self, config):
        super().__init__()
        num_heads = config.num_levels if config.projection == "separate" else 1
        self.weight = nn.Parameter(torch.zeros(num_heads, config.d_model, config.d_model))
        self.bias = nn.Parameter(torch.zeros(num_heads, config.d_model))


class ParallelPreTrainedModel(ItemTableMixin, CodeRankingMixin, CatalogMixin, HistoryPreTrainedModel):
    """
    A model that predicts all codes of an item at once.

    It supplies `_merge(code_tokens)`: how items, given as tokens of their codes `(num_items, num_levels)`, enter the
    encoder, as [`MergedItems`].
    """

    _merge: Callable[[torch.LongTensor], MergedItems]
    _predicts = "all codes of an item at once"

    def __init__(self, config):
        super().__init__(config)
        self.heads = CodeHeads(config) if config.projection != "none" else None

    def _finish_init(self) -> None:
        self.register_item_table()
        self.register_catalog()
        super()._finish_init()

    @torch.no_grad()
    def _init_weights(self, module):
        """GPT-2's initialisation; heads start as `h + SiLU(b)`."""
        super()._init_weights(module)
        if isinstance(module, CodeHeads):
            init.zeros_(module.weight)
            init.uniform_(module.bias, -(self.config.d_model**-0.5), self.config.d_model**-0.5)
        elif isinstance(module, ItemTable):
            module.init_weights(self.config.initializer_range)

    def code_embeddings(self) -> torch.Tensor:
        """The rows of the token table that stand for codes, `(num_levels, codebook_size, d_model)`: a view."""
        config = self.config
        rows = self.token_embeddings.weight[config.first_code_token :]
        return rows.view(config.num_levels, config.codebook_size, config.d_model)

    # --- what a model says of itself -----------------------------------------------------------------------------

    def _merge_items(self, tokens: torch.LongTensor) -> MergedItems:
        """Items, given as tokens `(num_items,)`, as they enter the encoder: their codes, and what the table adds."""
        merged = self._merge(self._code_tokens(tokens))
        if self.item_table is not None and (self.config.dense_rows or self.config.dense_text_dim):
            items = tokens - self.config.first_item_token  # below 0 for the user token
            own = self.item_table(items.clamp_min(0), None).masked_fill(items.unsqueeze(1) < 0, 0)
            merged.tokens = merged.tokens + own.unsqueeze(1)
        return merged

    def code_vectors(self, items: torch.LongTensor | None = None) -> torch.Tensor:
        """The part of the codes in the vectors of `items` `(n,)`, `None` for all: the mean of their embeddings."""
        return nn.functional.embedding_bag(self.code_tokens(items), self.token_embeddings.weight, mode="mean")

    def _merged_numbers(self) -> int:
        """How many numbers merging an item takes, beside the tokens of its codes."""
        return self.config.d_model

    def _encode(self, merged: MergedItems, places: torch.LongTensor, histories: PackedHistories, anchors=None):
        """States `(num_anchors, d_model)`; `places` says which of the merged items each packed one is."""
        return self.encoder(merged.tokens.index_select(0, places), histories, anchors=anchors).squeeze(1)

    def _other_losses(self, merged, states, targets, places) -> torch.Tensor | float:
        """What training adds to the prediction loss, summed over targets; `places` are those of the targets."""
        return 0.0

    def _code_tokens(self, tokens: torch.LongTensor) -> torch.LongTensor:
        """Tokens of the codes of items `(n, num_levels)`; the user token all along for the user token."""
        first = self.config.first_item_token
        code_tokens = self.code_tokens((tokens - first).clamp_min(0))
        return code_tokens.masked_fill((tokens < first).unsqueeze(1), self.config.user_token_id)

    # --- predictions ---------------------------------------------------------------------------------------------

    def code_log_probs(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> torch.FloatTensor:
        """
        Log-probability of every code at every level of the item that follows each history, `(batch_size, num_levels,
        codebook_size)`, float32. Levels are independent: the log-probability of an item is the sum over its codes.

        Args: see [`ItemTokensMixin.is_item`].
        """
        return self._code_log_probs(self._last_states(input_ids, attention_mask))

    def _last_states(self, input_ids, attention_mask) -> torch.Tensor:
        """States behind the histories `(batch_size, d_model)`."""
        if not len(input_ids):
            return self.token_embeddings.weight.new_zeros(0, self.config.d_model)
        histories = self._pack(input_ids, self._present(input_ids, attention_mask))
        distinct, places = histories.tokens.unique(return_inverse=True)
        return self._encode(self._merge_items(distinct), places, histories)

    def _code_log_probs(self, states: torch.Tensor) -> torch.FloatTensor:
        outputs = states.unsqueeze(0)  # (num_heads or 1, batch_size, d_model)
        if self.heads is not None:
            inner = torch.matmul(outputs, self.heads.weight.transpose(1, 2)) + self.heads.bias.unsqueeze(1)
            outputs = outputs + nn.functional.silu(inner)
        with torch.autocast(states.device.type, enabled=False):
            outputs, table = nn.functional.normalize(outputs.float(), dim=-1), self.code_embeddings().float()
            lengths = torch.linalg.vector_norm(table, dim=-1).clamp_min(1e-12) * self.config.temperature
            logits = (torch.matmul(outputs, table.transpose(1, 2)) / lengths.unsqueeze(1)).transpose(0, 1)
            return logits.log_softmax(-1)

    def _two_log_probs(self, input_ids, attention_mask) -> tuple[torch.FloatTensor, torch.FloatTensor]:
        states = self._last_states(input_ids, attention_mask)
        return self._code_log_probs(states), self.log_probs_of_items(states)

    @torch.no_grad()
    def score_both(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        *,
        allowed: torch.BoolTensor | None = None,
        **search,
    ) -> TwoScores:
        """
        See [`ItemTableMixin`]: of all items.

        Args:
            input_ids: Item tokens `(batch_size, history_length)`, see [`ItemTokensMixin.is_item`].
            attention_mask: 1 at items that count; `None` for all.
            allowed (`torch.BoolTensor` of shape `(batch_size or 1, num_items)`, *optional*): Others have `-inf`.
            **search: Not used: nothing is searched for.
        """
        with evaluation_mode(self):
            log_probs, dense = self._two_log_probs(input_ids, attention_mask)
        generated = item_scores(log_probs, self.item_codes)
        return TwoScores(generated if allowed is None else generated.masked_fill(~allowed, -float("inf")), dense)

    def history_bytes(self, history_length: int) -> int:
        """
        What `code_log_probs` takes per user, for the size of a chunk of users: one block of the encoder with its
        attention scores, what merging an item takes, and outputs and logits of all levels.
        """
        config, size = self.config, self.token_embeddings.weight.dtype.itemsize
        num_items = min(max(1, history_length), config.max_history_length)
        merging = num_items * (3 * 8 * config.num_levels + size * self._merged_numbers())
        outputs = config.num_levels * (2 * config.d_model * (size + 4) + 3 * 4 * config.codebook_size)
        return self._encoder_bytes(num_items) + merging + outputs

    def _loss(self, histories: PackedHistories, targets: torch.LongTensor, anchors: torch.LongTensor) -> torch.Tensor:
        """Cross-entropy, a mean over levels, with in training mode what a model adds to it."""
        distinct, places = torch.cat([histories.tokens, targets]).unique(return_inverse=True)
        places, target_places = places.split([len(histories.tokens), len(targets)])
        merged = self._merge_items(_rounded_up(distinct))
        states = self._encode(merged, places, histories, anchors)
        items = targets - self.config.first_item_token
        codes = self.item_codes[items].long()
        weight, bias = (None, None) if self.heads is None else (self.heads.weight, self.heads.bias)
        loss = code_loss(states, weight, bias, self.code_embeddings(), codes, temperature=self.config.temperature)
        if not self.training:
            return loss
        if self.item_table is not None:
            loss = loss + self.config.dense_loss_weight * self.dense_loss(states, items)
        return loss + self._other_losses(merged, states, targets, target_places)


def _rounded_up(items: torch.Tensor) -> torch.Tensor:
    """
    Some items again at the end, so that there is a multiple of `ITEMS_STEP` of them (fewer are left as they are).

    On a CPU each shape of a matrix product is compiled when it is first met and few are remembered; every batch having
    another number of distinct items costs ACERec a twentieth of its time.
    """
    if len(items) < ITEMS_STEP:
        return items
    return torch.cat([items, items[: -len(items) % ITEMS_STEP]])


class RPGForItemGeneration(ParallelPreTrainedModel):
    """
    Item tokens in, all codes of the next item at once: the log-probability of an item is the sum over its codes.

    Build it from a config, then give it the catalog with `set_catalog`; items may share their codes. `recommend()`
    returns ranked items.

    Args:
        config ([`RPGConfig`]): Sizes, token layout and options.

    Source: Hou et al. 2025 (https://huggingface.co/papers/2506.05781).

    Example:

    ```python
    >>> config = RPGConfig(num_items=3, num_levels=2, codebook_size=4, d_model=8, d_ff=16)
    >>> model = RPGForItemGeneration(config).eval()
    >>> model.set_catalog(torch.tensor([[0, 1], [0, 2], [3, 0]]))
    >>> history = torch.tensor([[config.first_item_token, config.first_item_token + 2]])
    >>> model.code_log_probs(history).shape
    torch.Size([1, 2, 4])
    >>> sorted((model.recommend(history, top_k=3).item_tokens - config.first_item_token)[0].tolist())
    [0, 1, 2]

    ```
    """

    config: RPGConfig
    config_class = RPGConfig
    _auto_class = "AutoModel"  # saving takes the code along

    def __init__(self, config: RPGConfig):
        super().__init__(config)
        self._finish_init()

    def _merge(self, code_tokens: torch.LongTensor) -> MergedItems:
        vectors = nn.functional.embedding_bag(code_tokens, self.token_embeddings.weight, mode=self.config.item_pooling)
        return MergedItems(tokens=vectors.unsqueeze(1))


__all__ = ["CodeHeads", "MergedItems", "ParallelPreTrainedModel", "RPGForItemGeneration"]
