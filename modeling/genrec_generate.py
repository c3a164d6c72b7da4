"""
transformers' own `generate()`, kept inside the catalog and freed of what it copies per beam.

A model that mixes in `CatalogGenerationMixin` generates real items by default. Beams of one user read the user's
encoder states where they lie: they are neither repeated when beams are opened nor moved when beams are re-ordered.
[`shared_history_attention`] lets many decoder rows (targets in training, beams in decoding) read one user's history.
"""

import torch
from transformers import AttentionInterface, DynamicCache, EncoderDecoderCache, GenerationMixin, LogitsProcessor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.utils import ModelOutput

from .configuration_genrec import GenRecConfig
from .genrec_beams import token_range
from .genrec_catalog import Catalog


# Options of `generate()` that look for the written tokens in the history, with the values that do nothing.
READ_THE_HISTORY = {
    "assistant_model": (None,),
    "prompt_lookup_num_tokens": (None,),
    "encoder_repetition_penalty": (None, 1.0),
    "encoder_no_repeat_ngram_size": (None, 0),
}


class CatalogLogitsProcessor(LogitsProcessor):
    """
    Lets only tokens through that lead to an item of the catalog: a latent first (if the model has any), then codes
    along the trie, then nothing but padding.

    It keeps no state: the node is found anew from `input_ids` at each step, so beams may be re-ordered at will. The
    only tensor as wide as `scores` is the result: masks are over one level's codes, whatever the vocabulary.
    Scores of legal tokens are left as they are (no renormalisation), so sums of scores stay the model's own
    log-probabilities. A row that has already left the catalog (a filler beam) may write code 0; its score is never
    finite again.

    Args:
        catalog ([`Catalog`]): The semantic IDs of all items, which may share them: what is written are ids.
        config ([`GenRecConfig`]): The token layout.

    Raises:
        ValueError: If the catalog does not fit the config.

    Example:

    ```python
    >>> from hf_genrec.modeling.configuration_genrec import GenRecConfig
    >>> config = GenRecConfig(num_items=2, num_levels=2, codebook_size=3)
    >>> processor = CatalogLogitsProcessor(Catalog(torch.tensor([[0, 1], [2, 0]]), 3), config)
    >>> processor(torch.tensor([[0, 4 + 2]]), torch.zeros(1, config.vocab_size)).isfinite().nonzero()[:, 1].tolist()
    [7]

    ```
    """

    def __init__(self, catalog: Catalog, config: GenRecConfig):
        shape = (catalog.num_items, catalog.num_levels, catalog.codebook_size)
        wanted = (config.num_items, config.num_levels, config.codebook_size)
        if shape != wanted:
            raise ValueError(
                f"`catalog` has (num_items, num_levels, codebook_size) = {shape}, but `config` says {wanted}."
            )
        self.catalog = catalog
        self.config = config

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """
        A copy of `scores` `(num_rows, vocab_size)` with `-inf` at every illegal token; `input_ids` are the decoder
        tokens so far, `(num_rows, length)`, the start token first.
        """
        config, length = self.config, input_ids.shape[1]
        start: int = config.pad_token_id
        width, depth, mask = 1, -1, None
        if length <= config.num_decoding_steps:
            start, width, depth = token_range(config, length - 1)
        if depth >= 0:
            level_starts = config.first_code_token + config.codebook_size * torch.arange(depth, device=scores.device)
            nodes = self.catalog.node_of(input_ids[:, length - depth :] - level_starts)
            mask = self.catalog.child_mask(depth, nodes)
            mask[:, 0] |= nodes < 0
        block = scores[:, start : start + width]
        processed = torch.full_like(scores, -float("inf"))
        processed[:, start : start + width] = block if mask is None else block.masked_fill(~mask, -float("inf"))
        return processed


