"""Configuration of the decoder-only model: history and target in one stream."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .configuration_genrec import TwoHeadConfig


@strict
class DecoderConfig(TwoHeadConfig):
    """
    A small language model over semantic IDs, trained from scratch: one stream of a user token, the items of the
    history and the codes of the next item, through one stack of Qwen3 blocks (RMS norms, rotary positions, normalised
    queries and keys, gated feed-forward layers).

    It differs from [`LatteConfig`] in that history and target share the blocks: what is written attends to the history
    in every layer, and no layer is there for one side alone.

    Args:
        d_model (`int`, defaults to 128): Width of the network.
        d_kv (`int`, defaults to 32): Width of one attention head, even.
        d_ff (`int`, defaults to 384): Inner width of the feed-forward layers, which are gated: three matrices.
        num_layers (`int`, defaults to 4): Number of blocks.
        num_heads (`int`, defaults to 4): Number of attention heads.
        rope_theta (`float`, defaults to 10000.0): Base of the rotary positions.
        dropout_rate (`float`, defaults to 0.1): Dropout on embeddings and on what each layer adds.
        layer_norm_epsilon (`float`, defaults to 1e-6): Epsilon of the norms.
        initializer_range (`float`, defaults to 0.02): Standard deviation of the weights of linear layers at the start.
        embedding_std (`float`, defaults to 0.1): Standard deviation of the token embeddings at the start.
        history_unit (`str`, defaults to `"code"`):
            What the stream holds of an item of the history. `"code"`: its codes one after the other, so that each item
            is read as it was written. `"item"`: one vector, the sum of the embeddings of its codes; the stream is
            `num_levels` times shorter, and a target's codes stand in a branch that only they see.
        max_history_length (`int`, defaults to 20): Number of most recent items that are read.
        dense_head (`bool`, defaults to `False`):
            A second head that scores items, for `history_unit="item"`; it and the fields that belong to it are those
            of [`TwoHeadConfig`].

    Raises:
        ValueError: If an option is out of range.

    Source: Petrov and Macdonald 2023, GPTRec (https://huggingface.co/papers/2306.11114), for one causal stream of
    item codes; the blocks are those of Qwen3 (https://huggingface.co/papers/2505.09388).

    Example:

    ```python
    >>> from hf_genrec.modeling.configuration_decoder import DecoderConfig
    >>> config = DecoderConfig(num_items=12101, d_model=64, history_unit="item")
    >>> config.vocab_size, config.history_tokens_per_item
    (772, 1)

    ```
    """

    model_type = "decoder"
    display_name = "Decoder"
    summary = "writes the next item's tuple behind the history, in one stream, kept inside the catalog at every step"
    papers = (
        "GPTRec: Petrov and Macdonald 2023, https://huggingface.co/papers/2306.11114",
        "Qwen3, whose blocks these are: 2025, https://huggingface.co/papers/2505.09388",
        "TIGER, semantic IDs: Rajput et al. 2023, https://huggingface.co/papers/2305.05065",
    )
    default_shape: ClassVar[dict[str, Any]] = {
        "history_unit": "item",
        "normalization": "catalog",
        "d_model": 128,
        "d_ff": 384,
        "num_layers": 3,
    }
    default_schedule: ClassVar[dict[str, Any]] = {"learning_rate": 1.5e-3}
    paper_shape: ClassVar[dict[str, Any]] = {"history_unit": "code"}
    paper_schedule: ClassVar[dict[str, Any]] = {}
    attribute_map = {
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
    }

    d_model: int = 128
    d_kv: int = 32
    d_ff: int = 384
    num_layers: int = 4
    num_heads: int = 4
    rope_theta: float | int = 10000.0
    dropout_rate: float | int = 0.1
    layer_norm_epsilon: float = 1e-6
    initializer_range: float | int = 0.02
    embedding_std: float | int = 0.1
    history_unit: str = "code"
    max_history_length: int = 20
    is_encoder_decoder: bool = True  # of `generate()`: what it writes is no continuation of `input_ids`, but codes
    use_cache: bool = True

    def __post_init__(self, **kwargs):
        self._check_choice("history_unit", "code", "item")
        if self.dense_head and self.history_unit != "item":
            raise ValueError("`dense_head=True` needs `history_unit='item'`: the stream holds a vector per item.")
        self._check_least(1, "d_model", "d_ff", "num_layers", "num_heads", "max_history_length")
        self._check_least(2, "d_kv")
        if self.d_kv % 2:
            raise ValueError(f"`d_kv` must be even, got {self.d_kv}: rotary positions turn its halves.")
        self._check_share("dropout_rate")
        self._check_least(0, "initializer_range", "embedding_std")
        super().__post_init__(**kwargs)

    @property
    def description(self) -> list[str]:
        """`list[str]`: what is worth knowing about the network."""
        latents = f"{self.num_latent_tokens or 'no'} latent tokens before a semantic ID"
        network = f"{latents}, one stream of {self.history_unit}s and what is written behind them"
        heads = ["a second head scores items by their own vectors"] if self.dense_head else []
        return [network, *heads, *super().description]

    @property
    def history_attention(self) -> str:
        """`str`: always `"causal"`: one row of training data has a label at each of its positions."""
        return "causal"

    @property
    def num_decoder_layers(self) -> int:
        """`int`: layers that a written token goes through: all of them."""
        return self.num_layers

    @property
    def history_tokens_per_item(self) -> int:
        """`int`: positions of the stream that an item of the history takes."""
        return 1 if self.history_unit == "item" else self.num_levels

    def to_qwen3_config(self) -> PreTrainedConfig:
        """`Qwen3Config`: the same network as a plain Qwen3 over the tokens before the items."""
        from transformers import Qwen3Config  # here: it imports the registries of models, which import this file

        return Qwen3Config(
            vocab_size=self.vocab_size,
            hidden_size=self.d_model,
            intermediate_size=self.d_ff,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_heads,
            head_dim=self.d_kv,
            rms_norm_eps=self.layer_norm_epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": float(self.rope_theta)},
            pad_token_id=self.pad_token_id,
            eos_token_id=None,
            tie_word_embeddings=True,
        )


__all__ = ["DecoderConfig"]
