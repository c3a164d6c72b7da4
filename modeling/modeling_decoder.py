"""
A decoder-only model over a catalog: item tokens go in, one stream of Qwen3 blocks writes the next semantic ID.

The stream is `<user> | items of the history | latent and codes of the next item`. Training sees all targets of a user
in one pass: a target whose codes follow in the stream is read off it, any other one is a branch, tokens behind the
stream that see the history up to their target and each other. Decoding keeps the keys and values of the history once
per user; beams are branches that grow.

A latent belongs to the item that it leads to, so it stands in that item's branch only: no later position sees it, and
histories, whose latents are unknown when lists are made, hold none. Training with latents is therefore the same
computation as decoding with them.
"""

import torch
from torch import nn
from transformers import Cache, DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.models.qwen3.modeling_qwen3 import (
    Qwen3DecoderLayer,
    Qwen3RMSNorm,
    Qwen3RotaryEmbedding,
)

from .configuration_decoder import DecoderConfig
from .genrec_catalog import CatalogMixin
from .genrec_dense import DenseHeadMixin, ItemTable
from .genrec_encoder import use_byte_dropout
from .genrec_generate import CatalogGenerationMixin
from .genrec_prompt_attention import SHARED_PROMPT_ATTENTION, PromptOutput, reading
from .genrec_rank_beams import BeamRankingMixin


class StreamBlock(Qwen3DecoderLayer):
    """A block of Qwen3 with dropout on what attention and the feed-forward layer add."""

    def __init__(self, config, layer_idx: int, *, dropout: float):
        super().__init__(config, layer_idx)
        self.drop = nn.Dropout(dropout)

    def forward(self, hidden_states, attention_mask=None, **kwargs) -> torch.Tensor:
        """See `Qwen3DecoderLayer`; the keyword arguments are those of its attention."""
        mixed, _ = self.self_attn(self.input_layernorm(hidden_states), attention_mask=attention_mask, **kwargs)
        hidden_states = hidden_states + self.drop(mixed)
        return hidden_states + self.drop(self.mlp(self.post_attention_layernorm(hidden_states)))


