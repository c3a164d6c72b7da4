"""Configuration of SASRec, which knows items by a row of a table each and has no semantic IDs."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_genrec import ItemBlocksConfig, ItemRowsConfig


@strict
class SASRecConfig(ItemRowsConfig, ItemBlocksConfig):
    """
    A causal transformer over items that predicts the next item with a softmax over the whole catalog.

    There are no codes: behind the four special tokens come the items, and the network embeds all of them.

    Args:
        d_model (`int`, defaults to 64): Width of the network and of the item table.
        num_layers (`int`, defaults to 2): Number of GPT-2 blocks.
        num_heads (`int`, defaults to 1): Number of attention heads; a divisor of `d_model`.
        d_ff (`int`, *optional*): Inner width of the feed-forward layers; `None` for four times `d_model`.
        dropout_rate (`float`, defaults to 0.5): Dropout on what goes into the first block, on attention and on what a
            block adds.
        layer_norm_epsilon (`float`, defaults to 1e-8): Epsilon of the layer norms.
        initializer_range (`float`, defaults to 0.02): Standard deviation of weights and embeddings at the start.
        position_std (`float`, defaults to 0.02): Standard deviation of the position embeddings at the start.
        scale_embeddings (`bool`, defaults to `True`):
            Whether item embeddings enter the first block times the square root of `d_model`. Without it positions
            are as loud as items at the start.
        text_dim (`int`, defaults to 0):
            Width of the vectors of the items' texts. A learned projection of them is added to the items' rows, so that
            rare items are near those that read like them; 0 for rows alone.
        history_gap_buckets (`int`, defaults to 0):
            Buckets of the time since the item before, see [`HistoryConfig`]; 0 for a model that knows no times.
        max_history_length (`int`, defaults to 50): Number of most recent items that are read, and of positions.

    Raises:
        ValueError: If an option is out of range, or one is set that only models with codes have.

    Source: Kang and McAuley 2018, sections 3 and 4.3 (https://arxiv.org/abs/1808.09781), with the loss over the whole
    catalog instead of one negative item.

    Example:

    ```python
    >>> from hf_genrec.modeling.configuration_sasrec import SASRecConfig
    >>> config = SASRecConfig(num_items=12)
    >>> config.first_item_token, config.vocab_size, config.d_ff
    (4, 16, 256)

    ```
    """

    model_type = "sasrec"
    display_name = "SASRec"
    summary = "scores every item of the catalog"
    papers = (
        "SASRec: Kang and McAuley 2018, https://arxiv.org/abs/1808.09781",
        "the full cross-entropy for it: Klenitskiy and Vasilev 2023, https://arxiv.org/abs/2309.07602",
    )
    # Chosen on the validation part of Amazon 2014 Beauty; a catalog of few interactions wants much dropout.
    default_shape: ClassVar[dict[str, Any]] = {"d_model": 128, "num_heads": 2, "dropout_rate": 0.6}
    default_schedule: ClassVar[dict[str, Any]] = {
        "num_train_epochs": 12,
        "learning_rate": 3e-3,
        "per_device_train_batch_size": 512,
        "weight_decay": 0.3,
    }
    # Section 4.3, but for the loss. The paper's 128 sequences of Beauty hold about 768 targets.
    paper_shape: ClassVar[dict[str, Any]] = {"d_model": 50, "d_ff": 50}
    paper_schedule: ClassVar[dict[str, Any]] = {
        "num_train_epochs": 200,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 768,
        "weight_decay": 0.0,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "early_stopping_patience": 20,
        "num_eval_users": -1,
        "precision": "fp32",
        "seed": 2024,
    }

    @property
    def description(self) -> list[str]:
        """`list[str]`: what is worth knowing about the network."""
        network = f"{self.num_layers} GPT-2 layers of width {self.d_model}, one item table for input and output"
        return [network, *super().description]


__all__ = ["SASRecConfig"]