class SharedHistoryCache(EncoderDecoderCache):
    """
    A cache whose cross-attention part has a row per user, not per beam, and stays where it is when beams move.

    Example:

    ```python
    >>> cache = SharedHistoryCache(DynamicCache(), DynamicCache())
    >>> _ = cache.self_attention_cache.update(torch.tensor([[[[1.0]]], [[[2.0]]]]), torch.zeros(2, 1, 1, 1), 0)
    >>> _ = cache.cross_attention_cache.update(torch.tensor([[[[3.0]]]]), torch.zeros(1, 1, 1, 1), 0)
    >>> cache.reorder_cache(torch.tensor([1, 1]))
    >>> [part.layers[0].keys.flatten().tolist() for part in (cache.self_attention_cache, cache.cross_attention_cache)]
    [[2.0, 2.0], [3.0]]

    ```
    """

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Let the beams' own keys and values follow the beams; `beam_idx`: the row each new row continues."""
        self.self_attention_cache.reorder_cache(beam_idx)


class CatalogGenerationMixin(GenerationMixin):
    """
    `generate()` of an encoder-decoder over a catalog; the fast path for many beams is `recommend()`.

    The model supplies `config`, `catalog` and `encode_history`, and its attention must take more rows of queries than
    of keys, see [`shared_history_attention`].
    """

    def catalog_processor(self) -> CatalogLogitsProcessor:
        """[`CatalogLogitsProcessor`]: the constraint that `generate()` applies by default."""
        return CatalogLogitsProcessor(self.catalog, self.config)

    @torch.no_grad()
    def generate(self, inputs=None, generation_config=None, logits_processor=None, **kwargs):
        """
        transformers' `generate()`, kept inside the catalog and stopped after the last code.

        Args:
            inputs (`torch.LongTensor` of shape `(batch_size, history_length)`, *optional*): As `input_ids`.
            generation_config (`GenerationConfig`, *optional*): As in transformers.
            logits_processor (`LogitsProcessorList`, *optional*): Further processors; they run after the constraint.
            **kwargs:
                As in transformers (`attention_mask`, `num_beams`, `num_return_sequences`, `do_sample`, ...). Lengths
                are set by the model: any `max_new_tokens` or `max_length` is overruled.

        Returns:
            As in transformers: `(batch_size * num_return_sequences, 1 + num_decoding_steps)` tokens, the start token
            first. With beams, `sequences_scores` are sums of log-probabilities. Sequences are semantic IDs: of one
            that several items share `catalog.item_of` names the first item, `recommend()` lists all.
        """
        input_ids = inputs if inputs is not None else kwargs.pop("input_ids", None)
        attention_mask = kwargs.pop("attention_mask", None)
        base = generation_config if generation_config is not None else self.generation_config
        for name, harmless in READ_THE_HISTORY.items():
            if kwargs.get(name, getattr(base, name, None)) not in harmless:
                raise ValueError(
                    f"`{name}` reads the history as text that is continued; here it holds item tokens, and what is "
                    "written are semantic IDs. Leave it out."
                )
        num_beams = kwargs.get("num_beams", base.num_beams) or 1
        num_return = kwargs.get("num_return_sequences", base.num_return_sequences) or 1
        num_ids, num_latents = self.catalog.num_ids, max(1, self.config.num_latent_tokens)
        if num_beams > 1 and num_return > num_ids * num_latents:
            raise ValueError(
                f"`num_return_sequences` is {num_return}, but this catalog has only {num_ids * num_latents} different "
                f"paths ({num_ids} semantic IDs x {num_latents} latents)."
            )
        for name in ("max_length", "min_length", "min_new_tokens"):
            kwargs.pop(name, None)
        kwargs["max_new_tokens"] = self.config.num_decoding_steps
        if num_beams > 1:
            kwargs["length_penalty"] = 0.0  # scores are sums of log-probabilities, not divided by any length
        if self.config.normalization == "catalog":
            kwargs["renormalize_logits"] = True  # over the tokens that the constraint leaves
        if kwargs.get("encoder_outputs") is None:
            if input_ids is None:
                raise ValueError("`generate()` needs `input_ids`, the histories as item tokens.")
            if not len(input_ids):
                return self._no_rows(input_ids, kwargs.get("return_dict_in_generate", base.return_dict_in_generate))
            kwargs["encoder_outputs"] = self.encode_history(input_ids, attention_mask)
        processors = [self.catalog_processor(), *(logits_processor or [])]
        output = super().generate(
            input_ids, generation_config=generation_config, logits_processor=processors, **kwargs
        )
        if num_beams > 1 and kwargs.get("do_sample", base.do_sample):
            self.check_sampled(output if torch.is_tensor(output) else output.sequences)
        return output

    def _no_rows(self, input_ids: torch.LongTensor, is_dict: bool):
        """What is generated for a batch of no users, which transformers' searches do not take."""
        sequences = input_ids.new_zeros(0, 1 + self.config.num_decoding_steps)
        scores = torch.zeros(0, device=input_ids.device)
        return ModelOutput(sequences=sequences, sequences_scores=scores) if is_dict else sequences

    def check_sampled(self, sequences: torch.LongTensor) -> None:
        """
        Whether sampled beams `(num_rows, length)` are items. Beam sampling draws without replacement; where fewer
        continuations than beams have a probability above zero it draws illegal ones.
        """
        config = self.config
        level_starts = config.codebook_size * torch.arange(config.num_levels, device=sequences.device)
        codes = sequences[:, -config.num_levels :] - config.first_code_token - level_starts
        num_invalid = int((self.catalog.item_of(codes) < 0).sum())
        if num_invalid:
            raise ValueError(
                f"{num_invalid} of {len(sequences)} sampled beams are no items: at this `temperature` fewer "
                "continuations than beams have a probability above zero in float32. Raise `temperature`, lower "
                "`num_beams`, or use `do_sample=False`."
            )

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        """Opens `expand_size` rows per user for the tokens to come; the encoder's states keep one row per user."""
        if expand_size > 1 and input_ids is not None:
            input_ids = input_ids.repeat_interleave(expand_size, dim=0)
        return input_ids, model_kwargs

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        """As in transformers; a cache made here leaves the users' keys and values alone when beams move."""
        is_own = model_kwargs.get("past_key_values") is None
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        cache = model_kwargs.get("past_key_values")
        if is_own and cache is not None:
            model_kwargs["past_key_values"] = SharedHistoryCache(cache.self_attention_cache, DynamicCache())