class DecoderForItemGeneration(
    DenseHeadMixin, BeamRankingMixin, CatalogMixin, PreTrainedModel, CatalogGenerationMixin
):
    """
    Decoder-only model over a catalog: item tokens in, semantic-ID tokens out, only real items.

    Build it from a config, then give it the catalog with `set_catalog`. `generate()` is transformers' own, constrained
    by default; `recommend()` returns ranked items with the history's keys and values once per user.

    Args:
        config ([`DecoderConfig`]): Sizes and token layout.

    Source: see [`DecoderConfig`].

    Example:

    ```python
    >>> from hf_genrec.modeling.configuration_decoder import DecoderConfig
    >>> config = DecoderConfig(num_items=3, num_levels=2, codebook_size=4, d_model=8, d_ff=16, d_kv=4, num_layers=1)
    >>> model = DecoderForItemGeneration(config)
    >>> model.set_catalog(torch.tensor([[0, 1], [0, 2], [3, 0]]))
    >>> history = torch.tensor([[config.first_item_token, config.first_item_token + 2]])
    >>> sorted((model.recommend(history, top_k=3).item_tokens - config.first_item_token)[0].tolist())
    [0, 1, 2]

    ```
    """

    config: DecoderConfig
    config_class = DecoderConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _auto_class = "AutoModel"  # saving takes the code along

    def __init__(self, config: DecoderConfig):
        super().__init__(config)
        block_config = config.to_qwen3_config()
        block_config._attn_implementation = SHARED_PROMPT_ATTENTION
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.drop = nn.Dropout(config.dropout_rate)
        self.layers = nn.ModuleList(
            StreamBlock(block_config, layer, dropout=config.dropout_rate) for layer in range(config.num_layers)
        )
        self.norm = Qwen3RMSNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.rotary_emb = Qwen3RotaryEmbedding(block_config)
        self.register_item_table()
        use_byte_dropout(self)
        self.register_catalog()
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        """A normal distribution for all, of another width for embeddings."""
        super()._init_weights(module)
        if module is self:
            init.normal_(self.embed_tokens.weight, mean=0.0, std=self.config.embedding_std)
        elif isinstance(module, ItemTable):
            module.init_weights(self.config.embedding_std)

    def get_input_embeddings(self) -> nn.Embedding:
        """`nn.Embedding`: the token embeddings, which tokens are also scored by."""
        return self.embed_tokens

    # --- the stream ----------------------------------------------------------------------------------------------

    def history_embeddings(self, input_ids, attention_mask=None) -> tuple[torch.Tensor, torch.BoolTensor]:
        """
        What the stream holds before anything is written, `(batch_size, num_history_tokens, d_model)`, and which of it
        is real: the user token and the items in order, each as its codes or as one vector. Padding, unknown and
        special tokens are dropped, wherever they stand.

        Args: see [`ItemTokensMixin.is_item`].
        """
        items, is_item = self.items_in_front(input_ids, attention_mask)
        if self.item_table is not None:
            vectors = self.item_vectors(items.flatten()).unflatten(0, items.shape)
        elif self.config.history_unit == "item":
            vectors = self.code_vectors(items.flatten()).unflatten(0, items.shape)
        else:
            vectors = self.embed_tokens(self.code_tokens(items)).flatten(1, 2)
            is_item = is_item.repeat_interleave(self.config.num_levels, dim=1)
        user = self.embed_tokens.weight[self.config.user_token_id].expand(len(items), 1, -1)
        return torch.cat([user, vectors], dim=1), nn.functional.pad(is_item, (1, 0), value=True)

    def code_vectors(self, items: torch.LongTensor | None = None) -> torch.Tensor:
        """The part of the codes in the vectors of `items` `(n,)`, `None` for all: their sum over sqrt(num_levels)."""
        tokens = self.code_tokens(items)
        return nn.functional.embedding_bag(tokens, self.embed_tokens.weight, mode="sum") * self.config.num_levels**-0.5

    def _run(self, embeddings, positions, *, mask=None, cache: Cache | None = None) -> torch.Tensor:
        """Not yet normed; `positions` `(num_rows or 1, length)`, `mask` `(num_rows or 1, 1, length, length)`."""
        states, rotation = self.drop(embeddings), self.rotary_emb(embeddings, positions)
        for block in self.layers:
            states = block(states, mask, position_embeddings=rotation, past_key_values=cache)
        return states

    def encode_history(self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None) -> PromptOutput:
        """
        Run the blocks once per user over the latest `max_history_length` items: states, keys and values of the stream
        up to where the next item is written.

        Args: see [`ItemTokensMixin.is_item`].
        """
        embeddings, is_real = self.history_embeddings(*self.latest_items(input_ids, attention_mask))
        cache, length = DynamicCache(), is_real.shape[1]
        positions = torch.arange(length, device=is_real.device)
        # padding stands behind the tokens, so no token looks at it
        mask = (positions <= positions.unsqueeze(1))[None, None]
        states = self.norm(self._run(embeddings, positions.unsqueeze(0), mask=mask, cache=cache))
        layers: list = cache.layers
        return PromptOutput(
            states, is_real, tuple(layer.keys for layer in layers), tuple(layer.values for layer in layers)
        )

    def _branch_states(self, tokens: torch.LongTensor, history: PromptOutput, cache: Cache | None = None):
        """States `(num_users * group, length, d_model)` of tokens written behind histories, a user's rows adjacent."""
        num_written = 0 if cache is None else cache.get_seq_length()
        length = history.attention_mask.sum(1).repeat_interleave(len(tokens) // len(history.attention_mask))
        positions = length.unsqueeze(1) + num_written + torch.arange(tokens.shape[1], device=tokens.device)
        with reading(history):
            states = self._run(self.embed_tokens(tokens), positions, cache=cache)
        return self.norm(states)

    def _decode(self, tokens: torch.LongTensor, history: PromptOutput, past: EncoderDecoderCache | None = None):
        """
        States of `num_users * group` rows after each of their tokens. The first one is the start token, which stands
        for the end of the history: its state is there already, and `past.is_updated` says that it was asked for.
        """
        cache = None if past is None else past.self_attention_cache
        if past is not None and past.is_updated.get(0, False):
            return self._branch_states(tokens, history, cache)
        last = history.attention_mask.sum(1) - 1
        states = history.last_hidden_state[torch.arange(len(last), device=last.device), last]
        states = states.repeat_interleave(len(tokens) // len(states), dim=0).unsqueeze(1)
        if past is not None:
            past.is_updated[0] = True
        if tokens.shape[1] == 1:
            return states
        return torch.cat([states, self._branch_states(tokens[:, 1:], history, cache)], dim=1)

    def decode_states(self, tokens: torch.LongTensor, history: PromptOutput, cache) -> torch.FloatTensor:
        """
        One step of a search: states `(batch_size, num_beams, d_model)` after the last token of each beam. The
        self-attention part of `cache` has a row per beam; the history's keys and values stay in `history`.
        """
        return self._decode(tokens.reshape(-1, 1), history, cache).reshape(*tokens.shape, -1)

    def path_states(self, tokens: torch.LongTensor, history: PromptOutput) -> torch.FloatTensor:
        """States before each token of given paths `(batch_size, num_paths, num_decoding_steps)`."""
        inputs = nn.functional.pad(tokens[..., :-1], (1, 0), value=self.config.decoder_start_token_id)
        return self._decode(inputs.flatten(0, 1), history).reshape(*tokens.shape, -1)

    def score_tokens(self, states: torch.FloatTensor, start: int = 0, width: int | None = None) -> torch.FloatTensor:
        """Logits, float32, of `width` tokens (`None` for all) from `start` on."""
        end = self.config.vocab_size if width is None else start + width
        return nn.functional.linear(states, self.embed_tokens.weight[start:end]).float()

    def decoding_bytes(self, history_length: int) -> tuple[int, int]:
        """
        What decoding takes, for the size of a chunk of users: bytes per user and bytes per beam.

        Per user: keys and values of all layers, twice while they are put together, one layer with its attention
        scores. Per beam: its own keys and values (twice while beams are re-ordered), one layer with its scores of the
        history in float32 and in the precision of the weights, and the float32 candidates beside codes and nodes.
        """
        config, size = self.config, self.embed_tokens.weight.dtype.itemsize
        num_tokens = 1 + history_length * config.history_tokens_per_item
        inner = config.num_heads * config.d_kv
        layer = 3 * config.d_ff + 5 * inner + 4 * config.d_model
        per_user = num_tokens * (layer + 2 * 2 * config.num_layers * inner + config.num_heads * num_tokens)
        own = 2 * 2 * config.num_layers * inner * config.num_decoding_steps + layer
        scores = config.num_heads * (num_tokens + config.num_decoding_steps)
        vocabulary = config.vocab_size if config.normalization == "vocabulary" else config.codebook_size
        candidates = 4 * 2 * vocabulary + (4 * 4 + 3 * 8) * max(config.codebook_size, config.num_latent_tokens)
        return size * per_user, size * (own + 3 * scores) + 2 * 4 * scores + candidates

    # --- training ------------------------------------------------------------------------------------------------

    def _targets(self, input_ids, attention_mask, labels) -> tuple[torch.LongTensor, torch.LongTensor]:
        """Labelled positions moved to the front: items `(B, G)`, -1 where none, and the stream tokens before each."""
        is_target = self.is_target(input_ids, labels)
        group = max(1, int(is_target.sum(1).max()) if len(labels) else 1)
        num_tokens = 1 + self.config.history_tokens_per_item * self.is_item(input_ids, attention_mask).long().cumsum(1)
        order = (~is_target).long().argsort(dim=1, stable=True)[:, :group]
        items = (labels - self.config.first_item_token).masked_fill(~is_target, -1)
        return items.gather(1, order), num_tokens.gather(1, order)

    def _target_states(self, input_ids, attention_mask, targets, num_visible, latents=None) -> torch.Tensor:
        """
        States `(B, G, num_decoding_steps, d_model)` that each token of each target is predicted from, in one pass.

        `targets` `(B, G)` are items, `num_visible` how many tokens of the stream stand before them, `latents` what is
        written before their codes.
        """
        config, num_more = self.config, self.config.num_decoding_steps - 1
        embeddings, _ = self.history_embeddings(input_ids, attention_mask)
        length = embeddings.shape[1]
        steps = torch.arange(num_more, device=targets.device)
        written = self.code_tokens(targets.clamp_min(0))[..., : config.num_levels - 1]
        if latents is not None:
            written = torch.cat([(config.first_latent_token + latents).unsqueeze(-1), written], dim=-1)
        follows = self._follows(input_ids, attention_mask, targets, num_visible)
        order = follows.long().argsort(dim=1, stable=True)[:, : int((~follows).sum(1).max()) if len(follows) else 0]
        # branch `g` of a row stands behind the stream at `length + g * num_more`
        written = written.gather(1, order.unsqueeze(-1).expand(-1, -1, num_more))
        visible = num_visible.gather(1, order)
        positions = torch.arange(length, device=targets.device).expand(len(targets), -1)
        positions = torch.cat([positions, (visible.unsqueeze(-1) + steps).flatten(1)], dim=1)
        embeddings = torch.cat([embeddings, self.embed_tokens(written).flatten(1, 2)], dim=1)
        states = self._run(embeddings, positions, mask=_branch_mask(length, visible, num_more))
        place = torch.zeros_like(targets).scatter(
            1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
        )
        first = torch.where(follows, num_visible, length + place * num_more)
        index = torch.cat([(num_visible - 1).unsqueeze(-1), first.unsqueeze(-1) + steps], dim=-1)
        states = states.gather(1, index.flatten(1).unsqueeze(-1).expand(-1, -1, states.shape[-1]))
        return self.norm(states).view(*index.shape, -1)

    def _follows(self, input_ids, attention_mask, targets, num_visible) -> torch.BoolTensor:
        """Which targets need no branch: their codes are what the stream goes on with; and places without a target."""
        if self.config.num_latent_tokens or self.config.history_unit == "item":
            return targets < 0
        items, is_item = self.items_in_front(input_ids, attention_mask)
        items = nn.functional.pad(items.masked_fill(~is_item, -1), (0, 1), value=-1)
        return (items.gather(1, (num_visible - 1) // self.config.num_levels) == targets) | (targets < 0)

    def _path_log_probs(self, states, targets, latents=None) -> torch.FloatTensor:
        """Log-probability of each token of targets `(n,)` from `states` `(n, steps, d_model)`: `(n, steps)`."""
        config, catalog = self.config, self.catalog
        found, nodes, codes = [], torch.zeros_like(targets), self.item_codes[targets].long()
        if latents is not None:
            found.append(self.token_log_probs(states[:, 0], 0).gather(-1, latents.unsqueeze(-1)))
        for level in range(config.num_levels):
            step = config.num_decoding_steps - config.num_levels + level
            is_legal = catalog.child_mask(level, nodes) if config.normalization == "catalog" else None
            log_probs = self.token_log_probs(states[:, step], step, is_legal=is_legal)
            found.append(log_probs.gather(-1, codes[:, level, None]))
            nodes = catalog.child(level, nodes, codes[:, level])
        return torch.cat(found, dim=-1)

    def _training_loss(self, input_ids, attention_mask, targets, num_visible, num_items_in_batch) -> torch.Tensor:
        config, latents = self.config, None
        if config.num_latent_tokens:
            latents = torch.randint(config.num_latent_tokens, targets.shape, device=targets.device)
        is_target = targets >= 0
        states = self._target_states(input_ids, attention_mask, targets, num_visible, latents)[is_target]
        items = targets[is_target]
        num_targets = max(1, len(items)) if num_items_in_batch is None else num_items_in_batch
        log_probs = self._path_log_probs(states, items, None if latents is None else latents[is_target])
        loss = -log_probs.sum() / (num_targets * config.num_decoding_steps)
        if self.item_table is not None:
            loss = loss + config.dense_loss_weight * self.dense_loss(states[:, 0], items) / num_targets
        return loss

    def _evaluation_loss(self, input_ids, attention_mask, targets, num_visible) -> torch.Tensor:
        """Negative log-likelihood per code with the latents summed out exactly."""
        is_target, paths = targets >= 0, []
        for latent in range(max(1, self.config.num_latent_tokens)):
            latents = torch.full_like(targets, latent) if self.config.num_latent_tokens else None
            states = self._target_states(input_ids, attention_mask, targets, num_visible, latents)[is_target]
            chosen = None if latents is None else latents[is_target]
            paths.append(self._path_log_probs(states, targets[is_target], chosen).sum(-1))
        losses = -torch.stack(paths).logsumexp(0)
        return losses.sum() / max(1, len(losses)) / self.config.num_levels

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        encoder_outputs: PromptOutput | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> Seq2SeqLMOutput:
        """
        With `labels` the loss; without, the logits of the next semantic-ID token. Both as in
        [`LatteForConditionalGeneration`], with the stream's history in the place of an encoder's output.

        In training mode a latent is drawn uniformly for every target (from torch's generator, so a seed fixes it) and
        the loss is the mean cross-entropy over the latent and the codes. In evaluation mode the latents are summed
        out: the loss is the negative log-likelihood of the target's semantic ID divided by `num_levels`.

        Args:
            input_ids: Item tokens `(batch_size, history_length)`, see [`ItemTokensMixin.is_item`].
            attention_mask: 1 at items that count; `None` for all.
            labels (`torch.LongTensor`, same shape as `input_ids`, *optional*):
                At each position the item token that follows, or -100 for none; each is predicted from the items up to
                its position.
            decoder_input_ids (`torch.LongTensor` of shape `(batch_size, length)`, *optional*):
                Start token, then semantic-ID tokens; `None` for the start token alone. Ignored with `labels`.
            encoder_outputs ([`PromptOutput`], *optional*): Result of `encode_history`, to be reused.
            past_key_values (`EncoderDecoderCache`, *optional*): Keys and values of tokens written before.
            use_cache (`bool`, *optional*): Whether to return them.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*): Targets that the training loss is divided by.
            **kwargs: Not used.

        Returns:
            [`~transformers.modeling_outputs.Seq2SeqLMOutput`]: with `labels` the `loss`, without `logits` of shape
            `(batch_size, length, vocab_size)`.
        """
        if input_ids is None and (encoder_outputs is None or labels is not None):
            raise ValueError("`input_ids` (or without `labels` `encoder_outputs` from `encode_history`) is needed.")
        if labels is not None:
            targets, num_visible = self._targets(input_ids, attention_mask, labels)
            if self.training:
                loss = self._training_loss(input_ids, attention_mask, targets, num_visible, num_items_in_batch)
            else:
                loss = self._evaluation_loss(input_ids, attention_mask, targets, num_visible)
            return Seq2SeqLMOutput(loss=loss)
        if encoder_outputs is None:
            encoder_outputs = self.encode_history(input_ids, attention_mask)
        if decoder_input_ids is None:
            start = (len(encoder_outputs.last_hidden_state), 1)
            decoder_input_ids = torch.full(start, self.config.decoder_start_token_id, device=self.item_codes.device)
        if use_cache and past_key_values is None:
            past_key_values = EncoderDecoderCache(DynamicCache(), DynamicCache())
        states = self._decode(decoder_input_ids, encoder_outputs, past_key_values)
        return Seq2SeqLMOutput(
            logits=self.score_tokens(states),
            past_key_values=past_key_values,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
        )


def _branch_mask(length: int, visible: torch.LongTensor, num_more: int) -> torch.BoolTensor:
    """
    Who sees whom in a stream of `length` tokens with `num_more` tokens behind it for each branch, which starts after
    `visible` `(B, num_branches)` of its tokens: `(B, 1, all, all)`.
    """
    batch_size, num_branches = visible.shape
    total = length + num_branches * num_more
    place = torch.arange(total, device=visible.device)
    branch = (place - length).div(max(1, num_more), rounding_mode="floor").clamp_min(-1)  # -1: the stream
    # in the stream each token sees those up to itself, in a branch the first `visible` ones
    end = torch.cat([(place[:length] + 1).expand(batch_size, -1), visible.repeat_interleave(num_more, dim=1)], dim=1)
    of_stream = (place < end.unsqueeze(-1)) & (place < length)
    of_branch = (branch.unsqueeze(1) == branch) & (place <= place.unsqueeze(1)) & (branch >= 0)
    return (of_stream | of_branch).unsqueeze(1)


__all__ = ["DecoderForItemGeneration"]
