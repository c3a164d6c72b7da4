"""Configuration of GRU4Rec, a recurrent network over items."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_genrec import ItemRowsConfig


@strict
class GRU4RecConfig(ItemRowsConfig):
    """
    Gated recurrent units over the items of a history, and a softmax over the whole catalog.

    Args:
        d_model (`int`, defaults to 64): Width of the states and of the item table.
        num_layers (`int`, defaults to 1): Number of recurrent layers.
        dropout_rate (`float`, defaults to 0.5): Dropout on items that are read, between layers and on the last states.
        initializer_range (`float`, defaults to 0.02):
            Standard deviation of embeddings at the start; those of recurrent layers follow from their width.
        scale_embeddings (`bool`, defaults to `True`):
            Whether item embeddings are read times the square root of `d_model`.
        text_dim (`int`, defaults to 0):
            Width of the vectors of the items' texts, whose projection is added to the items' rows; 0 for none.
        history_gap_buckets (`int`, defaults to 0):
            Buckets of the time since the item before, see [`HistoryConfig`]; 0 for a model that knows no times.
        max_history_length (`int`, defaults to 50): Number of most recent items that are read.

    Raises:
        ValueError: If an option is out of range, or one is set that only models with codes have.

    Source: Hidasi et al. 2016, section 3 (https://arxiv.org/abs/1511.06939); one table for input and output as in
    Hidasi and Karatzoglou 2018, section 3.3 (https://arxiv.org/abs/1706.03847).

    Example:

    ```python
    >>> from hf_genrec.modeling.configuration_gru4rec import GRU4RecConfig
    >>> GRU4RecConfig(num_items=12).vocab_size
    16

    ```
    """

    model_type = "gru4rec"
    display_name = "GRU4Rec"
    summary = "scores every item of the catalog by the state of a recurrent network"
    papers = (
        "GRU4Rec: Hidasi et al. 2016, https://arxiv.org/abs/1511.06939",
        "its losses: Hidasi and Karatzoglou 2018, https://arxiv.org/abs/1706.03847",
    )
    default_shape: ClassVar[dict[str, Any]] = {"d_model": 128}
    default_schedule: ClassVar[dict[str, Any]] = {
        "num_train_epochs": 12,
        "learning_rate": 3e-3,
        "per_device_train_batch_size": 512,
        "weight_decay": 0.3,
    }

    num_layers: int = 1

    @property
    def description(self) -> list[str]:
        """`list[str]`: what is worth knowing about the network."""
        network = f"{self.num_layers} recurrent layers of width {self.d_model}, one item table for input and output"
        return [network, *super().description]


__all__ = ["GRU4RecConfig"]
