"""Configuration of the encoder-decoder behind TIGER, PSID and Latte."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .configuration_genrec import TwoHeadConfig


@strict
class LatteConfig(TwoHeadConfig):
    """
    One T5-style encoder-decoder, three systems: TIGER (`num_latent_tokens=0`, ids with a collision code), PSID
    (`num_latent_tokens=0`, conflict-free ids) and Latte (conflict-free ids, `num_latent_tokens>0`).

    The defaults are the paper's shape: 4+4 layers, 4.56 million parameters at 3x256 codes.

    Args:
        d_model (`int`, defaults to 128): Width of the network.
        d_kv (`int`, defaults to 64): Width of one attention head.
        d_ff (`int`, defaults to 1024): Inner width of the feed-forward layers.
        num_layers (`int`, defaults to 4): Number of encoder layers.
        num_decoder_layers (`int`, defaults to 4): Number of decoder layers.
        num_heads (`int`, defaults to 6): Number of attention heads.
        relative_attention_num_buckets (`int`, defaults to 32): Buckets of the relative position bias.
        relative_attention_max_distance (`int`, defaults to 128): Distance from which on all positions share a bucket.
        dropout_rate (`float`, defaults to 0.1): Dropout on embeddings, attention weights and feed-forward layers.
        layer_norm_epsilon (`float`, defaults to 1e-6): Epsilon of the layer norms.
        initializer_factor (`float`, defaults to 1.0): Factor on the standard deviations of T5's initialisation.
        embedding_std (`float`, defaults to 1.0):
            Standard deviation of the token embeddings at the start. 1.0 is T5's, made for an optimizer whose steps
            grow with the size of a weight; under AdamW a small one lets the embeddings move sooner.
        feed_forward_proj (`str`, defaults to `"relu"`): `"relu"` or `"gated-gelu"`, as in `T5Config`.
        label_smoothing (`float`, defaults to 0.0): Label smoothing of the training loss, in [0, 1).
        history_attention (`str`, defaults to `"bidirectional"`):
            `"bidirectional"` is the paper's encoder, one training example per prefix of a history. `"causal"` attends
            backwards only and has no end-of-history token, so one pass trains every target of a sequence; the
            decoder's tokens carry the state of the latest item instead, see `marked_tokens`.
        marked_tokens (`str`, defaults to `"first"`):
            Tokens of the decoder to which a causal encoder's state at the latest item is added. `"first"`: those that
            the first code is written from, start token and latent. `"all"`: every one; on validation users of
            Scientific the generator alone gains by it (PSID 0.0502 to 0.0540 with one token more, two seeds).
        history_unit (`str`, defaults to `"code"`):
            What the encoder reads of an item. `"code"` is the papers': its codes one after the other. `"item"`: one
            vector, the sum of the embeddings of its codes, as parallel models read items. Attention then compares
            items with items from the first layer on, and the history is `num_levels` times shorter; causal only.
        history_gap_buckets (`int`, defaults to 0):
            Buckets of the time since the item before, each with a vector that is added to what the encoder reads of an
            item; 0 for a model that knows no times. See `genrec_gaps`.
        max_history_length (`int`, defaults to 20):
            Number of most recent items that preparation keeps; recorded here for whoever feeds the model.
        dense_head (`bool`, defaults to `False`):
            A second head that scores items, for `history_unit="item"`; it and the fields that belong to it are those
            of [`TwoHeadConfig`].

    Raises:
        ValueError: If an option is out of range.

    Source: Hou et al. 2026, section 5.1 (https://huggingface.co/papers/2605.06331).

    Example:

    ```python
    >>> from hf_genrec.modeling.configuration_latte import LatteConfig
    >>> LatteConfig(num_items=12101, num_latent_tokens=8).vocab_size
    780

    ```
    """

    model_type = "latte"
    display_name = "Latte"
    summary = "writes the next item's tuple, kept inside the catalog at every step"
    papers = (
        "Latte: Hou et al. 2026, https://huggingface.co/papers/2605.06331",
        "TIGER: Rajput et al. 2023, https://huggingface.co/papers/2305.05065",
        "PSID, ids without collisions: 2025, https://huggingface.co/papers/2509.16446",
    )
    # The shape that learns most per minute on two processor cores, chosen on validation.
    default_shape: ClassVar[dict[str, Any]] = {
        "history_attention": "causal",
        "history_unit": "item",
        "normalization": "catalog",
        "num_latent_tokens": 8,
        "d_model": 128,
        "d_ff": 512,
        "num_heads": 4,
        "num_layers": 2,
        "num_decoder_layers": 1,
        "dropout_rate": 0.1,
        "initializer_factor": 0.3,
        "embedding_std": 0.1,
    }
    default_schedule: ClassVar[dict[str, Any]] = {"learning_rate": 1.5e-3}
    # Hou et al. 2026, section 5.1 and the published code.
    paper_shape: ClassVar[dict[str, Any]] = {"history_attention": "bidirectional", "num_latent_tokens": 8}
    paper_schedule: ClassVar[dict[str, Any]] = {
        "num_train_epochs": 150,
        "learning_rate": 3e-3,
        "per_device_train_batch_size": 256,
        "weight_decay": 0.05,
        "max_grad_norm": 1.0,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 10_000,
        "early_stopping_patience": 20,
        "eval_num_beams": 50,
        "num_eval_users": -1,
        "precision": "fp32",
        "seed": 2024,
    }
    attribute_map = {
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_decoder_layers",  # `generate()` makes a cache of so many layers: the decoder's
    }

    d_model: int = 128
    d_kv: int = 64
    d_ff: int = 1024
    num_layers: int = 4
    num_decoder_layers: int = 4
    num_heads: int = 6
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float | int = 0.1
    layer_norm_epsilon: float = 1e-6
    initializer_factor: float | int = 1.0
    embedding_std: float | int = 1.0
    feed_forward_proj: str = "relu"
    label_smoothing: float | int = 0.0
    history_attention: str = "bidirectional"
    history_unit: str = "code"
    marked_tokens: str = "first"
    history_gap_buckets: int = 0
    max_history_length: int = 20
    is_encoder_decoder: bool = True
    use_cache: bool = True
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        self._check_choice("history_attention", "bidirectional", "causal")
        self._check_choice("history_unit", "code", "item")
        self._check_choice("marked_tokens", "first", "all")
        if self.history_unit == "item" and self.history_attention != "causal":
            raise ValueError("`history_unit='item'` needs `history_attention='causal'`.")
        if self.dense_head and self.history_unit != "item":
            raise ValueError("`dense_head=True` needs `history_unit='item'`: the encoder reads a vector per item.")
        if self.label_smoothing and self.normalization == "catalog":
            raise ValueError(
                "`label_smoothing` needs `normalization='vocabulary'`: illegal tokens have no share to smooth."
            )
        self._check_share("label_smoothing", "dropout_rate")
        self._check_least(1, "max_history_length")
        self._check_least(0, "history_gap_buckets")
        super().__post_init__(**kwargs)

    @property
    def system_name(self) -> str:
        """`str`: `"Latte"`, or without latents `"TIGER/PSID"`: these two differ in their ids, not in the network."""
        return self.display_name if self.num_latent_tokens else "TIGER/PSID"

    @property
    def cited_papers(self) -> tuple[str, ...]:
        """`tuple[str, ...]`: Latte's paper where there are latents, and those it builds on."""
        return self.papers if self.num_latent_tokens else self.papers[1:]

    @property
    def description(self) -> list[str]:
        """`list[str]`: what is worth knowing about the network."""
        network = (
            f"{self.num_latent_tokens or 'no'} latent tokens before a semantic ID, {self.history_attention} history "
            f"attention over {self.history_unit}s"
        )
        heads = ["a second head scores items by their own vectors"] if self.dense_head else []
        return [network, *heads, *super().description]

    @property
    def history_tokens_per_item(self) -> int:
        """`int`: positions of the encoder that an item takes."""
        return 1 if self.history_unit == "item" else self.num_levels

    def to_t5_config(self) -> PreTrainedConfig:
        """`T5Config`: the same network as a plain T5, with which its blocks are built; it has no end token."""
        from transformers import T5Config  # here: it imports the registries of models, which import this file

        same = (
            "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads",
            "relative_attention_num_buckets", "relative_attention_max_distance", "dropout_rate", "layer_norm_epsilon",
            "initializer_factor", "feed_forward_proj", "pad_token_id",
        )  # fmt: skip
        config = T5Config(**{name: getattr(self, name) for name in same}, eos_token_id=None)
        config.decoder_start_token_id = self.decoder_start_token_id
        return config


__all__ = ["LatteConfig"]