# --- attention of many rows to one history ---------------------------------------------------------------------------


SHARED_HISTORY_ATTENTION = "genrec_shared_history"
MAX_DIRECT_KEYS = 8  # with at most so many keys, a beam's own past, products by hand beat a kernel call: half the time


def shared_history_attention(
    module, query, key, value, attention_mask, position_bias=None, **kwargs
) -> tuple[torch.Tensor, None]:
    """
    Scaled-dot-product attention in which `group` rows of queries may share one row of keys.

    Where queries come from more rows than keys (cross-attention of several targets or beams per user), the rows of a
    user are laid end to end as one longer query, so keys and values are neither computed nor stored more than once.

    Takes `query` `(num_users * group, num_heads, length, width)`, `key` `(num_users, num_heads, num_keys, width)`,
    `value` (same shape). `position_bias`: T5's bias; cross-attention has none, so it is dropped with a group. Returns
    `(num_users * group, length, num_heads, width)` and no weights.
    """
    num_rows, num_heads, length, width = query.shape
    num_users = key.shape[0]
    if num_rows == num_users and length == 1 and key.shape[2] <= MAX_DIRECT_KEYS and not module.training:
        return _attend_from_one_position(query, key, value, attention_mask, position_bias, **kwargs), None
    if num_rows == num_users:
        return sdpa_attention_forward(module, query, key, value, attention_mask, position_bias=position_bias, **kwargs)
    group = num_rows // num_users
    query = query.view(num_users, group, num_heads, length, width).transpose(1, 2)
    query = query.reshape(num_users, num_heads, group * length, width)
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return output.reshape(num_rows, length, num_heads, width), None


def _attend_from_one_position(
    query, key, value, attention_mask, position_bias=None, scaling=None, **kwargs
) -> torch.Tensor:
    """Attention of one query a row to a handful of keys, without a matrix product per row and head."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query.float() * key.float()).sum(-1) * scaling  # (num_rows, num_heads, num_keys)
    if position_bias is not None:
        scores = scores + position_bias[..., 0, :]
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask[..., 0, :], torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask[..., 0, :]
    weights = scores.softmax(-1).to(value.dtype).unsqueeze(-1)
    return (weights * value).sum(2).unsqueeze(1)


AttentionInterface.register(SHARED_HISTORY_ATTENTION, shared_history_attention)
AttentionMaskInterface.register(SHARED_HISTORY_ATTENTION, sdpa_mask)
