"""Configuration of HSTU, which mixes a history by gates and counts instead of a softmax."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_genrec import ItemRowsConfig


@strict
class HSTUConfig(ItemRowsConfig):
    """
    Hierarchical sequential transduction units over items, and a softmax over the whole catalog.

    Attention weights are not normalised, so how often something stands in a history counts, not only its share; and
    they know how far apart two items are, in places and, where the data has times, in seconds.

    Args:
        d_model (`int`, defaults to 64): Width of the network and of the item table.
        num_layers (`int`, defaults to 2): Number of layers.
        num_heads (`int`, defaults to 1): Number of attention heads; a divisor of `d_model`.
        dropout_rate (`float`, defaults to 0.5): Dropout on what goes into the first layer and on the gated result.
        layer_norm_epsilon (`float`, defaults to 1e-6): Epsilon of the layer norms.
        initializer_range (`float`, defaults to 0.02): Standard deviation of weights and embeddings at the start.
        scale_embeddings (`bool`, defaults to `True`):
            Whether item embeddings enter the first layer times the square root of `d_model`.
        text_dim (`int`, defaults to 0):
            Width of the vectors of the items' texts, whose projection is added to the items' rows; 0 for none.
        history_gap_buckets (`int`, defaults to 0):
            Number of buckets of the time between any two items of a history, whose width doubles from bucket to
            bucket; 0 for a model that knows no times. 34 hold a century.
        max_history_length (`int`, defaults to 50): Number of most recent items that are read.

    Raises:
        ValueError: If an option is out of range, or one is set that only models with codes have.

    Source: Zhai et al. 2024, section 3 (https://arxiv.org/abs/2402.17152).

    Example:

    ```python
    >>> from hf_genrec.modeling.configuration_hstu import HSTUConfig
    >>> HSTUConfig(num_items=12, history_gap_buckets=34).vocab_size
    16

    ```
    """

    model_type = "hstu"
    display_name = "HSTU"
    summary = "scores every item of the catalog, with gated attention whose weights are not normalised"
    papers = ("HSTU: Zhai et al. 2024, https://arxiv.org/abs/2402.17152",)
    default_shape: ClassVar[dict[str, Any]] = {"d_model": 128, "num_heads": 2, "dropout_rate": 0.6}
    default_schedule: ClassVar[dict[str, Any]] = {
        "num_train_epochs": 12,
        "learning_rate": 3e-3,
        "per_device_train_batch_size": 512,
        "weight_decay": 0.3,
    }

    num_heads: int = 1
    layer_norm_epsilon: float = 1e-6

    @property
    def description(self) -> list[str]:
        """`list[str]`: what is worth knowing about the network."""
        times = ["positions and times"] if self.history_gap_buckets else ["positions"]
        network = f"{self.num_layers} layers of width {self.d_model} that compare {times[0]}, one item table"
        return [network, *super().description]


__all__ = ["HSTUConfig"]
