"""
TIGER, PSID and Latte: a T5-style encoder-decoder that reads item tokens and writes semantic IDs.

The parameters have the names and shapes of `T5ForConditionalGeneration`. What is added is the catalog (a buffer of
codes), the expansion of items into codes, the loss over semantic IDs with a random latent in front, and an attention
function by which many decoder rows (targets of a sequence in training, beams in decoding) read one user's history.
"""

import torch
from torch import nn
from transformers import Cache
from transformers import initialization as init
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.models.t5.modeling_t5 import T5PreTrainedModel, T5Stack

from .configuration_latte import LatteConfig
from .genrec_beams import HistoryOutput, token_range
from .genrec_catalog import CatalogMixin
from .genrec_dense import DenseHeadMixin, ItemTable
from .genrec_encoder import use_byte_dropout
from .genrec_gaps import GapEmbedding, gap_embedding
from .genrec_generate import SHARED_HISTORY_ATTENTION, CatalogGenerationMixin
from .genrec_rank_beams import BeamRankingMixin
from .genrec_t5_search import ROWS_AT_A_TIME, T5SearchCache, t5_step


class LatteForConditionalGeneration(
    DenseHeadMixin, BeamRankingMixin, CatalogMixin, T5PreTrainedModel, CatalogGenerationMixin
):
    """
    Encoder-decoder over a catalog: item tokens in, semantic-ID tokens out, only real items.

    Build it from a config, then give it the catalog with `set_catalog`. `generate()` is transformers' own,
    constrained by default; `recommend()` returns ranked items and is many times faster with many beams.

    Args:
        config ([`LatteConfig`]): Sizes, token layout and the kind of history attention.

    Source: Hou et al. 2026 (https://huggingface.co/papers/2605.06331); Rajput et al. 2023
    (https://huggingface.co/papers/2305.05065) for `num_latent_tokens=0` with a collision code.

    Example:

    ```python
    >>> from hf_genrec.modeling.configuration_latte import LatteConfig
    >>> config = LatteConfig(num_items=3, num_levels=2, codebook_size=4, num_latent_tokens=2, d_model=8, d_ff=16)
    >>> model = LatteForConditionalGeneration(config)
    >>> model.set_catalog(torch.tensor([[0, 1], [0, 2], [3, 0]]))
    >>> history = torch.tensor([[config.first_item_token, config.first_item_token + 2]])
    >>> sorted((model.recommend(history, top_k=3).item_tokens - config.first_item_token)[0].tolist())
    [0, 1, 2]

    ```
    """

    config: LatteConfig
    config_class = LatteConfig
    base_model_prefix = "transformer"
    search_cache = T5SearchCache
    search_step = staticmethod(t5_step)
    compiled_parts = ("encoder", "search_step")
    _auto_class = "AutoModelForSeq2SeqLM"  # saving takes the code along
    _tied_weights_keys = {
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
        "lm_head.weight": "shared.weight",
    }
    _keys_to_ignore_on_save = list(_tied_weights_keys)  # stored once; else Trainer reports them as missing

    def __init__(self, config: LatteConfig):
        super().__init__(config)
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        encoder_config = config.to_t5_config()
        encoder_config.use_cache = False
        decoder_config = config.to_t5_config()
        decoder_config.is_decoder = True
        decoder_config.num_layers = config.num_decoder_layers
        for t5_config in (encoder_config, decoder_config):
            t5_config._attn_implementation = SHARED_HISTORY_ATTENTION
        self.encoder = T5Stack(encoder_config)
        self.decoder = T5Stack(decoder_config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.register_item_table()
        self.gaps = gap_embedding(config)
        use_byte_dropout(self)
        for module in self.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = True  # nothing else reads its input; saves a tensor as wide as `d_ff`
        self.register_catalog()
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        """T5's initialisation, but for the embeddings."""
        super()._init_weights(module)
        if module is self:
            init.normal_(self.shared.weight, mean=0.0, std=self.config.embedding_std)
        elif isinstance(module, ItemTable):
            module.init_weights(self.config.embedding_std)
        elif isinstance(module, GapEmbedding):
            module.init_weights()

    def get_input_embeddings(self) -> nn.Embedding:
        """`nn.Embedding`: the shared token embeddings."""
        return self.shared

    def set_input_embeddings(self, new_embeddings: nn.Embedding) -> None:
        """Replace the shared token embeddings."""
        self.shared = new_embeddings
        self.encoder.set_input_embeddings(new_embeddings)
        self.decoder.set_input_embeddings(new_embeddings)

    def save_pretrained(self, *args, **kwargs):
        """As in transformers; the code that is saved along loads through `AutoModel` too."""
        if self._auto_class is not None:  # a class keeps one auto class; saving adds that one itself
            entry = {"AutoModel": "modeling_latte.LatteForConditionalGeneration"}
            self.config.auto_map = (getattr(self.config, "auto_map", None) or {}) | entry
        super().save_pretrained(*args, **kwargs)

    # --- the history ---------------------------------------------------------------------------------------------

    def history_tokens(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.LongTensor, torch.BoolTensor]:
        """
        What the encoder reads, with its mask, `(batch_size, num_history_tokens)`: the user token, the codes of the
        items in order and (bidirectional) an end token. Padding, unknown and special tokens are dropped, wherever they
        stand, so padding on the left or on the right gives the same tokens.

        Args: see [`ItemTokensMixin.is_item`].
        """
        config = self.config
        items, is_item = self.items_in_front(input_ids, attention_mask)
        tokens = self.code_tokens(items).masked_fill(~is_item[..., None], config.pad_token_id)
        tokens = nn.functional.pad(tokens.flatten(1), (1, 0), value=config.user_token_id)
        num_tokens = 1 + config.num_levels * is_item.sum(1, keepdim=True)
        if config.history_attention == "bidirectional":
            tokens = nn.functional.pad(tokens, (0, 1), value=config.pad_token_id)
            tokens = tokens.scatter(1, num_tokens, config.end_of_history_token_id)
            num_tokens = num_tokens + 1
        return tokens, torch.arange(tokens.shape[1], device=tokens.device) < num_tokens

    def encode_history(self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None) -> HistoryOutput:
        """
        Run the encoder once per user over the latest `max_history_length` items: states of the tokens of
        `history_tokens`; with `history_unit="item"` of the user token and the items.

        Args: see [`ItemTokensMixin.is_item`].
        """
        has_times = self.gaps is not None
        return self._encode(*self.latest_items(input_ids, attention_mask, has_times=has_times))

    def _encode(self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None) -> HistoryOutput:
        """`encode_history` of rows of any length."""
        tokens, mask = self.history_tokens(input_ids, attention_mask)
        embeddings = self.shared(tokens)
        if self.config.history_unit == "item":
            embeddings, mask = self._merge_codes(embeddings, mask)
        if self.item_table is not None:
            items, _ = self.items_in_front(input_ids, attention_mask)
            vectors = self.item_vectors(items.flatten()).unflatten(0, items.shape)
            embeddings = torch.cat([embeddings[:, :1], vectors], dim=1)
        if self.gaps is not None:
            embeddings = embeddings + self._gap_vectors(input_ids, attention_mask, embeddings.shape[1])
        if self.config.history_attention == "causal":
            length = mask.shape[1]
            # padding stands behind the tokens, so no token looks at it
            attention = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()[None, None]
        else:
            attention = mask[:, None, None, :]
        states = self.encoder(inputs_embeds=embeddings, attention_mask=attention).last_hidden_state
        return HistoryOutput(last_hidden_state=states, attention_mask=mask)

    def _gap_vectors(self, input_ids, attention_mask, length: int) -> torch.FloatTensor:
        """What the times between items add to the `length` history tokens: the same to all codes of an item."""
        gaps = self.gaps(self.mask_in_front(input_ids, attention_mask))  # (B, T, d_model)
        gaps = gaps.repeat_interleave(self.config.history_tokens_per_item, dim=1)
        return nn.functional.pad(gaps, (0, 0, 1, length - 1 - gaps.shape[1]))  # none for the user and the end token

    def _merge_codes(
        self, embeddings: torch.FloatTensor, mask: torch.BoolTensor
    ) -> tuple[torch.FloatTensor, torch.BoolTensor]:
        """One vector per item: the sum of its codes' embeddings over sqrt(num_levels), which keeps their scale."""
        num_levels = self.config.num_levels
        items = embeddings[:, 1:].unflatten(1, (-1, num_levels)).sum(2) * num_levels**-0.5
        return torch.cat([embeddings[:, :1], items], dim=1), torch.cat([mask[:, :1], mask[:, 1::num_levels]], dim=1)

    def code_vectors(self, items: torch.LongTensor | None = None) -> torch.Tensor:
        """The part of the codes in the vectors of `items` `(n,)`, `None` for all; as histories are read."""
        tokens = self.code_tokens(items)
        return nn.functional.embedding_bag(tokens, self.shared.weight, mode="sum") * self.config.num_levels**-0.5

    # --- the decoder ---------------------------------------------------------------------------------------------

    def _logits(self, decoder_states: torch.FloatTensor) -> torch.FloatTensor:
        return self.lm_head(decoder_states * self.config.d_model**-0.5)  # T5 scales before its tied head

    def _decode(
        self,
        decoder_input_ids: torch.LongTensor,
        history: HistoryOutput,
        num_visible: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
    ):
        """
        Decoder states of `num_users * group` rows, a user's rows adjacent. `num_visible` `(num_users, group)` is how
        many history tokens each row may read; `None` for all.
        """
        num_seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        embeddings = self._embed_rows(decoder_input_ids, history, num_visible, num_seen=num_seen)
        mask = history.attention_mask[:, None, None, :]
        if num_visible is not None:
            num_visible = num_visible.repeat_interleave(decoder_input_ids.shape[1], dim=1)
            positions = torch.arange(mask.shape[-1], device=mask.device)
            mask = (positions < num_visible.unsqueeze(-1)).unsqueeze(1)  # (B, 1, group * length, num_history_tokens)
        outputs = self.decoder(
            inputs_embeds=embeddings,
            encoder_hidden_states=history.last_hidden_state,
            encoder_attention_mask=mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        return outputs.last_hidden_state, outputs.past_key_values

    def _embed_rows(self, tokens, history, num_visible=None, *, num_seen: int) -> torch.FloatTensor:
        """What the decoder reads of `tokens` `(num_users * group, length)`, which come after `num_seen` others."""
        embeddings = self.shared(tokens)
        num_marked = (2 if self.config.num_latent_tokens else 1) - num_seen
        if self.config.marked_tokens == "all":
            num_marked = embeddings.shape[1]
        if self.config.history_attention == "causal" and num_marked > 0:
            last = history.attention_mask.sum(1, keepdim=True) if num_visible is None else num_visible
            embeddings = self._start_at(embeddings, history.last_hidden_state, last - 1, num_marked)
        return embeddings

    def _start_at(
        self, embeddings: torch.FloatTensor, states: torch.FloatTensor, last: torch.LongTensor, num_marked: int
    ) -> torch.FloatTensor:
        """
        Add the encoder's state at the last visible history token `(num_users, group or 1)` to the first `num_marked`
        tokens of each row: to the start token and, where there is one, to the latent, from which the first code is
        written; or to all of them, see `marked_tokens` of the config.

        T5's cross-attention knows no positions. The paper's encoder marks the end of a history with a token; the
        causal one cannot, since one pass serves the targets of every prefix. Without this a decoder does not see
        which item is the latest.
        """
        states = states.gather(1, last.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
        group = len(embeddings) // len(states) // states.shape[1]
        states = states.repeat_interleave(group, dim=1).flatten(0, 1)
        return torch.cat([embeddings[:, :num_marked] + states.unsqueeze(1), embeddings[:, num_marked:]], dim=1)

    def decode_states(
        self, tokens: torch.LongTensor, history: HistoryOutput, cache: T5SearchCache
    ) -> torch.FloatTensor:
        """One step of a search: states `(batch_size, num_beams, d_model)` after the last token of each beam."""
        if not cache.history:
            cache.read(self.decoder, history.last_hidden_state, history.attention_mask)
        embeddings = self._embed_rows(tokens.reshape(-1, 1), history, num_seen=len(cache.steps))
        # many beams go through a layer part by part on a processor, which a compiled step cannot do
        is_wide = tokens.device.type == "cpu" and tokens.numel() > ROWS_AT_A_TIME
        step = t5_step if is_wide else self.search_step
        return step(self.decoder, embeddings.view(*tokens.shape, -1), cache)

    def path_states(self, tokens: torch.LongTensor, history: HistoryOutput) -> torch.FloatTensor:
        """Decoder states before each token of given paths `(batch_size, num_paths, num_decoding_steps)`."""
        inputs = nn.functional.pad(tokens[..., :-1], (1, 0), value=self.config.decoder_start_token_id)
        states, _ = self._decode(inputs.flatten(0, 1), history)
        return states.reshape(*tokens.shape, -1)

    def score_tokens(self, states: torch.FloatTensor, start: int = 0, width: int | None = None) -> torch.FloatTensor:
        """Logits, float32, of `width` tokens (`None` for all) from `start` on."""
        end = self.config.vocab_size if width is None else start + width
        if type(self.lm_head) is not nn.Linear:  # quantised or adapted: its weight alone is not what it computes
            return self._logits(states)[..., start:end].float()
        states = states * self.config.d_model**-0.5
        return nn.functional.linear(states, self.lm_head.weight[start:end]).float()

    def decoding_bytes(self, history_length: int) -> tuple[int, int]:
        """
        What decoding takes, for the size of a chunk of users: bytes per user and bytes per beam.

        Per user: the states, keys and values of one encoder layer and its feed-forward layer, its attention scores,
        and the cross-attention keys and values of all decoder layers. Per beam: its own keys and values of all
        steps (twice while they are read), one decoder layer with its cross-attention scores, and float32
        candidates (logits, log-probabilities, what is ranked) beside the codes and nodes of its children.
        """
        config, size = self.config, self.shared.weight.dtype.itemsize
        num_history_tokens = 2 + history_length * config.history_tokens_per_item
        inner = config.num_heads * config.d_kv
        layer = 2 * config.d_ff + 4 * inner + 4 * config.d_model
        encoder = num_history_tokens * (layer + config.num_heads * num_history_tokens)
        cross_cache = 2 * config.num_decoder_layers * inner * num_history_tokens
        own_cache = 2 * 2 * config.num_decoder_layers * inner * config.num_decoding_steps
        vocabulary = config.vocab_size if config.normalization == "vocabulary" else config.codebook_size
        candidates = 4 * 2 * vocabulary + (4 * 4 + 3 * 8) * max(config.codebook_size, config.num_latent_tokens)
        per_beam = size * (own_cache + layer + config.num_heads * num_history_tokens) + candidates
        return size * (encoder + cross_cache), per_beam

    # --- training ------------------------------------------------------------------------------------------------

    def _targets(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None, labels: torch.LongTensor
    ) -> tuple[torch.LongTensor, torch.LongTensor]:
        """Labelled positions moved to the front: item tokens `(B, G)` (-100 where none) and visible history tokens."""
        config = self.config
        is_target = self.is_target(input_ids, labels)
        num_targets = is_target.sum(1)
        group = max(1, int(num_targets.max()))
        num_tokens = 1 + config.history_tokens_per_item * self.is_item(input_ids, attention_mask).long().cumsum(1)
        if config.history_attention == "bidirectional":
            if group > 1:
                raise ValueError(
                    "With `history_attention='bidirectional'` each row trains one target, but `labels` holds up to "
                    f"{group} per row. Make one row per prefix, or use `history_attention='causal'`."
                )
            num_tokens = num_tokens[:, -1:].expand_as(num_tokens) + 1
        order = (~is_target).long().argsort(dim=1, stable=True)[:, :group]
        return labels.gather(1, order), num_tokens.gather(1, order)

    def _target_logits(self, history, targets, num_visible, latents):
        """
        Logits `(B, G, num_decoding_steps, vocab_size)` and label tokens `(B, G, num_decoding_steps)`. Tokens that do
        not take part in the softmax have a logit of `-inf`.
        """
        safe = targets.clamp_min(self.config.first_item_token)
        tokens = self.semantic_id_tokens(safe)
        if latents is not None:
            tokens = torch.cat([(self.config.first_latent_token + latents).unsqueeze(-1), tokens], dim=-1)
        inputs = nn.functional.pad(tokens[..., :-1], (1, 0), value=self.config.decoder_start_token_id)
        states, _ = self._decode(inputs.flatten(0, 1), history, num_visible)
        logits = self._logits(states).view(*tokens.shape, -1).float()
        if self.config.normalization == "catalog":
            logits = logits.masked_fill(~self._legal_tokens(safe), -float("inf"))
        return logits, tokens

    def _legal_tokens(self, item_tokens: torch.LongTensor) -> torch.BoolTensor:
        """Which tokens the catalog allows on the way to each item: `(..., num_decoding_steps, vocab_size)`."""
        config, catalog = self.config, self.catalog
        shape = (*item_tokens.shape, config.num_decoding_steps, config.vocab_size)
        legal = torch.zeros(shape, dtype=torch.bool, device=item_tokens.device)
        codes = self.item_codes[item_tokens - config.first_item_token].long()
        nodes = torch.zeros_like(item_tokens)
        for step in range(config.num_decoding_steps):
            start, width, depth = token_range(config, step)
            block = legal[..., step, start : start + width]
            if depth < 0:
                block.fill_(True)
            else:
                block.copy_(catalog.child_mask(depth, nodes))
                nodes = catalog.child(depth, nodes, codes[..., depth])
        return legal

    def _training_loss(self, history, targets, num_visible, num_items_in_batch):
        config = self.config
        latents = None
        if config.num_latent_tokens:
            latents = torch.randint(config.num_latent_tokens, targets.shape, device=targets.device)
        logits, tokens = self._target_logits(history, targets, num_visible, latents)
        tokens = tokens.masked_fill((targets == -100).unsqueeze(-1), -100)
        loss = nn.functional.cross_entropy(
            logits.flatten(0, -2), tokens.flatten(), label_smoothing=config.label_smoothing, reduction="sum"
        )
        num_targets = (targets != -100).sum().clamp_min(1) if num_items_in_batch is None else num_items_in_batch
        loss = loss / (num_targets * config.num_decoding_steps)
        if self.item_table is not None:
            is_target = targets != -100
            states = history.last_hidden_state[is_target.nonzero()[:, 0], num_visible[is_target] - 1]
            dense_loss = self.dense_loss(states, targets[is_target] - config.first_item_token)
            loss = loss + config.dense_loss_weight * dense_loss / num_targets
        return loss

    def _evaluation_loss(self, history, targets, num_visible):
        """Negative log-likelihood per code with the latents summed out exactly; no label smoothing."""
        paths = []  # log-probability of each way to write each target, (B, G)
        for latent in range(max(1, self.config.num_latent_tokens)):
            latents = torch.full_like(targets, latent) if self.config.num_latent_tokens else None
            logits, tokens = self._target_logits(history, targets, num_visible, latents)
            paths.append(logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1).sum(-1))
        losses = -torch.stack(paths).logsumexp(0)[targets != -100]
        return losses.sum() / max(1, len(losses)) / self.config.num_levels

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        encoder_outputs: HistoryOutput | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> Seq2SeqLMOutput:
        """
        With `labels` the loss; without, the logits of the next semantic-ID token.

        In training mode a latent is drawn uniformly for every target (from torch's generator, so a seed fixes it) and
        the loss is the mean cross-entropy over the latent and the codes. In evaluation mode the latents are summed
        out: the loss is the negative log-likelihood of the target's semantic ID divided by `num_levels`.

        Args:
            input_ids: Item tokens `(batch_size, history_length)`, see [`ItemTokensMixin.is_item`].
            attention_mask: 1 at items that count; `None` for all.
            labels (`torch.LongTensor`, same shape as `input_ids`, *optional*):
                At each position the item token that follows, or -100 for none. With the bidirectional encoder one per
                row, predicted from the whole row; with the causal encoder each is predicted from the items up to its
                position.
            decoder_input_ids (`torch.LongTensor` of shape `(batch_size, length)`, *optional*):
                Start token, then semantic-ID tokens; `None` for the start token alone. Ignored with `labels`.
            encoder_outputs ([`HistoryOutput`], *optional*): Result of `encode_history`, to be reused.
            past_key_values (`Cache`, *optional*): Keys and values of earlier steps.
            use_cache (`bool`, *optional*): Whether to return them.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*): Targets that the training loss is divided by.
            **kwargs: Not used.

        Returns:
            [`~transformers.modeling_outputs.Seq2SeqLMOutput`]: with `labels` the `loss`, without `logits` of shape
            `(batch_size, length, vocab_size)`. Those behind a loss are its largest tensor, and their number differs
            from device to device where a batch is split, so they are not returned.
        """
        if encoder_outputs is None:
            if input_ids is None:
                raise ValueError("`input_ids` (or `encoder_outputs` from `encode_history`) is needed.")
            # a window of training is read as it is: `labels` say at which of its items something follows
            encode = self.encode_history if labels is None else self._encode
            encoder_outputs = encode(input_ids, attention_mask)
        if labels is not None:
            targets, num_visible = self._targets(input_ids, attention_mask, labels)
            if self.training:
                loss = self._training_loss(encoder_outputs, targets, num_visible, num_items_in_batch)
            else:
                loss = self._evaluation_loss(encoder_outputs, targets, num_visible)
            return Seq2SeqLMOutput(loss=loss, encoder_last_hidden_state=encoder_outputs.last_hidden_state)
        if decoder_input_ids is None:
            start = (len(encoder_outputs.last_hidden_state), 1)
            decoder_input_ids = torch.full(start, self.config.decoder_start_token_id, device=self.item_codes.device)
        states, past_key_values = self._decode(
            decoder_input_ids, encoder_outputs, past_key_values=past_key_values, use_cache=bool(use_cache)
        )
        return Seq2SeqLMOutput(
            logits=self._logits(states),
            past_key_values=past_key_values,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
        )


__all__ = ["LatteForConditionalGeneration"]
