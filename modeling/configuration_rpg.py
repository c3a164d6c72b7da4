"""Configuration of RPG, and of what every model shares that predicts all codes of an item at once."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_genrec import HistoryConfig, TwoHeadConfig


@strict
class RPGConfig(HistoryConfig, TwoHeadConfig):
    """
    A causal transformer over items that predicts every code of the next item at once, one head per level.

    The defaults are the paper's shape: 8.5, 13.6 and 23.7 million parameters at 16, 32 and 64 codes of 256 values.

    Args:
        d_model (`int`, defaults to 448): Width of the network.
        num_layers (`int`, defaults to 2): Number of GPT-2 blocks.
        num_heads (`int`, defaults to 4): Number of attention heads; a divisor of `d_model`.
        d_ff (`int`, defaults to 1024): Inner width of the feed-forward layers.
        embedding_dropout (`float`, defaults to 0.5): Dropout on what goes into the first block.
        attention_dropout (`float`, defaults to 0.5): Dropout on attention weights.
        residual_dropout (`float`, defaults to 0.0): Dropout on what a block adds.
        layer_norm_epsilon (`float`, defaults to 1e-12): Epsilon of the layer norms.
        initializer_range (`float`, defaults to 0.02): Standard deviation of weights and embeddings at the start.
        position_std (`float`, defaults to 0.02):
            Standard deviation of the position embeddings at the start. The paper's is `initializer_range`; the mean of
            32 code embeddings is six times smaller, so what an item is drowns in where it stands, and training takes
            many epochs to find it. 0.002 lets it show.
        temperature (`float`, defaults to 0.03): What the cosines are divided by before the softmax.
        item_pooling (`str`, defaults to `"mean"`): Vector of an item: `"mean"` or `"max"` of its code embeddings.
        projection (`str`, defaults to `"separate"`):
            Heads between the state and the codes: one per level, one `"shared"` by all levels, or `"none"`.
        num_levels (`int`, defaults to 32): Number of codes in a semantic ID.
        max_history_length (`int`, defaults to 50): Number of most recent items that are read, and of positions.
        dense_head (`bool`, defaults to `False`):
            A second head that scores items; the fields that belong to it are those of [`TwoHeadConfig`].
        dense_codes (`bool`, defaults to `False`):
            As in [`TwoHeadConfig`]; pooling the many codes of the whole catalog in each step takes longer than the
            rest of it.

    Raises:
        ValueError: If an option is out of range, or of those of [`GenRecConfig`] one does not fit: there are no
            latent tokens, and each level has a softmax of its own, whatever the other levels say.

    Source: Hou et al. 2025, sections 3 and 4.1 (https://huggingface.co/papers/2506.05781).

    Example:

    ```python
    >>> from hf_genrec.modeling.configuration_rpg import RPGConfig
    >>> RPGConfig(num_items=12101).vocab_size
    8196

    ```
    """

    model_type = "rpg"
    display_name = "RPG"
    summary = "predicts all codes of the next item at once, with which every item of the catalog is scored"
    papers = ("RPG: Hou et al. 2025, https://huggingface.co/papers/2506.05781",)
    # The shape is the paper's but for the scale of the positions, see `position_std`. The paper's warm-up is longer
    # than a short run, so its batches of 256 sequences (about 1,536 targets) and its rates do not suit one. Nor do its
    # windows that move by one item: they read twice the items for the same targets.
    default_shape: ClassVar[dict[str, Any]] = {"position_std": 0.002}
    default_schedule: ClassVar[dict[str, Any]] = {
        "num_train_epochs": 30,
        "learning_rate": 5e-4,
        "per_device_train_batch_size": 512,
        "weight_decay": 0.0,
    }
    # Hou et al. 2025 and the published code; the learning rate is Beauty's.
    paper_schedule: ClassVar[dict[str, Any]] = {
        "num_train_epochs": 150,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 1536,
        "weight_decay": 0.0,
        "window_stride": 1,
        "warmup_steps": 10_000,
        "early_stopping_patience": 20,
        "num_eval_users": -1,
        "precision": "fp32",
        "seed": 2024,
    }

    d_model: int = 448
    num_layers: int = 2
    num_heads: int = 4
    d_ff: int = 1024
    embedding_dropout: float | int = 0.5
    attention_dropout: float | int = 0.5
    residual_dropout: float | int = 0.0
    layer_norm_epsilon: float = 1e-12
    initializer_range: float | int = 0.02
    position_std: float | int = 0.02
    temperature: float | int = 0.03
    item_pooling: str = "mean"
    projection: str = "separate"
    num_levels: int = 32
    max_history_length: int = 50
    dense_codes: bool = False

    def __post_init__(self, **kwargs):
        self._check_share("embedding_dropout", "attention_dropout", "residual_dropout")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"`temperature` must be positive, got {self.temperature}.")
        self._check_choice("item_pooling", "mean", "max")
        self._check_choice("projection", "separate", "shared", "none")
        super().__post_init__(**kwargs)

    @property
    def description(self) -> list[str]:
        """`list[str]`: what is worth knowing about the network."""
        network = f"{self.num_layers} GPT-2 layers of width {self.d_model}, {self.projection} projection heads"
        heads = ["a second head scores items by their own vectors"] if self.dense_head else []
        return [network, *heads, *super().description]


__all__ = ["RPGConfig"]
