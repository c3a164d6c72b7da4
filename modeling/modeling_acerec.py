"""ACERec: items enter as a few merged tokens with an intent token behind them; heads and scorer are RPG's."""

from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from .configuration_acerec import ACERecConfig
from .genrec_block_encoder import BlockEncoder
from .genrec_merger import AttentiveMerger, GroupMerger, ItemVector, Reconstruction, init_merger
from .genrec_parallel import MergedItems, ParallelPreTrainedModel


logger = logging.get_logger(__name__)


MAX_REBUILT_ITEMS = 256  # of a batch, drawn at random: rebuilding all of them would cost a fifth of a training step


class ACERecForItemGeneration(ParallelPreTrainedModel):
    """
    RPG with another encoder: the codes of an item are merged into a few tokens, and predictions are read at an intent
    token behind them, which sees them and everything earlier.

    In training two losses join that of the codes: an alignment of the state with the vector of the next item against
    the other targets of the batch, corrected for popularity (`set_item_counts`), and a reconstruction of the code
    embeddings from the merged tokens. In evaluation mode the loss is that of the codes alone.

    Args:
        config ([`ACERecConfig`]): Sizes, token layout and options.

    Source: ACERec (https://huggingface.co/papers/2602.13573).

    Example:

    ```python
    >>> config = ACERecConfig(num_items=3, num_levels=4, codebook_size=5, num_merged_tokens=2, d_model=8, d_ff=16)
    >>> model = ACERecForItemGeneration(config).eval()
    >>> model.set_catalog(torch.tensor([[0, 1, 4, 2], [0, 2, 3, 3], [3, 0, 1, 1]]))
    >>> model.set_item_counts(torch.tensor([7, 0, 2]))
    >>> history = torch.tensor([[config.first_item_token, config.first_item_token + 2]])
    >>> model.code_log_probs(history).shape
    torch.Size([1, 4, 5])

    ```
    """

    config: ACERecConfig
    config_class = ACERecConfig
    item_counts: torch.Tensor

    def __init__(self, config: ACERecConfig):
        super().__init__(config)
        self.item_vector: Any = None
        if config.anchor == "intent" or config.merger == "attentive" or config.alignment_weight:
            self.item_vector = ItemVector(config)
        self.merger: Any = AttentiveMerger(config) if config.merger == "attentive" else GroupMerger(config)
        self.anchor_mlp: Any = None
        if config.anchor == "mlp":
            width = config.d_model
            inner = nn.Linear(config.num_merged_tokens * width, width)
            self.anchor_mlp = nn.Sequential(inner, nn.GELU(approximate="tanh"), nn.Linear(width, width))
        self.reconstruction: Any = Reconstruction(config) if config.reconstruction_weight else None
        self.register_buffer("item_counts", torch.zeros(config.num_items, dtype=torch.int32))
        self._finish_init()

    def _make_encoder(self) -> BlockEncoder:
        config = self.config
        return BlockEncoder(config, tokens_per_item=config.tokens_per_item, has_intent=config.anchor == "intent")

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        init_merger(module, std=self.config.initializer_range)

    def set_item_counts(self, counts: torch.Tensor) -> None:
        """
        Write down how often each item occurs in the training data, for the popularity correction of the alignment.

        Args:
            counts (`torch.Tensor` of shape `(num_items,)`): Whole numbers from 0.

        Raises:
            ValueError: If the shape is another or a count is negative.
        """
        if tuple(counts.shape) != (self.config.num_items,) or bool((counts < 0).any()):
            raise ValueError(
                f"`counts` must hold a number from 0 for each of the {self.config.num_items} items, got shape "
                f"{tuple(counts.shape)}."
            )
        self.item_counts.copy_(counts)

    # --- the encoder ---------------------------------------------------------------------------------------------

    def _merge(self, code_tokens: torch.LongTensor) -> MergedItems:
        weight, config = self.token_embeddings.weight, self.config
        vectors = None
        if self.item_vector is not None:
            vectors = self.item_vector(nn.functional.embedding_bag(code_tokens, weight, mode=config.item_pooling))
        if config.merger == "attentive":
            merged = self.merger(*self._normed_rows(code_tokens), vectors)
        else:
            merged = self.merger(nn.functional.embedding(code_tokens, weight))
        tokens = merged
        if config.anchor == "intent":
            tokens = torch.cat([merged, vectors.to(merged.dtype).unsqueeze(1)], dim=1)
        return MergedItems(tokens, vectors, code_tokens)

    def _normed_rows(self, code_tokens: torch.LongTensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Code embeddings as the attentive merger reads them, and which of them each item has."""
        weight, config = self.token_embeddings.weight, self.config
        levels = torch.arange(config.num_levels, device=weight.device)
        if len(code_tokens) < config.codebook_size:
            rows = self.merger.normed(nn.functional.embedding(code_tokens, weight), levels)
            return rows.flatten(0, 1), torch.arange(code_tokens.numel(), device=levels.device).view_as(code_tokens)
        table = self.merger.normed(self.code_embeddings(), levels.unsqueeze(1)).flatten(
            0, 1
        )  # a row serves many items
        places = code_tokens - config.first_code_token
        is_user = places < 0
        if bool(is_user.any()):
            places = torch.where(is_user, len(table) + levels, places)
            table = torch.cat([table, self.merger.normed(weight[config.user_token_id], levels)])
        return table, places

    def _merged_numbers(self) -> int:
        config = self.config
        if config.merger == "attentive":  # queries, and what each head of each of them reads
            return config.num_merged_tokens * config.d_model * (4 + 3 * config.num_heads)
        return config.d_model * (2 * config.num_levels + 3 * config.num_merged_tokens)

    def _encode(self, merged, places, histories, anchors=None):
        anchor, num_tokens = self.config.anchor, self.config.tokens_per_item
        first_read = num_tokens - 1 if anchor in ("intent", "last") else 0
        tokens = merged.tokens.index_select(0, places)
        states = self.encoder(tokens, histories, anchors=anchors, first_read=first_read)
        return self.anchor_mlp(states.flatten(1)) if anchor == "mlp" else states.mean(1)

    # --- the other losses ----------------------------------------------------------------------------------------

    def _other_losses(self, merged, states, targets, places) -> torch.Tensor | float:
        config = self.config
        loss = 0.0
        if config.alignment_weight and len(targets):
            loss = config.alignment_weight * self._alignment(merged.vectors, states, targets, places)
        if config.reconstruction_weight:
            tokens, code_tokens = merged.tokens[:, : config.num_merged_tokens], merged.code_tokens
            if len(tokens) > MAX_REBUILT_ITEMS:
                chosen = torch.randperm(len(tokens), device=tokens.device)[:MAX_REBUILT_ITEMS]
                tokens, code_tokens = tokens[chosen], code_tokens[chosen]
            rows = nn.functional.embedding(code_tokens, self.token_embeddings.weight.detach())
            loss = loss + config.reconstruction_weight * len(targets) * self.reconstruction(tokens, rows)
        return loss

    def _alignment(self, vectors, states, targets, places) -> torch.Tensor:
        """
        Cross-entropy, summed over targets, of finding the vector of each target among those of all targets of the
        batch. Other targets count as often as they occur; other occurrences of a position's own target do not.
        """
        items, index, occurrences = targets.unique(return_inverse=True, return_counts=True)
        first_place = torch.empty_like(items).scatter_(0, index, places)  # equal targets have equal places
        vectors = nn.functional.normalize(vectors[first_place], dim=-1)
        logits = nn.functional.normalize(states, dim=-1) @ vectors.t().to(states.dtype)
        logits = logits.float() / self.config.alignment_temperature
        logits = logits - self._popularity(items - self.config.first_item_token)
        own = logits.gather(1, index.unsqueeze(1))
        logits = (logits + occurrences.log()).scatter(1, index.unsqueeze(1), own)
        return nn.functional.cross_entropy(logits, index, reduction="sum")

    def _popularity(self, items) -> torch.Tensor:
        """What the logits of items lose: `popularity_correction` for the most popular one, 0 for counts of 0 and 1."""
        if self.config.popularity_correction and not bool(self.item_counts.any()):
            logger.warning_once(
                "`popularity_correction` has no effect: tell the model how often items occur with `set_item_counts`."
            )
        logs = self.item_counts.clamp_min(1).log()
        return self.config.popularity_correction * logs[items] / logs.max().clamp_min(1e-6)


__all__ = ["ACERecForItemGeneration"]
