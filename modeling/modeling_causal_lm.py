"""
A causal language model as a recommender: a prompt with the history's semantic IDs in, the next item's codes out.

The language model stays what it is, a model of transformers with or without an adapter of peft; it is a part of this
one. What is added is the catalog, the map from codes to its tokens, the prompt, and a search in which a user's prompt
is read once and all beams look at its keys and values.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Cache, DynamicCache

from .configuration_causal_lm import CausalLMConfig
from .genrec_beams import token_range
from .genrec_catalog import CatalogMixin
from .genrec_folder import write_manifest
from .genrec_prompt_attention import SHARED_PROMPT_ATTENTION, PromptOutput, reading
from .genrec_rank_beams import BeamRankingMixin
from .genrec_recommend import evaluation_mode
from .genrec_sid_processor import SidLogitsProcessor, codes_of


RECOMMENDER_FILE = "recommender.json"
# files of a folder that loading compares with its manifest
SAVED_FILES = (
    "config.json", "generation_config.json", "recommend_config.json", RECOMMENDER_FILE, "model*.safetensors*",
    "adapter_config.json", "adapter_model.safetensors", "tokenizer*", "special_tokens_map.json", "vocab.json",
    "merges.txt", "chat_template.jinja",
)  # fmt: skip


class CausalLMForItemGeneration(BeamRankingMixin, CatalogMixin, nn.Module):
    """
    A language model over a catalog: item tokens in, semantic IDs out, only real items.

    `recommend()` reads the prompt of a user once and lets all beams look at it; the output head is computed for the
    codes of a step alone. Its items are those of `generate()`, which is transformers' own with our constraint.

    Args:
        llm: A causal LM of transformers or a `PeftModel` around one, with a token per code; its attention is set to
            one that works as `"sdpa"` everywhere else.
        config ([`CausalLMConfig`]): Catalog, tokens and prompt.
        tokenizer (*optional*): That of the language model, to be saved along.

    Raises:
        ValueError: If the language model has too few embeddings or positions, or an attention of its own kind.

    Source: constrained beam search over semantic IDs as in LC-Rec (https://huggingface.co/papers/2311.09049); the
    shared prompt is ours.

    Example:

    ```python
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from hf_genrec.modeling.configuration_causal_lm import CausalLMConfig
    >>> llm = LlamaForCausalLM(LlamaConfig(
    ...     vocab_size=18, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
    ... ))
    >>> config = CausalLMConfig(
    ...     num_items=3, num_levels=2, codebook_size=3, code_token_ids=[[11, 12, 13], [14, 15, 16]],
    ...     begin_id=10, end_id=17, num_embeddings=18, d_model=8,
    ... )
    >>> model = CausalLMForItemGeneration(llm, config)
    >>> model.set_catalog(torch.tensor([[0, 1], [0, 2], [2, 0]]))
    >>> history = torch.tensor([[config.first_item_token, config.first_item_token + 2]])
    >>> sorted((model.recommend(history, top_k=3).item_tokens - config.first_item_token)[0].tolist())
    [0, 1, 2]

    ```
    """

    config: CausalLMConfig
    config_class = CausalLMConfig
    code_token_ids: torch.Tensor
    item_table = None  # there is no dense head
    item_ids: list[str] | None = None  # of a folder's items, for a pipeline

    def __init__(self, llm: Any, config: CausalLMConfig, tokenizer: Any = None):
        super().__init__()
        self.llm, self.config, self.tokenizer = llm, config, tokenizer
        self.register_buffer("code_token_ids", torch.tensor(config.code_token_ids), persistent=False)
        self.register_catalog()
        _check_llm(self.causal_lm, config)
        self.causal_lm.set_attn_implementation(SHARED_PROMPT_ATTENTION)
        self._is_verified = False

    @property
    def causal_lm(self) -> Any:
        """The language model itself, with the layers of an adapter in it where there is one."""
        return self.llm.get_base_model() if hasattr(self.llm, "get_base_model") else self.llm

    @property
    def device(self) -> torch.device:
        """`torch.device`: where the catalog and the embeddings are."""
        return self.item_codes.device

    @property
    def dtype(self) -> torch.dtype:
        """`torch.dtype`: what the language model computes in."""
        return self.causal_lm.dtype

    @property
    def name_or_path(self) -> str:
        """`str`: the folder or repository that it was loaded from."""
        return self.config.name_or_path

    def make_trainable(self) -> None:
        """Parameters get gradients that training changes: those of the adapter where there is one, else all."""
        if hasattr(self.llm, "peft_config"):
            self.llm.set_adapter(self.llm.active_adapter)  # one that was loaded to be served is frozen
        else:
            self.llm.requires_grad_(True)

    @classmethod
    def can_generate(cls) -> bool:
        """`False`: pipelines ask for it, and this model's own `generate` takes item tokens."""
        return False

    # --- the prompt ----------------------------------------------------------------------------------------------

    def prompt_tokens(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.LongTensor, torch.BoolTensor]:
        """
        Tokens of the language model for some histories, padded on the right, with their mask, both `(batch_size,
        num_prompt_tokens)`: prefix, the items in order (begin, codes, end if items are closed), suffix. What the
        tokenizer makes of the prompt as text.

        Args: see [`ItemTokensMixin.is_item`].
        """
        config, device = self.config, input_ids.device
        input_ids, is_item = self.latest_items(input_ids, attention_mask)
        order = (~is_item).long().argsort(dim=1, stable=True)
        items = (input_ids.gather(1, order) - config.first_item_token).clamp_min(0)
        prefix, suffix = (
            torch.tensor(ids, dtype=torch.long, device=device).expand(len(items), -1)
            for ids in (config.prompt_prefix_ids, config.prompt_suffix_ids)
        )
        levels = torch.arange(config.num_levels, device=device)
        blocks = self.code_token_ids[levels, self.item_codes[items].long()]  # (B, T, L)
        blocks = nn.functional.pad(blocks, (1, 0), value=config.begin_id)
        blocks = nn.functional.pad(blocks, (0, int(config.closes_items)), value=config.end_id)
        tokens = torch.cat([prefix, blocks.flatten(1), torch.full_like(suffix, config.end_id)], dim=1)
        start = prefix.shape[1] + is_item.sum(1, keepdim=True) * config.tokens_per_item
        places = start + torch.arange(suffix.shape[1], device=device)
        tokens = tokens.scatter(1, places, suffix)
        length = start + suffix.shape[1]
        longest = int(length.max()) if len(length) else 0
        return tokens[:, :longest], torch.arange(longest, device=device) < length

    def encode_history(self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None) -> PromptOutput:
        """
        Read the prompt of each user once.

        Args: see [`ItemTokensMixin.is_item`].
        """
        self._verify()
        return self._encode(*self.prompt_tokens(input_ids, attention_mask))

    def _encode(self, tokens: torch.LongTensor, mask: torch.BoolTensor) -> PromptOutput:
        """The prefix is the same for all users, so it is read once for all of them."""
        cache = DynamicCache()
        num_shared = len(self.config.prompt_prefix_ids) if len(tokens) > 1 else 0
        if num_shared:
            self._states(tokens[:1, :num_shared], past_key_values=cache)
            cache.batch_repeat_interleave(len(tokens))
        # no mask: padding stands behind the tokens, so no token looks at it
        states = self._states(tokens[:, num_shared:], past_key_values=cache)
        last = (mask.sum(1) - 1 - num_shared)[:, None, None].expand(-1, 1, states.shape[-1])
        keys, values = (tuple(getattr(layer, name) for layer in cache.layers) for name in ("keys", "values"))
        return PromptOutput(states.gather(1, last), mask, keys, values)

    def _last_states(self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None) -> torch.FloatTensor:
        return self.encode_history(input_ids, attention_mask).last_hidden_state[:, 0]

    # --- the search ----------------------------------------------------------------------------------------------

    def decode_states(self, tokens: torch.LongTensor, history: PromptOutput, cache: Cache) -> torch.FloatTensor:
        """
        One step of a search: states `(batch_size, num_beams, d_model)` after the last token of each beam. Before the
        first code they are those behind the prompts; the self-attention part of `cache` has a row per beam.
        """
        own = cache.self_attention_cache
        num_written = own.get_seq_length()
        if num_written == 0 and tokens.shape[1] == 1 and not self._is_code(tokens):
            return history.last_hidden_state
        states = self._continue(tokens.reshape(-1, 1), history, num_written, own)
        return states.reshape(*tokens.shape, -1)

    def path_states(self, tokens: torch.LongTensor, history: PromptOutput) -> torch.FloatTensor:
        """States before each token of given paths `(batch_size, num_paths, num_levels)`."""
        shape = tokens.shape
        first = history.last_hidden_state.unsqueeze(1).expand(-1, shape[1], -1, -1)
        if shape[2] == 1:
            return first
        states = self._continue(tokens[..., :-1].flatten(0, 1), history, 0, DynamicCache())
        return torch.cat([first, states.reshape(*shape[:2], shape[2] - 1, -1)], dim=2)

    def _is_code(self, tokens: torch.LongTensor) -> bool:
        """Whether tokens are of codes; a search has one kind in all rows."""
        return tokens.numel() > 0 and int(tokens.flatten()[0]) >= self.config.first_code_token

    def _continue(
        self, tokens: torch.LongTensor, history: PromptOutput, num_written: int, cache: DynamicCache
    ) -> torch.FloatTensor:
        """States of code tokens `(num_users * num_beams, length)` behind the prompts and what `cache` holds."""
        lengths = history.attention_mask.sum(1).repeat_interleave(len(tokens) // max(1, len(history.attention_mask)))
        positions = lengths.unsqueeze(1) + num_written + torch.arange(tokens.shape[1], device=tokens.device)
        ids = self.code_token_ids.flatten()[tokens - self.config.first_code_token]
        with reading(history):
            return self._states(ids, past_key_values=cache, position_ids=positions)

    def _states(self, ids: torch.LongTensor, **kwargs) -> torch.FloatTensor:
        """Last states of the language model without its head."""
        embeddings = _embedded(self.causal_lm.get_input_embeddings(), ids)
        return self.causal_lm.base_model(inputs_embeds=embeddings, use_cache=True, **kwargs).last_hidden_state

    def score_tokens(self, states: torch.FloatTensor, start: int = 0, width: int | None = None) -> torch.FloatTensor:
        """Logits, float32, of `width` tokens of codes (`None` for all) from `start` on, in the library's layout."""
        first = max(0, start - self.config.first_code_token)
        ids = self.code_token_ids.flatten()[first:]
        ids = ids if width is None else ids[:width]
        head = self.causal_lm.get_output_embeddings()
        weight = _rows(head, ids)
        if weight is None:
            return head(states)[..., ids].float()
        bias = getattr(head, "bias", None)
        return nn.functional.linear(states, weight, None if bias is None else bias[ids]).float()

    def token_log_probs(
        self,
        states: torch.FloatTensor,
        step: int,
        *,
        codes: torch.LongTensor | None = None,
        is_legal: torch.BoolTensor | None = None,
    ) -> torch.FloatTensor:
        """
        As for every model with beams; the whole vocabulary is that of the language model.

        Args: see [`BeamRankingMixin.token_log_probs`].
        """
        if self.config.normalization == "catalog":
            return super().token_log_probs(states, step, codes=codes, is_legal=is_legal)
        start, width, _ = token_range(self.config, step)
        block = self.score_tokens(states, start, width)
        block = block if codes is None else block.gather(-1, codes)
        return block - self.causal_lm.get_output_embeddings()(states).float().logsumexp(-1, keepdim=True)

    def decoding_bytes(self, history_length: int) -> tuple[int, int]:
        """
        What decoding takes: bytes per user (states, keys and values of the prompt in all layers, one layer of
        attention and feed-forward) and bytes per beam (its own keys and values twice, one layer, the candidates).
        """
        config, llm = self.config, self.causal_lm.config.get_text_config()
        size = self.causal_lm.get_input_embeddings().weight.dtype.itemsize
        heads = llm.num_attention_heads
        width = getattr(llm, "head_dim", None) or llm.hidden_size // heads
        inner = getattr(llm, "intermediate_size", None) or getattr(llm, "n_inner", None) or 4 * llm.hidden_size
        cached = 2 * llm.num_hidden_layers * width * (getattr(llm, "num_key_value_heads", None) or heads)
        layer = 3 * inner + 4 * heads * width + 4 * llm.hidden_size
        length = config.prompt_length(history_length)
        vocabulary = self.config.num_embeddings if config.normalization == "vocabulary" else config.codebook_size
        candidates = 4 * 2 * vocabulary + (4 * 4 + 3 * 8) * config.codebook_size
        per_beam = size * (2 * cached * config.num_levels + layer) + 3 * 4 * heads * length + candidates
        return size * length * (cached + layer), per_beam

    def code_vectors(self, items: torch.LongTensor | None = None) -> torch.Tensor:
        """Vectors of `items` `(n,)`, `None` for all: the sum of their codes' embeddings over sqrt(num_levels)."""
        tokens = self.code_token_ids.flatten()[self.code_tokens(items) - self.config.first_code_token]
        return _embedded(self.causal_lm.get_input_embeddings(), tokens).sum(-2) * self.config.num_levels**-0.5

    @torch.no_grad()
    def _verify(self) -> None:
        """
        Whether the language model says the same of an item in one plain pass as by shared prompts: some scale or cap
        their logits, or attend in a way of their own. Once, at the first prompt.
        """
        if self._is_verified:
            return
        self._is_verified = True
        with evaluation_mode(self):
            tokens, mask = self.prompt_tokens(torch.zeros(1, 1, dtype=torch.long, device=self.device))
            path = self.code_tokens(torch.zeros(1, dtype=torch.long, device=self.device))[None]  # (1, 1, L)
            states = self.path_states(path, self._encode(tokens, mask))[0, 0]
            ids = self.code_token_ids.flatten()[path[0] - self.config.first_code_token]
            plain = self.causal_lm(input_ids=torch.cat([tokens, ids[:, :-1]], dim=1)).logits[0, tokens.shape[1] - 1 :]
        for level, state in enumerate(states):
            start, width, _ = token_range(self.config, level)
            found, expected = self.score_tokens(state, start, width), plain[level, self.code_token_ids[level]].float()
            allowed = 1e-3 if expected.dtype == plain.dtype else 0.05
            if not bool((found - expected).abs().max() <= allowed * (1 + expected.abs().max())):
                raise ValueError(
                    f"`recommend()` cannot read a {type(self.causal_lm).__name__}: it attends, or makes its logits, "
                    "in a way of its own. Use `generate()`, or another language model."
                )

    # --- transformers' own search --------------------------------------------------------------------------------

    def logits_processor(self) -> "SidLogitsProcessor":
        """[`SidLogitsProcessor`]: the constraint, for any `generate()` of the language model."""
        config = self.config
        return SidLogitsProcessor(self.catalog, self.code_token_ids, begin_id=config.begin_id, end_id=config.end_id)

    @torch.no_grad()
    def generate(self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None, **kwargs):
        """
        transformers' `generate()` for some histories, kept inside the catalog; for comparison, `recommend()` is many
        times faster.

        Args:
            input_ids: Item tokens `(batch_size, history_length)`, see [`ItemTokensMixin.is_item`].
            attention_mask: 1 at items that count; `None` for all.
            **kwargs: As in transformers (`num_beams`, `num_return_sequences`, ...). Lengths are set here.

        Returns:
            As in transformers: prompts, padded on the left, and the codes of items as the language model's tokens;
            see `items_of`.
        """
        tokens, mask = self.prompt_tokens(input_ids, attention_mask)
        order = mask.long().argsort(dim=1, stable=True)  # padding in front, as transformers wants it
        if kwargs.get("num_beams", 1) > 1:
            kwargs["length_penalty"] = 0.0
        if self.config.normalization == "catalog":
            kwargs["renormalize_logits"] = True
        return self.llm.generate(
            input_ids=tokens.gather(1, order),
            attention_mask=mask.gather(1, order).long(),
            logits_processor=[self.logits_processor()],
            max_new_tokens=self.config.num_levels,
            eos_token_id=None,
            pad_token_id=self.config.end_id,
            **kwargs,
        )

    def items_of(self, sequences: torch.LongTensor) -> torch.LongTensor:
        """
        Item indices `(num_rows,)` of what `generate()` wrote, -1 where it is no item.

        Args:
            sequences: The language model's tokens `(num_rows, length)`, the codes last.
        """
        levels = torch.arange(self.config.num_levels, device=sequences.device)
        code_of = codes_of(self.code_token_ids)
        return self.catalog.item_of(
            code_of[levels, sequences[:, -self.config.num_levels :].clamp_max(code_of.shape[1] - 1)]
        )

    # --- files ---------------------------------------------------------------------------------------------------

    def saved_tensors(self) -> dict[str, torch.Tensor]:
        """The weights by the names that they have in the folder."""
        if self.causal_lm is self.llm:
            return self.llm.state_dict()
        from importlib import import_module  # peft is there, since the adapter is

        return import_module("peft").get_peft_model_state_dict(self.llm, save_embedding_layers=False)

    def save_pretrained(self, save_directory: str | Path, **kwargs) -> None:
        """
        Write the language model as it is in transformers or peft, its tokenizer, and `recommender.json` beside it;
        the codes stand in `items.parquet`, which a `Recommender` writes.

        Args:
            save_directory (`str` or `Path`): The folder.
            **kwargs: As for other models; not used.
        """
        if self.tokenizer is None:
            raise ValueError("`tokenizer` of the language model is part of the folder: give it to the class.")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        if self.causal_lm is self.llm:
            self.llm.save_pretrained(folder)
        else:
            with tempfile.TemporaryDirectory(dir=folder) as partial:  # peft writes a card too
                self.llm.save_pretrained(partial, save_embedding_layers=False)
                for name in ("adapter_config.json", "adapter_model.safetensors"):
                    shutil.move(Path(partial) / name, folder / name)
        self.tokenizer.save_pretrained(folder)
        self.config.llm_dtype = str(self.causal_lm.dtype).removeprefix("torch.")
        text = json.dumps(self.config.to_diff_dict(), indent=2, sort_keys=True) + "\n"
        (folder / RECOMMENDER_FILE).write_text(text, encoding="utf-8")
        self.recommend_config.save(folder, known=self.recommend_options)
        write_manifest(folder, SAVED_FILES)


def _check_llm(llm: Any, config: CausalLMConfig) -> None:
    num_rows = llm.get_input_embeddings().weight.shape[0]
    tokens = [config.begin_id, config.end_id, *(token for row in config.code_token_ids for token in row)]
    if num_rows != config.num_embeddings or max(tokens) >= num_rows:
        raise ValueError(
            f"`llm` has {num_rows} embeddings; `config` says {config.num_embeddings}, with tokens up to "
            f"{max(tokens)}. Grow it with `SidVocabulary.resize`."
        )
    most = getattr(llm.config.get_text_config(), "max_position_embeddings", None)
    wanted = config.prompt_length(config.max_history_length) + config.num_levels
    if most is not None and wanted > most:
        raise ValueError(
            f"`max_history_length` {config.max_history_length} makes prompts of {wanted} tokens; `llm` has {most} "
            "positions. Use a smaller one."
        )
    if not llm._can_set_attn_implementation():
        raise ValueError(
            f"`llm` is a {type(llm).__name__}, whose attention cannot be replaced (transformers' AttentionInterface)."
        )


def _rows(module: nn.Module, ids: torch.LongTensor) -> torch.Tensor | None:
    """Rows of the weight of an embedding or a head; of one adapted in another way than by new rows `None`."""
    adapter: Any = getattr(module, "token_adapter", module)  # peft's, which without LoRA is the layer itself
    if hasattr(adapter, "trainable_tokens_delta"):  # merged, the matrix would be copied at each step
        return _replaced(adapter, ids, adapter.base_layer.weight[ids])
    return module.weight[ids] if type(module) in (nn.Linear, nn.Embedding) else None


def _embedded(module: nn.Module, ids: torch.LongTensor) -> torch.Tensor:
    adapter: Any = getattr(module, "token_adapter", module)
    if not hasattr(adapter, "trainable_tokens_delta"):
        return module(ids)
    scale = getattr(adapter.base_layer, "embed_scale", 1.0)
    return _replaced(adapter, ids, adapter.base_layer(ids), scale)


def _replaced(adapter: Any, ids: torch.LongTensor, rows: torch.Tensor, scale: Any = 1.0) -> torch.Tensor:
    """The rows of some tokens, those that peft trains from where it keeps them."""
    if adapter.disable_adapters or adapter.merged:
        return rows
    for name in adapter.active_adapters:
        own, order = torch.tensor(adapter.token_indices[name], device=ids.device).sort()
        place = torch.searchsorted(own, ids.contiguous()).clamp_max(len(own) - 1)
        fresh = adapter.trainable_tokens_delta[name][order[place]].to(rows) * scale
        rows = torch.where((own[place] == ids).unsqueeze(-1), fresh, rows)
    return rows


__all__ = ["CausalLMForItemGeneration", "SidLogitsProcessor"]
