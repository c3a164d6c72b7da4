"""Configuration of a recommender around a causal language model: the catalog, its tokens and the prompt."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_genrec import GenRecConfig


@strict
class CausalLMConfig(GenRecConfig):
    """
    What [`CausalLMForItemGeneration`] knows beside the language model, whose own config stays what it is. It stands in
    `recommender.json`.

    Item tokens and tokens of codes are those of the library's layout, as for every model; which tokens of the language
    model the codes are, `code_token_ids` says.

    Args:
        code_token_ids (`list[list[int]]`): For each level the language model's token of each code.
        begin_id (`int`): Its token before the codes of an item.
        end_id (`int`): Its token behind them.
        prompt_prefix_ids (`list[int]`): What a prompt begins with; the items of the history follow.
        prompt_suffix_ids (`list[int]`): What stands behind the history; the last token is `begin_id`.
        closes_items (`bool`, defaults to `True`):
            Whether `end_id` stands behind each item of the history. Without, prompts are shorter by a token per item.
        prompt_prefix (`str`, *optional*): The same as text, for people and for a check against the tokenizer.
        prompt_suffix (`str`, *optional*): Likewise.
        llm_dtype (`str`, defaults to `"float32"`): In which the base of an adapter is loaded.
        num_embeddings (`int`): Rows of the language model's embeddings, to which the base of an adapter is grown.
        d_model (`int`): Width of the states.
        max_history_length (`int`, defaults to 20): Number of latest items that a prompt holds.

    Raises:
        ValueError: If sizes do not fit each other.

    Example:

    ```python
    >>> from hf_genrec.modeling.configuration_causal_lm import CausalLMConfig
    >>> config = CausalLMConfig(
    ...     num_items=5, num_levels=2, codebook_size=3, code_token_ids=[[11, 12, 13], [14, 15, 16]],
    ...     begin_id=10, end_id=17, prompt_suffix_ids=[7, 10], num_embeddings=18,
    ... )
    >>> config.prompt_length(4), config.first_item_token
    (18, 10)

    ```
    """

    model_type = "causal_lm"
    display_name = "LLM"
    summary = "writes the next item's tuple as a language model writes text, kept inside the catalog at every step"
    papers = (
        "LC-Rec: Zheng et al. 2024, https://huggingface.co/papers/2311.09049",
        "MiniOneRec: 2025, https://huggingface.co/papers/2510.24431",
    )
    history_attention: ClassVar[str] = "bidirectional"  # one target per prompt

    code_token_ids: list[list[int]] | None = None
    begin_id: int = 0
    end_id: int = 0
    prompt_prefix_ids: list[int] | None = None
    prompt_suffix_ids: list[int] | None = None
    closes_items: bool = True
    prompt_prefix: str | None = None
    prompt_suffix: str | None = None
    llm_dtype: str = "float32"
    num_embeddings: int = 1
    d_model: int = 1
    max_history_length: int = 20
    normalization: str = "catalog"

    def __post_init__(self, **kwargs):
        self._check_least(1, "max_history_length", "num_embeddings", "d_model")
        if self.num_latent_tokens:
            raise ValueError(f"`num_latent_tokens` must be 0 for a language model, got {self.num_latent_tokens}.")
        self.prompt_prefix_ids = self.prompt_prefix_ids or []
        self.prompt_suffix_ids = self.prompt_suffix_ids or [self.begin_id]
        table = self.code_token_ids
        if table is not None and [len(row) for row in table] != [self.codebook_size] * self.num_levels:
            raise ValueError(
                f"`code_token_ids` must be {self.num_levels} lists of {self.codebook_size} tokens, got lists of "
                f"{[len(row) for row in table]}."
            )
        if self.prompt_suffix_ids[-1] != self.begin_id:
            raise ValueError(
                f"`prompt_suffix_ids` must end with `begin_id` {self.begin_id}, behind which the codes "
                f"stand, got {self.prompt_suffix_ids[-5:]}."
            )
        super().__post_init__(**kwargs)

    @property
    def description(self) -> list[str]:
        """`list[str]`: what is worth knowing about the network."""
        tokens = self.num_levels * self.codebook_size
        longest = self.prompt_length(self.max_history_length)
        network = f"a causal language model with tokens for {tokens:,} codes, prompts of up to {longest:,} tokens"
        return [network, *super().description]

    @property
    def tokens_per_item(self) -> int:
        """`int`: tokens of an item in a prompt: begin, codes and, where items are closed, end."""
        return self.num_levels + 1 + self.closes_items

    def prompt_length(self, num_items: int) -> int:
        """
        Tokens of a prompt.

        Args:
            num_items (`int`): Items of its history.
        """
        return len(self.prompt_prefix_ids) + num_items * self.tokens_per_item + len(self.prompt_suffix_ids)

    def to_diff_dict(self) -> dict[str, Any]:
        """`dict`: what `recommender.json` holds; nothing that transformers needs to load a model."""
        return {name: value for name, value in super().to_diff_dict().items() if name not in _NOT_OURS}


_NOT_OURS = ("auto_map", "architectures", "dtype", "custom_pipelines", "transformers_version")

__all__ = ["CausalLMConfig"]
