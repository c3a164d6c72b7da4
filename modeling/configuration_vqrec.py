"""Configuration of VQ-Rec, which reads items by their codes and scores all of them."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_genrec import ItemBlocksConfig


@strict
class VQRecConfig(ItemBlocksConfig):
    """
    A causal transformer over items whose vectors are the mean of the embeddings of their codes.

    An item has no row of its own, so a new one needs codes and nothing else. What it is asked for is not its codes, as
    in [`RPGConfig`], but the whole vector, in one softmax over the catalog.

    Args:
        d_model (`int`, defaults to 64): Width of the network and of the code embeddings.
        num_layers (`int`, defaults to 2): Number of GPT-2 blocks.
        num_heads (`int`, defaults to 1): Number of attention heads; a divisor of `d_model`.
        d_ff (`int`, *optional*): Inner width of the feed-forward layers; `None` for four times `d_model`.
        dropout_rate (`float`, defaults to 0.5): Dropout on what goes into the first block, on attention and on what a
            block adds.
        layer_norm_epsilon (`float`, defaults to 1e-8): Epsilon of the layer norms.
        initializer_range (`float`, defaults to 0.02): Standard deviation of weights and embeddings at the start.
        position_std (`float`, defaults to 0.02): Standard deviation of the position embeddings at the start.
        scale_embeddings (`bool`, defaults to `True`):
            Whether item vectors enter the first block times the square root of `d_model`.
        temperature (`float`, defaults to 0.07): What cosines of states and item vectors are divided by.
        num_levels (`int`, defaults to 32): Number of codes in a semantic ID.
        history_gap_buckets (`int`, defaults to 0):
            Buckets of the time since the item before, see [`HistoryConfig`]; 0 for a model that knows no times.
        max_history_length (`int`, defaults to 50): Number of most recent items that are read, and of positions.

    Raises:
        ValueError: If an option is out of range.

    Source: Hou et al. 2023, sections 2.2 and 2.4 (https://arxiv.org/abs/2210.12316), without the pre-training on other
    domains.

    Example:

    ```python
    >>> from hf_genrec.modeling.configuration_vqrec import VQRecConfig
    >>> VQRecConfig(num_items=12101).vocab_size
    8196

    ```
    """

    model_type = "vqrec"
    display_name = "VQ-Rec"
    summary = "scores every item of the catalog by a vector that is made of its codes"
    papers = ("VQ-Rec: Hou et al. 2023, https://arxiv.org/abs/2210.12316",)
    default_shape: ClassVar[dict[str, Any]] = {"d_model": 128, "num_heads": 2}
    default_schedule: ClassVar[dict[str, Any]] = {
        "num_train_epochs": 12,
        "learning_rate": 3e-3,
        "per_device_train_batch_size": 1024,
        "weight_decay": 0.0,
    }

    temperature: float | int = 0.07
    num_levels: int = 32

    def __post_init__(self, **kwargs):
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"`temperature` must be positive, got {self.temperature}.")
        super().__post_init__(**kwargs)

    @property
    def description(self) -> list[str]:
        """`list[str]`: what is worth knowing about the network."""
        network = f"{self.num_layers} GPT-2 layers of width {self.d_model} over means of code embeddings"
        return [network, *super().description]


__all__ = ["VQRecConfig"]
