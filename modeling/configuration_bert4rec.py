"""Configuration of BERT4Rec, which learns by filling in masked items."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_genrec import ItemBlocksConfig, ItemRowsConfig


@strict
class BERT4RecConfig(ItemRowsConfig, ItemBlocksConfig):
    """
    A transformer over items that sees both sides of an item that is masked, and fills it in by a softmax over the
    whole catalog; a mask behind the history asks for the next item.

    A step trains the items that happen to be masked, so it takes many more epochs than a SASRec, which trains all of
    them: Petrov and Macdonald found published figures to be those of models that were trained too little.

    Args:
        d_model (`int`, defaults to 64): Width of the network and of the item table.
        num_layers (`int`, defaults to 2): Number of GPT-2 blocks, without their causal mask.
        num_heads (`int`, defaults to 1): Number of attention heads; a divisor of `d_model`.
        d_ff (`int`, *optional*): Inner width of the feed-forward layers; `None` for four times `d_model`.
        dropout_rate (`float`, defaults to 0.5): Dropout on what goes into the first block, on attention and on what a
            block adds.
        mask_share (`float`, defaults to 0.2): Share of the items of a row that are masked in training, in [0, 1).
        last_share (`float`, defaults to 0.1):
            Share of rows of which the last item alone is masked in training, as when the next item is asked for.
        layer_norm_epsilon (`float`, defaults to 1e-8): Epsilon of the layer norms.
        initializer_range (`float`, defaults to 0.02): Standard deviation of weights and embeddings at the start.
        position_std (`float`, defaults to 0.02): Standard deviation of the position embeddings at the start.
        scale_embeddings (`bool`, defaults to `True`):
            Whether item embeddings enter the first block times the square root of `d_model`.
        text_dim (`int`, defaults to 0):
            Width of the vectors of the items' texts, whose projection is added to the items' rows; 0 for none.
        history_gap_buckets (`int`, defaults to 0):
            Buckets of the time since the item before, see [`HistoryConfig`]; 0 for a model that knows no times.
        max_history_length (`int`, defaults to 50): Number of most recent items that are read; there is one position
            more, for the mask.

    Raises:
        ValueError: If an option is out of range, or one is set that only models with codes have.

    Source: Sun et al. 2019, sections 3.2 to 3.6 (https://arxiv.org/abs/1904.06690); Petrov and Macdonald 2022
    (https://arxiv.org/abs/2207.07483).

    Example:

    ```python
    >>> from hf_genrec.modeling.configuration_bert4rec import BERT4RecConfig
    >>> BERT4RecConfig(num_items=12, mask_share=0.6).vocab_size
    16

    ```
    """

    model_type = "bert4rec"
    display_name = "BERT4Rec"
    summary = "scores every item of the catalog as what a masked item may be"
    papers = (
        "BERT4Rec: Sun et al. 2019, https://arxiv.org/abs/1904.06690",
        "how long it has to be trained: Petrov and Macdonald 2022, https://arxiv.org/abs/2207.07483",
    )
    default_shape: ClassVar[dict[str, Any]] = {"d_model": 128, "num_heads": 2}
    default_schedule: ClassVar[dict[str, Any]] = {
        "num_train_epochs": 40,
        "learning_rate": 3e-3,
        "per_device_train_batch_size": 512,
        "weight_decay": 0.3,
    }

    mask_share: float | int = 0.2
    last_share: float | int = 0.1

    def __post_init__(self, **kwargs):
        self._check_share("mask_share", "last_share")
        super().__post_init__(**kwargs)

    @property
    def description(self) -> list[str]:
        """`list[str]`: what is worth knowing about the network."""
        network = f"{self.num_layers} layers of width {self.d_model} that see both sides of a mask"
        return [network, *super().description]


__all__ = ["BERT4RecConfig"]
