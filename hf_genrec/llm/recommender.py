"""
A language model with semantic-ID tokens, a table of semantic IDs and a prompt in, a recommender's model out.
"""

from __future__ import annotations

from typing import Any

from hf_genrec.llm.vocabulary import BEGIN, SidVocabulary
from hf_genrec.modeling.configuration_causal_lm import CausalLMConfig
from hf_genrec.modeling.modeling_causal_lm import CausalLMForItemGeneration


def as_recommender(
    llm: Any,
    tokenizer: Any,
    ids: Any,
    *,
    prefix: str = "",
    suffix: str = BEGIN,
    max_history_length: int = 20,
    normalization: str = "catalog",
    closes_items: bool = True,
) -> CausalLMForItemGeneration:
    """
    A model for [`Recommender`] and [`save_recommender`] around a language model.

    A prompt is `prefix`, the items of the history one after the other, `suffix`. For a chat model they are what the
    tokenizer's chat template puts around the history, the beginning of the answer included.

    Args:
        llm: A causal LM, or a `PeftModel`, whose embeddings `SidVocabulary.resize` has grown.
        tokenizer: Its tokenizer, with the tokens of `SidVocabulary.add_to`.
        ids ([`SemanticIds`]): `num_items`, `num_levels`, `codebook_size` and `codes` of the catalog.
        prefix (`str`, defaults to `""`): Text before the history; special tokens such as a first one are written out.
        suffix (`str`, defaults to `"<|sid_begin|>"`): Text behind it, which ends with `<|sid_begin|>`.
        max_history_length (`int`, defaults to 20): Latest items that a prompt holds.
        normalization (`str`, defaults to `"catalog"`): See [`GenRecConfig`].
        closes_items (`bool`, defaults to `True`): See [`CausalLMConfig`].

    Returns:
        [`CausalLMForItemGeneration`]

    Raises:
        ValueError: If tokens, sizes or texts do not fit each other.

    Example: see the README of this room.
    """
    vocabulary = SidVocabulary.from_tokenizer(tokenizer)
    sizes, wanted = (vocabulary.num_levels, vocabulary.codebook_size), (ids.num_levels, ids.codebook_size)
    if sizes != wanted:
        raise ValueError(
            f"`tokenizer` has tokens of {sizes[0]} levels of {sizes[1]} codes, `ids` have {wanted[0]} of {wanted[1]}."
        )
    if not suffix.endswith(BEGIN):
        raise ValueError(f"`suffix` must end with {BEGIN}, behind which the codes stand, got {suffix[-40:]!r}.")
    causal_lm = llm.get_base_model() if hasattr(llm, "get_base_model") else llm
    config = CausalLMConfig.for_ids(
        ids,
        code_token_ids=vocabulary.code_token_ids.tolist(),
        begin_id=vocabulary.begin_id,
        end_id=vocabulary.end_id,
        prompt_prefix=prefix,
        prompt_suffix=suffix,
        prompt_prefix_ids=tokenizer(prefix, add_special_tokens=False)["input_ids"] if prefix else [],
        prompt_suffix_ids=tokenizer(suffix, add_special_tokens=False)["input_ids"],
        num_embeddings=causal_lm.get_input_embeddings().weight.shape[0],
        d_model=causal_lm.config.get_text_config().hidden_size,
        max_history_length=max_history_length,
        normalization=normalization,
        closes_items=closes_items,
    )
    model = CausalLMForItemGeneration(llm, config, tokenizer)
    model.set_catalog(ids.codes)
    return model.to(causal_lm.device)
